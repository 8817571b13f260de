"""The latency budget: how the share of MACs is found, and what the plan and the report say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import onnxjl
from onnxjl import latency_budget, widths
from onnxjl.errors import BudgetError, UsageError
from onnxjl.latency import Latency
from onnxjl.latency_budget import search
from onnxjl.structure.groups import analyze

NETWORK = Path(__file__).parent / "models" / "mnist-resnet14.onnx"


def racer(ratio):
    """A race whose candidate takes `ratio(share)` of 10 ms, and the shares that were tried."""
    tried = []

    def race(share):
        tried.append(share)
        return 10.0, 10.0 * ratio(share)

    return race, tried


@pytest.mark.parametrize(
    "ratio",
    [
        lambda share: share,
        lambda share: 0.3 + 0.7 * share,
        lambda share: min(1.0, 0.05 + 2 * share),
        lambda share: share**2,
        lambda share: np.ceil(10 * share) / 10,
    ],
    ids=["linear", "overhead", "steep", "square", "stairs"],
)
@pytest.mark.parametrize("fraction", [0.4, 0.5, 0.8])
def test_the_slowest_candidate_within_the_budget_is_found(ratio, fraction):
    race, tried = racer(ratio)
    trial = search(race, fraction, 0.01)
    assert trial.ratio == pytest.approx(ratio(trial.macs))
    assert trial.ratio <= fraction
    # Nothing much larger would do: 3 % of the latency, or 2 % of the MACs.
    assert ratio(trial.macs + 0.02) > fraction or trial.ratio >= 0.97 * fraction
    assert len(tried) <= 10


def test_noise_does_not_hide_a_candidate_that_was_fast():
    noise = iter(np.random.default_rng(0).normal(1, 0.03, 100))
    race, _ = racer(lambda share: share * next(noise))
    assert 0.4 < search(race, 0.5, 0.01).ratio <= 0.5


def test_a_network_that_stays_too_slow_is_told():
    race, tried = racer(lambda share: 0.6 + 0.4 * share)
    expected = r"latency=0.5 can't be met: with 20.0% of its MACs.*6.8 ms of 10 \(0.68\)"
    with pytest.raises(BudgetError, match=expected):
        search(race, 0.5, 0.2)
    assert min(tried) == pytest.approx(0.2)


def test_a_network_with_little_to_go_is_told():
    race, tried = racer(lambda share: share)
    with pytest.raises(BudgetError, match=r"latency=0.5 can't be met: at least 99.5% of the MACs"):
        search(race, 0.5, 0.995)
    assert not tried


@pytest.fixture
def proportional(monkeypatch):
    """Let onnxruntime take as long as a network has MACs: a nanosecond for each."""

    def measure_pair(a, b, inputs, *, seconds):
        assert inputs
        costs = [structure.macs.total(structure.sizes) for structure in map(analyze, (a, b))]
        return tuple(Latency(cost / 1e6, cost / 1e6, 5) for cost in costs)

    monkeypatch.setattr(latency_budget, "measure_pair", measure_pair)
    monkeypatch.setattr(widths, "_steps", lambda: {"convolution": 8, "product": 1})


def test_prune_keeps_a_share_of_the_latency(proportional):
    source = onnxjl.load(NETWORK)
    small = onnxjl.prune(source, latency=0.5)
    before, after = (
        structure.macs.total(structure.sizes) for structure in map(analyze, (source, small))
    )
    assert 0.45 * before < after <= 0.5 * before
    request = small.plan.request
    assert (request["latency"], request["round_to"], request["round_to_asked"]) == (0.5, 8, "auto")
    assert request["predicted"]["before_ms"] == pytest.approx(before / 1e6)
    assert request["predicted"]["after_ms"] == pytest.approx(after / 1e6)
    assert "onnxruntime" in request["predicted"]["runtime"]
    # A plan is applied as it is: nothing is measured.
    again = onnxjl.apply(source, onnxjl.Plan.from_json(small.plan.to_json()))
    assert np.array_equal(again.weight("conv1.weight"), small.weight("conv1.weight"))


def test_widths_are_multiples_of_what_was_asked_for(proportional):
    small = onnxjl.prune(NETWORK, latency=0.5, round_to=4)
    assert small.plan.request["round_to"] == 4
    assert "round_to_asked" not in small.plan.request
    sizes = [group.size for group in onnxjl.groups(small)]
    assert all(size % 4 == 0 for size in sizes)
    assert sizes != [group.size for group in onnxjl.groups(NETWORK)]


def test_auto_takes_half_the_step_where_the_budget_asks_for_it(proportional):
    small = onnxjl.prune(NETWORK, macs=0.5, round_to="auto")
    assert small.plan.request["round_to"] == 8
    tiny = onnxjl.prune(NETWORK, macs=0.01, round_to="auto")
    assert tiny.plan.request["round_to"] < 8
    assert tiny.plan.request["round_to_asked"] == "auto"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency": 1.5}, "latency must be a fraction between 0 and 1"),
        ({"latency": 0.5, "macs": 0.5}, "give exactly one of amount, macs, params, bytes, latency"),
        ({"macs": 0.5, "round_to": "even"}, "round_to must be a whole number of at least 1"),
    ],
)
def test_what_is_asked_wrongly_is_told(options, message):
    with pytest.raises(UsageError, match=message):
        onnxjl.prune(NETWORK, **options)


def test_the_best_step_is_the_smallest_that_is_nearly_as_good():
    assert widths.best_step([1.33, 1.31, 1.18, 1.16, 1.01, 1.0]) == 16
    assert widths.best_step([1.1, 1.09, 1.08, 1.07, 1.0, 1.0]) == 1
    assert widths.best_step([2.0, 2.0, 2.0, 1.0, 1.1, 1.2]) == 8


def test_every_step_is_measured_on_widths_of_its_own():
    assert tuple(widths._WIDTHS) == widths.STEPS
    for step, (a, b) in widths._WIDTHS.items():
        assert all(width % step == 0 and (step == 32 or width % (2 * step)) for width in (a, b))


@pytest.mark.parametrize(
    ("build", "samples"), [(widths._convolutions, 1), (widths._products, widths._ROWS)]
)
def test_the_measured_networks_cost_what_is_said(build, samples):
    model, macs = build(24)
    structure = analyze(onnxjl.load(model))
    assert samples * structure.macs.total(structure.sizes) == macs


def test_machines_are_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(widths, "_cache", lambda: tmp_path / "new" / "widths.json")
    runs = []

    def measure_steps():
        runs.append(1)
        return {"convolution": 16, "product": 2}

    monkeypatch.setattr(widths, "measure_steps", measure_steps)
    structure = analyze(onnxjl.load(NETWORK))
    assert [widths.preferred_step(structure) for _ in range(3)] == [16, 16, 16]
    assert len(runs) == 1
    known = json.loads((tmp_path / "new" / "widths.json").read_text())
    assert known == {widths.runtime(): {"convolution": 16, "product": 2}}
    # What can't be read is measured again, and another machine's is kept.
    for text in ("not JSON", "[]", '{"other machine": {"convolution": 8, "product": 1}}'):
        (tmp_path / "new" / "widths.json").write_text(text)
        assert widths.preferred_step(structure) == 16
    assert len(runs) == 4
    assert set(json.loads((tmp_path / "new" / "widths.json").read_text())) == {
        "other machine",
        widths.runtime(),
    }


def test_where_nothing_can_be_kept_it_is_measured_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(widths, "_cache", lambda: tmp_path / "file" / "widths.json")
    monkeypatch.setattr(widths, "measure_steps", lambda: {"convolution": 4, "product": 1})
    assert widths.preferred_step(analyze(onnxjl.load(NETWORK))) == 4


@pytest.mark.slow
def test_onnxruntime_is_measured():
    steps = widths.measure_steps(seconds=0.2)
    assert set(steps) == {"convolution", "product"}
    assert set(steps.values()) <= set(widths.STEPS)
    small = onnxjl.prune(NETWORK, latency=0.7)
    predicted = small.plan.request["predicted"]
    assert 0 < predicted["after_ms"] <= 0.7 * predicted["before_ms"]
    assert small.macs < onnxjl.load(NETWORK).macs
