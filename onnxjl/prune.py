"""prune: from a network and a budget to a smaller network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from onnxjl import criteria, recovery
from onnxjl.budget import AUTO, BUDGETS, Budget, Request, Scope
from onnxjl.choice import choose
from onnxjl.criteria.blocks import get_for_blocks
from onnxjl.depth import prune_blocks
from onnxjl.errors import BudgetError, UsageError
from onnxjl.flux import (
    FluxModel,
    is_julia,
    julia_block_criterion,
    julia_criterion,
    pruned,
    to_flux,
)
from onnxjl.graph import Graph
from onnxjl.inputs import given_inputs
from onnxjl.load import Source
from onnxjl.normalize import normalize
from onnxjl.optimal import check_solver
from onnxjl.plan import Plan, apply
from onnxjl.recovery import Recovery, check_request
from onnxjl.structure.groups import Granularity, Group, Structure, analyze, offer

ABOUT_UNITS: Mapping[str, Sequence[object]] = {
    "amount_for": (None, {}),
    "round_to": (None, 1),
    "min_units": (1,),
    "scope": ("global",),
    "aggregation": ("mean",),
    "normalization": (None,),
    "allow_inexact": (False,),
}
"""Options of `prune` that blocks don't have -> values that say nothing."""


@overload
def prune(model: Source, **options: Any) -> Graph: ...


@overload
def prune(model: FluxModel, **options: Any) -> FluxModel: ...


