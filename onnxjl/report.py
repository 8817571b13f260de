"""Report: what was done to a network, as data and as text of at most 100 columns."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from onnxjl.data import TARGET, read
from onnxjl.errors import DataError, ModelError, UsageError
from onnxjl.evaluate import accuracy
from onnxjl.graph import Graph
from onnxjl.inputs import given_inputs, graph_inputs, random_inputs, sample_shapes
from onnxjl.latency import measure_pair
from onnxjl.printable import printable
from onnxjl.save import Saved, input_files
from onnxjl.structure import Granularity, Structure, Whole, analyze, layer_costs
from onnxjl.structure.blocks import find
from onnxjl.structure.groups import offer

if TYPE_CHECKING:
    from onnxjl.history import History

WIDTH = 100
"""Columns that text fits in."""

_NAME_WIDTH = 48

# How much longer than in proportion to its MACs a network may take before its widths are blamed;
# one that takes less than so many milliseconds spends them on other things.
_SLOWER, _SHORT = 1.25, 0.1


@dataclass(frozen=True)
class Change:
    """A figure before and after.

    Parameters
    ----------
    name : what is measured.
    before, after : the figure.
    unit : ``"MACs"``, ``"parameters"``, ``"bytes"``, ``"ms"`` or ``"fraction"`` (of samples).
    note : how it was measured.
    """

    name: str
    before: float
    after: float
    unit: str
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """After as a share of before."""
        return self.after / self.before if self.before else None


@dataclass(frozen=True)
class LayerChange:
    """Units of a layer.

    Parameters
    ----------
    layer : its name.
    operator : ONNX operator.
    before, after : channels, features or hidden units.
    """

    layer: str
    operator: str
    before: int
    after: int


@dataclass(frozen=True)
class Report:
    """What pruning did.

    Parameters
    ----------
    source, target : the files.
    changes : figures before and after.
    layers : units kept of every layer with weights, in graph order.
    whole : (layer, why) of each layer that couldn't be pruned.
    check : outcome of the check: its status and one sentence.
    shapes : input shapes that were assumed, by name; empty if the model declares them all.
    plan : the file with the plan, if one was written.
    blocks : names of the residual branches that went as a whole.
    notes : anything else worth knowing.
    history : the epochs of fine-tuning, if there was any.
    """

    source: str
    target: str
    changes: tuple[Change, ...]
    layers: tuple[LayerChange, ...]
    whole: tuple[tuple[str, str], ...]
    check: tuple[str, str]
    shapes: dict[str, tuple[int, ...]]
    plan: str | None = None
    blocks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    history: History | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types."""
        return {
            "input": self.source,
            "output": self.target,
            "plan": self.plan,
            **changes_dict(self.changes),
            "layers": [
                {"layer": e.layer, "operator": e.operator, "before": e.before, "after": e.after}
                for e in self.layers
            ],
            "whole": [{"layer": layer, "reason": reason} for layer, reason in self.whole],
            "blocks": list(self.blocks),
            "check": {"status": self.check[0], "text": self.check[1]},
            "assumed_shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "notes": list(self.notes),
            "finetuning": None if self.history is None else self.history.as_dict(),
        }

    def __str__(self) -> str:
        parts = [f"{self.source} → {self.target}" + (f", {self.plan}" if self.plan else "")]
        parts.append(changes_table(self.changes))
        if self.blocks:
            parts.append("blocks removed\n" + indent(wrap(", ".join(self.blocks), width=WIDTH - 2)))
        if self.layers:
            cells = [
                (e.layer, e.operator, str(e.after), f"of {e.before}", _kept(e)) for e in self.layers
            ]
            parts.append("units kept\n" + indent(table(cells, align="llrlr")))
        if self.whole:
            parts.append("left whole\n" + indent(reasons(self.whole, width=WIDTH - 2)))
        if self.history is not None:
            parts.append("fine-tuning\n" + indent(str(self.history)))
        last = [f"check: {self.check[1]}"]
        if self.shapes:
            last.append(f"assumed input shapes: {shapes_text(self.shapes)} (--shape gives others)")
        parts.append("\n".join(wrap(line) for line in (*last, *self.notes)))
        return "\n\n".join(parts)


