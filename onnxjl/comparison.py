"""Comparison: how far two models' outputs are apart, as data. Needs NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxjl.printable import printable

TOLERANCE = 1e-4
"""Relative difference up to which outputs count as equal."""

HALF_TOLERANCE = 2e-2
"""The same where either model computes in 16 bits or less."""


@dataclass(frozen=True)
class OutputComparison:
    """One output of two models.

    Parameters
    ----------
    name : the output's name; an element of a sequence or map has its index or key in brackets.
    difference : max|a−b| / max(1e-6, max|b|) over finite elements; infinite where `problem` is set.
    shapes : shapes of a and b (None where that side lacks the output).
    dtypes : element types of a and b (None where that side lacks the output).
    problem : why the two can't be equal whatever the tolerance, or None.
    """

    name: str
    difference: float
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    problem: str | None = None

    def equal(self, tolerance: float | None = None) -> bool:
        """Whether a and b agree; see `Comparison.equal`."""
        if tolerance is None:
            tolerance = HALF_TOLERANCE if _is_half(self.dtypes) else TOLERANCE
        return self.problem is None and self.difference <= tolerance


@dataclass(frozen=True)
class Comparison:
    """The outputs of two models on the same inputs.

    Parameters
    ----------
    outputs : one entry for each output of either model, in the first's order.
    inputs : shape of each input that was used, by name.
    tolerance : what `equal` uses unless told otherwise; None chooses by element type, 2e-2 for
        float16 and bfloat16, 1e-4 otherwise.
    """

    outputs: tuple[OutputComparison, ...]
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tolerance: float | None = None

    @property
    def difference(self) -> float:
        """The largest relative difference of any output; infinite where one can't be compared."""
        return max((output.difference for output in self.outputs), default=0.0)

    def equal(self, tolerance: float | None = None) -> bool:
        """Whether all outputs agree.

        Parameters
        ----------
        tolerance : largest relative difference allowed; None uses that of the comparison.

        Returns
        -------
        True if every output is there in both, with the same shape and element type, non-finite
        elements in the same places, and a relative difference of at most `tolerance`.
        """
        tolerance = self.tolerance if tolerance is None else tolerance
        return all(output.equal(tolerance) for output in self.outputs)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Let a notebook show the text."""
        printer.text(str(self))

    def __str__(self) -> str:
        lines = []
        names = [printable(output.name) for output in self.outputs]
        width = max(map(len, names), default=0)
        for name, output in zip(names, self.outputs, strict=True):
            verdict = output.problem or f"relative difference {output.difference:.2g}"
            mark = "equal" if output.equal(self.tolerance) else "differs"
            lines.append(f"{name:<{width}}  {mark:<7}  {verdict}")
        return "\n".join(lines)


def compare_outputs(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    tolerance: float | None = None,
) -> Comparison:
    """Compare outputs by name.

    Parameters
    ----------
    a, b : outputs as onnxruntime returns them (arrays, sequences of them, maps), by name.
    inputs : the inputs that gave them; only the shapes of arrays are kept.
    tolerance : see `Comparison`.

    Returns
    -------
    Their `Comparison`.
    """
    entries: list[OutputComparison] = []
    for name in [*a, *(name for name in b if name not in a)]:
        entries += _compare_value(name, a.get(name), b.get(name))
    shapes = {
        name: tuple(np.shape(value))
        for name, value in (inputs or {}).items()
        if value is not None and _parts(value) is None
    }
    return Comparison(tuple(entries), shapes, tolerance)


def _compare_value(name: str, a: Any, b: Any) -> list[OutputComparison]:
    parts = _parts(a), _parts(b)
    if parts[0] is None and parts[1] is None:
        return [_compare_array(name, a, b)]
    ours, theirs = (part or {} for part in parts)
    entries = []
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        entries += _compare_value(f"{name}[{key}]", ours.get(key), theirs.get(key))
    return entries


def _parts(value: Any) -> dict[Any, Any] | None:
    """Elements of a sequence or map by index or key; None for a tensor or a missing value."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return dict(enumerate(value))
    return None


def _compare_array(name: str, a: Any, b: Any) -> OutputComparison:
    arrays = [None if value is None else np.asarray(value) for value in (a, b)]
    shapes = tuple(None if array is None else array.shape for array in arrays)
    dtypes = tuple(None if array is None else _dtype_name(array) for array in arrays)

    def differs(problem: str) -> OutputComparison:
        return OutputComparison(name, float("inf"), shapes, dtypes, problem)  # type: ignore[arg-type]

    left, right = arrays
    if left is None or right is None:
        side = "first" if left is None else "second"
        return differs(f"missing in the {side} model")
    if left.shape != right.shape:
        return differs(f"shape {_shape(left)} against {_shape(right)}")
    if dtypes[0] != dtypes[1]:
        return differs(f"element type {dtypes[0]} against {dtypes[1]}")
    if left.dtype.kind in "OSU":
        count = int(np.sum(left != right))
        if count:
            return differs(f"{count} of {left.size} strings differ")
        return OutputComparison(name, 0.0, shapes, dtypes)  # type: ignore[arg-type]
    # Exact for all types up to 53 bits, and wide enough for the differences of the rest.
    wide = np.complex128 if left.dtype.kind == "c" else np.float64
    x, y = left.astype(wide), right.astype(wide)
    finite = np.isfinite(x) & np.isfinite(y)
    # x == y accepts equal infinities; NaN must meet NaN.
    unlike = ~finite & (x != y) & ~(np.isnan(x) & np.isnan(y))
    if unlike.any():
        missing = int((np.isnan(x) != np.isnan(y)).sum())
        what = (
            f"NaN on one side in {missing}" if missing else f"infinities unlike in {unlike.sum()}"
        )
        return differs(f"{what} of {x.size} elements")
    x, y = x[finite], y[finite]
    difference = float(np.max(np.abs(x - y), initial=0.0) / max(1e-6, np.max(np.abs(y), initial=0)))
    return OutputComparison(name, difference, shapes, dtypes)  # type: ignore[arg-type]


def _shape(array: np.ndarray) -> str:
    return "×".join(map(str, array.shape)) or "scalar"


def _dtype_name(array: np.ndarray) -> str:
    return "string" if array.dtype.kind in "OSU" else str(array.dtype)


def _is_half(dtypes: Sequence[str | None]) -> bool:
    return any(
        name is not None and name.startswith(("float16", "bfloat16", "float8")) for name in dtypes
    )
