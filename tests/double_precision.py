"""Networks run in float64: what rounding does shrinks then, and a fault stays as large as it is.

onnxruntime has no kernels in float64 for convolutions, recurrent cells and more; ONNX's reference
implementation, which is NumPy's arithmetic, has nearly all. What it lacks, or does otherwise, is
below, and so are operators of onnxruntime's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv_transpose import ConvTranspose as _UngroupedConvTranspose
from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_25
from onnx.reference.ops.op_gru import CommonGRU


def run_in_double(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Run a network of float32 in float64.

    Parameters
    ----------
    model : left as it is.
    inputs : array of each input, of the types that the model declares.

    Returns
    -------
    Array of each output, in the graph's order; float64 where the model has float32.
    """
    evaluator = ReferenceEvaluator(_doubled(model), new_ops=_OPERATORS)
    feeds = {
        name: array.astype(np.float64) if array.dtype == np.float32 else array
        for name, array in inputs.items()
    }
    names = [output.name for output in model.graph.output]
    with np.errstate(all="ignore"):  # Both sides of a choice are computed.
        return dict(zip(names, evaluator.run(names, feeds), strict=True))


def _doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for tensor in graph.initializer:
        _double(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for number, node in enumerate(graph.node):
        for i, name in enumerate(node.output):
            # The evaluator would give an output without a name to every input without one.
            node.output[i] = name or f"unused {number} {i}"
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _double(attribute.t)
            elif node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    return result


def _double(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


class ConvTranspose(_UngroupedConvTranspose):
    """The reference's, for each group by itself: it takes the weights of several wrongly."""

    def _run(
        self,
        x: np.ndarray,
        weights: np.ndarray,
        bias: np.ndarray | None = None,
        group: int | None = None,
        **given: Any,
    ) -> tuple[np.ndarray]:
        count = group or 1
        pieces = zip(np.split(x, count, 1), np.split(weights, count, 0), strict=True)
        made = [super(ConvTranspose, self)._run(*each, group=1, **given)[0] for each in pieces]
        joined = np.concatenate(made, axis=1)
        return (joined if bias is None else joined + bias.reshape(-1, *[1] * (joined.ndim - 2)),)


class LRN(OpRun):
    """Local response normalization; the reference's has as many channels as the batch has rows."""

    def _run(
        self, x: np.ndarray, alpha: float, beta: float, bias: float, size: int
    ) -> tuple[np.ndarray]:
        padding = ((0, 0), ((size - 1) // 2, size // 2), *[(0, 0)] * (x.ndim - 2))
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x**2, padding), size, axis=1)
        return (x / (bias + alpha / size * windows.sum(-1)) ** beta,)


class GRU(CommonGRU):
    """The reference's default for the bias is too short."""

    def _run(
        self,
        x: np.ndarray,
        weights: np.ndarray,
        recurrence: np.ndarray,
        bias: np.ndarray | None = None,
        *states: np.ndarray | None,
        **given: Any,
    ) -> tuple[np.ndarray, ...]:
        if bias is None:
            bias = np.zeros((weights.shape[0], 2 * weights.shape[1]), x.dtype)
        return super()._run(x, weights, recurrence, bias, *states, **given)


class Mean(OpRun):
    """The reference's takes what broadcasts only after the rest."""

    def _run(self, *given: np.ndarray) -> tuple[np.ndarray]:
        return (sum(given) / len(given),)


class DequantizeLinear(DequantizeLinear_25):
    """The newest one: the reference has none for operator sets before 19."""


class MeanVarianceNormalization(OpRun):
    """The reference's has a term in float32."""

    def _run(self, x: np.ndarray, axes: tuple[int, ...] | None = None) -> tuple[np.ndarray]:
        axes = (0, 2, 3) if axes is None else tuple(axes)
        gap = x - x.mean(axes, keepdims=True)
        return (gap / (x.std(axes, keepdims=True) + 1e-9),)


class GlobalLpPool(OpRun):
    """The norm of all that a channel holds."""

    def _run(self, x: np.ndarray, p: int | None = None) -> tuple[np.ndarray]:
        power = 2 if p is None else p
        axes = tuple(range(2, x.ndim))
        return ((np.abs(x) ** power).sum(axes, keepdims=True) ** (1 / power),)


class MaxRoiPool(OpRun):
    """The largest numbers of the cells of each region, whose bounds are rounded outwards."""

    def _run(
        self,
        x: np.ndarray,
        rois: np.ndarray,
        pooled_shape: tuple[int, int] | None = None,
        spatial_scale: float | None = None,
    ) -> tuple[np.ndarray]:
        rows, columns = pooled_shape or (1, 1)
        result = np.zeros((len(rois), x.shape[1], rows, columns), x.dtype)
        for region, (image, *corners) in enumerate(rois):
            left, top, right, bottom = (round(c * (spatial_scale or 1.0)) for c in corners)
            height, width = max(bottom - top + 1, 1), max(right - left + 1, 1)
            for i in range(rows):
                down = slice(top + i * height // rows, top + -(-(i + 1) * height // rows))
                for j in range(columns):
                    along = slice(
                        left + j * width // columns, left + -(-(j + 1) * width // columns)
                    )
                    cell = x[int(image), :, down, along]
                    result[region, :, i, j] = cell.max((1, 2)) if cell.size else 0
        return (result,)


class Gelu(OpRun):
    """x Φ(x), as onnxruntime's own operator."""

    op_domain = "com.microsoft"

    def _run(self, x: np.ndarray, **_: Any) -> tuple[np.ndarray]:
        return (x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2,)


class BiasGelu(Gelu):
    """The same after a bias."""

    def _run(self, x: np.ndarray, bias: np.ndarray, **_: Any) -> tuple[np.ndarray]:
        return super()._run(x + bias)


class FastGelu(OpRun):
    """The approximation with a hyperbolic tangent, after a bias if there is one."""

    op_domain = "com.microsoft"

    def _run(self, x: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray]:
        x = x if bias is None else x + bias
        return (x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,)


class QuickGelu(OpRun):
    """x σ(αx)."""

    op_domain = "com.microsoft"

    def _run(self, x: np.ndarray, alpha: float | None = None) -> tuple[np.ndarray]:
        slope = 1.702 if alpha is None else alpha
        return (x / (1 + np.exp(-slope * x)),)


class SkipLayerNormalization(OpRun):
    """A layer normalization of a sum of two inputs and a bias; the sum is the last output."""

    op_domain = "com.microsoft"

    def _run(
        self,
        x: np.ndarray,
        skip: np.ndarray,
        gamma: np.ndarray,
        beta: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        epsilon: float | None = None,
    ) -> tuple[np.ndarray, ...]:
        total = x + skip + (0 if bias is None else bias)
        mean = total.mean(-1, keepdims=True)
        scale = 1 / np.sqrt(total.var(-1, keepdims=True) + (epsilon or 1e-12))
        return (total - mean) * scale * gamma + (0 if beta is None else beta), mean, scale, total


class SkipSimplifiedLayerNormalization(OpRun):
    """The same without a mean."""

    op_domain = "com.microsoft"

    def _run(
        self,
        x: np.ndarray,
        skip: np.ndarray,
        gamma: np.ndarray,
        bias: np.ndarray | None = None,
        epsilon: float | None = None,
    ) -> tuple[np.ndarray, ...]:
        total = x + skip + (0 if bias is None else bias)
        scale = 1 / np.sqrt((total**2).mean(-1, keepdims=True) + (epsilon or 1e-12))
        return total * scale * gamma, scale, scale, total


class Attention(OpRun):
    """Attention of one input, projected by the columns of one weight."""

    op_domain = "com.microsoft"

    def _run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        past: np.ndarray | None = None,
        added: np.ndarray | None = None,
        *,
        qkv_hidden_sizes: Sequence[int] | None = None,
        **attributes: Any,
    ) -> tuple[np.ndarray]:
        assert past is None
        columns = x @ weight + (0 if bias is None else bias)
        sizes = qkv_hidden_sizes or [columns.shape[-1] // 3] * 3
        query, key, value = np.split(columns, np.cumsum(sizes)[:-1], axis=-1)
        return (attend(query, key, value, mask, added, **attributes),)


class MultiHeadAttention(OpRun):
    """Attention of three inputs, which a bias may be added to."""

    op_domain = "com.microsoft"

    def _run(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        bias: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        added: np.ndarray | None = None,
        **attributes: Any,
    ) -> tuple[np.ndarray]:
        given = [query, key, value]
        if bias is not None:
            parts = np.split(bias, np.cumsum([x.shape[-1] for x in given])[:-1])
            given = [x + part for x, part in zip(given, parts, strict=True)]
        return (attend(*given, mask, added, **attributes),)


def attend(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None,
    added: np.ndarray | None,
    *,
    num_heads: int,
    scale: float | None = None,
    mask_filter_value: float | None = None,
    unidirectional: int | None = None,
    **_: Any,
) -> np.ndarray:
    """(batch, sequence, features of all heads) of the weighted mean of values."""
    q, k, v = (heads_apart(x, num_heads) for x in (query, key, value))
    scores = q @ k.swapaxes(2, 3) * (scale or 1 / math.sqrt(q.shape[-1]))
    if mask is not None:
        if mask.ndim == 1:  # Lengths.
            mask = np.arange(k.shape[2]) < mask[:, None]
        hidden = -10000.0 if mask_filter_value is None else mask_filter_value
        scores = scores + np.where(mask[:, None, None, :] > 0, 0, hidden)
    if added is not None:
        scores = scores + added
    if unidirectional:
        scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
    even = np.exp(scores - scores.max(-1, keepdims=True))
    return heads_joined(even / even.sum(-1, keepdims=True) @ v)


def heads_apart(x: np.ndarray, number: int) -> np.ndarray:
    """(batch, sequence, features of all heads) → (batch, heads, sequence, features)"""
    return x.reshape(*x.shape[:2], number, -1).transpose(0, 2, 1, 3)


def heads_joined(x: np.ndarray) -> np.ndarray:
    """The inverse of `heads_apart`."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


class RotaryEmbedding(OpRun):
    """Pairs of each head's features, turned by angles that tables have for each position."""

    op_domain = "com.microsoft"

    def _run(
        self,
        x: np.ndarray,
        places: np.ndarray,
        cosine: np.ndarray,
        sine: np.ndarray,
        interleaved: int | None = None,
        **_: Any,
    ) -> tuple[np.ndarray]:
        shape = x.shape
        if x.ndim == 3:
            x = x.reshape(*shape[:2], -1, 2 * cosine.shape[1]).transpose(0, 2, 1, 3)
        if places.size == 1:
            places = places.reshape(1, 1) + np.arange(x.shape[2])[None]
        turned = turn(x, cosine[places][:, None], sine[places][:, None], interleaved or 0)
        return ((turned.transpose(0, 2, 1, 3) if len(shape) == 3 else turned).reshape(shape),)


def turn(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray, interleaved: int) -> np.ndarray:
    """(batch, heads, sequence, features), of which the two halves, or neighbours, are pairs."""
    pairs = x.reshape(*x.shape[:-1], -1, 2) if interleaved else np.stack(np.split(x, 2, -1), -1)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = np.stack([first * cosine - second * sine, first * sine + second * cosine], -1)
    if not interleaved:
        turned = turned.swapaxes(-1, -2)
    return turned.reshape(x.shape)


class GroupQueryAttention(OpRun):
    """Causal attention whose heads share keys and values, without earlier steps."""

    op_domain = "com.microsoft"

    def _run(
        self,
        query: np.ndarray,
        key: np.ndarray | None,
        value: np.ndarray | None,
        past_key: np.ndarray | None,
        past_value: np.ndarray | None,
        last: np.ndarray,
        total: np.ndarray,
        cosine: np.ndarray | None = None,
        sine: np.ndarray | None = None,
        places: np.ndarray | None = None,
        added: np.ndarray | None = None,
        *,
        num_heads: int,
        kv_num_heads: int,
        do_rotary: int | None = None,
        rotary_interleaved: int | None = None,
        **attributes: Any,
    ) -> tuple[np.ndarray, ...]:
        assert past_key is None
        assert past_value is None
        if key is None or value is None:
            width = query.shape[-1] // (num_heads + 2 * kv_num_heads)
            ends = np.cumsum([num_heads * width, kv_num_heads * width])
            query, key, value = np.split(query, ends, axis=-1)
        numbers = (num_heads, kv_num_heads, kv_num_heads)
        q, k, v = map(heads_apart, (query, key, value), numbers)
        if do_rotary and cosine is not None and sine is not None:
            time = q.shape[2]
            q, k = (turn(x, cosine[:time], sine[:time], rotary_interleaved or 0) for x in (q, k))
        each = (q, *(np.repeat(x, num_heads // kv_num_heads, axis=1) for x in (k, v)))
        attributes |= {"num_heads": num_heads, "unidirectional": 1}
        return attend(*map(heads_joined, each), None, added, **attributes), k, v


class EmbedLayerNormalization(OpRun):
    """The sum of rows of two or three tables, normalized."""

    op_domain = "com.microsoft"

    def _run(
        self,
        numbers: np.ndarray,
        segments: np.ndarray | None,
        words: np.ndarray,
        places: np.ndarray,
        tables: np.ndarray | None,
        gamma: np.ndarray,
        beta: np.ndarray,
        mask: np.ndarray | None = None,
        epsilon: float | None = None,
        **_: Any,
    ) -> tuple[np.ndarray, ...]:
        total = words[numbers] + places[: numbers.shape[1]]
        if segments is not None and tables is not None:
            total = total + tables[segments]
        gap = total - total.mean(-1, keepdims=True)
        made = gap / np.sqrt(total.var(-1, keepdims=True) + (epsilon or 1e-12)) * gamma + beta
        lengths = np.zeros(len(numbers), np.int32) if mask is None else mask.sum(1, dtype=np.int32)
        return made, lengths, total


class FusedMatMul(OpRun):
    """A product times a number."""

    op_domain = "com.microsoft"

    def _run(
        self, a: np.ndarray, b: np.ndarray, alpha: float | None = None, **_: Any
    ) -> tuple[np.ndarray]:
        return ((1.0 if alpha is None else alpha) * (a @ b),)


_OPERATORS = [
    ConvTranspose,
    LRN,
    GRU,
    Mean,
    DequantizeLinear,
    MeanVarianceNormalization,
    GlobalLpPool,
    MaxRoiPool,
    Gelu,
    BiasGelu,
    FastGelu,
    QuickGelu,
    SkipLayerNormalization,
    SkipSimplifiedLayerNormalization,
    Attention,
    MultiHeadAttention,
    RotaryEmbedding,
    GroupQueryAttention,
    EmbedLayerNormalization,
    FusedMatMul,
]
