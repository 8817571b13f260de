"""Small files that ask for much: none takes a minute or a gigabyte."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

from isolated import Isolated

import onnxjl
from onnxjl.errors import DataError, ModelError
from onnxjl.inputs import random_inputs
from onnxjl.structure import analyze
from onnxjl.structure.labels import Labels, TooMany

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc"),
    pytest.mark.xdist_group("bombs"),
]

SECONDS, BYTES = 60, 1 << 30


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated]:
    with Isolated(10 * SECONDS) as process:
        yield process


def ints(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def scalar(name: str, value: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def floats(name: str, *shape: int) -> onnx.TensorProto:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(array, name)


def model(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    *,
    x: tuple[int | str, ...] | None = ("N", 8),
    opset: int = 18,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    """What computes `bomb` from constants, beside a layer that could be pruned."""
    layers = [
        helper.make_node("MatMul", ["in", "w1"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w2"], ["out"]),
    ]
    given = [helper.make_tensor_value_info("in", 1, ["N", 8])]
    if x is not None:
        given.append(helper.make_tensor_value_info("x", 1, x))
    made = [helper.make_tensor_value_info("out", 1, None)]
    if any("bomb" in node.output for node in nodes):
        made.append(helper.make_tensor_value_info("bomb", 1, None))
    graph = helper.make_graph(
        [*nodes, *layers],
        "bomb",
        given,
        made,
        [*constants, floats("w1", 8, 6), floats("w2", 6, 2)],
    )
    domains = {node.domain for node in nodes if node.domain}
    imports = [helper.make_opsetid(domain, 1) for domain in sorted(domains)]
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *imports],
        ir_version=9,
        functions=functions or [],
    )


def node(operator: str, given: list[str], made: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, given, made, **attributes)


HUGE = 1 << 40
LARGE = 1 << 29  # Floats of 2 GiB.


def fill(*shape: int, then: str = "Neg") -> onnx.ModelProto:
    return model(
        [node("ConstantOfShape", ["shape"], ["f"]), node(then, ["f"], ["bomb"])],
        [ints("shape", *shape)],
    )


def filled_weight(*shape: int) -> onnx.ModelProto:
    """A layer whose weight is filled by its shape alone."""
    return model(
        [
            node("ConstantOfShape", ["shape"], ["f"]),
            node("MatMul", ["x", "f"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("ReduceMean", ["r"], ["bomb"]),
        ],
        [ints("shape", *shape)],
        x=("N", shape[0]),
    )


def expand(*shape: int) -> onnx.ModelProto:
    return model(
        [node("Expand", ["one", "shape"], ["e"]), node("Exp", ["e"], ["bomb"])],
        [ints("shape", *shape), floats("one", 1)],
    )


def tile(*repeats: int) -> onnx.ModelProto:
    return model(
        [node("Tile", ["row", "repeats"], ["t"]), node("Add", ["x", "t"], ["bomb"])],
        [ints("repeats", *repeats), floats("row", *([1] * len(repeats)))],
        x=(1,) * len(repeats),
    )


def count_to(start: object, limit: object, step: object) -> onnx.ModelProto:
    return model(
        [
            node("Range", ["start", "limit", "step"], ["r"]),
            node("Cast", ["r"], ["bomb"], to=TensorProto.FLOAT),
        ],
        [scalar("start", start), scalar("limit", limit), scalar("step", step)],
    )


def pad(*pads: int) -> onnx.ModelProto:
    return model(
        [node("Pad", ["row", "pads"], ["p"]), node("Abs", ["p"], ["bomb"])],
        [ints("pads", *pads), floats("row", *([1] * (len(pads) // 2)))],
    )


def resize(*scales: float) -> onnx.ModelProto:
    return model(
        [node("Resize", ["row", "", "scales"], ["bomb"], mode="linear")],
        [
            numpy_helper.from_array(np.array(scales, np.float32), "scales"),
            floats("row", *([1] * len(scales))),
        ],
    )


def resize_to(*sizes: int) -> onnx.ModelProto:
    return model(
        [node("Resize", ["row", "", "", "sizes"], ["bomb"], mode="cubic")],
        [ints("sizes", *sizes), floats("row", 1, 1, 4, 4)],
    )


def one_hot(depth: int) -> onnx.ModelProto:
    return model(
        [node("OneHot", ["which", "depth", "values"], ["bomb"])],
        [ints("which", *range(64)), scalar("depth", np.int64(depth)), floats("values", 2)],
    )


def outer(size: int, operator: str = "Mul") -> onnx.ModelProto:
    """A product of a column and a row."""
    return model(
        [
            node("ConstantOfShape", ["tall"], ["a"]),
            node("ConstantOfShape", ["wide"], ["b"]),
            node(operator, ["a", "b"], ["bomb"]),
        ],
        [ints("tall", size, 1), ints("wide", 1, size)],
    )


def long_product(size: int) -> onnx.ModelProto:
    """A small product of two filled matrices that sums over very much."""
    return model(
        [
            node("ConstantOfShape", ["wide"], ["a"]),
            node("ConstantOfShape", ["tall"], ["b"]),
            node("MatMul", ["a", "b"], ["bomb"]),
        ],
        [ints("tall", size, 2), ints("wide", 2, size)],
    )


def einsum(terms: int, size: int) -> onnx.ModelProto:
    letters = "abcdefghijklmnopqrstuvw"[:terms]
    return model(
        [node("Einsum", ["v"] * terms, ["bomb"], equation=",".join(letters) + "->")],
        [floats("v", size)],
    )


def strange_equation(text: str) -> onnx.ModelProto:
    return model([node("Einsum", ["x", "x"], ["bomb"], equation=text)], [])


def strange_equation_of_a_call(text: str) -> onnx.ModelProto:
    """A function that takes its equation from whoever calls it."""
    product = node("Einsum", ["a", "a"], ["b"])
    product.attribute.add(name="equation", ref_attr_name="e", type=onnx.AttributeProto.STRING)
    function = helper.make_function(
        "local", "f", ["a"], ["b"], [product], [helper.make_opsetid("", 18)], attributes=["e"]
    )
    return model([node("f", ["x"], ["bomb"], domain="local", e=text)], [], functions=[function])


def long_columns(count: int, size: int) -> onnx.ModelProto:
    """Many activations with one long axis of units each, which meet in a sum."""
    nodes = []
    for i in range(count):
        nodes.append(node("ConstantOfShape", ["shape"], [f"f{i}"]))
        nodes.append(node("Sin", [f"f{i}"], [f"g{i}"]))
        nodes.append(node("Add", ["x", f"g{i}"], [f"h{i}"]))
    total = node("Sum", [f"h{i}" for i in range(count)], ["bomb"])
    return model([*nodes, total], [ints("shape", size, 1)], x=(1, 8))


def reshapes(count: int) -> onnx.ModelProto:
    """Units folded and unfolded again and again, each time by a constant of its own."""
    nodes = [node("MatMul", ["x", "w"], ["h0"])]
    for i in range(count):
        nodes.append(node("Reshape", [f"h{i}", "fold"], [f"r{i}"]))
        nodes.append(node("Reshape", [f"r{i}", "unfold"], [f"h{i + 1}"]))
    return model(
        [*nodes, node("ReduceSum", [f"h{count}"], ["bomb"])],
        [floats("w", 8, 4096), ints("fold", -1, 64, 64), ints("unfold", -1, 4096)],
    )


def doubling(operator: str, times: int, **attributes: object) -> onnx.ModelProto:
    """A constant that grows to twice its size again and again."""
    nodes = [node(operator, [f"c{i}", f"c{i}"], [f"c{i + 1}"], **attributes) for i in range(times)]
    return model([*nodes, node("Exp", [f"c{times}"], ["bomb"])], [floats("c0", 2)])


def growing_number(times: int) -> onnx.ModelProto:
    """The square of a size's square, and so on."""
    nodes = [node("Shape", ["x"], ["s0"])]
    nodes += [node("Mul", [f"s{i}", f"s{i}"], [f"s{i + 1}"]) for i in range(times)]
    return model([*nodes, node("Cast", [f"s{times}"], ["bomb"], to=1)], [], x=(3, 5))


