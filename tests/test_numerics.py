"""Numbers at the edges: NaN, infinity, zero variance, denormals, overflow, ties, and seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_networks as small
from onnx import numpy_helper
from text_networks import network

import onnxjl
from onnxjl.errors import DataError, WeightError
from onnxjl.session import open_session, run

MODEL = Path(__file__).parent / "models" / "mnist-resnet14"


def changed(
    proto: onnx.ModelProto, name: str, index: tuple[object, ...], value: float
) -> onnx.ModelProto:
    """A copy with other elements in one weight."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            array[index] = value
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return copy


def kept(graph: onnxjl.Graph, name: str = "first.weight") -> list[int]:
    assert graph.plan is not None
    return graph.plan.kept[name][0].tolist()


# Weights


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("criterion", ["l1", "l2", "linf", "lamp", "fpgm"])
def test_a_weight_that_is_not_finite_is_named(value: float, criterion: str) -> None:
    proto = changed(small.convolutions(), "first.weight", (3, 1), value)
    with pytest.raises(WeightError, match=r"first\.weight"):
        onnxjl.prune(proto, amount=0.5, criterion=criterion)


def test_what_is_not_scored_keeps_its_infinities() -> None:
    proto = changed(small.convolutions(), "head.bias", (1,), np.inf)
    graph = onnxjl.prune(proto, amount=0.5)
    assert graph.weight("head.bias")[1] == np.inf


def test_zero_variance_is_pruned_like_any_other(tmp_path: Path) -> None:
    """The formula divides by sqrt(variance + epsilon), so outputs are finite."""
    proto = changed(small.convolutions(), "norm.running_var", (slice(None),), 0.0)
    graph = onnxjl.prune(proto, amount=0.5)
    assert graph.save(tmp_path / "small.onnx").check.status == "equal"
    assert kept(graph) == kept(onnxjl.prune(small.convolutions(), amount=0.5))


def scaled(factors: dict[int, float], dtype: type = np.float32) -> onnx.ModelProto:
    """Two layers whose hidden units have weights of one magnitude each, 1 unless given."""
    ones = np.ones((8, 6))
    for unit, factor in factors.items():
        ones[unit] = factor
    weights = {"first": ones.astype(dtype), "second": np.ones((2, 8), dtype)}
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "first"], ["h"], name="first", transB=1),
        onnx.helper.make_node("Gemm", ["h", "second"], ["y"], name="second", transB=1),
    ]
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return small.model(nodes, {"x": (1, 6)}, {"y": (1, 2)}, weights, element=element)


def test_denormals_are_told_apart() -> None:
    """What processors may flush to zero still has an order."""
    factors = dict.fromkeys(range(8), 1e-42) | {2: 7e-44, 5: 1.4e-43}
    proto = scaled(factors)
    for tensor in proto.graph.initializer:
        if tensor.name == "second":
            array = np.zeros((2, 8), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, "second"))
    graph = onnxjl.prune(proto, amount=0.25, criterion="l1")
    assert kept(graph, "first") == [0, 1, 3, 4, 6, 7]


def test_sums_of_halves_do_not_overflow() -> None:
    """Six times the largest half, squared, is no half; scores are summed in float64."""
    factors = dict.fromkeys(range(8), 65504.0) | {1: 60000.0, 6: 50000.0}
    graph = onnxjl.prune(scaled(factors, np.float16), amount=0.25, criterion="l2")
    assert kept(graph, "first") == [0, 2, 3, 4, 5, 7]


@pytest.mark.parametrize("scope", ["global", "local"])
def test_of_equal_units_the_first_stay(scope: str) -> None:
    graph = onnxjl.prune(scaled({}), amount=0.25, scope=scope)
    assert kept(graph, "first") == [0, 1, 2, 3, 4, 5]


def test_all_zero_weights_are_ties_too() -> None:
    graph = onnxjl.prune(scaled(dict.fromkeys(range(8), 0.0)), amount=0.25)
    assert len(kept(graph, "first")) == 6


# Activations


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_are_not_finite_are_refused(value: float) -> None:
    x = np.ones((2, 3, 6, 6), np.float32)
    x[1, 0, 2, 2] = value
    proto = small.convolutions(batch="N")
    with pytest.raises(DataError, match="finite"):
        onnxjl.prune(proto, amount=0.5, criterion="activation", data=x)
    for recover in ("refit", "bn"):
        with pytest.raises(DataError, match=r"isn't finite on the calibration data; look for NaN"):
            onnxjl.prune(proto, amount=0.5, recover=recover, calibration=x)


