"""One case of the Flux engine, in a process of its own; prints one line of JSON.

write MODEL SIZE           the network of handwritten.jl as an ONNX file
speed MODEL BATCH SIZE     from a cold process to gradients and updates
turns MODEL BATCH SIZE     forward passes and gradients, in turn with the network written by hand
memory MODEL               to_flux, over the process with Julia started
"""

from __future__ import annotations

import time

BEGIN = time.perf_counter()

import json  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from measure import Measurement, arguments, memory  # noqa: E402

import onnxjl  # noqa: E402
from onnxjl.flux import julia  # noqa: E402
from onnxjl.serialize import weight_bytes  # noqa: E402

HANDWRITTEN = Path(__file__).with_name("handwritten.jl")
LATER = 5
TURNS = 30


def handwritten() -> Any:
    """Return the Julia module with the network written by hand."""
    julia()
    main = sys.modules["juliacall"].Main
    main.include(str(HANDWRITTEN))
    return main


def write(model: str, size: str) -> None:
    """Write the hand-written network as an ONNX file."""
    chain = handwritten().resnet50()
    onnxjl.from_flux(chain, input_shape=(None, 3, int(size), int(size))).save(model, check=False)


def speed(path: str, batch: str, size: str) -> None:
    """Time what a researcher waits for."""
    model = onnxjl.to_flux(path)
    x = np.random.default_rng(0).random((int(batch), 3, int(size), int(size)), np.float32)
    target = np.arange(len(x)) % 1000
    model(x)
    ready = time.perf_counter() - BEGIN
    found: dict[str, Any] = {"ready": ready, "forward": seconds(lambda: model(x))}
    model.trainmode()
    found["gradient"] = seconds(lambda: model.backward("cross-entropy", x, target))
    found["named"] = seconds(lambda: model.gradient("cross-entropy", x, target))
    flux = julia().Flux
    _, gradient = model.backward("cross-entropy", x, target)
    state = flux.setup(flux.Adam(1e-4), model.julia)
    found["update"] = seconds(lambda: flux.update_b(state, model.julia, gradient))
    print(json.dumps({**found, "peak": memory("VmHWM")}))


def seconds(work: Callable[[], Any]) -> list[float]:
    """Seconds of the first call, and the median of later ones."""
    found = []
    for _ in range(1 + LATER):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return [found[0], statistics.median(found[1:])]


def turns(path: str, batch: str, size: str) -> None:
    """Time the imported network and the one written by hand in turn, both called from Julia."""
    main = handwritten()
    models = main.seval("Any[]")
    for model in (onnxjl.to_flux(path).julia, main.resnet50()):
        main.push_b(models, model)
    found = main.turns(models, int(batch), int(size), TURNS)
    names = ("forward", "gradient")
    print(json.dumps({name: list(both) for name, both in zip(names, found, strict=True)}))


def peak(path: str) -> None:
    """Measure the memory of `to_flux`."""
    julia()
    measurement = Measurement()
    model = measurement.step("to_flux", lambda: onnxjl.to_flux(path))
    measurement.facts["weights"] = weight_bytes(model.graph)
    measurement.report()


if __name__ == "__main__":
    case, *given = arguments()
    {"write": write, "speed": speed, "turns": turns, "memory": peak}[case](*given)
