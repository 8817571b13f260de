"""Estimate the statistics of batch normalization anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxjl.data import batches
from onnxjl.errors import DataError, UsageError
from onnxjl.graph import Graph
from onnxjl.progress import progress
from onnxjl.recovery.stream import Stream


def estimate(graph: Graph, calibration: Any, *, batch_size: int = 64) -> Graph:
    """Set running means and variances to those of a network's inputs, in graph order.

    Parameters
    ----------
    graph : a pruned graph.
    calibration : inputs; see `onnxjl.data.batches`.

    Returns
    -------
    The graph with other statistics; nothing else changes.

    Raises
    ------
    UsageError : the network has no batch normalization (exporters fold it by default).
    DataError : activations aren't finite, or statistics overflow their type.

    Source: Li et al. 2020, EagleEye (adaptive batch normalization), section 3.
    """
    copy = replace(graph, model=graph.model.clone())
    nodes = [n for n in copy.model.graph if n.op_type == "BatchNormalization"]
    if not nodes:
        raise UsageError(
            "recovery by 'bn' needs batch normalization, which this network doesn't have "
            "(exporters fold it into convolutions by default); 'refit' works on any network"
        )
    with Stream(copy, batches(calibration, graph, batch_size=batch_size)) as stream:
        for i, node in enumerate(progress(nodes, "estimating batch normalization")):
            value = node.inputs[0]
            assert value is not None
            mean, variance = _moments(stream, value)
            for position, statistic in ((3, mean), (4, variance)):
                parameter = node.inputs[position]
                assert parameter is not None
                set_weight(parameter, statistic)
            rest = [n.inputs[0] for n in nodes[i + 1 :] if n.inputs[0] is not None]
            stream.keep_only(stream.needed_for(rest))
    return copy


def _moments(stream: Stream, value: ir.Value) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each channel (axis 1), in float64."""
    count = 0
    total: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0
    for (array,) in stream.batches(value):
        rows = np.moveaxis(array, 1, -1).reshape(-1, array.shape[1]).astype(np.float64)
        check_finite(rows, value.name)
        count += len(rows)
        total = total + rows.sum(axis=0)
        squares = squares + np.square(rows).sum(axis=0)
    mean = np.asarray(total) / count
    return mean, np.maximum(np.asarray(squares) / count - mean**2, 0.0)


def check_finite(array: np.ndarray, name: str | None) -> None:
    """Raise `DataError` if what was computed from activations isn't finite."""
    if not np.isfinite(array).all():
        raise DataError(
            f"'{name}' isn't finite on the calibration data; look for NaN or infinity in these, "
            "or in the network's weights"
        )


def set_weight(value: ir.Value, array: np.ndarray) -> None:
    """Replace an initializer, in its own type; raise `DataError` if that is too small for it."""
    tensor = value.const_value
    assert tensor is not None
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array).astype(tensor.dtype.numpy())
    if not np.isfinite(cast.astype(np.float64)).all():
        raise DataError(
            f"recovery gives '{value.name}' values that {tensor.dtype.name.lower()} can't hold; "
            "convert the network to float32 first"
        )
    value.const_value = ir.Tensor(cast, dtype=tensor.dtype, name=value.name)
    value.shape = ir.Shape(cast.shape)
