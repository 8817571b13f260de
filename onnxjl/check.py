"""Check: is a model what it should be? Compared in onnxruntime, before a file is replaced."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxjl.comparison import Comparison, OutputComparison, compare_outputs
from onnxjl.errors import CheckError, OnnxjlError
from onnxjl.graph import Graph, node_name
from onnxjl.serialize import skeleton, weights, write_tensor
from onnxjl.session import fed, open_session, run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from onnxjl.plan import Plan

# Inputs (by position) of each contraction that a removed index is masked on. A bias is added
# after the contraction, and therefore none of its inputs in this sense; within recurrent cells and
# attention the biases are inside. Position 4 of a recurrent cell holds lengths.
_TWO = (0, 1)
_CELL = (0, 1, 2, 3, 5, 6, 7)
_CONTRACTIONS: Mapping[tuple[str, str], tuple[int, ...] | None] = {
    ("", "Conv"): _TWO,
    ("", "ConvTranspose"): _TWO,
    ("", "Gemm"): _TWO,
    ("", "MatMul"): _TWO,
    ("", "Einsum"): None,
    ("", "LSTM"): _CELL,
    ("", "GRU"): _CELL,
    ("", "RNN"): _CELL,
    ("", "Attention"): (0, 1, 2, 4, 5),
    ("com.microsoft", "FusedMatMul"): _TWO,
    ("com.microsoft", "FusedGemm"): _TWO,
    ("com.microsoft", "FusedConv"): _TWO,
    ("com.microsoft", "Attention"): (0, 1, 2),
    ("com.microsoft", "MultiHeadAttention"): (0, 1, 2, 3),
}

# An estimate from a few runs, so what it excuses may be a few times as large.
_TIMES_ROUNDING = 4


def compare(
    a: Any,
    b: Any,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    tolerance: float | None = None,
) -> Comparison:
    """Compare the outputs of two models in onnxruntime, optimizations off.

    Parameters
    ----------
    a, b : anything that `onnxjl.load` takes. Files are run as they are.
    inputs : one array for each input, by name; random ones if not given: floats standard normal,
        integers 0 or 1.
    seed : of the random inputs.
    tolerance : relative difference up to which outputs count as equal; None means 1e-4, and 2e-2
        for float16 and bfloat16.

    Returns
    -------
    Comparison
        For each output max|a−b| / max(1e-6, max|b|), and what can't be compared.

    Raises
    ------
    ModelError : a model can't be read, or onnxruntime can't run it.
    DataError : the inputs don't fit.
    """
    if inputs is None:
        from onnxjl.inputs import random_inputs
        from onnxjl.load import load

        inputs = random_inputs(a if isinstance(a, Graph) else load(a), seed=seed)
    session = _session(a)
    feeds = fed(session, inputs)
    first = run(session, feeds)
    del session
    return compare_outputs(first, run(_session(b), feeds), inputs=feeds, tolerance=tolerance)


def masked(source: Graph, plan: Plan) -> Graph:
    """The source with all that the plan removes masked to zero where a contraction reads it.

    The removed slices of every tensor that the plan cuts become NaN, and every floating input of
    a contraction is replaced by zero where it is NaN. So each removed slice is masked where it
    meets a contraction, weight and activation alike, and one that reaches an output on any other
    way turns it into NaN. A branch whose sum goes is multiplied by zero. Nothing here depends on
    how the plan was found.

    Parameters
    ----------
    source : the normalized graph that the plan refers to.
    plan : what is removed.

    Returns
    -------
    A graph whose outputs equal those of the pruned graph, if the plan is exact.
    """
    model = source.model.clone()
    graph = model.graph
    for name, axes in plan.kept.items():
        initializer = graph.initializers[name]
        tensor = initializer.const_value
        if tensor is not None and tensor.dtype.is_floating_point():
            initializer.const_value = _poisoned(tensor, axes)

    zeros: dict[ir.DataType, ir.Value] = {}
    cleaned: dict[ir.Value, ir.Value] = {}
    for node in tuple(graph):
        if node_name(node) in plan.stand_ins:
            for position, value in enumerate(node.inputs):
                if value is not None and position != plan.stand_ins[node_name(node)]:
                    dtype = value.dtype or _element_type(node)
                    nothing = _times_zero(graph, node, value, dtype, zeros)
                    node.replace_input_with(position, nothing)
        key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        if key not in _CONTRACTIONS:
            continue
        positions = _CONTRACTIONS[key]
        dtype = _element_type(node)
        for position, value in enumerate(node.inputs):
            if value is None or (positions is not None and position not in positions):
                continue
            if not (value.dtype or dtype).is_floating_point():
                continue
            if value not in cleaned:
                cleaned[value] = _zero_where_nan(graph, node, value, value.dtype or dtype, zeros)
            node.replace_input_with(position, cleaned[value])
    return Graph(model, path=source.path, normalized=False, shapes=source.shapes)


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Parameters
    ----------
    status : ``"equal"``: the outputs equal those of the reference; ``"runs"``: there was nothing
        to compare with, but the model runs and its outputs are finite; ``"checker"``: onnxruntime
        can't run the reference, and only ONNX's checker was asked; ``"skipped"``.
    text : one sentence for the user.
    comparison : the figures, where outputs were compared.
    """

    status: str
    text: str
    comparison: Comparison | None = None


