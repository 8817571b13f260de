"""Blocks: residual branches, which can go as a whole because what skips them takes their place."""

from __future__ import annotations

import fnmatch
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import onnx_ir as ir

from onnxjl.errors import UsageError
from onnxjl.graph import FLOATING, Graph, subgraphs
from onnxjl.load import Source
from onnxjl.normalize import normalize
from onnxjl.plan import Plan
from onnxjl.structure.groups import Structure, Whole, analyze, layers
from onnxjl.structure.names import node_name

SUMS = frozenset({"Add", "Sum"})

# What may lie on the way that skips a branch, besides one convolution or product: it changes the
# shape of what is skipped, or scales it, but computes nothing of its own.
_MOVING = frozenset("Cast Flatten Identity Reshape Squeeze Transpose Unsqueeze".split())
_PLAIN = _MOVING | frozenset(
    "AveragePool BatchNormalization GlobalAveragePool MaxPool Pad Slice".split()
)
_PROJECTIONS = frozenset({"Conv", "Gemm", "MatMul"})
_WITH_CONSTANT = frozenset({"Add", "Div", "Mul", "Sub"})


@dataclass(frozen=True)
class Block:
    """A residual branch ``f`` of ``y = s(x) + f(x)``, without which the network computes ``s(x)``.

    Parameters
    ----------
    name : what the names of its weights begin with, or else those of its layers' nodes; followed
        by ``/attention`` or ``/mlp`` where a transformer layer has both. The name of its sum where
        that tells no block from others.
    kind : ``"attention"`` where it multiplies activations with each other, else ``"convolution"``
        or ``"mlp"``.
    nodes : names of the nodes that go, in graph order, without the sum.
    sum : name of the node that adds the branch to what skips it; it goes too.
    skip, branch : values that it adds.
    skip_input : position of `skip` among its inputs.
    projection : name of the layer on the way that skips the branch, mostly a convolution that
        changes its shape, if there is one; it stays.
    layers : names of the branch's layers with weights.
    weights : initializers that only the branch uses.
    macs : multiply–accumulates for one sample that go with it.
    params : parameters that go with it.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    sum: str
    skip: str
    branch: str
    skip_input: int
    projection: str | None
    layers: tuple[str, ...]
    weights: tuple[str, ...]
    macs: float
    params: int

    @property
    def reason(self) -> str:
        """Why it can go: what its sum becomes."""
        if self.projection is None:
            return "y = x + f(x) becomes y = x"
        return f"y = p(x) + f(x) becomes y = p(x), p: {self.projection}"

    def matches(self, pattern: str) -> bool:
        """Return whether the block, or a layer or node of it, matches an fnmatch pattern."""
        names = (self.name, *self.layers, *self.nodes, self.sum)
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)

    def __repr__(self) -> str:
        return (
            f"Block({self.name!r}, {self.kind}, {len(self.nodes)} nodes, {self.macs:,.0f} MACs, "
            f"{self.params:,} parameters)"
        )


class Blocks(Sequence[Block]):
    """The blocks of a graph, with the sums that are none.

    Parameters
    ----------
    blocks : in graph order.
    whole : sums of two activations that don't end a block, and why.
    """

    def __init__(self, blocks: Sequence[Block], whole: Sequence[Whole]) -> None:
        self._blocks = tuple(blocks)
        self.whole = tuple(whole)

    @overload
    def __getitem__(self, index: int | str) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Block, ...]: ...
    def __getitem__(self, index: int | str | slice) -> Block | tuple[Block, ...]:
        """Return a block by its number or its name.

        Raises
        ------
        UsageError : there is no such block.
        """
        if not isinstance(index, str):
            return self._blocks[index]
        for block in self._blocks:
            if block.name == index:
                return block
        raise UsageError(
            f"no block is called '{index}'; there are {', '.join(b.name for b in self) or 'none'}"
        )

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)

    def __repr__(self) -> str:
        lines = [f"{len(self)} blocks"]
        width = max((len(block.name) for block in self), default=0)
        lines += [
            f"  {b.name:<{width}}  {b.kind:<11} {b.macs:>15,.0f} MACs {b.params:>12,} parameters"
            f"  {b.reason}"
            for b in self
        ]
        if self.whole:
            count = len(self.whole)
            lines.append("1 other sum stays" if count == 1 else f"{count} other sums stay")
            lines += [f"  {w.layer}: {w.reason}" for w in self.whole]
        return "\n".join(lines)


def blocks(model: Source, *, ignore: Sequence[str] = ()) -> Blocks:
    """Return the residual branches that can go as a whole, and which sums end none.

    A branch ends in a sum of two activations of the same shape. It is a block if all that it
    consists of is used by nothing else, and if the other side of the sum is a value that the branch
    reads, or a projection of one: at most one convolution or product, with a normalization, pooling
    or what only moves elements. Without the branch the sum is the other side.

    A transformer layer has two blocks, its attention and its feed-forward branch; without both the
    layer is gone. A block may lie within another.

    Parameters
    ----------
    model : whatever `load` takes; normalized if it isn't.
    ignore : fnmatch patterns of blocks, layers or nodes to leave out.

    Raises
    ------
    UsageError : a pattern that matches nothing.
    """
    return find(analyze(normalize(model)), ignore=ignore)


def find(structure: Structure, *, ignore: Sequence[str] = ()) -> Blocks:
    """Return the blocks of an analysed graph; see `blocks`."""
    finder = _Finder(structure)
    found: list[Block] = []
    whole: list[Whole] = []
    for node in structure.graph.model.graph:
        if _is_sum(node):
            result = finder.examine(node)
            if isinstance(result, Block):
                found.append(result)
            else:
                whole.append(Whole(structure.names[node], node_name(node), result))
    named = _named(found)
    offered = []
    for pattern in ignore:
        if not any(block.matches(pattern) for block in named):
            raise UsageError(f"no block, layer or node of a block matches '{pattern}'")
    for block in named:
        matching = [pattern for pattern in ignore if block.matches(pattern)]
        if matching:
            whole.append(Whole(block.name, block.sum, f"ignored by '{matching[0]}'"))
        else:
            offered.append(block)
    return Blocks(offered, whole)


@dataclass(frozen=True)
class Costs:
    """What a graph costs without some of its nodes.

    Parameters
    ----------
    structure : of the whole graph.
    """

    structure: Structure
    _macs: dict[str, float] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        terms = zip(
            self.structure.terms, self.structure.macs.each(self.structure.sizes), strict=True
        )
        for name, macs in terms:
            self._macs[name] = self._macs.get(name, 0.0) + float(macs)

    def without(self, nodes: Iterable[str]) -> dict[str, float]:
        """Return multiply–accumulates, parameters and bytes that are left, by budget's name."""
        gone = frozenset(nodes)
        kept_macs = sum(macs for name, macs in self._macs.items() if name not in gone)
        params, size = 0, 0.0
        for tensor in self._tensors(only_used_by=gone):
            size += tensor.size * tensor.dtype.itemsize
            params += tensor.size if tensor.dtype in FLOATING else 0
        sizes = self.structure.sizes
        return {
            "macs": float(kept_macs),
            "params": self.structure.params.total(sizes) - params,
            "bytes": self.structure.bytes.total(sizes) - size,
        }

    def _tensors(self, *, only_used_by: frozenset[str]) -> Iterator[ir.TensorProtocol]:
        for value in self.structure.graph.model.graph.initializers.values():
            if value.const_value is not None and _only_in(value, only_used_by):
                yield value.const_value


