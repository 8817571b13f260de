"""The proof's oracle: what a network computes when all that a plan removes is masked.

It shares no code with onnxjl, and knows nothing of how a plan is found. A plan says which indices
of which tensors stay. Two copies of the network run side by side; in each of them the removed
slices of these tensors hold other numbers. Where a contraction sums over an index,

* a weight's removed indices of the axis that is summed over are zero;
* an element of an activation that differs between the copies, and so depends on what is removed,
  is zero in both.

That is the masked network of which an exact plan gives the same outputs in fewer numbers. Removed
numbers that reach an output on any other way than through a contraction (a mean, a softmax, an
unmatched index) make the copies differ there; such elements come back as NaN, which equals nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

Kept = Mapping[str, Mapping[int, Sequence[int] | np.ndarray]]
Arrays = dict[str, np.ndarray]
Run = Callable[[onnx.ModelProto, Mapping[str, np.ndarray]], Arrays]

FIRST, SECOND = "\N{PRIME}", "\N{DOUBLE PRIME}"
FLOATS = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
}

CELLS = {"RNN", "GRU", "LSTM"}
CONTRACTIONS = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "Einsum": None,
    "Attention": (0, 1, 2),
    **dict.fromkeys(CELLS, (0, 1, 2)),
}
"""Operators that sum products, with the inputs that are multiplied (all, if None).

Biases, peepholes and initial states meet no removed index of anything else before the next
contraction: they are left as they are.
"""

FUSED = {
    "Attention": (0, 1, 2),
    "GroupQueryAttention": (0, 1, 2),
    "MultiHeadAttention": (0, 1, 2, 3),
}
"""The same of onnxruntime's, in which sums follow on sums: their biases come before the last."""


def masked_outputs(
    model: onnx.ModelProto, kept: Kept, inputs: Mapping[str, np.ndarray], by: Run | None = None
) -> Arrays:
    """Run a network with all that isn't kept masked.

    Parameters
    ----------
    model : the network that the plan refers to.
    kept : initializer -> axis -> indices that stay.
    inputs : array of each input.
    by : what runs it; `run` if None.

    Returns
    -------
    Array of each output, in the graph's order. Elements that depend on what is removed are NaN.
    """
    results = (by or run)(twins(model, kept), inputs)
    outputs = {}
    for value in model.graph.output:
        first, second = (_pick(results, value.name, suffix) for suffix in (FIRST, SECOND))
        if first.dtype.kind == "f":
            first = np.where(first == second, first, np.nan)
        elif not np.array_equal(first, second):
            raise AssertionError(f"output {value.name!r} depends on what is removed")
        outputs[value.name] = first
    return outputs


