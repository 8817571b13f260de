"""What a training tells of itself."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from onnxjl.history import Epoch, History, epoch_of

FIRST = Epoch(1, 2.25, 0.5, 2.5, 0.25, 1e-3, 10, 640, 1.25)
SECOND = Epoch(2, 0.12345678, 0.987, 0.5, 0.9, 5e-4, 10, 640, 1.0)


def test_it_prints_as_a_table() -> None:
    history = History((FIRST, SECOND), metric="accuracy", best=1, restored=True)
    assert str(history).splitlines() == [
        "epoch    loss  accuracy  validation loss  validation accuracy      lr  seconds",
        "    1    2.25    50.0 %              2.5               25.0 %   0.001      1.2",
        "    2  0.1235    98.7 %              0.5               90.0 %  0.0005      1.0",
        "the weights are those of epoch 1, the best one",
    ]


def test_a_notebook_shows_the_table() -> None:
    pretty = pytest.importorskip("IPython.lib.pretty").pretty
    history = History((FIRST, SECOND), metric="accuracy")
    assert pretty(history) == str(history)


def test_columns_without_figures_are_left_out() -> None:
    history = History((Epoch(1, 2.25, None, None, None, None, 10, 640, 1.25),), interrupted=True)
    assert str(history).splitlines() == [
        "epoch  loss  seconds",
        "    1  2.25      1.2",
        "interrupted: the weights are those of the last finished step",
    ]
    assert str(History(())) == "no epoch"


def test_it_is_a_sequence_and_plain_data() -> None:
    history = History((FIRST, SECOND), metric="accuracy")
    assert len(history) == 2
    assert history[-1] is SECOND
    assert [epoch.loss for epoch in history] == [2.25, 0.12345678]
    plain = json.loads(json.dumps(history.as_dict()))
    assert plain["epochs"][1]["validation_metric"] == 0.9
    assert plain["metric"] == "accuracy"
    assert epoch_of(asdict(FIRST)) == FIRST
