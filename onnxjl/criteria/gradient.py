"""Gradients: units whose removal changes the loss little matter little. They need a Flux model.

A unit has a row for each weight that it is cut from, as for the magnitudes; a row is computed from
the weights w of its slice and their gradients g. Gradients are taken of the loss that the caller
gives, in the model's mode (a new model is in test mode).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxjl.criteria.registry import register
from onnxjl.criteria.weights import GroupWeights, Scoring
from onnxjl.data import labelled
from onnxjl.errors import UsageError
from onnxjl.inputs import sample_shapes
from onnxjl.progress import progress
from onnxjl.structure import Group

if TYPE_CHECKING:
    from onnxjl.flux import FluxModel

Arrays = Mapping[str, np.ndarray]
Rows = dict[tuple[int, int], np.ndarray]
"""(group, row) -> (units,) float64."""

# Of the norm of the weights, for a central difference in float64: far above rounding, and so small
# that hardly a ReLU among millions bends between the two points, which counts as much as the step
# is small.
_STEP = 1e-10

PROBES = 16
"""Random vectors that a trace of the Hessian matrix is estimated with."""


@register(
    "taylor",
    source="Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, eq. 8",
    needs_data=True,
    needs_gradient=True,
)
def taylor(group: Group, weights: GroupWeights) -> np.ndarray:
    """First-order change of the loss: ``(Σ g·w)²``, the mean over batches.

    Returns
    -------
    (tensors, units) float64
    """
    return _of(group, weights, "taylor", lambda s: _mean_square(s, batch_gradients(s, 64)))


@register(
    "fisher",
    source="Theis et al. 2018, Faster gaze prediction with dense networks and Fisher pruning, "
    "eq. 5",
    needs_data=True,
    needs_gradient=True,
)
def fisher(group: Group, weights: GroupWeights) -> np.ndarray:
    """Second-order change of the loss, by the Fisher information: ``½(Σ g·w)²``, over samples.

    A network of a fixed batch size has that many samples at a time.

    Returns
    -------
    (tensors, units) float64
    """
    return _of(group, weights, "fisher", lambda s: _halved(_mean_square(s, batch_gradients(s, 1))))


@register(
    "obd",
    source="LeCun et al. 1989, Optimal Brain Damage, eq. 5, with the Fisher information for the "
    "diagonal of the Hessian matrix",
    needs_data=True,
    needs_gradient=True,
)
def obd(group: Group, weights: GroupWeights) -> np.ndarray:
    """Second-order change of the loss, weight by weight: ``½Σ g²·w²``, the mean over samples.

    A network of a fixed batch size has that many samples at a time.

    Returns
    -------
    (tensors, units) float64
    """

    def measure(scoring: Scoring) -> Rows:
        batches = batch_gradients(scoring, 1)
        squares = (_products(scoring, g, lambda g, w: (g * w) ** 2) for g in batches)
        return _halved(_mean(_rows(scoring, products) for products in squares))

    return _of(group, weights, "obd", measure)


@register(
    "snip",
    source="Lee et al. 2019, SNIP: Single-shot Network Pruning based on Connection Sensitivity, "
    "eq. 5",
    needs_data=True,
    needs_gradient=True,
)
def snip(group: Group, weights: GroupWeights) -> np.ndarray:
    """Sensitivity of the loss to its connections: ``Σ|g·w|``, with the mean gradient.

    Returns
    -------
    (tensors, units) float64
    """

    def measure(scoring: Scoring) -> Rows:
        products = _products(scoring, mean_gradient(scoring), lambda g, w: np.abs(g * w))
        return _rows(scoring, products)

    return _of(group, weights, "snip", measure)


@register(
    "synflow",
    source="Tanaka et al. 2020, Pruning neural networks without any data by iteratively "
    "conserving synaptic flow, eq. 1 and section 5",
    needs_gradient=True,
)
def synflow(group: Group, weights: GroupWeights) -> np.ndarray:
    """Flow through a unit when all weights are positive and the inputs ones: ``Σ|w|·∂R/∂|w|``.

    R is the sum of the outputs. It needs no data.

    Returns
    -------
    (tensors, units) float64
    """

    def measure(scoring: Scoring) -> Rows:
        model = _model(scoring).positive()
        ones = {name: np.ones(shape) for name, shape in sample_shapes(scoring.graph).items()}
        _, gradient = model.gradient(_total, _as_declared(model, ones))
        return _rows(scoring, _products(scoring, gradient, lambda g, w: np.abs(g * w)))

    return _of(group, weights, "synflow", measure)


@register(
    "grasp",
    source="Wang et al. 2020, Picking Winning Tickets Before Training by Preserving Gradient "
    "Flow, eq. 8",
    needs_data=True,
    needs_gradient=True,
)
def grasp(group: Group, weights: GroupWeights) -> np.ndarray:
    """What a unit adds to the norm of the gradient: ``Σ w·Hg``, H the Hessian matrix.

    Hg is a central difference of gradients in float64.

    Returns
    -------
    (tensors, units) float64
    """

    def measure(scoring: Scoring) -> Rows:
        product = hessian_gradient(scoring)
        return _rows(scoring, _products(scoring, product, lambda h, w: h * w))

    return _of(group, weights, "grasp", measure)


@register(
    "hessian-trace",
    source="Yu et al. 2022, Hessian-Aware Pruning and Optimal Neural Implant, section 3; the trace "
    "as Hutchinson 1990, A stochastic estimator of the trace of the influence matrix",
    needs_data=True,
    needs_gradient=True,
)
def hessian_trace(group: Group, weights: GroupWeights) -> np.ndarray:
    """Second-order change of the loss: ``tr(H_uu)/(2p)·Σw²``, p the number of the weights.

    The trace is the mean of ``Σ v·Hv`` over the weights of a unit, for random vectors v of ±1, from
    the seed; Hv is a central difference of gradients in float64.

    Returns
    -------
    (tensors, units) float64
    """
    return _of(group, weights, "hessian-trace", lambda s: relative_trace(s, _signs(s)))


def relative_trace(scoring: Scoring, vectors: Iterable[Arrays]) -> Rows:
    """``tr(H_uu)/(2p)·Σw²`` of every unit, its trace estimated with these vectors.

    Parameters
    ----------
    vectors : of ±1, by initializer name. Over all that there are, the trace is exact.
    """
    diagonal: dict[str, np.ndarray] = {}
    count = 0
    for v in progress(vectors, "taking products with the Hessian"):
        count += 1
        for name, product in hessian_product(scoring, v).items():
            diagonal[name] = diagonal.get(name, 0.0) + v[name] * product
    mean = {name: total / count for name, total in diagonal.items()}
    trace = _rows(scoring, _products(scoring, mean, lambda h, _: h))
    squares = _rows(scoring, _products(scoring, mean, lambda _, w: w**2))
    numbers = _rows(scoring, _products(scoring, mean, lambda h, _: np.ones_like(h)))
    return {key: trace[key] * squares[key] / (2 * np.maximum(numbers[key], 1)) for key in trace}


def _signs(scoring: Scoring) -> list[_Signs]:
    """Random vectors of ±1, each drawn when it is read."""
    shapes = {name: g.shape for name, g in sorted(mean_gradient(scoring).items())}
    return [_Signs(shapes, [scoring.seed, number]) for number in range(PROBES)]


class _Signs(Mapping[str, np.ndarray]):
    """A vector of ±1 for the weights of a network: only its seed is held."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: Sequence[int]) -> None:
        self._shapes = shapes
        self._seed = seed

    def __getitem__(self, name: str) -> np.ndarray:
        draw = np.random.default_rng([*self._seed, zlib.crc32(name.encode())])
        return draw.integers(0, 2, self._shapes[name]) * 2.0 - 1.0

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def mean_gradient(scoring: Scoring) -> Arrays:
    """The mean gradient over the data's batches, each weighing what its samples do.

    Raises
    ------
    UsageError : no data are given.
    """
    if "gradient" not in scoring.computed:
        scoring.computed["gradient"] = _mean_over(scoring, _model(scoring))
    found: Arrays = scoring.computed["gradient"]
    return found


