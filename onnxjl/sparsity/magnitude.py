"""Scores that need nothing but the weight: its magnitude, or chance."""

from __future__ import annotations

import zlib

import numpy as np

from onnxjl.criteria.weights import Scoring
from onnxjl.sparsity.layers import Layer
from onnxjl.sparsity.registry import check_finite, register, values


@register(
    "magnitude",
    "l1",
    source="Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks, "
    "section 3.1",
)
def magnitude(layer: Layer, scoring: Scoring) -> np.ndarray:
    """Return the absolute value of each weight: ``|w|``.

    Returns
    -------
    floating, of the weight's shape
    """
    return np.abs(values(layer, scoring))


@register("random", source="Mittal et al. 2018, Recovering from Random Pruning")
def random(layer: Layer, scoring: Scoring) -> np.ndarray:
    """Return numbers uniform in [0, 1), from the seed and the weight's name.

    A weight has the same scores whatever else is made sparse.

    Returns
    -------
    float64, of the weight's shape
    """
    check_finite(layer, scoring)
    name = zlib.crc32(layer.tensor.encode())
    return np.random.default_rng([scoring.seed, name]).random(layer.shape)
