"""SparseGPT: the weights that stay make up for those that go, column after column.

Source: Frantar and Alistarh 2023, SparseGPT: Massive Language Models Can be Accurately Pruned in
One-Shot, algorithm 1.
"""

from __future__ import annotations

import numpy as np

from onnxjl.recovery.matrices import Float
from onnxjl.sparsity.pattern import Pattern, lowest
from onnxjl.sparsity.reading import Goal, Reader
from onnxjl.sparsity.registry import Criterion, add

BLOCK = 128
"""Columns whose mask is chosen at once, as in the paper."""

DAMPING = 0.01
"""λ, relative to the mean of the Hessian matrix's diagonal, as in the paper."""


def sparsegpt(reader: Reader, weight: Float, goal: Goal, live: np.ndarray) -> Float:
    """Keep the weights whose loss costs most, and change them for what the others leave behind.

    Parameters
    ----------
    reader : what the layer reads.
    weight : (groups, outputs, inputs).
    goal : how many weights are to be zero, or a pattern.
    live : where false, the weight is zero in any case.

    Returns
    -------
    (groups, outputs, inputs) float64
    """
    gram = reader.gram()
    groups = len(weight)
    result = np.empty_like(weight)
    for g in range(groups):
        zeros = goal.zeros
        if zeros is not None:
            zeros = zeros * (g + 1) // groups - zeros * g // groups
        result[g] = reconstruct(weight[g], gram[g], live[g], zeros=zeros, pattern=goal.pattern)
    return result


def reconstruct(
    weight: Float,
    gram: Float,
    live: np.ndarray,
    *,
    zeros: int | None = None,
    pattern: Pattern | None = None,
    block: int = BLOCK,
) -> Float:
    """Make a matrix sparse so that its products with its inputs change little.

    With ``H = XXᵀ + λI`` and ``U`` the upper Cholesky factor of its inverse, a weight ``w`` of
    column ``j`` costs ``w² / U_jj²``. The cheapest go, of a block of columns or of each run of a
    pattern, and in each column what they leave behind, ``w / U_jj · U_j,j:``, is taken off the
    columns after it.

    Parameters
    ----------
    weight : (outputs, inputs).
    gram : (inputs, inputs), XXᵀ. Inputs that are always zero lose their weights first.
    live : (outputs, inputs) bool; where false, the weight is zero in any case.
    zeros : how many weights are to be zero: each block of columns has its share.
    pattern : what stays of each run of inputs, instead of `zeros`.
    block : columns whose mask is chosen at once; with a pattern, whole runs of it.

    Returns
    -------
    (outputs, inputs) float64
    """
    weight = weight.copy()
    outputs, inputs = weight.shape
    upper, silent = _factor(gram)
    diagonal = np.diag(upper)
    if pattern is not None:
        block = max(1, block // pattern.of) * pattern.of
    gone = np.zeros(weight.shape, dtype=bool)
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        if zeros is not None:
            # The mask of the whole block, by the weights as they are when it begins.
            scores = _costs(weight, diagonal, silent, live, start, end)
            wanted = zeros * end // inputs - int(gone.sum())
            wanted = max(wanted, int((~live[:, start:end]).sum()))
            gone[:, start:end] = lowest(scores.reshape(-1), wanted).reshape(scores.shape)
        errors = np.zeros((outputs, end - start))
        for j in range(start, end):
            if pattern is not None and j % pattern.of == 0:
                scores = _costs(weight, diagonal, silent, live, j, j + pattern.of)
                gone[:, j : j + pattern.of] = ~(pattern.mask(scores) & live[:, j : j + pattern.of])
            column = np.where(gone[:, j], weight[:, j], 0.0) / diagonal[j]
            weight[:, j:end] -= np.outer(column, upper[j, j:end])
            errors[:, j - start] = column
        weight[:, end:] -= errors @ upper[start:end, end:]
    weight[gone] = 0.0
    return weight


def _costs(
    weight: Float, diagonal: Float, silent: np.ndarray, live: np.ndarray, start: int, end: int
) -> Float:
    """Return what each weight of some columns costs."""
    scores = (weight[:, start:end] / diagonal[start:end]) ** 2
    scores[:, silent[start:end]] = 0.0
    scores[~live[:, start:end]] = -np.inf
    return scores


def _factor(gram: Float) -> tuple[Float, np.ndarray]:
    """Return the upper Cholesky factor of the inverse of H, and which inputs are always zero."""
    hessian = gram.copy()
    diagonal = np.arange(len(gram))
    silent = hessian[diagonal, diagonal] == 0
    hessian[diagonal[silent], diagonal[silent]] = 1.0
    hessian[diagonal, diagonal] += DAMPING * hessian[diagonal, diagonal].mean()
    inverse = np.linalg.inv(hessian)
    upper: Float = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float64)
    return upper, silent


add(
    Criterion(
        "sparsegpt",
        solver=sparsegpt,
        source="Frantar and Alistarh 2023, SparseGPT: Massive Language Models Can be Accurately "
        "Pruned in One-Shot, algorithm 1",
        needs_data=True,
    )
)