def test_activations_that_overflow_are_refused() -> None:
    proto = changed(small.convolutions(batch="N"), "head.bias", (0,), np.inf)
    x = np.ones((4, 3, 6, 6), np.float32)
    with pytest.raises(DataError, match="isn't finite on the calibration data"):
        onnxjl.prune(proto, amount=0.5, recover="refit", calibration=x)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("recover", ["refit", "bn"])
def test_constant_data_leave_a_finite_network(recover: str) -> None:
    """All inputs alike: every variance is zero, and every Gram matrix has rank one."""
    x = np.ones((16, 3, 6, 6), np.float32)
    proto = small.convolutions(batch="N")
    graph = onnxjl.prune(proto, amount=0.5, recover=recover, calibration=x)
    for name in graph.model.graph.initializers:
        assert np.isfinite(graph.weight(name)).all(), name
    (y,) = run(open_session(graph), {"x": x}).values()
    assert np.isfinite(y).all()


@pytest.mark.filterwarnings("error")
def test_dead_inputs_keep_their_weights() -> None:
    """A unit that is zero on all data says nothing about its weights."""
    proto = network(
        """g (float[N, 4] x) => (float[N, 3] y) {
            a = Gemm (x, w, b)
            h = Relu (a)
            y = MatMul (h, v)
        }""",
        {"w": (4, 8), "b": (8,), "v": (8, 3)},
    )
    for index in range(8):
        proto = changed(proto, "b", (index,), -1000.0)
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    plain = onnxjl.prune(proto, amount=0.5)
    graph = onnxjl.prune(proto, amount=0.5, recover="refit", calibration=x)
    np.testing.assert_allclose(graph.weight("v"), plain.weight("v"), atol=1e-6)


def test_halves_that_recovery_would_overflow_are_refused() -> None:
    proto = small.convolutions(dtype=np.float16, batch="N")
    for channel in range(8):
        proto = changed(proto, "first.weight", (channel,), 30.0)
        proto = changed(proto, "norm.weight", (channel,), 0.001)
    x = np.random.default_rng(0).standard_normal((8, 3, 6, 6)).astype(np.float16) * 20
    with pytest.raises(DataError, match=r"values that float16 can't hold"):
        onnxjl.prune(proto, amount=0.5, recover="bn", calibration=x)


# Seeds


_RUN = """
import hashlib, sys
import numpy as np
import onnxjl
model, folder, *criteria = sys.argv[1:]
x = np.load(model + ".calib.npz")
x = x[x.files[0]][:64]
options = {"l2": {}, "random": {"seed": 3}, "activation": {"data": x}, "l1": {"calibration": x}}
for criterion in criteria:
    graph = onnxjl.prune(model + ".onnx", macs=0.6, criterion=criterion, **options[criterion])
    path = folder + "/" + criterion + ".onnx"
    graph.save(path, check=False)
    print(hashlib.sha256(open(path, "rb").read() + graph.plan.to_json().encode()).hexdigest())
"""


def answers(folder: Path, hashes: int, threads: int, *criteria: str) -> list[str]:
    """Digests of what another process writes, with refitting for criterion l1."""
    folder.mkdir()
    environment = {
        **os.environ,
        "PYTHONHASHSEED": str(hashes),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
    }
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(MODEL), str(folder), *criteria],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    """Whatever seeds Python's hashes, and however many threads there are, but for refitting.

    BLAS sums in another order on another number of threads, so refitted weights agree to rounding.
    """
    first = answers(tmp_path / "a", 0, 1, "l2", "random", "activation", "l1")
    second = answers(tmp_path / "b", 7, 4, "l2", "random", "activation", "l1")
    assert first[:3] == second[:3]
    assert len(set(first)) == 4
    one, other = (onnxjl.load(tmp_path / name / "l1.onnx") for name in "ab")
    for name in one.model.graph.initializers:
        np.testing.assert_allclose(one.weight(name), other.weight(name), rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_refitting_on_as_many_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    found = [answers(tmp_path / str(hashes), hashes, 2, "l1") for hashes in (0, 7)]
    assert found[0] == found[1]