SKIPPED = Outcome("skipped", "not checked, as asked")


class Checker:
    """A process of its own that runs models, so that onnxruntime's memory isn't ours.

    It starts at once, so that it is ready by the time that there is something to check.

    Examples
    --------
    >>> with Checker() as checker:
    ...     outcome = checker.check(graph, "graph.onnx")
    """

    def __enter__(self) -> Checker:
        self._messages = tempfile.TemporaryFile()
        path = os.pathsep.join(os.path.abspath(entry or os.curdir) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "onnxjl.check_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env={**os.environ, "PYTHONPATH": path},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # What a dead process never read can't be flushed, and needn't be.
                try:
                    pipe.close()
                except OSError:
                    continue
        self._process.wait()
        self._messages.close()

    def check(
        self,
        graph: Graph,
        path: str | os.PathLike[str],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        expected: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] | None = None,
    ) -> Outcome:
        """Check the file that was written for a graph. Can be called once.

        A pruned graph must equal its masked source; a graph that was recovered, or pruned of
        inexact groups too, must run and be finite; a sparse graph must equal itself in memory; a
        graph that was only normalized must equal the file it came from.

        Parameters
        ----------
        graph : what was written.
        path : where to.
        inputs : what to run it on; random ones if not given.
        expected : what gives the outputs that the file's must equal, instead of the source.

        Returns
        -------
        What was found.

        Raises
        ------
        CheckError : the file isn't what it should be, or the process broke down.
        DataError : `inputs` aren't the graph's.
        """
        from onnxjl.inputs import given_inputs, random_inputs

        reference, mode = _reference(graph) if expected is None else (None, "equal")
        given = given_inputs(graph.source or graph, inputs)
        try:
            feeds = random_inputs(graph.source or graph, seed=0) if given is None else given
        except OnnxjlError as error:
            feeds, mode = {}, "checker"
            reason = str(error)
        else:
            reason = ""
        known = expected(feeds) if expected is not None and mode == "equal" else None
        result = self._ask(mode, reference, feeds, Path(path), known)
        if "failed" in result:
            raise CheckError(f"{Path(path).name}: {result['failed']}; nothing was written")
        if "unable" in result or reason:
            return Outcome(
                "checker",
                "onnxruntime can't run the source, so only ONNX's checker was asked: it passed "
                f"({result.get('unable') or reason})",
            )
        comparison = _comparison(result) if "outputs" in result else None
        if comparison is None:
            return Outcome("runs", f"runs in onnxruntime, outputs finite{_why(graph, result)}")
        what = "the masked source" if graph.plan is not None else "the source"
        if graph.plan is None and graph.sparsified is not None:
            what = "the sparse network"
        if known is not None:
            what = "Julia's own outputs"
        if comparison.equal():
            return Outcome(
                "equal",
                f"equals {what} in onnxruntime: relative difference {comparison.difference:.1g}",
                comparison,
            )
        if mode == "either":
            return Outcome("runs", f"runs in onnxruntime, outputs finite{_why(graph, result)}")
        rounding = result.get("rounding", {})
        unequal = [output for output in comparison.outputs if not output.equal()]
        if all(_is_rounding(output, rounding.get(output.name, 0.0)) for output in unequal):
            alone = max(rounding[output.name] for output in unequal)
            return Outcome(
                "equal",
                f"equals {what} in onnxruntime but for rounding: relative difference "
                f"{comparison.difference:.1g}, where rounding alone makes {alone:.1g}",
                comparison,
            )
        worst = next(o for o in unequal if not _is_rounding(o, rounding.get(o.name, 0.0)))
        detail = worst.problem or f"relative difference {worst.difference:.2g}"
        raise CheckError(
            f"output {worst.name!r} differs from {what}: {detail}; nothing was written "
            "(this is a fault of onnxjl: please report it)"
        )

    def _ask(
        self,
        mode: str,
        reference: Graph | Path | None,
        feeds: Mapping[str, Any],
        path: Path,
        expected: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Hand over the work, and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, mode, reference, feeds, path, expected or {})
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # The process ended early; its exit status says more.
        answer = self._process.stdout.read()
        status = self._process.wait()
        lines = answer.decode().splitlines()
        if status == 0 and lines:
            return json.loads(lines[-1])
        self._messages.seek(0)
        said = self._messages.read().decode(errors="replace").strip().splitlines()
        if status < 0 and -status != signal.SIGKILL and lines == ["reference"]:
            # onnxruntime itself crashes on the source: no fault of the file.
            return {"unable": f"it ends with signal {-status}"}
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        memory = ", perhaps for lack of memory" if -status == signal.SIGKILL else ""
        raise CheckError(
            f"the process that checks the new model {how}{memory}"
            f"{': ' + said[-1] if said else ''}; nothing was written "
            "(--no-check, or check=False, leaves the check out)"
        )