def growing_polynomial(times: int) -> onnx.ModelProto:
    """The same of a sum of two unknown sizes."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Split", ["shape"], ["a", "b"], num_outputs=2),
        node("Add", ["a", "b"], ["s0"]),
        *(node("Mul", [f"s{i}", f"s{i}"], [f"s{i + 1}"]) for i in range(times)),
        node("Cast", [f"s{times}"], ["bomb"], to=1),
    ]
    return model(nodes, [], x=("A", "B"))


def many_sizes(count: int) -> onnx.ModelProto:
    """The product of many sums of two sizes, all different."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Split", ["shape"], [f"d{i}" for i in range(2 * count)], num_outputs=2 * count),
    ]
    last = "one"
    for i in range(count):
        nodes.append(node("Add", [f"d{2 * i}", f"d{2 * i + 1}"], [f"a{i}"]))
        nodes.append(node("Mul", [last, f"a{i}"], [f"m{i}"]))
        last = f"m{i}"
    nodes.append(node("Cast", [last], ["bomb"], to=1))
    return model(nodes, [ints("one", 1)], x=tuple(f"D{i}" for i in range(2 * count)))


def declared(*shape: int) -> onnx.ModelProto:
    """A layer over an input that is said to be huge."""
    return model(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Relu", ["c"], ["r"]),
            node("Conv", ["r", "v"], ["d"]),
            node("ReduceMean", ["d"], ["bomb"]),
        ],
        [floats("w", 4, 3, 1, 1), floats("v", 2, 4, 1, 1)],
        x=shape,
    )


