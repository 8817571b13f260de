"""Gathers and scatters by tables of indices: what they look up stays, other axes pass."""

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


def _elements(run: Interpreter, node: ir.Node) -> tuple[ax.Axes, int, ir.Value, list[Axis] | None]:
    """Return the axes of data, the one that stays for indices go along it, the table, and its axes.

    Those are None if it is a constant of its own: `index_table` cuts it as the data are cut.
    """
    axes, table = run.of(node.inputs[0]), node.inputs[1]
    along = node.attributes.get_int("axis", 0) % len(axes)
    _looked_up(run, node, axes[along])
    assert table is not None
    rewritable = table.is_initializer() and len(table.uses()) == 1
    if rewritable and run.known(table) is not None:
        return axes, along, table, None
    return axes, along, table, list(run.of(table))


def _looked_up(run: Interpreter, node: ir.Node, axis: Axis) -> None:
    run.fix(axis, f"{node.op_type} '{node.name}' looks it up by indices")


@rule("GatherElements")
def gather_elements(run: Interpreter, node: ir.Node) -> None:
    """The axis that is looked up stays; along others the table goes with the data."""
    axes, along, table, indices = _elements(run, node)
    result: list[Axis] = []
    for i, (axis, size) in enumerate(zip(axes, run.sizes(table), strict=True)):
        if i == along:
            result.append(ax.plain(size) if indices is None else indices[i])
        elif size != ax.size(axis):
            why = f"GatherElements '{node.name}' takes only the first {size}"
            run.fix(axis, why)
            result.append(ax.plain(size) if indices is None else run.fix(indices[i], why))
        else:
            result.append(axis if indices is None else run.unite(axis, indices[i], node))
    run.set(node.outputs[0], result)


@rule("ScatterElements")
def scatter_elements(run: Interpreter, node: ir.Node) -> None:
    """The axis that is written to stays; along others table and updates go with the data."""
    axes, along, _, indices = _elements(run, node)
    updates = run.of(node.inputs[2], {i: a for i, a in enumerate(axes) if i != along})
    result: list[Axis] = []
    for i, (axis, update) in enumerate(zip(axes, updates, strict=True)):
        goes = i != along and ax.size(axis) == ax.size(update)
        if not goes:
            why = f"ScatterElements '{node.name}' writes less without it"
            for other in (update, *(indices[i : i + 1] if indices is not None else ())):
                run.fix(other, why)
            if i != along:
                run.fix(axis, f"ScatterElements '{node.name}' writes only to the first of it")
            result.append(axis)
            continue
        # What can't shrink first: it marks the units that it meets.
        written = run.unite(axis, update, node)
        result.append(written if indices is None else run.unite(written, indices[i], node))
    run.set(node.outputs[0], result)


@edit("GatherElements", "ScatterElements")
def index_table(editor: Editor, node: ir.Node) -> None:
    """Cut a constant table as what is read or written by it is cut."""
    table, cut = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else node.outputs[0]
    assert table is not None
    assert cut is not None
    if not table.is_initializer():
        return
    old = editor.old_array(table)
    masks = [editor.mask(cut, i) for i in range(old.ndim)]
    kept = [
        np.arange(size) if mask is None else np.flatnonzero(mask)
        for size, mask in zip(old.shape, masks, strict=True)
    ]
    editor.require(node, 1, old[np.ix_(*kept)])


def _places(node: ir.Node) -> tuple[ir.Value, int]:
    """Return the table of places of a GatherND or ScatterND, and how many numbers name one."""
    table = node.inputs[1]
    assert table is not None
    last = None if table.shape is None or not len(table.shape) else table.shape[-1]
    if not isinstance(last, int):
        raise Unruled("how many numbers name a place isn't known")
    return table, last


@rule("GatherND")
def gather_nd(run: Interpreter, node: ir.Node) -> None:
    """The axes that are looked up stay; those of the batch unite, those behind pass."""
    axes = run.of(node.inputs[0])
    table, named = _places(node)
    batch = node.attributes.get_int("batch_dims", 0)
    indices = run.of(table)
    for axis in axes[batch : batch + named]:
        _looked_up(run, node, axis)
    shared = [run.unite(a, b, node) for a, b in zip(axes[:batch], indices[:batch], strict=True)]
    run.fix(indices[-1], f"its numbers name places for GatherND '{node.name}'")
    run.set(node.outputs[0], [*shared, *indices[batch:-1], *axes[batch + named :]])


@rule("ScatterND")
def scatter_nd(run: Interpreter, node: ir.Node) -> None:
    """The axes that are written to stay; those behind unite with the updates'."""
    axes = run.of(node.inputs[0])
    table, named = _places(node)
    indices = run.of(table)
    written = len(indices) - 1
    behind = {written + i: a for i, a in enumerate(axes[named:])}
    updates = run.of(node.inputs[2], behind)
    for axis in axes[:named]:
        _looked_up(run, node, axis)
    for axis in (*updates[:written], *indices[:-1]):
        run.fix(axis, f"ScatterND '{node.name}' writes less without it")
    run.fix(indices[-1], f"its numbers name places for ScatterND '{node.name}'")
    rest = [run.unite(a, b, node) for a, b in zip(axes[named:], updates[written:], strict=True)]
    run.set(node.outputs[0], [*axes[:named], *rest])
