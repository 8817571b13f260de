"""Contractions: a weight's axis meets the activation's axis that it multiplies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxjl.structure import axes as ax
from onnxjl.structure.axes import Axis, split_labels
from onnxjl.structure.labels import Kind
from onnxjl.structure.rules import Unruled, edit, rule

if TYPE_CHECKING:
    from onnxjl.structure.edits import Editor
    from onnxjl.structure.interpreter import Interpreter


@rule("Conv")
def conv(run: Interpreter, node: ir.Node) -> None:
    """Unite input channels with the weight's axis 1; output channels are its axis 0."""
    groups = node.attributes.get_int("group", 1)
    x, w = _operands(run, node, 1 if groups == 1 else None)
    if groups == 1:
        run.unite(x[1], w[1], node)
        y = w[0]
    else:
        y = _grouped(run, node, groups, x[1], outputs=w[0], inputs=w[1])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        y = run.unite_parameter(y, node.inputs[2], node)
    spatial = run.sizes(node.outputs[0])[2:]
    run.set(node.outputs[0], (x[0], y, *(ax.plain(d) for d in spatial)))
    kernel = run.sizes(node.inputs[1])[2:]  # type: ignore[arg-type]
    _record(run, node, math.prod(spatial) * math.prod(kernel), (x[0], w[0], w[1]))


@rule("ConvTranspose")
def conv_transpose(run: Interpreter, node: ir.Node) -> None:
    """Unite input channels with the weight's axis 0; axis 1 has the output channels of a group."""
    groups = node.attributes.get_int("group", 1)
    x, w = _operands(run, node, 0 if groups == 1 else None)
    channels = run.sizes(node.outputs[0])[1]
    if groups == 1:
        run.unite(x[1], w[0], node)
        y = w[1]
    else:
        y = run.fresh(channels)
        y_grouped = _grouped(run, node, groups, x[1], outputs=y, inputs=w[1], transposed=w[0])
        y = y_grouped
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        y = run.unite_parameter(y, node.inputs[2], node)
    spatial = run.sizes(node.outputs[0])[2:]
    run.set(node.outputs[0], (x[0], y, *(ax.plain(d) for d in spatial)))
    reach = math.prod(run.sizes(node.inputs[0])[2:]) * math.prod(run.sizes(node.inputs[1])[2:])  # type: ignore[arg-type]
    _record(run, node, reach, (x[0], w[0], w[1]))


def _record(run: Interpreter, node: ir.Node, coefficient: int, axes: tuple[Axis, ...]) -> None:
    value = node.inputs[0]
    assert value is not None
    run.product(node, coefficient, axes, [(value, 1)])


def _operands(run: Interpreter, node: ir.Node, inner: int | None) -> tuple[ax.Axes, ax.Axes]:
    """Return the axes of a convolution's input and weight, whose spatial ones are fixed.

    `inner` is the weight's axis that meets the input's channels, if one does as a whole.
    """
    x, weight = run.of(node.inputs[0]), node.inputs[1]
    spatial = f"a spatial axis of {node.op_type} '{node.name}'"
    partners = {} if inner is None else {inner: x[1]}
    kernel = run.sizes(weight)[2:] if weight is not None else ()
    reason = run.why(spatial)
    partners |= {i: ax.plain(size, reason) for i, size in enumerate(kernel, 2)}
    w = run.of(weight, partners)
    for axis in (*x[2:], *w[2:]):
        run.fix(axis, spatial)
    return x, w