def prune(  # type: ignore[misc] # the options are those below, for both kinds of model
    model: Source | FluxModel,
    *,
    amount: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    bytes: float | None = None,
    latency: float | None = None,
    criterion: str | Callable[..., Any] = "l2",
    scope: Scope = "global",
    aggregation: str = "mean",
    normalization: str | None = None,
    ignore: Sequence[str] = (),
    amount_for: Mapping[str, float] | None = None,
    round_to: int | Literal["auto"] | None = None,
    min_units: int = 1,
    granularity: Granularity | Literal["block"] = "channel",
    allow_inexact: bool = False,
    data: Any = None,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    seed: int = 0,
    recover: Recovery | None = None,
    calibration: Any = None,
    loss: Any = None,
) -> Graph | FluxModel:
    """Remove the least important units of a network until it meets a budget.

    Exactly one budget is given, or several for scope "optimal"; `amount_for` may stand alone.

    Parameters
    ----------
    model : whatever `load` takes, normalized if it isn't, or a Flux model; never changed.
    amount : fraction of the prunable units to remove, in (0, 1); of each group for scope "local".
    macs, params, bytes : fraction of multiply–accumulates, parameters or bytes of weights to keep.
    latency : fraction of the latency in onnxruntime on this machine, on one thread, to keep; it is
        measured while units are chosen.
    criterion : name of a criterion, or a function ``f(group, weights) -> (units,) scores``, larger
        is more important; for a Flux model also a Julia function of an ``OnnxJL.Group``, or with
        granularity "block" of an ``OnnxJL.Block``.
    scope : "global" ranks the units of all groups together, "local" takes the same share of each,
        "isomorphic" ranks within groups of the same topology and takes the same share of each such
        class, "erk" keeps densities of an Erdős–Rényi kernel, "sensitivity" lets each group raise
        the error of the outputs by the same, measured on `data` (else `inputs`, else random ones);
        "optimal" keeps the largest sum of scores that its budgets leave, by integer programming.
    aggregation : how scores of a group's weights become one: "mean", "sum" or "max".
    normalization : what a group's scores are divided by: its "mean", its "max", or "none"; by
        default the criterion's own, which is "mean" for most.
    ignore : fnmatch patterns of layers or nodes to leave whole.
    amount_for : pattern -> fraction of units removed of the groups of matching layers.
    round_to : widths become multiples of this: a number, or "auto" for what onnxruntime is fast at
        on this machine (measured once, for some seconds), or the largest half of it with which the
        budget can be met. By default "auto" with `latency`, else 1.
    min_units : units that every group keeps.
    granularity : "channel", "head" or "head-dim"; see `groups`. "block" takes whole residual
        branches out; see `blocks`: `amount` is then a fraction of these, `criterion` one of blocks
        (``f(block, weights) -> score``), and the options about units don't apply.
    allow_inexact : whether to prune groups whose removal changes statistics taken over them.
    data : inputs for criteria and for the scope "sensitivity"; see `onnxjl.data.batches`. Criteria
        that need no labels are measured on `calibration` where no `data` are given.
    inputs : one array for each input, to measure `latency` with; random ones if not given.
    seed : of the criterion "random".
    recover : "refit" (every layer solved anew for the original's outputs) or "bn" (statistics of
        batch normalization estimated anew); "refit" where only `calibration` is given.
    calibration : inputs for `recover`, without labels; see `onnxjl.data.batches`. Never the data
        that accuracy is reported on.
    loss : what gradient criteria differentiate; see `FluxModel.gradient`. None is the
        cross-entropy of integer labels.

    Returns
    -------
    The smaller network, of the kind that came: a Graph or a FluxModel, with `plan` and `source`.
    Kept weights are unchanged but for recovery.

    Raises
    ------
    BudgetError : the budget can't be met (says how far it can go), or nothing would change.
    UsageError : an unknown criterion, pattern, option, not exactly one budget, or scope "optimal"
        without scipy.
    WeightError : a weight to be scored isn't finite.
    DataError, ModelError : `data` don't fit, or onnxruntime can't run what is to be measured.
    """
    given: dict[Budget, float] = {
        name: value
        for name, value in zip(BUDGETS, (amount, macs, params, bytes, latency), strict=True)
        if value is not None
    }
    if (len(given) > 1 and scope != "optimal") or (not given and not amount_for):
        several = "; scope='optimal' takes several" if given else ""
        raise UsageError(
            f"give exactly one of {', '.join(BUDGETS)}, not {', '.join(given) or 'none'}{several}"
        )
    if scope == "optimal":
        check_solver()
    # Latency is measured; what is counted besides holds for every network that is measured.
    budget: Budget | None = "latency" if latency is not None else next(iter(given), None)
    request = Request(
        budget=budget,
        fraction=None if budget is None else given[budget],
        further={name: value for name, value in given.items() if name != budget},
        scope=scope,
        amount_for=amount_for,
        round_to=(1 if latency is None else AUTO) if round_to is None else round_to,
        min_units=min_units,
    )
    method = "refit" if recover is None and calibration is not None else recover
    if method is not None:
        check_request(method, calibration)
    flux = model if isinstance(model, FluxModel) else None
    if granularity == "block":
        _check_options_of_blocks(
            amount_for=amount_for,
            round_to=round_to,
            min_units=min_units,
            scope=scope,
            aggregation=aggregation,
            normalization=normalization,
            allow_inexact=allow_inexact,
        )
        if flux is not None and is_julia(criterion):
            of_blocks = julia_block_criterion(criterion)
        else:
            of_blocks = get_for_blocks(criterion)
        graph = _graph(model)
        shorter = prune_blocks(
            model,
            graph,
            *next(iter(given.items())),
            criterion=of_blocks,
            ignore=ignore,
            data=data,
            inputs=given_inputs(graph, inputs),
            seed=seed,
            loss=loss,
        )
        return shorter if method is None else _recovered(shorter, method, calibration)
    if flux is not None and is_julia(criterion):
        criterion = julia_criterion(criterion)
    # An unknown one is told before the work begins.
    chosen = criteria.get(criterion, gradients=flux is not None)
    if data is None and chosen.needs_data and not chosen.needs_gradient:
        data = calibration
    graph = _graph(model)
    inputs = given_inputs(graph, inputs)
    structure = analyze(graph, granularity=granularity)
    offered, whole = offer(structure, allow_inexact=allow_inexact, ignore=ignore)
    if not offered:
        reasons = "; ".join(f"{w.layer}: {w.reason}" for w in whole[:3])
        raise BudgetError(f"nothing can be pruned in this network ({reasons or 'no layers'})")
    scores = criteria.score(
        graph,
        [structure.groups[i] for i in offered],
        criterion,
        aggregation=aggregation,
        normalization=normalization,
        data=data,
        seed=seed,
        model=flux,
        loss=loss,
    )

    def cut(kept: Sequence[NDArray[np.bool_]]) -> Graph:
        return apply(graph, structure.plan(kept, request={}))

    keep, facts = choose(structure, offered, scores, request, cut=cut, inputs=inputs, data=data)
    asked: dict[str, Any] = {
        **{str(name): value for name, value in given.items()},
        "amount_for": dict(amount_for or {}),
        "criterion": criterion if isinstance(criterion, str) else criteria.name_of(criterion),
        "scope": scope,
        "aggregation": aggregation,
        "normalization": normalization,
        "ignore": list(ignore),
        "min_units": min_units,
        "granularity": granularity,
        "allow_inexact": allow_inexact,
        "seed": seed,
        **facts,
    }
    plan = _planned(model, structure, keep, asked)
    small = apply(graph, plan)
    if method is not None:
        small = recovery.recover(small, method, calibration)
        return small if flux is None else to_flux(small)
    return small if flux is None else pruned(flux, plan, small)


