"""Julia as onnxjl starts it: from where, with what else, and what its errors look like."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import traceback
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from flux_support import needs_julia, own_depot

import onnxjl
from onnxjl import cli, flux, julia_environment
from onnxjl.errors import JuliaError, UsageError

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

ROOT = Path(onnxjl.__file__).parents[1]
NETWORK = ROOT / "tests" / "models" / "mnist-resnet14.onnx"
IMAGES = NETWORK.with_suffix(".calib.npz")

RUN = f"""
import numpy as np
from onnxjl import flux

x = np.load({str(IMAGES)!r})["image"][:4]
y = flux.to_flux({str(NETWORK)!r})(x)
print(y.shape, np.isfinite(y).all())
"""
"""The least that has to work; prints ``(4, 10) True``."""


def run(code: str, **variables: str) -> str:
    """Run code in a process of its own, and return what it prints."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env={**os.environ, "PYTHONPATH": path, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def model() -> flux.FluxModel:
    """A small network in Julia."""
    return flux.to_flux(NETWORK)


# What is started


def test_julia_runs_the_bundled_package() -> None:
    bridge = flux.julia()
    main = sys.modules["juliacall"].Main
    source = Path(str(main.Base.pathof(bridge)))
    assert source.resolve() == (ROOT / "julia" / "src" / "OnnxJL.jl").resolve()
    assert str(main.Base.pkgversion(bridge)) == onnxjl.__version__
    assert flux.julia() is bridge


@pytest.mark.slow
def test_standard_input_can_be_read_after_julia_started() -> None:
    code = "from onnxjl.flux import julia; julia(); print(flush=True); print(input())"
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1)  # Nothing to read yet when it wants to.
        output, errors = process.communicate("a line\n", timeout=300)
    assert output == "a line\n", errors


def test_a_process_leaves_signals_of_its_children_to_them(model: flux.FluxModel) -> None:
    assert model
    assert flux.HANDLE_SIGNALS not in os.environ


def test_two_threads_and_ctrl_c() -> None:
    # Garbage is collected while both threads run, which crashes where Python has all signals.
    code = f"""{RUN}
import os, signal, threading, juliacall
main = juliacall.Main
print(main.Threads.nthreads())
main.include({str(Path(__file__).with_name("two_threads.jl"))!r})
print(main.filltexts(200))
for _ in range(3):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        for _ in range(1000):
            main.filltexts(2)
        print("not interrupted")
    except KeyboardInterrupt:
        print("interrupted")
print(main.filltexts(2))
"""
    printed = run(code, JULIA_NUM_THREADS="2").splitlines()
    assert printed == ["(4, 10) True", "2", "4000000", *3 * ["interrupted"], "40000"]


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("torch") is None, reason="PyTorch isn't installed")
@pytest.mark.parametrize("order", ["PyTorch first", "Julia first"])
def test_pytorch_and_julia_in_one_process(order: str) -> None:
    first, second = (USE_TORCH, RUN) if order == "PyTorch first" else (RUN, USE_TORCH)
    code = f"import warnings; warnings.simplefilter('error')\n{first}\n{second}\n{TOGETHER}"
    assert sorted(run(code).splitlines()) == ["(4, 10) True", "loss agrees", "trained"]


USE_TORCH = """
import torch

a = torch.randn(200, 200, requires_grad=True)
torch.linalg.svdvals(a).sum().backward()
assert a.grad.isfinite().all()
layer = torch.nn.Conv2d(3, 8, 3)
layer(torch.randn(4, 3, 32, 32)).sum().backward()
print("trained")
"""

TOGETHER = f"""
model = flux.to_flux({str(NETWORK)!r})
labels = np.arange(4)
value, gradients = model.gradient(torch.nn.functional.cross_entropy, x, labels)
by_name, theirs = model.gradient("cross-entropy", x, labels)
assert abs(value - by_name) < 1e-5 * abs(by_name)
assert all(np.allclose(gradients[k], theirs[k], rtol=1e-3, atol=1e-6) for k in theirs)
print("loss agrees")
"""


@pytest.mark.slow
def test_juliacall_that_is_running_already_is_used() -> None:
    code = f"import juliacall; juliacall.Main.theirs = 1\n{RUN}\nprint(juliacall.Main.theirs)"
    assert run(code).splitlines() == ["(4, 10) True", "1"]


@pytest.mark.slow
def test_a_python_that_julia_started() -> None:
    script = Path(__file__).with_name("from_julia.jl")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    python = {"JULIA_PYTHONCALL_EXE": sys.executable, "JULIA_CONDAPKG_BACKEND": "Null"}
    place = julia_environment.find()
    done = subprocess.run(
        [place.executable, f"--project={place.project}", script, ROOT / "julia", NETWORK],
        env={**os.environ, "PYTHONPATH": path, **python},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert (done.returncode, done.stdout) == (0, "true"), done.stderr


@pytest.mark.slow
def test_another_onnxjl_in_julia_is_told(tmp_path: Path) -> None:
    other = tmp_path / "julia"
    shutil.copytree(ROOT / "julia", other)
    code = f"""
import warnings, juliacall
main = juliacall.Main
main.push_b(main.LOAD_PATH, {str(other)!r})
main.Base.require(main, main.Symbol("OnnxJL"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {RUN.strip().replace(chr(10), chr(10) + "    ")}
print([str(w.message) for w in caught if "brings its own" in str(w.message)][0])
"""
    ran, told = run(code, **own_depot(tmp_path / "depot")).splitlines()
    assert ran == "(4, 10) True"
    assert told.startswith(f"Julia has OnnxJL from {other.resolve()}, and this onnxjl brings its")


@pytest.mark.slow
def test_the_doctor_finds_that_it_works(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert cli.main(["doctor"]) == 0
    assert "The Flux engine works: Julia and OnnxJL started in" in capsys.readouterr().out


# Errors


def test_a_julia_error_names_the_node_in_one_line(model: flux.FluxModel) -> None:
    with pytest.raises(JuliaError) as caught:
        model(np.zeros((1, 3, 28, 28), np.float32))
    error = caught.value
    assert "conv1" in str(error)
    assert "\n" not in str(error)
    assert isinstance(error.__cause__, sys.modules["juliacall"].JuliaError)
    shown = "".join(traceback.format_exception(error))
    assert "Stacktrace" not in shown
    assert len(shown.splitlines()) < 40
    assert "Stacktrace" in error.julia_traceback
    assert error.julia_traceback.count("\n") > 10


# Devices


def test_a_gpu_that_is_not_there(model: flux.FluxModel) -> None:
    if flux.julia().MLDataDevices.functional(flux.julia().MLDataDevices.CUDADevice):
        pytest.skip("there is a GPU that Julia can use")
    with pytest.raises(JuliaError, match="no GPU works here: for NVIDIA's, Julia needs the packag"):
        model.to("gpu")


def test_moving_to_where_it_is_changes_nothing(model: flux.FluxModel) -> None:
    x = np.load(IMAGES)["image"][:2]
    np.testing.assert_array_equal(model.to("cpu")(x), model(x))


def test_a_device_that_there_is_not(model: flux.FluxModel) -> None:
    for attempt in (lambda: model.to("gpus"), lambda: flux.to_flux(NETWORK, device="gpus")):
        with pytest.raises(UsageError, match="no device 'gpus'; did you mean 'gpu'"):
            attempt()
