"""Experiments: pruning in rounds, with recovery or training between them, that can be run again."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxjl import criteria, recovery
from onnxjl.budget import AUTO, BUDGETS, Budget, Request
from onnxjl.criteria.blocks import get_for_blocks
from onnxjl.criteria.registry import unknown
from onnxjl.errors import BudgetError, DataError, UsageError
from onnxjl.evaluate import accuracy
from onnxjl.extras import need
from onnxjl.finetune import finetune
from onnxjl.flux import FluxModel, is_julia, to_flux
from onnxjl.graph import Graph
from onnxjl.history import History, history_of
from onnxjl.load import Source, load
from onnxjl.normalize import normalize
from onnxjl.plan import Plan
from onnxjl.progress import Progress
from onnxjl.provenance import holds_function, record_of_data, record_of_option, versions
from onnxjl.prune import ABOUT_UNITS, keep, prune
from onnxjl.recovery import Recovery
from onnxjl.regularization import GROWING, KINDS, Regularization
from onnxjl.regularization import get as get_regularization
from onnxjl.report import quantity, table
from onnxjl.rounds import Original, OriginalBlocks, Round, kept_units, rewound, round_of
from onnxjl.rounds_folder import REGULARIZING, TRAINING, Folder, settled
from onnxjl.save import save
from onnxjl.schedule import Schedule
from onnxjl.schedule import get as get_schedule
from onnxjl.sparsity import registry as sparsity_criteria
from onnxjl.sparsity.budget import SCOPES, share
from onnxjl.sparsity.sparsify import sparsify
from onnxjl.structure.groups import analyze

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Rewind = Literal["weights", "learning-rate"]
REWINDS: tuple[Rewind, ...] = ("weights", "learning-rate")
ENGINES = ("numpy", "flux")
EACH, LAST = "each", "last"

FORMAT = 1

_NETWORKS = ("model", "early")
_DATA = ("data", "validate", "calibration")
Sparsity = Literal["sparsity"]
SPARSITY: Sparsity = "sparsity"
_COUNTED: tuple[Budget | Sparsity, ...] = ("amount", "macs", "params", "bytes", SPARSITY)
# What an experiment says itself, and what would be measured anew in every run.
_NOT_FOR_PRUNE = {"model", *BUDGETS, "amount_for", "criterion", "data", "inputs", "seed"}
_NOT_FOR_PRUNE |= {"recover", "calibration", "pattern"}
_TRAINING = inspect.signature(finetune).parameters
_NOT_FOR_FINETUNE = {"model", "data", "checkpoint", "resume", "start_epoch", "after_epoch"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Experiment:
    """A network, a budget, and how to get there in rounds.

    In each round units are removed, then the network is recovered, rewound or trained as asked.
    Every fraction is of the original, so that the last round meets the budget of the original.

    Parameters
    ----------
    model : whatever `onnxjl.load` takes, or a FluxModel.
    amount, macs, params, bytes : exactly one budget, as for `onnxjl.prune`: what the last round
        leaves.
    sparsity : instead of these, the fraction of single weights that are zero in the end, as
        `onnxjl.sparsify` has ``amount``. What is zero stays zero in training.
    criterion : as for `onnxjl.prune`, by default "l2", or for `sparsity` as for `onnxjl.sparsify`,
        "magnitude". Units, or weights, are scored anew in each round.
    pruning : further options of `onnxjl.prune`, such as ``scope`` or ``round_to``, or of
        `onnxjl.sparsify`. With ``granularity`` "block" whole blocks go.
    schedule : "one-shot", "linear", "cubic" or "geometric", or a schedule of `onnxjl.schedule`.
    rounds : number of rounds.
    recover, calibration : recovery after each round, as for `onnxjl.prune`.
    data : labelled samples to train on, and for criteria that need data; see `onnxjl.data`.
        Criteria are measured on `calibration` where there are none.
    validate : labelled samples that accuracy is reported on.
    train : options of `FluxModel.finetune` for training the whole network before the first round.
    regularize : options of `FluxModel.finetune` for a training before each round's cut, among them
        ``regularization``; "growing" is given the units that the round is to remove.
    finetune : options of `FluxModel.finetune` for training after rounds.
    finetune_after : "each" round, or only the "last" one, as where pruning comes before training.
    rewind : "weights" gives what is kept its values of before or early in `train` (Frankle & Carbin
        2019; Frankle et al. 2020); "learning-rate" keeps the weights, and goes through the learning
        rates again (Renda et al. 2020, "Comparing Rewinding and Fine-tuning in Neural Network
        Pruning"). Both then train with `train` again unless `finetune` is given.
    rewind_to : number of finished epochs of the training that is rewound to.
    early : the network with the values that weights go back to, instead of those of `train`.
    engine : "numpy", or "flux" for training, and for criteria with gradients.
    seed : of random scores, and of the order of samples in training.
    recorded : name of a field -> SHA-256 that its content has to have, from a record.

    Raises
    ------
    UsageError : an unknown name, not exactly one budget, or options that don't go together.

    Examples
    --------
    >>> onnxjl.Experiment(model="net.onnx", macs=0.3, schedule="cubic", rounds=4).run("net.rounds")
    """

    model: Source | FluxModel
    amount: float | None = None
    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    sparsity: float | None = None
    criterion: str | Callable[..., Any] | None = None
    pruning: Mapping[str, Any] = field(default_factory=dict)
    schedule: str | Schedule = "one-shot"
    rounds: int | None = None
    recover: Recovery | None = None
    calibration: Any = None
    data: Any = None
    validate: Any = None
    train: Mapping[str, Any] | None = None
    regularize: Mapping[str, Any] | None = None
    finetune: Mapping[str, Any] | None = None
    finetune_after: Literal["each", "last"] = "each"
    rewind: Rewind | None = None
    rewind_to: int = 0
    early: Source | None = None
    engine: Literal["numpy", "flux"] = "numpy"
    seed: int = 0
    recorded: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("pruning", "train", "regularize", "finetune"):
            options = getattr(self, name)
            if not isinstance(options, Mapping) and (options is not None or name == "pruning"):
                raise UsageError(f"{name}={options!r}: options by name are needed")
        budget, fraction = self.budget
        get_schedule(self.schedule, self.rounds).fractions(_counted_as(budget), fraction)
        if self.engine not in ENGINES:
            raise UsageError(unknown("engine", self.engine, ENGINES))
        self._check_pruning(budget, fraction)
        if self.recover is not None:
            recovery.check_request(self.recover, self.calibration)
        elif self.calibration is not None:
            raise UsageError("calibration= is for recovery: give recover='refit' or 'bn'")
        self._check_training()
        self._check_rewinding()

    def _check_pruning(self, budget: Budget | Sparsity, fraction: float) -> None:
        function: Callable[..., Any] = sparsify if budget == SPARSITY else prune
        known = inspect.signature(function).parameters
        for name in self.pruning:
            if name not in known:
                raise UsageError(f"pruning: {function.__name__} has no option '{name}'")
            if name in _NOT_FOR_PRUNE:
                raise UsageError(f"pruning: '{name}' can't be given here")
        if budget == SPARSITY:
            self._check_sparsity()
            return
        if self.pruning.get("round_to") == AUTO:
            raise UsageError(
                "pruning: round_to='auto' is measured on this machine; an experiment that can be "
                "run again needs a number"
            )
        if self._of_blocks:
            self._check_blocks()
            return
        chosen = {
            k: self.pruning[k] for k in ("scope", "round_to", "min_units") if k in self.pruning
        }
        Request(budget=budget, fraction=fraction, **chosen)
        scope = self.pruning.get("scope", "global")
        if budget == "amount" and scope not in ("global", "local") and len(self.fractions) > 1:
            raise UsageError(
                f"an amount with scope '{scope}' is none of the original's after the first round; "
                "give macs=, params= or bytes="
            )
        if not is_julia(self._criterion):
            criteria.get(self._criterion, gradients=self.engine == "flux")

    @property
    def _of_blocks(self) -> bool:
        return self.sparsity is None and self.pruning.get("granularity") == "block"

    def _check_blocks(self) -> None:
        about_units = [] if self.regularize is None else ["regularize="]
        about_units += [f"pruning: '{n}'" for n in self.pruning if n in ABOUT_UNITS]
        if about_units:
            raise UsageError(
                f"{about_units[0]} is about units: with granularity 'block' leave it out"
            )
        if not (self.engine == "flux" and is_julia(self._criterion)):
            get_for_blocks(self._criterion)

    def _check_sparsity(self) -> None:
        sparsity_criteria.get(self._criterion, gradients=False)
        if (scope := self.pruning.get("scope")) is not None and scope not in SCOPES:
            raise UsageError(unknown("scope", scope, SCOPES))
        if self.recover is not None:
            raise UsageError(
                "recover= is for units that were removed; with sparsity= criterion 'sparsegpt' "
                "makes up for what goes"
            )

    def _check_training(self) -> None:
        if self.finetune_after not in (EACH, LAST):
            raise UsageError(unknown("finetune_after", self.finetune_after, (EACH, LAST)))
        for kind in ("train", "regularize", "finetune"):
            options = getattr(self, kind)
            if options is None:
                continue
            if self.engine != "flux":
                raise UsageError(f"{kind}= needs engine='flux'")
            if self.data is None:
                raise UsageError(f"{kind}= needs data=, labelled samples to train on")
            for name in options:
                if name not in _TRAINING:
                    raise UsageError(f"{kind}: finetune has no option '{name}'")
                if name in _NOT_FOR_FINETUNE:
                    raise UsageError(f"{kind}: '{name}' can't be given here")
            if options.get("regularization") is not None:
                penalty = get_regularization(options["regularization"])
                if penalty.kind == GROWING and self.sparsity is not None:
                    raise UsageError("regularization 'growing' is for units, not for sparsity=")
            elif kind == "regularize":
                raise UsageError(f"regularize= needs a regularization: {', '.join(KINDS)}")

    def _check_rewinding(self) -> None:
        if self.rewind is None:
            if self.rewind_to or self.early is not None:
                raise UsageError("rewind_to= and early= need rewind=")
            return
        if self.rewind not in REWINDS:
            raise UsageError(unknown("rewind", self.rewind, REWINDS))
        weights = self.rewind == "weights"
        if weights and self.train is None and self.early is None:
            raise UsageError(
                "rewind='weights' needs train=, the training that weights go back into, or early=, "
                "a network with earlier values"
            )
        if weights and self.recover is not None:
            raise UsageError("rewind='weights' would undo recover=; give one of them")
        if not weights and self.early is not None:
            raise UsageError("early= is for rewind='weights'")
        if not weights and self._retraining is None:
            raise UsageError("rewind='learning-rate' needs train= or finetune=, with data=")
        rounds = (self.train, self._retraining)
        epochs = min((_epochs(each) for each in rounds if each is not None), default=1)
        if not isinstance(self.rewind_to, int) or not 0 <= self.rewind_to < epochs:
            raise UsageError(
                f"rewind_to={self.rewind_to!r}: a number of epochs from 0 to {epochs - 1} is needed"
            )

    @property
    def budget(self) -> tuple[Budget | Sparsity, float]:
        """What is budgeted, and the fraction that the last round leaves.

        Of an amount and of sparsity it is what the rounds remove.

        Raises
        ------
        UsageError : not exactly one is given.
        """
        given = [name for name in _COUNTED if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(
                f"give exactly one of {', '.join(_COUNTED)}, not {', '.join(given) or 'none'}"
            )
        fraction = getattr(self, given[0])
        if isinstance(fraction, bool) or not isinstance(fraction, int | float | np.floating):
            raise UsageError(f"{given[0]} must be a fraction between 0 and 1, not {fraction!r}")
        return given[0], float(fraction)

    @property
    def fractions(self) -> tuple[float, ...]:
        """What the budget is after each round."""
        budget, fraction = self.budget
        return get_schedule(self.schedule, self.rounds).fractions(_counted_as(budget), fraction)

    @property
    def _criterion(self) -> str | Callable[..., Any]:
        if self.criterion is not None:
            return self.criterion
        return "l2" if self.sparsity is None else "magnitude"

    @property
    def _measured(self) -> Any:
        """What criteria are measured on: inputs without labels will do for many."""
        return self.calibration if self.data is None else self.data

    @property
    def _retraining(self) -> Mapping[str, Any] | None:
        """Options of the training after a round."""
        if self.finetune is None and self.rewind is not None:
            return self.train
        return self.finetune

    def run(self, path: str | os.PathLike[str] | None = None) -> Result:
        """Go through the rounds.

        Parameters
        ----------
        path : a folder. Each finished round is kept there (its network, plan and figures), and the
            training of an unfinished one after each epoch. An experiment that was stopped goes on
            from it, and gives the same networks as one that wasn't.

        Returns
        -------
        Result

        Raises
        ------
        UsageError : the folder belongs to another experiment; or as `onnxjl.prune` and
            `FluxModel.finetune` have it.
        BudgetError : a round's budget can't be met.
        DataError : the data don't fit the network, or aren't those of the record.
        OutputError : the folder can't be written, or another process is at work in it.
        KeyboardInterrupt : Ctrl-C; finished rounds are kept.
        """
        source = _normalized(self.model)
        self._check_recorded(source)
        with contextlib.ExitStack() as stack:
            folder = None
            if path is not None:
                folder = stack.enter_context(Folder(path, self._record(source)))
            result = _Run(self, source, folder).run()
            if folder is not None:
                folder.result(result.to_json() + "\n")
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the experiment as JSON's types, with SHA-256 of networks and data.

        Raises
        ------
        UsageError : data or an option are what a record can't hold.
        """
        return self._record(_normalized(self.model))

    def to_json(self) -> str:
        """Return the experiment as JSON text; see `to_dict`."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str, **given: Any) -> Experiment:
        """Read an experiment, or that of a result, from JSON text.

        Parameters
        ----------
        text : what `to_json` gave, or written by hand: an object of fields, networks and data as
            paths.
        given : fields that the text can't hold, as arrays and functions, or that are to be others.

        Raises
        ------
        UsageError : the text isn't an experiment, or a field has to be given.
        """
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"not an experiment: {error}") from error
        if isinstance(record, dict) and isinstance(record.get("experiment"), dict):
            record = record["experiment"]
        if not isinstance(record, dict) or record.get("onnxjl", FORMAT) != FORMAT:
            raise UsageError(f"not an experiment of format {FORMAT}")
        known = [each.name for each in fields(cls) if each.name != "recorded"]
        if other := [name for name in (*record, *given) if name not in (*known, "onnxjl")]:
            raise UsageError(unknown("field of an experiment", other[0], known))
        values, recorded = {}, {}
        for name, value in record.items():
            if name == "onnxjl":
                continue
            is_kept = isinstance(value, dict) and name in (*_NETWORKS, *_DATA)
            if is_kept and isinstance(value.get("sha256"), str):
                recorded[name] = value["sha256"]
            if name in given:
                values[name] = given[name]
            elif (is_kept and "path" not in value) or holds_function(value):
                raise UsageError(
                    f"the experiment's {name} isn't in its record; give it: from_json(…, {name}=…)"
                )
            elif is_kept:
                values[name] = value["path"]
            elif name == "schedule" and isinstance(value, dict):
                if other := [key for key in value if key not in Schedule.__dataclass_fields__]:
                    raise UsageError(f"a schedule has no '{other[0]}'")
                values[name] = Schedule(**{"name": "", **value})
            else:
                values[name] = value
        if "model" not in {**values, **given}:
            raise UsageError("not an experiment: 'model' is missing")
        return cls(**{**values, **given}, recorded=recorded)

    def _record(self, source: Graph) -> dict[str, Any]:
        record: dict[str, Any] = {"onnxjl": FORMAT, "model": _network_record(self.model, source)}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in ("model", "recorded"):
                continue
            if each.name == "early":
                record[each.name] = None
                if value is not None:
                    record[each.name] = _network_record(value, _normalized(value))
            elif each.name in _DATA:
                record[each.name] = record_of_data(each.name, value)
            elif isinstance(value, Schedule):
                record[each.name] = {f.name: getattr(value, f.name) for f in fields(value)}
            else:
                record[each.name] = record_of_option(each.name, value)
        return record

    def _check_recorded(self, source: Graph) -> None:
        if not self.recorded:
            return
        record = self._record(source)
        for name, wanted in self.recorded.items():
            found = record[name] and record[name]["sha256"]
            if found != wanted:
                raise DataError(
                    f"{name}: isn't what the record was made with: SHA-256 {found}, recorded "
                    f"{wanted}"
                )


@dataclass(frozen=True, eq=False)
class Result:
    """What an experiment came to.

    Parameters
    ----------
    experiment : that gave it.
    rounds : what each round did.
    model : the last round's network, with `plan` and `source`.
    baseline : accuracy of the network before the first round, after `train`; None without
        validation samples.
    training : history of `train`, if it was asked for.
    versions : of all that took part, by name.
    """

    experiment: Experiment
    rounds: tuple[Round, ...]
    model: Graph = field(repr=False)
    baseline: float | None
    training: History | None
    versions: Mapping[str, str] = field(repr=False)

    def __str__(self) -> str:
        """Show a line for each round."""
        titles = {
            "number": "round",
            "asked": self.experiment.budget[0],
            "macs_kept": "MACs kept",
            "params_kept": "parameters kept",
            "sparsity": "zeros",
            "accuracy_after_pruning": "after pruning",
            "accuracy_after_recovery": "after recovery",
            "accuracy_after_training": "after training",
            "accuracy": "accuracy",
            "seconds": "seconds",
        }
        rows = [each.row() for each in self.rounds]
        shown = [name for name in titles if any(row[name] is not None for row in rows)]
        cells = [[titles[name] for name in shown]]
        cells += [[_cell(name, row[name]) for name in shown] for row in rows]
        whole = "" if self.baseline is None else f"\naccuracy before: {_cell('', self.baseline)}"
        return table(cells, align="r" * len(shown)) + whole

    @property
    def plan(self) -> Plan:
        """The edits of all rounds together.

        Raises
        ------
        UsageError : no unit was removed, but single weights.
        """
        if self.model.plan is None:
            raise UsageError("a sparse network has no plan; result.model.masks has what is left")
        return self.model.plan

    @property
    def frame(self) -> pandas.DataFrame:
        """A row for each round, with the figures of `Round`.

        Raises
        ------
        UsageError : pandas is missing.
        """
        need("experiments", "pandas")
        import pandas

        return pandas.DataFrame([each.row() for each in self.rounds])

    def to_dict(self) -> dict[str, Any]:
        """Return all but the network as JSON's types: what it takes to run it again, and figures.

        Raises
        ------
        UsageError : data or an option are what a record can't hold.
        """
        return {
            "onnxjl": FORMAT,
            "experiment": self.experiment.to_dict(),
            "versions": dict(self.versions),
            "baseline": self.baseline,
            "training": None if self.training is None else self.training.as_dict(),
            "rounds": [each.to_dict() for each in self.rounds],
        }

    def to_json(self) -> str:
        """Return the same as JSON text, which `Experiment.from_json` takes."""
        return json.dumps(self.to_dict(), indent=1)

    def plot(self) -> Figure:
        """Draw accuracy against multiply–accumulates: a point for each round, and for its steps.

        Returns
        -------
        A figure of Matplotlib's, which a notebook shows and ``savefig`` writes.

        Raises
        ------
        UsageError : accuracy wasn't measured, or Matplotlib is missing.
        """
        need("experiments", "matplotlib")
        from onnxjl.pictures import rounds_figure

        return rounds_figure(self)


class _Run:
    """A run under way: what it was asked for, and how far it is."""

    def __init__(self, experiment: Experiment, source: Graph, folder: Folder | None) -> None:
        self.experiment = experiment
        self.source = source
        self.folder = folder
        self.early: Graph | None = None
        self.training: History | None = None

    def run(self) -> Result:
        """Go through what isn't finished."""
        asked, folder = self.experiment.fractions, self.folder
        done = -1 if folder is None else folder.finished()
        with Progress("experiment", total=len(asked) + 1) as bar:
            bar.step("the whole network")
            baseline = self._whole(done)
            rounds = (
                []
                if folder is None
                else [round_of(folder.record(number)) for number in range(1, done + 1)]
            )
            graph: Graph | None = self.source
            if folder is not None and done > 0:
                graph = folder.network(done, self.source)
            assert graph is not None
            original: Original | OriginalBlocks | None = None
            if self.experiment._of_blocks:
                ignore = self.experiment.pruning.get("ignore", ())
                original = OriginalBlocks.of(self.source, ignore=ignore)
            elif self.experiment.sparsity is None:
                original = Original.of(self.source, **self._said_of_groups())
            for number, fraction in enumerate(asked[len(rounds) :], start=len(rounds) + 1):
                bar.step(f"round {number} of {len(asked)}")
                graph, finished = self._round(original, graph, number, fraction)
                rounds.append(finished)
        return Result(self.experiment, tuple(rounds), graph, baseline, self.training, versions())

    def _said_of_groups(self) -> dict[str, Any]:
        options = self.experiment.pruning
        names = ("granularity", "allow_inexact", "ignore")
        return {name: options[name] for name in names if name in options}

    def _whole(self, done: int) -> float | None:
        """Train and measure the network before the first round; return its accuracy."""
        experiment, folder = self.experiment, self.folder
        if experiment.early is not None:
            self.early = _normalized(experiment.early)
        if folder is not None and done >= 0:
            record = folder.record(0)
            self.source = folder.network(0) or self.source
            if self.source.shapes != (shapes := _normalized(experiment.model).shapes):
                self.source = replace(self.source, shapes=shapes)
        else:
            history = None if experiment.train is None else self._train_whole(experiment.train)
            record = {
                "baseline": self._accuracy(self.source),
                "training": None if history is None else history.as_dict(),
            }
            if folder is not None:
                folder.finish(0, record, None if history is None else self.source)
        if self._rewinds_to_training and folder is not None:
            self.early = replace(load(folder.early), normalized=True, shapes=self.source.shapes)
        self.training = None if record["training"] is None else history_of(record["training"])
        baseline: float | None = record["baseline"]
        return baseline

    @property
    def _rewinds_to_training(self) -> bool:
        return self.experiment.rewind == "weights" and self.experiment.early is None

    def _train_whole(self, options: Mapping[str, Any]) -> History:
        """Train the network, and keep its early state."""
        wanted = self.experiment.rewind_to if self._rewinds_to_training else -1
        flux = to_flux(self.source)

        def keep(number: int) -> None:
            if number != wanted:
                return
            self.early = settled(flux.to_graph())
            if self.folder is not None:
                save(self.early, self.folder.early, force=True, check=False)

        keep(0)
        history = self._train(flux, 0, options, after_epoch=lambda epoch: keep(epoch.epoch))
        self.source = settled(flux.to_graph())
        return history

    def _round(
        self,
        original: Original | OriginalBlocks | None,
        graph: Graph,
        number: int,
        fraction: float,
    ) -> tuple[Graph, Round]:
        """Make one round; return its network, and what it did."""
        start = time.perf_counter()
        experiment = self.experiment
        if original is None:
            small = self._sparse(graph, number, fraction)
        else:
            small = self._pruned(original, graph, number, fraction)
        pruned = now = self._accuracy(small)
        recovered = trained = history = None
        if experiment.recover is not None:
            small = settled(recovery.recover(small, experiment.recover, experiment.calibration))
            recovered = now = self._accuracy(small)
        if experiment.rewind == "weights":
            assert self.early is not None
            small = settled(rewound(small, self.early))
        last = number == len(experiment.fractions)
        options = experiment._retraining
        if options is not None and (last or experiment.finetune_after == EACH):
            flux = to_flux(small)
            # What is zero is the mask that the round has made.
            options = {"keep_zeros": original is None, **options}
            history = self._train(flux, number, options, start_epoch=experiment.rewind_to)
            small = settled(replace(flux.to_graph(), plan=small.plan, source=small.source))
            trained = now = self._accuracy(small)
        elif experiment.rewind == "weights":
            now = self._accuracy(small)
        whole = self.source
        finished = Round(
            number=number,
            asked=fraction,
            macs_kept=small.macs / whole.macs,
            params_kept=small.params / whole.params,
            sparsity=_zeros(small) if original is None else None,
            accuracy_after_pruning=pruned,
            accuracy_after_recovery=recovered,
            accuracy_after_training=trained,
            accuracy=now,
            seconds=time.perf_counter() - start,
            history=history,
        )
        if self.folder is not None:
            self.folder.finish(number, finished.to_dict(), small)
            small = self.folder.network(number, whole) or small
        return small, finished

    def _pruned(
        self, original: Original | OriginalBlocks, graph: Graph, number: int, fraction: float
    ) -> Graph:
        """Remove what this round's budget wants."""
        budget, _ = self.experiment.budget
        assert budget != SPARSITY
        scope = self.experiment.pruning.get("scope", "global")
        options = self.experiment.regularize
        try:
            asked = original.request(graph, budget, fraction, scope)
            if asked is None:
                return graph
            if options is None:
                found = self._cut(graph, asked)
            elif (wanted := get_regularization(options["regularization"])).kind == GROWING:
                assert isinstance(original, Original)
                found = self._shrunk(original, graph, asked, number, wanted)
            else:
                found = self._cut(self._regularized(graph, number, options), asked)
        except BudgetError as error:
            raise BudgetError(f"round {number}: {error}") from error
        assert found.plan is not None
        # What was asked for is a fraction of the original, not of the round before.
        request = {**found.plan.request, budget: fraction, "round": number}
        if isinstance(original, OriginalBlocks):
            before = () if graph.plan is None else graph.plan.request.get("blocks", ())
            request["blocks"] = [*before, *request["blocks"]]
        else:
            request["amount_for"] = {}
        # Plans refer to the original, also where a penalty changed weights before the first cut.
        plan = replace(found.plan, request=request, source_graph=self.source, fingerprint=None)
        return settled(replace(found, plan=plan, source=self.source))

    def _sparse(self, graph: Graph, number: int, fraction: float) -> Graph:
        """Set as many weights to zero as this round's budget wants."""
        experiment = self.experiment
        if experiment.regularize is not None:
            graph = self._regularized(graph, number, experiment.regularize)
        masks = graph.masks.values()
        zeros, size = sum(int((~m).sum()) for m in masks), sum(m.size for m in masks)
        if masks and share(fraction, size) <= zeros:
            return graph
        try:
            sparse = sparsify(
                graph,
                amount=fraction,
                criterion=experiment._criterion,
                data=experiment._measured,
                seed=experiment.seed,
                **experiment.pruning,
            )
        except BudgetError as error:
            raise BudgetError(f"round {number}: {error}") from error
        return settled(sparse)

    def _cut(self, graph: Graph, asked: Mapping[str, Any]) -> Graph:
        """Prune a network as is asked of this round."""
        experiment = self.experiment
        model: Any = to_flux(graph) if experiment.engine == "flux" else graph
        small = prune(
            model,
            **experiment.pruning,
            **asked,
            criterion=experiment._criterion,
            data=experiment._measured,
            seed=experiment.seed,
        )
        return small if isinstance(small, Graph) else small.to_graph()

    def _shrunk(
        self,
        original: Original,
        graph: Graph,
        asked: Mapping[str, Any],
        number: int,
        regularization: Regularization,
    ) -> Graph:
        """Choose units, train under a penalty that grows on them, and remove them then."""
        alone = replace(graph, plan=None, source=None)
        chosen = self._cut(alone, asked)
        assert chosen.plan is not None
        structure = analyze(alone, granularity=original.granularity)
        kept = kept_units(structure, chosen.plan)
        units = {name: np.flatnonzero(~mask) for name, mask in kept.items()}
        wanted = replace(regularization, units=units, granularity=original.granularity)
        options = {**(self.experiment.regularize or {}), "regularization": wanted}
        small = keep(
            self._regularized(graph, number, options), kept, granularity=original.granularity
        )
        assert isinstance(small, Graph)
        assert small.plan is not None
        return replace(small, plan=replace(small.plan, request=chosen.plan.request))

    def _regularized(self, graph: Graph, number: int, options: Mapping[str, Any]) -> Graph:
        """Train the network that a round begins with under a penalty."""
        flux = to_flux(graph)
        self._train(flux, number, options, REGULARIZING)
        return settled(replace(flux.to_graph(), plan=graph.plan, source=graph.source))

    def _train(
        self,
        flux: FluxModel,
        number: int,
        options: Mapping[str, Any],
        kind: str = TRAINING,
        **further: Any,
    ) -> History:
        """Train a round's network in place, from where an earlier run of it stopped."""
        if self.folder is not None:
            further |= {"checkpoint": self.folder.training(number, kind), "resume": True}
        history = finetune(
            flux, self.experiment.data, **{"seed": self.experiment.seed, **options}, **further
        )
        if history.interrupted:
            raise KeyboardInterrupt
        return history

    def _accuracy(self, graph: Graph) -> float | None:
        validate = self.experiment.validate
        return None if validate is None else accuracy(graph, validate)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "number":
        return str(value)
    return f"{value:.1f}" if name == "seconds" else quantity(value, "fraction")


def _normalized(model: Source | FluxModel) -> Graph:
    return model.to_graph() if isinstance(model, FluxModel) else normalize(model)


def _counted_as(budget: Budget | Sparsity) -> Budget:
    """The kind of budget whose fractions go as those of another do."""
    return "amount" if budget == SPARSITY else budget


def _zeros(graph: Graph) -> float:
    """Fraction of zeros in the weights that have masks."""
    masks = graph.masks.values()
    return float(sum((~mask).sum() for mask in masks) / sum(mask.size for mask in masks))


def _network_record(model: Any, graph: Graph) -> dict[str, str]:
    """What tells a network from others: the fingerprint of its normalized graph."""
    path = {"path": os.fspath(model)} if isinstance(model, str | os.PathLike) else {}
    return {**path, "sha256": graph.fingerprint}


def _epochs(options: Mapping[str, Any]) -> int:
    epochs: int = options.get("epochs", _TRAINING["epochs"].default)
    return epochs
