"""Recognize layer normalization that was written out in its parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxjl.normalize.dead import drop_dead
from onnxjl.normalize.opset import to_opset_17
from onnxjl.normalize.surgery import Names, add_initializer, constant, is_onnx, take_place


@dataclass(frozen=True)
class _Moments:
    """``mean`` and ``deviation = sqrt(variance + epsilon)`` of `x` over its axes from `axis` on."""

    x: ir.Value
    axis: int
    epsilon: float
    deviation: ir.Value


def to_layer_norm(model: ir.Model) -> ir.Model:
    """Turn written-out layer normalizations into `LayerNormalization`.

    ``(x - mean) / sqrt(variance + epsilon) * scale + bias`` over trailing axes, in the spellings
    of PyTorch, Keras and TensorFlow: a quotient or a product with the reciprocal, the mean by
    `ReduceMean`, by `GlobalAveragePool` of three axes, or by a sum times a constant; scale and
    bias applied to the difference or to both its terms. Only for 32-bit floats, since
    `LayerNormalization` computes in these. The operator set is raised to 17 if need be.
    """
    graph = model.graph
    names = Names(graph)
    found = False
    for node in list(graph):
        if is_onnx(node, "Sqrt") or (is_onnx(node, "Pow") and _scalar(node.inputs[1]) == 0.5):
            moments = _moments(node.inputs[0], node.outputs[0])
            if moments is None:
                continue
            for output, scale, bias in _normalized(moments):
                _replace(graph, names, moments, output, scale, bias)
                found = True
    if found and model.opset_imports[""] < 17:
        to_opset_17(model)
    return drop_dead(model) if found else model


def _scalar(value: ir.Value | None) -> float | None:
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if is_onnx(node, *op_types) else None


def _with_constant(value: ir.Value | None, op_type: str) -> tuple[ir.Value, ir.Value] | None:
    """(variable, constant) of a commutative operator that has one constant."""
    node = _producer(value, op_type)
    if node is None:
        return None
    for i in (0, 1):
        variable, other = node.inputs[1 - i], node.inputs[i]
        if variable is not None and other is not None and constant(other) is not None:
            return variable, other
    return None


def _mean(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(x, first axis) where a value is the mean of x over its trailing axes, which stay as 1."""
    node = _producer(value, "ReduceMean", "GlobalAveragePool")
    if node is not None and node.op_type == "GlobalAveragePool":
        x = node.inputs[0]
        return (x, 2) if x is not None and x.shape is not None and len(x.shape) == 3 else None
    if node is not None:
        return _reduction(node)
    for op_type in ("Mul", "Div"):
        pair = _with_constant(value, op_type)
        if pair is None or (op_type == "Div" and pair[1].producer() is not None):
            continue
        total = _producer(pair[0], "ReduceSum")
        reduction = None if total is None else _reduction(total)
        factor = _scalar(pair[1])
        if reduction is None or factor is None:
            continue
        x, axis = reduction
        assert x.shape is not None
        sizes = [size for size in x.shape[axis:] if isinstance(size, int)]
        if len(sizes) == len(x.shape) - axis:
            count = float(np.prod(sizes))
            expected = 1 / count if op_type == "Mul" else count
            if np.float32(factor) == np.float32(expected):
                return x, axis
    return None


def _reduction(node: ir.Node) -> tuple[ir.Value, int] | None:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    rank = len(x.shape)
    if "keepdims" in node.attributes and node.attributes["keepdims"].as_int() == 0:
        return None
    if "axes" in node.attributes:
        given = np.asarray(node.attributes["axes"].as_ints())
    elif len(node.inputs) > 1 and (array := constant(node.inputs[1])) is not None:
        given = array
    else:
        return None
    axes = sorted(int(axis) % rank for axis in given.reshape(-1))
    if not axes or axes != list(range(axes[0], rank)):
        return None
    return x, axes[0]


