"""Optimal selection: against enumeration of all choices, and against greedy selection."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from four_groups import COSTS, MODEL, SIZES, macs, params, scores, widths
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import zoo
from text_networks import network

from onnxjl import BudgetError, UsageError, criteria, normalize, optimal, prune, save
from onnxjl.budget import Request, select, select_and_tell
from onnxjl.optimal import solve
from onnxjl.report import make_report
from onnxjl.structure import Structure, analyze
from onnxjl.structure.cost import Cost, Size
from onnxjl.structure.groups import offer

MNIST = Path(__file__).parent / "models" / "mnist-resnet14.onnx"


@pytest.fixture(scope="module")
def structure() -> Structure:
    return analyze(normalize(MODEL))


@pytest.fixture
def to_the_end() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimal, "GAP", 0.0)
        yield


def best(
    given_scores: list[np.ndarray], allowed: list[list[int]], limits: Mapping[str, float]
) -> float | None:
    """Return the most importance of all choices within the limits, or None if there is none."""
    sums = [np.append(0.0, np.cumsum(np.sort(s)[::-1])) for s in given_scores]
    found = [
        sum(s[k] for s, k in zip(sums, kept, strict=True))
        for kept in itertools.product(*allowed)
        if all(COSTS[name](np.array(kept)) <= limit for name, limit in limits.items())
    ]
    return max(found, default=None)


@pytest.mark.usefixtures("to_the_end")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    budgets=st.dictionaries(
        st.sampled_from(sorted(COSTS)), st.floats(0.15, 0.9), min_size=1, max_size=4
    ),
    round_to=st.sampled_from([1, 2, 3, 4]),
    min_units=st.integers(1, 4),
    seed=st.integers(0, 99),
    levels=st.sampled_from([3, 1000]),
)
def test_no_choice_keeps_more(
    structure: Structure,
    budgets: dict[str, float],
    round_to: int,
    min_units: int,
    seed: int,
    levels: int,
) -> None:
    given_scores = scores(seed, levels)
    allowed = [widths(size, round_to, min_units) for size in SIZES]
    limits = {
        name: (1 - f if name == "amount" else f) * COSTS[name](np.array(SIZES)) * (1 + 1e-9)
        for name, f in budgets.items()
    }
    first, *others = budgets
    request = Request(
        first,
        budgets[first],
        "optimal",
        round_to=round_to,
        min_units=min_units,
        further={name: budgets[name] for name in others},
    )
    most = best(given_scores, allowed, limits)
    if most is None:
        with pytest.raises(BudgetError, match="can't be met"):
            select(structure, range(4), given_scores, request)
        return
    keep, facts = select_and_tell(structure, range(4), given_scores, request)
    kept = np.array([mask.sum() for mask in keep])
    importance = sum(float(s[mask].sum()) for s, mask in zip(given_scores, keep, strict=True))
    told = facts["importance"]
    assert importance == pytest.approx(most, rel=1e-6)
    assert told["kept"] == pytest.approx(importance)
    assert told["bound"] >= most * (1 - 1e-9)
    assert told["bound"] == pytest.approx(most, rel=1e-5)
    assert told["gap"] == pytest.approx((told["bound"] - told["kept"]) / told["bound"])
    assert told["of"] == sum(s.sum() for s in given_scores)
    # As with the other scopes: every budget is met, and no removed unit would still fit.
    for name, limit in limits.items():
        assert COSTS[name](kept) <= limit
    for group, options in enumerate(allowed):
        assert kept[group] in options
        for wider in [w for w in options if w > kept[group]][:1]:
            more = kept.copy()
            more[group] = wider
            assert any(COSTS[name](more) > limit for name, limit in limits.items())


@pytest.mark.usefixtures("to_the_end")
def test_products_of_three_sizes_and_of_one_with_itself_are_exact() -> None:
    random = np.random.default_rng(0)
    sizes = np.array([6, 5, 4])

    def size(base: int, group: int, times: int) -> Size:
        return Size(base, np.array([group]), np.array([times]))

    cost = Cost(
        [2.0, 3.0, 1.0],
        [
            [size(1, 0, 2), size(0, 1, 1), size(2, 2, 3)],
            [size(0, 0, 1), size(3, 0, 4)],
            [size(5, 1, 1), Size(7)],
        ],
        3,
    )

    def by_hand(a: int, b: int, c: int) -> int:
        return 2 * (1 + 2 * a) * b * (2 + 3 * c) + 3 * a * (3 + 4 * a) + (5 + b) * 7

    assert cost.total(sizes) == by_hand(6, 5, 4)
    worth = {
        n: np.cumsum(np.sort(random.random(size))[::-1]) for n, size in enumerate(sizes.tolist())
    }
    choices = {n: np.arange(1, size + 1) for n, size in enumerate(sizes.tolist())}
    for share in (0.2, 0.35, 0.5, 0.8):
        limit = share * by_hand(6, 5, 4)
        most = max(
            worth[0][a - 1] + worth[1][b - 1] + worth[2][c - 1]
            for a, b, c in itertools.product(*choices.values())
            if by_hand(a, b, c) <= limit
        )
        found = solve(choices, worth, sizes, [(cost, limit)])
        assert found.counts is not None
        assert by_hand(*found.counts.tolist()) <= limit
        assert sum(worth[n][found.counts[n] - 1] for n in worth) == pytest.approx(most, rel=1e-6)
        assert found.bound == pytest.approx(most, rel=1e-5)


def test_groups_of_many_widths_are_solved_within_the_bound() -> None:
    random = np.random.default_rng(1)
    sizes = np.array([700, 500])
    each = [np.append(0.0, np.cumsum(np.sort(random.random(n) ** 3)[::-1])) for n in sizes]
    one = np.ones(1, dtype=np.int64)
    unit = [Size(0, np.array([n]), one) for n in range(2)]
    costs = [Cost([3.0, 1.0], [[unit[0]], [unit[1]]], 2), Cost([1.0], [unit], 2)]
    limits = [1200.0, 90_000.0]
    a, b = np.arange(1, 701)[:, None], np.arange(1, 501)
    fits = (3 * a + b <= limits[0]) & (a * b <= limits[1])
    most = float((each[0][a] + each[1][b])[fits].max())
    found = solve(
        {n: np.arange(1, sizes[n] + 1) for n in range(2)},
        {n: each[n][1:] for n in range(2)},
        sizes,
        list(zip(costs, limits, strict=True)),
    )
    assert found.counts is not None
    first, second = found.counts.tolist()
    assert fits[first - 1, second - 1]
    kept = each[0][first] + each[1][second]
    assert most * (1 - 5e-4) <= kept <= most <= found.bound <= most * (1 + 5e-4)


@pytest.mark.parametrize(
    ("name", "min_units", "round_to"),
    [("mnist-resnet14", 1, 1), ("resnet18.ts17bn", 8, 8), ("mobilenet_v2.ts17", 8, 8)],
)
def test_optimal_selection_keeps_more_than_greedy(name: str, min_units: int, round_to: int) -> None:
    graph = normalize(MNIST if name == "mnist-resnet14" else zoo.load(name))
    structure = analyze(graph)
    offered, _ = offer(structure, allow_inexact=False, ignore=[])
    given_scores = criteria.score(graph, [structure.groups[n] for n in offered])

    def importance(scope: str) -> tuple[float, float]:
        request = Request("macs", 0.5, scope, min_units=min_units, round_to=round_to)
        keep, facts = select_and_tell(structure, offered, given_scores, request)
        kept = np.array([mask.sum() for mask in keep])
        assert structure.macs.total(kept) <= 0.5 * structure.macs.total(structure.sizes)
        total = sum(float(s[keep[n]].sum()) for n, s in zip(offered, given_scores, strict=True))
        if scope == "optimal":
            assert facts["importance"]["kept"] == pytest.approx(total)
        return total, facts.get("importance", {}).get("bound", np.inf)

    greedy, _ = importance("global")
    found, bound = importance("optimal")
    # The sums are taken in another order here: they may differ in the last digits.
    assert greedy < found <= bound * (1 + 1e-14)
    # The solver ended by itself with each of them, and single widths are all that it lost then.
    assert bound == pytest.approx(found, rel=2e-4)


def test_what_is_not_solved_in_time_is_no_worse_than_greedy(
    structure: Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        optimal, "solve", lambda *_, **__: optimal.Solution(None, sum(s.sum() for s in scores()))
    )
    request = Request("macs", 0.4, "optimal")
    keep, facts = select_and_tell(structure, range(4), scores(), request)
    greedy = select(structure, range(4), scores(), Request("macs", 0.4))
    assert [m.tolist() for m in keep] == [m.tolist() for m in greedy]
    assert facts["importance"]["bound"] == facts["importance"]["of"] > facts["importance"]["kept"]


def test_solution_that_is_over_a_budget_is_cut_to_it(
    structure: Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimal, "solve", lambda *_, **__: optimal.Solution(np.array(SIZES), 1e9))
    request = Request("macs", 0.4, "optimal")
    kept = np.array([m.sum() for m in select(structure, range(4), scores(), request)])
    assert macs(kept) <= 0.4 * macs(np.array(SIZES))


@pytest.mark.usefixtures("to_the_end")
def test_fixed_and_whole_groups_count_in_the_budgets(structure: Structure) -> None:
    given_scores = scores(4)
    request = Request(
        "macs", 0.5, "optimal", amount_for={"two": 0.5}, further={"params": 0.45, "amount": 0.2}
    )
    keep, facts = select_and_tell(
        structure, [0, 1, 2], [given_scores[n] for n in range(3)], request
    )
    kept = np.array([mask.sum() for mask in keep])
    assert (kept[1], kept[3]) == (4, 6)
    whole = np.array(SIZES)
    assert macs(kept) <= 0.5 * macs(whole)
    assert params(kept) <= 0.45 * params(whole)
    # An amount is a share of the units that are on offer and not asked for.
    assert kept[0] + kept[2] <= 0.8 * 17
    sums = [np.append(0.0, np.cumsum(np.sort(s)[::-1])) for s in given_scores]
    most = max(
        sums[0][a] + sums[1][4] + sums[2][c]
        for a in range(1, 13)
        for c in range(1, 6)
        if macs(np.array([a, 4, c, 6])) <= 0.5 * macs(whole)
        and params(np.array([a, 4, c, 6])) <= 0.45 * params(whole)
        and a + c <= 0.8 * 17
    )
    assert facts["importance"]["kept"] == pytest.approx(most)
    assert facts["importance"]["bound"] == pytest.approx(most, rel=1e-5)


def test_several_budgets_from_a_network() -> None:
    source = normalize(MNIST)
    small = prune(
        source, macs=0.5, params=0.35, amount=0.2, scope="optimal", min_units=4, round_to=4
    )
    assert small.macs <= 0.5 * source.macs
    assert small.params <= 0.35 * source.params
    assert small.plan is not None
    asked = small.plan.request
    assert (asked["macs"], asked["params"], asked["amount"]) == (0.5, 0.35, 0.2)
    assert asked["importance"]["kept"] <= asked["importance"]["bound"] <= asked["importance"]["of"]


def test_report_says_what_is_proven(tmp_path: Path) -> None:
    small = prune(MODEL, macs=0.5, scope="optimal")
    saved = save(small, tmp_path / "small.onnx", check=False)
    (note,) = (n for n in make_report(small, saved, measure=False).notes if "optimal" in n)
    assert small.plan is not None
    told = small.plan.request["importance"]
    assert f"{told['kept']:.5g} of the importance {told['of']:.5g} is kept" in note
    assert f"keeps more than {told['bound']:.5g}" in note


def test_budget_that_can_not_be_met_is_named(structure: Structure) -> None:
    request = Request("macs", 0.5, "optimal", further={"params": 0.01})
    with pytest.raises(BudgetError, match=r"params=0\.01 can't be met: with 4 prunable groups"):
        select(structure, range(4), scores(), request)


def test_further_budgets_are_fractions() -> None:
    with pytest.raises(UsageError, match=r"params must be a fraction between 0 and 1, not 1\.5"):
        Request("macs", 0.5, "optimal", further={"params": 1.5})


def test_several_budgets_are_for_the_optimal_scope() -> None:
    with pytest.raises(UsageError, match="not macs, params; scope='optimal' takes several"):
        prune(MNIST, macs=0.5, params=0.5)
    with pytest.raises(UsageError, match=r"give exactly one of .*, not none$"):
        prune(MNIST, scope="optimal")


def test_missing_solver_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: object, **more: object) -> object:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"scope='optimal' needs scipy: pip install 'onnxjl\[opti"):
        prune("no such file.onnx", macs=0.5, scope="optimal")


def test_latency_is_one_of_several_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxjl import latency_budget
    from onnxjl.latency import Latency

    def measured(before, after, feeds, *, seconds):
        # As if latency were in proportion to the MACs.
        return Latency(1.0, 1.0, 5), Latency(after.macs / before.macs, 1.0, 5)

    monkeypatch.setattr(latency_budget, "measure_pair", measured)
    source = normalize(MODEL)
    small = prune(source, latency=0.5, params=0.6, scope="optimal", round_to=1)
    assert 0.4 < small.macs / source.macs <= 0.5
    assert small.params <= 0.6 * source.params
    assert small.plan is not None
    assert small.plan.request["importance"]["bound"] > 0
    # Where the others leave less, the latency is met by them.
    small = prune(source, latency=0.9, macs=0.3, scope="optimal", round_to=1)
    assert 0.2 < small.macs / source.macs <= 0.3


def test_network_of_one_group_is_solved() -> None:
    proto = network(
        """g (float[N, 6] x) => (float[N, 3] y) {
            a = Gemm (x, w1)
            b = Relu (a)
            y = Gemm (b, w2)
        }""",
        {"w1": (6, 9), "w2": (9, 3)},
    )
    small = prune(proto, macs=0.5, scope="optimal")
    assert small.weight("w1").shape == (6, 4)
