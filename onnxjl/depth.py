"""Depth: whole blocks taken out, by name or until a budget is met."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxjl.budget import Budget
from onnxjl.criteria.blocks import BlockCriterion, BlockScoring, score_blocks
from onnxjl.errors import BudgetError, UsageError
from onnxjl.flux import FluxModel, pruned
from onnxjl.graph import Graph
from onnxjl.inputs import random_inputs
from onnxjl.latency import measure_pair
from onnxjl.latency_budget import SECONDS, search
from onnxjl.load import Source
from onnxjl.normalize import normalize
from onnxjl.plan import Plan, apply
from onnxjl.structure.blocks import Block, Blocks, Costs, find, plan_without, removed_nodes
from onnxjl.structure.groups import Structure, analyze
from onnxjl.widths import runtime

# Budgets are fractions that users write in decimals: 0.3 of 10 blocks is 3 of them.
_SLACK = 1e-9


def remove_blocks(model: Source | FluxModel, names: Sequence[str]) -> Graph | FluxModel:
    """Take blocks out of a network: what skips each takes the place of its sum.

    Parameters
    ----------
    model : as for `prune`.
    names : names of blocks, as `blocks` has them, or fnmatch patterns of these:
        ``"encoder.layers.3/*"`` is a whole transformer layer.

    Returns
    -------
    The smaller network, of the kind that came, with `plan` and `source`.

    Raises
    ------
    UsageError : no block has such a name.
    """
    if isinstance(names, str):
        raise UsageError(f"names of blocks are a list: ['{names}']")
    graph = model.to_graph() if isinstance(model, FluxModel) else normalize(model)
    structure = analyze(graph)
    found = find(structure)
    chosen: dict[str, Block] = {}
    for pattern in names:
        matching = [b for b in found if b.name == pattern] or [
            b for b in found if fnmatch.fnmatchcase(b.name, pattern)
        ]
        if not matching:
            listed = ", ".join(block.name for block in found) or "none"
            raise UsageError(f"no block is called '{pattern}'; there are {listed}")
        chosen.update((block.name, block) for block in matching)
    gone = [block for block in found if block.name in chosen]
    if not gone:
        raise UsageError("give the name of a block at least")
    request = {"granularity": "block", "blocks": [block.name for block in gone]}
    return _cut(model, graph, structure, gone, request)


def prune_blocks(
    model: Source | FluxModel,
    graph: Graph,
    budget: Budget,
    fraction: float,
    *,
    criterion: BlockCriterion,
    ignore: Sequence[str] = (),
    data: Any = None,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    seed: int = 0,
    loss: Any = None,
) -> Graph | FluxModel:
    """Take the least important blocks out until a budget is met; see `onnxjl.prune`.

    Parameters
    ----------
    model : what came.
    graph : its normalized graph.
    budget, fraction : of which cost is to be kept how much; of "amount", how many blocks go.
    criterion : of blocks.
    ignore, data, inputs, seed, loss : as for `onnxjl.prune`.
    """
    structure = analyze(graph)
    found = find(structure, ignore=ignore)
    if not len(found):
        reasons = "; ".join(f"{w.layer}: {w.reason}" for w in found.whole[:3])
        raise BudgetError(f"no block can be removed from this network ({reasons or 'no sums'})")
    flux = model if isinstance(model, FluxModel) else None
    scores = score_blocks(BlockScoring(structure, found, data, seed, flux, loss), criterion)
    asked: dict[str, Any] = {
        budget: fraction,
        "criterion": criterion.name,
        "ignore": list(ignore),
        "granularity": "block",
        "seed": seed,
    }
    if budget == "latency":
        gone, asked["predicted"] = _select_by_latency(structure, found, scores, fraction, inputs)
    else:
        gone = select_blocks(structure, found, scores, budget, fraction)
    asked["blocks"] = [block.name for block in gone]
    return _cut(model, graph, structure, gone, asked)


def select_blocks(
    structure: Structure,
    found: Sequence[Block],
    scores: NDArray[np.float64],
    budget: Budget,
    fraction: float,
) -> list[Block]:
    """Choose the blocks that go.

    Parameters
    ----------
    structure : of the graph.
    found : its blocks that may go.
    scores : (blocks,) float, larger is more important; of equal blocks the first stay.
    budget, fraction : as for `prune_blocks`, but for "latency".

    Returns
    -------
    The blocks that go, in graph order. The cost is within the budget, and no removed block would
    still fit in it.

    Raises
    ------
    BudgetError : the budget can't be met; says how far it can go.
    """
    cost = _cost(structure, found, budget)
    whole = cost(frozenset())
    limit = whole * (1 - fraction if budget == "amount" else fraction) * (1 + _SLACK)
    every = frozenset(range(len(found)))
    if cost(every) > limit:
        _raise_how_far(budget, fraction, cost(every) / whole if whole else 1.0, len(found))
    order = np.lexsort((-np.arange(len(found)), scores)).tolist()
    gone: set[int] = set()
    for number in order:
        if cost(frozenset(gone)) <= limit:
            break
        gone.add(number)
    # Blocks may share nodes, so what one costs depends on the others: until none fits any more.
    fits = True
    while fits:
        fits = False
        for number in reversed(order):
            if number in gone and cost(frozenset(gone - {number})) <= limit:
                gone.remove(number)
                fits = True
    return [found[number] for number in sorted(gone)]


def _cost(
    structure: Structure, found: Sequence[Block], budget: Budget
) -> Callable[[frozenset[int]], float]:
    """What is left of a budget's cost without some blocks."""
    costs = Costs(structure)

    def of(gone: frozenset[int]) -> float:
        if budget == "amount":
            return float(len(found) - len(gone))
        nodes = removed_nodes(structure.graph, [found[number] for number in gone])
        return costs.without(nodes)[budget]

    return of