def run(model: onnx.ModelProto | bytes, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """Run a model in onnxruntime, on one thread, each node as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    content = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def difference(outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference of all outputs; infinite where NaN is met.

    It is max|a−b| / max(1e-6, max|b|) of an output, or of each index of the second axis where
    each has 16 numbers or more: boxes in pixels must not outweigh probabilities beside them.
    """
    assert list(outputs) == list(expected)
    worst = 0.0
    for name, b in expected.items():
        a = outputs[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            return np.inf
        a, b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore"):
            gap = np.where(a == b, 0.0, np.abs(a - b))
        finite = np.where(np.isfinite(b), np.abs(b), 0)
        each = np.prod(b.shape[2:]) >= 16
        others = tuple(i for i in range(b.ndim) if not (each and i == 1))
        scale = np.maximum(1e-6, finite.max(axis=others, initial=0, keepdims=True))
        relative = (gap / scale).max(initial=0.0)
        worst = max(worst, np.inf if np.isnan(relative) else float(relative))
    return worst


def twins(model: onnx.ModelProto, kept: Kept) -> onnx.ModelProto:
    """Return both copies as one network, whose outputs are those of the first and of the second."""
    return _Twins(model, kept).model


def _pick(results: Arrays, name: str, suffix: str) -> np.ndarray:
    return results[name + suffix] if name + suffix in results else results[name]


class _Twins:
    """Writes each node that depends on removed numbers twice, masked where it contracts."""

    def __init__(self, model: onnx.ModelProto, kept: Kept) -> None:
        graph = model.graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.arrays = {name: numpy_helper.to_array(self.initializers[name]) for name in kept}
        self.kept = kept
        self.types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.value_info, *graph.input, *graph.output)
        }
        self.types.update({name: t.data_type for name, t in self.initializers.items()})
        self.differing = set(kept)
        self.nodes: list[NodeProto] = []
        self.new: dict[str, TensorProto] = {}
        self.masked: set[str] = set()
        for name, array in self.arrays.items():
            if self.types[name] not in FLOATS:
                raise ValueError(f"{name!r} holds {array.dtype}, and so can't be masked")
        for node in graph.node:
            self._write(node)
        self.model = self._assemble(model)

    def _write(self, node: NodeProto) -> None:
        if not any(name in self.differing for name in _reads(node)):
            self.nodes.append(node)
            return
        self.differing.update(name for name in node.output if name)
        known = {"": CONTRACTIONS, "com.microsoft": FUSED}.get(node.domain, {})
        multiplied = known.get(node.op_type, ())
        for suffix in (FIRST, SECOND):
            copy = NodeProto()
            copy.CopyFrom(node)
            _rename(copy, self.differing, suffix)
            for i, name in enumerate(node.input):
                if name in self.differing and (multiplied is None or i in multiplied):
                    copy.input[i] = self._mask(node, i, suffix)
            self.nodes.append(copy)

    def _mask(self, node: NodeProto, i: int, suffix: str) -> str:
        """Return the name of an input of a contraction, masked."""
        name = node.input[i]
        if self.types.get(name, TensorProto.FLOAT) not in FLOATS:
            return name + suffix
        if node.domain == "com.microsoft" and name in self.arrays:
            return self._mask_inside(node, name, suffix)
        axis = _summed_axis(node, i, self.arrays[name].ndim) if name in self.arrays else None
        if axis is None:
            return self._mask_where_copies_differ(name, suffix)
        result = f"{name}|{axis}{suffix}"
        if result not in self.new:
            array = self._other_numbers(name, suffix)
            if axis in self.kept[name]:
                array[(slice(None),) * axis + (self._gone(name, axis),)] = 0
            self.new[result] = numpy_helper.from_array(array, result)
        return result

    def _mask_inside(self, node: NodeProto, name: str, suffix: str) -> str:
        """Return the weights of a projection, without rows and columns that are summed over.

        Those of queries and keys are, within the operator; those of values are what it gives.
        """
        result = f"{name}|{node.name or node.output[0]}{suffix}"
        array = self._other_numbers(name, suffix)
        columns = array.shape[-1]
        given = next((a.ints for a in node.attribute if a.name == "qkv_hidden_sizes"), None)
        values = columns
        if node.op_type == "Attention":
            values = sum(given[:2]) if given else columns // 3 * 2
        for axis in self.kept[name]:
            gone = self._gone(name, axis)
            if axis == array.ndim - 1:
                gone = gone[gone < values]
            array[(slice(None),) * axis + (gone,)] = 0
        self.new[result] = numpy_helper.from_array(array, result)
        return result

    def _mask_where_copies_differ(self, name: str, suffix: str) -> str:
        result = f"{name}|{suffix}"
        if name in self.masked:
            return result
        self.masked.add(name)
        kind = self.types.get(name, TensorProto.FLOAT)
        zero, gap, same = self._zero(kind), f"{name}|gap", f"{name}|same"
        compared = [name + FIRST, name + SECOND]
        if kind not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            wide = [f"{one}|wide" for one in compared]
            for one, cast in zip(compared, wide, strict=True):
                self.nodes.append(helper.make_node("Cast", [one], [cast], to=TensorProto.FLOAT))
            compared, kind = wide, TensorProto.FLOAT
        # Two infinities differ by NaN, which isn't zero: what overflows in both is masked, too.
        self.nodes.append(helper.make_node("Sub", compared, [gap]))
        self.nodes.append(helper.make_node("Equal", [gap, self._zero(kind)], [same]))
        for copy in (FIRST, SECOND):
            self.nodes.append(
                helper.make_node("Where", [same, name + copy, zero], [f"{name}|{copy}"])
            )
        return result

    def _zero(self, kind: int) -> str:
        """Return the name of a zero of a type."""
        zero = f"|zero{kind}"
        self.new[zero] = helper.make_tensor(zero, kind, (), [0.0])
        return zero

    def _gone(self, name: str, axis: int) -> np.ndarray:
        return np.setdiff1d(np.arange(self.arrays[name].shape[axis]), self.kept[name][axis])

    def _other_numbers(self, name: str, suffix: str) -> np.ndarray:
        """Return a tensor with random numbers in its removed slices; variances stay positive."""
        array = self.arrays[name].copy()
        generator = np.random.default_rng([*(name + suffix).encode()])
        size = np.abs(array[np.isfinite(array)]).mean(dtype=np.float64) or 1.0
        for axis in self.kept[name]:
            gone = self._gone(name, axis)
            slices = np.moveaxis(array, axis, -1)  # a view: other numbers for each index that goes
            numbers = size * generator.uniform(2, 6, (*slices.shape[-2:-1], len(gone)))
            if array.ndim > 1:
                numbers *= generator.choice([-1, 1], numbers.shape)
            slices[..., gone] = numbers.astype(array.dtype)
        return array

    def _assemble(self, model: onnx.ModelProto) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(_without_initializers(model))
        graph = result.graph
        del graph.node[:], graph.value_info[:], graph.output[:]
        graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in _reads(node)}
        read.update(value.name for value in model.graph.output)
        graph.initializer.extend(
            tensor
            for name, tensor in self.initializers.items()
            if name in read and name not in self.kept
        )
        graph.initializer.extend(self.new.values())
        for name in self.kept:
            for suffix in (FIRST, SECOND):
                if name + suffix in read:
                    array = self._other_numbers(name, suffix)
                    graph.initializer.append(numpy_helper.from_array(array, name + suffix))
        inputs = [value for value in graph.input if value.name not in self.initializers]
        del graph.input[:]
        graph.input.extend(inputs)
        for value in model.graph.output:
            for suffix in (FIRST, SECOND) if value.name in self.differing else ("",):
                graph.output.append(onnx.ValueInfoProto(name=value.name + suffix, type=value.type))
        return result


