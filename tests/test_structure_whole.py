"""What must stay whole does, the report says why, and what is left of the network is proved."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from proof import PLANS, TOLERANCE, prove
from text_networks import inputs, network

from onnxjl import Graph, groups, normalize
from onnxjl.structure import analyze


def proved(model: onnx.ModelProto, granularity: str = "channel") -> dict[str, int]:
    """Prove random plans; return the sizes of the exact groups by name."""
    structure = analyze(normalize(model), granularity=granularity)
    exact = {group.name: group.size for group in structure.groups if group.exact}
    generator = np.random.default_rng(4)
    for kind in PLANS if exact else ():
        assert prove(structure, kind(structure, generator), [inputs(model)]) <= TOLERANCE
    return exact


def reasons(model: onnx.ModelProto) -> dict[str, str]:
    """Return why layers stay whole."""
    return {whole.layer: whole.reason for whole in groups(model).whole}


def dense(
    middle: str,
    constants: Mapping[str, object] | None = None,
    *,
    outputs: str = "",
    further: str = "",
    rows: int = 8,
    opset: int = 18,
) -> onnx.ModelProto:
    """Return a network in which `middle` makes z out of a (and c), 8 features each.

    c is used for a second output besides.
    """
    return network(
        f"""g (float[N, 6] x{further}) => (float[N, 3] y, float[N, 2] k{outputs}) {{
            a = Gemm (x, w1, b1)
            c = Gemm (x, w3)
            {middle}
            y = Gemm (z, w2)
            k = Gemm (c, w4)
        }}""",
        {"w1": (6, 8), "b1": (8,), "w2": (rows, 3), "w3": (6, 8), "w4": (8, 2)},
        constants,
        opset=opset,
    )


# Sizes of what is pruned that steer something else, or become numbers


@pytest.mark.parametrize(
    ("middle", "outputs", "constants", "reason"),
    [
        (
            "s = Shape (a) e = Expand (one, s) v = ReduceSum (e, last) z = Relu (a)",
            ", float[N, 1] v",
            {"one": np.float32([[1]]), "last": [-1]},
            "its size is computed with at ReduceSum",
        ),
        (
            """s = Shape (a) e = ConstantOfShape (s) f = Cos (e) v = ReduceSum (f, last)
            z = Relu (a)""",
            ", float[N, 1] v",
            {"last": [-1]},
            "its size is computed with at ReduceSum",
        ),
        (
            "s = Shape (a) v = Tile (u, s) z = Relu (a)",
            ", float[A, B] v",
            {"u": np.float32([[0.5]])},
            "Tile 'v': no constant sets 's'",
        ),
        (
            "s = Shape (a) p = Concat <axis = 0> (s, s) v = Pad (u, p) z = Relu (a)",
            ", float[A, B] v",
            {"u": np.float32([[0.5]])},
            "no constant sets 's'",
        ),
        (
            "s = Shape (a) i = Gather (table, s) v = Gather (u, i) z = Relu (a)",
            ", float[A] v",
            {"table": list(range(9, 0, -1)), "u": np.linspace(0, 1, 12, dtype=np.float32)},
            "its size is computed with at Gather",
        ),
        (
            "s = Shape (a) f = Cast <to = 1> (s) q = ReduceProd (f) r = Sqrt (q) z = Div (a, r)",
            "",
            {},
            "its size is computed with at Cast",
        ),
        (
            "s = Shape (a) z = Relu (a) v = Identity (s)",
            ", int64[2] v",
            {},
            "network output 'v'",
        ),
        (
            "s = Size (a) f = Cast <to = 1> (s) z = Div (a, f)",
            "",
            {},
            "its size is computed with at Cast",
        ),
        (
            """s = Shape (a) e = ConstantOfShape <value = float[1] {1.0}> (s)
            n = ReduceSum <keepdims = 0> (e) z = Div (a, n)""",
            "",
            {},
            "its size is computed with at ReduceSum",
        ),
    ],
    ids=["Expand", "ConstantOfShape", "Tile", "Pad", "Gather", "scale", "output", "Size", "count"],
)
def test_size_of_a_pruned_axis_used_elsewhere_fixes_it(
    middle: str, outputs: str, constants: Mapping[str, object], reason: str
) -> None:
    model = dense(middle, constants, outputs=outputs)
    assert proved(model) == {"c": 8}
    assert reason in reasons(model)["a"]


def test_size_that_stays_with_its_axis_fixes_nothing() -> None:
    model = dense(
        """s = Shape (a) e = Expand (half, s) f = ConstantOfShape <value = float[1] {1.0}> (s)
        m = Mul (a, e) n = Add (m, f) z = Reshape (n, s)""",
        {"half": np.float32([[0.5]])},
    )
    assert proved(model) == {"a": 8, "c": 8}


def test_attention_scale_from_a_known_size_stays_what_it_was() -> None:
    model = network(
        """g (float[N, 5, 6] x) => (float[N, 5, 3] y) {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            t = Transpose <perm = [0, 2, 1]> (k)
            p = MatMul (q, t)
            s = Shape (q)
            i = Slice (s, two, three)
            f = Cast <to = 1> (i)
            r = Sqrt (f)
            d = Div (p, r)
            w = Softmax (d)
            m = MatMul (w, v)
            y = MatMul (m, wo)
        }""",
        {"wq": (6, 8), "wk": (6, 8), "wv": (6, 7), "wo": (7, 3)},
        {"two": [2], "three": [3]},
    )
    assert sorted(proved(model, "head-dim").values()) == [7, 8]


# Subgraphs


def test_what_subgraphs_use_stays_whole() -> None:
    model = dense(
        """m = ReduceSum <keepdims = 0> (x) condition = Greater (m, zero)
        z = If (condition) <
            then_branch = t () => (float[N, 8] p) { p = Relu (a) },
            else_branch = e () => (float[N, 8] q) { q = Neg (a) }
        >""",
        {"zero": np.float32(0)},
    )
    assert proved(model) == {"c": 8}
    assert reasons(model)["a"] == "used inside If 'z'"


def test_loop_body_fixes_what_it_captures_and_carries() -> None:
    model = dense(
        """z = Loop (three, , a) <body = b (int64 i, bool k, float[N, 8] s)
            => (bool k2, float[N, 8] s2) { k2 = Identity (k) t = Mul (s, c) s2 = Tanh (t) }>""",
        {"three": 3},
    )
    assert proved(model) == {}
    assert reasons(model)["c"] == "used inside Loop 'z'"
    assert reasons(model)["a"] == "Loop 'z': there is no rule for this operator"


def test_scan_fixes_what_it_reads() -> None:
    model = dense(
        """z = Scan <num_scan_inputs = 1,
            body = b (float[8] s) => (float[8] t) { t = Tanh (s) }> (a)"""
    )
    assert proved(model) == {"c": 8}
    assert "Scan 'z'" in reasons(model)["a"]


# Unknown operators


def test_operator_without_a_rule_fixes_what_it_touches_and_is_named() -> None:
    model = dense("t = CenterCropPad <axes = [1]> (a, eight) z = Add (t, c)", {"eight": [8]})
    assert proved(model) == {}
    assert reasons(model)["a"] == "CenterCropPad 't': there is no rule for this operator"
    assert reasons(model)["c"] == "CenterCropPad 't': there is no rule for this operator"
    structure = analyze(normalize(model))
    assert structure.unruled == {"CenterCropPad 't'": "there is no rule for this operator"}


@pytest.mark.parametrize(
    ("middle", "constants"),
    [
        ("m = NonZero (a) f = Cast <to = 1> (m) s = ReduceSum (f) z = Mul (a, s)", {}),
        ("t = Compress (a, all) s = ReduceSum (t) z = Mul (a, s)", {"all": np.ones(16, bool)}),
        ("t = com.microsoft.Trilu (a) z = Relu (t)", {}),
        ("t, i = Unique (a) s = ReduceSum (t) z = Mul (a, s)", {}),
    ],
    ids=["NonZero", "Compress", "Trilu", "Unique"],
)
def test_unruled_operators_cost_prunability_never_correctness(
    middle: str, constants: Mapping[str, object]
) -> None:
    assert proved(dense(middle, constants)) == {"c": 8}


def test_custom_operator_is_left_alone() -> None:
    model = dense("z = Relu (a)")
    node = helper.make_node("Odd", ["a"], ["odd"], name="odd", domain="some.where")
    model.graph.node.insert(1, node)
    model.graph.node[-1].input[0] = "odd"
    model.opset_import.append(helper.make_opsetid("some.where", 1))
    odd = "Odd 'odd': there is no rule for this operator"
    lost = "Gemm 'k': the shape of 'odd' isn't known, behind Odd 'odd'"
    assert reasons(model) == {"a": odd, "y": "network output 'y'", "k": lost}


# Weights that aren't free


def test_integer_weights_are_left_whole_with_a_reason() -> None:
    quantized = np.random.default_rng(0).integers(-9, 9, (6, 8)).astype(np.int8)
    model = network(
        """g (float[N, 6] x) => (float[N, 3] y) {
            w = DequantizeLinear <axis = 1> (q, s)
            a = MatMul (x, w)
            r = Relu (a)
            b = MatMul (r, w2)
            y = MatMul (b, w3)
        }""",
        {"w2": (8, 7), "w3": (7, 3)},
        {"q": quantized, "s": np.linspace(0.1, 0.2, 8, dtype=np.float32)},
    )
    assert proved(model) == {"b": 7}
    assert reasons(model) == {
        "w": "'q' holds int8, not real numbers",
        "y": "network output 'y'",
    }


def test_tied_weight_tells_which_axis_it_met() -> None:
    model = network(
        """g (float[N, 3, 6, 6] x, float[N, 5] v) => (float[N, 4, 6, 5] y, float[N, 2] z) {
            h = Conv <pads = [1, 1, 1, 1]> (x, k)
            m = MatMul (h, w)
            y = Conv (m, k2)
            t = Gemm <transB = 1> (v, w)
            z = MatMul (t, w2)
        }""",
        {"k": (8, 3, 3, 3), "w": (6, 5), "k2": (4, 8, 1, 1), "w2": (6, 2)},
    )
    assert proved(model) == {"h": 8}
    assert reasons(model)["t"] == "meets an axis that can't shrink at MatMul 'm'"


def test_dynamic_quantization_is_left_whole() -> None:
    quantized = np.random.default_rng(0).integers(-9, 9, (8, 5)).astype(np.int8)
    model = dense(
        """q, s, o = DynamicQuantizeLinear (a)
        i = MatMulInteger (q, w8, o) f = Cast <to = 1> (i) z = Mul (f, s)""",
        {"w8": quantized},
        rows=5,
    )
    assert proved(model) == {"c": 8}
    found = reasons(model)
    assert "there is no rule for this operator" in found["a"]
    assert found["i"] == "its weight is int8"


def test_weight_of_two_layers_is_coupled() -> None:
    """An autoencoder with one matrix: its hidden features are cut once, and serve both layers."""
    model = network(
        """g (float[N, 6] x) => (float[N, 6] y) {
            a = Gemm (x, w, b)
            h = Tanh (a)
            y = Gemm <transB = 1> (h, w)
        }""",
        {"w": (6, 8), "b": (8,)},
    )
    assert proved(model) == {"a": 8}
    (group,) = groups(model)
    assert [(m.tensor, m.axis) for m in group.members] == [("w", 1), ("b", 0)]


def test_layer_that_is_applied_twice_is_coupled_to_itself() -> None:
    model = network(
        """g (float[N, 3, 4, 4] x) => (y) {
            a = Conv (x, w1)
            b = Conv <pads = [1, 1, 1, 1]> (a, w)
            r = Relu (b)
            c = Conv <pads = [1, 1, 1, 1]> (r, w)
            y = Conv (c, w2)
        }""",
        {"w1": (8, 3, 1, 1), "w": (8, 8, 3, 3), "w2": (2, 8, 1, 1)},
    )
    assert list(proved(model).values()) == [8]


def test_embedding_that_is_also_the_last_layer_keeps_its_vocabulary() -> None:
    model = network(
        """g (int64[N, 4] tokens) => (float[N, 4, 10] y) {
            e = Gather (table, tokens)
            h = Tanh (e)
            t = Transpose (table)
            y = MatMul (h, t)
        }""",
        {"table": (10, 8)},
    )
    assert list(proved(model).values()) == [8]


def test_bias_that_two_layers_share_is_not_what_couples_them() -> None:
    model = network(
        """g (float[N, 6] x) => (float[N, 3] y) {
            a = Gemm (x, w1, b)
            r = Relu (a)
            c = Gemm (r, w2, b)
            s = Relu (c)
            y = Gemm (s, w3)
        }""",
        {"w1": (6, 8), "w2": (8, 8), "w3": (8, 3), "b": (8,)},
    )
    assert proved(model) == {"a": 8, "c": 8}


def test_shape_constant_that_two_reshapes_share_is_rewritten_for_each() -> None:
    model = network(
        """g (float[N, 3, 4, 4] x) => (y, v) {
            a = Conv (x, w1)
            r = Reshape (a, s)
            b = Conv (x, w2)
            q = Reshape (b, s)
            t = Transpose <perm = [0, 2, 1]> (r)
            u = Transpose <perm = [0, 2, 1]> (q)
            y = MatMul (t, w3)
            v = MatMul (u, w4)
        }""",
        {"w1": (8, 3, 1, 1), "w2": (8, 3, 1, 1), "w3": (8, 2), "w4": (8, 2)},
        {"s": [0, 8, 16]},
    )
    assert proved(model) == {"a": 8, "b": 8}


@pytest.mark.parametrize("folded", [True, False])
def test_computed_shape_that_two_reshapes_share(folded: bool) -> None:
    """It can't be two things at once, unless normalization made two of it."""
    model = network(
        """g (float[N, 3, 4, 4] x) => (y, v) {
            a = Conv (x, w1)
            n = Shape <end = 1> (x)
            s = Concat <axis = 0> (n, rest)
            r = Reshape (a, s)
            b = Conv (x, w2)
            q = Reshape (b, s)
            t = Transpose <perm = [0, 2, 1]> (r)
            u = Transpose <perm = [0, 2, 1]> (q)
            y = MatMul (t, w3)
            v = MatMul (u, w4)
        }""",
        {"w1": (8, 3, 1, 1), "w2": (8, 3, 1, 1), "w3": (8, 2), "w4": (8, 2)},
        {"rest": [8, 16]},
    )
    if folded:
        assert proved(model) == {"a": 8, "b": 8}
    else:
        structure = analyze(Graph(ir.from_proto(model), normalized=True))
        assert structure.groups == ()
        assert "another node needs the same shape constant to differ" in structure.whole[0].reason


