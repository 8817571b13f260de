"""The proof on networks that nobody thought of: random chains of random layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from double_precision import run_in_double
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from oracle import difference, run
from proof import PLANS, TOLERANCE, TOLERANCE_IN_DOUBLE, Keep, prove, prove_in_double
from text_networks import inputs, network

from onnxjl import Plan, apply, normalize
from onnxjl.structure import Granularity, analyze


class Builder:
    """Adds random layers to a network; every value has its shape beside it.

    Parameters
    ----------
    draw : hypothesis's source of choices.
    shape : of the input, without the batch.
    """

    def __init__(self, draw: st.DrawFn, shape: tuple[int, ...]) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)
        self.input = shape
        self.values: list[tuple[str, tuple[int, ...]]] = [("x", shape)]

    def weight(self, *shape: int) -> str:
        spread = 1 / np.sqrt(max(np.prod(shape[1:]), 1)) if len(shape) > 1 else 1.0
        array = self.random.normal(0, spread, shape).astype(np.float32)
        return self._constant(array)

    def integers(self, values: list[int]) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(
        self, operator: str, given: list[str], outputs: int = 1, **attributes: object
    ) -> list[str]:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(operator, given, names, name=f"n{len(self.nodes)}", **attributes)
        )
        return names

    def note(self, name: str, *shape: int) -> None:
        self.values.append((name, shape))

    def pick(self, rank: int) -> tuple[str, tuple[int, ...]] | None:
        """Return one of the last values of a rank, if there is any."""
        found = [value for value in self.values if len(value[1]) == rank][-3:]
        return self.draw(st.sampled_from(found)) if found else None

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def model(self) -> onnx.ModelProto:
        """Return the network; what nothing uses gets a last layer and is an output."""
        used = {name for node in self.nodes for name in node.input}
        outputs = []
        for name, shape in list(self.values):
            if name in used or name == "x":
                continue
            if len(shape) == 1:
                (last,) = self.add("MatMul", [name, self.weight(*shape, 2)])
            else:
                (last,) = self.add("Conv", [name, self.weight(2, shape[0], 1, 1)])
            outputs.append(helper.make_tensor_value_info(last, 1, ["N", 2, *shape[1:]]))
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", 1, ["N", *self.input])],
            outputs,
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


# Layers: each takes the builder, and adds nodes and the values that they make.


def convolution(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    groups = b.draw(st.sampled_from([1, 1, *divisors(channels)]))
    out = groups * b.integer(1, max(1, 8 // groups))
    kernel = b.draw(st.sampled_from([1, 3])) if min(height, width) > 2 else 1
    given = [name, b.weight(out, channels // groups, kernel, kernel)]
    if b.draw(st.booleans()):
        given.append(b.weight(out))
    (made,) = b.add("Conv", given, group=groups, pads=[kernel // 2] * 4)
    b.note(made, out, height, width)


def transposed_convolution(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    if height > 8:
        return
    groups = b.draw(st.sampled_from([1, 1, *divisors(channels)]))
    out = b.integer(1, max(1, 6 // groups))
    given = [name, b.weight(channels, out, 2, 2), b.weight(groups * out)]
    (made,) = b.add("ConvTranspose", given, group=groups, strides=[2, 2])
    b.note(made, groups * out, 2 * height, 2 * width)


def norm(b: Builder) -> None:
    name, (channels, *space) = b.pick(3)
    variance = b._constant(b.random.uniform(0.5, 1.5, channels).astype(np.float32))
    parameters = [b.weight(channels), b.weight(channels), b.weight(channels), variance]
    (made,) = b.add("BatchNormalization", [name, *parameters])
    b.note(made, channels, *space)


def activation(b: Builder) -> None:
    name, shape = b.pick(b.draw(st.sampled_from([1, 3]))) or b.pick(3)
    (made,) = b.add(b.draw(st.sampled_from(["Relu", "Tanh", "Sigmoid", "HardSwish"])), [name])
    b.note(made, *shape)


def pool(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    if height < 4:
        return
    operator = b.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    (made,) = b.add(operator, [name], kernel_shape=[2, 2], strides=[2, 2])
    b.note(made, channels, height // 2, width // 2)


def join(b: Builder) -> None:
    """Concatenate, add or multiply two values whose shapes allow it."""
    rank = b.draw(st.sampled_from([1, 3]))
    first = b.pick(rank)
    if first is None:
        return
    name, shape = first
    others = [v for v in b.values if len(v[1]) == rank and v[1][1:] == shape[1:]][-4:]
    other, other_shape = b.draw(st.sampled_from(others))
    if other_shape == shape and b.draw(st.booleans()):
        (made,) = b.add(b.draw(st.sampled_from(["Add", "Mul", "Max"])), [name, other])
        b.note(made, *shape)
    elif shape[0] + other_shape[0] <= 24:
        (made,) = b.add("Concat", [name, other], axis=1)
        b.note(made, shape[0] + other_shape[0], *shape[1:])


def split(b: Builder) -> None:
    rank = b.draw(st.sampled_from([1, 3]))
    found = b.pick(rank)
    if found is None or found[1][0] < 2:
        return
    name, (channels, *rest) = found
    cut = b.integer(1, channels - 1)
    sizes = [cut, channels - cut]
    for made, size in zip(b.add("Split", [name, b.integers(sizes)], 2, axis=1), sizes, strict=True):
        b.note(made, size, *rest)


def slices(b: Builder) -> None:
    name, (channels, *rest) = b.pick(3)
    start = b.integer(0, channels - 1)
    end = b.integer(start + 1, channels)
    bounds = [b.integers([value]) for value in (start, end - channels or 2**31, 1)]
    if b.draw(st.booleans()):
        bounds[1] = b.integers([end])
    (made,) = b.add("Slice", [name, *bounds])
    b.note(made, end - start, *rest)


def gather(b: Builder) -> None:
    name, (channels, *rest) = b.pick(3)
    order = b.draw(st.lists(st.integers(-channels, channels - 1), min_size=1, max_size=10))
    (made,) = b.add("Gather", [name, b.integers(order)], axis=1)
    b.note(made, len(order), *rest)


def shuffle(b: Builder) -> None:
    """Mix channels by a reshape, a transpose and a reshape; written out, or with 0 and -1."""
    name, (channels, height, width) = b.pick(3)
    groups = b.draw(st.sampled_from(divisors(channels)))
    batch = b.draw(st.sampled_from([0, -1]))
    first = b.integers([batch, groups, channels // groups, height, width])
    (made,) = b.add("Reshape", [name, first])
    (made,) = b.add("Transpose", [made], perm=[0, 2, 1, 3, 4])
    second = [0, b.draw(st.sampled_from([channels, -1])), height, width]
    (made,) = b.add("Reshape", [made, b.integers(second)])
    b.note(made, channels, height, width)


def to_vector(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    if channels * height * width > 200 or b.draw(st.booleans()):
        (name,) = b.add("GlobalAveragePool", [name])
        height = width = 1
    if b.draw(st.booleans()):
        (made,) = b.add("Flatten", [name])
    else:
        size = channels * height * width
        target = b.draw(st.sampled_from([[0, -1], [-1, size], [0, size]]))
        (made,) = b.add("Reshape", [name, b.integers(target)])
    b.note(made, channels * height * width)


def linear(b: Builder) -> None:
    found = b.pick(1)
    if found is None:
        return
    name, (size,) = found
    out = b.integer(1, 8)
    if b.draw(st.booleans()):
        (made,) = b.add("Gemm", [name, b.weight(out, size), b.weight(out)], transB=1)
    else:
        (made,) = b.add("MatMul", [name, b.weight(size, out)])
    b.note(made, out)


def gate(b: Builder) -> None:
    """Multiply channels by weights computed from their means."""
    name, (channels, height, width) = b.pick(3)
    (mean,) = b.add("GlobalAveragePool", [name])
    (small,) = b.add("Conv", [mean, b.weight(3, channels, 1, 1)])
    (large,) = b.add("Conv", [small, b.weight(channels, 3, 1, 1)])
    (weights,) = b.add("Sigmoid", [large])
    (made,) = b.add("Mul", [name, weights])
    b.note(made, channels, height, width)


def last_axis(b: Builder) -> None:
    """Mix channels by a matrix, with channels last, as networks from TensorFlow do."""
    name, (channels, height, width) = b.pick(3)
    out = b.integer(1, 8)
    (made,) = b.add("Transpose", [name], perm=[0, 2, 3, 1])
    (made,) = b.add("MatMul", [made, b.weight(channels, out)])
    (made,) = b.add("Add", [made, b.weight(out)])
    (made,) = b.add("Transpose", [made], perm=[0, 3, 1, 2])
    b.note(made, out, height, width)


def layer_norm(b: Builder) -> None:
    name, (channels, *space) = b.pick(3)
    (made,) = b.add("Transpose", [name], perm=[0, 2, 3, 1])
    (made,) = b.add("LayerNormalization", [made, b.weight(channels)])
    (made,) = b.add("Transpose", [made], perm=[0, 3, 1, 2])
    b.note(made, channels, *space)


def attention(b: Builder) -> None:
    """Attention over positions, with one or three projections, and 2 heads of 2 or 3 features."""
    name, (channels, height, width) = b.pick(3)
    if height * width > 16:
        return
    time, features = height * width, b.integer(2, 3)
    size = 2 * features
    (flat,) = b.add("Reshape", [name, b.integers([0, 0, -1])])
    (tokens,) = b.add("Transpose", [flat], perm=[0, 2, 1])
    if b.draw(st.booleans()):
        (all_three,) = b.add("MatMul", [tokens, b.weight(channels, 3 * size)])
        projected = b.add("Split", [all_three, b.integers([size] * 3)], 3, axis=2)
    else:
        projected = [b.add("MatMul", [tokens, b.weight(channels, size)])[0] for _ in range(3)]
    heads = []
    for value, order in zip(projected, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True):
        (split_heads,) = b.add("Reshape", [value, b.integers([0, time, 2, features])])
        heads.append(b.add("Transpose", [split_heads], perm=order)[0])
    (scores,) = b.add("MatMul", heads[:2])
    (even,) = b.add("Softmax", [scores], axis=-1)
    (mixed,) = b.add("MatMul", [even, heads[2]])
    (back,) = b.add("Transpose", [mixed], perm=[0, 2, 1, 3])
    (joined,) = b.add("Reshape", [back, b.integers([0, time, size])])
    (turned,) = b.add("Transpose", [joined], perm=[0, 2, 1])
    (made,) = b.add("Reshape", [turned, b.integers([0, size, height, width])])
    b.note(made, size, height, width)


def depth_and_space(b: Builder) -> None:
    """Move channels to space, or back."""
    name, (channels, height, width) = b.pick(3)
    if channels % 4 == 0 and height <= 4:
        mode = b.draw(st.sampled_from(["DCR", "CRD"]))
        (made,) = b.add("DepthToSpace", [name], blocksize=2, mode=mode)
        b.note(made, channels // 4, 2 * height, 2 * width)
    elif height % 2 == 0 and width % 2 == 0 and channels <= 6:
        (made,) = b.add("SpaceToDepth", [name], blocksize=2)
        b.note(made, channels * 4, height // 2, width // 2)


def pad(b: Builder) -> None:
    """Pad space, and channels too if the draw says so."""
    name, (channels, height, width) = b.pick(3)
    if height > 8:
        return
    more = b.integer(0, 2)
    mode = "constant" if more else b.draw(st.sampled_from(["constant", "edge"]))
    (made,) = b.add("Pad", [name, b.integers([0, more, 1, 0, 0, 0, 0, 1])], mode=mode)
    b.note(made, channels + more, height + 1, width + 1)


def resize(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    if height > 4:
        return
    mode = b.draw(st.sampled_from(["nearest", "linear"]))
    if b.draw(st.booleans()):
        scales = b._constant(np.array([1, 1, 2, 2], np.float32))
        (made,) = b.add("Resize", [name, "", scales], mode=mode)
    else:
        (shape,) = b.add("Shape", [name], start=0, end=2)
        (sizes,) = b.add("Concat", [shape, b.integers([2 * height, 2 * width])], axis=0)
        (made,) = b.add("Resize", [name, "", "", sizes], mode=mode)
    b.note(made, channels, 2 * height, 2 * width)


def tile(b: Builder) -> None:
    """Repeat channels or positions."""
    name, (channels, height, width) = b.pick(3)
    along = b.draw(st.sampled_from([1, 3]))
    if channels > 8 or width > 6:
        return
    repeats = [2 if axis == along else 1 for axis in range(4)]
    (made,) = b.add("Tile", [name, b.integers(repeats)])
    b.note(made, channels * repeats[1], height, width * repeats[3])


def expand(b: Builder) -> None:
    """Channels' means spread over space again, by numbers or by the shape of what they are of."""
    name, (channels, height, width) = b.pick(3)
    reduce = b.draw(st.sampled_from(["ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"]))
    (mean,) = b.add(reduce, [name, b.integers([2, 3])], keepdims=1)
    if b.draw(st.booleans()):
        shape = b.integers([1, channels if b.draw(st.booleans()) else 1, height, width])
    else:
        (shape,) = b.add("Shape", [name])
    (made,) = b.add("Expand", [mean, shape])
    b.note(made, channels, height, width)


