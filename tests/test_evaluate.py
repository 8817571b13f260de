"""Accuracy, against counting by hand."""

import numpy as np
import pytest
import small_networks as small
from onnx import helper

from onnxjl.errors import DataError
from onnxjl.evaluate import accuracy
from onnxjl.load import load


def passing(*shape):
    """A network whose output is its input."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return load(small.model(nodes, {"x": shape}, {"y": shape}, {}))


SCORES = np.random.default_rng(6).standard_normal((150, 5)).astype(np.float32)
LABELS = np.random.default_rng(7).integers(0, 5, 150)
BEST = [max(range(5), key=lambda c, row=row: row[c]) for row in SCORES]


def share(count):
    return sum(BEST[i] == LABELS[i] for i in range(count)) / count


@pytest.mark.parametrize("batch_size", [1, 64, 1000])
def test_the_fraction_of_samples_with_the_right_class(batch_size):
    assert 0 < share(150) < 1
    found = accuracy(passing("N", 5), (SCORES, LABELS), batch_size=batch_size)
    assert found == pytest.approx(share(150), abs=1e-12)


def test_a_fixed_batch_counts_the_samples_that_fill_it():
    assert accuracy(passing(40, 5), (SCORES, LABELS)) == pytest.approx(share(120), abs=1e-12)


def test_outputs_may_end_in_axes_of_one():
    data = (SCORES.reshape(150, 5, 1, 1), LABELS)
    assert accuracy(passing("N", 5, 1, 1), data) == pytest.approx(share(150), abs=1e-12)


@pytest.mark.parametrize("right", [0, 150])
def test_none_and_all(right):
    labels = np.array(BEST) if right else (np.array(BEST) + 1) % 5
    assert accuracy(passing("N", 5), {"x": SCORES, "target": labels}) == right / 150


@pytest.mark.parametrize(
    ("shape", "x", "y", "message"),
    [
        ((5,), SCORES[0], LABELS[:5], r"needs outputs of shape \(samples, classes\).*\(5,\)"),
        (("N", 5, 2), np.ones((3, 5, 2), "f4"), LABELS[:3], r"'y' has \(3, 5, 2\)"),
        (("N", 5), SCORES[:3], np.array([0, 1, 5]), "classes 0 to 5; output 'y' has 0 to 4"),
        (("N", 5), SCORES[:3], np.array([0, -1, 2]), "classes -1 to 2; output 'y' has 0 to 4"),
        (
            ("N", 5),
            SCORES[:3],
            np.eye(5)[:3],
            r"one integer for each sample, came float64 .*\(3, 5\)",
        ),
        (("N", 5), SCORES[:3], np.ones(3), "one integer for each sample, came float64"),
        (("N", 5), SCORES[:3], None, "the data have no labels"),
    ],
)
def test_what_is_no_classification_is_told(shape, x, y, message):
    with pytest.raises(DataError, match=message):
        accuracy(passing(*shape), x if y is None else (x, y))


def test_outputs_that_are_not_one_row_a_sample_are_told():
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)]
    graph = load(small.model(nodes, {"x": ("N", 5)}, {"y": (1, 5)}, {"axes": np.array([0])}))
    with pytest.raises(DataError, match="output 'y' has 1 rows for a batch of 3 samples"):
        accuracy(graph, (SCORES[:3], LABELS[:3]))
