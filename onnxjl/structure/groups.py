"""Groups: what can be removed together, and why not more."""

from __future__ import annotations

import fnmatch
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxjl.errors import ModelError, OnnxjlError, PlanError, UsageError
from onnxjl.garbage import keep_freed_memory, without_collection
from onnxjl.graph import FLOATING, Graph, initializers
from onnxjl.load import Source, first_cause
from onnxjl.normalize import normalize
from onnxjl.plan import Plan
from onnxjl.structure import axes as ax
from onnxjl.structure.axes import Axes, Axis
from onnxjl.structure.cost import Cost, Size
from onnxjl.structure.edits import Editor
from onnxjl.structure.interpreter import Interpreter
from onnxjl.structure.labels import MOST, Kind, LabelArray
from onnxjl.structure.names import check_patterns, layer_names, node_name, weight
from onnxjl.structure.places import Indices, Places
from onnxjl.structure.rules.recurrent import GATES
from onnxjl.structure.shapes import Shapes

Granularity = Literal["channel", "head", "head-dim"]
GRANULARITIES: tuple[Granularity, ...] = ("channel", "head", "head-dim")


class Member(NamedTuple):
    """A weight axis that a group's units are indices of.

    Parameters
    ----------
    tensor : initializer name.
    axis : 0-based.
    indices : (units, k) int, the k 0-based indices of each unit.
    """

    tensor: str
    axis: int
    indices: Indices


class Activation(NamedTuple):
    """An activation axis by which a contraction consumes a group's units.

    Parameters
    ----------
    value : value name.
    axis : 0-based.
    indices : (units, k) int, the k 0-based indices of each unit.
    """

    value: str
    axis: int
    indices: Indices


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be removed one by one, each from every member at once.

    Parameters
    ----------
    name : the first layer that makes the units, with ``#2`` and so on if it makes several groups.
    kind : ``"channel"``, ``"head"`` or ``"head-dim"``.
    size : number of units.
    members : the weight axes to cut.
    activations : the activations by which contractions consume the units.
    exact : whether the pruned network equals the masked one.
    reason : why not, if not.
    layers : names of the layers whose outputs shrink, in graph order.
    nodes : names of these layers' nodes.
    macs : multiply–accumulates for one sample that removing one unit saves.
    params : parameters that removing one unit saves.
    """

    name: str
    kind: Granularity
    size: int
    members: tuple[Member, ...]
    activations: Sequence[Activation]
    exact: bool
    reason: str | None
    layers: tuple[str, ...]
    nodes: tuple[str, ...]
    macs: float
    params: float

    def matches(self, pattern: str) -> bool:
        """Return whether a layer or node of the group matches an fnmatch pattern."""
        return any(fnmatch.fnmatchcase(n, pattern) for n in (*self.layers, *self.nodes))

    def __repr__(self) -> str:
        exact = "" if self.exact else ", inexact"
        return (
            f"Group({self.name!r}, {self.size} × {self.kind}{exact}, {len(self.members)} members)"
        )


@dataclass(frozen=True)
class Whole:
    """A layer whose outputs can't be pruned, and why."""

    layer: str
    node: str
    reason: str


