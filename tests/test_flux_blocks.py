"""Blocks taken out of a Flux model: the same plan, the same network as in NumPy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from flux_support import needs_julia
from models import zoo

import onnxjl
from onnxjl.session import open_session, run

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

DIGITS = Path(__file__).parent / "models" / "mnist-resnet14.onnx"


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(DIGITS.with_name("mnist-resnet14.calib.npz")) as file:
        x = file["image"][:count]
    return x, np.arange(len(x)) % 10


def test_removal_by_name_is_that_of_numpy(tmp_path: Path) -> None:
    x, target = images(16)
    names = ["layer1.1", "layer2.0", "layer3.1"]
    small = onnxjl.remove_blocks(onnxjl.to_flux(DIGITS), names)
    graph = onnxjl.remove_blocks(DIGITS, names)
    assert isinstance(small, onnxjl.FluxModel)
    assert isinstance(graph, onnxjl.Graph)
    assert small.plan == graph.plan
    assert small.plan.engine == "flux"
    assert onnxjl.compare(small.to_graph(), graph, inputs={"image": x}).difference <= 1e-6
    assert [*small.to_graph().model.graph.initializers] == [*graph.model.graph.initializers]
    with pytest.raises(KeyError):
        small["layer1.1.conv1"]
    _, gradients = small.gradient("cross-entropy", x, target)
    assert not any(name.startswith("layer1.1") for name in gradients)
    assert "layer1.0.conv1.weight" in gradients
    saved = small.save(tmp_path / "small.onnx")
    assert saved.check.status == "equal"


def test_budget_then_channels_then_training() -> None:
    x, target = images(64)
    small = onnxjl.prune(
        onnxjl.to_flux(DIGITS),
        macs=0.7,
        granularity="block",
        criterion="block-influence",
        data=x,
    )
    graph = onnxjl.prune(DIGITS, macs=0.7, granularity="block", criterion="block-influence", data=x)
    assert small.plan == graph.plan
    smaller = onnxjl.prune(small, macs=0.6)
    again = onnxjl.apply(DIGITS, smaller.plan)
    assert onnxjl.compare(smaller.to_graph(), again, inputs={"image": x}).difference <= 1e-6
    before, _ = smaller.gradient("cross-entropy", x, target)
    smaller.finetune((x, target), epochs=3, lr=1e-3)
    after, _ = smaller.gradient("cross-entropy", x, target)
    assert after < before


def test_attention_and_feed_forward_branches() -> None:
    model = zoo.load("vit_tiny.dynamo")
    feeds = zoo.inputs(model)
    names = ["encoder.layers.encoder_layer_0/attention", "encoder.layers.encoder_layer_1/mlp"]
    small = onnxjl.remove_blocks(onnxjl.to_flux(model), names)
    graph = onnxjl.remove_blocks(model, names)
    assert isinstance(small, onnxjl.FluxModel)
    assert onnxjl.compare(small.to_graph(), graph, inputs=feeds).difference <= 1e-5
    (expected,) = run(open_session(graph), feeds).values()
    np.testing.assert_allclose(small(feeds), expected, atol=1e-4 * np.abs(expected).max())


OWN = """
largest(block) = maximum(weight -> maximum(abs, weight), values(block.weights))

function saliency(block)
    return sum(keys(block.weights)) do name
        abs(sum(block.weights[name] .* block.gradients[name]))
    end
end

unmeasured(block) = block.gradients === nothing ? block.parameters : error("there are gradients")
broken(block) = error("no idea what $(block.name) is for")
text(block) = "a lot"
several(block) = [1.0, 2.0]
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.jl"
    path.write_text(OWN)
    return path


def largest(block: onnxjl.structure.Block, weights: Mapping[str, np.ndarray]) -> float:
    return float(max(np.abs(w).max() for w in weights.values() if w.dtype == np.float32))


