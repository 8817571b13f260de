"""Allocation: how what has to go is spread over the groups.

Each way is a path from the whole network to the smallest one. A budget takes the first step of it
that fits, and then returns single units in the path's own order while one still fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxjl.criteria.roles import role
from onnxjl.structure.cost import Counts
from onnxjl.structure.groups import Group, Structure

Turn = tuple[float, ...]
"""Place in a queue: the least comes first."""

# Shares are divisions of floats: 0.3 of 10 units is 3 of them.
_SLACK = 1e-9


@dataclass(frozen=True)
class Units:
    """The units that a budget is free to take.

    Parameters
    ----------
    sizes : (groups,) int, units of every group.
    free : (k,) int, the groups that may lose units.
    scores : group -> (units,) float, the scores of its units, largest first.
    """

    sizes: Counts
    free: Counts
    scores: Mapping[int, NDArray[np.float64]]


class Path(Protocol):
    """A way to spread what goes.

    Attributes
    ----------
    steps : number of the last step.
    """

    steps: int

    def at(self, step: int) -> Counts:
        """Return (groups,) int, the units that each group keeps; they fall with the step, from 0.

        Least widths and multiples are the budget's matter.
        """

    def turn(self, group: int, counts: Counts) -> Turn:
        """Return when a group gets its next unit back; it only grows as units come back."""


class Global:
    """All units are ranked together; the last go first.

    Parameters
    ----------
    units : those that may go.
    """

    def __init__(self, units: Units) -> None:
        self._units = units
        # Of equal scores the first group's go first, and of these the last: a stable sort's order.
        owner = np.repeat(units.free, units.sizes[units.free])
        self._ranked = owner[_last_first(units, units.free)]
        self.steps = len(owner)

    def at(self, step: int) -> Counts:
        """Return the counts without the `step` least important units."""
        sizes = self._units.sizes
        return sizes - np.bincount(self._ranked[:step], minlength=len(sizes))

    def turn(self, group: int, counts: Counts) -> Turn:
        """The most important unit comes back first."""
        return (-float(self._units.scores[group][counts[group]]),)


class Local:
    """Every group loses the same share of its units.

    Parameters
    ----------
    units : those that may go.
    """

    def __init__(self, units: Units) -> None:
        self._sizes = units.sizes
        self.steps = int(units.sizes[units.free].max()) * 8

    def at(self, step: int) -> Counts:
        """Return the counts with this many steps' share gone."""
        return _floor(self._sizes * (1 - step / self.steps))

    def turn(self, group: int, counts: Counts) -> Turn:
        """The group that lost most, relative to its size, comes first."""
        return (float(counts[group] / self._sizes[group]),)


class Isomorphic:
    """Groups of the same topology are ranked together; every such class loses the same share.

    Source: Fang et al. 2024, *Isomorphic Pruning for Vision Models*, section 3.

    Parameters
    ----------
    units : those that may go.
    classes : (groups,) int, the number of each group's class; see
        `onnxjl.structure.isomorphism.topologies`.
    """

    def __init__(self, units: Units, classes: Sequence[int]) -> None:
        self._units = units
        self._class_of = np.asarray(classes, dtype=np.int64)
        self._members = {
            c: units.free[self._class_of[units.free] == c]
            for c in np.unique(self._class_of[units.free]).tolist()
        }
        self._ranked = {
            c: np.repeat(groups, units.sizes[groups])[_last_first(units, groups)]
            for c, groups in self._members.items()
        }
        self.steps = max(len(ranked) for ranked in self._ranked.values()) * 8

    def at(self, step: int) -> Counts:
        """Return the counts with this many steps' share of each class gone."""
        counts = self._units.sizes.copy()
        for ranked in self._ranked.values():
            stay = int(_floor(np.array(len(ranked) * (1 - step / self.steps))))
            counts -= np.bincount(ranked[: len(ranked) - stay], minlength=len(counts))
        return counts

    def turn(self, group: int, counts: Counts) -> Turn:
        """The class that lost most comes first, and in it the most important unit."""
        together = self._members[int(self._class_of[group])]
        share = counts[together].sum() / self._units.sizes[together].sum()
        return float(share), -float(self._units.scores[group][counts[group]])


