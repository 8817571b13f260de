"""How scores become comparable: one for each unit of a group, one scale for all groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Reduction = Callable[..., Any]


def _mean(array: np.ndarray, axis: int = 0) -> Any:
    """NumPy's mean of floats without what it takes it to begin: half of it for a few numbers."""
    return np.add.reduce(array, axis=axis) / array.shape[axis]


AGGREGATIONS: dict[str, Reduction] = {
    "mean": _mean,
    "sum": np.add.reduce,
    "max": np.maximum.reduce,
}
"""Name -> how the scores of a group's tensors become one."""

NORMALIZATIONS: dict[str, Reduction | None] = {
    "mean": _mean,
    "max": np.maximum.reduce,
    "none": None,
}
"""Name -> what a group's scores are divided by."""


def aggregate(rows: np.ndarray, aggregation: str) -> np.ndarray:
    """Combine the scores that a unit has in each tensor.

    Parameters
    ----------
    rows : (tensors, units) float64.
    aggregation : one of `AGGREGATIONS`.

    Returns
    -------
    (units,) float64
    """
    return AGGREGATIONS[aggregation](rows, axis=0)


def normalize(scores: np.ndarray, normalization: str) -> np.ndarray:
    """Divide a group's scores by their mean or maximum, in absolute value.

    With scores that may be negative a plain mean could be, too, and would reverse the order.

    Parameters
    ----------
    scores : (units,) float64.
    normalization : one of `NORMALIZATIONS`.

    Returns
    -------
    (units,) float64; scores that are all zero stay.
    """
    reduce = NORMALIZATIONS[normalization]
    if reduce is None:
        return scores
    scale = reduce(np.abs(scores))
    return scores / scale if scale > 0 else scores
