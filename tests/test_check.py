"""check: equal means equal, and only what is exact passes."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_networks as small
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from text_networks import network

from onnxjl.check import Checker, compare, masked
from onnxjl.comparison import Comparison, compare_outputs
from onnxjl.errors import CheckError, DataError, ModelError
from onnxjl.graph import Graph
from onnxjl.load import load
from onnxjl.plan import Plan

FIRST = ("first.weight", "first.bias", "norm.weight", "norm.bias", "norm.running_mean")


def channels(keep, *, without=()):
    """The plan that keeps these channels of ``first``, less some of its edits."""
    keep = np.array(keep)
    kept = {name: {0: keep} for name in (*FIRST, "norm.running_var")}
    kept["second.weight"] = {1: keep}
    return Plan({name: axes for name, axes in kept.items() if name not in without})


def cut(proto, plan):
    """The pruned model, by hand."""
    small_proto = onnx.ModelProto()
    small_proto.CopyFrom(proto)
    for tensor in small_proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        for axis, keep in plan.kept.get(tensor.name, {}).items():
            array = np.take(array, keep, axis)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return small_proto


def pruned(proto, plan, **more):
    """A pruned Graph as `prune` returns it."""
    return Graph(
        load(cut(proto, plan)).model, normalized=True, plan=plan, source=load(proto), **more
    )


def on_disk(graph, folder, proto):
    path = folder / "small.onnx"
    onnx.save(proto, path)
    return path


# Comparison


@pytest.mark.parametrize(
    ("a", "b", "difference"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], 0.0),
        ([1.0, 2.0, 4.4], [1.0, 2.0, 4.0], 0.1),
        ([0.0, 1e-7], [0.0, 0.0], 0.1),
        ([np.nan, 3.0, np.inf], [np.nan, 2.0, np.inf], 0.5),
        ([], [], 0.0),
    ],
)
def test_the_difference_is_relative_to_the_largest_element(a, b, difference):
    comparison = compare_outputs({"y": np.array(a)}, {"y": np.array(b)})
    assert comparison.difference == pytest.approx(difference, abs=1e-12)
    assert comparison.equal(difference + 1e-9)
    assert comparison.equal() == (difference < 1e-4)


@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        (np.zeros(3), np.zeros((3, 1)), "shape 3 against 3×1"),
        (np.zeros(3), np.zeros(3, np.float32), "element type float64 against float32"),
        (None, np.zeros(3), "missing in the first model"),
        (np.zeros(3), None, "missing in the second model"),
        (np.array([np.nan, 0]), np.zeros(2), "NaN on one side in 1 of 2 elements"),
        (np.array([np.inf, 0]), np.array([-np.inf, 0]), "infinities unlike in 1 of 2 elements"),
        (np.array(["a", "b"]), np.array(["a", "c"]), "1 of 2 strings differ"),
        ([np.zeros(1)], [np.zeros(1), np.zeros(1)], "missing in the first model"),
        ([{"cat": 1.0}], [{"dog": 1.0}], "missing in the second model"),
    ],
)
def test_what_cannot_be_equal_is_named(a, b, problem):
    comparison = compare_outputs(
        {"y": a} if a is not None else {}, {"y": b} if b is not None else {}
    )
    assert problem in str(comparison)
    assert comparison.difference == np.inf
    assert not comparison.equal(1e9)


@pytest.mark.parametrize(
    ("dtype", "equal"), [(np.float16, True), (np.float32, False), (np.float64, False)]
)
def test_half_precision_is_compared_more_loosely(dtype, equal):
    a, b = {"y": np.array([1.0], dtype)}, {"y": np.array([1.01], dtype)}
    assert compare_outputs(a, b).equal() == equal
    assert compare_outputs(a, b, tolerance=0.1).equal()
    assert ("equal" if equal else "differs") in str(compare_outputs(a, b))


# compare


def test_models_are_run_on_the_same_inputs(tmp_path):
    proto = small.convolutions()
    onnx.save(proto, tmp_path / "a.onnx")
    other = small.convolutions(seed=1)
    comparison = compare(tmp_path / "a.onnx", load(proto))
    assert comparison.difference == 0
    assert comparison.inputs == {"x": (1, 3, 6, 6)}
    assert "y  equal    relative difference 0" in str(comparison)

    x = np.random.default_rng(3).standard_normal((1, 3, 6, 6)).astype(np.float32)
    (a,), (b,) = (ReferenceEvaluator(model).run(None, {"x": x}) for model in (proto, other))
    found = compare(proto, other.SerializeToString(), inputs={"x": x})
    assert found.difference == pytest.approx(np.abs(a - b).max() / np.abs(b).max(), rel=1e-4)
    assert compare(proto, other, seed=1).difference != compare(proto, other).difference


def test_the_tolerance_is_the_callers_choice():
    loose = compare(small.convolutions(), small.convolutions(seed=1), tolerance=1e9)
    assert loose.equal()
    assert not loose.equal(1e-4)


def test_what_cannot_be_compared_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        compare(tmp_path / "a.onnx", tmp_path / "b.onnx")
    with pytest.raises(DataError, match="input 'x' is missing"):
        compare(small.convolutions(), small.convolutions(), inputs={})


# The masked source


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_exact_plan_equals_its_masked_source(dtype):
    proto = small.convolutions(dtype=dtype)
    plan = channels([0, 2, 3, 7])
    assert compare(load(cut(proto, plan)), masked(load(proto), plan)).equal()


def test_masking_multiplies_by_zero_what_contractions_read():
    proto, plan = small.convolutions(), channels([0, 2, 3, 7])
    x = {"x": np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)}
    by_hand = small.convolutions()
    for tensor in by_hand.graph.initializer:
        if tensor.name == "second.weight":
            array = numpy_helper.to_array(tensor).copy()
            array[:, [1, 4, 5, 6]] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    (expected,) = ReferenceEvaluator(by_hand).run(None, x)
    (found,) = ReferenceEvaluator(ir.to_proto(masked(load(proto), plan).model)).run(None, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_source_is_left_alone():
    source = load(small.convolutions())
    before = source.fingerprint
    masked(source, channels([0, 1]))
    assert Graph(source.model).fingerprint == before


@pytest.mark.parametrize(
    ("operator", "attributes"), [("ReduceMean", {"axes": [1]}), ("Softmax", {"axis": 1})]
)
def test_what_leaks_past_the_contractions_is_nan(operator, attributes):
    random = np.random.default_rng(0)
    proto = small.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node(operator, ["c"], ["d"], **attributes),
            helper.make_node("Mul", ["d", "two"], ["y"]),
        ],
        {"x": (3, 4)},
        {"y": (3, "n")},
        {
            "w": random.standard_normal((4, 6)).astype(np.float32),
            "b": random.standard_normal(6).astype(np.float32),
            "two": np.full(1, 2, np.float32),
        },
    )
    plan = Plan({"w": {1: np.array([0, 1, 2])}, "b": {0: np.array([0, 1, 2])}})
    x = {"x": random.standard_normal((3, 4)).astype(np.float32)}
    (y,) = ReferenceEvaluator(ir.to_proto(masked(load(proto), plan).model)).run(None, x)
    assert np.isnan(y).any()


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrent_cells_are_masked_inside(operator, direction):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    ways = 2 if direction == "bidirectional" else 1
    hidden, keep = 6, np.array([0, 2, 5])
    random = np.random.default_rng(0)
    weights = {
        "W": random.standard_normal((ways, gates * hidden, 3)).astype(np.float32),
        "R": random.standard_normal((ways, gates * hidden, hidden)).astype(np.float32),
        "B": random.standard_normal((ways, 2 * gates * hidden)).astype(np.float32),
        "out": random.standard_normal((hidden, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node(
            operator,
            ["x", "W", "R", "B"],
            ["Y"],
            name="cell",
            hidden_size=hidden,
            direction=direction,
        ),
        helper.make_node("MatMul", ["Y", "out"], ["y"]),
    ]
    proto = small.model(nodes, {"x": (5, 2, 3)}, {"y": (5, ways, 2, 4)}, weights)
    rows = np.concatenate([keep + gate * hidden for gate in range(2 * gates)])
    plan = Plan(
        {
            "W": {1: rows[: gates * 3]},
            "R": {1: rows[: gates * 3], 2: keep},
            "B": {1: rows},
            "out": {0: keep},
        }
    )
    smaller = cut(proto, plan)
    for attribute in smaller.graph.node[0].attribute:
        if attribute.name == "hidden_size":
            attribute.i = 3
    assert compare(load(smaller), masked(load(proto), plan)).equal()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_of_two_activations_need_one_masked_side(dtype):
    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal(shape).astype(dtype)
        for name, shape in {"q": (4, 6), "k": (4, 6), "qb": (6,), "kb": (6,)}.items()
    }
    nodes = [
        helper.make_node("MatMul", ["x", "q"], ["xq"]),
        helper.make_node("Add", ["xq", "qb"], ["Q"]),
        helper.make_node("MatMul", ["x", "k"], ["xk"]),
        helper.make_node("Add", ["xk", "kb"], ["K"]),
        helper.make_node("Transpose", ["K"], ["KT"], perm=[1, 0]),
        helper.make_node("MatMul", ["Q", "KT"], ["y"]),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = small.model(nodes, {"x": (5, 4)}, {"y": (5, 5)}, weights, element=element)
    keep = np.array([1, 2, 4])
    plan = Plan({name: {array.ndim - 1: keep} for name, array in weights.items()})
    assert compare(load(cut(proto, plan)), masked(load(proto), plan)).equal()


# Checking a file in a process of its own


def test_a_pruned_graph_must_equal_its_masked_source(tmp_path):
    proto, plan = small.convolutions(), channels([0, 2, 3, 7])
    graph = pruned(proto, plan)
    with Checker() as checker:
        outcome = checker.check(graph, on_disk(graph, tmp_path, cut(proto, plan)))
    assert outcome.status == "equal"
    assert outcome.text.startswith("equals the masked source in onnxruntime: relative difference ")
    assert outcome.comparison is not None
    assert outcome.comparison.difference < 1e-4

    other = channels([0, 2, 3, 6])
    with (
        Checker() as checker,
        pytest.raises(CheckError, match="output 'y' differs from the masked"),
    ):
        checker.check(graph, on_disk(graph, tmp_path, cut(proto, other)))


def test_rounding_that_a_network_amplifies_is_no_fault(tmp_path):
    # Far from zero float32 has steps of 1/512, and the distance is taken away again.
    proto = network(
        """g (float[N, 3, 256, 256] x) => (float[N, 2, 256, 256] y) {
            a = Conv (x, w)
            c = Conv (a, v)
            far = Add (c, distance)
            y = Sub (far, distance)
        }""",
        {"w": (8, 3, 1, 1), "v": (2, 8, 1, 1)},
        {"distance": np.full((1, 2, 1, 1), 2e4, np.float32)},
    )

    def plan(*keep):
        return Plan({"w": {0: np.array(keep)}, "v": {1: np.array(keep)}})

    graph = pruned(proto, plan(0, 2, 5))
    with Checker() as checker:
        # The same sums in another order.
        outcome = checker.check(graph, on_disk(graph, tmp_path, cut(proto, plan(5, 2, 0))))
    assert outcome.status == "equal"
    assert outcome.text.startswith("equals the masked source in onnxruntime but for rounding: ")
    assert outcome.comparison is not None
    assert 1e-4 < outcome.comparison.difference < 4 / 512
    with Checker() as checker, pytest.raises(CheckError, match="'y' differs from the masked"):
        checker.check(graph, on_disk(graph, tmp_path, cut(proto, plan(0, 2, 6))))


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"recover": True}, "recovery changed its weights"),
        ({"allow_inexact": True}, "aren't exact"),
    ],
)
def test_what_cannot_equal_the_masked_source_must_run_and_be_finite(request_, text, tmp_path):
    proto, plan = small.convolutions(), channels([0, 2, 3, 7])
    plan = Plan(plan.kept, request=request_)
    graph = pruned(proto, plan)
    with Checker() as checker:
        outcome = checker.check(graph, on_disk(graph, tmp_path, cut(proto, channels([0, 2, 3, 6]))))
    assert outcome.status == "runs"
    assert text in outcome.text

    broken = cut(proto, plan)
    bias = next(t for t in broken.graph.initializer if t.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(5, np.inf, np.float32), "head.bias"))
    with Checker() as checker, pytest.raises(CheckError, match="'y' isn't finite in 5 of 5"):
        checker.check(graph, on_disk(graph, tmp_path, broken))


def test_a_normalized_graph_must_equal_its_file(tmp_path):
    proto = small.convolutions()
    onnx.save(proto, tmp_path / "net.onnx")
    graph = load(tmp_path / "net.onnx")
    with Checker() as checker:
        outcome = checker.check(graph, tmp_path / "net.onnx")
    assert (outcome.status, outcome.comparison.difference) == ("equal", 0)
    with Checker() as checker, pytest.raises(CheckError, match="'y' differs from the source"):
        checker.check(graph, on_disk(graph, tmp_path, small.convolutions(seed=1)))
    with Checker() as checker:
        outcome = checker.check(load(proto), tmp_path / "net.onnx")
    assert (outcome.status, outcome.comparison) == ("runs", None)
    assert "there is no file to compare it with" in outcome.text


def with_operator(operator, **attributes):
    """A network that puts another operator behind `small.convolutions`."""
    proto = small.convolutions()
    proto.graph.node.append(helper.make_node(operator, ["y"], ["z"], **attributes))
    proto.graph.output[0].name = "z"
    return proto


def test_an_unstable_source_is_not_compared(tmp_path):
    onnx.save(with_operator("RandomNormalLike"), tmp_path / "net.onnx")
    graph = load(tmp_path / "net.onnx")
    other = with_operator("RandomNormalLike", seed=1.0)
    with Checker() as checker:
        outcome = checker.check(graph, on_disk(graph, tmp_path, other))
    assert outcome.status == "runs"
    assert "other outputs each time" in outcome.text


def test_a_source_in_training_form_is_not_compared(tmp_path):
    proto = small.convolutions()
    norm = proto.graph.node[1]
    norm.attribute.add(name="training_mode", i=1, type=onnx.AttributeProto.INT)
    norm.output.extend(["mean", "var"])
    onnx.save(proto, tmp_path / "net.onnx")
    graph = load(tmp_path / "net.onnx")
    with Checker() as checker:
        outcome = checker.check(graph, on_disk(graph, tmp_path, small.convolutions()))
    assert outcome.status == "runs"
    assert "training form" in outcome.text


def test_where_onnxruntime_cannot_run_the_source_the_checker_is_asked(tmp_path):
    proto = with_operator("Nowhere", domain="test")
    proto.opset_import.add(domain="test", version=1)
    onnx.save(proto, tmp_path / "net.onnx")
    graph = load(tmp_path / "net.onnx")
    with Checker() as checker:
        outcome = checker.check(graph, tmp_path / "net.onnx")
    assert outcome.status == "checker"
    assert "only ONNX's checker was asked: it passed (onnxruntime can't run" in outcome.text
    with Checker() as checker:  # The same network from memory, where there is no file to run.
        outcome = checker.check(load(proto), tmp_path / "net.onnx")
    assert outcome.status == "checker"
    assert "Nowhere" in outcome.text
    proto.graph.node[0].input[0] = "nothing"
    with Checker() as checker, pytest.raises(CheckError, match="ONNX's checker refuses it: "):
        checker.check(graph, on_disk(graph, tmp_path, proto))


def test_a_type_that_onnxruntime_lacks_is_no_fault(tmp_path):
    proto = network(
        "g (double[N, 3, 4, 4] x) => (double[N, 2, 4, 4] y) { y = Conv (x, w) }",
        {},
        {"w": np.ones((2, 3, 1, 1))},
    )
    graph = load(proto)
    with Checker() as checker:
        outcome = checker.check(graph, on_disk(graph, tmp_path, proto))
    assert outcome.status == "checker"
    assert "Could not find an implementation for Conv" in outcome.text


def test_a_file_that_does_not_run_fails(tmp_path):
    proto = small.convolutions()
    graph = pruned(proto, channels([0, 1]))
    (tmp_path / "small.onnx").write_bytes(b"no model")
    with (
        Checker() as checker,
        pytest.raises(CheckError, match=r"small\.onnx: onnxruntime can't run"),
    ):
        checker.check(graph, tmp_path / "small.onnx")


def test_a_process_that_breaks_down_is_reported(tmp_path):
    proto, plan = small.convolutions(), channels([0, 1])
    graph = pruned(proto, plan)
    with Checker() as checker:
        os.kill(checker._process.pid, signal.SIGKILL)
        with pytest.raises(CheckError, match="ended by signal 9, perhaps for lack of memory"):
            checker.check(graph, on_disk(graph, tmp_path, cut(proto, plan)))
    with Checker() as checker:
        process = checker._process
    assert process.returncode == -signal.SIGKILL


def test_a_comparison_survives_json():
    comparison = compare_outputs({"y": np.zeros((2, 3))}, {"y": np.ones((2, 3))})
    from onnxjl.check import _comparison
    from onnxjl.check_process import _as_json

    again = _comparison(json.loads(json.dumps(_as_json(comparison))))
    assert again == Comparison(comparison.outputs)