def make_report(
    small: Graph,
    saved: Saved,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    validate: Any = None,
    measure: bool = True,
    plan: str | None = None,
    history: History | None = None,
) -> Report:
    """Measure what pruning did.

    Parameters
    ----------
    small : a pruned graph, with its plan and source.
    saved : the file that it was saved in.
    inputs : what to measure the latency with; random ones if not given.
    validate : labelled data for the accuracy, as `onnxjl.data.labelled` takes them; None takes
        ``NAME.test.npz`` beside the source ``NAME.onnx``, if it is there.
    measure : whether latency and accuracy are measured at all.
    plan : the file that the plan was written to.
    history : the epochs of fine-tuning, if there was any.

    Returns
    -------
    Report
    """
    source, request = small.source, {} if small.plan is None else small.plan.request
    if source is None:
        raise UsageError("only a pruned graph has something to report")
    by_blocks = request.get("granularity") == "block"
    before = analyze(source, granularity=granularity_of(request))
    after = analyze(small)
    whole: Sequence[Whole] = ()
    if not by_blocks:
        _, whole = offer(
            before,
            allow_inexact=bool(request.get("allow_inexact")),
            ignore=request.get("ignore", ()),
        )
    gone = frozenset(() if small.plan is None else small.plan.stand_ins)
    blocks = tuple(b.name for b in find(before) if b.sum in gone) if gone else ()
    changes = count_changes(before, after)
    file_size = sum(path.stat().st_size for path in input_files(source) if path.is_file())
    if file_size:
        changes.append(Change("file", file_size, saved.size, "bytes"))
    notes: list[str] = []
    if measure:
        for measured in (_latency(source, saved, inputs), accuracy_change(source, small, validate)):
            if isinstance(measured, Change):
                changes.append(measured)
            elif measured:
                notes.append(measured)
    notes += about_supposed_sizes(before)
    notes += _advice(source, changes, recovered="recover" in request or history is not None)
    notes += _advice_on_widths(changes, request)
    notes += _on_measurements(request)
    kept = {entry.node: entry.outputs for entry in layer_costs(after)}
    return Report(
        source=str(source.path or "the model"),
        target=str(saved.path),
        changes=tuple(changes),
        layers=tuple(
            LayerChange(entry.layer, entry.operator, entry.outputs, kept.get(entry.node, 0))
            for entry in layer_costs(before)
        ),
        whole=tuple((entry.layer, entry.reason) for entry in whole),
        check=(saved.check.status, saved.check.text),
        shapes=assumed_shapes(source),
        plan=plan,
        blocks=blocks,
        notes=tuple(notes),
        history=history,
    )


def granularity_of(request: Mapping[str, Any]) -> Granularity:
    """What units a network is reported in that was pruned as asked: channels, where blocks went."""
    asked: str = request.get("granularity", "channel")
    return "channel" if asked == "block" else cast(Granularity, asked)


def count_changes(before: Structure, after: Structure) -> list[Change]:
    """What two networks have of multiply–accumulates for one sample, and of parameters."""
    return [
        Change(
            name,
            getattr(before, key).total(before.sizes),
            getattr(after, key).total(after.sizes),
            name,
        )
        for name, key in (("MACs", "macs"), ("parameters", "params"))
    ]


