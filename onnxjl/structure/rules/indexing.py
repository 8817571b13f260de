"""Slices, gathers, pads and triangles along an axis with units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxjl.structure import axes as ax
from onnxjl.structure.rules import edit, rule

if TYPE_CHECKING:
    from onnxjl.structure.edits import Editor
    from onnxjl.structure.interpreter import Interpreter


def _bounds(run: Interpreter, node: ir.Node, rank: int) -> list[tuple[int, int, int, int]] | None:
    """Return (position in the bounds, axis, start, end) of each cut, or None if unknown."""
    starts, ends = run.known(node.inputs[1]), run.known(node.inputs[2])
    axes = run.known(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else None
    if starts is None or ends is None or (len(node.inputs) > 3 and node.inputs[3] and axes is None):
        return None
    chosen = range(len(starts)) if axes is None else axes.reshape(-1).tolist()
    return [
        (i, int(axis) % rank, int(starts.reshape(-1)[i]), int(ends.reshape(-1)[i]))
        for i, axis in enumerate(chosen)
    ]


def _resolve(start: int, end: int, size: int) -> tuple[int, int]:
    """Return the bounds of a slice as non-negative positions."""
    start, end, _ = slice(start, end).indices(size)
    return start, max(start, end)


@rule("Slice")
def slice_(run: Interpreter, node: ir.Node) -> None:
    """Cut label vectors; bounds must be rewritable where units may go."""
    axes, sizes = list(run.of(node.inputs[0])), run.sizes(node.outputs[0])
    bounds = _bounds(run, node, len(axes))
    steps = run.known(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] else None
    unknown_steps = len(node.inputs) > 4 and node.inputs[4] is not None and steps is None
    if bounds is None or unknown_steps:
        given = node.inputs[3] if len(node.inputs) > 3 else None
        told = run.known(given)
        cut = range(len(axes)) if told is None else (told.reshape(-1) % len(axes)).tolist()
        for i in cut:
            run.fix(axes[i], f"the bounds of Slice '{node.name}' aren't known")
            if ax.size(axes[i]) != sizes[i]:
                axes[i] = ax.plain(sizes[i])
        run.set(node.outputs[0], axes)
        return
    for i, along, start, end in bounds:
        axis = axes[along]
        step = 1 if steps is None else int(steps.reshape(-1)[i])
        vector = run.vector(axis)
        whole = ax.size(axis)
        if vector is None:
            axes[along] = ax.part(axis, sizes[along])
            continue
        if step == -1 and start == -1 and end <= -np.iinfo(np.int32).max:
            axes[along] = ax.labelled(vector[::-1])  # turned round, however long
            continue
        if step != 1:
            run.fix(axis, f"Slice '{node.name}' takes every {step}th")
            axes[along] = ax.labelled(vector[slice(start, _open(end), step)])
            continue
        low, high = _resolve(start, end, whole)
        if (low, high) == (0, whole) and start == 0 and end > np.iinfo(np.int32).max - 1:
            continue
        if not (_lasting(start, low, run, node, 1, i) and _lasting(end, high, run, node, 2, i)):
            run.fix(axis, f"the bounds of Slice '{node.name}' can't be rewritten")
        piece = vector[low:high]
        if len(piece) == 1:
            run.labels.fix(piece, run.why(f"all that Slice '{node.name}' takes"))
        axes[along] = ax.labelled(piece) if len(piece) else ax.plain(0)
    run.set(node.outputs[0], axes)


def _open(end: int) -> int | None:
    return None if abs(end) >= np.iinfo(np.int32).max - 1 else end


def _lasting(given: int, resolved: int, run: Interpreter, node: ir.Node, i: int, k: int) -> bool:
    """Return whether a bound stays right or can be rewritten."""
    return (
        given == 0 or abs(given) >= np.iinfo(np.int32).max - 1 or run.adjustable(node.inputs[i], k)
    )


@edit("Slice")
def slice_bounds(editor: Editor, node: ir.Node) -> None:
    """Write where the surviving slice starts and ends."""
    value, starts, ends = node.inputs[0], node.inputs[1], node.inputs[2]
    assert value is not None
    assert starts is not None
    assert ends is not None
    if not (editor.is_known(starts) and editor.is_known(ends)):
        return  # what it cuts stays
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    turned = () if steps is None else np.flatnonzero(editor.array(steps) == -1)
    old_starts, old_ends = editor.old_array(starts), editor.old_array(ends)
    new_starts, new_ends = old_starts.copy(), old_ends.copy()
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    rank = len(editor.new_shape(value))
    chosen = range(len(old_starts)) if axes is None else editor.array(axes).reshape(-1).tolist()
    for i, along in enumerate(chosen):
        kept = editor.mask(value, int(along) % rank)
        if kept is None or i in turned:
            continue
        low, high = _resolve(int(old_starts[i]), int(old_ends[i]), len(kept))
        if old_starts[i] != 0:
            new_starts[i] = int(kept[:low].sum())
        if abs(int(old_ends[i])) < np.iinfo(np.int32).max - 1:
            new_ends[i] = int(kept[:high].sum())
    editor.require(node, 1, new_starts)
    editor.require(node, 2, new_ends)


@rule("Gather")
def gather(run: Interpreter, node: ir.Node) -> None:
    """Index label vectors by constants; computed indices fix the axis (embeddings)."""
    axes = run.of(node.inputs[0])
    along = node.attributes.get_int("axis", 0) % len(axes)
    taken = node.inputs[1]
    indices = run.known(taken)
    assert taken is not None
    if taken.is_initializer():
        inner = [ax.plain(d) for d in run.sizes(taken)]
    else:
        inner = list(run.of(taken))
    if ax.has_labels(axes[along]):
        vector = run.vector(axes[along])
        assert vector is not None
        if indices is None:
            run.fix(axes[along], f"Gather '{node.name}' looks it up by computed indices")
        elif indices.ndim == 0 and run.adjustable(taken, 0):
            picked = np.array([vector[int(indices)]])
            run.labels.fix(picked, run.why(f"Gather '{node.name}' takes it alone"))
        elif indices.ndim == 1 and taken.is_initializer() and len(taken.uses()) == 1:
            inner = [ax.labelled(vector[indices])]
            if len(indices) == 1:
                run.labels.fix(vector[indices], run.why(f"all that Gather '{node.name}' takes"))
        else:
            run.fix(axes[along], f"the indices of Gather '{node.name}' can't be rewritten")
            if indices is not None and indices.ndim == 1 and not ax.has_labels(inner[0]):
                inner = [ax.labelled(vector[indices])]
    run.set(node.outputs[0], [*axes[:along], *inner, *axes[along + 1 :]])


@edit("Gather")
def gather_indices(editor: Editor, node: ir.Node) -> None:
    """Renumber the indices that survive."""
    value, taken = node.inputs[0], node.inputs[1]
    assert value is not None
    assert taken is not None
    along = node.attributes.get_int("axis", 0) % len(editor.new_shape(value))
    kept = editor.mask(value, along)
    if kept is None:
        return
    old = editor.old_array(taken)
    rank = np.cumsum(kept) - 1
    new = rank[old] if old.ndim == 0 else rank[old[kept[old]]]
    editor.require(node, 1, np.asarray(new, dtype=old.dtype))


@rule("Pad")
def pad(run: Interpreter, node: ir.Node) -> None:
    """Padding along an axis with units adds units, of constants."""
    axes, sizes = list(run.of(node.inputs[0])), run.sizes(node.outputs[0])
    pads = run.known(node.inputs[1])
    constant = node.attributes.get_string("mode", "constant") == "constant"
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        given = run.known(node.inputs[3])
        chosen = [] if given is None else [int(i) % len(axes) for i in given.reshape(-1)]
    else:
        chosen = list(range(len(axes)))
    for i, axis in enumerate(axes):
        if ax.size(axis) == sizes[i] and (
            pads is None or i not in chosen or not _any(pads, chosen, i)
        ):
            continue
        vector = run.vector(axis)
        axes[i] = ax.plain(sizes[i])
        if vector is None:
            continue
        if pads is None or not constant or i not in chosen:
            run.fix(axis, f"Pad '{node.name}' goes along it")
            continue
        k = chosen.index(i)
        before, after = int(pads[k]), int(pads[k + len(chosen)])
        if (
            before < 0
            or after < 0
            or not all(
                n == 0 or run.adjustable(node.inputs[1], j)
                for n, j in ((before, k), (after, k + len(chosen)))
            )
        ):
            run.fix(axis, f"the widths of Pad '{node.name}' can't be rewritten")
            continue
        axes[i] = ax.labelled(
            np.concatenate([run.labels.fresh(before), vector, run.labels.fresh(after)])
        )
    run.set(node.outputs[0], axes)


def _any(pads: np.ndarray, chosen: list[int], i: int) -> bool:
    k = chosen.index(i)
    return bool(pads[k] or pads[k + len(chosen)])


@edit("Pad")
def pad_widths(editor: Editor, node: ir.Node) -> None:
    """Write how many of the padded units are left."""
    value, pads = node.inputs[0], node.inputs[1]
    assert value is not None
    assert pads is not None
    old = editor.old_array(pads)
    new = old.copy()
    rank = len(editor.new_shape(value))
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    chosen = range(rank) if axes is None else [int(i) % rank for i in editor.array(axes)]
    for k, i in enumerate(chosen):
        kept = editor.mask(node.outputs[0], i)
        if kept is None:
            continue
        before, after = int(old[k]), int(old[k + len(chosen)])
        if before > 0:
            new[k] = int(kept[:before].sum())
        if after > 0:
            new[k + len(chosen)] = int(kept[len(kept) - after :].sum())
    editor.require(node, 1, new)


@rule("Trilu")
def triangle(run: Interpreter, node: ir.Node) -> None:
    """Where its two axes cross decides what is left of them; other axes pass."""
    axes = run.of(node.inputs[0])
    for axis in axes[-2:]:
        run.fix(axis, f"Trilu '{node.name}' takes a triangle of it")
    run.set(node.outputs[0], axes)
