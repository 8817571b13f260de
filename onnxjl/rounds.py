"""Rounds: what to ask of a network that was pruned before, so that the original's budget holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxjl.budget import Budget, alone
from onnxjl.errors import BudgetError, UsageError
from onnxjl.graph import Graph
from onnxjl.history import History, history_of
from onnxjl.plan import Plan, apply
from onnxjl.sparsity.sparsify import mask
from onnxjl.structure.blocks import find
from onnxjl.structure.groups import Granularity, Group, Structure, analyze, offer

# Fractions are floats: what is above a limit by less than this is within it.
_SLACK = 1e-9


@dataclass(frozen=True)
class Round:
    """What one round did.

    Parameters
    ----------
    number : from 1.
    asked : fraction of the original that was asked for: kept, or removed for "amount".
    macs_kept, params_kept : fractions of the original's.
    sparsity : fraction of zeros in the weights that have masks; None where units were removed.
    accuracy_after_pruning, accuracy_after_recovery, accuracy_after_training : fractions of the
        validation samples; None where there are none, or the step wasn't taken.
    accuracy : that of the network which the round ends with.
    seconds : wall-clock time, measurements included.
    history : of the training, if there was any.
    """

    number: int
    asked: float
    macs_kept: float
    params_kept: float
    sparsity: float | None
    accuracy_after_pruning: float | None
    accuracy_after_recovery: float | None
    accuracy_after_training: float | None
    accuracy: float | None
    seconds: float
    history: History | None = None

    def row(self) -> dict[str, Any]:
        """Return its figures, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "history"}

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON's types."""
        return asdict(self)


def round_of(values: Mapping[str, Any]) -> Round:
    """Return the round of which `Round.to_dict` gave these values."""
    history = values["history"]
    return Round(**{**values, "history": None if history is None else history_of(history)})


@dataclass(frozen=True)
class Original:
    """The network that fractions refer to.

    Parameters
    ----------
    structure : its structure.
    offered : the groups that may be pruned.
    granularity, allow_inexact, ignore : what says which these are; see `onnxjl.groups`.
    """

    structure: Structure
    offered: tuple[Group, ...]
    granularity: Granularity
    allow_inexact: bool
    ignore: Sequence[str]

    @classmethod
    def of(
        cls,
        graph: Graph,
        *,
        granularity: Granularity = "channel",
        allow_inexact: bool = False,
        ignore: Sequence[str] = (),
    ) -> Original:
        """Analyze a graph.

        Raises
        ------
        UsageError : a pattern matches nothing, or there is no such granularity.
        """
        structure = analyze(graph, granularity=granularity)
        offered = _offered(structure, allow_inexact, ignore)
        return cls(structure, offered, granularity, allow_inexact, ignore)

    def kept(self, plan: Plan | None) -> NDArray[np.int64]:
        """Return how many units of each offered group a plan that refers to it keeps."""
        return np.array([_kept(group, plan) for group in self.offered], dtype=np.int64)

    def request(
        self, graph: Graph, budget: Budget, fraction: float, scope: str
    ) -> dict[str, Any] | None:
        """Return what `prune` is to be asked of a network that came of this one.

        Parameters
        ----------
        graph : this network, or what earlier rounds made of it.
        budget : "amount", "macs", "params" or "bytes".
        fraction : of this network.
        scope : "global" or "local"; with the latter an amount is that of each group.

        Returns
        -------
        Arguments that say how much, or None where the budget holds already.

        Raises
        ------
        BudgetError : the units that are left can't be removed, or not be followed.
        """
        if graph.plan is None:
            return {budget: fraction}
        now = analyze(graph, granularity=self.granularity)
        if budget == "amount":
            offered = _offered(now, self.allow_inexact, self.ignore)
            if scope == "local":
                return self._of_each(graph.plan, offered, fraction)
            return self._amount(graph.plan, offered, fraction)
        return _of_cost(self.structure, now, budget, fraction)

    def _amount(
        self, plan: Plan, offered: Sequence[Group], fraction: float
    ) -> dict[str, Any] | None:
        whole = sum(group.size for group in self.offered)
        surplus = int(self.kept(plan).sum()) - whole * (1 - fraction)
        if surplus <= whole * _SLACK:
            return None
        # A group with one unit left is none any more.
        units = sum(group.size for group in offered)
        if surplus >= units:
            raise BudgetError(
                f"amount={fraction} can't be met: {surplus:.0f} more units have to go, and "
                f"{units} are left in groups of several"
            )
        return {"amount": surplus / units}

    def _of_each(
        self, plan: Plan, offered: Sequence[Group], fraction: float
    ) -> dict[str, Any] | None:
        left = [
            (group, count)
            for group, count in zip(self.offered, self.kept(plan).tolist(), strict=True)
            if count > 1
        ]
        if [count for _, count in left] != [group.size for group in offered]:
            raise BudgetError(
                "the groups of the pruned network aren't those of the original; use scope='global'"
            )
        amounts = {}
        for (group, count), now in zip(left, offered, strict=True):
            wanted = max(1, int(np.floor((1 - fraction) * group.size + _SLACK)))
            if wanted < count:
                amounts[alone(now.name)] = 1 - wanted / count
        return {"amount_for": amounts} if amounts else None


