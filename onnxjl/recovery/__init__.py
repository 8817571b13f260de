"""Recovery: give a pruned network back what it lost, without labels or gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from onnxjl.errors import UsageError
from onnxjl.graph import Graph
from onnxjl.recovery.batch_normalization import estimate
from onnxjl.recovery.refit import refit

Recovery = Literal["refit", "bn"]
RECOVERIES: tuple[Recovery, ...] = ("refit", "bn")

__all__ = ["RECOVERIES", "Recovery", "check_request", "recover"]


def recover(graph: Graph, method: Recovery, calibration: Any, *, batch_size: int = 64) -> Graph:
    """Return a pruned graph with weights that make up for what was removed.

    Parameters
    ----------
    graph : as `prune` returns it, with its `source`.
    method : "refit" solves every layer anew for the original network's outputs; "bn" estimates the
        statistics of batch normalization anew.
    calibration : inputs, without labels; see `onnxjl.data.batches`. Never the data that accuracy
        is reported on.
    batch_size : samples that are run at a time.

    Raises
    ------
    UsageError : an unknown method, no calibration data, or a graph that wasn't pruned.
    DataError : the data don't fit the inputs, or activations on them aren't finite.
    """
    check_request(method, calibration)
    if graph.plan is None or graph.source is None:
        raise UsageError("only a pruned graph can be recovered; call prune first")
    function = refit if method == "refit" else estimate
    recovered = function(graph, calibration, batch_size=batch_size)
    request = {**graph.plan.request, "recover": method}
    return replace(recovered, plan=replace(graph.plan, request=request))


def check_request(method: str, calibration: Any) -> None:
    """Raise `UsageError` if there is no such recovery, or no data for it."""
    if method not in RECOVERIES:
        raise UsageError(f"no recovery '{method}'; there are {', '.join(RECOVERIES)}")
    if calibration is None:
        raise UsageError(f"recovery by '{method}' needs inputs: calibration= (--calibrate FILE)")
