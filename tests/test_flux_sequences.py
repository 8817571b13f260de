"""Sequences, optional values and text in Julia: outputs are onnxruntime's, and files too."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from flux_support import needs_julia

import onnxjl
from onnxjl import DataError, UnsupportedOperator
from onnxjl.flux import FluxModel
from onnxjl.serialize import write

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

CHUNKS = """
<ir_version: 8, opset_import: ["": 18]>
agraph (float[2,6] x, int64 chunk) => (float[2,k] y)
<float[6,4] weight = {0.1, -0.4, 0.3, 0.7, 0.2, 0.5, -0.6, 0.1, 0.9, -0.2, 0.4, 0.3,
    -0.7, 0.8, 0.6, -0.1, 0.5, 0.2, -0.3, 0.4, 0.1, 0.6, -0.5, 0.2}>
{
    product = MatMul (x, weight)
    parts = SplitToSequence <axis = 1> (product, chunk)
    first = Constant <value = int64 {0}> ()
    head = SequenceAt (parts, first)
    longer = SequenceInsert (parts, head)
    squares = SequenceMap (longer) <
        body = square (float[2,c] part) => (float[2,c] s) { s = Mul (part, part) }
    >
    y = ConcatFromSequence <axis = 1> (squares)
}
"""

LISTS = """
<ir_version: 8, opset_import: ["": 18]>
agraph (seq(float[n]) s, optional(float[2]) o) => (seq(float[n]) t, bool there)
{
    last = Constant <value = int64 {-1}> ()
    t = SequenceErase (s, last)
    there = OptionalHasElement (o)
}
"""

WORDS = """
<ir_version: 9, opset_import: ["": 20, "ai.onnx.ml": 4]>
agraph (string[n] x) => (string[n] y, int64[n] label, bool[n] same, float[n] number)
<string word = {"café"}>
{
    y = StringConcat (x, word)
    label = ai.onnx.ml.LabelEncoder <
        keys_strings = ["a", "ü"], values_int64s = [3, 4], default_int64 = 0
    > (x)
    same = Equal (x, word)
    written = Cast <to = 8> (label)
    number = Cast <to = 1> (written)
}
"""


def session(model: onnx.ModelProto | bytes) -> onnxruntime.InferenceSession:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def written(model: FluxModel) -> bytes:
    file = io.BytesIO()
    write(model.to_graph(), file)
    return file.getvalue()


def check_equal(found: dict[str, Any], expected: list[Any]) -> None:
    for x, y in zip(found.values(), expected, strict=True):
        if isinstance(y, list):
            assert isinstance(x, list)
            assert len(x) == len(y)
            for one, other in zip(x, y, strict=True):
                np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def chunks() -> tuple[onnx.ModelProto, FluxModel]:
    proto = onnx.parser.parse_model(CHUNKS)
    return proto, onnxjl.to_flux(proto)


@pytest.mark.parametrize("chunk", [1, 3])
def test_sequences_within(chunks: tuple[onnx.ModelProto, FluxModel], chunk: int) -> None:
    proto, model = chunks
    inputs = {
        "x": np.random.default_rng(0).standard_normal((2, 6), dtype=np.float32),
        "chunk": np.array(chunk),
    }
    (expected,) = session(proto).run(None, inputs)
    np.testing.assert_allclose(model(inputs), expected, rtol=1e-5, atol=1e-6)
    (again,) = session(written(model)).run(None, inputs)
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-6)


def test_gradient_goes_through_sequences(chunks: tuple[onnx.ModelProto, FluxModel]) -> None:
    """Of the sum of squares, those of the first column twice."""
    _, model = chunks
    x = np.random.default_rng(1).standard_normal((2, 6), dtype=np.float32)

    def loss(y: np.ndarray, target: None) -> tuple[float, np.ndarray]:
        return float(y.sum()), np.ones_like(y)

    value, found = model.gradient(loss, {"x": x, "chunk": np.array(1)})
    weight = model.graph.weight("weight")
    times = np.array([2, 1, 1, 1], np.float32)
    product = x @ weight
    assert value == pytest.approx((times * product**2).sum(), rel=1e-5)
    np.testing.assert_allclose(found["weight"], x.T @ (2 * times * product), rtol=1e-4)


def test_sequences_as_inputs_and_outputs(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(LISTS)
    model = onnxjl.to_flux(proto)
    sequence = [np.arange(n, dtype=np.float32) for n in (1, 3, 2)]
    found = model({"s": sequence, "o": np.zeros(2, np.float32)})
    check_equal(found, [sequence[:2], np.array(True)])
    check_equal(model({"s": sequence[:1], "o": None}), [[], np.array(False)])
    with pytest.raises(DataError, match="input 's' is a sequence: give a list of arrays"):
        model({"s": np.zeros(2, np.float32), "o": None})
    with pytest.raises(DataError, match="input 's' isn't optional"):
        model({"s": None, "o": None})
    outcome = model.save(tmp_path / "lists.onnx", inputs={"s": sequence, "o": None})
    assert "Julia's own outputs" in str(outcome)


def test_text(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(WORDS)
    model = onnxjl.to_flux(proto)
    for texts in (np.array(["a", "café", "ü"]), np.array(["ü", "", "b"], object)):
        inputs = {"x": texts}
        expected = session(proto).run(None, {"x": texts.astype(object)})
        check_equal(model(inputs), expected)
    path = tmp_path / "words.onnx"
    model.save(path, inputs=inputs)
    check_equal(model(inputs), session(path.read_bytes()).run(None, inputs))


def test_what_is_no_text_is_refused() -> None:
    model = onnxjl.to_flux(onnx.parser.parse_model(WORDS))
    with pytest.raises(DataError, match="expected an array of strings, came one with 1"):
        model({"x": np.array(["a", 1], object)})


def test_unsupported_type_says_which() -> None:
    proto = onnx.parser.parse_model(LISTS.replace("seq(float[n]) s", "seq(bfloat16[n]) s"))
    with pytest.raises(UnsupportedOperator, match="input 's' holds bfloat16"):
        onnxjl.to_flux(proto)
