"""The registry of criteria: what can be asked for by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxjl.criteria.weights import GroupWeights
from onnxjl.errors import OnnxjlError, UsageError
from onnxjl.structure import Group

Function = Callable[[Group, GroupWeights], np.ndarray]


@dataclass(frozen=True)
class Criterion:
    """A way to tell how important each unit of a group is.

    Parameters
    ----------
    name : what it is asked for by.
    function : ``f(group, weights)`` that returns scores, larger is more important: either one row
        for each tensor or activation, (rows, units), which are then aggregated as asked, or
        (units,) if it has combined them itself.
    source : the paper that it comes from.
    needs_data : whether it is measured on the caller's data.
    needs_gradient : whether it needs gradients, which only the Flux engine has.
    normalization : what scores are divided by unless the caller says otherwise: ``"mean"`` or
        ``"max"`` of the group, or ``"none"`` where the scores of different groups are comparable
        as they are.
    """

    name: str
    function: Function
    source: str = ""
    needs_data: bool = False
    normalization: str = "mean"
    needs_gradient: bool = False

    @property
    def summary(self) -> str:
        """The first sentence of the function's description."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


CRITERIA: dict[str, Criterion] = {}
"""Name -> criterion."""


def register(
    name: str,
    *,
    source: str = "",
    needs_data: bool = False,
    normalization: str = "mean",
    needs_gradient: bool = False,
) -> Callable[[Function], Function]:
    """Decorate a function to make it a criterion that can be asked for by name.

    Parameters
    ----------
    name, source, needs_data, normalization, needs_gradient : as `Criterion` has them.

    Raises
    ------
    ValueError : the name is taken.
    """
    if name in CRITERIA:
        raise ValueError(f"there is already a criterion '{name}'")

    def decorate(function: Function) -> Function:
        CRITERIA[name] = Criterion(
            name, function, source, needs_data, normalization, needs_gradient
        )
        return function

    return decorate


def get(criterion: str | Function | Criterion, *, gradients: bool = True) -> Criterion:
    """The criterion that is meant.

    Parameters
    ----------
    criterion : a registered name, a criterion, or any function ``f(group, weights) -> scores``.
    gradients : whether there are gradients for criteria that need them.

    Returns
    -------
    Criterion

    Raises
    ------
    UsageError : no criterion has that name, it needs gradients, or it isn't callable.
    """
    chosen = CRITERIA.get(criterion) if isinstance(criterion, str) else criterion
    if isinstance(chosen, Criterion):
        if chosen.needs_gradient and not gradients:
            raise UsageError(
                f"criterion '{chosen.name}' needs gradients, which the numpy engine hasn't: prune "
                "a Flux model (onnxjl.to_flux, --engine flux)"
            )
        return chosen
    if isinstance(criterion, str):
        raise UsageError(unknown("criterion", criterion, CRITERIA))
    if callable(criterion):
        return Criterion(name_of(criterion), criterion)
    raise UsageError(
        f"a criterion is a name or a function f(group, weights) -> scores, not {criterion!r}"
    )


def name_of(criterion: str | Function | Criterion) -> str:
    """What a criterion is called in plans and reports.

    Parameters
    ----------
    criterion : as for `get`.
    """
    if isinstance(criterion, str):
        return criterion
    if isinstance(criterion, Criterion):
        return criterion.name
    return getattr(criterion, "__name__", type(criterion).__name__)


def called(function: Callable[..., Any], *given: Any, registered: bool, start: str) -> Any:
    """What a criterion's function returns; what the user's own raises is theirs to mend.

    Parameters
    ----------
    function, given : the function, and what it takes.
    registered : whether it is one of ours, whose faults aren't the user's.
    start : of the message: which criterion, and what it scores.

    Raises
    ------
    UsageError : a function of the user's own raised something.
    """
    try:
        return function(*given)
    except (OnnxjlError, Warning, MemoryError):
        raise
    except Exception as error:
        if registered:
            raise
        raise UsageError(f"{start}: it raised {type(error).__name__}: {error}") from error


def unknown(kind: str, name: object, available: Iterable[str]) -> str:
    """The message for a name that isn't there: what is, and which one may be meant."""
    close = difflib.get_close_matches(str(name).lower().replace("_", "-"), list(available), 1, 0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"no {kind} '{name}'; {hint}there are {', '.join(available)}"
