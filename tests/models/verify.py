"""Checks in onnxruntime that a model passes before its skeleton is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from . import zoo
from .skeleton import restore

TOLERANCE = 1e-4
"""Largest difference from the exporting framework, relative to the largest output."""

DEPENDENCE = 1e-2
"""Least difference between the outputs of two inputs, relative to the largest output."""


def run(model: bytes, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a serialized model on one thread; return its outputs in the graph's order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def check_equal(results: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Raise ValueError if onnxruntime's outputs differ from the framework's."""
    for result, value in zip(results, expected, strict=True):
        difference = np.abs(result - value).max() / np.abs(value).max()
        if not difference <= TOLERANCE:
            raise ValueError(f"onnxruntime differs from the framework by {difference:.1e}")


def write_skeleton(data: bytes, path: Path) -> None:
    """Write a skeleton, and remove it again if `check_skeleton` rejects it."""
    path.write_bytes(data)
    try:
        check_skeleton(path)
    except ValueError:
        path.unlink()
        raise


def check_skeleton(path: Path) -> None:
    """Restore a skeleton and run it on two inputs.

    Raises
    ------
    ValueError
        If an output is not finite, or hardly depends on the input.
    """
    model = restore(path)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    first, second = (run(data, zoo.inputs(model, seed)) for seed in (0, 1))
    for left, right in zip(first, second, strict=True):
        if not np.isfinite(left).all():
            raise ValueError("the restored skeleton gives infinite outputs")
        if left.shape != right.shape:
            continue  # data decide how large it is
        difference = np.abs(left - right).max() / np.abs(left).max()
        if not difference > DEPENDENCE:
            raise ValueError(f"the restored skeleton's outputs differ by {difference:.1e} only")
