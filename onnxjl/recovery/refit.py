"""Closed-form refit: every layer solved anew for what the original network computes there.

In graph order, each convolution or product with a constant matrix whose inputs changed gets the
weights that minimize, over calibration data, the squared distance of its output to the original
network's (of the units that are kept), given its inputs in the network refitted so far. Where its
output enters a sum with another branch, the sum is the target: the last branch absorbs what the
others lack.

Source: least-squares reconstruction as in He et al. 2017, "Channel Pruning for Accelerating Very
Deep Neural Networks", eq. 1 and section 3.2, in asymmetric form (Zhang et al. 2016, "Accelerating
Very Deep Convolutional Networks", section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxjl.data import batches
from onnxjl.graph import Graph
from onnxjl.progress import progress
from onnxjl.recovery.batch_normalization import set_weight
from onnxjl.recovery.stream import Stream
from onnxjl.structure.names import node_name

Float = NDArray[np.float64]

# Strength of the pull towards the weights as they were, relative to the mean of the Gram diagonal.
RIDGE = 1e-4
# Rows (samples × positions) used for each unknown of a layer, and at least: more cost time and
# change the solution little.
ROWS_PER_UNKNOWN, LEAST_ROWS = 50, 20_000


def refit(graph: Graph, calibration: Any, *, batch_size: int = 64) -> Graph:
    """Solve the layers of a pruned graph anew, without labels.

    Parameters
    ----------
    graph : a pruned graph with its source.
    calibration : inputs; see `onnxjl.data.batches`.

    Returns
    -------
    The graph with other weights and biases; its structure doesn't change.
    """
    assert graph.source is not None
    assert graph.plan is not None
    copy = replace(graph, model=graph.model.clone())
    layers = _layers(graph, copy)
    feeds = list(batches(calibration, graph, batch_size=batch_size))
    with Stream(copy, feeds) as small, Stream(graph.source, feeds) as large:
        for i, layer in enumerate(progress(layers, "refitting")):
            layer.solve(small, large)
            rest = layers[i + 1 :]
            small.keep_only(small.needed_for(v for other in rest for v in other.reads))
            large.keep_only(large.needed_for(other.target for other in rest))
    return copy


@dataclass
class _Affine:
    """What follows a layer channel by channel: ``y ↦ scale · y + shift`` (channels last)."""

    scale: Float | float = 1.0
    shift: Float | float = 0.0


@dataclass
class _Layer:
    """A layer to solve.

    Parameters
    ----------
    node : in the pruned network.
    kept : the output units that are left, as indices of the original's.
    intercept : how a constant added to its output is written down, if it can be.
    target : the value of the original network that is aimed at.
    other : the branch that is added to it, in the pruned network.
    after : what lies between the output and the sum.
    """

    node: ir.Node
    kept: NDArray[np.int64] | None
    intercept: _Intercept | None
    target: ir.Value
    other: ir.Value | None = None
    after: list[ir.Node] = field(default_factory=list)

    @property
    def reads(self) -> list[ir.Value]:
        """The values of the pruned network that are read."""
        value = self.node.inputs[0]
        assert value is not None
        return [value] if self.other is None else [value, self.other]

    def solve(self, small: Stream, large: Stream) -> None:
        """Solve the layer, and write its weights and intercept."""
        rows = _rows(self.node)
        weight = rows.read()
        unknowns = weight.shape[1]
        fit = _Fit(weight, intercept=self.intercept is not None)
        if self.intercept is not None:
            fit.start = self.intercept.read()
        affine = self._affine()
        # Reading all values of a batch at once computes them in one run of each network.
        small.compute(*self.reads)
        total = small.samples(self.reads[0])
        large.compute(self.target)
        limit = max(ROWS_PER_UNKNOWN * (unknowns + 1), LEAST_ROWS)
        random = np.random.default_rng(0)
        for here, there in zip(small.batches(*self.reads), large.batches(self.target), strict=True):
            wanted = _channels_last(there[0], self.node)
            if self.kept is not None:
                wanted = wanted[..., self.kept]
            wanted = wanted.astype(np.float64)
            if self.other is not None:
                wanted = wanted - _channels_last(here[1], self.node)
                wanted = (wanted - affine.shift) / affine.scale
            share = len(here[0]) / total
            fit.add(*rows.sample(here[0], wanted, int(limit * share) + 1, random))
        solved, constant = fit.solve()
        rows.write(solved)
        if self.intercept is not None:
            self.intercept.write(constant)

    def _affine(self) -> _Affine:
        scale: Float | float = 1.0
        shift: Float | float = 0.0
        for node in self.after:
            if node.op_type == "BatchNormalization":
                gamma, beta, mean, variance = (_array(v) for v in node.inputs[1:5])
                factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
                # A channel that is scaled to nothing can't be steered.
                factor = np.where(np.abs(factor) < 1e-12, 1e-12, factor)
                scale, shift = scale * factor, (shift - mean) * factor + beta
            else:
                shift = shift + _constant_of(node).reshape(-1)
        return _Affine(scale, shift)


@dataclass
class _Intercept:
    """Where a constant for each output unit is kept: a bias, an added constant, or a mean."""

    value: ir.Value
    sign: float
    own: bool

    def read(self) -> Float:
        """Return the part of the output that the layer itself adds now."""
        array = _array(self.value).reshape(-1)
        return array if self.own else np.zeros_like(array)

    def write(self, constant: Float) -> None:
        """Write the constant that the layer's output needs."""
        array = _array(self.value)
        new = constant.reshape(array.shape)
        set_weight(self.value, new if self.own else array + self.sign * new)


