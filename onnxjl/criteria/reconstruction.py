"""Reconstruction: what is lost by a unit when the layers that read it are solved anew without it.

A unit that the others can stand in for costs nothing, however large its weights are; this is the
measure for what `onnxjl.recovery` does afterwards. Units are eliminated one by one from the
least-squares problem of each layer that reads them, the one that costs least first; its score is
what it cost then.

Source: the structured form of the optimal brain surgeon, Kurtic et al. 2023, "ZipLM:
Inference-Aware Structured Pruning of Language Models", eq. 2 and 3; for each layer greedily as
in Luo et al. 2017, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression",
section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxjl import session
from onnxjl.criteria.activation import Place, watched
from onnxjl.criteria.magnitude import stand_in
from onnxjl.criteria.registry import register
from onnxjl.criteria.weights import GroupWeights, Scoring
from onnxjl.data import batches
from onnxjl.errors import DataError, UsageError
from onnxjl.graph import Graph
from onnxjl.progress import progress
from onnxjl.recovery.layers import affine, entered_sum, solvable
from onnxjl.recovery.matrices import CONVOLUTIONS, Float, array_of, choose, matrix_of
from onnxjl.structure import Activation, Group

# Added to the diagonal of a covariance, relative to its mean: what `recovery` pulls with.
RIDGE = 1e-4
# Positions of each sample that count, at random: images have more of them than are needed.
POSITIONS = 64
# Samples whose activations are held at once.
_SAMPLES = 8
# Bytes of covariances that are held at once; more are measured in another pass over the data.
_BYTES = 1 << 30
# Unknowns of one least-squares problem. A flattened image has more, and is solved pixel by pixel.
_UNKNOWNS = 4096
# Units that are taken out before matrices are brought up to date.
_PENDING = 64

Indices = NDArray[np.int64]


@register(
    "reconstruction",
    source="Kurtic et al. 2023, ZipLM: Inference-Aware Structured Pruning of Language Models, "
    "eq. 2 and 3",
    needs_data=True,
    normalization="none",
)
def reconstruction(group: Group, weights: GroupWeights) -> np.ndarray:
    """Error that is left when the layers reading a unit are solved anew without it.

    It is the squared error of a layer's output, relative to the variance of that output or of the
    sum that it enters, summed over the layers that read the unit. Convolutions are solved as if
    each position of their kernel had channels of its own.

    Returns
    -------
    (units,) float64

    Raises
    ------
    UsageError : no data are given.
    DataError : the data don't fit, or an activation isn't finite.
    """
    scoring = weights.scoring
    if "reconstruction" not in scoring.computed:
        scoring.computed["reconstruction"] = _measure_all(scoring)
    scores: Mapping[Group, np.ndarray] = scoring.computed["reconstruction"]
    if group in scores:
        return scores[group]
    known = np.concatenate(list(scores.values())) if scores else np.ones(1)
    return stand_in(group, weights, float(known.mean()))


@dataclass(frozen=True, eq=False)
class Block:
    """Indices of an activation that layers contract together.

    Parameters
    ----------
    place : the activation's name and axis.
    indices : (rows,) of that axis.
    """

    place: Place
    indices: Indices


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer as the reader of a block.

    Parameters
    ----------
    block : what it reads.
    node : the layer.
    weight : (rows, columns) float64, scaled by batch normalizations that follow.
    total : the name of the sum that its output enters, or None.
    """

    block: Block
    node: ir.Node
    weight: Float
    total: str | None


