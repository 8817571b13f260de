"""Shapes that ONNX's own inference doesn't follow: symbolic sizes through shape arithmetic.

A rule returns the dimensions of a node's first output, or None where it can't tell. Sizes are
taken to be at least 1, and operands to fit each other, as they do in every run that succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import onnx_ir as ir

from onnxjl.normalize.polynomial import Polynomial

Size = int | Polynomial
Dims = tuple[Size, ...]

_END = (1 << 31) - 1


class Knowledge(Protocol):
    """What is known about values so far."""

    def dims(self, value: ir.Value | None) -> Dims | None:
        """A value's dimensions, None where not even their number is known."""

    def integers(self, value: ir.Value | None) -> list[Size] | None:
        """The elements of a 1-D integer value, None where nothing is known about them."""

    def integer(self, value: ir.Value | None) -> Size | None:
        """The element of an integer scalar."""

    def floats(self, value: ir.Value | None) -> list[float] | None:
        """The elements of a constant 1-D floating value."""


Rule = Callable[[ir.Node, Knowledge], "Sequence[Size] | None"]


def combined(a: Size, b: Size) -> Size:
    """The size that two broadcast axes have together."""
    if a == 1 or a == b:
        return b
    if b == 1 or isinstance(a, int):
        return a
    if isinstance(b, int):
        return b
    for whole, part in ((a, b), (b, a)):
        bound = part.bounded
        if bound is not None and bound == whole:
            return whole
    return Polynomial.unknown()


def _broadcast(node: ir.Node, known: Knowledge) -> Dims | None:
    result: list[Size] = []
    for value in node.inputs:
        if value is None:
            continue
        dims = known.dims(value)
        if dims is None:
            return None
        rank = max(len(result), len(dims))
        ours = [1] * (rank - len(result)) + result
        theirs = [1] * (rank - len(dims)) + list(dims)
        result = [combined(a, b) for a, b in zip(ours, theirs, strict=True)]
    return tuple(result)


def _expand(node: ir.Node, known: Knowledge) -> Dims | None:
    target, dims = known.integers(node.inputs[1]), known.dims(node.inputs[0])
    if target is None or dims is None:
        return None
    rank = max(len(target), len(dims))
    ours = [1] * (rank - len(dims)) + list(dims)
    theirs = [1] * (rank - len(target)) + target
    return tuple(combined(a, b) for a, b in zip(ours, theirs, strict=True))


def _constant_of_shape(node: ir.Node, known: Knowledge) -> Sequence[Size] | None:
    return known.integers(node.inputs[0])


def _reshape(node: ir.Node, known: Knowledge) -> Dims | None:
    target, dims = known.integers(node.inputs[1]), known.dims(node.inputs[0])
    if target is None:
        return None
    keep_zero = node.attributes.get_int("allowzero", 0)
    result: list[Size] = []
    for axis, size in enumerate(target):
        if size == 0 and not keep_zero:
            if dims is None or axis >= len(dims):
                return None
            size = dims[axis]
        result.append(size)
    if -1 in result:
        position = result.index(-1)
        rest = _product(size for i, size in enumerate(result) if i != position)
        whole = None if dims is None or rest == 0 else _quotient(_product(dims), rest)
        result[position] = Polynomial.unknown() if whole is None else whole
    return tuple(result)


def _product(sizes: object) -> Size:
    result: Size = 1
    for size in sizes:  # type: ignore[attr-defined]
        result = result * size
    return result


def _quotient(a: Size, b: Size) -> Size | None:
    if isinstance(a, Polynomial):
        return a.divided(b)
    return a // b if isinstance(b, int) and a % b == 0 else None


def _concat(node: ir.Node, known: Knowledge) -> Dims | None:
    parts = [known.dims(value) for value in node.inputs]
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        return None
    axis = node.attributes["axis"].as_int() % len(present[0])
    result = list(present[0])
    for part in present[1:]:
        for i, size in enumerate(part):
            if i == axis:
                result[i] = result[i] + size
            elif isinstance(size, int) or (
                isinstance(result[i], Polynomial) and not result[i].is_known  # type: ignore[union-attr]
            ):
                result[i] = size
    return tuple(result)


