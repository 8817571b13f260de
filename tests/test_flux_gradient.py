"""Gradients and criteria of Flux models are PyTorch's, weight by weight.

References that PyTorch made lie in models/gradients; models/export_gradients.py made them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flux_support import needs_julia

import onnxjl
from onnxjl.criteria import CRITERIA, GroupWeights
from onnxjl.criteria.weights import Scoring

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

FOLDER = Path(__file__).parent / "models" / "gradients"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
QUICK = ("resnet", "bert")
WHOLE = (
    "resnet18",
    "mobilenet_v2",
    "densenet121",
    "shufflenet_v2_x1_0",
    "vit_b_16",
    "lstm",
    "bertlike",
)

# Of the largest entry of a weight's gradient; or of the floor, a part of the largest entry of all
# gradients, for those that are nothing but rounding: a bias before a batch normalization has none.
TOLERANCE = {"float32": 1e-3, "float64": 1e-6}
FLOOR = {"float32": 1e-3, "float64": 1e-9}


class Stored:
    """A small network and its references."""

    def __init__(self, name: str) -> None:
        self.path = FOLDER / f"{name}.onnx"
        with np.load(self.path.with_suffix(".npz")) as file:
            self.arrays = dict(file)
        self.feeds = self.part("input")
        self.target = self.arrays["target"]

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays below a prefix."""
        start = prefix + "/"
        return {k.removeprefix(start): x for k, x in self.arrays.items() if k.startswith(start)}


def in_mode(model, mode):
    return model.trainmode() if mode == "train" else model.testmode()


def cast(feeds, precision):
    return {k: x.astype(precision) if x.dtype.kind == "f" else x for k, x in feeds.items()}


def differences(found, expected, floor):
    """Each gradient's largest difference, relative to its largest entry."""
    assert found.keys() == expected.keys()
    least = floor * max(np.abs(g).max() for g in expected.values())
    return {
        name: float(np.abs(found[name] - g).max() / max(least, np.abs(g).max()))
        for name, g in expected.items()
    }


def whole_difference(found, expected):
    """The length of the difference of all gradients, relative to theirs."""
    assert found.keys() == expected.keys()
    square = sum(np.square(found[name] - g).sum() for name, g in expected.items())
    return float(np.sqrt(square / sum(np.square(g).sum() for g in expected.values())))


def check_small(name, precision):
    stored = Stored(name)
    model = onnxjl.to_flux(stored.path)
    if precision == "float64":
        model = model.moved({}, 0.0)
    for mode in ("test", "train"):
        # Without a batch normalization there is one reference for both.
        kept = mode if stored.part(mode) else "test"
        value, found = in_mode(model, mode).gradient(
            "cross-entropy", cast(stored.feeds, precision), stored.target
        )
        assert value == pytest.approx(float(stored.arrays[f"loss/{kept}"]), rel=1e-5)
        worst = differences(found, stored.part(kept), FLOOR[precision])
        assert max(worst.values()) < TOLERANCE[precision], (mode, worst)


@pytest.mark.parametrize("name", QUICK)
def test_gradients_are_those_of_pytorch(name):
    check_small(name, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_gradients_are_those_of_pytorch_for_every_family(name):
    check_small(name, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_float64_are_those_of_pytorch(name):
    check_small(name, "float64")


def test_both_modes_of_batch_normalization_are_told_apart():
    stored = Stored("resnet")
    worst = differences(stored.part("train"), stored.part("test"), FLOOR["float32"])
    assert min(worst.values()) > 10 * TOLERANCE["float32"]


def test_gradients_come_in_the_order_of_the_file():
    stored = Stored("resnet")
    model = onnxjl.to_flux(stored.path)
    _, gradient = model.gradient("cross-entropy", stored.feeds, stored.target)
    assert [*gradient] == [n for n in model.graph.model.graph.initializers if n in gradient]


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_gradients_of_whole_networks_are_those_of_pytorch(name, tmp_path):
    pytest.importorskip("torch", reason="PyTorch isn't installed")
    pytest.importorskip("torchvision", reason="torchvision isn't installed")
    from models import export_gradients

    path = tmp_path / "network.onnx"
    network = export_gradients.WHOLE[name]
    samples = 2 if name == "vit_b_16" else 8
    module = export_gradients.build(network)
    made = export_gradients.reference(module, network, path, samples)
    single = onnxjl.to_flux(path)
    double = single.moved({}, 0.0)
    for mode in ("test", "train"):
        kept = mode if mode in made.losses else "test"
        expected = made.gradients[kept]
        value, found = in_mode(double, mode).gradient(
            "cross-entropy", cast(made.feeds, "float64"), made.target
        )
        assert value == pytest.approx(made.losses[kept], rel=1e-7)
        worst = differences(found, expected, FLOOR["float64"])
        assert max(worst.values()) < TOLERANCE["float64"], (mode, worst)
        _, found = in_mode(single, mode).gradient("cross-entropy", made.feeds, made.target)
        difference = whole_difference(found, expected)
        # Rounding to float32 takes some of millions of activations over a bend, and so does moving
        # the weights by 1e-5 of each.
        if difference > TOLERANCE["float32"]:
            assert difference < export_gradients.conditioning(module, made, kept)


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "grasp"])
def test_criteria_are_those_of_pytorch(criterion):
    stored = Stored("resnet")
    model = onnxjl.to_flux(stored.path)
    graph = model.to_graph()
    expected = stored.part(criterion)
    (group,) = (
        group
        for group in onnxjl.groups(graph)
        if any(m.tensor == "conv1.weight" and m.axis == 0 for m in group.members)
    )
    batches = [
        ({name: x[part] for name, x in stored.feeds.items()} | {"target": stored.target[part]})
        for part in (slice(0, 5), slice(5, 8))
    ]
    scoring = Scoring(
        graph, [group], aggregation="mean", data=batches, seed=0, model=model, loss="cross-entropy"
    )
    weights = GroupWeights(scoring, group)
    rows = CRITERIA[criterion].function(group, weights)
    assert {f"{m.tensor}/{m.axis}" for m in weights.contracted} == expected.keys()
    for row, member in zip(rows, weights.contracted, strict=True):
        scores = expected[f"{member.tensor}/{member.axis}"]
        assert member.indices.shape == (len(scores), 1)
        error = np.abs(row - scores[member.indices[:, 0]]).max() / np.abs(scores).max()
        assert error < 1e-5, (member.tensor, row, scores)
