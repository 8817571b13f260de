"""Sweeps: the same network pruned in many ways, by many workers, into one table that can go on."""

from __future__ import annotations

import hashlib
import inspect
import io
import itertools
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxjl.budget import AUTO, BUDGETS, alone
from onnxjl.criteria import name_of
from onnxjl.errors import BudgetError, DataError, OnnxjlError, UsageError
from onnxjl.evaluate import accuracy, output_error
from onnxjl.extras import need
from onnxjl.graph import Graph
from onnxjl.inputs import random_inputs
from onnxjl.latency import measure_pair
from onnxjl.load import Source, load
from onnxjl.normalize import normalize
from onnxjl.progress import Progress
from onnxjl.prune import prune
from onnxjl.serialize import write
from onnxjl.structure import Block, analyze, blocks
from onnxjl.structure.groups import groups
from onnxjl.widths import preferred_step

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

EXTRA = "experiments"
"""The extra that installs what sweeps and their pictures need."""

KEY = "key"
"""The column that names a row: what was run, as a hash."""

ATTEMPTS = 3
"""How often workers may die without a run done in between."""

AMOUNTS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""What `sensitivity` removes of each group, if nothing is said."""

SEVERAL = (
    "criterion",
    "amount",
    "macs",
    "params",
    "bytes",
    "latency",
    "scope",
    "aggregation",
    "normalization",
    "round_to",
    "granularity",
    "recover",
    "seed",
)
"""Options of `prune` that a sweep may go through."""

_LESS_IS_BETTER = ("macs_kept", "params_kept", "latency_kept", "output_error", "seconds")

_MEASURED = ("macs_kept", "params_kept", "accuracy", "output_error", "latency_kept", "seconds")


@dataclass(frozen=True)
class Task:
    """One run: what `prune` is asked, and what it is measured with.

    Parameters
    ----------
    model : path of the network, or its bytes.
    shapes : of inputs that it leaves open, by name.
    options : arguments of `prune`.
    engine : "numpy" or "flux".
    validate : labelled samples for the accuracy, or None.
    latency : whether to measure the latency.
    """

    model: str | bytes
    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any]
    engine: str = "numpy"
    validate: Any = None
    latency: bool = False


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Parameters
    ----------
    frame : a row for each run: the options that it went through, then ``macs_kept``,
        ``params_kept`` (fractions), ``accuracy`` (fraction; NaN without labelled data),
        ``output_error`` (relative L2 distance of the outputs from the original's),
        ``latency_kept`` (fraction; NaN unless asked for), ``seconds``, and ``error`` (text where
        the run couldn't be made, else empty).
    options : names of the columns that were gone through.
    baseline : the original's accuracy, or None.
    """

    frame: pandas.DataFrame
    options: tuple[str, ...]
    baseline: float | None = None

    def pareto(self, x: str = "macs_kept", y: str = "accuracy") -> pandas.DataFrame:
        """Return the rows that no other beats: none has less of `x` and at least as much of `y`.

        Parameters
        ----------
        x : column of a cost, less is better.
        y : column of what is lost by pruning, more is better; of costs and of ``output_error``
            less is.
        """
        sign = -1.0 if y in _LESS_IS_BETTER else 1.0
        rows = self.frame.dropna(subset=[x, y])
        rows = rows.assign(_rank=sign * rows[y]).sort_values([x, "_rank"], ascending=[True, False])
        best = rows["_rank"].cummax()
        first = (rows["_rank"] == best) & ~best.duplicated()
        found: pandas.DataFrame = rows[first].drop(columns="_rank")
        return found

    def plot(self, x: str = "macs_kept", y: str | None = None) -> Figure:
        """Draw one column against another: a line for each way of pruning, and the Pareto front.

        Parameters
        ----------
        x : a column, such as ``macs_kept``, ``params_kept`` or ``latency_kept``.
        y : a column; by default ``accuracy`` where it was measured, else ``output_error``.

        Returns
        -------
        A figure of Matplotlib's, which a notebook shows and ``savefig`` writes.
        """
        need(EXTRA, "matplotlib")
        from onnxjl.pictures import sweep_figure

        return sweep_figure(self, x, y or _quality(self.frame))


