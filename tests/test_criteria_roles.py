"""Roles: which axes of a weight index outputs, told apart by what a changed slice changes."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxjl.criteria.roles import role


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# One node: operator, attributes, inputs by name ("w" is the weight), and the axes looked at.
CASES = {
    "conv": ("Conv", {}, {"x": normal(1, 3, 5, 5), "w": normal(4, 3, 3, 3)}, (0, 1)),
    "depthwise": ("Conv", {"group": 4}, {"x": normal(1, 4, 5, 5), "w": normal(4, 1, 3, 3)}, (0, 1)),
    "transposed": ("ConvTranspose", {}, {"x": normal(1, 3, 4, 4), "w": normal(3, 4, 1, 1)}, (0, 1)),
    "transposed grouped": (
        "ConvTranspose",
        {"group": 3},
        {"x": normal(1, 3, 4, 4), "w": normal(3, 2, 1, 1)},
        (0, 1),
    ),
    "gemm": ("Gemm", {}, {"x": normal(2, 3), "w": normal(3, 4)}, (0, 1)),
    "gemm transposed": ("Gemm", {"transB": 1}, {"x": normal(2, 3), "w": normal(4, 3)}, (0, 1)),
    "gemm left": ("Gemm", {}, {"w": normal(4, 3), "x": normal(3, 2)}, (0, 1)),
    "gemm left transposed": ("Gemm", {"transA": 1}, {"w": normal(3, 4), "x": normal(3, 2)}, (0, 1)),
    "matmul": ("MatMul", {}, {"x": normal(2, 5, 3), "w": normal(3, 4)}, (0, 1)),
    "matmul left": ("MatMul", {}, {"w": normal(4, 3), "x": normal(3, 2)}, (0, 1)),
    "matmul batch": ("MatMul", {}, {"x": normal(6, 2, 3), "w": normal(6, 3, 4)}, (0, 1, 2)),
    "matmul vector": ("MatMul", {}, {"x": normal(2, 3), "w": normal(3)}, (0,)),
    "fused matmul": (
        "com.microsoft.FusedMatMul",
        {"transB": 1},
        {"x": normal(2, 3), "w": normal(4, 3)},
        (0, 1),
    ),
    "einsum": (
        "Einsum",
        {"equation": "bi, oi -> bo"},
        {"x": normal(2, 3), "w": normal(4, 3)},
        (0, 1),
    ),
    "einsum left": (
        "Einsum",
        {"equation": "io,bi->bo"},
        {"w": normal(3, 4), "x": normal(2, 3)},
        (0, 1),
    ),
    "einsum implicit": (
        "Einsum",
        {"equation": "bi,io"},
        {"x": normal(2, 3), "w": normal(3, 4)},
        (0, 1),
    ),
    "einsum ellipsis": (
        "Einsum",
        {"equation": "bi,...io->...bo"},
        {"x": normal(2, 3), "w": normal(5, 3, 4)},
        (0, 1, 2),
    ),
    "lstm inputs": (
        "LSTM",
        {"hidden_size": 2},
        {"x": normal(1, 3, 4), "w": normal(1, 8, 4), "r": normal(1, 8, 2)},
        (1, 2),
    ),
    "gru states": (
        "GRU",
        {"hidden_size": 3},
        {
            "x": normal(1, 2, 4),
            "v": normal(1, 9, 4),
            "w": normal(1, 9, 3),
            "": None,
            " ": None,
            "h": normal(1, 2, 3),
        },
        (1, 2),
    ),
    "rnn inputs": (
        "RNN",
        {"hidden_size": 3},
        {"x": normal(1, 2, 4), "w": normal(1, 3, 4), "r": normal(1, 3, 3)},
        (1, 2),
    ),
}


def one_node(operator, attributes, inputs, before=()):
    domain, _, name = operator.rpartition(".")
    arrays = {key: array for key, array in inputs.items() if array is not None}
    node = helper.make_node(
        name, [key.strip() for key in inputs], ["y"], name="n", domain=domain, **attributes
    )
    graph = helper.make_graph(
        [*before, node],
        "one",
        [
            helper.make_tensor_value_info(key, TensorProto.FLOAT, array.shape)
            for key, array in arrays.items()
            if key != "w"
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(arrays["w"], "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def outputs(model, arrays):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, arrays)[0]


@pytest.mark.parametrize("case", CASES)
def test_a_slice_on_an_output_axis_reaches_only_some_outputs_and_on_an_input_axis_all(case):
    operator, attributes, inputs, axes = CASES[case]
    model = one_node(operator, attributes, inputs)
    arrays = {k: a for k, a in inputs.items() if a is not None and k != "w"}
    whole = outputs(model, arrays)
    found = role(ir.from_proto(model).graph.initializers["w"])
    assert found.contracted
    assert not found.scale
    for axis in axes:
        changed = inputs["w"].copy()
        np.moveaxis(changed, axis, 0)[0] += 0.5
        other = onnx.ModelProto()
        other.CopyFrom(model)
        other.graph.initializer[0].CopyFrom(numpy_helper.from_array(changed, "w"))
        reaches_all = bool((outputs(other, arrays) != whole).all())
        # An axis of size one, as a depthwise convolution's second, reaches all and is no output.
        assert (axis in found.outputs) == (not reaches_all), axis


def test_transpositions_and_casts_before_the_contraction_are_seen_through():
    before = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Identity", ["t"], ["c"]),
    ]
    model = one_node("MatMul", {}, {"x": normal(2, 3), "w": normal(4, 3)}, before)
    model.graph.node[-1].input[1] = "c"
    found = role(ir.from_proto(model).graph.initializers["w"])
    assert found.contracted
    assert found.outputs == {0}


SCALES = {
    "BatchNormalization": ["x", "w", "b", "m", "v"],
    "InstanceNormalization": ["x", "w", "b"],
    "LayerNormalization": ["x", "w"],
    "com.microsoft.EmbedLayerNormalization": ["x", "x", "x", "x", "x", "w", "b"],
    "com.microsoft.SkipLayerNormalization": ["x", "x", "w", "b"],
}


@pytest.mark.parametrize("operator", SCALES)
def test_the_scale_of_a_normalization_is_no_contraction(operator):
    names = dict.fromkeys(SCALES[operator])
    model = one_node(operator, {}, {name: normal(3) for name in names})
    model.graph.node[0].input[:] = SCALES[operator]
    del model.graph.input[1:]
    model.graph.initializer.extend(
        numpy_helper.from_array(normal(3), name) for name in names if name not in "xw"
    )
    initializers = ir.from_proto(model).graph.initializers
    found = {name: role(initializers[name]) for name in names if name != "x"}
    assert [name for name in found if found[name].scale] == ["w"]
    assert not any(each.contracted for each in found.values())


@pytest.mark.parametrize(
    ("operator", "attributes", "inputs"),
    [
        ("Add", {}, {"x": normal(2, 3), "w": normal(2, 3)}),
        ("Gemm", {}, {"x": normal(2, 3), "v": normal(3, 4), "w": normal(2, 4)}),
        (
            "LSTM",
            {"hidden_size": 1},
            {"x": normal(1, 2, 3), "v": normal(1, 4, 3), "r": normal(1, 4, 1), "w": normal(1, 8)},
        ),
    ],
    ids=["addend", "gemm bias", "lstm bias"],
)
def test_what_is_added_is_not_contracted(operator, attributes, inputs):
    found = role(ir.from_proto(one_node(operator, attributes, inputs)).graph.initializers["w"])
    assert not found.contracted
    assert not found.outputs
