"""Sparse Flux models: masks come along, training keeps them, files have their zeros."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from flux_support import needs_julia
from onnx import numpy_helper
from small_networks import convolutions

import onnxjl
from onnxjl import cli
from onnxjl.errors import UsageError
from onnxjl.flux import julia

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

MODEL = Path(__file__).parent / "models" / "mnist-resnet14.onnx"


def images(count=24):
    """Inputs and labels of `convolutions`."""
    random = np.random.default_rng(0)
    x = random.standard_normal((count, 3, 6, 6)).astype(np.float32)
    return x, random.integers(0, 5, count)


def weights_of(model):
    """Every trainable weight of a Flux model or a graph, by name."""
    graph = model.to_graph() if isinstance(model, onnxjl.FluxModel) else model
    return {name: graph.weight(name) for name in graph.model.graph.initializers}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def sparse():
    return onnxjl.sparsify(convolutions(batch="n"), amount=0.5)


def test_masks_come_along_and_back(sparse, tmp_path):
    flux = onnxjl.to_flux(sparse)
    assert same(flux.masks, sparse.masks)
    assert same(flux.to_graph().masks, sparse.masks)
    assert flux.sparsity == sparse.sparsity
    saved = flux.save(tmp_path / "s.onnx")
    assert saved.check.text.startswith("equals Julia's own outputs")
    again = onnxjl.to_flux(tmp_path / "s.onnx")
    assert same(again.masks, sparse.masks)
    assert onnxjl.to_flux(convolutions()).masks == {}


@pytest.mark.parametrize("optimiser", ["adamw", "momentum", "sgd"])
def test_training_keeps_masked_weights_at_zero(optimiser, sparse, tmp_path):
    flux = onnxjl.to_flux(sparse)
    before = weights_of(flux)
    flux.finetune(images(), epochs=2, batch_size=8, optimiser=optimiser, lr=0.01)
    after = weights_of(flux)
    for name, mask in sparse.masks.items():
        assert (after[name][~mask] == 0).all()
        assert (after[name] != before[name]).any()
    flux.save(tmp_path / "s.onnx")
    written = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "s.onnx").graph.initializer
    }
    for name, mask in sparse.masks.items():
        assert (written[name][~mask] == 0).all()
    assert same(onnxjl.load(tmp_path / "s.onnx").masks, flux.masks)


def test_training_equals_that_of_masked_weights_by_hand(sparse):
    # Plain gradient descent: every step is w − lr·g, and zero where the mask is.
    flux = onnxjl.to_flux(sparse)
    x, y = images(8)
    by_hand = onnxjl.to_flux(sparse)
    _, gradient = by_hand.gradient("cross-entropy", x, y)
    before = weights_of(flux)
    options = {"batchnorm": "frozen", "shuffle": False, "optimiser": "sgd", "lr": 0.1}
    flux.finetune((x, y), epochs=1, batch_size=8, **options)
    after = weights_of(flux)
    for name, mask in sparse.masks.items():
        expected = np.where(mask, before[name] - 0.1 * gradient[name], 0)
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)
        # Else nothing would show that the mask is needed.
        assert (gradient[name][~mask] != 0).any()


@pytest.mark.parametrize("options", [{"amount": 0.4}, {"pattern": "2:4"}])
def test_both_engines_set_the_same_weights_to_zero(options):
    graph = onnxjl.sparsify(convolutions(), **options)
    flux = onnxjl.to_flux(convolutions())
    before = weights_of(flux)
    found = onnxjl.sparsify(flux, **options)
    assert isinstance(found, onnxjl.FluxModel)
    assert same(found.masks, graph.masks)
    assert same(weights_of(found), weights_of(graph))
    assert same(weights_of(flux), before)
    assert flux.masks == {}


def test_sparsegpt_changes_the_weights_of_layers():
    data = np.random.default_rng(0).standard_normal((16, 3, 6, 6)).astype(np.float32)
    options = {"amount": 0.5, "criterion": "sparsegpt", "data": data}
    graph = onnxjl.sparsify(convolutions(batch="n"), **options)
    flux = onnxjl.sparsify(onnxjl.to_flux(convolutions(batch="n")), **options)
    for name, weight in weights_of(graph).items():
        np.testing.assert_allclose(weights_of(flux)[name], weight, rtol=1e-6, err_msg=name)


def test_masks_are_cut_when_a_network_is_pruned(sparse):
    flux = onnxjl.keep(onnxjl.to_flux(sparse), {"first": [0, 2, 5]})
    graph = onnxjl.keep(sparse, {"first": [0, 2, 5]})
    assert same(flux.masks, graph.masks)
    flux.finetune(images(), epochs=1, batch_size=8, lr=0.01)
    assert same(flux.to_graph().masks, graph.masks)


def test_masks_of_ones_own():
    keep = np.random.default_rng(0).random((4, 8, 3, 3)) < 0.5
    flux = onnxjl.mask(onnxjl.to_flux(convolutions()), {"second.weight": keep})
    assert np.array_equal(flux.masks["second.weight"], keep)
    assert np.array_equal(weights_of(flux)["second.weight"] != 0, keep)


def test_masks_from_julia_are_written(tmp_path):
    from juliacall import Main

    flux = onnxjl.to_flux(convolutions())
    change = Main.seval('(m, mask!) -> mask!(m, "head.weight" => [i != j for i in 1:4, j in 1:5])')
    change(flux.julia, julia().mask_b)
    flux.save(tmp_path / "s.onnx")
    masks = onnxjl.load(tmp_path / "s.onnx").masks
    assert masks.keys() == {"head.weight"}
    assert np.array_equal(~masks["head.weight"], np.eye(5, 4, dtype=bool))


# Criteria with gradients


def expected(scores, amount=0.5):
    """Masks of a global amount, of scores by name."""
    flat = np.concatenate([s.ravel() for s in scores.values()])
    edge = np.sort(flat)[round(amount * len(flat)) - 1]
    return {name: s > edge for name, s in scores.items()}


def test_snip_is_the_product_with_the_mean_gradient():
    flux = onnxjl.to_flux(convolutions(batch="n"))
    x, y = images()
    found = onnxjl.sparsify(flux, amount=0.5, criterion="snip", data=(x, y)).masks
    _, gradient = flux.gradient("cross-entropy", x, y)
    weights = weights_of(flux)
    scores = {name: np.abs(gradient[name] * weights[name]).astype(np.float64) for name in found}
    agree = [(found[n] == m).mean() for n, m in expected(scores).items()]
    # One at the edge may be another by rounding.
    assert min(agree) > 0.98


def test_taylor_is_the_mean_square_over_batches():
    flux = onnxjl.to_flux(convolutions(batch="n"))
    x, y = images(100)
    found = onnxjl.sparsify(flux, amount=0.5, criterion="taylor", data=(x, y)).masks
    weights = weights_of(flux)
    parts = [flux.gradient("cross-entropy", x[s], y[s])[1] for s in (slice(64), slice(64, 100))]
    scores = {
        name: np.mean([(g[name] * weights[name].astype(np.float64)) ** 2 for g in parts], axis=0)
        for name in found
    }
    assert all(np.array_equal(found[name], m) for name, m in expected(scores).items())


def test_movement_follows_weights_through_training():
    flux = onnxjl.to_flux(convolutions(batch="n"))
    x, y = images(128)
    before = weights_of(flux)
    found = onnxjl.sparsify(flux, amount=0.5, criterion="movement", data=(x, y))
    # Two steps: g·w before each, of a network that took the first by Adam (its first step is lr in
    # the direction of the gradient's sign).
    _, first = flux.gradient("cross-entropy", x[:64], y[:64])
    moved = {name: -np.sign(g) for name, g in first.items()}
    later = flux.moved(moved, 1e-3)
    _, second = later.gradient("cross-entropy", x[64:].astype(np.float64), y[64:])
    scores = {
        name: -(
            first[name].astype(np.float64) * before[name]
            + second[name] * (before[name] - 1e-3 * np.sign(first[name]))
        )
        for name in found.masks
    }
    for name, mask in expected(scores).items():
        assert (found.masks[name] == mask).mean() > 0.98, name
    assert same(weights_of(flux), before)
    kept = weights_of(found)
    assert all(np.array_equal(kept[n][m], before[n][m]) for n, m in found.masks.items())


@pytest.mark.parametrize("criterion", ["snip", "taylor", "movement"])
def test_gradients_need_labelled_data(criterion):
    flux = onnxjl.to_flux(convolutions(batch="n"))
    with pytest.raises(UsageError, match="label"):
        onnxjl.sparsify(flux, amount=0.5, criterion=criterion)


# The command line


def test_sparsify_trains_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with np.load(MODEL.with_suffix(".calib.npz")) as file:
        np.savez("few.npz", **{name: file[name][:64] for name in file.files})
    arguments = [
        *("sparsify", MODEL, "-o", "s.onnx", "--pattern", "2:4", "--engine", "flux", "--json"),
        *("--criterion", "taylor", "--data", "few.npz", "--finetune", "1", "--no-measure"),
    ]
    assert cli.main([str(argument) for argument in arguments]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["finetuning"]["epochs"]) == 1
    assert "Julia's own outputs" in facts["check"]["text"]
    for entry in facts["layers"]:
        assert entry["zeros"] == entry["size"] // 2
    weight = onnxjl.load("s.onnx").weight("fc.weight")
    assert ((weight.reshape(10, 16, 4) != 0).sum(axis=-1) == 2).all()
