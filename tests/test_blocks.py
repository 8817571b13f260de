"""Blocks: found where the skip connection makes their removal exact, and taken out exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import zoo
from onnx import helper, numpy_helper
from oracle import difference, run
from small_networks import convolutions
from text_networks import network

import onnxjl
from onnxjl import BudgetError, DataError, Graph, Plan, PlanError, UsageError, normalize
from onnxjl.structure import analyze
from onnxjl.structure.blocks import Block, Blocks, find, removed_nodes

DIGITS = Path(__file__).parent / "models" / "mnist-resnet14.onnx"
TOLERANCE = 1e-5
"""Largest difference, relative to each output's largest element."""

RESIDUAL = network(
    """g (float[N, 8] x) => (float[N, 4] y) {
        a = Gemm (x, w1)
        b = Relu (a)
        c = Gemm (b, w2)
        d = Add (c, x)
        e = Gemm (d, w3)
        f = Relu (e)
        h = Gemm (f, w4)
        p = Gemm (d, w5)
        s = Add (h, p)
        r = Relu (s)
        y = Gemm (r, w6)
    }""",
    {"w1": (8, 16), "w2": (16, 8), "w3": (8, 5), "w4": (5, 6), "w5": (8, 6), "w6": (6, 4)},
)
"""An identity block of 2·8·16 weights, and one with a projection of 8·5 + 5·6."""


@pytest.fixture(scope="module")
def digits() -> Graph:
    return normalize(DIGITS)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(DIGITS.with_name("mnist-resnet14.calib.npz")) as file:
        return np.array(file[file.files[0]][:32])


def zeroed(graph: Graph, chosen: list[Block]) -> onnx.ModelProto:
    """Return the original network, in which the branches of some blocks are multiplied by zero."""
    proto = ir.to_proto(graph.model)
    by_output = {node.output[0]: node for node in proto.graph.node}
    types = {
        v.name: v.type.tensor_type.elem_type for v in (*proto.graph.value_info, *proto.graph.input)
    }
    sums = {block.sum: block for block in chosen}
    nodes = []
    for node in by_output.values():
        block = sums.get(node.name or node.output[0])
        if block is not None:
            zero = f"{block.branch}|zero"
            kind = types.get(block.branch, onnx.TensorProto.FLOAT)
            proto.graph.initializer.append(helper.make_tensor(zero, kind, (), [0.0]))
            nodes.append(helper.make_node("Mul", [block.branch, zero], [f"{block.branch}|gone"]))
            at = list(node.input).index(block.branch)
            node.input[at] = f"{block.branch}|gone"
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    return proto


def removed(graph: Graph, names: list[str]) -> Graph:
    small = onnxjl.remove_blocks(graph, names)
    assert isinstance(small, Graph)
    return small


def gap(small: Graph, graph: Graph, chosen: list[Block], feeds: Mapping[str, np.ndarray]) -> float:
    content = ir.to_proto(small.model).SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    return difference(run(content, feeds), run(zeroed(graph, chosen), feeds))


def costs(graph: Graph) -> tuple[float, float, float]:
    structure = analyze(graph)
    sizes = structure.sizes
    return (
        structure.macs.total(sizes),
        structure.params.total(sizes),
        structure.bytes.total(sizes),
    )


