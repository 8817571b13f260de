"""Wanda: weights matter by their magnitude and by that of the inputs that they multiply.

Source: Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models,
section 3, eq. 1.
"""

from __future__ import annotations

import numpy as np

from onnxjl.recovery.matrices import Float
from onnxjl.sparsity.pattern import largest
from onnxjl.sparsity.reading import Goal, Reader
from onnxjl.sparsity.registry import Criterion, add


def wanda(reader: Reader, weight: Float, goal: Goal, live: np.ndarray) -> Float:
    """Keep the weights with the largest ``|w| · ‖x‖₂``, compared within each output.

    ``‖x‖₂`` is the norm over all rows of the input that the weight multiplies. No weight changes
    that stays.

    Parameters
    ----------
    reader : what the layer reads.
    weight : (groups, outputs, inputs).
    goal : how many weights are to be zero, every output with its share of them; or a pattern.
    live : where false, the weight is zero in any case.

    Returns
    -------
    (groups, outputs, inputs) float64
    """
    scores = np.abs(weight) * np.sqrt(reader.squares())[:, None, :]
    scores[~live] = -np.inf
    if goal.pattern is not None:
        return np.where(goal.pattern.mask(scores) & live, weight, 0.0)
    assert goal.zeros is not None
    rows = scores.reshape(-1, scores.shape[-1])
    # Every output has its share; where they are no whole numbers, they still add up.
    ends = np.arange(len(rows) + 1) * goal.zeros // len(rows)
    mask = largest(rows, rows.shape[1] - np.diff(ends)[:, None]).reshape(scores.shape)
    return np.where(mask & live, weight, 0.0)


add(
    Criterion(
        "wanda",
        solver=wanda,
        source="Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language "
        "Models, eq. 1",
        needs_data=True,
    )
)
