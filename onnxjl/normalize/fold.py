"""Infer shapes and fold what is constant, shape arithmetic over known dimensions included."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxjl.normalize.evaluate import SYMBOLIC, evaluate
from onnxjl.normalize.polynomial import Polynomial
from onnxjl.normalize.shape_rules import OUTPUTS, RULES, Dims
from onnxjl.normalize.surgery import Names, add_initializer, is_constant
from onnxjl.proto import weightless

# A folded result may not be larger than this (in bytes) unless what it is made of is; one that
# `ConstantOfShape` fills costs nothing until it is written. All results together may take more
# memory than this only if the weights do.
_LIMIT, _FILL_LIMIT, _TOTAL_LIMIT = 1 << 20, 1 << 27, 1 << 28

# Operators whose results are views: however large an input claims to be, they cost nothing.
_VIEWS = frozenset("Expand Identity Slice Squeeze Transpose Unsqueeze".split())

# What onnx's reference implementation computes element by element, in Python.
_SLOW = frozenset("GatherND Pad Resize ReverseSequence ScatterElements ScatterND".split())
_SLOW_LIMIT = 1 << 16

# Initializers up to this size (in bytes) may be stored twice.
_SMALL = 4096

# Integers with more elements than this are data, not shapes.
_SHAPE_LIMIT = 64

_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}

# Operators that take a shape, and as which input.
_TARGETS = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1}

# What keeps the elements of a weight, and their number: operator -> suffix of its name.
_REARRANGED = {
    "Cast": "cast",
    "Flatten": "reshaped",
    "Identity": "copy",
    "Reshape": "reshaped",
    "Squeeze": "reshaped",
    "Transpose": "transposed",
    "Unsqueeze": "reshaped",
}


def fold(model: ir.Model) -> ir.Model:
    """Infer all types and shapes anew; evaluate what they and the constants determine.

    Declared shapes, except the inputs', are forgotten: files declare wrong ones. A dimension that
    isn't a number becomes a symbol or, where it follows from others, an expression such as
    ``12*batch``; unnamed dimensions of inputs get a name. A `Reshape` whose target has at most one
    number that isn't known, besides dimensions of its input that stay, gets a constant target.

    Folding duplicates no large weight, keeps embedding tables (a `Gather` from a matrix), and
    undoes no quantization. Subgraphs are left alone.
    """
    _name_dimensions(model.graph)
    _infer(model)
    _Walk(model).run()
    return model


def _name_dimensions(graph: ir.Graph) -> None:
    """Name the unknown dimensions of inputs, so that two uses of one can be recognized."""
    used = {
        dim.value
        for value in graph.inputs
        for dim in value.shape or ()
        if isinstance(dim, ir.SymbolicDim)
    }
    for value in graph.inputs:
        if value.shape is None or value.name in graph.initializers:
            continue
        dims: list[int | ir.SymbolicDim] = []
        for axis, dim in enumerate(value.shape):
            if (isinstance(dim, int) and dim < 0) or dim == ir.SymbolicDim(None):
                name = re.sub(r"\W", "_", f"{value.name}_dim_{axis}")
                while name in used:
                    name += "_"
                used.add(name)
                dim = ir.SymbolicDim(name)
            dims.append(dim)
        value.shape = ir.Shape(dims)


def _infer(model: ir.Model) -> None:
    """ONNX's own shape inference, with nothing declared but the inputs."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.shape = ir.Shape(value.const_value.shape.numpy())
            value.type = ir.TensorType(value.const_value.dtype)
    declared = {output: output.shape for output in graph.outputs if output.producer() is not None}
    for node in graph:
        for output in node.outputs:
            output.shape = None
            if output not in declared:
                output.type = None
    # Without its data propagation, which writes out every 1-D value, however long it says it is;
    # the walk that follows computes with shapes itself.
    inferred = onnx.shape_inference.infer_shapes(weightless(model)).graph
    found = {info.name: info.type for info in [*inferred.value_info, *inferred.output]}
    for node in graph:
        for output in node.outputs:
            proto = found.get(output.name or "")
            if proto is not None:
                known = ir.serde.deserialize_type_proto_for_type(proto)
                output.type = output.type if known is None else known
                output.shape = ir.serde.deserialize_type_proto_for_shape(proto)
    for output, shape in declared.items():
        # ONNX's checker wants a shape; behind unknown operators the declared one is all there is.
        output.shape = shape if output.shape is None else output.shape


