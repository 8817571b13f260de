"""Run models in onnxruntime: the only file that imports it (with the process that checks)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxjl.errors import DataError, ModelError

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from onnxjl.graph import Graph

TARGET = "target"
"""What labels are called in data files, beside the inputs."""

_SILENT = 4  # onnxruntime's level "fatal"


def open_session(
    model: Graph | str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    optimized: bool = False,
    threads: int = 1,
    buffers: Mapping[str, np.ndarray] | None = None,
) -> onnxruntime.InferenceSession:
    """Open a model in onnxruntime, on the CPU.

    Parameters
    ----------
    model : a Graph (its weights are handed over without a file), a path, or a serialized model.
    optimized : whether onnxruntime may rewrite the graph; off, each node is computed as written.
    threads : threads for one operator.
    buffers : contents of files that the model's external data name, by location: 1-D uint8 arrays.

    Returns
    -------
    The session.

    Raises
    ------
    ModelError : onnxruntime can't run the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    name, source, found = _source(model)
    buffers = {**found, **(buffers or {})}
    if buffers:
        options.add_external_initializers_from_files_in_memory(
            list(buffers), list(buffers.values()), [array.nbytes for array in buffers.values()]
        )
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    # onnxruntime's exceptions have no common base.
    except Exception as error:
        raise ModelError(f"onnxruntime can't run {name}: {first_line(error)}") from error


def run(
    session: onnxruntime.InferenceSession,
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run a session once.

    Parameters
    ----------
    session : from `open_session`.
    inputs : one array for each input, by name; labels, called "target", are passed over.
    outputs : names of the outputs to compute; None computes all.

    Returns
    -------
    Arrays (sequences and maps where the model has such outputs) by output name.

    Raises
    ------
    DataError : the inputs' names, types or shapes aren't those that the model takes.
    ModelError : the model fails while it runs.
    """
    import onnxruntime

    feeds = fed(session, inputs)
    names = [argument.name for argument in session.get_outputs()]
    wanted = names if outputs is None else list(outputs)
    if unknown := [name for name in wanted if name not in names]:
        raise DataError(f"unknown output {unknown[0]!r}; the model gives {', '.join(names)}")
    options = onnxruntime.RunOptions()
    options.log_severity_level = _SILENT
    try:
        values = session.run(wanted, {name: _feed(array) for name, array in feeds.items()}, options)
    except Exception as error:
        if type(error).__name__ == "InvalidArgument":
            raise DataError(f"the model refuses its inputs: {first_line(error)}") from error
        raise ModelError(f"onnxruntime can't run the model: {first_line(error)}") from error
    return dict(zip(wanted, values, strict=True))


def fed(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays that a session takes: all but labels.

    Raises
    ------
    DataError : an input is missing, or there is no such input.
    """
    expected = {argument.name: argument for argument in session.get_inputs()}
    optional = [argument.name for argument in session.get_overridable_initializers()]
    return chosen(inputs, list(expected), optional, _listed(expected))


def chosen(
    inputs: Mapping[str, np.ndarray], needed: Sequence[str], optional: Sequence[str], told: str
) -> dict[str, np.ndarray]:
    """The arrays of these names; labels are left out where they aren't one.

    Parameters
    ----------
    inputs : what is given.
    needed, optional : names that must, and that may be there.
    told : what the model takes, in words.

    Raises
    ------
    DataError : an input is missing, or there is no such input.
    """
    known = {*needed, *optional}
    if missing := [name for name in needed if name not in inputs]:
        raise DataError(f"input {missing[0]!r} is missing; the model takes {told}")
    feeds = {name: array for name, array in inputs.items() if name in known or name != TARGET}
    if unknown := [name for name in feeds if name not in known]:
        raise DataError(f"unknown input {unknown[0]!r}; the model takes {told}")
    return feeds


def first_line(error: BaseException) -> str:
    """The first line of an onnxruntime error without its prefix of codes."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # A wrong input's sizes come in the second line: "index: 1 Got: 1 Expected: 3".
    text = " ".join(lines[:2]) if lines[0].endswith("following indices") else lines[0]
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    # Paths and lines of onnxruntime's C++ sources say nothing to its users.
    return re.sub(r"^/\S+\.(?:cc|h):\d+ (?:\S.*?\) )?", "", text).rstrip(" .")


def _source(
    model: Graph | str | os.PathLike[str] | bytes | onnx.ModelProto,
) -> tuple[str, str | bytes, dict[str, np.ndarray]]:
    """Name for messages, what onnxruntime opens, and its external data in memory."""
    if isinstance(model, str | os.PathLike):
        if not Path(model).is_file():
            raise ModelError(f"{os.fspath(model)}: no such file")
        return os.path.basename(os.fspath(model)), os.fspath(model), {}
    if isinstance(model, bytes):
        return "the model", model, {}
    if hasattr(model, "SerializeToString"):
        return "the model", model.SerializeToString(), {}

    from onnxjl.serialize import skeleton, weights

    # Each weight is a file of its own, by a name that can't be mistaken for a path.
    tensors = dict(weights(model))
    locations = {name: f"weight{index}" for index, name in enumerate(tensors)}
    proto = skeleton(model, lambda name, tensor: (locations[name], 0))
    buffers = {locations[name]: _bytes(tensor) for name, tensor in tensors.items()}
    name = model.path.name if model.path is not None else "the model"
    return name, proto.SerializeToString(), buffers


def _bytes(tensor: Any) -> np.ndarray:
    """A tensor's bytes as a 1-D uint8 array, without a copy where its elements are whole bytes."""
    if tensor.dtype.bitwidth % 8:
        return np.frombuffer(tensor.tobytes(), np.uint8)
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)


def _feed(array: Any) -> Any:
    """An input as onnxruntime takes it."""
    if isinstance(array, np.ndarray) and array.dtype.name == "bfloat16":
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), 16)
    return array


def _listed(arguments: Mapping[str, Any]) -> str:
    """Inputs as ``name (type, shape)``."""
    return ", ".join(
        f"{name} ({argument.type}, {argument.shape})" for name, argument in arguments.items()
    )
