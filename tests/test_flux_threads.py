"""Threads, processes and signals with Julia: what one thread alone would get, or a clear error."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from flux_support import needs_julia

import onnxjl
from onnxjl.flux import FluxModel, to_flux

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

ROOT = Path(onnxjl.__file__).parents[1]
NETWORK = ROOT / "tests" / "models" / "mnist-resnet14.onnx"
AMOUNTS = (0.2, 0.3, 0.4, 0.5)

with np.load(NETWORK.with_suffix(".calib.npz")) as _file:
    IMAGES, LABELS = _file["image"][:16], _file["target"][:16]


def trained(model: FluxModel, amount: float) -> tuple[str, np.ndarray]:
    """Prune and train; return what came of it, and what it computes."""
    small = onnxjl.prune(model, amount=amount)
    small.finetune([(IMAGES, LABELS)], epochs=2)
    return small.to_graph().fingerprint, small(IMAGES)


def trained_from_file(amount: float) -> tuple[str, np.ndarray]:
    """Do so with a network of one's own."""
    return trained(to_flux(NETWORK), amount)


def computed() -> np.ndarray:
    """What a network of one's own computes."""
    y = to_flux(NETWORK)(IMAGES)
    assert isinstance(y, np.ndarray)
    return y


def equal(found: list[tuple[str, np.ndarray]], wanted: list[tuple[str, np.ndarray]]) -> bool:
    return all(
        a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(found, wanted, strict=True)
    )


# Threads


def test_threads_with_a_network_each_get_what_one_alone_gets() -> None:
    alone = [trained_from_file(amount) for amount in AMOUNTS]
    with ThreadPoolExecutor(2) as pool:
        assert equal(list(pool.map(trained_from_file, AMOUNTS * 2)), alone * 2)


def test_threads_with_one_network_get_what_one_alone_gets() -> None:
    model = to_flux(NETWORK)

    def work(amount: float) -> tuple[str, np.ndarray]:
        _, gradient = model.gradient("cross-entropy", IMAGES, LABELS)
        fingerprint, y = trained(model, amount)
        return fingerprint, np.concatenate(
            [each.ravel() for each in (model(IMAGES), y)]
            + [each.ravel() for each in gradient.values()]
        )

    alone = [work(amount) for amount in AMOUNTS]
    with ThreadPoolExecutor(2) as pool:
        assert equal(list(pool.map(work, AMOUNTS * 2)), alone * 2)


def test_a_call_waits_until_the_network_is_trained() -> None:
    model = to_flux(NETWORK)
    before = model(IMAGES)
    found: list[np.ndarray] = []
    caller = threading.Thread(target=lambda: found.append(model(IMAGES)))

    def metric(output: np.ndarray, target: np.ndarray) -> float:
        if not caller.is_alive() and not found:
            caller.start()
            time.sleep(0.5)  # Long enough for a call.
        return float((output.argmax(axis=1) == target).mean())

    model.finetune([(IMAGES, LABELS)] * 2, epochs=2, lr=0.01, metric=metric)
    caller.join()
    np.testing.assert_array_equal(found[0], model(IMAGES))
    assert np.abs(found[0] - before).max() > 1e-3


# Processes


def run(code: str, status: int = 0) -> list[str]:
    """Run code in a process of its own, which ends with a status; return the lines it prints."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", START + code],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()


START = f"""
import os, signal, sys, threading, warnings
import numpy as np
import onnxjl
from onnxjl.flux import julia, to_flux

network = {str(NETWORK)!r}
with np.load({str(NETWORK.with_suffix(".calib.npz"))!r}) as file:
    images, labels = file["image"][:16], file["target"][:16]
"""

FORK = """
def child(work, end):
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            print(work())
        except onnxjl.OnnxjlError as error:
            print(type(error).__name__, error)
        sys.stdout.flush()
        end(0)
    print("ended with", os.wait()[1], flush=True)
"""


@pytest.mark.slow
def test_julia_may_be_started_and_collect_garbage_in_any_thread() -> None:
    code = """
first = threading.Thread(target=julia)
first.start()
first.join()
second = threading.Thread(target=lambda: print(to_flux(network)(images).shape, flush=True))
second.start()
second.join()
third = threading.Thread(target=julia().Base.GC.gc)
third.start()
third.join()
print(to_flux(network)(images).shape)
"""
    assert run(code) == ["(16, 10)", "(16, 10)"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_after_julia_started_is_told() -> None:
    """And what needs no Julia works there, and its end isn't held up."""
    code = (
        FORK
        + """
model = to_flux(network)
model(images)
for work in (
    lambda: model(images),
    lambda: model.finetune([(images, labels)], epochs=1),
    lambda: onnxjl.prune(model, amount=0.5),
    lambda: to_flux(network),
    lambda: repr(model),
    lambda: model.masks,
):
    child(work, os._exit)
child(lambda: onnxjl.prune(network, amount=0.5).params, sys.exit)
print(onnxjl.prune(network, amount=0.5).params)
print(model(images).shape)
"""
    )
    lines = run(code)
    told = (
        "JuliaError Julia was started before this process was forked, and can't be used in it: "
        "start processes with multiprocessing's 'spawn' or 'forkserver', or fork before the "
        "first use of the Flux engine"
    )
    assert lines[:12] == [told, "ended with 0"] * 6
    params, ended, expected, shape = lines[12:]
    assert (params, ended, shape) == (expected, "ended with 0", "(16, 10)")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_before_julia_started_works() -> None:
    code = FORK + "child(lambda: to_flux(network)(images).shape, sys.exit)"
    assert run(code) == ["(16, 10)", "ended with 0"]


@pytest.mark.slow
def test_processes_get_what_one_alone_gets() -> None:
    alone = [trained_from_file(amount) for amount in AMOUNTS]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert equal(list(pool.map(trained_from_file, AMOUNTS)), alone)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_server_of_forks_works() -> None:
    """It starts them itself, and no Julia."""
    alone = computed()
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        np.testing.assert_array_equal(pool.submit(computed).result(), alone)


# Signals


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are other ones")
def test_signals_are_pythons() -> None:
    code = """
model = to_flux(network)
count = 0
def metric(output, target):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return 0.0
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    history = model.finetune([(images, labels)] * 2, epochs=10, metric=metric)
print(len(history), history.interrupted, str(caught[-1].message)[:46])
signal.signal(signal.SIGTERM, lambda *_: print("asked to end"))
os.kill(os.getpid(), signal.SIGTERM)
print(model(images).shape)
try:
    os.kill(os.getpid(), signal.SIGINT)
    model(images)
except KeyboardInterrupt:
    print("interrupted", model(images).shape, flush=True)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.kill(os.getpid(), signal.SIGTERM)
print("still there")
"""
    assert run(code, -signal.SIGTERM) == [
        "1 True fine-tuning was interrupted after 1 of 10 epoc",
        "asked to end",
        "(16, 10)",
        "interrupted (16, 10)",
    ]
