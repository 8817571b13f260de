"""Experiments: rounds that meet the original's budget, go on after a kill, and can be run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_networks import convolutions
from text_networks import network, split_in_two

import onnxjl
from onnxjl import Experiment, regularization, schedule
from onnxjl.cli import main
from onnxjl.errors import BudgetError, DataError, OutputError, UsageError
from onnxjl.rounds import Original
from onnxjl.rounds_folder import Folder
from onnxjl.structure import analyze

NETWORK = Path(__file__).parent / "models" / "mnist-resnet14.onnx"
LABELLED = NETWORK.with_suffix(".test.npz")
CALIBRATION = NETWORK.with_suffix(".calib.npz")
SPARSE = {"macs": None, "sparsity": 0.5}


@pytest.fixture(scope="module")
def few() -> dict[str, np.ndarray]:
    with np.load(LABELLED) as file:
        return {name: file[name][:100] for name in file.files}


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    with np.load(CALIBRATION) as file:
        return {"image": file["image"][:32]}


def weights(graph) -> dict[str, np.ndarray]:
    return {name: graph.weight(name) for name in graph.model.graph.initializers}


def same(a, b) -> bool:
    """Whether two networks have the same bytes of weights."""
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(
        ours[name].tobytes() == theirs[name].tobytes() for name in ours
    )


def test_rounds_with_refit_reach_the_budget_of_the_original(few, inputs):
    found = Experiment(
        model=NETWORK,
        macs=0.4,
        schedule="linear",
        rounds=2,
        recover="refit",
        calibration=inputs,
        validate=few,
    ).run()
    assert [each.asked for each in found.rounds] == [0.7, 0.4]
    original = onnxjl.normalize(onnxjl.load(NETWORK))
    for each in found.rounds:
        assert 0.98 * each.asked < each.macs_kept <= each.asked
    assert found.rounds[-1].macs_kept == found.model.macs / original.macs
    assert found.rounds[-1].params_kept == found.model.params / original.params
    assert found.rounds[-1].accuracy == onnxjl.accuracy(found.model, few)
    assert found.baseline == onnxjl.accuracy(original, few)
    for each in found.rounds:
        assert each.accuracy == each.accuracy_after_recovery
        assert each.accuracy_after_training is None
    assert found.rounds[-1].accuracy > found.rounds[-1].accuracy_after_pruning
    assert found.plan.source["sha256"] == original.fingerprint
    assert onnxjl.apply(original, found.plan).params == found.model.params
    assert found.plan.request["macs"] == 0.4
    assert found.plan.request["recover"] == "refit"


def test_the_rounds_are_those_made_by_hand(few):
    found = Experiment(model=NETWORK, params=0.5, schedule="geometric", rounds=2).run()
    original = onnxjl.load(NETWORK)
    first = onnxjl.prune(original, params=0.5**0.5)
    whole, left = (analyze(graph) for graph in (original, first))
    whole, left = (float(each.params.total(each.sizes)) for each in (whole, left))
    second = onnxjl.prune(first, params=0.5 * whole / left)
    assert found.plan == second.plan
    assert same(found.model, second)
    assert all(each.accuracy is None for each in found.rounds)
    assert found.baseline is None


@pytest.mark.parametrize("budget", ["macs", "params", "bytes", "amount"])
def test_one_round_is_prune(budget):
    found = Experiment(model=NETWORK, **{budget: 0.4}, criterion="lamp").run()
    small = onnxjl.prune(NETWORK, **{budget: 0.4}, criterion="lamp")
    assert found.plan == small.plan
    assert same(found.model, small)


def test_criteria_are_measured_on_the_calibration_data_where_there_are_no_others():
    inputs = {"image": np.load("tests/models/mnist-resnet14.calib.npz")["image"][:150]}
    found = Experiment(
        model=NETWORK, macs=0.6, criterion="activation", recover="bn", calibration=inputs
    ).run()
    small = onnxjl.prune(NETWORK, macs=0.6, criterion="activation", data=inputs)
    assert found.model.params == small.params
    for name, axes in small.plan.kept.items():
        for axis, indices in axes.items():
            np.testing.assert_array_equal(found.plan.kept[name][axis], indices)


@pytest.mark.parametrize("scope", ["isomorphic", "erk", "sensitivity", "optimal"])
def test_every_scope_meets_the_budget_of_the_original(scope):
    model = convolutions(batch="n")
    data = np.random.default_rng(0).normal(size=(8, 3, 6, 6)).astype(np.float32)
    found = Experiment(
        model=model,
        params=0.5,
        schedule="linear",
        rounds=2,
        pruning={"scope": scope},
        data=data,
    ).run()
    original = onnxjl.normalize(onnxjl.load(model))
    for each, fraction in zip(found.rounds, (0.75, 0.5), strict=True):
        assert 0.7 * fraction < each.params_kept <= fraction
    assert onnxjl.apply(original, found.plan).params == found.model.params


@pytest.mark.parametrize("name", ["linear", "cubic", "geometric"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_amounts_are_counted_in_the_units_of_the_original(name, scope):
    model = convolutions()
    groups = onnxjl.groups(model)
    found = Experiment(
        model=model, amount=0.5, schedule=name, rounds=3, pruning={"scope": scope}
    ).run()
    sizes = np.array([group.size for group in groups])
    kept = [
        len(found.plan.kept.get(m.tensor, {}).get(m.axis, range(group.size)))
        for group in groups
        for m in group.members[:1]
    ]
    if scope == "local":
        assert kept == np.maximum(1, np.floor(0.5 * sizes)).tolist()
    else:
        assert sum(kept) == np.floor(0.5 * sizes.sum())


@pytest.mark.parametrize(("scope", "widths"), [("global", [1, 1]), ("local", [1, 2])])
def test_a_group_that_comes_down_to_one_unit_is_still_counted(scope, widths):
    text = """g (float[N, 6] x) => (y) {
        a = Gemm (x, w)
        b = Relu (a)
        c = Gemm (b, v)
        y = Gemm (c, u)
    }"""
    found = Experiment(
        model=network(text, {"w": (6, 3), "v": (3, 8), "u": (8, 2)}),
        amount=0.75,
        schedule="linear",
        rounds=6,
        pruning={"scope": scope},
    ).run()
    # A quarter of 11 units are 2; of 3 and of 8 they are 0, where one stays, and 2.
    assert [found.model.weight(name).shape[1] for name in ("w", "v")] == widths


def test_groups_are_followed_though_an_earlier_one_of_their_layer_is_none_any_more():
    found = Experiment(
        model=split_in_two(2, 8),
        amount=0.6,
        schedule="linear",
        rounds=3,
        pruning={"scope": "local"},
    ).run()
    assert found.model.weight("w").shape == (6, 1 + 3)


def test_groups_that_are_not_those_of_the_original():
    graph = onnxjl.normalize(onnxjl.load(split_in_two(4, 8)))
    small = onnxjl.prune(graph, amount=0.5)
    other = replace(small, plan=replace(small.plan, kept={}))
    with pytest.raises(BudgetError, match="aren't those of the original; use scope='global'"):
        Original.of(graph).request(other, "amount", 0.8, "local")


def test_more_than_there_is_to_remove():
    graph = onnxjl.normalize(onnxjl.load(split_in_two(2, 4)))
    small = onnxjl.prune(graph, amount=0.5)
    with pytest.raises(BudgetError, match=r"amount=0.99 can't be met: 3 more units have to go"):
        Original.of(graph).request(small, "amount", 0.99, "global")


def test_a_hundred_rounds_where_most_remove_nothing():
    model = convolutions()
    found = Experiment(model=model, amount=0.5, schedule="geometric", rounds=100).run()
    units = sum(group.size for group in onnxjl.groups(model))
    assert len(found.rounds) == 100
    left = sum(
        len(found.plan.kept.get(m.tensor, {}).get(m.axis, range(group.size)))
        for group in onnxjl.groups(model)
        for m in group.members[:1]
    )
    assert left == units // 2


def test_a_budget_that_a_round_cannot_meet_names_the_round():
    with pytest.raises(BudgetError, match=r"round 3: macs=.* can't be met"):
        Experiment(model=NETWORK, macs=1e-5, schedule="geometric", rounds=4).run()


def early_state(graph, seed=3):
    """The same network with other weights."""
    random = np.random.default_rng(seed)
    model = graph.model.clone()
    for value in model.graph.initializers.values():
        array = value.const_value.numpy()
        if array.dtype.kind == "f":
            drawn = np.abs(random.normal(size=array.shape)).astype(array.dtype)
            value.const_value = ir.Tensor(drawn, name=value.name)
    return replace(graph, model=model)


def test_rewound_weights_are_the_early_ones_at_the_kept_indices():
    original = onnxjl.normalize(onnxjl.load(NETWORK))
    early = early_state(original)
    found = Experiment(
        model=original, macs=0.5, schedule="cubic", rounds=2, rewind="weights", early=early
    ).run()
    compared = 0
    for name, values in weights(early).items():
        for axis, kept in found.plan.kept.get(name, {}).items():
            values = values.take(kept, axis=axis)
        if values.dtype.kind == "f":
            assert np.array_equal(found.model.weight(name), values)
            compared += 1
    assert compared > 30
    assert found.plan.source["sha256"] == original.fingerprint
    assert onnxjl.apply(original, found.plan).params == found.model.params


def test_another_network_to_rewind_to():
    with pytest.raises(UsageError, match=r"rewound to another network: '.*' has shape"):
        Experiment(model=NETWORK, macs=0.5, rewind="weights", early=convolutions()).run()


@pytest.mark.parametrize("rewind", [None, "weights"])
def test_single_weights_go_in_rounds(rewind, tmp_path):
    original = onnxjl.normalize(onnxjl.load(NETWORK))
    early = early_state(original)
    experiment = Experiment(
        model=original,
        sparsity=0.9,
        schedule="geometric",
        rounds=2,
        pruning={"scope": "local"},
        rewind=rewind,
        early=None if rewind is None else early,
    )
    found = experiment.run(tmp_path)
    # Each round keeps √0.1 of what is left, of each layer.
    first = onnxjl.sparsify(original, amount=1 - 0.1**0.5, scope="local")
    if rewind is not None:
        first = onnxjl.mask(early, first.masks)
    second = onnxjl.sparsify(first, amount=0.9, scope="local")
    masks = second.masks
    assert {n: m.tolist() for n, m in found.model.masks.items()} == {
        n: m.tolist() for n, m in masks.items()
    }
    for name, mask in masks.items():
        kept = original if rewind is None else early
        assert np.array_equal(found.model.weight(name), np.where(mask, kept.weight(name), 0))
        assert not (mask & ~first.masks[name]).any()
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    assert found.rounds[-1].sparsity == zeros / sum(mask.size for mask in masks.values())
    assert found.rounds[-1].sparsity == pytest.approx(0.9, abs=1e-3)
    assert found.rounds[-1].macs_kept == 1
    os.rename(tmp_path / "round-002", tmp_path / "gone")
    assert same(experiment.run(tmp_path).model, found.model)
    with pytest.raises(UsageError, match="a sparse network has no plan"):
        found.plan  # noqa: B018


def test_a_round_that_makes_no_weight_zero_more_changes_nothing():
    text = "g (float[N, 6] x) => (y) { a = Gemm (x, w) b = Relu (a) y = Gemm (b, v) }"
    found = Experiment(
        model=network(text, {"w": (6, 3), "v": (3, 2)}),
        sparsity=0.5,
        schedule="linear",
        rounds=20,
    ).run()
    zeros = [round(24 * each.sparsity) for each in found.rounds]
    # 24 weights, of which a half goes in twenty steps, each rounded to the nearest number.
    assert zeros == [int(0.6 * number + 0.5) for number in range(1, 21)]


def options(few, inputs):
    """Options of an experiment with three short rounds."""
    return {
        "model": NETWORK,
        "macs": 0.4,
        "schedule": "cubic",
        "rounds": 3,
        "recover": "bn",
        "calibration": inputs,
        "validate": few,
    }


def plain(found):
    """What two runs of the same have in common."""
    rows = [each.row() for each in found.rounds]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    """The networks and plans in a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.name in ("network.onnx", "plan.json")
    }