@dataclass(frozen=True)
class _Constant:
    """A value that is known.

    Parameters
    ----------
    array : its elements, possibly a view.
    roots : the large weights that it is made of.
    origin : name of the weight that it rearranges, and how, if that is all that was done.
    """

    array: np.ndarray
    roots: frozenset[ir.Value] = frozenset()
    origin: str | None = None


class _Walk:
    """One pass over the main graph, in order.

    Parameters
    ----------
    model : changed in place.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.opset = model.opset_imports.get("", 1)
        self.names = Names(model.graph)
        self.symbols: dict[str, Polynomial] = {}
        self.known: dict[ir.Value, Dims | None] = {}
        self.constants: dict[ir.Value, _Constant] = {}
        self.sizes: dict[ir.Value, np.ndarray] = {}
        self.single: dict[Polynomial, ir.Value] = {}
        self.improved: set[ir.Value] = set()
        tensors = [value.const_value for value in model.graph.initializers.values()]
        stored = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        self.left = max(_TOTAL_LIMIT, 4 * stored)
        self.declared = {
            dim.value
            for value in model.graph.inputs
            for dim in value.shape or ()
            if isinstance(dim, ir.SymbolicDim)
        }

    def run(self) -> None:
        nodes = list(self.graph)
        for node in nodes:
            if (node.domain, node.op_type) in OUTPUTS:
                self._infer_outputs(node)
            if node.domain != "" or any(
                a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
                for a in node.attributes.values()
            ):
                continue
            self._infer(node)
            self._evaluate(node)
            if node.op_type in _TARGETS:
                self._settle_target(node, _TARGETS[node.op_type])
        self._materialize(nodes)

    # Shapes

    def dims(self, value: ir.Value | None) -> Dims | None:
        """A value's dimensions, None where not even their number is known."""
        if value is None:
            return None
        if value not in self.known:
            shape = value.shape
            self.known[value] = None if shape is None else tuple(map(self._size, shape))
        return self.known[value]

    def _size(self, dim: int | ir.SymbolicDim) -> int | Polynomial:
        if isinstance(dim, int):
            return dim
        if dim.value is None:
            return Polynomial.unknown()
        return self._symbol(dim.value)

    def _symbol(self, name: str) -> Polynomial:
        if name not in self.symbols:
            self.symbols[name] = Polynomial.symbol(name)
        return self.symbols[name]

    def _set_dims(self, value: ir.Value, dims: Sequence[int | Polynomial]) -> None:
        """Note better dimensions than were known."""
        old = self.dims(value)
        if old is not None:
            if len(old) != len(dims):
                return
            dims = [
                a if isinstance(a, int) or (self._is_vague(b) and not self._is_vague(a)) else b
                for a, b in zip(old, dims, strict=True)
            ]
            if tuple(dims) == old:
                return
        self.known[value] = tuple(dims)
        self.improved.add(value)
        for dim in dims:
            if isinstance(dim, Polynomial):
                self.symbols.setdefault(str(dim), dim)
        value.shape = ir.Shape(
            [
                dim if isinstance(dim, int) else ir.SymbolicDim(str(dim) if dim.is_known else None)
                for dim in dims
            ]
        )

    def _is_settled(self, value: ir.Value) -> bool:
        dims = self.dims(value)
        return dims is not None and not any(map(self._is_vague, dims))

    def _is_vague(self, dim: int | Polynomial) -> bool:
        """Whether a dimension is but a placeholder, ours or that of ONNX's inference."""
        if not isinstance(dim, Polynomial):
            return False
        return not dim.is_known or any(
            name.startswith("unk__") and name not in self.declared for name in dim.names
        )

    def _infer(self, node: ir.Node) -> None:
        """Infer the outputs' types and shapes again where the inputs' are better known by now."""
        typed = all(value.type is not None for value in node.outputs if value.name)
        if typed and all(map(self._is_settled, node.outputs)):
            return
        rule = RULES.get(node.op_type)
        if rule is not None:
            dims = rule(node, self)
            if dims is not None:
                self._set_dims(node.outputs[0], dims)
        if typed and self._is_settled(node.outputs[0]):
            return
        if any(value in self.improved for value in node.inputs):
            self._infer_by_schema(node)

    def _infer_outputs(self, node: ir.Node) -> None:
        """Give outputs the types and shapes that follow from the inputs."""
        inputs = dict(enumerate(node.inputs))
        found = OUTPUTS[node.domain, node.op_type](node, lambda i: self.dims(inputs.get(i)))
        for i, (dims, kind) in found.items():
            if i >= len(node.outputs):
                continue
            value = node.outputs[i]
            if value.type is None and isinstance(kind, ir.DataType):
                value.type = ir.TensorType(kind)
            elif value.type is None and (source := inputs.get(kind)) is not None:
                value.type = source.type
            if dims is not None:
                self._set_dims(value, dims)

    def _infer_by_schema(self, node: ir.Node) -> None:
        types, data = {}, {}
        for value in node.inputs:
            if value is None or not isinstance(value.type, ir.TensorType) or value.name is None:
                if value is not None:
                    return
                continue
            info = onnx.TypeProto()
            info.tensor_type.elem_type = int(value.type.dtype)
            dims = self.dims(value)
            if dims is not None:
                info.tensor_type.shape.SetInParent()
                for dim in dims:
                    if isinstance(dim, int):
                        info.tensor_type.shape.dim.add(dim_value=dim)
                    else:
                        info.tensor_type.shape.dim.add(dim_param=str(dim))
                        self.symbols.setdefault(str(dim), dim)
            types[value.name] = info
            known = self._constant(value)
            if known is not None and known.array.nbytes <= 1024 and known.array.dtype.kind != "O":
                data[value.name] = onnx.numpy_helper.from_array(known.array, value.name)
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                ir.serde.serialize_node(node),
                types,
                data,
                opset_imports=[onnx.helper.make_opsetid("", self.opset)],
                ir_version=self.model.ir_version,
            )
        except Exception:
            # Unknown operators and shapes that don't fit; what was inferred before stays.
            return
        for value in node.outputs:
            proto = found.get(value.name or "")
            if proto is None:
                continue
            if value.type is None:
                value.type = ir.serde.deserialize_type_proto_for_type(proto)
            shape = ir.serde.deserialize_type_proto_for_shape(proto)
            if shape is not None:
                self._set_dims(value, [self._size(dim) for dim in shape])

    def integers(self, value: ir.Value | None) -> list[int | Polynomial] | None:
        """The elements of a 1-D integer value, None where nothing is known about them."""
        array = self._elements(value)
        if array is None or array.ndim != 1:
            return None
        return [x if isinstance(x, Polynomial) else int(x) for x in array]

    def integer(self, value: ir.Value | None) -> int | Polynomial | None:
        """The element of an integer scalar."""
        array = self._elements(value)
        if array is None or array.ndim:
            return None
        element = array.reshape(-1)[0]
        return element if isinstance(element, Polynomial) else int(element)

    def floats(self, value: ir.Value | None) -> list[float] | None:
        """The elements of a constant 1-D floating value."""
        known = self._constant(value)
        if known is None or known.array.dtype.kind != "f" or known.array.ndim != 1:
            return None
        return [float(x) for x in known.array]

    def _elements(self, value: ir.Value | None) -> np.ndarray | None:
        if value is None:
            return None
        known = self._constant(value)
        array = self.sizes.get(value) if known is None else known.array
        if array is None or array.dtype.kind not in "iuO" or array.size > _SHAPE_LIMIT:
            return None
        return array

    # Values

    def _constant(self, value: ir.Value | None) -> _Constant | None:
        if value is None:
            return None
        known = self.constants.get(value)
        if known is None and is_constant(value):
            tensor = value.const_value
            assert tensor is not None
            if tensor.dtype == ir.DataType.STRING:
                return None
            large = tensor.nbytes > _SMALL and len(tensor.shape) > 1
            known = _Constant(
                tensor.numpy(), frozenset([value]) if large else frozenset(), value.name
            )
            self.constants[value] = known
        return known

    def _is_known(self, value: ir.Value) -> bool:
        return value in self.constants or is_constant(value)

    def _evaluate(self, node: ir.Node) -> None:
        if node.op_type in ("Shape", "Size"):
            self._evaluate_shape(node)
            return
        if (
            node.op_type == "CastLike"
            and node.inputs[0] is not None
            and self._is_known(node.inputs[0])
        ):
            self._evaluate_cast_like(node)
        elif all(value is None or self._is_known(value) for value in node.inputs):
            if node.inputs:
                self._evaluate_constant(node)
        elif (
            node.op_type in SYMBOLIC
            and node.outputs[0].dtype in _INTEGERS | {ir.DataType.BOOL, None}
            and all(v is None or v in self.sizes or self._is_known(v) for v in node.inputs)
        ):
            self._evaluate_sizes(node)

    def _evaluate_constant(self, node: ir.Node) -> None:
        inputs = [self._constant(value) for value in node.inputs]
        present = [known for known in inputs if known is not None]
        if len(present) != sum(value is not None for value in node.inputs):
            return  # strings
        if node.op_type == "Gather" and present[0].roots and present[0].array.dtype.kind != "i":
            return
        arrays = [None if known is None else known.array for known in inputs]
        budget = max(_LIMIT, 2 * sum(_memory(known.array) for known in present))
        if node.op_type in _SLOW:
            budget = _SLOW_LIMIT
        claimed = sum(known.array.nbytes for known in present)
        if claimed > budget and node.op_type not in _VIEWS:
            return
        if node.op_type in ("ConstantOfShape", "Expand"):
            budget = _FILL_LIMIT
        elif node.op_type in _VIEWS:
            budget = max(budget, claimed)
        budget = min(budget, self.left)
        if (
            _expected_bytes(node, self.dims(node.outputs[0])) > budget
            or _asked_elements(node, arrays) * _item_bytes(present) > budget
        ):
            return
        try:
            outputs = evaluate(node, arrays, self.opset)
        except Exception:
            # Invalid operands; onnxruntime is to say so, should the node ever run.
            return
        made = 0 if outputs is None else sum(output.nbytes for output in outputs)
        if outputs is None or made > budget:
            return
        if node.op_type not in _VIEWS or 0 in outputs[0].strides:
            self.left -= made
        roots = frozenset().union(*(known.roots for known in present))
        origin = None
        if node.op_type in _REARRANGED and present[0].origin is not None:
            origin = f"{present[0].origin}_{_REARRANGED[node.op_type]}"
        for value, array in zip(node.outputs, outputs, strict=False):
            self._learn(value, _Constant(array, roots, origin))

    def _evaluate_cast_like(self, node: ir.Node) -> None:
        """Of the second input only the type matters."""
        known, like, output = self._constant(node.inputs[0]), node.inputs[1], node.outputs[0]
        if known is None or like is None or like.dtype is None:
            return
        example = np.empty(0, like.dtype.numpy())
        results = evaluate(node, [known.array, example], self.opset)
        if results is not None:
            origin = None if known.origin is None else f"{known.origin}_cast"
            self._learn(output, _Constant(results[0], known.roots, origin))

    def _learn(self, value: ir.Value, known: _Constant) -> None:
        self.constants[value] = known
        self.improved.add(value)
        self._set_dims(value, known.array.shape)
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.from_numpy(known.array.dtype))

    def _evaluate_shape(self, node: ir.Node) -> None:
        dims = self.dims(node.inputs[0])
        if dims is None:
            return
        if node.op_type == "Size":
            size: int | Polynomial = 1
            for dim in dims:
                size = size * dim
            self._learn_sizes(node.outputs[0], np.array(size, object))
            return
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else len(dims)
        self._learn_sizes(node.outputs[0], np.array(dims[start:end], object))

    def _evaluate_sizes(self, node: ir.Node) -> None:
        arrays = []
        for value in node.inputs:
            known = self._constant(value)
            array = self.sizes[value] if known is None and value is not None else None
            if known is not None:
                array = known.array
                if array.size > _SHAPE_LIMIT:
                    return
                if array.dtype.kind == "i" and node.op_type in ("Add", "Mul", "Sub", "Where"):
                    array = array.astype(object)
            arrays.append(array)
        try:
            outputs = evaluate(node, arrays, self.opset)
        except Exception:
            # As for constants.
            return
        if outputs is None or sum(output.size for output in outputs) > _SHAPE_LIMIT:
            return
        for value, array in zip(node.outputs, outputs, strict=False):
            if array.dtype == object:
                self._learn_sizes(value, array)
            else:
                self._learn(value, _Constant(array))

    def _learn_sizes(self, value: ir.Value, array: np.ndarray) -> None:
        if any(isinstance(x, Polynomial) for x in array.reshape(-1)):
            self.sizes[value] = array
            self.improved.add(value)
            if array.shape == (1,) and value.dtype == ir.DataType.INT64:
                self.single.setdefault(array[0], value)
        else:
            dtype = np.int32 if value.dtype == ir.DataType.INT32 else np.int64
            self._learn(value, _Constant(array.astype(dtype)))

    # Changes to the graph

    def _settle_target(self, node: ir.Node, index: int) -> None:
        """Give a node its target shape as a constant or, where it can't be, as its own `Concat`.

        What is pruned may need other sizes in each of the nodes that share a target.
        """
        target = node.inputs[index]
        if target is None or target not in self.sizes or self.sizes[target].ndim != 1:
            return
        settled = self._settled(node) if node.op_type == "Reshape" else None
        if settled is not None:
            name = self.names.fresh(f"{node.outputs[0].name}_shape")
            constant = add_initializer(self.graph, name, np.array(settled, np.int64))
            node.replace_input_with(index, constant)
            node.attributes.pop("allowzero", None)
            return
        producer = target.producer()
        if producer is None or producer.op_type == "Shape":
            return
        if producer.op_type != "Concat" or len(target.uses()) > 1:
            assembled = self._assembled(node, self.sizes[target])
            if assembled is not None:
                node.replace_input_with(index, assembled)

    def _settled(self, node: ir.Node) -> list[int] | None:
        """The target of a `Reshape` in numbers: 0 for sizes that stay, -1 for one other."""
        dims = self.dims(node.inputs[0]) or ()
        target = self.integers(node.inputs[1])
        if node.attributes.get_int("allowzero", 0) and (target is None or 0 in target):
            return None
        result = self.dims(node.outputs[0])
        assert target is not None
        if result is None or 0 in target:
            result = tuple(target)
        settled: list[int] = []
        for axis, size in enumerate(result):
            if not isinstance(size, Polynomial):
                settled.append(size)
            elif axis < len(dims) and size == dims[axis]:
                settled.append(0)
            else:
                settled.append(-1)
        return settled if settled.count(-1) < 2 else None

    def _assembled(self, node: ir.Node, sizes: np.ndarray) -> ir.Value | None:
        """A shape put together from its unknown sizes, each a value already, and constants."""
        parts: list[ir.Value] = []
        numbers: list[int] = []
        name = f"{node.outputs[0].name}_shape"

        def flush() -> None:
            if numbers:
                part = self.names.fresh(f"{name}_part")
                parts.append(add_initializer(self.graph, part, np.array(numbers, np.int64)))
                numbers.clear()

        if any(isinstance(size, Polynomial) and size not in self.single for size in sizes):
            return None
        for size in sizes:
            if isinstance(size, Polynomial):
                flush()
                parts.append(self.single[size])
            else:
                numbers.append(int(size))
        flush()
        name = self.names.fresh(name)
        concat = ir.Node("", "Concat", parts, [ir.AttrInt64("axis", 0)], name=name, num_outputs=1)
        output = concat.outputs[0]
        output.name, output.type = name, ir.TensorType(ir.DataType.INT64)
        output.shape = ir.Shape([len(sizes)])
        self.graph.insert_before(node, concat)
        self.sizes[output] = sizes
        return output

    def _materialize(self, nodes: Sequence[ir.Node]) -> None:
        """Turn the constants that nodes which aren't constant need into initializers."""
        constant = {node for node in nodes if all(v in self.constants for v in node.outputs)}
        stays: set[ir.Node] = set()
        for node in reversed(nodes):
            if node in constant and not any(v.is_graph_output() for v in node.outputs):
                continue
            stays.add(node)
        pinned: dict[ir.Value, bool] = {}
        for node in nodes:
            if node in stays:
                continue
            for value in node.outputs:
                known = self.constants[value]
                users = [use.node for use in value.uses()]
                if not any(user in stays or user.graph is not self.graph for user in users):
                    continue
                for root in known.roots:
                    if root not in pinned:
                        pinned[root] = root.is_graph_output() or any(
                            use.node in stays or use.node.graph is not self.graph
                            for use in root.uses()
                        )
                if known.array.nbytes > _SMALL and any(pinned[root] for root in known.roots):
                    continue
                self._replace(value, known)

    def _replace(self, value: ir.Value, known: _Constant) -> None:
        old, value.name = value.name, self.names.fresh(f"{value.name}.folded")
        assert old is not None
        name = old
        if known.origin is not None and known.array.dtype.kind != "i" and known.array.ndim:
            name = self.names.fresh(known.origin)
        array = known.array
        if not array.flags.c_contiguous and array.size and 0 not in array.strides:
            array = np.ascontiguousarray(array)
        value.replace_all_uses_with(add_initializer(self.graph, name, array))


