"""Give each use of a constant its own copy where pruning may change the uses differently."""

from __future__ import annotations

import onnx_ir as ir

from onnxjl.normalize.surgery import Names, add_initializer, is_constant, renamed

_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}

# Integer tensors beyond this many elements are data, not shapes, sizes or indices.
_LARGE = 1 << 18


def unshare_constants(model: ir.Model) -> ir.Model:
    """Copy integer constants and 1-D floating weights for each of their uses.

    Exporters merge equal tensors: one shape constant may serve all attention blocks, one vector of
    zeros all biases. The first use keeps the name, further ones get numbers; the data are shared
    until something changes them. What a subgraph captures or the graph puts out stays as it is.
    Weights of two or more dimensions stay tied.
    """
    graph = model.graph
    names = Names(graph)
    order = {node: index for index, node in enumerate(graph)}
    for value in list(graph.initializers.values()):
        uses = value.uses()
        if len(uses) + value.is_graph_output() < 2 or not is_constant(value) or not _owned(value):
            continue
        ours = sorted(
            (use for use in uses if use.node in order), key=lambda use: (order[use.node], use.idx)
        )
        if len(ours) == len(uses) and not value.is_graph_output():
            ours = ours[1:]
        assert value.name is not None
        assert value.const_value is not None
        for use in ours:
            name = names.fresh(value.name)
            copy = add_initializer(graph, name, renamed(value.const_value, name))
            use.node.replace_input_with(use.idx, copy)
    return model


def _owned(value: ir.Value) -> bool:
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype in _INTEGERS:
        return tensor.size <= _LARGE
    return tensor.dtype in _FLOATS and len(tensor.shape) == 1 and tensor.size > 1
