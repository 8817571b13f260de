"""Handover: what Julia delivers as a graph again. No Julia runs here."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxjl
from onnxjl import handover

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[batch, 3] x) => (float[batch, 2] y, double[batch, 2] z)
<float[3, 2] w = {1, 2, 3, 4, 5, 6}, double[2] s = {0.5, 0.25}, int64[1] one = {1}>
{
    p = MatMul(x, w)
    y = Relu(p)
    d = Cast<to=11>(p)
    z = Mul(d, s)
}
"""


@pytest.fixture
def graph() -> onnxjl.Graph:
    return onnxjl.load(onnx.parser.parse_model(NETWORK))


def deliver(graph, **arrays):
    """A graph as Julia would deliver it, with other arrays of these names."""
    nodes = [(*node[:5], {}) for node in handover.nodes(graph.model.graph)]
    found = {name: graph.weight(name).T for name in graph.model.graph.initializers}
    return nodes, {**found, **{name: array.T for name, array in arrays.items()}}


def test_what_is_unchanged_comes_back(graph) -> None:
    again = handover.to_graph(graph, deliver(graph))
    assert again.fingerprint == graph.fingerprint
    for value, other in zip(again.model.graph.outputs, graph.model.graph.outputs, strict=True):
        assert (value.name, value.dtype, value.shape) == (other.name, other.dtype, other.shape)


@pytest.mark.parametrize("precision", [np.float16, np.float64])
def test_weights_get_their_precision_back(graph, precision) -> None:
    arrays = {name: graph.weight(name).astype(precision) for name in ("w", "s")}
    again = handover.to_graph(graph, deliver(graph, **arrays))
    assert again.fingerprint == graph.fingerprint


def test_new_weights_get_the_precision_of_the_others(graph) -> None:
    arrays = {"w": graph.weight("w").astype(np.float16), "bias": np.ones(2, np.float16)}
    nodes, found = deliver(graph, **arrays)
    nodes[0] = (*nodes[0][:4], ["q"], {})
    nodes.insert(1, ("", "Add", "", ["q", "bias"], ["p"], {}))
    again = handover.to_graph(graph, (nodes, found))
    assert again.weight("bias").dtype == np.float32
    assert again.weight("w").dtype == np.float32
    assert again.weight("one").dtype == np.int64


def test_values_get_the_shapes_that_new_weights_make(graph) -> None:
    arrays = {"w": np.ones((3, 5), np.float32), "s": np.ones(5)}
    again = handover.to_graph(graph, deliver(graph, **arrays))
    shapes = {value.name: str(value.shape) for value in again.model.graph.outputs}
    assert shapes == {"y": "[batch,5]", "z": "[batch,5]"}
    assert again.model.graph.node(0).outputs[0].shape[1] == 5
    assert str(graph.model.graph.outputs[0].shape) == "[batch,2]"
