"""The latency budget: how many MACs to keep, for onnxruntime to take a share of the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxjl.budget import Budget, Request, least_share, select_and_tell
from onnxjl.errors import BudgetError
from onnxjl.graph import Graph
from onnxjl.inputs import random_inputs
from onnxjl.latency import measure_pair
from onnxjl.progress import Progress
from onnxjl.structure.groups import Structure

Keep = list[NDArray[np.bool_]]
Race = Callable[[float], tuple[float, float]]
"""From a share of MACs to the milliseconds of the original and of the smaller network."""

SECONDS = 1.0
"""How long a candidate and the original are measured together."""

_TRIALS = 10
_NEAR = 0.03  # as much below the budget is near enough
_NARROW = 0.01  # shares of MACs closer than this aren't told apart


@dataclass(frozen=True)
class Trial:
    """A candidate that was measured.

    Parameters
    ----------
    macs : share of the MACs that it may keep.
    before_ms, after_ms : medians of the original's and the candidate's latency, in milliseconds.
    """

    macs: float
    before_ms: float
    after_ms: float

    @property
    def ratio(self) -> float:
        """Share of the latency that the candidate keeps."""
        return self.after_ms / self.before_ms


def select_by_latency(
    structure: Structure,
    offered: Sequence[int],
    scores: Sequence[NDArray[np.float64]],
    request: Request,
    cut: Callable[[Keep], Graph],
    inputs: Mapping[str, np.ndarray] | None = None,
    errors: Mapping[int, NDArray[np.float64]] | None = None,
) -> tuple[Keep, Trial, dict[str, Any]]:
    """Choose the units that stay, so that the network keeps a share of its latency.

    Candidates with different shares of the MACs are cut and measured in onnxruntime, on one thread,
    by turns with the original.

    Parameters
    ----------
    structure, offered, scores, errors : as for `onnxjl.budget.select`.
    request : the share of the latency to keep, and how units are chosen; further budgets hold for
        every candidate.
    cut : makes the smaller network from the units that stay.
    inputs : what to measure with; random ones if not given.

    Returns
    -------
    For every group of the structure, (units,) bool, what was measured with them, and what
    `onnxjl.budget.select_and_tell` says of them.

    Raises
    ------
    BudgetError : the budget can't be met (says how far it can go), or nothing would change.
    DataError, ModelError : the network can't be run.
    """
    assert request.fraction is not None
    graph = structure.graph
    feeds = random_inputs(graph) if inputs is None else inputs

    further: dict[Budget, float] = dict(request.further)
    further.pop("macs", None)
    most = request.further.get("macs", 1.0)

    # A solver that runs out of time may not find the same again: what was measured is kept.
    @cache
    def chosen(share: float) -> tuple[Keep, dict[str, Any]]:
        asked = replace(request, budget="macs", fraction=share, further=further)
        return select_and_tell(structure, offered, scores, asked, errors)

    def race(share: float) -> tuple[float, float]:
        keep, _ = chosen(share)
        before, after = measure_pair(graph, cut(keep), feeds, seconds=SECONDS)
        return before.median_ms, after.median_ms

    floor = least_share(structure, offered, scores, request)
    trial = search(race, request.fraction, floor, most)
    keep, facts = chosen(trial.macs)
    return keep, trial, facts


def search(race: Race, fraction: float, floor: float, most: float = 1.0) -> Trial:
    """Find the largest share of MACs whose network is fast enough.

    Parameters
    ----------
    race : measures a candidate.
    fraction : of the original's latency to keep, in (0, 1).
    floor : the smallest share of MACs that there is, in [0, 1].
    most : the largest share of MACs that other budgets leave, in (0, 1].

    Returns
    -------
    The slowest candidate within the budget that was found.

    Raises
    ------
    BudgetError : even the smallest candidate is too slow.
    """
    if floor > 1 - _NARROW:
        raise BudgetError(
            f"latency={fraction} can't be met: at least {floor:.1%} of the MACs stay in this "
            "network; `groups` tells what is left whole and why"
        )
    lowest = floor * (1 + 1e-9) + 1e-9
    slow: Trial | None = None
    fast: Trial | None = None
    share = min(max(fraction, lowest), most)
    with Progress("measuring candidates") as bar:
        for _ in range(_TRIALS):
            bar.step(f"{share:.0%} of the MACs")
            trial = Trial(share, *race(share))
            if trial.ratio <= fraction:
                fast = trial
                if trial.ratio >= fraction * (1 - _NEAR):
                    break
            else:
                slow = trial
                if share <= lowest:
                    break
            if fast is not None and slow is not None and slow.macs - fast.macs <= _NARROW:
                break
            share = min(_next(fast, slow, fraction, lowest), most)
            if share in {each.macs for each in (fast, slow) if each is not None}:
                break
    if fast is None:
        assert slow is not None
        least = np.ceil(100 * slow.ratio - 1e-6) / 100
        raise BudgetError(
            f"latency={fraction} can't be met: with {slow.macs:.1%} of its MACs, as few as were "
            f"tried, this network still takes {slow.after_ms:.3g} ms of {slow.before_ms:.3g} "
            f"({least:.2f}); `groups` tells what is left whole and why"
        )
    return fast


def _next(fast: Trial | None, slow: Trial | None, fraction: float, lowest: float) -> float:
    """The share of MACs to try next."""
    aim = fraction * (1 - _NEAR / 2)
    if fast is None or slow is None:
        # As if latency were in proportion to the MACs.
        only = fast or slow
        assert only is not None
        share = only.macs * aim / only.ratio
        if fast is not None:
            return min(share, (1 + only.macs) / 2)
        return max(share, lowest)
    # On the line between the two; not nearer to an end than a tenth, which noise may have moved.
    place = (aim - fast.ratio) / max(slow.ratio - fast.ratio, 1e-12)
    return fast.macs + min(max(place, 0.1), 0.9) * (slow.macs - fast.macs)
