"""report: true figures, in lines that fit a terminal."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import small_networks as small
from onnx.reference import ReferenceEvaluator

from onnxjl.errors import UsageError
from onnxjl.load import load
from onnxjl.normalize import normalize
from onnxjl.prune import prune
from onnxjl.report import (
    Change,
    LayerChange,
    Report,
    _advice_on_widths,
    assumed_shapes,
    make_report,
    quantity,
    reasons,
    shorten,
    table,
    wrap,
)
from onnxjl.save import save


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "MACs", "0"),
        (999, "MACs", "999"),
        (1000, "MACs", "1.00 k"),
        (1_823_000_000, "MACs", "1.82 G"),
        (999_900, "parameters", "1.00 M"),
        (44_700_000, "bytes", "44.7 MB"),
        (12, "bytes", "12 B"),
        (2.9e12, "bytes", "2.90 TB"),
        (0.0312, "ms", "0.03 ms"),
        (123.4, "ms", "123 ms"),
        (0.9785, "fraction", "97.9 %"),
    ],
)
def test_quantities_have_three_digits(value, unit, text):
    assert quantity(value, unit) == text


def test_tables_are_aligned_and_long_names_cut_in_the_middle():
    rows = [("a", "1", "x"), ("n" * 30 + "." + "m" * 30, "200", "")]
    lines = table(rows, align="lrl").splitlines()
    assert lines[0] == "a" + " " * 47 + "    1  x"
    assert lines[1] == "n" * 23 + "…" + "m" * 24 + "  200"
    assert [len(shorten("abcdefgh", width)) for width in (8, 7, 2, 1)] == [8, 7, 2, 1]


def test_reasons_are_told_once():
    pairs = [("fc", "output 'y'"), ("a", "depthwise"), ("b", "depthwise")]
    assert reasons(pairs) == "output 'y': fc\ndepthwise (2 layers): a, b"
    many = reasons([(f"layer{i}", "why") for i in range(100)], width=60)
    assert max(map(len, many.splitlines())) <= 60
    assert many.count("layer") == 101


def test_words_are_never_cut():
    assert wrap("x" * 120 + " y") == "x" * 120 + "\n  y"


@pytest.fixture
def folder(tmp_path):
    onnx.save(small.convolutions(batch="N"), tmp_path / "net.onnx")
    return tmp_path


@pytest.fixture
def pruned(folder):
    return prune(folder / "net.onnx", amount=0.5, scope="local")


def figures(report):
    return {change.name: change for change in report.changes}


def test_figures_are_true(folder, pruned):
    saved = save(pruned, folder / "small.onnx")
    report = make_report(pruned, saved, measure=False)
    found = figures(report)
    # first: 36 positions × 27 × 8; second: 16 × 72 × 4; head: 4 × 5. Half of 8 and of 4 stay.
    assert found["MACs"].before == 36 * 27 * 8 + 16 * 72 * 4 + 20
    assert found["MACs"].after == 36 * 27 * 4 + 16 * 36 * 2 + 10
    assert found["parameters"].before == 8 * 27 + 8 + 4 * 8 + 4 * 72 + 4 + 20 + 5
    assert found["parameters"].after == 4 * 27 + 4 + 4 * 4 + 2 * 36 + 2 + 10 + 5
    assert found["file"].before == (folder / "net.onnx").stat().st_size
    assert found["file"].after == (folder / "small.onnx").stat().st_size
    assert [(e.layer, e.operator, e.before, e.after) for e in report.layers] == [
        ("first", "Conv", 8, 4),
        ("second", "Conv", 4, 2),
        ("head", "Gemm", 5, 5),
    ]
    assert [layer for layer, _ in report.whole] == ["head"]
    assert report.check[0] == "equal"
    assert report.shapes == {"x": (1, 3, 6, 6)}
    assert report.plan is None


def test_external_data_count_as_file_size(folder):
    onnx.save(
        small.convolutions(),
        folder / "two.onnx",
        save_as_external_data=True,
        location="two.w",
        size_threshold=0,
    )
    graph = prune(folder / "two.onnx", amount=0.5)
    found = figures(make_report(graph, save(graph, folder / "small.onnx"), measure=False))
    sizes = [(folder / name).stat().st_size for name in ("two.onnx", "two.w")]
    assert found["file"].before == sum(sizes)
    assert found["file"].after == sum(p.stat().st_size for p in folder.glob("small.*"))


@pytest.mark.parametrize(
    ("latency", "round_to", "advised"),
    [
        ((2.0, 1.9), 1, True),
        ((2.0, 1.1), 1, False),
        ((0.02, 0.02), 1, False),
        ((2.0, 1.9), 8, False),
    ],
)
def test_widths_are_blamed_for_a_network_that_got_no_faster(latency, round_to, advised):
    changes = [Change("MACs", 100, 50, "MACs"), Change("latency", *latency, "ms")]
    notes = _advice_on_widths(changes, {"round_to": round_to})
    assert [note.startswith("--round-to auto") for note in notes] == [True] * advised


def test_who_asked_for_the_best_widths_is_not_told_to():
    changes = [Change("MACs", 100, 50, "MACs"), Change("latency", 2.0, 1.9, "ms")]
    assert _advice_on_widths(changes, {"round_to": 1, "round_to_asked": "auto"}) == []


def test_latency_and_accuracy_are_measured(folder, pruned):
    x = np.random.default_rng(0).standard_normal((50, 3, 6, 6)).astype(np.float32)
    (y,) = ReferenceEvaluator(str(folder / "net.onnx")).run(None, {"x": x})
    target = y.argmax(axis=1)
    target[:5] = (target[:5] + 1) % 5
    np.savez(folder / "net.test.npz", x=x, target=target)
    saved = save(pruned, folder / "small.onnx")
    (z,) = ReferenceEvaluator(str(folder / "small.onnx")).run(None, {"x": x})
    found = figures(make_report(pruned, saved))
    assert found["accuracy"].before == pytest.approx(0.9)
    assert found["accuracy"].after == pytest.approx((z.argmax(axis=1) == target).mean())
    assert found["accuracy"].note == "50 samples of net.test.npz"
    assert 0 < found["latency"].after < 1000
    assert found["latency"].note == "onnxruntime, 1 thread, x 1×3×6×6"

    assert make_report(pruned, saved).notes == ()  # too short a run to blame its widths
    (folder / "net.calib.npz").write_bytes(b"")
    (note,) = make_report(pruned, saved).notes
    assert note.startswith(f"--calibrate {folder / 'net.calib.npz'} recovers accuracy")
    other = make_report(pruned, saved, validate={"x": x, "target": y.argmax(axis=1)})
    assert figures(other)["accuracy"].before == 1.0


def test_what_cannot_be_measured_is_said(folder, pruned):
    saved = save(pruned, folder / "small.onnx")
    (folder / "net.test.npz").write_bytes(b"no archive")
    report = make_report(pruned, saved, inputs={"z": np.zeros(1)})
    assert figures(report).keys() == {"MACs", "parameters", "file"}
    assert report.notes[0].startswith("latency was not measured: input 'x' is missing")
    assert report.notes[1].startswith("accuracy was not measured: ")
    assert "not an .npz archive" in report.notes[1]
    with pytest.raises(UsageError, match="only a pruned graph"):
        make_report(load(folder / "net.onnx"), saved)


def test_text_has_everything_and_fits(folder, pruned):
    report = make_report(pruned, save(pruned, folder / "small.onnx"), plan="plan.json")
    text = str(report)
    for part in (
        "→ 5.05 k",
        "first   Conv  4  of 8   50 %",
        "head    Gemm  5  of 5  100 %",
        "left whole",
        "check: equals the masked source in onnxruntime",
        "assumed input shapes: x 1×3×6×6",
        "plan.json",
        "latency",
    ):
        assert part in text
    long = Report(
        source="net.onnx",
        target="small.onnx",
        changes=(Change("latency", 12345.0, 0.0123, "ms", "n" * 46),),
        layers=(LayerChange("l" * 200, "ConvTranspose", 65536, 65535),),
        whole=(("w" * 200, "because " * 30),),
        check=("equal", "fine " * 50),
        shapes={"x": (1, 2)},
        notes=("note " * 50,),
    )
    assert max(map(len, str(long).splitlines())) <= 100


def test_json_holds_the_same(folder, pruned):
    report = make_report(pruned, save(pruned, folder / "small.onnx"), measure=False)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["MACs"]["before"] == figures(report)["MACs"].before
    assert data["layers"][0] == {"layer": "first", "operator": "Conv", "before": 8, "after": 4}
    assert data["check"]["status"] == "equal"
    assert data["assumed_shapes"] == {"x": [1, 3, 6, 6]}
    assert data["whole"][0]["layer"] == "head"


def test_shapes_that_are_given_or_declared_are_not_assumed(folder):
    assert assumed_shapes(load(small.convolutions())) == {}
    assert assumed_shapes(load(folder / "net.onnx", shapes={"x": (2, 3, 6, 6)})) == {}
    assert assumed_shapes(normalize(folder / "net.onnx")) == {"x": (1, 3, 6, 6)}
