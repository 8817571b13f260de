"""FPGM: units near the geometric median of their layer can be replaced by the others.

Source: He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
Acceleration", section 3.3, eq. 6.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxjl.criteria.registry import register
from onnxjl.criteria.weights import GroupWeights
from onnxjl.structure import Group, Member

# Elements of float64 blocks: 16 MB of weights, 64 MB of distances.
BLOCK = 1 << 21
PAIRS = 1 << 23


@register(
    "fpgm",
    source="He et al. 2019, Filter Pruning via Geometric Median, eq. 6",
)
def fpgm(group: Group, weights: GroupWeights) -> np.ndarray:
    """Sum of the distances of a unit's weights to those of all others: ``Σ_j ‖w_u - w_j‖₂``.

    Only weights that make the units count, one row for each.

    Returns
    -------
    (tensors, units) float64

    Raises
    ------
    WeightError : a weight holds NaN or infinity.
    """
    rows = []
    for member in weights.producers:
        with np.errstate(over="ignore", invalid="ignore"):
            scores = _distances(weights[member.tensor], member)
        if not np.isfinite(scores).all():
            weights.refuse(member.tensor)
        rows.append(scores)
    return np.stack(rows)


def _distances(array: np.ndarray, member: Member) -> np.ndarray:
    """(units,) sum of distances between slices, from ``‖a - b‖² = ‖a‖² + ‖b‖² - 2ab``."""
    units = len(member.indices)
    total = np.zeros(units)
    height = max(1, PAIRS // units)
    for start in range(0, units, height):
        # Distances to the units before these are known from their own turn.
        here, later = slice(start, start + height), slice(start, None)
        products = np.zeros((min(height, units - start), units - start))
        squares = np.zeros(units - start)
        for slices in _slices(array, member):
            products += slices[here] @ slices[later].T
            squares += np.einsum("ij,ij->i", slices[later], slices[later])
        products *= -2
        products += squares[: len(products), None]
        products += squares
        # Rounding leaves a little, of either sign, between equal slices.
        np.maximum(products, 0, out=products)
        np.fill_diagonal(products, 0)
        np.sqrt(products, out=products)
        total[here] += products.sum(axis=1)
        total[start + len(products) :] += products[:, len(products) :].sum(axis=0)
    return total


def _slices(array: np.ndarray, member: Member) -> Iterator[np.ndarray]:
    """(units, elements) float64 blocks of each unit's slice, less their mean over units."""
    units = len(member.indices)
    slices = np.moveaxis(array, member.axis, 0)
    if slices.ndim == 1:
        slices = slices[:, None]
    width = max(1, BLOCK // (units * max(1, slices[0, 0].size)))
    for column in member.indices.T:
        for start in range(0, slices.shape[1], width):
            block = slices[column, start : start + width].reshape(units, -1).astype(np.float64)
            # Distances don't change, but lose less to rounding where slices are much alike.
            yield block - block.mean(axis=0)
