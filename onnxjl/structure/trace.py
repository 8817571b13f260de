"""Where an element of a shape tensor comes from: the constant to rewrite when an axis shrinks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxjl.graph import Graph
from onnxjl.structure.shapes import ADJUSTED, MOVED, Shapes, evaluate


def data_inputs(node: ir.Node) -> frozenset[str]:
    """Return the names of the inputs whose elements a moving operator moves."""
    positions = MOVED[node.op_type]
    chosen = range(len(node.inputs)) if positions is None else positions
    return frozenset(
        value.name
        for i in chosen
        if i < len(node.inputs) and (value := node.inputs[i]) is not None and value.name
    )


def source(
    value: ir.Value, index: int, shapes: Shapes, graph: Graph
) -> tuple[ir.Value, int] | None:
    """Return the input element that a moving operator put at a flat index of its output."""
    node = value.producer()
    assert node is not None
    names = sorted(data_inputs(node))
    offsets: dict[str, int] = {}
    total = 0
    for name in names:
        if name not in shapes.known:
            return None
        offsets[name] = total
        total += shapes.known[name].size

    def feed(name: str) -> np.ndarray | None:
        array = shapes.known.get(name)
        if array is None or name not in offsets:
            return array
        return np.arange(offsets[name], offsets[name] + array.size).reshape(array.shape)

    moved = evaluate(node, feed, shapes.sizes.get, graph.model.opset_imports)
    if moved is None:
        return None
    number = int(moved[node.outputs.index(value)].reshape(-1)[index])
    for candidate in node.inputs:
        if candidate is not None and candidate.name in offsets:
            start = offsets[candidate.name]
            if start <= number < start + shapes.known[candidate.name].size:
                return candidate, number - start
    return None


def element(value: ir.Value, index: int, shapes: Shapes, output: ir.Value) -> int:
    """Return the flat index of a broadcast operand's element that meets an output's."""
    shape, whole = shapes.sizes[value.name or ""], shapes.sizes[output.name or ""]
    grid = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    return int(np.broadcast_to(grid, whole).reshape(-1)[index])


def adjustable(value: ir.Value, index: int, shapes: Shapes, graph: Graph) -> bool:
    """Return whether a shape element follows by itself, or from one constant of its own."""
    if value.name not in shapes.known:
        return False
    if value.is_initializer():
        return len(value.uses()) == 1
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type in ("Shape", "Size"):
        return True
    if node.op_type in MOVED:
        found = source(value, index, shapes, graph)
        return found is not None and adjustable(*found, shapes, graph)
    if node.op_type in ADJUSTED:
        return any(
            operand is not None
            and adjustable(operand, element(operand, index, shapes, value), shapes, graph)
            for operand in node.inputs
        )
    return False