class Groups(Sequence[Group]):
    """The groups of a graph, with what is left whole.

    Parameters
    ----------
    groups : in graph order.
    whole : layers that no group prunes.
    """

    def __init__(self, groups: Sequence[Group], whole: Sequence[Whole]) -> None:
        self._groups = tuple(groups)
        self.whole = tuple(whole)

    @overload
    def __getitem__(self, index: int | str) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Group, ...]: ...
    def __getitem__(self, index: int | str | slice) -> Group | tuple[Group, ...]:
        """Return a group by its number, its name, or a layer that is in no other group.

        Raises
        ------
        UsageError : there is no such group, or the layer is in several.
        """
        if not isinstance(index, str):
            return self._groups[index]
        found = [group for group in self._groups if index == group.name]
        found = found or [group for group in self._groups if index in group.layers]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(f"'{group.name}'" for group in found)
            raise UsageError(f"layer '{index}' is in several groups: {several}; name one of these")
        raise UsageError(
            f"no group is called '{index}'; there are {', '.join(g.name for g in self._groups)}"
        )

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    def __repr__(self) -> str:
        many = "1 group" if len(self) == 1 else f"{len(self)} groups"
        lines = [f"{many}, {sum(g.size for g in self)} units"]
        width = max((len(g.name) for g in self), default=0)
        for g in self:
            note = "" if g.exact else f"  inexact: {g.reason}"
            lines.append(
                f"  {g.name:<{width}}  {g.size:>5} × {g.kind:<8} {g.macs:>12,.0f} MACs "
                f"{g.params:>9,.0f} parameters each{note}"
            )
        if self.whole:
            count = len(self.whole)
            lines.append("1 layer stays whole" if count == 1 else f"{count} layers stay whole")
            lines += [f"  {w.layer}: {w.reason}" for w in self.whole]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Structure:
    """All that the analysis knows of a graph.

    Parameters
    ----------
    graph : the normalized graph.
    groups : every group, exact or not.
    whole : layers that no group prunes.
    macs, params, bytes : costs as functions of the units that each group keeps.
    terms : node name of each term of `macs`.
    names : node -> layer name.
    run : the interpretation that it rests on.
    unruled : nodes that no rule treats -> why.
    """

    graph: Graph
    granularity: Granularity
    groups: tuple[Group, ...]
    whole: tuple[Whole, ...]
    macs: Cost
    params: Cost
    bytes: Cost
    terms: tuple[str, ...]
    names: Mapping[ir.Node, str] = field(repr=False)
    unruled: Mapping[str, str]
    run: Interpreter = field(repr=False)
    _unit_at: Indices = field(repr=False)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(groups,) int, the number of units of each group."""
        return np.array([g.size for g in self.groups], dtype=np.int64)

    @property
    def supposed_sizes(self) -> tuple[int, ...]:
        """Sizes that data decide, as they are supposed to be: multiply–accumulates count them."""
        return tuple(self.run.shapes.supposed_sizes)

    def groups_on(self, value: str) -> list[tuple[int, int]]:
        """Return the groups whose units a value carries, and on which axis: (group, axis) pairs.

        Parameters
        ----------
        value : name of a weight or an activation.
        """
        owner = np.append(np.repeat(np.arange(len(self.groups)), self.sizes), -1)
        found = {
            (group, i)
            for i, axis in enumerate(self.run.axes.get(value, ()))
            for factor in axis
            if factor.labels is not None
            # Unit -1, "not in a group", is the last.
            for group in np.unique(owner[self._unit_at[factor.labels]]).tolist()
            if group >= 0
        }
        return sorted(found)

    def plan(
        self, keep: Sequence[NDArray[np.bool_]], *, request: Mapping[str, Any] | None = None
    ) -> Plan:
        """Return the edits that keep these units.

        Parameters
        ----------
        keep : for each group, (units,) bool.
        request : what was asked for, noted in the plan.
        """
        kept_unit = np.concatenate([*keep, np.ones(1, dtype=bool)])
        alive = kept_unit[self._unit_at]  # unit -1, "not in a group", is the last
        editor = Editor(self.run, alive)
        kept: dict[str, dict[int, NDArray[np.int64]]] = {}
        for name in initializers(self.graph.model):
            for i, axis in enumerate(self.run.axes.get(name, ())):
                indices = editor.kept(axis)
                if indices is not None:
                    kept.setdefault(name, {})[i] = indices
        editor.run()
        return Plan(
            kept=kept,
            attributes=editor.attributes,
            constants=editor.constants,
            source_graph=self.graph,
            request=dict(request or {}),
            sizes=editor.new_sizes(),
        )


def groups(
    model: Source,
    *,
    granularity: Granularity = "channel",
    allow_inexact: bool = False,
    ignore: Sequence[str] = (),
) -> Groups:
    """Return what can be removed together, and why not more.

    Parameters
    ----------
    model : whatever `load` takes; normalized if it isn't.
    granularity : ``"channel"`` (attention stays whole), ``"head"`` (whole heads too) or
        ``"head-dim"`` (the same feature in every head of a block too).
    allow_inexact : whether to offer groups whose removal changes statistics taken over them.
    ignore : fnmatch patterns of layers or nodes to leave whole.

    Raises
    ------
    UsageError : a granularity that there isn't, or a pattern that matches nothing.
    """
    structure = analyze(normalize(model), granularity=granularity)
    offered, whole = offer(structure, allow_inexact=allow_inexact, ignore=ignore)
    return Groups([structure.groups[i] for i in offered], whole)


def offer(
    structure: Structure, *, allow_inexact: bool, ignore: Sequence[str]
) -> tuple[list[int], list[Whole]]:
    """Return the numbers of the groups that may be pruned, and the layers that stay whole."""
    check_patterns(structure.names, ignore)
    offered: list[int] = []
    refused: dict[str, Whole] = {}
    pruned: set[str] = set()
    for i, group in enumerate(structure.groups):
        matching = [p for p in ignore if group.matches(p)]
        if matching:
            reason = f"ignored by '{matching[0]}'"
        elif not group.exact and not allow_inexact:
            reason = f"{group.reason}; allow_inexact offers it"
        else:
            offered.append(i)
            pruned.update(group.nodes)
            continue
        for layer, node in zip(group.layers, group.nodes, strict=True):
            refused.setdefault(node, Whole(layer, node, reason))
    refused = {k: v for k, v in refused.items() if k not in pruned}
    whole = [*structure.whole, *refused.values()]
    if refused:
        order = {node_name(node): i for i, node in enumerate(structure.graph.model.graph)}
        whole.sort(key=lambda w: order.get(w.node, 0))
    return offered, whole


# Labels that an analysis may have to be remembered: its arrays are then some megabytes.
_MOST_REMEMBERED = 1 << 18


class _Analysis(NamedTuple):
    """An analysis that a graph remembers.

    Parameters
    ----------
    read : the objects of the model that it rests on.
    structure : what it found, for a graph of the same model that remembers nothing: what a graph
        remembers mustn't refer to it, or its weights would stay until Python's collector comes.
    """

    read: list[object]
    structure: Structure

    def holds(self, read: list[object]) -> bool:
        """Return whether the model is still what it was."""
        return len(read) == len(self.read) and all(map(operator.is_, read, self.read))


def _read(model: ir.Model) -> list[object]:
    """Return all that the analysis reads of a model and that can be exchanged in it."""
    network = model.graph
    read: list[object] = [*network.inputs, *network.outputs]
    for value in network.inputs:
        read += (value.name, value.type, value.shape)
    for name, value in initializers(model).items():
        read += (name, value.const_value)
    for node in network:
        read += (node.domain, node.op_type, node.name, node.inputs)
        read += node.attributes.data.values()
        for value in node.outputs:
            read += (value.name, value.type, value.shape)
    return read


@without_collection
def analyze(graph: Graph, *, granularity: Granularity = "channel") -> Structure:
    """Run the structure analysis, unless the graph remembers what it found.

    Parameters
    ----------
    graph : normalized, or normalized here.
    granularity : see `groups`.

    Raises
    ------
    UsageError : there is no such granularity.
    ModelError : shapes and attributes contradict each other.
    """
    if granularity == "block":
        raise UsageError("blocks aren't groups of units; onnxjl.blocks(model) finds them")
    if granularity not in GRANULARITIES:
        known = ", ".join(GRANULARITIES)
        raise UsageError(f"no granularity '{granularity}'; there are {known}, and for prune block")
    graph = normalize(graph)
    keep_freed_memory()
    read = _read(graph.model)
    before = graph.analyses.get(granularity)
    if before is not None and before.holds(read):
        return replace(before.structure, graph=graph)
    try:
        structure = _analyzed(replace(graph), granularity)
    except (OnnxjlError, Warning):
        raise
    except Exception as error:
        where = graph.path or "the model"
        raise ModelError(
            f"{where}: its structure can't be analysed, as sizes inside it don't fit: "
            f"{first_cause(error)}"
        ) from error
    if structure.run.labels.count <= _MOST_REMEMBERED:
        graph.analyses[granularity] = _Analysis(read, structure)
    return replace(structure, graph=graph)


def _analyzed(graph: Graph, granularity: Granularity) -> Structure:
    shapes = Shapes(graph)
    run = Interpreter(graph, shapes, {})
    choices = {**(run.head_votes if granularity == "head" else {}), **run.group_votes}
    if choices:
        run = Interpreter(graph, shapes, choices)
    while True:
        builder = _Builder(run, granularity)
        failed = builder.rehearse()
        if not failed:
            return builder.build()
        for node, error in failed:
            run.withdraw(node, str(error))


# Bits that are left, of 64, beside the number of a group: there are fewer groups than labels.
_LOW_BITS = 64 - MOST.bit_length()


class _Builder:
    """Gathers units into groups, and describes these."""

    def __init__(self, run: Interpreter, granularity: Granularity) -> None:
        self.run = run
        self.granularity = granularity
        self.names = layer_names(run.graph)
        self.roots, self.fixed, self.inexact, self.kind = run.labels.summary()
        # What a fused operator multiplies inside is an axis of none of its inputs and outputs.
        inside = (product.axes for product in run.products)
        self.vectors = _label_arrays(itertools.chain(run.axes.values(), inside))
        self.units, self.unit_at, self.group_of, self.starts = self._number_units()
        self.widths = np.diff(self.starts, append=len(self.group_of))

    def _allowed(self) -> NDArray[np.bool_]:
        count = len(self.roots)
        allowed = (self.roots == np.arange(count)) & (self.fixed == 0)
        if self.granularity == "channel":
            allowed &= self.kind == 0
        elif self.granularity == "head":
            allowed &= (self.kind & Kind.HEAD_DIM) == 0
        else:
            allowed &= (self.kind & Kind.HEAD) == 0
        return allowed

    def _number_units(self) -> tuple[Indices, Indices, Indices, Indices]:
        """Units with the same footprint form a group: footprints are compared by sums of codes."""
        count = len(self.roots)
        footprint = np.zeros(count, dtype=np.uint64)
        if self.vectors:
            codes = _codes(len(self.vectors))
            lengths = [len(v) for v in self.vectors]
            np.add.at(
                footprint, self.roots[np.concatenate(self.vectors)], np.repeat(codes, lengths)
            )
        weights = np.zeros(count, dtype=bool)
        named = initializers(self.run.graph.model)
        of_weights = _label_arrays(self.run.axes.get(name, ()) for name in named)
        if of_weights:
            weights[self.roots[np.concatenate(of_weights)]] = True
        allowed = np.flatnonzero(self._allowed() & weights)
        _, first, inverse, size = np.unique(
            footprint[allowed], return_index=True, return_inverse=True, return_counts=True
        )
        # One unit alone can't go; groups are in the order of their first labels, units within a
        # group in that of theirs, which they are in already.
        able = size[inverse] > 1
        units = allowed[able]
        order = first[inverse][able]
        in_order = np.argsort(order, kind="stable")
        units, order = units[in_order], order[in_order]
        unit_at = np.full(count, -1, dtype=np.int64)
        unit_at[units] = np.arange(len(units))
        starts = np.flatnonzero(np.diff(order, prepend=-1))
        group_of = np.searchsorted(starts, np.arange(len(units)), side="right") - 1
        return units, unit_at[self.roots], group_of.astype(np.int64), starts.astype(np.int64)

    def rehearse(self) -> list[tuple[ir.Node, PlanError]]:
        """Make a plan that takes some units of each group; return the nodes whose edits fail.

        What can't be rewritten is found here, so that it costs prunability and not a pruning.
        Every group loses another number, so that no two sizes agree by chance.
        """
        units = len(self.group_of)
        codes = _codes(units + len(self.widths))
        # As if at random within each group, whose number comes first in what is sorted.
        high = self.group_of.astype(np.uint64) << np.uint64(_LOW_BITS)
        order = np.argsort(high | (codes[:units] >> np.uint64(64 - _LOW_BITS)))
        counts = 1 + (codes[units:] % (self.widths - 1).astype(np.uint64)).astype(np.int64)
        rank = np.arange(units) - self.starts[self.group_of]
        kept = np.ones(units + 1, dtype=bool)
        kept[order] = rank < counts[self.group_of]
        return Editor(self.run, kept[self.unit_at]).attempt()

    def _places_on(self, vectors: Sequence[NDArray[np.int64]]) -> Places:
        return Places(vectors, self.unit_at, self.group_of, self.widths)

    def _indices(self, places: Places, axis: Axis) -> list[tuple[int, Indices]]:
        """Return (group, (units, k) indices) for each group with units on an axis."""
        if len(axis) == 1:
            labels = axis[0].labels
            return [] if labels is None else places.of(labels)
        vector = ax.expand(self.run.labels, axis)
        return [] if vector is None else self._places_on([vector]).of(vector)

    def build(self) -> Structure:
        number = len(self.starts)
        places = self._places_on(self.vectors)
        members: list[list[Member]] = [[] for _ in range(number)]
        consumed = _Consumed(number)
        made_by: list[list[str]] = [[] for _ in range(number)]
        nodes: list[list[str]] = [[] for _ in range(number)]
        run = self.run
        for name in initializers(run.graph.model):
            for i, axis in enumerate(run.axes.get(name, ())):
                for g, indices in self._indices(places, axis):
                    members[g].append(Member(name, i, indices))
        for product in run.products:
            for value, i in product.consumed:
                axes = run.axes.get(value.name or "")
                if axes is None or value.is_initializer():
                    continue
                vector = ax.expand(run.labels, axes[i])
                if vector is not None:
                    known = places if len(axes[i]) == 1 else self._places_on([vector])
                    consumed.add(value.name or "", i, vector, known)
        whole: list[Whole] = []
        for node in layers(self.run.graph):
            made = self._made_by(places, node)
            for g in made:
                made_by[g].append(self.names[node])
                nodes[g].append(node_name(node))
            if not made:
                whole.append(Whole(self.names[node], node_name(node), self._why_whole(node)))
        macs, params, size_in_bytes, terms = self._costs(places)
        sizes = self.widths
        one = np.ones(number, dtype=np.int64)
        macs_each = -macs.increase(sizes, -one)
        params_each = -params.increase(sizes, -one)
        taken: dict[str, int] = {}
        result = []
        for g in range(number):
            root = int(self.units[self.starts[g]])
            reason = int(self.inexact[root])
            name = made_by[g][0] if made_by[g] else members[g][0].tensor
            taken[name] = taken.get(name, 0) + 1
            result.append(
                Group(
                    name=name if taken[name] == 1 else f"{name}#{taken[name]}",
                    kind=_kind(int(self.kind[root])),
                    size=int(sizes[g]),
                    members=tuple(members[g]),
                    activations=_Activations(consumed, g),
                    exact=reason == 0,
                    reason=run.labels.reason_text(reason) or None,
                    layers=tuple(made_by[g]),
                    nodes=tuple(nodes[g]),
                    macs=float(macs_each[g]),
                    params=float(params_each[g]),
                )
            )
        return Structure(
            graph=run.graph,
            granularity=self.granularity,
            groups=tuple(result),
            whole=tuple(whole),
            macs=macs,
            params=params,
            bytes=size_in_bytes,
            terms=terms,
            names=self.names,
            unruled=dict(run.unruled),
            run=run,
            _unit_at=self.unit_at,
        )

    def _made_by(self, places: Places, node: ir.Node) -> list[int]:
        made: set[int] = set()
        for factor in output_axis(self.run, node):
            if factor.labels is not None:
                made.update(places.groups(factor.labels))
        return sorted(made)

    def _why_whole(self, node: ir.Node) -> str:
        reasons = self.run.labels
        value = weight(node)
        kind = value.const_value.dtype if value is not None and value.const_value else None
        bits = None if kind is None or kind.is_floating_point() else kind.name.lower()
        unruled = self.run.why_unruled(node)
        # That it has no rule says less than its weight does.
        axis = () if bits and unruled else output_axis(self.run, node)
        for factor in axis:
            if factor.labels is None:
                if factor.reason:
                    return reasons.reason_text(factor.reason)
                continue
            roots = self.roots[factor.labels]
            fixed = self.fixed[roots]
            if fixed.any():
                return reasons.reason_text(int(fixed[fixed > 0].min()))
            if self.kind[roots].any():
                return f"attention stays whole with granularity '{self.granularity}'"
            return "its outputs all belong to one unit"
        if bits:
            return f"its weight is {bits}"
        if not axis and unruled:
            return unruled
        return "it has one output" if ax.size(axis) == 1 else "its outputs carry no units"

    def _costs(self, places: Places) -> tuple[Cost, Cost, Cost, tuple[str, ...]]:
        """Return the costs in multiply–accumulates, parameters and bytes, and the first's terms."""
        samples = self._samples()
        groups = len(self.starts)
        products = self.run.products
        macs = Cost(
            [product.coefficient / samples for product in products],
            [self._factors(places, product.axes) for product in products],
            groups,
        )
        # Weights of the same axes, as of a normalization, are one term.
        terms: dict[ax.Axes, tuple[float, int]] = {}
        for name, value in initializers(self.run.graph.model).items():
            tensor = value.const_value
            if tensor is None:
                continue
            shape = self.run.shapes.sizes[name]
            axes = self.run.axes.get(name)
            if axes is None or 0 in shape:
                axes = (ax.plain(math.prod(shape)),)
            itemsizes, floating = terms.get(axes, (0, 0))
            # Strings have no size of their own, and none of them goes.
            itemsize = 0 if tensor.dtype == ir.DataType.STRING else tensor.dtype.itemsize
            terms[axes] = itemsizes + itemsize, floating + (tensor.dtype in FLOATING)
        weights = [self._factors(places, axes) for axes in terms]
        size_in_bytes = Cost([itemsizes for itemsizes, _ in terms.values()], weights, groups)
        params = size_in_bytes.weighted([floating for _, floating in terms.values()])
        return macs, params, size_in_bytes, tuple(node_name(product.node) for product in products)

    def _factors(self, places: Places, axes: Sequence[Axis]) -> list[Size]:
        """Return the sizes of all factors of axes."""
        return [
            Size(factor.size) if factor.labels is None else places.size(factor.labels)
            for axis in axes
            for factor in axis
        ]

    def _samples(self) -> int:
        """Return the number of samples in the sample shapes: of the first input, on its first axis.

        What a recurrent cell reads at once has time there, and the samples on its second axis.
        """
        for value in self.run.graph.model.graph.inputs:
            shape = self.run.shapes.sizes.get(value.name or "", ())
            if not value.is_initializer() and len(shape) > 1:
                timed = any(use.node.op_type in GATES and use.idx == 0 for use in value.uses())
                return max(shape[1 if timed else 0], 1)
        return 1