def flattened(size: int) -> onnx.ModelProto:
    """Channels on an axis that flattening makes enormous."""
    return model(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Flatten", ["c"], ["f"]),
            node("ConstantOfShape", ["shape"], ["v"]),
            node("MatMul", ["f", "v"], ["bomb"]),
        ],
        [floats("w", 4, 3, 1, 1), ints("shape", 4 * size * size, 1)],
        x=(1, 3, size, size),
    )


def wide_join(count: int, channels: int) -> onnx.ModelProto:
    """The same channels beside themselves many times."""
    return model(
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("Concat", ["h"] * count, ["wide"], axis=1),
            node("ReduceMean", ["wide"], ["bomb"]),
        ],
        [floats("w", 8, channels)],
    )


def mismatched(*dims: int, data: bytes = b"1234") -> onnx.ModelProto:
    tensor = TensorProto(name="bad", data_type=1, dims=dims, raw_data=data)
    return model([node("Exp", ["bad"], ["bomb"])], [tensor])


def empty_weight(*dims: int) -> onnx.ModelProto:
    """A weight without elements, one of whose axes is long."""
    tensor = TensorProto(name="bad", data_type=1, dims=dims, raw_data=b"")
    return model([node("MatMul", ["x", "bad"], ["bomb"])], [tensor], x=("N", dims[0]))


def nested(depth: int) -> onnx.ModelProto:
    """Branches within branches."""
    inner = helper.make_graph(
        [node("Identity", ["x"], ["y"])], "g", [], [helper.make_tensor_value_info("y", 1, None)]
    )
    for level in range(depth):
        branch = node("If", ["yes"], [f"y{level}"], then_branch=inner, else_branch=inner)
        if level > 20:
            del branch.attribute[1:]  # Twice as large each time, else.
        out = helper.make_tensor_value_info(f"y{level}", 1, None)
        inner = helper.make_graph([branch], "g", [], [out])
    return model(
        [node("If", ["yes"], ["bomb"], then_branch=inner, else_branch=inner)],
        [scalar("yes", np.bool_(True))],
    )


