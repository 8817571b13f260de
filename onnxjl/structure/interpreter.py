"""Abstract interpretation: run the graph on labels instead of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxjl.graph import FLOATING, Graph, subgraphs
from onnxjl.structure import axes as ax
from onnxjl.structure.axes import Axes, Axis
from onnxjl.structure.labels import MOST_OF_ONE, Kind, Labels, TooMany
from onnxjl.structure.names import node_name
from onnxjl.structure.rules import RULES, Unruled
from onnxjl.structure.shapes import ADJUSTED, MOVED, Shapes, evaluate
from onnxjl.structure.trace import adjustable, data_inputs

_NONE: Mapping[int, Axis] = {}


@dataclass(frozen=True, eq=False)
class Product:
    """A contraction, for costs and for where activations are consumed.

    Parameters
    ----------
    node : the operator.
    coefficient : plain part of its multiply–accumulates.
    axes : the axes whose sizes multiply it.
    consumed : (value, axis index) of each input that the contraction sums over.
    """

    node: ir.Node
    coefficient: int
    axes: tuple[Axis, ...]
    consumed: tuple[tuple[ir.Value, int], ...]


class Interpreter:
    """One run of the graph on labels.

    Parameters
    ----------
    graph : normalized.
    shapes : its concrete shapes.
    choices : for reshapes that leave open which factor is the unit, the position of the one chosen.
    """

    def __init__(self, graph: Graph, shapes: Shapes, choices: dict[str, int]) -> None:
        self.graph = graph
        self.shapes = shapes
        self.choices = choices
        self.labels = Labels(shapes.stored)
        self.axes: dict[str, Axes] = {}
        self.products: list[Product] = []
        self.head_votes: dict[str, int] = {}
        self.group_votes: dict[str, int] = {}
        self.unruled: dict[str, str] = {}
        # Values of unknown shape -> the node that it was lost at.
        self._lost: dict[str, str] = {}
        self._computed: set[str] = set()
        self._met: tuple[ir.Node | None, int] = (None, 0)
        self._dims: dict[str, np.ndarray] = {}
        self._dim_axes: list[tuple[Axis, ...]] = [()]
        self._run()

    # What rules use

    def why(self, text: str) -> int:
        """Return the number of a reason."""
        return self.labels.reason(text)

    def of(self, value: ir.Value | None, partners: Mapping[int, Axis] = _NONE) -> Axes:
        """Return the axes of a value; raise `Unruled` if its shape isn't known.

        Parameters
        ----------
        partners : for axes of the value, each an axis that it is about to be united with. A weight
            that nothing else has used takes that axis for its own, which saves its labels.
        """
        key = None if value is None else value.name
        if value is None or not key:
            raise Unruled("an input that it needs is missing")
        found = self.axes.get(key)
        if found is None:
            if not value.is_initializer():
                raise Unruled(self._no_shape(value))
            found = self.axes[key] = self._weight_axes(value, partners)
        return found

    def sizes(self, value: ir.Value) -> tuple[int, ...]:
        """Return the concrete shape of a value."""
        shape = self.shapes.sizes.get(value.name or "")
        if shape is None:
            raise Unruled(self._no_shape(value))
        return shape

    def why_unruled(self, node: ir.Node) -> str | None:
        """Return why no rule treats a node, and which node it is; None if one does."""
        why = self.unruled.get(name(node))
        return None if why is None else f"{name(node)}: {why}"

    def _no_shape(self, value: ir.Value) -> str:
        where = self._lost.get(value.name or "")
        return f"the shape of '{value.name}' isn't known" + (f", behind {where}" if where else "")

    def known(self, value: ir.Value | None) -> np.ndarray | None:
        """Return the value of a shape tensor, or None if it isn't known or only supposed."""
        if value is None or value.name in self.shapes.supposed:
            return None
        return self.asked(value)

    def asked(self, value: ir.Value | None) -> np.ndarray | None:
        """Return the sizes that a shape tensor asks for, also where some are supposed."""
        return None if value is None or not value.name else self.shapes.known.get(value.name)

    def set(self, value: ir.Value, axes: Iterable[Axis]) -> None:
        """Give a value its axes; they must agree with its shape."""
        axes = tuple(axes)
        if tuple(map(ax.size, axes)) != self.sizes(value):
            raise Unruled(f"the shape of '{value.name}' isn't what its rule expects")
        assert value.name is not None
        self.axes[value.name] = axes

    def unite(self, a: Axis, b: Axis, node: ir.Node) -> Axis:
        """Unite two axes of equal size."""
        if a is b:
            return a
        if ax.size(a) != ax.size(b):
            raise Unruled("its inputs' shapes disagree")
        if not (a and b):
            return a
        plain = len(a) == len(b) == 1 and a[0].labels is None and b[0].labels is None
        if plain and a[0].tags == b[0].tags:  # such factors may still be tagged as heads
            return a if a[0].reason else b
        return ax.unite(self.labels, a, b, self._meeting(node))

    def _meeting(self, node: ir.Node) -> int:
        """Return the reason for units that meet a plain axis at a node."""
        if node is not self._met[0]:
            self._met = (node, self.why(f"meets an axis that can't shrink at {name(node)}"))
        return self._met[1]

    def unite_all(self, axes: Sequence[Axis], node: ir.Node) -> Axis:
        """Unite axes that broadcast together: those of size 1 don't count, unless all are."""
        wide = [a for a in axes if a]
        if not wide:
            return ()
        result = wide[0]
        for other in wide[1:]:
            if other is not result:
                result = self.unite(result, other, node)
        return result

    def unite_parameter(self, axis: Axis, value: ir.Value | None, node: ir.Node) -> Axis:
        """Unite an axis with a parameter that has one number for each of its indices."""
        return self.unite(axis, self.of(value, {0: axis})[0], node)

    def fix(self, axis: Axis, why: str) -> Axis:
        """Fix the units of an axis."""
        if ax.has_labels(axis):
            ax.fix(self.labels, axis, self.why(why))
        return axis

    def fix_value(self, value: ir.Value | None, why: str) -> None:
        """Fix the units of all axes of a value."""
        if value is None or not value.name:
            return
        if value.is_initializer() or value.name in self.axes:
            for axis in self.of(value):
                self.fix(axis, why)

    def inexact(self, axis: Axis, node: ir.Node, why: str = "takes statistics over it") -> None:
        """Mark units whose removal changes what this node makes of the others."""
        reason = self.why(f"{name(node)} {why}")
        for factor in axis:
            if factor.labels is not None:
                self.labels.mark_inexact(factor.labels, reason)

    def mark_kind(self, axis: Axis, kind: Kind) -> None:
        """Mark the units of an axis as heads or head features."""
        for factor in axis:
            if factor.labels is not None:
                self.labels.mark_kind(factor.labels, kind)

    def vote_heads(self, *axes: Axis) -> None:
        """Note that the tagged factors of a batch axis of two activations are heads, in each."""
        self.head_votes.update(tag for axis in axes for factor in axis for tag in factor.tags)

    def vote_groups(self, axis: Axis) -> None:
        """Note that the tagged factors of an axis are groups with statistics of their own."""
        self.group_votes.update(tag for factor in axis for tag in factor.tags)

    def fresh(self, size: int) -> Axis:
        """Return an axis with labels of its own."""
        if not self.labels.has_room(size):
            raise Unruled(f"it has too many indices ({size:,}) to be told apart")
        return () if size == 1 else ax.labelled(self.labels.fresh(size))

    def copies(self, size: int) -> Axis:
        """Return an axis with labels of its own, whose indices are copies of one another."""
        return tuple(replace(factor, copied=True) for factor in self.fresh(size))

    def reshape(self, axes: Axes, sizes: Sequence[int], node: ir.Node, block: str = "") -> Axes:
        """Return the axes of a row-major reshape."""
        elements = math.prod(ax.size(axis) for axis in axes)
        if elements != math.prod(sizes) or elements == 0:
            raise Unruled("its input and its output don't have the same elements")
        return ax.regroup(
            self.labels,
            axes,
            sizes,
            f"{node.outputs[0].name}{block}",
            self.choices,
            self.why(f"no rectangular block holds it at {name(node)}"),
        )

    def is_computed(self, value: ir.Value) -> bool:
        """Return whether a value is an activation: not a constant, nor made of constants alone."""
        return value.name in self._computed

    def vector(self, axis: Axis) -> np.ndarray | None:
        """Return one label for each index, or None for a plain axis."""
        return ax.expand(self.labels, axis)

    def adjustable(self, value: ir.Value | None, index: int) -> bool:
        """Return whether an element of a shape tensor can be rewritten, or follows by itself."""
        return value is not None and adjustable(value, index, self.shapes, self.graph)

    def product(
        self,
        node: ir.Node,
        coefficient: int,
        axes: Sequence[Axis],
        consumed: Sequence[tuple[ir.Value, int]],
    ) -> None:
        """Record a contraction."""
        self.products.append(Product(node, coefficient, tuple(axes), tuple(consumed)))

    # The run

    def _weight_axes(self, value: ir.Value, partners: Mapping[int, Axis]) -> Axes:
        tensor = value.const_value
        assert tensor is not None
        shape = self.shapes.sizes[value.name or ""]
        if tensor.dtype not in FLOATING:
            reason = self.why(f"'{value.name}' holds {tensor.dtype.name.lower()}, not real numbers")
            return tuple(ax.plain(d, reason) for d in shape)
        if not self.labels.has_room(sum(shape)):
            reason = self.why(f"'{value.name}' has too many indices to be told apart")
            return tuple(ax.plain(d, reason) for d in shape)
        return tuple(
            partner
            if (partner := partners.get(i, ())) and _can_stand_for(partner, size)
            else self.fresh(size)
            for i, size in enumerate(shape)
        )

    def _run(self) -> None:
        model = self.graph.model
        for value in model.graph.inputs:
            if not value.name or value.is_initializer():
                continue
            self._computed.add(value.name)
            if value.name in self.shapes.sizes:
                reason = self.why(f"network input '{value.name}'")
                shape = self.shapes.sizes[value.name]
                self.axes[value.name] = tuple(ax.plain(d, reason) for d in shape)
        for node in model.graph:
            self._step(node)
            for value in node.outputs:
                if value.is_graph_output():
                    # Now, for what comes later depends on which units can go.
                    self.fix_value(value, f"network output '{value.name}'")
            if any(value is not None and value.name in self._computed for value in node.inputs):
                self._computed.update(value.name for value in node.outputs if value.name)
        for value in model.graph.outputs:
            self.fix_value(value, f"network output '{value.name}'")
            self._fix_dims(value, f"network output '{value.name}'")

    def _step(self, node: ir.Node) -> None:
        try:
            self._interpret(node)
        except (Unruled, TooMany) as problem:
            self._give_up(node, str(problem))
        except Exception as error:
            # ONNX's checker doesn't look at ranks and sizes: an invalid node fails in any way.
            said = f" ({type(error).__name__}: {' '.join(str(error).split())})"
            self._give_up(node, f"its inputs or attributes don't fit the operator{said}")

    def _interpret(self, node: ir.Node) -> None:
        for value in _captured(node):
            self.fix_value(value, f"used inside {name(node)}")
            self._fix_dims(value, f"used inside {name(node)}")
        if self._is_shape_arithmetic(node):
            self._shape_step(node)
            return
        self._fix_misused_dims(node)
        rule = RULES.get((node.domain, node.op_type))
        if rule is None:
            raise Unruled("there is no rule for this operator")
        for value in node.outputs:
            longest = max(self.shapes.sizes.get(value.name or "", ()), default=0)
            if longest > MOST_OF_ONE and self._carries_labels(node):
                raise TooMany(f"'{value.name}' has too many indices ({longest:,}) to be told apart")
        rule(self, node)

    def _carries_labels(self, node: ir.Node) -> bool:
        """Return whether an input of a node has units, or is a weight that will have some."""
        for value in node.inputs:
            if value is not None and value.name:
                axes = self.axes.get(value.name)
                if value.is_initializer() if axes is None else any(map(ax.has_labels, axes)):
                    return True
        return False

    def _give_up(self, node: ir.Node, why: str) -> None:
        """Fix all that a node touches: it costs prunability, never correctness."""
        self.unruled[name(node)] = why
        text = f"{name(node)}: {why}"
        self._fix_all(node, text)
        reason = self.why(text)
        for value in node.outputs:
            shape = self.shapes.sizes.get(value.name or "")
            if value.name and shape is not None:
                self.axes[value.name] = tuple(ax.plain(d, reason) for d in shape)
            elif value.name:
                self.axes.pop(value.name, None)
                before = (self._lost.get(v.name or "") for v in node.inputs if v is not None)
                self._lost[value.name] = next(filter(None, before), name(node))

    def withdraw(self, node: ir.Node, why: str) -> None:
        """Fix, after the run, all that a node touches."""
        self._fix_all(node, f"{name(node)}: {why}")

    def _fix_all(self, node: ir.Node, why: str) -> None:
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                self.fix_value(value, why)
                self._fix_dims(value, why)

    # Shape arithmetic: which elements depend on axes with labels

    def _is_shape_arithmetic(self, node: ir.Node) -> bool:
        if node.op_type in _CONTRACTIONS:
            return False  # a product of numbers is still one of the network's
        if node.op_type == "Expand" and node.inputs[1] is not None and self.dims_of(node.inputs[1]):
            return False  # what it makes may shrink with the axes that its sizes come from
        found = False
        for value in node.outputs:
            if value.name:
                array = self.shapes.known.get(value.name)
                if value.name in self.shapes.decided:
                    return False
                if array is None or (array.dtype.kind not in "iub" and array.size != 1):
                    return False
                found = True
        return found

    def _shape_step(self, node: ir.Node) -> None:
        for output in node.outputs:
            if output.name:
                self.axes[output.name] = tuple(ax.plain(d) for d in self.sizes(output))
        if node.op_type in ("Shape", "Size") and node.domain == "":
            self._note_dims(node)
            return
        why = f"its size is computed with at {name(node)}"
        for value in node.inputs:
            self.fix_value(value, why)
        touched = [v for v in node.inputs if v is not None and v.name in self._dims]
        if not touched:
            return
        first = self.shapes.known.get(node.outputs[0].name or "")
        if first is not None and first.dtype.kind in "iu" and node.op_type in MOVED:
            for given in touched:
                if given.name not in data_inputs(node):
                    self._fix_dims(given, why)
            self._move_dims(node)
        elif first is not None and first.dtype.kind in "iu" and node.op_type in ADJUSTED:
            self._combine_dims(node)
        else:
            for given in touched:
                self._fix_dims(given, why)

    def _note_dims(self, node: ir.Node) -> None:
        value = node.inputs[0]
        if value is None or (value.name not in self.axes and not value.is_initializer()):
            return
        axes = self.of(value)
        output = node.outputs[0].name or ""
        if node.op_type == "Size":
            together = tuple(a for a in axes if ax.has_labels(a))
            if together:
                self._dims[output] = np.array([self._dim(together)]).reshape(())
            return
        start = node.attributes.get_int("start", 0)
        end = node.attributes.get_int("end", len(axes))
        numbers = [self._dim((a,)) if ax.has_labels(a) else 0 for a in axes[start:end]]
        if any(numbers):
            self._dims[output] = np.array(numbers, dtype=np.int64)

    def _dim(self, axes: tuple[Axis, ...]) -> int:
        self._dim_axes.append(axes)
        return len(self._dim_axes) - 1

    def _move_dims(self, node: ir.Node) -> None:
        data = data_inputs(node)

        def feed(value_name: str) -> np.ndarray | None:
            array = self.shapes.known.get(value_name)
            if array is None or value_name not in data:
                return array
            return self._dims.get(value_name, np.zeros(array.shape, dtype=np.int64))

        moved = evaluate(node, feed, self.shapes.sizes.get, self.graph.model.opset_imports)
        if moved is None:
            self._fix_all(node, f"its size is computed with at {name(node)}")
            return
        for value, numbers in zip(node.outputs, moved, strict=False):
            if value.name and numbers.any():
                self._dims[value.name] = numbers.astype(np.int64)

    def _combine_dims(self, node: ir.Node) -> None:
        output = node.outputs[0]
        shape = self.sizes(output)
        parts = [
            np.broadcast_to(self._dims[v.name], shape)
            for v in node.inputs
            if v is not None and v.name in self._dims
        ]
        result = np.zeros(shape, dtype=np.int64)
        for index in np.ndindex(*shape):
            together = tuple(a for part in parts for a in self._dim_axes[part[index]])
            result[index] = self._dim(together) if together else 0
        self._dims[output.name or ""] = result

    def dims_of(self, value: ir.Value) -> list[Axis]:
        """Return the axes whose sizes a shape tensor is computed from."""
        numbers = self._dims.get(value.name or "")
        if numbers is None:
            return []
        return [axis for number in np.unique(numbers) for axis in self._dim_axes[number]]

    def measured(self, value: ir.Value, index: int) -> Axis | None:
        """Return the axis whose size an element of a shape tensor is, if it is that of one."""
        numbers = self._dims.get(value.name or "")
        if numbers is None or not numbers[index]:
            return None
        axes = self._dim_axes[numbers[index]]
        return axes[0] if len(axes) == 1 else None

    def _fix_dims(self, value: ir.Value, why: str) -> None:
        for axis in self.dims_of(value):
            self.fix(axis, why)

    def _fix_misused_dims(self, node: ir.Node) -> None:
        """Sizes may steer shapes, which are rewritten, but not become data."""
        if not self._dims:
            return
        for position, value in enumerate(node.inputs):
            if (
                value is not None
                and value.name in self._dims
                and position not in SHAPE_INPUTS.get(node.op_type, ())
            ):
                self._fix_dims(value, f"its size is computed with at {name(node)}")


_CONTRACTIONS = frozenset("Conv ConvTranspose Einsum GRU Gemm LSTM MatMul RNN".split())

# Inputs that are shapes, bounds or sizes: what their rules rewrite when a plan is made.
SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "ConstantOfShape": (0,),
    "Slice": (1, 2),
    "Split": (1,),
    "Pad": (1,),
    "Resize": (3,),
    "Tile": (1,),
}


def _can_stand_for(axis: Axis, size: int) -> bool:
    """Return whether an axis says all that uniting with it would say of an axis of fresh labels."""
    factor = axis[0]
    told = factor.labels is not None or factor.reason != 0
    return len(axis) == 1 and factor.size == size and told


def name(node: ir.Node) -> str:
    """Return how a node is called in reasons."""
    return f"{node.op_type} '{node_name(node)}'"


def _captured(node: ir.Node) -> list[ir.Value]:
    """Return the values of the outer graph that a node's subgraphs use."""
    found: list[ir.Value] = []
    for graph in subgraphs(node):
        for inner in graph.all_nodes():
            found.extend(v for v in inner.inputs if v is not None and v.graph is not graph)
        found.extend(graph.outputs)
    return found
