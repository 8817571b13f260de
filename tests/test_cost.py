"""Costs: the value of the formula, and a tally that keeps it while groups grow."""

from __future__ import annotations

import numpy as np
import pytest

from onnxjl.structure.cost import Cost, Size, Tally


def size(base: int, **units: int) -> Size:
    """A size with so many indices for each unit of group a or b."""
    groups = np.array(["ab".index(name) for name in units], dtype=np.int64)
    return Size(base, groups, np.array(list(units.values()), dtype=np.int64))


# A layer from a to b, one after both side by side, a square of a, and a constant.
COST = Cost(
    [9, 2, 1, 5],
    [
        [size(0, a=1), size(0, b=2)],
        [size(3, a=1, b=2), size(7)],
        [size(0, a=1), size(0, a=1)],
        [size(4)],
    ],
    2,
)


def by_hand(a: int, b: int) -> int:
    return 9 * a * 2 * b + 2 * (3 + a + 2 * b) * 7 + a * a + 5 * 4


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 1), (4, 3)])
def test_a_cost_is_its_formula(a: int, b: int) -> None:
    kept = np.array([a, b])
    assert COST.total(kept) == by_hand(a, b)
    grown = [by_hand(a + 2, b) - by_hand(a, b), by_hand(a, b + 3) - by_hand(a, b)]
    assert COST.increase(kept, np.array([2, 3])).tolist() == grown


def test_a_tally_knows_what_has_grown_before() -> None:
    a, b = 1, 2
    tally = Tally(COST, np.array([a, b]))
    for group, units in [(0, 2), (1, 1), (0, 1), (1, 3)]:
        before = by_hand(a, b)
        a, b = (a + units, b) if group == 0 else (a, b + units)
        assert tally.increase(group, units) == by_hand(a, b) - before
        tally.add(group, units)
        assert tally.total == by_hand(a, b)