BLOCKS = {"pruning": {"granularity": "block"}, "schedule": "linear", "rounds": 3}


def test_blocks_go_in_rounds_as_by_hand(tmp_path, few, inputs):
    asked = Experiment(
        model=NETWORK,
        macs=0.4,
        criterion="block-influence",
        recover="refit",
        calibration=inputs,
        validate=few,
        **BLOCKS,
    )
    found = asked.run(tmp_path / "rounds")
    graph = onnxjl.normalize(onnxjl.load(NETWORK))
    small = graph
    for each in found.rounds:
        assert each.macs_kept <= each.asked
        if small.macs > each.asked * graph.macs:
            small = onnxjl.prune(
                small,
                macs=each.asked * graph.macs / small.macs,
                criterion="block-influence",
                granularity="block",
                data=inputs,
                calibration=inputs,
            )
        assert each.macs_kept == small.macs / graph.macs
        assert each.accuracy == onnxjl.accuracy(small, few)
    gone = found.plan.request["blocks"]
    assert len(gone) >= 3
    before, after = ({b.name for b in onnxjl.blocks(g)} for g in (graph, found.model))
    assert before - after == set(gone)
    # The plan alone removes the same from the original.
    assert onnxjl.apply(graph, found.plan).params == found.model.params
    assert same(asked.run(tmp_path / "rounds").model, found.model)
    assert same(found.model, small)