def _raise_how_far(budget: Budget, fraction: float, floor: float, count: int) -> None:
    least = np.ceil(floor * 1e4 - 1e-6) / 1e4
    raise BudgetError(
        f"{budget}={fraction} can't be met: without any of its {count} blocks this network can go "
        f"down to {budget}={least:.4f}; prune channels, too (granularity='channel')"
    )


def _select_by_latency(
    structure: Structure,
    found: Blocks,
    scores: NDArray[np.float64],
    fraction: float,
    inputs: Mapping[str, NDArray[Any]] | None,
) -> tuple[list[Block], dict[str, Any]]:
    """Choose by measured latency: candidates with different shares of the MACs are run."""
    graph = structure.graph
    feeds = random_inputs(graph) if inputs is None else inputs
    cost = _cost(structure, found, "macs")
    floor = cost(frozenset(range(len(found)))) / cost(frozenset())

    def without(share: float) -> list[Block]:
        return select_blocks(structure, found, scores, "macs", share)

    def race(share: float) -> tuple[float, float]:
        candidate = apply(graph, plan_without(structure, without(share)))
        before, after = measure_pair(graph, candidate, feeds, seconds=SECONDS)
        return before.median_ms, after.median_ms

    trial = search(race, fraction, floor)
    return without(trial.macs), {
        "before_ms": trial.before_ms,
        "after_ms": trial.after_ms,
        "runtime": f"{runtime()}, 1 thread",
    }


def _cut(
    model: Source | FluxModel,
    graph: Graph,
    structure: Structure,
    gone: Sequence[Block],
    request: Mapping[str, Any],
) -> Graph | FluxModel:
    """The network without some blocks, of the kind that came."""
    plan: Plan = plan_without(structure, gone, request=request)
    if isinstance(model, FluxModel):
        plan = replace(plan, engine="flux")
        return pruned(model, plan, apply(graph, plan))
    return apply(graph, plan)
