"""Closed-form refit: every layer solved anew for what the original network computes there.

In graph order, each convolution (a transposed one if the places of its kernel don't overlap) or
product with a constant matrix whose inputs changed gets the weights that minimize, over calibration
data, the squared distance of its output to the original network's (of the units that are kept),
given its inputs in the network refitted so far. Where its output enters a sum with another branch,
the sum is the target: the last branch absorbs what the others lack. In a recurrent layer the
products of its inputs are solved for, those of its states stay.

Source: least-squares reconstruction as in He et al. 2017, "Channel Pruning for Accelerating Very
Deep Neural Networks", eq. 1 and section 3.2, in asymmetric form (Zhang et al. 2016, "Accelerating
Very Deep Convolutional Networks", section 3.3).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxjl.data import batches
from onnxjl.graph import Graph
from onnxjl.masks import masked_names
from onnxjl.progress import progress
from onnxjl.recovery.batch_normalization import check_finite
from onnxjl.recovery.layers import Layer, layers_to_solve
from onnxjl.recovery.matrices import Float, channels_last, matrix_of
from onnxjl.recovery.stream import Stream

# Strengths of the pull towards the weights as they were, relative to the mean of the Gram diagonal:
# the first, or where rows are scarce the one that does best on rows that are held out.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Share of the rows that are held out then: the last of each batch, or of some where they are small.
HELD_OUT = 0.2
# Rows (samples × positions) used for each unknown of a layer, and at least: more cost time and
# change the solution little.
ROWS_PER_UNKNOWN, LEAST_ROWS = 50, 20_000


def refit(graph: Graph, calibration: Any, *, batch_size: int = 64) -> Graph:
    """Solve the layers of a pruned graph anew, without labels.

    Parameters
    ----------
    graph : a pruned graph with its source.
    calibration : inputs; see `onnxjl.data.batches`.

    Returns
    -------
    The graph with other weights and biases; its structure doesn't change.

    Raises
    ------
    DataError : activations aren't finite, or a weight overflows its type.
    """
    assert graph.source is not None
    assert graph.plan is not None
    copy = replace(graph, model=graph.model.clone())
    layers = layers_to_solve(graph, copy)
    feeds = list(batches(calibration, graph, batch_size=batch_size))
    with Stream(copy, feeds) as small, Stream(graph.source, feeds) as large:
        for i, layer in enumerate(progress(layers, "refitting")):
            _solve_layer(layer, small, large)
            rest = layers[i + 1 :]
            small.keep_only(small.needed_for(v for other in rest for v in other.reads))
            large.keep_only(large.needed_for(other.target for other in rest))
    return copy


def _solve_layer(layer: Layer, small: Stream, large: Stream) -> None:
    """Solve a layer, and write its weights and intercept."""
    matrix = matrix_of(layer.node)
    weight = matrix.read()
    fit = Fit(weight, start=None if layer.intercept is None else layer.intercept.read())
    scale, shift = layer.affine()
    # All values of a batch at once are computed in one run of each network.
    small.compute(*layer.reads)
    large.compute(layer.target)
    total = small.samples(layer.reads[0])
    enough = ROWS_PER_UNKNOWN * (weight.shape[1] + 1)
    limit = max(enough, LEAST_ROWS)
    held_out: Fit | None = None
    seen = 0
    random = np.random.default_rng(0)
    for here, there in zip(small.batches(*layer.reads), large.batches(layer.target), strict=True):
        wanted = channels_last(there[0], layer.node)
        if layer.product is not None:
            wanted = wanted @ layer.product
        if layer.kept is not None:
            wanted = wanted[..., layer.kept]
        wanted = wanted.astype(np.float64)
        if layer.other is not None:
            wanted = (wanted - channels_last(here[1], layer.node) - shift) / scale
        wanted = wanted - layer.fixed
        count = int(limit * len(here[0]) / total) + 1
        x, y = matrix.sample(here[0], wanted, count, random)
        check_finite(x, layer.reads[0].name)
        check_finite(y, layer.target.name)
        rows = x.shape[1]
        if rows * total < enough * len(here[0]):
            kept = rows - int(HELD_OUT * (seen + rows)) + int(HELD_OUT * seen)
            seen += rows
            if kept < rows:
                held_out = held_out or Fit(weight, start=fit.start)
                held_out.add(x[:, kept:], y[:, kept:])
                x, y = x[:, :kept], y[:, :kept]
        fit.add(x, y)
    value = layer.node.inputs[1]
    masked = value is not None and value.name in masked_names(small.graph.model)
    live = weight != 0 if masked else None
    ridge: float | None = RIDGES[0]
    if held_out is not None:
        ridge = strength(fit, held_out, live)
        fit.join(held_out)
    if ridge is None:
        return
    solved, constant = fit.solve(ridge, live=live)
    matrix.write(solved)
    if layer.intercept is not None:
        layer.intercept.write(constant)


def strength(fit: Fit, held_out: Fit, live: NDArray[np.bool_] | None) -> float | None:
    """Return the ridge with which a fit does best on other rows; None if the start does better."""
    best, least = None, held_out.error(fit.weight, fit.start)
    for ridge in RIDGES:
        error = held_out.error(*fit.solve(ridge, live=live))
        if error >= least:
            if best is not None:
                break
            continue
        best, least = ridge, error
    return best


class Fit:
    """Ridge least squares in one group after another, around the weights as they were.

    Parameters
    ----------
    weight : (groups, unknowns, outputs), the weights to start from.
    start : (groups · outputs,), the constants to start from; None if there is none to solve for.
    """

    def __init__(self, weight: Float, *, start: Float | None) -> None:
        groups, unknowns, outputs = weight.shape
        self.weight = weight
        self.start = start
        size = unknowns + (start is not None)
        self.gram = np.zeros((groups, size, size))
        self.moment = np.zeros((groups, size, outputs))

    def add(self, x: Float, y: Float) -> None:
        """Take in rows.

        Parameters
        ----------
        x : (groups, rows, unknowns).
        y : (groups, rows, outputs), the outputs wanted.
        """
        if self.start is not None:
            x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
        turned = x.transpose(0, 2, 1)
        self.gram += turned @ x
        self.moment += turned @ y

    def join(self, other: Fit) -> None:
        """Take in the rows of another fit."""
        self.gram += other.gram
        self.moment += other.moment

    def error(self, weight: Float, constant: Float | None) -> float:
        """Return the squared distance from the outputs wanted, less that of zeros.

        Parameters
        ----------
        weight : (groups, unknowns, outputs).
        constant : (groups · outputs,); not looked at where there is none to solve for.
        """
        if self.start is not None:
            assert constant is not None
            rows = constant.reshape(len(weight), 1, -1)
            weight = np.concatenate([weight, rows], axis=1)
        return float(np.sum(weight * (self.gram @ weight - 2 * self.moment)))

    def solve(
        self, ridge: float = RIDGES[0], *, live: NDArray[np.bool_] | None = None
    ) -> tuple[Float, Float]:
        """Return (groups, unknowns, outputs) weights and (groups · outputs,) constants.

        Parameters
        ----------
        ridge : strength of the pull, relative to the mean of the Gram diagonal.
        live : (groups, unknowns, outputs), false for weights that a mask holds at zero; each
            output is then solved for the others alone.
        """
        groups, unknowns, outputs = self.weight.shape
        start = self.weight
        if self.start is not None:
            start = np.concatenate([start, self.start.reshape(groups, 1, outputs)], axis=1)
        diagonal = np.arange(unknowns)
        pull = np.zeros_like(self.gram)
        mean = self.gram[:, diagonal, diagonal].mean(axis=1, keepdims=True)
        # Inputs that are never active leave the weights as they are.
        pull[:, diagonal, diagonal] = np.maximum(ridge * mean, 1e-12)
        if self.start is not None:
            pull[:, unknowns, unknowns] = 1e-12
        right = self.moment - self.gram @ start
        matrix = self.gram + pull
        step = _solve(matrix, right) if live is None else self._solve_live(matrix, right, live)
        solved = start + step
        constant = solved[:, unknowns].reshape(-1) if self.start is not None else np.zeros(0)
        return solved[:, :unknowns], constant

    def _solve_live(self, matrix: Float, right: Float, live: NDArray[np.bool_]) -> Float:
        """Solve for the weights of each output that aren't held at zero."""
        step = np.zeros_like(right)
        for g, o in np.ndindex(len(right), right.shape[2]):
            free = np.flatnonzero(live[g, :, o])
            if self.start is not None:
                free = np.append(free, matrix.shape[1] - 1)
            part = matrix[g][np.ix_(free, free)][None]
            step[g, free, o] = _solve(part, right[g, free, o][None, :, None])[0, :, 0]
        return step


def _solve(matrix: Float, right: Float) -> Float:
    """Solve symmetric systems; where one is singular, in the least-squares sense."""
    try:
        step: Float = np.linalg.solve(matrix, right).astype(np.float64)
    except np.linalg.LinAlgError:
        step = np.full_like(right, np.nan)
    if not np.isfinite(step).all():
        step = np.linalg.pinv(matrix, hermitian=True) @ right
    return step