def calls(depth: int, *, times: int = 1, again: bool = False) -> onnx.ModelProto:
    """Functions that call the next one, some `times` each; the last calls the first `again`."""
    functions = []
    for level in range(depth):
        last = level == depth - 1
        called = "f0" if again else f"f{level + 1}"
        body = [node("Relu", ["a0"], [f"a{times}"])]
        if not last or again:
            body = [node(called, [f"a{i}"], [f"a{i + 1}"], domain="local") for i in range(times)]
        functions.append(
            helper.make_function(
                "local",
                f"f{level}",
                ["a0"],
                [f"a{times}"],
                body,
                [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)],
            )
        )
    return model([node("f0", ["x"], ["bomb"], domain="local")], [], functions=functions)


def many_calls(count: int) -> onnx.ModelProto:
    """A chain of calls of one function of two nodes."""
    body = [node("Constant", [], ["c"], value_float=1.0), node("Add", ["a", "c"], ["b"])]
    function = helper.make_function("local", "f", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    names = ["x", *(f"v{i}" for i in range(count - 1)), "bomb"]
    called = [node("f", [a], [b], domain="local") for a, b in pairwise(names)]
    return model(called, [], functions=[function])


def chain(operator: str, count: int, **attributes: object) -> onnx.ModelProto:
    nodes = [
        node(operator, [f"x{i}" if i else "x"], [f"x{i + 1}"], **attributes) for i in range(count)
    ]
    return model([*nodes, node("Relu", [f"x{count}"], ["bomb"])], [])


def chain_of_two(operator: str, count: int, constant: onnx.TensorProto) -> onnx.ModelProto:
    nodes = [node(operator, [f"x{i}" if i else "x", "c"], [f"x{i + 1}"]) for i in range(count)]
    constant.name = "c"
    return model([*nodes, node("Relu", [f"x{count}"], ["bomb"])], [constant])


def constants(count: int) -> onnx.ModelProto:
    """Much that is folded."""
    nodes = [node("Sin", [f"c{i}"], [f"c{i + 1}"]) for i in range(count)]
    return model([*nodes, node("Add", ["x", f"c{count}"], ["bomb"])], [floats("c0", 8)])


def layers(count: int) -> onnx.ModelProto:
    nodes = [node("Gemm", [f"x{i}" if i else "x", "w"], [f"x{i + 1}"]) for i in range(count)]
    return model([*nodes, node("Relu", [f"x{count}"], ["bomb"])], [floats("w", 8, 8)])


def fan(count: int) -> onnx.ModelProto:
    """One value that many nodes use, and one that takes them all."""
    nodes = [node("Relu", ["h"], [f"r{i}"]) for i in range(count)]
    return model(
        [
            node("MatMul", ["x", "w"], ["h"]),
            *nodes,
            node("Sum", [f"r{i}" for i in range(count)], ["bomb"]),
        ],
        [floats("w", 8, 8)],
    )


def cycle() -> onnx.ModelProto:
    return model(
        [node("Relu", ["b"], ["a"]), node("Relu", ["a"], ["b"]), node("Add", ["x", "b"], ["bomb"])],
        [],
    )


def same_names() -> onnx.ModelProto:
    return model(
        [node("Relu", ["x"], ["a"]), node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["bomb"])], []
    )


def same_weights() -> onnx.ModelProto:
    """Two initializers of one name: ONNX's checker doesn't mind."""
    return model([node("MatMul", ["x", "w"], ["bomb"])], [floats("w", 8, 4), floats("w", 8, 3)])


def of_opset(version: int) -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["bomb"])], [], opset=version)


def computed_shape(value: float) -> onnx.ModelProto:
    """A shape computed from a number that isn't one."""
    return model(
        [
            node("Cast", ["bad"], ["shape"], to=TensorProto.INT64),
            node("Reshape", ["x", "shape"], ["r"]),
            node("ConstantOfShape", ["shape"], ["f"]),
            node("Add", ["r", "f"], ["bomb"]),
        ],
        [numpy_helper.from_array(np.array([value], np.float32), "bad")],
    )


def rank(dims: int) -> onnx.ModelProto:
    tensor = TensorProto(name="deep", data_type=1, dims=[1] * dims, raw_data=b"1234")
    axes = list(range(dims))
    return model(
        [
            node("Transpose", ["deep"], ["t"], perm=axes[::-1]),
            node("Add", ["t", "deep"], ["s"]),
            node("Reshape", ["x", "to"], ["r"]),
            node("Add", ["s", "r"], ["bomb"]),
        ],
        [tensor, ints("to", *[1] * (dims - 1), -1)],
    )


