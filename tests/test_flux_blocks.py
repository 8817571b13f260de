"""Blocks taken out of a Flux model: the same plan, the same network as in NumPy."""

from __future__ import annotations

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


def test_criteria_of_blocks_are_no_julia_functions() -> None:
    from juliacall import Main

    model = onnxjl.to_flux(DIGITS)
    with pytest.raises(onnxjl.UsageError, match="a criterion of blocks is a name or a Python"):
        onnxjl.prune(model, macs=0.7, granularity="block", criterion=Main.seval("length"))
