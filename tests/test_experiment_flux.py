"""Experiments that train: against the same steps made by hand, stopped in between, and rewound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flux_support import name_julia, needs_julia
from small_networks import convolutions

import onnxjl
from onnxjl import Experiment
from onnxjl import experiment as experiments
from onnxjl.rounds import rewound
from onnxjl.rounds_folder import Folder

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

SHORT = {"batch_size": 8, "lr": 0.02, "optimiser": "momentum"}


@pytest.fixture(scope="module", autouse=True)
def _julia():
    name_julia()


def images(count=48, seed=1):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 3, 6, 6)).astype(np.float32)
    return x, generator.integers(0, 5, count)


def graph_of(seed=0):
    return onnxjl.normalize(onnxjl.load(convolutions(batch="n", seed=seed)))


def weights(graph) -> dict[str, np.ndarray]:
    return {name: graph.weight(name) for name in graph.model.graph.initializers}


def assert_same(a, b):
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name


def trained(graph, **options):
    model = onnxjl.to_flux(graph)
    model.finetune(images(), **{**SHORT, **options})
    return replace(model.to_graph(), plan=graph.plan, source=graph.source)


def test_rounds_with_fine_tuning_are_those_made_by_hand():
    test = images(seed=2)
    found = Experiment(
        model=graph_of(),
        amount=0.5,
        schedule="linear",
        rounds=2,
        data=images(),
        validate=test,
        finetune={**SHORT, "epochs": 2},
        engine="flux",
    ).run()
    first = trained(onnxjl.prune(graph_of(), amount=0.25), epochs=2)
    # Of the 12 units 9 are left, of which 3 more have to go.
    second = onnxjl.prune(first, amount=3 / 9)
    assert_same(found.model, trained(second, epochs=2))
    assert found.plan == second.plan
    assert found.plan.source["sha256"] == graph_of().fingerprint
    last = found.rounds[-1]
    assert last.accuracy == last.accuracy_after_training == onnxjl.accuracy(found.model, test)
    assert last.accuracy_after_pruning == onnxjl.accuracy(second, test)
    assert [epoch.epoch for epoch in last.history] == [1, 2]


def test_criteria_with_gradients_are_measured_anew_in_each_round():
    found = Experiment(
        model=graph_of(),
        params=0.5,
        criterion="taylor",
        schedule="geometric",
        rounds=2,
        data=images(),
        engine="flux",
    ).run()
    first = onnxjl.prune(
        onnxjl.to_flux(graph_of()), params=0.5**0.5, criterion="taylor", data=images()
    )
    share = 0.5 * graph_of().params / first.to_graph().params
    second = onnxjl.prune(first, params=share, criterion="taylor", data=images())
    assert found.plan == second.plan


@pytest.mark.parametrize("rewind_to", [0, 1])
def test_lottery_tickets_train_again_from_early_weights(rewind_to):
    train = {**SHORT, "epochs": 3, "schedule": "cosine"}
    found = Experiment(
        model=graph_of(),
        amount=0.25,
        data=images(),
        train=train,
        rewind="weights",
        rewind_to=rewind_to,
        engine="flux",
    ).run()
    model = onnxjl.to_flux(graph_of())
    early = {0: graph_of()}
    model.finetune(
        images(), after_epoch=lambda e: early.update({e.epoch: model.to_graph()}), **train
    )
    small = onnxjl.prune(model.to_graph(), amount=0.25)
    ticket = rewound(small, early[rewind_to])
    for name, values in weights(early[rewind_to]).items():
        for axis, kept in small.plan.kept.get(name, {}).items():
            values = values.take(kept, axis=axis)
        assert np.array_equal(ticket.weight(name), values)
    options = {**train, "start_epoch": rewind_to}
    assert_same(found.model, trained(ticket, **options))
    assert found.plan == small.plan
    assert len(found.training) == 3
    assert [epoch.epoch for epoch in found.rounds[0].history] == [*range(rewind_to + 1, 4)]


def test_learning_rates_are_gone_through_again_with_the_weights_as_they_are():
    train = {**SHORT, "epochs": 3, "schedule": "cosine"}
    found = Experiment(
        model=graph_of(),
        amount=0.25,
        data=images(),
        train=train,
        rewind="learning-rate",
        rewind_to=1,
        engine="flux",
    ).run()
    small = onnxjl.prune(trained(graph_of(), **train), amount=0.25)
    assert_same(found.model, trained(small, **train, start_epoch=1))
    # What epochs 2 and 3 of the training had.
    again = [epoch.lr for epoch in found.rounds[0].history]
    assert again == pytest.approx([epoch.lr for epoch in found.training][1:])


def test_prune_first_and_train_then():
    found = Experiment(
        model=graph_of(),
        amount=0.5,
        criterion="synflow",
        schedule="geometric",
        rounds=100,
        data=images(),
        finetune={**SHORT, "epochs": 1},
        finetune_after="last",
        engine="flux",
    ).run()
    assert [len(each.history or ()) for each in found.rounds] == [0] * 99 + [1]
    # One of the 12 units after the other, each time that the schedule comes below a whole number.
    small = graph_of()
    for left in range(12, 6, -1):
        small = onnxjl.prune(onnxjl.to_flux(small), amount=1 / left, criterion="synflow").to_graph()
    assert found.plan == small.plan
    assert_same(found.model, trained(small, epochs=1))


def test_weights_that_are_zero_stay_so_in_training():
    train = {**SHORT, "epochs": 2}
    found = Experiment(
        model=graph_of(),
        sparsity=0.75,
        schedule="geometric",
        rounds=2,
        data=images(),
        train=train,
        rewind="weights",
        engine="flux",
    ).run()
    # Frankle & Carbin 2019: half of what is left goes in each round, and the rest starts anew.
    ticket = trained(graph_of(), **train)
    for amount in (0.5, 0.75):
        ticket = onnxjl.mask(graph_of(), onnxjl.sparsify(ticket, amount=amount).masks)
        ticket = trained(ticket, **train, keep_zeros=True)
    assert_same(found.model, ticket)
    size = sum(mask.size for mask in ticket.masks.values())
    assert sum(int((~mask).sum()) for mask in found.model.masks.values()) == round(0.75 * size)
    assert found.rounds[-1].sparsity == pytest.approx(0.75, abs=1 / size)


def options_of_all():
    return {
        "model": graph_of(),
        "amount": 0.5,
        "schedule": "linear",
        "rounds": 2,
        "data": images(),
        "train": {**SHORT, "epochs": 2},
        "regularize": {
            **SHORT,
            "epochs": 1,
            "regularization": {"kind": "growing", "strength": 0.5, "every": 2},
        },
        "rewind": "weights",
        "rewind_to": 1,
        "engine": "flux",
    }


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def test_stopped_after_any_training_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    expected = Experiment(**options_of_all()).run(tmp_path / "whole")
    train = experiments.finetune

    def stopping(*arguments, **options):
        new = not options["checkpoint"].exists()
        history = train(*arguments, **options)
        if new:
            raise StoppedError
        return history

    folder = tmp_path / "stopped"
    # Training of the whole network, then a penalty and a retraining in each of two rounds: each
    # attempt comes one training further, as those before have left their checkpoints.
    monkeypatch.setattr(experiments, "finetune", stopping)
    for finished in (-1, 0, 0, 1, 1):
        with pytest.raises(StoppedError):
            Experiment(**options_of_all()).run(folder)
        assert Folder(folder, {}).finished() == finished
    found = Experiment(**options_of_all()).run(folder)
    for number in (1, 2):
        for name in ("network.onnx", "plan.json"):
            here, there = (
                (tmp_path / each / f"round-{number:03}" / name).read_bytes()
                for each in ("whole", "stopped")
            )
            assert here == there
    assert_same(found.model, expected.model)
    assert found.plan == expected.plan
    assert not list(folder.glob("*.npz"))


def test_the_units_of_the_round_shrink_before_they_go():
    given = {"model": graph_of(), "amount": 0.5, "data": images(), "engine": "flux"}
    regularize = {
        "optimiser": "sgd",
        "lr": 0.02,
        "batch_size": 4,
        "epochs": 10,
        "regularization": {"kind": "growing", "strength": 0.5, "every": 5, "ceiling": 5.0},
    }
    test = images(seed=2)
    found = Experiment(**given, regularize=regularize, validate=test).run()
    # Those of the network as it came, not as the penalty left it.
    assert found.plan == onnxjl.prune(graph_of(), amount=0.5).plan
    assert found.rounds[0].accuracy == onnxjl.accuracy(found.model, test)
    groups = onnxjl.groups(graph_of())
    structure = {group.name: group for group in groups}
    units = {
        name: np.setdiff1d(np.arange(group.size), found.plan.kept[f"{name}.weight"][0])
        for name, group in structure.items()
        if f"{name}.weight" in found.plan.kept and 0 in found.plan.kept[f"{name}.weight"]
    }
    penalty = {**regularize["regularization"], "units": units}
    by_hand = trained(graph_of(), **{**regularize, "regularization": penalty})
    kept = {n: np.setdiff1d(np.arange(structure[n].size), u) for n, u in units.items()}
    assert_same(found.model, onnxjl.keep(by_hand, kept))


def test_a_record_of_training_runs_the_same_again(tmp_path):
    x, y = images()
    np.savez(tmp_path / "train.npz", x=x, target=y)
    onnxjl.save(graph_of(), tmp_path / "net.onnx")
    found = Experiment(
        model=tmp_path / "net.onnx",
        amount=0.5,
        data=tmp_path / "train.npz",
        finetune={**SHORT, "epochs": 1, "regularization": "bn-scale"},
        engine="flux",
        seed=5,
    ).run()
    again = Experiment.from_json(found.to_json()).run()
    assert_same(found.model, again.model)
    assert found.versions["julia"].startswith("1.")


def test_ctrl_c_ends_the_experiment_and_keeps_what_is_finished(tmp_path, monkeypatch):
    train = experiments.finetune

    def interrupted(*arguments, **options):
        return replace(train(*arguments, **options), interrupted=True)

    given = {"model": graph_of(), "amount": 0.5, "data": images(), "engine": "flux"}
    monkeypatch.setattr(experiments, "finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Experiment(**given, finetune={**SHORT, "epochs": 1}).run(tmp_path)
    assert (tmp_path / "round-000").is_dir()
    assert not (tmp_path / "round-001").exists()
