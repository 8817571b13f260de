"""Magnitude: units whose weights are small matter little.

Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1, which sums a filter's
absolute weights; here every weight that a unit is cut from has its row, those that consume the unit
like those that make it.
"""

from __future__ import annotations

import numpy as np

from onnxjl.criteria.registry import register
from onnxjl.criteria.weights import GroupWeights
from onnxjl.structure import Group

SOURCE = "Li et al. 2017, Pruning Filters for Efficient ConvNets, section 3.1"


@register("l1", source=SOURCE)
def l1(group: Group, weights: GroupWeights) -> np.ndarray:
    """Sum of a unit's absolute weights: ``Σ|w|``.

    Returns
    -------
    (tensors, units) float64
    """
    return weights.magnitudes(weights.contracted, 1)


@register("l2", source=SOURCE)
def l2(group: Group, weights: GroupWeights) -> np.ndarray:
    """Euclidean norm of a unit's weights: ``√Σw²``.

    Returns
    -------
    (tensors, units) float64
    """
    return np.sqrt(weights.magnitudes(weights.contracted, 2))


@register("linf", source=SOURCE)
def linf(group: Group, weights: GroupWeights) -> np.ndarray:
    """Largest of a unit's absolute weights: ``max|w|``.

    Returns
    -------
    (tensors, units) float64
    """
    return weights.magnitudes(weights.contracted, "max")


def stand_in(group: Group, weights: GroupWeights, mean: float) -> np.ndarray:
    """Scores for a group that lacks what another criterion looks at: l2, brought to a mean.

    With the mean of the other groups' scores it loses units in the same proportion as they do.

    Returns
    -------
    (units,) float64
    """
    norms = weights.aggregate(l2(group, weights))
    return norms * (mean / norms.mean()) if norms.any() else norms
