"""Sizes that data decide: what is behind them is pruned all the same, and proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from oracle import run
from proof import PLANS, TOLERANCE, prove
from text_networks import inputs, network

from onnxjl import normalize
from onnxjl.cli import main
from onnxjl.structure import Structure, analyze
from onnxjl.structure.shapes import Shapes

WEIGHTS = {
    "w": (6, 8),
    "w2": (8, 7),
    "w3": (7, 3),
    "wd": (6, 1),
    "k": (5, 8, 3),
    "w5": (5, 7),
}
# How long speech gets, from what is said: one frame more for each positive number.
FRAMES = """
    said = MatMul (x, wd)
    positive = Greater (said, nothing)
    times = Cast <to = 7> (positive)
    total = ReduceSum <keepdims = 0> (times)
    length = Add (total, three)
    frames = Range (zero, length, one)
"""
NUMBERS: Mapping[str, object] = {
    "nothing": np.float32(0),
    "zero": np.int64(0),
    "one": np.int64(1),
    "three": np.int64(3),
    "axis0": [0],
    "axis1": [1],
    "axis2": [2],
    "half": [4],
    "minus": [-1],
}


def decided(middle: str, outputs: str = "y") -> onnx.ModelProto:
    """Return a network with x (4, 6) and y = z · w3, where `middle` makes z, 7 features wide."""
    text = f"g (float[4, 6] x) => ({outputs}) {{ {middle} y = MatMul (z, w3) }}"
    return network(text, WEIGHTS, NUMBERS)


def sizes(structure: Structure) -> list[int]:
    return sorted(group.size for group in structure.groups if group.exact)


def proved(model: onnx.ModelProto) -> list[int]:
    """Prove random plans on inputs that decide differently; return the sizes of exact groups."""
    structure = analyze(normalize(model))
    feeds = [inputs(model, seed=seed) for seed in (2, 3, 4)]
    lengths = {run(model, feed)["y"].shape for feed in feeds}
    assert len(lengths) > 1
    generator = np.random.default_rng(5)
    for kind in PLANS if sizes(structure) else ():
        assert prove(structure, kind(structure, generator), feeds) <= TOLERANCE
    return sizes(structure)


def reasons(model: onnx.ModelProto) -> Mapping[str, str]:
    return {whole.layer: whole.reason for whole in analyze(normalize(model)).whole}


ROWS_OF_MASK = """
    said = MatMul (x, wd)
    flat = Squeeze (said, axis1)
    mask = Greater (flat, nothing)
    places = NonZero (mask)
    rows = Squeeze (places, axis0)
    a = MatMul (x, w)
