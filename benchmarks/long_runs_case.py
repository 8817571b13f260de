"""One long run with the Flux engine, in a process of its own; prints lines of JSON.

rounds ROUNDS FOLDER     prune, train and save a network, each time from its file
networks ROUNDS FOLDER   20 networks, one after another, three times over
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from measure import arguments, memory
from models import zoo

import onnxjl
from onnxjl.flux import FluxModel, julia

NETWORK = Path(zoo.__file__).with_name("mnist-resnet14.onnx")
TURNS, NETWORKS = 3, 20


class Record:
    """What is alive and resident, as it is after a round."""

    def __init__(self) -> None:
        julia()
        self.main = sys.modules["juliacall"].Main
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()

    def watch(self, model: FluxModel) -> None:
        """Count a network for as long as it, or its graph, which Julia holds, is there."""
        self._watched.add(model)
        self._watched.add(model.graph)

    def write(self, after: int) -> None:
        """Collect garbage, and print what is left after a round."""
        for _ in range(3):  # Each may free what keeps something of the other alive.
            gc.collect()
            self.main.GC.gc()
        ctypes.CDLL(None).malloc_trim(0)
        wrapped = "length(PythonCall.JlWrap.Cjl.PYJLVALUES)"
        free = "length(PythonCall.JlWrap.Cjl.PYJLFREEVALUES)"
        record = {
            "after": after,
            "resident": memory("VmRSS"),
            "peak": memory("VmHWM"),
            "heap": int(self.main.Base.gc_live_bytes()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "held": self.main.seval(wrapped) - self.main.seval(free),
            "objects": len(gc.get_objects()),
            "networks": len(self._watched),
        }
        print(json.dumps(record), flush=True)


def rounds(count: int, folder: Path) -> None:
    """Prune, train and save, again and again."""
    with np.load(NETWORK.with_suffix(".calib.npz")) as file:
        data = [(file["image"][:16], file["target"][:16])]
    record = Record()
    for number in range(1, count + 1):
        model = onnxjl.to_flux(NETWORK)
        small = onnxjl.prune(model, amount=0.3, criterion="taylor", data=data)
        small.finetune(data, epochs=2)
        small.save(folder / "small.onnx", force=True)
        record.watch(model)
        record.watch(small)
        del model, small
        if number == 1 or number % 10 == 0:
            record.write(number)


def networks() -> None:
    """Make Flux models of different networks, and run them."""
    chosen: dict[str, str] = {}
    for name in sorted(zoo.NAMES, key=lambda name: (zoo.size(name), name)):
        chosen.setdefault(zoo.network(name), name)
    names = list(chosen.values())[:NETWORKS]
    record = Record()
    for turn in range(TURNS):
        for number, name in enumerate(names, start=1):
            network = zoo.load(name)
            model = onnxjl.to_flux(network)
            record.watch(model)
            model.run(zoo.inputs(network, seed=1))
            del model, network
            if number % 10 == 0:
                record.write(turn * len(names) + number)


if __name__ == "__main__":
    case, count, given = arguments()
    if case == "networks":
        networks()
    else:
        rounds(int(count), Path(given))
