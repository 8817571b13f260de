"""Write operators that onnxruntime has fused as those of ONNX that they were made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxjl.normalize.surgery import Names, add_initializer, remove, take_place
from onnxjl.proto import weightless

# Activation -> the attributes of ONNX's operator, in the order in which a convolution lists them.
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
}


def unfuse(model: ir.Model) -> ir.Model:
    """Write what onnxruntime has fused as the operators that it stands for.

    Files that onnxruntime has optimized hold `FusedConv`, `FusedGemm` and `FusedMatMul`, decoders
    `SimplifiedLayerNormalization`, even in ONNX's own domain. The product keeps the node's name;
    onnxruntime fuses it again when it loads the file. Other activations than ONNX's common ones
    stay.

    Source: onnxruntime, docs/ContribOperators.md.
    """
    graph = model.graph
    names = Names(graph)
    provisional: list[ir.Node] = []
    for node in list(graph):
        if (node.domain, node.op_type) in _FUSED:
            parts = _Parts(graph, names, node, model.opset_imports[""])
            last = _FUSED[node.domain, node.op_type](parts)
            if last is None:
                remove(reversed(parts.nodes))
                continue
            take_place(node.outputs[0], last)
            remove([node])
            provisional += [p for p in parts.nodes if p.op_type in ("CastLike", "Einsum")]
    if provisional:
        _settle(model, provisional)
    return model


def _settle(model: ir.Model, provisional: Sequence[ir.Node]) -> None:
    """Write what stands for a transposition, or a constant, now that ranks and types are known."""
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(weightless(model)).graph
    types = {
        info.name: info.type.tensor_type
        for info in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    for node in provisional:
        operand = node.inputs[-1]
        found = types.get(operand.name or "") if operand is not None else None
        if found is None:
            continue
        if node.op_type == "CastLike" and found.elem_type:
            number = node.inputs[0]
            assert number is not None
            assert number.const_value is not None
            array = number.const_value.numpy().astype(ir.DataType(found.elem_type).numpy())
            number.const_value = ir.Tensor(array, name=number.name)
            number.type = ir.TensorType(ir.DataType(found.elem_type))
            node.outputs[0].replace_all_uses_with(number)
            remove([node])
        elif node.op_type == "Einsum" and len(found.shape.dim) > 1:
            rank = len(found.shape.dim)
            turn = ir.AttrInt64s("perm", [*range(rank - 2), rank - 1, rank - 2])
            transpose = ir.Node("", "Transpose", [operand], [turn], num_outputs=1)
            graph.insert_before(node, transpose)
            take_place(node.outputs[0], transpose.outputs[0])
            remove([node])


class _Parts:
    """The nodes that a fused one is made of, each put in front of it.

    Parameters
    ----------
    graph, names : what the node is in.
    node : the fused node.
    opset : version of the default operator set.
    """

    def __init__(self, graph: ir.Graph, names: Names, node: ir.Node, opset: int) -> None:
        self.graph = graph
        self.names = names
        self.node = node
        self.opset = opset
        self.nodes: list[ir.Node] = []

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | str | Sequence[int]],
        *,
        name: str | None = None,
    ) -> ir.Value:
        """Add a node, and return its output."""
        kept = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        node = ir.Node("", operator, inputs, kept, name=name, num_outputs=1)
        output = self.node.outputs[0].name or "fused"
        node.outputs[0].name = self.names.fresh(f"{output}.{operator.lower()}")
        self.graph.insert_before(self.node, node)
        self.nodes.append(node)
        return node.outputs[0]

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """Add a constant of a value's type."""
        constant = self.constant(np.array(number, dtype=np.float32), "scalar")
        return self.add("CastLike", [constant, like], {})

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """Add a constant."""
        output = self.node.outputs[0].name or "fused"
        return add_initializer(self.graph, self.names.fresh(f"{output}.{name}"), array)

    def activate(
        self, value: ir.Value, activation: str, parameters: Sequence[float | None]
    ) -> ir.Value | None:
        """Add an activation; None if it isn't one that is known."""
        if activation == "Clip" and len(parameters) == 2:
            bounds = [None if x is None else self.scalar(x, value) for x in parameters]
            return self.add("Clip", [value, *bounds], {})
        if activation not in _ACTIVATIONS:
            return None
        pairs = zip(_ACTIVATIONS[activation], parameters, strict=False)
        return self.add(activation, [value], {key: x for key, x in pairs if x is not None})

    def kept(self, *names: str) -> dict[str, int | float | str | Sequence[int]]:
        """Some of the node's attributes, those that it has."""
        attributes = self.node.attributes
        return {name: attributes[name].value for name in names if name in attributes}


