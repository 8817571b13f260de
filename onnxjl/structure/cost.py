"""Costs as sums of products of axis sizes: functions of the units that each group keeps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
_NONE: Counts = np.zeros(0, dtype=np.int64)


class Size(NamedTuple):
    """An axis size as an affine function of kept units: ``base + Σ multiplicity[g] · kept[g]``.

    Parameters
    ----------
    base : indices that always stay.
    groups : (k,) int, groups with units on the axis.
    multiplicities : (k,) int, indices that each unit of them has there.
    """

    base: int
    groups: Counts = _NONE
    multiplicities: Counts = _NONE


class Cost:
    """``Σ coefficient · Π sizes``, as a function of the number of units that each group keeps.

    Parameters
    ----------
    coefficients : one for each product.
    products : the sizes that are multiplied.
    groups : number of groups.
    """

    def __init__(
        self, coefficients: Sequence[float], products: Sequence[Sequence[Size]], groups: int
    ) -> None:
        terms = len(products)
        width = max(map(len, products), default=1) or 1
        self.coefficients = np.array(coefficients, dtype=np.float64)
        self._groups = groups
        sizes = [size for product in products for size in product]
        lengths = np.array([len(product) for product in products], dtype=np.int64)
        # Products are rows of a table, whose cells beyond a product's length hold 1.
        cell = np.flatnonzero(np.arange(width) < lengths[:, None])
        self._base = np.ones((terms, width), dtype=np.float64)
        self._base.reshape(-1)[cell] = [size.base for size in sizes]
        self._place = np.repeat(cell, [len(size.groups) for size in sizes])
        self._group = np.concatenate([_NONE, *(size.groups for size in sizes)])
        self._multiplicity = np.concatenate([_NONE, *(size.multiplicities for size in sizes)])
        # Each (group, term) in which they meet, with how much one unit adds to each size.
        row, column = np.divmod(self._place, width)
        pairs, inverse = np.unique(self._group * terms + row, return_inverse=True)
        self.pair_group, self.pair_term = np.divmod(pairs, max(terms, 1))
        bump = np.bincount(
            inverse * width + column, weights=self._multiplicity, minlength=len(pairs) * width
        )
        self.pair_bump = bump.astype(np.float64).reshape(-1, width)

    def weighted(self, coefficients: Sequence[float]) -> Cost:
        """Return the cost that has other coefficients for the same products."""
        other = copy.copy(self)
        other.coefficients = np.array(coefficients, dtype=np.float64)
        return other

    def sizes(self, kept: Counts) -> NDArray[np.float64]:
        """Return the (terms, sizes) table of sizes."""
        varying = np.bincount(
            self._place,
            weights=self._multiplicity * kept[self._group],
            minlength=self._base.size,
        )
        sizes: NDArray[np.float64] = self._base + varying.reshape(self._base.shape)
        return sizes

    def each(self, kept: Counts) -> NDArray[np.float64]:
        """Return the cost of each term."""
        return self.coefficients * self.sizes(kept).prod(axis=1)

    def total(self, kept: Counts) -> float:
        """Return the whole cost."""
        return float(self.each(kept).sum())

    def increase(self, kept: Counts, steps: Counts) -> NDArray[np.float64]:
        """Return, for each group, what `steps` more units of it alone would add."""
        sizes = self.sizes(kept)[self.pair_term]
        bump = self.pair_bump * steps[self.pair_group, None]
        added = self.coefficients[self.pair_term] * (
            (sizes + bump).prod(axis=1) - sizes.prod(axis=1)
        )
        total: NDArray[np.float64] = np.bincount(
            self.pair_group, weights=added, minlength=self._groups
        ).astype(np.float64)
        return total


class Tally:
    """A cost while groups grow one by one: a step takes no longer than its group's own terms.

    Parameters
    ----------
    cost : what is counted.
    kept : (groups,) int, the units that each group keeps at first.

    Attributes
    ----------
    total : the whole cost.
    """

    def __init__(self, cost: Cost, kept: Counts) -> None:
        self._cost = cost
        self._sizes = cost.sizes(kept)
        self._starts = np.searchsorted(cost.pair_group, np.arange(len(kept) + 1)).tolist()
        self.total = cost.total(kept)

    def _terms(self, group: int, units: int) -> tuple[Counts, NDArray[np.float64]]:
        """Return the terms that a group is in, and what its units add to their sizes."""
        pairs = slice(self._starts[group], self._starts[group + 1])
        return self._cost.pair_term[pairs], self._cost.pair_bump[pairs] * units

    def increase(self, group: int, units: int) -> float:
        """Return what this many more units of a group would add."""
        terms, bump = self._terms(group, units)
        sizes = self._sizes[terms]
        added = (sizes + bump).prod(axis=1) - sizes.prod(axis=1)
        return float((self._cost.coefficients[terms] * added).sum())

    def add(self, group: int, units: int) -> None:
        """Let a group keep this many more units."""
        self.total += self.increase(group, units)
        terms, bump = self._terms(group, units)
        self._sizes[terms] += bump