class _Fit:
    """Ridge least squares in one group after another, around the weights as they were.

    Parameters
    ----------
    weight : (groups, unknowns, outputs), the weights to start from.
    intercept : whether a constant is solved for too.
    """

    def __init__(self, weight: Float, *, intercept: bool) -> None:
        groups, unknowns, outputs = weight.shape
        size = unknowns + intercept
        self.weight = weight
        self.intercept = intercept
        self.start: Float = np.zeros(groups * outputs)
        self.gram = np.zeros((groups, size, size))
        self.moment = np.zeros((groups, size, outputs))

    def add(self, x: Float, y: Float) -> None:
        """Take in rows.

        Parameters
        ----------
        x : (groups, rows, unknowns).
        y : (groups, rows, outputs), the outputs wanted.
        """
        if self.intercept:
            x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
        turned = x.transpose(0, 2, 1)
        self.gram += turned @ x
        self.moment += turned @ y

    def solve(self) -> tuple[Float, Float]:
        """Return (groups, unknowns, outputs) weights and (groups · outputs,) constants."""
        groups, unknowns, outputs = self.weight.shape
        start = self.weight
        if self.intercept:
            start = np.concatenate([start, self.start.reshape(groups, 1, outputs)], axis=1)
        diagonal = np.arange(unknowns)
        pull = np.zeros_like(self.gram)
        strength = RIDGE * self.gram[:, diagonal, diagonal].mean(axis=1, keepdims=True)
        # Inputs that are never active leave the weights as they are.
        pull[:, diagonal, diagonal] = np.maximum(strength, 1e-12)
        if self.intercept:
            pull[:, unknowns, unknowns] = 1e-12
        right = self.moment - self.gram @ start
        step = _solve(self.gram + pull, right)
        solved = start + step
        constant = solved[:, unknowns].reshape(-1) if self.intercept else np.zeros(0)
        return solved[:, :unknowns], constant


def _solve(matrix: Float, right: Float) -> Float:
    """Solve symmetric systems; where one is singular, in the least-squares sense."""
    try:
        step: Float = np.linalg.solve(matrix, right).astype(np.float64)
    except np.linalg.LinAlgError:
        step = np.full_like(right, np.nan)
    if not np.isfinite(step).all():
        step = np.linalg.pinv(matrix, hermitian=True) @ right
    return step


# Layers as matrices: rows of inputs, (groups, unknowns, outputs) weights


