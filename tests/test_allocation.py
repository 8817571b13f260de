"""Allocation: how what goes is spread over the groups, against the papers' formulas by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from four_groups import COSTS, MODEL, SIZES, macs, scores, widths
from hypothesis import given
from hypothesis import strategies as st
from test_isomorphism import BLOCKS, SHAPES
from text_networks import network

from onnxjl import BudgetError, evaluate, normalize, prune
from onnxjl.allocation import kernel_densities
from onnxjl.budget import Request, select
from onnxjl.structure import Structure, analyze

MNIST = Path(__file__).parent / "models" / "mnist-resnet14"
WHOLE = macs(np.array(SIZES))


@pytest.fixture(scope="module")
def structure() -> Structure:
    return analyze(normalize(MODEL))


def curves(seed: int) -> dict[int, np.ndarray]:
    """Return errors that fall with the units kept, and are 0 with all."""
    random = np.random.default_rng(seed)
    return {
        n: np.append(np.cumsum(random.integers(0, 5, size) / 10.0)[::-1], 0.0)
        for n, size in enumerate(SIZES)
    }


def counts(structure: Structure, request: Request, seed: int = 0) -> np.ndarray:
    keep = select(structure, range(4), scores(seed), request, curves(seed))
    return np.array([mask.sum() for mask in keep])


@given(
    budget=st.sampled_from(sorted(COSTS)),
    fraction=st.floats(0.1, 0.98),
    scope=st.sampled_from(["isomorphic", "erk", "sensitivity"]),
    round_to=st.sampled_from([1, 1, 2, 3, 4]),
    min_units=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_budget_is_met_and_nothing_more_would_fit(
    structure: Structure,
    budget: str,
    fraction: float,
    scope: str,
    round_to: int,
    min_units: int,
    seed: int,
) -> None:
    cost = COSTS[budget]
    allowed = [widths(size, round_to, min_units) for size in SIZES]
    limit = (1 - fraction if budget == "amount" else fraction) * cost(np.array(SIZES)) * (1 + 1e-8)
    request = Request(budget, fraction, scope, round_to=round_to, min_units=min_units)
    if cost(np.array([a[0] for a in allowed])) > limit:
        with pytest.raises(BudgetError, match=f"{budget}={fraction} can't be met"):
            counts(structure, request, seed)
        return
    kept = counts(structure, request, seed)
    assert cost(kept) <= limit
    for group, options in enumerate(allowed):
        assert kept[group] in options
        for wider in [w for w in options if w > kept[group]][:1]:
            more = kept.copy()
            more[group] = wider
            assert cost(more) > limit


def first_that_fits(at: Callable[[float], np.ndarray], fraction: float) -> np.ndarray:
    """Return what a share in (0, 1] keeps: the largest on a fine grid that is within the MACs."""
    found = (np.maximum(at(share), 1) for share in np.linspace(1, 0, 20001))
    return next(kept for kept in found if macs(kept) <= fraction * WHOLE)


def filled(
    kept: np.ndarray, fraction: float, turn: Callable[[np.ndarray, int], object]
) -> np.ndarray:
    """Return counts with single units added in turn, while one fits."""
    kept = kept.copy()
    while True:
        fits = [
            g
            for g in range(4)
            if kept[g] < SIZES[g] and macs(kept + np.eye(4, dtype=int)[g]) <= fraction * WHOLE
        ]
        if not fits:
            return kept
        kept[min(fits, key=lambda g: turn(kept, g))] += 1


# Topology.


@pytest.mark.parametrize("fraction", [0.2, 0.4, 0.7])
def test_isomorphic_groups_are_ranked_together(structure: Structure, fraction: float) -> None:
    given_scores = scores(3)
    classes = [[0], [1, 2], [3]]

    def at(share: float) -> np.ndarray:
        kept = np.zeros(4, int)
        for groups in classes:
            ranked = sorted(
                ((-s, g) for g in groups for s in given_scores[g].tolist()), key=lambda pair: pair
            )
            for _, g in ranked[: int(len(ranked) * share + 1e-9)]:
                kept[g] += 1
        return kept

    def turn(kept: np.ndarray, g: int) -> tuple[float, float]:
        # The class that lost most, and in it the most important unit.
        together = next(groups for groups in classes if g in groups)
        share = kept[together].sum() / np.array(SIZES)[together].sum()
        return share, -np.sort(given_scores[g])[::-1][kept[g]]

    kept = counts(structure, Request("macs", fraction, "isomorphic"), 3)
    expected = filled(first_that_fits(at, fraction), fraction, turn)
    assert kept.tolist() == expected.tolist()


# Erdős–Rényi kernel.

DENSITIES = [
    (12 + 3 + 1 + 1) / (12 * 3),
    (8 + 12 + 3 + 3) / (8 * 12 * 9),
    (5 + 12 + 3 + 3) / (5 * 12 * 9),
    (13 + 6) / (13 * 6),
]


def test_densities_are_those_of_the_paper(structure: Structure) -> None:
    np.testing.assert_allclose(kernel_densities(structure), DENSITIES, rtol=1e-12)


def test_densities_of_coupled_weights_are_taken_together() -> None:
    residual = kernel_densities(analyze(normalize(network(BLOCKS, SHAPES))))[0]
    ends = (6 + 4 + 2) + (6 + 8 + 2) + (6 + 12 + 2)
    np.testing.assert_allclose(residual, ends / (6 * 4 + 6 * 8 + 6 * 12), rtol=1e-12)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_one_epsilon_is_solved_for(structure: Structure, fraction: float) -> None:
    largest = 1 / min(DENSITIES)

    def at(share: float) -> np.ndarray:
        density = np.minimum(1, share * largest * np.array(DENSITIES))
        return np.floor(density * SIZES + 1e-9).astype(int)

    kept = counts(structure, Request("macs", fraction, "erk"))
    expected = filled(
        first_that_fits(at, fraction),
        fraction,
        lambda kept, g: (kept[g] + 1) / (SIZES[g] * DENSITIES[g]),
    )
    assert kept.tolist() == expected.tolist()


# Sensitivity.


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_errors_are_brought_to_one_level(structure: Structure, fraction: float, seed: int) -> None:
    errors = curves(seed)
    levels = sorted({e for curve in errors.values() for e in curve.tolist()})
    every = [
        np.array([max(1, min(k for k, e in enumerate(c) if e <= level)) for c in errors.values()])
        for level in levels
    ]
    fitting = next(kept for kept in every if macs(kept) <= fraction * WHOLE)
    kept = counts(structure, Request("macs", fraction, "sensitivity"), seed)
    expected = filled(fitting, fraction, lambda kept, g: -errors[g][kept[g]])
    assert kept.tolist() == expected.tolist()


def test_what_was_measured_is_in_the_plan_and_used() -> None:
    small = prune(
        MNIST.with_suffix(".onnx"),
        macs=0.4,
        scope="sensitivity",
        data=MNIST.with_suffix(".calib.npz"),
    )
    assert small.plan is not None
    told = small.plan.request["sensitivity"]
    assert isinstance(told, Mapping)
    assert told["layer1.0.conv1"]["kept"] == [1, 4, 8, 12, 14, 16]
    errors = {
        name: np.interp(8 / 16, np.array(t["kept"]) / t["kept"][-1], t["error"])
        for name, t in told.items()
    }
    # The layer that hurts least keeps a smaller share than the one that hurts most.
    kept = {name: small.weight(f"{name}.weight").shape[0] / told[name]["kept"][-1] for name in told}
    assert kept[min(errors, key=errors.get)] < 0.5 < kept[max(errors, key=errors.get)]


@pytest.mark.parametrize("scope", ["isomorphic", "erk", "sensitivity", "optimal"])
def test_networks_pruned_by_each_scope_compute_what_the_masked_ones_do(scope: str) -> None:
    source = normalize(MNIST.with_suffix(".onnx"))
    small = prune(source, macs=0.6, scope=scope, min_units=4)
    assert small.macs <= 0.6 * source.macs
    assert small.plan is not None
    assert small.plan.request["scope"] == scope
    assert 0 < evaluate.output_error(source, small, MNIST.with_suffix(".calib.npz")) < np.inf