# Known from the papers' tables: blocks in all, and those whose skip has a convolution.
COUNTS = {
    "resnet18.ts17bn": (8, 3),
    "resnet50.ts17": (16, 4),
    "resnet50.dynamo": (16, 4),
    "keras_resnet50.tf17": (16, 4),
    "mobilenet_v2.ts17": (10, 0),
    "mobilenet_v2.ts17bn": (10, 0),
    "keras_mobilenet_v2.tf17": (10, 0),
    "efficientnet_b0.ts17": (9, 0),
    "convnext_tiny.dynamo": (18, 0),
    "vit_b_16.dynamo": (24, 0),
    "swin_t.dynamo": (24, 0),
    "vit_tiny.ts17": (4, 0),
    "bertlike.ts17": (8, 0),
    "gptlike.dynamo": (4, 0),
    "decoder.dynamo": (4, 0),
    "densenet121.ts17bn": (0, 0),
    "googlenet.ts17": (0, 0),
    "unet.ts13": (0, 0),
}
PROVED = [
    "resnet50.ts17",
    "mobilenet_v2.ts17bn",
    "swin_tiny.ts13",
    "vit_tiny.dynamo",
    "bertlike.ts17",
    "gptlike.ts13",
    "decoder.ts17",
    "encoder_mask.ts17",
    "attention_mix.ts17",
    "yolo.ts13",
    "keras_attention.tf17",
    "conv1d.ts17",
]
LARGE = [
    "convnext_tiny.dynamo",
    "vit_b_16.dynamo",
    "swin_t.dynamo",
    "efficientnet_b0.ts17",
    "regnet_y_400mf.dynamo",
]


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_known_networks(name: str) -> None:
    found = onnxjl.blocks(zoo.load(name))
    projected = sum(block.projection is not None for block in found)
    assert (len(found), projected) == COUNTS[name]
    assert len({block.name for block in found}) == len(found)


def test_description_of_two_blocks() -> None:
    identity, projected = onnxjl.blocks(RESIDUAL)
    assert identity.nodes == ("a", "b", "c")
    assert (identity.sum, identity.skip, identity.branch, identity.skip_input) == ("d", "x", "c", 1)
    assert identity.weights == ("w1", "w2")
    assert (identity.macs, identity.params) == (256, 256)
    assert identity.reason == "y = x + f(x) becomes y = x"
    assert projected.nodes == ("e", "f", "h")
    assert (projected.macs, projected.params) == (70, 70)
    assert projected.reason == "y = p(x) + f(x) becomes y = p(x), p: p"
    assert repr(identity) == "Block('d', mlp, 3 nodes, 256 MACs, 256 parameters)"


def test_transformer_layers_have_two_blocks_each() -> None:
    found = onnxjl.blocks(zoo.load("vit_tiny.dynamo"))
    assert [(block.name, block.kind) for block in found] == [
        ("encoder.layers.encoder_layer_0/attention", "attention"),
        ("encoder.layers.encoder_layer_0/mlp", "mlp"),
        ("encoder.layers.encoder_layer_1/attention", "attention"),
        ("encoder.layers.encoder_layer_1/mlp", "mlp"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = Gemm (x, w) b = Relu (a) y = Add (b, x)", "its sum is an output of the network"),
        (
            "a = Gemm (x, w) b = Relu (a) c = Add (b, x) d = Sigmoid (a) y = Mul (c, d)",
            "neither side of its sum skips the other",
        ),
        ("a = Gemm (x, w) b = Gemm (x, v) c = Add (a, b) y = Relu (c)", "either side of its sum"),
        (
            "a = Gemm (x, w) b = Relu (a) c = Gemm (x, v) d = Tanh (c) e = Add (b, d) y = Relu (e)",
            "neither side of its sum skips the other",
        ),
        (
            "a = Gemm (x, w) m = ReduceMean <keepdims = 1> (a, last) c = Add (m, x) y = Relu (c)",
            "it adds values of different shapes",
        ),
    ],
    ids=["output", "branch used elsewhere", "ambiguous", "two branches", "broadcast"],
)
def test_sums_that_end_no_block(text: str, reason: str) -> None:
    model = network(
        f"g (float[N, 8] x) => (float[N, 8] y) {{ {text} }}",
        {"w": (8, 8), "v": (8, 8)},
        {"last": [1]},
        opset=18,
    )
    found = onnxjl.blocks(model)
    assert not len(found)
    assert len(found.whole) == 1
    assert found.whole[0].reason.startswith(reason)


