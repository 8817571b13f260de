"""Duplicate: a copy of a model that shares the weights, or has others in place of some."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxjl.graph import initializers, subgraphs

Tensors = Mapping[str, ir.TensorProtocol]


def duplicate(model: ir.Model, tensors: Tensors) -> ir.Model:
    """Return a copy with nodes, values and shapes of its own; tensors and attributes are shared.

    It is what ``model.clone()`` makes, which takes twice as long for a graph without subgraphs.

    Parameters
    ----------
    model : what to copy; it stays as it is.
    tensors : initializer name -> the weight that the copy has in place of the model's.
    """
    if model.functions or model.device_configurations or not all(map(_is_flat, model.graph)):
        copy = model.clone()
        for name, tensor in tensors.items():
            value = copy.graph.initializers[name]
            value.const_value, value.shape = tensor, ir.Shape(tensor.shape.numpy())
        return copy
    return ir.Model(
        _graph(model, tensors),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        metadata_props=dict(model.metadata_props),
    )


def _is_flat(node: ir.Node) -> bool:
    """Return whether a node has neither subgraphs nor parts of its own that refer to values."""
    return not node.device_configurations and not subgraphs(node)


def _graph(model: ir.Model, tensors: Tensors) -> ir.Graph:
    graph, weights = model.graph, initializers(model)
    copies = {value: _value(value, tensors.get(name)) for name, value in weights.items()}
    for value in graph.inputs:
        if value not in copies:
            copies[value] = _value(value)
    nodes = []
    for node in graph:
        outputs = [_value(value) for value in node.outputs]
        copies.update(zip(node.outputs, outputs, strict=True))
        nodes.append(
            ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else copies[value] for value in node.inputs],
                overload=node.overload,
                outputs=outputs,
                version=node.version,
                name=node.name,
                doc_string=node.doc_string,
                metadata_props=dict(node.metadata_props) or None,
            )
        )
        # Attributes without subgraphs belong to no node: their mapping would check each.
        nodes[-1].attributes.data.update(node.attributes.data)
        if node.meta:
            nodes[-1].meta.update(node.meta)
    result = ir.Graph(
        [copies[value] for value in graph.inputs],
        [copies[value] for value in graph.outputs],
        nodes=nodes,
        initializers=[copies[value] for value in weights.values()],
        doc_string=graph.doc_string,
        opset_imports=dict(graph.opset_imports),
        name=graph.name,
        metadata_props=dict(graph.metadata_props),
    )
    result.meta.update(graph.meta)
    return result


def _value(value: ir.Value, tensor: ir.TensorProtocol | None = None) -> ir.Value:
    """Copy a value, with another weight if one is given."""
    shape: ir.Shape | None
    if tensor is None:
        shape = None if value.shape is None else value.shape.copy()
    elif type(tensor.shape) is ir.Shape and tensor.shape.frozen:
        shape = tensor.shape
    else:
        shape = ir.Shape(tensor.shape.numpy())
    copy = ir.Value(
        name=value.name,
        type=value.type,
        shape=shape,
        doc_string=value.doc_string,
        const_value=value.const_value if tensor is None else tensor,
        metadata_props=dict(value.metadata_props) or None,
    )
    if value.meta:
        copy.meta.update(value.meta)
    return copy
