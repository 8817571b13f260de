"""Turn training forms into inference forms, and drop what does nothing in inference."""

from __future__ import annotations

import warnings

import onnx_ir as ir

from onnxjl.graph import node_name
from onnxjl.normalize.surgery import constant, is_onnx, remove, substitute


def to_inference_form(model: ir.Model, *, training: bool = False) -> ir.Model:
    """Make `Dropout` and `BatchNormalization` do what they do in inference, with a warning.

    A batch normalization in training form normalizes by the batch's statistics, and from then on
    by its running ones; what it hands out as new running statistics become the old ones.

    Parameters
    ----------
    model : changed in place.
    training : whether training forms, as operator set 14 and later ones have them, stay.
    """
    keeps = training and (model.opset_imports.get("") or 0) >= 14
    changed: list[str] = []
    for node in list(model.graph):
        if is_onnx(node, "Dropout") and len(node.inputs) > 2 and node.inputs[2] is not None:
            mode = constant(node.inputs[2])
            if mode is None:
                continue
            ratio = constant(node.inputs[1])
            drops = mode.any() and (ratio is None or ratio.any())
            if drops and keeps:
                continue
            if drops:
                changed.append(f"{node_name(node)} (Dropout)")
            node.resize_inputs(1)
        elif is_onnx(node, "BatchNormalization"):
            flag = node.attributes.get("training_mode")
            if keeps or (len(node.outputs) == 1 and (flag is None or flag.as_int() == 0)):
                continue
            changed.append(f"{node_name(node)} (BatchNormalization)")
            node.attributes.pop("training_mode", None)
            _drop_statistics(model.graph, node)
    if changed:
        warnings.warn(
            "nodes in training form now do what they do in inference: "
            + ", ".join(changed[:3])
            + (f" and {len(changed) - 3} more" if len(changed) > 3 else ""),
            stacklevel=3,
        )
    return model


def _drop_statistics(graph: ir.Graph, node: ir.Node) -> None:
    """Leave a batch normalization its first output only."""
    for index, output in enumerate(node.outputs[1:], start=1):
        if not output.name or not (output.uses() or output.is_graph_output()):
            continue
        # Outputs are (y, mean, variance) and, before opset 14, the same two once more.
        statistic = node.inputs[3 if index % 2 else 4]
        name = output.name
        output.name = f"{name}.replaced"
        copy = ir.Node("", "Identity", [statistic], name=name, num_outputs=1)
        copy.outputs[0].name = name
        copy.outputs[0].type = output.type
        graph.insert_before(node, copy)
        output.replace_all_uses_with(copy.outputs[0], replace_graph_outputs=True)
    node.resize_outputs(1)


def drop_identities(model: ir.Model) -> ir.Model:
    """Drop `Identity` and inference `Dropout` nodes of the main graph.

    One that turns a graph input, an initializer or another output into a graph output stays.
    """
    for node in list(model.graph):
        if is_onnx(node, "Dropout"):
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                continue
            if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
                continue
        elif not is_onnx(node, "Identity"):
            continue
        source = node.inputs[0]
        if source is not None and substitute(node.outputs[0], source):
            remove([node])
    return model
