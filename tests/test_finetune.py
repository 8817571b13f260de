"""Fine-tuning: steps that are what they should be, and accuracy that comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flux_support import name_julia, needs_julia

import onnxjl

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

TRAINED = Path(__file__).parent / "models" / "mnist-resnet14.onnx"


@pytest.fixture(scope="module", autouse=True)
def _julia():
    name_julia()


@pytest.fixture(scope="module")
def samples():
    with np.load(TRAINED.with_suffix(".test.npz")) as file:
        return dict(file)


def accuracy(model, samples):
    return float((model(samples["image"]).argmax(axis=1) == samples["target"]).mean())


def test_a_step_of_gradient_descent_follows_the_gradient(samples):
    few = {name: array[:16] for name, array in samples.items()}
    model = onnxjl.to_flux(TRAINED)
    before = model.to_graph()
    _, gradient = model.gradient("cross-entropy", few["image"], few["target"])
    history = model.finetune(
        few, epochs=1, optimiser="sgd", lr=0.1, batchnorm="frozen", freeze="layer2.*"
    )
    after = model.to_graph()
    assert len(history.epochs) == 1
    frozen = 0
    for name, g in gradient.items():
        moved = after.weight(name) - before.weight(name)
        if name.startswith("layer2."):
            assert not moved.any()
            frozen += 1
        else:
            np.testing.assert_allclose(moved, -0.1 * g, atol=1e-6)
    assert frozen


@pytest.mark.slow
def test_three_epochs_bring_the_accuracy_of_half_a_network_back(samples):
    half = len(samples["image"]) // 2
    train = {name: array[:half] for name, array in samples.items()}
    test = {name: array[half:] for name, array in samples.items()}
    original = onnxjl.to_flux(TRAINED)
    small = onnxjl.prune(original, macs=0.5)
    pruned = accuracy(small, test)
    history = small.finetune(train, epochs=3)
    assert len(history.epochs) == 3
    assert accuracy(small, test) > max(pruned, accuracy(original, test) - 0.01)