def assumed_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs that neither the model nor the user gave in full, by name."""
    try:
        shapes = sample_shapes(graph)
    except DataError:
        return {}
    return {
        value.name: shapes[value.name]
        for value in graph_inputs(graph)
        if value.name in shapes
        and value.name not in graph.shapes
        and not all(isinstance(size, int) for size in value.shape or [None])
    }


def about_supposed_sizes(structure: Structure) -> list[str]:
    """What is to be known of figures that depend on sizes which data decide."""
    sizes = structure.supposed_sizes
    if not sizes:
        return []
    some = ", ".join(map(str, sizes[:3])) + (", …" if len(sizes) > 3 else "")
    return [f"sizes that data decide are taken as {some}: MACs behind them are for so many"]


def _latency(source: Graph, saved: Saved, inputs: Mapping[str, np.ndarray] | None) -> Change | str:
    try:
        feeds = given_inputs(source, inputs) or random_inputs(source)
        before, after = measure_pair(source, saved.path, feeds)
    except (DataError, ModelError) as error:
        return f"latency was not measured: {error}"
    shapes = shapes_text({name: array.shape for name, array in feeds.items()})
    note = shorten(f"onnxruntime, 1 thread, {shapes}", 46)
    return Change("latency", before.median_ms, after.median_ms, "ms", note)


def accuracy_change(source: Graph, small: Graph, validate: Any) -> Change | str:
    """The accuracy of two networks, or why it wasn't measured; empty where there are no data.

    Parameters
    ----------
    source, small : the networks.
    validate : as `make_report` has it.
    """
    if validate is None:
        if source.path is None:
            return ""
        validate = source.path.with_name(f"{source.path.stem}.test.npz")
        if not validate.is_file():
            return ""
    note = "on the data given"
    try:
        if isinstance(validate, str | os.PathLike):
            arrays = read(validate)
            samples = len(arrays[TARGET]) if TARGET in arrays else 0
            note = shorten(f"{samples} samples of {Path(validate).name}", 46)
            validate = arrays
        before, after = accuracy(source, validate), accuracy(small, validate)
    except (DataError, ModelError) as error:
        return f"accuracy was not measured: {error}"
    return Change("accuracy", before, after, "fraction", note)


def _advice(source: Graph, changes: Sequence[Change], *, recovered: bool) -> list[str]:
    """What to do about accuracy that was lost, where data for it lie beside the model."""
    lost = any(change.name == "accuracy" and change.after < change.before for change in changes)
    if not lost or recovered or source.path is None:
        return []
    calibration = source.path.with_name(f"{source.path.stem}.calib.npz")
    if not calibration.is_file():
        return []
    return [f"--calibrate {calibration} recovers accuracy; it needs no labels and no training"]


def _advice_on_widths(changes: Sequence[Change], request: Mapping[str, Any]) -> list[str]:
    """What to do about a network that got no faster: onnxruntime is slow on uneven widths."""
    by_name = {change.name: change for change in changes}
    latency, macs = by_name.get("latency"), by_name.get("MACs")
    if latency is None or macs is None or request.get("round_to", 1) != 1:
        return []
    if "round_to_asked" in request or request.get("granularity") == "block":
        return []
    if latency.before < _SHORT or latency.after / latency.before <= _SLOWER * (macs.ratio or 1):
        return []
    return [
        "--round-to auto is often faster: onnxruntime is slow on uneven widths, and auto finds out "
        "which ones it is fast at"
    ]


def _on_measurements(request: Mapping[str, Any]) -> list[str]:
    """What was measured, or proven, while units were chosen."""
    notes = []
    if "round_to_asked" in request:
        notes.append(
            f"--round-to auto: widths are multiples of {request['round_to']}"
            if request["round_to"] > 1
            else "--round-to auto: any width; no coarser step meets the budget, or is faster"
        )
    if "predicted" in request:
        before, after = (request["predicted"][key] for key in ("before_ms", "after_ms"))
        notes.append(
            f"latency predicted: {quantity(after, 'ms')} of {quantity(before, 'ms')} "
            f"({after / before:.0%}), as measured while units were chosen"
        )
    if "importance" in request:
        found = request["importance"]
        notes.append(
            f"--scope optimal: {found['kept']:.5g} of the importance {found['of']:.5g} is kept; no "
            f"choice within the budgets keeps more than {found['bound']:.5g}"
        )
    return notes


def quantity(value: float, unit: str) -> str:
    """A figure with its unit, in three digits.

    Parameters
    ----------
    value : the figure.
    unit : as `Change` has it.

    Returns
    -------
    For instance ``1.82 G``, ``44.7 MB``, ``12.3 ms`` or ``97.8 %``.
    """
    if unit == "fraction":
        return f"{100 * value:.1f} %"
    if unit == "ms":
        return f"{_digits(value)} ms"
    suffix = "B" if unit == "bytes" else ""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 0.9995 * 10**power:
            return f"{_digits(value / 10**power)} {prefix}{suffix}"
    return f"{value:.0f} {suffix}".rstrip()


def table(rows: Sequence[Sequence[str]], *, align: str) -> str:
    """Rows with their columns aligned.

    Parameters
    ----------
    rows : cells, as many in each row as `align` has letters. First cells too long for the page
        are cut in the middle.
    align : ``l`` or ``r`` for each column.

    Returns
    -------
    One line for each row, without trailing blanks.
    """
    shown = [
        (shorten(printable(row[0]), _NAME_WIDTH), *(printable(cell) for cell in row[1:]))
        for row in rows
    ]
    widths = [max((len(cell) for cell in column), default=0) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        cells = (
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def reasons(pairs: Iterable[tuple[str, str]], *, width: int = WIDTH, what: str = "layers") -> str:
    """Names under the reason that they share.

    Parameters
    ----------
    pairs : (name, reason).
    width : columns.
    what : of what they are the names.

    Returns
    -------
    A paragraph for each reason, in order of appearance.
    """
    names: dict[str, list[str]] = {}
    for name, reason in pairs:
        names.setdefault(reason, []).append(name)
    paragraphs = []
    for reason, members in names.items():
        count = f" ({len(members)} {what})" if len(members) > 1 else ""
        listed = ", ".join(shorten(printable(name), width - 4) for name in members)
        paragraphs.append(wrap(f"{reason}{count}: {listed}", width=width))
    return "\n".join(paragraphs)


def shorten(text: str, width: int) -> str:
    """Text of at most `width` characters; the middle goes, since names differ at their ends."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"


