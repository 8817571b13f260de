"""LAMP: a magnitude that says how much of its group is lost with a unit and all that are smaller.

Source: Lee et al. 2021, "Layer-Adaptive Sparsity for the Magnitude-based Pruning", eq. 3,
section 3, there for single weights of a layer, here for the units of a group.
"""

from __future__ import annotations

import numpy as np

from onnxjl.criteria.registry import register
from onnxjl.criteria.weights import GroupWeights
from onnxjl.structure import Group


@register(
    "lamp",
    source="Lee et al. 2021, Layer-Adaptive Sparsity for the Magnitude-based Pruning, eq. 3",
    # The score is made for one threshold over all layers: the best unit of each group has 1.
    normalization="none",
)
def lamp(group: Group, weights: GroupWeights) -> np.ndarray:
    """Squared norm of a unit over those of all units at least as large: ``u² / Σ_{v: v² ≥ u²} v²``.

    A unit's squared norm is that of each weight it is cut from, aggregated. Equal units have equal
    scores.

    Returns
    -------
    (units,) float64
    """
    squared = weights.aggregate(weights.magnitudes(weights.contracted, 2))
    ascending = np.sort(squared)
    at_least = np.cumsum(ascending[::-1])[::-1]
    total = at_least[np.searchsorted(ascending, squared, side="left")]
    return np.divide(squared, total, out=np.zeros_like(squared), where=total > 0)
