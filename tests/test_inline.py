"""Functions of the model's own, written out: against onnxruntime, which runs them as they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxjl
from onnxjl.errors import ModelError
from onnxjl.session import open_session, run

HEADER = '<ir_version: 9, opset_import: ["" : 18, "own" : 1]>'


def network(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{HEADER} {text}")


def inlined(proto: onnx.ModelProto) -> onnxjl.Graph:
    """The normalized network, which gives the outputs of the one with functions."""
    graph = onnxjl.normalize(proto)
    assert not graph.model.functions
    assert all(node.domain == "" for node in graph.model.graph.all_nodes())
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    names = [value.name for value in proto.graph.input]
    feeds = {"x": x, **({"flag": np.array(True)} if "flag" in names else {})}
    expected = run(open_session(onnxjl.load(proto)), feeds)
    found = run(open_session(graph), feeds)
    assert found.keys() == expected.keys()
    for name, y in expected.items():
        assert np.allclose(found[name], y, rtol=1e-6, atol=1e-7), name
    return graph


def test_functions_that_call_functions():
    graph = inlined(
        network(
            """g (float[N, 4] x) => (float[N, 4] y) {
                a = own.outer (x)
                y = own.outer (a)
            }
            <domain: "own", opset_import: ["" : 18, "own" : 1]>
            outer (p) => (q) { r = own.inner (p)  s = own.inner (r)  q = Tanh (s) }
            <domain: "own", opset_import: ["" : 18]>
            inner (p) => (q) { m = Exp (p)  q = Sigmoid (m) }"""
        )
    )
    operators = [node.op_type for node in graph.model.graph]
    assert operators == ["Exp", "Sigmoid", "Exp", "Sigmoid", "Tanh"] * 2
    names = [value.name for node in graph.model.graph for value in node.outputs]
    assert len({*names}) == len(names)
    assert names[4] == "a"
    assert len({node.name for node in graph.model.graph}) == len(names)


def test_attributes_of_calls_and_their_defaults():
    inlined(
        network(
            """g (float[N, 4] x) => (float[N, 4] y) {
                a = own.leak <slope: float = 0.3> (x)
                b = own.leak (a)
                y = own.plain (b)
            }
            <domain: "own", opset_import: ["" : 18]>
            leak <slope: float = 0.7> (p) => (q) { q = LeakyRelu <alpha: float = @slope> (p) }
            <domain: "own", opset_import: ["" : 18]>
            plain <slope> (p) => (q) { q = LeakyRelu <alpha: float = @slope> (p) }"""
        )
    )


def test_inputs_that_are_left_out():
    graph = inlined(
        network(
            """g (float[N, 4] x) => (float[N, 4] y) {
                a = own.limit (x)
                high = Constant <value: tensor = float {0.5}> ()
                y = own.limit (a, , high)
            }
            <domain: "own", opset_import: ["" : 18]>
            limit (p, low, high) => (q) { q = Clip (p, low, high) }"""
        )
    )
    given = [[value is not None for value in node.inputs] for node in graph.model.graph]
    assert given == [[True, False, False], [True, False, True]]


def test_a_function_that_returns_its_input():
    """Which onnxruntime can't run."""
    graph = onnxjl.normalize(
        network(
            """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] same) {
                a = Tanh (x)
                same, y = own.both (a)
            }
            <domain: "own", opset_import: ["" : 18]>
            both (p) => (p, q) { q = Exp (p) }"""
        )
    )
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    outputs = run(open_session(graph), {"x": x})
    assert np.allclose(outputs["same"], np.tanh(x), rtol=1e-5)
    assert np.allclose(outputs["y"], np.exp(np.tanh(x)), rtol=1e-5)


def test_calls_inside_branches_and_branches_inside_functions():
    inlined(
        network(
            """g (float[N, 4] x, bool flag) => (float[N, 4] y) {
                a = own.choose (x, flag)
                y = If (flag) <
                    then_branch = t () => (float[N, 4] u) { u = own.inner (a) },
                    else_branch = e () => (float[N, 4] v) { v = Neg (a) }
                >
            }
            <domain: "own", opset_import: ["" : 18, "own" : 1]>
            choose (p, c) => (q) {
                q = If (c) <
                    then_branch = t () => (s) { r = own.inner (p)  s = own.inner (r) },
                    else_branch = e () => (s) { s = Abs (p) }
                >
            }
            <domain: "own", opset_import: ["" : 18]>
            inner (p) => (q) { m = Exp (p)  q = Sigmoid (m) }"""
        )
    )


def test_names_that_are_taken():
    """Those of the graph stay; a body's get numbers that are free."""
    graph = inlined(
        network(
            """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] m_2) {
                m = Tanh (x)
                m_2 = own.inner (m)
                y = own.inner (m_2)
            }
            <domain: "own", opset_import: ["" : 18]>
            inner (p) => (q) { m = Exp (p)  q = Sigmoid (m) }"""
        )
    )
    names = [value.name for node in graph.model.graph for value in node.outputs]
    assert names == ["m", "m_3", "m_2", "m_4", "y"]


def test_too_many_inputs():
    proto = network(
        """g (float[N, 4] x) => (float[N, 4] y) { y = own.inner (x, x) }
        <domain: "own", opset_import: ["" : 18]>
        inner (p) => (q) { q = Exp (p) }"""
    )
    with pytest.raises(ModelError, match=r"function|inputs"):
        onnxjl.normalize(proto)
