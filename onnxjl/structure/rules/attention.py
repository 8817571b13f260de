"""Attention as one operator.

In ONNX's form with four axes heads and features are axes of their own. In its form with three, and
in onnxruntime's operators, one axis has the features of all heads, one head after the other. Where
several heads share keys and values, whole groups of them can go, or, where these must stay, the
same heads of every group.
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
    """Couple the heads of query, key and value, and the features of query and key."""
    given = [_input(node, i) for i in range(7)]
    q, k, v = (run.of(value) for value in given[:3])
    if not len(q) == len(k) == len(v) or len(q) not in (3, 4):
        raise Unruled("query, key and value without three or four axes each")
    if any(o.name for o in node.outputs[3:]):
        raise Unruled("scores as an output")
    where = f"Attention '{node.name}'"
    for axes in (q, k, v):
        run.fix(axes[-2], f"the sequence of {where}")
    if len(q) == 3:
        split = _heads_apart(run, node, (q[2], k[2], v[2]), _head_numbers(node, "q_"))
    else:
        split = [(axes[1], axes[3]) for axes in (q, k, v)]
        run.vote_heads(q[1], k[1], v[1])
    (heads, features), (keys, key_features), (value_heads, values) = split
    if given[4] is not None:
        past = run.of(given[4])
        keys = run.unite(keys, past[1], node)
        key_features = run.unite(key_features, past[3], node)
    if given[5] is not None:
        past = run.of(given[5])
        value_heads = run.unite(value_heads, past[1], node)
        values = run.unite(values, past[3], node)
    features = run.unite(features, key_features, node)
    keys = run.unite(keys, value_heads, node)
    _set_presents(run, node, q[0], keys, (features, values))
    heads = _served(run, node, heads, keys)
    _mark(run, heads, features, values)
    _fix_mask(run, node, given[3], heads, "mask")
    run.fix_value(given[6], f"read inside {where}")
    mixed = (heads, q[2], values) if len(q) == 4 else (q[1], (*heads, *values))
    run.set(node.outputs[0], (q[0], *mixed))
    query, _, value = given[:3]
    consumed = [] if len(q) == 3 or query is None or value is None else [query, value]
    for i, inner in enumerate((features, values)):
        axes = (q[0], heads, q[-2], _steps(run, k[-2], given[4]), inner)
        run.product(node, 1, axes, [(consumed[i], 3)] if consumed else [])


def _heads_apart(
    run: Interpreter, node: ir.Node, columns: Sequence[ax.Axis], numbers: tuple[int, int]
) -> list[ax.Axes]:
    """Split the columns of query, key and value into heads and the features of a head."""
    split = []
    for letter, axis, i in zip("qkv", columns, (0, 1, 1), strict=True):
        count = numbers[i]
        if ax.size(axis) % count:
            raise Unruled("heads of different sizes")
        apart = run.reshape((axis,), (count, ax.size(axis) // count), node, f".{letter}")
        run.vote_heads(apart[0])
        split.append(apart)
    return split


def _set_presents(
    run: Interpreter, node: ir.Node, batch: ax.Axis, keys: ax.Axis, features: Sequence[ax.Axis]
) -> None:
    """Give the keys and values that are returned for later steps their axes."""
    for present, each in zip(node.outputs[1:3], features, strict=False):
        if present.is_graph_output():
            # Now, for what comes later depends on which units can go.
            for axis in (keys, each):
                run.fix(axis, f"network output '{present.name}'")
        elif not present.uses():
            continue
        sizes = run.shapes.sizes.get(present.name or "", ())
        if len(sizes) == 4:
            run.set(present, (batch, keys, ax.plain(sizes[2]), each))
        else:
            for axis in (keys, each):
                run.fix(axis, f"the shape of '{present.name}' isn't known")


def _steps(run: Interpreter, new: ax.Axis, past: ir.Value | None) -> ax.Axis:
    """Return the axis of all keys: new ones and, if there are any, those of earlier steps."""
    return new if past is None else ax.plain(ax.size(new) + ax.size(run.of(past)[2]))


def _served(run: Interpreter, node: ir.Node, heads: ax.Axis, keys: ax.Axis) -> ax.Axis:
    """Couple the heads of a query with those of the keys, which serve the same number of heads."""
    number, shared = ax.size(heads), ax.size(keys)
    if shared == 0 or number % shared:
        raise Unruled("heads that don't share keys evenly")
    if number > shared:
        keys = (*keys, *run.copies(number // shared))
    return run.unite(heads, keys, node)


def _mark(run: Interpreter, heads: ax.Axis, features: ax.Axis, values: ax.Axis) -> None:
    """Mark heads, and the features of query and key, and of the values."""
    run.mark_kind(heads, Kind.HEAD)
    run.vote_heads(heads)
    run.mark_kind(features, Kind.HEAD_DIM)
    run.mark_kind(values, Kind.HEAD_DIM)


def _fix_mask(
    run: Interpreter, node: ir.Node, value: ir.Value | None, heads: ax.Axis, kind: str
) -> None:
    """Fix what is added to the scores, and the heads where it differs by head."""
    if value is None:
        return
    where = f"{node.op_type} '{node.name}'"
    run.fix_value(value, f"the mask of {where}")
    sizes = run.sizes(value)
    if len(sizes) > 2 and sizes[-3] > 1:
        run.fix(heads, f"the {kind} of {where} differs by head")


@edit("Attention")
def heads_and_scale(editor: Editor, node: ir.Node) -> None:
    """Write the numbers of heads, and the scale, whose default depends on that of features."""
    query, key = node.inputs[0], node.inputs[1]
    assert query is not None
    assert key is not None
    number = left = 1
    if len(editor.new_shape(query)) == 3:
        numbers = _head_numbers(node, "q_")
        number, left = (
            numbers[0],
            _write_numbers(editor, node, (query, key), numbers, ("q_", "kv_")),
        )
    kept = editor.mask(query, -1)
    if kept is None or "scale" in node.attributes:
        return
    if kept.sum() * number != len(kept) * left:
        editor.set_attribute(node, "scale", 1.0 / math.sqrt(len(kept) // number))


def _write_numbers(
    editor: Editor,
    node: ir.Node,
    values: Sequence[ir.Value | NDArray[np.bool_] | None],
    numbers: Sequence[int],
    kinds: Sequence[str],
) -> int:
    """Write how many heads are left; return how many the first has.

    Parameters
    ----------
    values : whose last axis holds all heads, or which of its indices survive.
    numbers : of heads, of each.
    kinds : what the attributes' names begin with.
    """
    first = numbers[0]
    for i, (value, number, kind) in enumerate(zip(values, numbers, kinds, strict=True)):
        kept = editor.mask(value, -1) if isinstance(value, ir.Value) else value
        left = number if kept is None else int(kept.reshape(number, -1).any(axis=1).sum())
        if left < number:
            editor.set_attribute(node, f"{kind}num_heads", left)
        first = left if i == 0 else first
    return first


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
    if len(query) != 3 or given[12] or given[13] or any(o.name for o in node.outputs[3:]):
        raise Unruled("a query without three axes, quantized keys, or scores as an output")
    apart = [run.of(value) for value in given[1:3] if value is not None]
    columns = [query[2], *(axes[-1] for axes in apart)]
    if not apart:
        columns = _pieces(run, query[2], _packed_widths(node, ax.size(query[2])))
    if len(columns) != 3 or any(len(axes) != 3 for axes in apart):
        raise Unruled("keys and values without three axes each")
    where = f"{node.op_type} '{node.name}'"
    split = _heads_apart(run, node, columns, _head_numbers(node))
    for _, features in split:
        run.fix(features, f"the features of a head of {where}")
    (heads, features), (keys, _), (values, _) = split
    for past in given[3:5]:
        if past is not None:
            keys = run.unite(keys, run.of(past)[1], node)
    keys = run.unite(keys, values, node)
    _set_presents(run, node, query[0], keys, (features, features))
    heads = _served(run, node, heads, keys)
    run.mark_kind(heads, Kind.HEAD)
    if given[11] is not None:
        heads = run.unite_parameter(heads, given[11], node)
    run.fix(query[1], f"the sequence of {where}")
    for value in given[5:10]:
        run.fix_value(value, f"read inside {where}")
    _fix_mask(run, node, given[10], heads, "bias")
    run.set(node.outputs[0], (*query[:2], (*heads, *features)))
    for _ in ("scores", "values"):
        steps = _steps(run, query[1], given[3])
        run.product(node, 1, (query[0], heads, query[1], steps, features), [])


def _head_numbers(node: ir.Node, prefix: str = "") -> tuple[int, int]:
    """Return how many heads queries have, and how many keys and values."""
    number, shared = (node.attributes.get_int(f"{kind}num_heads", 0) for kind in (prefix, "kv_"))
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
    parts: list[ir.Value | NDArray[np.bool_] | None] = [query, key]
    if key is None:
        kept = editor.mask(query, 2)
        if kept is None:
            return
        parts = [*np.split(kept, np.cumsum(_packed_widths(node, len(kept)))[:-1])[:2]]
    _write_numbers(editor, node, parts, _head_numbers(node), ("", "kv_"))


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain="com.microsoft")
def rotary(run: Interpreter, node: ir.Node) -> None:
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


@edit("RotaryEmbedding")
@edit("RotaryEmbedding", domain="com.microsoft")
def rotary_heads(editor: Editor, node: ir.Node) -> None:
    """Write how many heads are left."""
    value, number = node.inputs[0], node.attributes.get_int("num_heads", 0)
    assert value is not None
    if len(editor.new_shape(value)) == 3 and number > 0:
        _write_numbers(editor, node, [value], [number], [""])


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
    split = _heads_apart(run, node, (q[2], k[2], v[2]), (number, number))
    heads = run.unite_all([axes[0] for axes in split], node)
    features = run.unite(split[0][1], split[1][1], node)
    values = split[2][1]
    _mark(run, heads, features, values)
    for axes in (q, k, v):
        run.fix(axes[1], f"the sequence of {node.op_type} '{node.name}'")
    run.fix_value(_input(node, mask), f"the mask of {node.op_type} '{node.name}'")
    _fix_mask(run, node, _input(node, bias), heads, "bias")
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
    left = _write_numbers(editor, node, [kept], [number], [""])
    size = len(kept) // number
    if scale and not node.attributes.get_float("scale", 0.0) and kept.sum() != left * size:
        editor.set_attribute(node, "scale", 1.0 / math.sqrt(size))
