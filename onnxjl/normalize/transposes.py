"""Cancel transposes that converters from channels-last leave around other operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxjl.normalize.surgery import Names, add_initializer, constant, is_onnx, remove, substitute

ELEMENTWISE = frozenset(
    "Abs Add And Cast Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual "
    "HardSigmoid HardSwish LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or Pow "
    "PRelu Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tanh "
    "ThresholdedRelu Where Xor".split()
)
_REDUCTIONS = frozenset(
    "ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare".split()
)


def cancel_transposes(model: ir.Model) -> ir.Model:
    """Merge `Transpose` pairs, and move others through operators where that saves some.

    A connected set of elementwise operators, concatenations, paddings and reductions between
    transposes is computed in the other layout if fewer transposes are needed then. Values keep
    their names but those inside such a set have their axes in another order.
    """
    names = Names(model.graph)
    _merge_pairs(model.graph)
    done: set[ir.Node] = set()
    for node in list(model.graph):
        if is_onnx(node, "Transpose") and node.graph is not None and node not in done:
            perm = _perm(node)
            if perm is None:
                continue
            for user in [use.node for use in node.outputs[0].uses()]:
                if user in done:
                    continue
                region = _region(user, perm, model.graph)
                if region is not None and not done & region.nodes:
                    done |= region.nodes
                    if _saving(region) > 0:
                        _relayout(region, model.graph, names)
    _merge_pairs(model.graph)
    return model


def _perm(node: ir.Node) -> tuple[int, ...] | None:
    if "perm" in node.attributes:
        return tuple(node.attributes["perm"].as_ints())
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return None if shape is None else tuple(reversed(range(len(shape))))


def _inverse(perm: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.argsort(perm))


def _merge_pairs(graph: ir.Graph) -> None:
    """Make one of two transposes in a row, none where nothing moves."""
    for node in list(graph):
        if not is_onnx(node, "Transpose"):
            continue
        perm = _perm(node)
        source = node.inputs[0]
        before = source.producer() if source is not None else None
        if perm is None or source is None:
            continue
        if is_onnx(before, "Transpose") and before is not None and before.graph is graph:
            first = _perm(before)
            if first is not None:
                perm = tuple(first[axis] for axis in perm)
                node.replace_input_with(0, before.inputs[0])
                node.attributes["perm"] = ir.AttrInt64s("perm", perm)
                source = node.inputs[0]
        if perm == tuple(range(len(perm))) and source is not None:
            if substitute(node.outputs[0], source):
                remove([node])
            else:
                node.op_type = "Identity"
                node.attributes.clear()
        if before is not None and is_onnx(before, "Transpose") and before.graph is graph:
            output = before.outputs[0]
            if not output.uses() and not output.is_graph_output():
                remove([before])


@dataclass
class _Region:
    """Nodes that may be computed in another layout.

    Parameters
    ----------
    perm : of the transposes in front: ``axis a here is axis perm[a] there``.
    nodes : the region.
    entries : values from outside, constants excepted, that nodes of the region use.
    exits : values of the region that something outside uses.
    """

    perm: tuple[int, ...]
    nodes: set[ir.Node] = field(default_factory=set)
    entries: set[ir.Value] = field(default_factory=set)
    exits: set[ir.Value] = field(default_factory=set)


def _region(start: ir.Node, perm: tuple[int, ...], graph: ir.Graph) -> _Region | None:
    """The largest connected region around a node; None where it can't be in one."""
    if not _is_free(start, len(perm), graph):
        return None
    region = _Region(perm)
    pending = [start]
    while pending:
        node = pending.pop()
        if node in region.nodes:
            continue
        region.nodes.add(node)
        neighbours = [v.producer() for v in node.inputs if v is not None]
        neighbours += [use.node for v in node.outputs for use in v.uses()]
        pending.extend(n for n in neighbours if n is not None and _is_free(n, len(perm), graph))
    for node in region.nodes:
        for value in _variables(node):
            if value.producer() not in region.nodes:
                region.entries.add(value)
        for value in node.outputs:
            if value.is_graph_output() or any(u.node not in region.nodes for u in value.uses()):
                region.exits.add(value)
    return region


def _variables(node: ir.Node) -> list[ir.Value]:
    """Inputs whose layout matters: those that aren't constants."""
    inputs = node.inputs[:1] if node.op_type == "Pad" or _reduces(node) else node.inputs
    return [v for v in inputs if v is not None and constant(v) is None]


def _reduces(node: ir.Node) -> bool:
    return node.op_type in _REDUCTIONS


def _is_free(node: ir.Node, rank: int, graph: ir.Graph) -> bool:
    """Whether a node can compute in any layout of `rank` axes."""
    if node.domain != "" or node.graph is not graph or len(node.outputs) != 1:
        return False
    shapes = [v.shape for v in (*_variables(node), node.outputs[0])]
    if any(shape is None or len(shape) != rank for shape in shapes):
        return False
    if node.op_type in ELEMENTWISE:
        return all(
            len(array.shape) <= rank for v in node.inputs if (array := constant(v)) is not None
        )
    if node.op_type == "Concat":
        return all(constant(v) is None or len(v.shape or ()) == rank for v in node.inputs if v)
    if node.op_type == "Pad":
        axes = node.inputs[3] if len(node.inputs) > 3 else None
        return axes is None and len(node.inputs) > 1 and constant(node.inputs[1]) is not None
    if _reduces(node):
        kept = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            return kept and constant(node.inputs[1]) is not None
        return kept and "axes" in node.attributes
    return False


