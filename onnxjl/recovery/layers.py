"""Which layers a refit solves, what each aims at, and where its constants are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxjl.graph import Graph, node_name
from onnxjl.recovery.batch_normalization import set_weight
from onnxjl.recovery.matrices import CONVOLUTIONS, RECURRENT, Float, array_of


@dataclass
class Layer:
    """A layer to solve.

    Parameters
    ----------
    node : in the pruned network.
    kept : the output units that are left, as indices of the original's.
    intercept : how a constant added to its output is written down, if it can be.
    target : the value of the original network that is aimed at.
    product : (inputs, outputs), what the target is multiplied with to get the outputs aimed at,
        where these are no value of the network: in a recurrent layer.
    other : the branch that is added to it, in the pruned network.
    after : what lies between the output and the sum.
    """

    node: ir.Node
    kept: NDArray[np.int64] | None
    intercept: Intercept | InputBias | None
    target: ir.Value
    product: Float | None = None
    other: ir.Value | None = None
    after: list[ir.Node] = field(default_factory=list)

    @property
    def fixed(self) -> Float | float:
        """What a bias that isn't solved for adds to each unit's output."""
        recurrent = self.node.op_type in RECURRENT
        bias = self.node.inputs[2] if len(self.node.inputs) > 2 and not recurrent else None
        return 0.0 if bias is None or self.intercept is not None else array_of(bias)

    @property
    def reads(self) -> list[ir.Value]:
        """The values of the pruned network that are read."""
        value = self.node.inputs[0]
        assert value is not None
        return [value] if self.other is None else [value, self.other]

    def affine(self) -> tuple[Float | float, Float | float]:
        """Return scale and shift, for each channel, from the layer's output to the sum."""
        return affine(self.after)


@dataclass
class Intercept:
    """Where a constant for each output unit is kept: a bias, an added constant, or a mean."""

    value: ir.Value
    sign: float
    own: bool

    def read(self) -> Float:
        """Return the part of the output that the layer itself adds now."""
        array = array_of(self.value).reshape(-1)
        return array if self.own else np.zeros_like(array)

    def write(self, constant: Float) -> None:
        """Write the constant that the layer's output needs."""
        array = array_of(self.value)
        new = constant.reshape(array.shape)
        set_weight(self.value, new if self.own else array + self.sign * new)


