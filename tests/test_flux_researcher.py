"""The package OnnxJL in a plain Julia session, which starts Python itself."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from flux_support import julia, needs_julia
from models import zoo

import onnxjl
from onnxjl.check import compare, masked
from onnxjl.plan import Plan
from onnxjl.prune import keep
from onnxjl.session import open_session, run

# What the session in the documentation finds: a network and data.
FOUND = """
cd(raw"{folder}")
file = pyimport("numpy").load(raw"{data}")
x = permutedims(pyconvert(Array{{Float32}}, file["image"]), (4, 3, 2, 1))[:, :, :, 1:128]
labels = pyconvert(Vector{{Int}}, file["target"])[1:128]
batches = [(x, Flux.onehotbatch(labels, 0:9))]

"""

TESTS = Path(__file__).parent
ROOT = TESTS.parent
NETWORK = TESTS / "models" / "mnist-resnet14.onnx"
TRANSFORMER = "bertlike.dynamo"
DATA = NETWORK.with_suffix(".calib.npz")


def in_julia(test):
    """Mark a test that runs a Julia of its own for minutes."""
    for mark in (pytest.mark.slow, needs_julia, pytest.mark.xdist_group("researcher")):
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the researcher's script leaves; it has tests of its own."""
    folder = tmp_path_factory.mktemp("results")
    transformer = folder / "transformer.onnx"
    onnx.save(zoo.load(TRANSFORMER), transformer)
    done = julia(TESTS / "researcher.jl", ROOT / "julia", NETWORK, DATA, transformer, folder)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return folder


@in_julia
@pytest.mark.parametrize("name", ["half", "macs", "heads"])
def test_what_julia_pruned_equals_the_masked_original(results: Path, name: str) -> None:
    plan = Plan.load(results / f"{name}.json")
    source = results / "transformer.onnx" if name == "heads" else NETWORK
    original = onnxjl.normalize(source)
    assert plan.engine == "flux"
    assert compare(results / f"{name}.onnx", masked(original, plan)).equal()
    assert onnxjl.load(results / f"{name}.onnx").fingerprint == (
        onnxjl.apply(original, plan).fingerprint
    )


@in_julia
def test_edits_without_a_plan_make_the_same_network(results: Path) -> None:
    edited, planned = (onnxjl.load(results / f"{name}.onnx") for name in ("edits", "half"))
    assert edited.fingerprint == planned.fingerprint


@in_julia
def test_what_was_trained_in_another_precision_is_written_in_the_files(results: Path) -> None:
    trained, wide, half = (onnxjl.load(results / f"{n}.onnx") for n in ("trained", "f64", "f16"))
    assert wide.fingerprint == trained.fingerprint
    weights = {name: half.weight(name) for name in half.model.graph.initializers}
    assert {str(w.dtype) for w in weights.values() if w.dtype.kind == "f"} == {"float32"}
    w = trained.weight("conv1.weight")
    assert np.array_equal(weights["conv1.weight"], w.astype(np.float16).astype(np.float32))


@in_julia
def test_another_number_of_outputs_is_declared(results: Path) -> None:
    path = results / "head.onnx"
    onnx.checker.check_model(path, full_check=True)
    (output,) = onnx.load(path).graph.output
    batch, declared = output.type.tensor_type.shape.dim
    assert declared.dim_value == 3
    assert batch.dim_param
    image = np.load(DATA)["image"][:2]
    (y,) = run(open_session(path), {"image": image}).values()
    assert y.shape == (2, 3)


@in_julia
def test_what_is_missing_is_told() -> None:
    done = julia(TESTS / "without_onnxjl.jl", ROOT / "julia")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "It needs PythonCall: `using PythonCall`."
    assert second.startswith("onnxjl.JuliaError: No module named 'onnxjl")
    assert "let JULIA_PYTHONCALL_EXE name the Python that has onnxjl" in second


# Units by name, which needs no Julia


def test_units_that_are_named_stay() -> None:
    small = keep(NETWORK, {"conv1": [0, 3, 5], "layer1.0.conv1": np.arange(16) % 2 == 0})
    original = onnxjl.normalize(NETWORK)
    np.testing.assert_array_equal(
        small.weight("conv1.weight"), original.weight("conv1.weight")[[0, 3, 5]]
    )
    assert small.weight("layer1.0.conv1.weight").shape == (8, 3, 3, 3)
    assert small.weight("layer2.0.conv1.weight").shape == (
        original.weight("layer2.0.conv1.weight").shape
    )
    assert compare(small, masked(small.source, small.plan)).equal()


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"conv99": [0]}, "no group is called 'conv99' with granularity 'channel'; there are conv"),
        ({"conv1": [16]}, "group 'conv1' has 16 units: no such one to keep"),
        ({"conv1": [-1]}, "group 'conv1' has 16 units: no such one to keep"),
        ({"conv1": []}, "group 'conv1' would lose all of its units"),
        ({"conv1": np.zeros(16, dtype=bool)}, "group 'conv1' would lose all of its units"),
        ({"conv1": [True, False]}, r"what is kept is bool of shape \(2,\), not numbers of units"),
        ({"conv1": [0.5]}, r"what is kept is float64 of shape \(1,\)"),
    ],
)
def test_units_that_cannot_stay_are_told(units, message: str) -> None:
    with pytest.raises(onnxjl.UsageError, match=message):
        keep(NETWORK, units)


@in_julia
def test_the_session_in_the_documentation_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "julia.md").read_text(encoding="utf-8")
    (session,) = re.findall(r"^```julia\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    begin, load, rest = session.partition("m = OnnxJL.load")
    begin = begin.replace("…/onnxjl/julia", str(ROOT / "julia"))
    script = tmp_path / "session.jl"
    found = FOUND.format(folder=tmp_path, data=DATA)
    script.write_text(begin + found + load + rest, encoding="utf-8")
    shutil.copy(NETWORK, tmp_path / "net.onnx")
    done = julia(script)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    small = onnxjl.load(tmp_path / "small.onnx")
    assert 0.45 < small.macs / onnxjl.load(NETWORK).macs <= 0.5
    # It was trained: weights aren't the original's.
    assert small.weight("fc.bias").shape == (10,)
    assert (small.weight("fc.bias") != onnxjl.load(NETWORK).weight("fc.bias")).any()