def _without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto(ir_version=model.ir_version, functions=model.functions)
    result.opset_import.extend(model.opset_import)
    result.graph.name = model.graph.name
    result.graph.input.extend(model.graph.input)
    return result


def _graphs(node: NodeProto) -> list[onnx.GraphProto]:
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def _reads(node: NodeProto) -> set[str]:
    """Return the names that a node and the graphs inside it read."""
    names = {name for name in node.input if name}
    for graph in _graphs(node):
        for inner in graph.node:
            names |= _reads(inner)
        names.update(value.name for value in graph.output)
    return names


def _rename(node: NodeProto, differing: set[str], suffix: str) -> None:
    """Append a suffix to the names of a node, and of the graphs inside it, that differ."""
    for names in (node.input, node.output):
        for i, name in enumerate(names):
            if name in differing:
                names[i] = name + suffix
    if node.name:
        node.name += suffix
    for graph in _graphs(node):
        for inner in graph.node:
            _rename(inner, differing, suffix)
        for value in graph.output:
            if value.name in differing:
                value.name += suffix


def _summed_axis(node: NodeProto, i: int, rank: int) -> int | None:
    """Return the axis of a weight that a contraction sums over; None if there isn't just one."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    operator = node.op_type
    if operator == "Conv" and i == 1:
        return 1
    if operator == "ConvTranspose" and i == 1:
        return 0
    if operator in CELLS and i in (1, 2):
        return 2
    if operator == "Gemm":
        return 1 - attributes.get("transA", 0) if i == 0 else attributes.get("transB", 0)
    if operator == "MatMul":
        return rank - 1 if i == 0 else max(rank - 2, 0)
    if operator == "Einsum":
        left, _, right = attributes["equation"].decode().replace(" ", "").partition("->")
        term = left.split(",")[i]
        summed = [axis for axis, letter in enumerate(term) if letter not in right]
        if "..." not in term and len(summed) == 1:
            return summed[0]
    return None
