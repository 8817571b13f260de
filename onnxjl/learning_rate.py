"""Learning-rate schedules: the factor of the learning rate as training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnxjl.criteria.registry import unknown
from onnxjl.errors import UsageError

Schedule = str | Callable[[int], float]


def _constant(done: float) -> float:
    return 1.0


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _step(done: float) -> float:
    return 0.1 ** ((done >= 0.5) + (done >= 0.75))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
}
"""Name -> factor as a function of how much of all epochs is done, in [0, 1]."""


def check(schedule: Schedule, warmup: int) -> None:
    """Raise UsageError unless there is such a schedule."""
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise UsageError(unknown("schedule", schedule, SCHEDULES))
    elif not callable(schedule):
        raise UsageError(f"a schedule is a name or a function of the step, not {schedule!r}")
    if warmup < 0:
        raise UsageError(f"warmup={warmup}: a number of steps is needed")


def factor(schedule: Schedule, *, step: int, done: float, warmup: int = 0) -> float:
    """Return what the learning rate is multiplied by.

    Parameters
    ----------
    schedule : "constant"; "cosine", half a wave from 1 to 0 (Loshchilov & Hutter 2017, eq. 5);
        "step", a tenth from one half on and a hundredth from three quarters on; or a function of
        the step's number.
    step : number of the step, from 0.
    done : how much of all epochs is done, in [0, 1].
    warmup : number of first steps over which the factor rises to its own value, in proportion.

    Raises
    ------
    UsageError : the caller's function gives no finite number of at least 0.
    """
    value = SCHEDULES[schedule](done) if isinstance(schedule, str) else float(schedule(step))
    if not 0 <= value < math.inf:
        raise UsageError(f"the schedule's factor of step {step} is {value}")
    return value * min(1.0, (step + 1) / warmup) if warmup else value
