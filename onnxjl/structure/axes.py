"""Axes of values as lists of factors: only factors that carry units are expanded into labels.

An axis of size 1 has no factors. A batch·heads axis is ``(plain 16, heads)``; flattened channels
are ``(channels, plain 7, plain 7)``: the labels of 512 channels stay 512, not 25,088.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from onnxjl.structure.labels import LabelArray, Labels

Tag = tuple[str, int]


@dataclass(eq=False, slots=True)
class Factor:
    """One factor of an axis; axes share it, and nothing changes it.

    Parameters
    ----------
    size : number of indices, at least 2.
    labels : (size,) int, or None for a plain factor, which can't be pruned.
    reason : number of the reason why a plain factor is plain; 0 if it has none of its own.
    tags : the reshapes that made it: (block, position), for telling which factor is the heads.
    copied : whether its indices are copies of one another, as `Expand` makes them.
    """

    size: int
    labels: LabelArray | None = None
    reason: int = 0
    tags: frozenset[Tag] = frozenset()
    copied: bool = False


Axis = tuple[Factor, ...]
Axes = tuple[Axis, ...]


@lru_cache(maxsize=4096)
def plain(size: int, reason: int = 0) -> Axis:
    """Return an axis that can't be pruned."""
    return () if size == 1 else (Factor(size, None, reason),)


def labelled(labels: LabelArray) -> Axis:
    """Return an axis of one factor with these labels."""
    return () if len(labels) == 1 else (Factor(len(labels), labels),)


def part(axis: Axis, size: int) -> Axis:
    """Return what is cut out of an axis that can't be pruned: it may still be tagged as heads."""
    if size == 1 or len(axis) != 1:
        return plain(size, *(factor.reason for factor in axis[:1]))
    return (Factor(size, None, axis[0].reason, axis[0].tags),)


def size(axis: Axis) -> int:
    """Return the number of indices of an axis."""
    if len(axis) == 1:
        return axis[0].size
    return math.prod(factor.size for factor in axis) if axis else 1


def has_labels(axis: Axis) -> bool:
    """Return whether any factor carries units."""
    return any(factor.labels is not None for factor in axis)


def expand(labels: Labels, axis: Axis) -> LabelArray | None:
    """Return one label for each index of the axis, or None if it is plain.

    Where two factors carry labels a slice would need both units; all but one are fixed. That is the
    last of those that aren't fixed yet, and rather none of copies: of heads that share keys and
    values, whole groups go, or, where keys and values must stay, the same heads of every group.
    """
    if len(axis) == 1:
        return axis[0].labels
    carriers = [i for i, factor in enumerate(axis) if factor.labels is not None]
    if not carriers:
        return None
    i = carriers[0]
    if len(carriers) > 1:
        i = max(carriers, key=lambda i: (labels.may_go(axis[i].labels), not axis[i].copied, i))
        for other in carriers:
            if other != i:
                fix(labels, (axis[other],), labels.reason("shares an axis with other units"))
    vector = axis[i].labels
    assert vector is not None
    before = math.prod(factor.size for factor in axis[:i])
    after = math.prod(factor.size for factor in axis[i + 1 :])
    if before == 1 and after == 1:
        return vector
    return np.tile(np.repeat(vector, after), before)


def fix(labels: Labels, axis: Axis, reason: int) -> None:
    """Fix every unit on the axis."""
    for factor in axis:
        if factor.labels is not None:
            labels.fix(factor.labels, reason)


def unite(labels: Labels, a: Axis, b: Axis, reason: int) -> Axis:
    """Unite two axes of equal size, index by index; a plain one fixes the other.

    Parameters
    ----------
    reason : told of units that are fixed by a plain axis which has no reason of its own.

    Returns
    -------
    The axis that stands for both: the one with fewer labels.
    """
    if a is b:
        return a
    if tuple(f.size for f in a) == tuple(f.size for f in b):
        return tuple(_unite_factors(labels, x, y, reason) for x, y in zip(a, b, strict=True))
    if not has_labels(a) or not has_labels(b):
        marked, other = (a, b) if has_labels(a) else (b, a)
        why = next((f.reason for f in other if f.reason), reason)
        fix(labels, marked, why)
        return marked if has_labels(marked) else a
    if len(a) > len(b):
        a, b = b, a
    vector_a, vector_b = expand(labels, a), expand(labels, b)
    assert vector_a is not None
    assert vector_b is not None
    labels.unite(vector_a, vector_b)
    return b


def _unite_factors(labels: Labels, a: Factor, b: Factor, reason: int) -> Factor:
    if a.labels is None or b.labels is None:
        for marked, other in ((a, b), (b, a)):
            if marked.labels is not None:
                labels.fix(marked.labels, other.reason or reason)
        carried = a.labels if a.labels is not None else b.labels
        if carried is a.labels and a.tags >= b.tags:
            return a
        return Factor(a.size, carried, a.reason or b.reason, a.tags | b.tags)
    labels.unite(a.labels, b.labels)
    copied = a.copied and b.copied
    if a.tags >= b.tags and a.copied == copied:
        return a
    return Factor(a.size, a.labels, 0, a.tags | b.tags, copied)


