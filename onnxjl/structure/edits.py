"""From surviving labels to a plan: kept indices, shape constants and attributes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxjl.errors import PlanError
from onnxjl.graph import initializers
from onnxjl.structure import axes as ax
from onnxjl.structure.axes import Axis
from onnxjl.structure.interpreter import Interpreter, name
from onnxjl.structure.labels import LabelArray
from onnxjl.structure.names import node_name
from onnxjl.structure.rules import EDITS
from onnxjl.structure.shapes import ADJUSTED, MOVED, Shape, evaluate
from onnxjl.structure.trace import element, source


class Editor:
    """Rewrites what surviving labels change besides the weights.

    Parameters
    ----------
    run : the finished interpretation.
    alive : (labels,) bool, which labels survive.
    """

    def __init__(self, run: Interpreter, alive: NDArray[np.bool_]) -> None:
        self._run = run
        self._alive = alive
        self.constants: dict[str, np.ndarray] = {}
        # Of the constants that an edit sets, what they were; None for the first time.
        self._before: dict[str, np.ndarray | None] = {}
        self.attributes: dict[str, dict[str, Any]] = {}
        self._current: dict[str, np.ndarray] = {}
        self._survivors: dict[int, tuple[NDArray[np.bool_], int]] = {}
        self._kept: dict[int, NDArray[np.int64]] = {}

    def _surviving(self, labels: LabelArray) -> tuple[NDArray[np.bool_], int]:
        """Return which labels of a vector survive, and how many; axes share vectors."""
        found = self._survivors.get(id(labels))
        if found is None:
            mask = self._alive[labels]
            found = self._survivors[id(labels)] = mask, int(np.count_nonzero(mask))
        return found

    def _new_size(self, axis: Axis) -> int:
        """Return how many indices of an axis survive."""
        kept = 1
        for factor in axis:
            kept *= factor.size if factor.labels is None else self._surviving(factor.labels)[1]
        return kept

    def _shrinks(self, axis: Axis) -> bool:
        for factor in axis:
            if factor.labels is not None and self._surviving(factor.labels)[1] != factor.size:
                return True
        return False

    def mask_of(self, axis: Axis) -> NDArray[np.bool_] | None:
        """Return which indices of an axis survive, or None if all do."""
        if not self._shrinks(axis):
            return None
        if len(axis) == 1:
            assert axis[0].labels is not None
            return self._surviving(axis[0].labels)[0]
        masks = [
            np.ones(f.size, dtype=bool) if f.labels is None else self._surviving(f.labels)[0]
            for f in axis
        ]
        return functools.reduce(lambda a, b: np.logical_and.outer(a, b).reshape(-1), masks)

    def kept(self, axis: Axis) -> NDArray[np.int64] | None:
        """Return the indices of an axis that survive, or None if all do."""
        mask = self.mask_of(axis)
        if mask is None:
            return None
        if len(axis) > 1:
            return mask.nonzero()[0]
        found = self._kept.get(id(axis[0].labels))
        if found is None:
            found = self._kept[id(axis[0].labels)] = mask.nonzero()[0]
        return found

    def mask(self, value: ir.Value, i: int) -> NDArray[np.bool_] | None:
        """Return which indices of a value's axis survive, or None if all do."""
        axes = self._axes(value)
        return None if axes is None else self.mask_of(axes[i])

    def new_shape(self, value: ir.Value) -> Shape:
        """Return the shape of a value after pruning."""
        shape = self._run.sizes(value)
        axes = self._axes(value)
        if axes is None:
            return shape
        return tuple(self._new_size(axis) for axis in axes)

    def new_sizes(self) -> dict[str, dict[int, int]]:
        """Return the axes that shrink of intermediate values, with their new sizes."""
        found: dict[str, dict[int, int]] = {}
        weights = initializers(self._run.graph.model)
        # Many values have the axes of another.
        by_axes: dict[int, dict[int, int]] = {}
        for key, axes in self._run.axes.items():
            if key in weights:
                continue
            sizes = by_axes.get(id(axes))
            if sizes is None:
                sizes = by_axes[id(axes)] = {
                    i: self._new_size(axis) for i, axis in enumerate(axes) if self._shrinks(axis)
                }
            if sizes:
                found[key] = sizes
        return found

    def changed_axes(self, value: ir.Value) -> list[int]:
        """Return the axes of a value that shrink."""
        before, after = self._run.sizes(value), self.new_shape(value)
        return [i for i, (b, a) in enumerate(zip(before, after, strict=True)) if a != b]

    def is_known(self, value: ir.Value) -> bool:
        """Return whether a shape tensor's elements are known."""
        return self._run.asked(value) is not None

    def old_array(self, value: ir.Value) -> np.ndarray:
        """Return a shape tensor as it was."""
        return self._run.shapes.known[value.name or ""]

    def array(self, value: ir.Value) -> np.ndarray:
        """Return a shape tensor as the edits made so far leave it."""
        key = value.name or ""
        if key in self.constants:
            return self.constants[key]
        if value.is_initializer():
            return self.old_array(value)
        if key not in self._current:
            self._current[key] = self._compute(value)
        return self._current[key]

    def require(self, node: ir.Node, i: int, wanted: np.ndarray) -> None:
        """Make a shape input of a node equal `wanted`."""
        value = node.inputs[i]
        assert value is not None
        now = self.array(value)
        if np.array_equal(now, wanted):
            return
        if now.shape != wanted.shape:
            if not value.is_initializer():
                raise PlanError(f"'{value.name}' can't change its length")
            self._set(value, wanted)
            return
        for flat in np.flatnonzero(now.reshape(-1) != wanted.reshape(-1)):
            self._demand(value, int(flat), int(wanted.reshape(-1)[flat]))
        if not np.array_equal(self.array(value), wanted):
            raise PlanError(f"'{value.name}' can't be made {wanted.tolist()}")

    def set_attribute(self, node: ir.Node, attribute: str, value: Any) -> None:
        """Set an attribute; a float becomes what ONNX stores, one of 32 bits."""
        if isinstance(value, float):
            value = float(np.float32(value))
        self.attributes.setdefault(node_name(node), {})[attribute] = value

    def run(self) -> None:
        """Apply every operator's edit, then once more to see that none undid another.

        Raises
        ------
        PlanError : an edit can't be made; `Structure` tries them all beforehand.
        """
        for node, error in self.attempt():
            raise PlanError(f"{name(node)}: {error}") from error

    def attempt(self) -> list[tuple[ir.Node, PlanError]]:
        """Apply every operator's edit, twice, and return the nodes at which that failed."""
        failed: dict[ir.Node, PlanError] = {}
        nodes = []
        for node in self._run.graph.model.graph:
            edit, when = EDITS.get((node.domain, node.op_type), (None, None))
            if edit is not None and when is not None and when(node) and self._touches(node):
                nodes.append((node, edit))
        for attempt in (1, 2):
            for node, edit in nodes:
                self._before.clear()
                try:
                    edit(self, node)
                    if attempt == 2 and self._has_changed():
                        raise PlanError("another node needs the same shape constant to differ")
                except PlanError as error:
                    failed.setdefault(node, error)
        return list(failed.items())

    def _set(self, value: ir.Value, array: np.ndarray) -> None:
        """Give a constant its new elements."""
        key = value.name or ""
        self._before.setdefault(key, self.constants.get(key))
        self.constants[key] = array

    def _has_changed(self) -> bool:
        """Return whether the constants differ from what they were before the last edit."""
        return any(
            old is None or not np.array_equal(old, self.constants[key])
            for key, old in self._before.items()
        )

    def _axes(self, value: ir.Value) -> ax.Axes | None:
        return self._run.axes.get(value.name or "")

    def _touches(self, node: ir.Node) -> bool:
        if self._run.unruled and name(node) in self._run.unruled:
            return False
        for value in (*node.inputs, *node.outputs):
            if value is None:
                continue
            for axis in (*(self._axes(value) or ()), *self._run.dims_of(value)):
                if self._shrinks(axis):
                    return True
        return False

    def _compute(self, value: ir.Value) -> np.ndarray:
        node = value.producer()
        if node is None:
            return self.old_array(value)
        by_name = {v.name: v for v in node.inputs if v is not None}

        def known(key: str) -> np.ndarray | None:
            return self.array(by_name[key]) if key in self._run.shapes.known else None

        def sizes(key: str) -> Shape | None:
            owner = by_name.get(key)
            return None if owner is None else self.new_shape(owner)

        arrays = evaluate(node, known, sizes, self._run.graph.model.opset_imports)
        if arrays is None:
            return self.old_array(value)
        return arrays[node.outputs.index(value)]

    def _demand(self, value: ir.Value, flat: int, wanted: int) -> None:
        """Rewrite the constant that one element comes from."""
        if value.is_initializer():
            changed = self.array(value).copy()
            changed.reshape(-1)[flat] = wanted
            self._set(value, changed)
            self._current.clear()
            return
        producer = value.producer()
        if producer is not None and producer.op_type in MOVED:
            found = source(value, flat, self._run.shapes, self._run.graph)
            if found is not None:
                self._demand(*found, wanted)
                return
        if (
            producer is not None
            and producer.op_type in ADJUSTED
            and self._solve(producer, value, flat, wanted)
        ):
            return
        raise PlanError(f"no constant sets '{value.name}'[{flat}] to {wanted}")

    def _solve(self, producer: ir.Node, value: ir.Value, flat: int, wanted: int) -> bool:
        """Solve ``left ∘ right = wanted`` for whichever operand can be rewritten."""
        left, right = producer.inputs[0], producer.inputs[1]
        assert left is not None
        assert right is not None
        shapes = self._run.shapes
        places = [element(v, flat, shapes, value) for v in (left, right)]
        a = int(self.array(left).reshape(-1)[places[0]])
        b = int(self.array(right).reshape(-1)[places[1]])
        operator = producer.op_type
        solutions: list[tuple[ir.Value, int, int | None]] = [
            (right, places[1], _inverse_right(operator, a, wanted)),
            (left, places[0], _inverse_left(operator, b, wanted)),
        ]
        for operand, place, solution in solutions:
            if solution is None or not self._run.adjustable(operand, place):
                continue
            try:
                self._demand(operand, place, solution)
            except PlanError:
                continue
            return True
        return False


def _inverse_right(operator: str, a: int, wanted: int) -> int | None:
    """Solve ``a ∘ x = wanted`` in integers."""
    if operator == "Add":
        return wanted - a
    if operator == "Sub":
        return a - wanted
    if operator == "Mul":
        return wanted // a if a and wanted % a == 0 else None
    return a // wanted if wanted and a % wanted == 0 else None


def _inverse_left(operator: str, b: int, wanted: int) -> int | None:
    """Solve ``x ∘ b = wanted`` in integers."""
    if operator == "Add":
        return wanted - b
    if operator == "Sub":
        return wanted + b
    if operator == "Mul":
        return wanted // b if b and wanted % b == 0 else None
    return wanted * b
