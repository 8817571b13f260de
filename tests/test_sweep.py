"""Sweeps: every run once, whatever happens to workers; against prune called by hand."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from text_networks import network, split_in_two

import onnxjl
from onnxjl.errors import DataError, OnnxjlError, UsageError
from onnxjl.evaluate import accuracy, output_error
from onnxjl.inputs import random_inputs
from onnxjl.structure import analyze
from onnxjl.sweep import SEVERAL, Sensitivity, Sweep, _hash, _identity


def pandas():
    """The package, imported when a test needs it, and not by all that collects tests."""
    return pytest.importorskip("pandas")


NETWORK = Path(__file__).parent / "models" / "mnist-resnet14.onnx"
LABELLED = NETWORK.with_suffix(".test.npz")
CALIBRATION = NETWORK.with_suffix(".calib.npz")

pytestmark = pytest.mark.xdist_group("sweep")


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def few() -> dict[str, np.ndarray]:
    with np.load(LABELLED) as file:
        return {name: file[name][:200] for name in file.files}


def test_every_combination_is_run_as_prune_runs_it(threads, few):
    found = onnxjl.sweep(
        NETWORK, criterion=["l1", "lamp"], macs=[0.5, 0.7], validate=few, executor=threads
    )
    assert found.options == ("criterion", "macs")
    assert len(found.frame) == 4
    assert not found.frame["error"].any()
    assert found.baseline == accuracy(onnxjl.load(NETWORK), few)
    whole = analyze(onnxjl.load(NETWORK))
    for row in found.frame.to_dict("records"):
        small = onnxjl.prune(NETWORK, criterion=row["criterion"], macs=row["macs"])
        assert row["accuracy"] == accuracy(small, few)
        smaller = analyze(small)
        for name in ("macs", "params"):
            kept = getattr(smaller, name).total(smaller.sizes)
            assert row[f"{name}_kept"] == kept / getattr(whole, name).total(whole.sizes)
        feeds = {"image": few["image"]}
        before, after = (_run(graph, feeds) for graph in (onnxjl.load(NETWORK), small))
        error = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert row["output_error"] == pytest.approx(error, rel=1e-4)
        assert np.isnan(row["latency_kept"])
        assert row["seconds"] > 0


def _run(graph, feeds):
    from onnxjl.session import open_session, run

    (value,) = run(open_session(graph), feeds).values()
    return value.astype(np.float64)


def test_budgets_are_gone_through_one_after_the_other(threads):
    found = onnxjl.sweep(NETWORK, macs=[0.5], params=[0.5, 0.6], executor=threads)
    asked = found.frame[["macs", "params"]].to_numpy(dtype=float)
    assert np.array_equal(np.isnan(asked), [[False, True], [True, False], [True, False]])
    assert (found.frame["params_kept"][1:] <= [0.5, 0.6]).all()


def test_without_recovery_the_calibration_inputs_are_not_used(threads):
    found = onnxjl.sweep(
        NETWORK, macs=[0.7, 0.8], recover=[None, "bn"], calibration=CALIBRATION, executor=threads
    )
    assert found.frame["recover"].tolist() == ["none", "none", "bn", "bn"]
    assert {"none", "bn"} <= {line.get_label() for line in found.plot().axes[0].lines}
    plain, _, recovered, _ = found.frame["output_error"]
    assert onnxjl.sweep(NETWORK, macs=0.7, executor=threads).frame["output_error"][0] == plain
    assert recovered != plain


def test_what_prune_refuses_is_a_row(threads):
    found = onnxjl.sweep(NETWORK, macs=[0.0001, 0.6], executor=threads)
    assert found.frame["error"].str.startswith("BudgetError: macs=0.0001").tolist() == [True, False]
    assert found.frame["macs_kept"].isna().tolist() == [True, False]


def test_a_function_of_ones_own_is_a_criterion_and_processes_take_it():
    found = onnxjl.sweep(
        NETWORK,
        criterion=["l2", lambda group, weights: -np.arange(group.size, dtype=float)],
        amount=[0.25],
        workers=2,
    )
    assert not found.frame["error"].any()
    assert found.frame["criterion"].tolist() == ["l2", "<lambda>"]
    original = onnxjl.normalize(onnxjl.load(NETWORK))
    first = onnxjl.prune(
        NETWORK, criterion=lambda group, weights: -np.arange(group.size, dtype=float), amount=0.25
    )
    expected = output_error(original, first, random_inputs(original))
    assert found.frame["output_error"][1] == pytest.approx(expected)
    assert found.frame["output_error"][0] != pytest.approx(expected)


def test_a_stopped_sweep_goes_on(tmp_path, threads, monkeypatch):
    path = tmp_path / "sweep.parquet"
    onnxjl.sweep(NETWORK, macs=[0.5, 0.6], executor=threads, path=path)
    ran = []
    original = onnxjl.sweep.__globals__["run_task"]
    monkeypatch.setitem(
        onnxjl.sweep.__globals__,
        "run_task",
        lambda task: ran.append(task.options["macs"]) or original(task),
    )
    found = onnxjl.sweep(NETWORK, macs=[0.6, 0.7, 0.5], executor=threads, path=path)
    assert ran == [0.7]
    assert found.frame["macs"].tolist() == [0.6, 0.7, 0.5]
    assert len(pandas().read_parquet(path)) == 3
    # Another request shares the file.
    onnxjl.sweep(NETWORK, macs=[0.5], criterion=["l1"], executor=threads, path=path)
    kept = pandas().read_parquet(path)
    assert len(kept) == 4
    assert kept["key"].is_unique


def test_an_interrupted_sweep_keeps_what_is_done(tmp_path, monkeypatch):
    path = tmp_path / "sweep.parquet"
    original = onnxjl.sweep.__globals__["run_task"]

    def run_task(task):
        if task.options["macs"] == 0.7:
            raise KeyboardInterrupt
        return original(task)

    monkeypatch.setitem(onnxjl.sweep.__globals__, "run_task", run_task)
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        onnxjl.sweep(NETWORK, macs=[0.5, 0.6, 0.7], executor=pool, path=path)
    assert pandas().read_parquet(path)["macs"].tolist() == [0.5, 0.6]


def test_a_broken_file_is_told_and_left(tmp_path, threads):
    path = tmp_path / "sweep.parquet"
    path.write_text("no table")
    with pytest.raises(DataError, match="can't be read as a table of a sweep"):
        onnxjl.sweep(NETWORK, macs=[0.5], executor=threads, path=path)
    assert path.read_text() == "no table"
    pandas().DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(DataError, match="no column 'key'"):
        onnxjl.sweep(NETWORK, macs=[0.5], executor=threads, path=path)


def dies_once(marker):
    """A criterion that kills its process the first time."""

    def criterion(group, weights):
        if not os.path.exists(marker):
            with open(marker, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return np.arange(group.size, dtype=float)

    return criterion


@pytest.mark.slow
def test_processes_that_die_are_replaced(tmp_path):
    found = onnxjl.sweep(
        NETWORK,
        criterion=[dies_once(str(tmp_path / "died")), "l1"],
        macs=[0.5, 0.6],
        workers=2,
        path=tmp_path / "sweep.parquet",
    )
    assert (tmp_path / "died").exists()
    assert len(found.frame) == 4
    assert found.frame["key"].is_unique
    assert not found.frame["error"].any()
    assert len(pandas().read_parquet(tmp_path / "sweep.parquet")) == 4


@pytest.mark.slow
def test_a_run_that_always_kills_its_worker_ends_the_sweep(tmp_path):
    def kills(group, weights):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        OnnxjlError, match="workers died 3 times without a run done, 1 of 2 runs are left"
    ):
        onnxjl.sweep(
            NETWORK,
            criterion=["l1", kills],
            macs=[0.5],
            workers=1,
            path=tmp_path / "sweep.parquet",
        )
    assert pandas().read_parquet(tmp_path / "sweep.parquet")["criterion"].tolist() == ["l1"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of distributed, as its workers die
def test_a_cluster_whose_workers_die_loses_nothing(tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = onnxjl.sweep(
            NETWORK,
            criterion=[dies_once(str(tmp_path / "died")), "l1", "l2"],
            macs=[0.4, 0.5, 0.6],
            executor=client.get_executor(),
        )
    assert (tmp_path / "died").exists()
    assert len(found.frame) == 9
    assert found.frame["key"].is_unique
    assert not found.frame["error"].any()
    small, original = onnxjl.prune(NETWORK, criterion="l1", macs=0.4), onnxjl.load(NETWORK)
    (row,) = found.frame.query("criterion == 'l1' and macs == 0.4").to_dict("records")
    assert row["macs_kept"] == small.macs / original.macs


def test_each_group_is_pruned_alone(threads, few):
    found = onnxjl.sensitivity(
        NETWORK, (0.25, 0.75), validate=few, ignore=["layer[23]*"], executor=threads
    )
    offered = onnxjl.groups(NETWORK, ignore=["layer[23]*"])
    assert isinstance(found, Sensitivity)
    assert found.frame["group"].tolist() == [g.name for g in offered for _ in range(2)]
    assert not found.frame["error"].any()
    row = found.frame.iloc[-1]
    small = onnxjl.prune(NETWORK, amount_for={row["group"]: row["amount"]}, ignore=["layer[23]*"])
    assert row["accuracy"] == accuracy(small, few)


def test_each_block_goes_alone(threads, few):
    options = {"granularity": "block", "ignore": ["layer3.*"], "executor": threads}
    found = onnxjl.sensitivity(NETWORK, validate=few, **options)
    names = [f"layer{i}.{j}" for i in (1, 2) for j in (0, 1)]
    assert found.frame["group"].tolist() == names
    assert set(found.frame["amount"]) == {1.0}
    assert not found.frame["error"].any()
    for _, row in found.frame.iterrows():
        small = onnxjl.remove_blocks(NETWORK, [row["group"]])
        assert row["accuracy"] == accuracy(small, few)
        assert row["macs_kept"] == small.macs / onnxjl.load(NETWORK).macs
    images = {"image": few["image"]}
    refitted = onnxjl.sensitivity(NETWORK, validate=few, calibration=images, **options)
    assert refitted.frame["accuracy"].mean() > found.frame["accuracy"].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amounts": (0.5,)}, "a block goes as a whole: leave amounts out"),
        ({"criterion": "l2"}, "a block goes as a whole: leave criterion out"),
        ({"macs": 0.5}, "sensitivity takes amounts, not macs"),
    ],
)
def test_what_blocks_that_go_alone_do_not_have(options, message):
    with pytest.raises(UsageError, match=message):
        onnxjl.sensitivity(NETWORK, granularity="block", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": []}, r"macs=\[\]: nothing to go through"),
        ({"mac": [0.5]}, "prune has no option 'mac'"),
        ({"macs": [0.5], "engine": "torch"}, "no engine 'torch'; there are numpy, flux"),
    ],
)
def test_what_is_asked_wrongly_is_told(options, message):
    with pytest.raises(UsageError, match=message):
        onnxjl.sweep(NETWORK, **options)


def test_sensitivity_takes_no_budget():
    with pytest.raises(UsageError, match="sensitivity takes amounts, not macs"):
        onnxjl.sensitivity(NETWORK, macs=0.5)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(
        UsageError, match=r"pyarrow is missing: pip install 'onnxjl\[experiments\]'"
    ):
        onnxjl.sweep(NETWORK, macs=[0.5])


def test_what_can_be_gone_through_are_options_of_prune():
    import inspect

    assert set(SEVERAL) <= set(inspect.signature(onnxjl.prune).parameters)


def test_values_that_differ_have_other_keys(tmp_path):
    same = np.arange(3.0)
    assert _hash(_identity({"x": same})) == _hash(_identity({"x": same.copy()}))
    different: list[object] = [
        None, 1, 2, 1.5, "l1", same, same.astype(np.float32), same[:2], {"x": same}, [1, 2],
        len, NETWORK, LABELLED, lambda group, weights: 1, lambda group, weights: 2,
        dies_once("a"), dies_once("b"), partial(len, 1), partial(len, 2), Scale(1.0), Scale(2.0),
        Scale(1.0).half, lambda group, weights: [each + 1 for each in weights],
        lambda group, weights: [each + 2 for each in weights], iter([1]), iter([1]),
    ]  # fmt: skip
    assert len({_hash(_identity(value)) for value in different}) == len(different)
    assert _hash(_identity(dies_once("a"))) == _hash(_identity(dies_once("a")))
    assert _identity(str(NETWORK)) == _identity(NETWORK)


@dataclass
class Scale:
    """A criterion with a parameter."""

    factor: float

    def __call__(self, group, weights):
        return np.full(group.size, self.factor)

    def half(self, group, weights):
        return np.full(group.size, self.factor / 2)


FACTOR = 1.0


def uses_a_global(group, weights):
    return np.full(group.size, FACTOR)


def test_a_function_whose_globals_change_is_another(monkeypatch):
    before = _hash(_identity(uses_a_global))
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert _hash(_identity(uses_a_global)) != before


def test_mixed_options_are_kept_as_text(tmp_path, threads):
    path = tmp_path / "sweep.parquet"
    found = onnxjl.sweep(
        NETWORK, macs=[0.5], round_to=[8, "auto", None], executor=threads, path=path
    )
    assert found.frame["round_to"].tolist() == ["8", "auto", "none"]
    onnxjl.sweep(NETWORK, params=[0.5], seed=[0, 1], executor=threads, path=path)
    assert len(pandas().read_parquet(path)) == 5


def test_the_shapes_of_inputs_go_along(threads):
    # The larger the image, the less the products at the end count.
    model = network(
        """g (float[N, 3, H, H] x) => (float[N, 2] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            b = Conv <pads = [1, 1, 1, 1]> (a, v)
            c = GlobalAveragePool (b)
            d = Flatten (c)
            e = Gemm (d, s)
            y = Gemm (e, t)
        }""",
        {"w": (8, 3, 3, 3), "v": (8, 8, 3, 3), "s": (8, 512), "t": (512, 2)},
    )
    for size in (4, 64):
        graph = onnxjl.load(model, shapes={"x": (1, 3, size, size)})
        (row,) = onnxjl.sweep(graph, macs=[0.5], executor=threads).frame.to_dict("records")
        small = onnxjl.prune(graph, macs=0.5)
        assert row["params_kept"] == small.params / onnxjl.normalize(graph).params


def test_what_failed_is_tried_again_and_what_is_out_of_reach_is_not(tmp_path, threads, monkeypatch):
    path = tmp_path / "sweep.parquet"
    ran = []
    original = onnxjl.sweep.__globals__["run_task"]

    def run_task(task):
        macs = task.options["macs"]
        ran.append(macs)
        row = original(task)
        first_time = macs == 0.5 and ran.count(0.5) == 1
        return {**row, "error": "ModelError: not now"} if first_time else row

    monkeypatch.setitem(onnxjl.sweep.__globals__, "run_task", run_task)
    first = onnxjl.sweep(NETWORK, macs=[0.5, 0.0001], executor=threads, path=path)
    assert first.frame["error"][0] == "ModelError: not now"
    again = onnxjl.sweep(NETWORK, macs=[0.5, 0.0001], executor=threads, path=path)
    assert sorted(ran) == [0.0001, 0.5, 0.5]
    assert again.frame["error"][0] == ""
    assert len(pandas().read_parquet(path)) == 2


def test_paths_are_found_from_any_folder(threads, monkeypatch, tmp_path):
    monkeypatch.chdir(LABELLED.parent)
    tasks = []
    original = onnxjl.sweep.__globals__["run_task"]
    monkeypatch.setitem(
        onnxjl.sweep.__globals__, "run_task", lambda task: tasks.append(task) or original(task)
    )
    onnxjl.sweep(
        NETWORK.name,
        macs=[0.5],
        recover="bn",
        calibration=CALIBRATION.name,
        validate=LABELLED.name,
        executor=threads,
    )
    (task,) = tasks
    for path in (task.model, task.validate, task.options["calibration"]):
        assert Path(path).is_absolute()


def test_data_that_cannot_be_told_apart_are_not_kept(tmp_path):
    with pytest.raises(
        UsageError, match="with path=, validate= has to be a file or arrays: a list_"
    ):
        onnxjl.sweep(NETWORK, macs=[0.5], validate=iter([]), path=tmp_path / "sweep.parquet")


def test_groups_of_one_layer_are_pruned_alone(threads):
    model = split_in_two(4, 4)
    found = onnxjl.sensitivity(model, (0.5,), executor=threads)
    assert found.frame["group"].tolist() == ["a", "a#2"]
    assert not found.frame["error"].any()
    # Two of four columns of one group, and two rows of what reads them.
    assert found.frame["params_kept"].tolist() == [1 - 16 / 64, 1 - 16 / 64]


def frame(**columns):
    table = pandas().DataFrame(columns)
    for name in ("macs_kept", "accuracy", "output_error", "latency_kept"):
        if name not in table:
            table[name] = np.nan
    return table


def test_the_pareto_front_is_what_nothing_beats():
    sweep = Sweep(
        frame(macs_kept=[0.5, 0.5, 0.3, 0.7, 0.7], accuracy=[0.9, 0.8, 0.7, 0.85, 0.95]), ("macs",)
    )
    assert sweep.pareto()[["macs_kept", "accuracy"]].to_numpy().tolist() == [
        [0.3, 0.7],
        [0.5, 0.9],
        [0.7, 0.95],
    ]
    errors = Sweep(frame(macs_kept=[0.3, 0.5, 0.7], output_error=[0.4, 0.5, 0.1]), ("macs",))
    assert errors.pareto(y="output_error")["macs_kept"].tolist() == [0.3, 0.7]
    # Latency is a cost on either axis.
    times = Sweep(frame(macs_kept=[0.3, 0.5, 0.7], latency_kept=[0.9, 0.6, 1.2]), ("macs",))
    assert times.pareto(y="latency_kept")["macs_kept"].tolist() == [0.3, 0.5]


def test_a_sweep_is_drawn():
    sweep = Sweep(
        frame(
            criterion=["l1", "l1", "l2", "l2", "l2", "l2"],
            macs=[0.5, 0.7, 0.5, 0.5, 0.7, 0.7],
            seed=[0, 0, 0, 1, 0, 1],
            macs_kept=[0.5, 0.7, 0.5, 0.5, 0.7, 0.7],
            accuracy=[0.8, 0.9, 0.7, 0.9, 0.95, 0.85],
        ),
        ("criterion", "macs", "seed"),
        0.99,
    )
    figure = sweep.plot()
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("MACs kept", "accuracy")
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["l1"] == [[0.5, 0.8], [0.7, 0.9]]
    assert np.allclose(lines["l2"], [[0.5, 0.8], [0.7, 0.9]])  # means over seeds
    assert {"Pareto front", "original"} <= set(lines)
    assert len(axes.collections) == 1  # the seeds' range, of l2 alone
    assert figure._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="nothing was measured in column 'latency_kept'"):
        sweep.plot("latency_kept")
    with pytest.raises(UsageError, match="no column 'speed'"):
        sweep.plot("speed")


def test_a_sweep_is_drawn_against_latency():
    sweep = Sweep(
        frame(
            criterion=["l1", "l1", "l2", "l2"],
            macs=[0.5, 0.7, 0.5, 0.7],
            latency_kept=[1.1, 0.9, np.nan, 0.6],
            accuracy=[0.8, 0.9, 0.7, 0.85],
        ),
        ("criterion", "macs"),
    )
    (axes,) = sweep.plot("latency_kept").axes
    assert axes.get_xlabel() == "latency kept"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {
        "l1": [[0.9, 0.9], [1.1, 0.8]],  # from left to right, whatever the budgets were
        "l2": [[0.6, 0.85]],  # where it was measured
        "Pareto front": [[0.6, 0.85], [0.9, 0.9]],
    }


def test_one_amount_and_blocks_are_drawn_as_bars():
    found = Sensitivity(frame(group=["a", "b"], amount=[1.0, 1.0], accuracy=[0.9, 0.7]), 0.95)
    (axes,) = found.plot().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.7]
    assert [text.get_text() for text in axes.texts] == ["90.0%", "70.0%"]
    assert axes.get_xlabel() == "accuracy without this block"
    assert axes.lines[0].get_xdata() == [0.95, 0.95]
    found = Sensitivity(frame(group=["a", "b"], amount=[0.5, 0.5], output_error=[0.1, 0.2]))
    (axes,) = found.plot("output_error").axes
    assert axes.get_xlabel() == "output error (relative L2) without 50% of this group's units"
    assert not axes.lines


def test_a_sensitivity_is_drawn():
    found = Sensitivity(
        frame(
            group=["a", "a", "b", "b"], amount=[0.1, 0.5, 0.1, 0.5], accuracy=[0.9, 0.8, 0.7, 0.6]
        )
    )
    axes, bar = found.plot().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10%", "50%"]
    assert axes.images[0].get_array().tolist() == [[0.9, 0.8], [0.7, 0.6]]
    assert bar.get_ylabel() == "accuracy"
