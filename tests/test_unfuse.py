"""Operators that onnxruntime has fused, written out: against onnxruntime, which runs them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from models import pretrained, zoo
from text_networks import inputs, network

import onnxjl
from onnxjl.session import open_session, run
from onnxjl.structure.groups import GRANULARITIES, Granularity

CONVOLUTION = """g (float[N, 4, 6, 6] x) => (float[N, 6, H, W] y) {{
    y = com.microsoft.FusedConv <{attributes}> (x, w, b)
}}"""
WEIGHTS = {"w": (6, 4, 3, 3), "b": (6,)}


def unfused(proto: onnx.ModelProto) -> onnxjl.Graph:
    """The normalized network, without fused operators and with the same outputs."""
    graph = onnxjl.normalize(proto)
    assert not [n.op_type for n in graph.model.graph if n.op_type.startswith("Fused")]
    feeds = inputs(proto)
    found = run(open_session(graph), feeds)
    for name, y in run(open_session(onnxjl.load(proto)), feeds).items():
        assert np.abs(found[name] - y).max() <= 1e-5 * np.abs(y).max(), name
    return graph


def operators(graph: onnxjl.Graph) -> list[str]:
    return [node.op_type for node in graph.model.graph]


@pytest.mark.parametrize(
    ("attributes", "made"),
    [
        ('activation = "Relu"', "Relu"),
        ('activation = "Sigmoid", pads = [1, 1, 1, 1], strides = [2, 2]', "Sigmoid"),
        ('activation = "Tanh", auto_pad = "SAME_UPPER"', "Tanh"),
        ('activation = "LeakyRelu", activation_params = [0.3]', "LeakyRelu"),
        ('activation = "HardSigmoid", activation_params = [0.3, 0.4]', "HardSigmoid"),
        ('activation = "Clip", activation_params = [-1.0, 2.5], dilations = [2, 2]', "Clip"),
    ],
)
def test_convolutions(attributes: str, made: str) -> None:
    proto = network(CONVOLUTION.format(attributes=attributes), WEIGHTS)
    proto.graph.node[0].name = "conv"
    graph = unfused(proto)
    assert operators(graph) == ["Conv", made]
    assert graph.model.graph[0].name == "conv"
    assert list(graph.model.graph.initializers)[:2] == ["w", "b"]


def test_a_convolution_of_groups_that_adds_another_value() -> None:
    proto = network(
        """g (float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y) {
            z = Conv <pads: ints = [1, 1, 1, 1]> (x, v)
            y = com.microsoft.FusedConv
                <activation = "Relu", group = 2, pads = [1, 1, 1, 1]> (x, w, b, z)
        }""",
        {"w": (6, 2, 3, 3), "b": (6,), "v": (6, 4, 3, 3)},
    )
    assert operators(unfused(proto)) == ["Conv", "Conv", "Add", "Relu"]


@pytest.mark.parametrize(
    ("activation", "made"),
    [
        ('activation = "Relu"', "Relu"),
        ('activation = "LeakyRelu", activation_alpha = 0.3', "LeakyRelu"),
        ('activation = "Sigmoid"', "Sigmoid"),
        ('activation = "Tanh"', "Tanh"),
    ],
)
def test_products_with_a_bias(activation: str, made: str) -> None:
    proto = network(
        f"""g (float[N, 4] x) => (float[N, 6] y) {{
            y = com.microsoft.FusedGemm
                <{activation}, transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)
        }}""",
        {"w": (6, 4), "b": (6,)},
    )
    assert operators(unfused(proto)) == ["Gemm", made]


@pytest.mark.parametrize(
    ("attributes", "a", "b", "made"),
    [
        ("alpha = 0.25", [2, 3, 5, 4], [2, 3, 4, 6], ["MatMul", "Mul"]),
        ("transB = 1", [2, 3, 5, 4], [2, 3, 6, 4], ["Transpose", "MatMul"]),
        ("transA = 1", [2, 3, 4, 5], [2, 3, 4, 6], ["Transpose", "MatMul"]),
        ("transA = 1, transB = 1", [4, 5], [6, 4], ["Transpose", "Transpose", "MatMul"]),
        ("alpha = 1.0", [5, 4], [4, 6], ["MatMul"]),
    ],
)
@pytest.mark.parametrize("kind", ["float", "double"])
def test_products(attributes: str, a: list[int], b: list[int], made: list[str], kind: str) -> None:
    """Of values whose rank and type the file doesn't tell."""
    sizes = ", ".join("ABCD"[: len(a)])
    proto = network(
        f"""g ({kind}{a} p, {kind}{b} q) => ({kind}[{sizes}] y) {{
            l = Tanh (p)
            r = Tanh (q)
            y = com.microsoft.FusedMatMul <{attributes}> (l, r)
        }}""",
        {},
    )
    del proto.graph.value_info[:]
    graph = unfused(proto)
    assert sorted(operators(graph)) == sorted(["Tanh", "Tanh", *made])


