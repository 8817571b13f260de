"""How good a network is: on labelled data, and against another network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxjl import session
from onnxjl.data import BATCH_SIZE, TARGET, batches, labelled
from onnxjl.errors import DataError
from onnxjl.graph import Graph
from onnxjl.load import Source, load
from onnxjl.progress import progress


def accuracy(model: Source, data: Any, *, batch_size: int = BATCH_SIZE) -> float:
    """Fraction of samples whose largest output is that of their class, in onnxruntime.

    Parameters
    ----------
    model : a classifier, as `load` takes it; its first output is (samples, classes), where further
        axes of size 1 are passed over.
    data : labelled samples, see `onnxjl.data`; the labels are (samples,) int, 0-based classes.
    batch_size : samples in a batch where the graph leaves the number open.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    DataError : the data don't fit the graph, or the outputs or labels aren't those of a classifier.
    ModelError : onnxruntime can't run the graph.
    """
    graph = load(model)
    opened = session.open_session(graph, optimized=True)
    output = graph.model.graph.outputs[0].name or ""
    right, samples = 0, 0
    for feeds, target in progress(
        labelled(data, graph, batch_size=batch_size), "measuring accuracy"
    ):
        scores = np.asarray(session.run(opened, feeds, [output])[output])
        if target.dtype.kind not in "iub" or target.shape != (len(target),):
            raise DataError(
                f"'{TARGET}': expected one integer for each sample, came {target.dtype} of shape "
                f"{target.shape}"
            )
        if scores.ndim < 2 or scores.size != scores.shape[0] * scores.shape[1]:
            raise DataError(
                f"accuracy needs outputs of shape (samples, classes); '{output}' has {scores.shape}"
            )
        if len(scores) != len(target):
            raise DataError(
                f"output '{output}' has {len(scores)} rows for a batch of {len(target)} samples"
            )
        classes = scores.shape[1]
        if target.min() < 0 or target.max() >= classes:
            raise DataError(
                f"'{TARGET}' holds classes {target.min()} to {target.max()}; output '{output}' has "
                f"0 to {classes - 1}"
            )
        right += int((scores.reshape(len(scores), classes).argmax(axis=1) == target).sum())
        samples += len(target)
    return right / samples


def output_error(
    original: Graph, other: Graph, data: Any, *, batch_size: int = BATCH_SIZE
) -> float:
    """How far the outputs of a network are from the original's, in onnxruntime.

    Parameters
    ----------
    original, other : networks with the same inputs and floating outputs.
    data : inputs, see `onnxjl.data`; labels are passed over.
    batch_size : samples in a batch where the graph leaves the number open.

    Returns
    -------
    Relative L2 distance ``‖other − original‖ / ‖original‖``, over all samples and outputs.

    Raises
    ------
    DataError : the data don't fit, or there is no floating output of the same shape.
    ModelError : onnxruntime can't run a network.
    """
    sessions = [session.open_session(graph, optimized=True) for graph in (original, other)]
    distance, size = 0.0, 0.0
    compared = False
    for feeds in progress(batches(data, original, batch_size=batch_size), "comparing outputs"):
        before, after = (session.run(each, feeds) for each in sessions)
        found = squared_distance(before, after)
        if found is not None:
            compared = True
            distance, size = distance + found[0], size + found[1]
    if not compared:
        raise DataError("the networks have no floating output of the same shape to compare")
    return float(np.sqrt(distance / max(size, np.finfo(np.float64).tiny)))


def squared_distance(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[float, float] | None:
    """How far outputs are from the original's, ``‖after − before‖²``, and ``‖before‖²``.

    Parameters
    ----------
    before, after : output name -> array; only floating outputs of the same shape count.

    Returns
    -------
    Both sums, or None where there is nothing to compare.
    """
    distance, size = 0.0, 0.0
    compared = False
    for name, value in before.items():
        a, b = np.asarray(value), np.asarray(after.get(name))
        if a.dtype.kind != "f" or a.shape != b.shape:
            continue
        compared = True
        distance += float(np.square(b.astype(np.float64) - a).sum())
        size += float(np.square(a.astype(np.float64)).sum())
    return (distance, size) if compared else None