def regroup(
    labels: Labels,
    axes: Axes,
    sizes: Sequence[int],
    block: str,
    choices: dict[str, int],
    reason: int,
) -> Axes:
    """Return the axes of a row-major reshape of `axes` to `sizes`.

    Where an axis with labels is split, a block must stay rectangular, so the labels across all but
    one of the new factors are united. Which one keeps them: the one along which labels already
    differ and across which they don't; else `choices[block]`; else the last.

    Parameters
    ----------
    block : name of the place, told apart in `choices` and tags; a serial number is appended.
    reason : for labels that no rectangular block can hold.
    """
    pending = [factor for axis in axes for factor in axis]
    result: list[list[Factor]] = [[] for _ in sizes]
    targets = [(i, s) for i, s in enumerate(sizes) if s != 1]
    position, serial = 0, 0
    at = 0
    while at < len(targets):
        source = [pending[position]]
        goal = [targets[at]]
        position, at = position + 1, at + 1
        source_size, goal_size = source[0].size, goal[0][1]
        while source_size != goal_size:
            if source_size < goal_size:
                source_size *= pending[position].size
                source.append(pending[position])
                position += 1
            else:
                goal_size *= targets[at][1]
                goal.append(targets[at])
                at += 1
        pieces = _refine(labels, source, [s for _, s in goal], f"{block}#{serial}", choices, reason)
        serial += 1
        for (i, s), piece in zip(goal, pieces, strict=True):
            assert size(piece) == s
            result[i].extend(piece)
    return tuple(tuple(factors) for factors in result)


def _refine(
    labels: Labels,
    source: list[Factor],
    goal: list[int],
    block: str,
    choices: dict[str, int],
    reason: int,
) -> list[Axis]:
    if len(goal) == 1:
        return [tuple(source)]
    cuts = _boundaries([f.size for f in source]) | _boundaries(goal)
    chain = sorted(cuts)
    if any(large % small for small, large in pairwise(chain)):
        # 6 = 2·3 read as 3·2: no factor of one is a run of factors of the other.
        for factor in source:
            fix(labels, (factor,), reason)
        return [plain(s, reason) for s in goal]
    fine: list[Factor] = []
    # From the right, each factor of the source is cut at every boundary inside it.
    right = 1
    for factor in reversed(source):
        inside = [c // right for c in chain if right <= c <= right * factor.size]
        shape = [b // a for a, b in pairwise(inside)][::-1]
        fine[:0] = _split(labels, factor, shape, block, choices)
        right *= factor.size
    pieces: list[Axis] = []
    at = 0
    for wanted in goal:
        piece: list[Factor] = []
        while size(tuple(piece)) != wanted:
            piece.append(fine[at])
            at += 1
        pieces.append(tuple(piece))
    return pieces


def _boundaries(sizes: Sequence[int]) -> set[int]:
    products, right = {1}, 1
    for s in reversed(sizes):
        right *= s
        products.add(right)
    return products


def _split(
    labels: Labels, factor: Factor, shape: Sequence[int], block: str, choices: dict[str, int]
) -> list[Factor]:
    if len(shape) <= 1:
        return [factor]
    if factor.labels is None:
        return [Factor(s, None, factor.reason, factor.tags) for s in shape]
    keeper, kept = split_labels(labels, factor.labels, shape, choices.get(block))
    return [
        Factor(s, kept if i == keeper else None, 0, factor.tags | {(block, i)})
        for i, s in enumerate(shape)
    ]


def split_labels(
    labels: Labels, vector: LabelArray, shape: Sequence[int], choice: int | None = None
) -> tuple[int, LabelArray]:
    """Unite the labels of a block across all of its axes but one.

    Parameters
    ----------
    vector : (product of shape,) labels, read row-major.
    choice : the axis that keeps units where the labels leave it open; the last if None.

    Returns
    -------
    The axis that keeps units, and its labels.
    """
    grid = vector.reshape(shape)
    roots = labels.find(grid)
    keeper = None
    for axis in range(len(shape)):
        others = tuple(i for i in range(len(shape)) if i != axis)
        first = roots[tuple(slice(0, 1) if i in others else slice(None) for i in range(len(shape)))]
        if (roots == first).all() and (first != first.flat[0]).any():
            keeper = axis
            break
    if keeper is None:
        keeper = len(shape) - 1 if choice is None else choice
    index = tuple(slice(None) if i == keeper else slice(0, 1) for i in range(len(shape)))
    first = grid[index]
    labels.unite(grid, first)
    return keeper, first.reshape(-1)