def removed_nodes(graph: Graph, chosen: Iterable[Block]) -> tuple[str, ...]:
    """Return the names of all nodes that go with some blocks, in graph order.

    Besides those of the blocks these are nodes that only several blocks together use.
    """
    gone = {name for block in chosen for name in (*block.nodes, block.sum)}
    skips = {block.skip for block in chosen}
    nodes = list(graph.model.graph)
    for node in reversed(nodes):
        if node_name(node) not in gone and all(
            value.name not in skips and value.uses() and _only_in(value, gone)
            for value in node.outputs
        ):
            gone.add(node_name(node))
    return tuple(name for node in nodes if (name := node_name(node)) in gone)


def plan_without(
    structure: Structure, chosen: Sequence[Block], *, request: Mapping[str, Any] | None = None
) -> Plan:
    """Return the edits that take some blocks out.

    Parameters
    ----------
    chosen : the blocks that go.
    request : what was asked for, noted in the plan.
    """
    return Plan(
        kept={},
        removed_nodes=removed_nodes(structure.graph, chosen),
        stand_ins={block.sum: block.skip_input for block in chosen},
        source_graph=structure.graph,
        request=dict(request or {}),
        sizes={},
    )


def _is_sum(node: ir.Node) -> bool:
    """Return whether a node adds two real activations."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in SUMS or len(node.inputs) != 2:
        return False
    dtype = node.outputs[0].dtype
    return (dtype is None or dtype.is_floating_point()) and all(
        value is not None and not value.is_initializer() for value in node.inputs
    )


def _only_in(value: ir.Value, gone: frozenset[str] | set[str]) -> bool:
    """Return whether a value is used, and by nodes of these names only."""
    uses = value.uses()
    return (
        bool(uses)
        and not value.is_graph_output()
        and not value.is_graph_input()
        and all(node_name(use.node) in gone for use in uses)
    )


class _Finder:
    """Tells for one sum after the other whether it ends a block."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.sizes = structure.run.shapes.sizes
        self.position = {node: i for i, node in enumerate(structure.graph.model.graph)}
        self.costs = Costs(structure)
        self.whole = self.costs.without(())
        self.layers = {*layers(structure.graph)}

    def examine(self, node: ir.Node) -> Block | str:
        """Return the block that a sum ends, or why it ends none."""
        first, second = node.inputs
        assert first is not None
        assert second is not None
        if node.outputs[0].is_graph_output():
            return "its sum is an output of the network"
        if not self._same_shape(first, second):
            return "it adds values of different shapes"
        found: list[tuple[set[ir.Node], int, ir.Node | None]] = []
        for branch, skip, position in ((first, second, 1), (second, first, 0)):
            inside = self._used_only_by(node, branch)
            if not inside & self.layers:
                continue
            skipped = self._skipped(skip, _read(inside))
            if skipped is not None:
                found.append((inside, position, skipped[0]))
        if not found:
            return "neither side of its sum skips the other, which nothing else uses"
        if len(found) > 1:
            return "either side of its sum could be what skips the other"
        return self._described(node, *found[0])

    def _same_shape(self, a: ir.Value, b: ir.Value) -> bool:
        """Return whether two values have one shape, and not by the chance of a batch of one."""
        sizes = [self.sizes.get(value.name or "") for value in (a, b)]
        if sizes[0] is None or sizes[0] != sizes[1]:
            return False
        return all(
            (isinstance(i, int) and isinstance(j, int)) or 1 not in (i, j)
            for i, j in zip(a.shape or (), b.shape or (), strict=False)
        )

    def _used_only_by(self, sum_: ir.Node, value: ir.Value) -> set[ir.Node]:
        """Return the nodes that nothing needs but a value that only a sum uses."""
        inside: set[ir.Node] = set()
        queue: list[tuple[int, ir.Node]] = []
        queued: set[ir.Node] = set()

        def look_at(candidate: ir.Value | None) -> None:
            producer = None if candidate is None else candidate.producer()
            if producer in self.position and producer not in queued:
                assert producer is not None
                queued.add(producer)
                # From the last to the first, so that all users are known.
                heapq.heappush(queue, (-self.position[producer], producer))

        look_at(value)
        while queue:
            _, node = heapq.heappop(queue)
            users = [use.node for output in node.outputs for use in output.uses()]
            if (
                not subgraphs(node)
                and not any(output.is_graph_output() for output in node.outputs)
                and all(user is sum_ or user in inside for user in users)
                and (value.producer() is node or sum_ not in users)
            ):
                inside.add(node)
                for read in node.inputs:
                    look_at(read)
        return inside

    def _skipped(self, skip: ir.Value, read: set[ir.Value]) -> tuple[ir.Node | None] | None:
        """Return the projection (or None) that leads from what a branch reads to a sum.

        None if no plain way leads there.
        """
        projection: ir.Node | None = None
        contracted = False
        value = skip
        while value not in read:
            node = value.producer()
            if node is None or node.domain not in ("", "ai.onnx"):
                return None
            data = [v for v in node.inputs if v is not None and not v.is_initializer()]
            if len(data) != 1:
                return None
            if node.op_type in _PROJECTIONS:
                if contracted:
                    return None
                contracted, projection = True, node
            elif node.op_type not in _PLAIN and node.op_type not in _WITH_CONSTANT:
                return None
            elif projection is None and node.op_type not in _MOVING:
                projection = node
            value = data[0]
        return (projection,)

    def _described(
        self, sum_: ir.Node, inside: set[ir.Node], position: int, projection: ir.Node | None
    ) -> Block:
        nodes = sorted(inside, key=self.position.__getitem__)
        names = self.structure.names
        gone = frozenset(map(node_name, nodes))
        left = self.costs.without(gone)
        weighted = [node for node in nodes if node in self.layers]
        weights = tuple(
            name
            for name, value in self.structure.graph.model.graph.initializers.items()
            if value.dtype in FLOATING and _only_in(value, gone)
        )
        skip, branch = sum_.inputs[position], sum_.inputs[1 - position]
        assert skip is not None
        assert branch is not None
        return Block(
            # Exporters give folded weights new names without dots, and constants names of nodes.
            name=_common_name([name for name in weights if "." in name and "/" not in name])
            or _common_name([node_name(node) for node in weighted]),
            kind=self._kind(nodes),
            nodes=tuple(map(node_name, nodes)),
            sum=node_name(sum_),
            skip=skip.name or "",
            branch=branch.name or "",
            skip_input=position,
            projection=None if projection is None else names[projection],
            layers=tuple(names[node] for node in weighted),
            weights=weights,
            macs=self.whole["macs"] - left["macs"],
            params=round(self.whole["params"] - left["params"]),
        )

    def _kind(self, nodes: Sequence[ir.Node]) -> str:
        for node in nodes:
            data = [v for v in node.inputs[:2] if v is not None and not v.is_initializer()]
            attends = node.op_type in ("Attention", "MultiHeadAttention")
            if attends or (node.op_type in ("MatMul", "Einsum") and len(data) == 2):
                return "attention"
        convolved = any(
            node.op_type.startswith("Conv")
            and any(size > 1 for size in node.attributes.get_ints("kernel_shape") or ())
            for node in nodes
        )
        return "convolution" if convolved else "mlp"


def _read(inside: set[ir.Node]) -> set[ir.Value]:
    """Return the activations that nodes read from outside."""
    return {
        value
        for node in inside
        for value in node.inputs
        if value is not None and not value.is_initializer() and value.producer() not in inside
    }


def _common_name(names: Sequence[str]) -> str:
    """Return what names have in common, up to a dot or slash; empty if there is nothing."""
    parts = [re.split(r"(?<=[./])", name)[:-1] for name in names]
    common = []
    for each in zip(*parts, strict=False):
        if len({*each}) > 1:
            break
        common.append(each[0])
    return "".join(common).rstrip("./")


def _named(found: Sequence[Block]) -> list[Block]:
    """Return the blocks with names that differ."""
    several = Counter(block.name for block in found)
    names = [
        f"{block.name}/{block.kind}" if block.name and several[block.name] > 1 else block.name
        for block in found
    ]
    several = Counter(names)
    return [
        replace(block, name=name if name and several[name] == 1 else block.sum)
        for name, block in zip(names, found, strict=True)
    ]
