"""What pruning each group alone does to the outputs, for the scope that allocates by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxjl import session
from onnxjl.data import batches
from onnxjl.errors import DataError
from onnxjl.evaluate import squared_distance
from onnxjl.graph import Graph
from onnxjl.inputs import random_inputs
from onnxjl.progress import Progress
from onnxjl.structure.groups import Structure

AMOUNTS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of a group's units that are taken to measure; the last leaves what it has to keep."""

SAMPLES = 64
"""Samples that are measured on, at most, but for the last batch."""

_LARGEST = 1e30  # for outputs that aren't finite

Keep = list[NDArray[np.bool_]]


@dataclass(frozen=True)
class GroupErrors:
    """What was measured of a group.

    Parameters
    ----------
    kept : (k,) int, units kept, ascending; the last is all of them.
    errors : (k,) float, the relative L2 distance of the outputs from the original's.
    """

    kept: NDArray[np.int64]
    errors: NDArray[np.float64]

    def curve(self) -> NDArray[np.float64]:
        """Return the error with 0, 1, … units kept, (units + 1,): lines between what was measured.

        It never grows with the units kept: noise is taken out from the right.
        """
        falling = np.maximum.accumulate(self.errors[::-1])[::-1]
        curve: NDArray[np.float64] = np.interp(np.arange(self.kept[-1] + 1), self.kept, falling)
        return curve


def measure_group_errors(
    structure: Structure,
    offered: Sequence[int],
    scores: Sequence[NDArray[np.float64]],
    cut: Callable[[Keep], Graph],
    data: Any = None,
    *,
    min_units: int = 1,
) -> dict[int, GroupErrors]:
    """Prune each group alone, its least important units first, and measure the outputs.

    Parameters
    ----------
    structure : whose groups are pruned.
    offered : numbers of the groups that may be pruned.
    scores : for each of them, (units,) float, larger is more important.
    cut : makes the smaller network from the units that stay.
    data : inputs, of which the first `SAMPLES` are taken, see `onnxjl.data`; random ones if None.
    min_units : units that every group keeps.

    Returns
    -------
    Number of each group -> what was measured.

    Raises
    ------
    DataError : the data don't fit, or there is no floating output.
    ModelError : onnxruntime can't run a network.
    """
    graph = structure.graph
    feeds = _first(graph, random_inputs(graph) if data is None else data)
    original = session.open_session(graph, optimized=True)
    before = [session.run(original, feed) for feed in feeds]

    def error(kept: Keep) -> float:
        smaller = session.open_session(cut(kept), optimized=True)
        distance = size = 0.0
        for feed, outputs in zip(feeds, before, strict=True):
            found = squared_distance(outputs, session.run(smaller, feed))
            if found is None:
                raise DataError("scope='sensitivity' needs floating outputs of a fixed shape")
            distance, size = distance + found[0], size + found[1]
        relative = float(np.sqrt(distance / max(size, np.finfo(np.float64).tiny)))
        return relative if relative < _LARGEST else _LARGEST

    whole = [np.ones(group.size, dtype=bool) for group in structure.groups]
    measured: dict[int, GroupErrors] = {}
    with Progress("measuring sensitivity", total=len(offered)) as bar:
        for number, score in zip(offered, scores, strict=True):
            group = structure.groups[number]
            bar.step(group.name)
            least = min(min_units, group.size)
            widths = [max(int(group.size * (1 - amount)), least) for amount in AMOUNTS]
            points = {group.size: 0.0}
            for count in sorted(set(widths) - {group.size}):
                keep = list(whole)
                keep[number] = _best(score, count)
                points[count] = error(keep)
            kept = sorted(points)
            measured[number] = GroupErrors(
                np.array(kept, dtype=np.int64), np.array([points[count] for count in kept])
            )
    return measured


def _first(graph: Graph, data: Any) -> list[Mapping[str, np.ndarray]]:
    """The first batches of data, until there are samples enough."""
    feeds: list[Mapping[str, np.ndarray]] = []
    samples = 0
    for feed in batches(data, graph, batch_size=SAMPLES):
        feeds.append(feed)
        first = next(iter(feed.values()))
        samples += len(first) if first.ndim else 1
        if samples >= SAMPLES:
            break
    return feeds


def _best(score: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """The most important units, (units,) bool; of equal ones the first stay."""
    mask = np.zeros(len(score), dtype=bool)
    mask[np.argsort(-score, kind="stable")[:count]] = True
    return mask
