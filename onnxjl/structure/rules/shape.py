"""Operators that arrange, join, cut and repeat: they index and regroup label vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxjl.structure import axes as ax
from onnxjl.structure.axes import Axis
from onnxjl.structure.rules import Unruled, edit, rule

if TYPE_CHECKING:
    from onnxjl.structure.edits import Editor
    from onnxjl.structure.interpreter import Interpreter


@rule("Reshape")
def reshape(run: Interpreter, node: ir.Node) -> None:
    """Regroup factors; sizes that are written out must be rewritable where units may go."""
    wanted = run.asked(node.inputs[1])
    axes = run.reshape(run.of(node.inputs[0]), run.sizes(node.outputs[0]), node)
    for i, axis in enumerate(axes):
        if not ax.has_labels(axis):
            continue
        if wanted is None or (wanted[i] > 0 and not run.adjustable(node.inputs[1], i)):
            run.fix(axis, f"its size at Reshape '{node.name}' can't be rewritten")
    run.set(node.outputs[0], axes)


@edit("Reshape")
def reshape_sizes(editor: Editor, node: ir.Node) -> None:
    """Write the sizes that are left; 0 (as before) and -1 (what remains) follow by themselves."""
    value, shape = node.inputs[0], node.inputs[1]
    assert value is not None
    assert shape is not None
    spec = editor.old_array(shape).copy()
    before = editor.new_shape(value)
    after = editor.new_shape(node.outputs[0])
    copies_zero = not node.attributes.get_int("allowzero", 0)
    for i, size in enumerate(after):
        if spec[i] == -1 or (spec[i] == 0 and copies_zero and before[i] == size):
            continue
        spec[i] = size
    editor.require(node, 1, spec)


@rule("Flatten")
def flatten(run: Interpreter, node: ir.Node) -> None:
    """Regroup factors."""
    axes = run.reshape(run.of(node.inputs[0]), run.sizes(node.outputs[0]), node)
    run.set(node.outputs[0], axes)


@rule("Transpose")
def transpose(run: Interpreter, node: ir.Node) -> None:
    """Permute axes."""
    axes = run.of(node.inputs[0])
    order = node.attributes.get_ints("perm", None) or range(len(axes))[::-1]
    run.set(node.outputs[0], [axes[i] for i in order])


def _positions(run: Interpreter, node: ir.Node, rank: int) -> set[int] | None:
    given = node.attributes.get_ints("axes", None)
    if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = run.known(node.inputs[1])
        if array is None:
            raise Unruled("which axes it means isn't known")
        given = [int(i) for i in array.reshape(-1)]
    return None if given is None else {i % rank for i in given}


@rule("Squeeze")
def squeeze(run: Interpreter, node: ir.Node) -> None:
    """Drop axes of size 1."""
    axes = run.of(node.inputs[0])
    gone = _positions(run, node, len(axes))
    if gone is None:
        # Every axis of size 1 goes: one that shrank to 1 must not go with them.
        for axis in axes:
            run.fix(axis, f"Squeeze '{node.name}' names no axes")
        gone = {i for i, axis in enumerate(axes) if not axis}
    run.set(node.outputs[0], [a for i, a in enumerate(axes) if i not in gone])


@rule("Unsqueeze")
def unsqueeze(run: Interpreter, node: ir.Node) -> None:
    """Insert axes of size 1."""
    rank = len(run.sizes(node.outputs[0]))
    new = _positions(run, node, rank) or set()
    rest = iter(run.of(node.inputs[0]))
    run.set(node.outputs[0], [() if i in new else next(rest) for i in range(rank)])


def _made(run: Interpreter, node: ir.Node, shape: ir.Value | None, i: int, size: int) -> Axis:
    """Return an axis that a shape tensor calls into being: free to shrink if its size is.

    One that is made as large as another has the units of that.
    """
    axis = None if shape is None else run.measured(shape, i)
    if axis is not None and ax.size(axis) == size:
        return axis
    if size > 1 and run.adjustable(shape, i):
        return run.copies(size)
    return ax.plain(size, run.why(f"its size at {node.op_type} '{node.name}' can't be rewritten"))


@rule("Expand")
def expand(run: Interpreter, node: ir.Node) -> None:
    """Axes that are there pass; axes that are made get labels of their own."""
    axes, sizes = run.of(node.inputs[0]), run.sizes(node.outputs[0])
    shape = node.inputs[1]
    wanted = run.asked(shape)
    result: list[Axis] = []
    for i, size in enumerate(sizes):
        j = i - len(sizes) + len(axes)
        k = i - len(sizes) + (len(wanted) if wanted is not None else 0)
        if j >= 0 and axes[j]:
            asked = wanted is None or (k >= 0 and wanted[k] != 1)
            if ax.has_labels(axes[j]) and asked and not run.adjustable(shape, k):
                run.fix(axes[j], f"its size at Expand '{node.name}' can't be rewritten")
            result.append(axes[j])
        elif wanted is None:
            result.append(ax.plain(size))
        else:
            result.append(_made(run, node, shape, k, size))
    run.set(node.outputs[0], result)


@edit("Expand")
def expand_sizes(editor: Editor, node: ir.Node) -> None:
    """Write the sizes that are left."""
    shape = node.inputs[1]
    assert shape is not None
    spec = editor.old_array(shape).copy()
    after = editor.new_shape(node.outputs[0])
    for i in editor.changed_axes(node.outputs[0]):
        k = i - len(after) + len(spec)
        if k >= 0 and spec[k] != 1:
            spec[k] = after[i]
    editor.require(node, 1, spec)


@rule("ConstantOfShape")
def constant_of_shape(run: Interpreter, node: ir.Node) -> None:
    """Axes get labels of their own."""
    sizes = run.sizes(node.outputs[0])
    run.set(
        node.outputs[0], [_made(run, node, node.inputs[0], i, size) for i, size in enumerate(sizes)]
    )


@edit("ConstantOfShape")
def constant_sizes(editor: Editor, node: ir.Node) -> None:
    """Write the sizes that are left."""
    shape = node.inputs[0]
    assert shape is not None
    spec = editor.old_array(shape).copy()
    after = editor.new_shape(node.outputs[0])
    for i in editor.changed_axes(node.outputs[0]):
        spec[i] = after[i]
    editor.require(node, 0, spec)


@rule("Tile")
def tile(run: Interpreter, node: ir.Node) -> None:
    """Repeat labels."""
    axes, sizes = run.of(node.inputs[0]), run.sizes(node.outputs[0])
    run.set(
        node.outputs[0],
        [
            (*ax.plain(size // max(ax.size(axis), 1)), *axis)
            for axis, size in zip(axes, sizes, strict=True)
        ],
    )


@edit("Tile")
def tile_repeats(editor: Editor, node: ir.Node) -> None:
    """Repeat as often as before, also where that is computed from sizes."""
    repeats = node.inputs[1]
    assert repeats is not None
    if editor.is_known(repeats):
        editor.require(node, 1, editor.old_array(repeats))


@rule("Concat")
def concat(run: Interpreter, node: ir.Node) -> None:
    """Join label vectors; the other axes unite."""
    inputs = [v for v in node.inputs if v is not None]
    axes = [run.of(v) for v in inputs]
    rank = len(axes[0])
    along = node.attributes.get_int("axis", 0) % rank
    result: list[Axis] = []
    for i in range(rank):
        if i != along:
            result.append(run.unite_all([a[i] for a in axes], node))
            continue
        parts = [a[i] for a in axes if ax.size(a[i]) > 0]
        if len(parts) == 1:
            result.append(parts[0])
        elif not any(ax.has_labels(p) for p in parts):
            why = next((f.reason for p in parts for f in p if f.reason), 0)
            result.append(ax.plain(sum(ax.size(p) for p in parts), why))
        else:
            result.append(ax.labelled(np.concatenate([_vector(run, p) for p in parts])))
    run.set(node.outputs[0], result)


def _vector(run: Interpreter, axis: Axis) -> np.ndarray:
    """Return labels for every index of an axis; a plain axis gets fixed ones."""
    vector = run.vector(axis)
    if vector is None:
        vector = run.labels.fresh(ax.size(axis))
        reason = next((f.reason for f in axis if f.reason), 0)
        run.labels.fix(vector, reason or run.why("joined from an axis that can't shrink"))
    return vector


@rule("Split")
def split(run: Interpreter, node: ir.Node) -> None:
    """Cut label vectors; no piece may become empty, which one unit of each group sees to."""
    axes = run.of(node.inputs[0])
    along = node.attributes.get_int("axis", 0) % len(axes)
    vector = run.vector(axes[along])
    spec = node.inputs[1] if len(node.inputs) > 1 else None
    at = 0
    for i, value in enumerate(node.outputs):
        size = run.sizes(value)[along]
        piece = ax.part(axes[along], size)
        if vector is not None:
            piece = ax.labelled(vector[at : at + size])
            if size == 1:
                run.labels.fix(
                    vector[at : at + 1], run.why(f"all of a piece of Split '{node.name}'")
                )
            if spec is None or not run.adjustable(spec, i):
                run.fix(axes[along], f"Split '{node.name}' has sizes that can't be rewritten")
        at += size
        if value.name:
            run.set(value, [*axes[:along], piece, *axes[along + 1 :]])


@edit("Split")
def split_sizes(editor: Editor, node: ir.Node) -> None:
    """Write what is left of each piece."""
    value = node.inputs[0]
    assert value is not None
    along = node.attributes.get_int("axis", 0) % len(editor.new_shape(value))
    kept = editor.mask(value, along)
    spec = node.inputs[1] if len(node.inputs) > 1 else None
    if spec is None:
        return
    sizes = editor.old_array(spec)
    if kept is None:
        editor.require(node, 1, sizes)
        return
    ends = np.cumsum(sizes)
    new = [int(kept[e - s : e].sum()) for s, e in zip(sizes, ends, strict=True)]
    editor.require(node, 1, np.array(new, dtype=np.int64))


@rule("DepthToSpace")
def depth_to_space(run: Interpreter, node: ir.Node) -> None:
    """Channels of one output channel go together."""
    axes = run.of(node.inputs[0])
    block = node.attributes.get_int("blocksize", 1) ** 2
    first = node.attributes.get_string("mode", "DCR") == "CRD"
    _fix_plane(run, node, axes)
    vector = run.vector(axes[1])
    sizes = run.sizes(node.outputs[0])
    channels: Axis = ax.plain(sizes[1])
    if vector is not None:
        shape = (sizes[1], block) if first else (block, sizes[1])
        keeper, kept = ax.split_labels(run.labels, vector, shape, 0 if first else 1)
        if shape[keeper] == sizes[1] and keeper == (0 if first else 1):
            channels = ax.labelled(kept)
        else:
            run.fix(axes[1], f"DepthToSpace '{node.name}' spreads it over space")
    run.set(node.outputs[0], [axes[0], channels, ax.plain(sizes[2]), ax.plain(sizes[3])])


@rule("SpaceToDepth")
def space_to_depth(run: Interpreter, node: ir.Node) -> None:
    """Every channel appears once for each position of the block."""
    axes = run.of(node.inputs[0])
    block = node.attributes.get_int("blocksize", 1) ** 2
    _fix_plane(run, node, axes)
    sizes = run.sizes(node.outputs[0])
    run.set(
        node.outputs[0],
        [axes[0], (*ax.plain(block), *axes[1]), ax.plain(sizes[2]), ax.plain(sizes[3])],
    )


def _fix_plane(run: Interpreter, node: ir.Node, axes: ax.Axes) -> None:
    if len(axes) != 4:
        raise Unruled("an input without two spatial axes")
    for axis in axes[2:]:
        run.fix(axis, f"a spatial axis of {node.op_type} '{node.name}'")
