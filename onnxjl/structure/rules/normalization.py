"""Normalizations, softmax and reductions: over a pruned axis they are not exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxjl.structure.axes import split_labels
from onnxjl.structure.rules import Unruled, edit, rule

if TYPE_CHECKING:
    from onnxjl.structure.edits import Editor
    from onnxjl.structure.interpreter import Interpreter


@rule("BatchNormalization", "InstanceNormalization")
def per_channel(run: Interpreter, node: ir.Node) -> None:
    """Unite the channels with every parameter.

    Instance normalization takes statistics over the other axes. Group normalization is often
    written as one over ``[batch, groups, rest]``: there whole groups are the units that can go.
    """
    axes = list(run.of(node.inputs[0]))
    if node.op_type == "InstanceNormalization":
        run.vote_groups(axes[1])
        for axis in axes[2:]:
            run.inexact(axis, node)
    for parameter in node.inputs[1:]:
        axes[1] = run.unite_parameter(axes[1], parameter, node)
    run.set(node.outputs[0], axes)


@rule("LayerNormalization", "RMSNormalization")
def layer(run: Interpreter, node: ir.Node) -> None:
    """Mark the normalized axes as inexact, and unite them with scale and bias."""
    axes = list(run.of(node.inputs[0]))
    start = node.attributes.get_int("axis", -1) % len(axes)
    for i in range(start, len(axes)):
        run.inexact(axes[i], node)
    for parameter in node.inputs[1:]:
        if parameter is None:
            continue
        given = run.of(parameter)
        for i in range(1, len(given) + 1):
            axes[-i] = run.unite_all([axes[-i], given[-i]], node)
    run.set(node.outputs[0], axes)
    statistics = axes[:start] + [()] * (len(axes) - start)
    for value in node.outputs[1:]:
        if value.name:
            run.set(value, statistics)


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain="com.microsoft")
def skip_layer(run: Interpreter, node: ir.Node) -> None:
    """Unite input and skip, mark the last axis as inexact, unite it with the parameters."""
    x, skip = run.of(node.inputs[0]), run.of(node.inputs[1])
    if len(x) != len(skip):
        raise Unruled("a skip of another rank")
    axes = [run.unite_all([a, b], node) for a, b in zip(x, skip, strict=True)]
    run.inexact(axes[-1], node)
    for parameter in node.inputs[2:]:
        if parameter is not None:
            axes[-1] = run.unite(axes[-1], run.of(parameter)[0], node)
    run.set(node.outputs[0], axes)
    for i, value in enumerate(node.outputs[1:], 1):
        if value.name:
            run.set(value, axes if i == 3 else [*axes[:-1], ()])


@rule("EmbedLayerNormalization", domain="com.microsoft")
def embedding(run: Interpreter, node: ir.Node) -> None:
    """Unite the widths of all tables and parameters, and mark them as inexact."""
    numbers = run.of(node.inputs[0])
    width = run.of(node.inputs[2])[1]
    for table in node.inputs[2:5]:
        if table is not None:
            rows, columns = run.of(table)
            run.fix(rows, f"rows of {node.op_type} '{node.name}', which are chosen by number")
            width = run.unite(width, columns, node)
    for parameter in node.inputs[5:7]:
        width = run.unite_parameter(width, parameter, node)
    run.inexact(width, node)
    for i, value in enumerate(node.outputs):
        if value.name:
            run.set(value, numbers[:1] if i == 1 else (*numbers, width))


@rule("GroupNormalization")
def group(run: Interpreter, node: ir.Node) -> None:
    """Whole groups are units: within one, statistics would change."""
    value = node.inputs[0]
    axes = list(run.of(value))
    groups = node.attributes.get_int("num_groups", 1)
    for axis in axes[2:]:
        run.fix(axis, f"a spatial axis of {node.op_type} '{node.name}'")
    channels = run.vector(axes[1])
    if channels is not None:
        keeper, _ = split_labels(run.labels, channels, (groups, len(channels) // groups), 0)
        if keeper != 0:
            run.inexact(axes[1], node)
    for parameter in node.inputs[1:]:
        axes[1] = run.unite(axes[1], run.of(parameter)[0], node)
    run.set(node.outputs[0], axes)


@edit("GroupNormalization")
def groups_left(editor: Editor, node: ir.Node) -> None:
    """Set `num_groups` to the number of groups that survive."""
    value = node.inputs[0]
    kept = None if value is None else editor.mask(value, 1)
    if kept is not None:
        alive = kept.reshape(node.attributes.get_int("num_groups", 1), -1).any(axis=1)
        if not alive.all():
            editor.set_attribute(node, "num_groups", int(alive.sum()))


@rule("LRN")
def local_response(run: Interpreter, node: ir.Node) -> None:
    """Mark the channels as inexact: each is divided by a sum over its neighbours."""
    axes = run.of(node.inputs[0])
    run.inexact(axes[1], node)
    run.set(node.outputs[0], axes)


@rule("Softmax", "LogSoftmax", "Hardmax", "LpNormalization")
def softmax(run: Interpreter, node: ir.Node) -> None:
    """Mark the normalized axis as inexact."""
    axes = run.of(node.inputs[0])
    run.inexact(axes[node.attributes.get_int("axis", -1)], node)
    run.set(node.outputs[0], axes)


@rule("MeanVarianceNormalization")
def mean_variance(run: Interpreter, node: ir.Node) -> None:
    """Mark the normalized axes as inexact."""
    axes = run.of(node.inputs[0])
    for i in node.attributes.get_ints("axes", (0, 2, 3)):
        run.inexact(axes[i], node)
    run.set(node.outputs[0], axes)


@rule(
    *(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare"
    ).split()
)
def reduction(run: Interpreter, node: ir.Node) -> None:
    """Mark the reduced axes as inexact; the others pass through."""
    axes = run.of(node.inputs[0])
    given = node.attributes.get_ints("axes", None)
    if given is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = run.known(node.inputs[1])
        if array is None:
            raise Unruled("which axes it reduces isn't known")
        given = [int(i) for i in array.reshape(-1)]
    if not given:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            run.set(node.outputs[0], axes)
            return
        given = range(len(axes))
    reduced = {i % len(axes) for i in given}
    for i in reduced:
        run.inexact(axes[i], node)
    keep = bool(node.attributes.get_int("keepdims", 1))
    run.set(
        node.outputs[0],
        [() if i in reduced else a for i, a in enumerate(axes) if keep or i not in reduced],
    )


@rule("CumSum", "CumProd")
def cumulative(run: Interpreter, node: ir.Node) -> None:
    """Fix the axis that is summed along in order."""
    axes = run.of(node.inputs[0])
    along = run.known(node.inputs[1])
    if along is None:
        raise Unruled("which axis it runs along isn't known")
    run.fix(axes[int(along.reshape(-1)[0])], f"{node.op_type} '{node.name}' runs along it in order")
    run.set(node.outputs[0], axes)