class _Convolution:
    """A convolution as a product of patches."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        value = node.inputs[1]
        assert value is not None
        self.value = value
        self.shape = _array(value).shape
        self.groups = node.attributes.get_int("group", 1)

    def read(self) -> Float:
        outputs = self.shape[0] // self.groups
        matrix = _array(self.value).reshape(self.groups, outputs, -1)
        return matrix.transpose(0, 2, 1)

    def write(self, weight: Float) -> None:
        set_weight(self.value, weight.transpose(0, 2, 1).reshape(self.shape))

    def sample(
        self, x: np.ndarray, y: Float, count: int, random: np.random.Generator
    ) -> tuple[Float, Float]:
        """Return rows of patches and of wanted outputs at random positions."""
        samples, spatial = y.shape[0], y.shape[1:-1]
        positions = samples * int(np.prod(spatial))
        chosen = _choose(positions, count, random)
        where = np.unravel_index(chosen, (samples, *spatial))
        kernel = self.shape[2:]
        strides = list(self.node.attributes.get_ints("strides", [1] * len(kernel)))
        dilations = list(self.node.attributes.get_ints("dilations", [1] * len(kernel)))
        begin = _padding(self.node, x.shape[2:], kernel, strides, dilations)
        patches = np.empty((len(chosen), x.shape[1], *kernel), dtype=np.float64)
        for offset in np.ndindex(*kernel):
            place = [
                w * s + o * d - b
                for w, s, o, d, b in zip(where[1:], strides, offset, dilations, begin, strict=True)
            ]
            inside = np.ones(len(chosen), dtype=bool)
            for p, n in zip(place, x.shape[2:], strict=True):
                inside &= (p >= 0) & (p < n)
            clipped = [np.clip(p, 0, n - 1) for p, n in zip(place, x.shape[2:], strict=True)]
            taken = x[(where[0], slice(None), *clipped)]
            patches[(slice(None), slice(None), *offset)] = np.where(inside[:, None], taken, 0)
        width = x.shape[1] // self.groups
        rows = patches.reshape(len(chosen), self.groups, width * int(np.prod(kernel)))
        wanted = y.reshape(positions, self.groups, -1)[chosen]
        return rows.transpose(1, 0, 2), wanted.transpose(1, 0, 2)


class _Matrix:
    """A product with a constant matrix; any number of leading axes."""

    def __init__(self, node: ir.Node) -> None:
        value = node.inputs[1]
        assert value is not None
        self.value = value
        self.turned = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))

    def read(self) -> Float:
        matrix = _array(self.value)
        return (matrix.T if self.turned else matrix)[None]

    def write(self, weight: Float) -> None:
        set_weight(self.value, weight[0].T if self.turned else weight[0])

    def sample(
        self, x: np.ndarray, y: Float, count: int, random: np.random.Generator
    ) -> tuple[Float, Float]:
        """Return rows of inputs and of wanted outputs."""
        rows, wanted = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        chosen = _choose(len(rows), count, random)
        return rows[chosen].astype(np.float64)[None], wanted[chosen][None]


def _rows(node: ir.Node) -> _Convolution | _Matrix:
    return _Convolution(node) if node.op_type == "Conv" else _Matrix(node)


def _choose(number: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    if count >= number:
        return np.arange(number)
    return np.sort(random.choice(number, size=count, replace=False))


def _padding(
    node: ir.Node,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """Return the padding before each spatial axis."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        begin = []
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            whole = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            begin.append(whole // 2 if mode == "SAME_UPPER" else whole - whole // 2)
        return begin
    if mode == "VALID":
        return [0] * len(kernel)
    return list(node.attributes.get_ints("pads", [0] * 2 * len(kernel)))[: len(kernel)]


# Which layers there are


def _layers(graph: Graph, copy: Graph) -> list[_Layer]:
    """Return the layers to solve, in graph order: those whose inputs differ from the original's."""
    assert graph.source is not None
    assert graph.plan is not None
    sources = {node_name(node): node for node in graph.source.model.graph}
    position = {node: i for i, node in enumerate(copy.model.graph)}
    kept = graph.plan.kept
    changed: set[str] = set()
    result: list[_Layer] = []
    for node in copy.model.graph:
        inputs = [v for v in node.inputs if v is not None]
        reads_change = any(v.name in changed for v in inputs)
        value = node.inputs[1] if len(node.inputs) > 1 else None
        cut = value is not None and _contracted(node) in kept.get(value.name or "", {})
        if reads_change or cut:
            changed.update(v.name for v in node.outputs if v.name)
        if not (reads_change or cut) or not _solvable(node):
            continue
        assert value is not None
        source = sources[node_name(node)]
        layer = _Layer(
            node=node,
            kept=_kept_outputs(kept.get(value.name or "", {}), node),
            intercept=_intercept(node),
            target=source.outputs[0],
        )
        _aim_at_sum(layer, sources, position)
        result.append(layer)
    return result


def _kept_outputs(axes: Any, node: ir.Node) -> NDArray[np.int64] | None:
    axis = 0 if node.op_type == "Conv" or _turned(node) else 1
    return axes.get(axis)


def _turned(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))


