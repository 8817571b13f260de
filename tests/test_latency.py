"""latency: measured by turns, and in sensible units."""

from __future__ import annotations

import time

import numpy as np
import pytest
import small_networks as small
from onnx import helper

from onnxjl.errors import DataError, ModelError, UsageError
from onnxjl.latency import Latency, measure, measure_pair
from onnxjl.load import load


@pytest.fixture
def inputs():
    return {"x": np.zeros((1, 3, 6, 6), np.float32)}


def products(size):
    """A network of ten products of square matrices: work that grows with the cube of `size`."""
    weight = np.eye(size, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x" if i == 0 else f"v{i}", "w"], [f"v{i + 1}"])
        for i in range(10)
    ]
    return small.model(nodes, {"x": (size, size)}, {"v10": (size, size)}, {"w": weight})


def test_figures_are_milliseconds_of_one_run():
    inputs = {"x": np.ones((300, 300), np.float32)}
    start = time.perf_counter()
    latency = measure(products(300).SerializeToString(), inputs, seconds=0.1)
    elapsed = 1e3 * (time.perf_counter() - start)
    assert 0 < latency.min_ms <= latency.median_ms
    assert latency.runs >= 5
    assert latency.min_ms * latency.runs < elapsed
    lower, upper = latency.quartiles_ms
    assert latency.min_ms <= lower <= latency.median_ms <= upper < elapsed


def test_the_spread_is_that_of_the_middle_half_of_the_runs():
    assert Latency.of([5.0, 1.0, 2.0, 100.0, 3.0]) == Latency(3.0, 1.0, 5, (2.0, 5.0))


def test_of_two_the_larger_takes_longer():
    few, many = products(300), products(300)
    del few.graph.node[2:]
    few.graph.output[0].name = "v2"
    inputs = {"x": np.ones((300, 300), np.float32)}
    a, b = measure_pair(few.SerializeToString(), many.SerializeToString(), inputs, seconds=0.2)
    assert a.runs == b.runs
    assert 2 * a.min_ms < b.min_ms


def test_what_does_not_run_is_an_error(inputs):
    graph = load(small.convolutions())
    with pytest.raises(DataError, match="input 'x' is missing"):
        measure(graph, {})
    with pytest.raises(ModelError, match="onnxruntime can't run"):
        measure_pair(graph, b"no model", inputs)
    with pytest.raises(UsageError, match="threads=0"):
        measure(graph, inputs, threads=0)