def _reference(graph: Graph) -> tuple[Graph | Path | None, str]:
    """What the file must equal, and how strictly."""
    if graph.plan is not None and graph.source is not None:
        if graph.plan.request.get("recover"):
            return None, "runs"
        mode = "either" if graph.plan.request.get("allow_inexact") else "equal"
        return masked(graph.source, graph.plan), mode
    if graph.sparsified is not None:
        # Zeros change what is computed, so the file it was loaded from says nothing.
        return graph, "equal"
    if graph.plan is None and graph.path is not None and graph.path.is_file():
        return graph.path, "equal"
    return None, "runs"


def _is_rounding(output: OutputComparison, rounding: float) -> bool:
    """Whether an output differs no more than rounding explains (`check_process` estimates it)."""
    return output.problem is None and output.difference <= _TIMES_ROUNDING * rounding


def _why(graph: Graph, result: Mapping[str, Any]) -> str:
    """Why outputs weren't compared, as the end of a sentence."""
    if "exempt" in result:
        return f" ({result['exempt']})"
    if graph.plan is None:
        return " (there is no file to compare it with)"
    if graph.plan.request.get("recover"):
        return " (recovery changed its weights, so they differ from the source's)"
    if graph.source is None:
        return " (its source isn't at hand to compare it with)"
    return " (groups that aren't exact were pruned, so they differ from the masked source's)"


def _send(
    pipe: Any,
    mode: str,
    reference: Graph | Path | None,
    feeds: Mapping[str, Any],
    path: Path,
    expected: Mapping[str, Any],
) -> None:
    """Write the request as `check_process` reads it."""
    buffer = io.BytesIO()
    flat: list[np.ndarray] = []
    layouts = [{n: _flatten(x, flat) for n, x in values.items()} for values in (feeds, expected)]
    halves = [index for index, a in enumerate(flat) if a.dtype.name == "bfloat16"]
    stored: dict[str, Any] = {f"array{index}": _storable(a) for index, a in enumerate(flat)}
    np.savez(buffer, **stored)
    arrays = buffer.getvalue()
    request: dict[str, Any] = {"mode": mode, "path": os.fspath(path), "arrays": len(arrays)}
    request |= {"feeds": layouts[0], "expected": layouts[1], "bfloat16": halves}
    proto, tensors = b"", {}
    if isinstance(reference, Path):
        request["reference"] = os.fspath(reference)
    elif reference is not None:
        tensors = dict(weights(reference))
        locations = {name: f"weight{index}" for index, name in enumerate(tensors)}
        proto = skeleton(reference, lambda name, tensor: (locations[name], 0)).SerializeToString()
        request["model"] = len(proto)
        request["weights"] = [[locations[n], tensor.nbytes] for n, tensor in tensors.items()]
    pipe.write(json.dumps(request).encode() + b"\n")
    pipe.write(arrays)
    pipe.write(proto)
    for tensor in tensors.values():
        write_tensor(tensor, pipe)


