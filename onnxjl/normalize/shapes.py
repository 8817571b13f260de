"""Infer the type and shape of every value."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxjl.proto import weightless


def infer_shapes(model: ir.Model) -> ir.Model:
    """Forget all declared shapes but those of the graph's inputs, and infer them anew.

    Files declare wrong shapes; pruning would believe them. A value whose shape doesn't follow
    (from a node of an unknown operator) is left without; a graph output keeps its declared type.
    """
    graph = model.graph
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.shape = ir.Shape(value.const_value.shape)
            value.type = ir.TensorType(value.const_value.dtype)
    for node in graph:
        for output in node.outputs:
            output.shape = None
            if not output.is_graph_output():
                output.type = None
    inferred = onnx.shape_inference.infer_shapes(weightless(model), data_prop=True).graph
    found = {info.name: info.type for info in [*inferred.value_info, *inferred.output]}
    for node in graph:
        for output in node.outputs:
            proto = found.get(output.name or "")
            if proto is None:
                continue
            known = ir.serde.deserialize_type_proto_for_type(proto)
            if known is not None:
                output.type = known
            output.shape = ir.serde.deserialize_type_proto_for_shape(proto)
    return model