class Elimination:
    """A least-squares problem that loses its unknowns, unit by unit.

    Parameters
    ----------
    inverse : (rows, rows), the inverse of the covariance of the unknowns, or the part of it that
        belongs to these rows.
    weight : (rows, columns), the solution with all unknowns.
    units : (rows,), the unit that each row goes with.
    """

    def __init__(self, inverse: Float, weight: Float, units: Indices) -> None:
        if weight.shape[1] > len(weight):
            # Only products of rows count, and these are the same for fewer columns.
            triangle: Float = np.linalg.qr(weight.T).R
            weight = triangle.T
        self._inverse, self._weight, self._units = inverse.copy(), weight.copy(), units
        self._rows = {int(u): np.flatnonzero(units == u) for u in np.unique(units)}
        self._single = len(self._rows) == len(units)
        self._columns: list[Float] = []
        self._solutions: list[Float] = []
        self._norms: Float = np.square(self._weight).sum(axis=1)
        self._diagonal: Float = self._inverse.diagonal().copy()

    def costs(self, units: int) -> Float:
        """Return for each of `units` units the squared error that its removal adds."""
        found = np.zeros(units)
        if self._single:
            found[self._units] = self._norms / self._diagonal
            return found
        for unit, rows in self._rows.items():
            part = self._weight[rows]
            found[unit] = np.sum(part * np.linalg.solve(self._inverse[np.ix_(rows, rows)], part))
        return found

    def remove(self, unit: int) -> None:
        """Take a unit out, and solve for the others."""
        rows = self._rows.pop(unit, None)
        if rows is None:
            return
        if self._single:
            self._remove_row(int(rows[0]))
            return
        part = np.linalg.solve(self._inverse[np.ix_(rows, rows)], self._inverse[rows])
        self._weight -= part.T @ self._weight[rows]
        self._inverse -= self._inverse[:, rows] @ part
        # What is out stays as it is from here on.
        self._inverse[rows] = 0
        self._inverse[:, rows] = 0
        self._inverse[rows, rows] = 1
        self._weight[rows] = 0

    def _remove_row(self, row: int) -> None:
        """Take out a unit of one row; matrices follow later, norms and diagonal at once."""
        pivot = self._diagonal[row]
        column, solution = self._inverse[:, row].copy(), self._weight[row].copy()
        products = 0.0
        if self._columns:
            columns, solutions = np.array(self._columns), np.array(self._solutions)
            column -= columns[:, row] @ columns
            solution -= columns[:, row] @ solutions
            products = (solutions @ solution) @ columns
        products = self._weight @ solution - products
        step = column / pivot
        self._norms += step * (step * (solution @ solution) - 2 * products)
        self._diagonal -= column * step
        self._columns.append(column / np.sqrt(pivot))
        self._solutions.append(solution / np.sqrt(pivot))
        if len(self._columns) == _PENDING:
            self._refresh()
        self._norms[row], self._diagonal[row] = 0, 1
        self._norms = np.maximum(self._norms, 0)
        self._diagonal = np.maximum(self._diagonal, np.finfo(np.float64).tiny)

    def _refresh(self) -> None:
        """Bring the matrices up to date."""
        if self._columns:
            columns = np.array(self._columns)
            self._weight -= columns.T @ np.array(self._solutions)
            self._inverse -= columns.T @ columns
            self._columns, self._solutions = [], []
        self._norms = np.square(self._weight).sum(axis=1)
        self._diagonal = self._inverse.diagonal().copy()


def eliminated(problems: Sequence[Elimination], units: int) -> Float:
    """Take out all units, the one that costs least first.

    Parameters
    ----------
    problems : those that the units are unknowns of.
    units : their number.

    Returns
    -------
    (units,) float64, what each cost when it went, at least as much as those before it.
    """
    scores, left, last = np.zeros(units), np.ones(units, dtype=bool), 0.0
    for _ in range(units):
        costs = np.where(left, sum(problem.costs(units) for problem in problems), np.inf)
        unit = int(np.argmin(costs))
        last = max(last, float(costs[unit]))
        scores[unit], left[unit] = last, False
        for problem in problems:
            problem.remove(unit)
    return scores


def _measure_all(scoring: Scoring) -> dict[Group, np.ndarray]:
    """Score every group that a layer reads which can be solved."""
    if scoring.data is None:
        raise UsageError(
            "criterion 'reconstruction' is measured on data: give some (data=, --data FILE.npz)"
        )
    blocks = _Blocks(scoring.graph)
    read = {g: blocks.readers(GroupWeights(scoring, g).activations) for g in scoring.groups}
    read = {group: readers for group, readers in read.items() if readers}
    scores: dict[Group, np.ndarray] = {}
    for chosen in _passes(read):
        needed = list(dict.fromkeys(reader.block for group in chosen for reader in read[group]))
        totals = {r.total: r.node for group in chosen for r in read[group] if r.total is not None}
        moments = Moments(scoring.graph, needed, totals, scoring.data)
        inverses = {block: _inverse(moments.covariances[block]) for block in needed}
        for group in progress(chosen, "eliminating units"):
            problems = list(_problems(group, read[group], moments, inverses))
            scores[group] = eliminated(problems, group.size)
    return scores


