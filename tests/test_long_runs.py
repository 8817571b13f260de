"""Long runs in one process: nothing stays of what is done with. Benchmarks measure their memory."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flux_support import needs_julia
from models import zoo

import onnxjl
from onnxjl.flux import FluxModel
from onnxjl.session import open_session, run

pytestmark = [needs_julia, pytest.mark.xdist_group("julia"), pytest.mark.slow]

NETWORK = Path(zoo.__file__).with_name("mnist-resnet14.onnx")
DESCRIPTORS = Path("/proc/self/fd")


class Watched:
    """What there still is of networks: they, and their graphs, each of which Julia's holds."""

    def __init__(self) -> None:
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, model: FluxModel) -> None:
        self._alive.update((model, model.graph))

    def left(self) -> tuple[int, int, int]:
        """Networks and graphs, objects of Julia's that Python holds, and open files."""
        main = sys.modules["juliacall"].Main
        for _ in range(3):  # Each may free what keeps something of the other alive.
            gc.collect()
            main.GC.gc()
        wrapped = main.seval("length(PythonCall.JlWrap.Cjl.PYJLVALUES)")
        free = main.seval("length(PythonCall.JlWrap.Cjl.PYJLFREEVALUES)")
        files = len(os.listdir(DESCRIPTORS)) if DESCRIPTORS.exists() else 0
        return len(self._alive), wrapped - free, files


def test_nothing_stays_of_a_hundred_rounds(tmp_path: Path) -> None:
    with np.load(NETWORK.with_suffix(".calib.npz")) as file:
        data = [(file["image"][:8], file["target"][:8])]
    watched = Watched()

    def one_round() -> str:
        model = onnxjl.to_flux(NETWORK)
        small = onnxjl.prune(model, amount=0.3)
        small.finetune(data, epochs=2)
        small.save(tmp_path / "small.onnx", force=True)
        watched.add(model)
        watched.add(small)
        return small.to_graph().fingerprint

    first = one_round()
    left = watched.left()
    assert left[0] == 0
    for _ in range(99):
        assert one_round() == first
    assert watched.left() == left


def test_nothing_stays_of_twenty_networks() -> None:
    chosen: dict[str, str] = {}
    for name in sorted(zoo.NAMES, key=lambda name: (zoo.size(name), name)):
        chosen.setdefault(zoo.network(name), name)
    watched = Watched()

    def compare(name: str) -> None:
        network = zoo.load(name)
        model = onnxjl.to_flux(network)
        watched.add(model)
        feeds = zoo.inputs(network, seed=1)
        outputs = model.run(feeds)
        for output, y in run(open_session(model.graph), feeds).items():
            assert np.abs(outputs[output] - y).max() <= 1e-4 * max(1e-6, np.abs(y).max())

    names = list(chosen.values())[:20]
    compare(names[0])
    left = watched.left()
    assert left[0] == 0
    for name in names[1:]:
        compare(name)
    assert watched.left() == left