E = "ModelError"
BOMBS: list[tuple[Callable[[], onnx.ModelProto], str]] = [
    (lambda: fill(HUGE), "pruned"),
    (lambda: fill(LARGE), "pruned"),
    (lambda: fill(1 << 14, 1 << 14), "pruned"),
    (lambda: fill(HUGE, HUGE), "pruned"),
    (lambda: fill(-5, 3), "pruned"),
    (lambda: fill(1 << 14, 1 << 14, then="Transpose"), "pruned"),
    (lambda: fill(1 << 28, then="Sin"), "pruned"),
    (lambda: filled_weight(1 << 14, 1 << 14), "pruned"),
    (lambda: filled_weight(HUGE, HUGE), "pruned"),
    (lambda: filled_weight(1, 1 << 28), "pruned"),
    (lambda: expand(HUGE), "pruned"),
    (lambda: expand(LARGE), "pruned"),
    (lambda: expand(1 << 20, 1 << 20), "pruned"),
    (lambda: tile(HUGE), "pruned"),
    (lambda: tile(1 << 15, 1 << 15), "pruned"),
    (lambda: count_to(np.int64(0), np.int64(HUGE), np.int64(1)), "pruned"),
    (lambda: count_to(np.float32(0), np.float32(np.inf), np.float32(1)), "pruned"),
    (lambda: count_to(np.float32(0), np.float32(np.nan), np.float32(1)), "pruned"),
    (lambda: count_to(np.float64(0), np.float64(1), np.float64(1e-300)), "pruned"),
    (lambda: pad(0, HUGE), "pruned"),
    (lambda: pad(1 << 15, 1 << 15, 1 << 15, 1 << 15), "pruned"),
    (lambda: resize(1, 1, 1 << 15, 1 << 15), "pruned"),
    (lambda: resize(1, 1, 512, 512), "pruned"),
    (lambda: resize(np.nan, np.inf), "pruned"),
    (lambda: resize_to(1, 1, HUGE, HUGE), "pruned"),
    (lambda: resize_to(1, 1, 256, 256), "pruned"),
    (lambda: one_hot(HUGE), "pruned"),
    (lambda: one_hot(1 << 24), "pruned"),
    (lambda: outer(1 << 16), "pruned"),
    (lambda: outer(1 << 16, "MatMul"), "pruned"),
    (lambda: outer(1 << 16, "Pow"), "pruned"),
    (lambda: outer(1 << 16, "Equal"), "pruned"),
    (lambda: long_product(1 << 26), "pruned"),
    (lambda: einsum(5, 1000), "pruned"),
    (lambda: strange_equation("...,......->."), E),
    (lambda: strange_equation_of_a_call("...,......->."), E),
    (lambda: long_columns(3_000, 250_000), "pruned"),
    (lambda: doubling("Concat", 40, axis=0), "pruned"),
    (lambda: growing_number(60), "pruned"),
    (lambda: growing_polynomial(30), "pruned"),
    (lambda: many_sizes(30), "pruned"),
    (lambda: declared(1, 3, HUGE, HUGE), "pruned"),
    (lambda: declared(HUGE, 3, 1, 1), "pruned"),
    (lambda: flattened(1 << 12), "pruned"),
    (lambda: wide_join(20_000, 8), "pruned"),
    (lambda: wide_join(10_000, 4096), "pruned"),
    (lambda: mismatched(HUGE), E),
    (lambda: mismatched(HUGE, HUGE), E),
    (lambda: mismatched(-1), E),
    (lambda: mismatched(0, HUGE), E),
    (lambda: empty_weight(0, HUGE), "pruned"),
    (lambda: empty_weight(HUGE, 0), "pruned"),
    (lambda: nested(6), "pruned"),
    (lambda: calls(90), "pruned"),
    (lambda: calls(1000), E),
    (lambda: calls(40, times=2), E),
    (lambda: calls(1, again=True), E),
    (lambda: calls(3, again=True), E),
    (lambda: cycle(), E),
    (lambda: same_names(), E),
    (lambda: same_weights(), E),
    (lambda: of_opset(0), E),
    (lambda: of_opset(-1), E),
    (lambda: of_opset(10**9), E),
    (lambda: computed_shape(float("nan")), "pruned"),
    (lambda: computed_shape(float("inf")), "pruned"),
    (lambda: computed_shape(1e18), "pruned"),
    (lambda: rank(60), "pruned"),
    (lambda: rank(5000), E),
    (lambda: chain("Relu", 2_000), "pruned"),
]