def hessian_gradient(scoring: Scoring) -> Arrays:
    """The product of the Hessian matrix of the loss with its mean gradient."""
    return hessian_product(scoring, mean_gradient(scoring))


def hessian_product(scoring: Scoring, direction: Arrays) -> Arrays:
    """The product of the Hessian matrix of the loss with a vector, by initializer name."""
    model = _model(scoring)
    length = _norm(direction.values())
    if length == 0.0:
        return {name: np.zeros_like(v) for name, v in direction.items()}
    step = _STEP * _norm(scoring.graph.weight(name) for name in direction) / length
    ahead, behind = (
        _mean_over(scoring, model.moved(direction, sign * step)) for sign in (1.0, -1.0)
    )
    return {name: (ahead[name] - behind[name]) / (2 * step) for name in direction}


def _norm(arrays: Iterable[np.ndarray]) -> float:
    return float(np.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays)))


def _of(
    group: Group, weights: GroupWeights, name: str, measure: Callable[[Scoring], Rows]
) -> np.ndarray:
    """The rows of one group, of what is measured once for all."""
    scoring = weights.scoring
    if name not in scoring.computed:
        scoring.computed[name] = measure(scoring)
    found: Rows = scoring.computed[name]
    number = next(i for i, other in enumerate(scoring.groups) if other is group)
    return np.stack([found[number, row] for row in range(len(weights.contracted))])


