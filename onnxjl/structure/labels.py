"""Labels, which say "this slice exists as long as that unit exists", and their union-find."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

LabelArray = NDArray[np.int64]

# Of one vector, and of all together: a network of 70 billion parameters has 30 million. What needs
# more is an axis that the file merely claims to have.
MOST_OF_ONE, MOST = 1 << 22, 1 << 26


# Labels that there may be of a network whose weights are few bytes, and bytes of weights for each
# further one: real networks have thousands, and labels take memory as well.
_FEW, _BYTES_OF_ONE = 5 << 20, 256


# Unions of single labels in one analysis, and those that wait to be carried out together.
MOST_UNIONS, _MOST_PENDING = 1 << 28, 1 << 22


# Steps to a root that are taken one by one.
_SHALLOW = 4


class TooMany(Exception):  # noqa: N818 - an answer: the caller fixes what the node touches
    """An axis has more indices than can be told apart."""


class Kind(IntFlag):
    """What a label turned out to be."""

    CHANNEL = 0
    HEAD = 1
    HEAD_DIM = 2


class Labels:
    """Disjoint sets of labels, each with what was learned of its members.

    A set is fixed, inexact or of a kind as soon as one of its labels is. Reasons are for the
    report: the earliest one given to a set is the one told.

    Parameters
    ----------
    stored : bytes of all weights, which bound how many labels there can be.

    Source: Tarjan 1975, with pointer jumping in place of the scalar walk (Shiloach and Vishkin
    1982).
    """

    def __init__(self, stored: int = 0) -> None:
        self._most = min(MOST, _FEW + stored // _BYTES_OF_ONE)
        self._parent = np.arange(1024, dtype=np.int64)
        self._fixed = np.zeros(1024, dtype=np.int32)
        self._inexact = np.zeros(1024, dtype=np.int32)
        self._kind = np.zeros(1024, dtype=np.int8)
        self._pending: list[tuple[LabelArray, LabelArray]] = []
        self._unions = self._waiting = 0
        self.count = 0
        self._reasons: list[str] = [""]
        self._reason_numbers: dict[str, int] = {"": 0}

    def has_room(self, size: int) -> bool:
        """Return whether there can be so many new labels."""
        return size <= MOST_OF_ONE and self.count + size <= self._most

    def fresh(self, size: int) -> LabelArray:
        """Return `size` new labels, each alone in its set."""
        start, stop = self.count, self.count + size
        if stop > len(self._parent):
            capacity = max(stop, 2 * len(self._parent))
            grown = np.arange(capacity, dtype=np.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
            for name in ("_fixed", "_inexact", "_kind"):
                old = getattr(self, name)
                new = np.zeros(capacity, dtype=old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)
        self.count = stop
        return np.arange(start, stop, dtype=np.int64)

    def find(self, labels: LabelArray) -> LabelArray:
        """Return the smallest label of each label's set; same shape."""
        self._settle()
        return self._roots(labels)

    def _roots(self, labels: LabelArray) -> LabelArray:
        parent = self._parent[: self.count]
        roots = parent[labels]
        for _ in range(_SHALLOW):
            above = parent[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above
        # Long chains, as of residual sums: all labels jump, twice as far each time.
        while not np.array_equal(above := parent[parent], parent):
            parent[:] = above
        return parent[roots]

    def unite(self, a: LabelArray, b: LabelArray) -> None:
        """Unite the sets of `a` and `b` elementwise; the arrays broadcast."""
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        self._unions += a.size
        if self._unions > MOST_UNIONS:
            raise TooMany("the network has too many indices to be told apart")
        self._pending.append((a.reshape(-1), b.reshape(-1)))
        self._waiting += a.size
        if self._waiting > _MOST_PENDING:
            self._settle()

    def _settle(self) -> None:
        """Carry out the unions asked for since the last look: all at once is many times faster."""
        if not self._pending:
            return
        a = np.concatenate([pair[0] for pair in self._pending])
        b = np.concatenate([pair[1] for pair in self._pending])
        self._pending.clear()
        self._waiting = 0
        parent = self._parent[: self.count]
        while True:
            a, b = self._roots(a), self._roots(b)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            # Hooking larger roots under smaller ones can't make a cycle; where one root is hooked
            # under several, the smallest wins and the next round unites the rest.
            np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))

    def reason(self, text: str) -> int:
        """Return the number under which this reason is kept."""
        number = self._reason_numbers.get(text)
        if number is None:
            number = self._reason_numbers[text] = len(self._reasons)
            self._reasons.append(text)
        return number

    def reason_text(self, number: int) -> str:
        """Return the reason kept under this number."""
        return self._reasons[number]

    def fix(self, labels: LabelArray, reason: int) -> None:
        """Mark labels as units that must stay."""
        self._mark(self._fixed, labels, reason)

    def may_go(self, labels: LabelArray | None) -> bool:
        """Return whether any of these labels isn't itself marked as fixed so far."""
        return labels is not None and not self._fixed[labels].all()

    def mark_inexact(self, labels: LabelArray, reason: int) -> None:
        """Mark labels whose removal changes statistics taken over them."""
        self._mark(self._inexact, labels, reason)

    def mark_kind(self, labels: LabelArray, kind: Kind) -> None:
        """Mark labels as heads or head features."""
        self._kind[labels] |= int(kind)

    @staticmethod
    def _mark(marks: NDArray[np.int32], labels: LabelArray, reason: int) -> None:
        labels = np.asarray(labels)
        current = marks[labels]
        marks[labels] = np.where(current == 0, reason, current)

    def summary(
        self,
    ) -> tuple[LabelArray, NDArray[np.int32], NDArray[np.int32], NDArray[np.int8]]:
        """Return each label's root, and at roots: why fixed, why inexact (0: they aren't), kind."""
        roots = self.find(np.arange(self.count, dtype=np.int64))
        fixed = self._earliest(self._fixed, roots)
        inexact = self._earliest(self._inexact, roots)
        kind = np.zeros(self.count, dtype=np.int8)
        marked = np.flatnonzero(self._kind[: self.count])
        np.bitwise_or.at(kind, roots[marked], self._kind[marked])
        return roots, fixed, inexact, kind

    def _earliest(self, marks: NDArray[np.int32], roots: LabelArray) -> NDArray[np.int32]:
        far = np.iinfo(np.int32).max
        result = np.full(self.count, far, dtype=np.int32)
        marked = np.flatnonzero(marks[: self.count])
        np.minimum.at(result, roots[marked], marks[marked])
        result[result == far] = 0
        return result
