"""Schedules: the shares of the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest

from onnxjl import schedule
from onnxjl.errors import UsageError
from onnxjl.schedule import Schedule


def test_one_shot_is_all_at_once():
    assert schedule.one_shot().fractions("macs", 0.3) == (0.3,)
    assert schedule.one_shot().fractions("amount", 0.3) == (0.3,)


@pytest.mark.parametrize("final", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_shares_removed_are_those_of_the_formulas(final, rounds):
    t = np.arange(1, rounds + 1)
    close = {"rel": 1e-12, "abs": 0}
    assert schedule.linear(rounds).removed(final) == pytest.approx(final * t / rounds, **close)
    # Zhu & Gupta 2017, eq. 1 with t0 = 0 and one pruning a step.
    expected = final + (0 - final) * (1 - t / rounds) ** 3
    assert schedule.cubic(rounds).removed(final) == pytest.approx(expected, **close)
    # Frankle & Carbin 2019: each round keeps (what is kept in the end)^(1/n) of what was left.
    left = np.cumprod(np.full(rounds, (1 - final) ** (1 / rounds)))
    assert schedule.geometric(rounds).removed(final) == pytest.approx(1 - left, **close)


def test_the_cubic_curve_may_begin_above_zero():
    found = schedule.cubic(4, initial=0.2).removed(0.8)
    expected = [0.8 + (0.2 - 0.8) * (1 - t / 4) ** 3 for t in (1, 2, 3, 4)]
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["linear", "cubic", "geometric"])
@pytest.mark.parametrize("budget", ["macs", "params", "bytes"])
def test_of_what_is_kept_the_fractions_fall_to_the_budget_itself(name, budget):
    found = Schedule(name, 7).fractions(budget, 0.1)
    assert found[-1] == 0.1
    assert (np.diff((1.0, *found)) < 0).all()
    assert found[:-1] == pytest.approx(1 - np.array(Schedule(name, 7).removed(0.9)[:-1]))


def test_of_an_amount_the_fractions_rise_to_it():
    assert schedule.linear(4).fractions("amount", 0.4) == pytest.approx((0.1, 0.2, 0.3, 0.4))
    # Half of what is left in each of three rounds.
    assert schedule.geometric(3).fractions("amount", 0.875) == pytest.approx((0.5, 0.75, 0.875))


def test_schedules_are_found_by_name():
    assert schedule.get("cubic", 5) == schedule.cubic(5)
    assert schedule.get("one-shot") == schedule.one_shot()
    assert schedule.get(schedule.linear(3), 3) == schedule.linear(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule("cubik", 3), r"no schedule 'cubik'; did you mean 'cubic'\?"),
        (lambda: Schedule("linear", 0), "rounds=0: a whole number of at least 1"),
        (lambda: Schedule("linear", -2), "rounds=-2: a whole number of at least 1"),
        (lambda: Schedule("linear", 2.5), "rounds=2.5: a whole number of at least 1"),
        (lambda: Schedule("one-shot", 2), "rounds=2: schedule 'one-shot' has one round"),
        (lambda: schedule.cubic(3, initial=1.0), r"initial=1.0: a share in \[0, 1\)"),
        (lambda: schedule.cubic(3, initial=0.6).removed(0.5), "from 0.6 removed to more, .* 0.5"),
        (lambda: schedule.linear(3).removed(1.0), "from 0 removed to more, below 1; came 1"),
        (lambda: schedule.get(schedule.linear(3), 4), "rounds=4: the schedule has 3"),
        (lambda: schedule.get(3), r"a schedule is a name \(one-shot, linear, .* not 3"),
    ],
)
def test_what_is_no_schedule(make, message):
    with pytest.raises(UsageError, match=message):
        make()