def _memory(array: np.ndarray) -> int:
    """Bytes that an array takes, however often its elements are seen."""
    sizes = zip(array.shape, array.strides, strict=True)
    return math.prod(size for size, stride in sizes if stride) * array.itemsize


def _asked_elements(node: ir.Node, arrays: Sequence[np.ndarray | None]) -> float:
    """Elements, or steps, that the values of inputs ask for; 0 where shapes tell."""
    given = [array for array in arrays if array is not None]
    if node.op_type == "Einsum":
        return math.prod(float(array.size) for array in given)  # All combinations of indices.
    if node.op_type not in ("OneHot", "Pad", "Range", "Resize", "Tile") or len(given) < 2:
        return 0
    numbers = [np.abs(array.astype(np.float64)) for array in given]
    if node.op_type == "Range":
        distance = numbers[1].max(initial=0) + numbers[0].max(initial=0)
        asked = distance / numbers[-1].max() if numbers[-1].any() else math.inf
    elif node.op_type == "OneHot":
        asked = given[0].size * numbers[1].max(initial=0)
    elif node.op_type == "Pad":
        pads = numbers[1][: given[0].ndim].tolist()
        asked = math.prod(size + pad for size, pad in zip(given[0].shape, pads, strict=False))
    else:
        # Repeats, scales or sizes; those of sizes count the elements that there are once too often.
        asked = given[0].size * math.prod(np.maximum(numbers[-1], 1).reshape(-1).tolist())
    # What isn't a number asks for more than there is.
    return math.inf if math.isnan(asked) else float(asked)


def _item_bytes(operands: list[_Constant]) -> int:
    return operands[0].array.itemsize if operands else 1


def _expected_bytes(node: ir.Node, dims: Dims | None) -> float:
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return 0
    if any(dim < 0 for dim in dims):  # type: ignore[operator]
        return math.inf  # An overflow in ONNX's inference.
    dtype = node.outputs[0].dtype
    size = 1
    for dim in dims:
        size *= dim  # type: ignore[assignment]
    unknown = dtype in (None, ir.DataType.UNDEFINED, ir.DataType.STRING)
    return size * (4 if dtype is None or unknown else max(1, dtype.bitwidth // 8))