def squeeze(b: Builder) -> None:
    """Means over one axis without that axis, and the axis back."""
    name, (channels, height, width) = b.pick(3)
    (mean,) = b.add("ReduceMean", [name, b.integers([3])], keepdims=1)
    (less,) = b.add("Squeeze", [mean, b.integers([3])])
    (made,) = b.add("Unsqueeze", [less, b.integers([-1])])
    (made,) = b.add("Sub", [name, made])
    b.note(made, channels, height, width)


def einsum(b: Builder) -> None:
    name, (channels, height, width) = b.pick(3)
    out = b.integer(1, 6)
    equation = b.draw(st.sampled_from(["nchw,ck->nkhw", "nchw,kc->nkhw"]))
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
    """As PyTorch writes it: an instance normalization of groups."""
    name, (channels, height, width) = b.pick(3)
    groups = b.draw(st.sampled_from(divisors(channels)))
    if channels // groups * height * width < 4:
        return
    (made,) = b.add("Reshape", [name, b.integers([0, groups, -1])])
    ones = b._constant(np.ones(groups, np.float32))
    zeros = b._constant(np.zeros(groups, np.float32))
    (made,) = b.add("InstanceNormalization", [made, ones, zeros])
    (shape,) = b.add("Shape", [name])
    (made,) = b.add("Reshape", [made, shape])
    (made,) = b.add("Mul", [made, b.weight(channels, 1, 1)])
    b.note(made, channels, height, width)


