"""Regularization: penalties that make units small in training, so that little is lost with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxjl.criteria.registry import unknown
from onnxjl.criteria.weights import GroupWeights, Scoring
from onnxjl.errors import UsageError
from onnxjl.flux import in_julia, julia
from onnxjl.structure.groups import Granularity, Group, Groups, groups

if TYPE_CHECKING:
    from onnxjl.flux import FluxModel

BN_SCALE, GROUP_LASSO, GROWING = "bn-scale", "group-lasso", "growing"
KINDS = (BN_SCALE, GROUP_LASSO, GROWING)

Units = Mapping[str, Sequence[int] | NDArray[Any]]


@dataclass(frozen=True)
class Regularization:
    """A penalty on units, whose gradient each step of training follows besides that of the loss.

    Parameters
    ----------
    kind : "bn-scale", "group-lasso" or "growing".
    strength : factor of the penalty; of "growing" by how much it grows.
    granularity : of the groups that the units are of; see `onnxjl.groups`.
    units : for "growing", group name -> numbers of the units that are to go, from 0.
    every : for "growing", number of steps after which the factor grows.
    ceiling : for "growing", where the factor stops.

    Raises
    ------
    UsageError : there is no such kind, or the numbers aren't such.
    """

    kind: str
    strength: float = 1e-4
    granularity: Granularity = "channel"
    units: Units | None = None
    every: int = 10
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(unknown("regularization", self.kind, KINDS))
        for name in ("strength", "ceiling"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UsageError(f"{name}={value!r}: a number above 0 is needed")
        if not isinstance(self.every, int) or self.every < 1:
            raise UsageError(f"every={self.every!r}: a number of steps is needed")
        if self.units is not None and self.kind != GROWING:
            raise UsageError(f"units= are for regularization 'growing', not '{self.kind}'")

    def factor(self, step: int) -> float:
        """Return the factor of the penalty in a step of this number, from 0."""
        if self.kind != GROWING:
            return self.strength
        return min(self.ceiling, self.strength * (1 + step // self.every))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        units = self.units and {
            name: np.asarray(chosen).tolist() for name, chosen in self.units.items()
        }
        return {**asdict(self), "units": units}


def bn_scale(strength: float = 1e-4) -> Regularization:
    """Return an L1 penalty on the scales of normalizations, ``strength · Σ|γ|``.

    Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming",
    eq. 1. Criterion "bn-scale" then finds the units whose scale has become small.
    """
    return Regularization(BN_SCALE, strength)


def group_lasso(strength: float = 1e-4) -> Regularization:
    """Return the sum of the Euclidean norms of units, each with all weights that it is cut from.

    Source: Wen et al. 2016, "Learning Structured Sparsity in Deep Neural Networks", section 3,
    where the weights of a filter, or of a channel, of one layer are a group; here those of all
    layers that a unit is cut from are one.
    """
    return Regularization(GROUP_LASSO, strength)


def growing(
    units: Units | None = None, *, strength: float = 1e-4, every: int = 10, ceiling: float = 1.0
) -> Regularization:
    """Return an L2 penalty, ``factor/2 · Σw²``, that grows on the units that are to go.

    Source: Wang et al. 2021, "Neural Pruning via Growing Regularization", algorithm 1 (GReg-1).

    Parameters
    ----------
    units : group name -> numbers of the units, from 0; an experiment chooses them itself.
    strength : what the factor begins with, and by how much it grows.
    every : number of steps after which it grows.
    ceiling : where it stops.
    """
    return Regularization(GROWING, strength, units=units, every=every, ceiling=ceiling)


def get(regularization: str | Mapping[str, Any] | Regularization) -> Regularization:
    """Return the regularization that is meant.

    Parameters
    ----------
    regularization : its kind; a mapping of its kind and parameters; or one as it is.

    Raises
    ------
    UsageError : there is no such kind or parameter.
    """
    if isinstance(regularization, Regularization):
        return regularization
    if isinstance(regularization, str):
        return Regularization(regularization)
    known = [field.name for field in fields(Regularization)]
    if not isinstance(regularization, Mapping) or "kind" not in regularization:
        raise UsageError(
            f"a regularization is a name ({', '.join(KINDS)}), a Regularization, or a mapping with "
            f"its 'kind', not {regularization!r}"
        )
    if other := [name for name in regularization if name not in known]:
        raise UsageError(unknown("parameter of a regularization", other[0], known))
    return Regularization(**regularization)


class Penalty:
    """A regularization of one network, ready for training.

    Parameters
    ----------
    regularization : what is penalized, and how strongly.
    model : the network.
    frozen : numbers, from 1, of layers that stay as they are.

    Raises
    ------
    UsageError : there is no such group or unit, none is said, or nothing to penalize.
    """

    def __init__(
        self, regularization: Regularization, model: FluxModel, frozen: Sequence[int]
    ) -> None:
        self.regularization = regularization
        graph = model.to_graph()
        offered = groups(graph, granularity=regularization.granularity, allow_inexact=True)
        if regularization.kind == BN_SCALE:
            parts = _scales(Scoring(graph, offered, aggregation="mean", data=None, seed=0))
        else:
            parts = [
                (_members(group), chosen)
                for group, chosen in zip(offered, _chosen(regularization, offered), strict=True)
            ]
        with in_julia():
            self.julia = julia().penaltyof(model.julia, parts, list(frozen))

    def of_step(self, step: int) -> dict[str, Any]:
        """Return what Julia's `step!` is to do besides, as keywords.

        Parameters
        ----------
        step : number of the step, from 0.
        """
        return {
            "penalty": self.julia,
            "factor": self.regularization.factor(step),
            "norms": self.regularization.kind != GROWING,
        }


Described = tuple[list[tuple[str, int, NDArray[np.int64]]], NDArray[np.bool_]]


def _members(group: Group) -> list[tuple[str, int, NDArray[np.int64]]]:
    """A group's members for Julia: a column of indices for each unit."""
    return [(m.tensor, m.axis, np.asarray(m.indices, np.int64, order="C").T) for m in group.members]


def _scales(scoring: Scoring) -> list[Described]:
    """Each scale of a normalization as a unit by itself, once."""
    once: dict[tuple[str, int], NDArray[np.int64]] = {}
    for group in scoring.groups:
        for member in GroupWeights(scoring, group).scales:
            place = (member.tensor, member.axis)
            once[place] = np.union1d(once.get(place, ()), member.indices).astype(np.int64)
    if not once:
        raise UsageError(
            "regularization 'bn-scale' needs normalizations with a scale, and no group passes one "
            "(exporters fold BatchNormalization into convolutions unless told not to); use "
            "'group-lasso'"
        )
    return [
        ([(tensor, axis, indices[None])], np.ones(len(indices), dtype=bool))
        for (tensor, axis), indices in once.items()
    ]


def _chosen(regularization: Regularization, offered: Groups) -> list[NDArray[np.bool_]]:
    """The units of each group that are penalized, (units,) bool."""
    if regularization.kind != GROWING:
        return [np.ones(group.size, dtype=bool) for group in offered]
    if not regularization.units:
        raise UsageError("regularization 'growing' needs units=, those that are to go")
    named = {offered[name].name: np.asarray(u) for name, u in regularization.units.items()}
    masks = []
    for group in offered:
        units = named.get(group.name, np.zeros(0, dtype=np.int64))
        if units.size and not 0 <= units.min() <= units.max() < group.size:
            raise UsageError(
                f"group '{group.name}' has {group.size} units: no such one to penalize"
            )
        masks.append(np.isin(np.arange(group.size), units))
    return masks
