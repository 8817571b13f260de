"""Costs as sums of products of axis sizes: functions of the units that each group keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """An axis size as an affine function of kept units: ``base + Σ multiplicity[g] · kept[g]``.

    Parameters
    ----------
    base : indices that always stay.
    groups : (k,) int, groups with units on the axis.
    multiplicities : (k,) int, indices that each unit of them has there.
    """

    base: int
    groups: NDArray[np.int64]
    multiplicities: NDArray[np.int64]


class Cost:
    """``Σ coefficient · Π sizes``, as a function of the number of units that each group keeps.

    Parameters
    ----------
    terms : (coefficient, sizes) of each product.
    groups : number of groups.
    """

    def __init__(self, terms: Sequence[tuple[float, Sequence[Size]]], groups: int) -> None:
        width = max((len(sizes) for _, sizes in terms), default=1) or 1
        self.coefficients = np.array([c for c, _ in terms], dtype=np.float64)
        self._base = np.ones((len(terms), width), dtype=np.float64)
        cells: list[NDArray[np.int64]] = []
        for t, (_, sizes) in enumerate(terms):
            for j, one in enumerate(sizes):
                self._base[t, j] = one.base
                if len(one.groups):
                    cell = np.empty((len(one.groups), 3), dtype=np.int64)
                    cell[:, 0] = t * width + j
                    cell[:, 1] = one.groups
                    cell[:, 2] = one.multiplicities
                    cells.append(cell)
        table = np.concatenate(cells) if cells else np.zeros((0, 3), dtype=np.int64)
        self._place, self._group, self._multiplicity = table.T
        self._groups = groups
        # Each (group, term) in which they meet, with how much one unit adds to each size.
        term = self._place // width
        pairs, inverse = np.unique(self._group * len(terms) + term, return_inverse=True)
        self._pair_group, self._pair_term = np.divmod(pairs, max(len(terms), 1))
        self._pair_bump = np.zeros((len(pairs), width))
        np.add.at(self._pair_bump, (inverse, self._place % width), self._multiplicity)

    def _sizes(self, kept: Counts) -> NDArray[np.float64]:
        varying = np.bincount(
            self._place,
            weights=self._multiplicity * kept[self._group],
            minlength=self._base.size,
        )
        sizes: NDArray[np.float64] = self._base + varying.reshape(self._base.shape)
        return sizes

    def each(self, kept: Counts) -> NDArray[np.float64]:
        """Return the cost of each term."""
        return self.coefficients * self._sizes(kept).prod(axis=1)

    def total(self, kept: Counts) -> float:
        """Return the whole cost."""
        return float(self.each(kept).sum())

    def increase(self, kept: Counts, steps: Counts) -> NDArray[np.float64]:
        """Return, for each group, what `steps` more units of it alone would add."""
        sizes = self._sizes(kept)[self._pair_term]
        bump = self._pair_bump * steps[self._pair_group, None]
        added = self.coefficients[self._pair_term] * (
            (sizes + bump).prod(axis=1) - sizes.prod(axis=1)
        )
        total: NDArray[np.float64] = np.bincount(
            self._pair_group, weights=added, minlength=self._groups
        ).astype(np.float64)
        return total
