"""Pooling and resampling: channels pass, spatial axes are plain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxjl.structure import axes as ax
from onnxjl.structure.rules import Unruled, edit, rule

if TYPE_CHECKING:
    from onnxjl.structure.edits import Editor
    from onnxjl.structure.interpreter import Interpreter


@rule(
    *(
        "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample LpPool MaxPool "
        "MaxRoiPool RoiAlign"
    ).split()
)
def pooling(run: Interpreter, node: ir.Node) -> None:
    """Pass channels. Further inputs are positions, not channels."""
    if any(v.name and v.uses() for v in node.outputs[1:]):
        raise Unruled("its indices count channels")
    axes, sizes = run.of(node.inputs[0]), run.sizes(node.outputs[0])
    for axis in axes[2:]:
        run.fix(axis, f"a spatial axis of {node.op_type} '{node.name}'")
    for value in node.inputs[1:]:
        run.fix_value(value, f"positions for {node.op_type} '{node.name}'")
    batch = axes[0] if ax.size(axes[0]) == sizes[0] else ax.plain(sizes[0])
    run.set(node.outputs[0], [batch, axes[1], *(ax.plain(d) for d in sizes[2:])])
    for value in node.outputs[1:]:
        if value.name and value.name in run.shapes.sizes:
            run.set(value, [ax.plain(d) for d in run.sizes(value)])


@rule("Resize", "Upsample")
def resize(run: Interpreter, node: ir.Node) -> None:
    """Pass axes whose size stays; axes that are resampled are spatial."""
    axes, sizes = list(run.of(node.inputs[0])), run.sizes(node.outputs[0])
    for value in node.inputs[1:3]:
        run.fix_value(value, f"scales of {node.op_type} '{node.name}'")
    wanted = node.inputs[3] if len(node.inputs) > 3 else None
    chosen = _axes(node, len(axes))
    for i, axis in enumerate(axes):
        if not ax.has_labels(axis):
            axes[i] = ax.plain(sizes[i])
        elif ax.size(axis) != sizes[i]:
            run.fix(axis, f"{node.op_type} '{node.name}' resamples it")
            axes[i] = ax.plain(sizes[i])
        elif wanted is not None and i in chosen and not run.adjustable(wanted, chosen.index(i)):
            run.fix(axis, f"its size at {node.op_type} '{node.name}' can't be rewritten")
    run.set(node.outputs[0], axes)


def _axes(node: ir.Node, rank: int) -> list[int]:
    """Return the axes that sizes are given for."""
    return [i % rank for i in node.attributes.get_ints("axes", ())] or list(range(rank))


@edit("Resize")
def resize_sizes(editor: Editor, node: ir.Node) -> None:
    """Write the sizes that are left, where sizes are given."""
    wanted = node.inputs[3] if len(node.inputs) > 3 else None
    if wanted is None:
        return
    after = editor.new_shape(node.outputs[0])
    spec = editor.old_array(wanted).copy()
    chosen = [i % len(after) for i in _axes(node, len(after))]
    for i in editor.changed_axes(node.outputs[0]):
        if i in chosen:
            spec[chosen.index(i)] = after[i]
    editor.require(node, 3, spec)