def _comparison(result: Mapping[str, Any]) -> Comparison:
    """A comparison from its JSON form."""
    outputs = tuple(
        OutputComparison(
            entry["name"],
            entry["difference"],
            tuple(None if shape is None else tuple(shape) for shape in entry["shapes"]),  # type: ignore[arg-type]
            tuple(entry["dtypes"]),
            entry["problem"],
        )
        for entry in result["outputs"]
    )
    return Comparison(outputs, {name: tuple(shape) for name, shape in result["inputs"].items()})


def _session(model: Any) -> InferenceSession:
    if not isinstance(model, Graph | str | os.PathLike | bytes):
        from onnxjl.load import load

        model = load(model)
    return open_session(model)


def _poisoned(
    tensor: ir.TensorProtocol, axes: Mapping[int, Sequence[int] | np.ndarray]
) -> ir.LazyTensor:
    """The tensor with NaN in all that goes, made when it is read."""

    def make() -> ir.Tensor:
        array = np.array(tensor.numpy())
        for axis, kept in axes.items():
            gone = np.ones(array.shape[axis], bool)
            gone[np.asarray(kept, np.int64)] = False
            np.moveaxis(array, axis, 0)[gone] = np.nan
        return ir.Tensor(array, dtype=tensor.dtype)

    return ir.LazyTensor(
        make, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name
    )


def _element_type(node: ir.Node) -> ir.DataType:
    """Element type of a contraction: of all its data inputs alike, so any that is known will do."""
    known = (value.dtype for value in (*node.inputs, *node.outputs) if value is not None)
    return next((dtype for dtype in known if dtype is not None), ir.DataType.FLOAT)


def _zero_where_nan(
    graph: ir.Graph,
    before: ir.Node,
    value: ir.Value,
    dtype: ir.DataType,
    zeros: dict[ir.DataType, ir.Value],
) -> ir.Value:
    """Insert ``Where(IsNaN(value), 0, value)`` before a node."""
    if dtype not in zeros:
        zero = ir.Tensor(np.zeros((), dtype.numpy()), name=f"onnxjl.mask.zero.{dtype.name}")
        zeros[dtype] = ir.Value(
            name=zero.name, const_value=zero, type=ir.TensorType(dtype), shape=ir.Shape(())
        )
        graph.initializers.add(zeros[dtype])
    gone = ir.Node("", "IsNaN", [value])
    clean = ir.Node("", "Where", [gone.outputs[0], zeros[dtype], value])
    gone.outputs[0].name = f"{value.name}.onnxjl.mask"
    clean.outputs[0].name = f"{value.name}.onnxjl.masked"
    clean.outputs[0].type = ir.TensorType(dtype)
    graph.insert_before(before, (gone, clean))
    return clean.outputs[0]


def _times_zero(
    graph: ir.Graph,
    before: ir.Node,
    value: ir.Value,
    dtype: ir.DataType,
    zeros: dict[ir.DataType, ir.Value],
) -> ir.Value:
    """Insert a product of a value, without what is NaN in it, and zero before a node."""
    clean = _zero_where_nan(graph, before, value, dtype, zeros)
    product = ir.Node("", "Mul", [clean, zeros[dtype]])
    product.outputs[0].name = f"{value.name}.onnxjl.{before.name}.zeroed"
    product.outputs[0].type = ir.TensorType(dtype)
    graph.insert_before(before, product)
    return product.outputs[0]


def _flatten(value: Any, arrays: list[np.ndarray]) -> Any:
    """Add the arrays of a value; return their numbers, in a list where it's a sequence."""
    if value is None:
        return None
    if isinstance(value, list):
        return [_flatten(entry, arrays) for entry in value]
    arrays.append(np.asarray(value))
    return len(arrays) - 1


def _storable(array: np.ndarray) -> np.ndarray:
    """An array as npz has a place for it: the bits of bfloat16 as uint16, strings as such."""
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16)
    return array.astype(str) if array.dtype.kind == "O" else array
