"""Layers as matrices: rows of inputs, and weights of shape (groups, unknowns, outputs)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxjl.recovery.batch_normalization import set_weight

Float = NDArray[np.float64]

CONVOLUTIONS = ("Conv", "ConvTranspose")
"""Operators whose channels are axis 1 of what they read and make."""

RECURRENT = ("GRU", "LSTM", "RNN")
"""Operators that add products of their inputs to products of their states."""


class Convolution:
    """A convolution as a product of patches."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        value = node.inputs[1]
        assert value is not None
        self.value = value
        self.shape = array_of(value).shape
        self.groups = node.attributes.get_int("group", 1)

    def read(self) -> Float:
        outputs = self.shape[0] // self.groups
        matrix = array_of(self.value).reshape(self.groups, outputs, -1)
        return matrix.transpose(0, 2, 1)

    def write(self, weight: Float) -> None:
        set_weight(self.value, weight.transpose(0, 2, 1).reshape(self.shape))

    def sample(
        self, x: np.ndarray, y: Float, count: int, random: np.random.Generator
    ) -> tuple[Float, Float]:
        """Return rows of patches and of wanted outputs at random positions."""
        samples, spatial = y.shape[0], y.shape[1:-1]
        positions = samples * int(np.prod(spatial))
        chosen = choose(positions, count, random)
        wanted = y.reshape(positions, self.groups, -1)[chosen]
        return self.rows(x, chosen, spatial), wanted.transpose(1, 0, 2)

    def rows(self, x: np.ndarray, chosen: NDArray[np.int64], spatial: Sequence[int]) -> Float:
        """Return (groups, rows, unknowns), the patches at some positions of the output.

        Parameters
        ----------
        x : (samples, channels, …), what is convolved.
        chosen : numbers of positions, over samples and then over the sizes of `spatial`.
        spatial : sizes of the output after its channels.
        """
        where = np.unravel_index(chosen, (len(x), *spatial))
        kernel = self.shape[2:]
        strides, dilations = self._steps()
        begin = _padding(self.node, x.shape[2:], kernel, strides, dilations)
        patches = np.empty((len(chosen), x.shape[1], *kernel), dtype=np.float64)
        for offset in np.ndindex(*kernel):
            place = [
                w * s + o * d - b
                for w, s, o, d, b in zip(where[1:], strides, offset, dilations, begin, strict=True)
            ]
            inside = np.ones(len(chosen), dtype=bool)
            for p, n in zip(place, x.shape[2:], strict=True):
                inside &= (p >= 0) & (p < n)
            clipped = [np.clip(p, 0, n - 1) for p, n in zip(place, x.shape[2:], strict=True)]
            taken = x[(where[0], slice(None), *clipped)]
            patches[(slice(None), slice(None), *offset)] = np.where(inside[:, None], taken, 0)
        width = x.shape[1] // self.groups
        rows = patches.reshape(len(chosen), self.groups, width * int(np.prod(kernel)))
        return rows.transpose(1, 0, 2)

    def spatial(self, x: np.ndarray) -> tuple[int, ...]:
        """Return the sizes of the output after its channels, for an input."""
        kernel, sizes = self.shape[2:], x.shape[2:]
        strides, dilations = self._steps()
        mode = self.node.attributes.get_string("auto_pad", "NOTSET")
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            return tuple(-(-n // s) for n, s in zip(sizes, strides, strict=True))
        pads = list(self.node.attributes.get_ints("pads", [0] * 2 * len(kernel)))
        added = [a + b for a, b in zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)]
        if mode == "VALID":
            added = [0] * len(kernel)
        return tuple(
            (n + p - (k - 1) * d - 1) // s + 1
            for n, p, k, s, d in zip(sizes, added, kernel, strides, dilations, strict=True)
        )

    def squares(self, x: np.ndarray) -> Float:
        """Return (groups, unknowns), the sum over all patches of each of their elements squared."""
        kernel, sizes = self.shape[2:], x.shape[2:]
        spatial = self.spatial(x)
        strides, dilations = self._steps()
        begin = _padding(self.node, sizes, kernel, strides, dilations)
        square = np.square(x, dtype=np.float64).sum(axis=0)
        total = np.zeros((x.shape[1], *kernel))
        for offset in np.ndindex(*kernel):
            # For each axis, the positions that aren't padding at this place of the kernel.
            places = [
                np.arange(count) * s + o * d - b
                for count, s, o, d, b in zip(
                    spatial, strides, offset, dilations, begin, strict=True
                )
            ]
            inside = [p[(p >= 0) & (p < n)] for p, n in zip(places, sizes, strict=True)]
            taken = square[np.ix_(np.arange(x.shape[1]), *inside)]
            total[(slice(None), *offset)] = taken.reshape(x.shape[1], -1).sum(axis=1)
        return total.reshape(self.groups, -1)

    def _steps(self) -> tuple[list[int], list[int]]:
        """Return strides and dilations."""
        ones = [1] * (len(self.shape) - 2)
        strides = self.node.attributes.get_ints("strides", ones)
        return list(strides), list(self.node.attributes.get_ints("dilations", ones))


class Matrix:
    """A product with a constant matrix; any number of leading axes."""

    def __init__(self, node: ir.Node) -> None:
        value = node.inputs[1]
        assert value is not None
        self.value = value
        self.turned = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))

    def read(self) -> Float:
        matrix = array_of(self.value)
        return (matrix.T if self.turned else matrix)[None]

    def write(self, weight: Float) -> None:
        set_weight(self.value, weight[0].T if self.turned else weight[0])

    def sample(
        self, x: np.ndarray, y: Float, count: int, random: np.random.Generator
    ) -> tuple[Float, Float]:
        """Return rows of inputs and of wanted outputs."""
        rows, wanted = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        chosen = choose(len(rows), count, random)
        return rows[chosen].astype(np.float64)[None], wanted[chosen][None]


