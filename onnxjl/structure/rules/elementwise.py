"""Elementwise operators: labels pass through, and unite across inputs that broadcast together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxjl.structure import axes as ax
from onnxjl.structure.rules import Unruled, rule

if TYPE_CHECKING:
    from onnxjl.structure.interpreter import Interpreter

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf "
    "Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not "
    "Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh "
    "ThresholdedRelu"
).split()
BROADCAST = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike Div Equal Greater GreaterOrEqual "
    "Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor"
).split()


@rule(*UNARY)
def unary(run: Interpreter, node: ir.Node) -> None:
    """Pass labels through. Further inputs are scalars (bounds, ratios)."""
    axes = run.of(node.inputs[0])
    run.set(node.outputs[0], axes)
    for mask in node.outputs[1:]:
        if mask.name:
            run.set(mask, axes)


for _operator in ("BiasGelu", "FastGelu"):

    @rule(_operator, domain="com.microsoft")
    def biased(run: Interpreter, node: ir.Node) -> None:
        """Unite the input's last axis with the bias."""
        broadcast(run, node)


for _operator in ("Gelu", "QuickGelu"):

    @rule(_operator, domain="com.microsoft")
    def unary_of_runtime(run: Interpreter, node: ir.Node) -> None:
        """Pass labels through."""
        unary(run, node)


@rule(*BROADCAST)
def broadcast(run: Interpreter, node: ir.Node) -> None:
    """Unite the axes that meet, counted from the right; an axis of size 1 meets nothing."""
    rank = len(run.sizes(node.outputs[0]))
    inputs: list[ax.Axes] = []
    for value in node.inputs:
        if value is not None:
            # What comes first is mostly an activation, and what follows may be its bias.
            before = inputs[0] if inputs else ()
            shift = len(before) - len(run.sizes(value))
            inputs.append(run.of(value, {i - shift: axis for i, axis in enumerate(before)}))
    if node.op_type == "CastLike":
        inputs = inputs[:1]
    result = []
    for position in range(rank):
        meeting = [axes[i] for axes in inputs if (i := position - rank + len(axes)) >= 0]
        result.append(run.unite_all(meeting, node))
    run.set(node.outputs[0], result)


@rule("QuantizeLinear", "DequantizeLinear")
def quantization(run: Interpreter, node: ir.Node) -> None:
    """Pass labels through; scale and zero point for each index unite with their axis."""
    axes = list(run.of(node.inputs[0]))
    position = node.attributes.get_int("axis", 1)
    for parameter in node.inputs[1:]:
        if parameter is None or not any(map(len, run.of(parameter))):
            continue
        given = run.of(parameter)
        if len(given) != 1 or "block_size" in node.attributes:
            raise Unruled("blocked quantization")
        at = position % len(axes)
        axes[at] = run.unite(axes[at], given[0], node)
    run.set(node.outputs[0], axes)


@rule("Bernoulli", "RandomNormalLike", "RandomUniformLike")
def drawn(run: Interpreter, node: ir.Node) -> None:
    """Pass labels through; of fewer numbers each is another one."""
    axes = run.of(node.inputs[0])
    for axis in axes:
        run.inexact(axis, node, "draws other numbers without it")
    run.set(node.outputs[0], axes)