def _problems(
    group: Group,
    readers: Sequence[Reader],
    moments: Moments,
    inverses: Mapping[Block, Float],
) -> Iterator[Elimination]:
    """The least-squares problems that a group's units are unknowns of: one for each block."""
    variances: dict[ir.Node, float] = {}
    for reader in readers:
        outputs = moments.covariances[reader.block] @ reader.weight
        own = float(np.sum(reader.weight * outputs))
        variances[reader.node] = variances.get(reader.node, 0.0) + own
    for reader in readers:
        total = moments.variances.get(reader.total or "", 0.0)
        variances[reader.node] = max(variances[reader.node], total, 1e-30)
    for block in dict.fromkeys(reader.block for reader in readers):
        weights = [
            reader.weight / np.sqrt(variances[reader.node])
            for reader in readers
            if reader.block is block
        ]
        units = np.full(int(block.indices.max()) + 1, -1)
        for activation in group.activations:
            if (activation.value, activation.axis) == block.place:
                for unit, indices in enumerate(activation.indices):
                    units[indices[indices < len(units)]] = unit
        rows = np.flatnonzero(units[block.indices] >= 0)
        yield Elimination(
            inverses[block][np.ix_(rows, rows)],
            np.concatenate(weights, axis=1)[rows],
            units[block.indices][rows],
        )


def _inverse(covariance: Float) -> Float:
    size = len(covariance)
    # Unknowns that never vary cost nothing: any pull will do.
    ridge = max(RIDGE * float(np.trace(covariance)) / size, 1e-12)
    return np.linalg.inv(covariance + ridge * np.eye(size)).astype(np.float64)


def _passes(read: Mapping[Group, Sequence[Reader]]) -> Iterator[list[Group]]:
    """Groups whose covariances fit into memory together."""
    chosen: list[Group] = []
    held: set[Block] = set()
    for group, readers in read.items():
        blocks = {reader.block for reader in readers}
        if chosen and sum(8 * len(b.indices) ** 2 for b in held | blocks) > _BYTES:
            yield chosen
            chosen, held = [], set()
        chosen.append(group)
        held |= blocks
    if chosen:
        yield chosen


class _Blocks:
    """Who reads what in a graph; each block is one object, whichever group asks."""

    def __init__(self, graph: Graph) -> None:
        self._layers: dict[str, list[ir.Node]] = {}
        for node in graph.model.graph:
            if solvable(node):
                value = node.inputs[0]
                assert value is not None
                self._layers.setdefault(value.name or "", []).append(node)
        self._blocks: dict[tuple[Place, bytes], Block] = {}

    def readers(self, activations: Sequence[Activation]) -> list[Reader]:
        """Return the layers that read a group's units, block by block."""
        found: list[Reader] = []
        places = dict.fromkeys((a.value, a.axis) for a in activations)
        for value, axis in places:
            of_it = [a for a in activations if (a.value, a.axis) == (value, axis)]
            for node in self._layers.get(value, []):
                source = node.inputs[0]
                rank = None if source is None or source.shape is None else len(source.shape)
                if axis == (1 if node.op_type in CONVOLUTIONS or rank is None else rank - 1):
                    found += self._parts(node, (value, axis), of_it)
        return found

    def _parts(
        self, node: ir.Node, place: Place, activations: Sequence[Activation]
    ) -> Iterator[Reader]:
        """A layer as reader of each block of it that holds units."""
        total, _, after = entered_sum(node)
        name = None if total is None else total.outputs[0].name
        weight, groups = _rows(node, affine(after)[0])
        size = len(weight)
        if groups == size:
            return  # depthwise: nothing else can stand in, and the output goes with the unit
        several = max(a.indices.shape[1] for a in activations)
        if groups > 1:
            parts = list(np.arange(size).reshape(groups, -1))
        elif several > 1 and size > _UNKNOWNS:
            parts = [a.indices[:, k] for a in activations for k in range(a.indices.shape[1])]
        else:
            parts = [np.arange(size)]
        used = np.unique(np.concatenate([a.indices.reshape(-1) for a in activations]))
        for part in parts:
            if np.isin(part, used).any():
                key = place, part.tobytes()
                block = self._blocks.setdefault(key, Block(place, part))
                yield Reader(block, node, weight[part], name)


