"""Pairing: layers of two networks are found to be the same by name, else by place."""

from __future__ import annotations

import pytest

from onnxjl.pairing import Bar, macs_bars, pair_layers, width_bars
from onnxjl.structure import LayerCost


def layers(text):
    """Layers from ``name:operator:units``; node ``/name``, and ten MACs and a parameter a unit."""
    found = []
    for word in text.split():
        name, operator, units = word.split(":")
        found.append(LayerCost(name, f"/{name}", operator, int(units), 10 * int(units), int(units)))
    return found


def shown(pairs):
    """Pairs as ``before after``, with ``~`` for those paired by place."""
    return [
        f"{'-' if p.before is None else p.before.layer}{'~' if p.by == 'place' else ' '}"
        f"{'-' if p.after is None else p.after.layer}"
        for p in pairs
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a:Conv:8 b:Conv:8 c:Gemm:5", "a:Conv:4 b:Conv:2 c:Gemm:5", ["a a", "b b", "c c"]),
        # A layer that went, first, between and last.
        ("a:Conv:8 b:Conv:8 c:Gemm:5", "b:Conv:2", ["a -", "b b", "c -"]),
        ("a:Conv:8 b:Conv:8 c:Gemm:5", "a:Conv:4 c:Gemm:5", ["a a", "b -", "c c"]),
        # One that came stands where it is in the second network.
        ("a:Conv:8 c:Gemm:5", "x:Conv:1 a:Conv:8 y:Conv:9 c:Gemm:5", ["- x", "a a", "- y", "c c"]),
        # Other names, the same operators, no wider: the same layers.
        ("a:Conv:8 b:Conv:8 c:Gemm:5", "x:Conv:4 y:Conv:8 z:Gemm:5", ["a~x", "b~y", "c~z"]),
        ("a:Conv:8 b:Conv:8 c:Gemm:5", "a:Conv:4 y:Conv:8 c:Gemm:5", ["a a", "b~y", "c c"]),
        # Another operator, a wider layer or another number of them: nothing is guessed.
        ("a:Conv:8 b:Conv:8", "a:Conv:8 y:Gemm:8", ["a a", "- y", "b -"]),
        ("a:Conv:8 b:Conv:8", "a:Conv:8 y:Conv:9", ["a a", "- y", "b -"]),
        ("a:Conv:8 b:Conv:8", "x:Conv:8", ["- x", "a -", "b -"]),
        # Another order.
        ("a:Conv:8 b:Conv:8", "b:Conv:7 a:Conv:6", ["a a", "b b"]),
        # Names that several layers have say nothing.
        ("a:Conv:8 a:Conv:7", "a:Conv:4 a:Conv:3", ["a~a", "a~a"]),
        ("", "", []),
    ],
)
def test_layers_are_paired(before, after, expected):
    assert shown(pair_layers(layers(before), layers(after))) == expected


def test_a_weights_name_counts_where_the_nodes_have_none():
    before = [LayerCost("a", "", "Conv", 8, 80, 8), LayerCost("b", "", "Conv", 8, 80, 8)]
    after = [LayerCost("b", "n1", "Conv", 9, 90, 9), LayerCost("a", "n2", "Conv", 9, 90, 9)]
    assert shown(pair_layers(before, after)) == ["a a", "b b"]


def test_bars_have_the_figures_of_both():
    pairs = pair_layers(layers("a:Conv:8 b:Conv:6 c:Gemm:5"), layers("a:Conv:2 c:Gemm:5"))
    widths, macs = width_bars(pairs), macs_bars(pairs)
    assert widths.bars == (Bar("a", 8, 2), Bar("b", 6, 0), Bar("c", 5, 5))
    assert macs.bars == (Bar("a", 80, 20), Bar("b", 60, 0), Bar("c", 50, 50))
    assert (widths.scale, macs.scale) == (8, 80)
    assert (widths.length(2), macs.length(80)) == (0.25, 1.0)
    assert [pair.shrank for pair in pairs] == [True, True, False]


def test_a_layer_far_wider_than_all_that_changed_is_cut():
    before = layers("a:Conv:8 words:Gemm:5000")
    widths = width_bars(pair_layers(before, layers("a:Conv:4 words:Gemm:5000")))
    assert widths.scale == 8
    assert [widths.length(bar.before) for bar in widths.bars] == [1.0, 1.0]
    # Where nothing changed, and where it is a little wider, nothing is cut.
    assert width_bars(pair_layers(before, before)).scale == 5000
    near = layers("a:Conv:8 b:Gemm:12")
    assert width_bars(pair_layers(near, layers("a:Conv:4 b:Gemm:12"))).scale == 12
    assert width_bars(()).scale == 1