# A megabyte of nodes.
LONG: list[tuple[Callable[[], onnx.ModelProto], str]] = [
    (lambda: chain("Relu", 42_000), "pruned"),
    (lambda: chain("Transpose", 23_000, perm=[1, 0]), "pruned"),
    (lambda: chain("Identity", 38_000), "pruned"),
    (lambda: chain_of_two("Add", 40_000, floats("c", 8)), "pruned"),
    (lambda: chain_of_two("Mul", 40_000, scalar("c", np.float32(2))), "pruned"),
    (lambda: constants(44_000), "pruned"),
    (lambda: layers(37_000), "pruned"),
    (lambda: fan(36_000), "pruned"),
    (lambda: nested(12), "pruned"),
    (lambda: reshapes(3_000), "pruned"),
    (lambda: wide_join(300_000, 8), "pruned"),
    (lambda: many_calls(38_000), "pruned"),
    (lambda: calls(16, times=2), "pruned"),
]


def title(make: Callable[[], onnx.ModelProto]) -> str:
    """How a row reads in the list above."""
    names = make.__code__.co_names
    numbers = [str(c) for c in make.__code__.co_consts if isinstance(c, int | float | str)]
    return "-".join([*names, *numbers])


def check(isolated: Isolated, make: Callable[[], onnx.ModelProto], outcome: str) -> None:
    data = make().SerializeToString()
    assert len(data) < 1_100_000
    cost = isolated.cost(data)
    assert cost.outcome == outcome, cost.message
    assert cost.peak < BYTES
    assert cost.seconds < SECONDS


@pytest.mark.parametrize(
    ("make", "outcome"), BOMBS, ids=lambda row: title(row) if callable(row) else ""
)
def test_a_small_file_cannot_ask_for_much(isolated, make, outcome):
    check(isolated, make, outcome)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "outcome"), LONG, ids=lambda row: title(row) if callable(row) else ""
)
def test_a_megabyte_of_nodes_takes_less_than_a_minute(isolated, make, outcome):
    check(isolated, make, outcome)


def test_what_is_refused_is_told():
    with pytest.raises(ModelError, match=r"functions make [\d,]+ nodes; 100,000 at most"):
        onnxjl.normalize(calls(40, times=2))
    with pytest.raises(DataError, match=r"'x' has shape .*: too large for random numbers"):
        random_inputs(onnxjl.load(declared(1, 3, 1 << 20, 1 << 20)))


def test_what_stays_whole_is_told(monkeypatch):
    structure = analyze(onnxjl.load(wide_join(2_000, 4096)))
    assert any("has too many indices (8,192,000)" in why for why in structure.unruled.values())
    labels = Labels()
    monkeypatch.setattr("onnxjl.structure.labels.MOST_UNIONS", 3)
    with pytest.raises(TooMany, match="too many indices to be told apart"):
        labels.unite(labels.fresh(4), labels.fresh(4))


def test_a_node_that_does_not_fit_its_operator_stays_whole():
    """A product of two matrices whose first has no axes."""
    proto = model(
        [node("Squeeze", ["x"], ["s"]), node("Gemm", ["s", "w"], ["bomb"])],
        [floats("w", 8, 8)],
        x=(1, 1),
    )
    unruled = analyze(onnxjl.load(proto)).unruled
    assert any("its inputs or attributes don't fit the operator" in why for why in unruled.values())
