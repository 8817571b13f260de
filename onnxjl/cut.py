"""Cut: a weight with some of its indices, which is copied only when somebody reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxjl.graph import unmap

_BLOCK = 1 << 22
"""Bytes of the whole weight that are gathered at once: files are written faster in large pieces."""

Kept = Mapping[int, NDArray[np.int64]]


class Cut:
    """What is left of a weight when only some indices of its axes are kept.

    It refers to the whole weight until it is called for a tensor, which it then keeps instead.
    Written to a file block by block it is never in memory as a whole.

    Parameters
    ----------
    whole : the weight that is cut.
    kept : axis -> (k,) int, the 0-based sorted indices that stay, all of which it has.
    name : the initializer's.
    """

    def __init__(self, whole: ir.TensorProtocol, kept: Kept, name: str) -> None:
        sizes = list(whole.shape.numpy())
        for axis, indices in kept.items():
            sizes[axis] = len(indices)
        self.shape = tuple(sizes)
        self.dtype = whole.dtype
        self.name = name
        self._tensor: ir.Tensor | None = None
        self._whole: ir.TensorProtocol | None = whole
        self._kept = kept
        earlier = cut_of(whole)
        source = None if earlier is None else earlier._whole
        if earlier is not None and source is not None:
            before = earlier._kept
            later = {
                a: before[a][indices] if a in before else indices for a, indices in kept.items()
            }
            self._whole, self._kept = source, {**before, **later}

    def __call__(self) -> ir.Tensor:
        """The tensor, which is kept from now on.

        Raises
        ------
        ExternalDataError : the file that holds the whole weight went away, or was exchanged.
        """
        if self._tensor is None:
            array, start = np.empty(self.shape, dtype=self.dtype.numpy()), 0
            for block in self.blocks():
                if len(block) == self.shape[0]:
                    array = block
                else:
                    array[start : start + len(block)] = block
                    start += len(block)
            self._tensor = ir.Tensor(array, dtype=self.dtype, name=self.name)
            self._whole = None
        return self._tensor

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the elements in their order, in contiguous arrays of whole rows that aren't kept.

        Raises
        ------
        ExternalDataError : the file that holds the whole weight went away, or was exchanged.
        """
        whole = self._whole  # Read first: another thread may set the tensor, and drops this then.
        if whole is None or self._tensor is not None:
            yield self().numpy()
            return
        array = whole.numpy()
        rows = self._kept.get(0)
        step = max(1, _BLOCK // max(1, math.prod(array.shape[1:]) * array.itemsize))
        for start in range(0, self.shape[0], step):
            some = slice(start, start + step)
            block = array[some] if rows is None else array.take(rows[some], axis=0)
            for axis, indices in self._kept.items():
                if axis > 0:
                    block = block.take(indices, axis=axis)
            yield block
        del array  # A file that an array reads stays mapped, and open.
        unmap(whole)


def cut(whole: ir.TensorProtocol, kept: Kept, name: str) -> ir.LazyTensor:
    """Return a weight with the indices that stay; see `Cut`."""
    made = Cut(whole, kept, name)
    return ir.LazyTensor(made, made.dtype, ir.Shape(made.shape, frozen=True), name=name)


def cut_of(tensor: ir.TensorProtocol) -> Cut | None:
    """Return how a weight was cut, if `cut` made it."""
    made = tensor.raw if isinstance(tensor, ir.LazyTensor) else None
    return made if isinstance(made, Cut) else None
