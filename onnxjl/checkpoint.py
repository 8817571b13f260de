"""Checkpoints: a training after a finished epoch, as an ``.npz`` file without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxjl.data import read
from onnxjl.errors import DataError, UsageError
from onnxjl.history import Epoch, epoch_of
from onnxjl.save import save_arrays

_RECORD = "record"
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """All that training goes on from.

    Parameters
    ----------
    settings : the options that decide what a step does, as plain values.
    epochs : those that are finished.
    batches : number of steps in an epoch, where it is known.
    weights : the network's arrays, statistics of batch normalization among them.
    optimiser : the arrays and numbers of its state.
    best : `weights` of the best epoch; empty where it isn't kept.
    """

    settings: Mapping[str, Any]
    epochs: tuple[Epoch, ...]
    batches: int | None
    weights: Sequence[np.ndarray]
    optimiser: Sequence[np.ndarray]
    best: Sequence[np.ndarray]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, over an earlier one; a file is there whole or not at all.

        Raises
        ------
        OutputError : it can't be written.
        """
        record = {
            "onnxjl": _VERSION,
            "settings": dict(self.settings),
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "batches": self.batches,
        }
        arrays = {_RECORD: np.array(json.dumps(record))}
        for kind in ("weights", "optimiser", "best"):
            arrays.update({f"{kind}/{i}": x for i, x in enumerate(getattr(self, kind))})
        save_arrays(arrays, path)


def load(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    path : the file.
    settings : those of the training that is to go on.

    Raises
    ------
    DataError : it can't be read, or isn't a checkpoint.
    UsageError : it has other settings.
    """
    arrays = read(path)
    try:
        record = json.loads(str(arrays[_RECORD]))
        found = dict(record["settings"])
        epochs = tuple(epoch_of(values) for values in record["epochs"])
        checkpoint = Checkpoint(
            found,
            epochs,
            record["batches"],
            *(_listed(arrays, kind) for kind in ("weights", "optimiser", "best")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{os.fspath(path)}: is no checkpoint of a training") from error
    other = [key for key in settings if found.get(key) != settings[key]]
    if other:
        key = other[0]
        raise UsageError(
            f"{os.fspath(path)}: its training has {key}={found.get(key)!r}, not "
            f"{settings[key]!r}; go on with the same settings, or start anew with another file"
        )
    return checkpoint


def _listed(arrays: Mapping[str, np.ndarray], kind: str) -> list[np.ndarray]:
    count = sum(name.startswith(f"{kind}/") for name in arrays)
    return [arrays[f"{kind}/{i}"] for i in range(count)]
