"""prune: what goes is what the criterion says, the budget is met; what can't be done is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from oracle import difference, masked_outputs, run
from small_networks import convolutions
from text_networks import inputs, network

from onnxjl import BudgetError, Graph, UsageError, WeightError, load, normalize, prune
from onnxjl.structure import analyze


def weights(graph: Graph) -> dict[str, np.ndarray]:
    """Return the weights of a graph."""
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in ir.to_proto(graph.model).graph.initializer
    }


def gone(small: Graph, tensor: str, axis: int) -> list[int]:
    """Return which indices of a tensor were removed."""
    assert small.plan is not None
    assert small.source is not None
    size = small.source.weight(tensor).shape[axis]
    kept = small.plan.kept.get(tensor, {}).get(axis, np.arange(size))
    return sorted(set(range(size)) - set(kept.tolist()))


def scored(scores: dict[str, list[float]]):
    """Return a criterion that gives these scores."""

    def criterion(group, weights):
        return np.array(scores[group.name], dtype=np.float64)

    return criterion


FIRST = [3.0, 1.0, 4.0, 1.5, 9.0, 2.0, 6.0, 5.0]
SECOND = [30.0, 10.0, 20.0, 40.0]


def test_least_important_units_go() -> None:
    criterion = scored({"first": FIRST, "second": SECOND})
    small = prune(convolutions(), amount=0.5, criterion=criterion, scope="local")
    assert gone(small, "first.weight", 0) == [0, 1, 3, 5]
    assert gone(small, "second.weight", 1) == [0, 1, 3, 5]
    assert gone(small, "second.weight", 0) == [1, 2]
    assert gone(small, "head.weight", 1) == [1, 2]
    # All twelve together, each group divided by its own mean or as they are.
    small = prune(convolutions(), amount=0.5, criterion=criterion, normalization="mean")
    ranked = sorted(
        [(s / np.mean(FIRST), 0, i) for i, s in enumerate(FIRST)]
        + [(s / np.mean(SECOND), 1, i) for i, s in enumerate(SECOND)]
    )
    assert gone(small, "first.weight", 0) == sorted(i for _, g, i in ranked[:6] if g == 0)
    assert gone(small, "second.weight", 0) == sorted(i for _, g, i in ranked[:6] if g == 1)
    small = prune(convolutions(), amount=0.5, criterion=criterion, normalization="none")
    assert gone(small, "first.weight", 0) == [0, 1, 2, 3, 5, 7]
    assert gone(small, "second.weight", 0) == []


def test_l2_is_the_default_and_what_it_says() -> None:
    model = network(
        """g (float[N, 6] x) => (float[N, 3] y) {
            a = Gemm (x, w1)
            y = Gemm (a, w2)
        }""",
        {"w1": (6, 8), "w2": (8, 3)},
    )
    w1, w2 = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    norms = (np.linalg.norm(w1, axis=0) + np.linalg.norm(w2, axis=1)) / 2
    small = prune(model, amount=0.5)
    assert gone(small, "w1", 1) == sorted(np.argsort(norms)[:4].tolist())


def test_result_equals_the_masked_source_and_keeps_its_weights() -> None:
    model = convolutions(batch="N")
    small = prune(model, macs=0.5)
    assert small.source is not None
    assert small.plan is not None
    for name, array in weights(small.source).items():
        for axis, kept in small.plan.kept.get(name, {}).items():
            array = np.take(array, kept, axis)
        np.testing.assert_array_equal(weights(small)[name], array)
    feeds = inputs(model, batch=3)
    pruned = run(ir.to_proto(small.model), feeds)
    masked = masked_outputs(ir.to_proto(small.source.model), small.plan.kept, feeds)
    assert difference(pruned, masked) <= 1e-4
    assert difference(pruned, run(model, feeds)) > 1e-2


@pytest.mark.parametrize("budget", ["macs", "params", "bytes"])
def test_budget_is_met(budget: str) -> None:
    small = prune(convolutions(), **{budget: 0.4})
    before, after = (analyze(graph) for graph in (small.source, small))
    whole, left = (getattr(s, budget).total(s.sizes) for s in (before, after))
    assert 0.3 * whole <= left <= 0.4 * whole


def test_same_request_gives_the_same_bytes() -> None:
    for options in ({}, {"criterion": "random", "seed": 3}, {"criterion": "fpgm"}):
        first, second = (
            ir.to_proto(prune(convolutions(), macs=0.5, **options).model).SerializeToString()
            for _ in range(2)
        )
        assert first == second


def test_seed_matters_to_the_random_criterion_only() -> None:
    plans = [prune(convolutions(), amount=0.5, criterion="random", seed=s).plan for s in range(4)]
    assert len({plan.to_json() for plan in plans}) == 4
    norms = [prune(convolutions(), amount=0.5, seed=seed).plan for seed in range(2)]
    assert norms[0] == norms[1]


def test_argument_is_not_changed(tmp_path: Path) -> None:
    proto = convolutions()
    content = proto.SerializeToString()
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    prune(proto, macs=0.5)
    assert proto.SerializeToString() == content
    graph = load(proto)
    before = ir.to_proto(graph.model).SerializeToString()
    prune(graph, macs=0.5)
    assert ir.to_proto(graph.model).SerializeToString() == before
    normalized = normalize(graph)
    before = ir.to_proto(normalized.model).SerializeToString()
    small = prune(normalized, macs=0.5)
    assert small.source is normalized
    assert ir.to_proto(normalized.model).SerializeToString() == before
    prune(path, macs=0.5)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_every_kind_of_model_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(convolutions(), path)
    plans = [
        prune(source, amount=0.5).plan
        for source in (path, str(path), path.read_bytes(), convolutions(), load(path))
    ]
    assert all(plan == plans[0] for plan in plans)


def test_request_is_in_the_plan() -> None:
    plan = prune(convolutions(), amount=0.5, min_units=2, ignore=["second"], round_to=2).plan
    assert plan is not None
    asked = {
        "amount": 0.5,
        "criterion": "l2",
        "scope": "global",
        "ignore": ["second"],
        "round_to": 2,
        "min_units": 2,
        "granularity": "channel",
        "allow_inexact": False,
    }
    assert asked.items() <= dict(plan.request).items()
    named = prune(convolutions(), amount=0.5, criterion=scored({"first": FIRST, "second": SECOND}))
    assert named.plan is not None
    assert named.plan.request["criterion"] == "criterion"


def test_options_hold() -> None:
    ignored = prune(convolutions(), amount=0.5, ignore=["/second"])
    assert gone(ignored, "second.weight", 0) == []
    assert len(gone(ignored, "first.weight", 0)) == 4
    rounded = prune(convolutions(), amount=0.3, round_to=4, scope="local")
    assert rounded.model.graph.initializers["first.weight"].shape[0] == 4
    single = prune(convolutions(), amount_for={"fir*": 0.25})
    assert len(gone(single, "first.weight", 0)) == 2
    assert gone(single, "second.weight", 0) == []
    spared = prune(convolutions(), amount=0.9, scope="local", min_units=3)
    assert len(gone(spared, "first.weight", 0)) == 5
    assert len(gone(spared, "second.weight", 0)) == 1


INEXACT = network(
    """g (float[N, 6] x) => (float[N, 3] y) {
        a = Gemm (x, w1)
        n = LayerNormalization (a, s)
        y = Gemm (n, w2)
    }""",
    {"w1": (6, 8), "w2": (8, 3), "s": (8,)},
)


def test_inexact_groups_are_pruned_when_allowed() -> None:
    small = prune(INEXACT, amount=0.5, allow_inexact=True)
    assert len(gone(small, "s", 0)) == 4
    onnx.checker.check_model(ir.to_proto(small.model))
    assert run(ir.to_proto(small.model), inputs(INEXACT))["y"].shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give exactly one of amount, macs, params, bytes, latency, not none"),
        ({"amount": 0.5, "macs": 0.5}, "give exactly one of .* not amount, macs"),
        ({"macs": 1.5}, "macs must be a fraction between 0 and 1, not 1.5"),
        ({"macs": 0.5, "scope": "layer"}, "no scope 'layer'"),
        ({"macs": 0.5, "criterion": "magic"}, "magic"),
        ({"macs": 0.5, "criterion": "taylor"}, "needs gradients"),
        ({"macs": 0.5, "criterion": 3}, "a criterion is a name or a function"),
        ({"macs": 0.5, "granularity": "layer"}, "no granularity 'layer'"),
        ({"macs": 0.5, "ignore": ["fifth"]}, "no layer or node matches 'fifth'"),
        ({"amount_for": {"fifth": 0.5}}, "no prunable layer matches 'fifth'"),
        ({"macs": 0.5, "aggregation": "median"}, "median"),
        ({"macs": 0.5, "normalization": "median"}, "median"),
        ({"macs": 0.5, "round_to": 0}, "round_to must be a whole number of at least 1, not 0"),
    ],
)
def test_wrong_requests_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prune(convolutions(), **options)


def test_unreachable_budget_is_told_before_anything_changes() -> None:
    with pytest.raises(
        BudgetError, match=r"macs=0\.01 can't be met: with 2 prunable groups .*macs=0\.0904 "
    ):
        prune(convolutions(), macs=0.01)
    with pytest.raises(BudgetError, match="would change nothing: the widest group has 8 units"):
        prune(convolutions(), amount=0.5, scope="local", min_units=8)


def test_network_without_anything_to_prune_says_why() -> None:
    with pytest.raises(BudgetError, match=r"nothing can be pruned in this network \(a: LayerNorm"):
        prune(INEXACT, amount=0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_told(bad: float) -> None:
    model = convolutions()
    tensor = model.graph.initializer[0]
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0, 0, 0] = bad
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with pytest.raises(WeightError, match=r"first\.weight"):
        prune(model, macs=0.5)


def test_infinite_constants_that_are_not_scored_are_fine() -> None:
    model = network(
        """g (float[N, 6] x) => (float[N, 3] y) {
            a = Gemm (x, w1)
            y0 = Gemm (a, w2)
            y = Add (y0, mask)
        }""",
        {"w1": (6, 8), "w2": (8, 3)},
        {"mask": np.float32([0, -np.inf, 0])},
    )
    small = prune(model, amount=0.5)
    assert len(gone(small, "w1", 1)) == 4
