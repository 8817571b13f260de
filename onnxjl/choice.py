"""Which units stay, for budgets that are counted and those that are measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxjl.budget import AUTO, Request, select_and_tell
from onnxjl.errors import BudgetError
from onnxjl.graph import Graph
from onnxjl.group_errors import measure_group_errors
from onnxjl.latency_budget import Keep, select_by_latency
from onnxjl.structure.groups import Structure
from onnxjl.widths import preferred_step, runtime


def choose(
    structure: Structure,
    offered: Sequence[int],
    scores: Sequence[NDArray[np.float64]],
    request: Request,
    *,
    cut: Callable[[Keep], Graph],
    inputs: Mapping[str, NDArray[Any]] | None = None,
    data: Any = None,
) -> tuple[Keep, dict[str, Any]]:
    """Choose the units that stay.

    Parameters
    ----------
    structure, offered, scores : as for `onnxjl.budget.select`.
    request : how much is to go; its step may be "auto", its budget "latency".
    cut : makes the smaller network from the units that stay.
    inputs : what latency is measured with; random ones if not given.
    data : what the sensitivity of groups is measured with; `inputs` if not given.

    Returns
    -------
    For every group of the structure, (units,) bool; and what the plan should say of the request:
    the step that was taken, what was measured, and what is known of an optimal selection.

    Raises
    ------
    BudgetError : the budget can't be met (says how far it can go), or nothing would change.
    UsageError : a pattern that matches no group, or the solver of scope "optimal" isn't there.
    DataError, ModelError : something is to be measured, and the network can't be run.
    """
    known: dict[str, Any] = {}
    errors = None
    if request.scope == "sensitivity":
        measured = measure_group_errors(
            structure,
            offered,
            scores,
            cut,
            inputs if data is None else data,
            min_units=request.min_units,
        )
        errors = {number: each.curve() for number, each in measured.items()}
        known["sensitivity"] = {
            structure.groups[number].name: {
                "kept": each.kept.tolist(),
                "error": each.errors.tolist(),
            }
            for number, each in measured.items()
        }

    def chosen(asked: Request) -> tuple[Keep, dict[str, Any]]:
        keep, facts = _with_step(structure, offered, scores, asked, cut, inputs, errors)
        return keep, {**facts, **known}

    if request.round_to != AUTO:
        return chosen(request)
    step = preferred_step(structure)
    while True:
        try:
            keep, facts = chosen(replace(request, round_to=step))
        except BudgetError:
            if step == 1:
                raise
            step //= 2
        else:
            return keep, {**facts, "round_to_asked": AUTO}


def _with_step(
    structure: Structure,
    offered: Sequence[int],
    scores: Sequence[NDArray[np.float64]],
    request: Request,
    cut: Callable[[Keep], Graph],
    inputs: Mapping[str, NDArray[Any]] | None,
    errors: Mapping[int, NDArray[np.float64]] | None,
) -> tuple[Keep, dict[str, Any]]:
    facts: dict[str, Any] = {"round_to": request.round_to}
    if request.budget != "latency":
        keep, told = select_and_tell(structure, offered, scores, request, errors)
        return keep, {**facts, **told}
    keep, trial, told = select_by_latency(structure, offered, scores, request, cut, inputs, errors)
    facts |= told
    facts["predicted"] = {
        "before_ms": trial.before_ms,
        "after_ms": trial.after_ms,
        "runtime": f"{runtime()}, 1 thread",
    }
    return keep, facts
