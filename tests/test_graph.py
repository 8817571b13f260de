"""A graph's size, and its weights: in external data they take memory while they are read only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from text_networks import network

from onnxjl import Graph, load, normalize, prune


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """Two layers, normalized, with their weights in a file beside the model."""
    model = network(
        "g (float[N,16] x) => (float[N,3] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }",
        {"a": (16, 40), "b": (40, 3)},
    )
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    return normalize(load(path))


def mapped(graph: Graph) -> list[str]:
    """Names of the weights whose file is mapped to memory now."""
    return [
        name
        for name, value in graph.model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.raw is not None
    ]


def test_pruning_leaves_no_weight_mapped(graph: Graph) -> None:
    small = prune(graph, amount=0.5)
    assert mapped(graph) == []
    kept = small.plan.kept["a"][1]  # type: ignore[union-attr]
    np.testing.assert_array_equal(small.weight("a"), graph.weight("a")[:, kept])
    assert mapped(graph) == ["a"]


def test_an_array_outlives_the_end_of_its_mapping(graph: Graph) -> None:
    array = graph.weight("a")
    before = array.copy()
    graph.unmap("a")
    np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(graph.weight("a"), before)


def test_a_weight_in_memory_stays(graph: Graph) -> None:
    small = prune(graph, amount=0.5)
    before = small.weight("a").copy()
    small.unmap("a")
    np.testing.assert_array_equal(small.weight("a"), before)


def test_its_size(graph: Graph) -> None:
    assert (graph.macs, graph.params) == (16 * 40 + 40 * 3, 16 * 40 + 40 * 3)
    small = prune(graph, amount=0.5)
    assert (small.macs, small.params) == (16 * 20 + 20 * 3, 16 * 20 + 20 * 3)


def test_it_prints_as_one_line(graph: Graph) -> None:
    small = prune(graph, amount=0.5)
    assert graph.path is not None
    loaded = load(graph.path)
    opset = f"opset {graph.opset}"
    assert repr(loaded) == f"Graph('net.onnx', as loaded, {opset}, 3 nodes, 760 parameters)"
    assert repr(graph) == f"Graph('net.onnx', normalized, {opset}, 3 nodes, 760 parameters)"
    assert repr(small) == f"Graph('net.onnx', pruned, {opset}, 3 nodes, 380 parameters)"