class _Consumed:
    """Where contractions consume units: told when a criterion asks, which few do.

    It refers to labels alone: who keeps a group doesn't keep the network.
    """

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._found: list[tuple[str, int, LabelArray, Places]] = []

    def add(self, value: str, axis: int, vector: LabelArray, places: Places) -> None:
        """Note an axis of an activation that is summed over."""
        self._found.append((value, axis, vector, places))

    @cached_property
    def by_group(self) -> list[tuple[Activation, ...]]:
        told: list[list[Activation]] = [[] for _ in range(self._groups)]
        for value, axis, vector, places in self._found:
            for g, indices in places.of(vector):
                told[g].append(Activation(value, axis, indices))
        return [tuple(each) for each in told]


class _Activations(Sequence[Activation]):
    """Those of one group."""

    def __init__(self, consumed: _Consumed, group: int) -> None:
        self._consumed = consumed
        self._group = group

    @overload
    def __getitem__(self, index: int) -> Activation: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Activation, ...]: ...
    def __getitem__(self, index: int | slice) -> Activation | tuple[Activation, ...]:
        return self._consumed.by_group[self._group][index]

    def __len__(self) -> int:
        return len(self._consumed.by_group[self._group])

    def __reduce__(self) -> tuple[type, tuple[tuple[Activation, ...]]]:
        return tuple, (self[:],)