def test_a_julia_function_scores_blocks_as_pythons_does(own: Path) -> None:
    model = onnxjl.to_flux(DIGITS)
    theirs = onnxjl.flux.criterion_from(own, "largest")
    small = onnxjl.prune(model, macs=0.6, granularity="block", criterion=theirs)
    graph = onnxjl.prune(DIGITS, macs=0.6, granularity="block", criterion=largest)
    assert small.plan.request["blocks"] == graph.plan.request["blocks"] != []
    assert small.plan.request["criterion"] == "largest"
    assert small.plan.kept == graph.plan.kept


def test_a_julia_function_gets_gradients_where_there_are_data(own: Path) -> None:
    x, target = images(32)
    model = onnxjl.to_flux(DIGITS)
    _, gradient = model.gradient("cross-entropy", x, target)

    def saliency(block: onnxjl.structure.Block, weights: Mapping[str, np.ndarray]) -> float:
        return sum(abs(float((w * gradient[k]).sum())) for k, w in weights.items() if k in gradient)

    theirs = onnxjl.flux.criterion_from(own, "saliency")
    small = onnxjl.prune(model, amount=0.5, granularity="block", criterion=theirs, data=(x, target))
    graph = onnxjl.prune(DIGITS, amount=0.5, granularity="block", criterion=saliency)
    assert small.plan.request["blocks"] == graph.plan.request["blocks"] != []
    without = onnxjl.flux.criterion_from(own, "unmeasured")
    small = onnxjl.prune(model, amount=0.5, granularity="block", criterion=without)
    fewest = sorted(onnxjl.blocks(DIGITS), key=lambda block: block.params)[:3]
    assert sorted(small.plan.request["blocks"]) == sorted(block.name for block in fewest)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "no idea what layer1.0 is for"),
        ("text", 'ArgumentError: expected one real number, came "a lot"'),
        ("several", "ArgumentError: expected one real number, came [1.0, 2.0]"),
    ],
)
def test_a_julia_function_that_fails(own: Path, name: str, said: str) -> None:
    theirs = onnxjl.flux.criterion_from(own, name)
    message = re.escape(f"criterion '{name}', block 'layer1.0': {said}")
    with pytest.raises(onnxjl.JuliaError, match=message):
        onnxjl.prune(onnxjl.to_flux(DIGITS), macs=0.7, granularity="block", criterion=theirs)


def test_a_julia_function_needs_a_flux_model(own: Path) -> None:
    theirs = onnxjl.flux.criterion_from(own, "largest")
    with pytest.raises(onnxjl.UsageError, match=r"of a Flux model .* it may be Julia's"):
        onnxjl.prune(DIGITS, macs=0.7, granularity="block", criterion=theirs)


def test_blocks_go_in_rounds_with_training_by_a_julia_function(own: Path) -> None:
    x, target = images(64)
    found = onnxjl.Experiment(
        model=DIGITS,
        amount=0.5,
        criterion=onnxjl.flux.criterion_from(own, "saliency"),
        pruning={"granularity": "block"},
        schedule="linear",
        rounds=2,
        data=(x, target),
        finetune={"epochs": 1, "lr": 1e-3, "batch_size": 32},
        engine="flux",
    ).run()
    gone = found.plan.request["blocks"]
    assert len(gone) == 3
    assert len(onnxjl.blocks(found.model)) == 3
    model = onnxjl.to_flux(DIGITS)
    theirs = onnxjl.flux.criterion_from(own, "saliency")
    options = {"granularity": "block", "criterion": theirs, "data": (x, target)}
    first = onnxjl.prune(model, amount=0.25, **options)
    assert gone[: len(first.plan.request["blocks"])] == first.plan.request["blocks"]
    first.finetune((x, target), epochs=1, lr=1e-3, batch_size=32, seed=0)
    second = onnxjl.prune(first, amount=0.25, **options)
    assert gone[2:] == second.plan.request["blocks"]