@pytest.mark.parametrize("name", PROVED)
def test_removal_equals_the_zeroed_branch(name: str) -> None:
    prove(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_removal_equals_the_zeroed_branch_in_large_networks(name: str) -> None:
    prove(name)


def prove(name: str) -> None:
    graph = normalize(zoo.load(name))
    feeds = zoo.inputs(name, seed=1)
    found = find(analyze(graph))
    generator = np.random.default_rng(0)
    some = [b for b in found if generator.random() < 0.5] or [found[0]]
    for chosen in (some, list(found)):
        small = removed(graph, [block.name for block in chosen])
        assert gap(small, graph, chosen, feeds) <= TOLERANCE
        gone = {name for block in chosen for name in (*block.nodes, block.sum)}
        left = {node.name or node.outputs[0].name for node in small.model.graph}
        assert not gone & left
        assert not {w for block in chosen for w in block.weights} & {
            *small.model.graph.initializers
        }


def test_removal_of_each_block_of_a_trained_network(digits: Graph, images: np.ndarray) -> None:
    feeds = {digits.model.graph.inputs[0].name or "": images}
    before = costs(digits)
    for block in find(analyze(digits)):
        small = removed(digits, [block.name])
        assert gap(small, digits, [block], feeds) <= TOLERANCE
        after = costs(small)
        assert before[0] - after[0] == pytest.approx(block.macs)
        assert before[1] - after[1] == block.params
    # A 3×3 convolution from 16 to 16 channels and back on 14×14 pixels is two of these.
    assert find(analyze(digits))["layer1.1"].macs == 2 * 16 * 16 * 9 * 14 * 14


def test_plans_are_data(digits: Graph, tmp_path: Path) -> None:
    small = removed(digits, ["layer2.0", "layer3.1"])
    plan = small.plan
    assert plan is not None
    assert plan.request["blocks"] == ["layer2.0", "layer3.1"]
    assert "removes 12 nodes" in repr(plan)
    plan.save(tmp_path / "plan.json")
    again = onnxjl.apply(DIGITS, Plan.load(tmp_path / "plan.json"))
    assert Plan.load(tmp_path / "plan.json") == plan
    assert again.fingerprint == small.fingerprint
    assert Plan.from_json(plan.to_json()).stand_ins == plan.stand_ins


def test_rounds_compose_and_are_saved_checked(digits: Graph, tmp_path: Path) -> None:
    first = removed(digits, ["layer1.1"])
    second = onnxjl.prune(first, macs=0.7)
    third = removed(second, ["layer3.1"])
    assert third.plan is not None
    assert third.source is not None
    assert third.source.fingerprint == digits.fingerprint
    again = onnxjl.apply(digits, third.plan)
    assert again.fingerprint == third.fingerprint
    saved = third.save(tmp_path / "small.onnx")
    assert saved.check.status == "equal"


def test_check_refuses_another_network(digits: Graph, tmp_path: Path) -> None:
    """The check compares with the original in which the branch is zero, not with what was cut."""
    small = removed(digits, ["layer1.1"])
    other = removed(digits, ["layer3.1"])
    mixed = Graph(small.model, normalized=True, plan=other.plan, source=digits)
    with pytest.raises(onnxjl.CheckError, match="differs from the masked source"):
        mixed.save(tmp_path / "small.onnx")


def test_patterns_remove_whole_layers() -> None:
    graph = normalize(zoo.load("vit_tiny.dynamo"))
    small = removed(graph, ["*encoder_layer_1/*"])
    assert [block.name for block in onnxjl.blocks(small)] == [
        "encoder.layers.encoder_layer_0/attention",
        "encoder.layers.encoder_layer_0/mlp",
    ]


def test_nested_blocks_are_offered_each() -> None:
    model = network(
        """g (float[N, 8] x) => (float[N, 8] y) {
            a = Gemm (x, w1)
            b = Relu (a)
            c = Gemm (b, w2)
            d = Relu (c)
            e = Add (b, d)
            f = Gemm (e, w3)
            h = Add (x, f)
            y = Relu (h)
        }""",
        {"w1": (8, 8), "w2": (8, 8), "w3": (8, 8)},
    )
    graph = normalize(model)
    inner, outer = find(analyze(graph))
    assert (inner.sum, inner.nodes) == ("e", ("c", "d"))
    assert (outer.sum, outer.nodes) == ("h", ("a", "b", "c", "d", "e", "f"))
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)}
    for chosen in ([inner], [outer], [inner, outer]):
        small = removed(graph, [block.name for block in chosen])
        assert gap(small, graph, chosen, feeds) <= TOLERANCE
    # Without the outer one nothing is left but the last node.
    small = onnxjl.prune(graph, macs=0.1, granularity="block")
    assert len(small.model.graph) == 1


