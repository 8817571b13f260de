"""The process that a check runs in: reads models and inputs, answers with one line of JSON.

It imports neither onnx nor onnx_ir unless it must, since it starts for every file that is saved.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import sys
from typing import IO, Any

import numpy as np

from onnxjl.comparison import Comparison, compare_outputs
from onnxjl.errors import OnnxjlError
from onnxjl.session import open_session, run

# Rounding is estimated by inputs that are changed by this many steps of their type, so many times.
_STEPS, _TIMES = 8, 4
# Noise may leave outputs as they are once: those of a rectifier that stay zero.
_RUNS = 3
# Why outputs aren't compared.
_NOISE = "gives other outputs each time, so there is nothing to compare with"
_TRAINING = "has layers in training form, so its outputs aren't comparable"
# What onnxruntime says where it lacks an operator, or has it for other types only.
_NO_KERNEL = ("Could not find an implementation", "is not a registered function/op")


def main() -> None:
    """Read a request from standard input, and write what was found to standard output."""
    # Ctrl-C reaches the whole group of processes; whoever started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    # Whatever a library prints belongs to the messages, not to the answer.
    os.dup2(2, 1)
    result = _check(sys.stdin.buffer, answers)
    print(json.dumps(result), file=answers, flush=True)


def _check(stream: IO[bytes], answers: IO[str]) -> dict[str, Any]:
    line = stream.readline()
    if not line:
        return {"failed": "the check was not asked for"}
    request = json.loads(line)
    feeds, expected = _arrays(request, stream)
    reference: str | bytes | None = request.get("reference")
    buffers: dict[str, np.ndarray] = {}
    if "model" in request:
        reference = stream.read(request["model"])
        buffers = {name: _read(stream, count) for name, count in request["weights"]}

    mode, path = request["mode"], request["path"]
    if mode == "checker":
        return _checker(path) or {}
    if reference is not None:
        print("reference", file=answers, flush=True)
        try:
            session = open_session(reference, threads=0, buffers=buffers)
            expected = run(session, feeds)
        except OnnxjlError as error:
            return _checker(path) or {"unable": str(error)}
        del session
        print("target", file=answers, flush=True)
    try:
        outputs = run(open_session(path, threads=0), feeds)
    except OnnxjlError as error:
        if reference is None and any(text in str(error) for text in _NO_KERNEL):
            return _checker(path) or {"unable": str(error)}
        return {"failed": str(error)}
    if reference is None and not expected:
        return _finite(outputs)

    comparison = compare_outputs(outputs, expected, inputs=feeds)
    if comparison.equal():
        return _as_json(comparison)
    if reference is None:
        return _as_json(comparison) if _is_stable(path, feeds) else _exempt(outputs, _NOISE, "file")
    if mode == "either":
        return _finite(outputs) or _as_json(comparison)
    if isinstance(reference, str):
        if not _is_stable(reference, feeds):
            return _exempt(outputs, _NOISE, "source")
        if _trains(reference):
            return _exempt(outputs, _TRAINING, "source")
    rounding = _rounding(reference, buffers, feeds, expected)
    return {**_as_json(comparison), "rounding": rounding}


def _is_stable(model: str, feeds: dict[str, Any]) -> bool:
    """Whether a model gives the same outputs each time: nothing in it draws random numbers."""
    # A new session begins with the same seed, so only its further runs tell.
    session = open_session(model, threads=0)
    first = run(session, feeds)
    return all(compare_outputs(run(session, feeds), first).equal() for _ in range(_RUNS))


def _exempt(outputs: dict[str, Any], why: str, which: str) -> dict[str, Any]:
    return _finite(outputs) or {"exempt": f"the {which} {why}"}


def _rounding(
    reference: str | bytes,
    buffers: dict[str, np.ndarray],
    feeds: dict[str, Any],
    expected: dict[str, Any],
) -> dict[str, float]:
    """How far rounding alone moves the reference's outputs: name -> relative difference.

    Networks may amplify rounding beyond any fixed tolerance, or saturate: a sigmoid's steps are
    6e-8 however small it is. So the reference is run as onnxruntime optimizes it, and on inputs
    whose last bits are others.
    """
    moved = [
        {name: _moved(value, np.random.default_rng(seed)) for name, value in feeds.items()}
        for seed in range(_TIMES)
    ]
    found: dict[str, float] = {}
    for values, optimized in [(feeds, True), *((values, False) for values in moved)]:
        # A session of its own for each, since one begins with the same seed of random numbers.
        session = open_session(reference, optimized=optimized, threads=0, buffers=buffers)
        try:
            outputs = run(session, values)
        except OnnxjlError:
            continue
        for output in compare_outputs(outputs, expected).outputs:
            if output.problem is None:
                found[output.name] = max(found.get(output.name, 0.0), output.difference)
    return found


def _moved(value: Any, generator: np.random.Generator) -> Any:
    """An input whose floats are a few steps away from what they were."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    step = _STEPS * np.finfo(value.dtype).eps
    return (value * (1 + step * generator.choice([-1, 1], value.shape))).astype(value.dtype)


def _read(stream: IO[bytes], count: int) -> np.ndarray:
    """Read this many bytes, without a second copy."""
    array = np.empty(count, np.uint8)
    view, done = memoryview(array.data), 0
    while done < count:
        got = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError("the request ended early")
        done += got
    return array


def _arrays(request: dict[str, Any], stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs, and the outputs to expect where they are known."""
    with np.load(io.BytesIO(stream.read(request["arrays"])), allow_pickle=False) as file:
        arrays = [file[f"array{index}"] for index in range(len(file.files))]
    for index in request["bfloat16"]:
        import ml_dtypes

        arrays[index] = arrays[index].view(ml_dtypes.bfloat16)
    arrays = [array.astype(object) if array.dtype.kind == "U" else array for array in arrays]
    feeds, expected = (
        {name: _nested(layout, arrays) for name, layout in request[key].items()}
        for key in ("feeds", "expected")
    )
    return feeds, expected


def _nested(layout: Any, arrays: list[np.ndarray]) -> Any:
    """The value with arrays in the place of their numbers."""
    if isinstance(layout, list):
        return [_nested(entry, arrays) for entry in layout]
    return None if layout is None else arrays[layout]


def _finite(outputs: dict[str, Any]) -> dict[str, Any]:
    """A failure if a floating output isn't finite, else nothing."""
    for name, value in outputs.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fV":
            count = int((~np.isfinite(value.astype(np.float64))).sum())
            if count:
                return {
                    "failed": f"output {name!r} isn't finite in {count} of {value.size} elements"
                }
    return {}


def _checker(path: str) -> dict[str, Any]:
    """A failure if ONNX's checker refuses the file, else nothing."""
    import onnx

    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        return {"failed": f"ONNX's checker refuses it: {str(error).splitlines()[0]}"}
    return {}


def _trains(path: str) -> bool:
    """Whether a file holds normalization or dropout in training form."""
    import onnx

    for node in onnx.load(path, load_external_data=False).graph.node:
        training = any(a.name == "training_mode" and a.i for a in node.attribute)
        statistics = sum(map(bool, node.output)) > 1
        if node.op_type == "BatchNormalization" and (training or statistics):
            return True
        # Whether a dropout drops is its third input, usually a constant, here taken as true.
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            return True
    return False


def _as_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "outputs": [dataclasses.asdict(output) for output in comparison.outputs],
        "inputs": dict(comparison.inputs),
    }


if __name__ == "__main__":
    main()
