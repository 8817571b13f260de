"""The proof on networks that nobody thought of: random chains of random layers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from double_precision import run_in_double
from hypothesis import event, given, settings
from hypothesis import strategies as st
from oracle import difference, run
from proof import PLANS, TOLERANCE, TOLERANCE_IN_DOUBLE, Keep, prove, prove_in_double
from random_networks import IMAGE_LAYERS, OPSETS, Builder, convolution, networks
from text_networks import inputs, network

from onnxjl import Plan, apply, normalize
from onnxjl.structure import Granularity, analyze
from onnxjl.structure.rules import RULES

NEVER = {
    "Upsample": "only operator sets up to 9 have it: normalization makes it a Resize",
}
"""Operators that have a label rule, and that no random network has when the rules see it: why."""


def check(
    model: onnx.ModelProto, granularity: Granularity, kind: Callable[..., Keep], seed: int
) -> str:
    """Assert what holds of every network: see the test below.

    Returns
    -------
    "proved", "proved in float64" where rounding was too much for float32, or "nothing exact" where
    there was no plan to prove.
    """
    graph = normalize(model)
    feeds = inputs(model)
    normal = ir.to_proto(graph.model)
    if difference(run(normal, feeds), run(model, feeds)) > TOLERANCE:
        same = difference(run_in_double(normal, feeds), run_in_double(model, feeds))
        assert same <= TOLERANCE_IN_DOUBLE
    structure = analyze(graph, granularity=granularity)
    exact = sum(group.exact for group in structure.groups)
    event(f"{min(exact, 4)} groups or more" if exact > 3 else f"{exact} groups")
    if not exact:
        return "nothing exact"
    keep = kind(structure, np.random.default_rng(seed))
    outcome = "proved"
    if prove(structure, keep, [feeds]) > TOLERANCE:
        assert prove_in_double(structure, keep, [feeds]) <= TOLERANCE_IN_DOUBLE
        outcome = "proved in float64"
    plan = structure.plan(keep)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert apply(graph, again).fingerprint == apply(graph, plan).fingerprint
    return outcome


@settings(max_examples=settings.default.max_examples * 12)
@given(
    model=networks(),
    granularity=st.sampled_from(["channel", "head", "head-dim"]),
    kind=st.sampled_from(PLANS),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_network_is_normalized_and_pruned_exactly(
    model: onnx.ModelProto, granularity: Granularity, kind: Callable[..., Keep], seed: int
) -> None:
    check(model, granularity, kind, seed)


def test_random_networks_have_every_operator_with_a_label_rule() -> None:
    random = np.random.default_rng(0)
    turns: Counter[str] = Counter()

    def choose(options: Sequence[Any]) -> Any:
        """Take operators in turn, and all else by chance."""
        if not isinstance(options[0], str):
            return options[random.integers(len(options))]
        turns[f"{options}"] += 1
        return options[turns[f"{options}"] % len(options)]

    missing = set(RULES)
    for layer, opset in itertools.product(dict.fromkeys(IMAGE_LAYERS), OPSETS * 30):
        builder = Builder(choose, (3, 4, 4), opset)
        convolution(builder)
        layer(builder)
        if missing & {(node.domain, node.op_type) for node in builder.nodes}:
            graph = normalize(builder.model(twice=True)).model.graph
            missing.difference_update((node.domain, node.op_type) for node in graph)
    assert missing == {("", name) for name in NEVER}


@pytest.mark.parametrize(("operator", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
@pytest.mark.parametrize("kind", PLANS)
def test_the_gates_of_a_single_hidden_unit_stay(
    operator: str, gates: int, kind: Callable[..., Keep]
) -> None:
    """What random networks found: each gate was taken for a unit of its own."""
    model = network(
        f"""g (float[N, 3, 1, 4] x) => (float[N, 2, 1, 4] y) {{
            a = Conv (x, v)
            t = Transpose <perm = [3, 0, 1, 2]> (a)
            r = Reshape (t, to)
            o, last = {operator} <hidden_size = 1> (r, w, u, b)
            p = Transpose <perm = [2, 1, 3, 0]> (o)
            q = Reshape (p, back)
            y = Conv (q, z)
        }}""",
        {
            "v": (4, 3, 1, 1),
            "w": (1, gates, 4),
            "u": (1, gates, 1),
            "b": (1, 2 * gates),
            "z": (2, 1, 1, 1),
        },
        {"to": [4, -1, 4], "back": [0, 1, 1, 4]},
    )
    structure = analyze(normalize(model))
    assert [(group.name, group.size) for group in structure.groups] == [("a", 4)]
    keep = kind(structure, np.random.default_rng(0))
    assert prove(structure, keep, [inputs(model)]) <= TOLERANCE