def test_what_only_removed_blocks_use_goes_too() -> None:
    graph = normalize(
        network(
            """g (float[N, 8] x, float[N, 8] m) => (float[N, 8] y) {
                s = Sigmoid (m)
                a = Gemm (x, w1)
                b = Mul (a, s)
                c = Add (x, b)
                d = Gemm (c, w2)
                e = Mul (d, s)
                f = Add (e, c)
                y = Relu (f)
            }""",
            {"w1": (8, 8), "w2": (8, 8)},
        )
    )
    first, second = find(analyze(graph))
    assert removed_nodes(graph, [first]) == ("a", "b", "c")
    assert removed_nodes(graph, [first, second]) == ("s", "a", "b", "c", "d", "e", "f")
    small = removed(graph, [first.name, second.name])
    assert [node.op_type for node in small.model.graph] == ["Relu"]
    generator = np.random.default_rng(0)
    feeds = {k: generator.standard_normal((2, 8)).astype(np.float32) for k in "xm"}
    assert gap(small, graph, [first, second], feeds) <= TOLERANCE


# Budgets.


@pytest.mark.parametrize("budget", ["macs", "params", "bytes", "amount"])
@pytest.mark.parametrize("fraction", [0.35, 0.5, 0.8])
@pytest.mark.parametrize("criterion", ["l2", "random"])
def test_budgets_are_met_and_nothing_removed_would_fit(
    digits: Graph, budget: str, fraction: float, criterion: str
) -> None:
    options = {budget: fraction, "criterion": criterion, "seed": 3}
    small = onnxjl.prune(digits, granularity="block", **options)
    found = find(analyze(digits))
    assert small.plan is not None
    gone = small.plan.request["blocks"]

    def cost(names: list[str]) -> float:
        if budget == "amount":
            return 1 - len(names) / len(found)
        at = ["macs", "params", "bytes"].index(budget)
        left = removed(digits, names) if names else digits
        return costs(left)[at] / costs(digits)[at]

    limit = (1 - fraction if budget == "amount" else fraction) + 1e-9
    assert cost(gone) <= limit
    for name in gone:
        assert cost([other for other in gone if other != name]) > limit


def test_the_lowest_scores_go(digits: Graph) -> None:
    order = ["layer3.1", "layer1.0", "layer2.1", "layer1.1", "layer2.0", "layer3.0"]
    small = onnxjl.prune(
        digits, amount=0.5, granularity="block", criterion=lambda b, w: order.index(b.name)
    )
    assert small.plan is not None
    assert small.plan.request["blocks"] == ["layer1.0", "layer2.1", "layer3.1"]
    assert small.plan.request["criterion"] == "<lambda>"


