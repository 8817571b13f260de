"""Optimal selection: against enumeration of all choices, and against greedy selection."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxjl.optimal import solve
from onnxjl.structure.cost import Cost, Size


def test_products_of_three_sizes_and_of_one_with_itself_are_exact() -> None:
    random = np.random.default_rng(0)
    sizes = np.array([6, 5, 4])

    def size(base: int, group: int, times: int) -> Size:
        return Size(base, np.array([group]), np.array([times]))

    cost = Cost(
        [2.0, 3.0, 1.0],
        [
            [size(1, 0, 2), size(0, 1, 1), size(2, 2, 3)],
            [size(0, 0, 1), size(3, 0, 4)],
            [size(5, 1, 1), Size(7)],
        ],
        3,
    )

    def by_hand(a: int, b: int, c: int) -> int:
        return 2 * (1 + 2 * a) * b * (2 + 3 * c) + 3 * a * (3 + 4 * a) + (5 + b) * 7

    assert cost.total(sizes) == by_hand(6, 5, 4)
    worth = {
        n: np.cumsum(np.sort(random.random(size))[::-1]) for n, size in enumerate(sizes.tolist())
    }
    choices = {n: np.arange(1, size + 1) for n, size in enumerate(sizes.tolist())}
    for share in (0.2, 0.35, 0.5, 0.8):
        limit = share * by_hand(6, 5, 4)
        most = max(
            worth[0][a - 1] + worth[1][b - 1] + worth[2][c - 1]
            for a, b, c in itertools.product(*choices.values())
            if by_hand(a, b, c) <= limit
        )
        found = solve(choices, worth, sizes, [(cost, limit)])
        assert found.counts is not None
        assert by_hand(*found.counts.tolist()) <= limit
        assert sum(worth[n][found.counts[n] - 1] for n in worth) == pytest.approx(most, rel=1e-6)
        assert found.bound == pytest.approx(most, rel=1e-5)
