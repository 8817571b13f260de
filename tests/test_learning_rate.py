"""Schedules of the learning rate."""

from __future__ import annotations

import math

import pytest

from onnxjl.errors import UsageError
from onnxjl.learning_rate import check, factor


@pytest.mark.parametrize(
    ("schedule", "done", "expected"),
    [
        ("constant", 0.0, 1.0),
        ("constant", 0.99, 1.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 1 / 3, 0.75),
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
        ("step", 0.49, 1.0),
        ("step", 0.5, 0.1),
        ("step", 0.75, 0.01),
    ],
)
def test_factors(schedule: str, done: float, expected: float) -> None:
    assert factor(schedule, step=7, done=done) == pytest.approx(expected, abs=1e-12)


def test_a_function_gets_the_step() -> None:
    assert factor(lambda step: 0.5**step, step=3, done=0.9) == 0.125


def test_warm_up_rises_to_the_schedule() -> None:
    factors = [factor("constant", step=step, done=0.0, warmup=4) for step in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factor("cosine", step=0, done=0.5, warmup=2) == pytest.approx(0.25)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_function_that_gives_no_factor(value: float) -> None:
    with pytest.raises(UsageError, match=rf"the schedule's factor of step 2 is {value}"):
        factor(lambda step: value, step=2, done=0.0)


@pytest.mark.parametrize(
    ("schedule", "warmup", "message"),
    [
        ("cosin", 0, "no schedule 'cosin'; did you mean 'cosine'"),
        (3, 0, "a schedule is a name or a function of the step, not 3"),
        ("constant", -1, "warmup=-1: a number of steps is needed"),
    ],
)
def test_schedules_that_there_are_not(schedule: object, warmup: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(schedule, warmup)  # type: ignore[arg-type]
