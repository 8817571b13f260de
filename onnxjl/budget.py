"""Budgets: which units go, so that the cost is met and no more goes than must."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxjl import allocation, optimal
from onnxjl.allocation import Path, Units
from onnxjl.errors import BudgetError, UsageError
from onnxjl.structure.cost import Cost, Counts, Size, Tally
from onnxjl.structure.groups import Group, Structure
from onnxjl.structure.isomorphism import topologies

Scope = Literal["global", "local", "isomorphic", "erk", "sensitivity", "optimal"]
SCOPES: tuple[Scope, ...] = ("global", "local", "isomorphic", "erk", "sensitivity", "optimal")
Budget = Literal["amount", "macs", "params", "bytes", "latency"]
BUDGETS: tuple[Budget, ...] = ("amount", "macs", "params", "bytes", "latency")
AUTO: Literal["auto"] = "auto"
"""The step that is measured on this machine (`onnxjl.choice`)."""

Limit = tuple[Cost, float]
"""A cost, and what it may be at most."""

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
    scope : ``"global"`` ranks all units together, ``"local"`` takes the same share of each group;
        `onnxjl.allocation` and `onnxjl.optimal` have the others.
    amount_for : fnmatch pattern of layers or nodes, or one group as `alone` names it -> fraction
        removed of their groups.
    round_to : widths become multiples of this, which may be "auto"; a group that is no multiple may
        also stay whole. Of units that are several indices wide, such as heads, fewer make a step.
    min_units : units that every group keeps.
    further : more budgets that hold as well, for scope ``"optimal"``: name -> fraction.
    """

    budget: Budget | None
    fraction: float | None
    scope: Scope = "global"
    amount_for: Mapping[str, float] | None = None
    round_to: int | Literal["auto"] = 1
    min_units: int = 1
    further: Mapping[Budget, float] = field(default_factory=dict)

    @property
    def budgets(self) -> dict[Budget, float]:
        """All budgets with their fractions."""
        if self.budget is None:
            return {}
        assert self.fraction is not None
        return {self.budget: self.fraction, **self.further}

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
            fractions |= {self.budget: self.fraction}
            fractions |= {str(name): value for name, value in self.further.items()}
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
    errors: Mapping[int, NDArray[np.float64]] | None = None,
) -> list[NDArray[np.bool_]]:
    """Choose the units that stay.

    Parameters
    ----------
    offered : numbers of the groups that may be pruned.
    scores : for each of them, (units,) float, larger is more important.
    request : how much is to go, with a step that is known and budgets that are counted; see
        `onnxjl.choice.choose` for what has to be measured.
    errors : for scope "sensitivity", what pruning each of them alone does; see
        `onnxjl.allocation.Sensitivity`.

    Returns
    -------
    For every group of the structure, (units,) bool. The cost is within the budget, and no removed
    unit would still fit in it.

    Raises
    ------
    BudgetError : the budget can't be met (says how far it can go), or nothing would change.
    UsageError : a pattern that matches no group, or the solver of scope "optimal" isn't there.
    """
    return select_and_tell(structure, offered, scores, request, errors)[0]


