"""Proto: a model as protobuf without its weights, for ONNX's own checker and shape inference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

# Operators that onnxruntime has in ONNX's own domain -> the first opset in which ONNX has them.
OF_RUNTIME = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 1 << 31}

# Smaller initializers stay: ONNX's functions read shapes, axes and the like from them.
_SMALL = 1024


def weightless(model: ir.Model) -> onnx.ModelProto:
    """Serialize a model with its large initializers turned into inputs.

    Parameters
    ----------
    model : as it was when this returns; not to be used by another thread meanwhile.

    Returns
    -------
    onnx.ModelProto
        Its first inputs and all its outputs are the model's; every initializer is an input.
    """
    graph = model.graph
    inputs = list(graph.inputs)
    known = set(inputs)
    initializers = list(graph.initializers.values())
    tensors = [value.const_value for value in initializers]
    described = [(value.shape, value.type) for value in initializers]
    try:
        for value in initializers:
            tensor = value.const_value
            if tensor is not None:
                value.shape = ir.Shape(tensor.shape.numpy())
                value.type = ir.TensorType(tensor.dtype)
            if value not in known:
                graph.inputs.append(value)
            if tensor is None or tensor.nbytes > _SMALL:
                graph.initializers.pop(value.name or "")
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
        return ir.serde.serialize_model(model)
    finally:
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        graph.initializers.clear()
        for value, tensor, (shape, type_) in zip(initializers, tensors, described, strict=True):
            value.const_value, value.shape, value.type = tensor, shape, type_
            graph.initializers.add(value)


def disguise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Move onnxruntime's operators out of ONNX's domain, where ONNX's functions don't know them.

    Parameters
    ----------
    proto : changed, and returned.
    """
    opset = max((entry.version for entry in proto.opset_import if not entry.domain), default=1)
    hidden = [
        node
        for node in _nodes(proto.graph.node)
        if not node.domain and opset < OF_RUNTIME.get(node.op_type, 0)
    ]
    for node in hidden:
        node.domain = _RUNTIME
    if hidden and all(entry.domain != _RUNTIME for entry in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid(_RUNTIME, 1))
    return proto


_RUNTIME = "com.microsoft"


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)