def test_an_amount_of_blocks_is_one_of_the_originals():
    found = Experiment(model=NETWORK, amount=0.5, criterion="random", seed=3, **BLOCKS).run()
    assert [each.asked for each in found.rounds] == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    assert len(onnxjl.blocks(found.model)) == 3
    assert len(found.plan.request["blocks"]) == 3
    # What a pattern names stays in every round.
    kept = {"granularity": "block", "ignore": ["layer1.*", "layer2.*"]}
    found = Experiment(model=NETWORK, amount=1 - 1e-9, pruning=kept).run()
    assert found.plan.request["blocks"] == ["layer3.0", "layer3.1"]


def test_a_function_of_ones_own_scores_blocks_anew_in_each_round():
    seen = []

    def fewest(block, weights):
        seen.append(block.name)
        return block.params

    found = Experiment(model=NETWORK, amount=0.5, criterion=fewest, **BLOCKS).run()
    assert [seen.count(f"layer3.{i}") for i in (0, 1)] == [3, 3]
    assert sorted(found.plan.request["blocks"]) == ["layer1.0", "layer1.1", "layer2.0"]


def test_a_folder_changes_nothing_and_a_finished_one_is_only_read(tmp_path, few, inputs):
    experiment = Experiment(**options(few, inputs))
    inside, outside = experiment.run(tmp_path / "rounds"), experiment.run()
    assert plain(inside) == plain(outside)
    assert inside.plan == outside.plan
    assert same(inside.model, outside.model)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "rounds").rglob("*.onnx")}
    again = experiment.run(tmp_path / "rounds")
    assert again.rounds == inside.rounds
    assert same(again.model, inside.model)
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "rounds").rglob("*.onnx")}
    result = json.loads((tmp_path / "rounds" / "result.json").read_text())
    assert result["rounds"] == [each.to_dict() for each in inside.rounds]
    assert result["versions"]["onnxjl"] == onnxjl.__version__