class ErdosRenyi:
    """Every group keeps ``min(1, ε·density)`` of its units, with one ε for all.

    Source: Evci et al. 2020, *Rigging the Lottery*, section 3 (the Erdős–Rényi kernel), after
    Mocanu et al. 2018, *Scalable training of artificial neural networks with adaptive sparse
    connectivity*.

    Parameters
    ----------
    units : those that may go.
    densities : (groups,) float, positive; see `kernel_densities`.
    """

    def __init__(self, units: Units, densities: NDArray[np.float64]) -> None:
        self._sizes, self._densities = units.sizes, densities
        # Every ε at which a group has one unit more, largest first.
        each = [self._epsilon(n, np.arange(1, units.sizes[n] + 1)) for n in units.free.tolist()]
        self._epsilons = np.append(-np.unique(-np.concatenate(each)), 0.0)
        self.steps = len(self._epsilons) - 1

    def _epsilon(self, group: int, kept: Counts) -> NDArray[np.float64]:
        """The least ε with which a group keeps this many units."""
        epsilon: NDArray[np.float64] = kept / (self._sizes[group] * self._densities[group])
        return epsilon

    def at(self, step: int) -> Counts:
        """Return the counts with the step's ε."""
        share = np.minimum(1.0, self._epsilons[step] * self._densities)
        return _floor(self._sizes * share)

    def turn(self, group: int, counts: Counts) -> Turn:
        """The group that a growing ε reaches first."""
        return (float(self._epsilon(group, counts[group] + 1)),)


class Sensitivity:
    """Every group loses as many units as raise the output error, alone, to one level for all.

    Source: the idea of Li et al. 2017, *Pruning Filters for Efficient ConvNets*, section 3.2, to
    prune layers by how much the network suffers when each is pruned alone.

    Parameters
    ----------
    units : those that may go.
    errors : group -> (units + 1,) float, the error with 0, 1, … units kept; it never grows.
    """

    def __init__(self, units: Units, errors: Mapping[int, NDArray[np.float64]]) -> None:
        self._units, self._errors = units, errors
        levels = np.concatenate([errors[n] for n in units.free.tolist()])
        self._levels = np.unique(levels)
        self.steps = len(self._levels) - 1

    def at(self, step: int) -> Counts:
        """Return the smallest counts whose error is at most the step's level."""
        counts = self._units.sizes.copy()
        for n in self._units.free.tolist():
            counts[n] = np.searchsorted(-self._errors[n], -self._levels[step], side="left")
        return counts

    def turn(self, group: int, counts: Counts) -> Turn:
        """The group with the largest error comes first."""
        return (-float(self._errors[group][counts[group]]),)


def kernel_densities(structure: Structure) -> NDArray[np.float64]:
    """Return what the densities of groups are in proportion to, by the Erdős–Rényi kernel.

    A weight of the shape ``(outputs, inputs, height, width)`` has ``ε·(outputs + inputs + height +
    width)`` of its ``outputs·inputs·height·width`` elements. For a group, both are summed over the
    weights that make its units.

    Source: Evci et al. 2020, *Rigging the Lottery*, section 3.

    Parameters
    ----------
    structure : whose groups are asked for.

    Returns
    -------
    (groups,) float, positive.
    """
    weights = structure.graph.model.graph.initializers

    def density(group: Group) -> float:
        shapes = {m.tensor: structure.run.shapes.sizes[m.tensor] for m in group.members}
        making = {m.tensor for m in group.members if m.axis in role(weights[m.tensor]).outputs}
        # A table of embeddings isn't contracted: then all that the units are cut from counts.
        chosen = [shapes[name] for name in making or shapes]
        ends = sum(sum(shape) for shape in chosen)
        return float(ends / sum(np.prod(shape, dtype=np.float64) for shape in chosen))

    return np.array([density(group) for group in structure.groups])


def _last_first(units: Units, groups: Counts) -> Counts:
    """The order in which the units of some groups go, as numbers into these groups' units."""
    score = np.concatenate([units.scores[n][::-1] for n in groups.tolist()])
    return np.argsort(score, kind="stable")


def _floor(counts: NDArray[np.floating]) -> Counts:
    return np.floor(counts + _SLACK).astype(np.int64)
