"""Normalization keeps what each operator computes: ONNX's own tests of operators, as a whole.

Each test's model is normalized three times: as it is; with all its inputs but the first as
weights and without a single known size; with its operator set raised.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from onnxjl.errors import UnsupportedOperator
from onnxjl.normalize import normalize

NEWEST = 23
"""Operator set to raise to: the newest that onnxruntime runs nearly all operators of."""

EXEMPT = {
    # What training does, inference doesn't.
    "test_batchnorm_epsilon_training_mode",
    "test_batchnorm_example_training_mode",
    "test_training_dropout",
    "test_training_dropout_default",
    "test_training_dropout_default_mask",
    "test_training_dropout_mask",
}
REFUSED = {
    # A Scan over batches, as of opset 8 only.
    "test_scan_sum": "that of opset 8 works on batches",
}
TOLERANCES = {np.dtype(np.float16): 5e-3, np.dtype("float32"): 1e-5}

Case = tuple[str, onnx.ModelProto, dict[str, np.ndarray]]


def cases() -> Iterator[Case]:
    """Name, model and inputs of every test whose inputs are tensors."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    for test in tests:
        if test.model is None or not test.data_sets:
            continue
        arrays = [_array(value) for value in test.data_sets[0][0]]
        if all(array is not None for array in arrays):
            names = [value.name for value in test.model.graph.input]
            yield test.name, test.model, dict(zip(names, arrays, strict=True))


def _array(value: object) -> np.ndarray | None:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None


def as_it_is(name: str, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Case:
    return name, model, dict(feeds)


def without_sizes(name: str, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Case:
    """All inputs but the first as weights, each size of that one a symbol."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    inputs = list(graph.input)
    for value in inputs[1:]:
        graph.initializer.append(numpy_helper.from_array(feeds[value.name], value.name))
    del graph.input[1:]
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"size_{axis}"
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return name, copy, {value.name: feeds[value.name] for value in inputs[:1]}


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[object]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feeds))


def same(a: object, b: object) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind not in "fc" or not a.size:
        return np.array_equal(a, b)
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    x, y = a.astype(wide), b.astype(wide)
    if not np.array_equal(np.isfinite(x), np.isfinite(y)):
        return False
    finite = np.isfinite(y)
    error, size = np.abs(x[finite] - y[finite]), np.abs(y[finite])
    if not error.size:
        return True
    return bool(error.max() / max(1e-6, size.max()) <= TOLERANCES.get(a.dtype, 1e-5))


def failures(tests: Sequence[Case], opset: int | None = None) -> tuple[int, list[str]]:
    """How many models onnxruntime could run, and what went wrong with them normalized."""
    count, wrong = 0, []
    for name, model, feeds in tests:
        if name in EXEMPT:
            continue
        try:
            expected = run(model, feeds)
        except Exception:
            continue  # onnxruntime can't
        version = next((o.version for o in model.opset_import if o.domain == ""), NEWEST)
        if name in REFUSED:
            with pytest.raises(UnsupportedOperator, match=REFUSED[name]):
                normalize(model)
            continue
        count += 1
        try:
            graph = normalize(model, opset=opset if opset and version <= opset else None)
            outputs = run(ir.to_proto(graph.model), feeds)
        except Exception as error:
            wrong.append(f"{name}: {error}")
            continue
        if not same(outputs, expected):
            wrong.append(f"{name}: other outputs")
    return count, wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "opset"), [(as_it_is, None), (without_sizes, None), (as_it_is, NEWEST)]
)
def test_operators_compute_the_same(change, opset):
    count, wrong = failures([change(*case) for case in cases()], opset)
    assert count > 1300
    assert not wrong, "\n".join(wrong)
