"""Places: where the units of each group are on vectors of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxjl.structure.cost import Size
from onnxjl.structure.labels import LabelArray

Indices = NDArray[np.int64]


class Places:
    """The units on label vectors, found for all vectors at once.

    Vectors are told apart by identity: they must be kept as long as this is.

    Parameters
    ----------
    vectors : label vectors, each once.
    unit_at : (labels,) int, the number of each label's unit, -1 for labels without one.
    group_of : (units,) int, the group of each unit, ascending.
    widths : (groups,) int, number of units of each group.
    """

    def __init__(
        self,
        vectors: Sequence[LabelArray],
        unit_at: Indices,
        group_of: Indices,
        widths: Indices,
    ) -> None:
        self._numbers = {id(v): i for i, v in enumerate(vectors)}
        self._widths = widths.tolist()
        self._found: dict[int, list[tuple[int, Indices]]] = {}
        self._sizes: dict[int, Size] = {}
        lengths = np.array([len(v) for v in vectors], dtype=np.int64)
        everywhere = np.concatenate([np.zeros(0, dtype=np.int64), *vectors])
        units = unit_at[everywhere]
        starts = np.cumsum(lengths) - lengths
        present = np.flatnonzero(units >= 0)
        units = units[present]
        owner = np.repeat(np.arange(len(vectors)), lengths)[present]
        # By vector, then unit, then position: most vectors are in this order as they are.
        key = owner * (len(group_of) + 1) + units
        if (key[1:] < key[:-1]).any():
            order = np.argsort(key, kind="stable")
            units, present = units[order], present[order]
        self._positions: Indices = present - starts[owner]
        # A segment is what one group has on one vector.
        segment = owner * (len(widths) + 1) + group_of[units]
        cuts = np.flatnonzero(np.diff(segment, prepend=-1))
        owners, self._groups = np.divmod(segment[cuts], len(widths) + 1)
        sizes = np.diff(cuts, append=len(segment))
        self._multiplicities = sizes // widths[self._groups]
        self._cuts = [*cuts.tolist(), len(segment)]
        self._bounds = np.searchsorted(owners, np.arange(len(vectors) + 1)).tolist()
        varying = np.bincount(owners, weights=sizes, minlength=len(vectors)).astype(np.int64)
        self._bases = (lengths - varying).tolist()

    def _segments(self, vector: LabelArray) -> slice:
        number = self._numbers[id(vector)]
        return slice(self._bounds[number], self._bounds[number + 1])

    def groups(self, vector: LabelArray) -> list[int]:
        """Return the groups that have units on a vector, ascending."""
        found: list[int] = self._groups[self._segments(vector)].tolist()
        return found

    def size(self, vector: LabelArray) -> Size:
        """Return a vector's size as a function of the units that are kept."""
        found = self._sizes.get(id(vector))
        if found is None:
            here = self._segments(vector)
            base = self._bases[self._numbers[id(vector)]]
            found = Size(base, self._groups[here], self._multiplicities[here])
            self._sizes[id(vector)] = found
        return found

    def of(self, vector: LabelArray) -> list[tuple[int, Indices]]:
        """Return each group on a vector, with the (units, k) indices that its units have there."""
        found = self._found.get(id(vector))
        if found is None:
            here = self._segments(vector)
            found = self._found[id(vector)] = [
                (g, self._positions[start:stop].reshape(self._widths[g], -1))
                for g, start, stop in zip(
                    self._groups[here].tolist(),
                    self._cuts[here],
                    self._cuts[here.start + 1 : here.stop + 1],
                    strict=True,
                )
            ]
        return found