@dataclass(frozen=True)
class OriginalBlocks:
    """The network that fractions refer to, where whole blocks go.

    Parameters
    ----------
    structure : its structure.
    count : number of its blocks that may go.
    ignore : what says which these are; see `onnxjl.blocks`.
    """

    structure: Structure
    count: int
    ignore: Sequence[str]

    @classmethod
    def of(cls, graph: Graph, *, ignore: Sequence[str] = ()) -> OriginalBlocks:
        """Analyze a graph.

        Raises
        ------
        UsageError : a pattern matches nothing.
        """
        structure = analyze(graph)
        return cls(structure, len(find(structure, ignore=ignore)), ignore)

    def request(
        self, graph: Graph, budget: Budget, fraction: float, scope: str
    ) -> dict[str, Any] | None:
        """Return what `prune` is to be asked of a network that came of this one.

        Parameters
        ----------
        graph, budget, fraction : as for `Original.request`; an "amount" is one of blocks.
        scope : doesn't apply.

        Returns
        -------
        Arguments that say how much, or None where the budget holds already.
        """
        now = analyze(graph)
        if budget != "amount":
            return _of_cost(self.structure, now, budget, fraction)
        left = len(find(now, ignore=self.ignore))
        surplus = left - self.count * (1 - fraction)
        return None if surplus <= self.count * _SLACK else {"amount": surplus / left}


def _of_cost(
    before: Structure, now: Structure, budget: Budget, fraction: float
) -> dict[str, Any] | None:
    """Return a fraction of a cost of the original as one of what is left, if it isn't met."""
    whole, left = (float(getattr(each, budget).total(each.sizes)) for each in (before, now))
    return None if left <= fraction * whole * (1 + _SLACK) else {budget: fraction * whole / left}


def kept_units(structure: Structure, plan: Plan) -> dict[str, NDArray[np.bool_]]:
    """Return the units that a plan for this very structure keeps, by the name of their group.

    Returns
    -------
    Group name -> (units,) bool, of groups that lose some.
    """
    masks = {group.name: _mask(group, plan) for group in structure.groups}
    return {name: mask for name, mask in masks.items() if not mask.all()}


def rewound(graph: Graph, early: Graph) -> Graph:
    """Return a pruned or sparse network with the values that another state of its original has.

    Source: Frankle & Carbin 2019, "The Lottery Ticket Hypothesis", section 1, step 4; to a state
    after some training, Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket
    Hypothesis".

    Parameters
    ----------
    graph : the pruned network, with its plan and source, or one with masks.
    early : a normalized network with the original's structure.

    Raises
    ------
    UsageError : `early` is another network.
    """
    ours, theirs = (_shapes(each) for each in (graph.source or graph, early))
    if other := [name for name in ours if theirs.get(name) != ours[name]]:
        raise UsageError(
            f"weights can't be rewound to another network: '{other[0]}' has shape "
            f"{ours[other[0]]}, and in the early one {theirs.get(other[0], 'is missing')}"
        )
    if graph.plan is None:
        return replace(mask(early, graph.masks), path=graph.path, shapes=graph.shapes)
    cut = apply(early, replace(graph.plan, source_graph=early, fingerprint=None))
    return replace(cut, plan=graph.plan, source=graph.source, path=graph.path)


def _shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    tensors = {n: v.const_value for n, v in graph.model.graph.initializers.items()}
    return {n: tuple(t.shape.numpy()) for n, t in tensors.items() if t is not None}


def _offered(structure: Structure, allow_inexact: bool, ignore: Sequence[str]) -> tuple[Group, ...]:
    numbers, _ = offer(structure, allow_inexact=allow_inexact, ignore=ignore)
    return tuple(structure.groups[number] for number in numbers)


def _kept(group: Group, plan: Plan | None) -> int:
    """How many of a group's units a plan keeps."""
    return group.size if plan is None else int(_mask(group, plan).sum())


def _mask(group: Group, plan: Plan) -> NDArray[np.bool_]:
    """Which of a group's units a plan keeps: in each of its members they are the same."""
    for member in group.members:
        indices = plan.kept.get(member.tensor, {}).get(member.axis)
        if indices is not None:
            return np.asarray(np.isin(member.indices, indices).all(axis=1))
    return np.ones(group.size, dtype=bool)