def _contracted(node: ir.Node) -> int:
    """Return the weight's axis that meets the input's channels."""
    return 1 if node.op_type == "Conv" or _turned(node) else 0


def _solvable(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    data, value = node.inputs[0], node.inputs[1]
    if data is None or data.is_initializer() or value is None or not value.is_initializer():
        return False
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or len(value.uses()) > 1:
        return False
    if node.op_type == "Gemm":
        plain = [node.attributes.get(a) for a in ("alpha", "beta")]
        scaled = any(a is not None and a.as_float() != 1.0 for a in plain)
        return not scaled and not node.attributes.get_int("transA", 0)
    return node.op_type == "Conv" or len(tensor.shape) == 2


def _intercept(node: ir.Node) -> _Intercept | None:
    """Return where a constant added to a layer's outputs can be written."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        units = _outputs(node)
        whole = _owned(bias) and _array(bias).size == units
        return _Intercept(bias, 1.0, own=True) if whole else None
    follower = _only_user(node)
    if follower is None:
        return None
    if follower.op_type == "BatchNormalization" and follower.inputs[0] is node.outputs[0]:
        mean = follower.inputs[3]
        return _Intercept(mean, -1.0, own=False) if mean is not None and _owned(mean) else None
    if _adds_constant(follower, node):
        constant = _constant_value(follower)
        return _Intercept(constant, 1.0, own=False)
    return None


def _aim_at_sum(layer: _Layer, sources: dict[str, ir.Node], position: dict[ir.Node, int]) -> None:
    """Aim at the sum that a layer's output enters, if it is the last branch of it."""
    node = layer.node
    after: list[ir.Node] = []
    while True:
        follower = _only_user(node)
        if follower is None:
            return
        normalized = follower.op_type == "BatchNormalization"
        if (normalized and follower.inputs[0] is node.outputs[0]) or _adds_constant(
            follower, layer.node
        ):
            after.append(follower)
        else:
            break
        node = follower
    if follower.op_type != "Add" or follower.domain != "":
        return
    a, b = follower.inputs
    other = b if a is node.outputs[0] else a
    if a is None or b is None or a is b or other is None or other.is_initializer():
        return
    if _rank(a) != _rank(b) or _last_layer(other, position) > position[layer.node]:
        return
    layer.target = sources[node_name(follower)].outputs[0]
    layer.other = other
    layer.after = after


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
        if _solvable(node):
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
    if follower.op_type != "Add" or follower.domain != "" or layer.op_type == "Conv":
        return False
    constants = [v for v in follower.inputs if v is not None and v.is_initializer()]
    if len(constants) != 1 or not _owned(constants[0]):
        return False
    shape = _array(constants[0]).shape
    return bool(shape) and shape[-1] == _outputs(layer) == int(np.prod(shape))


def _constant_value(node: ir.Node) -> ir.Value:
    return next(v for v in node.inputs if v is not None and v.is_initializer())


def _constant_of(node: ir.Node) -> Float:
    return _array(_constant_value(node))


def _outputs(node: ir.Node) -> int:
    shape = _array(node.inputs[1]).shape
    return int(shape[0] if node.op_type == "Conv" or _turned(node) else shape[1])


def _array(value: ir.Value | None) -> Float:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _channels_last(array: np.ndarray, node: ir.Node) -> np.ndarray:
    return np.moveaxis(array, 1, -1) if node.op_type == "Conv" else array
