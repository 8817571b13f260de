"""Which units stay, for budgets that are counted and those that are measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxjl.budget import AUTO, Request, select
from onnxjl.errors import BudgetError
from onnxjl.graph import Graph
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
) -> tuple[Keep, dict[str, Any]]:
    """Choose the units that stay.

    Parameters
    ----------
    structure, offered, scores : as for `onnxjl.budget.select`.
    request : how much is to go; its step may be "auto", its budget "latency".
    cut : makes the smaller network from the units that stay.
    inputs : what latency is measured with; random ones if not given.

    Returns
    -------
    For every group of the structure, (units,) bool; and what the plan should say of the request:
    the step that was taken, and what was measured.

    Raises
    ------
    BudgetError : the budget can't be met (says how far it can go), or nothing would change.
    UsageError : a pattern that matches no group.
    DataError, ModelError : latency is to be measured, and the network can't be run.
    """
    if request.round_to != AUTO:
        return _with_step(structure, offered, scores, request, cut, inputs)
    step = preferred_step(structure)
    while True:
        try:
            asked = replace(request, round_to=step)
            keep, facts = _with_step(structure, offered, scores, asked, cut, inputs)
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
) -> tuple[Keep, dict[str, Any]]:
    facts: dict[str, Any] = {"round_to": request.round_to}
    if request.budget != "latency":
        return select(structure, offered, scores, request), facts
    keep, trial = select_by_latency(structure, offered, scores, request, cut, inputs)
    facts["predicted"] = {
        "before_ms": trial.before_ms,
        "after_ms": trial.after_ms,
        "runtime": f"{runtime()}, 1 thread",
    }
    return keep, facts
