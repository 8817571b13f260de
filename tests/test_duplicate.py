"""A duplicate is what the model was, and changing it changes nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxjl.duplicate import duplicate


def network(*, subgraph: bool) -> ir.Model:
    """A network with all that a duplicate must carry over, on request with a subgraph."""
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product", doc_string="a product"),
        helper.make_node("Clip", ["h", "", "high"], ["c"], name="clip"),
        helper.make_node("LeakyRelu", ["c"], ["y"], name="leaky", alpha=0.25),
    ]
    if subgraph:
        branch = helper.make_graph(
            [helper.make_node("Neg", ["c"], ["n"])],
            "branch",
            [],
            [helper.make_tensor_value_info("n", TensorProto.FLOAT, ["batch", 3])],
        )
        nodes[2] = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [
            weight,
            numpy_helper.from_array(np.array(4, np.float32), "high"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
        value_info=[helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 3])],
        doc_string="a graph",
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="test",
        producer_version="1",
        domain="example",
        model_version=3,
        doc_string="a model",
    )
    for owner in (model, model.graph, *model.graph.node, *model.graph.value_info):
        helper.set_model_props(owner, {"key": type(owner).__name__})
    return ir.serde.deserialize_model(model)


@pytest.mark.parametrize("subgraph", [False, True])
def test_duplicate_serializes_to_the_same_model(subgraph: bool) -> None:
    model = network(subgraph=subgraph)
    copy = duplicate(model, {})
    assert ir.serde.serialize_model(copy) == ir.serde.serialize_model(model)
    onnx.checker.check_model(ir.serde.serialize_model(copy))


@pytest.mark.parametrize("subgraph", [False, True])
def test_duplicate_shares_weights_but_no_value_node_or_shape(subgraph: bool) -> None:
    model = network(subgraph=subgraph)
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    copy = duplicate(model, {})
    assert copy.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    for node in copy.graph:
        node.name = f"{node.name} again"
        node.attributes["more"] = ir.AttrInt64("more", 1)
        node.metadata_props["key"] = "changed"
        for value in node.outputs:
            value.metadata_props["key"] = "changed"
            if value.shape is not None:
                value.shape[1] = 7
    copy.graph.initializers.pop("yes")
    copy.graph.opset_imports[""] = 18
    copy.metadata_props["key"] = "changed"
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("subgraph", [False, True])
def test_duplicate_takes_other_weights_in_place_of_the_models(subgraph: bool) -> None:
    model = network(subgraph=subgraph)
    before = ir.serde.serialize_model(model)
    weight = ir.Tensor(np.arange(4, dtype=np.float32).reshape(2, 2), name="w")
    copy = duplicate(model, {"w": weight})
    value = copy.graph.initializers["w"]
    assert value.const_value is weight
    assert value.shape == (2, 2)
    expected = ir.serde.serialize_model(model)
    expected.graph.initializer[0].CopyFrom(ir.serde.serialize_tensor(weight))
    assert ir.serde.serialize_model(copy).graph.initializer == expected.graph.initializer
    assert ir.serde.serialize_model(model) == before
