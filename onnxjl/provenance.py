"""Provenance: what a result was made of, as plain values that another run can be compared with."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from onnxjl.criteria.registry import Criterion, name_of
from onnxjl.errors import DataError, UsageError
from onnxjl.flux import is_julia
from onnxjl.regularization import Regularization

PACKAGES = ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript")
"""Packages whose versions can change a result."""


def versions() -> dict[str, str]:
    """Return the versions of all that takes part, by name; Julia's where it is running."""
    from onnxjl import __version__

    found = {"onnxjl": __version__, "python": platform.python_version()}
    found |= {name: metadata.version(name) for name in PACKAGES}
    juliacall: Any = sys.modules.get("juliacall")
    if hasattr(juliacall, "Main"):
        found["juliacall"] = metadata.version("juliacall")
        found["julia"] = str(juliacall.Main.VERSION).strip('v"')
    found["machine"] = f"{platform.system()} {platform.machine()}"
    return found


def record_of_data(name: str, data: Any) -> dict[str, str] | None:
    """Return what tells data from others: SHA-256, with the path where they are a file.

    Parameters
    ----------
    name : what the data are for, for messages.
    data : a path, or arrays in mappings, tuples and lists; None for none.

    Raises
    ------
    DataError : the file can't be read.
    UsageError : they are something that can be gone through, but not told from another.
    """
    if data is None:
        return None
    digest = hashlib.sha256()
    if isinstance(data, str | os.PathLike):
        _add_file(digest, data)
        return {"path": os.fspath(data), "sha256": digest.hexdigest()}
    _add(digest, name, data)
    return {"sha256": digest.hexdigest()}


def _add(digest: hashlib._Hash, name: str, data: Any) -> None:
    """Add data to a digest, each part with what it is."""
    if isinstance(data, str | os.PathLike):
        _add_file(digest, data)
    elif isinstance(data, Mapping):
        for key in sorted(data, key=str):
            digest.update(f"{key}:".encode())
            _add(digest, name, data[key])
    elif isinstance(data, tuple | list) and not _is_flat(data):
        digest.update(f"{len(data)}:".encode())
        for each in data:
            _add(digest, name, each)
    elif hasattr(data, "__array__") or isinstance(data, tuple | list):
        array = np.asarray(data)
        digest.update(repr((str(array.dtype), array.shape)).encode())
        if array.dtype == object:
            digest.update(repr(array.tolist()).encode())
        else:
            digest.update(np.ascontiguousarray(array).tobytes())
    else:
        raise UsageError(
            f"{name}= is a {type(data).__name__}, which can't be told from another in a record; "
            "give a file or arrays"
        )


def _is_flat(data: tuple[Any, ...] | list[Any]) -> bool:
    """Whether a sequence holds numbers alone."""
    return all(isinstance(each, bool | int | float | np.generic) for each in data)


def _add_file(digest: hashlib._Hash, path: str | os.PathLike[str]) -> None:
    # What has no end, as a device or a pipe, would be read for ever.
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise DataError(f"{os.fspath(path)}: isn't a plain file")
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: can't be read: {error.strerror or error}") from error


def record_of_option(name: str, value: Any) -> Any:
    """Return an option as JSON's types; of a function its name.

    Parameters
    ----------
    name : of the option, for messages.
    value : numbers, text, functions, and lists and mappings of these.

    Raises
    ------
    UsageError : it holds something else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): record_of_option(f"{name}[{key!r}]", v) for key, v in value.items()}
    if isinstance(value, Regularization):
        return record_of_option(name, value.to_dict())
    if isinstance(value, list | tuple):
        return [record_of_option(name, each) for each in value]
    if is_julia(value):
        return {"function": str(value)}
    if callable(value) or isinstance(value, Criterion):
        return {"function": name_of(value)}
    raise UsageError(f"{name} is a {type(value).__name__}, which a record can't hold")


def holds_function(record: Any) -> bool:
    """Return whether a record has the name of a function in the place of the function."""
    if isinstance(record, Mapping):
        return set(record) == {"function"} or any(map(holds_function, record.values()))
    return isinstance(record, list) and any(map(holds_function, record))


def without_paths(record: Any) -> Any:
    """Return a record with SHA-256 alone of what it has paths of."""
    if not isinstance(record, Mapping):
        return record
    if "sha256" in record:
        return record["sha256"]
    return {name: without_paths(value) for name, value in record.items()}