def wrap(text: str, *, width: int = WIDTH) -> str:
    """Text in lines of at most `width` columns; words such as paths are never cut.

    A no-break space is a space that doesn't end a line.
    """
    lines = textwrap.fill(
        printable(text, lines=True),
        width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines.replace("\u00a0", " ")


def indent(text: str) -> str:
    """Text moved right by two columns."""
    return textwrap.indent(text, "  ")


def shapes_text(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Shapes as ``x 1×3×224×224``."""
    return ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in shapes.items())


def changes_dict(changes: Iterable[Change]) -> dict[str, dict[str, Any]]:
    """Figures before and after as JSON's types, by name."""
    return {
        change.name: {
            "before": change.before,
            "after": change.after,
            "unit": change.unit,
            "note": change.note,
        }
        for change in changes
    }


def changes_table(changes: Iterable[Change]) -> str:
    """Figures before and after, a line each."""
    return table([_change_cells(change) for change in changes], align="lrrrl")


def _change_cells(change: Change) -> tuple[str, str, str, str, str]:
    share = "" if change.ratio is None or change.unit == "fraction" else f"{change.ratio:.0%}"
    return (
        change.name,
        quantity(change.before, change.unit),
        f"→ {quantity(change.after, change.unit)}",
        share.replace("%", " %"),
        f"({change.note})" if change.note else "",
    )


def _kept(change: LayerChange) -> str:
    return f"{change.after / change.before:.0%}".replace("%", " %") if change.before else ""


def _digits(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
