"""Drop operators that change nothing here."""

from __future__ import annotations

import onnx_ir as ir

from onnxjl.normalize.surgery import constant, is_onnx, remove, substitute

_RESHAPING = ("Expand", "Flatten", "Pad", "Reshape", "Slice", "Squeeze", "Tile", "Unsqueeze")


def drop_no_ops(model: ir.Model) -> ir.Model:
    """Drop casts to the same type, sums of one, and what keeps a known shape.

    Exporters pad by nothing, slice the whole, and reshape to what already is.
    """
    for node in list(model.graph):
        if _does_nothing(node):
            source = node.inputs[0]
            if source is not None and substitute(node.outputs[0], source):
                remove([node])
    return model


def _does_nothing(node: ir.Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    if source is None or len(node.outputs) != 1:
        return False
    if is_onnx(node, "Cast"):
        return source.dtype is not None and node.attributes["to"].as_int() == int(source.dtype)
    if is_onnx(node, "Concat", "Sum", "Mean", "Max", "Min"):
        return len(node.inputs) == 1
    if not is_onnx(node, *_RESHAPING) or not _same_shape(source, node.outputs[0]):
        return False
    if node.op_type == "Pad":
        # Negative paddings may make up for positive ones.
        pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return pads is not None and not pads.any()
    if node.op_type == "Slice":
        # One that goes backwards keeps the shape, too.
        steps = node.inputs[4] if len(node.inputs) > 4 else None
        return steps is None or ((array := constant(steps)) is not None and (array == 1).all())
    return True


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(
        x == y and not (isinstance(x, ir.SymbolicDim) and x.value is None)
        for x, y in zip(a.shape, b.shape, strict=True)
    )
