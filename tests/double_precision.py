"""Networks run in float64: what rounding does shrinks then, and a fault stays as large as it is.

onnxruntime has no kernels in float64 for convolutions, recurrent cells and more; ONNX's reference
implementation, which is NumPy's arithmetic, has them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv_transpose import ConvTranspose as _UngroupedConvTranspose


def run_in_double(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Run a network of float32, without casts, in float64.

    Parameters
    ----------
    model : left as it is.
    inputs : array of each input, of the types that the model declares.

    Returns
    -------
    Array of each output, in the graph's order; float64 where the model has float32.
    """
    evaluator = ReferenceEvaluator(_doubled(model), new_ops=[ConvTranspose, LRN])
    feeds = {
        name: array.astype(np.float64) if array.dtype == np.float32 else array
        for name, array in inputs.items()
    }
    names = [output.name for output in model.graph.output]
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
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _double(attribute.t)
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
