"""The proof, as a property of random plans, over every family of networks.

By default one small network of each family is pruned; ``--slow`` does all of them, as every
exporter writes them, and trained networks out of installed packages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from cases import TRAINED, Case, Feeds, offered
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from models import pretrained, zoo
from oracle import difference, run
from proof import PLANS, TOLERANCE, Keep, prove, strongest_keep

from onnxjl import apply
from onnxjl.structure import Granularity, Structure

QUICK = (
    "attention_mix.ts17",
    "bertlike.ts17",
    "conv1d.dynamo",
    "conv_twice.ts13",
    "decoder.ts17",
    "decoder_cached.dynamo",
    "encoder_mask.ts13",
    "gptlike.dynamo",
    "gru.dynamo",
    "keras_attention.tf17",
    "keras_mobilenet_v2.tf13",
    "lstm.ts17",
    "mobilenet_v3_small.dynamo",
    "resnet18.ts17bn",
    "rnn_relu.ts13",
    "shufflenet_v2_x1_0.ts13",
    "squeezenet1_1.ts17",
    "swin_tiny.dynamo",
    "tied_embedding.ts17",
    "tied_linear.dynamo",
    "two_inputs.ts17",
    "unet.ts17bn",
    "vit_tiny.ts17",
    "yolo.dynamo",
)
"""Networks that are pruned by default: small ones, of every family and exporter."""

LARGE = (
    "alexnet convnext_tiny keras_resnet50 resnet50 swin_t vgg11_bn vit_b_16 "
    "light_bvlc_alexnet light_resnet50 light_vgg19 light_zfnet512"
).split()
"""Networks for which one plan of each kind must do, and of which memory holds one at a time."""


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    """Return a network by its name; tests of one network run one after another."""
    return Case(request.param)


def over(names: Sequence[str]) -> pytest.MarkDecorator:
    """Return the mark that runs a test over networks; those that aren't quick are slow."""
    rows = [
        pytest.param(
            name,
            marks=[
                pytest.mark.xdist_group("large" if zoo.network(name) in LARGE else name),
                *([] if name in QUICK else [pytest.mark.slow]),
            ],
        )
        for name in names
    ]
    return pytest.mark.parametrize("case", rows, indirect=True)


def prove_plans(structure: Structure, feeds: Sequence[Feeds], examples: int) -> None:
    """Prove a random plan of each kind, and further ones of any kind."""

    @settings(
        max_examples=max(examples, 1),
        phases=[Phase.explicit, *([Phase.generate, Phase.shrink] if examples else [])],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind=st.sampled_from(PLANS), seed=st.integers(0, 2**32 - 1))
    def holds(kind: Callable[..., Keep], seed: int) -> None:
        keep = kind(structure, np.random.default_rng(seed))
        assert prove(structure, keep, feeds) <= TOLERANCE

    for kind in PLANS:
        holds = example(kind, len(structure.groups))(holds)
    holds()


@pytest.mark.parametrize("granularity", ["channel", "head", "head-dim"])
@over(zoo.NAMES)
def test_pruned_network_equals_the_masked_one(case: Case, granularity: Granularity) -> None:
    structure = case.structure(granularity)
    assert offered(structure)
    if not case.has_more(granularity):
        return  # there is no attention in it
    examples = 0 if zoo.network(case.name) in LARGE else settings.default.max_examples
    prove_plans(structure, case.feeds, examples)


@over(zoo.NAMES)
def test_neither_rounding_nor_blind_weights_hide_anything(case: Case) -> None:
    """Rounding is far below the tolerance, and what the strongest plan takes is far above it."""
    source = ir.to_proto(case.graph.model).SerializeToString()
    outputs = run(source, case.feeds[0])
    random = np.random.default_rng(0)
    nudged = {
        key: (x * (1 + 1e-7 * random.standard_normal(x.shape))).astype(x.dtype)
        if x.dtype.kind == "f"
        else x
        for key, x in case.feeds[0].items()
    }
    assert difference(run(source, nudged), outputs) <= TOLERANCE / 10
    structure = case.structure()
    small = apply(case.graph, structure.plan(strongest_keep(structure, random)))
    assert difference(run(ir.to_proto(small.model), case.feeds[0]), outputs) >= 10 * TOLERANCE


UNUSED = {"bertlike": "positions.weight", "rnn_relu": "val_66"}
"""Groups of which no output knows: unused positions, an initial state of zeros."""


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["head", "head-dim"])
@over(zoo.NAMES)
def test_no_group_is_too_weak_to_be_proved(case: Case, granularity: Granularity) -> None:
    """A group that moves no output could be pruned wrongly, and no proof would notice."""
    if zoo.network(case.name) in LARGE:
        return  # hours
    structure = case.structure(granularity)
    if granularity == "head-dim" and not case.has_more(granularity):
        return
    outputs = run(ir.to_proto(case.graph.model), case.feeds[0])
    weak = []
    for number, group in enumerate(structure.groups):
        if not group.exact or group.name == UNUSED.get(zoo.network(case.name)):
            continue
        keep = [np.ones(g.size, dtype=bool) for g in structure.groups]
        keep[number][1:] = False
        small = apply(case.graph, structure.plan(keep))
        effect = difference(run(ir.to_proto(small.model), case.feeds[0]), outputs)
        if effect < 10 * TOLERANCE:
            weak.append((group.name, effect))
    assert weak == []


GIGA = {
    "alexnet": 0.714,
    "convnext_tiny": 4.456,
    "densenet121": 2.834,
    "efficientnet_b0": 0.386,
    "googlenet": 1.498,
    "mobilenet_v2": 0.301,
    "mobilenet_v3_small": 0.057,
    "regnet_y_400mf": 0.402,
    "resnet18": 1.814,
    "resnet50": 4.089,
    "shufflenet_v2_x1_0": 0.145,
    "squeezenet1_1": 0.349,
    "swin_t": 4.491,
    "vgg11_bn": 7.609,
    "vit_b_16": 17.564,
}
"""Multiply–accumulates in units of 1e9, as torchvision's documentation has them."""


@over([name for name in zoo.NAMES if zoo.network(name) in GIGA])
def test_macs_are_those_that_torchvision_counts(case: Case) -> None:
    structure = case.structure()
    assert structure.macs.total(structure.sizes) / 1e9 == pytest.approx(
        GIGA[zoo.network(case.name)], abs=5e-4, rel=5e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xdist_group("large" if name in LARGE else name))
        for name in TRAINED
    ],
)
def test_trained_networks_of_packages(name: str) -> None:
    if name not in pretrained.available():
        pytest.skip(
            f"{name} isn't installed: pip install -e '.[test]' brings it, rapidocr's before "
            "Python 3.13"
        )
    case = Case(name)
    for granularity in ("channel", "head", "head-dim"):
        structure = case.structure(granularity)
        assert offered(structure)
        if case.has_more(granularity):
            prove_plans(structure, case.feeds, 0)
