"""Activations on the caller's data: units that are rarely or weakly active matter little.

What is measured, in onnxruntime, are the values by which contractions consume a group's units. A
group that no contraction consumes is ranked by l2 instead, brought to the mean of the others'
scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxjl import session
from onnxjl.criteria.magnitude import stand_in
from onnxjl.criteria.registry import register
from onnxjl.criteria.weights import GroupWeights, Scoring
from onnxjl.data import batches
from onnxjl.errors import DataError, UsageError
from onnxjl.graph import Graph
from onnxjl.progress import progress
from onnxjl.structure import Group

# Outputs of the probe, by the number of the place.
_SUM, _COUNT = "onnxjl.sum.{}", "onnxjl.count.{}"

# Samples whose feature maps are held at once.
_MAPS = 16

Place = tuple[str, int]
"""A value's name and one of its axes."""


@register(
    "activation",
    source="Molchanov et al. 2017, Pruning Convolutional Neural Networks for Resource Efficient "
    "Inference, section 2.2",
    needs_data=True,
)
def activation(group: Group, weights: GroupWeights) -> np.ndarray:
    """Mean magnitude of a unit's activations: ``mean|a|`` over samples and positions.

    Returns
    -------
    (activations, units) float64

    Raises
    ------
    UsageError : no data are given.
    DataError : the data don't fit, or an activation isn't finite.
    """
    return _measured("activation", group, weights)


@register(
    "apoz",
    source="Hu et al. 2016, Network Trimming: A Data-Driven Neuron Pruning Approach towards "
    "Efficient Deep Architectures, eq. 1",
    needs_data=True,
)
def apoz(group: Group, weights: GroupWeights) -> np.ndarray:
    """One less the average percentage of zeros: the fraction of ``a ≠ 0``.

    It is taken over samples and positions.

    Returns
    -------
    (activations, units) float64

    Raises
    ------
    UsageError : no data are given.
    DataError : the data don't fit.
    """
    return _measured("apoz", group, weights)


@register(
    "hrank",
    source="Lin et al. 2020, HRank: Filter Pruning using High-Rank Feature Map, eq. 5",
    needs_data=True,
)
def hrank(group: Group, weights: GroupWeights) -> np.ndarray:
    """Mean rank of a unit's feature map, as a matrix of its two last axes, over samples.

    A map with one axis, as of a sequence, is a row, and one of three or more is flattened to the
    first of them and the rest. The rank counts singular values as NumPy's `matrix_rank` does.

    Returns
    -------
    (activations, units) float64

    Raises
    ------
    UsageError : no data are given.
    DataError : the data don't fit, or an activation isn't finite.
    """
    return _measured("hrank", group, weights)


def _measured(criterion: str, group: Group, weights: GroupWeights) -> np.ndarray:
    scoring = weights.scoring
    if criterion not in scoring.computed:
        scoring.computed[criterion] = _measure_all(criterion, scoring)
    means, overall = scoring.computed[criterion]
    if not weights.activations:
        return stand_in(group, weights, overall)
    return _rows(means, weights)


def _rows(means: Mapping[Place, np.ndarray], weights: GroupWeights) -> np.ndarray:
    return np.stack([means[a.value, a.axis][a.indices].mean(axis=1) for a in weights.activations])


def _measure_all(criterion: str, scoring: Scoring) -> tuple[dict[Place, np.ndarray], float]:
    """What each group needs, in one pass over the data, and the mean score of all units."""
    if scoring.data is None:
        raise UsageError(
            f"criterion '{criterion}' is measured on data: give some (data=, --data FILE.npz)"
        )
    places = dict.fromkeys((a.value, a.axis) for g in scoring.groups for a in g.activations)
    if not places:
        return {}, 1.0
    if criterion == "hrank":
        means = mean_rank(scoring.graph, list(places), scoring.data)
    else:
        means = mean_over(scoring.graph, list(places), scoring.data, nonzero=criterion == "apoz")
    groups = [GroupWeights(scoring, group) for group in scoring.groups if group.activations]
    scores = [weights.aggregate(_rows(means, weights)) for weights in groups]
    return means, float(np.concatenate(scores).mean())


