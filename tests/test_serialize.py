"""serialize: the bytes written piece by piece are the model."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_networks as small
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxjl.graph import Graph
from onnxjl.load import load
from onnxjl.serialize import skeleton, weight_bytes, weights, write


def written(graph):
    file = io.BytesIO()
    write(graph, file)
    return file.getvalue()


def everything(message):
    """All of a message but what serialization may choose: order, and how weights are stored."""
    arrays = {t.name: numpy_helper.to_array(t) for t in message.graph.initializer}
    nodes = [node.SerializeToString(deterministic=True) for node in message.graph.node]
    ends = [v.SerializeToString() for v in (*message.graph.input, *message.graph.output)]
    return arrays, nodes, ends


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("outside", [False, True])
def test_nothing_is_lost(dtype, outside, tmp_path):
    proto = small.convolutions(dtype=dtype)
    onnx.save(proto, tmp_path / "net.onnx", save_as_external_data=outside, size_threshold=0)
    graph = load(tmp_path / "net.onnx")
    streamed = {np.float16: set(), np.float32: {"second.weight"}}
    assert {name for name, _ in weights(graph)} == streamed.get(
        dtype, {"first.weight", "second.weight"}
    )
    data = written(graph)
    found = onnx.load_model_from_string(data)
    onnx.checker.check_model(found)
    arrays, nodes, ends = everything(found)
    expected_arrays, expected_nodes, expected_ends = everything(small.convolutions(dtype=dtype))
    assert (nodes, ends) == (expected_nodes, expected_ends)
    assert arrays.keys() == expected_arrays.keys()
    for name, array in expected_arrays.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    assert data == written(load(tmp_path / "net.onnx"))


def test_types_of_less_than_a_byte_and_strings_survive():
    random = np.random.default_rng(0)
    tensors = [
        helper.make_tensor("nibbles", TensorProto.INT4, (4000,), random.integers(-8, 8, 4000)),
        helper.make_tensor("halves", TensorProto.BFLOAT16, (1000,), random.standard_normal(1000)),
        helper.make_tensor(
            "words", TensorProto.STRING, (300,), [b"word %d" % i for i in range(300)]
        ),
    ]
    nodes = [helper.make_node("Identity", [tensor.name], [f"{tensor.name}2"]) for tensor in tensors]
    outputs = [
        helper.make_tensor_value_info(f"{tensor.name}2", tensor.data_type, tensor.dims)
        for tensor in tensors
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "types", [], outputs, tensors),
        opset_imports=[helper.make_opsetid("", 21)],
    )
    found = onnx.load_model_from_string(written(load(proto)))
    onnx.checker.check_model(found)
    arrays, *_ = everything(found)
    for tensor in tensors:
        np.testing.assert_array_equal(arrays[tensor.name], numpy_helper.to_array(tensor))


def test_external_data_of_subgraphs_and_small_tensors_come_inside(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "bias"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, (3,))],
        [numpy_helper.from_array(np.arange(3, dtype=np.float32), "bias")],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, (3,))],
    )
    proto = small.model(
        [
            helper.make_node("Mul", ["x", "factor"], ["z"]),
            helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=other),
            helper.make_node("Add", ["y", "z"], ["out"]),
        ],
        {"x": (3,)},
        {"out": (3,)},
        {"factor": np.full(3, 2, np.float32), "yes": np.array(True)},
    )
    branches = {a.name: a.g for a in proto.graph.node[1].attribute}
    bias, factor = branches["then_branch"].initializer[0], proto.graph.initializer[0]
    (tmp_path / "data").write_bytes(bias.raw_data + factor.raw_data)
    for tensor, offset in ((bias, 0), (factor, 12)):
        external_data_helper.set_external_data(tensor, "data", offset, 12)
        tensor.ClearField("raw_data")
    onnx.save(proto, tmp_path / "net.onnx")
    found = onnx.load_model_from_string(written(Graph(ir.load(tmp_path / "net.onnx"))))
    x = np.array([1, 2, 3], np.float32)
    (out,) = ReferenceEvaluator(found).run(None, {"x": x})
    np.testing.assert_array_equal(out, x + np.arange(3) + 2 * x)


@pytest.mark.parametrize(("opset", "version"), [(13, 7), (15, 8), (17, 8), (21, 10), (23, 11)])
def test_the_ir_version_is_the_lowest_for_the_opset(opset, version):
    proto = small.convolutions(opset=opset)
    proto.ir_version = onnx.IR_VERSION
    assert onnx.load_model_from_string(written(load(proto))).ir_version == version


def test_the_ir_version_is_high_enough_for_types_and_functions():
    proto = small.convolutions(opset=13)
    proto.graph.initializer.append(
        helper.make_tensor("unused", TensorProto.FLOAT8E5M2, (1,), [1.0])
    )
    assert skeleton(Graph(ir.from_proto(proto)), lambda name, tensor: None).ir_version == 9
    function = helper.make_function(
        "test",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 13)],
    )
    proto = small.convolutions(opset=13)
    proto.functions.append(function)
    assert skeleton(Graph(ir.from_proto(proto)), lambda name, tensor: None).ir_version == 8


def test_weights_can_be_placed_elsewhere():
    graph = load(small.convolutions())
    proto = skeleton(graph, lambda name, tensor: (f"{name}.bin", 64))
    placed = {t.name: {e.key: e.value for e in t.external_data} for t in proto.graph.initializer}
    assert placed["second.weight"] == {
        "location": "second.weight.bin",
        "offset": "64",
        "length": "1152",
    }
    assert placed["first.weight"] == {}
    assert weight_bytes(graph) == 1152
