"""Proto: a model as protobuf without its weights, for ONNX's own checker and shape inference."""

from __future__ import annotations

import onnx
import onnx_ir as ir

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
