"""Criteria: how important each unit of a group is.

A criterion is a function ``f(group, weights)``; its scores are aggregated over the group's tensors,
and normalized so that groups can be compared. To add one, write a file beside these with a function
decorated with `register`, and import it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxjl.criteria import (
    activation,
    bn_scale,
    fpgm,
    gradient,
    lamp,
    magnitude,
    random,
    reconstruction,
)
from onnxjl.criteria.aggregation import AGGREGATIONS, NORMALIZATIONS, normalize
from onnxjl.criteria.registry import (
    CRITERIA,
    Criterion,
    Function,
    called,
    get,
    name_of,
    register,
    unknown,
)
from onnxjl.criteria.weights import GroupWeights, Scoring, checked_seed
from onnxjl.errors import UsageError
from onnxjl.graph import Graph
from onnxjl.structure import Group

if TYPE_CHECKING:
    from onnxjl.flux import FluxModel

__all__ = [
    "AGGREGATIONS",
    "CRITERIA",
    "NORMALIZATIONS",
    "Criterion",
    "GroupWeights",
    "activation",
    "bn_scale",
    "fpgm",
    "get",
    "gradient",
    "lamp",
    "magnitude",
    "name_of",
    "random",
    "reconstruction",
    "register",
    "score",
]


def score(
    graph: Graph,
    groups: Sequence[Group],
    criterion: str | Function | Criterion = "l2",
    *,
    aggregation: str = "mean",
    normalization: str | None = None,
    data: Any = None,
    seed: int = 0,
    model: FluxModel | None = None,
    loss: Any = None,
) -> list[np.ndarray]:
    """Score every unit of every group.

    Parameters
    ----------
    graph : the normalized graph that the groups belong to.
    groups : what is scored; some criteria compare groups with each other.
    criterion : a registered name, or a function ``f(group, weights) -> (units,) scores`` where
        `weights` maps the group's tensors to arrays, read when they are asked for.
    aggregation : how the scores that a unit has in the group's tensors become one: ``"mean"``,
        ``"sum"`` or ``"max"``. A function's scores are already one.
    normalization : what a group's scores are divided by: their ``"mean"`` or ``"max"`` (in absolute
        value), or ``"none"``. None is the criterion's own: the mean, but nothing for ``lamp`` and
        ``random``, whose scores are comparable as they are.
    data : inputs for criteria that are measured; see `onnxjl.data`.
    seed : of random scores, at least 0.
    model : the network as Flux layers, for criteria that need gradients.
    loss : whose gradients; see `FluxModel.gradient`. None is the cross-entropy.

    Returns
    -------
    For each group (units,) float64, larger is more important.

    Raises
    ------
    UsageError : an unknown name or option, missing data, or a function's scores can't be used.
    WeightError : a weight that is scored holds NaN or infinity.
    DataError : the data can't be read or don't fit the graph.
    """
    chosen = get(criterion, gradients=model is not None)
    normalization = normalization or chosen.normalization
    if aggregation not in AGGREGATIONS:
        raise UsageError(unknown("aggregation", aggregation, AGGREGATIONS))
    if normalization not in NORMALIZATIONS:
        raise UsageError(unknown("normalization", normalization, NORMALIZATIONS))
    scoring = Scoring(
        graph,
        groups,
        aggregation=aggregation,
        data=data,
        seed=checked_seed(seed),
        model=model,
        loss=loss,
    )
    return [normalize(_scores(scoring, group, chosen), normalization) for group in groups]


def _scores(scoring: Scoring, group: Group, criterion: Criterion) -> np.ndarray:
    """(units,) float64, checked and aggregated."""
    weights = GroupWeights(scoring, group)
    registered = CRITERIA.get(criterion.name) is criterion
    start = f"criterion '{criterion.name}', group '{group.name}'"
    result = called(criterion.function, group, weights, registered=registered, start=start)
    try:
        scores = np.asarray(result)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{start}: its scores are no array: {error}") from error
    if scores.dtype.kind not in "fiub":
        raise UsageError(f"{start}: scores must be real numbers, not {scores.dtype}")
    scores = scores.astype(np.float64)
    if not np.isfinite(scores).all():
        weights.check_finite()
        wrong = np.argwhere(~np.isfinite(scores))[0].tolist()
        raise UsageError(f"{start}: scores must be finite; at {wrong} is {scores[tuple(wrong)]}")
    if registered and scores.ndim == 2 and scores.shape[1] == group.size and len(scores):
        scores = weights.aggregate(scores)
    if scores.shape != (group.size,):
        raise UsageError(
            f"{start}: expected one score for each unit, shape ({group.size},), came shape "
            f"{scores.shape}"
        )
    return scores
