"""Cut: a weight with some of its indices, which is copied only when somebody reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxjl.graph import unmap

_BLOCK = 1 << 22
"""Bytes of the whole weight that are gathered at once: files are written faster in large pieces."""

Kept = Mapping[int, NDArray[np.int64]]


class Cut(ir.TensorProtocol):
    """What is left of a weight when only some indices of its axes are kept.

    It refers to the whole weight until its elements are asked for, which it then keeps instead.
    Written to a file block by block it is never in memory as a whole.

    Parameters
    ----------
    whole : the weight that is cut.
    kept : axis -> (k,) int, the 0-based sorted indices that stay, all of which it has.
    name : the initializer's.

    Raises
    ------
    ExternalDataError : by whatever reads it: the file that holds the whole weight went away, or was
        exchanged.
    """

    def __init__(self, whole: ir.TensorProtocol, kept: Kept, name: str) -> None:
        sizes = list(cast("tuple[int, ...]", whole.shape.dims))
        for axis, indices in kept.items():
            sizes[axis] = len(indices)
        self.name = name
        self.shape = ir.Shape(sizes, frozen=True)
        self._sizes = tuple(sizes)
        self.dtype = whole.dtype
        self.doc_string: str | None = None
        self.metadata_props: dict[str, str] = {}
        self.meta: dict[str, Any] = {}
        self._array: np.ndarray | None = None
        self._whole: ir.TensorProtocol | None = whole
        self._kept = kept
        if type(whole) is Cut and (source := whole._whole) is not None:
            before = whole._kept
            later = {
                a: before[a][indices] if a in before else indices for a, indices in kept.items()
            }
            self._whole, self._kept = source, {**before, **later}

    @property
    def raw(self) -> ir.TensorProtocol:
        """The whole weight; itself once it has been read."""
        return self if self._whole is None else self._whole

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self._sizes)

    @property
    def nbytes(self) -> int:
        """The bytes of its elements in ONNX's form."""
        return math.ceil(self.size * self.dtype.itemsize)

    def numpy(self) -> np.ndarray:
        """Its elements, which are kept from now on."""
        if self._array is None:
            array, start = None, 0
            for block in self.blocks():
                if len(block) == self._sizes[0]:
                    array = block
                    continue
                if array is None:
                    array = np.empty(self._sizes, dtype=block.dtype)
                array[start : start + len(block)] = block
                start += len(block)
            self._array = np.empty(self._sizes, self.dtype.numpy()) if array is None else array
            self._whole = None
        return self._array

    def tobytes(self) -> bytes:
        """Its elements in ONNX's little-endian form."""
        return ir.Tensor(self.numpy(), dtype=self.dtype).tobytes()

    def __array__(self, dtype: Any = None) -> np.ndarray:
        return self.numpy().__array__(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> Any:
        return self.numpy().__dlpack_device__()

    def __repr__(self) -> str:
        return f"Cut<{self.dtype},{self.shape}>(name={self.name!r})"

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the elements in their order, as contiguous arrays of whole rows; keep none."""
        whole = self._whole  # Read first: another thread may set the array, and drop this then.
        if whole is None or self._array is not None:
            yield self.numpy()
            return
        array, kept = whole.numpy(), self._kept
        dtype = array.dtype
        if not array.flags.aligned:
            # NumPy would copy the whole weight first. Bytes that mean nothing lie anywhere.
            array = array.view(f"V{array.itemsize}")
        count = self._sizes[0]
        step = max(1, _BLOCK // max(1, math.prod(array.shape[1:]) * array.itemsize))
        for start in range(0, count, step):
            block = array
            if 0 in kept:
                rows = kept[0]
                block = block.take(rows if step >= count else rows[start : start + step], axis=0)
            elif step < count:
                block = block[start : start + step]
            for axis, indices in kept.items():
                if axis > 0:
                    block = block.take(indices, axis=axis)
            yield block.view(dtype)
        del array  # A file that an array reads stays mapped, and open.
        unmap(whole)
