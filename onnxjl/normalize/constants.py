"""Lift `Constant` nodes into initializers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxjl.normalize.surgery import add_initializer, is_onnx, renamed


def lift_constants(model: ir.Model) -> ir.Model:
    """Turn the main graph's `Constant` nodes into initializers of the same name.

    A constant that is itself a graph output, or sparse, stays a node.
    """
    graph = model.graph
    for node in list(graph):
        if not is_onnx(node, "Constant") or len(node.attributes) != 1:
            continue
        output = node.outputs[0]
        name, attribute = next(iter(node.attributes.items()))
        if output.is_graph_output() or output.name is None:
            continue
        tensor = _tensor(name, attribute)
        if tensor is None:
            continue
        graph.remove(node)
        value_name = output.name
        output.name = f"{value_name}.replaced"
        output.replace_all_uses_with(
            add_initializer(graph, value_name, renamed(tensor, value_name))
        )
    return model


def _tensor(name: str, attribute: ir.Attr) -> ir.TensorProtocol | None:
    match name:
        case "value":
            return attribute.value
        case "value_int":
            return ir.Tensor(np.array(attribute.as_int(), np.int64))
        case "value_ints":
            return ir.Tensor(np.array(attribute.as_ints(), np.int64))
        case "value_float":
            return ir.Tensor(np.array(attribute.as_float(), np.float32))
        case "value_floats":
            return ir.Tensor(np.array(attribute.as_floats(), np.float32))
        case "value_string":
            return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape([]))
        case "value_strings":
            strings = [string.encode() for string in attribute.as_strings()]
            return ir.StringTensor(strings, shape=ir.Shape([len(strings)]))
        case _:
            return None
