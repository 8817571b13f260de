"""Concrete shapes of every value, and shape arithmetic, for one choice of input shapes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxjl.graph import FLOATING, Graph, initializers
from onnxjl.inputs import sample_shapes
from onnxjl.normalize.polynomial import evaluated
from onnxjl.normalize.shape_rules import OUTPUTS

Shape = tuple[int, ...]

# Operators that only move elements, with the inputs whose elements they move (all, if None).
MOVED: dict[str, tuple[int, ...] | None] = {
    "Cast": (0,),
    "Concat": None,
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "Identity": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}
# Operators of two numbers that can be solved for a constant one.
ADJUSTED = frozenset({"Add", "Sub", "Mul", "Div"})

# Shape arithmetic works on a few numbers; tables of indices (relative positions, channel
# shuffles) on some thousands. Larger integer tensors are data.
MOST_ELEMENTS = 65_536
# The scales of a resize are floats that shapes follow from.
_SCALES = 16
# Tensors of sizes have no more elements than axes, and are worked out in few steps.
_MOST_AXES, _MOST_STEPS = 16, 100
# What sizes are supposed to be, in turn: primes, which no widths are and no products of widths.
_SUPPOSED = (
    *(101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151),
    *(157, 163, 167, 173, 179, 181, 191, 193, 197, 199),
)
_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})
# Inputs whose numbers decide a size, where nothing else tells it.
_DECIDING: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Tile": (1,),
    "TopK": (1,),
}
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}
)


class Shapes:
    """Shapes and shape arithmetic of a graph at its sample input shapes.

    Sizes that data decide (how many boxes are left, how long speech gets) are supposed to be primes
    from 101 to 199, each another one, until they begin again.

    Parameters
    ----------
    graph : normalized.

    Attributes
    ----------
    sizes : value name -> concrete shape; a value whose shape isn't known is missing.
    known : value name -> array, for integer constants, float scalars, and all that is computed
        from them and from shapes.
    supposed : names of those in `known` that supposed sizes, or shapes behind them, enter.
    decided : names of those in `supposed` that data decide.
    supposed_sizes : the sizes that are supposed.
    stored : bytes of all weights.
    """

    def __init__(self, graph: Graph) -> None:
        self.stored = 0
        self.sizes: dict[str, Shape] = {}
        self.known: dict[str, np.ndarray] = {}
        self.supposed: set[str] = set()
        self.decided: set[str] = set()
        self.supposed_sizes: list[int] = []
        # Values that are computed from what has a supposed size.
        self._behind: set[str] = set()
        # Nodes that do the same -> the shape of their output, where some of it is supposed.
        self._alike: dict[tuple[object, ...], Shape] = {}
        self._types: dict[str, int] = {}
        model = graph.model
        inputs = sample_shapes(graph)
        self.sizes.update(inputs)
        for name, value in initializers(model).items():
            tensor = value.const_value
            if tensor is None:
                continue
            shape, dtype = cast(Shape, tensor.shape.dims), tensor.dtype
            elements = math.prod(shape)
            self.sizes[name] = shape
            self._types[name] = int(dtype)
            if dtype != ir.DataType.STRING:
                self.stored += math.ceil(elements * dtype.itemsize)
            if _is_shape_constant(dtype, elements):
                self.known[name] = tensor.numpy()
        for value in model.graph.inputs:
            if value.name is not None and value.dtype is not None:
                self._types[value.name] = int(value.dtype)
        if not self._take_declared(model):
            self._infer_whole(model, inputs)
        self._walk(model)

    def _take_declared(self, model: ir.Model) -> bool:
        """Take the shapes that normalization inferred; return whether they are all concrete.

        Named dimensions of the inputs have their sample sizes, and so have products of them.
        """
        symbols: dict[str, int] = {}
        for value in model.graph.inputs:
            concrete = self.sizes.get(value.name or "", ())
            for dim, size in zip(value.shape or (), concrete, strict=False):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    symbols.setdefault(str(dim.value), size)
        words = all(map(str.isidentifier, symbols))

        def size_of(dim: ir.SymbolicDim) -> int | None:
            name = str(dim.value)
            if name not in symbols and words and (size := evaluated(name, symbols)) is not None:
                symbols[name] = size
            return symbols.get(name)

        found: dict[str, Shape] = {}
        for node in model.graph:
            for value in node.outputs:
                if not value.name:
                    continue
                if value.shape is None or value.dtype is None:
                    return False
                sizes = tuple(dim if isinstance(dim, int) else size_of(dim) for dim in value.shape)
                if None in sizes:
                    return False
                found[value.name] = cast(Shape, sizes)
                self._types[value.name] = int(value.dtype)
        self.sizes.update(found)
        return True

    def _infer_whole(self, model: ir.Model, inputs: Mapping[str, Shape]) -> None:
        """Run ONNX's shape inference on a copy without weights, at the sample shapes."""
        graph = onnx.GraphProto(name="shapes")
        graph.node.extend(ir.serde.serialize_node(node) for node in model.graph)
        for value in model.graph.inputs:
            if value.name is not None and value.name in inputs and value.dtype is not None:
                graph.input.append(
                    onnx.helper.make_tensor_value_info(
                        value.name, int(value.dtype), inputs[value.name]
                    )
                )
        for name, value in initializers(model).items():
            tensor = value.const_value
            if tensor is None:
                continue
            if (name in self.known and tensor.nbytes <= 1024) or tensor.size <= _SCALES:
                graph.initializer.append(ir.serde.serialize_tensor(tensor))
                graph.initializer[-1].name = name
            elif name not in inputs:
                graph.input.append(
                    onnx.helper.make_tensor_value_info(name, int(tensor.dtype), self.sizes[name])
                )
        proto = onnx.ModelProto(ir_version=10, graph=graph)
        for domain, version in model.opset_imports.items():
            proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
        inferred = onnx.shape_inference.infer_shapes(proto)  # No data propagation: see `fold`.
        for info in (*inferred.graph.value_info, *inferred.graph.output):
            self._take(info.name, info.type)

    def _take(self, name: str, kind: onnx.TypeProto) -> None:
        if not kind.HasField("tensor_type"):
            return
        tensor = kind.tensor_type
        if tensor.elem_type:
            self._types[name] = tensor.elem_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            self.sizes.setdefault(name, tuple(d.dim_value for d in tensor.shape.dim))

    def _walk(self, model: ir.Model) -> None:
        """Compute shape arithmetic, and infer again the shapes that depended on it."""
        versions = model.opset_imports
        for node in model.graph:
            outputs = [v.name for v in node.outputs if v.name]
            if any(name not in self.sizes for name in outputs):
                for i in _DECIDING.get(node.op_type, ()) if node.domain == "" else ():
                    if i < len(node.inputs):
                        self._suppose(node.inputs[i], versions)
                self._infer_node(node, versions)
                self._suppose_declared(node)
            if self._behind and any(v is not None and v.name in self._behind for v in node.inputs):
                self._behind.update(outputs)
            self._compute(node, versions)

    def _compute(self, node: ir.Node, versions: Mapping[str, int]) -> bool:
        """Compute a node's outputs if it is shape arithmetic; return whether it is."""
        computed = evaluate(node, self.known.get, self.sizes.get, versions)
        if computed is None:
            return False
        supposed = any(
            value is not None
            and (value.name in self.supposed or (value.name in self._behind and _measures(node)))
            for value in node.inputs
        )
        for value, array in zip(node.outputs, computed, strict=False):
            if value.name:
                self.known[value.name] = array
                self.sizes[value.name] = array.shape
                kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                self._types.setdefault(value.name, int(kind))
                if supposed:
                    self.supposed.add(value.name)
                    self._behind.add(value.name)
        return True

    # Sizes that data decide

    def _suppose_size(self) -> int:
        """Return the next size that is supposed."""
        size = _SUPPOSED[len(self.supposed_sizes) % len(_SUPPOSED)]
        self.supposed_sizes.append(size)
        return size

    def _suppose(self, value: ir.Value | None, versions: Mapping[str, int], steps: int = 0) -> bool:
        """Suppose numbers for a tensor of sizes; return whether it has some then.

        `steps` says how many lie between it and the size.
        """
        name = "" if value is None else value.name or ""
        if name in self.known:
            return True
        shape = self.sizes.get(name)
        kind = ir.DataType(self._types.get(name, 0))
        if value is None or shape is None or kind not in _INTEGERS or math.prod(shape) > _MOST_AXES:
            return False
        node = value.producer()
        arithmetic = node is not None and node.domain == "" and steps < _MOST_STEPS
        if node is not None and arithmetic and self._suppose_inputs(node, versions, steps + 1):
            return True
        primes = [self._suppose_size() for _ in range(math.prod(shape))]
        self.known[name] = np.array(primes, kind.numpy()).reshape(shape)
        self.supposed.add(name)
        self.decided.add(name)
        self._behind.add(name)
        return True

    def _suppose_inputs(self, node: ir.Node, versions: Mapping[str, int], steps: int) -> bool:
        """Suppose what a node that moves or adds up numbers works on; return whether it can then.

        The axes and positions that it works with must be known, or follow from what is supposed, as
        where PyTorch takes ones instead of sizes that are −1.
        """
        if node.op_type not in MOVED and node.op_type not in ADJUSTED:
            return False
        moved = MOVED.get(node.op_type) or range(len(node.inputs))
        if not all(self._suppose(node.inputs[i], versions, steps) for i in moved):
            return False
        for i, given in enumerate(node.inputs):
            if i in moved or given is None or given.name in self.known:
                continue
            producer = given.producer()
            if producer is None or not self._compute(producer, versions):
                return False
        return self._compute(node, versions)

    def _suppose_dims(self, node: ir.Node, output: int, dims: Sequence[int | None]) -> None:
        """Give a node's output its shape, of which sizes that are None are supposed.

        They are the same for all nodes that do the same.
        """
        name = node.outputs[output].name
        if not name or name in self.sizes:
            return
        inputs = [None if value is None else value.name for value in node.inputs]
        alike = (node.domain, node.op_type, *inputs, *map(repr, _attributes(node)), output)
        shape = self._alike.get(alike)
        if shape is None:
            shape = tuple(self._suppose_size() if d is None else d for d in dims)
            self._alike[alike] = shape
        self.sizes[name] = shape
        self._behind.add(name)

    def _suppose_declared(self, node: ir.Node) -> None:
        """Take what normalization inferred of values that subgraphs make."""
        if not any(a.type == ir.AttributeType.GRAPH for a in _attributes(node)):
            return
        for i, value in enumerate(node.outputs):
            if value.name and value.shape is not None and value.dtype is not None:
                self._types.setdefault(value.name, int(value.dtype))
                dims = [dim if isinstance(dim, int) else None for dim in value.shape]
                self._suppose_dims(node, i, dims)

    def _infer_node(self, node: ir.Node, versions: Mapping[str, int]) -> None:
        names = [v.name for v in node.inputs if v is not None and v.name]
        if any(name not in self.sizes or name not in self._types for name in names):
            return
        if (node.domain, node.op_type) in OUTPUTS:
            inputs = {i: v.name or "" for i, v in enumerate(node.inputs) if v is not None}
            found = OUTPUTS[node.domain, node.op_type](
                node, lambda i: self.sizes.get(inputs.get(i, ""))
            )
            for i, (dims, kind) in found.items():
                key = node.outputs[i].name if i < len(node.outputs) else None
                if key and dims is not None and all(isinstance(dim, int) for dim in dims):
                    self.sizes[key] = cast(Shape, tuple(dims))
                    given = isinstance(kind, ir.DataType)
                    self._types[key] = int(kind) if given else self._types[inputs[kind]]
            return
        try:
            schema = onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain)
            inferred = onnx.shape_inference.infer_node_outputs(
                schema,
                ir.serde.serialize_node(node),
                {
                    name: onnx.helper.make_tensor_type_proto(self._types[name], self.sizes[name])
                    for name in names
                },
                {
                    name: onnx.numpy_helper.from_array(self.known[name], name)
                    for name in names
                    if name in self.known
                },
                opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in versions.items()],
                ir_version=10,
            )
        except Exception:
            # Whatever it is, the shape stays unknown, which costs prunability only.
            return
        for i, value in enumerate(node.outputs):
            proto = inferred.get(value.name or "")
            if proto is None:
                continue
            self._take(value.name or "", proto)
            if proto.HasField("tensor_type") and proto.tensor_type.HasField("shape"):
                sizes = proto.tensor_type.shape.dim
                told = [d.dim_value if d.HasField("dim_value") else None for d in sizes]
                self._suppose_dims(node, i, self._of_slice(node) or told)

    def _of_slice(self, node: ir.Node) -> list[int | None] | None:
        """Return the sizes that are left where a `Slice` has unknown bounds: ONNX tells none."""
        if node.op_type != "Slice" or node.domain != "" or len(node.inputs) < 4:
            return None
        data, axes = (value.name if value else "" for value in (node.inputs[0], node.inputs[3]))
        if data not in self.sizes or axes not in self.known:
            return None
        sizes: list[int | None] = [*self.sizes[data]]
        for axis in self.known[axes].reshape(-1):
            sizes[int(axis)] = None
        return sizes


