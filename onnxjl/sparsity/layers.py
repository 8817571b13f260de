"""Which weights can be sparse: those of contractions, with the axis that N:M patterns run along."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxjl.criteria.roles import CONTRACTIONS, operator_of, uses
from onnxjl.errors import BudgetError
from onnxjl.graph import FLOATING, Graph, node_name
from onnxjl.recovery.layers import is_product
from onnxjl.sparsity.pattern import Pattern
from onnxjl.structure import Whole, layer_names
from onnxjl.structure.groups import layers as layers_of
from onnxjl.structure.names import check_patterns, weight

_CONVOLUTIONS = frozenset(("Conv", "DeformConv", "com.microsoft.FusedConv"))


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight that a contraction uses.

    Parameters
    ----------
    name : the layer's name.
    node : its node's name.
    operator : ONNX operator.
    tensor : the initializer.
    shape : the initializer's, ONNX's order.
    axis : 0-based axis along which patterns run: the inputs of the contraction, channels for
        convolutions; None where the nodes that use the weight sum over different ones.
    width : inputs along that axis in one group of a grouped convolution.
    """

    name: str
    node: str
    operator: str
    tensor: str
    shape: tuple[int, ...]
    axis: int | None
    width: int

    @property
    def size(self) -> int:
        """Number of weights."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def candidates(
    graph: Graph,
    *,
    pattern: Pattern | None = None,
    ignore: Sequence[str] = (),
    reading: str | None = None,
) -> tuple[list[Layer], list[Whole]]:
    """Return the weights that can be sparse, in graph order, and the layers that are left whole.

    Parameters
    ----------
    graph : normalized.
    pattern : the N:M pattern that is to fit.
    ignore : fnmatch patterns of layers or nodes to leave whole.
    reading : name of a criterion that must know the rows of inputs that a layer reads.

    Raises
    ------
    UsageError : a pattern of `ignore` matches nothing.
    """
    names = layer_names(graph)
    check_patterns(names, ignore)
    position = {node: i for i, node in enumerate(graph.model.graph)}
    found: list[tuple[int, Layer]] = []
    whole: dict[str, tuple[int, Whole]] = {}
    covered: set[ir.Node] = set()

    def leave(node: ir.Node, reason: str) -> None:
        place = node_name(node)
        entry = Whole(names.get(node, place), place, reason)
        whole.setdefault(place, (position.get(node, len(position)), entry))

    for tensor, value in graph.model.graph.initializers.items():
        if value.const_value is None or value.const_value.dtype not in FLOATING:
            continue
        if len(value.const_value.shape) < 2:
            continue
        used = list(uses(value))
        contracting = [
            (node, index, axes)
            for node, index, axes in used
            if index in CONTRACTIONS.get(operator_of(node), {})
        ]
        tables = [node for node, _, _ in used if node.op_type == "Gather"]
        if not contracting and not tables:
            continue
        nodes = list(dict.fromkeys([node for node, _, _ in contracting] + tables))
        covered.update(nodes)
        first = min(nodes, key=lambda node: position.get(node, len(position)))
        layer = _layer(tensor, value, first, contracting, names) if contracting else None
        reason = _why_not(layer, value, nodes, names, pattern, ignore, reading)
        if tables:
            reason = "an embedding table" + (", too: its weight is tied" if contracting else "")
        if reason is None and layer is not None:
            found.append((position.get(first, len(position)), layer))
        else:
            for node in nodes:
                leave(node, reason or "")
    for node in layers_of(graph):
        main = weight(node)
        if node not in covered and main is not None and main.const_value is not None:
            dtype = main.const_value.dtype
            kind = "its weights aren't constants that it reads itself"
            leave(node, kind if dtype in FLOATING else f"its weights are {dtype.name.lower()}")
    layers = [layer for _, layer in sorted(found, key=lambda entry: entry[0])]
    sparse = {layer.node for layer in layers}
    left = sorted(whole.values(), key=lambda entry: entry[0])
    return layers, [entry for _, entry in left if entry.node not in sparse]


def _layer(
    tensor: str,
    value: ir.Value,
    first: ir.Node,
    contracting: Sequence[tuple[ir.Node, int, tuple[int, ...]]],
    names: dict[ir.Node, str],
) -> Layer:
    assert value.const_value is not None
    shape = value.const_value.shape.numpy()
    places = {_inputs(node, index, axes, shape) for node, index, axes in contracting}
    axis, width = places.pop() if len(places) == 1 else (None, 0)
    return Layer(
        name=names.get(first, node_name(first)),
        node=node_name(first),
        operator=first.op_type,
        tensor=tensor,
        shape=tuple(shape),
        axis=axis,
        width=width,
    )


def _inputs(
    node: ir.Node, index: int, axes: tuple[int, ...], shape: Sequence[int]
) -> tuple[int | None, int]:
    """Return the weight's axis of the contraction's inputs, and how many of them are in a group."""
    operator = operator_of(node)
    if operator in _CONVOLUTIONS:
        return axes[1], shape[axes[1]]
    if operator == "ConvTranspose":
        return axes[0], shape[axes[0]] // node.attributes.get_int("group", 1)
    outputs = CONTRACTIONS[operator][index](node, len(axes))
    summed = [axis for axis in range(len(axes)) if axis not in outputs]
    return (axes[summed[-1]], shape[axes[summed[-1]]]) if summed else (None, 0)


def _why_not(
    layer: Layer | None,
    value: ir.Value,
    nodes: Sequence[ir.Node],
    names: dict[ir.Node, str],
    pattern: Pattern | None,
    ignore: Sequence[str],
    reading: str | None,
) -> str | None:
    """Return why a weight stays whole, if it does."""
    if layer is None:
        return None
    called = {name for node in nodes for name in (names.get(node, ""), node_name(node))}
    for one in ignore:
        if any(fnmatch.fnmatchcase(name, one) for name in called):
            return f"ignored by '{one}'"
    if reading is not None and not (len(nodes) == 1 and is_product(nodes[0])):
        return f"'{reading}' is for Conv, Gemm and MatMul with a weight of their own"
    if pattern is None:
        return None
    if layer.axis is None:
        return "its weight is summed over along different axes"
    if layer.width % pattern.of:
        return f"its {layer.width} inputs are no multiple of {pattern.of}"
    return None


def check_any(layers: Sequence[Layer], whole: Sequence[Whole]) -> None:
    """Raise a BudgetError if no weight can be sparse."""
    if not layers:
        reasons = "; ".join(f"{w.layer}: {w.reason}" for w in whole[:3])
        raise BudgetError(f"no weight of this network can be sparse ({reasons or 'no layers'})")
