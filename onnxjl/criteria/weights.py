"""What criteria look at: a group's weights, with what many of them need computed once.

Everything is summed in float64, a block at a time, so that no copy of a large weight is made.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeGuard

import numpy as np
import onnx_ir as ir

from onnxjl.criteria.aggregation import aggregate
from onnxjl.criteria.roles import Role, role
from onnxjl.errors import UsageError, WeightError
from onnxjl.graph import FLOATING, Graph, initializers
from onnxjl.structure import Activation, Group, Member

if TYPE_CHECKING:
    from onnxjl.flux import FluxModel

Order = Literal[1, 2, "max"]

# Elements of a block: half a megabyte in float64, which stays in a processor's cache.
BLOCK = 1 << 16


class Scoring:
    """One request for scores: the graph, the groups, and what has been computed for them.

    Parameters
    ----------
    graph : the graph that the groups belong to.
    groups : all groups that are scored.
    aggregation : how the scores of a group's tensors become one.
    data : inputs for criteria that are measured; see `onnxjl.data`.
    seed : of random scores.
    model : the same network as Flux layers, for criteria that need gradients.
    loss : whose gradients; see `FluxModel.gradient`.
    """

    def __init__(
        self,
        graph: Graph,
        groups: Sequence[Group],
        *,
        aggregation: str,
        data: Any,
        seed: int,
        model: FluxModel | None = None,
        loss: Any = None,
    ) -> None:
        self.graph = graph
        self.groups = tuple(groups)
        self.aggregation = aggregation
        self.data = data
        self.seed = seed
        self.model = model
        self.loss = loss
        self.computed: dict[Any, Any] = {}
        self._roles: dict[str, Role] = {}
        self._along: dict[tuple[str, int, Order], np.ndarray] = {}
        self._totals: dict[tuple[str, Order], tuple[np.ndarray, np.ndarray]] = {}

    def role(self, tensor: str) -> Role:
        """What a weight is for."""
        if tensor not in self._roles:
            self._roles[tensor] = role(initializers(self.graph.model)[tensor])
        return self._roles[tensor]

    @cached_property
    def counting(self) -> frozenset[str]:
        """The weights whose magnitude counts: those of contractions, of two axes or more."""
        return frozenset(
            name
            for name, value in initializers(self.graph.model).items()
            if _is_floating(value.const_value)
            and len(value.const_value.shape) >= 2
            and self.role(name).contracted
        )

    def floating(self, tensor: str) -> bool:
        """Whether a weight's elements are real numbers."""
        return _is_floating(initializers(self.graph.model)[tensor].const_value)

    def totals(self, tensor: str, axis: int, order: Order) -> np.ndarray:
        """For each index of an axis, the sum of ``|w|^order`` over all others, or the maximum."""
        place = (tensor, axis, order)
        found = self._along.get(place)
        if found is not None:
            return found
        key = (tensor, order)
        if key not in self._totals:
            self._totals[key] = _totals(self.graph.weight(tensor), order)
            self.graph.unmap(tensor)
        leading, trailing = self._totals[key]
        if axis >= leading.ndim:
            leading, axis = trailing, axis - leading.ndim
        others = tuple(other for other in range(leading.ndim) if other != axis)
        result: np.ndarray = _fold(order).reduce(leading, axis=others) if others else leading
        self._along[place] = result
        return result


