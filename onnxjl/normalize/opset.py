"""Raise old operator sets."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from onnxjl.errors import ModelError, UnsupportedOperator, UsageError
from onnxjl.graph import node_name
from onnxjl.normalize.surgery import add_initializer, is_onnx
from onnxjl.proto import OF_RUNTIME, disguise, weightless

OLDEST, USUAL = 13, 17
_NORM = "LayerNormalization"

# Versions of ONNX's file format that first had these types.
_IR_VERSIONS = {
    ir.DataType.FLOAT8E4M3FN: 9,
    ir.DataType.FLOAT8E4M3FNUZ: 9,
    ir.DataType.FLOAT8E5M2: 9,
    ir.DataType.FLOAT8E5M2FNUZ: 9,
    ir.DataType.INT4: 10,
    ir.DataType.UINT4: 10,
    ir.DataType.FLOAT4E2M1: 11,
    ir.DataType.FLOAT8E8M0: 12,
    ir.DataType.INT2: 13,
    ir.DataType.UINT2: 13,
}


def raise_opset(model: ir.Model, opset: int | None = None) -> ir.Model:
    """Raise the default operator set to 17 if it is older than 13, further if `opset` says so.

    Raises
    ------
    UsageError
        `opset` is lower than the model's, or newer than what onnx knows.
    ModelError
        The operators can't be converted.
    UnsupportedOperator
        There is one that no later operator set has.
    """
    if "" not in model.opset_imports:
        # No operator of ours in there yet: nothing to convert.
        model.opset_imports[""] = USUAL if opset is None else opset
        return model
    current = model.opset_imports[""]
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not current <= opset <= newest:
        raise UsageError(
            f"opset {opset} asked for; the model has {current}, which can only be raised, "
            f"to {newest} at most"
        )
    target = opset if opset is not None else current if current >= OLDEST else USUAL
    if target < OF_RUNTIME[_NORM] and any(is_onnx(n, _NORM) for n in model.graph.all_nodes()):
        # onnxruntime has it in older sets too; ONNX means the same by it.
        target = OF_RUNTIME[_NORM]
    if target == current:
        return model
    if current < 9:
        for node in model.graph.all_nodes():
            if is_onnx(node, "Scan"):
                raise UnsupportedOperator(
                    f"node '{node_name(node)}' (Scan): that of opset {current} works on batches, "
                    "as no later one does, and can't be converted; export the network again with "
                    "opset 9 or newer"
                )
    if current >= OLDEST and target == USUAL:
        return to_opset_17(model)
    try:
        proto = onnx.version_converter.convert_version(disguise(weightless(model)), target)
    except Exception as error:
        raise ModelError(
            f"can't convert opset {current} to {target}: {' '.join(str(error).split())}"
        ) from error
    if current < 7:
        proto = onnx.shape_inference.infer_shapes(proto)
    converted = ir.serde.deserialize_model(proto)
    for node in converted.graph.all_nodes():
        if node.op_type in OF_RUNTIME:
            node.domain = ""
    if current < 7:
        _slopes_as_before(converted)
    if current < 11:
        _resize_as_before(converted)
    graph = converted.graph
    values = {value.name: value for value in graph.inputs}
    kept = [values[value.name] for value in model.graph.inputs]
    for name, value in model.graph.initializers.items():
        values[name].const_value = value.const_value
        if name not in graph.initializers:
            graph.initializers.add(values[name])
    graph.inputs.clear()
    graph.inputs.extend(kept)
    graph.name, graph.doc_string = model.graph.name, model.graph.doc_string
    model.graph = graph
    return model


def _slopes_as_before(model: ir.Model) -> None:
    """Make `PRelu` have a slope for each channel, as before opset 7; the converter forgets to."""
    graph = model.graph
    for node in list(graph):
        if not is_onnx(node, "PRelu"):
            continue
        x, slope = node.inputs
        if slope is None or slope.shape is None or len(slope.shape) != 1 or slope.shape[0] == 1:
            continue
        if x is None or x.shape is None:
            raise ModelError(
                f"node '{node_name(node)}' (PRelu): its input's rank isn't known, and so not how "
                "the slopes lie; export the network again with opset 7 or newer"
            )
        if len(x.shape) > 2:
            axes = add_initializer(
                graph, f"{slope.name}.axes", ir.Tensor(np.arange(1, len(x.shape) - 1))
            )
            spread = ir.Node("", "Unsqueeze", [slope, axes], num_outputs=1)
            graph.insert_before(node, spread)
            node.replace_input_with(1, spread.outputs[0])


def _resize_as_before(model: ir.Model) -> None:
    """Make `Resize` sample as it, and `Upsample`, did before opset 11; the converter forgets to."""
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type == "Resize":
            for name, mode in (
                ("coordinate_transformation_mode", "asymmetric"),
                ("nearest_mode", "floor"),
            ):
                node.attributes.setdefault(name, ir.AttrString(name, mode))


def to_opset_17(model: ir.Model) -> ir.Model:
    """Raise the default operator set from 13 … 16 to 17, where little changed meaning.

    Batch normalization must be in inference form.
    """
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type == "RoiAlign":
            # Its default became half_pixel with opset 16.
            node.attributes.setdefault(
                "coordinate_transformation_mode",
                ir.AttrString("coordinate_transformation_mode", "output_half_pixel"),
            )
    model.opset_imports[""] = USUAL
    return model


def lower_ir_version(model: ir.Model) -> ir.Model:
    """Choose the lowest version of the file format that has all that is in the model."""
    imports = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
    version = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
    # Initializers needn't be inputs since version 4.
    version = max(4, version)
    for graph in [model.graph, *model.graph.subgraphs()]:
        for value in graph.initializers.values():
            if value.dtype is not None:
                version = max(version, _IR_VERSIONS.get(value.dtype, 0))
    model.ir_version = version
    return model
