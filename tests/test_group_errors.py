"""Errors of the outputs when a group alone is pruned, against the masked original."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from oracle import run
from small_networks import convolutions
from text_networks import inputs, network

from onnxjl import DataError, apply, normalize
from onnxjl.group_errors import GroupErrors, measure_group_errors
from onnxjl.structure import analyze


def test_curve_is_lines_that_never_rise() -> None:
    measured = GroupErrors(np.array([1, 3, 5, 6]), np.array([0.5, 0.1, 0.3, 0.0]))
    expected = [0.5, 0.5, 0.4, 0.3, 0.3, 0.3, 0.0]
    np.testing.assert_allclose(measured.curve(), expected, atol=1e-12)


def test_errors_are_those_of_the_masked_network() -> None:
    proto = convolutions(batch="N")
    x = np.random.default_rng(5).standard_normal((70, 3, 6, 6)).astype(np.float32)
    graph = normalize(proto)
    structure = analyze(graph)
    assert [group.name for group in structure.groups] == ["first", "second"]
    score = [np.array([3.0, 1, 2, 8, 7, 6, 5, 4]), np.array([1.0, 2, 3, 4])]
    found = measure_group_errors(
        structure,
        range(2),
        score,
        lambda keep: apply(graph, structure.plan(keep, request={})),
        {"x": x, "target": np.zeros(70, int)},
        min_units=2,
    )
    assert [each.kept.tolist() for each in found.values()] == [[2, 4, 6, 7, 8], [2, 3, 4]]
    consumers = {0: ("second.weight", 1), 1: ("head.weight", 1)}
    before = run(proto, {"x": x[:64]})["y"].astype(np.float64)
    for number, measured in found.items():
        tensor, axis = consumers[number]
        for kept, error in zip(measured.kept, measured.errors, strict=True):
            masked = onnx.ModelProto()
            masked.CopyFrom(proto)
            weight = next(t for t in masked.graph.initializer if t.name == tensor)
            array = numpy_helper.to_array(weight).copy()
            gone = np.argsort(-score[number])[kept:]
            array[(slice(None),) * axis + (gone,)] = 0
            weight.CopyFrom(numpy_helper.from_array(array, tensor))
            after = run(masked, {"x": x[:64]})["y"].astype(np.float64)
            expected = np.linalg.norm(after - before) / np.linalg.norm(before)
            np.testing.assert_allclose(error, expected, rtol=1e-4, atol=1e-7)


def test_outputs_without_numbers_to_compare_are_told() -> None:
    proto = network(
        """g (float[N, 6] x) => (int64[N] y) {
            a = Gemm (x, w1)
            b = Gemm (a, w2)
            y = ArgMax <axis = 1, keepdims = 0> (b)
        }""",
        {"w1": (6, 8), "w2": (8, 3)},
    )
    graph = normalize(proto)
    structure = analyze(graph)
    with pytest.raises(DataError, match="scope='sensitivity' needs floating outputs"):
        measure_group_errors(
            structure,
            [0],
            [np.arange(8.0)],
            lambda keep: apply(graph, structure.plan(keep)),
            inputs(proto),
        )