"""


@pytest.mark.parametrize(
    ("middle", "units"),
    [
        # The rows where a mask is true, as PyTorch writes boolean indexing.
        (f"{ROWS_OF_MASK} r = Gather (a, rows) z = MatMul (r, w2)", [7, 8]),
        # The same mask twice selects as many; its second copy is its own node.
        (
            f"""{ROWS_OF_MASK} r = Gather (a, rows) places2 = NonZero (mask)
            rows2 = Squeeze (places2, axis0) n = Neg (a) r2 = Gather (n, rows2) s = Add (r, r2)
            t = Tanh (a) u = Gather (t, rows) v = Mul (s, u) z = MatMul (v, w2)""",
            [7, 8],
        ),
        (f"{ROWS_OF_MASK} r = Compress <axis = 0> (a, mask) z = MatMul (r, w2)", [7, 8]),
        # Frames: positions, and values spread over them.
        (
            f"""{FRAMES} a = MatMul (x, w)
            f = Cast <to = 1> (frames) up = Unsqueeze (f, axis1)
            some = ReduceMax <keepdims = 1> (a, axis0) spread = Mul (up, some)
            z = MatMul (spread, w2)""",
            [7, 8],
        ),
        # A shape that is put together from a decided size and a width that is read.
        (
            f"""{FRAMES} a = MatMul (x, w) some = ReduceMax <keepdims = 1> (a, axis0)
            rows = Unsqueeze (length, axis0) s = Shape (a) width = Gather (s, axis1)
            shape = Concat <axis = 0> (rows, width) e = Expand (some, shape)
            z = MatMul (e, w2)""",
            [7, 8],
        ),
        # The same, with a width that is written out.
        (
            f"""{FRAMES} a = MatMul (x, w) some = ReduceMax <keepdims = 1> (a, axis0)
            rows = Unsqueeze (length, axis0) eight = Add (half, half)
            shape = Concat <axis = 0> (rows, eight) e = Expand (some, shape)
            z = MatMul (e, w2)""",
            [7, 8],
        ),
        # Sizes of which PyTorch takes ones where they are −1, which none is.
        (
            f"""{FRAMES} a = MatMul (x, w) some = ReduceMax <keepdims = 1> (a, axis0)
            rows = Unsqueeze (length, axis0) s = Shape (a) width = Gather (s, axis1)
            asked = Concat <axis = 0> (rows, width) open = Equal (asked, minus)
            shape = Where (open, one, asked) e = Expand (some, shape) z = MatMul (e, w2)""",
            [7, 8],
        ),
        # Rows up to a decided number.
        (
            f"""{FRAMES} a = MatMul (x, w) end = Sub (length, three) most = Unsqueeze (end, axis0)
            r = Slice (a, axis0, most, axis0) z = MatMul (r, w2)""",
            [7, 8],
        ),
        # Zeros like something else have its units.
        (
            f"""{ROWS_OF_MASK} r = Gather (a, rows) s = Shape (r) c = ConstantOfShape (s)
            t = Tanh (r) u = Add (c, t) z = MatMul (u, w2)""",
            [7, 8],
        ),
        # Convolution over frames, whose number is also reshaped by.
        (
            f"""{FRAMES} a = MatMul (x, w) some = ReduceMax <keepdims = 1> (a, axis0)
            f = Cast <to = 1> (frames) up = Unsqueeze (f, axis1) spread = Mul (up, some)
            turned = Transpose (spread) image = Unsqueeze (turned, axis0)
            c = Conv <pads = [1, 1]> (image, k) n = Shape (c) frames_left = Gather (n, axis2)
            one_more = Concat <axis = 0> (frames_left, minus)
            back = Transpose <perm = [0, 2, 1]> (c) flat = Reshape (back, one_more)
            z = MatMul (flat, w5)""",
            [5, 7, 8],
        ),
        # Parts of which only the last size is decided.
        (
            f"""{ROWS_OF_MASK} some = Gather (a, rows) more = Concat <axis = 0> (a, some)
            z = MatMul (more, w2)""",
            [7, 8],
        ),
        # A branch that makes as much as it likes.
        (
            f"""{ROWS_OF_MASK} any = ReduceMax <keepdims = 0> (said) yes = Greater (any, nothing)
            chosen = If (yes) <
                then_branch = t () => (int64[A] c) {{ c = Identity (rows) }},
                else_branch = e () => (int64[B] d) {{ d = Identity (axis0) }}
            >
            r = Gather (a, chosen) z = MatMul (r, w2)""",
            [7, 8],
        ),
    ],
    ids=(
        "rows,one mask,Compress,frames,width read,width written,expand,part,zeros,convolution,"
        "parts,branch"
    ).split(","),
)
def test_what_is_behind_a_decided_size_is_pruned(middle: str, units: Sequence[int]) -> None:
    assert proved(decided(middle)) == units


def test_units_cut_at_a_decided_place_stay() -> None:
    model = decided(
        f"{FRAMES} a = MatMul (x, w) end = Unsqueeze (length, axis0) "
        "r = Slice (a, axis0, end, axis1) t = ReduceMax <keepdims = 1> (r, axis1) "
        "q = MatMul (x, w) b = Mul (q, t) z = MatMul (b, w2)"
    )
    structure = analyze(normalize(model))
    assert reasons(model)["a"] == "the bounds of Slice 'r' aren't known"
    assert 7 in sizes(structure)


def test_different_masks_select_numbers_of_their_own() -> None:
    model = decided(
        f"""{ROWS_OF_MASK} r = Gather (a, rows) other = Not (mask) places2 = NonZero (other)
        rows2 = Squeeze (places2, axis0) r2 = Gather (a, rows2)
        both = Concat <axis = 0> (r, r2) z = MatMul (both, w2)"""
    )
    shapes = Shapes(normalize(model))
    assert shapes.sizes["rows"] == (101,)
    assert shapes.sizes["rows2"] == (103,)
    assert shapes.sizes["both"] == (204, 8)
    assert sizes(analyze(normalize(model))) == [7, 8]


def test_shapes_that_do_not_work_out_are_not_known() -> None:
    # In fact both masks select as many, which the shapes don't tell.
    model = decided(
        f"""{ROWS_OF_MASK} r = Gather (a, rows) negative = Neg (flat)
        same = Less (negative, nothing) places2 = NonZero (same) rows2 = Squeeze (places2, axis0)
        r2 = Gather (a, rows2) both = Add (r, r2) z = MatMul (both, w2)"""
    )
    assert proved(model) == []
    assert "isn't known, behind Add 'both'" in " ".join(reasons(model).values())


def test_numbers_that_rest_on_decided_sizes_are_only_supposed() -> None:
    model = decided(
        f"{FRAMES} end = Unsqueeze (length, axis0) c = ConstantOfShape (end) s = Shape (c) "
        "a = MatMul (x, w) z = MatMul (a, w2)",
        "y, int64[1] s",
    )
    shapes = Shapes(normalize(model))
    assert shapes.known["s"].tolist() == shapes.known["end"].tolist() == [104]
    assert {"length", "end", "s"} <= shapes.supposed
    assert shapes.decided == {"total"}


def test_an_axis_that_data_choose_is_not_known() -> None:
    # With the supposed length the maximum is over the axis of size 1: no unit would matter to it.
    model = decided(
        f"""{FRAMES} g = Cast <to = 1> (frames) many = Greater (length, half)
        which = Where (many, axis1, axis2) a = MatMul (x, w) up = Unsqueeze (a, axis1)
        largest = ReduceMax <keepdims = 1> (up, which) less = Sub (up, largest)
        back = Squeeze (less, axis1) z = MatMul (back, w2)""",
        "float[4, 3] y, float[F] g",
    )
    lengths = {len(run(model, inputs(model, seed=seed))["g"]) for seed in range(8)}
    assert min(lengths) <= 4 < max(lengths)
    assert Shapes(normalize(model)).known["which"] == [1]
    assert reasons(model)["a"] == "ReduceMax 'largest': which axes it reduces isn't known"
    assert sizes(analyze(normalize(model))) == [7]


def test_sizes_begin_again_and_chains_of_arithmetic_end() -> None:
    many = " ".join(
        f"m{i} = Greater (flat, t{i}) n{i} = NonZero (m{i}) r{i} = Squeeze (n{i}, axis0)"
        for i in range(30)
    )
    every = ", ".join(f"r{i}" for i in range(30))
    long = " ".join(f"l{i + 1} = Add (l{i}, one)" for i in range(2000))
    model = network(
        f"""g (float[4, 6] x) => (y, int64[A] e) {{
            {ROWS_OF_MASK} {many} all = Concat <axis = 0> ({every})
            r = Gather (a, all) z = MatMul (r, w2) y = MatMul (z, w3)
            counted = Cast <to = 7> (mask) l0 = ReduceSum <keepdims = 0> (counted) {long}
            e = Range (zero, l2000, one)
        }}""",
        WEIGHTS,
        {**NUMBERS, **{f"t{i}": np.float32(i / 100) for i in range(30)}},
    )
    structure = analyze(normalize(model))
    assert sizes(structure) == [7, 8]
    assert structure.supposed_sizes[:2] == (101, 103)
    assert len(structure.supposed_sizes) == 31
    assert set(structure.supposed_sizes) <= set(range(101, 200))


def test_who_prunes_is_told_what_sizes_are_supposed(tmp_path: Path, capsys) -> None:
    model = decided(f"{ROWS_OF_MASK} r = Gather (a, rows) z = MatMul (r, w2)")
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    told = "sizes that data decide are taken as 101: MACs behind them are for so many"
    small = tmp_path / "small.onnx"
    for arguments in (
        ["info", path],
        ["groups", path],
        ["prune", path, "-o", small, "--amount", "0.5"],
        ["report", path, small, "-o", tmp_path / "page.html"],
    ):
        assert main([str(argument) for argument in arguments]) == 0
        assert " ".join(capsys.readouterr().out.split()).count(told) == 1
    # 4 samples: 6 to 8 and to 1; and 101 rows of all of them, 8 to 7 to 3.
    assert normalize(model).macs == round(6 * 9 + 101 / 4 * (8 * 7 + 7 * 3))