def of_runtime(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put its operators where onnxruntime has them: in ONNX's own domain, unknown to ONNX."""
    for node in proto.graph.node:
        node.domain = ""
    return proto


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(
    ("kind", "casts"), [("float", []), ("double", []), ("float16", ["Cast", "Cast"])]
)
def test_normalization_without_a_mean(kind: str, casts: list[str], opset: int) -> None:
    proto = network(
        f"""g ({kind}[N, 5, 6] x) => ({kind}[N, 5, 6] y) {{
            h = Neg (x)
            y = com.microsoft.SimplifiedLayerNormalization <epsilon = 0.01> (h, scale)
        }}""",
        {},
        {"scale": np.linspace(0.5, 1.5, 6).astype({"float": np.float32}.get(kind, kind))},
        opset=opset,
    )
    proto.graph.node[1].name = "norm"
    graph = onnxjl.normalize(of_runtime(proto))
    feeds = inputs(proto)
    found = run(open_session(graph), feeds)["y"]
    expected = run(open_session(onnxjl.load(proto)), feeds)["y"]
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5 if kind != "float16" else 2e-3)
    made = ["Neg", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
    assert sorted(operators(graph)) == sorted([*made, *casts])
    assert graph.model.graph[-1].name == "norm"
    assert [group.exact for group in onnxjl.groups(graph)] == []


@pytest.mark.parametrize(
    "text",
    [
        "y = com.microsoft.SimplifiedLayerNormalization <axis = 1> (x, g)",
        "n, d = com.microsoft.SimplifiedLayerNormalization (x, g) y = Add (n, d)",
        "s = Tanh (g) y = com.microsoft.SimplifiedLayerNormalization (x, s)",
    ],
)
def test_other_normalizations_without_a_mean_stay(text: str) -> None:
    proto = network(f"g (float[5, 6] x) => (float[5, 6] y) {{ {text} }}", {"g": (6,)})
    assert "SimplifiedLayerNormalization" in operators(onnxjl.normalize(of_runtime(proto)))


@pytest.mark.parametrize("opset", [11, 13, 16])
def test_layer_normalization_of_older_operator_sets(opset: int) -> None:
    """As onnxruntime writes it into networks of any operator set."""
    proto = network(
        """g (float[N, 5, 6] x) => (float[N, 5, 6] y) {
            h = MatMul (x, w)
            y = com.microsoft.LayerNormalization <axis = -1, epsilon = 0.01> (h, scale, bias)
        }""",
        {"w": (6, 6), "scale": (6,), "bias": (6,)},
        opset=opset,
    )
    graph = unfused(of_runtime(proto))
    assert operators(graph) == ["MatMul", "LayerNormalization"]
    assert graph.opset == 17
    onnx.checker.check_model(ir.to_proto(graph.model))


def test_what_is_not_known_stays() -> None:
    proto = network(
        CONVOLUTION.format(attributes='activation = "Celu", pads = [1, 1, 1, 1]'), WEIGHTS
    )
    graph = onnxjl.normalize(proto)
    assert operators(graph) == ["FusedConv"]
    assert sorted(graph.model.graph.initializers) == ["b", "w"]


def optimized(proto: onnx.ModelProto, path: Path) -> Path:
    """Let onnxruntime write the network as it would run it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return path


@pytest.mark.parametrize(
    "name", ["resnet18.ts17", "mobilenet_v2.ts17", "bertlike.dynamo", "minilm"]
)
def test_networks_that_onnxruntime_has_optimized(name: str, tmp_path: Path) -> None:
    """They have the groups that the network itself has, and pruned they pass their check."""
    if name == "minilm":
        if name not in pretrained.available():
            pytest.skip("its package isn't installed")
        proto = onnx.load(pretrained.available()[name])
    else:
        proto = zoo.load(name)
    path = optimized(proto, tmp_path / "optimized.onnx")
    fused = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert fused["FusedConv"] + fused["FusedGemm"] + fused["FusedMatMul"] > 0
    compare_with_the_network(path, proto, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_transformer_that_the_tool_of_onnxruntime_has_optimized(tmp_path: Path) -> None:
    """Attention and embeddings are one operator each, and stay so."""
    path = pretrained.optimized_transformer(tmp_path)
    if path is None:
        pytest.skip("its package isn't installed")
    fused = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert (fused["Attention"], fused["EmbedLayerNormalization"]) == (3, 1)
    for granularity in GRANULARITIES:
        source = onnx.load(pretrained.available()["minilm"])
        compare_with_the_network(path, source, tmp_path, granularity)


def compare_with_the_network(
    path: Path, proto: onnx.ModelProto, folder: Path, granularity: Granularity = "channel"
) -> None:
    """Find the same groups, at the same costs, in an optimized file as in the network itself."""
    assert onnxjl.compare(path, onnxjl.normalize(path)).difference <= 1e-5
    found, expected = (
        sorted((g.size, g.macs, g.kind) for g in onnxjl.groups(each, granularity=granularity))
        for each in (path, proto)
    )
    assert [(size, kind) for size, _, kind in found] == [(size, kind) for size, _, kind in expected]
    assert [macs for _, macs, _ in found] == pytest.approx([macs for _, macs, _ in expected])
    small = onnxjl.prune(path, amount=0.4, granularity=granularity, criterion="random")
    saved = onnxjl.save(small, folder / "small.onnx", force=True)
    assert saved.check.status == "equal"
