"""Gradients: weights whose removal changes the loss little matter little; of a Flux model only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxjl.criteria.gradient import Arrays, batch_gradients, mean_gradient
from onnxjl.criteria.weights import Scoring
from onnxjl.data import labelled
from onnxjl.errors import UsageError
from onnxjl.flux import FluxModel, in_julia, julia
from onnxjl.progress import progress
from onnxjl.sparsity.layers import Layer
from onnxjl.sparsity.registry import check_finite, register


@register(
    "snip",
    source="Lee et al. 2019, SNIP: Single-shot Network Pruning based on Connection Sensitivity, "
    "eq. 5",
    needs_labels=True,
    needs_gradient=True,
)
def snip(layer: Layer, scoring: Scoring) -> np.ndarray:
    """Return the sensitivity of the loss to each weight: ``|g·w|``, with the mean gradient.

    Returns
    -------
    float64, of the weight's shape
    """
    return np.abs(_product(layer, scoring, mean_gradient(scoring)))


@register(
    "taylor",
    source="Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, eq. 8",
    needs_labels=True,
    needs_gradient=True,
)
def taylor(layer: Layer, scoring: Scoring) -> np.ndarray:
    """Return the first-order change of the loss: ``(g·w)²``, the mean over batches.

    Returns
    -------
    float64, of the weight's shape
    """

    def measure() -> Arrays:
        total: dict[str, np.ndarray] = {}
        count = 0
        for gradient in batch_gradients(scoring, 64):
            count += 1
            for name, g in gradient.items():
                square = np.square(g.astype(np.float64) * scoring.graph.weight(name))
                total[name] = total[name] + square if name in total else square
        return {name: squares / count for name, squares in total.items()}

    return _of("taylor", layer, scoring, measure)


@register(
    "movement",
    source="Sanh et al. 2020, Movement Pruning: Adaptive Sparsity by Fine-Tuning, eq. 3",
    needs_labels=True,
    needs_gradient=True,
)
def movement(layer: Layer, scoring: Scoring) -> np.ndarray:
    """Return how far fine-tuning moves each weight away from zero: ``−Σ g·w``, over its steps.

    The steps are those of a copy that goes through the data once, by Adam with a learning rate of
    0.001, with the statistics that normalizations keep.

    Returns
    -------
    float64, of the weight's shape
    """
    return _of("movement", layer, scoring, lambda: _movements(scoring))


def _movements(scoring: Scoring) -> Arrays:
    """Return ``−Σ g·w`` of every weight."""
    if scoring.model is None or scoring.data is None:
        raise UsageError("movement needs a Flux model, and labelled data: data=, --data FILE.npz")
    with scoring.model.alone(), in_julia():
        bridge = julia()
        copy = FluxModel(scoring.model.graph, bridge.Base.deepcopy(scoring.model.julia))
        state = bridge.startstate(bridge.rule("adam", 1e-3, None), copy.julia)
        sums = bridge.Dict()
    for feeds, target in progress(labelled(scoring.data, scoring.graph), "following weights"):
        _, gradient = copy.backward(scoring.loss or "cross-entropy", feeds, target)
        with in_julia():
            bridge.addproducts_b(sums, copy.julia, gradient)
            bridge.step_b(state, copy.julia, gradient)
    with in_julia():
        arrays = bridge.namedarrays(sums)
    return {str(name): -np.array(x.T, order="C") for name, x in arrays.items()}


def _product(layer: Layer, scoring: Scoring, gradient: Arrays) -> np.ndarray:
    """Return a weight times its gradient; zeros where no gradient reaches it."""
    check_finite(layer, scoring)
    weight = scoring.graph.weight(layer.tensor).astype(np.float64)
    if layer.tensor not in gradient:
        return np.zeros_like(weight)
    product: np.ndarray = weight * gradient[layer.tensor].astype(np.float64)
    return product


def _of(name: str, layer: Layer, scoring: Scoring, measure: Callable[[], Arrays]) -> np.ndarray:
    """Return a weight's part of what is measured once for all."""
    check_finite(layer, scoring)
    if name not in scoring.computed:
        scoring.computed[name] = measure()
    found: Arrays = scoring.computed[name]
    return found.get(layer.tensor, np.zeros(layer.shape))
