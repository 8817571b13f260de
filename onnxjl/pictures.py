"""Pictures of results, with Matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from onnxjl.budget import BUDGETS
from onnxjl.errors import UsageError
from onnxjl.report import shorten

if TYPE_CHECKING:
    from onnxjl.experiment import Result
    from onnxjl.pairing import Bars
    from onnxjl.sweep import Sensitivity, Sweep

NAMES = {
    "macs_kept": "MACs kept",
    "params_kept": "parameters kept",
    "latency_kept": "latency kept",
    "accuracy": "accuracy",
    "output_error": "output error (relative L2)",
    "seconds": "seconds",
}
"""What the axes of columns are called."""

_LABEL = 40
"""Characters of a layer's name beside a bar."""

_BLUE = "#3357c0"

_PERCENT = ("macs_kept", "params_kept", "latency_kept", "accuracy")


class Picture(Figure):
    """A figure that a notebook shows whatever Matplotlib's backend is."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight", dpi=96)
        return buffer.getvalue()


def sweep_figure(sweep: Sweep, x: str, y: str) -> Figure:
    """Draw a line for each way of pruning, the Pareto front, and the original.

    Parameters
    ----------
    sweep : what was found; of several seeds the mean is drawn, with their range as a band.
    x, y : columns of its table.

    Raises
    ------
    UsageError : there is no such column, or nothing was measured in it.
    """
    frame = sweep.frame
    for column in (x, y):
        if column not in frame:
            raise UsageError(f"no column '{column}'; there are {', '.join(frame.columns)}")
        if frame[column].isna().all():
            raise UsageError(f"nothing was measured in column '{column}'")
    frame = frame.dropna(subset=[x, y])
    figure = Picture(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    ways = [name for name in sweep.options if name not in (*BUDGETS, "seed")]
    several = [name for name in ways if frame[name].astype(str).nunique() > 1]
    budgets = [name for name in sweep.options if name in BUDGETS]
    labels = frame[several].astype(str).agg(", ".join, axis=1) if several else None
    for label, rows in [("", frame)] if labels is None else frame.groupby(labels, sort=False):
        # Seeds of one request are one point.
        points = rows.groupby(budgets, dropna=False) if budgets else [((), rows)]
        drawn = sorted(
            ((each[x].mean(), each[y].mean(), each[y].min(), each[y].max()) for _, each in points),
        )
        xs, ys, low, high = np.array(drawn).T
        (line,) = axes.plot(xs, ys, "o-", markersize=4, linewidth=1.2, label=label or None)
        if (high > low).any():
            axes.fill_between(xs, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    front = sweep.pareto(x, y)
    if len(front) > 1:
        axes.plot(front[x], front[y], "--", color="0.4", linewidth=1, label="Pareto front")
    if sweep.baseline is not None and y == "accuracy":
        axes.axhline(sweep.baseline, color="0.7", linewidth=1, label="original", zorder=0)
    _finish(axes, x, y)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return figure


def sensitivity_figure(sensitivity: Sensitivity, y: str) -> Figure:
    """Draw a heat map: groups down, amounts to the right, `y` as colour; bars for one amount.

    Parameters
    ----------
    sensitivity : what was found.
    y : ``accuracy`` or ``output_error``.

    Raises
    ------
    UsageError : there is no such column, or nothing was measured in it.
    """
    frame = sensitivity.frame
    if y not in frame or frame[y].isna().all():
        raise UsageError(f"nothing was measured in column '{y}'")
    groups = list(dict.fromkeys(frame["group"]))
    amounts = sorted(set(frame["amount"]))
    if len(amounts) == 1:
        return _bars(frame.set_index("group")[y].to_dict(), y, amounts[0], sensitivity.baseline)
    values = np.full((len(groups), len(amounts)), np.nan)
    for group, amount, value in zip(frame["group"], frame["amount"], frame[y], strict=True):
        values[groups.index(group), amounts.index(amount)] = value
    figure = Picture(figsize=(6.4, 1.2 + 0.24 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, aspect="auto", cmap="viridis" if y == "accuracy" else "viridis_r")
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    axes.set_xticks(range(len(amounts)), [f"{amount:.0%}" for amount in amounts])
    axes.set_xlabel("units removed of this group alone")
    bar = figure.colorbar(image)
    bar.set_label(NAMES.get(y, y))
    if y in _PERCENT:
        bar.formatter = _percent()
    return figure


def _rows(labels: Sequence[str], xlabel: str) -> tuple[Figure, Any]:
    """Return a figure, and its axes with a row for each label, in this order from the top."""
    count = len(labels)
    figure = Picture(figsize=(6.4, 0.9 + 0.24 * count), layout="constrained")
    axes = figure.add_subplot()
    shown = [shorten(label, _LABEL) for label in labels]
    axes.set_yticks(range(count), shown, fontsize=8, parse_math=False)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.2)
    axes.set_axisbelow(True)
    return figure, axes


def _bars(values: Mapping[str, float], y: str, amount: float, baseline: float | None) -> Figure:
    """Draw a bar for each group or block."""
    # Blocks go as a whole, and groups never do.
    alone = "this block" if amount == 1 else f"{amount:.0%} of this group's units"
    figure, axes = _rows(list(values), f"{NAMES.get(y, y)} without {alone}")
    bars = axes.barh(range(len(values)), list(values.values()), height=0.62, color=_BLUE)
    axes.bar_label(bars, fmt="{:.1%}" if y in _PERCENT else "{:.3g}", fontsize=7, padding=3)
    if y in _PERCENT:
        axes.xaxis.set_major_formatter(_percent())
    if baseline is not None and y == "accuracy":
        axes.axvline(baseline, color="0.4", linewidth=1, label="original")
        figure.legend(loc="outside upper right", frameon=False, fontsize=8)
    return figure


def widths_figure(bars: Bars) -> Figure:
    """Draw a bar for each layer: how wide it was, and upon it how wide it is.

    Parameters
    ----------
    bars : the widths, from `onnxjl.pairing.width_bars`.
    """
    labels = [bar.label for bar in bars.bars]
    figure, axes = _rows(labels, "width: channels, features, hidden units")
    places = range(len(labels))
    for label, color in (("before", "0.8"), ("after", _BLUE)):
        lengths = [bars.scale * bars.length(getattr(bar, label)) for bar in bars.bars]
        axes.barh(places, lengths, height=0.62, color=color, label=label)
    for place, bar in zip(places, bars.bars, strict=True):
        text = f" {bar.after:,} of {bar.before:,}" + (" (cut)" if bars.cut(bar) else "")
        end = bars.scale * max(bars.length(bar.before), bars.length(bar.after))
        axes.text(end, place, text, va="center", fontsize=7)
    axes.set_xlim(0, 1.18 * bars.scale)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def rounds_figure(result: Result) -> Figure:
    """Draw accuracy against multiply–accumulates: each round's, and that of its steps.

    Parameters
    ----------
    result : of an experiment.

    Raises
    ------
    UsageError : accuracy wasn't measured.
    """
    if result.baseline is None:
        raise UsageError("accuracy wasn't measured: give the experiment validate=")
    figure = Picture(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    macs = [each.macs_kept for each in result.rounds]
    for step in ("pruning", "recovery", "training"):
        found = [getattr(each, f"accuracy_after_{step}") for each in result.rounds]
        points = [(x, y) for x, y in zip(macs, found, strict=True) if y is not None]
        if points and found != [each.accuracy for each in result.rounds]:
            axes.plot(*zip(*points, strict=True), "o", markersize=3, label=f"after {step}")
    ends = [result.baseline, *(each.accuracy for each in result.rounds)]
    axes.plot(
        [1.0, *macs],
        np.array(ends, dtype=float),
        "o-",
        markersize=4,
        linewidth=1.2,
        label="rounds",
        color="0.2",
    )
    axes.axhline(result.baseline, color="0.7", linewidth=1, label="original", zorder=0)
    _finish(axes, "macs_kept", "accuracy")
    axes.legend(frameon=False)
    return figure


def _finish(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(NAMES.get(x, x))
    axes.set_ylabel(NAMES.get(y, y))
    for name, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        if name in _PERCENT:
            axis.set_major_formatter(_percent())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(xmax=1, decimals=0)