class GroupWeights(Mapping[str, np.ndarray]):
    """The weights of one group, read when asked for: tensor name -> array in ONNX's layout.

    Parameters
    ----------
    scoring : the request that the group belongs to.
    group : the group.
    """

    def __init__(self, scoring: Scoring, group: Group) -> None:
        self.scoring = scoring
        self.group = group

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(member.tensor for member in self.group.members))

    def __getitem__(self, tensor: str) -> np.ndarray:
        if tensor not in self._names:
            raise KeyError(tensor)
        array = self.scoring.graph.weight(tensor).view()
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @cached_property
    def contracted(self) -> tuple[Member, ...]:
        """The members whose magnitude counts.

        These are the floating weights of contractions, by the axis of their outputs and of their
        inputs alike: biases and the parameters of normalizations don't count, unless the group has
        nothing else.
        """
        counting, members = self.scoring.counting, self.group.members
        found = [member for member in members if member.tensor in counting]
        found = found or [member for member in members if self.scoring.floating(member.tensor)]
        if not found:
            raise WeightError(
                f"group '{self.group.name}': it has no floating-point weight to score"
            )
        return tuple(found)

    @cached_property
    def producers(self) -> tuple[Member, ...]:
        """Those of `contracted` that make the units: cut on the axis of the contraction's outputs.

        A group that no contraction makes (an embedding does, say) has all of `contracted`.
        """
        makers = tuple(
            member
            for member in self.contracted
            if member.axis in self.scoring.role(member.tensor).outputs
        )
        return makers or self.contracted

    @cached_property
    def scales(self) -> tuple[Member, ...]:
        """The members that are scales of normalizations."""
        return tuple(m for m in self.group.members if self.scoring.role(m.tensor).scale)

    @cached_property
    def activations(self) -> tuple[Activation, ...]:
        """The activations by which contractions consume the units, each once."""
        once: dict[tuple[str, int, bytes], Activation] = {}
        for activation in self.group.activations:
            key = (activation.value, activation.axis, activation.indices.tobytes())
            once.setdefault(key, activation)
        return tuple(once.values())

    def magnitudes(self, members: Sequence[Member], order: Order) -> np.ndarray:
        """For each member and unit, the sum of ``|w|^order`` over its slice, or the maximum.

        Parameters
        ----------
        members : some of the group's.
        order : 1, 2 or ``"max"``.

        Returns
        -------
        (members, units) float64

        Raises
        ------
        WeightError : a weight holds NaN or infinity.
        """
        rows = np.empty((len(members), len(members[0].indices)))
        for row, (tensor, axis, indices) in zip(rows, members, strict=True):
            totals = self.scoring.totals(tensor, axis, order)
            if indices.shape[1] == 1:
                totals.take(indices[:, 0], out=row, mode="clip")  # "raise" would copy once more
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                several = totals[indices]
                row[:] = several.max(1) if order == "max" else several.sum(1)
        finite = np.isfinite(rows)
        if not finite.all():
            self.refuse(members[int(np.argmin(finite.all(axis=1)))].tensor)
        return rows

    def aggregate(self, rows: np.ndarray) -> np.ndarray:
        """(rows, units) scores as (units,), in the way that was asked for."""
        return aggregate(rows, self.scoring.aggregation)

    def check_finite(self) -> None:
        """Raise WeightError if a weight whose magnitude counts holds NaN or infinity."""
        self.magnitudes(self.contracted, "max")

    def refuse(self, tensor: str) -> NoReturn:
        """Raise WeightError for a weight that gave a score that isn't finite."""
        array = self[tensor]
        where = _first_infinite(array)
        start = f"group '{self.group.name}': weight '{tensor}'"
        if where is None:
            raise WeightError(f"{start} is too large: its magnitudes overflow float64")
        what = "NaN" if np.isnan(array[where]) else "infinity"
        index = ", ".join(map(str, where))
        raise WeightError(
            f"{start} holds {what} (first at [{index}]) and can't be scored; "
            "repair the model, or leave its layer whole (ignore=, --ignore)"
        )


def checked_seed(seed: object) -> int:
    """Return a seed as a whole number; raise a UsageError if it is none of at least 0."""
    try:
        number = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if number < 0:
        raise UsageError(f"seed must be a whole number of at least 0, not {seed!r}")
    return number


def _is_floating(tensor: ir.TensorProtocol | None) -> TypeGuard[ir.TensorProtocol]:
    return tensor is not None and tensor.dtype in FLOATING


def _fold(order: Order) -> np.ufunc:
    """Return what makes one number of those of many weights."""
    return np.maximum if order == "max" else np.add


def _totals(array: np.ndarray, order: Order) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a weight over its trailing axes, and over its leading ones, in one pass.

    The axes are split in two where both results together are smallest.
    """
    shape = array.shape
    split = min(range(len(shape) + 1), key=lambda at: math.prod(shape[:at]) + math.prod(shape[at:]))
    rows, columns = math.prod(shape[:split]), math.prod(shape[split:])
    flat, fold = array.reshape(rows, columns), _fold(order)
    leading, trailing = np.zeros(rows), np.zeros(columns)
    step = max(1, BLOCK // max(1, columns))
    buffer = np.empty((min(step, rows), columns))
    with np.errstate(all="ignore"):
        for start in range(0, rows if columns else 0, step):
            part = flat[start : start + step]
            block = buffer[: len(part)]
            np.copyto(block, part, casting="unsafe")
            if order == 2:
                np.vecdot(block, block, out=leading[start : start + step])
                trailing += np.einsum("ij,ij->j", block, block)
            else:
                np.abs(block, out=block)
                fold.reduce(block, axis=1, out=leading[start : start + step])
                fold(trailing, fold.reduce(block, axis=0), out=trailing)
    return leading.reshape(shape[:split]), trailing.reshape(shape[split:])


def _first_infinite(array: np.ndarray) -> tuple[int, ...] | None:
    flat = array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        wrong = ~np.isfinite(flat[start : start + BLOCK].astype(np.float64))
        if wrong.any():
            index = np.unravel_index(start + int(np.argmax(wrong)), array.shape)
            return tuple(int(i) for i in index)
    return None
