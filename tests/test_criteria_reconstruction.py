"""The criterion `reconstruction`: against least squares by NumPy, unit by unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
import test_recovery
from onnx import helper

import onnxjl
from onnxjl import criteria
from onnxjl.criteria import reconstruction
from onnxjl.errors import DataError, UsageError
from onnxjl.load import load
from onnxjl.normalize import normalize
from onnxjl.structure import analyze

RANDOM = np.random.default_rng(5)
RTOL = 1e-4  # float32 activations


@pytest.fixture
def without_ridge(monkeypatch):
    """Least squares as they are by hand; the inverses need a little."""
    monkeypatch.setattr(reconstruction, "RIDGE", 1e-9)


exact = pytest.mark.usefixtures("without_ridge")


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def network(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    outputs: Sequence[str],
    weights: dict[str, np.ndarray],
) -> onnx.ModelProto:
    return test_recovery.network(nodes, weights, {"x": shape}, dict.fromkeys(outputs))


def node(op_type: str, inputs: str, output: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], name=output, **attributes)


def scores_of(proto: onnx.ModelProto, x: np.ndarray, **options) -> list[np.ndarray]:
    graph = normalize(load(proto))
    groups = analyze(graph, **options).groups
    return criteria.score(graph, groups, "reconstruction", data=x)


def residual(inputs: np.ndarray, wanted: np.ndarray) -> float:
    """Squared error per row that least squares with a constant leaves."""
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    solved = np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    return float(np.square(wanted - inputs @ solved).sum() / len(inputs))


Problem = tuple[np.ndarray, np.ndarray, float]
"""Rows (rows, units, k) of what is read, the outputs wanted, and what errors are relative to."""


def by_hand(problems: Sequence[Problem]) -> list[float]:
    """Take out the unit that costs least, again and again, with a least-squares fit for each.

    A unit that costs less than one that went before it scores as much.
    """
    units = problems[0][0].shape[1]
    left, found, before, last = list(range(units)), [0.0] * units, 0.0, 0.0
    while left:
        totals = {}
        for unit in left:
            kept = [other for other in left if other != unit]
            totals[unit] = sum(
                residual(rows[:, kept].reshape(len(rows), -1), wanted) / variance
                for rows, wanted, variance in problems
            )
        unit = min(totals, key=totals.__getitem__)
        last = max(last, totals[unit] - before)
        found[unit] = last
        before = totals[unit]
        left.remove(unit)
    return found


def variance(values: np.ndarray) -> float:
    return float(values.reshape(-1, values.shape[-1]).var(axis=0).sum())


def relu(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0)


def correlated(rows: int, columns: int) -> np.ndarray:
    return (
        RANDOM.standard_normal((rows, columns)) @ RANDOM.standard_normal((columns, columns))
    ).astype(np.float32)


@exact
def test_a_hidden_layer():
    w, v, x = floats(6, 9), floats(9, 4), correlated(400, 6)
    proto = network(
        [node("MatMul", "x w", "a"), node("Relu", "a", "h"), node("MatMul", "h v", "y")],
        ["N", 6], ["y"], {"w": w, "v": v},
    )  # fmt: skip
    (found,) = scores_of(proto, x)
    hidden = relu(x.astype(np.float64) @ w)
    wanted = hidden @ v
    expected = by_hand([(hidden[:, :, None], wanted, variance(wanted))])
    np.testing.assert_allclose(found, expected, rtol=RTOL)


def test_a_unit_that_another_one_repeats_costs_nothing_but_only_once():
    w, v, x = floats(6, 8), floats(8, 4), correlated(300, 6)
    w[:, 5] = 2 * w[:, 2]  # ReLU keeps factors that are positive
    proto = network(
        [node("MatMul", "x w", "a"), node("Relu", "a", "h"), node("MatMul", "h v", "y")],
        ["N", 6], ["y"], {"w": w, "v": v},
    )  # fmt: skip
    (found,) = scores_of(proto, x)
    first = int(np.argmin(found))
    assert first in (2, 5)
    twin = 7 - first
    assert found[first] < 1e-4
    assert found[twin] > 1e-2


@exact
def test_several_layers_that_read_the_same_units():
    w, v, u, x = floats(5, 7), floats(7, 3), floats(7, 12), correlated(500, 5)
    proto = network(
        [
            node("MatMul", "x w", "a"),
            node("Relu", "a", "h"),
            node("MatMul", "h v", "y"),
            node("Sigmoid", "h", "s"),
            node("MatMul", "s u", "z"),
        ],
        ["N", 5], ["y", "z"], {"w": w, "v": v, "u": u},
    )  # fmt: skip
    (found,) = scores_of(proto, x)
    hidden = relu(x.astype(np.float64) @ w)
    squashed = 1 / (1 + np.exp(-hidden))
    first, second = hidden @ v, squashed @ u
    expected = by_hand(
        [
            (hidden[:, :, None], first, variance(first)),
            (squashed[:, :, None], second, variance(second)),
        ]
    )
    np.testing.assert_allclose(found, expected, rtol=RTOL)


@exact
def test_errors_are_relative_to_the_sum_that_a_branch_enters():
    w, v, x = floats(6, 5), floats(5, 6), correlated(400, 6)
    proto = network(
        [
            node("MatMul", "x w", "a"),
            node("Relu", "a", "h"),
            node("MatMul", "h v", "b"),
            node("Add", "b x", "y"),
        ],
        ["N", 6], ["y"], {"w": w, "v": v},
    )  # fmt: skip
    (found,) = scores_of(proto, x)
    hidden = relu(x.astype(np.float64) @ w)
    branch = hidden @ v
    scale = max(variance(branch), variance(branch + x))
    expected = by_hand([(hidden[:, :, None], branch, scale)])
    np.testing.assert_allclose(found, expected, rtol=RTOL)


@exact
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_solved_at_each_place_of_its_kernel(groups):
    w, v = floats(6, 3, 1, 1), floats(4, 6 // groups, 2, 2)
    x = floats(40, 3, 8, 8)
    proto = network(
        [
            node("Conv", "x w", "a"),
            node("Relu", "a", "h"),
            node("Conv", "h v", "y", group=groups),
        ],
        ["N", 3, 8, 8], ["y"], {"w": w, "v": v},
    )  # fmt: skip
    (found,) = scores_of(proto, x)
    hidden = relu(np.einsum("oi,nixy->nxyo", w[:, :, 0, 0].astype(np.float64), x)).reshape(-1, 6)
    # A layer of its own for each group, with as many outputs as the kernel has outputs and places.
    problems = []
    for group in range(groups):
        part = slice(group * 6 // groups, (group + 1) * 6 // groups)
        kernel = v[group * 4 // groups : (group + 1) * 4 // groups].astype(np.float64)
        wanted = hidden[:, part] @ kernel.transpose(1, 0, 2, 3).reshape(6 // groups, -1)
        problems.append((hidden[:, part], wanted, variance(wanted)))
    whole = sum(scale for *_, scale in problems)
    problems = [(rows, wanted, whole) for rows, wanted, _ in problems]
    if groups == 1:
        expected = by_hand([(rows[:, :, None], *rest) for rows, *rest in problems])
    else:
        # Units are channels of both groups, or of one; the analysis says which.
        graph = normalize(load(proto))
        (group,) = analyze(graph).groups
        (activation,) = {a.value: a for a in group.activations}.values()
        width = activation.indices.shape[1]
        assert width == 2
        both = [
            (
                np.stack([rows[:, i % 3] for i in activation.indices[:, k]], axis=1)[:, :, None],
                *rest,
            )
            for k, (rows, *rest) in enumerate(problems)
        ]
        expected = by_hand(both)
    np.testing.assert_allclose(found, expected, rtol=RTOL)


@exact
@pytest.mark.parametrize("unknowns", [4096, 4])
def test_units_of_several_features(unknowns, monkeypatch):
    monkeypatch.setattr(reconstruction, "_UNKNOWNS", unknowns)
    w, v, x = floats(5, 3, 1, 1), floats(5 * 4, 6), floats(600, 3, 2, 2)
    proto = network(
        [
            node("Conv", "x w", "a"),
            node("Relu", "a", "h"),
            node("Flatten", "h", "f"),
            node("MatMul", "f v", "y"),
        ],
        ["N", 3, 2, 2], ["y"], {"w": w, "v": v},
    )  # fmt: skip
    (found,) = scores_of(proto, x)
    hidden = relu(np.einsum("oi,nixy->noxy", w[:, :, 0, 0].astype(np.float64), x))
    hidden = hidden.reshape(600, 5, 4)
    matrix = v.reshape(5, 4, 6).astype(np.float64)
    if unknowns == 4096:
        wanted = np.einsum("nuk,uko->no", hidden, matrix)
        expected = by_hand([(hidden, wanted, variance(wanted))])
    else:
        parts = [hidden[:, :, k] @ matrix[:, k] for k in range(4)]
        whole = sum(variance(part) for part in parts)
        expected = by_hand([(hidden[:, :, k, None], part, whole) for k, part in enumerate(parts)])
    np.testing.assert_allclose(found, expected, rtol=RTOL)


@exact
def test_a_transposed_convolution_that_does_not_overlap():
    w, v, x = floats(6, 3, 1, 1), floats(6, 4, 2, 2), floats(40, 3, 5, 5)
    gamma, beta, mean, spread = (abs(floats(4)) + 0.5 for _ in range(4))
    proto = network(
        [
            node("Conv", "x w", "a"),
            node("Relu", "a", "h"),
            node("ConvTranspose", "h v", "b", strides=[2, 2]),
            node("BatchNormalization", "b gamma beta mean spread", "y"),
        ],
        ["N", 3, 5, 5], ["y"],
        {"w": w, "v": v, "gamma": gamma, "beta": beta, "mean": mean, "spread": spread},
    )  # fmt: skip
    (found,) = scores_of(proto, x)
    hidden = relu(np.einsum("oi,nixy->nxyo", w[:, :, 0, 0].astype(np.float64), x)).reshape(-1, 6)
    factor = (gamma / np.sqrt(spread + 1e-5)).astype(np.float64)
    wanted = hidden @ (v * factor[:, None, None]).reshape(6, -1)
    expected = by_hand([(hidden[:, :, None], wanted, variance(wanted))])
    np.testing.assert_allclose(found, expected, rtol=RTOL)


@exact
def test_a_depthwise_convolution_passes_units_on():
    w, d, v, x = floats(5, 3, 1, 1), floats(5, 1, 3, 3), floats(4, 5, 1, 1), floats(30, 3, 8, 8)
    pointwise = [node("Conv", "x w", "a"), node("Conv", "a d", "h", group=5)]
    proto = network(
        [*pointwise, node("Conv", "h v", "y")],
        ["N", 3, 8, 8], ["y"], {"w": w, "d": d, "v": v},
    )  # fmt: skip
    (found,) = scores_of(proto, x)
    ran = onnxruntime.InferenceSession(
        network(pointwise, ["N", 3, 8, 8], ["h"], {"w": w, "d": d}).SerializeToString()
    )
    hidden = ran.run(None, {"x": x})[0].transpose(0, 2, 3, 1).reshape(-1, 5).astype(np.float64)
    wanted = hidden @ v[:, :, 0, 0].T
    expected = by_hand([(hidden[:, :, None], wanted, variance(wanted))])
    np.testing.assert_allclose(found, expected, rtol=RTOL)


def test_batch_normalization_folded_or_kept_is_the_same():
    w, v, x = floats(6, 3, 1, 1), floats(4, 6, 1, 1), floats(50, 3, 4, 4)
    gamma, beta, mean, spread = (abs(floats(4)) + 0.5 for _ in range(4))
    factor = gamma / np.sqrt(spread + 1e-5)
    kept = network(
        [
            node("Conv", "x w", "a"),
            node("Relu", "a", "h"),
            node("Conv", "h v", "b"),
            node("BatchNormalization", "b gamma beta mean spread", "y"),
        ],
        ["N", 3, 4, 4], ["y"],
        {"w": w, "v": v, "gamma": gamma, "beta": beta, "mean": mean, "spread": spread},
    )  # fmt: skip
    folded = network(
        [node("Conv", "x w", "a"), node("Relu", "a", "h"), node("Conv", "h v c", "y")],
        ["N", 3, 4, 4], ["y"],
        {"w": w, "v": v * factor[:, None, None, None], "c": beta - mean * factor},
    )  # fmt: skip
    np.testing.assert_allclose(scores_of(kept, x)[0], scores_of(folded, x)[0], rtol=1e-4)


def test_eliminating_many_units_is_like_solving_each_time_anew():
    """More than are taken out before matrices are brought up to date."""
    size = 2 * reconstruction._PENDING + 7
    rows = RANDOM.standard_normal((3 * size, size)) @ RANDOM.standard_normal((size, size))
    covariance = rows.T @ rows / len(rows) + 1e-2 * np.eye(size)
    weight = RANDOM.standard_normal((size, size + 5))
    units = np.arange(size)
    problem = reconstruction.Elimination(np.linalg.inv(covariance), weight, units)
    found = reconstruction.eliminated([problem], size)
    left, expected, last = list(range(size)), np.zeros(size), 0.0
    while left:
        inverse = np.linalg.inv(covariance[np.ix_(left, left)])
        solved = inverse @ covariance[left] @ weight
        costs = np.square(solved).sum(axis=1) / inverse.diagonal()
        at = int(np.argmin(costs))
        last = max(last, costs[at])
        expected[left.pop(at)] = last
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_measuring_in_several_passes_changes_nothing(monkeypatch):
    graph = normalize(load("tests/models/mnist-resnet14.onnx"))
    groups = analyze(graph).groups
    data = dict(np.load("tests/models/mnist-resnet14.calib.npz"))
    data = {"image": data["image"][:24]}
    at_once = criteria.score(graph, groups, "reconstruction", data=data)
    monkeypatch.setattr(reconstruction, "POSITIONS", 10**9)  # none is drawn
    whole = criteria.score(graph, groups, "reconstruction", data=data)
    monkeypatch.setattr(reconstruction, "_BYTES", 1)
    one_by_one = criteria.score(graph, groups, "reconstruction", data=data)
    for first, second in zip(whole, one_by_one, strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-9)
    assert not np.array_equal(np.concatenate(at_once), np.concatenate(whole))


def test_a_group_that_no_layer_with_weights_reads_has_l2_brought_to_the_mean_of_the_others():
    w, v, x = floats(4, 6), floats(6, 5), floats(60, 4)
    proto = network(
        [node("MatMul", "x w", "a"), node("MatMul", "a v", "y")],
        ["N", 4], ["y"], {"w": w, "v": v},
    )  # fmt: skip
    graph = normalize(load(proto))
    (group,) = analyze(graph).groups
    alone = dataclasses.replace(group, activations=())
    first, second = criteria.score(graph, [group, alone], "reconstruction", data=x)
    (norms,) = criteria.score(graph, [alone], "l2", normalization="none")
    np.testing.assert_allclose(second, norms / norms.mean() * first.mean(), rtol=1e-6)


def test_pruning_measures_on_the_calibration_data_unless_others_are_given():
    source = "tests/models/mnist-resnet14.onnx"
    data = {"image": np.load("tests/models/mnist-resnet14.calib.npz")["image"][:200]}
    small = onnxjl.prune(source, macs=0.5, criterion="reconstruction", calibration=data)
    same = onnxjl.prune(source, macs=0.5, criterion="reconstruction", calibration=data, data=data)
    assert small.plan == same.plan
    others = {"image": np.load("tests/models/mnist-resnet14.calib.npz")["image"][200:400]}
    different = onnxjl.prune(
        source, macs=0.5, criterion="reconstruction", calibration=data, data=others
    )
    assert different.plan != small.plan


def test_errors():
    proto = network(
        [node("MatMul", "x w", "a"), node("MatMul", "a v", "y")],
        ["N", 4], ["y"], {"w": floats(4, 6), "v": floats(6, 5)},
    )  # fmt: skip
    with pytest.raises(UsageError, match="criterion 'reconstruction' is measured on data"):
        onnxjl.prune(proto, amount=0.5, criterion="reconstruction")
    with pytest.raises(DataError, match="on these data the activation 'a' is NaN or infinite"):
        onnxjl.prune(
            proto, amount=0.5, criterion="reconstruction", data=np.full((3, 4), np.nan, np.float32)
        )