def _rows(node: ir.Node, scale: Float | float) -> tuple[Float, int]:
    """A layer's weight as (inputs, outputs · places of the kernel), and its number of groups."""
    if node.op_type != "Conv":
        weight = matrix_of(node).read()[0]
        places = weight.shape[1] // np.size(scale) if np.ndim(scale) else 1
        return weight * np.repeat(scale, places), 1
    weight = array_of(node.inputs[1])
    groups = node.attributes.get_int("group", 1)
    weight = weight.reshape(len(weight), weight.shape[1], -1)
    weight = weight * np.broadcast_to(scale, len(weight))[:, None, None]
    weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(0, 2, 1, 3)
    return weight.reshape(weight.shape[0] * weight.shape[1], -1), groups


class Moments:
    """Covariances of blocks and variances of sums, in one pass over the data.

    Parameters
    ----------
    graph : the graph that has the values.
    blocks : what to take covariances of.
    totals : name of a sum -> a layer that enters it.
    data : see `onnxjl.data`.

    Raises
    ------
    DataError : the data don't fit, or an activation isn't finite.
    """

    def __init__(
        self, graph: Graph, blocks: Sequence[Block], totals: Mapping[str, ir.Node], data: object
    ) -> None:
        axes = {name: 1 if node.op_type in CONVOLUTIONS else -1 for name, node in totals.items()}
        names = list(dict.fromkeys([*(block.place[0] for block in blocks), *axes]))
        opened = session.open_session(watched(graph, names))
        random = np.random.default_rng(0)
        counts: dict[object, int] = {}
        sums: dict[object, Float] = {}
        squares: dict[object, Float] = {}
        of_place: dict[Place, list[Block]] = {}
        for block in blocks:
            of_place.setdefault(block.place, []).append(block)
        for feeds in progress(batches(data, graph, batch_size=_SAMPLES), "measuring activations"):
            results = session.run(opened, feeds)
            for (name, axis), those in of_place.items():
                rows = _sampled(results[name], axis, random)
                if not np.isfinite(rows).all():
                    raise DataError(f"on these data the activation '{name}' is NaN or infinite")
                for block in those:
                    part = rows[:, block.indices]
                    counts[block] = counts.get(block, 0) + len(part)
                    sums[block] = sums.get(block, 0.0) + part.sum(axis=0)
                    squares[block] = squares.get(block, 0.0) + part.T @ part
            for name, axis in axes.items():
                rows = _sampled(results[name], axis, random)
                counts[name] = counts.get(name, 0) + len(rows)
                sums[name] = sums.get(name, 0.0) + rows.sum(axis=0)
                squares[name] = squares.get(name, 0.0) + np.square(rows).sum(axis=0)
        means = {key: total / counts[key] for key, total in sums.items()}
        self.covariances = {
            block: squares[block] / counts[block] - np.outer(means[block], means[block])
            for block in blocks
        }
        self.variances = {
            name: float(np.sum(squares[name] / counts[name] - np.square(means[name])))
            for name in axes
        }


def _sampled(array: np.ndarray, axis: int, random: np.random.Generator) -> Float:
    """Some rows of an activation, the axis last."""
    moved = np.moveaxis(array, axis, -1)
    rows = moved.reshape(-1, moved.shape[-1])
    chosen = choose(len(rows), POSITIONS * len(array), random)
    return rows[chosen].astype(np.float64)
