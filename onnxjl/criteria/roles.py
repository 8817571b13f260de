"""What the nodes that use a weight do with it: contract it, and over which axes, or scale by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

Axes = tuple[int, ...]
"""0-based axes of a weight that index the outputs of the node that uses it."""


def _conv(node: ir.Node, rank: int) -> Axes:
    return (0,)


def _conv_transpose(node: ir.Node, rank: int) -> Axes:
    # (inputs, outputs / group, …): in a grouped one, axis 0 tells the group of the output too.
    return (1,) if node.attributes.get_int("group", 1) == 1 else (0, 1)


def _gemm_left(node: ir.Node, rank: int) -> Axes:
    return (1,) if node.attributes.get_int("transA", 0) else (0,)


def _gemm_right(node: ir.Node, rank: int) -> Axes:
    return (0,) if node.attributes.get_int("transB", 0) else (1,)


def _matmul_left(node: ir.Node, rank: int) -> Axes:
    contracted = rank - 2 if node.attributes.get_int("transA", 0) and rank > 1 else rank - 1
    return tuple(axis for axis in range(rank) if axis != contracted)


def _matmul_right(node: ir.Node, rank: int) -> Axes:
    contracted = rank - 2 if not node.attributes.get_int("transB", 0) and rank > 1 else rank - 1
    return tuple(axis for axis in range(rank) if axis != contracted)


def _einsum(index: int) -> Callable[[ir.Node, int], Axes]:
    def axes(node: ir.Node, rank: int) -> Axes:
        equation = (node.attributes.get_string("equation") or "").replace(" ", "")
        operands, arrow, output = equation.partition("->")
        terms = operands.split(",")
        if not arrow:
            # Implicit outputs are the letters that occur once.
            output = "." + "".join(c for c in operands if c.isalpha() and operands.count(c) == 1)
        letters = terms[index]
        letters = letters.replace("...", "." * (rank - len(letters.replace("...", ""))))
        return tuple(axis for axis, letter in enumerate(letters) if letter in output)

    return axes


def _recurrent(node: ir.Node, rank: int) -> Axes:
    return (1,)


def _packed_attention(node: ir.Node, rank: int) -> Axes:
    return (1,)


# Operator -> input -> output axes of the weight there, given the node and the weight's rank.
CONTRACTIONS: dict[str, dict[int, Callable[[ir.Node, int], Axes]]] = {
    "Conv": {1: _conv},
    "ConvTranspose": {1: _conv_transpose},
    "DeformConv": {1: _conv},
    "Einsum": {index: _einsum(index) for index in range(8)},
    "GRU": {1: _recurrent, 2: _recurrent},
    "Gemm": {0: _gemm_left, 1: _gemm_right},
    "LSTM": {1: _recurrent, 2: _recurrent},
    "MatMul": {0: _matmul_left, 1: _matmul_right},
    "RNN": {1: _recurrent, 2: _recurrent},
    "com.microsoft.Attention": {1: _packed_attention},
    "com.microsoft.FusedConv": {1: _conv},
    "com.microsoft.FusedGemm": {0: _gemm_left, 1: _gemm_right},
    "com.microsoft.FusedMatMul": {0: _matmul_left, 1: _matmul_right},
}

# Operator -> the input that is a normalization's scale.
SCALES = {
    "BatchNormalization": 1,
    "GroupNormalization": 1,
    "InstanceNormalization": 1,
    "LayerNormalization": 1,
    "RMSNormalization": 1,
    "SimplifiedLayerNormalization": 1,
    "com.microsoft.EmbedLayerNormalization": 5,
    "com.microsoft.GroupNorm": 1,
    "com.microsoft.SkipLayerNormalization": 2,
    "com.microsoft.SkipSimplifiedLayerNormalization": 2,
}


@dataclass(frozen=True)
class Role:
    """What a weight is for.

    Parameters
    ----------
    contracted : whether a contraction uses it.
    outputs : its axes that index the outputs of a contraction, over all that use it.
    scale : whether it is the scale of a normalization.
    """

    contracted: bool
    outputs: frozenset[int]
    scale: bool


def role(weight: ir.Value) -> Role:
    """What the nodes that use a weight do with it.

    Parameters
    ----------
    weight : an initializer. Casts, identities and transpositions between it and a node are seen
        through.

    Returns
    -------
    Role
    """
    rank = len(weight.const_value.shape) if weight.const_value is not None else 0
    contracted, scale = False, False
    outputs: set[int] = set()
    for node, index, axes in uses(weight):
        operator = operator_of(node)
        if index in CONTRACTIONS.get(operator, {}):
            contracted = True
            outputs.update(axes[axis] for axis in CONTRACTIONS[operator][index](node, rank))
        scale |= SCALES.get(operator) == index
    return Role(contracted, frozenset(outputs), scale)


def uses(weight: ir.Value) -> Iterator[tuple[ir.Node, int, Axes]]:
    """Go through the uses of a weight; casts, identities and transpositions are seen through.

    Parameters
    ----------
    weight : an initializer.

    Yields
    ------
    The node, the position of the input, and the weight's axis that each axis of the used value is.
    """
    rank = len(weight.const_value.shape) if weight.const_value is not None else 0
    yield from _uses(weight, tuple(range(rank)))


def operator_of(node: ir.Node) -> str:
    """Return a node's operator, as `CONTRACTIONS` names it."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _uses(value: ir.Value, axes: Axes) -> Iterator[tuple[ir.Node, int, Axes]]:
    """Each use, with the weight's axis that each axis of the used value is."""
    for node, index in value.uses():
        if node.op_type in ("Cast", "Identity"):
            yield from _uses(node.outputs[0], axes)
        elif node.op_type == "Transpose":
            order = node.attributes.get_ints("perm") or range(len(axes))[::-1]
            yield from _uses(node.outputs[0], tuple(axes[axis] for axis in order))
        else:
            yield node, index, axes
