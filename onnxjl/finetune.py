"""finetune: train a Flux model on labelled data, batch by batch, in place."""

from __future__ import annotations

import fnmatch
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np

from onnxjl import checkpoint as checkpoints
from onnxjl import learning_rate, session
from onnxjl.checkpoint import Checkpoint
from onnxjl.criteria.registry import unknown
from onnxjl.data import BATCH_SIZE, count_batches, labelled
from onnxjl.errors import DataError, JuliaError, OutputError, TrainingError, UsageError
from onnxjl.flux import FluxModel, as_julia_error, in_julia, is_julia, julia
from onnxjl.history import Epoch, History, figure
from onnxjl.interruption import Interruption
from onnxjl.learning_rate import Schedule
from onnxjl.load import Source
from onnxjl.load import load as load_graph
from onnxjl.progress import Progress, progress
from onnxjl.regularization import Penalty, Regularization
from onnxjl.regularization import get as get_regularization
from onnxjl.save import check_output

Metric = Callable[[Any, np.ndarray], float]
Teacher = Callable[[Mapping[str, np.ndarray]], np.ndarray]

LEARNING_RATE = 1e-3
"""Of a rule that is asked for by name."""

ADAMW_DECAY = 0.01
"""Weight decay of "adamw" unless another is given, as PyTorch has it."""


