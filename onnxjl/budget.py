"""Budgets: which units go, so that the cost is met and no more goes than must."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxjl.errors import BudgetError, UsageError
from onnxjl.structure.cost import Cost, Counts, Size, Tally
from onnxjl.structure.groups import Group, Structure

Scope = Literal["global", "local"]
SCOPES: tuple[Scope, ...] = ("global", "local")
Budget = Literal["amount", "macs", "params", "bytes", "latency"]
BUDGETS: tuple[Budget, ...] = ("amount", "macs", "params", "bytes", "latency")
AUTO: Literal["auto"] = "auto"
"""The step that is measured on this machine (`onnxjl.choice`)."""

# Budgets are fractions that users write in decimals: 0.3 of 10 units is 3 of them.
_SLACK = 1e-9


@dataclass(frozen=True)
class Request:
    """How much is to go, and how it is spread.

    Parameters
    ----------
    budget : ``"amount"`` (fraction of prunable units removed), ``"macs"``, ``"params"``,
        ``"bytes"`` or ``"latency"`` (fraction kept); None where only `amount_for` asks.
    fraction : in (0, 1).
    scope : ``"global"`` ranks all units together, ``"local"`` takes the same share of each group.
    amount_for : fnmatch pattern of layers or nodes, or one group as `alone` names it -> fraction
        removed of their groups.
    round_to : widths become multiples of this, which may be "auto"; a group that is no multiple may
        also stay whole. Of units that are several indices wide, such as heads, fewer make a step.
    min_units : units that every group keeps.
    """

    budget: Budget | None
    fraction: float | None
    scope: Scope = "global"
    amount_for: Mapping[str, float] | None = None
    round_to: int | Literal["auto"] = 1
    min_units: int = 1

    @property
    def step(self) -> int:
        """What widths are multiples of, once it is known."""
        assert self.round_to != AUTO
        return self.round_to

    def __post_init__(self) -> None:
        if self.budget is None and not self.amount_for:
            raise UsageError(f"give a budget: one of {', '.join(BUDGETS)}")
        if self.scope not in SCOPES:
            raise UsageError(f"no scope '{self.scope}'; there are {', '.join(SCOPES)}")
        fractions: dict[str, object] = dict(self.amount_for or {})
        if self.budget is not None:
            fractions[self.budget] = self.fraction
        for name, value in fractions.items():
            if not is_fraction(value):
                raise UsageError(f"{name} must be a fraction between 0 and 1, not {value!r}")
        for name, number in (("round_to", self.round_to), ("min_units", self.min_units)):
            if name == "round_to" and number == AUTO:
                continue
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, not {number!r}")


def is_fraction(value: object) -> bool:
    """Return whether a value is a number between 0 and 1, both excluded."""
    return (
        isinstance(value, (int, float, np.floating))
        and not isinstance(value, bool)
        and 0 < float(value) < 1
    )


def select(
    structure: Structure,
    offered: Sequence[int],
    scores: Sequence[NDArray[np.float64]],
    request: Request,
) -> list[NDArray[np.bool_]]:
    """Choose the units that stay.

    Parameters
    ----------
    offered : numbers of the groups that may be pruned.
    scores : for each of them, (units,) float, larger is more important.
    request : how much is to go, with a step that is known and a budget that is counted; see
        `onnxjl.choice.choose` for what has to be measured.

    Returns
    -------
    For every group of the structure, (units,) bool. The cost is within the budget, and no removed
    unit would still fit in it.

    Raises
    ------
    BudgetError : the budget can't be met (says how far it can go), or nothing would change.
    UsageError : a pattern that matches no group.
    """
    selection = _Selection(structure, offered, scores, request)
    counts = selection.counts()
    keep = [np.ones(g.size, dtype=bool) for g in structure.groups]
    for number in offered:
        keep[number][selection.ranked[number][counts[number] :]] = False
    if all(k.all() for k in keep):
        raise BudgetError("the request would change nothing: " + selection.why_nothing())
    return keep


def least_share(
    structure: Structure,
    offered: Sequence[int],
    scores: Sequence[NDArray[np.float64]],
    request: Request,
) -> float:
    """Return the smallest share of the MACs that a request could keep.

    Parameters
    ----------
    structure, offered, scores : as for `select`.
    request : its budget doesn't count.
    """
    selection = _Selection(structure, offered, scores, request)
    whole = structure.macs.total(structure.sizes)
    return structure.macs.total(selection.least) / whole if whole else 1.0


def alone(name: str) -> str:
    """Return what means a group and no other in `Request.amount_for`: ``NAME#1``, ``NAME#2``, ….

    Parameters
    ----------
    name : of the group; where a layer has several, the later ones' names end in a number already.
    """
    return name if "#" in name else f"{name}#1"


class _Selection:
    """The search for how many units each group keeps."""

    def __init__(
        self,
        structure: Structure,
        offered: Sequence[int],
        scores: Sequence[NDArray[np.float64]],
        request: Request,
    ) -> None:
        self.structure = structure
        self.request = request
        self.sizes = structure.sizes
        # Best first; of equal units the first stay.
        self.ranked = {
            n: np.argsort(-s, kind="stable") for n, s in zip(offered, scores, strict=True)
        }
        self.scores = {n: s[self.ranked[n]] for n, s in zip(offered, scores, strict=True)}
        # A unit may be several indices wide, as a head is: fewer of them make a step then.
        self.steps = np.array(
            [request.step // math.gcd(request.step, _width(group)) for group in structure.groups],
            dtype=np.int64,
        )
        self.fixed = self._asked_for_by_pattern(offered)
        self.free = np.array([n for n in offered if n not in self.fixed], dtype=np.int64)
        self.least = self.sizes.copy()
        self.least[self.free] = self._round(self.free, np.zeros_like(self.free))
        for number, count in self.fixed.items():
            self.least[number] = count
        self.start = self.sizes.copy()
        for number, count in self.fixed.items():
            self.start[number] = count

    def _asked_for_by_pattern(self, offered: Sequence[int]) -> dict[int, int]:
        fixed: dict[int, int] = {}
        for pattern, amount in (self.request.amount_for or {}).items():
            groups = {n: self.structure.groups[n] for n in offered}
            matching = [n for n, group in groups.items() if pattern == alone(group.name)] or [
                n for n, group in groups.items() if group.matches(pattern)
            ]
            if not matching:
                raise UsageError(f"no prunable layer matches '{pattern}'")
            for number in matching:
                fixed[number] = self._kept(number, amount)
        return fixed

    def _kept(self, number: int, amount: float) -> int:
        size = self.sizes[number]
        count = np.floor((1 - amount) * size + _SLACK).astype(np.int64)
        return int(self._round(np.array(number), count))

    def _round(self, groups: Counts, counts: Counts) -> Counts:
        """Return the largest allowed counts of at most `counts`, or the smallest that there are."""
        sizes, step = self.sizes[groups], self.steps[groups]
        least = np.minimum(self.request.min_units, sizes)
        lowest = -(-least // step) * step
        rounded = np.maximum(counts // step * step, lowest)
        return np.where((lowest >= sizes) | (counts >= sizes), sizes, rounded)

    def _round_all(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        result = self.start.copy()
        result[self.free] = self._round(self.free, counts[self.free])
        return result

    def _cost(self) -> Cost:
        budget = self.request.budget
        if budget == "amount":
            unit = np.ones(1, dtype=np.int64)
            units = [[Size(0, unit * n, unit)] for n in self.free.tolist()]
            return Cost([1.0] * len(units), units, len(self.sizes))
        return {
            "macs": self.structure.macs,
            "params": self.structure.params,
            "bytes": self.structure.bytes,
        }[budget or "macs"]

    def counts(self) -> NDArray[np.int64]:
        """Return how many units each group keeps."""
        if self.request.budget is None:
            return self.start
        assert self.request.fraction is not None
        if self.request.budget == "amount" and self.request.scope == "local":
            result = self.start.copy()
            for number in self.free.tolist():
                result[number] = self._kept(number, self.request.fraction)
            return result
        cost = self._cost()
        whole = cost.total(self.sizes)
        share = (
            1 - self.request.fraction if self.request.budget == "amount" else self.request.fraction
        )
        limit = whole * share * (1 + _SLACK)
        if cost.total(self.least) > limit:
            raise BudgetError(self._how_far(cost, whole))
        if not len(self.free):
            return self.start
        ladder = self._global if self.request.scope == "global" else self._local
        return self._put_back(cost, limit, ladder(cost, limit))

    def _how_far(self, cost: Cost, whole: float) -> str:
        budget, fraction = self.request.budget, self.request.fraction
        floor = cost.total(self.least) / whole if whole else 1.0
        groups = len(self.scores)
        if budget == "amount":
            most = np.floor((1 - floor) * 1e4) / 1e4
            return (
                f"amount={fraction} can't be met: at most {most:.4f} of the units of "
                f"{groups} groups can go (min_units={self.request.min_units}, "
                f"round_to={self.request.step})"
            )
        least = np.ceil(floor * 1e4) / 1e4
        return (
            f"{budget}={fraction} can't be met: with {groups} prunable groups this network can go "
            f"down to {budget}={least:.4f} (min_units={self.request.min_units}, "
            f"round_to={self.request.step}); `groups` tells what is left whole and why"
        )

    def _global(self, cost: Cost, limit: float) -> NDArray[np.int64]:
        """Remove units in the order of their scores until the cost is met (bisection)."""
        # Of equal scores the first group's go first, and of these the last: a stable sort's order.
        owner = np.repeat(self.free, self.sizes[self.free])
        score = np.concatenate([self.scores[n][::-1] for n in self.free.tolist()])
        ranked = owner[np.argsort(score, kind="stable")]

        def at(removed: int) -> NDArray[np.int64]:
            gone = np.bincount(ranked[:removed], minlength=len(self.sizes))
            return self._round_all(np.maximum(self.sizes - gone, self.least))

        return _first_that_fits(len(ranked), at, cost, limit)

    def _local(self, cost: Cost, limit: float) -> NDArray[np.int64]:
        """Remove the same fraction of each group until the cost is met (bisection)."""
        steps = int(self.sizes[self.free].max()) * 8

        def at(step: int) -> NDArray[np.int64]:
            share = 1 - step / steps
            wanted = np.floor(self.sizes * share + _SLACK).astype(np.int64)
            return self._round_all(np.maximum(wanted, self.least))

        return _first_that_fits(steps, at, cost, limit)

    def _put_back(self, cost: Cost, limit: float, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return removed units, best first, while one still fits in the budget."""
        counts = counts.copy()
        tally = Tally(cost, counts)
        queue = [
            (self._turn(n, counts), n) for n in self.free.tolist() if counts[n] < self.sizes[n]
        ]
        heapq.heapify(queue)
        while queue:
            _, n = heapq.heappop(queue)
            step = int(self.steps[n])
            units = int(min(counts[n] // step * step + step, self.sizes[n]) - counts[n])
            # What is left of the budget only shrinks, and what a unit costs only grows with the
            # others: a group whose next unit doesn't fit is done.
            if tally.increase(n, units) > limit - tally.total:
                continue
            tally.add(n, units)
            counts[n] += units
            if counts[n] < self.sizes[n]:
                heapq.heappush(queue, (self._turn(n, counts), n))
        return counts

    def _turn(self, number: int, counts: NDArray[np.int64]) -> float:
        """Return what tells which group gets its next unit back first: the one with the least."""
        if self.request.scope == "local":
            # The group that lost most, relative to its size.
            return float(counts[number] / self.sizes[number])
        return -float(self.scores[number][counts[number]])

    def why_nothing(self) -> str:
        """Return why no unit would go."""
        if not self.scores:
            return "no group can be pruned; `groups` tells what is left whole and why"
        widest = max(int(self.sizes[n]) for n in self.scores)
        return (
            f"the widest group has {widest} units, with min_units={self.request.min_units} and "
            f"round_to={self.request.step}"
        )


def _width(group: Group) -> int:
    """How many indices a unit has, at least, in the weights that it is cut from."""
    return min((member.indices.shape[1] for member in group.members), default=1)


def _first_that_fits(
    last: int, at: Callable[[int], NDArray[np.int64]], cost: Cost, limit: float
) -> NDArray[np.int64]:
    """Return `at` the smallest step whose cost is within the limit; costs fall with the step."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        if cost.total(at(middle)) <= limit:
            high = middle
        else:
            low = middle + 1
    return at(low)