# Those that hold quantized weights stay whole, and the report says so.
LAYERS = frozenset(
    (
        "Attention Conv ConvInteger ConvTranspose DequantizeLinear DynamicQuantizeMatMul Einsum "
        "EmbedLayerNormalization GRU Gather Gemm LSTM MatMul MatMulInteger MatMulIntegerToFloat "
        "MatMulNBits QGemm QLinearConv QLinearMatMul RNN"
    ).split()
)


def layers(graph: Graph) -> Iterator[ir.Node]:
    """Yield the nodes that make units: those with a weight of two axes or more."""
    for node in graph.model.graph:
        # ONNX's own attention has no weights: a constant mask is none.
        if node.op_type not in LAYERS or (node.domain, node.op_type) == ("", "Attention"):
            continue
        value = weight(node)
        if value is not None and value.const_value is not None and len(value.const_value.shape) > 1:
            yield node


def output_axis(run: Interpreter, node: ir.Node) -> Axis:
    """Return the output axis that carries a layer's units."""
    for value in node.outputs:
        axes = run.axes.get(value.name or "", ())
        if value.name and axes:
            marked = [a for a in axes if ax.has_labels(a)]
            return marked[-1] if marked else max(axes, key=ax.size)
    return ()


def _label_arrays(values: Iterable[Axes]) -> list[NDArray[np.int64]]:
    """Return the vectors of labels of all axes of values; those that axes share once."""
    seen: dict[int, NDArray[np.int64]] = {}
    for axes in values:
        for axis in axes:
            for factor in axis:
                if factor.labels is not None:
                    seen[id(factor.labels)] = factor.labels
    return list(seen.values())


def _kind(flags: int) -> Granularity:
    if flags & Kind.HEAD:
        return "head"
    return "head-dim" if flags & Kind.HEAD_DIM else "channel"


def _codes(count: int) -> NDArray[np.uint64]:
    """Numbers of 64 bits whose sums differ for different sets of them, but for bad luck.

    Source: Steele, Lea and Flood 2014, *Fast splittable pseudorandom number generators*, figure 17.
    """
    code = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    code = (code ^ (code >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    code = (code ^ (code >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return code ^ (code >> np.uint64(31))