def _goes_away(value: ir.Value, region: _Region) -> bool:
    """Whether an entry is a transpose's output that only this region uses."""
    return (
        _is_transposed(value, region.perm)
        and not value.is_graph_output()
        and all(use.node in region.nodes for use in value.uses())
    )


def _is_transposed(value: ir.Value, perm: tuple[int, ...]) -> bool:
    node = value.producer()
    return node is not None and is_onnx(node, "Transpose") and _perm(node) == perm


def _outside(value: ir.Value, region: _Region) -> tuple[list[ir.Node], bool]:
    """Users of an exit: transposes that would go, and whether there are others."""
    back = _inverse(region.perm)
    users = [use.node for use in value.uses() if use.node not in region.nodes]
    gone = [n for n in users if is_onnx(n, "Transpose") and _perm(n) == back]
    return gone, value.is_graph_output() or len(gone) < len(users)


def _saving(region: _Region) -> int:
    """How many transposes fewer there would be."""
    saving = 0
    for value in region.entries:
        if _goes_away(value, region):
            saving += 1
        elif not _is_transposed(value, region.perm):
            saving -= 1
    for value in region.exits:
        gone, others = _outside(value, region)
        saving += len(gone) - others
    return saving


def _relayout(region: _Region, graph: ir.Graph, names: Names) -> None:
    perm, back = region.perm, _inverse(region.perm)
    order = [node for node in graph if node in region.nodes]
    sources: dict[ir.Value, ir.Value] = {}
    for value in sorted(region.entries, key=lambda v: v.name or ""):
        producer = value.producer()
        if _is_transposed(value, perm) and producer is not None and producer.inputs[0] is not None:
            sources[value] = producer.inputs[0]
        else:
            first = next(n for n in order if value in n.inputs)
            sources[value] = _transpose(graph, names, value, back, before=first)
    for node in order:
        for index, operand in enumerate(node.inputs):
            if operand is None:
                continue
            if operand in sources:
                node.replace_input_with(index, sources[operand])
            elif operand.producer() not in region.nodes:
                _relayout_constant(node, index, operand, perm, graph, names)
        _relayout_attributes(node, perm)
        output = node.outputs[0]
        assert output.shape is not None
        output.shape = ir.Shape([output.shape[axis] for axis in back])
    for value in sorted(region.exits, key=lambda v: v.name or ""):
        gone, others = _outside(value, region)
        if others:
            _restore(value, region.nodes | set(gone), region.perm, graph, names)
        for node in gone:
            if substitute(node.outputs[0], value):
                remove([node])
            else:
                node.op_type = "Identity"
                node.attributes.clear()
    for value in sources:
        producer = value.producer()
        if producer is not None and is_onnx(producer, "Transpose"):
            output = producer.outputs[0]
            if not output.uses() and not output.is_graph_output():
                remove([producer])


def _transpose(
    graph: ir.Graph,
    names: Names,
    value: ir.Value,
    perm: Sequence[int],
    *,
    before: ir.Node | None = None,
    after: ir.Node | None = None,
) -> ir.Value:
    name = names.fresh(f"{value.name}_transposed")
    node = ir.Node(
        "", "Transpose", [value], [ir.AttrInt64s("perm", list(perm))], name=name, num_outputs=1
    )
    output = node.outputs[0]
    output.name, output.type = name, value.type
    assert value.shape is not None
    output.shape = ir.Shape([value.shape[axis] for axis in perm])
    if before is not None:
        graph.insert_before(before, node)
    elif after is not None:
        graph.insert_after(after, node)
    return output


def _restore(
    value: ir.Value, ours: set[ir.Node], perm: Sequence[int], graph: ir.Graph, names: Names
) -> None:
    """Give the graph, and all users but ours, the layout of a value that they had."""
    producer = value.producer()
    assert producer is not None
    restored = _transpose(graph, names, value, perm, after=producer)
    transpose = restored.producer()
    for use in list(value.uses()):
        if use.node not in ours and use.node is not transpose:
            use.node.replace_input_with(use.idx, restored)
    if value.is_graph_output():
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = restored
        name = value.name
        value.name, restored.name = names.fresh(f"{name}_inside"), name


def _relayout_constant(
    node: ir.Node,
    index: int,
    value: ir.Value,
    perm: Sequence[int],
    graph: ir.Graph,
    names: Names,
) -> None:
    array = constant(value)
    assert array is not None
    rank = len(perm)
    if node.op_type == "Pad":
        if index != 1:
            return
        array = array.reshape(2, rank)[:, list(_inverse(perm))].reshape(-1)
    elif _reduces(node):
        array = np.array([perm[int(axis) % rank] for axis in array.reshape(-1)], np.int64)
    elif array.size == 1 and node.op_type != "Concat":
        return
    else:
        array = array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(_inverse(perm))
        array = np.ascontiguousarray(array)
    name = names.fresh(f"{value.name}_transposed")
    node.replace_input_with(index, add_initializer(graph, name, array))


def _relayout_attributes(node: ir.Node, perm: Sequence[int]) -> None:
    rank = len(perm)
    if node.op_type == "Concat":
        axis = perm[node.attributes["axis"].as_int() % rank]
        node.attributes["axis"] = ir.AttrInt64("axis", axis)
    elif _reduces(node) and "axes" in node.attributes:
        axes = [perm[axis % rank] for axis in node.attributes["axes"].as_ints()]
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