def keep(
    model: Source | FluxModel,
    units: Mapping[str, Sequence[int] | NDArray[Any]],
    *,
    granularity: Granularity = "channel",
) -> Graph | FluxModel:
    """Keep only these units of some groups, and all units of the others.

    Parameters
    ----------
    model : as for `prune`.
    units : group name -> numbers of the units that stay, from 0, or a bool for each unit.
    granularity : that of the groups; see `groups`.

    Returns
    -------
    The smaller network, of the kind that came, with `plan` and `source`.

    Raises
    ------
    UsageError : there is no such group or unit, or a group would lose all of its units.
    """
    graph = _graph(model)
    structure = analyze(graph, granularity=granularity)
    if absent := [name for name in units if name not in {g.name for g in structure.groups}]:
        raise UsageError(
            f"no group is called '{absent[0]}' with granularity '{granularity}'; there are "
            f"{', '.join(g.name for g in structure.groups)}"
        )
    kept = [
        _mask(group, units[group.name]) if group.name in units else np.ones(group.size, dtype=bool)
        for group in structure.groups
    ]
    asked = {
        "keep": sorted(units),
        "granularity": granularity,
        "allow_inexact": not all(g.exact for g in structure.groups if g.name in units),
    }
    plan = _planned(model, structure, kept, asked)
    small = apply(graph, plan)
    return pruned(model, plan, small) if isinstance(model, FluxModel) else small


def _check_options_of_blocks(**given: Any) -> None:
    """Raise `UsageError` for an option that is about units."""
    for name, value in given.items():
        if value not in ABOUT_UNITS[name]:
            raise UsageError(f"{name} is about units: with granularity 'block' leave it out")


def _recovered(model: Graph | FluxModel, method: Recovery, calibration: Any) -> Graph | FluxModel:
    """A pruned network, recovered, of the kind that came."""
    if isinstance(model, FluxModel):
        return to_flux(recovery.recover(model.to_graph(), method, calibration))
    return recovery.recover(model, method, calibration)


def _graph(model: Source | FluxModel) -> Graph:
    """The normalized graph of a model of either engine."""
    return model.to_graph() if isinstance(model, FluxModel) else normalize(model)


def _planned(
    model: Source | FluxModel,
    structure: Structure,
    kept: Sequence[NDArray[np.bool_]],
    asked: dict[str, Any],
) -> Plan:
    """The plan that keeps these units, which says whose engine made it."""
    plan = structure.plan(kept, request=asked)
    return replace(plan, engine="flux") if isinstance(model, FluxModel) else plan


def _mask(group: Group, units: Sequence[int] | NDArray[Any]) -> NDArray[np.bool_]:
    """The units that stay, (units,) bool."""
    given = np.asarray(units)
    mask = np.zeros(group.size, dtype=bool)
    if given.dtype == bool and given.shape == mask.shape:
        mask = given.copy()
    elif given.dtype.kind in "iu" and given.ndim == 1:
        if given.size and not 0 <= given.min() <= given.max() < group.size:
            raise UsageError(f"group '{group.name}' has {group.size} units: no such one to keep")
        mask[given] = True
    elif given.size:
        raise UsageError(
            f"group '{group.name}': what is kept is {given.dtype} of shape {given.shape}, not "
            f"numbers of units, or {group.size} booleans"
        )
    if not mask.any():
        raise UsageError(f"group '{group.name}' would lose all of its units")
    return mask
