"""What selects or reorders along an axis by data: that axis stays, others pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxjl.structure import axes as ax
from onnxjl.structure.axes import Axis
from onnxjl.structure.rules import Unruled, rule

if TYPE_CHECKING:
    from onnxjl.structure.interpreter import Interpreter


def _ordered(run: Interpreter, node: ir.Node, *along: int) -> list[Axis]:
    """Return the axes of what a node selects from, those along which it selects fixed."""
    axes = list(run.of(node.inputs[0]))
    for i in along:
        run.fix(axes[i], f"{node.op_type} '{node.name}' selects along it")
    for value in node.inputs[1:]:
        run.fix_value(value, f"{node.op_type} '{node.name}' selects by it")
    return axes


@rule("TopK", "Compress")
def select(run: Interpreter, node: ir.Node) -> None:
    """Some indices of an axis are left."""
    along = node.attributes.get_int("axis", -1 if node.op_type == "TopK" else None)
    if along is None:
        raise Unruled("it selects among all elements")
    axes = _ordered(run, node, along)
    for value in node.outputs:
        if value.name:
            left = axes.copy()
            left[along] = ax.plain(run.sizes(value)[along])
            run.set(value, left)


@rule("ArgMax", "ArgMin")
def extreme(run: Interpreter, node: ir.Node) -> None:
    """One index of an axis is left, as its number."""
    along = node.attributes.get_int("axis", 0)
    axes = _ordered(run, node, along)
    kept = node.attributes.get_int("keepdims", 1)
    axes[along : along + 1 or None] = [()] if kept else []
    run.set(node.outputs[0], axes)


@rule("ReverseSequence")
def reverse(run: Interpreter, node: ir.Node) -> None:
    """Steps are turned round, of each sample by itself."""
    time, batch = node.attributes.get_int("time_axis", 0), node.attributes.get_int("batch_axis", 1)
    run.set(node.outputs[0], _ordered(run, node, time, batch))