class RecurrentInput(Matrix):
    """The product of a recurrent layer's inputs with the weights of all gates and directions."""

    def read(self) -> Float:
        array = array_of(self.value)  # (directions, gates · units, inputs)
        return array.reshape(-1, array.shape[2]).T[None]

    def write(self, weight: Float) -> None:
        set_weight(self.value, weight[0].T.reshape(array_of(self.value).shape))


class Upsampling:
    """A transposed convolution whose kernel's places don't overlap, as a product.

    Each position of the input makes a block of the output, of the kernel's size.
    """

    def __init__(self, node: ir.Node) -> None:
        value = node.inputs[1]
        assert value is not None
        self.value = value
        self.shape = array_of(value).shape

    def read(self) -> Float:
        return array_of(self.value).reshape(1, self.shape[0], -1)

    def write(self, weight: Float) -> None:
        set_weight(self.value, weight[0].reshape(self.shape))

    def sample(
        self, x: np.ndarray, y: Float, count: int, random: np.random.Generator
    ) -> tuple[Float, Float]:
        """Return rows of inputs and of the blocks wanted for them, at random positions."""
        rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
        kernel = self.shape[2:]
        # Every axis of the output is one of positions and one of places of the kernel.
        sizes = [n for pair in zip(x.shape[2:], kernel, strict=True) for n in pair]
        blocks = y.reshape(len(y), *sizes, y.shape[-1])
        rank = len(kernel)
        positions, places = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
        blocks = blocks.transpose(0, *positions, 2 * rank + 1, *places)
        chosen = choose(len(rows), count, random)
        wanted = blocks.reshape(len(rows), -1)[chosen]
        return rows[chosen].astype(np.float64)[None], wanted[None]


def matrix_of(node: ir.Node) -> Convolution | Upsampling | Matrix:
    if node.op_type == "ConvTranspose":
        return Upsampling(node)
    if node.op_type in RECURRENT:
        return RecurrentInput(node)
    return Convolution(node) if node.op_type == "Conv" else Matrix(node)


def choose(number: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return `count` numbers below `number` in order, or all of them if there are no more."""
    if count >= number:
        return np.arange(number)
    return np.sort(random.choice(number, size=count, replace=False))


def _padding(
    node: ir.Node,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """Return the padding before each spatial axis."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        begin = []
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            whole = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            begin.append(whole // 2 if mode == "SAME_UPPER" else whole - whole // 2)
        return begin
    if mode == "VALID":
        return [0] * len(kernel)
    return list(node.attributes.get_ints("pads", [0] * 2 * len(kernel)))[: len(kernel)]


def array_of(value: ir.Value | None) -> Float:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def channels_last(array: np.ndarray, node: ir.Node) -> np.ndarray:
    return np.moveaxis(array, 1, -1) if node.op_type in CONVOLUTIONS else array
