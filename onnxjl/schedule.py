"""Pruning schedules: how much is gone after each of several rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxjl.budget import Budget
from onnxjl.criteria.registry import unknown
from onnxjl.errors import UsageError

Curve = Callable[[float, float, float], float]
"""(part of the rounds done, in (0, 1]; share removed before; share removed in the end) -> share."""


def _one_shot(done: float, initial: float, final: float) -> float:
    return final


def _linear(done: float, initial: float, final: float) -> float:
    return initial + (final - initial) * done


def _cubic(done: float, initial: float, final: float) -> float:
    return final + (initial - final) * (1 - done) ** 3


def _geometric(done: float, initial: float, final: float) -> float:
    return 1 - (1 - initial) * ((1 - final) / (1 - initial)) ** done


MOST_ROUNDS = 10_000
"""Rounds that a schedule may have; each is kept in memory, and takes seconds at least."""

SCHEDULES: dict[str, Curve] = {
    "one-shot": _one_shot,
    "linear": _linear,
    "cubic": _cubic,
    "geometric": _geometric,
}
"""Name -> share removed after a part of the rounds."""


@dataclass(frozen=True)
class Schedule:
    """How much is gone after each round.

    Parameters
    ----------
    name : "one-shot", "linear", "cubic" or "geometric".
    rounds : number of rounds.
    initial : share that counts as gone before the first round, in [0, 1).

    Raises
    ------
    UsageError : there is no such schedule, or the numbers aren't such.
    """

    name: str
    rounds: int = 1
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise UsageError(f"a schedule's name is {self.name!r}, not text")
        if self.name not in SCHEDULES:
            raise UsageError(unknown("schedule", self.name, SCHEDULES))
        if not isinstance(self.rounds, int) or isinstance(self.rounds, bool) or self.rounds < 1:
            raise UsageError(f"rounds={self.rounds!r}: a whole number of at least 1 is needed")
        if self.rounds > MOST_ROUNDS:
            raise UsageError(f"rounds={self.rounds}: {MOST_ROUNDS:,} at most are treated")
        if self.name == "one-shot" and self.rounds != 1:
            others = ", ".join(name for name in SCHEDULES if name != self.name)
            raise UsageError(
                f"rounds={self.rounds}: schedule 'one-shot' has one round; schedules of several "
                f"are {others}"
            )
        if not 0 <= self.initial < 1:
            raise UsageError(f"initial={self.initial!r}: a share in [0, 1) is needed")

    def removed(self, final: float) -> tuple[float, ...]:
        """Return the share that is gone after each round.

        Parameters
        ----------
        final : the share that is gone after the last one, in (0, 1).

        Returns
        -------
        (rounds,) float, rising to `final`.

        Raises
        ------
        UsageError : `final` isn't above what is gone before, or not below 1.
        """
        if not self.initial < final < 1:
            raise UsageError(
                f"a schedule leads from {self.initial:g} removed to more, below 1; came {final:g}"
            )
        curve = SCHEDULES[self.name]
        parts = [round_ / self.rounds for round_ in range(1, self.rounds)]
        return (*(curve(part, self.initial, final) for part in parts), final)

    def fractions(self, budget: Budget, fraction: float) -> tuple[float, ...]:
        """Return the fraction of the original that a budget has after each round.

        Parameters
        ----------
        budget : "amount", of which the fraction is what is removed; of others it is what is kept.
        fraction : that of the last round, in (0, 1).

        Returns
        -------
        (rounds,) float; the last is `fraction` itself.
        """
        if budget == "amount":
            return self.removed(fraction)
        return (*(1 - removed for removed in self.removed(1 - fraction)[:-1]), fraction)


def one_shot() -> Schedule:
    """Return the schedule that removes everything in one round."""
    return Schedule("one-shot")


def linear(rounds: int) -> Schedule:
    """Return the schedule that removes the same share of the original in each round.

    Parameters
    ----------
    rounds : number of rounds n; after round t, ``s_f · t/n`` is gone.
    """
    return Schedule("linear", rounds)


def cubic(rounds: int, *, initial: float = 0.0) -> Schedule:
    """Return the schedule that removes much at first, and ever less.

    Source: Zhu & Gupta 2017, "To prune, or not to prune", eq. 1.

    Parameters
    ----------
    rounds : number of rounds n; after round t, ``s_f + (s_i − s_f)(1 − t/n)³`` is gone.
    initial : the share s_i that the curve begins with.
    """
    return Schedule("cubic", rounds, initial)


def geometric(rounds: int) -> Schedule:
    """Return the schedule that removes the same share of what is left in each round.

    Source: Frankle & Carbin 2019, "The Lottery Ticket Hypothesis", section 1, where each round
    prunes ``p^(1/n)`` of the weights that survive; the exponential schedule of Tanaka et al. 2020,
    "Pruning neural networks without any data by iteratively conserving synaptic flow", algorithm 1.

    Parameters
    ----------
    rounds : number of rounds n; after round t, ``(1 − s_f)^(t/n)`` is left.
    """
    return Schedule("geometric", rounds)


def get(schedule: str | Schedule, rounds: int | None = None) -> Schedule:
    """Return the schedule that is meant.

    Parameters
    ----------
    schedule : a name, or a schedule.
    rounds : number of rounds, for a name; by default 1.

    Raises
    ------
    UsageError : there is no such schedule, or it has another number of rounds.
    """
    if isinstance(schedule, str):
        return Schedule(schedule, 1 if rounds is None else rounds)
    if not isinstance(schedule, Schedule):
        raise UsageError(
            f"a schedule is a name ({', '.join(SCHEDULES)}) or a Schedule, not {schedule!r}"
        )
    if rounds is not None and rounds != schedule.rounds:
        raise UsageError(f"rounds={rounds}: the schedule has {schedule.rounds}")
    return schedule
