"""History: what training did, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from onnxjl.report import quantity, table


@dataclass(frozen=True)
class Epoch:
    """What happened in one pass over the training data.

    Parameters
    ----------
    epoch : its number, from 1.
    loss : mean over the samples, each batch before its own step.
    metric : likewise; None where there is none.
    validation_loss, validation_metric : mean over the validation samples, in test mode, after the
        epoch; None where there are none.
    lr : learning rate of its last step; None where the optimiser has none.
    steps : steps of the optimiser.
    samples : how many it was trained on.
    seconds : wall-clock time, validation included.
    """

    epoch: int
    loss: float
    metric: float | None
    validation_loss: float | None
    validation_metric: float | None
    lr: float | None
    steps: int
    samples: int
    seconds: float


@dataclass(frozen=True)
class History:
    """The epochs of a training, in order; prints as a table.

    Parameters
    ----------
    epochs : those that were finished.
    metric : what the metric is called; None where there is none.
    best : number of the epoch that was best on the validation data; None where there are none.
    restored : whether the network has the weights of that epoch, not of the last one.
    interrupted : whether Ctrl-C ended it; the network has the weights of the last finished step.
    """

    epochs: tuple[Epoch, ...]
    metric: str | None = None
    best: int | None = None
    restored: bool = False
    interrupted: bool = False

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def __getitem__(self, index: int) -> Epoch:
        return self.epochs[index]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values, as JSON has them."""
        return {**asdict(self), "epochs": [asdict(epoch) for epoch in self.epochs]}

    def __str__(self) -> str:
        """Show a line for each epoch."""
        metric = self.metric or "metric"
        titles = {
            "epoch": "epoch",
            "loss": "loss",
            "metric": metric,
            "validation_loss": "validation loss",
            "validation_metric": f"validation {metric}",
            "lr": "lr",
            "seconds": "seconds",
        }
        shown = [f for f in titles if any(getattr(epoch, f) is not None for epoch in self.epochs)]
        rows = [[titles[f] for f in shown]]
        rows += [[self._cell(f, getattr(epoch, f)) for f in shown] for epoch in self.epochs]
        lines = [table(rows, align="r" * len(shown))] if self.epochs else []
        if self.restored and self.best is not None:
            lines.append(f"the weights are those of epoch {self.best}, the best one")
        if self.interrupted:
            lines.append("interrupted: the weights are those of the last finished step")
        return "\n".join(lines) or "no epoch"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the same at the end of a notebook's cell."""
        printer.text(str(self))

    def _cell(self, field: str, value: float | None) -> str:
        if value is None:
            return ""
        if field == "epoch":
            return str(value)
        if field == "seconds":
            return f"{value:.1f}"
        return figure(value, self.metric if field.endswith("metric") else None)


def figure(value: float, metric: str | None = None) -> str:
    """Return a figure as text: accuracy in percent, everything else in four digits."""
    return quantity(value, "fraction") if metric == "accuracy" else f"{value:.4g}"


def epoch_of(values: dict[str, Any]) -> Epoch:
    """Return the epoch of which `asdict` gave these values."""
    return Epoch(**{field.name: values[field.name] for field in fields(Epoch)})


def history_of(values: dict[str, Any]) -> History:
    """Return the history of which `History.as_dict` gave these values."""
    return History(**{**values, "epochs": tuple(map(epoch_of, values["epochs"]))})
