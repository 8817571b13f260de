"""Attention as one operator.

In ONNX's four-axis form heads and features are axes of their own. In onnxruntime's operators one
axis has the features of all heads, one head after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

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
    _mark(run, heads, features, v[3])
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        mask = run.of(node.inputs[3])
        for axis in mask:
            run.fix(axis, f"the mask of Attention '{node.name}'")
        if len(mask) > 2 and mask[-3]:
            run.fix(heads, f"the mask of Attention '{node.name}' differs by head")
    run.set(node.outputs[0], (q[0], heads, q[2], v[3]))
    run.product(node, 1, (q[0], heads, q[2], k[2], features), [(query, 3)])
    run.product(node, 1, (q[0], heads, q[2], k[2], v[3]), [(value, 3)])


def _mark(run: Interpreter, heads: ax.Axis, features: ax.Axis, values: ax.Axis) -> None:
    """Mark heads, and the features of query and key, and of the values."""
    run.mark_kind(heads, Kind.HEAD)
    run.vote_heads(heads)
    run.mark_kind(features, Kind.HEAD_DIM)
    run.mark_kind(values, Kind.HEAD_DIM)


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


@rule("Attention", domain="com.microsoft")
def packed_attention(run: Interpreter, node: ir.Node) -> None:
    """Contract the input; the columns of the weights are those of query, key and value."""
    x, weight = run.of(node.inputs[0]), node.inputs[1]
    w = run.of(weight, {0: x[-1]})
    rotary = node.attributes.get_int("do_rotary", 0)
    if len(x) != 3 or len(w) != 2 or rotary:
        raise Unruled("an input without three axes, or rotary embeddings")
    inner = run.unite(x[2], w[0], node)
    bias = _input(node, 2)
    columns = w[1] if bias is None else run.unite_parameter(w[1], bias, node)
    q, k, v = _pieces(run, columns, _widths(node, ax.size(columns)))
    source = node.inputs[0]
    assert source is not None
    run.product(node, 1, (x[0], x[1], inner, columns), [(source, 2)])
    _attend(run, node, (*x[:2], q), (*x[:2], k), (*x[:2], v), mask=3, bias=5, other=(4, 6))


@rule("MultiHeadAttention", domain="com.microsoft")
def multi_head_attention(run: Interpreter, node: ir.Node) -> None:
    """Unite the heads of query, key and value, and the features of query and key."""
    given = [_input(node, i) for i in range(3)]
    q, k, v = (() if value is None else run.of(value) for value in given)
    if not len(q) == len(k) == len(v) == 3:
        raise Unruled("query, key and value without three axes each")
    bias = _input(node, 3)
    if bias is not None:
        sizes = [ax.size(axes[2]) for axes in (q, k, v)]
        pieces = _pieces(run, run.of(bias)[0], sizes)
        q, k, v = (
            (*axes[:2], run.unite(axes[2], piece, node))
            for axes, piece in zip((q, k, v), pieces, strict=True)
        )
    _attend(run, node, q, k, v, mask=4, bias=5, other=(6, 7, 8, 9))


@rule("GroupQueryAttention", domain="com.microsoft")
def grouped_attention(run: Interpreter, node: ir.Node) -> None:
    """Couple the heads of queries with those of keys and values that several of them share."""
    given = [_input(node, i) for i in range(15)]
    query = run.of(given[0])
    number, shared = _head_numbers(node)
    if len(query) != 3 or given[12] or given[13] or any(o.name for o in node.outputs[3:]):
        raise Unruled("a query without three axes, quantized keys, or scores as an output")
    apart = [run.of(value) for value in given[1:3] if value is not None]
    columns = [query[2], *(axes[-1] for axes in apart)]
    if not apart:
        columns = _pieces(run, query[2], _packed_widths(node, ax.size(query[2])))
    if len(columns) != 3 or any(len(axes) != 3 for axes in apart) or number % shared:
        raise Unruled("keys and values without three axes each, or heads that don't share evenly")
    where = f"{node.op_type} '{node.name}'"
    split = []
    for letter, axis, count in zip("qkv", columns, (number, shared, shared), strict=True):
        heads, features = run.reshape((axis,), (count, ax.size(axis) // count), node, f".{letter}")
        run.vote_heads(heads)
        run.fix(features, f"the features of a head of {where}")
        split.append(heads)
    heads, keys, values = split
    for past in given[3:5]:
        if past is not None:
            keys = run.unite(keys, run.of(past)[1], node)
    keys = run.unite(keys, values, node)
    for present in node.outputs[1:3]:
        if present.is_graph_output():
            run.fix(keys, f"network output '{present.name}'")
        elif not present.uses():
            continue
        rest = run.shapes.sizes.get(present.name or "", ())[2:]
        if rest:
            run.set(present, (query[0], keys, *(ax.plain(size) for size in rest)))
        else:
            run.fix(keys, f"the shape of '{present.name}' isn't known")
    if number > shared:
        keys = (*keys, *run.copies(number // shared))
    heads = run.unite(heads, keys, node)
    run.mark_kind(heads, Kind.HEAD)
    if given[11] is not None:
        heads = run.unite_parameter(heads, given[11], node)
    run.fix(query[1], f"the sequence of {where}")
    for value in given[5:11]:
        run.fix_value(value, f"read inside {where}")
    if given[10] is not None and len(run.of(given[10])) > 2 and run.of(given[10])[-3]:
        run.fix(heads, f"the bias of {where} differs by head")
    features = ax.plain(ax.size(columns[0]) // number)
    run.set(node.outputs[0], (*query[:2], (*heads, *features)))
    for _ in ("scores", "values"):
        run.product(node, 1, (query[0], heads, query[1], query[1], features), [])


def _head_numbers(node: ir.Node) -> tuple[int, int]:
    """Return how many heads queries have, and how many keys and values."""
    number, shared = (node.attributes.get_int(f"{kind}num_heads", 0) for kind in ("", "kv_"))
    if number < 1 or shared < 1:
        raise Unruled("it doesn't say how many heads there are")
    return number, shared


def _packed_widths(node: ir.Node, columns: int) -> list[int]:
    """Return how many columns of a packed input are queries, keys and values."""
    number, shared = _head_numbers(node)
    width = columns // (number + 2 * shared)
    return [number * width, shared * width, shared * width]


@edit("GroupQueryAttention", domain="com.microsoft")
def grouped_heads(editor: Editor, node: ir.Node) -> None:
    """Write how many heads are left."""
    query, key = node.inputs[0], _input(node, 1)
    assert query is not None
    kept = editor.mask(query, 2)
    if kept is None:
        return
    parts = [kept, editor.mask(key, 2)] if key is not None else []
    if not parts:
        parts = list(np.split(kept, np.cumsum(_packed_widths(node, len(kept)))[:-1])[:2])
    for part, number, kind in zip(parts, _head_numbers(node), ("", "kv_"), strict=True):
        if part is not None:
            left = int(part.reshape(number, -1).any(axis=1).sum())
            if left < number:
                editor.set_attribute(node, f"{kind}num_heads", left)


def _rotary(run: Interpreter, node: ir.Node) -> None:
    """Pass heads; the features of each are turned in pairs, and stay."""
    x = list(run.of(node.inputs[0]))
    tables = [value for value in node.inputs[1:] if value is not None]
    where = f"{node.op_type} '{node.name}'"
    if len(x) == 3:
        number = node.attributes.get_int("num_heads", 0)
        if number < 1:
            cosine = node.inputs[2 if node.domain else 1]
            width = 2 * run.sizes(cosine)[-1] if cosine is not None else 0
            number = ax.size(x[2]) // width if width else 1
        heads, features = run.reshape((x[2],), (number, ax.size(x[2]) // number), node)
        run.vote_heads(heads)
        run.mark_kind(heads, Kind.HEAD)
        x[2] = (*heads, *features)
    else:
        features = x[-1]
    run.fix(features, f"the features of a head of {where}")
    run.fix(x[-2], f"the sequence of {where}")
    for value in tables:
        run.fix_value(value, f"read inside {where}")
    run.set(node.outputs[0], x)


rule("RotaryEmbedding")(_rotary)
rule("RotaryEmbedding", domain="com.microsoft")(_rotary)


def _rotary_heads(editor: Editor, node: ir.Node) -> None:
    """Write how many heads are left."""
    value, number = node.inputs[0], node.attributes.get_int("num_heads", 0)
    assert value is not None
    kept = editor.mask(value, 2) if len(editor.new_shape(value)) == 3 else None
    if kept is not None and number > 0:
        left = int(kept.reshape(number, -1).any(axis=1).sum())
        editor.set_attribute(node, "num_heads", left)


edit("RotaryEmbedding")(_rotary_heads)
edit("RotaryEmbedding", domain="com.microsoft")(_rotary_heads)


def _attend(
    run: Interpreter,
    node: ir.Node,
    q: ax.Axes,
    k: ax.Axes,
    v: ax.Axes,
    *,
    mask: int,
    bias: int,
    other: tuple[int, ...],
) -> None:
    """Unite heads and features; `mask`, `bias` and `other` are positions of further inputs."""
    more = any(_input(node, i) is not None for i in other)
    if more or any(o.name for o in node.outputs[1:]):
        raise Unruled("only query, key, value, mask and bias, and one output, are ruled")
    number = node.attributes.get_int("num_heads", 1)
    if any(ax.size(axes[2]) % number for axes in (q, k, v)):
        raise Unruled("heads of different sizes")
    split = [
        run.reshape((axes[2],), (number, ax.size(axes[2]) // number), node, f".{letter}")
        for letter, axes in zip("qkv", (q, k, v), strict=True)
    ]
    heads = run.unite_all([axes[0] for axes in split], node)
    features = run.unite(split[0][1], split[1][1], node)
    values = split[2][1]
    _mark(run, heads, features, values)
    for axes in (q, k, v):
        run.fix(axes[1], f"the sequence of {node.op_type} '{node.name}'")
    for i in (mask, bias):
        value = _input(node, i)
        if value is not None:
            run.fix_value(value, f"the mask of {node.op_type} '{node.name}'")
            if i == bias and len(run.sizes(value)) > 2 and run.sizes(value)[-3] > 1:
                run.fix(heads, f"the bias of {node.op_type} '{node.name}' differs by head")
    run.set(node.outputs[0], (q[0], q[1], (*heads, *values)))
    run.product(node, 1, (q[0], heads, q[1], k[1], features), [])
    run.product(node, 1, (q[0], heads, q[1], k[1], values), [])


def _input(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if i < len(node.inputs) else None


def _widths(node: ir.Node, columns: int) -> Sequence[int]:
    """Return the numbers of features of query, key and value, over all heads."""
    return node.attributes.get_ints("qkv_hidden_sizes") or [columns // 3] * 3


def _pieces(run: Interpreter, axis: ax.Axis, sizes: Sequence[int]) -> list[ax.Axis]:
    """Cut an axis into consecutive pieces."""
    if sum(sizes) != ax.size(axis):
        raise Unruled("query, key and value don't fit the weights")
    vector = run.vector(axis)
    if vector is None:
        return [ax.plain(size, *(f.reason for f in axis[:1])) for size in sizes]
    return [ax.labelled(piece) for piece in np.split(vector, np.cumsum(sizes)[:-1])]


@edit("Attention", domain="com.microsoft")
def packed_heads(editor: Editor, node: ir.Node) -> None:
    """Write how many heads and features are left."""
    weight = node.inputs[1]
    assert weight is not None
    kept = editor.mask(weight, 1)
    if kept is None:
        return
    parts = np.split(kept, np.cumsum(_widths(node, len(kept)))[:-1])
    _heads_left(editor, node, parts[0])
    left = [int(part.sum()) for part in parts]
    if "qkv_hidden_sizes" in node.attributes or len(set(left)) > 1:
        editor.set_attribute(node, "qkv_hidden_sizes", left)


@edit("MultiHeadAttention", domain="com.microsoft")
def heads(editor: Editor, node: ir.Node) -> None:
    """Write how many heads are left."""
    for i in (0, 2):  # The features of the values are groups of their own.
        value = node.inputs[i]
        assert value is not None
        kept = editor.mask(value, 2)
        if kept is not None:
            _heads_left(editor, node, kept, scale=i == 0)


def _heads_left(
    editor: Editor, node: ir.Node, kept: NDArray[np.bool_], *, scale: bool = True
) -> None:
    """Write the number of heads, and the scale, whose default depends on the query's features.

    Parameters
    ----------
    kept : (heads · features,) bool, what survives.
    """
    number = node.attributes.get_int("num_heads", 1)
    grid = kept.reshape(number, -1)
    left = int(grid.any(axis=1).sum())
    if left < number:
        editor.set_attribute(node, "num_heads", left)
    given = node.attributes.get_float("scale", 0.0)
    if scale and not given and kept.sum() != left * grid.shape[1]:
        editor.set_attribute(node, "scale", 1.0 / math.sqrt(grid.shape[1]))