@dataclass
class InputBias:
    """The part of a recurrent layer's bias that is added to the products of its inputs."""

    value: ir.Value

    def read(self) -> Float:
        """Return what it adds to what is aimed at, which is the products alone."""
        array = array_of(self.value)
        return np.zeros(array.size // 2)

    def write(self, constant: Float) -> None:
        """Add a constant for each gate of each unit."""
        array = array_of(self.value)  # (directions, 2 · gates · units), those of inputs first
        half = array.shape[1] // 2
        array[:, :half] += constant.reshape(len(array), half)
        set_weight(self.value, array)


def affine(after: list[ir.Node]) -> tuple[Float | float, Float | float]:
    """Return scale and shift, for each channel, of batch normalizations and added constants."""
    scale: Float | float = 1.0
    shift: Float | float = 0.0
    for node in after:
        if node.op_type == "BatchNormalization":
            gamma, beta, mean, variance = (array_of(v) for v in node.inputs[1:5])
            factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
            # A channel that is scaled to nothing can't be steered.
            factor = np.where(np.abs(factor) < 1e-12, 1e-12, factor)
            scale, shift = scale * factor, (shift - mean) * factor + beta
        else:
            shift = shift + _constant_of(node).reshape(-1)
    return scale, shift


def layers_to_solve(graph: Graph, copy: Graph) -> list[Layer]:
    """Return the layers to solve, in graph order: those whose inputs differ from the original's."""
    assert graph.source is not None
    assert graph.plan is not None
    sources = {node_name(node): node for node in graph.source.model.graph}
    position = {node: i for i, node in enumerate(copy.model.graph)}
    kept = graph.plan.kept
    changed: set[str] = set()
    result: list[Layer] = []
    for node in copy.model.graph:
        inputs = [v for v in node.inputs if v is not None]
        # Where a block went, another value stands in for what the original's node reads.
        before = sources.get(node_name(node))
        other = before is not None and [v and v.name for v in before.inputs] != [
            v and v.name for v in node.inputs
        ]
        reads_change = other or any(v.name in changed for v in inputs)
        value = node.inputs[1] if len(node.inputs) > 1 else None
        cut = value is not None and _contracted(node) in kept.get(value.name or "", {})
        if reads_change or cut:
            changed.update(v.name for v in node.outputs if v.name)
        if not (reads_change or cut) or not solvable(node):
            continue
        assert value is not None
        source = sources[node_name(node)]
        axes = kept.get(value.name or "", {})
        if node.op_type in RECURRENT:
            result.append(_recurrent(node, source, axes))
            continue
        layer = Layer(
            node=node,
            kept=_kept_outputs(axes, node),
            intercept=_intercept(node),
            target=source.outputs[0],
        )
        _aim_at_sum(layer, sources, position)
        result.append(layer)
    return result


def _recurrent(node: ir.Node, source: ir.Node, axes: Mapping[int, NDArray[np.int64]]) -> Layer:
    """Aim at the products of the original's inputs with its weights."""
    weight = array_of(source.inputs[1])  # (directions, gates · units, inputs)
    for axis in (0, 1):
        if axis in axes:
            weight = weight.take(axes[axis], axis=axis)
    bias = node.inputs[3] if len(node.inputs) > 3 else None
    target = source.inputs[0]
    assert target is not None
    return Layer(
        node=node,
        kept=None,
        intercept=None if bias is None or not _owned(bias) else InputBias(bias),
        target=target,
        product=weight.reshape(-1, weight.shape[2]).T,
    )


def _kept_outputs(axes: Mapping[int, NDArray[np.int64]], node: ir.Node) -> NDArray[np.int64] | None:
    axis = 0 if node.op_type == "Conv" or _turned(node) else 1
    return axes.get(axis)


def _turned(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))


def _contracted(node: ir.Node) -> int:
    """Return the weight's axis that meets the input's channels."""
    if node.op_type in RECURRENT:
        return 2
    return 1 if node.op_type == "Conv" or _turned(node) else 0


def solvable(node: ir.Node) -> bool:
    """Return whether a node, or its inputs' part of it, is linear in a weight of its own."""
    return is_product(node) or _is_upsampling(node) or _is_recurrent(node)


def is_product(node: ir.Node) -> bool:
    """Return whether a node is a product of rows of inputs with a constant matrix of its own."""
    if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    if not _has_own_weight(node):
        return False
    if node.op_type == "Gemm":
        plain = [node.attributes.get(a) for a in ("alpha", "beta")]
        scaled = any(a is not None and a.as_float() != 1.0 for a in plain)
        return not scaled and not node.attributes.get_int("transA", 0)
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    return node.op_type == "Conv" or len(value.const_value.shape) == 2