def over_channels(b: Builder) -> None:
    """What takes statistics over channels, which is then inexact."""
    name, (channels, height, width) = b.pick(3)
    operator = b.draw(st.sampled_from(["Softmax", "LpNormalization", "LRN", "CumSum"]))
    if operator == "LRN":
        (made,) = b.add(operator, [name], size=3)
    elif operator == "CumSum":
        (made,) = b.add(operator, [name, b._constant(np.array(1, np.int64))])
    else:
        (made,) = b.add(operator, [name], axis=1)
    b.note(made, channels, height, width)


def scale(b: Builder) -> None:
    """One number for each channel, or for all of them; or slopes."""
    name, (channels, height, width) = b.pick(3)
    shape = b.draw(st.sampled_from([(channels, 1, 1), (1, 1, 1), (1,), (1, channels, 1, 1)]))
    operator = b.draw(st.sampled_from(["Add", "Mul", "Sub", "PRelu", "Min"]))
    (made,) = b.add(operator, [name, b.weight(*shape)])
    b.note(made, channels, height, width)


def recurrent(b: Builder) -> None:
    """A recurrent cell over columns, with its last state or all of them."""
    name, (channels, height, width) = b.pick(3)
    if channels * height > 48:
        return
    operator, gates = b.draw(st.sampled_from([("RNN", 1), ("GRU", 3), ("LSTM", 4)]))
    hidden, size = b.integer(1, 4), channels * height
    directions = b.integer(1, 2)
    (made,) = b.add("Transpose", [name], perm=[3, 0, 1, 2])
    (made,) = b.add("Reshape", [made, b.integers([width, -1, size])])
    parameters = [
        b.weight(directions, gates * hidden, size),
        b.weight(directions, gates * hidden, hidden),
        b.weight(directions, 2 * gates * hidden),
    ]
    made, last = b.add(
        operator,
        [made, *parameters],
        2,
        hidden_size=hidden,
        direction="forward" if directions == 1 else "bidirectional",
    )
    del last
    (made,) = b.add("Transpose", [made], perm=[2, 1, 3, 0])
    (made,) = b.add("Reshape", [made, b.integers([0, directions * hidden, 1, width])])
    b.note(made, directions * hidden, 1, width)


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
    attention,
    depth_and_space,
    pad,
    resize,
    tile,
    expand,
    squeeze,
    einsum,
    instance_norm,
    group_norm,
    over_channels,
    scale,
    recurrent,
    filled,
)


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Return a random network of four to twelve layers over small images."""
    builder = Builder(draw, (3, 4, 4))
    convolution(builder)
    for layer in draw(st.lists(st.sampled_from(IMAGE_LAYERS), min_size=3, max_size=11)):
        layer(builder)
    return builder.model()


def check(
    model: onnx.ModelProto, granularity: Granularity, kind: Callable[..., Keep], seed: int
) -> str:
    """Assert what holds of every network: see the test below.

    Returns
    -------
    "proved", "proved in float64" where rounding was too much for float32, or "nothing exact" where
    there was no plan to prove.
    """
    graph = normalize(model)
    feeds = inputs(model)
    normal = ir.to_proto(graph.model)
    if difference(run(normal, feeds), run(model, feeds)) > TOLERANCE:
        same = difference(run_in_double(normal, feeds), run_in_double(model, feeds))
        assert same <= TOLERANCE_IN_DOUBLE
    structure = analyze(graph, granularity=granularity)
    exact = sum(group.exact for group in structure.groups)
    event(f"{min(exact, 4)} groups or more" if exact > 3 else f"{exact} groups")
    if not exact:
        return "nothing exact"
    keep = kind(structure, np.random.default_rng(seed))
    outcome = "proved"
    if prove(structure, keep, [feeds]) > TOLERANCE:
        assert prove_in_double(structure, keep, [feeds]) <= TOLERANCE_IN_DOUBLE
        outcome = "proved in float64"
    plan = structure.plan(keep)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert apply(graph, again).fingerprint == apply(graph, plan).fingerprint
    return outcome


@settings(max_examples=settings.default.max_examples * 12)
@given(
    model=networks(),
    granularity=st.sampled_from(["channel", "head", "head-dim"]),
    kind=st.sampled_from(PLANS),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_network_is_normalized_and_pruned_exactly(
    model: onnx.ModelProto, granularity: Granularity, kind: Callable[..., Keep], seed: int
) -> None:
    check(model, granularity, kind, seed)


@pytest.mark.parametrize(("operator", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
@pytest.mark.parametrize("kind", PLANS)
def test_the_gates_of_a_single_hidden_unit_stay(
    operator: str, gates: int, kind: Callable[..., Keep]
) -> None:
    """What random networks found: each gate was taken for a unit of its own."""
    model = network(
        f"""g (float[N, 3, 1, 4] x) => (float[N, 2, 1, 4] y) {{
            a = Conv (x, v)
            t = Transpose <perm = [3, 0, 1, 2]> (a)
            r = Reshape (t, to)
            o, last = {operator} <hidden_size = 1> (r, w, u, b)
            p = Transpose <perm = [2, 1, 3, 0]> (o)
            q = Reshape (p, back)
            y = Conv (q, z)
        }}""",
        {
            "v": (4, 3, 1, 1),
            "w": (1, gates, 4),
            "u": (1, gates, 1),
            "b": (1, 2 * gates),
            "z": (2, 1, 1, 1),
        },
        {"to": [4, -1, 4], "back": [0, 1, 1, 4]},
    )
    structure = analyze(normalize(model))
    assert [(group.name, group.size) for group in structure.groups] == [("a", 4)]
    keep = kind(structure, np.random.default_rng(0))
    assert prove(structure, keep, [inputs(model)]) <= TOLERANCE
