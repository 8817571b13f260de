"""Layer after layer in the order of the graph, by the inputs that each layer reads.

The inputs of a layer are those that it has in the network whose earlier layers are sparse already:
as in the papers, what they lost is seen by those after them. A layer is a matrix of shape
(groups, outputs, inputs); the inputs of a convolution are the elements of a patch, its channels
last, so that those that follow each other are channels at one place of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxjl.data import batches
from onnxjl.errors import DataError, UsageError, WeightError
from onnxjl.graph import Graph, node_name
from onnxjl.progress import progress
from onnxjl.recovery.matrices import Convolution, Float, choose, matrix_of
from onnxjl.recovery.stream import Stream
from onnxjl.sparsity.layers import Layer
from onnxjl.sparsity.pattern import Pattern

# Rows (samples × positions) that a Hessian matrix is taken over, for each of its columns, and at
# least: more cost time and change it little.
ROWS_PER_COLUMN, LEAST_ROWS = 50, 20_000


@dataclass(frozen=True)
class Goal:
    """What is to become of a layer.

    Parameters
    ----------
    zeros : how many of its weights are to be zero; None where a pattern says it.
    pattern : the N:M pattern.
    """

    zeros: int | None
    pattern: Pattern | None


class Reader:
    """What a layer reads, in the network as it is by now.

    Parameters
    ----------
    node : of the network, whose weight is read.
    stream : of the network.
    """

    def __init__(self, node: ir.Node, stream: Stream) -> None:
        self._matrix = matrix_of(node)
        self._stream = stream
        value = node.inputs[0]
        assert value is not None
        self._value = value
        shape = self._matrix.read().shape
        places = np.arange(shape[1])
        if isinstance(self._matrix, Convolution):
            # From (channels, places of the kernel) to (places, channels).
            channels = self._matrix.shape[1]
            places = places.reshape(channels, -1).T.reshape(-1)
        self._order = places

    def weight(self) -> Float:
        """Return the weight as (groups, outputs, inputs)."""
        return self._matrix.read().transpose(0, 2, 1)[:, :, self._order]

    def write(self, weight: Float) -> None:
        """Write a weight of shape (groups, outputs, inputs)."""
        back = np.empty_like(weight)
        back[:, :, self._order] = weight
        self._matrix.write(back.transpose(0, 2, 1))

    def squares(self) -> Float:
        """Return (groups, inputs), the sum of squares of each input over all rows."""
        total: Float | float = 0.0
        for (x,) in self._stream.batches(self._value):
            if isinstance(self._matrix, Convolution):
                total = total + self._matrix.squares(x)
            else:
                total = total + np.square(x.reshape(-1, x.shape[-1]), dtype=np.float64).sum(0)[None]
        return self._checked(np.asarray(total)[:, self._order])

    def gram(self) -> Float:
        """Return (groups, inputs, inputs), the products of the inputs with each other.

        They are summed over a sample of the rows where there are many.
        """
        self._stream.compute(self._value)
        limit = max(ROWS_PER_COLUMN * len(self._order), LEAST_ROWS)
        samples = self._stream.samples(self._value)
        random = np.random.default_rng(0)
        total: Float | float = 0.0
        for (x,) in self._stream.batches(self._value):
            count = int(limit * len(x) / samples) + 1
            if isinstance(self._matrix, Convolution):
                spatial = self._matrix.spatial(x)
                chosen = choose(len(x) * int(np.prod(spatial)), count, random)
                rows = self._matrix.rows(x, chosen, spatial)
            else:
                flat = x.reshape(-1, x.shape[-1])
                rows = flat[choose(len(flat), count, random)].astype(np.float64)[None]
            # A matrix times its own transpose takes half the work of two that BLAS doesn't know.
            total = total + np.stack([part.T @ part for part in map(np.ascontiguousarray, rows)])
        return self._checked(np.asarray(total)[:, self._order[:, None], self._order])

    def _checked(self, sums: Float) -> Float:
        if not np.isfinite(sums).all():
            raise DataError(f"on these data the activation '{self._value.name}' is NaN or infinite")
        return sums


Solver = Callable[[Reader, Float, Goal, np.ndarray], Float]
"""``f(reader, weight, goal, live)`` -> the sparse weight, where `live` is false zero in any case.

Arrays are (groups, outputs, inputs).
"""


def solve(
    graph: Graph,
    layers: Sequence[Layer],
    goals: Sequence[Goal],
    solver: Solver,
    *,
    name: str,
    data: Any,
    masks: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Make layer after layer sparse.

    Parameters
    ----------
    graph : the normalized graph.
    layers : Conv, Gemm or MatMul, each with a weight of its own.
    goals : for each of them.
    solver : what is done with a layer.
    name : the criterion's.
    data : inputs; see `onnxjl.data.batches`.
    masks : weight -> mask that it has already.

    Returns
    -------
    Weight -> array, in its own type; in the order of the graph's nodes.

    Raises
    ------
    UsageError : no data are given.
    DataError : they don't fit, or an activation isn't finite.
    WeightError : a weight isn't finite.
    """
    if data is None:
        raise UsageError(
            f"criterion '{name}' looks at what layers read: give some inputs (data=, --data "
            "FILE.npz)"
        )
    copy = replace(graph, model=graph.model.clone())
    nodes = {node_name(node): node for node in copy.model.graph}
    position = {node_name(node): i for i, node in enumerate(copy.model.graph)}
    ordered = sorted(zip(layers, goals, strict=True), key=lambda entry: position[entry[0].node])
    found: dict[str, np.ndarray] = {}
    with Stream(copy, batches(data, graph)) as stream:
        for i, (layer, goal) in enumerate(progress(ordered, f"solving by {name}")):
            node = nodes[layer.node]
            value = node.inputs[1]
            assert value is not None
            reader = Reader(node, stream)
            weight = reader.weight()
            if not np.isfinite(weight).all():
                raise WeightError(
                    f"weight '{layer.tensor}' holds NaN or infinity; repair the model, or leave "
                    "its layer whole (ignore=, --ignore)"
                )
            live = np.ones(weight.shape, dtype=bool)
            if layer.tensor in masks:
                live = _as_matrix(masks[layer.tensor], node, stream) > 0
            reader.write(solver(reader, weight, goal, live))
            assert value.const_value is not None
            found[layer.tensor] = value.const_value.numpy()
            rest = [nodes[other.node].inputs[0] for other, _ in ordered[i + 1 :]]
            stream.keep_only(stream.needed_for(v for v in rest if v is not None))
    return found


def _as_matrix(mask: np.ndarray, node: ir.Node, stream: Stream) -> Float:
    """Return a mask in the form of a layer's matrix."""
    value = node.inputs[1]
    assert value is not None
    kept, value.const_value = value.const_value, ir.Tensor(mask.astype(np.float64))
    try:
        return Reader(node, stream).weight()
    finally:
        value.const_value = kept
