"""Random scores: the baseline that every other criterion has to beat."""

from __future__ import annotations

import zlib

import numpy as np

from onnxjl.criteria.registry import register
from onnxjl.criteria.weights import GroupWeights
from onnxjl.structure import Group


@register(
    "random",
    source="Mittal et al. 2018, Recovering from Random Pruning",
    # Any unit of the network is as likely to go as any other.
    normalization="none",
)
def random(group: Group, weights: GroupWeights) -> np.ndarray:
    """Uniform in [0, 1), from the seed and the group's name.

    A group has the same scores whatever else is pruned.

    Returns
    -------
    (units,) float64
    """
    name = zlib.crc32(group.name.encode())
    return np.random.default_rng([weights.scoring.seed, name]).random(group.size)
