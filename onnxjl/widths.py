"""Widths that onnxruntime computes fast on this machine: multiples of what, measured once."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxjl.latency import measure_all
from onnxjl.progress import Progress
from onnxjl.structure import layer_costs
from onnxjl.structure.groups import Structure

Kind = Literal["convolution", "product"]
KINDS: tuple[Kind, ...] = ("convolution", "product")
Build = Callable[[int], tuple[onnx.ModelProto, int]]

STEPS = (1, 2, 4, 8, 16, 32)
"""What widths may be multiples of."""

CACHE = "ONNXJL_CACHE"
"""Environment variable: the folder in which measurements of this machine are kept."""

_ENOUGH = 1.125
"""A step is good if it takes at most this much of the best step's time for a MAC."""

# Two widths around 96 for each step, which are no multiples of the next one.
_WIDTHS = {1: (83, 109), 2: (82, 110), 4: (84, 108), 8: (88, 104), 16: (80, 112), 32: (96, 96)}
_INPUTS = 64
_IMAGE = 20  # pixels
_ROWS = 196
_SECONDS = 2.0
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def preferred_step(structure: Structure) -> int:
    """Return what widths of a network should be multiples of, for onnxruntime on this machine.

    The first time it measures small networks, of convolutions and of products, whose widths are
    multiples of 1, 2, … 32, for some seconds. The outcome is kept in the user's folder for caches,
    for this processor and this release of onnxruntime.

    Parameters
    ----------
    structure : the network's; the kind of layer with most of its MACs counts.

    Returns
    -------
    One of `STEPS`: the smallest whose widths take at most an eighth more time for a MAC than the
    best.
    """
    macs: dict[Kind, int] = {"convolution": 0, "product": 0}
    for layer in layer_costs(structure):
        macs["convolution" if layer.operator in _CONVOLUTIONS else "product"] += layer.macs
    return _steps()[max(macs, key=lambda kind: macs[kind])]


def measure_steps(seconds: float = _SECONDS) -> dict[Kind, int]:
    """Measure which multiples onnxruntime likes, on one thread.

    Parameters
    ----------
    seconds : how long to measure each kind.

    Returns
    -------
    Kind of layer -> the smallest good step.
    """
    found: dict[Kind, int] = {}
    kinds: tuple[tuple[Kind, Build, tuple[int, ...]], ...] = (
        ("convolution", _convolutions, (1, _INPUTS, _IMAGE, _IMAGE)),
        ("product", _products, (_ROWS, _INPUTS)),
    )
    for kind, build, feed in kinds:
        networks = [build(width) for step in STEPS for width in _WIDTHS[step]]
        models = [model.SerializeToString() for model, _ in networks]
        inputs = {"x": np.random.default_rng(0).random(feed, np.float32)}
        taken = measure_all(models, inputs, seconds=seconds)
        relative = np.array(
            [latency.min_ms / macs for latency, (_, macs) in zip(taken, networks, strict=True)]
        )
        found[kind] = best_step(relative.reshape(len(STEPS), -1).mean(axis=1))
    return found


def best_step(relative: Sequence[float] | np.ndarray) -> int:
    """Return the smallest step that is nearly as good as the best.

    Parameters
    ----------
    relative : for each of `STEPS`, the time that a MAC takes, in any unit.
    """
    times = np.asarray(relative, dtype=np.float64)
    return STEPS[int(np.flatnonzero(times <= _ENOUGH * times.min())[0])]


def _steps() -> dict[Kind, int]:
    """The steps measured on this machine, now or before."""
    path, machine = _cache(), runtime()
    known: dict[str, Any] = {}
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8")))
        steps: dict[Kind, int] = {kind: known[machine][kind] for kind in KINDS}
    except (OSError, ValueError, KeyError, TypeError):
        steps = {}
    if steps and all(step in STEPS for step in steps.values()):
        return steps
    with Progress("measuring which widths onnxruntime likes, once on this machine"):
        found = measure_steps()
    _keep(path, {**known, machine: found})
    return found


def _keep(path: Path, known: dict[str, Any]) -> None:
    """Write the cache; where that isn't possible, the next process measures again."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError:
        return


def _cache() -> Path:
    """The file with what was measured."""
    if folder := os.environ.get(CACHE):
        return Path(folder) / "widths.json"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "onnxjl" / "widths.json"


def runtime() -> str:
    """What measurements depend on: the processor and the release of onnxruntime."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}, {_processor()}"


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _convolutions(width: int) -> tuple[onnx.ModelProto, int]:
    """A 1×1, a 3×3, a depthwise 3×3 and a 1×1 convolution with ReLUs, and their MACs."""
    nodes, weights, macs, before = [], [], 0, "x"
    layers = [(_INPUTS, 1, 1), (width, 3, 1), (width, 3, width), (width, 1, 1)]
    for number, (inputs, kernel, group) in enumerate(layers):
        shape = (width, inputs // group, kernel, kernel)
        weights.append(_weight(f"w{number}", shape))
        nodes += [
            helper.make_node(
                "Conv", [before, f"w{number}"], [f"c{number}"], group=group, pads=[kernel // 2] * 4
            ),
            helper.make_node("Relu", [f"c{number}"], [f"y{number}"]),
        ]
        macs += int(np.prod(shape)) * _IMAGE * _IMAGE
        before = f"y{number}"
    return _model(nodes, weights, [1, _INPUTS, _IMAGE, _IMAGE], before), macs


def _products(width: int) -> tuple[onnx.ModelProto, int]:
    """Four products with ReLUs, and their MACs."""
    nodes, weights, macs, before = [], [], 0, "x"
    for number, inputs in enumerate((_INPUTS, width, width, width)):
        weights.append(_weight(f"w{number}", (inputs, width)))
        nodes += [
            helper.make_node("MatMul", [before, f"w{number}"], [f"c{number}"]),
            helper.make_node("Relu", [f"c{number}"], [f"y{number}"]),
        ]
        macs += inputs * width * _ROWS
        before = f"y{number}"
    return _model(nodes, weights, [_ROWS, _INPUTS], before), macs


def _weight(name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return onnx.numpy_helper.from_array(values / np.float32(np.sqrt(np.prod(shape[1:]))), name)


def _model(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], inputs: list[int], output: str
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "widths",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
