"""N:M patterns: of every M weights that follow each other along an axis, N stay."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from onnxjl.errors import UsageError


@dataclass(frozen=True)
class Pattern:
    """An N:M pattern.

    Parameters
    ----------
    keep : N, the weights that stay of every M.
    of : M, the weights that follow each other along the axis of a contraction's inputs.
    """

    keep: int
    of: int

    @classmethod
    def parse(cls, text: object) -> Pattern:
        """Return the pattern that a text as ``2:4`` says.

        Raises
        ------
        UsageError : it isn't N:M with 0 < N < M.
        """
        found = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text) if isinstance(text, str) else None
        if found is None or not 0 < int(found[1]) < int(found[2]):
            raise UsageError(
                f"a pattern is N:M, as '2:4', with N weights of every M kept and 0 < N < M; not "
                f"{text!r}"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"

    def mask(self, scores: np.ndarray, axis: int = -1) -> np.ndarray:
        """Return which weights stay: in each run along an axis, the N with the largest scores.

        Parameters
        ----------
        scores : real numbers; the axis is a multiple of M long. Of equal ones the first stay.
        axis : that runs follow each other along.

        Returns
        -------
        bool, of the shape of the scores
        """
        last = np.moveaxis(scores, axis, -1)
        runs = last.reshape(*last.shape[:-1], -1, self.of)
        mask = largest(runs, self.keep).reshape(last.shape)
        return np.ascontiguousarray(np.moveaxis(mask, -1, axis))

    def holds(self, mask: np.ndarray, axis: int) -> bool:
        """Return whether no run of a mask keeps more than N."""
        last = np.moveaxis(mask, axis, -1)
        if last.shape[-1] % self.of:
            return False
        return bool((last.reshape(*last.shape[:-1], -1, self.of).sum(-1) <= self.keep).all())


def largest(scores: np.ndarray, keep: int | np.ndarray) -> np.ndarray:
    """Return which numbers along the last axis are its largest; of equal ones the first.

    Parameters
    ----------
    scores : (…, n) real numbers.
    keep : how many, or (…, 1) how many in each row.

    Returns
    -------
    (…, n) bool
    """
    order = np.argsort(-scores, axis=-1, kind="stable")
    mask = np.empty(scores.shape, dtype=bool)
    stays = np.broadcast_to(np.arange(scores.shape[-1]) < keep, scores.shape)
    np.put_along_axis(mask, order, stays, axis=-1)
    return mask


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return which of many numbers are the lowest; of equal ones the last.

    Parameters
    ----------
    scores : (n,) real numbers.
    count : how many.

    Returns
    -------
    (n,) bool
    """
    if count <= 0:
        return np.zeros(len(scores), dtype=bool)
    # Not a sort: it takes time in proportion to the number.
    edge = np.partition(scores, count - 1)[count - 1]
    chosen: np.ndarray = scores < edge
    ties = np.flatnonzero(scores == edge)
    chosen[ties[len(ties) - (count - int(chosen.sum())) :]] = True
    return chosen
