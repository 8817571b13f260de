"""Write gathers and scatters by tables as what they do: rows are gathered, a whole is reshaped."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxjl.normalize.surgery import (
    Names,
    add_initializer,
    constant,
    is_onnx,
    remove,
    substitute,
    take_place,
)


def simplify_gathers(model: ir.Model) -> ir.Model:
    """Turn `GatherND` of rows into `Gather`, and a `Gather` of all in order into `Reshape`.

    PyTorch's exporters write indexing by a table as the first, and strided views as the second. A
    `ScatterND` that writes all, as they write ``x[:, :] = y``, gives what it writes.
    """
    graph = model.graph
    names = Names(graph)
    for node in list(graph):
        if is_onnx(node, "GatherND"):
            node = _as_gather(graph, names, node) or node
        if is_onnx(node, "Gather"):
            _as_reshape(graph, names, node)
        if is_onnx(node, "ScatterND") and _writes_all(node):
            written = node.inputs[2]
            assert written is not None
            if substitute(node.outputs[0], written):
                remove([node])
    return model


def _as_gather(graph: ir.Graph, names: Names, node: ir.Node) -> ir.Node | None:
    """Write a `GatherND` whose places are single numbers as a `Gather`."""
    data, table = node.inputs
    if table is None or table.shape is None or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    if not len(table.shape) or table.shape[-1] != 1:
        return None
    known = constant(table)
    if known is not None:
        rows = add_initializer(graph, names.fresh(f"{table.name}_rows"), known[..., 0])
    else:
        last = np.array([len(table.shape) - 1])
        axes = add_initializer(graph, names.fresh(f"{table.name}_last"), last)
        squeeze = ir.Node("", "Squeeze", [table, axes], name=names.fresh(f"{table.name}_squeeze"))
        graph.insert_before(node, squeeze)
        rows = squeeze.outputs[0]
        rows.name = names.fresh(f"{table.name}_rows")
        rows.type, rows.shape = table.type, ir.Shape(table.shape[:-1])
    return _replace(graph, node, "Gather", [data, rows], [ir.AttrInt64("axis", 0)])


def _as_reshape(graph: ir.Graph, names: Names, node: ir.Node) -> None:
    """Write a `Gather` that takes every index of an axis once, in order, as a `Reshape`."""
    data, table = node.inputs
    taken = constant(table)
    if data is None or data.shape is None or taken is None:
        return
    along = node.attributes.get_int("axis", 0) % len(data.shape)
    rest = [-1 if isinstance(d, ir.SymbolicDim) else d for d in data.shape[along + 1 :]]
    whole = data.shape[along]
    if not isinstance(whole, int) or taken.ndim == 0 or rest.count(-1) > 1 or 0 in rest:
        return
    if not np.array_equal(taken.reshape(-1), np.arange(whole)):
        return
    sizes = np.array([0] * along + list(taken.shape) + rest, dtype=np.int64)
    shape = add_initializer(graph, names.fresh(f"{node.outputs[0].name}_shape"), sizes)
    _replace(graph, node, "Reshape", [data, shape], [])


def _writes_all(node: ir.Node) -> bool:
    """Return whether a `ScatterND` writes every element once, in the data's order."""
    data, table, written = node.inputs
    if data is None or written is None or data.shape is None or written.shape != data.shape:
        return False
    if node.attributes.get_string("reduction", "none") != "none":
        return False
    numbers = _numbers(table)
    if not numbers:
        return False
    sizes = tuple(size for size in data.shape[: len(numbers)] if isinstance(size, int))
    if numbers[0].shape != sizes:
        return False
    grid = np.ogrid[tuple(slice(size) for size in sizes)]
    return all((a == b).all() for a, b in zip(numbers, grid, strict=True))


def _numbers(table: ir.Value | None) -> list[np.ndarray] | None:
    """Return the numbers that name places, one array for each axis, if they are constants."""
    if table is None or table.shape is None:
        return None
    parts, producer = [table], table.producer()
    if producer is not None and is_onnx(producer, "Concat"):
        if producer.attributes.get_int("axis", 0) not in (-1, len(table.shape) - 1):
            return None
        parts = [part for part in producer.inputs if part is not None]
    numbers: list[np.ndarray] = []
    for part in parts:
        known = constant(part)
        if known is None or known.ndim == 0:
            return None
        numbers += [known[..., i] for i in range(known.shape[-1])]
    return numbers


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    operator: str,
    inputs: list[ir.Value | None],
    attributes: list[ir.Attr],
) -> ir.Node:
    """Put another operator in a node's place, under its name."""
    new = ir.Node("", operator, inputs, attributes, name=node.name)
    graph.insert_before(node, new)
    take_place(node.outputs[0], new.outputs[0])
    remove([node])
    return new
