"""Optimal selection: the most importance that several budgets leave, as an integer program.

Widths are written in binary digits. A product of two sizes is then a sum of products of a digit
and a size, and each of these is linear: with a digit ``d`` in {0, 1} and a size ``B`` in
[low, high], ``z ≥ low·d`` and ``z ≥ B − high·(1 − d)`` leave ``z = d·B`` as the least that `z` can
be. Costs only bound products from above, so this states the budgets exactly; products of more sizes
are nested. The units of a group go in the order of their scores, so what it keeps is a concave
function of its width, and needs no integers at all. A group of very many widths has this function
drawn by chords, and what they are short of it is added to the bound.

Source: the products are McCormick 1976, *Computability of global solutions to factorable nonconvex
programs*, which are exact where one factor is binary.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxjl.errors import UsageError
from onnxjl.progress import Progress
from onnxjl.structure.cost import Cost, Counts

EXTRA = "optimal"
"""The extra that installs the solver."""

SECONDS = 30.0
"""How long the solver may take."""

GAP = 1e-4
"""Relative distance of a solution from its bound at which the solver ends."""

CHORDS = 128
"""Lines that a group's importance is drawn by, at most: up to here it is exact."""

# A size: what is added to the groups' units, and how many indices a unit of each group has there.
_Key = tuple[float, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Solution:
    """What the solver found.

    Parameters
    ----------
    counts : (groups,) int, the units that each group keeps; None where it found nothing in time.
    bound : no choice of units within the budgets keeps more importance than this.
    """

    counts: Counts | None
    bound: float


def check_solver() -> None:
    """Raise a UsageError where the solver is missing."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"scope='optimal' needs scipy: pip install 'onnxjl[{EXTRA}]' brings it"
        ) from error


def solve(
    widths: Mapping[int, Counts],
    worth: Mapping[int, NDArray[np.float64]],
    start: Counts,
    budgets: Sequence[tuple[Cost, float]],
    *,
    seconds: float = SECONDS,
) -> Solution:
    """Choose how many units each group keeps, so that the most importance stays.

    HiGHS solves ``max Σ worth[g](count of g)`` subject to ``cost(counts) ≤ limit`` for every
    budget, by branch and bound. No choice within the budgets is above the bound that it returns;
    where it ends in time, the solution is within `GAP` of it.

    Parameters
    ----------
    widths : group -> (k,) int, the widths that it may have, ascending: equal steps, but for the
        last, which may be shorter.
    worth : group -> (k,) float, the importance that each of them keeps; concave in the width.
    start : (groups,) int, the units of the groups that aren't in `widths`.
    budgets : costs with their limits, which are positive.
    seconds : how long it may take.

    Raises
    ------
    UsageError : scipy isn't there.
    """
    check_solver()
    program = _Program()
    groups = {n: _Width(program, widths[n], worth[n]) for n in widths}
    free = np.isin(np.arange(len(start)), list(widths))
    products = _Products(program, groups)
    for cost, limit in budgets:
        terms, constant = _cost(products, cost, np.where(free, 0, start), free)
        program.row({c: v / limit for c, v in terms.items()}, upper=1 - constant / limit)
    least = sum(float(worth[n][0]) for n in widths)
    short = sum(width.short for width in groups.values())
    with Progress("solving for the optimum"):
        values, bound = program.maximize(seconds)
    if values is None:
        return Solution(None, least + bound + short)
    counts = start.copy()
    for n, width in groups.items():
        allowed = np.searchsorted(widths[n], width.of(values) + 0.5, side="right") - 1
        counts[n] = widths[n][max(int(allowed), 0)]
    return Solution(counts, least + bound + short)


@dataclass
class _Program:
    """A mixed-integer program, as it is written."""

    upper: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def variable(self, upper: float, *, integer: bool = False, gain: float = 0.0) -> int:
        """Add a variable of at least 0, and return its number."""
        self.upper.append(upper)
        self.integer.append(integer)
        self.gain.append(gain)
        return len(self.upper) - 1

    def row(
        self, terms: Mapping[int, float], *, lower: float = -np.inf, upper: float = np.inf
    ) -> None:
        """Add a constraint: a sum of variables times numbers is between two bounds."""
        self.rows.append((dict(terms), lower, upper))

    def maximize(self, seconds: float) -> tuple[NDArray[np.float64] | None, float]:
        """Return the variables that gain most, or None, and what no others gain more than."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        row = np.repeat(np.arange(len(self.rows)), [len(terms) for terms, _, _ in self.rows])
        column = [c for terms, _, _ in self.rows for c in terms]
        value = [v for terms, _, _ in self.rows for v in terms.values()]
        table = coo_array((value, (row, column)), shape=(len(self.rows), len(self.upper)))
        gain = np.array(self.gain)
        found: Any = milp(
            -gain,
            integrality=np.array(self.integer, dtype=np.int64),
            bounds=Bounds(np.zeros(len(gain)), np.array(self.upper)),
            constraints=LinearConstraint(
                table.tocsr(),
                np.array([lower for _, lower, _ in self.rows]),
                np.array([upper for _, _, upper in self.rows]),
            ),
            options={"time_limit": seconds, "mip_rel_gap": GAP},
        )
        most = float(np.maximum(gain * np.array(self.upper), 0.0).sum())
        bound = getattr(found, "mip_dual_bound", None)
        return found.x, most if bound is None else min(most, -float(bound))


class _Width:
    """A group's width in a program: the sum of steps that are in, and of binary digits.

    Attributes
    ----------
    digits : (variable, what it adds to the width).
    short : how much more the importance may be than its chords say.
    """

    def __init__(self, program: _Program, widths: Counts, worth: NDArray[np.float64]) -> None:
        self.low, self.high = float(widths[0]), float(widths[-1])
        self.digits: list[tuple[int, float]] = []
        self.short = 0.0
        lengths = np.diff(widths).astype(np.float64)
        if not len(lengths):
            return
        ends, self.short = _chords(widths, worth)
        # The chords gain ever less, so they are taken in their order.
        sum_of = {
            program.variable(1.0, gain=gain): float(length)
            for gain, length in zip(
                np.diff(worth[ends]).tolist(), np.diff(widths[ends]).tolist(), strict=True
            )
        }
        odd = lengths[-1] != lengths[0]
        equal = len(lengths) - odd
        self.digits = [
            (program.variable(1.0, integer=True), float(lengths[0] * 2**power))
            for power in range(int(equal).bit_length())
        ]
        if odd:
            last = program.variable(1.0, integer=True)
            # The last step is taken after all others.
            count = {c: add / lengths[0] for c, add in self.digits}
            program.row({**count, last: -float(equal)}, lower=0.0)
            self.digits.append((last, float(lengths[-1])))
        program.row({**sum_of, **{c: -add for c, add in self.digits}}, lower=0.0, upper=0.0)

    def of(self, values: NDArray[np.float64]) -> float:
        """Return the width that variables of these values mean."""
        return self.low + sum(add * round(float(values[c])) for c, add in self.digits)


def _chords(widths: Counts, worth: NDArray[np.float64]) -> tuple[list[int], float]:
    """Return where the chords of a concave function end, and how far it is above them at most."""

    def chord(first: int, last: int) -> tuple[float, int, int, int]:
        """How far the function is above a chord, negative, and where, and where the chord ends."""
        inside = slice(first, last + 1)
        line = np.interp(widths[inside], widths[[first, last]], worth[[first, last]])
        above = worth[inside] - line
        farthest = int(np.argmax(above))
        return -float(above[farthest]), first + farthest, first, last

    chords = [chord(0, len(widths) - 1)]
    while len(chords) < min(CHORDS, len(widths) - 1):
        above, middle, first, last = heapq.heappop(chords)
        if not first < middle < last:
            # The function is a line here, and so it is everywhere.
            heapq.heappush(chords, (above, middle, first, last))
            break
        heapq.heappush(chords, chord(first, middle))
        heapq.heappush(chords, chord(middle, last))
    return sorted({end for *_, first, last in chords for end in (first, last)}), -chords[0][0]


@dataclass(frozen=True)
class _Sum:
    """A constant and a sum of variables times numbers, in [low, high]."""

    constant: float
    terms: Mapping[int, float]
    low: float
    high: float


class _Products:
    """Products of sizes in a program, each once."""

    def __init__(self, program: _Program, groups: Mapping[int, _Width]) -> None:
        self._program = program
        self._groups = groups
        self._known: dict[tuple[_Key, ...], _Sum] = {}

    def digits(self, key: _Key) -> int:
        """Return how many digits a size has: so many products it takes to multiply by it."""
        return sum(len(self._groups[n].digits) for n, _ in key[1])

    def size(self, key: _Key) -> _Sum:
        """Return a size."""
        terms: dict[int, float] = defaultdict(float)
        low = high = key[0]
        for n, times in key[1]:
            low, high = low + times * self._groups[n].low, high + times * self._groups[n].high
            for variable, add in self._groups[n].digits:
                terms[variable] += times * add
        return _Sum(low, terms, low, high)

    def product(self, keys: tuple[_Key, ...]) -> _Sum:
        """Return the product of sizes: what it is at least."""
        if keys not in self._known:
            first = self.size(keys[0])
            self._known[keys] = (
                self._times(first, self.product(keys[1:])) if len(keys) > 1 else first
            )
        return self._known[keys]

    def _times(self, size: _Sum, other: _Sum) -> _Sum:
        terms = {c: size.constant * v for c, v in other.terms.items()}
        for digit, add in size.terms.items():
            z = self._program.variable(other.high)
            self._program.row({z: 1.0, digit: -other.low}, lower=0.0)
            above = defaultdict(float, {c: -v for c, v in other.terms.items()})
            above[z] += 1.0
            above[digit] -= other.high
            self._program.row(above, lower=other.constant - other.high)
            terms[z] = add
        return _Sum(
            size.constant * other.constant, terms, size.low * other.low, size.high * other.high
        )


def _cost(
    products: _Products, cost: Cost, fixed: Counts, free: NDArray[np.bool_]
) -> tuple[dict[int, float], float]:
    """Return a cost as variables times numbers, and a constant."""
    bases = cost.sizes(fixed)
    varying: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for n, term, bump in zip(
        cost.pair_group.tolist(), cost.pair_term.tolist(), cost.pair_bump, strict=True
    ):
        if free[n]:
            for column in np.flatnonzero(bump).tolist():
                varying[term, column].append((n, int(bump[column])))
    coefficients: dict[tuple[_Key, ...], float] = defaultdict(float)
    for term, coefficient in enumerate(cost.coefficients.tolist()):
        keys: list[_Key] = []
        for column, base in enumerate(bases[term].tolist()):
            if (term, column) in varying:
                keys.append((base, tuple(varying[term, column])))
            else:
                coefficient *= base
        keys.sort(key=lambda key: (products.digits(key), key))
        if coefficient:
            coefficients[tuple(keys)] += coefficient
    constant = coefficients.pop((), 0.0)
    terms: dict[int, float] = defaultdict(float)
    for sizes, coefficient in coefficients.items():
        found = products.product(sizes)
        constant += coefficient * found.constant
        for variable, times in found.terms.items():
            terms[variable] += coefficient * times
    return dict(terms), constant
