"""Networks written as text, with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper


def network(
    text: str,
    shapes: Mapping[str, Sequence[int]],
    constants: Mapping[str, object] | None = None,
    *,
    opset: int = 18,
    seed: int = 1,
) -> onnx.ModelProto:
    """Return the network of a text.

    Parameters
    ----------
    text : a graph in ONNX's textual form; outputs without a type get the inferred one.
    shapes : shapes of weights to draw: normal, but positive where the name starts with "variance".
    constants : further initializers: arrays, NumPy's scalars, or integers that become int64.
    opset : version of the default operator set; com.microsoft's operators are there too.
    seed : of the weights.
    """
    header = f'<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    model = onnx.parser.parse_model(f"{header} {text}")
    random = np.random.default_rng(seed)
    for name, shape in shapes.items():
        array = random.standard_normal(shape).astype(np.float32)
        if name.startswith("variance"):
            array = np.abs(array) + np.float32(0.5)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for name, values in (constants or {}).items():
        array = np.asarray(values, getattr(values, "dtype", np.int64))
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    inferred = {
        value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output
    }
    for value in model.graph.output:
        if not value.type.HasField("tensor_type"):
            value.CopyFrom(inferred[value.name])
    onnx.checker.check_model(model)
    return model


def inputs(model: onnx.ModelProto, *, seed: int = 2, batch: int = 2) -> dict[str, np.ndarray]:
    """Return random inputs: normal numbers, or integers 0 and 1; symbols are `batch`."""
    random = np.random.default_rng(seed)
    found = {}
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value or batch for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        array = random.integers(0, 2, shape) if dtype.kind in "iub" else random.normal(0, 1, shape)
        found[value.name] = np.asarray(array, dtype)
    return found


def split_in_two(first: int, second: int) -> onnx.ModelProto:
    """Return a network whose layer ``a`` makes two groups, of these sizes: ``a`` and ``a#2``."""
    return network(
        """g (float[N, 6] x) => (float[N, 2] y, float[N, 2] z) {
            a = Gemm (x, w)
            p, q = Split <axis = 1> (a, sizes)
            y = Gemm (p, wp)
            z = Gemm (q, wq)
        }""",
        {"w": (6, first + second), "wp": (first, 2), "wq": (second, 2)},
        {"sizes": [first, second]},
    )
