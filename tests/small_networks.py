"""Small networks with random weights, built node by node, for tests that need to know each one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def convolutions(
    *, opset: int = 17, dtype: type = np.float32, seed: int = 0, batch: int | str = 1
) -> onnx.ModelProto:
    """``first`` (Conv 3→8), ``norm`` (BatchNormalization), Relu, ``second`` (Conv 8→4), ``head``.

    ``head`` is a Gemm 4→5 on the spatial mean. Input ``x`` (batch, 3, 6, 6), output ``y``
    (batch, 5). Removing a channel of ``first`` cuts ``first.*`` and ``norm.*`` on axis 0 and
    ``second.weight`` on axis 1.
    """
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(dtype)

    weights = {
        "first.weight": normal(8, 3, 3, 3),
        "first.bias": normal(8),
        "norm.weight": normal(8),
        "norm.bias": normal(8),
        "norm.running_mean": normal(8),
        "norm.running_var": np.abs(normal(8)) + dtype(0.5),
        "second.weight": normal(4, 8, 3, 3),
        "second.bias": normal(4),
        "head.weight": normal(5, 4),
        "head.bias": normal(5),
    }
    nodes = [
        helper.make_node(
            "Conv", ["x", "first.weight", "first.bias"], ["a"], name="/first", pads=[1, 1, 1, 1]
        ),
        helper.make_node(
            "BatchNormalization",
            ["a", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"],
            ["b"],
            name="/norm",
        ),
        helper.make_node("Relu", ["b"], ["c"], name="/relu"),
        helper.make_node("Conv", ["c", "second.weight", "second.bias"], ["d"], name="/second"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], name="/pool"),
        helper.make_node("Flatten", ["e"], ["f"], name="/flatten"),
        helper.make_node("Gemm", ["f", "head.weight", "head.bias"], ["y"], name="/head", transB=1),
    ]
    return model(
        nodes,
        {"x": (batch, 3, 6, 6)},
        {"y": (batch, 5)},
        weights,
        opset=opset,
        element=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
    )


def model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int | str, ...]],
    outputs: Mapping[str, tuple[int | str, ...]],
    weights: Mapping[str, np.ndarray],
    *,
    opset: int = 17,
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A checked model whose inputs and outputs all have one element type."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, element, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    proto.ir_version = helper.find_min_ir_version_for(list(proto.opset_import))
    onnx.checker.check_model(proto)
    return proto