def mean_over(
    graph: Graph, places: Sequence[Place], data: object, *, nonzero: bool
) -> dict[Place, np.ndarray]:
    """Mean of ``|a|``, or of ``a ≠ 0``, over all axes of a value but one.

    onnxruntime sums in float64 inside the graph, so that memory depends neither on the number of
    samples nor on the number of values.

    Parameters
    ----------
    graph : the graph that has the values.
    places : value names, each with the axis that is kept.
    data : see `onnxjl.data`.
    nonzero : whether to count activations that aren't zero instead of summing magnitudes.

    Returns
    -------
    dict from place to (size of the axis,) float64

    Raises
    ------
    DataError : the data don't fit, or an activation isn't finite.
    """
    opened = session.open_session(_probe(graph, places, nonzero=nonzero))
    sums: dict[Place, np.ndarray] = {}
    counts = dict.fromkeys(places, 0)
    for feeds in progress(batches(data, graph), "measuring activations"):
        results = session.run(opened, feeds)
        for number, place in enumerate(places):
            total = results[_SUM.format(number)]
            sums[place] = sums[place] + total if place in sums else total
            # The elements are those of the whole value, of which each index has its share.
            counts[place] += int(results[_COUNT.format(number)]) // max(1, total.size)
    means = {}
    for place in places:
        means[place] = sums[place] / max(1, counts[place])
        if not np.isfinite(means[place]).all():
            raise DataError(f"on these data the activation '{place[0]}' is NaN or infinite")
    return means


def mean_rank(graph: Graph, places: Sequence[Place], data: object) -> dict[Place, np.ndarray]:
    """Mean rank of the feature maps at each index of an axis, over samples (axis 0).

    Parameters
    ----------
    graph, places, data : as for `mean_over`.

    Returns
    -------
    dict from place to (size of the axis,) float64

    Raises
    ------
    DataError : the data don't fit, or an activation isn't finite.
    """
    opened = session.open_session(watched(graph, list(dict.fromkeys(v for v, _ in places))))
    sums: dict[Place, np.ndarray] = {}
    samples = dict.fromkeys(places, 0)
    for feeds in progress(batches(data, graph, batch_size=_MAPS), "ranking feature maps"):
        results = session.run(opened, feeds)
        for value, axis in places:
            array = results[value]
            if not np.isfinite(array).all():
                raise DataError(f"on these data the activation '{value}' is NaN or infinite")
            ranks = np.linalg.matrix_rank(_maps(array, axis))
            total = ranks.sum(axis=0, dtype=np.float64)
            place = (value, axis)
            sums[place] = sums[place] + total if place in sums else total
            samples[place] += len(ranks)
    return {place: total / max(1, samples[place]) for place, total in sums.items()}


def _maps(array: np.ndarray, axis: int) -> np.ndarray:
    """An activation as matrices: (samples, size of the axis, rows, columns)."""
    if array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    if axis == 0:
        array, axis = array[None], 1
    array = np.moveaxis(array, axis, 1)
    sizes = array.shape[2:]
    rows = sizes[0] if len(sizes) > 1 else 1
    return array.reshape(*array.shape[:2], rows, -1)


def watched(graph: Graph, names: Sequence[str]) -> Graph:
    """A copy of the graph whose only outputs are these values."""
    model = graph.model.clone()
    network = model.graph
    values = {value.name: value for value in network.inputs}
    values |= {value.name: value for node in network for value in node.outputs}
    network.outputs.clear()
    network.outputs.extend(values[name] for name in names)
    RemoveUnusedNodesPass()(model)
    return dataclasses.replace(graph, model=model)


def _probe(graph: Graph, places: Sequence[Place], *, nonzero: bool) -> Graph:
    """A copy of the graph whose only outputs are sums and numbers of elements for each place."""
    model = graph.model.clone()
    network = model.graph
    network.outputs.clear()
    values = {value.name: value for value in network.inputs}
    values |= {value.name: value for node in network for value in node.outputs}
    zero = _constant(network, "onnxjl.zero", np.zeros((), np.float64))
    for number, (name, axis) in enumerate(places):
        value = values[name]
        rank = len(value.shape) if value.shape is not None else axis + 1
        others = [other for other in range(rank) if other != axis]
        axes = _constant(network, f"onnxjl.axes.{number}", np.array(others, np.int64))
        wide = _node(network, "Cast", [value], {"to": ir.DataType.DOUBLE})
        if nonzero:
            is_zero = _node(network, "Equal", [wide, zero])
            counted = _node(network, "Not", [is_zero])
            measured = _node(network, "Cast", [counted], {"to": ir.DataType.DOUBLE})
        else:
            measured = _node(network, "Abs", [wide])
        keep = {"keepdims": 0, "noop_with_empty_axes": 1}
        total = _node(network, "ReduceSum", [measured, axes], keep)
        count = _node(network, "Size", [value])
        for output, pattern, dtype, shape in (
            (total, _SUM, ir.DataType.DOUBLE, ir.Shape([None])),
            (count, _COUNT, ir.DataType.INT64, ir.Shape([])),
        ):
            output.name, output.dtype, output.shape = pattern.format(number), dtype, shape
            network.outputs.append(output)
    RemoveUnusedNodesPass()(model)
    return dataclasses.replace(graph, model=model)


def _constant(network: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
    )
    network.register_initializer(value)
    return value


def _node(
    network: ir.Graph,
    operator: str,
    inputs: list[ir.Value],
    attributes: dict[str, int] | None = None,
) -> ir.Value:
    node = ir.node(operator, inputs, attributes)
    network.append(node)
    return node.outputs[0]
