"""Topologies: groups of the same operators, told apart by hand."""

from __future__ import annotations

import numpy as np
import pytest
from four_groups import MODEL
from models import zoo
from text_networks import network

from onnxjl import normalize
from onnxjl.structure import analyze
from onnxjl.structure.isomorphism import topologies

BLOCKS = """g (float[N, 4, 8, 8] x) => (float[N, 2] y) {
    ["stem"] s = Conv (x, stem)
    t = Relu (s)
    ["a1"] a = Conv (t, a1)
    b = Relu (a)
    ["a2"] c = Conv (b, a2)
    d = Add (c, t)
    ["b1"] e = Conv <pads = [1, 1, 1, 1]> (d, b1)
    f = Relu (e)
    ["b2"] h = Conv (f, b2)
    i = Add (d, h)
    ["c1"] j = Conv (i, c1)
    ["c2"] k = Conv (j, c2)
    p = GlobalAveragePool (k)
    q = Flatten (p)
    ["head"] y = Gemm (q, head)
}"""
SHAPES = {
    "stem": (6, 4, 1, 1),
    "a1": (8, 6, 1, 1),
    "a2": (6, 8, 1, 1),
    "b1": (12, 6, 3, 3),
    "b2": (6, 12, 1, 1),
    "c1": (10, 6, 1, 1),
    "c2": (14, 10, 1, 1),
    "head": (14, 2),
}


def test_groups_of_the_same_operators_are_of_one_topology() -> None:
    structure = analyze(normalize(network(BLOCKS, SHAPES)))
    names = [group.name for group in structure.groups]
    assert names == ["stem", "a1", "b1", "c1", "c2"]
    # Both blocks' inner channels go Conv, Relu, Conv: widths, kernels and the order of a sum don't
    # matter. Without a Relu, with a pooling and a Gemm, and in the residual sum all is different.
    assert topologies(structure) == [0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        # The stem and the last stage have other neighbours than the stages between.
        ("resnet18.ts17bn", [1, 2, 8, 1]),
        # Expansions, with the stem's, which is convolved depth by depth as they are; blocks without
        # a residual sum; sums of two, three and four blocks; the last convolution.
        ("mobilenet_v2.ts17", [17, 2, 1, 3, 1, 1]),
    ],
)
def test_topologies_of_known_networks(name: str, classes: list[int]) -> None:
    found = topologies(analyze(normalize(zoo.load(name))))
    assert sorted(np.bincount(found).tolist()) == sorted(classes)


def test_branches_of_a_concatenation_are_of_one_topology() -> None:
    assert topologies(analyze(normalize(MODEL))) == [0, 1, 1, 2]
