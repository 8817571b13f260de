"""Write a matrix product and its bias as one `Gemm`."""

from __future__ import annotations

import onnx_ir as ir

from onnxjl.normalize.surgery import is_constant, is_onnx, remove, take_place

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}


def to_gemm(model: ir.Model) -> ir.Model:
    """Turn `MatMul` with a constant weight plus `Add` of a constant bias into `Gemm`.

    Only where the other factor is a matrix; products of more dimensions have no `Gemm`. The new
    node has the product's name and the sum's output.
    """
    graph = model.graph
    for node in list(graph):
        if not is_onnx(node, "MatMul") or not is_constant(node.inputs[1]):
            continue
        x, weight = node.inputs
        product = node.outputs[0]
        assert x is not None
        assert weight is not None
        if x.shape is None or len(x.shape) != 2 or weight.shape is None or len(weight.shape) != 2:
            continue
        if weight.dtype not in _FLOATS or product.is_graph_output() or len(product.uses()) != 1:
            continue
        (add, index), *_ = product.uses()
        if not is_onnx(add, "Add") or add.graph is not graph:
            continue
        bias = add.inputs[1 - index]
        if not is_constant(bias) or bias is None or bias.shape is None:
            continue
        units = weight.shape[1]
        if tuple(bias.shape) not in ((units,), (1, units)):
            continue
        gemm = ir.Node("", "Gemm", [x, weight, bias], name=node.name, num_outputs=1)
        graph.insert_before(add, gemm)
        take_place(add.outputs[0], gemm.outputs[0])
        remove([add, node])
    return model
