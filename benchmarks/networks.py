"""Networks of any size for measuring growth: weights are zeros that take no memory until used."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

OPSET = 17


def residual(blocks: int, width: int, inner: int) -> ir.Model:
    """Residual blocks of two 1×1 convolutions: 5 nodes each, ``2·width·inner`` weights.

    Parameters
    ----------
    blocks : number of blocks.
    width : channels of the residual stream, one group all through.
    inner : channels inside each block, a group of their own.
    """
    image = _value("image", (1, 3, 8, 8))
    nodes = [_conv("stem", image, 3, width)]
    for block in range(blocks):
        before = nodes[-1].outputs[0]
        first = _conv(f"block{block}.conv1", before, width, inner)
        relu = _node("Relu", [first.outputs[0]], f"block{block}.relu", inner)
        second = _conv(f"block{block}.conv2", relu.outputs[0], inner, width)
        total = _node("Add", [second.outputs[0], before], f"block{block}.add", width)
        nodes += [
            first,
            relu,
            second,
            total,
            _node("Relu", total.outputs, f"block{block}.out", width),
        ]
    return _model(image, [*nodes, _conv("head", nodes[-1].outputs[0], width, 10)])


def chain(length: int, width: int) -> ir.Model:
    """Convolutions with activations in a row: 2 nodes and one group each."""
    image = _value("image", (1, 3, 8, 8))
    nodes: list[ir.Node] = []
    value, channels = image, 3
    for layer in range(length):
        conv = _conv(f"conv{layer}", value, channels, width)
        relu = _node("Relu", conv.outputs, f"relu{layer}", width)
        nodes += [conv, relu]
        value, channels = relu.outputs[0], width
    return _model(image, [*nodes, _conv("head", value, channels, 10)])


def _value(name: str, shape: tuple[int, ...]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def _weight(name: str, shape: tuple[int, ...]) -> ir.Value:
    value = _value(name, shape)
    value.const_value = ir.Tensor(np.zeros(shape, np.float32), name=name)
    return value


def _node(operator: str, inputs, name: str, channels: int, **attributes: int) -> ir.Node:
    node = ir.node(operator, inputs, attributes, name=name)
    output = node.outputs[0]
    output.name = f"{name}.output"
    output.shape, output.type = ir.Shape((1, channels, 8, 8)), ir.TensorType(ir.DataType.FLOAT)
    return node


def _conv(name: str, value: ir.Value, inputs: int, outputs: int) -> ir.Node:
    weight = _weight(f"{name}.weight", (outputs, inputs, 1, 1))
    return _node("Conv", [value, weight, _weight(f"{name}.bias", (outputs,))], name, outputs)


def _model(image: ir.Value, nodes: list[ir.Node]) -> ir.Model:
    initializers = [
        v for n in nodes for v in n.inputs if v is not None and v.const_value is not None
    ]
    graph = ir.Graph(
        [image],
        [nodes[-1].outputs[0]],
        nodes=nodes,
        initializers=initializers,
        name="network",
        opset_imports={"": OPSET},
    )
    return ir.Model(graph, ir_version=8)
