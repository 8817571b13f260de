"""Splits into equal parts get their sizes written out."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnxjl.load import load
from onnxjl.normalize import normalize


@pytest.mark.parametrize(
    ("parts", "width", "opset", "sizes"),
    [(2, 6, 13, [3, 3]), (3, 7, 18, [3, 3, 1]), (2, 5, 18, [3, 2])],
)
def test_sizes_are_written_and_outputs_stay(parts, width, opset, sizes):
    names = ", ".join(f"y{i}" for i in range(parts))
    outputs = ", ".join(f"float[N, k{i}] y{i}" for i in range(parts))
    count = f", num_outputs={parts}" if opset >= 18 else ""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        split (float[N, {width}] x) => ({outputs}) {{ {names} = Split<axis=1{count}>(x) }}
    """)
    graph = normalize(load(model))
    (node,) = graph.model.graph
    assert graph.weight(node.inputs[1].name).tolist() == sizes
    assert "num_outputs" not in node.attributes
    x = np.random.default_rng(0).standard_normal((2, width)).astype(np.float32)
    before = ReferenceEvaluator(model).run(None, {"x": x})
    after = ReferenceEvaluator(ir.to_proto(graph.model)).run(None, {"x": x})
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
