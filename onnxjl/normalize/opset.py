"""Raise old operator sets."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxjl.errors import ModelError, UsageError
from onnxjl.proto import weightless

OLDEST, USUAL = 13, 17


def raise_opset(model: ir.Model, opset: int | None = None) -> ir.Model:
    """Raise the default operator set to 17 if it is older than 13, further if `opset` says so.

    Raises
    ------
    UsageError
        `opset` is lower than the model's, or newer than what onnx knows.
    ModelError
        The operators can't be converted.
    """
    current = model.opset_imports.get("", USUAL)
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not current <= opset <= newest:
        raise UsageError(
            f"opset {opset} asked for; the model has {current}, which can only be raised, "
            f"to {newest} at most"
        )
    target = opset if opset is not None else current if current >= OLDEST else USUAL
    if target == current:
        model.opset_imports.setdefault("", current)
        return model
    try:
        proto = onnx.version_converter.convert_version(weightless(model), target)
    except Exception as error:
        raise ModelError(
            f"can't convert opset {current} to {target}: {' '.join(str(error).split())}"
        ) from error
    converted = ir.serde.deserialize_model(proto)
    graph = converted.graph
    values = {value.name: value for value in graph.inputs}
    kept = [values[value.name] for value in model.graph.inputs]
    for name, value in model.graph.initializers.items():
        values[name].const_value = value.const_value
        if name not in graph.initializers:
            graph.initializers.add(values[name])
    graph.inputs.clear()
    graph.inputs.extend(kept)
    return converted
