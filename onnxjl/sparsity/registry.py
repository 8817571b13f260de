"""The registry of criteria for single weights: what `sparsify` can be asked for by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxjl.criteria.registry import unknown
from onnxjl.criteria.weights import Scoring
from onnxjl.errors import UsageError, WeightError
from onnxjl.sparsity.budget import Scope
from onnxjl.sparsity.layers import Layer

if TYPE_CHECKING:
    from onnxjl.sparsity.reading import Solver

Function = Callable[[Layer, Scoring], np.ndarray]


@dataclass(frozen=True)
class Criterion:
    """A way to tell how important each weight is.

    Parameters
    ----------
    name : what it is asked for by.
    function : ``f(layer, scoring)`` that returns scores of the weight's shape, larger is more
        important; None where `solver` does the work.
    solver : what chooses from the inputs that a layer reads, layer after layer.
    source : the paper that it comes from.
    needs_data : whether it is measured on the caller's data.
    needs_labels : whether these have to have labels.
    needs_gradient : whether it needs gradients, which only the Flux engine has.
    """

    name: str
    function: Function | None = None
    solver: Solver | None = None
    source: str = ""
    needs_data: bool = False
    needs_labels: bool = False
    needs_gradient: bool = False

    @property
    def scope(self) -> Scope:
        """What is compared unless the caller says otherwise."""
        return "global" if self.solver is None else "local"


CRITERIA: dict[str, Criterion] = {}
"""Name -> criterion for single weights."""


def register(
    *names: str,
    source: str = "",
    needs_labels: bool = False,
    needs_gradient: bool = False,
) -> Callable[[Function], Function]:
    """Decorate a function to make it a criterion for single weights, under one name or several.

    Parameters
    ----------
    names, source, needs_labels, needs_gradient : as `Criterion` has them.

    Raises
    ------
    ValueError : a name is taken.
    """

    def decorate(function: Function) -> Function:
        for name in names:
            add(
                Criterion(
                    name,
                    function,
                    source=source,
                    needs_data=needs_labels,
                    needs_labels=needs_labels,
                    needs_gradient=needs_gradient,
                )
            )
        return function

    return decorate


def add(criterion: Criterion) -> None:
    """Register a criterion; raise a ValueError if its name is taken."""
    if criterion.name in CRITERIA:
        raise ValueError(f"there is already a criterion '{criterion.name}' for weights")
    CRITERIA[criterion.name] = criterion


def get(criterion: Any, *, gradients: bool) -> Criterion:
    """Return the criterion that is meant.

    Parameters
    ----------
    criterion : a registered name, or a function ``f(name, weight) -> scores`` of the weight's
        shape.
    gradients : whether there are gradients for criteria that need them.

    Raises
    ------
    UsageError : no criterion has that name, it needs gradients, or it isn't callable.
    """
    if isinstance(criterion, str):
        chosen = CRITERIA.get(criterion)
        if chosen is None:
            raise UsageError(unknown("criterion for single weights", criterion, CRITERIA))
        if chosen.needs_gradient and not gradients:
            raise UsageError(
                f"criterion '{chosen.name}' needs gradients, which the numpy engine hasn't: "
                "sparsify a Flux model (onnxjl.to_flux, --engine flux)"
            )
        return chosen
    if callable(criterion):
        name = getattr(criterion, "__name__", type(criterion).__name__)
        return Criterion(name, lambda layer, scoring: criterion(*_given(layer, scoring)))
    raise UsageError(
        f"a criterion is a name or a function f(name, weight) -> scores, not {criterion!r}"
    )


def score(criterion: Criterion, layer: Layer, scoring: Scoring) -> np.ndarray:
    """Return a weight's scores, once it is clear that they can be ranked.

    Returns
    -------
    floating, of the weight's shape

    Raises
    ------
    WeightError : the weight holds NaN or infinity.
    UsageError : the scores aren't finite real numbers of the weight's shape.
    """
    assert criterion.function is not None
    result = criterion.function(layer, scoring)
    start = f"criterion '{criterion.name}', weight '{layer.tensor}'"
    try:
        scores = np.asarray(result)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{start}: its scores are no array: {error}") from error
    if scores.dtype.kind not in "fiub":
        raise UsageError(f"{start}: scores must be real numbers, not {scores.dtype}")
    if scores.shape != layer.shape:
        raise UsageError(
            f"{start}: expected a score for each weight, shape {layer.shape}, came shape "
            f"{scores.shape}"
        )
    if scores.dtype.kind != "f" or scores.dtype.itemsize < 4:
        scores = scores.astype(np.float64)
    if not np.isfinite(scores).all():
        check_finite(layer, scoring)
        wrong = np.argwhere(~np.isfinite(scores))[0].tolist()
        raise UsageError(f"{start}: scores must be finite; at {wrong} is {scores[tuple(wrong)]}")
    return scores


def check_finite(layer: Layer, scoring: Scoring) -> None:
    """Raise a WeightError if a weight holds NaN or infinity."""
    array = values(layer, scoring)
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0].tolist()
        what = "NaN" if np.isnan(array[tuple(where)]) else "infinity"
        raise WeightError(
            f"weight '{layer.tensor}' holds {what} (first at {where}) and can't be scored; repair "
            "the model, or leave its layer whole (ignore=, --ignore)"
        )


def values(layer: Layer, scoring: Scoring) -> np.ndarray:
    """Return a weight in float32, or float64 where it is that."""
    array = scoring.graph.weight(layer.tensor)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _given(layer: Layer, scoring: Scoring) -> tuple[str, np.ndarray]:
    array = scoring.graph.weight(layer.tensor).view()
    array.flags.writeable = False
    return layer.tensor, array
