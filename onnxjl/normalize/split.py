"""Write out the sizes of every split, which pruning may make unequal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxjl.normalize.surgery import Names, add_initializer, is_onnx


def write_split_sizes(model: ir.Model) -> ir.Model:
    """Give each `Split` into equal parts of a known axis the sizes of its parts as an input."""
    names = Names(model.graph)
    for node in model.graph:
        if not is_onnx(node, "Split") or (len(node.inputs) > 1 and node.inputs[1] is not None):
            continue
        value = node.inputs[0]
        if value is None or value.shape is None:
            continue
        whole = value.shape[node.attributes.get_int("axis", 0)]
        if not isinstance(whole, int):
            continue
        part = -(-whole // len(node.outputs))
        sizes = [min(part, whole - i * part) for i in range(len(node.outputs))]
        if min(sizes) < 0:
            continue
        name = names.fresh(f"{node.outputs[0].name}_split")
        sizes_value = add_initializer(model.graph, name, np.array(sizes, dtype=np.int64))
        node.resize_inputs(2)
        node.replace_input_with(1, sizes_value)
        node.attributes.pop("num_outputs", None)
    return model
