"""Random valid networks: chains of random layers, with every operator that has a label rule.

What is only defined for some numbers gets such, and nothing grows without bounds: infinities and
what isn't a number would hide what differs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

OPSETS = (17, 18, 21, 24, 26)
"""Versions of the default operator set that networks have."""

VERSIONS = {
    **dict.fromkeys("BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Mish".split(), (18, 21, 24, 26)),
    "CumProd": (26,),
    "Gelu": (21, 24, 26),
    "GlobalLpPool": (17, 18, 21),
    "GroupNormalization": (21, 24, 26),
    "MaxRoiPool": (17, 18, 21),
    "RMSNormalization": (24, 26),
    "RoiAlign": (17, 18, 21),
    "Swish": (24,),
}
"""Those that have an operator, and for which onnxruntime has a kernel, where not all do."""

ACTIVATIONS = (
    "Abs Asinh Atan Celu Clip Cos Elu Erf Gelu HardSigmoid HardSwish LeakyRelu Mish Neg Relu Selu "
    "Shrink Sigmoid Sin Softplus Softsign Swish Tanh ThresholdedRelu com.microsoft.FastGelu "
    "com.microsoft.Gelu com.microsoft.QuickGelu"
)
STEPS = "Ceil Floor Round Sign"
OF_BOUNDED = "Acos Asin Atanh Cosh Exp Sinh Tan"
OF_POSITIVE = "Acosh Log Reciprocal Sqrt"
COMPARISONS = "Equal Greater GreaterOrEqual Less LessOrEqual"
REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare"
)

Choose = Callable[[Sequence[Any]], Any]


class Builder:
    """Adds random layers to a network; every value has its shape beside it.

    Parameters
    ----------
    choose : returns one of what it is given.
    shape : of the input, without the batch.
    opset : version of the default operator set.
    """

    def __init__(self, choose: Choose, shape: tuple[int, ...], opset: int) -> None:
        self.choose = choose
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.fixed: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)
        self.inputs = {"x": shape, "u": shape}
        self.values: list[tuple[str, tuple[int, ...]]] = list(self.inputs.items())

    def weight(self, *shape: int) -> str:
        spread = 1 / np.sqrt(max(np.prod(shape[1:]), 1)) if len(shape) > 1 else 1.0
        same = [t.name for t in self.weights if t.data_type == 1 and tuple(t.dims) == shape]
        way = self.choose(["fresh"] * 12 + ["shared", "transposed", "inside"])
        if same and way == "shared":
            return self.choose(same)
        array = self.random.normal(0, spread, shape).astype(np.float32)
        if way == "inside":
            (name,) = self.add("Constant", [], value=numpy_helper.from_array(array))
        elif way == "transposed":
            (name,) = self.add("Transpose", [self.constant(np.ascontiguousarray(array.T))])
        else:
            return self.constant(array)
        self.fixed[name] = array
        return name

    def integers(self, values: list[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def target(self, name: str, sizes: list[int]) -> str:
        """Return a shape to make of a value: written out, or with sizes that are read from it.

        Parameters
        ----------
        name : what is reshaped.
        sizes : of which 0 means the size of the same axis, and -1 what remains.
        """
        if 0 not in sizes or self.chance():
            return self.integers(sizes)
        (shape,) = self.add("Shape", [name])
        pieces = []
        for i, size in enumerate(sizes):
            if size == 0:
                (one,) = self.add("Gather", [shape, self.constant(np.array(i))])
                pieces += self.add("Unsqueeze", [one, self.integers([0])])
            else:
                pieces.append(self.integers([size]))
        return self.add("Concat", pieces, axis=0)[0]

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        self.fixed[name] = array
        return name

    def add(
        self, operator: str, given: list[str], outputs: int = 1, **attributes: object
    ) -> list[str]:
        """Add a node; return its outputs. Runtimes' operators have their domain before them."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        domain, _, name = operator.rpartition(".")
        node = helper.make_node(
            name, given, names, name=f"n{len(self.nodes)}", domain=domain, **attributes
        )
        self.nodes.append(node)
        return names

    def one_of(self, operators: str) -> str:
        """Return one of some operators, of those that the operator set has."""
        return self.choose([name for name in operators.split() if self.has(name)])

    def has(self, operator: str) -> bool:
        return self.opset in VERSIONS.get(operator, OPSETS)

    def positive(self, name: str) -> str:
        """Return a value made of another, of numbers from 1.5.

        One of a weight is another weight: of what normalization computes once, in float32, float64
        couldn't tell more.
        """
        if name in self.fixed:
            return self.constant(1.5 + np.abs(self.fixed[name]))
        (made,) = self.add("Softplus", [name])
        return self.add("Add", [made, self.constant(np.float32(1.5))])[0]

    def bounded(self, name: str) -> str:
        """Return a value made of another, of numbers between -0.9 and 0.9."""
        if name in self.fixed:
            return self.constant(np.clip(self.fixed[name], -0.9, 0.9))
        (made,) = self.add("Tanh", [name])
        return self.add("Mul", [made, self.constant(np.float32(0.9))])[0]

    def channels_last(self, name: str) -> str:
        return self.add("Transpose", [name], perm=[0, 2, 3, 1])[0]

    def channels_first(self, name: str) -> str:
        return self.add("Transpose", [name], perm=[0, 3, 1, 2])[0]

    def reduce(self, operator: str, name: str, axes: list[int], keepdims: int = 1) -> str:
        """Return a value reduced over axes, which older operator sets have as attributes."""
        if self.opset < 18 and operator != "ReduceSum":
            return self.add(operator, [name], axes=axes, keepdims=keepdims)[0]
        return self.add(operator, [name, self.integers(axes)], keepdims=keepdims)[0]

    def note(self, name: str, *shape: int) -> None:
        self.values.append((name, shape))

    def pick(self, rank: int) -> tuple[str, tuple[int, ...]] | None:
        """Return one of the last values of a rank, if there is any."""
        found = [value for value in self.values if len(value[1]) == rank][-3:]
        return self.choose(found) if found else None

    def shape(self, name: str) -> tuple[int, ...]:
        return dict(self.values)[name]

    def pick_any(self) -> tuple[str, tuple[int, ...]]:
        """Return one of the last vectors or sequences, if there is any, or images."""
        return self.pick(self.choose([1, 2, 3])) or self.pick(3)

    def pick_like(self, name: str, shape: tuple[int, ...]) -> str:
        """Return a value to go with another: of its shape, or a number for all or each channel."""
        same = [other for other, given in self.values if given == shape][-3:]
        chosen = self.choose([*same, "one", "each"])
        if chosen == "one":
            return self.weight(1)
        if chosen != "each":
            return chosen
        return self.weight(*(shape[-1:] if len(shape) < 3 else (shape[0], 1, 1)))

    def integer(self, low: int, high: int) -> int:
        return self.choose(range(low, high + 1))

    def chance(self) -> bool:
        return self.choose([False, True])

    def model(self, twice: bool) -> onnx.ModelProto:
        """Return the network; what nothing uses gets a last layer and is an output.

        Parameters
        ----------
        twice : whether the last output is another one, too.
        """
        used = {name for node in self.nodes for name in node.input}
        used.update(name for node in self.nodes for name in _captured(node))
        outputs = []
        for name, shape in list(self.values):
            if name in used or name in self.inputs:
                continue
            if len(shape) < 3:
                (last,) = self.add("MatMul", [name, self.weight(shape[-1], 2)])
                outputs.append(helper.make_tensor_value_info(last, 1, ["N", *shape[:-1], 2]))
            else:
                (last,) = self.add("Conv", [name, self.weight(2, shape[0], 1, 1)])
                outputs.append(helper.make_tensor_value_info(last, 1, ["N", 2, *shape[1:]]))
        if twice:
            # This is the one identity that normalization leaves.
            copy = onnx.ValueInfoProto(name=self.add("Identity", [outputs[-1].name])[0])
            copy.type.CopyFrom(outputs[-1].type)
            outputs.append(copy)
        graph = helper.make_graph(
            self.nodes,
            "random",
            [
                helper.make_tensor_value_info(name, 1, ["N", *shape])
                for name, shape in self.inputs.items()
                if name in used
            ],
            outputs,
            self.weights,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain == "com.microsoft" for node in self.nodes):
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what the graphs inside a node read."""
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from inner.input


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


# Layers: each takes the builder, and adds nodes and the values that they make.


def convolution(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    groups = b.choose([1, 1, *divisors(channels)])
    out = groups * b.integer(1, max(1, 8 // groups))
    kernel = b.choose([1, 3]) if min(height, width) > 2 else 1
    given = [name, b.weight(out, channels // groups, kernel, kernel)]
    if b.chance():
        given.append(b.weight(out))
    strides = b.choose([1, 1, 2]) if min(height, width) > 3 else 1
    attributes = {"pads": [kernel // 2] * 4}
    if b.chance():
        attributes = {"auto_pad": "SAME_UPPER"}
    if b.chance():
        attributes["kernel_shape"] = [kernel, kernel]
    (made,) = b.add("Conv", given, group=groups, strides=[strides] * 2, **attributes)
    b.note(made, out, -(-height // strides), -(-width // strides))


def transposed_convolution(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    if height > 8:
        return
    groups = b.choose([1, 1, *divisors(channels)])
    out = b.integer(1, max(1, 6 // groups))
    given = [name, b.weight(channels, out, 2, 2), b.weight(groups * out)]
    (made,) = b.add("ConvTranspose", given, group=groups, strides=[2, 2])
    b.note(made, groups * out, 2 * height, 2 * width)


def norm(b: Builder) -> None:
    name, (channels, *space) = b.pick(3)
    variance = b.constant(b.random.uniform(0.5, 1.5, channels).astype(np.float32))
    parameters = [b.weight(channels), b.weight(channels), b.weight(channels), variance]
    (made,) = b.add("BatchNormalization", [name, *parameters])
    b.note(made, channels, *space)


def activation(b: Builder) -> None:
    name, shape = b.pick_any()
    (made,) = b.add(b.one_of(ACTIVATIONS), [name])
    b.note(made, *shape)


def function(b: Builder) -> None:
    """A function that takes some numbers only, grows fast, or has steps."""
    name, shape = b.pick_any()
    operator = b.one_of(f"{STEPS} {OF_BOUNDED} {OF_POSITIVE}")
    if operator in OF_BOUNDED.split():
        name = b.bounded(name)
    elif operator in OF_POSITIVE.split():
        name = b.positive(name)
    (made,) = b.add(operator, [name])
    b.note(made, *shape)


def two_numbers(b: Builder) -> None:
    """An operator of two numbers of which some have no result, or of another type."""
    name, shape = b.pick_any()
    other = b.pick_like(name, shape)
    operator = b.one_of("CastLike Div Mod Pow")
    if operator == "Mod":
        (made,) = b.add(operator, [name, b.positive(other)], fmod=1)
    elif operator == "CastLike":
        (made,) = b.add(operator, [name, other])
    elif operator == "Div":
        (made,) = b.add(operator, [name, b.positive(other)])
    else:
        (made,) = b.add(operator, [b.positive(name), b.bounded(other)])
    b.note(made, *shape)


def several(b: Builder) -> None:
    """An operator of any number of inputs, of three."""
    name, shape = b.pick_any()
    given = [name, b.pick_like(name, shape), b.pick_like(name, shape)]
    given = list(b.choose(list(itertools.permutations(given))))
    (made,) = b.add(b.one_of("Max Mean Min Sum"), given)
    b.note(made, *shape)


def comparison(b: Builder) -> None:
    """Choose between numbers, or multiply them, by what holds of them."""
    name, shape = b.pick_any()
    flags = [b.add(b.one_of(COMPARISONS), [name, b.pick_like(name, shape)])[0] for _ in range(2)]
    (flag,) = b.add(b.one_of("And Or Xor"), flags)
    if b.chance():
        (flag,) = b.add("Not", [flag])
    if b.chance():
        (made,) = b.add("Where", [flag, name, b.pick_like(name, shape)])
    else:
        (number,) = b.add("Cast", [flag], to=TensorProto.FLOAT)
        (made,) = b.add("Mul", [number, name])
    b.note(made, *shape)


def flags(b: Builder) -> None:
    """Replace what isn't finite, or what a dropout leaves out: nothing is."""
    name, shape = b.pick_any()
    operator = b.one_of("IsInf IsNaN Dropout")
    if operator == "Dropout":
        made, kept = b.add(operator, [name], 2)
        (made,) = b.add("Where", [kept, made, b.pick_like(name, shape)])
    else:
        (flag,) = b.add(operator, [name])
        (made,) = b.add("Where", [flag, b.pick_like(name, shape), name])
    b.note(made, *shape)


