"""Evaluate single operators on constants, and on shapes that are only partly numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 and its kin with NumPy)
import numpy as np
import onnx
import onnx_ir as ir

from onnxjl.normalize.polynomial import Polynomial

Array = np.ndarray
Operator = Callable[..., "Array | Sequence[Array] | None"]

# Those that also take arrays of dtype object, whose elements are int or Polynomial.
SYMBOLIC = {
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Equal",
    "Expand",
    "Gather",
    "Identity",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "ReduceProd",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
    "Where",
}

# What onnx's reference implementation computes. Left out on purpose: what is random, what
# quantizes (folding would undo the quantization), what holds a subgraph.
_REFERENCE = frozenset(
    "And ArgMax ArgMin BitShift Clip Compress Cos CumSum Einsum Elu Erf Exp EyeLike "
    "GatherElements GatherND Greater GreaterOrEqual HardSigmoid IsInf IsNaN LeakyRelu Less "
    "LessOrEqual Log MatMul Mean NonZero OneHot Or Pad Pow Reciprocal ReduceL1 "
    "ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare Relu Resize ReverseSequence Round ScatterElements ScatterND Selu Sigmoid Sign "
    "Sin Size Softmax Softplus Sum Tan Tanh Tile TopK Trilu Unique Xor".split()
)


def evaluate(node: ir.Node, arrays: Sequence[Array | None], opset: int) -> list[Array] | None:
    """The outputs of a node of the default domain.

    Parameters
    ----------
    node : at most its attributes and the number of its outputs are read.
    arrays : its inputs; dtype object, with elements int or Polynomial, for integers that aren't
        all known. None where an optional input is absent.
    opset : version of the default operator set.

    Returns
    -------
    list of arrays, or None
        None where the operator isn't one that is evaluated, or the outcome isn't known.
    """
    symbolic = any(a is not None and a.dtype == object for a in arrays)
    if symbolic and node.op_type not in SYMBOLIC:
        return None
    function = _OPERATORS.get(node.op_type)
    attributes = {name: a.value for name, a in node.attributes.items()}
    if any(a.is_ref() for a in node.attributes.values()):
        return None
    if function is not None:
        result = function(*arrays, node=node, **attributes)
        if result is None:
            return None
        return [np.asarray(r) for r in (result if isinstance(result, list | tuple) else [result])]
    if node.op_type in _REFERENCE and not symbolic:
        return _by_reference(node, arrays, opset)
    return None


def _by_reference(node: ir.Node, arrays: Sequence[Array | None], opset: int) -> list[Array] | None:
    from onnx.reference import ReferenceEvaluator

    names = ["" if array is None else f"x{i}" for i, array in enumerate(arrays)]
    outputs = [f"y{i}" for i in range(len(node.outputs))]
    proto = onnx.helper.make_node(node.op_type, names, outputs)
    proto.attribute.extend(ir.serde.serialize_attribute(a) for a in node.attributes.values())
    inputs = [
        onnx.helper.make_tensor_value_info(name, int(ir.DataType.from_numpy(a.dtype)), a.shape)
        for name, a in zip(names, arrays, strict=True)
        if a is not None
    ]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([proto], "one", inputs, results),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )
    feeds = {name: a for name, a in zip(names, arrays, strict=True) if a is not None}
    return [np.asarray(y) for y in ReferenceEvaluator(model).run(None, feeds)]


def _axes(axes: Array | Sequence[int] | None) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(axis) for axis in np.asarray(axes).reshape(-1))


def _identity(x: Array, **_: Any) -> Array:
    return x


def _cast(x: Array, *, to: int, **_: Any) -> Array | None:
    target = ir.DataType(to)
    if x.dtype == object:
        return x if target in (ir.DataType.INT64, ir.DataType.INT32) else None
    if target == ir.DataType.STRING or x.dtype.kind in "OSU":
        return None
    if ir.DataType.from_numpy(x.dtype).bitwidth < 16 and x.dtype != np.bool_ and x.ndim > 1:
        return None  # a quantized weight stays one
    if target.bitwidth < 16 and target != ir.DataType.BOOL:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(target.numpy())


def _cast_like(x: Array, like: Array, *, node: ir.Node, **_: Any) -> Array | None:
    return _cast(x, to=int(ir.DataType.from_numpy(like.dtype)))


def _gather(x: Array, indices: Array, *, axis: int = 0, **_: Any) -> Array | None:
    if indices.dtype == object:
        return None
    return np.take(x, indices, axis=axis)


def _concat(*arrays: Array, axis: int, **_: Any) -> Array:
    return np.concatenate(arrays, axis=axis)


def _slice(
    x: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
    **attributes: Any,
) -> Array | None:
    if starts is None or ends is None:
        return None  # before opset 10; such graphs have been converted
    if any(a is not None and a.dtype == object for a in (starts, ends, axes, steps)):
        return None
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(_axes(axes) or range(len(starts))):
        start, end = int(starts[i]), int(ends[i])
        step = 1 if steps is None else int(steps[i])
        size = x.shape[axis]
        if step < 0:
            # The end of a downward slice is excluded, so before the first element is -1 - size.
            stop = None if end < -size else end
            index[axis] = slice(start, stop, step)
        else:
            index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _squeeze(
    x: Array, given: Array | None = None, *, axes: Sequence[int] | None = None, **_: Any
) -> Array:
    return np.squeeze(x, _axes(given if given is not None else axes))


def _unsqueeze(
    x: Array, given: Array | None = None, *, axes: Sequence[int] | None = None, **_: Any
) -> Array:
    return np.expand_dims(x, _axes(given if given is not None else axes) or ())


def _reshape(x: Array, shape: Array, *, allowzero: int = 0, **_: Any) -> Array | None:
    if shape.dtype == object:
        return None
    sizes = [
        x.shape[i] if size == 0 and not allowzero else int(size) for i, size in enumerate(shape)
    ]
    return x.reshape(sizes)


def _transpose(x: Array, *, perm: Sequence[int] | None = None, **_: Any) -> Array:
    return np.transpose(x, perm)


def _flatten(x: Array, *, axis: int = 1, **_: Any) -> Array:
    axis += x.ndim if axis < 0 else 0
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


def _split(
    x: Array,
    given: Array | None = None,
    *,
    node: ir.Node,
    axis: int = 0,
    split: Sequence[int] | None = None,
    **_: Any,
) -> list[Array] | None:
    if given is not None and given.dtype == object:
        return None
    size, parts = x.shape[axis], len(node.outputs)
    sizes = _axes(given if given is not None else split)
    if sizes is None:
        most = -(-size // parts)
        sizes = (*[most] * (parts - 1), size - most * (parts - 1))
    return np.split(x, np.cumsum(sizes)[:-1], axis=axis)


def _arithmetic(function: np.ufunc) -> Operator:
    def apply(a: Array, b: Array, **_: Any) -> Array:
        with np.errstate(all="ignore"):
            return function(a, b)

    return apply


def _unary(function: np.ufunc) -> Operator:
    def apply(x: Array, **_: Any) -> Array:
        with np.errstate(all="ignore"):
            return function(x)

    return apply


def _div(a: Array, b: Array, **_: Any) -> Array | None:
    if a.dtype == object or b.dtype == object:
        quotients = [_quotient(x, y) for x, y in np.broadcast(a, b)]
        result = np.empty(np.broadcast_shapes(a.shape, b.shape), object)
        result.reshape(-1)[:] = quotients
        return result
    with np.errstate(all="ignore"):
        if a.dtype.kind in "iu":
            if not b.all():
                return None
            return (np.sign(a) * np.sign(b) * (abs(a) // abs(b))).astype(a.dtype)
        return a / b


def _quotient(x: Any, y: Any) -> int | Polynomial:
    if isinstance(x, Polynomial):
        quotient = x.divided(y if isinstance(y, Polynomial) else int(y))
        return Polynomial.unknown() if quotient is None else quotient
    if isinstance(y, Polynomial) or y == 0:
        return Polynomial.unknown()
    quotient = abs(int(x)) // abs(int(y))
    return quotient if (x >= 0) == (y > 0) else -quotient


def _extreme(largest: bool) -> Operator:
    def apply(*arrays: Array, **_: Any) -> Array | None:
        best = arrays[0]
        for array in arrays[1:]:
            if best.dtype == object or array.dtype == object:
                shape = np.broadcast_shapes(best.shape, array.shape)
                chosen = [_more_extreme(x, y, largest) for x, y in np.broadcast(best, array)]
                best = np.empty(shape, object)
                best.reshape(-1)[:] = chosen
            else:
                best = (np.maximum if largest else np.minimum)(best, array)
        return best

    return apply


def _more_extreme(x: Any, y: Any, largest: bool) -> int | Polynomial:
    difference = x - y if largest else y - x
    if not isinstance(difference, Polynomial):
        return x if difference >= 0 else y
    if difference.is_positive:
        return x
    negated = -difference
    return y if isinstance(negated, Polynomial) and negated.is_positive else Polynomial.unknown()


def _equal(a: Array, b: Array, **_: Any) -> Array | None:
    if a.dtype != object and b.dtype != object:
        return a == b
    result = np.empty(np.broadcast_shapes(a.shape, b.shape), bool)
    for i, (x, y) in enumerate(np.broadcast(a, b)):
        difference = x - y
        if isinstance(difference, Polynomial):
            negated = -difference
            positive = difference.is_positive or (
                isinstance(negated, Polynomial) and negated.is_positive
            )
            if not positive:
                return None
            result.reshape(-1)[i] = False
        else:
            result.reshape(-1)[i] = difference == 0
    return result


def _where(condition: Array, a: Array, b: Array, **_: Any) -> Array | None:
    if condition.dtype == object:
        return None
    return np.where(condition, a, b)


def _mod(a: Array, b: Array, *, fmod: int = 0, **_: Any) -> Array | None:
    if not b.all() or (a.dtype.kind not in "iu" and not fmod):
        return None
    return np.fmod(a, b) if fmod else np.mod(a, b)


def _range(start: Array, limit: Array, delta: Array, **_: Any) -> Array | None:
    if delta == 0:
        return None
    count = max(0, int(np.ceil((limit - start) / delta)))
    return (start + np.arange(count, dtype=start.dtype) * delta).astype(start.dtype)


def _constant_of_shape(shape: Array, *, value: ir.TensorProtocol | None = None, **_: Any) -> Array:
    fill = np.zeros(1, np.float32) if value is None else value.numpy()
    return np.broadcast_to(fill.reshape(()), tuple(int(size) for size in shape))


def _expand(x: Array, shape: Array, **_: Any) -> Array | None:
    if shape.dtype == object:
        return None
    sizes = tuple(int(size) for size in shape)
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, sizes))


def _reduce_prod(
    x: Array,
    given: Array | None = None,
    *,
    node: ir.Node,
    axes: Sequence[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
    **_: Any,
) -> Array | None:
    if given is not None and given.dtype == object:
        return None
    over = _axes(given if given is not None else axes)
    if not over:
        if noop_with_empty_axes:
            return x
        over = None
    return np.asarray(np.prod(x, axis=over, keepdims=bool(keepdims)), dtype=x.dtype)


_OPERATORS: dict[str, Operator] = {
    "Abs": _unary(np.abs),
    "Add": _arithmetic(np.add),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _unary(np.ceil),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _div,
    "Equal": _equal,
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(np.floor),
    "Gather": _gather,
    "Identity": _identity,
    "Max": _extreme(largest=True),
    "Min": _extreme(largest=False),
    "Mod": _mod,
    "Mul": _arithmetic(np.multiply),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "Range": _range,
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _unary(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _arithmetic(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
