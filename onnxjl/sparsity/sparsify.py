"""sparsify: from a network to one in which single weights are zero, and stay so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from onnxjl import masks as recorded
from onnxjl.budget import is_fraction
from onnxjl.criteria.registry import unknown
from onnxjl.criteria.weights import Scoring, checked_seed
from onnxjl.duplicate import duplicate
from onnxjl.errors import BudgetError, UsageError
from onnxjl.flux import FluxModel
from onnxjl.graph import Graph
from onnxjl.load import Source
from onnxjl.normalize import normalize
from onnxjl.progress import progress
from onnxjl.sparsity import registry
from onnxjl.sparsity.budget import SCOPES, Scope, counts, share
from onnxjl.sparsity.layers import Layer, candidates, check_any
from onnxjl.sparsity.pattern import Pattern, lowest
from onnxjl.sparsity.reading import Goal, solve

if TYPE_CHECKING:
    from onnxjl.structure import Whole

Masks = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Sparsified:
    """How a graph came to be sparse.

    Parameters
    ----------
    dense : the normalized graph that it was before.
    request : what was asked for.
    layers : the weights that were candidates, in graph order.
    whole : the layers that were left whole, and why.
    """

    dense: Graph
    request: Mapping[str, Any]
    layers: tuple[Layer, ...] = ()
    whole: tuple[Whole, ...] = ()


@overload
def sparsify(model: Source, **options: Any) -> Graph: ...


@overload
def sparsify(model: FluxModel, **options: Any) -> FluxModel: ...


def sparsify(  # type: ignore[misc] # the options are those below, for both kinds of model
    model: Source | FluxModel,
    *,
    amount: float | None = None,
    pattern: str | None = None,
    criterion: str | Callable[..., Any] = "magnitude",
    scope: Scope | None = None,
    ignore: Sequence[str] = (),
    data: Any = None,
    seed: int = 0,
    loss: Any = None,
) -> Graph | FluxModel:
    """Set the least important weights of a network to zero, each on its own.

    The weights are those of convolutions, products with a constant and recurrent cells; biases,
    normalizations and embedding tables are left alone. No tensor gets smaller. What is zero is held
    by a mask: it stays zero when the network is fine-tuned, pruned, refitted, saved and loaded.

    Parameters
    ----------
    model : whatever `load` takes, normalized if it isn't, or a Flux model; never changed.
    amount : fraction of the weights to be zero, in (0, 1), those included that a mask holds
        already. Exactly one of this and `pattern` is given.
    pattern : "2:4" or another N:M: of every M weights that follow each other along the inputs of a
        contraction, N stay. For a convolution these are its input channels at one place of the
        kernel. A layer whose inputs are no multiple of M is left whole.
    criterion : name of a criterion for single weights, or a function ``f(name, weight) -> scores``
        of the weight's shape (ONNX's layout), larger is more important.
    scope : what an amount is a share of: "global" ranks the weights of all layers together, "local"
        takes the same share of each, "erk" a smaller one of small layers (Erdős–Rényi–Kernel). By
        default "global", and "local" for criteria that compare weights within a layer.
    ignore : fnmatch patterns of layers or nodes to leave whole.
    data : inputs for criteria that need them, with labels for those with gradients; see
        `onnxjl.data.batches`.
    seed : of the criterion "random".
    loss : what gradient criteria differentiate; see `FluxModel.gradient`. None is the cross-entropy
        of integer labels.

    Returns
    -------
    The sparse network, of the kind that came: a Graph or a FluxModel, with `masks` and `sparsity`;
    of a Graph, `sparsified` says what was left whole. Weights that stay are unchanged, but by
    "sparsegpt". Plans begin anew with it. Equal scores are broken by index: the first stay.

    Raises
    ------
    UsageError : not exactly one of `amount` and `pattern`, or an unknown criterion, scope, or
        pattern of `ignore`.
    BudgetError : no weight can be sparse, or nothing would change.
    WeightError : a weight to be scored isn't finite.
    DataError : `data` don't fit the network.

    Source: Mishra et al. 2021, Accelerating Sparse Deep Neural Networks, section 3, for N:M
    patterns; each criterion has its own.
    """
    if (amount is None) == (pattern is None):
        raise UsageError("give exactly one of amount (--amount) and pattern (--pattern)")
    if amount is not None and not is_fraction(amount):
        raise UsageError(f"amount must be a fraction between 0 and 1, not {amount!r}")
    runs = None if pattern is None else Pattern.parse(pattern)
    flux = model if isinstance(model, FluxModel) else None
    chosen = registry.get(criterion, gradients=flux is not None)
    spread = _scope(chosen, scope, runs)
    graph = flux.to_graph() if flux is not None else normalize(model)  # type: ignore[arg-type]
    reading = chosen.name if chosen.solver is not None else None
    layers, whole = candidates(graph, pattern=runs, ignore=ignore, reading=reading)
    check_any(layers, whole)
    masks = {n: m for n, m in graph.masks.items() if n in {layer.tensor for layer in layers}}
    scoring = Scoring(
        graph,
        (),
        aggregation="mean",
        data=data,
        seed=checked_seed(seed),
        model=flux,
        loss=loss,
    )
    if chosen.solver is not None:
        zeros = [None] * len(layers) if amount is None else counts(layers, amount, spread)
        goals = [Goal(count, runs) for count in zeros]
        arrays = solve(
            graph, layers, goals, chosen.solver, name=chosen.name, data=data, masks=masks
        )
    else:
        found = _masks(layers, chosen, scoring, amount, runs, spread, masks)
        arrays = {
            name: recorded.with_zeros(graph.weight(name), mask) for name, mask in found.items()
        }
    request = {
        **({"amount": amount} if runs is None else {"pattern": str(runs)}),
        "criterion": chosen.name,
        **({"scope": spread} if runs is None else {}),
        "ignore": list(ignore),
        "seed": seed,
    }
    _check_change(graph, arrays, amount)
    sparse = _with(graph, arrays, Sparsified(graph, request, tuple(layers), tuple(whole)))
    return sparse if flux is None else flux.masked(sparse, arrays)


@overload
def mask(model: Source, masks: Mapping[str, NDArray[Any]]) -> Graph: ...


@overload
def mask(model: FluxModel, masks: Mapping[str, NDArray[Any]]) -> FluxModel: ...


def mask(model: Source | FluxModel, masks: Mapping[str, NDArray[Any]]) -> Graph | FluxModel:
    """Set weights of your own choice to zero, and hold them there as `sparsify` does.

    Parameters
    ----------
    model : as for `sparsify`.
    masks : initializer name of the normalized network -> bool of the weight's shape (ONNX's
        layout), false where the weight is to be zero. A mask that the weight has already goes on.

    Returns
    -------
    The sparse network, of the kind that came.

    Raises
    ------
    UsageError : there is no such floating weight, or a mask isn't bool of its shape.
    """
    graph = model.to_graph() if isinstance(model, FluxModel) else normalize(model)
    before = graph.masks
    arrays = {}
    for name, given in masks.items():
        value = graph.model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise UsageError(f"no initializer is called '{name}'; `normalize` may have renamed it")
        if not value.const_value.dtype.is_floating_point():
            raise UsageError(f"'{name}' holds {value.const_value.dtype.name.lower()}, no weights")
        array, wanted = graph.weight(name), np.asarray(given)
        if wanted.dtype != bool or wanted.shape != array.shape:
            raise UsageError(
                f"'{name}': expected a mask of bool of shape {array.shape}, came {wanted.dtype} of "
                f"shape {wanted.shape}"
            )
        if name in before:
            wanted = wanted & before[name]
        arrays[name] = recorded.with_zeros(array, wanted)
    sparse = _with(graph, arrays, Sparsified(graph, {"masks": sorted(masks)}))
    return model.masked(sparse, arrays) if isinstance(model, FluxModel) else sparse


def _scope(criterion: registry.Criterion, scope: Scope | None, pattern: Pattern | None) -> Scope:
    """Return what an amount is a share of."""
    if scope is None:
        return criterion.scope
    if scope not in SCOPES:
        raise UsageError(unknown("scope", scope, SCOPES))
    if pattern is not None:
        raise UsageError("a scope says what an amount is a share of: a pattern has none")
    if scope == "global" and criterion.solver is not None:
        raise UsageError(
            f"criterion '{criterion.name}' compares weights within a layer: its scope is 'local' "
            "or 'erk'"
        )
    return scope


def _masks(
    layers: Sequence[Layer],
    criterion: registry.Criterion,
    scoring: Scoring,
    amount: float | None,
    pattern: Pattern | None,
    scope: Scope,
    before: Mapping[str, NDArray[np.bool_]],
) -> Masks:
    """Return the mask of every layer's weight."""

    def scores(layer: Layer) -> np.ndarray:
        found = registry.score(criterion, layer, scoring)
        scoring.graph.unmap(layer.tensor)
        if layer.tensor in before:
            # What is zero by an earlier mask goes before anything else.
            found = np.where(before[layer.tensor], found, -np.inf)
        return found

    def gone(layer: Layer, wanted: int, flat: np.ndarray) -> NDArray[np.bool_]:
        return ~lowest(flat, max(wanted, int((flat == -np.inf).sum()))).reshape(layer.shape)

    shown = progress(layers, "ranking weights")
    if pattern is not None:
        masks = {}
        for layer in shown:
            assert layer.axis is not None
            found = scores(layer)
            masks[layer.tensor] = pattern.mask(found, layer.axis) & (found > -np.inf)
        return masks
    assert amount is not None
    if scope != "global":
        wanted = dict(
            zip((layer.tensor for layer in layers), counts(layers, amount, scope), strict=True)
        )
        return {
            layer.tensor: gone(layer, wanted[layer.tensor], scores(layer).reshape(-1))
            for layer in shown
        }
    flat = np.concatenate([scores(layer).reshape(-1) for layer in shown])
    lost = lowest(flat, max(share(amount, len(flat)), int((flat == -np.inf).sum())))
    ends = np.cumsum([layer.size for layer in layers])[:-1]
    return {
        layer.tensor: ~part.reshape(layer.shape)
        for layer, part in zip(layers, np.split(lost, ends), strict=True)
    }


def _check_change(graph: Graph, arrays: Mapping[str, np.ndarray], amount: float | None) -> None:
    """Raise a BudgetError if no more weights are zero than before."""
    before = sum(int((graph.weight(name) == 0).sum()) for name in arrays)
    after = sum(int((array == 0).sum()) for array in arrays.values())
    if after > before:
        return
    size = sum(array.size for array in arrays.values())
    have = f"{before:,} of {size:,} weights are zero already"
    if amount is not None:
        raise BudgetError(f"amount={amount} changes nothing: {have}; ask for more")
    raise BudgetError(f"the pattern changes nothing: {have}")


def _with(graph: Graph, arrays: Mapping[str, np.ndarray], how: Sparsified) -> Graph:
    """Return the graph with other weights, which have masks where they are zero."""
    model = duplicate(graph.model, recorded.tensors(graph.model, arrays))
    recorded.record(model, {*recorded.masked_names(graph.model), *arrays})
    return replace(graph, model=model, plan=None, source=None, sparsified=how)