def select_and_tell(
    structure: Structure,
    offered: Sequence[int],
    scores: Sequence[NDArray[np.float64]],
    request: Request,
    errors: Mapping[int, NDArray[np.float64]] | None = None,
) -> tuple[list[NDArray[np.bool_]], dict[str, Any]]:
    """Choose the units that stay, and say what is known of the choice.

    Parameters
    ----------
    structure, offered, scores, request, errors : as for `select`.

    Returns
    -------
    What `select` returns, and what the plan should say: for scope "optimal" the ``"importance"``
    (sum of scores) that is ``"kept"``, ``"of"`` how much, the ``"bound"`` that no choice within the
    budgets exceeds, and the relative ``"gap"`` between the two.

    Raises
    ------
    BudgetError, UsageError : as for `select`.
    """
    selection = _Selection(structure, offered, scores, request, errors)
    counts = selection.counts()
    keep = [np.ones(g.size, dtype=bool) for g in structure.groups]
    for number in offered:
        keep[number][selection.ranked[number][counts[number] :]] = False
    if all(k.all() for k in keep):
        raise BudgetError("the request would change nothing: " + selection.why_nothing())
    return keep, selection.facts


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
        errors: Mapping[int, NDArray[np.float64]] | None = None,
    ) -> None:
        self.structure = structure
        self.request = request
        self.errors = errors
        self.facts: dict[str, Any] = {}
        self.sizes = structure.sizes
        # Best first; of equal units the first stay.
        self.ranked = {
            n: np.argsort(-s, kind="stable") for n, s in zip(offered, scores, strict=True)
        }
        self.scores = {n: s[self.ranked[n]] for n, s in zip(offered, scores, strict=True)}
        self.steps = np.ones(len(structure.groups), dtype=np.int64)
        if request.step > 1:
            # A unit may be several indices wide, as a head is: fewer of them make a step then.
            widths = np.array([_width(group) for group in structure.groups], dtype=np.int64)
            self.steps = request.step // np.gcd(request.step, widths)
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

    def _round_all(self, counts: Counts) -> Counts:
        result = self.start.copy()
        result[self.free] = self._round(self.free, counts[self.free])
        return result

    def _cost(self, budget: Budget) -> Cost:
        if budget == "amount":
            unit = np.ones(1, dtype=np.int64)
            units = [[Size(0, unit * n, unit)] for n in self.free.tolist()]
            return Cost([1.0] * len(units), units, len(self.sizes))
        return {
            "macs": self.structure.macs,
            "params": self.structure.params,
            "bytes": self.structure.bytes,
        }[budget]

    def counts(self) -> Counts:
        """Return how many units each group keeps."""
        if self.request.budget is None:
            return self.start
        if self.request.budget == "amount" and self.request.scope == "local":
            assert self.request.fraction is not None
            result = self.start.copy()
            for number in self.free.tolist():
                result[number] = self._kept(number, self.request.fraction)
            return result
        limits = [self._limit(budget, f) for budget, f in self.request.budgets.items()]
        if not len(self.free):
            return self.start
        path = self._path()
        # A step leaves no less than the least, and widths that are allowed.
        fitting = _first_that_fits(
            path.steps, lambda step: self._round_all(np.maximum(path.at(step), self.least)), limits
        )
        counts = self._put_back(limits, fitting, path)
        return self._optimal(limits, counts, path) if self.request.scope == "optimal" else counts

    def _limit(self, budget: Budget, fraction: float) -> Limit:
        """Return a budget as a cost and what it may be at most."""
        cost = self._cost(budget)
        whole = cost.total(self.sizes)
        limit = whole * (1 - fraction if budget == "amount" else fraction) * (1 + _SLACK)
        if cost.total(self.least) > limit:
            raise BudgetError(self._how_far(budget, fraction, cost, whole))
        return cost, limit

    def _how_far(self, budget: Budget, fraction: float, cost: Cost, whole: float) -> str:
        floor = cost.total(self.least) / whole if whole else 1.0
        count = len(self.scores)
        if budget == "amount":
            most = np.floor((1 - floor) * 1e4) / 1e4
            return (
                f"amount={fraction} can't be met: at most {most:.4f} of the units of "
                f"{count} group{'s' * (count != 1)} can go (min_units={self.request.min_units}, "
                f"round_to={self.request.step})"
            )
        least = np.ceil(floor * 1e4) / 1e4
        return (
            f"{budget}={fraction} can't be met: with {count} prunable group{'s' * (count != 1)} "
            f"this network can go down to {budget}={least:.4f} "
            f"(min_units={self.request.min_units}, round_to={self.request.step}); "
            "`groups` tells what is left whole and why"
        )

    def _path(self) -> Path:
        units = Units(self.sizes, self.free, self.scores)
        scope = self.request.scope
        if scope == "local":
            return allocation.Local(units)
        if scope == "isomorphic":
            return allocation.Isomorphic(units, topologies(self.structure))
        if scope == "erk":
            return allocation.ErdosRenyi(units, allocation.kernel_densities(self.structure))
        if scope == "sensitivity":
            assert self.errors is not None
            return allocation.Sensitivity(units, self.errors)
        return allocation.Global(units)

    def _optimal(self, limits: Sequence[Limit], greedy: Counts, path: Path) -> Counts:
        """Return the best that the solver finds, or what was found without it if that is better."""
        widths = {n: self._widths(n) for n in self.free.tolist()}
        sums = {n: np.append(0.0, np.cumsum(self.scores[n])) for n in self.scores}
        solution = optimal.solve(
            widths, {n: sums[n][widths[n]] for n in widths}, self.start, limits
        )

        def importance(counts: Counts) -> float:
            return float(sum(sums[n][counts[n]] for n in sums))

        found = greedy
        if solution.counts is not None:
            # A solver's numbers are rounded; budgets are met to the last unit.
            met = self._take(limits, solution.counts, widths)
            found = max(greedy, self._put_back(limits, met, path), key=importance)
        kept = importance(found)
        fixed = sum(float(sums[n][count]) for n, count in self.fixed.items())
        bound = max(solution.bound + fixed, kept)
        self.facts["importance"] = {
            "kept": kept,
            "of": importance(self.sizes),
            "bound": bound,
            "gap": (bound - kept) / abs(bound) if bound else 0.0,
        }
        return found

    def _widths(self, number: int) -> Counts:
        """Return the widths that a group may have, ascending."""
        least, size, step = int(self.least[number]), int(self.sizes[number]), self.steps[number]
        return np.append(np.arange(least, size, step, dtype=np.int64), size)

    def _take(
        self, limits: Sequence[Limit], counts: Counts, widths: Mapping[int, Counts]
    ) -> Counts:
        """Take the least important units until every budget is met."""
        counts = counts.copy()
        while any(cost.total(counts) > limit for cost, limit in limits):
            below = {
                n: int(w[np.searchsorted(w, counts[n]) - 1])
                for n, w in widths.items()
                if counts[n] > w[0]
            }
            n = min(below, key=lambda n: float(self.scores[n][below[n] : counts[n]].sum()))
            counts[n] = below[n]
        return counts

    def _put_back(self, limits: Sequence[Limit], counts: Counts, path: Path) -> Counts:
        """Return removed units, in the order of a path, while one still fits in the budgets."""
        counts = counts.copy()
        tallies = [(Tally(cost, counts), limit) for cost, limit in limits]
        # What is left of a budget only shrinks, and what a unit costs only grows with the others: a
        # group whose next unit doesn't fit is done, and most are so at once.
        following = np.minimum(counts // self.steps * self.steps + self.steps, self.sizes) - counts
        fits = following > 0
        for cost, limit in limits:
            fits &= cost.increase(counts, following) <= limit - cost.total(counts)
        queue = [(path.turn(n, counts), n) for n in self.free[fits[self.free]].tolist()]
        heapq.heapify(queue)
        while queue:
            turn, n = heapq.heappop(queue)
            if path.turn(n, counts) > turn:
                # Other groups' units changed its place.
                heapq.heappush(queue, (path.turn(n, counts), n))
                continue
            step = int(self.steps[n])
            units = int(min(counts[n] // step * step + step, self.sizes[n]) - counts[n])
            if any(tally.increase(n, units) > limit - tally.total for tally, limit in tallies):
                continue
            for tally, _ in tallies:
                tally.add(n, units)
            counts[n] += units
            if counts[n] < self.sizes[n]:
                heapq.heappush(queue, (path.turn(n, counts), n))
        return counts

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


def _first_that_fits(last: int, at: Callable[[int], Counts], limits: Sequence[Limit]) -> Counts:
    """Return `at` the smallest step whose costs are within the limits; costs fall with the step."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        counts = at(middle)
        if all(cost.total(counts) <= limit for cost, limit in limits):
            high = middle
        else:
            low = middle + 1
    return at(low)
