"""The scale of normalizations: what training has scaled down can go.

Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming",
section 3, where a penalty on the scales ``γ`` of BatchNormalization makes those of useless channels
small.
"""

from __future__ import annotations

import numpy as np

from onnxjl.criteria.magnitude import stand_in
from onnxjl.criteria.registry import register
from onnxjl.criteria.weights import GroupWeights, Scoring
from onnxjl.errors import UsageError
from onnxjl.structure import Group


@register(
    "bn-scale",
    source="Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming",
)
def bn_scale(group: Group, weights: GroupWeights) -> np.ndarray:
    """Absolute scale of a unit in the normalizations that it passes: ``|γ|``.

    The scales of Batch-, Layer-, Instance-, Group- and RMSNormalization count; of several indices
    that belong to a unit, their mean. A group that passes none is ranked by l2 instead, brought to
    the mean of the others' scores.

    Returns
    -------
    (tensors, units) float64; (units,) for a group without scales.

    Raises
    ------
    UsageError : no group passes a normalization.
    """
    if weights.scales:
        return _scales(weights)
    return stand_in(group, weights, _mean(weights.scoring))


def _scales(weights: GroupWeights) -> np.ndarray:
    several = np.array([[member.indices.shape[1]] for member in weights.scales])
    return weights.magnitudes(weights.scales, 1) / several


def _mean(scoring: Scoring) -> float:
    """Mean scale over all groups that have one."""
    if "bn-scale" not in scoring.computed:
        normalized = [w for g in scoring.groups if (w := GroupWeights(scoring, g)).scales]
        if not normalized:
            raise UsageError(
                "criterion 'bn-scale' needs normalizations with a scale, and no prunable group "
                "passes one (exporters fold BatchNormalization into convolutions unless told not "
                "to); use 'l2'"
            )
        scores = [w.aggregate(_scales(w)) for w in normalized]
        scoring.computed["bn-scale"] = float(np.concatenate(scores).mean())
    return scoring.computed["bn-scale"]