RUN = """
import sys
import numpy as np
from onnxjl import Experiment

calibration, labelled = ({n: a[:c] for n, a in np.load(p).items()} for p, c in (
    (sys.argv[2], 32), (sys.argv[3], 100)
))
Experiment(
    model=sys.argv[1], macs=0.4, schedule="cubic", rounds=3, recover="bn",
    calibration={"image": calibration["image"]}, validate=labelled,
).run(sys.argv[4])
"""


def test_killed_runs_go_on_to_the_same_bytes(tmp_path, few, inputs):
    experiment = Experiment(**options(few, inputs))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = experiment.run(whole)
    arguments = [sys.executable, "-c", RUN, NETWORK, CALIBRATION, LABELLED, killed]
    seen = -1
    # Killed as soon as one more round is there, which is at another place of the next each time.
    for number in range(3):
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (killed / f"round-{number:03}").is_dir():
            time.sleep(0.01)
        time.sleep(0.05 * number)
        process.kill()
        process.wait()
        left = Folder(killed, {}).finished()
        assert left >= number > seen
        seen = number
    found = experiment.run(killed)
    assert plain(found) == plain(expected)
    assert files(killed) == files(whole)
    assert not list(killed.glob(".*unfinished"))


def test_what_a_killed_write_leaves_is_removed(tmp_path, few, inputs):
    experiment = Experiment(**options(few, inputs))
    expected = experiment.run(tmp_path)
    # As if the process had been killed while it wrote the last round.
    os.rename(tmp_path / "round-003", tmp_path / ".3.1.ab.onnxjl-unfinished")
    (tmp_path / ".3.1.ab.onnxjl-unfinished" / "record.json").unlink()
    found = experiment.run(tmp_path)
    assert plain(found) == plain(expected)
    assert same(found.model, expected.model)
    assert not list(tmp_path.glob(".*unfinished"))