def _difference(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(x, first axis) where a value is x minus its mean."""
    node = _producer(value, "Sub")
    if node is None or node.inputs[0] is None:
        return None
    mean = _mean(node.inputs[1])
    return mean if mean is not None and mean[0] is node.inputs[0] else None


def _moments(radicand: ir.Value | None, deviation: ir.Value) -> _Moments | None:
    if deviation.dtype != ir.DataType.FLOAT:
        return None
    pair = _with_constant(radicand, "Add")
    epsilon = None if pair is None else _scalar(pair[1])
    variance = None if pair is None else _mean(pair[0])
    if variance is None or epsilon is None:
        return None
    squared, axis = variance
    node = _producer(squared, "Pow", "Mul")
    if node is None:
        return None
    if node.op_type == "Pow" and _scalar(node.inputs[1]) != 2:
        return None
    if node.op_type == "Mul" and node.inputs[0] is not node.inputs[1]:
        return None
    centred = _difference(node.inputs[0])
    if centred is None or centred[1] != axis:
        return None
    return _Moments(centred[0], axis, epsilon, deviation)


def _normalized(
    moments: _Moments,
) -> list[tuple[ir.Value, ir.Value | None, ir.Value | None]]:
    """(output, scale, bias) of each normalization that divides by this deviation."""
    found = []
    for node, index in moments.deviation.uses():
        if is_onnx(node, "Div") and index == 1 and _centred(node.inputs[0], moments):
            found.append(_affine(node.outputs[0], moments))
        elif is_onnx(node, "Reciprocal") or (
            is_onnx(node, "Div") and index == 1 and _scalar(node.inputs[0]) == 1
        ):
            found.extend(_times_reciprocal(node.outputs[0], moments))
    return found


def _centred(value: ir.Value | None, moments: _Moments) -> bool:
    return _difference(value) == (moments.x, moments.axis)


def _times_reciprocal(
    reciprocal: ir.Value, moments: _Moments
) -> list[tuple[ir.Value, ir.Value | None, ir.Value | None]]:
    found: list[tuple[ir.Value, ir.Value | None, ir.Value | None]] = []
    for node, index in reciprocal.uses():
        if not is_onnx(node, "Mul"):
            continue
        other = node.inputs[1 - index]
        if _centred(other, moments):
            found.append(_affine(node.outputs[0], moments))
        elif _fits(other, moments):
            found.extend(_times_scale(node.outputs[0], other, moments))
    return found


def _times_scale(
    factor: ir.Value, scale: ir.Value | None, moments: _Moments
) -> list[tuple[ir.Value, ir.Value | None, ir.Value | None]]:
    """Uses of ``factor = scale / deviation``."""
    found: list[tuple[ir.Value, ir.Value | None, ir.Value | None]] = []
    for node, index in factor.uses():
        if not is_onnx(node, "Mul"):
            continue
        other = node.inputs[1 - index]
        if _centred(other, moments):
            output, bias = _plus_bias(node.outputs[0], moments)
            found.append((output, scale, bias))
        elif other is moments.x:
            # x * factor + (bias - mean * factor), or with the second term as -mean * factor + bias
            for add, position in node.outputs[0].uses():
                if is_onnx(add, "Add", "Sub") and not (add.op_type == "Sub" and position == 1):
                    rest = add.inputs[1 - position]
                    negative = add.op_type == "Sub"
                    fits, bias = _offset(rest, factor, moments, negative)
                    if fits:
                        found.append((add.outputs[0], scale, bias))
    return found


def _offset(
    value: ir.Value | None, factor: ir.Value, moments: _Moments, negative: bool
) -> tuple[bool, ir.Value | None]:
    """Whether a value is ``bias - mean * factor`` (the mean's product alone where `negative`)."""
    if negative:
        return _is_mean_times(value, factor, moments, negated=False), None
    node = _producer(value, "Sub")
    if node is not None:
        fits = _is_mean_times(node.inputs[1], factor, moments, negated=False)
        return fits and _fits(node.inputs[0], moments), node.inputs[0]
    pair = _with_constant(value, "Add")
    if pair is not None:
        fits = _is_mean_times(pair[0], factor, moments, negated=True)
        return fits and _fits(pair[1], moments), pair[1]
    return _is_mean_times(value, factor, moments, negated=True), None


def _is_mean_times(
    value: ir.Value | None, factor: ir.Value, moments: _Moments, *, negated: bool
) -> bool:
    node = _producer(value, "Mul")
    if node is None or factor not in node.inputs:
        return False
    mean = node.inputs[1] if node.inputs[0] is factor else node.inputs[0]
    if negated:
        negation = _producer(mean, "Neg")
        if negation is None:
            return False
        mean = negation.inputs[0]
    return _mean(mean) == (moments.x, moments.axis)


def _affine(
    output: ir.Value, moments: _Moments
) -> tuple[ir.Value, ir.Value | None, ir.Value | None]:
    """Take in a product with a scale and a sum with a bias that follow, each the only user."""
    scale = None
    following = _only_user(output)
    if following is not None and is_onnx(following, "Mul"):
        pair = _with_constant(following.outputs[0], "Mul")
        if pair is not None and pair[0] is output and _fits(pair[1], moments):
            scale, output = pair[1], following.outputs[0]
    output, bias = _plus_bias(output, moments)
    return output, scale, bias


def _plus_bias(output: ir.Value, moments: _Moments) -> tuple[ir.Value, ir.Value | None]:
    following = _only_user(output)
    if following is not None and is_onnx(following, "Add"):
        pair = _with_constant(following.outputs[0], "Add")
        if pair is not None and pair[0] is output and _fits(pair[1], moments):
            return following.outputs[0], pair[1]
    return output, None


def _only_user(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    if value.is_graph_output() or len(uses) != 1:
        return None
    (use,) = uses
    return use.node if use.node.graph is value.graph else None


def _sizes(moments: _Moments) -> tuple[int, ...] | None:
    assert moments.x.shape is not None
    sizes = moments.x.shape[moments.axis :]
    return sizes if all(isinstance(size, int) for size in sizes) else None  # type: ignore[return-value]


def _fits(value: ir.Value | None, moments: _Moments) -> bool:
    """Whether a constant has one number for each normalized element (after leading ones)."""
    array, sizes = constant(value), _sizes(moments)
    if array is None or sizes is None:
        return False
    shape = array.shape
    while len(shape) > len(sizes) and shape[0] == 1:
        shape = shape[1:]
    return shape == sizes


def _replace(
    graph: ir.Graph,
    names: Names,
    moments: _Moments,
    output: ir.Value,
    scale: ir.Value | None,
    bias: ir.Value | None,
) -> None:
    sizes = _sizes(moments)
    last = output.producer()
    assert moments.x.shape is not None
    assert last is not None
    if sizes is None:
        return
    if scale is None:
        name = names.fresh(f"{output.name}_scale")
        scale = add_initializer(graph, name, np.ones(sizes, np.float32))
    inputs = [moments.x] + [
        _shaped(graph, names, value, sizes) for value in (scale, bias) if value is not None
    ]
    node = ir.Node(
        "",
        "LayerNormalization",
        inputs,
        [
            ir.AttrInt64("axis", moments.axis - len(moments.x.shape)),
            ir.AttrFloat32("epsilon", moments.epsilon),
        ],
        name=last.name,
        num_outputs=1,
    )
    graph.insert_before(last, node)
    last.name = None
    take_place(output, node.outputs[0])


def _shaped(graph: ir.Graph, names: Names, value: ir.Value, sizes: tuple[int, ...]) -> ir.Value:
    array = constant(value)
    assert array is not None
    if array.shape == sizes:
        return value
    return add_initializer(graph, names.fresh(f"{value.name}_reshaped"), array.reshape(sizes))
