"""External: weights in a file of their own, read only while it is the file that was loaded."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxjl.errors import ExternalDataError

DATA_NAME = re.compile(r"[^/\\]+\.([0-9a-f]{16})\.data")
"""Name of a data file that we wrote, which tells its content."""


class ExternalWeight(ir.ExternalTensor):
    """A tensor in external data that refuses to be read once the file is another.

    Its file is opened anew whenever it is needed, long after `load`. Were it replaced or written
    to meanwhile, weights of two networks would mix without anybody noticing.

    Parameters
    ----------
    tensor : what is where; its data have been found to be there.
    status : of the file, as `os.stat` gives it.
    name : another name than the tensor's.
    """

    __slots__ = ("_status",)

    def __init__(
        self, tensor: ir.ExternalTensor, status: os.stat_result, name: str | None = None
    ) -> None:
        super().__init__(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name if name is None else name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props) or None,
            base_dir=tensor.base_dir,
        )
        self._status = status

    def renamed(self, name: str) -> ExternalWeight:
        """Return the same data under another name."""
        return ExternalWeight(self, self._status, name)

    def numpy(self) -> np.ndarray:
        """Return the weight, memory-mapped."""
        self._check()
        return self._read(super().numpy)

    def __array__(self, dtype: Any = None) -> np.ndarray:
        self._check()
        return self._read(super().__array__, dtype)

    def tobytes(self) -> bytes:
        """Return the weight's bytes."""
        self._check()
        return self._read(super().tobytes)

    def tofile(self, file: Any) -> None:
        """Copy the weight's bytes from file to file."""
        self._check()
        self._read(super().tofile, file)
        # What was copied while somebody wrote to the file isn't worth much.
        self._check()

    def _read(self, read: Any, *given: Any) -> Any:
        try:
            return read(*given)
        except FileNotFoundError as error:
            raise self._gone() from error
        except ValueError as error:  # A link by now, or shorter.
            raise ExternalDataError(
                f"external data of '{self.name}' were exchanged: {error}"
            ) from error

    def _check(self) -> None:
        """Raise `ExternalDataError` if the file isn't as it was when it was loaded."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise self._gone() from error
        if not has_changed(status, self._status):
            return
        # Written anew with the same content, as saving an equal network does, it is as good.
        name = DATA_NAME.fullmatch(os.path.basename(self.path))
        if name is None or not os.path.isfile(self.path) or digest_of(self.path) != name[1]:
            raise ExternalDataError(
                f"external data of '{self.name}' were exchanged after the model was loaded: "
                f"{self.path} has changed; load the model anew"
            )
        self._status = status

    def _gone(self) -> ExternalDataError:
        return ExternalDataError(f"external data of '{self.name}' are no longer there: {self.path}")


def digest_of(path: str | os.PathLike[str]) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def has_changed(now: os.stat_result, then: os.stat_result) -> bool:
    """Return whether a file is another one, or was written to, as far as the system tells."""
    keys = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
    return any(getattr(now, key) != getattr(then, key) for key in keys)
