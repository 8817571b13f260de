"""The command line with the Flux engine, in this process: its Julia is that of the other tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from flux_support import needs_julia

import onnxjl
from onnxjl import cli

MODEL = Path(__file__).parent / "models" / "mnist-resnet14.onnx"
JULIA = """
score(group) = [sum(sum(abs2, slice(m, u)) for m in group.members) for u in 1:length(group)]
twice(output, target) = 2 * OnnxJL.crossentropy(output, target)
"""

one_julia = pytest.mark.xdist_group("julia")


@pytest.fixture
def few(tmp_path):
    """64 labelled samples."""
    with np.load(MODEL.with_suffix(".calib.npz")) as file:
        np.savez(tmp_path / "few.npz", **{name: file[name][:64] for name in file.files})
    return tmp_path / "few.npz"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        fixed = ("prune", MODEL, "-o", "small.onnx", "--macs", "0.6", "--no-measure")
        status = cli.main([str(argument) for argument in (*fixed, *arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--criterion taylor --data few.npz", "needs gradients.*--engine flux"),
        ("--criterion my.jl:score", "add --engine flux"),
        ("--finetune 3 --data few.npz", "--finetune needs gradients: add --engine flux"),
        ("--engine flux --finetune 3", "needs labelled samples: --data FILE.npz"),
        ("--engine flux --finetune 0 --data few.npz", "at least 1 epoch"),
        ("--engine flux --lr 0.1", "--lr is for --finetune EPOCHS"),
        ("--engine flux --criterion taylor", "needs inputs; give some with --data"),
        ("--engine flux --criterion taylor --data bare.npz", "has no labels.*'target'"),
        ("--engine flux --finetune 1 --data bare.npz", "has no labels.*'target'"),
        ("--engine flux --finetune 1 --data few.npz --resume", "needs the --checkpoint FILE"),
        ("--loss mse", "--loss is for gradients"),
        ("--criterion my.py", "which function\\? write my.py:NAME"),
        ("--criterion no.py:score", "no.py: no such file"),
        ("--criterion my.py:scare", "my.py defines no function 'scare'"),
        ("--criterion broken.py:score", "broken.py: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_request_is_told_before_work_begins(arguments, message, run, tmp_path):
    np.savez(tmp_path / "bare.npz", image=np.zeros((4, 1, 28, 28), np.float32))
    (tmp_path / "my.py").write_text("def score(group, weights): ...\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    status, out, err = run(*arguments.split())
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
    assert not (tmp_path / "small.onnx").exists()


def test_a_criterion_may_be_in_a_python_file(run, tmp_path):
    (tmp_path / "my.py").write_text(
        "def reverse(group, weights):\n    return range(group.size, 0, -1)\n"
    )
    status, _, err = run("--criterion", "my.py:reverse", "--plan", "plan.json")
    assert status == 0, err
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["request"]["criterion"] == "reverse"
    kept = onnxjl.Plan.load(tmp_path / "plan.json").kept
    cuts = [units for axes in kept.values() for units in axes.values()]
    assert cuts
    assert all(units.tolist() == list(range(len(units))) for units in cuts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--criterion my.jl:scare", "defines no function 'scare'"),
        ("--loss mee --criterion taylor --data few.npz", "no loss 'mee'; did you mean"),
        ("--finetune 1 --data few.npz --optimiser adamx", "no optimiser 'adamx'"),
    ],
)
@pytest.mark.usefixtures("few")
@needs_julia
@one_julia
def test_julia_says_what_it_lacks(arguments, message, run, tmp_path):
    (tmp_path / "my.jl").write_text(JULIA)
    status, out, err = run("--engine", "flux", *arguments.split())
    assert status in (1, 2)
    assert out == ""
    assert message in err
    assert not (tmp_path / "small.onnx").exists()


@needs_julia
@one_julia
def test_one_command_prunes_by_gradients_and_trains(run, few, tmp_path):
    arguments = ("--engine", "flux", "--criterion", "taylor", "--data", few, "--finetune", 2)
    more = ("--batch-size", 16, "--schedule", "cosine", "--distil", "--checkpoint", "state")
    status, out, err = run(*arguments, *more, "--json", "--plan", "plan.json")
    assert status == 0, err
    report = json.loads(out)
    assert report["check"]["status"] == "equal"
    assert report["MACs"]["after"] <= 0.6 * report["MACs"]["before"]
    epochs = report["finetuning"]["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert epochs[1]["loss"] < epochs[0]["loss"]
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["engine"] == "flux"
    assert plan["request"]["criterion"] == "taylor"
    # The same plan alone gives the same network with the weights that it was trained from.
    onnxjl.save(onnxjl.apply(MODEL, onnxjl.Plan.load(tmp_path / "plan.json")), "untrained.onnx")
    assert not onnxjl.compare("untrained.onnx", "small.onnx").equal()
    # What a checkpoint holds is all: nothing is left to train.
    status, out, err = run(*arguments, *more, "--resume", "--force")
    assert status == 0, err
    assert "fine-tuning\n  epoch" in out


@needs_julia
@one_julia
def test_criterion_and_loss_may_be_in_a_julia_file(run, few, tmp_path):
    (tmp_path / "my.jl").write_text(JULIA)
    arguments = ("--engine", "flux", "--data", few, "--no-check", "--json")
    status, out, err = run("--criterion", "my.jl:score", *arguments)
    assert status == 0, err
    assert json.loads(out)["finetuning"] is None
    losses = []
    for loss in ("cross-entropy", "my.jl:twice"):
        status, out, err = run(
            "--force", "--loss", loss, *arguments, "--finetune", 1, "--batch-size", 64
        )
        assert status == 0, err
        losses.append(json.loads(out)["finetuning"]["epochs"][0]["loss"])
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-5)


@needs_julia
@one_julia
def test_a_criterion_of_blocks_may_be_in_a_julia_file(run, few, tmp_path):
    page = Path(__file__).parents[1].joinpath("docs", "criteria.md").read_text()
    (told,) = re.findall(r"```julia\n(function influence\(block\).*?)```", page, re.DOTALL)
    (tmp_path / "my.jl").write_text(told)
    blocks = ("--engine", "flux", "--granularity", "block", "--criterion", "my.jl:influence")
    chosen = []
    for data in ((), ("--data", few)):
        status, out, err = run(*blocks, *data, "--force", "--plan", "plan.json", "--json")
        assert status == 0, err
        assert json.loads(out)["check"]["status"] == "equal"
        chosen.append(json.loads((tmp_path / "plan.json").read_text())["request"]["blocks"])
    assert all(chosen)
    assert chosen[0] != chosen[1]
    np.savez("unlabelled.npz", image=np.load(few)["image"])
    status, _, err = run(*blocks, "--data", "unlabelled.npz", "--force")
    assert (status, "unlabelled.npz has no labels" in err) == (2, True)
