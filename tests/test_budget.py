"""Selection: within the budget, and no removed unit would still fit in it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from four_groups import COSTS, MODEL, SIZES, macs, params, scores, widths
from hypothesis import given
from hypothesis import strategies as st
from models import zoo
from text_networks import split_in_two

from onnxjl import BudgetError, UsageError, normalize
from onnxjl.budget import Request, select
from onnxjl.structure import Structure, analyze


@pytest.fixture(scope="module")
def structure() -> Structure:
    found = analyze(normalize(MODEL))
    assert found.sizes.tolist() == SIZES
    return found


def chosen(structure: Structure, given_scores: list[np.ndarray], **request: object) -> np.ndarray:
    """Return how many units each group keeps, after a look at which."""
    keep = select(structure, range(len(SIZES)), given_scores, Request(**request))
    for mask, score in zip(keep, given_scores, strict=True):
        assert mask.dtype == bool
        if not mask.all():
            # No unit goes that is more important than one that stays; of equal ones the first stay.
            order = sorted(range(len(score)), key=lambda i: (-score[i], i))
            assert sorted(np.flatnonzero(mask).tolist()) == sorted(order[: mask.sum()])
    return np.array([mask.sum() for mask in keep])


def test_costs_are_those_counted_by_hand(structure: Structure) -> None:
    for kept in ([12, 8, 5, 6], [1, 1, 1, 1], [7, 3, 5, 2]):
        counts = np.array(kept)
        assert structure.macs.total(counts) == macs(counts)
        assert structure.params.total(counts) == params(counts)
        assert structure.bytes.total(counts) == 4 * params(counts)
        more = np.array([0, 1, 2, 3])
        increases = structure.macs.increase(counts, more)
        for group in range(4):
            alone = counts.copy()
            alone[group] += more[group]
            assert increases[group] == macs(alone) - macs(counts)


@given(
    budget=st.sampled_from(sorted(COSTS)),
    fraction=st.floats(0.02, 0.98),
    scope=st.sampled_from(["global", "local"]),
    round_to=st.sampled_from([1, 1, 2, 3, 4]),
    min_units=st.integers(1, 6),
    seed=st.integers(0, 99),
    levels=st.sampled_from([2, 1000]),
)
def test_budget_is_met_and_nothing_more_would_fit(
    structure: Structure,
    budget: str,
    fraction: float,
    scope: str,
    round_to: int,
    min_units: int,
    seed: int,
    levels: int,
) -> None:
    cost = COSTS[budget]
    whole = np.array(SIZES)
    allowed = [widths(size, round_to, min_units) for size in SIZES]
    share = 1 - fraction if budget == "amount" else fraction
    limit = share * cost(whole) * (1 + 1e-8)
    request = {
        "budget": budget,
        "fraction": fraction,
        "scope": scope,
        "round_to": round_to,
        "min_units": min_units,
    }
    if budget == "amount" and scope == "local":
        expected = [
            max([w for w in a if w <= (1 - fraction) * s + 1e-8], default=a[0])
            for s, a in zip(SIZES, allowed, strict=True)
        ]
        if expected == SIZES:
            with pytest.raises(BudgetError, match="would change nothing"):
                chosen(structure, scores(seed, levels), **request)
        else:
            assert chosen(structure, scores(seed, levels), **request).tolist() == expected
        return
    if cost(np.array([a[0] for a in allowed])) > limit:
        with pytest.raises(BudgetError, match=f"{budget}={fraction} can't be met"):
            chosen(structure, scores(seed, levels), **request)
        return
    kept = chosen(structure, scores(seed, levels), **request)
    assert cost(kept) <= limit
    for group, options in enumerate(allowed):
        assert kept[group] in options
        wider = [w for w in options if w > kept[group]]
        if wider:
            more = kept.copy()
            more[group] = wider[0]
            assert cost(more) > limit


@given(fraction=st.floats(0.1, 0.85), seed=st.integers(0, 20))
def test_global_scope_ranks_the_units_of_all_groups_together(
    structure: Structure, fraction: float, seed: int
) -> None:
    """With a budget that counts units, exactly the least important ones go, but for the last."""
    given_scores = scores(seed)
    given_scores = [s + np.arange(len(s)) / 100 + g / 1000 for g, s in enumerate(given_scores)]
    keep = select(structure, range(4), given_scores, Request("amount", fraction))
    spared = [int(np.argmax(s)) for s in given_scores]
    ranked = sorted(
        (score, g, i)
        for g, s in enumerate(given_scores)
        for i, score in enumerate(s.tolist())
        if i != spared[g]
    )
    gone = int(np.ceil(fraction * sum(SIZES) - 1e-6))
    expected = {(g, i) for _, g, i in ranked[:gone]}
    found = {(g, int(i)) for g, mask in enumerate(keep) for i in np.flatnonzero(~mask)}
    assert found == expected


def test_local_scope_takes_the_same_share_of_every_group(structure: Structure) -> None:
    kept = chosen(structure, scores(), budget="amount", fraction=0.5, scope="local")
    assert kept.tolist() == [6, 4, 2, 3]
    # For other budgets the largest share that fits, and then whatever fits besides.
    kept = chosen(structure, scores(), budget="macs", fraction=0.4, scope="local")
    shares = (np.maximum(np.floor(np.array(SIZES) * n / 1000), 1) for n in range(1000, 0, -1))
    fitting = next(one for one in shares if macs(one) <= 0.4 * macs(np.array(SIZES)))
    assert fitting.tolist() == [7, 5, 3, 3]
    assert (kept >= fitting).all()


@pytest.mark.parametrize("scope", ["global", "local"])
def test_ties_are_broken_by_index(structure: Structure, scope: str) -> None:
    keep = select(
        structure, range(4), [np.ones(s) for s in SIZES], Request("amount", 0.5, scope=scope)
    )
    for mask in keep:
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_amount_for_a_layer_overrides_the_budget(structure: Structure) -> None:
    kept = chosen(
        structure,
        scores(),
        budget="macs",
        fraction=0.7,
        amount_for={"two": 0.5, "/fo*": 0.34},
    )
    assert kept[1] == 4
    assert kept[3] == 3
    assert macs(kept) <= 0.7 * macs(np.array(SIZES))


def test_amount_for_a_layer_alone_leaves_all_others(structure: Structure) -> None:
    kept = chosen(structure, scores(), budget=None, fraction=None, amount_for={"three": 0.5})
    assert kept.tolist() == [12, 8, 2, 6]


def test_one_of_the_groups_of_a_layer_is_asked_for_by_number() -> None:
    model = split_in_two(4, 4)
    structure = analyze(normalize(model))
    assert [group.name for group in structure.groups] == ["a", "a#2"]
    scored = [np.arange(4.0)] * 2
    for pattern, kept in {"a": [2, 2], "a#1": [2, 4], "a#2": [4, 2]}.items():
        request = Request(budget=None, fraction=None, amount_for={pattern: 0.5})
        masks = select(structure, range(2), scored, request)
        assert [mask.sum() for mask in masks] == kept


@pytest.mark.parametrize("step", [1, 4, 16, 32])
def test_heads_that_are_wide_make_larger_steps(step: int) -> None:
    # A head of this network is 16 features, so that one makes a step of 16, and two one of 32.
    structure = analyze(normalize(zoo.load("vit_tiny.ts17")), granularity="head")
    scored = [np.arange(float(group.size)) for group in structure.groups]
    request = Request("macs", 0.45, scope="local", round_to=step)
    masks = select(structure, range(len(scored)), scored, request)
    for group, mask in zip(structure.groups, masks, strict=True):
        width = 16 if group.kind == "head" else 1
        assert mask.sum() * width % step == 0
    kinds = {g.kind for g, m in zip(structure.groups, masks, strict=True) if not m.all()}
    assert kinds == {"head", "channel"}


@pytest.mark.parametrize(("fraction", "met"), [(0.5, True), (0.01, False)])
def test_amount_for_every_layer_leaves_the_budget_to_be_checked(
    structure: Structure, fraction: float, met: bool
) -> None:
    request = {"budget": "macs", "fraction": fraction, "amount_for": {"*": 0.7}}
    if met:
        assert chosen(structure, scores(), **request).tolist() == [3, 2, 1, 1]
    else:
        with pytest.raises(BudgetError, match=r"macs=0\.01 can't be met"):
            chosen(structure, scores(), **request)


def test_groups_that_are_not_offered_stay(structure: Structure) -> None:
    keep = select(structure, [0, 2], [scores()[0], scores()[2]], Request("macs", 0.5))
    assert keep[1].all()
    assert keep[3].all()
    assert macs(np.array([mask.sum() for mask in keep])) <= 0.5 * macs(np.array(SIZES))


def test_amount_is_a_share_of_the_units_on_offer(structure: Structure) -> None:
    keep = select(structure, [0, 2], [scores()[0], scores()[2]], Request("amount", 0.5))
    assert sum(int((~mask).sum()) for mask in keep) == 9  # of 17, rounded up


def test_unreachable_budget_says_how_far_the_network_can_go(structure: Structure) -> None:
    with pytest.raises(BudgetError) as caught:
        chosen(structure, scores(), budget="macs", fraction=0.01)
    message = str(caught.value)
    least = macs(np.ones(4, int)) / macs(np.array(SIZES))
    told = np.ceil(least * 1e4) / 1e4
    assert message.startswith("macs=0.01 can't be met: with 4 prunable groups")
    assert f"down to macs={told:.4f} (min_units=1, round_to=1)" in message
    assert chosen(structure, scores(), budget="macs", fraction=float(told)).tolist() == [1] * 4
    with pytest.raises(BudgetError, match=r"amount=0\.9 can't be met: at most 0\.8709 of the unit"):
        chosen(structure, scores(), budget="amount", fraction=0.9)


def test_request_that_would_change_nothing_says_why(structure: Structure) -> None:
    with pytest.raises(BudgetError, match="the widest group has 12 units, with min_units=12"):
        chosen(structure, scores(), budget="amount", fraction=0.1, scope="local", min_units=12)
    with pytest.raises(BudgetError, match="would change nothing: the widest group has 12 units"):
        chosen(structure, scores(), budget="amount", fraction=0.05, scope="local", round_to=16)
    with pytest.raises(BudgetError, match="no group can be pruned; `groups` tells"):
        select(structure, [], [], Request("amount", 0.5, scope="local"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"budget": None, "fraction": None}, "give a budget: one of amount, macs, params, bytes"),
        ({"budget": "macs", "fraction": 0}, "macs must be a fraction between 0 and 1, not 0"),
        ({"budget": "macs", "fraction": 1.0}, "macs must be a fraction between 0 and 1, not 1.0"),
        ({"budget": "amount", "fraction": -0.5}, "amount must be a fraction .* not -0.5"),
        ({"budget": "params", "fraction": float("nan")}, "params must be a fraction .* not nan"),
        ({"budget": "bytes", "fraction": "half"}, "bytes must be a fraction .* not 'half'"),
        ({"budget": "macs", "fraction": True}, "macs must be a fraction .* not True"),
        ({"budget": "macs", "fraction": 0.5, "scope": "some"}, "no scope 'some'; there are global"),
        ({"budget": "macs", "fraction": 0.5, "round_to": 0}, "round_to must be a whole number"),
        ({"budget": "macs", "fraction": 0.5, "round_to": 1.5}, "round_to must be .* not 1.5"),
        ({"budget": "macs", "fraction": 0.5, "min_units": -1}, "min_units must be .* not -1"),
        ({"budget": "macs", "fraction": 0.5, "min_units": True}, "min_units must be .* not True"),
        (
            {"budget": None, "fraction": None, "amount_for": {"one": 1.5}},
            "one must be a fraction between 0 and 1, not 1.5",
        ),
    ],
)
def test_wrong_request_is_told(request_: Mapping[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Request(**request_)


def test_pattern_that_matches_nothing_is_told(structure: Structure) -> None:
    with pytest.raises(UsageError, match="no prunable layer matches 'six'"):
        chosen(structure, scores(), budget="macs", fraction=0.5, amount_for={"six": 0.5})