# The border


def test_inputs_and_outputs_are_fixed() -> None:
    model = network(
        """g (float[N, 6] x) => (float[N, 8] a, float[N, 3] y) {
            a = Gemm (x, w1)
            r = Relu (a)
            y = Gemm (r, w2)
        }""",
        {"w1": (6, 8), "w2": (8, 3)},
    )
    assert proved(model) == {}
    assert reasons(model) == {"a": "network output 'a'", "y": "network output 'y'"}


def test_residual_sum_with_the_input_is_fixed_and_says_which() -> None:
    model = dense("s = Concat <axis = 1> (x, x2) z = Add (a, s)", further=", float[N, 2] x2")
    assert proved(model) == {"c": 8}
    assert reasons(model)["a"] == "network input 'x'"


def test_channels_that_are_read_as_space_are_fixed() -> None:
    model = network(
        """g (float[N, 3, 8] x) => (float[N, 4, 6] y) {
            a = Conv (x, w1)
            t = Transpose <perm = [0, 2, 1]> (a)
            c = Conv (t, w2)
            y = MatMul (w3, c)
        }""",
        {"w1": (8, 3, 1), "w2": (5, 8, 3), "w3": (4, 5)},
    )
    assert proved(model) == {"c": 5}
    assert reasons(model)["a"] == "a spatial axis of Conv 'c'"


def test_one_output_can_not_go() -> None:
    model = network(
        """g (float[N, 6] x) => (float[N, 3] y) {
            a = Gemm (x, w1)
            y = Gemm (a, w2)
        }""",
        {"w1": (6, 1), "w2": (1, 3)},
    )
    assert proved(model) == {}
    assert reasons(model)["a"] == "it has one output"


def test_float16_and_double_weights_are_pruned_like_float() -> None:
    for dtype, letter in ((np.float16, "float16"), (np.float64, "double")):
        model = dense("z = Relu (a)")
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = kind
        structure = analyze(normalize(model))
        assert [group.size for group in structure.groups] == [8, 8], letter
        keep = [np.arange(8) % 2 == 0, np.arange(8) != 3]
        tolerance = 1e-2 if dtype == np.float16 else TOLERANCE
        assert prove(structure, keep, [inputs(model)]) <= tolerance
