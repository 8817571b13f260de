"""Give each use of a constant its own copy where pruning may change the uses differently."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxjl.normalize.surgery import Names, add_initializer, is_constant, renamed
from onnxjl.normalize.transposes import ELEMENTWISE

_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}

# Integer tensors beyond this many elements are data, not shapes, sizes or indices; one number that
# fills more than this many isn't written anew for each use.
_LARGE = 1 << 18

# The states of zeros that recurrent operators start from.
_STATES = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}


def unshare_constants(model: ir.Model) -> ir.Model:
    """Copy integer constants, vectors and what one number fills for each of their uses.

    Exporters merge equal tensors: one shape constant may serve all attention blocks, one vector of
    zeros all biases, one state of zeros all recurrences. The first use keeps the name, further ones
    get numbers; the data are shared until something changes them. What a subgraph captures or the
    graph puts out stays as it is. Weights of two or more dimensions stay tied, but where an
    elementwise operator reads such a vector or filled one, or a recurrence begins with it.
    """
    graph = model.graph
    names = Names(graph)
    order = {node: index for index, node in enumerate(graph)}
    for value in list(graph.initializers.values()):
        uses = value.uses()
        if len(uses) + value.is_graph_output() < 2 or not is_constant(value) or not _owned(value):
            continue
        tensor = value.const_value
        assert value.name is not None
        assert tensor is not None
        ours = sorted(
            (use for use in uses if use.node in order and not _ties(use.node, use.idx, tensor)),
            key=lambda use: (order[use.node], use.idx),
        )
        if len(ours) == len(uses) and not value.is_graph_output():
            ours = ours[1:]
        for use in ours:
            name = names.fresh(value.name)
            copy = add_initializer(graph, name, renamed(tensor, name))
            use.node.replace_input_with(use.idx, copy)
    return model


def _owned(value: ir.Value) -> bool:
    """Return whether a constant's uses have nothing in common but its numbers."""
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype in _INTEGERS:
        return tensor.size <= _LARGE
    if tensor.dtype not in _FLOATS or tensor.size < 2:
        return False
    if tensor.size in tensor.shape.numpy():  # a vector, in however many dimensions
        return True
    return tensor.size <= _LARGE and _is_filled(tensor.numpy())


def _is_filled(array: np.ndarray) -> bool:
    """Return whether all elements are one number."""
    return bool((array == array.reshape(-1)[0]).all())


def _ties(node: ir.Node, position: int, tensor: ir.TensorProtocol) -> bool:
    """Return whether a node's input of several axes is a matrix that other nodes may share."""
    if tensor.dtype not in _FLOATS or len(tensor.shape) < 2:
        return False
    return node.op_type not in ELEMENTWISE and position not in _STATES.get(node.op_type, ())