def _measures(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in ("Shape", "Size")


def _is_shape_constant(dtype: ir.DataType, elements: int) -> bool:
    """Return whether a constant takes part in shape arithmetic: few integers, or a float scalar."""
    if dtype in FLOATING:
        return elements == 1
    return dtype != ir.DataType.STRING and elements <= MOST_ELEMENTS


def evaluate(
    node: ir.Node,
    known: Callable[[str], np.ndarray | None],
    sizes: Callable[[str], Shape | None],
    versions: Mapping[str, int],
) -> Sequence[np.ndarray] | None:
    """Compute a node's outputs if it is shape arithmetic on known values, else return None."""
    if _measures(node):
        return _shape_or_size(node, sizes)
    if node.domain != "" or node.op_type in _RANDOM or not node.outputs:
        return None
    feeds: dict[str, np.ndarray] = {}
    for value in node.inputs:
        if value is None or not value.name:
            continue
        array = known(value.name)
        if array is None:
            return None
        feeds[value.name] = array
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in _attributes(node)):
        return None
    for value in node.outputs:
        shape = sizes(value.name) if value.name else ()
        # A shape that isn't known yet is one that depends on values: a huge one is refused by
        # the numbers that ask for it.
        if shape is not None and math.prod(shape) > MOST_ELEMENTS:
            return None
    if node.op_type in ("Range", "ConstantOfShape", "Expand", "Tile", "OneHot") and _asks_for_much(
        node.op_type, list(feeds.values())
    ):
        return None
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            evaluator = ReferenceEvaluator(ir.serde.serialize_node(node), opsets=dict(versions))
            result = evaluator.run(None, feeds)
    except Exception:
        return (
            None  # whatever the reference can't compute isn't known, which costs prunability only
        )
    return [np.asarray(array) for array in result]


def _attributes(node: ir.Node) -> Sequence[Any]:
    return list(node.attributes.values())


def _shape_or_size(
    node: ir.Node, sizes: Callable[[str], Shape | None]
) -> Sequence[np.ndarray] | None:
    value = node.inputs[0]
    shape = sizes(value.name) if value is not None and value.name else None
    if shape is None:
        return None
    if node.op_type == "Size":
        return [np.array(math.prod(shape), dtype=np.int64)]
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(shape))
    return [np.array(shape[start:end], dtype=np.int64)]


def _asks_for_much(operator: str, arrays: list[np.ndarray]) -> bool:
    numbers = [np.asarray(a, dtype=np.float64) for a in arrays if a.dtype != bool]
    if operator == "Range" and len(numbers) == 3:
        start, limit, delta = (float(n.reshape(-1)[0]) for n in numbers)
        return delta == 0 or abs((limit - start) / delta) > MOST_ELEMENTS
    asked = numbers[-1] if operator != "OneHot" else numbers[min(1, len(numbers) - 1)]
    elements = float(np.prod(np.abs(asked))) if asked.size else 1.0
    data = arrays[0].size if operator in ("Expand", "Tile", "OneHot") else 1
    return elements * data > MOST_ELEMENTS
