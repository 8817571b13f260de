"""The page of two networks: true figures, sound HTML, and nothing of a model but text."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_networks as small
from models import zoo

import onnxjl
from onnxjl import before_after, cli
from onnxjl.errors import DataError, ModelError, OutputError, PlanError
from onnxjl.flux import FluxModel
from onnxjl.latency import Latency
from onnxjl.pairing import LayerPair
from onnxjl.structure import LayerCost

NETWORK = Path(__file__).parent / "models" / "mnist-resnet14.onnx"
EMPTY = {"meta", "wbr"}


class Parsed(HTMLParser):
    """A page's elements: each a tag, its attributes and all its text; fails where tags cross."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict, list[str]]] = []
        self._open: list[tuple[str, dict, list[str]]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in EMPTY:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self._open:
            text.append(data)

    def all(self, tag, kind=None):
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and kind in (None, attributes.get("class"))
        ]

    def texts(self, tag, kind=None):
        return [text for _, text in self.all(tag, kind)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network, what became of it, its plan where it is looked for, and labelled data."""
    folder = tmp_path_factory.mktemp("networks")
    onnx.save(small.convolutions(batch="N"), folder / "net.onnx")
    pruned = onnxjl.prune(folder / "net.onnx", macs=0.5)
    pruned.save(folder / "small.onnx")
    pruned.plan.save(folder / "small.plan.json")
    x = np.random.default_rng(0).standard_normal((20, 3, 6, 6)).astype(np.float32)
    np.savez(folder / "net.test.npz", x=x, target=np.arange(20) % 5)
    return folder


@pytest.fixture
def run(capsys):
    def call(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_every_figure_is_that_of_info_and_compare(folder, run, tmp_path):
    a, b, output = folder / "net.onnx", folder / "small.onnx", tmp_path / "report.html"
    status, out, err = run("report", a, b, "-o", output, "--json")
    assert (status, err) == (0, "")
    facts = json.loads(out)
    before, after = (json.loads(run("info", each, "--json")[1]) for each in (a, b))
    compared = json.loads(run("compare", a, b, "--json")[1])
    page = Parsed(output.read_text(encoding="utf-8"))

    figures = dict(zip(page.texts("h3")[:6], page.all("p", "figure"), strict=True))
    assert list(figures) == [
        "multiply–accumulates (MACs)",
        "parameters",
        "file size",
        "latency",
        "accuracy",
        "output difference",
    ]
    values = [float(attributes["value"]) for attributes, _ in page.all("data")]
    for place, key in enumerate(("macs", "params", "bytes")):
        assert values[2 * place : 2 * place + 2] == [before[key], after[key]]
    measured = [facts["latency"][key] for key in ("before", "after")]
    assert values[6:8] == measured
    assert values[8:10] == [onnxjl.accuracy(each, folder / "net.test.npz") for each in (a, b)]
    assert values[10] == values[-1] == compared["difference"]
    assert facts["outputs"][0]["difference"] == compared["difference"]
    assert values[11:13] == measured  # the table of latencies

    rows = [row for row in page.texts("tr") if "Conv" in row or "Gemm" in row]
    assert len(rows) == 3
    cells = [a["data-value"] for a, _ in page.all("td", "number") if "data-value" in a]
    for number in range(3):
        ours = list(map(float, cells[10 * number : 10 * number + 10]))
        assert ours[0] == number + 1
        for place, key in ((1, "units"), (4, "macs"), (7, "params")):
            pair = [side["layers"][number][key] for side in (before, after)]
            assert ours[place : place + 2] == pair
            assert ours[place + 2] == pytest.approx(pair[1] / pair[0], rel=1e-9)
    kept = json.loads((folder / "small.plan.json").read_text())["kept"]["first.weight"]["0"]
    assert f"{len(kept)} of 8" in page.texts("span", "figure")

    groups = json.loads(run("groups", a, "--json")[1])
    assert page.texts("dt")[: len(groups["whole"])] == [w["reason"] for w in groups["whole"]]
    assert ["macs0.5" in row for row in page.texts("tr")].count(True) == 1
    assert "x 1×3×6×6" in page.texts("code")


def test_a_page_fetches_nothing_and_runs_its_own_script_alone(folder):
    text = onnxjl.report(folder / "net.onnx", folder / "small.onnx", measure=False).html()
    page = Parsed(text)
    assert text.startswith("<!doctype html>")
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    fetching = {"link", "img", "iframe", "object", "embed", "audio", "video", "source", "base"}
    assert not fetching & {tag for tag, _, _ in page.elements}
    assert not any({"src", "href"} & attributes.keys() for _, attributes, _ in page.elements)
    (script,) = page.texts("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for a, _ in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none';")
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_a_page_says_nothing_of_folders_and_machines(folder):
    found = onnxjl.report(folder / "net.onnx", folder / "small.onnx", measure=False)
    assert str(folder) not in found.html()
    assert platform.node() not in found.html()
    assert (
        found.html()
        == onnxjl.report(folder / "net.onnx", folder / "small.onnx", measure=False).html()
    )
    assert found.commands == (
        "onnxjl apply net.onnx small.plan.json -o small.onnx",
        "onnxjl report net.onnx small.onnx --plan small.plan.json --no-measure -o report.html",
    )


EVIL = "<script>alert('1')</script>&amp;\"><img src=x onerror=alert(2)>"


def test_names_of_a_model_are_text(tmp_path):
    proto = small.convolutions()
    proto.graph.node[0].name = EVIL
    proto.graph.node[3].name = "bell\x07 \u202e and $math$"
    names = {"first.weight": f"{EVIL}.weight", "second.weight": "second weight"}
    for tensor in proto.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = EVIL
    path = tmp_path / f"{EVIL.replace('/', '')}.onnx"
    onnx.save(proto, path)
    pruned = onnxjl.prune(path, macs=0.5)
    found = onnxjl.report(path, pruned, measure=False)
    page = Parsed(found.html())
    tags = [tag for tag, _, _ in page.elements]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert not any(
        name.startswith("on") for _, attributes, _ in page.elements for name in attributes
    )
    assert [pair.either.layer for pair in found.layers][:2] == [EVIL, proto.graph.node[3].name]
    assert page.texts("span", "name").count(EVIL) == 2  # the two pictures
    assert page.texts("td", "name").count(EVIL) == 2  # the layer and the output
    assert page.texts("title") == [f"{path.name} → the pruned network"]
    assert "\x07" not in found.html()
    pruned.plot().canvas.draw()  # no mathematics either


def test_the_plan_is_found_given_or_passed_over(folder, tmp_path):
    a, b = folder / "net.onnx", folder / "small.onnx"
    assert onnxjl.report(a, b, measure=False).request["macs"] == 0.5
    shutil.copy(b, tmp_path / "other.onnx")
    alone = onnxjl.report(a, tmp_path / "other.onnx", measure=False)
    assert alone.request is None
    assert "Request" not in Parsed(alone.html()).texts("h2")
    plan = folder / "small.plan.json"
    assert onnxjl.report(a, tmp_path / "other.onnx", plan=plan, measure=False).request is not None
    in_memory = onnxjl.prune(a, amount=0.5)
    found = onnxjl.report(a, in_memory, measure=False)
    assert found.request["amount"] == 0.5
    assert found.commands == ()
    assert [change.name for change in found.changes] == ["MACs", "parameters"]

    # Of another smaller network, and of another network.
    in_memory.plan.save(tmp_path / "other.plan.json")
    found = onnxjl.report(a, tmp_path / "other.onnx", measure=False)
    assert found.request is None
    assert found.notes[0].startswith("other.plan.json was passed over: the plan isn't that of oth")
    with pytest.raises(PlanError, match=r"the plan isn't that of small\.onnx: it keeps \d indices"):
        onnxjl.report(a, b, plan=in_memory.plan, measure=False)
    with pytest.raises(PlanError, match=r"made for another network than small\.onnx"):
        onnxjl.report(b, b, plan=plan, measure=False)
    (tmp_path / "other.plan.json").write_text("{}")
    assert onnxjl.report(a, tmp_path / "other.onnx", measure=False).notes == (
        "other.plan.json was passed over: not a plan of format 1: the key 'onnxjl' is missing or "
        "another",
    )
    with pytest.raises(PlanError, match="can't be read"):
        onnxjl.report(a, b, plan=tmp_path / "absent.json")


def test_predicted_latency_stands_beside_the_measured(folder):
    found = onnxjl.report(folder / "net.onnx", folder / "small.onnx", measure=False)
    predicted = {"before_ms": 2.0, "after_ms": 1.0, "runtime": "onnxruntime 9, 1 thread"}
    found = replace(
        found,
        request={**found.request, "predicted": predicted},
        latency=(Latency(3.0, 2.5, 9, (2.75, 3.5)), Latency(1.5, 1.2, 9, (1.25, 1.75))),
    )
    page = Parsed(found.html())
    rows = [text for text in page.texts("tr") if " ms" in text]
    assert rows == [
        "measured3 ms(2.75 to 3.5)1.5 ms(1.25 to 1.75)50 %",
        "while units were chosen2 ms1 ms50 %",
    ]
    assert any("chosen with onnxruntime 9, 1 thread" in text for text in page.texts("p", "muted"))
    assert "predicted" not in "".join(page.texts("td", "name"))


def test_layers_of_other_names_are_paired_by_their_place(folder, tmp_path):
    proto = onnx.load(folder / "small.onnx")
    for node in proto.graph.node:
        node.name = f"renamed_{node.name}"
        for place, name in enumerate(node.input):
            node.input[place] = f"w_{name}" if "." in name else name
    for tensor in proto.graph.initializer:
        tensor.name = f"w_{tensor.name}"
    onnx.save(proto, tmp_path / "renamed.onnx")
    found = onnxjl.report(folder / "net.onnx", tmp_path / "renamed.onnx", measure=False)
    assert [pair.by for pair in found.layers] == ["place"] * 3
    assert found.notes == ("3 layers are paired by their place: names differ",)
    straight = onnxjl.report(folder / "net.onnx", folder / "small.onnx", measure=False)
    assert [p.after.outputs for p in found.layers] == [p.after.outputs for p in straight.layers]


def test_networks_with_little_in_common_are_shown_all_the_same(folder):
    found = onnxjl.report(folder / "net.onnx", NETWORK, measure=False)
    page = Parsed(found.html())
    # Its three layers are none of the other's; conv1 isn't first, and is another's name.
    assert "3 layers are only in net.onnx" in found.notes
    assert "17 layers are only in mnist-resnet14.onnx" in found.notes
    assert "outputs were not compared: input 'image' is missing" in found.notes[-1]
    assert found.comparison is None
    assert found.latency is None
    assert "Outputs" not in page.texts("h2")
    assert "–" in page.texts("td", "number")


def test_heads_that_shrank_are_not_left_whole(tmp_path):
    source = zoo.load("vit_tiny.ts17")
    pruned = onnxjl.prune(source, macs=0.6, granularity="head")
    pruned.save(tmp_path / "small.onnx")
    assert len(onnxjl.groups(source).whole) > len(onnxjl.groups(source, granularity="head").whole)
    for network in (pruned, tmp_path / "small.onnx"):  # with a plan, and without one
        found = onnxjl.report(source, network, measure=False)
        whole = {layer for layer, _ in found.whole}
        shrank = {pair.before.layer for pair in found.layers if pair.shrank}
        assert shrank
        assert not whole & shrank
        assert found.before == "the original"
        assert found.comparison is not None


def test_networks_of_flux_layers_are_in_no_file(folder, monkeypatch):
    monkeypatch.setattr(FluxModel, "to_graph", lambda self: self.graph)
    source = onnxjl.normalize(folder / "net.onnx")
    pruned = onnxjl.prune(source, macs=0.5)
    found = onnxjl.report(FluxModel(source, None), FluxModel(pruned, None), measure=False)
    assert (found.before, found.after) == ("the original", "the pruned network")
    assert found.request["macs"] == 0.5
    straight = onnxjl.report(source, pruned, measure=False)
    assert found.layers == straight.layers
    assert found.comparison.difference == straight.comparison.difference


def test_notes_name_no_folders(folder, tmp_path):
    for name in ("net.onnx", "small.onnx"):
        shutil.copy(folder / name, tmp_path / name)
    (tmp_path / "net.test.npz").write_bytes(b"no archive")
    (tmp_path / "small.plan.json").write_text("no plan")
    found = onnxjl.report(tmp_path / "net.onnx", tmp_path / "small.onnx")
    assert found.notes[0].startswith("small.plan.json was passed over: not a plan: Expecting value")
    assert found.notes[1].startswith("accuracy was not measured: net.test.npz: ")
    assert str(tmp_path) not in found.html()


def test_what_onnxruntime_cannot_optimize_has_no_latency(folder, monkeypatch):
    def refuse(*_):
        raise ModelError("onnxruntime can't run net.onnx: no kernel")

    monkeypatch.setattr(before_after, "measure_pair", refuse)
    found = onnxjl.report(folder / "net.onnx", folder / "small.onnx")
    assert found.notes == ("latency was not measured: onnxruntime can't run net.onnx: no kernel",)
    assert [change.name for change in found.changes][-1] == "accuracy"
    assert "Latency" not in Parsed(found.html()).texts("h2")


def test_a_page_of_many_layers_is_small(folder):
    found = onnxjl.report(folder / "net.onnx", folder / "small.onnx", measure=False)
    layers = [
        LayerPair(LayerCost(name, name, "Conv", 2048, 10**9, 10**8), None)
        for name in (
            f"/layer{i // 9}/layer{i // 9}.{i % 9}/downsample/conv/Conv" for i in range(54)
        )
    ]
    text = replace(found, layers=tuple(layers)).html()
    assert len(Parsed(text).texts("li")) == 2 * 54
    assert len(text.encode()) < 150_000


def test_bars_are_as_long_as_their_figures(folder):
    found = onnxjl.report(folder / "net.onnx", folder / "small.onnx", measure=False)
    vocabulary = LayerCost("words", "words", "Gemm", 50_000, 10, 10)
    found = replace(found, layers=(*found.layers, LayerPair(vocabulary, vocabulary, "name")))
    page = Parsed(found.html())
    lengths = {
        kind: [float(a["width"].rstrip("%")) for a, _ in page.all("rect", f"bar-{kind}")]
        for kind in ("before", "after")
    }
    cards = 3  # MACs, parameters, file
    for kind in lengths:
        widths = [getattr(pair, kind).outputs for pair in found.layers]
        expected = [100 * min(width / 8, 1) for width in widths]
        assert lengths[kind][cards : cards + 4] == pytest.approx(expected, abs=0.01)
    assert len(page.all("rect", "bar-cut")) == 1
    (note,) = [text for text in page.texts("p", "muted") if "gap" in text]
    assert note == "bars with a gap are longer than the picture, which ends at 8"


def test_a_plot_has_the_same_bars_as_the_page():
    pytest.importorskip("matplotlib")
    source = onnxjl.normalize(onnxjl.load(NETWORK))
    pruned = onnxjl.prune(source, macs=0.5)
    for figure in (pruned.plot(), FluxModel(pruned, None).plot()):
        (axes,) = figure.axes
        before, after = ([bar.get_width() for bar in bars] for bars in axes.containers)
        found = onnxjl.report(source, pruned, measure=False).layers
        assert before == [pair.before.outputs for pair in found]
        assert after == [pair.after.outputs for pair in found]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == [pair.before.layer for pair in found]
        assert axes.texts[0].get_text() == f" {found[0].after.outputs} of 16"
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert len(onnxjl.load(NETWORK).plot(source).axes) == 1
    with pytest.raises(onnxjl.UsageError, match="only a pruned network knows how wide"):
        source.plot()


def test_a_page_is_written_whole_or_not_at_all(folder, run, tmp_path):
    a, b, output = folder / "net.onnx", folder / "small.onnx", tmp_path / "report.html"
    output.write_text("mine")
    arguments = ("report", a, b, "-o", output, "--no-measure")
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert "report.html: exists; --force (force=True) replaces it" in err
    assert output.read_text() == "mine"
    status, out, err = run(*arguments, "--force")
    assert (status, err) == (0, "")
    assert out.startswith(f"{a} → {b}, {output}\n\nMACs")
    assert "outputs     relative difference" in out
    Parsed(output.read_text(encoding="utf-8"))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OutputError, match="exists"):
        onnxjl.report(a, b, measure=False).save(output)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("net.onnx", "small.onnx"), 2, "required: -o/--output"),
        (("net.onnx", "small.onnx", "-o", "small.onnx", "--force"), 1, "is the input"),
        (("net.onnx", "absent.onnx", "-o", "r.html"), 1, "absent.onnx: no such file"),
        (("net.onnx", "small.onnx", "-o", "no/r.html"), 1, "doesn't exist"),
        (("net.onnx", "small.onnx", "-o", "r.html", "--plan", "p.json"), 1, "can't be read"),
        (("net.onnx", "small.onnx", "-o", "r.html", "--validate", "v.npz"), 1, "v.npz"),
        (("net.onnx", "small.onnx", "-o", "r.html", "--inputs", "v.npz"), 1, "v.npz"),
        (("net.onnx", "small.onnx", "-o", "r.html", "--shape", "x"), 2, "expected NAME="),
    ],
)
def test_misuse_is_said_and_leaves_nothing(arguments, status, message, folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())
    found, out, err = run("report", *arguments)
    assert (found, out) == (status, "")
    assert message in err
    assert sorted(path.name for path in folder.iterdir()) == before


def test_inputs_and_labels_may_be_files_or_arrays(folder, tmp_path):
    a, b = folder / "net.onnx", folder / "small.onnx"
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    found = onnxjl.report(a, b, inputs=tmp_path / "x.npz", measure=False)
    assert found.inputs == "x.npz, x 2×3×6×6"
    assert "--inputs x.npz" in found.commands[-1]
    given = onnxjl.report(a, b, inputs={"x": x}, measure=False, seed=3)
    assert given.inputs == "those given, x 2×3×6×6"
    assert given.comparison.difference == found.comparison.difference
    assert found.comparison.difference == onnxjl.compare(a, b, inputs={"x": x}).difference
    with pytest.raises(DataError, match=r"absent\.npz"):
        onnxjl.report(a, b, validate=tmp_path / "absent.npz")
    with pytest.raises(ModelError, match=r"absent\.onnx: no such file"):
        onnxjl.report(a, tmp_path / "absent.onnx")
    wrong = onnxjl.report(a, b, inputs={"y": x}, measure=False)
    assert wrong.notes == (
        "outputs were not compared: input 'x' is missing; the model takes x (tensor(float), "
        "['N', 3, 6, 6])",
    )
    labels = {"x": x, "target": np.array([0, 7])}
    noted = onnxjl.report(a, b, validate=labels)
    assert noted.notes[-1].startswith("accuracy was not measured: 'target' holds classes 0 to 7")
