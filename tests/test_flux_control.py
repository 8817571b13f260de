"""`If`, `Loop` and `Scan` as layers: outputs and gradients are onnxruntime's, and files too."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime
import pytest
from flux_support import needs_julia
from onnx import numpy_helper

import onnxjl
from onnxjl.graph import Graph
from onnxjl.serialize import write

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

IF = """
<ir_version: 8, opset_import: ["": 18]>
agraph (bool c, float[2,3] x) => (float[2,4] y)
<float[3,4] outer>
{
    y = If (c) <
        then_branch = then () => (float[2,4] t) <float[3,4] inner> {
            product = MatMul (x, inner)
            t = Relu (product)
        },
        else_branch = other () => (float[2,4] e) { e = MatMul (x, outer) }
    >
}
"""

LOOP = """
<ir_version: 8, opset_import: ["": 18]>
agraph (int64 n, float[2,3] x) => (float[2,3] last, float[k,2,3] all)
<float[3,3] outer>
{
    none = Constant <value_int = 1> ()
    go = Cast <to = 9> (none)
    last, all = Loop (n, go, x) <
        body = step (int64 i, bool c, float[2,3] s) => (bool d, float[2,3] t, float[2,3] row)
        <float[3] inner> {
            d = Identity (c)
            product = MatMul (s, outer)
            shifted = Add (product, inner)
            t = Tanh (shifted)
            row = Mul (t, s)
        }
    >
}
"""

SCAN = """
<ir_version: 8, opset_import: ["": 18]>
agraph (float[2] state, float[2,5] x) => (float[2] last, float[5,2] all)
<float[2] outer>
{
    last, all = Scan (state, x) <
        num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
        body = step (float[2] s, float[2] e) => (float[2] t, float[2] row) <float[2] inner> {
            scaled = Mul (s, inner)
            t = Add (scaled, e)
            row = Mul (t, outer)
        }
    >
}
"""

MODELS = {"If": IF, "Loop": LOOP, "Scan": SCAN}
INNER = {"If": "y.then_branch.inner", "Loop": "last.body.inner", "Scan": "last.body.inner"}


def model(name: str) -> onnx.ModelProto:
    """The network with random weights."""
    proto = onnx.parser.parse_model(MODELS[name])
    generator = np.random.default_rng(0)
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        for value in graph.value_info:  # As which the parser takes the weights.
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            array = generator.standard_normal(shape).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(array, value.name))
        del graph.value_info[:]
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return proto


def inputs(name: str, taken: bool = True) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((2, 5 if name == "Scan" else 3)).astype(np.float32)
    first = {
        "If": {"c": np.array(taken)},
        "Loop": {"n": np.array(4)},
        "Scan": {"state": np.array([0.5, -0.5], np.float32)},
    }
    return {**first[name], "x": x}


def in_onnxruntime(proto: onnx.ModelProto, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, fed)


def outputs(flux: onnxjl.FluxModel, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
    found = flux(fed)
    return [*found.values()] if isinstance(found, dict) else [found]


def as_proto(graph: Graph) -> onnx.ModelProto:
    file = io.BytesIO()
    write(graph, file)
    return onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize(
    ("name", "taken"), [("If", True), ("If", False), ("Loop", True), ("Scan", True)]
)
def test_computes_what_onnxruntime_does(name: str, taken: bool) -> None:
    proto, fed = model(name), inputs(name, taken)
    flux = onnxjl.to_flux(proto)
    expected = in_onnxruntime(proto, fed)
    for y, z in zip(outputs(flux, fed), expected, strict=True):
        np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-6)
    again = in_onnxruntime(as_proto(flux.to_graph()), fed)
    for y, z in zip(again, expected, strict=True):
        np.testing.assert_allclose(y, z, rtol=1e-6)


def tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The initializers of a graph and of those within it, by their own names."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= tensors(attribute.g)
    return found


def weighted(found: list[np.ndarray]) -> float:
    """The sum of outputs, each entry with a weight of its own."""
    return float(sum((y * np.cos(np.arange(y.size).reshape(y.shape))).sum() for y in found))


def loss(output: object, target: object) -> tuple[float, object]:
    """The same with its gradient, as onnxjl takes it."""
    arrays = output if isinstance(output, dict) else {"y": output}
    slopes = {
        k: np.cos(np.arange(y.size).reshape(y.shape)).astype(y.dtype) for k, y in arrays.items()
    }
    value = weighted([*arrays.values()])
    return value, slopes if isinstance(output, dict) else slopes["y"]


@pytest.mark.parametrize(
    ("name", "weight", "taken"),
    [
        ("If", "inner", True),
        ("If", "outer", False),
        ("Loop", "inner", True),
        ("Loop", "outer", True),
        ("Scan", "inner", True),
        ("Scan", "outer", True),
    ],
)
def test_gradient_is_onnxruntimes_difference(name: str, weight: str, taken: bool) -> None:
    proto, fed = model(name), inputs(name, taken)
    value, found = onnxjl.to_flux(proto).gradient(loss, fed)
    assert value == pytest.approx(weighted(in_onnxruntime(proto, fed)), rel=1e-5)
    gradient = found[INNER[name] if weight == "inner" else weight]
    tensor = tensors(proto.graph)[weight]
    w = numpy_helper.to_array(tensor)
    assert gradient.shape == w.shape
    step = 1e-2
    for index in np.ndindex(w.shape):
        values = []
        for sign in (1, -1):
            moved = w.copy()
            moved[index] += sign * step
            tensor.CopyFrom(numpy_helper.from_array(moved, weight))
            values.append(weighted(in_onnxruntime(proto, fed)))
        slope = (values[0] - values[1]) / (2 * step)
        assert gradient[index] == pytest.approx(slope, rel=2e-2, abs=2e-2)


@pytest.mark.parametrize("name", MODELS)
def test_moved_weights_are_written(name: str) -> None:
    proto, fed = model(name), inputs(name)
    ones = {INNER[name]: np.ones(tuple(tensors(proto.graph)["inner"].dims), np.float32)}
    moved = onnxjl.to_flux(proto).moved(ones, 0.5)
    tensor = tensors(proto.graph)["inner"]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 0.5, "inner"))
    expected = in_onnxruntime(proto, fed)
    exact = {k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in fed.items()}
    for y, z in zip(outputs(moved, exact), expected, strict=True):
        np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-6)
    written = tensors(as_proto(moved.to_graph()).graph)["inner"]
    np.testing.assert_allclose(numpy_helper.to_array(written), numpy_helper.to_array(tensor))


def test_no_step_has_no_rows() -> None:
    fed = inputs("Loop") | {"n": np.array(0)}
    with pytest.raises(
        onnxjl.UnsupportedOperator, match=r"'last' \(Loop\): no step .*\(opset 18\)"
    ):
        onnxjl.to_flux(model("Loop"))(fed)


def test_unsupported_within_a_loop_says_which() -> None:
    text = LOOP.replace("row = Mul (t, s)", "row = com.microsoft.Rfft (t)")
    text = text.replace('["": 18]', '["": 18, "com.microsoft": 1]')
    text = text.replace("<float[3] inner>", "<float[3] inner = {1, 2, 3}>")
    text = text.replace("<float[3,3] outer>", "<float[3,3] outer = {1, 2, 3, 4, 5, 6, 7, 8, 9}>")
    with pytest.raises(onnxjl.UnsupportedOperator, match="Rfft"):
        onnxjl.to_flux(onnx.parser.parse_model(text))


def test_show_tells_the_graphs() -> None:
    shown = repr(onnxjl.to_flux(model("Scan")))
    assert '"last" => Scan(body=FluxGraph(3 layers, 2 parameters))' in shown
