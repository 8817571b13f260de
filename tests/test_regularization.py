"""Penalties before pruning: their step against NumPy by hand, and units that become small."""

from __future__ import annotations

import numpy as np
import pytest
from flux_support import name_julia, needs_julia
from small_networks import convolutions
from text_networks import network

import onnxjl
from onnxjl import regularization
from onnxjl.errors import UsageError
from onnxjl.evaluate import output_error
from onnxjl.regularization import Regularization

in_julia = [needs_julia, pytest.mark.xdist_group("julia")]
RATE = 0.05


def images(count=24, seed=1):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 3, 6, 6)).astype(np.float32)
    return x, generator.integers(0, 5, count)


def weights(model) -> dict[str, np.ndarray]:
    graph = model.to_graph()
    return {n: graph.weight(n).astype(np.float64) for n in graph.model.graph.initializers}


def stepped(penalty, batches=1, **options) -> tuple[dict, dict, dict]:
    """Weights before and after as many steps of SGD, and the gradients at those before."""
    name_julia()
    model = onnxjl.to_flux(convolutions(batch="n"))
    x, y = images()
    before = weights(model)
    _, gradient = model.gradient("cross-entropy", x, y)
    options = {"optimiser": "sgd", "lr": RATE, "batchnorm": "frozen", "epochs": 1, **options}
    model.finetune((x, y), regularization=penalty, batch_size=24 // batches, **options)
    return before, weights(model), gradient


def in_groups() -> list[list[tuple[str, int]]]:
    """Trainable members, (tensor, axis), of the two groups of `convolutions`."""
    first = [("first.weight", 0), ("first.bias", 0), ("norm.weight", 0), ("norm.bias", 0)]
    return [
        [*first, ("second.weight", 1)],
        [("second.weight", 0), ("second.bias", 0), ("head.weight", 1)],
    ]


def of_unit(weights, members, unit):
    return [weights[name].take(unit, axis=axis) for name, axis in members]


def norm(weights, members, unit) -> float:
    return float(np.sqrt(sum((w**2).sum() for w in of_unit(weights, members, unit))))


def along(array, axis, numbers):
    """Numbers for each index of an axis, to broadcast."""
    return np.reshape(numbers, [-1 if i == axis else 1 for i in range(array.ndim)])


def close(found, expected):
    for name, array in expected.items():
        assert np.abs(found[name] - array).max() <= 2e-6 * max(1, np.abs(array).max()), name


class TestInJulia:
    """What a step does."""

    pytestmark = in_julia

    def test_group_lasso_is_the_gradient_of_the_sum_of_norms(self):
        strength = 0.3
        before, after, gradient = stepped(regularization.group_lasso(strength))
        expected = {n: w - RATE * gradient.get(n, 0) for n, w in before.items()}
        for members in in_groups():
            units = len(before[members[1][0]])
            norms = np.array([norm(before, members, unit) for unit in range(units)])
            for name, axis in members:
                w = before[name]
                expected[name] = expected[name] - RATE * strength * w / along(w, axis, norms)
        close(after, expected)

    def test_bn_scale_is_the_gradient_of_the_absolute_scales(self):
        strength = 0.3
        before, after, gradient = stepped(regularization.bn_scale(strength))
        expected = {n: w - RATE * gradient.get(n, 0) for n, w in before.items()}
        expected["norm.weight"] -= RATE * strength * np.sign(before["norm.weight"])
        close(after, expected)

    def test_growing_is_the_gradient_of_the_squares_of_the_chosen_units(self):
        penalty = regularization.growing({"first": [1, 6], "second": [2]}, strength=0.3)
        before, after, gradient = stepped(penalty)
        factors = {n: np.zeros_like(w) for n, w in before.items()}
        for members, units in zip(in_groups(), ([1, 6], [2]), strict=True):
            for name, axis in members:
                w = before[name]
                factors[name] += 0.3 * along(w, axis, np.isin(np.arange(w.shape[axis]), units))
        close(
            after, {n: w - RATE * (gradient.get(n, 0) + factors[n] * w) for n, w in before.items()}
        )

    def test_growing_grows_with_the_steps_of_all_epochs(self, monkeypatch):
        seen = []
        monkeypatch.setattr(Regularization, "factor", lambda self, step: seen.append(step) or 1e-6)
        stepped(regularization.growing({"first": [0]}), batches=3, epochs=2)
        assert seen == [0, 1, 2, 3, 4, 5]

    def test_a_step_ends_at_zero_and_what_is_frozen_stays(self):
        before, after, _ = stepped(
            regularization.group_lasso(1e6), lr=1e-9, weight_decay=0, freeze="head"
        )
        close(
            {n: after[n] for n in ("head.weight", "head.bias")},
            {n: before[n] for n in ("head.weight", "head.bias")},
        )
        before, after, _ = stepped(regularization.bn_scale(1e9), lr=1e-8, freeze=["head"])
        assert np.abs(after["norm.weight"]).max() < 1e-6

    def test_a_resumed_training_has_the_same_penalty(self, tmp_path):
        name_julia()
        penalty = {"kind": "growing", "units": {"first": [1]}, "every": 2, "strength": 0.1}
        options = {"batch_size": 6, "lr": RATE, "optimiser": "sgd"}
        whole, part = (onnxjl.to_flux(convolutions(batch="n")) for _ in range(2))
        whole.finetune(images(), epochs=2, regularization=penalty, **options)
        path = tmp_path / "training.npz"
        for epochs in (1, 2):
            part.finetune(
                images(),
                epochs=epochs,
                regularization=penalty,
                checkpoint=path,
                resume=True,
                **options,
            )
        for name, array in weights(whole).items():
            assert np.array_equal(weights(part)[name], array), name
        with pytest.raises(UsageError, match="has regularization="):
            part.finetune(images(), epochs=3, checkpoint=path, resume=True, **options)

    def test_less_is_lost_with_units_that_a_penalty_made_small(self):
        name_julia()
        units = {"first": [1, 4, 6], "second": [2]}
        keep = {
            "first": np.setdiff1d(np.arange(8), units["first"]),
            "second": np.setdiff1d(np.arange(4), units["second"]),
        }
        penalty = regularization.growing(units, strength=0.5, every=5, ceiling=5.0)
        lost, norms = [], []
        for given in (None, penalty):
            model = onnxjl.to_flux(convolutions(batch="n"))
            model.finetune(
                images(), epochs=10, optimiser="sgd", lr=0.02, batch_size=4, regularization=given
            )
            graph = model.to_graph()
            lost.append(output_error(graph, onnxjl.keep(graph, keep), images()))
            found = weights(model)
            norms.append(
                [
                    norm(found, members, unit)
                    for members, chosen in zip(in_groups(), units.values(), strict=True)
                    for unit in chosen
                ]
            )
        assert lost[1] < 0.5 * lost[0]
        assert (np.array(norms[1]) < 0.5 * np.array(norms[0])).all()

    @pytest.mark.parametrize(
        ("penalty", "message"),
        [
            ("growing", "'growing' needs units=, those that are to go"),
            ({"kind": "growing", "units": {"first": [8]}}, "group 'first' has 8 units: no such"),
            ({"kind": "growing", "units": {"third": [1]}}, "no group is called 'third'"),
        ],
    )
    def test_units_that_there_are_not(self, penalty, message):
        name_julia()
        model = onnxjl.to_flux(convolutions(batch="n"))
        with pytest.raises(UsageError, match=message):
            model.finetune(images(), regularization=penalty)

    def test_a_network_without_scales(self):
        name_julia()
        text = "g (float[N, 6] x) => (y) { a = Gemm (x, w) b = Relu (a) y = Gemm (b, v) }"
        model = onnxjl.to_flux(network(text, {"w": (6, 3), "v": (3, 2)}))
        with pytest.raises(UsageError, match="'bn-scale' needs normalizations with a scale"):
            model.finetune((np.ones((4, 6)), np.zeros(4, int)), regularization="bn-scale")

    def test_an_optimiser_without_a_learning_rate(self):
        name_julia()
        model = onnxjl.to_flux(convolutions(batch="n"))
        rule = onnxjl.flux.julia().Optimisers.AdaDelta()
        with pytest.raises(UsageError, match="needs an optimiser with a learning rate"):
            model.finetune(images(), optimiser=rule, regularization="group-lasso")


def test_the_factor_grows_by_steps_to_its_ceiling():
    penalty = regularization.growing({"a": [0]}, strength=0.25, every=3, ceiling=1.0)
    # Wang et al. 2021, algorithm 1: more by δ in every K-th iteration, the first included.
    assert [penalty.factor(step) for step in (0, 2, 3, 6, 9, 12)] == [0.25, 0.25, 0.5, 0.75, 1, 1]
    assert regularization.group_lasso(0.1).factor(1000) == 0.1


def test_regularizations_are_found_by_name_and_by_parameters():
    assert regularization.get("bn-scale") == regularization.bn_scale()
    found = regularization.get({"kind": "group-lasso", "strength": 0.5})
    assert found == regularization.group_lasso(0.5)
    assert regularization.get(found) is found


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regularization.get("lasso"), "no regularization 'lasso'; did you mean 'group-la"),
        (lambda: regularization.get(3), r"a regularization is a name \(bn-scale, .* not 3"),
        (lambda: regularization.get({"kind": "growing", "step": 1}), "no parameter .* 'step'"),
        (lambda: regularization.bn_scale(-1.0), r"strength=-1.0: a number above 0"),
        (lambda: regularization.growing({}, ceiling=0.0), r"ceiling=0.0: a number above 0"),
        (lambda: regularization.growing({}, every=0), "every=0: a number of steps"),
        (
            lambda: Regularization("bn-scale", units={"a": [1]}),
            "units= are for regularization 'growing', not 'bn-scale'",
        ),
    ],
)
def test_what_is_no_regularization(make, message):
    with pytest.raises(UsageError, match=message):
        make()
