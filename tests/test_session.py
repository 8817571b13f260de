"""session: models in onnxruntime, whatever form they have, and its errors in one line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
import small_networks as small
from onnx.reference import ReferenceEvaluator

import onnxjl.session as session
from onnxjl.errors import DataError, ModelError
from onnxjl.load import load


@pytest.fixture
def inputs():
    return {"x": np.random.default_rng(1).standard_normal((1, 3, 6, 6)).astype(np.float32)}


def as_graph(proto, folder):
    return load(proto)


def as_bytes(proto, folder):
    return proto.SerializeToString()


def as_path(proto, folder):
    onnx.save(proto, folder / "net.onnx")
    return folder / "net.onnx"


def as_external_path(proto, folder):
    onnx.save(
        proto, folder / "net.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    return folder / "net.onnx"


def as_mapped_graph(proto, folder):
    return load(as_external_path(proto, folder))


@pytest.mark.parametrize(
    "form", [as_graph, as_bytes, as_path, as_external_path, as_mapped_graph, lambda p, f: p]
)
@pytest.mark.parametrize("optimized", [False, True])
def test_a_model_in_any_form_computes_what_the_reference_does(form, optimized, inputs, tmp_path):
    proto = small.convolutions()
    expected = ReferenceEvaluator(proto).run(None, inputs)[0]
    opened = session.open_session(form(proto, tmp_path), optimized=optimized)
    found = session.run(opened, inputs)
    assert list(found) == ["y"]
    np.testing.assert_allclose(found["y"], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_run_gives_the_outputs_asked_for(inputs):
    opened = session.open_session(load(small.convolutions()))
    assert list(session.run(opened, inputs, ["y"])) == ["y"]
    with pytest.raises(DataError, match="unknown output 'z'; the model gives y"):
        session.run(opened, inputs, ["z"])


def test_labels_are_passed_over_where_they_are_no_input(inputs):
    opened = session.open_session(load(small.convolutions()))
    labelled = {**inputs, "target": np.zeros(1, np.int64)}
    assert session.fed(opened, labelled).keys() == inputs.keys()
    expected, found = session.run(opened, inputs)["y"], session.run(opened, labelled)["y"]
    assert np.array_equal(expected, found)
    renamed = small.convolutions()
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "target"
    opened = session.open_session(load(renamed))
    assert np.array_equal(session.run(opened, {"target": inputs["x"]})["y"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, r"input 'x' is missing; the model takes x \(tensor\(float\), \[1, 3, 6, 6\]"),
        ({"z": np.zeros(1)}, "unknown input 'z'; the model takes x"),
        ({"x": np.zeros((1, 2, 6, 6), np.float32)}, "invalid dimensions.*Got: 2 Expected: 3"),
        ({"x": np.zeros((1, 3, 6, 6))}, "refuses its inputs: Unexpected input data type"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message, inputs):
    given = {k: v for k, v in {**inputs, **change}.items() if v is not None}
    opened = session.open_session(load(small.convolutions()))
    with pytest.raises(DataError, match=message):
        session.run(opened, given)


@pytest.mark.parametrize("content", [b"", b"no model", b"\0" * 100])
def test_what_onnxruntime_cannot_read_is_a_model_error(content, tmp_path):
    with pytest.raises(ModelError, match="onnxruntime can't run the model: ") as caught:
        session.open_session(content)
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no such file"):
        session.open_session(tmp_path / "missing.onnx")


def test_an_operator_that_onnxruntime_lacks_is_a_model_error():
    node = onnx.helper.make_node("Nowhere", ["x"], ["y"], domain="test")
    proto = small.convolutions()
    del proto.graph.node[:]
    proto.graph.node.append(node)
    proto.opset_import.add(domain="test", version=1)
    with pytest.raises(ModelError, match=r"onnxruntime can't run the model: .*test"):
        session.open_session(proto)


def test_a_failure_at_run_time_is_a_model_error():
    node = onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])
    proto = small.model(
        [node], {"x": ("n",)}, {"y": ("a", "b")}, {"shape": np.array([2, 3], np.int64)}
    )
    opened = session.open_session(proto)
    with pytest.raises(ModelError, match=r"can't run the model: .*Reshape"):
        session.run(opened, {"x": np.zeros(5, np.float32)})


def test_onnxruntime_says_nothing_on_standard_error():
    code = (
        "import onnxjl.session as s\n"
        "try: s.open_session(b'no model')\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("ModelError\n", "")
