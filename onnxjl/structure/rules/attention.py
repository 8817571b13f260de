"""Attention as one operator: in its four-axis form heads and features are axes of their own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxjl.structure import axes as ax
from onnxjl.structure.labels import Kind
from onnxjl.structure.rules import Unruled, edit, rule

if TYPE_CHECKING:
    from onnxjl.structure.edits import Editor
    from onnxjl.structure.interpreter import Interpreter


@rule("Attention")
def attention(run: Interpreter, node: ir.Node) -> None:
    """Unite the heads of query, key and value, and the features of query and key."""
    query, key, value = node.inputs[:3]
    q, k, v = run.of(query), run.of(key), run.of(value)
    further = [i for i in node.inputs[4:] if i is not None]
    if len(q) != 4 or further or any(o.name for o in node.outputs[1:]):
        raise Unruled("only query, key, value and mask with four axes, and one output, are ruled")
    if ax.size(q[1]) != ax.size(k[1]) or _softcap(node):
        raise Unruled("heads that share keys, or a soft cap")
    assert query is not None
    assert value is not None
    for axes in (q, k, v):
        run.fix(axes[2], f"the sequence of Attention '{node.name}'")
    heads = run.unite(run.unite(q[1], k[1], node), v[1], node)
    features = run.unite(q[3], k[3], node)
    run.mark_kind(heads, Kind.HEAD)
    run.vote_heads(heads)
    run.mark_kind(features, Kind.HEAD_DIM)
    run.mark_kind(v[3], Kind.HEAD_DIM)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        mask = run.of(node.inputs[3])
        for axis in mask:
            run.fix(axis, f"the mask of Attention '{node.name}'")
        if len(mask) > 2 and mask[-3]:
            run.fix(heads, f"the mask of Attention '{node.name}' differs by head")
    run.set(node.outputs[0], (q[0], heads, q[2], v[3]))
    run.product(node, 1, (q[0], heads, q[2], k[2], features), [(query, 3)])
    run.product(node, 1, (q[0], heads, q[2], k[2], v[3]), [(value, 3)])


def _softcap(node: ir.Node) -> float:
    attribute = node.attributes.get("softcap")
    return 0.0 if attribute is None else attribute.as_float()


@edit("Attention")
def scale(editor: Editor, node: ir.Node) -> None:
    """Write out the scale, whose default depends on the number of features."""
    query = node.inputs[0]
    assert query is not None
    kept = editor.mask(query, 3)
    if kept is not None and "scale" not in node.attributes:
        editor.set_attribute(node, "scale", 1.0 / math.sqrt(len(kept)))
