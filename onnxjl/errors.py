"""The exceptions that onnxjl raises. Each message is one line: where, what is wrong, what to do."""

from __future__ import annotations

from onnxjl.printable import printable


class OnnxjlError(Exception):
    """Base of every exception that onnxjl raises on purpose.

    Parameters
    ----------
    message : one line; names in it may hold anything, and are made printable.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(str(message)))


class UsageError(OnnxjlError, ValueError):
    """The request itself is wrong: an unknown option, criterion or layer pattern."""


class ModelError(OnnxjlError):
    """The model can't be read, isn't ONNX, or fails ONNX's checker."""


class ExternalDataError(ModelError):
    """External data is missing, or lies outside the folders that are allowed."""


class UnsupportedOperator(OnnxjlError):  # noqa: N818 - the name that users see in the contract
    """An operator (or this version of it) has no implementation where one is needed."""


class JuliaError(OnnxjlError):
    """Julia can't be found or started, lacks a package, or failed; the message names the node.

    Parameters
    ----------
    message : one line.
    failure : the error with Julia's stack, for `julia_traceback`.
    """

    def __init__(self, message: str, failure: BaseException | None = None) -> None:
        super().__init__(message)
        self.failure = failure

    @property
    def julia_traceback(self) -> str:
        """The whole of what Julia says, with its stack; empty if Julia didn't get that far."""
        return "" if self.failure is None else str(self.failure)


class BudgetError(OnnxjlError):
    """The budget can't be met, or the request would change nothing."""


class DataError(OnnxjlError):
    """Input data don't fit the model, or can't be read."""


class WeightError(OnnxjlError):
    """A weight that is to be scored holds NaN or infinity."""


class TrainingError(OnnxjlError):
    """Training can't go on, as its loss or gradient isn't finite; the message says what to do."""


class PlanError(OnnxjlError):
    """A plan can't be read, or doesn't belong to this graph."""


class CheckError(OnnxjlError):
    """The new model failed its check against onnxruntime; nothing was written."""


class OutputError(OnnxjlError, OSError):
    """The output can't be written; existing files are as they were."""