@dataclass(frozen=True)
class Sensitivity:
    """What pruning each group alone does.

    Parameters
    ----------
    frame : a row for each group and amount: ``group``, ``amount``, then as a `Sweep` has them. Of
        blocks it is the block's name, and 1.
    baseline : the original's accuracy, or None.
    """

    frame: pandas.DataFrame
    baseline: float | None = None

    def plot(self, y: str | None = None) -> Figure:
        """Draw a heat map: groups down, amounts to the right, `y` as colour; bars for one amount.

        Parameters
        ----------
        y : ``accuracy`` or ``output_error``; by default the former where it was measured.

        Returns
        -------
        A figure of Matplotlib's.
        """
        need(EXTRA, "matplotlib")
        from onnxjl.pictures import sensitivity_figure

        return sensitivity_figure(self, y or _quality(self.frame))


def _quality(frame: pandas.DataFrame) -> str:
    """The column that tells best how good the networks are."""
    return "accuracy" if frame["accuracy"].notna().any() else "output_error"


def sweep(
    model: Source,
    *,
    validate: Any = None,
    measure_latency: bool = False,
    engine: str = "numpy",
    executor: Executor | None = None,
    workers: int | None = None,
    path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Sweep:
    """Prune a network in many ways, and measure each.

    Every option of `prune` is taken as it is, or as a list of values to go through; all
    combinations are run. Budgets that exclude each other may both be given: each is run by itself.
    In a list for `recover`, None is no recovery.

    Parameters
    ----------
    model : whatever `load` takes; a path is opened by each worker, anything else is sent to it.
    validate : labelled samples that the accuracy is measured on, see `onnxjl.data`; without, only
        the outputs' distance from the original's is measured, on random inputs.
    measure_latency : whether to measure the latency, by turns with the original's.
    engine : "numpy", or "flux" for criteria with gradients; each worker starts Julia then.
    executor : of `concurrent.futures`, such as ``dask.distributed.Client().get_executor()``; by
        default processes of this machine, which are replaced when they die.
    workers : how many such processes; by default one for each processor.
    path : a Parquet file. Finished runs are kept there, and a sweep that was stopped goes on from
        it: only what it lacks is run.
    **options : of `prune`.

    Returns
    -------
    Sweep

    Raises
    ------
    UsageError : there is nothing to go through, an option is unknown, or a package is missing.
    OnnxjlError : the model can't be read. A run that `prune` refuses is a row with an ``error``.

    Examples
    --------
    >>> onnxjl.sweep("net.onnx", criterion=["l2", "lamp"], macs=[0.3, 0.5], validate="test.npz")
    """
    need(EXTRA, "pandas", "pyarrow")
    _check(options)
    combinations, names = _combinations(options)
    _tell_apart(path, {"validate": validate, **_data(options)})
    setting = _Setting(model, normalize(model), engine, validate, measure_latency)
    if any(each.get("round_to") == AUTO or "latency" in each for each in combinations):
        preferred_step(analyze(setting.graph))  # once here, and not by each worker
    frame = _run(*setting.tasks(combinations, names), executor, workers, path)
    return Sweep(frame, names, setting.baseline())


def sensitivity(
    model: Source,
    amounts: Sequence[float] | None = None,
    *,
    validate: Any = None,
    engine: str = "numpy",
    executor: Executor | None = None,
    workers: int | None = None,
    path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Sensitivity:
    """Prune each group alone, or take each block out alone, and measure what that does.

    Parameters
    ----------
    model, validate, engine, executor, workers, path : as for `sweep`.
    amounts : fractions of a group's units to remove, in (0, 1); by default 0.1, 0.3, 0.5, 0.7, 0.9.
    **options : of `prune`, the same for all; no budget. With ``granularity="block"`` each residual
        branch goes, as a whole: there are no amounts, nor a criterion.

    Returns
    -------
    Sensitivity

    Raises
    ------
    UsageError : a budget is given, an option is unknown or doesn't apply, or a package is missing.
    """
    need(EXTRA, "pandas", "pyarrow")
    _check(options)
    by_blocks = options.get("granularity") == "block"
    if by_blocks and (amounts is not None or "criterion" in options):
        name = "amounts" if amounts is not None else "criterion"
        raise UsageError(f"a block goes as a whole: leave {name} out")
    if given := [name for name in (*BUDGETS, "amount_for") if name in options]:
        raise UsageError(f"sensitivity takes amounts, not {given[0]}")
    _tell_apart(path, {"validate": validate, **_data(options)})
    setting = _Setting(model, normalize(model), engine, validate)
    if by_blocks:
        amounts = (1.0,)
        names = [block.name for block in blocks(setting.graph, ignore=options.get("ignore", ()))]
    else:
        said = ("granularity", "allow_inexact", "ignore")
        offered = groups(setting.graph, **{k: options[k] for k in said if k in options})
        names = [group.name for group in offered]
    combinations = [
        {"group": name, "amount": amount, **options}
        for name in names
        for amount in (AMOUNTS if amounts is None else amounts)
    ]
    frame = _run(*setting.tasks(combinations, ("group", "amount")), executor, workers, path)
    return Sensitivity(frame, setting.baseline())


def _data(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("data", "calibration") if name in options}


def _check(options: Mapping[str, Any]) -> None:
    known = inspect.signature(prune).parameters
    if unknown := [name for name in options if name not in known or name == "model"]:
        raise UsageError(f"prune has no option '{unknown[0]}'")


def _combinations(options: Mapping[str, Any]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """All runs that options ask for, and the names of those gone through."""
    several = {
        name: list(value)
        for name, value in options.items()
        if name in SEVERAL and isinstance(value, list | tuple | np.ndarray | range)
    }
    if empty := [name for name, values in several.items() if not values]:
        raise UsageError(f"{empty[0]}=[]: nothing to go through")
    fixed = {name: value for name, value in options.items() if name not in several}
    budgets = [name for name in several if name in BUDGETS]
    others = [name for name in several if name not in BUDGETS]
    found = []
    for each in [[budget] for budget in budgets] or [[]]:
        names = [*others, *each]
        for values in itertools.product(*(several[name] for name in names)):
            asked = {**fixed, **dict(zip(names, values, strict=True))}
            # Among others None is to recover nothing, whatever calibration inputs there are.
            if "recover" in names and asked["recover"] is None:
                asked.pop("calibration", None)
            found.append(asked)
    return found, (*others, *budgets)


@dataclass(frozen=True)
class _Setting:
    """What all runs of a sweep have in common."""

    model: Source
    graph: Graph
    engine: str
    validate: Any
    latency: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ("numpy", "flux"):
            raise UsageError(f"no engine '{self.engine}'; there are numpy, flux")

    def tasks(
        self, combinations: Sequence[Mapping[str, Any]], names: Sequence[str]
    ) -> tuple[dict[str, Task], dict[str, dict[str, Any]]]:
        """What is to be run, and what its row in the table begins with, by key."""
        # A path is opened where the work is done, which saves sending the network.
        payload = (
            _absolute(os.fspath(self.model))
            if isinstance(self.model, str | os.PathLike)
            else _serialized(self.graph)
        )
        shapes = {name: tuple(shape) for name, shape in self.graph.shapes.items()}
        common = [self.graph.fingerprint, _identity(shapes), self.engine, self.latency]
        common.append(_identity(self.validate))
        tasks, rows = {}, {}
        for options in combinations:
            asked = {name: _absolute(value) for name, value in options.items()}
            if "group" in asked and asked.get("granularity") == "block":
                asked["criterion"] = partial(_all_but, asked.pop("group"))
                asked["amount"] /= len(combinations)
            elif "group" in asked:
                asked["amount_for"] = {alone(asked.pop("group")): asked.pop("amount")}
            identity = {name: _identity(value) for name, value in asked.items()}
            key = _hash([*common, identity])
            tasks[key] = Task(
                payload, shapes, asked, self.engine, _absolute(self.validate), self.latency
            )
            rows[key] = {KEY: key, **{name: _shown(name, options) for name in names}}
        return tasks, rows

    def baseline(self) -> float | None:
        """The original's accuracy."""
        return None if self.validate is None else accuracy(self.graph, self.validate)


def _run(
    tasks: Mapping[str, Task],
    rows: Mapping[str, Mapping[str, Any]],
    executor: Executor | None,
    workers: int | None,
    path: str | os.PathLike[str] | None,
) -> pandas.DataFrame:
    """Run what the file lacks, and return the table."""
    import pandas

    table = _Table(path, rows)
    left = {key: task for key, task in tasks.items() if key not in table.done}
    with Progress("sweep", total=len(left)) as bar:
        try:
            for key, measured in _gather(left, executor, workers):
                bar.step()
                table.add(key, measured)
        finally:
            table.write()
    return pandas.DataFrame(table.rows(), columns=table.columns)


class _Table:
    """The rows that are done, in memory and in a file."""

    _EVERY = 5.0  # seconds between two writes

    def __init__(
        self, path: str | os.PathLike[str] | None, wanted: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.path = None if path is None else Path(path)
        self.wanted = wanted
        names = list(next(iter(wanted.values()))) if wanted else [KEY]
        self.columns = [*names, *_MEASURED, "error"]
        self.done: dict[str, dict[str, Any]] = {}
        self.others: list[dict[str, Any]] = []  # of other sweeps in the same file
        self._written = time.monotonic()
        if self.path is not None and self.path.exists():
            for row in self._read(self.path):
                # What failed for another reason than its budget may work now.
                if row["error"] and not row["error"].startswith(BudgetError.__name__):
                    continue
                if row[KEY] in wanted:
                    self.done[row[KEY]] = {**row, **wanted[row[KEY]]}
                else:
                    self.others.append(row)

    @staticmethod
    def _read(path: Path) -> list[dict[str, Any]]:
        import pandas

        try:
            frame = pandas.read_parquet(path)
        except Exception as error:  # pyarrow's have no common base
            raise DataError(f"{path}: can't be read as a table of a sweep: {error}") from error
        for column in (KEY, "error"):
            if column not in frame:
                raise DataError(f"{path}: not a table of a sweep: no column '{column}'")
        rows: list[dict[str, Any]] = frame.to_dict("records")
        return rows

    def add(self, key: str, measured: Mapping[str, Any]) -> None:
        self.done[key] = {**self.wanted[key], **measured}
        if time.monotonic() - self._written > self._EVERY:
            self.write()

    def rows(self) -> list[dict[str, Any]]:
        """What was asked for, in that order."""
        return [self.done[key] for key in self.wanted if key in self.done]

    def write(self) -> None:
        """Write the file beside itself, and rename it into place."""
        import pandas

        self._written = time.monotonic()
        if self.path is None:
            return
        frame = pandas.DataFrame([*self.others, *self.rows()])
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        frame.to_parquet(beside)
        beside.replace(self.path)


def _gather(
    tasks: Mapping[str, Task], executor: Executor | None, workers: int | None
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Run tasks, and give each one's row as it is done; those of workers that die again."""
    if not tasks:
        return
    if executor is None:
        need(EXTRA, "loky")
    left, deaths = dict(tasks), 0
    while left:
        pool = executor or _processes(workers)
        before = len(left)
        futures = {pool.submit(run_task, task): key for key, task in left.items()}
        broken: BaseException | None = None
        try:
            for future in as_completed(futures):
                key = futures[future]
                try:
                    row = future.result()
                except BrokenExecutor as error:
                    broken = error
                    continue
                del left[key]
                yield key, row
        finally:
            for future in futures:
                future.cancel()
        if broken is None:
            return
        # Which of the tasks killed its worker isn't known: all that are left are tried again, as
        # long as some are done.
        deaths = deaths + 1 if len(left) == before else 1
        if executor is not None or deaths >= ATTEMPTS:
            raise OnnxjlError(
                f"workers died {deaths} {'time' if deaths == 1 else 'times'} without a run done, "
                f"{len(left)} of {len(tasks)} runs are left; with path= a sweep goes on from what "
                "is done"
            ) from broken


def _processes(workers: int | None) -> Executor:
    """Processes of this machine that take functions of a notebook too."""
    import loky

    pool: Executor = loky.get_reusable_executor(max_workers=workers or os.cpu_count())
    return pool


def run_task(task: Task) -> dict[str, Any]:
    """Make one run; this is what workers do.

    Returns
    -------
    What was measured, by column; with ``error`` where `prune` refused.
    """
    begin = time.perf_counter()
    row: dict[str, Any] = dict.fromkeys(_MEASURED, float("nan"))
    try:
        row |= _measure(task)
        row["error"] = ""
    except OnnxjlError as error:
        row["error"] = f"{type(error).__name__}: {error}"
    row["seconds"] = time.perf_counter() - begin
    return row


def _measure(task: Task) -> dict[str, Any]:
    graph = _opened(task.model, tuple(sorted(task.shapes.items())))
    source: Any = graph
    if task.engine == "flux":
        from onnxjl.flux import to_flux

        source = to_flux(graph)
    pruned = prune(source, **task.options)
    small: Graph = pruned if isinstance(pruned, Graph) else pruned.to_graph()
    found: dict[str, Any] = {
        "macs_kept": small.macs / graph.macs,
        "params_kept": small.params / graph.params,
    }
    inputs = random_inputs(graph)
    found["output_error"] = output_error(
        graph, small, inputs if task.validate is None else task.validate
    )
    if task.validate is not None:
        found["accuracy"] = accuracy(small, task.validate)
    if task.latency:
        original, smaller = measure_pair(graph, small, inputs)
        found["latency_kept"] = smaller.median_ms / original.median_ms
    return found


def _all_but(name: str, block: Block, weights: Mapping[str, np.ndarray]) -> float:
    """A criterion by which one block goes first."""
    return float(block.name != name)


@lru_cache(maxsize=2)
def _opened(model: str | bytes, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Graph:
    """The normalized network, opened once by each worker."""
    return normalize(load(model, shapes=dict(shapes)))


def _serialized(graph: Graph) -> bytes:
    buffer = io.BytesIO()
    write(graph, buffer)
    return buffer.getvalue()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _absolute(value: Any) -> Any:
    """A path as it is found from any folder; other values as they are."""
    if isinstance(value, os.PathLike) or (isinstance(value, str) and Path(value).is_file()):
        return os.fspath(Path(value).resolve())
    return value


def _tell_apart(path: object, values: Mapping[str, Any]) -> None:
    """Raise a UsageError where rows would be kept that can't be told from others."""
    for name, value in values.items():
        if path is not None and not isinstance(
            value, str | os.PathLike | np.ndarray | Mapping | tuple | list | None
        ):
            raise UsageError(
                f"with path=, {name}= has to be a file or arrays: a {type(value).__name__} can't "
                "be told from another"
            )


def _identity(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """What tells a value from others, and is the same in another process where that can be."""
    if id(value) in seen:
        return "itself"
    inside = partial(_identity, seen=(*seen, id(value)))
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str | os.PathLike):
        path = Path(value)
        return ["file", _digest(path.read_bytes())] if path.is_file() else str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), _digest(np.ascontiguousarray(value).tobytes())]
    if isinstance(value, Mapping):
        return {str(key): inside(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [inside(each) for each in value]
    if isinstance(value, partial):
        return [inside(each) for each in (value.func, value.args, value.keywords)]
    if isinstance(value, MethodType):
        return [inside(value.__func__), inside(value.__self__)]
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        used = {
            name: value.__globals__[name]
            for name in sorted(_names(value.__code__))
            if not isinstance(value.__globals__.get(name), type | ModuleType | None)
        }
        return [name_of(value), _code(value.__code__), *map(inside, (held, used))]
    if isinstance(value, BuiltinFunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__dict__") and callable(value):
        return [inside(type(value).__call__), inside(vars(value))]
    return [type(value).__qualname__, id(value)]


def _code(code: CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]


def _names(code: CodeType) -> set[str]:
    """The global names that code uses, also in functions within."""
    inner = [_names(each) for each in code.co_consts if isinstance(each, CodeType)]
    return set(code.co_names).union(*inner)


def _shown(name: str, options: Mapping[str, Any]) -> Any:
    """An option as a table holds it: numbers as they are, and empty for a budget of other rows."""
    value = options.get(name)
    if name in (*BUDGETS, "seed"):
        return value.item() if isinstance(value, np.generic) else value
    if value is None:
        return "none"
    return name_of(value) if callable(value) else str(value)