def whole_numbers(b: Builder) -> None:
    """Round to integers or another type, do something with their bits, and go back."""
    name, shape = b.pick_any()
    operator = b.one_of("Cast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor")
    types = {"Cast": [TensorProto.INT64, TensorProto.DOUBLE], "BitShift": [TensorProto.UINT32]}
    to = b.choose(types.get(operator, [TensorProto.INT32]))
    given = []
    for one in [name] if operator in ("Cast", "BitwiseNot") else [name, b.pick_like(name, shape)]:
        low, high = (0, 8) if operator == "BitShift" else (-100, 100)
        bounds = [b.constant(np.float32(low)), b.constant(np.float32(high))]
        (limited,) = b.add("Clip", [one, *bounds])
        given += b.add("Cast", [limited], to=to)
    if operator == "BitShift":
        given = b.add(operator, given, direction=b.choose(["LEFT", "RIGHT"]))
    elif operator != "Cast":
        given = b.add(operator, given)
    (made,) = b.add("Cast", given, to=TensorProto.FLOAT)
    b.note(made, *shape)


def quantization(b: Builder) -> None:
    """Quantize and dequantize, by one scale or one for each channel."""
    name, shape = b.pick_any()
    axis, channels = (-1, shape[-1]) if len(shape) == 2 else (1, shape[0])
    size = b.choose([(), (1,), (channels,)])
    parameters = [b.constant(b.random.uniform(0.05, 0.2, size).astype(np.float32))]
    kind = b.choose([np.int8, np.uint8, None])
    if kind is not None:
        parameters.append(b.constant(b.random.integers(0, 9, size).astype(kind)))
    (whole,) = b.add("QuantizeLinear", [name, *parameters], axis=axis)
    (made,) = b.add("DequantizeLinear", [whole, *parameters], axis=axis)
    b.note(made, *shape)