def test_a_folder_of_another_experiment_is_refused(tmp_path):
    Experiment(model=NETWORK, macs=0.6).run(tmp_path)
    with pytest.raises(UsageError, match=r"holds another experiment, with macs=0.6, not 0.5"):
        Experiment(model=NETWORK, macs=0.5).run(tmp_path)
    with pytest.raises(UsageError, match=r"holds another experiment, with validate=None"):
        Experiment(model=NETWORK, macs=0.6, validate=LABELLED).run(tmp_path)


def test_a_folder_in_which_another_process_is_at_work(tmp_path):
    pytest.importorskip("fcntl")
    experiment = Experiment(model=NETWORK, macs=0.6)
    with (
        Folder(tmp_path, {}),
        pytest.raises(OutputError, match="another process is at work in it"),
    ):
        experiment.run(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: can't be written"):
        Experiment(model=NETWORK, macs=0.6).run(tmp_path / "file")


def test_a_broken_folder(tmp_path):
    experiment = Experiment(model=NETWORK, macs=0.6)
    experiment.run(tmp_path)
    (tmp_path / "round-001" / "record.json").write_text("{")
    with pytest.raises(DataError, match=r"record.json: can't be read"):
        experiment.run(tmp_path)


def test_from_json_runs_the_same_again(tmp_path):
    with np.load(LABELLED) as file:
        np.savez(tmp_path / "few.npz", **{name: file[name][:100] for name in file.files})
    experiment = Experiment(
        model=NETWORK,
        amount=0.3,
        criterion="random",
        pruning={"scope": "local", "ignore": ("layer1*",)},
        schedule=schedule.cubic(2, initial=0.05),
        validate=tmp_path / "few.npz",
        seed=7,
    )
    found = experiment.run()
    record = json.loads(found.to_json())["experiment"]
    graph = onnxjl.normalize(onnxjl.load(NETWORK))
    assert record["model"] == {"path": str(NETWORK), "sha256": graph.fingerprint}
    again = Experiment.from_json(found.to_json()).run()
    assert again.plan == found.plan
    assert same(again.model, found.model)
    assert plain(again) == plain(found)
    assert Experiment.from_json(experiment.to_json()).to_dict() == experiment.to_dict()


def test_a_record_notices_other_data(tmp_path):
    np.savez(tmp_path / "few.npz", image=np.zeros((2, 1, 28, 28)), target=np.zeros(2, int))
    text = Experiment(model=NETWORK, macs=0.5, validate=tmp_path / "few.npz").to_json()
    np.savez(tmp_path / "few.npz", image=np.ones((2, 1, 28, 28)), target=np.zeros(2, int))
    with pytest.raises(DataError, match="validate: isn't what the record was made with: SHA-256"):
        Experiment.from_json(text).run()
    (tmp_path / "few.npz").unlink()
    with pytest.raises(DataError, match=r"few.npz: can't be read: No such file"):
        Experiment.from_json(text).run()


def test_arrays_and_functions_have_to_be_given_again(few):
    def mine(group, weights):
        return np.arange(group.size)

    experiment = Experiment(model=NETWORK, macs=0.5, validate=few, criterion=mine)
    text = experiment.to_json()
    with pytest.raises(UsageError, match="the experiment's criterion isn't in its record"):
        Experiment.from_json(text, validate=few)
    with pytest.raises(UsageError, match="the experiment's validate isn't in its record"):
        Experiment.from_json(text, criterion=mine)
    again = Experiment.from_json(text, validate=few, criterion=mine)
    assert again.to_dict() == experiment.to_dict()
    other = Experiment.from_json(
        text, validate={**few, "target": few["target"] + 1}, criterion=mine
    )
    with pytest.raises(DataError, match="validate: isn't what the record was made with"):
        other.run()


def test_options_of_training_are_recorded(few):
    def loss(output, target):
        return 0.0, np.zeros_like(output)

    given = {"model": NETWORK, "macs": 0.5, "data": few, "engine": "flux"}
    train = {"epochs": 2, "lr": np.float32(0.5), "freeze": ("fc",)}
    experiment = Experiment(
        **given, train=train, regularize={"regularization": regularization.growing(every=5)}
    )
    record = experiment.to_dict()
    assert record["train"] == {"epochs": 2, "lr": 0.5, "freeze": ["fc"]}
    assert record["regularize"]["regularization"]["every"] == 5
    again = Experiment.from_json(experiment.to_json(), data=few)
    assert again.to_dict() == record
    text = Experiment(**given, train={"loss": loss}).to_json()
    with pytest.raises(UsageError, match="the experiment's train isn't in its record"):
        Experiment.from_json(text, data=few)
    with pytest.raises(UsageError, match="train\\['teacher'\\] is a Graph, which a record can't"):
        Experiment(**given, train={"teacher": onnxjl.load(NETWORK)}).to_json()


def test_an_experiment_written_by_hand():
    found = Experiment.from_json(
        json.dumps({"model": str(NETWORK), "macs": 0.5, "schedule": "linear", "rounds": 2})
    )
    assert found.fractions == (0.75, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not an experiment: Expecting"),
        ("[]", "not an experiment of format 1"),
        ('{"onnxjl": 9}', "not an experiment of format 1"),
        ('{"macs": 0.5}', "not an experiment: 'model' is missing"),
        ('{"model": "a", "macs": 0.5, "schedule": {"round": 3}}', "a schedule has no 'round'"),
        ('{"model": "a", "macs": 0.5, "schedule": {"rounds": 3}}', "no schedule ''"),
        ('{"model": "a", "macs": 0.5, "schedule": {"name": []}}', r"a schedule's name is \[\]"),
        (
            '{"model": "a", "macs": 0.5, "schedule": "linear", "rounds": 1000000000}',
            "rounds=1000000000: 10,000 at most",
        ),
        ('{"model": "a", "mac": 0.5}', "no field of an experiment 'mac'; did you mean 'macs'"),
    ],
)
def test_what_is_no_experiment(text, message):
    with pytest.raises(UsageError, match=message):
        Experiment.from_json(text)


