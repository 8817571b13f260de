"""Latency: how long onnxruntime takes for one run, as a deployed model would."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxjl.errors import UsageError
from onnxjl.session import open_session, run

if TYPE_CHECKING:
    from onnxjl.graph import Graph

_LEAST_RUNS = 5
_WARM_UP_RUNS = 2


@dataclass(frozen=True)
class Latency:
    """Time of one run.

    Parameters
    ----------
    median_ms : median of all runs, in milliseconds.
    min_ms : the fastest run, in milliseconds.
    runs : number of runs.
    quartiles_ms : a quarter of the runs was faster than the first of the two, a quarter slower than
        the second, in milliseconds; None where single runs weren't kept.
    """

    median_ms: float
    min_ms: float
    runs: int
    quartiles_ms: tuple[float, float] | None = None

    @classmethod
    def of(cls, times: Sequence[float]) -> Latency:
        """Return what the times of single runs, in milliseconds, come to."""
        lower, median, upper = map(float, np.quantile(times, (0.25, 0.5, 0.75)))
        return cls(median, min(times), len(times), (lower, upper))


def measure(
    model: Graph | str | os.PathLike[str] | bytes,
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    seconds: float = 1.0,
) -> Latency:
    """Measure one model in onnxruntime, all optimizations on.

    Parameters
    ----------
    model : as `onnxjl.session.open_session` takes it.
    inputs : one array for each input, by name.
    threads : threads for one operator.
    seconds : how long to measure, after warming up; at least five runs are made.

    Returns
    -------
    Latency

    Raises
    ------
    ModelError : onnxruntime can't run the model.
    """
    return measure_all([model], inputs, threads=threads, seconds=seconds)[0]


def measure_pair(
    a: Graph | str | os.PathLike[str] | bytes,
    b: Graph | str | os.PathLike[str] | bytes,
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    seconds: float = 2.0,
) -> tuple[Latency, Latency]:
    """Measure two models by turns, so that what else the machine does slows both alike.

    Parameters
    ----------
    a, b : as `onnxjl.session.open_session` takes them.
    inputs : one array for each input, by name; both models take the same.
    threads : threads for one operator.
    seconds : how long to measure both together; at least five runs of each are made.

    Returns
    -------
    The latency of a, and of b.

    Raises
    ------
    ModelError : onnxruntime can't run a model.
    """
    first, second = measure_all([a, b], inputs, threads=threads, seconds=seconds)
    return first, second


def measure_all(
    models: Sequence[Graph | str | os.PathLike[str] | bytes],
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    seconds: float = 2.0,
) -> list[Latency]:
    """Measure models by turns, so that what else the machine does slows all alike.

    Parameters
    ----------
    models : each as `onnxjl.session.open_session` takes it.
    inputs, threads, seconds : as for `measure_pair`.

    Returns
    -------
    The latency of each.

    Raises
    ------
    ModelError : onnxruntime can't run a model.
    """
    if threads < 1 or seconds < 0:
        raise UsageError(f"threads={threads}, seconds={seconds}: expected ≥ 1 and ≥ 0")
    sessions = [open_session(model, optimized=True, threads=threads) for model in models]
    for session in sessions:
        for _ in range(_WARM_UP_RUNS):
            run(session, inputs)
    times: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + seconds
    while len(times[0]) < _LEAST_RUNS or time.perf_counter() < end:
        for session, taken in zip(sessions, times, strict=True):
            start = time.perf_counter()
            run(session, inputs)
            taken.append(1e3 * (time.perf_counter() - start))
    return [Latency.of(taken) for taken in times]
