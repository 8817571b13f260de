"""A folder of rounds: what an experiment goes on from when it was stopped."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from onnxjl.errors import DataError, OutputError, UsageError
from onnxjl.graph import Graph
from onnxjl.load import load
from onnxjl.plan import Plan
from onnxjl.provenance import without_paths
from onnxjl.save import save, save_text
from onnxjl.serialize import INLINE_LIMIT, weight_bytes, write

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows has no such locks.
    flock = None  # type: ignore[assignment]

EXPERIMENT, RESULT, RECORD = "experiment.json", "result.json", "record.json"
NETWORK, EARLY, PLAN = "network.onnx", "early.onnx", "plan.json"
TRAINING, REGULARIZING = "training", "regularizing"

_UNFINISHED = ".onnxjl-unfinished"


class Folder:
    """Finished rounds, each a folder that is there whole or not at all.

    Parameters
    ----------
    path : the folder, made where it isn't there.
    record : of the experiment, as JSON's types.

    Raises
    ------
    OutputError : it can't be written, or another process is at work in it.
    UsageError : it belongs to another experiment.
    DataError : what is in it can't be read.
    """

    def __init__(self, path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.experiment = record

    def __enter__(self) -> Folder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = (self.path / ".lock").open("w")
        except OSError as error:
            raise OutputError(
                f"{self.path}: can't be written: {error.strerror or error}"
            ) from error
        try:
            self._begin()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    def _begin(self) -> None:
        if flock is not None:
            try:
                flock(self._lock, LOCK_EX | LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(f"{self.path}: another process is at work in it") from error
        for rest in self.path.glob(f".*{_UNFINISHED}"):
            try:
                shutil.rmtree(rest)
            except OSError as error:  # A link, for one.
                reason = error.strerror or error
                raise OutputError(f"{rest}: can't be removed: {reason}") from error
        for number in range(self.finished() + 1):
            self._forget_training(number)
        file = self.path / EXPERIMENT
        if not file.exists():
            save_text(json.dumps(self.experiment, indent=1) + "\n", file)
            return
        found, wanted = without_paths(_read(file)), without_paths(self.experiment)
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise UsageError(
                    f"{self.path}: holds another experiment, with {name}={found.get(name)!r}, not "
                    f"{wanted.get(name)!r}; name another folder, or remove this one"
                )

    def training(self, number: int, kind: str) -> Path:
        """Where the training, of one kind, of an unfinished round is kept."""
        return self.path / f"{kind}-{number:03}.npz"

    @property
    def early(self) -> Path:
        """Where the network is kept that weights are rewound to."""
        return self.path / EARLY

    def finished(self) -> int:
        """Return the number of the last finished round; -1 where there is none."""
        number = -1
        while self._of(number + 1).is_dir():
            number += 1
        return number

    def record(self, number: int) -> dict[str, Any]:
        """Return what a finished round noted."""
        return _read(self._of(number) / RECORD)

    def network(self, number: int, source: Graph | None = None) -> Graph | None:
        """Return the network of a finished round, if it left one.

        Parameters
        ----------
        number : of the round.
        source : the network before the first round, which a plan refers to.
        """
        folder = self._of(number)
        if not (folder / NETWORK).is_file():
            return None
        graph = replace(load(folder / NETWORK), normalized=True)
        if source is None:
            return graph
        graph = replace(graph, shapes=source.shapes)
        if not (folder / PLAN).is_file():
            return graph
        plan = Plan.load(folder / PLAN)
        if plan.source["sha256"] != source.fingerprint:
            raise DataError(f"{folder / PLAN}: was made for another network than this experiment's")
        plan = replace(plan, source_graph=source, fingerprint=None, opset=None)
        return replace(graph, plan=plan, source=source)

    def finish(self, number: int, record: Mapping[str, Any], graph: Graph | None) -> None:
        """Keep what a round leaves, all at once.

        Raises
        ------
        OutputError : it can't be written.
        """
        name = f".{number}.{os.getpid()}.{secrets.token_hex(4)}{_UNFINISHED}"
        unfinished = self.path / name
        try:
            unfinished.mkdir()
            if graph is not None:
                save(graph, unfinished / NETWORK, check=False)
                if graph.plan is not None:
                    graph.plan.save(unfinished / PLAN)
            save_text(json.dumps(record, indent=1) + "\n", unfinished / RECORD)
            unfinished.rename(self._of(number))
        except OSError as error:
            raise OutputError(
                f"{self.path}: can't be written: {error.strerror or error}"
            ) from error
        self._forget_training(number)

    def result(self, text: str) -> None:
        """Keep what all rounds together came to."""
        save_text(text, self.path / RESULT, force=True)

    def _forget_training(self, number: int) -> None:
        for kind in (TRAINING, REGULARIZING):
            self.training(number, kind).unlink(missing_ok=True)

    def _of(self, number: int) -> Path:
        return self.path / f"round-{number:03}"


def settled(graph: Graph) -> Graph:
    """Return a network as if it had been written and read, so that both ways give the same bytes.

    What is computed from it may depend on how its arrays lie in memory.
    """
    if weight_bytes(graph) > INLINE_LIMIT:
        return graph
    buffer = io.BytesIO()
    write(graph, buffer)
    read = load(buffer.getvalue())
    return replace(graph, model=read.model)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: can't be read: it holds no object")
    return found