def _convolution(parts: _Parts) -> ir.Value | None:
    """``activation(Conv(X, W, B) + Z)``."""
    node = parts.node
    spatial = parts.kept("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    value = parts.add("Conv", node.inputs[:3], spatial, name=node.name)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        value = parts.add("Add", [value, node.inputs[3]], {})
    activation = node.attributes.get_string("activation", "")
    return parts.activate(value, activation, node.attributes.get_floats("activation_params", ()))


def _gemm(parts: _Parts) -> ir.Value | None:
    """``activation(alpha · A · B + beta · C)``."""
    node = parts.node
    value = parts.add(
        "Gemm", node.inputs, parts.kept("alpha", "beta", "transA", "transB"), name=node.name
    )
    attributes = parts.kept("activation_alpha", "activation_beta")
    given = [attributes.get(f"activation_{name}") for name in ("alpha", "beta")]
    numbers = [x if isinstance(x, float) else None for x in given]
    return parts.activate(value, node.attributes.get_string("activation", ""), numbers)


def _product(parts: _Parts) -> ir.Value | None:
    """``alpha · A · B``, with the last two axes of either turned."""
    node = parts.node
    operands: list[ir.Value | None] = []
    for operand, letter in zip(node.inputs, "AB", strict=True):
        if node.attributes.get_int(f"transBatch{letter}", 0):
            return None
        if node.attributes.get_int(f"trans{letter}", 0):
            operand = parts.add("Einsum", [operand], {"equation": "...ij->...ji"})
        operands.append(operand)
    value = parts.add("MatMul", operands, {}, name=node.name)
    alpha = node.attributes.get_float("alpha", 1.0)
    return value if alpha == 1.0 else parts.add("Mul", [value, parts.scalar(alpha, value)], {})


def _root_mean_square(parts: _Parts) -> ir.Value | None:
    """``X / √(mean(X²) + ε) · scale`` over the last axis, in float unless all is double."""
    node = parts.node
    x, scale = node.inputs[0], node.inputs[1]
    kind = None if scale is None else scale.dtype
    further = any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
    if kind is None or further or node.attributes.get_int("axis", -1) != -1:
        return None
    wide = ir.DataType.DOUBLE if kind == ir.DataType.DOUBLE else ir.DataType.FLOAT
    x = parts.add("Cast", [x], {"to": int(wide)})
    two, small = (
        parts.constant(np.array(number, dtype=wide.numpy()), name)
        for number, name in (
            (2.0, "exponent"),
            (node.attributes.get_float("epsilon", 1e-5), "epsilon"),
        )
    )
    square = parts.add("Pow", [x, two], {})
    if parts.opset < 18:
        mean = parts.add("ReduceMean", [square], {"axes": [-1]})
    else:
        mean = parts.add("ReduceMean", [square, parts.constant(np.array([-1]), "axes")], {})
    root = parts.add("Sqrt", [parts.add("Add", [mean, small], {})], {})
    normal = parts.add("Div", [x, root], {})
    if kind != wide:
        normal = parts.add("Cast", [normal], {"to": int(kind)})
    return parts.add("Mul", [normal, scale], {}, name=node.name)


_FUSED: Mapping[tuple[str, str], Callable[[_Parts], ir.Value | None]] = {
    ("", "SimplifiedLayerNormalization"): _root_mean_square,
    ("com.microsoft", "FusedConv"): _convolution,
    ("com.microsoft", "FusedGemm"): _gemm,
    ("com.microsoft", "FusedMatMul"): _product,
}
