"""The oracle of the proof must accept right plans, and notice every kind of wrong one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from oracle import difference, masked_outputs, run
from text_networks import inputs, network

TOLERANCE = 1e-4
Kept = Mapping[str, Mapping[int, Sequence[int]]]


def cut(
    model: onnx.ModelProto, kept: Kept, constants: Mapping[str, Sequence[int]] = {}
) -> onnx.ModelProto:
    """Return the network with these indices only, and other integer constants."""
    small = onnx.ModelProto()
    small.CopyFrom(model)
    for tensor in small.graph.initializer:
        array = numpy_helper.to_array(tensor)
        for axis, indices in kept.get(tensor.name, {}).items():
            array = np.take(array, indices, axis)
        if tensor.name in constants:
            array = np.array(constants[tensor.name], np.int64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    del small.graph.value_info[:]
    return small


def gap(model: onnx.ModelProto, kept: Kept, constants: Mapping[str, Sequence[int]] = {}) -> float:
    """Return how far the network that is left is from the masked one, on random inputs."""
    feeds = inputs(model)
    return difference(run(cut(model, kept, constants), feeds), masked_outputs(model, kept, feeds))


CONVOLUTIONS = network(
    """g (float[2, 3, 6, 6] x) => (float[2, 5, 2, 2] y) {
        a = Conv (x, w1, b1)
        n = BatchNormalization (a, scale, bias, mean, variance)
        r = Relu (n)
        y = Conv (r, w2, b2)
    }""",
    {
        "w1": (8, 3, 3, 3),
        "b1": (8,),
        "scale": (8,),
        "bias": (8,),
        "mean": (8,),
        "variance": (8,),
        "w2": (5, 8, 3, 3),
        "b2": (5,),
    },
)
NAMES = ("w1", "b1", "scale", "bias", "mean", "variance")


def convolutions(first: Sequence[int], **others: Sequence[int]) -> Kept:
    """Return what keeps these channels of all tensors, but others of those named."""
    kept = {name: {0: others.get(name, first)} for name in NAMES}
    return {**kept, "w2": {1: others.get("w2", first)}}


def test_right_plan_of_convolutions_is_accepted() -> None:
    assert gap(CONVOLUTIONS, convolutions([0, 3, 4, 7])) <= TOLERANCE


@pytest.mark.parametrize("name", ["w1", "b1", "scale", "bias", "mean", "variance", "w2"])
def test_other_channel_of_one_of_the_coupled_tensors_is_noticed(name: str) -> None:
    assert gap(CONVOLUTIONS, convolutions([0, 3, 4, 7], **{name: [0, 3, 5, 7]})) > TOLERANCE


def test_same_channels_in_another_order_are_noticed() -> None:
    assert gap(CONVOLUTIONS, convolutions([0, 3, 4, 7], w2=[3, 0, 4, 7])) > TOLERANCE


RESIDUAL = network(
    """g (float[2, 6] x) => (float[2, 3] y) {
        a = Gemm (x, w1, b1)
        r = Relu (a)
        b = Gemm (x, w2, b2)
        s = Add (r, b)
        y = Gemm (s, w3)
    }""",
    {"w1": (6, 4), "b1": (4,), "w2": (6, 4), "b2": (4,), "w3": (4, 3)},
)


@pytest.mark.parametrize(
    ("one", "other", "right"), [([0, 2], [0, 2], True), ([0, 2], [0, 3], False)]
)
def test_both_sides_of_a_sum_must_lose_the_same(
    one: list[int], other: list[int], right: bool
) -> None:
    kept = {"w1": {1: one}, "b1": {0: one}, "w2": {1: other}, "b2": {0: other}, "w3": {0: one}}
    assert (gap(RESIDUAL, kept) <= TOLERANCE) == right


@pytest.mark.parametrize(
    "between",
    [
        "n = LayerNormalization (r, scale, bias)",
        "n = Softmax (r)",
        "m = ReduceMean <keepdims = 1> (r, last) n = Sub (r, m)",
        "m = ReduceSum <keepdims = 1> (r, last) n = Add (r, m)",
        "m = ReduceMax <keepdims = 1> (r, last) n = Mul (r, m)",
        "m = ReduceL2 <keepdims = 1> (r, last) n = Div (r, m)",
    ],
    ids=lambda text: text.partition("= ")[2].partition(" ")[0],
)
def test_statistics_over_what_is_removed_are_noticed(between: str) -> None:
    model = network(
        f"""g (float[8, 6] x) => (float[8, 3] y) {{
            a = Gemm (x, w1, b1)
            r = Relu (a)
            {between}
            y = Gemm (n, w2)
        }}""",
        {"w1": (6, 8), "b1": (8,), "w2": (8, 3), "scale": (8,), "bias": (8,)},
        {"last": [-1]},
    )
    keep = [0, 1, 3, 4, 6, 7]
    kept = {
        "w1": {1: keep},
        "b1": {0: keep},
        "w2": {0: keep},
        "scale": {0: keep},
        "bias": {0: keep},
    }
    assert gap(model, kept) > TOLERANCE


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean"])
def test_removed_numbers_that_reach_an_output_past_every_contraction_are_noticed(
    operator: str,
) -> None:
    model = network(
        f"""g (float[8, 6] x) => (float[8, 1] y) {{
            a = Gemm (x, w)
            r = LeakyRelu (a)
            y = {operator} <keepdims = 1> (r, last)
        }}""",
        {"w": (6, 8)},
        {"last": [-1]},
    )
    assert gap(model, {"w": {1: [0, 1, 3, 4, 6, 7]}}) > TOLERANCE


ATTENTION = network(
    """g (float[1, 5, 12] x) => (float[1, 5, 4] y) {
        q = MatMul (x, wq)
        qs = Reshape (q, split_q)
        qt = Transpose <perm = [0, 2, 1, 3]> (qs)
        k = MatMul (x, wk)
        ks = Reshape (k, split_k)
        kt = Transpose <perm = [0, 2, 3, 1]> (ks)
        v = MatMul (x, wv)
        vs = Reshape (v, split_v)
        vt = Transpose <perm = [0, 2, 1, 3]> (vs)
        s = MatMul (qt, kt)
        p = Softmax (s)
        m = MatMul (p, vt)
        mt = Transpose <perm = [0, 2, 1, 3]> (m)
        o = Reshape (mt, join)
        y = MatMul (o, wo)
    }""",
    {"wq": (12, 12), "wk": (12, 12), "wv": (12, 12), "wo": (12, 4)},
    {
        "split_q": [0, 0, 3, 4],
        "split_k": [0, 0, 3, 4],
        "split_v": [0, 0, 3, 4],
        "join": [0, 0, -1],
    },
)
WHOLE = range(12)


def attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], o: Sequence[int]) -> Kept:
    """Return what keeps these columns of the projections and rows of the last weight."""
    return {"wq": {1: q}, "wk": {1: k}, "wv": {1: v}, "wo": {0: o}}


def splits(q: Sequence[int], k: Sequence[int], v: Sequence[int]) -> dict[str, list[int]]:
    """Return the shape constants for these (heads, features)."""
    return {"split_q": [0, 0, *q], "split_k": [0, 0, *k], "split_v": [0, 0, *v]}


HEADS = [0, 1, 2, 3, 8, 9, 10, 11]  # without the second of three heads of four features
FEATURES = [0, 2, 3, 4, 6, 7, 8, 10, 11]  # without the second feature of every head


@pytest.mark.parametrize(
    ("kept", "constants"),
    [
        (attention(HEADS, HEADS, HEADS, HEADS), splits([2, 4], [2, 4], [2, 4])),
        (attention(FEATURES, FEATURES, WHOLE, WHOLE), splits([3, 3], [3, 3], [3, 4])),
        (attention(WHOLE, WHOLE, FEATURES, FEATURES), splits([3, 4], [3, 4], [3, 3])),
    ],
    ids=["head", "query and key feature", "value feature"],
)
def test_right_plan_of_attention_is_accepted(
    kept: Kept, constants: Mapping[str, list[int]]
) -> None:
    assert gap(ATTENTION, kept, constants) <= TOLERANCE


OTHER_FEATURES = [0, 1, 3, 4, 5, 7, 8, 9, 11]
OTHER_HEADS = [0, 1, 2, 3, 4, 5, 6, 7]
EVERY_THIRD = [0, 1, 3, 4, 6, 7, 9, 10]


@pytest.mark.parametrize(
    ("kept", "constants"),
    [
        (attention(FEATURES, OTHER_FEATURES, WHOLE, WHOLE), splits([3, 3], [3, 3], [3, 4])),
        (attention(WHOLE, WHOLE, FEATURES, OTHER_FEATURES), splits([3, 4], [3, 4], [3, 3])),
        (attention(HEADS, OTHER_HEADS, HEADS, HEADS), splits([2, 4], [2, 4], [2, 4])),
        (attention(HEADS, HEADS, OTHER_HEADS, HEADS), splits([2, 4], [2, 4], [2, 4])),
        (attention(*[EVERY_THIRD] * 4), splits([2, 4], [2, 4], [2, 4])),
    ],
    ids=["query feature", "value feature", "key head", "value head", "heads across"],
)
def test_wrong_plan_of_attention_is_noticed(kept: Kept, constants: Mapping[str, list[int]]) -> None:
    assert gap(ATTENTION, kept, constants) > TOLERANCE


CONVOLVED = network(
    """g (float[1, 5, 12] x) => (float[1, 5, 4] y) {
        v = MatMul (x, wv)
        vs = Reshape (v, split_v)
        vt = Transpose <perm = [0, 2, 3, 1]> (vs)
        vr = Reshape (vt, together)
        c = Conv <group = 4, pads = [1, 1]> (vr, kernel, bias)
        cr = Reshape (c, apart)
        ct = Transpose <perm = [0, 3, 1, 2]> (cr)
        o = Reshape (ct, join)
        y = MatMul (o, wo)
    }""",
    {"wv": (12, 12), "kernel": (4, 1, 3), "bias": (4,), "wo": (12, 4)},
    {"split_v": [0, 0, 3, 4], "together": [-1, 4, 5], "apart": [1, -1, 4, 5], "join": [0, 0, -1]},
)
FEW_HEADS = {"split_v": [0, 0, 2, 4]}


def test_heads_among_samples_of_a_convolution_go_with_its_bias() -> None:
    kept = {"wv": {1: HEADS}, "wo": {0: HEADS}}
    assert gap(CONVOLVED, kept, FEW_HEADS) <= TOLERANCE


@pytest.mark.parametrize(
    "kept",
    [{"wv": {1: HEADS}, "wo": {0: OTHER_HEADS}}, {"wv": {1: OTHER_HEADS}, "wo": {0: HEADS}}],
    ids=["reader", "maker"],
)
def test_other_heads_among_samples_of_a_convolution_are_noticed(kept: Kept) -> None:
    assert gap(CONVOLVED, kept, FEW_HEADS) > TOLERANCE


def test_linear_attention_without_softmax_is_masked_on_both_sides() -> None:
    """Rectified features swallow what is poisoned: there is no weight between them."""
    model = network(
        """g (float[1, 5, 6] x) => (float[1, 5, 5] y) {
            q = MatMul (x, wq)
            qr = Relu (q)
            k = MatMul (x, wk)
            kr = Relu (k)
            kt = Transpose <perm = [0, 2, 1]> (kr)
            y = MatMul (qr, kt)
        }""",
        {"wq": (6, 6), "wk": (6, 6)},
    )
    assert gap(model, {"wq": {1: [0, 1, 4]}, "wk": {1: [0, 1, 4]}}) <= TOLERANCE
    assert gap(model, {"wq": {1: [0, 1, 4]}, "wk": {1: [0, 1, 5]}}) > TOLERANCE


LSTM = network(
    """g (float[4, 2, 3] x) => (float[4, 1, 2, 5] y, float[2, 2] z) {
        h, last = LSTM <hidden_size = 6> (x, w, r, b, , start, , )
        f = Squeeze (last, first)
        z = Gemm (f, out)
        y = MatMul (h, seen)
    }""",
    {
        "w": (1, 24, 3),
        "r": (1, 24, 6),
        "b": (1, 48),
        "start": (1, 2, 6),
        "out": (6, 2),
        "seen": (6, 5),
    },
    {"first": [0]},
)


def lstm(units: Sequence[int], **others: Sequence[int]) -> Kept:
    """Return what keeps these hidden units, but others of the tensors named."""

    def gates(name: str, copies: int) -> list[int]:
        return [6 * gate + unit for gate in range(copies) for unit in others.get(name, units)]

    return {
        "w": {1: gates("w", 4)},
        "r": {1: gates("r", 4), 2: others.get("columns", units)},
        "b": {1: gates("b", 8)},
        "start": {2: others.get("start", units)},
        "out": {0: others.get("out", units)},
        "seen": {0: others.get("seen", units)},
    }


def lstm_gap(kept: Kept) -> float:
    """Return the gap of an LSTM of four hidden units."""
    small = cut(LSTM, kept)
    small.graph.node[0].attribute[0].i = 4
    return difference(run(small, inputs(LSTM)), masked_outputs(LSTM, kept, inputs(LSTM)))


def test_right_plan_of_recurrent_cell_is_accepted() -> None:
    assert lstm_gap(lstm([0, 2, 3, 5])) <= TOLERANCE


@pytest.mark.parametrize("name", ["w", "r", "columns", "b", "start", "out", "seen"])
def test_other_unit_of_one_tensor_of_a_recurrent_cell_is_noticed(name: str) -> None:
    assert lstm_gap(lstm([0, 2, 3, 5], **{name: [0, 1, 3, 5]})) > TOLERANCE


def test_gates_in_the_wrong_order_are_noticed() -> None:
    kept = {**lstm([0, 2, 3, 5])}
    rows = np.array(kept["w"][1]).reshape(4, 4)
    kept["w"] = {1: rows[[0, 2, 1, 3]].reshape(-1).tolist()}
    assert lstm_gap(kept) > TOLERANCE


def test_nan_of_the_copies_is_no_match() -> None:
    a = {"y": np.array([1.0, 2.0], np.float32)}
    assert difference(a, {"y": np.array([1.0, np.nan], np.float32)}) == np.inf
    assert difference({"y": np.array([1.0, np.inf], np.float32)}, a) == np.inf
    assert difference(a, {"y": np.zeros((2, 1), np.float32)}) == np.inf
    assert difference(a, {"y": np.array([1.0, 2.5], np.float32)}) == pytest.approx(0.2)


def test_small_numbers_beside_many_large_ones_count() -> None:
    expected = np.array([[[100.0] * 16, [0.2] * 16]], np.float32)
    other = expected.copy()
    other[0, 1, 0] += 0.05
    assert difference({"y": other}, {"y": expected}) == pytest.approx(0.25)
    assert difference({"y": other[..., :8]}, {"y": expected[..., :8]}) == pytest.approx(0.0005)


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="'join' holds int64"):
        masked_outputs(ATTENTION, {"join": {0: [0, 1]}}, {})