def finetune(
    model: FluxModel,
    data: Any,
    *,
    epochs: int = 3,
    batch_size: int = BATCH_SIZE,
    loss: Any = None,
    optimiser: Any = "adamw",
    lr: float | None = None,
    weight_decay: float | None = None,
    schedule: Schedule = "constant",
    warmup: int = 0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    freeze: str | Sequence[str] = (),
    keep_zeros: bool = False,
    batchnorm: Literal["train", "frozen"] = "train",
    metric: str | Metric | None = "auto",
    validate: Any = None,
    monitor: Literal["loss", "metric"] | None = None,
    patience: int | None = None,
    restore_best: bool = True,
    teacher: FluxModel | Source | None = None,
    temperature: float = 4.0,
    teacher_weight: float = 0.5,
    regularization: str | Mapping[str, Any] | Regularization | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    shuffle: bool = True,
    seed: int = 0,
    start_epoch: int = 0,
    after_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    """Train a network, which changes in place.

    Ctrl-C ends it after the batch at hand, with a warning: the network keeps what it has learned.
    A batch of one sample after larger ones is left out where batch normalization trains.

    Parameters
    ----------
    model : the network; in test mode afterwards.
    data : labelled samples, see `onnxjl.data`; read batch by batch, again in each epoch, so that a
        generator is enough for one epoch only.
    epochs : passes over the data, those of a resumed checkpoint included.
    batch_size : samples in a step where the graph leaves the number open.
    loss : as for `FluxModel.gradient`; by default "cross-entropy" where labels are integers.
    optimiser : "adamw", "adam", "sgd", "momentum", "nesterov", "rmsprop" or another of
        `OnnxJL.RULES`, or any rule of Optimisers.jl as a Julia object.
    lr : learning rate; by default 1e-3, or the Julia rule's own.
    weight_decay : decoupled for AdamW (by default 0.01), else added to the gradient (default 0).
    schedule, warmup : what the learning rate is multiplied by, see `onnxjl.learning_rate.factor`.
    clip_norm : largest norm of the whole gradient; a longer one is scaled down.
    clip_value : largest absolute value of an element of the gradient, after `clip_norm`.
    freeze : fnmatch patterns of layers or nodes that stay as they are, statistics included.
    keep_zeros : whether weights that are exactly zero stay so: the mask of an earlier pruning.
    batchnorm : "train" normalizes by each batch's statistics and tracks them; "frozen" keeps the
        statistics there are.
    metric : "accuracy"; ``f(output, target) -> float`` of NumPy arrays, in ONNX's layout, averaged
        over samples; None; or "auto": accuracy where labels are integers that count classes.
    validate : labelled samples to measure loss and metric on after each epoch. What the best epoch
        is chosen on isn't what accuracy should be reported on.
    monitor : what says which epoch is best: the lowest "loss" or the highest "metric" on
        `validate`; by default the metric where it is accuracy, else the loss.
    patience : end after this many epochs that were no better than the best.
    restore_best : whether the network gets the best epoch's weights at the end, given `validate`.
    teacher : the network to learn from, say the unpruned one: a FluxModel, or whatever
        `onnxjl.load` takes, which then runs in onnxruntime. Source: Hinton et al. 2015.
    temperature : what the logits of both are divided by for the teacher's part of the loss.
    teacher_weight : weight of that part, in (0, 1]; `loss` has the rest.
    regularization : penalty that makes units small before they go: "bn-scale", "group-lasso" or
        "growing", or one of `onnxjl.regularization` with its parameters. Its gradient is followed
        apart from the optimiser's step, at the same learning rate.
    checkpoint : file that holds the training after each epoch.
    resume : whether to go on from `checkpoint`, if it is there: the outcome is that of a training
        that was never interrupted.
    shuffle : whether samples come in another order in each epoch, see `onnxjl.data.labelled`.
    seed : of that order.
    start_epoch : number of `epochs` that count as done before: training begins where the learning
        rate and the order of samples were after them, as rewinding wants it.
    after_epoch : called with each epoch when it is finished; the network is in test mode, with the
        weights that it has then.

    Returns
    -------
    History : loss, metric, learning rate and time of each epoch.

    Raises
    ------
    UsageError : an unknown name or pattern, options that don't go together.
    DataError : the data don't fit the network, have no labels, or end before the last epoch.
    TrainingError : a loss or gradient isn't finite; the weights are those of the last good epoch.
    OutputError : the checkpoint can't be written.
    """
    if epochs < 1:
        raise UsageError(f"epochs={epochs}: at least 1 is needed")
    if not 0 <= start_epoch < epochs:
        raise UsageError(f"start_epoch={start_epoch}: one of the {epochs} epochs has to be left")
    _check_options(batchnorm, metric, monitor, patience, validate, temperature, teacher_weight)
    _check_passes("data", data, epochs)
    _check_passes("validate", validate, epochs)
    learning_rate.check(schedule, warmup)
    if resume and checkpoint is None:
        raise UsageError("resume needs a checkpoint=FILE to go on from")
    found = checkpoint is not None and Path(checkpoint).exists()
    if checkpoint is not None:
        _check_checkpoint(checkpoint, resume)
    frozen = _matching(model, [freeze] if isinstance(freeze, str) else freeze)
    if isinstance(optimiser, str):
        optimiser = optimiser.lower()
    rule = _rule(optimiser, lr, weight_decay, clip_norm, clip_value, keep_zeros)
    with in_julia():
        rate = julia().learningrate(rule)
    if rate is None and (lr is not None or warmup or schedule != "constant"):
        raise UsageError("this optimiser has no learning rate: lr, schedule and warmup can't act")
    if rate is None and regularization is not None:
        raise UsageError("regularization needs an optimiser with a learning rate")
    wanted = None if regularization is None else get_regularization(regularization)
    penalty = None if wanted is None else Penalty(wanted, model, frozen)
    with in_julia():
        state = julia().startstate(rule, model.julia, frozen)
    settings = {
        "optimiser": str(optimiser),
        "loss": None if loss is None else _name(loss),
        "lr": rate,
        "weight_decay": weight_decay,
        "schedule": _name(schedule),
        "warmup": warmup,
        "clip_norm": clip_norm,
        "clip_value": clip_value,
        "freeze": frozen,
        "keep_zeros": keep_zeros,
        "batchnorm": batchnorm,
        "teacher": teacher is not None,
        "temperature": temperature,
        "teacher_weight": teacher_weight,
        "batch_size": batch_size,
        "shuffle": shuffle,
        "seed": seed,
        # Where the schedule doesn't look at them, a training may go on for more epochs.
        "epochs": epochs if schedule in ("cosine", "step") else None,
        # What checkpoints of before lacked is None.
        "start_epoch": start_epoch or None,
        "regularization": None if wanted is None else wanted.to_dict(),
    }
    training = _Training(
        model=model,
        state=state,
        frozen=frozen,
        loss=loss,
        metric=metric,
        rate=rate,
        factor=partial(learning_rate.factor, schedule, warmup=warmup),
        clip_norm=clip_norm,
        trains_batchnorm=batchnorm == "train",
        teacher=None if teacher is None else _teacher(teacher, model),
        temperature=temperature,
        teacher_weight=teacher_weight,
        penalty=penalty,
        data=data,
        validate=validate,
        batch_size=batch_size,
        seed=seed if shuffle else None,
        total=epochs,
        start=start_epoch,
        after_epoch=after_epoch,
        monitor=monitor,
        patience=patience,
        keeps_best=restore_best and validate is not None,
        checkpoint=checkpoint,
        settings=settings,
    )
    with model.alone():
        if checkpoint is not None and resume and found:
            training.resume(checkpoint)
        return training.run()


@dataclass(kw_only=True)
class _Training:
    """A training under way: what it was asked for, and how far it is."""

    model: FluxModel
    state: Any
    frozen: list[int]
    loss: Any
    metric: str | Metric | None
    rate: float | None
    factor: Callable[..., float]
    clip_norm: float | None
    trains_batchnorm: bool
    teacher: Teacher | None
    temperature: float
    teacher_weight: float
    penalty: Penalty | None
    data: Any
    validate: Any
    batch_size: int
    seed: int | None
    total: int  # epochs, those of before `start` included
    start: int
    after_epoch: Callable[[Epoch], None] | None
    monitor: str | None
    patience: int | None
    keeps_best: bool
    checkpoint: str | os.PathLike[str] | None
    settings: dict[str, Any]

    epochs: list[Epoch] = field(default_factory=list)
    batches: int | None = None  # in an epoch, where it is known
    good: Any = None  # the weights after the last good epoch
    best: Any = None  # those of the best one
    interruption: Interruption = field(default_factory=Interruption)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint."""
        saved = checkpoints.load(path, self.settings)
        try:
            with in_julia():
                bridge = julia()
                if saved.best:
                    bridge.restore_b(self.model.julia, _for_julia(saved.best))
                    self.best = bridge.snapshot(self.model.julia)
                bridge.restore_b(self.model.julia, _for_julia(saved.weights))
                bridge.unpack_b(self.state, _for_julia(saved.optimiser))
        except JuliaError as error:
            raise UsageError(f"{os.fspath(path)}: can't be resumed: {error}") from error
        self.epochs, self.batches = list(saved.epochs), saved.batches

    def run(self) -> History:
        """Train until the last epoch, or what ends it before."""
        if self.batches is None:
            self.batches = count_batches(self.data, self.model.graph, batch_size=self.batch_size)
        steps = self.batches and self.batches * (self.total - self._finished)
        interrupted = False
        with in_julia():
            self.good = julia().snapshot(self.model.julia)
        with self.interruption, Progress("fine-tuning", total=steps) as bar:
            try:
                while self._finished < self.total and not self._waited_enough():
                    self._finish(self._train_epoch(bar))
            except KeyboardInterrupt:
                interrupted = True
            finally:
                with self.interruption.held(), in_julia():
                    julia().trainingmode_b(self.model.julia, False)
        return self._end(interrupted)

    @property
    def _finished(self) -> int:
        """Number of epochs that are done, those that count as done included."""
        return self.start + len(self.epochs)

    def _end(self, interrupted: bool) -> History:
        best = self._best()
        restored = not interrupted and self.best is not None and best != len(self.epochs)
        if restored:
            with in_julia():
                julia().restore_b(self.model.julia, self.best)
        if interrupted:
            warnings.warn(
                f"fine-tuning was interrupted after {self._finished} of {self.total} epochs; the "
                "network has the weights of the last finished step",
                stacklevel=4,
            )
        measured = any(epoch.metric is not None for epoch in self.epochs)
        name = self._metric_name() if measured else None
        number = None if best is None else self.start + best
        return History(tuple(self.epochs), name, number, restored, interrupted)

    def _metric_name(self) -> str:
        return "accuracy" if self.metric == "auto" else _name(self.metric)

    def _train_epoch(self, bar: Progress) -> Epoch:
        """Go through the training data once, then through the validation data."""
        number = self._finished + 1
        start = time.perf_counter()
        with in_julia():
            julia().trainingmode_b(self.model.julia, self.trains_batchnorm, frozen=self.frozen)
            uses_batch = julia().usesbatch(self.model.julia)
        before = self.start * (self.batches or 0) + sum(epoch.steps for epoch in self.epochs)
        mean = _Mean()
        steps = largest = 0
        rate, note = self.rate, f"epoch {number} of {self.total}"
        order = None if self.seed is None else np.random.default_rng([self.seed, number])
        for feeds, target in labelled(
            self.data, self.model.graph, batch_size=self.batch_size, shuffle=order
        ):
            largest = max(largest, len(target))
            if uses_batch and len(target) == 1 < largest:
                continue  # One sample has no variance.
            if self.rate is not None:
                rate = self.rate * self.factor(step=before + steps, done=self._done(steps))
            bar.step(note)
            with self.interruption.held():
                mean.add(len(target), *self._step(feeds, target, rate, before, steps + 1))
            steps += 1
            speed = mean.samples / (time.perf_counter() - start)
            means = mean.text(self._metric_name())
            note = f"epoch {number} of {self.total}, {means}, {speed:.0f} samples/s"
        self.batches = steps
        validated = None if self.validate is None else self._measure()
        return Epoch(
            epoch=number,
            loss=mean.loss,
            metric=mean.metric,
            validation_loss=None if validated is None else validated.loss,
            validation_metric=None if validated is None else validated.metric,
            lr=rate,
            steps=steps,
            samples=mean.samples,
            seconds=time.perf_counter() - start,
        )

    def _done(self, steps: int) -> float:
        """Return how much of all epochs is done, after so many steps of this one."""
        part = min(steps / self.batches, 1.0) if self.batches else 0.0
        return (self._finished + part) / self.total

    def _step(
        self,
        feeds: Mapping[str, np.ndarray],
        target: np.ndarray,
        rate: float | None,
        before: int,
        number: int,
    ) -> tuple[float, float | None]:
        """Take one step, of this number in its epoch; return loss and metric before it."""
        model = self.model
        bridge = julia()
        with as_julia_error():
            with in_julia():
                passed = bridge.forward(model.julia, model.arrays(feeds))
            value, deltas = model.loss_gradient(self._loss(target), passed, target)
            if self.teacher is not None:
                wanted = self.teacher(feeds)
                with in_julia():
                    value, deltas = bridge.distil(
                        passed, value, deltas, wanted.T, self.temperature, self.teacher_weight
                    )
            if not math.isfinite(value):
                raise self._diverged("loss", value, rate, number)
            metric = self._metric(passed, target)
            penalty = {} if self.penalty is None else self.penalty.of_step(before + number - 1)
            with in_julia():
                gradient = bridge.backward(passed, deltas)
                norm = bridge.step_b(
                    self.state, model.julia, gradient, rate=rate, clipnorm=self.clip_norm, **penalty
                )
        if not math.isfinite(norm):
            raise self._diverged("gradient's norm", norm, rate, number)
        return float(value), metric

    def _measure(self) -> _Mean:
        """Return loss and metric on the validation data."""
        model = self.model
        bridge = julia()
        with in_julia():
            bridge.trainingmode_b(model.julia, False)
        mean = _Mean()
        for feeds, target in progress(
            labelled(self.validate, model.graph, batch_size=self.batch_size), "validating"
        ):
            with self.interruption.held(), as_julia_error():
                with in_julia():
                    passed = bridge.infer(model.julia, model.arrays(feeds))
                loss = model.loss_value(self._loss(target), passed, target)
                if not math.isfinite(loss):
                    raise self._diverged("validation loss", loss, self.rate, None)
                mean.add(len(target), loss, self._metric(passed, target))
        return mean

    def _loss(self, target: np.ndarray) -> Any:
        if self.loss is None and target.dtype.kind not in "iu":
            raise UsageError(
                f"labels of {target.dtype} have no default loss; give loss='mse' or another"
            )
        return "cross-entropy" if self.loss is None else self.loss

    def _metric(self, passed: Any, target: np.ndarray) -> float | None:
        if self.metric is None:
            return None
        output = self.model.outputs(passed)
        if callable(self.metric):
            return float(self.metric(output, target))
        if _counts_classes(output, target):
            return float((output.argmax(axis=1).reshape(target.shape) == target).mean())
        if self.metric == "auto":
            return None
        raise DataError(
            f"accuracy needs outputs of shape (samples, classes) and integer labels, not "
            f"{target.dtype} of shape {target.shape}"
        )

    def _finish(self, epoch: Epoch) -> None:
        """Keep what a finished epoch leaves."""
        with self.interruption.held():
            self.epochs.append(epoch)
            with in_julia():
                self.good = julia().snapshot(self.model.julia)
            if self.keeps_best and self._best() == len(self.epochs):
                self.best = self.good
            if self.after_epoch is not None:
                with in_julia():
                    julia().trainingmode_b(self.model.julia, False)
                self.after_epoch(epoch)
            if self.checkpoint is not None:
                with in_julia():
                    bridge = julia()
                    finished = Checkpoint(
                        self.settings,
                        tuple(self.epochs),
                        self.batches,
                        list(bridge.numpyarrays(self.good)),
                        list(bridge.numpyarrays(bridge.pack(self.state))),
                        [] if self.best is None else list(bridge.numpyarrays(self.best)),
                    )
                finished.save(self.checkpoint)

    def _best(self) -> int | None:
        """Return the place, from 1, of the first epoch that none was better than."""
        scores = [self._score(e) for e in self.epochs if e.validation_loss is not None]
        return scores.index(max(scores)) + 1 if scores else None

    def _score(self, epoch: Epoch) -> tuple[float, float]:
        """Return what is larger for a better epoch; among equal metrics the loss decides."""
        assert epoch.validation_loss is not None
        by_metric = self.monitor == "metric" or (
            self.monitor is None and self.metric in ("auto", "accuracy")
        )
        if not by_metric or (self.monitor is None and epoch.validation_metric is None):
            return 0.0, -epoch.validation_loss
        if epoch.validation_metric is None:
            raise UsageError("monitor='metric': these data have no accuracy; give metric=")
        score = epoch.validation_metric
        return -math.inf if math.isnan(score) else score, -epoch.validation_loss

    def _waited_enough(self) -> bool:
        best = self._best()
        return (
            self.patience is not None
            and best is not None
            and len(self.epochs) - best >= self.patience
        )

    def _diverged(
        self, what: str, value: float, rate: float | None, step: int | None
    ) -> TrainingError:
        """Put back the last good weights, and say what happened."""
        with in_julia():
            julia().restore_b(self.model.julia, self.good)
        place = f"epoch {self._finished + 1}" + ("" if step is None else f", step {step}")
        now = f"those of epoch {self._finished}" if self.epochs else "as before training"
        advice = "" if rate is None else f"a smaller lr than {rate:.3g}, "
        return TrainingError(
            f"{place}: the {what} is {value}; the weights are {now}; try {advice}clip_norm=1.0, "
            "and look for labels or inputs that aren't finite"
        )


@dataclass
class _Mean:
    """Means over samples of the losses and metrics of batches."""

    loss: float = 0.0
    metric: float | None = 0.0
    samples: int = 0

    def add(self, samples: int, loss: float, metric: float | None) -> None:
        """Add those of a batch; without its metric there is none for all."""
        self.samples += samples
        share = samples / self.samples
        self.loss += share * (loss - self.loss)
        if metric is None or self.metric is None:
            self.metric = None
        else:
            self.metric += share * (metric - self.metric)

    def text(self, name: str) -> str:
        """Return both in few words; `name` is the metric's."""
        loss = f"loss {figure(self.loss)}"
        return loss if self.metric is None else f"{loss}, {name} {figure(self.metric, name)}"


def _check_options(
    batchnorm: str,
    metric: Any,
    monitor: str | None,
    patience: int | None,
    validate: Any,
    temperature: float,
    teacher_weight: float,
) -> None:
    if batchnorm not in ("train", "frozen"):
        raise UsageError(unknown("batchnorm", batchnorm, ("train", "frozen")))
    if isinstance(metric, str) and metric not in ("auto", "accuracy"):
        raise UsageError(unknown("metric", metric, ("auto", "accuracy")))
    if not (metric is None or isinstance(metric, str) or callable(metric)):
        raise UsageError(f"a metric is a name or a function f(output, target), not {metric!r}")
    if monitor not in (None, "loss", "metric"):
        raise UsageError(unknown("monitor", monitor, ("loss", "metric")))
    if monitor == "metric" and metric is None:
        raise UsageError("monitor='metric' needs a metric")
    if validate is None and (monitor is not None or patience is not None):
        raise UsageError("monitor and patience need validate=, data to measure epochs on")
    if patience is not None and patience < 1:
        raise UsageError(f"patience={patience}: at least 1 epoch is needed")
    if not 0 < teacher_weight <= 1:
        raise UsageError(f"teacher_weight={teacher_weight}: a number in (0, 1] is needed")
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature={temperature}: a number above 0 is needed")


def _check_passes(name: str, data: Any, epochs: int) -> None:
    if epochs > 1 and isinstance(data, Iterator):
        raise UsageError(
            f"{name} is a generator, which can be gone through only once, and there are {epochs} "
            "epochs: give a list, a loader, or an object whose __iter__ begins anew"
        )


def _check_checkpoint(path: str | os.PathLike[str], resume: bool) -> None:
    check_output(path, force=True)
    if not resume and Path(path).exists():
        raise OutputError(
            f"{os.fspath(path)}: exists; resume=True goes on from it, or remove it to start anew"
        )


def _matching(model: FluxModel, patterns: Sequence[str]) -> list[int]:
    """Return the numbers, from 1, of the layers that match one of the patterns."""
    with in_julia():
        names = [[str(name) for name in layer] for layer in julia().stepnames(model.julia)]
    chosen: set[int] = set()
    for pattern in patterns:
        matching = {
            i
            for i, layer in enumerate(names, start=1)
            if any(fnmatch.fnmatchcase(name, pattern) for name in layer)
        }
        if not matching:
            raise UsageError(f"no layer or node matches '{pattern}'; printing the model lists them")
        chosen |= matching
    return sorted(chosen)


def _rule(
    optimiser: Any,
    lr: float | None,
    weight_decay: float | None,
    clip_norm: float | None,
    clip_value: float | None,
    keep_zeros: bool,
) -> Any:
    """Return the rule of Optimisers.jl that is asked for."""
    with in_julia():
        bridge = julia()
        rules = sorted(map(str, bridge.RULES))
        is_rule = is_julia(optimiser) and bridge.isa(optimiser, bridge.AbstractRule)
    if isinstance(optimiser, str):
        if optimiser not in rules:
            raise UsageError(unknown("optimiser", optimiser, rules))
        lr = LEARNING_RATE if lr is None else lr
        if optimiser == "adamw" and weight_decay is None:
            weight_decay = ADAMW_DECAY
    elif not is_rule:
        raise UsageError(f"an optimiser is a name or a rule of Optimisers.jl, not {optimiser!r}")
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(f"{name}={value}: a number of at least 0 is needed")
    for name, value in (("clip_norm", clip_norm), ("clip_value", clip_value)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name}={value}: a number above 0 is needed")
    with in_julia():
        return bridge.rule(
            optimiser,
            lr,
            weight_decay,
            clipnorm=clip_norm is not None,
            clipvalue=clip_value,
            keepzeros=keep_zeros,
        )


def _teacher(teacher: FluxModel | Source, model: FluxModel) -> Teacher:
    """Return a function from a batch to the teacher's first output."""
    if isinstance(teacher, FluxModel):
        if teacher is model:
            raise UsageError("the teacher is the network itself; give another one")
        run: Callable[[Mapping[str, np.ndarray]], Any] = teacher
        graph = teacher.graph
    else:
        graph = load_graph(teacher)
        run = partial(session.run, session.open_session(graph, optimized=True))
    name = graph.model.graph.outputs[0].name or ""

    def wanted(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        output = run(feeds)
        return np.asarray(output[name] if isinstance(output, Mapping) else output, order="C")

    return wanted


def _counts_classes(output: Any, target: np.ndarray) -> TypeGuard[np.ndarray]:
    """Return whether labels are classes, of which axis 1 of the output has a score each."""
    return (
        isinstance(output, np.ndarray)
        and target.dtype.kind in "iu"
        and output.ndim >= 2
        and output.shape[1] > 1
        and output.size == target.size * output.shape[1]
    )


def _name(value: Any) -> str:
    """Return a name, or that of a function."""
    return value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


def _for_julia(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(array, order="F") for array in arrays]
