"""The command line: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_networks as small
from onnx import numpy_helper
from text_networks import network

import onnxjl
from onnxjl import cli
from onnxjl.criteria import CRITERIA
from onnxjl.sparsity import CRITERIA as SINGLE_WEIGHTS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with ``net.onnx``."""
    onnx.save(small.convolutions(batch="N"), tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    # Processes that the tests start find the package from there as well.
    monkeypatch.setenv("PYTHONPATH", str(Path(onnxjl.__file__).parents[1]))
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run a command in this process: exit status, standard output, standard error."""

    def call(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def state(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def spawn(*arguments, **more):
    command = [sys.executable, "-m", "onnxjl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **more)


# What it does


def test_experiments_go_through_rounds_and_run_again_from_their_result(folder, run):
    (folder / "rounds.toml").write_text(
        'model = "net.onnx"\namount = 0.5\nschedule = "linear"\nrounds = 2\n'
        '[pruning]\nscope = "local"\n'
    )
    status, out, err = run("experiment", "rounds.toml", "-o", "rounds")
    assert (status, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["1", "25.0"], ["2", "50.0"]]
    expected = onnxjl.Experiment(
        model="net.onnx", amount=0.5, schedule="linear", rounds=2, pruning={"scope": "local"}
    ).run()
    written = onnxjl.Plan.load(folder / "rounds" / "round-002" / "plan.json")
    assert written == expected.plan
    status, out, _ = run("experiment", folder / "rounds" / "result.json", "-o", "again", "--json")
    assert status == 0
    assert json.loads(out) == json.loads((folder / "again" / "result.json").read_text())
    assert onnxjl.Plan.load(folder / "again" / "round-002" / "plan.json") == expected.plan


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.json", None, "missing.json: can't be read: No such file"),
        ("bytes.json", b"\xff", "bytes.json: can't be read: it isn't text"),
        ("some.toml", b"macs 0.5", "some.toml: isn't TOML: Expected"),
        ("day.toml", b"day = 2026-01-01", "day.toml: isn't TOML that an experiment can hold"),
        ("some.json", b"{", "not an experiment: Expecting"),
    ],
)
def test_a_file_that_is_no_experiment(folder, run, name, text, message):
    if text is not None:
        (folder / name).write_bytes(text)
    status, out, err = run("experiment", name, "-o", "rounds")
    assert (status, out) == (2, "")
    assert message in err
    assert not (folder / "rounds").exists()


def test_prune_apply_normalize_and_compare_fit_together(folder, run):
    status, out, err = run(
        "prune", "net.onnx", "-o", "small.onnx", "--macs", "0.5", "--plan", "plan.json"
    )
    assert (status, err) == (0, "")
    assert out.startswith("net.onnx → small.onnx, plan.json\n")
    assert "check: equals the masked source in onnxruntime" in out
    onnx.checker.check_model("small.onnx", full_check=True)

    assert run("apply", "net.onnx", "plan.json", "-o", "again.onnx", "--no-measure")[0] == 0
    assert (folder / "again.onnx").read_bytes() == (folder / "small.onnx").read_bytes()

    status, out, _ = run("normalize", "net.onnx", "-o", "normal.onnx")
    assert status == 0
    assert "check: equals the source in onnxruntime: relative difference 0" in out
    kept = json.loads((folder / "plan.json").read_text())["kept"]
    names = {t.name for t in onnx.load("normal.onnx").graph.initializer}
    assert kept.keys() <= names
    small_shapes = {t.name: t.dims for t in onnx.load("small.onnx").graph.initializer}
    for name, axes in kept.items():
        for axis, indices in axes.items():
            assert small_shapes[name][int(axis)] == len(indices)

    status, out, _ = run("compare", "net.onnx", "normal.onnx")
    assert (status, out.splitlines()[0]) == (0, "y  equal    relative difference 0")
    status, out, _ = run("compare", "net.onnx", "small.onnx", "--shape", "x=2,3,6,6")
    assert status == 1
    assert "y  differs  relative difference" in out
    assert "inputs: random, x 2×3×6×6" in out


def test_json_is_all_of_standard_output(folder, run):
    def facts(*arguments):
        status, out, err = run(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    info = facts("info", "net.onnx")
    assert info["opsets"] == {"ai.onnx": 17}
    assert info["inputs"] == [{"name": "x", "type": "float", "shape": ["N", 3, 6, 6]}]
    assert info["operators"]["Conv"] == 2
    assert info["elements"] == {"float": 573}
    assert (info["params"], info["macs"]) == (573, 36 * 27 * 8 + 16 * 72 * 4 + 20)
    assert [layer["layer"] for layer in info["layers"]] == ["first", "second", "head"]
    assert info["assumed_shapes"] == {"x": [1, 3, 6, 6]}

    groups = facts("groups", "net.onnx")
    assert [(g["name"], g["size"]) for g in groups["groups"]] == [("first", 8), ("second", 4)]
    member = {"tensor": "second.weight", "axis": 1, "indices": [[i] for i in range(8)]}
    assert member in groups["groups"][0]["members"]
    assert [w["layer"] for w in groups["whole"]] == ["head"]

    normal = facts("normalize", "net.onnx", "-o", "normal.onnx", "--opset", "20")
    assert normal["opset"] == {"before": 17, "after": 20}
    assert onnx.load("normal.onnx").opset_import[0].version == 20

    pruned = facts("prune", "net.onnx", "-o", "small.onnx", "--amount", "0.5", "--plan", "p.json")
    assert pruned["plan"] == "p.json"
    assert pruned["check"]["status"] == "equal"
    assert pruned["latency"]["after"] > 0
    applied = facts("apply", "net.onnx", "p.json", "-o", "again.onnx")
    assert applied["layers"] == pruned["layers"]

    compared = facts("compare", "small.onnx", "again.onnx")
    assert compared["equal"] is True
    assert compared["outputs"][0]["difference"] == 0


RESIDUAL = network(
    """g (float[N, 8] x) => (float[N, 4] y) {
        a = Gemm (x, w1)
        b = Relu (a)
        c = Gemm (b, w2)
        d = Add (c, x)
        e = Gemm (d, w3)
        f = Relu (e)
        t = Tanh (x)
        g = Add (f, t)
        y = Gemm (g, w4)
    }""",
    {"w1": (8, 16), "w2": (16, 8), "w3": (8, 8), "w4": (8, 4)},
)


def test_blocks_are_listed_and_removed(folder, run):
    onnx.save(RESIDUAL, folder / "res.onnx")
    status, out, err = run("groups", "res.onnx", "--granularity", "block")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "res.onnx: 1 block that can go",
        "  block  kind  MACs  parameters  layers  skipped by",
        "  d      mlp    256         256       2",
        "other sums",
        "  neither side of its sum skips the other, which nothing else uses: g",
        "counted with x 1×8 (--shape gives others)",
    ]
    found = json.loads(run("groups", "res.onnx", "--granularity", "block", "--json")[1])
    assert [block["nodes"] for block in found["blocks"]] == [["a", "b", "c", "d"]]
    assert found["blocks"][0]["macs"] == 256
    asked = ("--granularity", "block", "--macs", "0.5", "--plan", "p.json", "--no-measure")
    status, out, err = run("prune", "res.onnx", "-o", "small.onnx", *asked)
    assert (status, err) == (0, "")
    assert "blocks removed\n  d\n" in out
    assert "check: equals the masked source in onnxruntime" in out
    plan = json.loads((folder / "p.json").read_text())
    assert plan["removed_nodes"] == ["a", "b", "c", "d"]
    assert plan["stand_ins"] == {"d": 1}
    applied = run("apply", "res.onnx", "p.json", "-o", "again.onnx", "--no-measure", "--json")
    assert json.loads(applied[1])["blocks"] == ["d"]
    assert (folder / "again.onnx").read_bytes() == (folder / "small.onnx").read_bytes()


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("apoz", "no criterion of blocks 'apoz'; there are random, l2, bn-scale"),
        ("block-influence", "'block-influence' needs inputs; give some with --data"),
    ],
)
def test_criteria_of_blocks_are_others(criterion, message, folder, run):
    onnx.save(RESIDUAL, folder / "res.onnx")
    status, _, err = run(
        *"prune res.onnx -o s.onnx --macs 0.5 --granularity block --criterion".split(), criterion
    )
    assert status == 2
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (["--params", "0.6"], {"params": 0.6}),
        (["--bytes", "0.6"], {"bytes": 0.6}),
        (["--amount", "0.4", "--scope", "local"], {"amount": 0.4, "scope": "local"}),
        (["--macs", "0.7", "--scope", "isomorphic"], {"scope": "isomorphic"}),
        (["--macs", "0.7", "--scope", "erk"], {"scope": "erk"}),
        (["--macs", "0.7", "--scope", "sensitivity"], {"scope": "sensitivity"}),
        (["--macs", "0.7", "--params", "0.6", "--scope", "optimal"], {"macs": 0.7, "params": 0.6}),
        (["--amount-for", "sec*=0.5"], {"amount_for": {"sec*": 0.5}}),
        (["--macs", "0.7", "--criterion", "random", "--seed", "3"], {"seed": 3}),
        (["--macs", "0.7", "--aggregation", "max"], {"aggregation": "max"}),
        (["--macs", "0.7", "--normalization", "none"], {"normalization": "none"}),
        (["--macs", "0.7", "--ignore", "second"], {"ignore": ["second"]}),
        (["--macs", "0.7", "--round-to", "2", "--min-units", "2"], {"round_to": 2}),
        (["--macs", "0.7", "--granularity", "head"], {"granularity": "head"}),
        (["--macs", "0.7", "--allow-inexact"], {"allow_inexact": True}),
    ],
)
def test_options_reach_the_plan(arguments, request_, folder, run):
    status, _, err = run(
        "prune",
        "net.onnx",
        "-o",
        "s.onnx",
        "--plan",
        "p.json",
        "--no-measure",
        "--no-check",
        *arguments,
    )
    assert (status, err) == (0, "")
    asked = json.loads((folder / "p.json").read_text())["request"]
    assert asked.items() >= request_.items()


def test_criteria_from_data_and_given_inputs_are_used(folder, run):
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)
    np.savez("x.npz", x=x)
    np.savez("labelled.npz", x=x, target=np.zeros(4, np.int64))
    status, out, err = run(
        "prune",
        "net.onnx",
        "-o",
        "s.onnx",
        "--macs",
        "0.5",
        "--criterion",
        "activation",
        "--data",
        "x.npz",
        "--inputs",
        "x.npz",
        "--validate",
        "labelled.npz",
    )
    assert (status, err) == (0, "")
    assert "x 4×3×6×6" in out
    assert "4 samples of labelled.npz" in out
    status, out, _ = run("compare", "net.onnx", "s.onnx", "--inputs", "x.npz", "--tolerance", "1e9")
    assert (status, out.splitlines()[1]) == (0, "inputs: x 4×3×6×6")


def test_labels_beside_given_inputs_are_passed_over(folder, run):
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)
    np.savez("labelled.npz", x=x, target=np.zeros(4, np.int64))
    status, out, err = run(
        "prune", "net.onnx", "-o", "s.onnx", "--macs", "0.5", "--inputs", "labelled.npz"
    )
    assert (status, err) == (0, "")
    assert "check: equals the masked source in onnxruntime" in out
    assert "1 thread, x 4×3×6×6" in out
    for command in (
        ["compare", "net.onnx", "s.onnx", "--tolerance", "1e9"],
        ["normalize", "net.onnx", "-o", "n.onnx"],
        ["report", "net.onnx", "s.onnx", "-o", "page.html"],
        ["prune", "net.onnx", "-o", "t.onnx", "--latency", "0.99"],
    ):
        status, out, err = run(*command, "--inputs", "labelled.npz")
        assert (status, err) == (0, "")
        assert "target" not in out


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": 1}, "input 'x' is missing; the model takes 'x'"),
        ({"x": 1, "z": 1}, "unknown input 'z'; the model takes 'x'"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [["prune", "--macs", "0.5"], ["prune", "--macs", "0.5", "--no-measure"], ["normalize"]],
)
def test_inputs_that_are_not_the_networks_are_refused(arrays, message, command, folder, run):
    np.savez("wrong.npz", **{name: np.zeros((1, 3, 6, 6), np.float32) for name in arrays})
    before = state(folder)
    name, *options = command
    status, _, err = run(name, "net.onnx", "-o", "s.onnx", *options, "--inputs", "wrong.npz")
    assert (status, err) == (1, f"onnxjl: error: {message}\n")
    assert state(folder) == before


def test_sparsify_sets_weights_to_zero(folder, run):
    x = np.random.default_rng(0).standard_normal((8, 3, 6, 6)).astype(np.float32)
    np.savez("x.npz", x=x, target=np.zeros(8, np.int64))
    status, out, err = run(
        *("sparsify", "net.onnx", "-o", "s.onnx", "--pattern", "2:4", "--criterion", "wanda"),
        *("--data", "x.npz", "--validate", "x.npz"),
    )
    assert (status, err) == (0, "")
    assert out.startswith("net.onnx → s.onnx\n")
    assert "its 3 inputs are no multiple of 4: first" in out
    assert "8 samples of x.npz" in out
    assert "check: equals the sparse network in onnxruntime" in out
    assert "onnxruntime multiplies by zero as by anything else" in out
    written = {t.name: numpy_helper.to_array(t) for t in onnx.load("s.onnx").graph.initializer}
    runs = written["second.weight"].transpose(0, 2, 3, 1).reshape(-1, 4)
    assert ((runs != 0).sum(axis=1) == 2).all()
    assert (written["first.weight"] != 0).all()

    status, out, _ = run(
        *("sparsify", "net.onnx", "-o", "t.onnx", "--amount", "0.5", "--scope", "erk", "--json"),
        *("--ignore", "head", "--seed", "3", "--no-measure", "--no-check"),
    )
    facts = json.loads(out)
    assert status == 0
    assert facts["request"] == {
        **{"amount": 0.5, "criterion": "magnitude", "scope": "erk", "ignore": ["head"], "seed": 3}
    }
    assert sum(e["zeros"] for e in facts["layers"]) == 252
    assert facts["nonzero weights"]["after"] == 252
    assert facts["whole"] == [{"layer": "head", "reason": "ignored by 'head'"}]


def test_info_works_where_pruning_does_not(folder, run):
    proto = small.convolutions()
    proto.graph.node.append(onnx.helper.make_node("Nowhere", ["y"], ["z"], domain="test"))
    proto.graph.output[0].name = "z"
    proto.opset_import.add(domain="test", version=1)
    onnx.save(proto, "odd.onnx")
    status, out, err = run("info", "odd.onnx")
    assert (status, err) == (0, "")
    assert "opset 17, test 1" in out
    assert "1 test.Nowhere" in out


def test_text_fits_100_columns(folder, run):
    for command in ("info", "groups"):
        status, out, _ = run(command, "net.onnx")
        assert status == 0
        assert max(map(len, out.splitlines())) <= 100
    for command in ("info", "normalize", "groups", "prune", "sparsify", "apply", "compare"):
        status, out, _ = run(command, "--help")
        assert status == 0
        assert "example:\n  onnxjl " + command in out
        assert max(map(len, out.splitlines())) <= 100


def test_help_names_every_criterion(run):
    text = " ".join(run("prune", "--help")[1].split())
    for name in CRITERIA:
        assert name in text
    text = " ".join(run("sparsify", "--help")[1].split())
    for name in SINGLE_WEIGHTS:
        assert name in text


# What goes wrong


def truncated(folder):
    (folder / "bad.onnx").write_bytes((folder / "net.onnx").read_bytes()[:-700])


def random_bytes(folder):
    (folder / "bad.onnx").write_bytes(np.random.default_rng(0).bytes(5000))


def empty(folder):
    (folder / "bad.onnx").write_bytes(b"")


def text(folder):
    (folder / "bad.onnx").write_text("this is no model\n")


def missing(folder):
    pass


def directory(folder):
    (folder / "bad.onnx").mkdir()


def unchecked(folder):
    proto = small.convolutions()
    proto.graph.node[0].input[0] = "nothing"
    onnx.save(proto, folder / "bad.onnx")


def external(location, make=lambda folder: None):
    def write(folder):
        make(folder)
        proto = small.convolutions()
        tensor = next(t for t in proto.graph.initializer if t.name == "second.weight")
        onnx.external_data_helper.set_external_data(tensor, location.format(folder=folder))
        tensor.ClearField("raw_data")
        onnx.save(proto, folder / "bad.onnx")

    return write


def outside(folder):
    (folder.parent / f"{folder.name}.w").write_bytes(bytes(1152))


def link(folder):
    outside(folder)
    (folder / "w").symlink_to(folder.parent / f"{folder.name}.w")


def not_a_number(folder):
    proto = small.convolutions()
    for tensor in proto.graph.initializer:
        if tensor.name == "second.weight":
            array = numpy_helper.to_array(tensor).copy()
            array[0, 0] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, folder / "bad.onnx")


@pytest.mark.parametrize("command", ["prune", "normalize", "groups", "info", "compare"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "bad.onnx: no such file"),
        (directory, "bad.onnx: a folder"),
        (truncated, "bad.onnx: not an ONNX model, or a truncated one"),
        (random_bytes, "bad.onnx: not an ONNX model"),
        (empty, "bad.onnx: the file is empty"),
        (text, "bad.onnx: not an ONNX model"),
        (unchecked, "bad.onnx: fails ONNX's checker"),
        (external("w"), "external data of 'second.weight' is missing"),
        (external("../w"), "outside the model's folder"),
        (external("/etc/hostname"), "outside the model's folder"),
        (external("w", link), "outside the model's folder"),
    ],
)
def test_bad_models_end_every_command_alike(command, make, message, folder, run):
    make(folder)
    (folder / "out.onnx").write_bytes(b"old")
    before = state(folder)
    more = {"prune": ["--macs", "0.5"], "compare": ["bad.onnx"]}.get(command, [])
    if command in ("prune", "normalize"):
        more += ["-o", "out.onnx", "--force"]
    status, out, err = run(command, "bad.onnx", *more)
    assert (status, out) == (1, "")
    assert err.startswith("onnxjl: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert state(folder) == before


def test_criteria_are_measured_on_the_calibration_data_where_no_others_are_given(run, tmp_path):
    source = Path(__file__).parent / "models" / "mnist-resnet14"
    more = ["--macs", "0.5", "--no-measure", "--no-check", "--calibrate", f"{source}.calib.npz"]
    for criterion in ("l2", "reconstruction"):
        out = tmp_path / f"{criterion}.onnx"
        status, _, err = run("prune", f"{source}.onnx", "-o", out, "--criterion", criterion, *more)
        assert (status, err) == (0, "")
    found = onnxjl.load(tmp_path / "reconstruction.onnx")
    assert onnxjl.accuracy(found, f"{source}.test.npz") > 0.97
    assert found.params != onnxjl.load(tmp_path / "l2.onnx").params


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--macs", "0.5", "--criterion", "l3"], 2, "no criterion 'l3'; did you mean"),
        (["--macs", "0.5", "--criterion", "taylor"], 2, "needs gradients"),
        (["--macs", "0.5", "--criterion", "apoz"], 2, "'apoz' needs inputs; give some with --data"),
        (["--macs", "0.5", "--ignore", "nowhere*"], 2, "no layer or node matches 'nowhere*'"),
        (["--amount-for", "nowhere=0.3"], 2, "no prunable layer matches 'nowhere'"),
        (["--amount-for", "second"], 2, "--amount-for second: expected PATTERN=FRACTION"),
        (["--amount-for", "=0.3"], 2, "--amount-for =0.3: expected PATTERN=FRACTION"),
        (["--amount-for", "second=x"], 2, "--amount-for second=x: expected PATTERN=FRACTION"),
        ([], 2, "give exactly one of amount, macs, params, bytes, latency, not none"),
        (["--macs", "0.5", "--params", "0.5"], 2, "give exactly one of"),
        (["--macs", "1.5"], 2, "macs must be a fraction between 0 and 1, not 1.5"),
        (["--macs", "nan"], 2, "macs must be a fraction between 0 and 1, not nan"),
        (["--macs", "0.5", "--round-to", "0"], 2, "round_to must be a whole number"),
        (["--macs", "0.5", "--shape", "x"], 2, "--shape x: expected NAME=1,3,224,224"),
        (["--macs", "0.5", "--shape", "x=1,a"], 2, "--shape x=1,a: expected NAME=1,3,224,224"),
        (["--macs", "0.5", "--shape", "z=1"], 2, "no input is named 'z'"),
        (["--macs", "0.5", "--plan", "out.onnx"], 2, "--plan and --output name the same file"),
        (["--macs", "0.5", "--plan", "net.onnx"], 1, "net.onnx: is the input"),
        (["--macs", "0.5", "--plan", "nowhere/p"], 1, "nowhere/p: the folder"),
        (["--macs", "0.001"], 1, "macs"),
        (["--macs", "0.9999", "--ignore", "*"], 1, "nothing can be pruned"),
        (["--macs", "0.5", "--inputs", "no.npz"], 1, "no.npz: no such file"),
        (["--macs", "0.5", "--data", "no.npz"], 1, "no.npz: no such file"),
        (["--macs", "0.5", "--validate", "no.npz"], 1, "no.npz: no such file"),
        (["--macs", "0.5", "-o", "net.onnx"], 1, "net.onnx: is the input"),
        (["--macs", "0.5", "-o", "nowhere/s.onnx"], 1, "nowhere/s.onnx: the folder"),
    ],
)
def test_bad_requests_to_prune(arguments, status, message, folder, run):
    (folder / "out.onnx").write_bytes(b"old")
    before = state(folder)
    found, out, err = run("prune", "net.onnx", "-o", "out.onnx", "--force", *arguments)
    assert (found, out) == (status, "")
    assert err.startswith("onnxjl: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert state(folder) == before


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "give exactly one of amount (--amount) and pattern (--pattern)"),
        (["--amount", "0.5", "--pattern", "2:4"], 2, "give exactly one of"),
        (["--amount", "2"], 2, "amount must be a fraction between 0 and 1, not 2.0"),
        (["--pattern", "4:2"], 2, "a pattern is N:M"),
        (["--amount", "0.5", "--criterion", "l3"], 2, "no criterion for single weights 'l3'"),
        (["--amount", "0.5", "--criterion", "wanda"], 2, "'wanda' needs inputs; give some with"),
        (["--amount", "0.5", "--criterion", "snip"], 2, "needs gradients"),
        (["--amount", "0.5", "--criterion", "a.jl:f"], 2, "is a function in Python: FILE.py:NAME"),
        (["--amount", "0.5", "--finetune", "1"], 2, "--finetune needs gradients"),
        (["--amount", "0.5", "--ignore", "*"], 1, "no weight of this network can be sparse"),
        (["--amount", "0.5", "-o", "net.onnx"], 1, "net.onnx: is the input"),
    ],
)
def test_bad_requests_to_sparsify(arguments, status, message, folder, run):
    (folder / "out.onnx").write_bytes(b"old")
    before = state(folder)
    found, out, err = run("sparsify", "net.onnx", "-o", "out.onnx", "--force", *arguments)
    assert (found, out) == (status, "")
    assert message in err
    assert err.count("\n") == 1
    assert state(folder) == before


@pytest.mark.parametrize("name", [n for n, c in CRITERIA.items() if c.needs_gradient])
def test_gradient_criteria_point_to_the_flux_engine(name, folder, run):
    status, _, err = run("prune", "net.onnx", "-o", "s.onnx", "--macs", "0.5", "--criterion", name)
    assert status == 2
    assert "needs gradients" in err
    assert "flux" in err


def test_a_weight_that_is_scored_must_be_finite(folder, run):
    not_a_number(folder)
    status, _, err = run("prune", "bad.onnx", "-o", "s.onnx", "--macs", "0.5")
    assert status == 1
    assert "second.weight" in err
    assert "NaN" in err


def test_existing_outputs_need_force(folder, run):
    (folder / "s.onnx").write_bytes(b"old")
    (folder / "p.json").write_text("old")
    before = state(folder)
    for more in (["-o", "s.onnx"], ["-o", "t.onnx", "--plan", "p.json"]):
        status, _, err = run("prune", "net.onnx", "--macs", "0.5", *more)
        assert status == 1
        assert "exists; --force (force=True) replaces it" in err
        assert state(folder) == before
    arguments = ["prune", "net.onnx", "--macs", "0.5", "-o", "s.onnx", "--plan", "p.json"]
    assert run(*arguments, "--force", "--no-measure")[0] == 0
    assert run("apply", "net.onnx", "p.json", "-o", "p.json", "--force")[0] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "p.json: can't be read: No such file"),
        ("{", "p.json: not a plan"),
        ("{}", "p.json: not a plan of format 1"),
        ('{"onnxjl": 1, "source": {"sha256": "0"}, "kept": {}}', "made for another graph"),
    ],
)
def test_a_plan_must_be_one_of_this_graph(content, message, folder, run):
    if content is not None:
        (folder / "p.json").write_text(content)
    status, _, err = run("apply", "net.onnx", "p.json", "-o", "s.onnx")
    assert status == 1
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: onnxjl"),
        (["shrink"], "invalid choice: 'shrink'"),
        (["prune", "net.onnx", "--macs", "0.5"], "the following arguments are required: -o"),
        (["prune", "net.onnx", "-o", "s.onnx", "--macs", "half"], "invalid float value: 'half'"),
        (["prune", "net.onnx", "-o", "s.onnx", "--scope", "all"], "invalid choice: 'all'"),
        (["groups", "net.onnx", "--granularity", "row"], "invalid choice: 'row'"),
        (["info", "net.onnx", "--verbose"], "unrecognized arguments: --verbose"),
    ],
)
def test_misuse(arguments, message, folder, run):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert not arguments or err.count("\n") == 1


def test_warnings_are_one_line_each(folder, run, monkeypatch):
    import warnings

    from onnxjl import commands

    def warn(options):
        warnings.warn("something\nodd", stacklevel=1)
        return 0

    monkeypatch.setattr(commands, "info", warn)
    assert run("info", "net.onnx") == (0, "", "onnxjl: warning: something odd\n")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 1, "onnxjl: interrupted; nothing was written\n"),
        (MemoryError(), 1, "onnxjl: error: out of memory\n"),
        (ValueError("a\nb"), 1, "onnxjl: error: unexpected ValueError: a b (a fault of onnxjl; "),
    ],
)
def test_no_traceback_unless_asked_for(error, status, message, folder, run, monkeypatch):
    from onnxjl import commands

    def fail(options):
        raise error

    monkeypatch.setattr(commands, "info", fail)
    found, out, err = run("info", "net.onnx")
    assert (found, out) == (status, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    monkeypatch.setenv("ONNXJL_DEBUG", "1")
    assert "Traceback" in run("info", "net.onnx")[2]


def test_an_interruption_after_saving_says_what_is_there(folder, run, monkeypatch):
    from onnxjl import commands

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "make_report", interrupted)
    status, _, err = run("prune", "net.onnx", "-o", "s.onnx", "--macs", "0.5", "--plan", "p.json")
    assert (status, err) == (1, "onnxjl: interrupted; already written: s.onnx, p.json\n")
    onnx.checker.check_model("s.onnx")


# Processes


def test_exit_status_and_streams_of_the_real_command(folder):
    done = spawn("prune", "net.onnx", "-o", "s.onnx", "--macs", "0.5", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["output"] == "s.onnx"
    failed = spawn("info", "nowhere.onnx")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "onnxjl: error: nowhere.onnx: no such file\n"
    assert spawn("info").returncode == 2
    version = spawn("--version")
    assert (version.returncode, version.stdout) == (0, f"onnxjl {onnxjl.__version__}\n")


def test_a_closed_pipe_ends_it_quietly(folder):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "onnxjl", "info", "net.onnx"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_leaves_everything_as_it_was(folder):
    (folder / "s.onnx").write_bytes(b"old")
    before = state(folder)
    # The check waits, so that Ctrl-C comes while the new file isn't in its place yet.
    code = (
        "import sys, time; from onnxjl import check, cli\n"
        "check.Checker.check = lambda *_, **__: (print('here', flush=True), time.sleep(60))\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    arguments = ["prune", "net.onnx", "-o", "s.onnx", "--macs", "0.5", "--force"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout.readline() == b"here\n"
    assert len(state(folder)) == 3
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, b"onnxjl: interrupted; nothing was written\n")
    assert state(folder) == before


def test_an_interruption_while_a_text_is_executed_is_a_failure_like_others(folder):
    # As while a module is imported that defines dataclasses.
    (folder / "interrupted.py").write_text(
        "import sys; from onnxjl import cli, commands\n"
        "commands.info = lambda options: exec('raise KeyboardInterrupt')\n"
        "sys.exit(cli.main(['info', 'net.onnx']))"
    )
    # Python ends by the signal only where it was started with -m.
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "onnxjl: interrupted; nothing was written\n")


def test_progress_is_drawn_on_a_terminal(folder):
    code = (
        "import sys, time; from onnxjl import cli, commands, progress\n"
        "progress.Progress.__init__.__kwdefaults__['delay'] = 0.0\n"
        "slow = commands.normalized\n"
        "commands.normalized = lambda *a, **k: (time.sleep(1), slow(*a, **k))[1]\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    ours, theirs = pty.openpty()
    arguments = ["prune", "net.onnx", "-o", "s.onnx", "--macs", "0.5", "--no-measure"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break  # The other end is closed: the process has ended.
    os.close(ours)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"1/5 pruning: normalizing" in shown
    assert b"pruning: " not in out