def test_latency_is_measured(digits: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts MACs, a share of the latency is a share of the MACs."""
    from onnxjl import depth
    from onnxjl.latency import Latency

    def pair(a: Graph, b: Graph, feeds: object, **options: object) -> tuple[Latency, Latency]:
        return tuple(Latency(g.macs / 1e6, g.macs / 1e6, 5) for g in (a, b))  # type: ignore[return-value]

    monkeypatch.setattr(depth, "measure_pair", pair)
    small = onnxjl.prune(digits, latency=0.6, granularity="block")
    assert isinstance(small, Graph)
    assert small.macs / digits.macs <= 0.6
    assert small.plan is not None
    predicted = small.plan.request["predicted"]
    assert predicted["after_ms"] == pytest.approx(small.macs / 1e6)


def test_ignored_blocks_stay(digits: Graph) -> None:
    small = onnxjl.prune(digits, amount=0.7, granularity="block", ignore=["layer3.*"])
    assert small.plan is not None
    assert not [name for name in small.plan.request["blocks"] if name.startswith("layer3")]
    whole = onnxjl.blocks(digits, ignore=["layer3.1"]).whole
    assert [(w.layer, w.reason) for w in whole] == [("layer3.1", "ignored by 'layer3.1'")]


# Criteria.


def test_l2_by_hand(digits: Graph) -> None:
    from onnxjl.criteria.blocks import BlockScoring, get_for_blocks, score_blocks

    structure = analyze(digits)
    found = find(structure)
    scores = score_blocks(BlockScoring(structure, found), get_for_blocks("l2"))
    for block, score in zip(found, scores, strict=True):
        w = digits.weight(f"{block.name}.conv2.weight").astype(np.float64)
        assert score == pytest.approx(np.linalg.norm(w.reshape(len(w), -1), axis=1).mean())
    scales = score_blocks(BlockScoring(structure, found), get_for_blocks("bn-scale"))
    for block, score in zip(found, scales, strict=True):
        assert score == pytest.approx(np.abs(digits.weight(f"{block.name}.bn2.weight")).mean())


@pytest.mark.parametrize("name", ["digits", "vit_tiny.dynamo", "swin_tiny.dynamo", "bertlike.ts17"])
def test_measured_criteria_by_hand(name: str, digits: Graph, images: np.ndarray) -> None:
    """Both, from the values themselves, that onnxruntime gives as outputs."""
    from onnxjl.criteria.blocks import BlockScoring, get_for_blocks, score_blocks

    if name == "digits":
        graph, feeds = digits, {digits.model.graph.inputs[0].name or "": images}
    else:
        graph = normalize(zoo.load(name))
        feeds = zoo.inputs(name, seed=1)
    structure = analyze(graph)
    found = find(structure)
    proto = ir.to_proto(graph.model)
    del proto.graph.output[:]
    sums = {node.name or node.output[0]: node.output[0] for node in proto.graph.node}
    for block in found:
        for value in (block.skip, block.branch, sums[block.sum]):
            if value not in {output.name for output in proto.graph.output}:
                proto.graph.output.append(
                    helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None)
                )
    values = run(proto, feeds)
    scoring = BlockScoring(structure, found, data=feeds)
    change = score_blocks(scoring, get_for_blocks("relative-change"))
    influence = score_blocks(scoring, get_for_blocks("block-influence"))
    for i, block in enumerate(found):
        x, f, y = (
            values[v].astype(np.float64) for v in (block.skip, block.branch, sums[block.sum])
        )
        samples = [np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(f, y, strict=True)]
        assert change[i] == pytest.approx(np.mean(samples), rel=1e-6)
        axis = 1 if name == "digits" else -1
        lengths = np.linalg.norm(x, axis=axis) * np.linalg.norm(y, axis=axis)
        both = (x * y).sum(axis=axis)
        # What is zero and stays zero has not changed.
        cosine = np.where(lengths > 0, both / np.where(lengths > 0, lengths, 1), 1.0)
        assert ((lengths > 0) | ((x == y).all(axis=axis))).all()
        assert influence[i] == pytest.approx(1 - cosine.mean(), rel=1e-6, abs=1e-9)


def test_a_branch_that_adds_nothing_goes_first(digits: Graph, images: np.ndarray) -> None:
    proto = ir.to_proto(digits.model)
    for tensor in proto.graph.initializer:
        if tensor.name in ("layer2.1.bn2.weight", "layer2.1.bn2.bias"):
            zeros = np.zeros_like(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
    graph = normalize(proto)
    for criterion in ("relative-change", "block-influence", "bn-scale"):
        small = onnxjl.prune(
            graph, amount=0.16, granularity="block", criterion=criterion, data=images
        )
        assert small.plan is not None
        assert small.plan.request["blocks"] == ["layer2.1"]
        feeds = {graph.model.graph.inputs[0].name or "": images}
        before, after = (run(ir.to_proto(g.model), feeds) for g in (graph, small))
        assert difference(after, before) <= TOLERANCE


def test_own_criteria_get_the_weights_of_a_block(digits: Graph) -> None:
    seen: dict[str, set[str]] = {}

    def largest(block: Block, weights: Mapping[str, np.ndarray]) -> float:
        seen[block.name] = {*weights}
        assert len(weights) == len(block.weights)
        assert "conv1.weight" not in weights
        return max(float(np.abs(array).max()) for array in weights.values())

    onnxjl.prune(digits, amount=0.3, granularity="block", criterion=largest)
    assert "layer1.1.conv2.weight" in seen["layer1.1"]
    assert not any("downsample" in name for names in seen.values() for name in names)


# Recovery.


@pytest.mark.parametrize(("recover", "least"), [("bn", 0.9), ("refit", 0.97)])
def test_recovery_after_removal(digits: Graph, recover: str, least: float) -> None:
    """Without a block the network reads badly; recovered, nearly as before (99.1 %)."""
    with np.load(DIGITS.with_name("mnist-resnet14.test.npz")) as file:
        data = {name: file[name][:500] for name in file.files}
    target = data.pop("target")
    plain = removed(digits, ["layer1.1"])
    better = onnxjl.recover(plain, recover, DIGITS.with_name("mnist-resnet14.calib.npz"))  # type: ignore[arg-type]

    def accuracy(graph: Graph) -> float:
        output = next(iter(run(ir.to_proto(graph.model), data).values()))
        return float((output.argmax(axis=1) == target).mean())

    assert accuracy(plain) < 0.6
    assert accuracy(better) > least


def test_refit_solves_what_reads_a_stand_in(images: np.ndarray) -> None:
    """The layer behind a linear block makes up for all of it: least squares by hand say so."""
    model = network(
        """g (float[N, 8] x) => (float[N, 4] y) {
            a = Gemm (x, w1)
            b = Relu (a)
            c = Gemm (b, w2)
            d = Add (c, x)
            y = Gemm (d, w3, b3)
        }""",
        {"w1": (8, 16), "w2": (16, 8), "w3": (8, 4), "b3": (4,)},
    )
    graph = normalize(model)
    x = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    small = onnxjl.prune(graph, macs=0.5, granularity="block", calibration=x)
    assert isinstance(small, Graph)
    target = run(ir.to_proto(graph.model), {"x": x})["y"]
    got = run(ir.to_proto(small.model), {"x": x})["y"]
    design = np.hstack([x, np.ones((500, 1))]).astype(np.float64)
    best = design @ np.linalg.lstsq(design, target.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(got, best, atol=2e-3 * np.abs(target).max())


# Errors.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"macs": 0.01}, BudgetError, r"macs=0\.01 can't be met: without any of its 6 blocks"),
        ({"macs": 0.5, "criterion": "l3"}, UsageError, "no criterion of blocks 'l3'"),
        ({"macs": 0.5, "criterion": 3}, UsageError, "a criterion of blocks is a name"),
        (
            {"macs": 0.5, "criterion": "block-influence"},
            UsageError,
            "'block-influence' is measured on data",
        ),
        (
            {"macs": 0.5, "criterion": lambda b, w: np.nan},
            UsageError,
            "block 'layer1.0': expected one finite number, came nan",
        ),
        (
            {"macs": 0.5, "criterion": lambda b, w: "much"},
            UsageError,
            "expected one finite number, came 'much'",
        ),
        (
            {"macs": 0.5, "criterion": lambda b, w: w["nothing"]},
            UsageError,
            "block 'layer1.0': it raised KeyError: 'nothing'",
        ),
        ({"macs": 0.5, "ignore": ["none.*"]}, UsageError, "no block, layer or node of a block"),
        ({"amount_for": {"a": 0.5}}, UsageError, "amount_for is about units"),
        ({"macs": 0.5, "round_to": 8}, UsageError, "round_to is about units"),
        ({"macs": 0.5, "scope": "local"}, UsageError, "scope is about units"),
        ({"macs": 0.5, "min_units": 2}, UsageError, "min_units is about units"),
        ({"macs": 0.5, "allow_inexact": True}, UsageError, "allow_inexact is about units"),
        (
            {"macs": 0.5, "criterion": "relative-change", "data": np.zeros((2, 1, 3, 3))},
            DataError,
            "input 'image': expected float32",
        ),
    ],
)
def test_errors_of_pruning(
    digits: Graph, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        onnxjl.prune(digits, granularity="block", **options)


def test_errors_of_names(digits: Graph) -> None:
    with pytest.raises(UsageError, match=r"no block is called 'layer9'; there are layer1\.0, "):
        onnxjl.remove_blocks(digits, ["layer9"])
    with pytest.raises(UsageError, match=r"names of blocks are a list: \['layer1.1'\]"):
        onnxjl.remove_blocks(digits, "layer1.1")
    with pytest.raises(UsageError, match="give the name of a block at least"):
        onnxjl.remove_blocks(digits, [])
    with pytest.raises(UsageError, match="no block is called 'layer9'"):
        onnxjl.blocks(digits)["layer9"]
    with pytest.raises(UsageError, match="blocks aren't groups of units"):
        onnxjl.groups(digits, granularity="block")  # type: ignore[arg-type]


def test_networks_without_blocks() -> None:
    with pytest.raises(BudgetError, match=r"no block can be removed from this network \(no sums\)"):
        onnxjl.prune(convolutions(), macs=0.5, granularity="block")
    with pytest.raises(UsageError, match="'bn-scale', block 'd': it has no batch normalization"):
        onnxjl.prune(RESIDUAL, amount=0.5, granularity="block", criterion="bn-scale")


def test_blocks_are_a_sequence(digits: Graph) -> None:
    found = onnxjl.blocks(digits)
    assert isinstance(found, Blocks)
    assert found["layer1.1"] is found[1]
    assert found[:2] == (found[0], found[1])
    assert repr(found).splitlines()[0] == "6 blocks"
    assert "layer1.0  convolution         903,168 MACs" in repr(found)


@pytest.mark.parametrize(
    ("stand_ins", "nodes", "message"),
    [
        ({"d": 1}, (), "node 'd' stays, and needs no input to stand in for it"),
        ({"d": 2}, ("d",), "node 'd' has no input to stand in for it"),
    ],
)
def test_plans_that_do_not_fit(
    stand_ins: dict[str, int], nodes: tuple[str, ...], message: str
) -> None:
    graph = normalize(RESIDUAL)
    plan = Plan(kept={}, removed_nodes=nodes, stand_ins=stand_ins, source_graph=graph)
    with pytest.raises(PlanError, match=message):
        onnxjl.apply(graph, plan)


def test_positions_in_plans_are_checked() -> None:
    text = Plan(kept={}, removed_nodes=("d",), fingerprint="0", stand_ins={"d": 1}).to_json()
    with pytest.raises(PlanError, match="what stands in for 'd' is -1, not an input's position"):
        Plan.from_json(text.replace('"d": 1', '"d": -1'))