@pytest.mark.parametrize("text", ["a=" + "[" * 50_000, "amount=" + "9" * 5000])
def test_what_is_no_toml(text, tmp_path, capsys):
    (tmp_path / "a.toml").write_text(text)
    assert main(["experiment", str(tmp_path / "a.toml"), "-o", str(tmp_path / "out")]) == 2
    assert "isn't TOML" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="reads a device")
def test_data_without_an_end(tmp_path):
    experiment = Experiment(model=NETWORK, macs=0.5, validate="/dev/zero")
    with pytest.raises(DataError, match="/dev/zero: isn't a plain file"):
        experiment.run(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="makes a link")
def test_a_link_called_like_what_a_killed_write_leaves(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".0.1.a.onnxjl-unfinished").symlink_to(tmp_path / "other")
    with pytest.raises(OutputError, match="onnxjl-unfinished: can't be removed"):
        Experiment(model=NETWORK, macs=0.5).run(tmp_path / "out")
    assert (tmp_path / "other").exists()


def test_data_that_cannot_be_told_apart(tmp_path, few):
    experiment = Experiment(model=NETWORK, macs=0.5, validate=iter([few]))
    with pytest.raises(UsageError, match=r"validate= is a list_iterator, which can't be told"):
        experiment.run(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"macs": None}, "exactly one of amount, macs, params, bytes, sparsity, not none"),
        ({"params": 0.5}, "exactly one of amount, macs, .*, sparsity, not macs, params"),
        ({**SPARSE, "criterion": "l2"}, "no criterion for single weights 'l2'"),
        ({**SPARSE, "pruning": {"round_to": 2}}, "pruning: sparsify has no option 'round_to'"),
        ({**SPARSE, "pruning": {"pattern": "2:4"}}, "pruning: 'pattern' can't be given here"),
        ({**SPARSE, "pruning": {"scope": "some"}}, "no scope 'some'; there are global, local, erk"),
        (
            {**SPARSE, "recover": "bn", "calibration": CALIBRATION},
            "recover= is for units that were removed; with sparsity= criterion 'sparsegpt'",
        ),
        (
            {**SPARSE, "engine": "flux", "data": 1, "train": {"regularization": "growing"}},
            "regularization 'growing' is for units, not for sparsity=",
        ),
        ({"macs": "half"}, "macs must be a fraction between 0 and 1, not 'half'"),
        ({"pruning": 3}, "pruning=3: options by name are needed"),
        ({"macs": 1.5}, "a schedule leads from 0 removed to more, below 1; came -0.5"),
        ({"schedule": "cubik"}, "no schedule 'cubik'; did you mean 'cubic'"),
        ({"schedule": "linear", "rounds": -1}, "rounds=-1: a whole number of at least 1"),
        ({"rounds": 2}, "rounds=2: schedule 'one-shot' has one round"),
        ({"criterion": "l3"}, "no criterion 'l3'"),
        ({"criterion": "taylor"}, "criterion 'taylor' needs gradients"),
        ({"engine": "torch"}, "no engine 'torch'; there are numpy, flux"),
        ({"pruning": {"scop": "local"}}, "pruning: prune has no option 'scop'"),
        ({"pruning": {"scope": "some"}}, "no scope 'some'"),
        ({"pruning": {"latency": 0.5}}, "pruning: 'latency' can't be given here"),
        ({"pruning": {"round_to": "auto"}}, "round_to='auto' is measured on this machine"),
        (
            {
                "macs": None,
                "amount": 0.5,
                "pruning": {"scope": "isomorphic"},
                "schedule": "linear",
                "rounds": 2,
            },
            "an amount with scope 'isomorphic' is none of the original's after the first round",
        ),
        (
            {"pruning": {"granularity": "block", "scope": "local"}},
            "pruning: 'scope' is about units: with granularity 'block' leave it out",
        ),
        (
            {
                "pruning": {"granularity": "block"},
                "regularize": {"regularization": "bn-scale"},
                "engine": "flux",
                "data": 1,
            },
            "regularize= is about units",
        ),
        (
            {"pruning": {"granularity": "block"}, "criterion": "lamp"},
            "no criterion of blocks 'lamp'",
        ),
        ({"recover": "refit"}, "recovery by 'refit' needs inputs"),
        ({"recover": "heal", "calibration": 1}, "no recovery 'heal'"),
        ({"calibration": CALIBRATION}, "calibration= is for recovery"),
        ({"train": {}}, "train= needs engine='flux'"),
        ({"finetune": {}, "engine": "flux"}, "finetune= needs data="),
        ({"finetune": {"epoch": 3}, "engine": "flux", "data": 1}, "finetune has no option 'epoch'"),
        ({"train": {"resume": 1}, "engine": "flux", "data": 1}, "train: 'resume' can't be given"),
        ({"regularize": {}, "engine": "flux", "data": 1}, "needs a regularization: bn-scale, gro"),
        (
            {"regularize": {"regularization": "lasso"}, "engine": "flux", "data": 1},
            "no regularization 'lasso'; did you mean 'group-lasso'",
        ),
        ({"finetune_after": "never"}, "no finetune_after 'never'"),
        ({"rewind": "values"}, "no rewind 'values'; there are weights, learning-rate"),
        ({"rewind": "weights"}, "rewind='weights' needs train=, the training that weights go"),
        ({"rewind": "learning-rate"}, "rewind='learning-rate' needs train= or finetune=, with d"),
        ({"rewind_to": 1}, "rewind_to= and early= need rewind="),
        ({"early": NETWORK}, "rewind_to= and early= need rewind="),
        (
            {"early": NETWORK, "rewind": "weights", "recover": "bn", "calibration": CALIBRATION},
            "rewind='weights' would undo recover=",
        ),
        (
            {
                "rewind": "learning-rate",
                "train": {"epochs": 2},
                "rewind_to": 2,
                "engine": "flux",
                "data": 1,
            },
            "rewind_to=2: a number of epochs from 0 to 1 is needed",
        ),
        (
            {
                "rewind": "learning-rate",
                "early": NETWORK,
                "train": {},
                "engine": "flux",
                "data": 1,
            },
            "early= is for rewind='weights'",
        ),
    ],
)
def test_what_does_not_go_together(given, message):
    with pytest.raises(UsageError, match=message):
        Experiment(**{"model": NETWORK, "macs": 0.5, **given})


def test_the_table_and_the_picture(few):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    found = Experiment(model=NETWORK, macs=0.6, schedule="linear", rounds=2, validate=few).run()
    assert isinstance(found.frame, pandas.DataFrame)
    assert found.frame["accuracy"].tolist() == [each.accuracy for each in found.rounds]
    (axes,) = found.plot().axes
    line = next(line for line in axes.lines if line.get_label() == "rounds")
    assert line.get_xdata() == pytest.approx([1.0, *found.frame["macs_kept"]])
    assert line.get_ydata() == pytest.approx([found.baseline, *found.frame["accuracy"]])
    unmeasured = replace(found, baseline=None)
    with pytest.raises(UsageError, match="accuracy wasn't measured: give the experiment validate="):
        unmeasured.plot()