def _flatten(node: ir.Node, known: Knowledge) -> Dims | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    axis = node.attributes.get_int("axis", 1)
    axis += len(dims) if axis < 0 else 0
    return _product(dims[:axis]), _product(dims[axis:])


def _slice(node: ir.Node, known: Knowledge) -> Dims | None:
    dims = known.dims(node.inputs[0])
    if dims is None or len(node.inputs) < 3:
        return None
    starts, ends = known.integers(node.inputs[1]), known.integers(node.inputs[2])
    if starts is None or ends is None:
        return None
    axes: list[Size] | None = list(range(len(starts)))
    steps: list[Size] | None = [1] * len(starts)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = known.integers(node.inputs[3])
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        steps = known.integers(node.inputs[4])
    if axes is None or steps is None:
        return None
    result = list(dims)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if isinstance(axis, Polynomial):
            return None
        result[axis] = _sliced(dims[axis], start, end) if step == 1 else Polynomial.unknown()
    return tuple(result)


def _sliced(size: Size, start: Size, end: Size) -> Size:
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end).indices(size)))
    if start == -1 and isinstance(end, int) and end >= _END:
        return 1
    if isinstance(start, Polynomial) or start < 0:
        return Polynomial.unknown()
    if end == size or (isinstance(end, int) and end >= _END):
        return size - start if start else size
    if start == 0 and end == 1:
        return 1
    if start == 0 and isinstance(end, Polynomial) and isinstance(size, int):
        return end.at_most(size)
    return Polynomial.unknown()


def _range(node: ir.Node, known: Knowledge) -> Dims | None:
    start, limit, delta = (known.integer(value) for value in node.inputs)
    if start is None or limit is None or delta != 1:
        return None
    return (limit - start,)


def _resize(node: ir.Node, known: Knowledge) -> Dims | None:
    dims = known.dims(node.inputs[0])
    scales = known.floats(node.inputs[2]) if len(node.inputs) > 2 else None
    sizes = known.integers(node.inputs[3]) if len(node.inputs) > 3 else None
    if dims is None or "axes" in node.attributes:
        return None
    if sizes is not None and "keep_aspect_ratio_policy" not in node.attributes:
        return tuple(sizes)
    if scales is None or len(scales) != len(dims):
        return None
    return tuple(_scaled(size, scale) for size, scale in zip(dims, scales, strict=True))


def _scaled(size: Size, scale: float) -> Size:
    if isinstance(size, int):
        return int(size * scale)
    return size * int(scale) if scale == int(scale) else Polynomial.unknown()


def _same(node: ir.Node, known: Knowledge) -> Dims | None:
    return known.dims(node.inputs[0])


def _transpose(node: ir.Node, known: Knowledge) -> Dims | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    perm = node.attributes.get_ints("perm", tuple(reversed(range(len(dims)))))
    return tuple(dims[axis] for axis in perm) if len(perm) == len(dims) else None


def _matmul(node: ir.Node, known: Knowledge) -> Dims | None:
    return _multiplied(known.dims(node.inputs[0]), known.dims(node.inputs[1]))


def _multiplied(a: Dims | None, b: Dims | None) -> Dims | None:
    """The dimensions of a product of two stacks of matrices."""
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    rank = max(len(a), len(b))
    left = [1] * (rank - len(a)) + list(a)
    right = [1] * (rank - len(b)) + list(b)
    batch = [combined(x, y) for x, y in zip(left[:-2], right[:-2], strict=True)]
    return (*batch, left[-2], right[-1])


_KEEPING = (
    "Abs BatchNormalization Cast Clip Elu Erf Exp Gelu HardSigmoid HardSwish Identity "
    "LayerNormalization LeakyRelu Log LogSoftmax Mish Neg Not Reciprocal Relu Round Selu Sigmoid "
    "Sign Softmax Softplus Sqrt Tanh"
).split()
_BROADCASTING = (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow PRelu "
    "Sub Sum Where Xor"
).split()

Output = tuple["Dims | None", int | ir.DataType]
"""An output's dimensions, as far as known; and the input that has its type, or that type."""

OutputRule = Callable[[ir.Node, Callable[[int], "Dims | None"]], dict[int, Output]]