def _grouped(
    run: Interpreter,
    node: ir.Node,
    groups: int,
    x: Axis,
    *,
    outputs: Axis,
    inputs: Axis,
    transposed: Axis | None = None,
) -> Axis:
    """Couple the channels of a grouped convolution; return the output's axis.

    Either whole groups are units (depthwise: one channel each), or the same position in every
    group. For ``ConvTranspose`` the weight's axis 0 is `transposed`, the input channels, and its
    axis 1 holds the output channels of one group.
    """
    labels = run.labels
    if transposed is not None:
        x = run.unite(x, transposed, node)
    if not outputs:
        run.fix(x, f"{node.op_type} '{node.name}' has one output channel")
        return outputs
    vector = run.vector(x)
    outs = run.vector(outputs)
    if vector is None or outs is None:
        why = f"meets an axis that can't shrink at {node.op_type} '{node.name}'"
        why = next((labels.reason_text(f.reason) for f in x if f.reason), why)
        for axis in (x, inputs):
            run.fix(axis, why)
        # Groups stay with the channels that they read; each can lose the same ones that it makes.
        if (
            outs is None
            or len(outs) == groups
            or transposed is not None
            or split_labels(labels, outs, (groups, len(outs) // groups), 1)[0] != 1
        ):
            run.fix(outputs, why)
        return outputs
    in_width, out_width = len(vector) // groups, len(outs) // groups
    whole = in_width == 1 or out_width == 1
    x_keeper, x_labels = (
        (0, vector)
        if in_width == 1
        else (split_labels(labels, vector, (groups, in_width), 0 if whole else 1))
    )
    y_keeper, y_labels = (
        (0, outs) if out_width == 1 else (split_labels(labels, outs, (groups, out_width), x_keeper))
    )
    if x_keeper != y_keeper:
        why = f"groups of {node.op_type} '{node.name}' are cut in two ways"
        run.fix(x, why)
        run.fix(outputs, why)
    elif x_keeper == 0:
        labels.unite(x_labels, y_labels)
    keeper, partner = (y_keeper, y_labels) if transposed is not None else (x_keeper, x_labels)
    if keeper == 0:
        run.fix(inputs, f"whole groups of {node.op_type} '{node.name}' go")
    else:
        run.unite(inputs, ax.labelled(partner), node)  # a kernel that is computed may be plain
    return outputs


def _is_grouped(node: ir.Node) -> bool:
    return node.attributes.get_int("group", 1) > 1


@edit("Conv", "ConvTranspose", when=_is_grouped)
def conv_groups(editor: Editor, node: ir.Node) -> None:
    """Set `group` to the number of groups that survive."""
    groups = node.attributes.get_int("group", 1)
    value = node.inputs[0]
    if value is None:
        return
    kept = editor.mask(value, 1)
    if kept is None:
        return
    grid = kept.reshape(groups, -1)
    alive = grid.any(axis=1)
    if not alive.all():
        editor.set_attribute(node, "group", int(alive.sum()))


@rule("Gemm")
def gemm(run: Interpreter, node: ir.Node) -> None:
    """Unite the columns of A with the rows of B; C broadcasts to the output."""
    a = run.of(node.inputs[0])
    flip_a = bool(node.attributes.get_int("transA", 0))
    flip_b = bool(node.attributes.get_int("transB", 0))
    if flip_a:
        a = a[::-1]
    b = run.of(node.inputs[1], {1 if flip_b else 0: a[1]})
    if flip_b:
        b = b[::-1]
    _multiply(run, node, flip_a, flip_b, a, b)
    y = [a[0], b[1]]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        given = run.of(bias)
        for i in range(1, len(given) + 1):
            y[-i] = run.unite_all([y[-i], given[-i]], node)
    run.set(node.outputs[0], y)


def _multiply(
    run: Interpreter, node: ir.Node, flip_a: bool, flip_b: bool, a: ax.Axes, b: ax.Axes
) -> None:
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None
    assert right is not None
    inner = run.unite(a[1], b[0], node)
    if run.is_computed(left) and run.is_computed(right):
        run.mark_kind(inner, Kind.HEAD_DIM)
        run.mark_kind(b[1], Kind.HEAD_DIM)
    run.product(
        node, 1, (a[0], b[0], b[1]), [(left, 0 if flip_a else 1), (right, 1 if flip_b else 0)]
    )


@rule("MatMul")
def matmul(run: Interpreter, node: ir.Node) -> None:
    """Unite the contracted axes and the batch axes.

    Where both operands are activations (attention), a batch axis with labels is the heads, the
    contracted axis and the right operand's columns are head features.
    """
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None:
        raise Unruled("an input is missing")
    a = list(run.of(left))
    b = list(run.of(right, {max(len(run.sizes(right)) - 2, 0): a[-1]}))
    vector_a, vector_b = len(a) == 1, len(b) == 1
    if vector_a:
        a.insert(0, ())
    if vector_b:
        b.append(())
    both = run.is_computed(left) and run.is_computed(right)
    inner = run.unite(a[-1], b[-2], node)
    if both:
        run.mark_kind(inner, Kind.HEAD_DIM)
        run.mark_kind(b[-1], Kind.HEAD_DIM)
    batch = []
    depth = max(len(a), len(b)) - 2
    for i in range(depth):
        meeting = [axes[j] for axes in (a, b) if (j := i - depth + len(axes) - 2) >= 0]
        axis = run.unite_all(meeting, node)
        if both:
            run.mark_kind(axis, Kind.HEAD)
            run.vote_heads(*meeting)
        batch.append(axis)
    result = [*batch, *(() if vector_a else (a[-2],)), *(() if vector_b else (b[-1],))]
    run.set(node.outputs[0], result)
    run.product(
        node,
        1,
        (*batch, a[-2], inner, b[-1]),
        [(left, len(a) - 1 - vector_a), (right, len(b) - 2)],
    )


@rule("Einsum")
def einsum(run: Interpreter, node: ir.Node) -> None:
    """Unite the axes of each letter; letters missing from the output are contracted."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    inputs = [v for v in node.inputs if v is not None]
    if not arrow or len(terms) != len(inputs):
        raise Unruled("an equation without '->'")
    meeting: dict[str, list[Axis]] = {}
    read: list[list[str]] = []
    widest = max(
        (
            len(run.of(v)) - len(t.replace("...", ""))
            for t, v in zip(terms, inputs, strict=True)
            if "..." in t
        ),
        default=0,
    )
    for term, value in zip(terms, inputs, strict=True):
        axes = run.of(value)
        names = _letters(term, len(axes), widest)
        if len(names) != len(axes) or len(set(names)) != len(names):
            raise Unruled("a repeated letter or another rank")
        read.append(names)
        for letter, axis in zip(names, axes, strict=True):
            meeting.setdefault(letter, []).append(axis)
    letters = {letter: run.unite_all(axes, node) for letter, axes in meeting.items()}
    target = _letters(output, len(run.sizes(node.outputs[0])), widest)
    computed = [run.is_computed(v) for v in inputs]
    if sum(computed) > 1 and any(letter not in target for letter in letters):
        for letter, axis in letters.items():
            holders = sum(letter in names for names, c in zip(read, computed, strict=True) if c)
            if letter in target and holders > 1:
                run.mark_kind(axis, Kind.HEAD)
                run.vote_heads(*meeting[letter])
            elif letter not in target:
                run.mark_kind(axis, Kind.HEAD_DIM)
        last = target[-1] if target else ""
        if last in letters and sum(last in names for names in read) == 1:
            run.mark_kind(letters[last], Kind.HEAD_DIM)
    run.set(node.outputs[0], [letters[letter] for letter in target])
    consumed = [
        (value, i)
        for value, names in zip(inputs, read, strict=True)
        for i, letter in enumerate(names)
        if letter not in target
    ]
    if len(inputs) > 1:
        run.product(node, 1, tuple(letters.values()), consumed)


def _letters(term: str, rank: int, widest: int) -> list[str]:
    """Return one name for each axis; the axes of an ellipsis are numbered from the right."""
    before, dots, after = term.partition("...")
    if not dots:
        return list(term)
    hidden = rank - len(before) - len(after)
    return [*before, *(f"…{widest - hidden + i}" for i in range(hidden)), *after]