def quantized_weight(b: Builder) -> None:
    """A convolution whose weight is dequantized first."""
    name, (channels, height, width) = b.pick(3)
    out = b.integer(1, 8)
    weight = b.constant(b.random.integers(-127, 128, (out, channels, 1, 1)).astype(np.int8))
    size = b.choose([(), (out,)])
    step = b.constant(b.random.uniform(0.001, 0.01, size).astype(np.float32))
    (weight,) = b.add("DequantizeLinear", [weight, step], axis=0)
    (made,) = b.add("Conv", [name, weight])
    b.note(made, out, height, width)


def pool(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    if height < 4 or width < 2:
        return
    operator = b.one_of("AveragePool LpPool MaxPool")
    (made,) = b.add(operator, [name], kernel_shape=[2, 2], strides=[2, 2])
    b.note(made, channels, height // 2, width // 2)


def join(b: Builder) -> None:
    """Concatenate, add or multiply two values whose shapes allow it, or three."""
    rank = b.choose([1, 2, 3])
    first = b.pick(rank)
    if first is None:
        return
    name, shape = first
    along = 1 if rank == 2 else 0
    others = [v for v in b.values if _other_sizes(v[1], along) == _other_sizes(shape, along)][-4:]
    other, other_shape = b.choose(others)
    if other_shape == shape and b.chance():
        (made,) = b.add(b.one_of("Add Max Mul"), [name, other])
        b.note(made, *shape)
        return
    given = b.choose([[name, other], [other, name, other], [other, name]])
    size = sum(b.shape(one)[along] for one in given)
    if size > 24:
        return
    if rank == 3 and b.chance():  # a constant beside the rest
        (one,) = b.add("Shape", [name], start=0, end=1)
        (shape_of_one,) = b.add("Concat", [one, b.integers([1, *shape[1:]])], axis=0)
        given.append(b.add("Expand", [b.weight(1, 1, 1, 1), shape_of_one])[0])
        size += 1
    (made,) = b.add("Concat", given, axis=b.choose([along + 1, along - rank]))
    b.note(made, *shape[:along], size, *shape[along + 1 :])


def _other_sizes(shape: tuple[int, ...], along: int) -> tuple[int, ...]:
    return (len(shape), *shape[:along], *shape[along + 1 :])


def split(b: Builder) -> None:
    """Cut into two pieces or three, of any sizes or of the same."""
    rank = b.choose([1, 2, 3])
    found = b.pick(rank)
    along = 1 if rank == 2 else 0
    if found is None or found[1][along] < 3:
        return
    name, shape = found
    size = shape[along]
    first = b.integer(1, size - 2)
    sizes = b.choose([[first, size - first], [first, 1, size - first - 1]])
    count = b.choose([d for d in divisors(size) if d > 1])
    if count < 5 and b.chance():
        sizes = [size // count] * count
        more = {} if b.opset < 18 else {"num_outputs": count}
        pieces = b.add("Split", [name], count, axis=along + 1, **more)
    else:
        pieces = b.add("Split", [name, b.integers(sizes)], len(sizes), axis=along - rank)
    unread = b.choose([0, 0, 1])  # so many pieces nobody reads
    for made, piece in list(zip(pieces, sizes, strict=True))[unread:]:
        b.note(made, *shape[:along], piece, *shape[along + 1 :])


def slices(b: Builder) -> None:
    """Take channels between two, or every second, perhaps a part of space; or turn them round."""
    name, (channels, *rest) = b.pick(3)
    if b.choose([False] * 5 + [True]):
        bounds = [b.integers([n]) for n in (-1, -(2**63) + 1, b.choose([1, -3]), -1)]
        (made,) = b.add("Slice", [name, *bounds])
        b.note(made, channels, *rest)
        return
    start = b.integer(0, channels - 1)
    end = b.integer(start + 1, channels)
    step = b.choose([1, 1, 1, 2])
    starts = [b.choose([start, start - channels])]
    ends = [b.choose([end, end - channels or 2**31])]
    axes, steps = [b.choose([1, -3])], [step]
    if rest[1] > 1 and b.chance():
        starts, ends, axes, steps = [*starts, 0], [*ends, rest[1] - 1], [*axes, 3], [*steps, 1]
        rest = [rest[0], rest[1] - 1]
    given = [b.integers(starts), b.integers(ends), b.integers(axes)]
    if step > 1 or b.chance():
        given.append(b.integers(steps))
    (made,) = b.add("Slice", [name, *given])
    b.note(made, -(-(end - start) // step), *rest)


def gather(b: Builder) -> None:
    """Take channels in any order, or one alone."""
    name, (channels, *rest) = b.pick(3)
    if b.chance():
        one = b.constant(np.array(b.integer(-channels, channels - 1)))
        (made,) = b.add("Gather", [name, one], axis=b.choose([1, -3]))
        (made,) = b.add("Unsqueeze", [made, b.integers([1])])
        b.note(made, 1, *rest)
        return
    order = [b.integer(-channels, channels - 1) for _ in range(b.integer(1, 10))]
    (made,) = b.add("Gather", [name, b.integers(order)], axis=1)
    b.note(made, len(order), *rest)


def shuffle(b: Builder) -> None:
    """Mix channels by a reshape, a transpose and a reshape; written out, or with 0 and -1."""
    name, (channels, height, width) = b.pick(3)
    groups = b.choose(divisors(channels))
    batch = b.choose([0, -1])
    first = b.integers([batch, groups, channels // groups, height, width])
    (made,) = b.add("Reshape", [name, first])
    (made,) = b.add("Transpose", [made], perm=[0, 2, 1, 3, 4])
    second = [0, b.choose([channels, -1]), height, width]
    (made,) = b.add("Reshape", [made, b.integers(second)])
    b.note(made, channels, height, width)


def to_vector(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    if channels * height * width > 200 or b.chance():
        name = global_pool(b, name)
        height = width = 1
    if b.chance():
        name = b.choose([name, b.channels_last(name)])
        (made,) = b.add("Flatten", [name], axis=b.choose([1, -3]))
    else:
        size = channels * height * width
        target = b.choose([[0, -1], [-1, size], [0, size]])
        (made,) = b.add("Reshape", [name, b.target(name, target)])
    b.note(made, channels * height * width)


def global_pool(b: Builder, name: str) -> str:
    """Return one number for each channel of a value."""
    return b.add(b.one_of("GlobalAveragePool GlobalLpPool GlobalMaxPool"), [name])[0]


def linear(b: Builder) -> None:
    if b.pick(1) is None:
        to_vector(b)
    name, (size,) = b.pick(1)
    out = b.integer(1, 8)
    if b.chance():
        flip_a, flip_b = b.integer(0, 1), b.integer(0, 1)
        if flip_a:
            (name,) = b.add("Transpose", [name], perm=[1, 0])
        given = [name, b.weight(out, size) if flip_b else b.weight(size, out)]
        bias = b.choose([(out,), (1, out), (1,), None])
        if bias:
            given.append(b.weight(*bias))
        (made,) = b.add("Gemm", given, transA=flip_a, transB=flip_b, alpha=0.5, beta=2.0)
    else:
        (made,) = b.add("MatMul", [name, b.weight(size, out)])
    b.note(made, out)


def gate(b: Builder) -> None:
    """Multiply channels by weights computed from their means."""
    name, (channels, height, width) = b.pick(3)
    mean = global_pool(b, name)
    (small,) = b.add("Conv", [mean, b.weight(3, channels, 1, 1)])
    (large,) = b.add("Conv", [small, b.weight(channels, 3, 1, 1)])
    (weights,) = b.add("Sigmoid", [large])
    (made,) = b.add("Mul", [name, weights])
    b.note(made, channels, height, width)


def last_axis(b: Builder) -> None:
    """Mix channels by a matrix, with channels last, as networks from TensorFlow do."""
    name, (channels, height, width) = b.pick(3)
    out = b.integer(1, 8)
    (made,) = b.add("MatMul", [b.channels_last(name), b.weight(channels, out)])
    operator = b.one_of("Add com.microsoft.BiasGelu com.microsoft.FastGelu")
    (made,) = b.add(operator, [made, b.weight(out)])
    b.note(b.channels_first(made), out, height, width)


def layer_norm(b: Builder) -> None:
    name, (channels, *space) = b.pick(3)
    operator = b.one_of("LayerNormalization RMSNormalization")
    if b.chance():
        # Over all axes, whose statistics channels have a part in.
        (made,) = b.add(operator, [name, b.weight(channels, *space)], axis=b.choose([1, -3]))
        b.note(made, channels, *space)
        return
    parameters = [b.weight(channels)]
    if operator == "LayerNormalization" and b.chance():
        parameters.append(b.weight(channels))
    (made,) = b.add(operator, [b.channels_last(name), *parameters])
    b.note(b.channels_first(made), channels, *space)


def skip_norm(b: Builder) -> None:
    """Normalize a sum, which may be handed on too, as onnxruntime's transformers do."""
    name, (channels, height, width) = b.pick(3)
    given = []
    for one in (name, b.choose([v for v, s in b.values if s == b.shape(name)])):
        (flat,) = b.add("Reshape", [one, b.integers([0, channels, -1])])
        given += b.add("Transpose", [flat], perm=[0, 2, 1])
    operator = b.one_of("SkipLayerNormalization SkipSimplifiedLayerNormalization")
    parameters = 1 if "Simplified" in operator else b.integer(1, 2)
    given += [b.weight(channels) for _ in range(parameters)]
    if b.chance():
        given += ["" for _ in range(len(given), 3 if "Simplified" in operator else 4)]
        given.append(b.weight(channels))
    made, *_, total = b.add(f"com.microsoft.{operator}", given, 4)
    b.nodes[-1].output[1:3] = ["", ""]
    for one in (made, total) if b.chance() else (made,):
        (turned,) = b.add("Transpose", [one], perm=[0, 2, 1])
        (back,) = b.add("Reshape", [turned, b.integers([0, channels, height, width])])
        b.note(back, channels, height, width)


def sequence(b: Builder) -> None:
    """Make positions a sequence of vectors."""
    name, (channels, height, width) = b.pick(3)
    if height * width > 16:
        return
    (flat,) = b.add("Reshape", [name, b.target(name, [0, b.choose([0, channels]), -1])])
    (made,) = b.add("Transpose", [flat], perm=[0, 2, 1])
    b.note(made, height * width, channels)


def latest_sequence(b: Builder) -> tuple[str, tuple[int, ...]] | None:
    """Return a sequence, made of an image if there is none; None if images are too large."""
    if b.pick(2) is None:
        sequence(b)
    return b.pick(2)


def image_again(b: Builder) -> None:
    """Make a sequence an image of one row."""
    found = latest_sequence(b)
    if found is None:
        return
    name, (time, channels) = found
    (turned,) = b.add("Transpose", [name], perm=[0, 2, 1])
    target = b.choose([[0, channels, 1, time], [0, -1, 1, time], [-1, channels, 1, time]])
    (made,) = b.add("Reshape", [turned, b.target(turned, target)])
    b.note(made, channels, 1, time)


def sequence_layer(b: Builder) -> None:
    """A layer of features, with what it started from added again if that is as wide."""
    found = latest_sequence(b)
    if found is None:
        return
    name, (time, channels) = found
    inner = name
    if b.chance():
        inner = normalized_sequence(b, name, channels)
    out = b.choose([channels, b.integer(1, 8)])
    (made,) = b.add("MatMul", [inner, b.weight(channels, out)])
    operator = b.one_of("Add com.microsoft.BiasGelu com.microsoft.FastGelu")
    (made,) = b.add(operator, [made, b.weight(out)])
    if b.chance():
        (made,) = b.add("MatMul", [made, b.weight(out, channels)])
        out = channels
    if out == channels and b.chance():
        (made,) = b.add("Add", b.choose([[name, made], [made, name]]))
    b.note(made, time, out)


def normalized_sequence(b: Builder, name: str, channels: int) -> str:
    operator = b.one_of("LayerNormalization RMSNormalization Softmax Positions Mean")
    if operator == "Softmax":
        return b.add(operator, [name], axis=b.choose([1, 2, -1]))[0]
    if operator == "Mean":
        # As exporters write it.
        (gap,) = b.add("Sub", [name, b.reduce("ReduceMean", name, [-1])])
        (square,) = b.add("Pow", [gap, b.constant(np.float32(2))])
        mean = b.reduce("ReduceMean", square, [-1])
        (more,) = b.add("Add", [mean, b.constant(np.float32(1e-3))])
        (root,) = b.add("Sqrt", [more])
        (made,) = b.add("Div", [gap, root])
        (made,) = b.add("Mul", [made, b.weight(channels)])
        return b.add("Add", [made, b.weight(channels)])[0]
    if operator == "Positions":
        return b.add("Add", [name, b.weight(1, b.shape(name)[0], channels)])[0]
    return b.add(operator, [name, b.weight(channels)], axis=-1)[0]


def attention(b: Builder) -> None:
    """Attention over positions, with one or three projections, and 2 heads of 2 or 3 features."""
    found = latest_sequence(b)
    if found is None or found[1][0] > 16:
        return
    tokens, (time, channels) = found
    features = b.integer(2, 3)
    size = 2 * features
    if b.chance():
        (all_three,) = b.add("MatMul", [tokens, b.weight(channels, 3 * size)])
        projected = b.add("Split", [all_three, b.integers([size] * 3)], 3, axis=2)
    else:
        projected = [b.add("MatMul", [tokens, b.weight(channels, size)])[0] for _ in range(3)]
    heads = []
    for value, order in zip(projected, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True):
        target = b.choose([[0, time, 2, features], [0, 0, 2, -1], [-1, time, 2, features]])
        (split_heads,) = b.add("Reshape", [value, b.target(value, target)])
        heads.append(b.add("Transpose", [split_heads], perm=order)[0])
    (scores,) = b.add("MatMul", heads[:2])
    mask = b.choose(["none", "scale", "numbers", "heads"])
    if mask == "scale":
        (scores,) = b.add("Div", [scores, b.constant(np.float32(1.5))])
    elif mask != "none":
        (scores,) = b.add("Add", [scores, b.weight(1, 2 if mask == "heads" else 1, time, time)])
    (even,) = b.add("Softmax", [scores], axis=-1)
    (mixed,) = b.add("MatMul", [even, heads[2]])
    (back,) = b.add("Transpose", [mixed], perm=[0, 2, 1, 3])
    target = b.choose([[0, time, size], [0, time, -1], [0, 0, -1]])
    (joined,) = b.add("Reshape", [back, b.target(back, target)])
    b.note(joined, time, size)


def attention_operator(b: Builder) -> None:
    """The same as one operator: with three axes or four, with keys that heads share or don't."""
    found = latest_sequence(b)
    if b.opset < 24 or found is None or found[1][0] > 16:
        return
    tokens, (time, channels) = found
    features, values = b.integer(2, 3), b.integer(2, 3)
    four, heads = b.choose([True, False]), b.choose([2, 4])
    given = []
    for number, each in ((heads, features), (2, features), (2, values)):
        (made,) = b.add("MatMul", [tokens, b.weight(channels, number * each)])
        if four:
            (made,) = b.add("Reshape", [made, b.integers([0, time, number, each])])
            (made,) = b.add("Transpose", [made], perm=[0, 2, 1, 3])
        given.append(made)
    attributes = {} if four else {"q_num_heads": heads, "kv_num_heads": 2}
    if b.chance():
        attributes["scale"] = 0.5
    mask = b.choose(["none", "later", "numbers", "heads"])
    if mask == "later":
        attributes["is_causal"] = 1
    elif mask != "none":
        given.append(b.weight(*[1, heads][: 2 * (mask == "heads")], time, time))
    (made,) = b.add("Attention", given, **attributes)
    if four:
        (made,) = b.add("Transpose", [made], perm=[0, 2, 1, 3])
        (made,) = b.add("Reshape", [made, b.integers([0, time, heads * values])])
    b.note(made, time, heads * values)


def fused_attention(b: Builder) -> None:
    """The same as onnxruntime fuses it, with its projections inside or outside."""
    found = latest_sequence(b)
    if found is None or found[1][0] > 16:
        return
    tokens, (time, channels) = found
    features, values = b.integer(2, 3), b.integer(2, 3)
    sizes = [2 * features, 2 * features, 2 * values]
    operator = b.one_of("Attention MultiHeadAttention")
    attributes: dict[str, Any] = {"num_heads": 2}
    if operator == "Attention":
        given = [tokens, b.weight(channels, sum(sizes)), b.weight(sum(sizes)), "", ""]
        if features != values:
            attributes["qkv_hidden_sizes"] = sizes
        if b.chance():
            attributes["unidirectional"] = 1
    else:
        given = [b.add("MatMul", [tokens, b.weight(channels, size)])[0] for size in sizes]
        given += [b.choose(["", b.weight(sum(sizes))]), ""]
    if b.chance():
        attributes["scale"] = 0.5
    if b.chance():
        given.append(b.weight(1, b.choose([1, 2]), time, time))
    while not given[-1]:
        given.pop()
    (made,) = b.add(f"com.microsoft.{operator}", given, **attributes)
    b.note(made, time, 2 * values)


def grouped_attention(b: Builder) -> None:
    """Attention as decoders have it in onnxruntime, whose heads have 16 features at least."""
    found = latest_sequence(b)
    if found is None or found[1][0] > 16:
        return
    tokens, (time, channels) = found
    heads, packed = b.choose([2, 4, 6]), b.chance()
    sizes = [16 * heads, 32, 32]
    sizes = [sum(sizes)] if packed else sizes
    given = [b.add("MatMul", [tokens, b.weight(channels, size)])[0] for size in sizes]
    (batch,) = b.add("Shape", [tokens], start=0, end=1)
    (last,) = b.add("Expand", [b.constant(np.array([time - 1], np.int32)), batch])
    total = b.constant(np.array(time, np.int32))
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": 2}
    tables = ["", ""]
    if b.chance():
        attributes |= {"do_rotary": 1, "rotary_interleaved": b.choose([0, 1])}
        angles = np.outer(np.arange(time), 1 / np.arange(1, 9)).astype(np.float32)
        tables = [b.constant(np.cos(angles)), b.constant(np.sin(angles))]
    if b.chance():
        attributes["scale"] = 0.5
    given += [""] * (3 - len(sizes)) + ["", "", last, total, *tables]
    if b.chance():
        given += ["", b.choose(["", b.weight(1, b.choose([1, heads]), time, time)])]
    while not given[-1]:
        given.pop()
    (made,) = b.add("com.microsoft.GroupQueryAttention", given, **attributes)
    b.note(made, time, 16 * heads)


def rotation(b: Builder) -> None:
    """Turn the features of two heads, in pairs, by angles that grow with the position."""
    found = latest_sequence(b)
    if found is None or found[1][0] > 16:
        return
    tokens, (time, channels) = found
    size = b.choose([4, 6])
    (made,) = b.add("MatMul", [tokens, b.weight(channels, 2 * size)])
    angles = np.outer(np.arange(time), 1 / np.arange(1, size // 2 + 1)).astype(np.float32)
    tables = [b.constant(np.cos(angles)), b.constant(np.sin(angles))]
    (batch,) = b.add("Shape", [tokens], start=0, end=1)
    (sizes,) = b.add("Concat", [batch, b.integers([time])], axis=0)
    (places,) = b.add("Expand", [b.constant(np.arange(time)[None]), sizes])
    interleaved = b.choose([0, 1])
    if b.opset > 22 and b.chance():
        given = [made, *tables, places]
        (made,) = b.add("RotaryEmbedding", given, num_heads=2, interleaved=interleaved)
    else:
        places = b.choose([places, b.integers([0])])
        given = [made, places, *tables]
        (made,) = b.add("com.microsoft.RotaryEmbedding", given, interleaved=interleaved)
    b.note(made, time, 2 * size)


def embedding(b: Builder) -> None:
    """Add rows of tables, as onnxruntime fuses it, to a sequence."""
    found = latest_sequence(b)
    if found is None:
        return
    tokens, (time, channels) = found
    numbers = [b.constant(np.arange(time, dtype=np.int32)[None] % rows) for rows in (3, 2)]
    tables = [b.weight(rows, channels) for rows in (3, time, 2)]
    if b.chance():
        numbers[1] = tables[2] = ""
    given = [*numbers, *tables, b.weight(channels), b.weight(channels)]
    made, _, total = b.add("com.microsoft.EmbedLayerNormalization", given, 3)
    (made,) = b.add("Add", [tokens, b.choose([made, total])])
    b.note(made, time, channels)


def depth_and_space(b: Builder) -> None:
    """Move channels to space, or back."""
    name, (channels, height, width) = b.pick(3)
    if channels % 4 == 0 and height <= 4:
        mode = b.choose(["DCR", "CRD"])
        (made,) = b.add("DepthToSpace", [name], blocksize=2, mode=mode)
        b.note(made, channels // 4, 2 * height, 2 * width)
    elif height % 2 == 0 and width % 2 == 0 and channels <= 6:
        (made,) = b.add("SpaceToDepth", [name], blocksize=2)
        b.note(made, channels * 4, height // 2, width // 2)


def pad(b: Builder) -> None:
    """Pad space, and perhaps channels too."""
    name, (channels, height, width) = b.pick(3)
    if height > 8:
        return
    more = b.integer(0, 2)
    mode = "constant" if more else b.choose(["constant", "edge"])
    if b.opset > 17 and b.chance():
        value = b.choose(["", b.constant(np.float32(0.5))])
        given = [b.integers([more, 0, 0, 1]), value, b.integers([b.choose([1, -3]), 3])]
        (made,) = b.add("Pad", [name, *given], mode=mode)
        b.note(made, channels + more, height, width + 1)
        return
    (made,) = b.add("Pad", [name, b.integers([0, more, 1, 0, 0, 0, 0, 1])], mode=mode)
    b.note(made, channels + more, height + 1, width + 1)


def resize(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    if height > 4:
        return
    mode = b.choose(["nearest", "linear"])
    if b.chance():
        scales = b.constant(np.array([1, 1, 2, 2], np.float32))
        (made,) = b.add("Resize", [name, "", scales], mode=mode)
    else:
        (shape,) = b.add("Shape", [name], start=0, end=2)
        (sizes,) = b.add("Concat", [shape, b.integers([2 * height, 2 * width])], axis=0)
        (made,) = b.add("Resize", [name, "", "", sizes], mode=mode)
    b.note(made, channels, 2 * height, 2 * width)


def tile(b: Builder) -> None:
    """Repeat channels or positions."""
    name, (channels, height, width) = b.pick(3)
    along = b.choose([1, 3])
    if channels > 8 or width > 6:
        return
    repeats = [2 if axis == along else 1 for axis in range(4)]
    (made,) = b.add("Tile", [name, b.integers(repeats)])
    b.note(made, channels * repeats[1], height, width * repeats[3])


def expand(b: Builder) -> None:
    """Channels' means spread over space again, by numbers or by the shape of what they are of."""
    name, (channels, height, width) = b.pick(3)
    mean = reduced(b, name, [2, 3])
    if b.chance():
        shape = b.integers([1, channels if b.chance() else 1, height, width])
    else:
        (shape,) = b.add("Shape", [name])
    (made,) = b.add("Expand", [mean, shape])
    b.note(made, channels, height, width)


def reduced(b: Builder, name: str, axes: list[int]) -> str:
    """Return a value reduced over axes, which stay."""
    operator = b.one_of(REDUCTIONS)
    if operator == "ReduceLogSum":
        name = b.positive(name)
    elif operator == "ReduceProd":
        name = b.bounded(name)
    return b.reduce(operator, name, axes)


def reduction(b: Builder) -> None:
    """Reduce positions away: a vector of an image, or of a sequence."""
    name, shape = b.pick(b.choose([2, 3])) or b.pick(3)
    image = len(shape) == 3
    axes = b.choose([[2, 3], [-1, -2]]) if image else [1]
    operator = b.one_of("ReduceMax ReduceMean ReduceMin ReduceSum")
    b.note(b.reduce(operator, name, axes, keepdims=0), shape[0] if image else shape[1])


def by_groups(b: Builder) -> None:
    """Do something to channels in groups of their own axis."""
    name, (channels, height, width) = b.pick(3)
    groups = b.choose(divisors(channels))
    each = channels // groups
    target = b.choose([[0, groups, each, -1], [-1, groups, each, height * width]])
    (made,) = b.add("Reshape", [name, b.target(name, target)])
    kind = b.choose(["scale", "softmax", "sum", "product", "join", "cut", "turn"])
    if kind == "scale":
        (made,) = b.add("Mul", [made, b.weight(b.choose([1, groups]), b.choose([1, each]), 1)])
    elif kind == "softmax":
        (made,) = b.add("Softmax", [made], axis=b.choose([1, 2, 3]))
    elif kind == "sum":
        made, groups = b.reduce("ReduceSum", made, [1]), 1
    elif kind == "product":
        out = b.integer(1, 3)
        (made,) = b.add("MatMul", [b.weight(groups, out, each), made])
        each = out
    elif kind == "join":
        (made,) = b.add("Concat", [made, made], axis=1)
        groups *= 2
    elif kind == "cut":
        groups = b.integer(1, groups)
        bounds = [b.integers([value]) for value in (0, groups, 1)]
        (made,) = b.add("Slice", [made, *bounds])
    else:
        (made,) = b.add("Transpose", [made], perm=[0, 2, 1, 3])
        groups, each = each, groups
    if groups * each > 24:
        return
    target = [0, b.choose([-1, groups * each]), height, width]
    (made,) = b.add("Reshape", [made, b.target(made, target)])
    b.note(made, groups * each, height, width)


def branches(b: Builder) -> None:
    """Two ways, of which a number that isn't known chooses one; both read what is outside."""
    name, shape = b.pick_any()
    (number,) = b.add("ReduceSum", [name], keepdims=0)
    (flag,) = b.add("Greater", [number, b.constant(np.float32(0))])
    graphs = []
    for i, operator in enumerate(("Add", "Mul")):
        inside = f"{flag} {i}"
        result = helper.make_tensor_value_info(inside, 1, ["N", *shape])
        node = helper.make_node(operator, [name, b.pick_like(name, shape)], [inside])
        graphs.append(helper.make_graph([node], operator, [], [result]))
    (made,) = b.add("If", [flag], then_branch=graphs[0], else_branch=graphs[1])
    b.note(made, *shape)


def turned(b: Builder) -> None:
    """Channels become rows, or rows channels, or both one axis."""
    name, (channels, height, width) = b.pick(3)
    kind = b.choose(["turn", "merge", "spread"])
    if kind == "turn":
        (made,) = b.add("Transpose", [name], perm=[0, 2, 1, 3])
        b.note(made, height, channels, width)
    elif kind == "merge" and channels * height <= 24:
        target = b.choose([[0, channels * height, 1, width], [0, -1, 1, width]])
        (made,) = b.add("Reshape", [name, b.target(name, target)])
        b.note(made, channels * height, 1, width)
    elif kind == "spread" and channels % 2 == 0 and height <= 4:
        target = b.choose([[0, channels // 2, 2 * height, width], [0, -1, 2 * height, width]])
        (made,) = b.add("Reshape", [name, b.target(name, target)])
        b.note(made, channels // 2, 2 * height, width)


def products(b: Builder) -> None:
    """Multiply what a vector or a sequence holds by itself: each feature meets each."""
    found = b.pick(b.choose([1, 2])) or latest_sequence(b)
    if found is None or found[1][-1] > 5:
        return
    name, shape = found
    size = shape[-1]
    if len(shape) == 1:
        (column,) = b.add("Unsqueeze", [name, b.integers([2])])
        (row,) = b.add("Unsqueeze", [name, b.integers([1])])
        (made,) = b.add(b.one_of("Add MatMul Mul"), [column, row])
    elif b.chance():
        # The proof sees what is removed only where it isn't limited to some number.
        (name,) = b.add("MatMul", [name, b.weight(size, size)])
        (other,) = b.add("Transpose", [name], perm=[0, 2, 1])
        b.note(b.add("MatMul", [name, other])[0], shape[0], shape[0])
        return
    else:
        (other,) = b.add("Transpose", [name], perm=[0, 2, 1])
        (made,) = b.add("MatMul", [other, name])
    if b.chance():
        b.note(made, size, size)
        return
    (made,) = b.add("Flatten", [made])
    b.note(made, size * size)


def squeeze(b: Builder) -> None:
    """Means over one axis without that axis, and the axis back."""
    name, (channels, height, width) = b.pick(3)
    mean = b.reduce("ReduceMean", name, [3])
    (less,) = b.add("Squeeze", [mean, b.integers([3])])
    (made,) = b.add("Unsqueeze", [less, b.integers([-1])])
    (made,) = b.add("Sub", [name, made])
    b.note(made, channels, height, width)


def einsum(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    out = b.integer(1, 6)
    equation = b.choose(["nchw,ck->nkhw", "nchw,kc->nkhw"])
    shape = (channels, out) if equation.startswith("nchw,ck") else (out, channels)
    (made,) = b.add("Einsum", [name, b.weight(*shape)], equation=equation)
    b.note(made, out, height, width)


def instance_norm(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    if height * width < 4:
        return
    (made,) = b.add("InstanceNormalization", [name, b.weight(channels), b.weight(channels)])
    b.note(made, channels, height, width)


def group_norm(b: Builder) -> None:
    """Normalize groups, by an operator or as PyTorch writes it: by an instance normalization."""
    name, (channels, height, width) = b.pick(3)
    groups = b.choose(divisors(channels))
    if channels // groups * height * width < 4:
        return
    if b.has("GroupNormalization") and b.chance():
        parameters = [b.weight(channels), b.weight(channels)]
        (made,) = b.add("GroupNormalization", [name, *parameters], num_groups=groups)
        b.note(made, channels, height, width)
        return
    (made,) = b.add("Reshape", [name, b.integers([0, groups, -1])])
    ones = b.constant(np.ones(groups, np.float32))
    zeros = b.constant(np.zeros(groups, np.float32))
    (made,) = b.add("InstanceNormalization", [made, ones, zeros])
    (shape,) = b.add("Shape", [name])
    (made,) = b.add("Reshape", [made, shape])
    (made,) = b.add("Mul", [made, b.weight(channels, 1, 1)])
    b.note(made, channels, height, width)


def over_channels(b: Builder) -> None:
    """What takes statistics over channels, which is then inexact."""
    name, (channels, height, width) = b.pick(3)
    operator = b.one_of(
        "CumProd CumSum Hardmax LRN LogSoftmax LpNormalization MeanVarianceNormalization Reduce "
        "Softmax"
    )
    if operator == "LRN":
        (made,) = b.add(operator, [name], size=3)
    elif operator in ("CumProd", "CumSum"):
        (made,) = b.add(operator, [b.bounded(name), b.constant(np.array(1, np.int64))])
    elif operator == "MeanVarianceNormalization":
        axes = b.choose([[2, 3], [1], [1, 2, 3]])
        (made,) = b.add(operator, [name], axes=axes)
    elif operator == "Reduce":
        axes = b.choose([[1], [1, 2, 3]])
        (made,) = b.add("Sub", [name, reduced(b, name, axes)])
    else:
        (made,) = b.add(operator, [name], axis=1)
    b.note(made, channels, height, width)


def regions(b: Builder) -> None:
    """Multiply channels by what they are in two regions of the first two images."""
    name, (channels, height, width) = b.pick(3)
    if not b.has("RoiAlign") or min(height, width) < 2:
        return
    corners = [0, 0, width - 1, height - 1]
    if b.chance():
        boxes = b.constant(np.array([corners, [0, 0, 1, 1]], np.float32))
        attributes = {"output_height": 2, "output_width": 2, "spatial_scale": 0.9}
        attributes["mode"] = b.choose(["avg", "max"])
        attributes["sampling_ratio"] = 1 if attributes["mode"] == "max" else 2
        (made,) = b.add("RoiAlign", [name, boxes, b.integers([0, 1])], **attributes)
    else:
        boxes = b.constant(np.array([[0, *corners], [1, 0, 0, 1, 1]], np.float32))
        (made,) = b.add("MaxRoiPool", [name, boxes], pooled_shape=[2, 2])
    made = b.reduce("ReduceMean", made, [0, 2, 3])
    (made,) = b.add("Mul", [name, made])
    b.note(made, channels, height, width)


def resampling(b: Builder) -> None:
    """Read pixels where other pixels say."""
    name, (channels, height, width) = b.pick(3)
    (places,) = b.add("Conv", [name, b.weight(2, channels, 1, 1)])
    grid = b.channels_last(b.bounded(places))
    attributes = {
        "align_corners": b.integer(0, 1),
        "padding_mode": b.choose(["zeros", "border", "reflection"]),
    }
    if b.chance():
        attributes["mode"] = "nearest"
    (made,) = b.add("GridSample", [name, grid], **attributes)
    b.note(made, channels, height, width)


def tables(b: Builder) -> None:
    """Read or write pixels, rows, or channels, by a table of places; or take a triangle of each."""
    name, (channels, height, width) = b.pick(3)
    operator = b.one_of("GatherElements GatherND ScatterElements ScatterND Trilu")
    shape = (1, channels, height, width)
    (images,) = b.add("Shape", [name], start=0, end=1)
    if operator == "Trilu":
        (made,) = b.add(operator, [name, b.constant(np.array(b.integer(-1, 1)))])
    elif operator.endswith("Elements"):
        along = b.integer(1, 3)
        # Each place is written to once.
        order = np.argsort(b.random.random(shape), axis=along)
        (sizes,) = b.add("Concat", [images, b.integers([*shape[1:]])], axis=0)
        (places,) = b.add("Expand", [b.constant(order), sizes])
        updates = b.add("Neg", [name]) if operator == "ScatterElements" else []
        (made,) = b.add(operator, [name, places, *updates], axis=along)
    else:
        (turned,) = b.add("Transpose", [name], perm=[2, 3, 1, 0])
        grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
        named = b.integer(1, 2)
        places = grid[::-1, :, :named] if named == 2 else grid[::-1, 0, :1]
        updates = b.add("Neg", [turned]) if operator == "ScatterND" else []
        places_name = b.constant(np.ascontiguousarray(places))
        (made,) = b.add(operator, [turned, places_name, *updates])
        (made,) = b.add("Transpose", [made], perm=[3, 2, 0, 1])
    b.note(made, channels, height, width)


def selection(b: Builder) -> None:
    """Reorder rows or channels, or tell where they are largest."""
    name, (channels, height, width) = b.pick(3)
    operator = b.one_of("ArgMax ArgMin Compress ReverseSequence TopK")
    along = b.integer(1, 3)
    size = (channels, height, width)[along - 1]
    if operator == "ReverseSequence":
        (images,) = b.add("Shape", [name], start=0, end=1)
        (lengths,) = b.add("Expand", [b.integers([b.integer(1, size)]), images])
        order = [along, *(i for i in range(4) if i != along)]
        (turned,) = b.add("Transpose", [name], perm=order)
        (turned,) = b.add(operator, [turned, lengths], time_axis=0, batch_axis=1)
        (made,) = b.add("Transpose", [turned], perm=np.argsort(order).tolist())
    elif operator == "Compress":
        (made,) = b.add(operator, [name, b.constant(np.ones(size, bool))], axis=along)
    elif operator == "TopK":
        made, places = b.add(operator, [name, b.integers([size])], 2, axis=along)
        (numbers,) = b.add("Cast", [places], to=onnx.TensorProto.FLOAT)
        (made,) = b.add("Add", [made, numbers])
    else:
        (places,) = b.add(operator, [name], axis=along)
        (numbers,) = b.add("Cast", [places], to=onnx.TensorProto.FLOAT)
        (made,) = b.add("Add", [name, numbers])
    b.note(made, channels, height, width)


def without_rule(b: Builder) -> None:
    """What has no rule, and so fixes all that it touches."""
    name, (channels, height, width) = b.pick(3)
    (made,) = b.add("com.microsoft.Trilu", [name])
    b.note(made, channels, height, width)


def scale(b: Builder) -> None:
    """One number for each channel, or for all of them; or slopes."""
    name, (channels, height, width) = b.pick(3)
    shape = b.choose([(channels, 1, 1), (1, 1, 1), (1,), (1, channels, 1, 1)])
    operator = b.one_of("Add Min Mul PRelu Sub")
    (made,) = b.add(operator, [name, b.weight(*shape)])
    b.note(made, channels, height, width)


def recurrent(b: Builder) -> None:
    """A recurrent cell over columns: all states, and perhaps the last, from zeros or others."""
    name, (channels, height, width) = b.pick(3)
    if channels * height > 48:
        return
    operator, gates = b.choose([("RNN", 1), ("GRU", 3), ("LSTM", 4)])
    hidden, size = b.integer(1, 4), channels * height
    directions = b.integer(1, 2)
    (made,) = b.add("Transpose", [name], perm=[3, 0, 1, 2])
    (made,) = b.add("Reshape", [made, b.integers([width, -1, size])])
    given = [
        made,
        b.weight(directions, gates * hidden, size),
        b.weight(directions, gates * hidden, hidden),
        b.weight(directions, 2 * gates * hidden) if b.chance() else "",
    ]
    if b.chance():
        (rows,) = b.add("Shape", [made], start=1, end=2)
        (shape,) = b.add("Concat", [b.integers([1]), rows, b.integers([1])], axis=0)
        states = 2 if operator == "LSTM" else 1
        first = [b.weight(directions, 1, hidden) for _ in range(states)]
        given += ["", *[b.add("Expand", [state, shape])[0] for state in first]]
        if operator == "LSTM" and b.chance():
            given.append(b.weight(directions, 3 * hidden))
    attributes = {"linear_before_reset": b.integer(0, 1)} if operator == "GRU" else {}
    made, last = b.add(
        operator,
        given,
        2,
        hidden_size=hidden,
        direction="forward" if directions == 1 else "bidirectional",
        **attributes,
    )
    if b.chance():
        (last,) = b.add("Transpose", [last], perm=[1, 0, 2])
        (last,) = b.add("Reshape", [last, b.integers([0, directions * hidden])])
        b.note(last, directions * hidden)
    (made,) = b.add("Transpose", [made], perm=[2, 1, 3, 0])
    (made,) = b.add("Reshape", [made, b.integers([0, directions * hidden, 1, width])])
    b.note(made, directions * hidden, 1, width)


def noise(b: Builder) -> None:
    """Add random numbers, times zero."""
    name, (channels, height, width) = b.pick(3)
    if b.opset >= 22:
        return  # onnxruntime has no such versions of them
    operator = b.one_of("Bernoulli RandomNormalLike RandomUniformLike")
    (bounded,) = b.add("Sigmoid", [name])
    (drawn,) = b.add(operator, [bounded])
    (nothing,) = b.add("Mul", [drawn, b.constant(np.zeros((), np.float32))])
    (made,) = b.add("Add", [name, nothing])
    b.note(made, channels, height, width)


def filled(b: Builder) -> None:
    """What is filled by the shape of something else."""
    name, (channels, height, width) = b.pick(3)
    (shape,) = b.add("Shape", [name])
    value = numpy_helper.from_array(np.array([0.5], np.float32), "value")
    (ones,) = b.add("ConstantOfShape", [shape], value=value)
    (made,) = b.add("Add", [name, ones])
    b.note(made, channels, height, width)


IMAGE_LAYERS = (
    convolution,
    convolution,
    convolution,
    transposed_convolution,
    norm,
    activation,
    function,
    two_numbers,
    several,
    comparison,
    flags,
    whole_numbers,
    quantization,
    quantized_weight,
    pool,
    join,
    join,
    split,
    slices,
    gather,
    shuffle,
    to_vector,
    linear,
    gate,
    last_axis,
    layer_norm,
    skip_norm,
    sequence,
    sequence_layer,
    sequence_layer,
    image_again,
    attention,
    attention_operator,
    fused_attention,
    grouped_attention,
    rotation,
    embedding,
    depth_and_space,
    pad,
    resize,
    tile,
    expand,
    squeeze,
    reduction,
    by_groups,
    by_groups,
    branches,
    turned,
    products,
    einsum,
    instance_norm,
    group_norm,
    over_channels,
    regions,
    resampling,
    selection,
    tables,
    without_rule,
    scale,
    recurrent,
    noise,
    filled,
)


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Return a random network of four to sixteen layers over small images."""

    def choose(options: Sequence[Any]) -> Any:
        return draw(st.sampled_from(options))

    builder = Builder(choose, (3, 4, 4), choose(OPSETS))
    convolution(builder)
    for layer in draw(st.lists(st.sampled_from(IMAGE_LAYERS), min_size=3, max_size=15)):
        layer(builder)
    return builder.model(twice=builder.chance())