def _is_upsampling(node: ir.Node) -> bool:
    """Return whether a node is a transposed convolution whose kernel's places don't overlap."""
    if node.domain != "" or node.op_type != "ConvTranspose" or not _has_own_weight(node):
        return False
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    kernel = list(node.inputs[1].const_value.shape.numpy()[2:])
    ones = [1] * len(kernel)
    attributes = node.attributes
    return (
        attributes.get_int("group", 1) == 1
        and list(attributes.get_ints("strides", ones)) == kernel
        and list(attributes.get_ints("dilations", ones)) == ones
        and not any(attributes.get_ints("pads", [0]))
        and not any(attributes.get_ints("output_padding", [0]))
        and attributes.get("output_shape") is None
        and attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def _is_recurrent(node: ir.Node) -> bool:
    """Return whether a node is a recurrent layer with weights of its own for its inputs."""
    return node.domain == "" and node.op_type in RECURRENT and _has_own_weight(node)


def _has_own_weight(node: ir.Node) -> bool:
    """Return whether a node reads an activation, and a floating weight that no other node uses."""
    data, value = node.inputs[0], node.inputs[1]
    if data is None or data.is_initializer() or value is None or not value.is_initializer():
        return False
    tensor = value.const_value
    return tensor is not None and tensor.dtype.is_floating_point() and len(value.uses()) == 1


def _intercept(node: ir.Node) -> Intercept | None:
    """Return where a constant added to a layer's outputs can be written."""
    if node.op_type == "ConvTranspose":
        return None  # one for each place of the kernel would be solved for; its bias stays
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        units = _outputs(node)
        whole = _owned(bias) and array_of(bias).size == units
        return Intercept(bias, 1.0, own=True) if whole else None
    follower = _only_user(node)
    if follower is None:
        return None
    if follower.op_type == "BatchNormalization" and follower.inputs[0] is node.outputs[0]:
        mean = follower.inputs[3]
        return Intercept(mean, -1.0, own=False) if mean is not None and _owned(mean) else None
    if _adds_constant(follower, node):
        constant = _constant_value(follower)
        return Intercept(constant, 1.0, own=False)
    return None


def _aim_at_sum(layer: Layer, sources: dict[str, ir.Node], position: dict[ir.Node, int]) -> None:
    """Aim at the sum that a layer's output enters, if it is the last branch of it."""
    total, other, after = entered_sum(layer.node)
    if total is None or other is None or _last_layer(other, position) > position[layer.node]:
        return
    layer.target = sources[node_name(total)].outputs[0]
    layer.other = other
    layer.after = after


def entered_sum(node: ir.Node) -> tuple[ir.Node | None, ir.Value | None, list[ir.Node]]:
    """Find the sum of two activations that a layer's output alone goes into.

    Parameters
    ----------
    node : a layer that is `solvable`.

    Returns
    -------
    The node that adds, the other value that it adds, and what lies between: batch normalizations
    and added constants. None for the first two where there is no such sum.
    """
    after: list[ir.Node] = []
    if node.op_type in RECURRENT:
        return None, None, after
    last = node
    while True:
        follower = _only_user(last)
        if follower is None:
            return None, None, after
        normalized = follower.op_type == "BatchNormalization"
        if not (normalized and follower.inputs[0] is last.outputs[0]) and not _adds_constant(
            follower, node
        ):
            break
        after.append(follower)
        last = follower
    if follower.op_type != "Add" or follower.domain != "":
        return None, None, after
    a, b = follower.inputs
    other = b if a is last.outputs[0] else a
    if a is None or b is None or a is b or other is None or other.is_initializer():
        return None, None, after
    return (follower, other, after) if _rank(a) == _rank(b) else (None, None, after)


def _rank(value: ir.Value) -> int:
    return -1 if value.shape is None else len(value.shape)


def _last_layer(value: ir.Value, position: dict[ir.Node, int]) -> int:
    """Return the position of the last layer that a value depends on."""
    last, seen, pending = -1, set[ir.Node](), [value]
    while pending:
        node = pending.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if solvable(node):
            last = max(last, position[node])
        pending.extend(v for v in node.inputs if v is not None)
    return last


def _only_user(node: ir.Node) -> ir.Node | None:
    value = node.outputs[0]
    users = {use.node for use in value.uses()}
    return None if len(users) != 1 or value.is_graph_output() else next(iter(users))


def _owned(value: ir.Value) -> bool:
    return value.is_initializer() and len(value.uses()) == 1


def _adds_constant(follower: ir.Node, layer: ir.Node) -> bool:
    """Return whether a node adds one constant to each unit of a product's output."""
    if follower.op_type != "Add" or follower.domain != "" or layer.op_type in CONVOLUTIONS:
        return False
    constants = [v for v in follower.inputs if v is not None and v.is_initializer()]
    if len(constants) != 1 or not _owned(constants[0]):
        return False
    shape = array_of(constants[0]).shape
    return bool(shape) and shape[-1] == _outputs(layer) == int(np.prod(shape))


def _constant_value(node: ir.Node) -> ir.Value:
    return next(v for v in node.inputs if v is not None and v.is_initializer())


def _constant_of(node: ir.Node) -> Float:
    return array_of(_constant_value(node))


def _outputs(node: ir.Node) -> int:
    shape = array_of(node.inputs[1]).shape
    return int(shape[0] if node.op_type == "Conv" or _turned(node) else shape[1])