def _model(scoring: Scoring) -> FluxModel:
    if scoring.model is None:
        raise UsageError("gradients need a Flux model: onnxjl.to_flux(model)")
    return scoring.model


def batch_gradients(scoring: Scoring, size: int) -> Iterable[Arrays]:
    """The gradient of each batch of the data.

    Parameters
    ----------
    scoring : the request, with a Flux model and labelled data.
    size : samples in a batch where the graph leaves the number open.

    Yields
    ------
    Initializer name -> gradient of the weight's shape.
    """
    model = _model(scoring)
    data = labelled(_data(scoring), scoring.graph, batch_size=size)
    for feeds, target in progress(data, "taking gradients"):
        yield model.gradient(scoring.loss or "cross-entropy", feeds, target)[1]


def _data(scoring: Scoring) -> Any:
    if scoring.data is None:
        raise UsageError("gradients are measured on data with labels: give some (data=, --data)")
    return scoring.data


def _mean_over(scoring: Scoring, model: FluxModel) -> Arrays:
    totals: dict[str, np.ndarray] = {}
    samples = 0
    for feeds, target in labelled(_data(scoring), scoring.graph):
        inputs = feeds if model is scoring.model else _as_declared(model, feeds)
        _, gradient = model.gradient(scoring.loss or "cross-entropy", inputs, target)
        samples += len(target)
        for name, g in gradient.items():
            part = g.astype(np.float64) * len(target)
            totals[name] = totals[name] + part if name in totals else part
    return {name: total / samples for name, total in totals.items()}


def _as_declared(model: FluxModel, feeds: Arrays) -> Arrays:
    """Inputs for a model in float64: floats so, others as the graph declares them."""
    declared = {value.name: value.dtype for value in model.graph.model.graph.inputs}
    found = {}
    for name, array in feeds.items():
        dtype = declared.get(name)
        whole = dtype is not None and not dtype.is_floating_point()
        found[name] = array.astype(dtype.numpy() if dtype is not None and whole else np.float64)
    return found


def _total(output: Any, _: Any) -> tuple[float, Any]:
    """The sum of all outputs, and its gradient."""
    if isinstance(output, Mapping):
        ones = {name: np.ones_like(y) for name, y in output.items()}
        return float(sum(y.sum() for y in output.values())), ones
    return float(output.sum()), np.ones_like(output)


def _products(
    scoring: Scoring, gradient: Arrays, product: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Callable[[str], np.ndarray]:
    """Each weight's product with its gradient, in float64; none where no gradient reaches it."""

    def of(tensor: str) -> np.ndarray:
        weight = scoring.graph.weight(tensor).astype(np.float64)
        if tensor not in gradient:
            return np.zeros_like(weight)
        return product(gradient[tensor].astype(np.float64), weight)

    return of


def _rows(scoring: Scoring, products: Callable[[str], np.ndarray]) -> Rows:
    """The sum over each unit's slice of each of its weights."""
    sums: dict[tuple[str, int], np.ndarray] = {}
    rows: Rows = {}
    for number, group in enumerate(scoring.groups):
        for row, member in enumerate(GroupWeights(scoring, group).contracted):
            place = (member.tensor, member.axis)
            if place not in sums:
                array = products(member.tensor)
                for axis in range(array.ndim):
                    others = tuple(a for a in range(array.ndim) if a != axis)
                    sums[member.tensor, axis] = array.sum(axis=others)
            rows[number, row] = sums[place][member.indices].sum(axis=1)
    return rows


def _mean_square(scoring: Scoring, gradients: Iterable[Arrays]) -> Rows:
    def squares() -> Iterable[Rows]:
        for gradient in gradients:
            rows = _rows(scoring, _products(scoring, gradient, lambda g, w: g * w))
            yield {key: row**2 for key, row in rows.items()}

    return _mean(squares())


def _mean(parts: Iterable[Rows]) -> Rows:
    total: Rows = {}
    count = 0
    for rows in parts:
        count += 1
        total = {key: row + total.get(key, 0.0) for key, row in rows.items()}
    return {key: row / count for key, row in total.items()}


def _halved(rows: Rows) -> Rows:
    return {key: row / 2 for key, row in rows.items()}