def _as_input(node: ir.Node, dims: Callable[[int], Dims | None]) -> dict[int, Output]:
    return dict.fromkeys((0, 3), (dims(0), 0))


def _packed_attention(node: ir.Node, dims: Callable[[int], Dims | None]) -> dict[int, Output]:
    x, weight = dims(0), dims(1)
    widths = node.attributes.get_ints("qkv_hidden_sizes")
    if x is None or weight is None or len(x) != 3 or len(weight) != 2:
        return {0: (None, 0)}
    if widths is None and isinstance(weight[1], int):
        return {0: ((*x[:2], weight[1] // 3), 0)}
    return {0: ((*x[:2], widths[2]) if widths is not None and len(widths) == 3 else None, 0)}


def _attention(node: ir.Node, dims: Callable[[int], Dims | None]) -> dict[int, Output]:
    query, value = dims(0), dims(2)
    known = query is not None and value is not None and len(query) == len(value) == 3
    return {0: ((*query[:2], value[2]) if known and query and value else None, 0)}


def _grouped_attention(node: ir.Node, dims: Callable[[int], Dims | None]) -> dict[int, Output]:
    query, separate = dims(0), dims(1) is not None
    heads, shared = (node.attributes.get_int(f"{kind}num_heads", 0) for kind in ("", "kv_"))
    known = query is not None and len(query) == 3 and heads > 0 and shared > 0
    if not known or query is None or not isinstance(query[2], int):
        return {0: (None, 0), 1: (None, 0), 2: (None, 0)}
    width = query[2] // (heads if separate else heads + 2 * shared)
    present = (query[0], shared, Polynomial.unknown(), width)
    return {0: ((*query[:2], heads * width), 0), 1: (present, 0), 2: (present, 0)}


def _integer_product(kind: int) -> OutputRule:
    """A product of integers, whose result has the type of this input."""

    def output(node: ir.Node, dims: Callable[[int], Dims | None]) -> dict[int, Output]:
        return {0: (_multiplied(dims(0), dims(1)), kind)}

    return output


def _few_bits(node: ir.Node, dims: Callable[[int], Dims | None]) -> dict[int, Output]:
    x, columns = dims(0), node.attributes.get_int("N", 0)
    return {0: ((*x[:-1], columns) if x and columns > 0 else None, 0)}


def _embedding(node: ir.Node, dims: Callable[[int], Dims | None]) -> dict[int, Output]:
    numbers, words = dims(0), dims(2)
    if numbers is None or words is None or len(numbers) != 2 or len(words) != 2:
        return {0: (None, 2), 1: (None, ir.DataType.INT32), 2: (None, 2)}
    made = (*numbers, words[1])
    return {0: (made, 2), 1: (numbers[:1], ir.DataType.INT32), 2: (made, 2)}


OUTPUTS: dict[tuple[str, str], OutputRule] = {
    ("", "GroupNormalization"): _as_input,
    ("com.microsoft", "Attention"): _packed_attention,
    ("com.microsoft", "BiasGelu"): _as_input,
    ("com.microsoft", "DynamicQuantizeMatMul"): _integer_product(0),
    ("com.microsoft", "EmbedLayerNormalization"): _embedding,
    ("com.microsoft", "FastGelu"): _as_input,
    ("com.microsoft", "Gelu"): _as_input,
    ("com.microsoft", "GroupQueryAttention"): _grouped_attention,
    ("com.microsoft", "MatMulIntegerToFloat"): _integer_product(2),
    ("com.microsoft", "MatMulNBits"): _few_bits,
    ("com.microsoft", "MultiHeadAttention"): _attention,
    ("com.microsoft", "QuickGelu"): _as_input,
    ("com.microsoft", "RotaryEmbedding"): _as_input,
    ("com.microsoft", "SkipLayerNormalization"): _as_input,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _as_input,
}
"""Operators without inference in onnx -> what is known of their outputs, by position."""

RULES: dict[str, Rule] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "MatMul": _matmul,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Transpose": _transpose,
    **dict.fromkeys(_BROADCASTING, _broadcast),
    **dict.fromkeys(_KEEPING, _same),
}
"""Operator -> its rule."""
