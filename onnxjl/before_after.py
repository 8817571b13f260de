"""Before and after: two networks measured beside one another, to be shown as a page."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import onnxjl
from onnxjl.check import compare
from onnxjl.comparison import Comparison
from onnxjl.data import read
from onnxjl.errors import DataError, ModelError, OnnxjlError, PlanError
from onnxjl.flux import FluxModel
from onnxjl.graph import Graph
from onnxjl.inputs import random_inputs
from onnxjl.latency import Latency, measure_pair
from onnxjl.load import Source, load
from onnxjl.normalize import normalize
from onnxjl.pairing import LayerPair, pair_layers
from onnxjl.plan import Plan
from onnxjl.progress import Progress
from onnxjl.report import (
    Change,
    about_supposed_sizes,
    accuracy_change,
    assumed_shapes,
    changes_table,
    count_changes,
    granularity_of,
    shapes_text,
    wrap,
)
from onnxjl.save import input_files, save_text
from onnxjl.structure import LayerCost, Structure, analyze, layer_costs
from onnxjl.structure.groups import offer
from onnxjl.widths import runtime

PLAN_SUFFIX = ".plan.json"
"""Where the plan of ``NAME.onnx`` is looked for: beside it, as ``NAME`` with this at its end."""


@dataclass(frozen=True)
class BeforeAfter:
    """Two networks beside one another.

    Parameters
    ----------
    before, after : names of their files, without folders.
    changes : figures before and after: MACs, parameters, file, latency, accuracy, as far as known.
    latency : of each, with its spread, if it was measured.
    layers : the layers of both.
    whole : (layer, why) of each layer that can't be pruned.
    comparison : how far the outputs are apart, where both could be run.
    inputs : what they were run on, in words.
    request : what the plan was asked for; None where there is no plan.
    fingerprints : SHA-256 of either network, normalized: structure and weights.
    shapes : input shapes that were assumed, by name.
    versions : what measured: name -> version or number.
    commands : what makes this page, and the smaller network, again; empty where a network is in no
        file.
    notes : anything else worth knowing.
    """

    before: str
    after: str
    changes: tuple[Change, ...]
    latency: tuple[Latency, Latency] | None
    layers: tuple[LayerPair, ...]
    whole: tuple[tuple[str, str], ...]
    comparison: Comparison | None
    inputs: str
    request: Mapping[str, Any] | None
    fingerprints: tuple[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    versions: Mapping[str, str]
    commands: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def html(self) -> str:
        """Return the page: HTML that fetches nothing, in which names of the model are text only."""
        from onnxjl.page import page

        return page(self)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the page to a file, which is complete before it takes its name.

        Parameters
        ----------
        path : where to. Its folder must exist.
        force : whether an existing file may be replaced.

        Returns
        -------
        The file.

        Raises
        ------
        OutputError : the file can't be written, or exists.
        """
        return save_text(self.html(), path, force=force)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON's types."""
        found = self.comparison
        return {
            "before": self.before,
            "after": self.after,
            **{
                change.name: {
                    "before": change.before,
                    "after": change.after,
                    "unit": change.unit,
                    "note": change.note,
                }
                for change in self.changes
            },
            "spread": None
            if self.latency is None
            else [
                {"runs": each.runs, "median_ms": each.median_ms, "quartiles_ms": each.quartiles_ms}
                for each in self.latency
            ],
            "outputs": None
            if found is None
            else [
                {
                    "name": output.name,
                    "equal": output.equal(),
                    "difference": output.difference if np.isfinite(output.difference) else None,
                    "problem": output.problem,
                }
                for output in found.outputs
            ],
            "inputs": self.inputs,
            "layers": [
                {
                    "layer": pair.either.layer,
                    "operator": pair.either.operator,
                    "paired_by": pair.by,
                    "before": _cost(pair.before),
                    "after": _cost(pair.after),
                }
                for pair in self.layers
            ],
            "whole": [{"layer": layer, "reason": reason} for layer, reason in self.whole],
            "request": None if self.request is None else dict(self.request),
            "fingerprints": {"before": self.fingerprints[0], "after": self.fingerprints[1]},
            "assumed_shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "versions": dict(self.versions),
            "commands": list(self.commands),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [changes_table(self.changes)] if self.changes else []
        if self.comparison is not None:
            lines.append(f"outputs     relative difference {self.comparison.difference:.2g}")
        return "\n".join([*lines, *(wrap(note) for note in self.notes)])

    def __repr__(self) -> str:
        figures = ", ".join(
            f"{change.name} {change.ratio:.0%}" for change in self.changes if change.ratio
        )
        return f"BeforeAfter({self.before!r} → {self.after!r}, {figures or 'nothing measured'})"


def report(
    before: Source | FluxModel,
    after: Source | FluxModel,
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    inputs: Mapping[str, np.ndarray] | str | os.PathLike[str] | None = None,
    validate: Any = None,
    measure: bool = True,
    seed: int = 0,
) -> BeforeAfter:
    """Measure two networks beside one another, to be saved as a page of HTML.

    Parameters
    ----------
    before, after : a network and what became of it; whatever `load` takes, or Flux models.
    plan : the plan that led from one to the other, or its file; by default the pruned graph's own,
        or ``NAME.plan.json`` beside ``NAME.onnx``. It says what was asked for.
    inputs : one array for each input, or an ``.npz`` file, to run both on; random ones if not
        given.
    validate : labelled samples for the accuracy, see `onnxjl.data`; by default ``NAME.test.npz``
        beside the first network's ``NAME.onnx``, if it is there.
    measure : whether latency and accuracy are measured.
    seed : of random inputs.

    Returns
    -------
    BeforeAfter
        Its `save` writes the page. What can't be measured is said in its `notes`.

    Raises
    ------
    ModelError : a network can't be read.
    DataError : a file of data can't be read.
    PlanError : the plan that is given is another network's.

    Examples
    --------
    >>> onnxjl.report("net.onnx", "small.onnx").save("report.html")
    """
    # What is wrong with data is told before the long work begins.
    if isinstance(validate, str | os.PathLike):
        read(validate)
    given = read(inputs) if isinstance(inputs, str | os.PathLike) else inputs
    with Progress("reporting", total=5) as bar:
        bar.step("reading")
        first, second = (_graph(each) for each in (before, after))
        names = _name(first, "the original"), _name(second, "the pruned network")
        notes: list[str] = []
        normal = [normalize(each) for each in (first, second)]
        fingerprints = normal[0].fingerprint, normal[1].fingerprint
        found, plan_file = _plan(plan, second, normal, names, notes)
        request = None if found is None else found.request
        bar.step("analysis")
        changes, pairs, whole = _structure(normal, names, request or {}, notes)
        size = [sum(p.stat().st_size for p in _files(g) if p.is_file()) for g in (first, second)]
        if all(size):
            changes.append(Change("file", size[0], size[1], "bytes"))
        bar.step("comparing outputs")
        told = _file_name(inputs) or "those given"
        comparison, latency = None, None
        try:
            if given is None:
                told = f"random, seed {seed}"
                given = random_inputs(first, seed=seed)
            comparison = compare(first, second, inputs=given)
        except (DataError, ModelError) as error:
            notes.append(f"outputs were not compared: {error}")
        else:
            told += f", {shapes_text(comparison.inputs)}" if comparison.inputs else ""
        if measure:
            bar.step("latency")
            if comparison is not None and given is not None:
                try:
                    latency = measure_pair(first, second, given)
                except ModelError as error:
                    notes.append(f"latency was not measured: {error}")
                else:
                    runs = f"median of {latency[0].runs} runs each, by turns, 1 thread"
                    both = latency[0].median_ms, latency[1].median_ms
                    changes.append(Change("latency", *both, "ms", runs))
            bar.step("accuracy")
            accuracy = accuracy_change(first, second, validate)
            if isinstance(accuracy, Change):
                changes.append(accuracy)
            elif accuracy:
                notes.append(accuracy)
    files = {
        "--plan": plan_file,
        "--inputs": _file_name(inputs),
        "--validate": _file_name(validate),
    }
    return BeforeAfter(
        before=names[0],
        after=names[1],
        changes=tuple(changes),
        latency=latency,
        layers=pairs,
        whole=whole,
        comparison=comparison,
        inputs=told,
        request=request,
        fingerprints=fingerprints,
        shapes=assumed_shapes(normal[0]),
        versions=_versions(),
        commands=_commands((first, second), files, seed, measure),
        notes=tuple(_without_folders(note, first, second) for note in notes),
    )


def _without_folders(note: str, *graphs: Graph) -> str:
    """A note that names files without the folder of the networks, where data lie too."""
    for graph in graphs:
        if graph.path is not None and graph.path.parent.name:
            note = note.replace(f"{graph.path.parent}{os.sep}", "")
    return note


def _graph(model: Source | FluxModel) -> Graph:
    # Layers may have been trained since they were read: they are in no file.
    return replace(model.to_graph(), path=None) if isinstance(model, FluxModel) else load(model)


def _name(graph: Graph, otherwise: str) -> str:
    """The name of the file that holds a graph; a pruned graph is in none yet."""
    return otherwise if graph.path is None or graph.plan is not None else graph.path.name


def _files(graph: Graph) -> set[Path]:
    return input_files(graph) if graph.plan is None else set()


def _file_name(value: Any) -> str | None:
    return Path(value).name if isinstance(value, str | os.PathLike) else None


def _plan(
    given: Plan | str | os.PathLike[str] | None,
    after: Graph,
    normal: list[Graph],
    names: tuple[str, str],
    notes: list[str],
) -> tuple[Plan | None, str | None]:
    """The plan, if it is that of these two networks, and the name of its file."""
    file: Path | None = None
    plan: Plan | None = None
    if isinstance(given, Plan):
        plan = given
    elif given is not None:
        file = Path(given)
    elif after.plan is not None:
        plan = after.plan
    elif after.path is not None:
        beside = after.path.with_name(f"{after.path.stem}{PLAN_SUFFIX}")
        file = beside if beside.is_file() else None
    try:
        if file is not None:
            plan = Plan.load(file)
        if plan is None:
            return None, None
        _check_plan(plan, normal, names)
    except PlanError as error:
        if given is not None:
            raise
        said = str(error).replace(f"{file}: ", "")
        notes.append(f"{'the plan' if file is None else file.name} was passed over: {said}")
        return None, None
    return plan, None if file is None else file.name


def _check_plan(plan: Plan, normal: list[Graph], names: tuple[str, str]) -> None:
    """Raise a PlanError for a plan that doesn't lead from one network to the other."""
    expected = normal[0].fingerprint
    if plan.source["sha256"] != expected:
        raise PlanError(
            f"the plan was made for another network than {names[0]}: its source's fingerprint is "
            f"{str(plan.source['sha256'])[:12]}…, this network's {expected[:12]}…"
        )
    weights = normal[1].model.graph.initializers
    for name, axes in plan.kept.items():
        # Another tool may have renamed or merged weights.
        tensor = weights[name].const_value if name in weights else None
        for axis, kept in axes.items():
            size = None if tensor is None else _size(tensor, axis)
            if size is not None and size != len(kept):
                raise PlanError(
                    f"the plan isn't that of {names[1]}: it keeps {len(kept)} indices of "
                    f"'{name}' on axis {axis}, which has {size} there"
                )


def _size(tensor: Any, axis: int) -> int | None:
    shape = tensor.shape.numpy()
    return int(shape[axis]) if axis < len(shape) else None


def _structure(
    normal: list[Graph], names: tuple[str, str], request: Mapping[str, Any], notes: list[str]
) -> tuple[list[Change], tuple[LayerPair, ...], tuple[tuple[str, str], ...]]:
    """What both cost, their layers, and what is left whole."""
    try:
        before = analyze(normal[0], granularity=granularity_of(request))
        after = analyze(normal[1])
    except OnnxjlError as error:
        notes.append(f"layers and MACs are unknown: {error}")
        return [], (), ()
    pairs = pair_layers(layer_costs(before), layer_costs(after))
    notes += about_supposed_sizes(before)
    notes += _on_pairs(pairs, names)
    return count_changes(before, after), pairs, _whole(before, pairs, request)


def _whole(
    before: Structure, pairs: tuple[LayerPair, ...], request: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """The layers that stay whole, and why.

    Without a plan nothing is known of granularity and the like: what shrank could.
    """
    inexact = bool(request.get("allow_inexact"))
    # Patterns may be of blocks, too, which aren't groups.
    ignore = () if request.get("granularity") == "block" else request.get("ignore", ())
    _, whole = offer(before, allow_inexact=inexact, ignore=ignore)
    shrank = {pair.either.node for pair in pairs if pair.shrank}
    return tuple((entry.layer, entry.reason) for entry in whole if entry.node not in shrank)


def _on_pairs(pairs: tuple[LayerPair, ...], names: tuple[str, str]) -> list[str]:
    """What there is to know about how layers were paired."""
    counts = (
        (sum(pair.by == "place" for pair in pairs), "paired by their place: names differ"),
        (sum(pair.after is None for pair in pairs), f"only in {names[0]}"),
        (sum(pair.before is None for pair in pairs), f"only in {names[1]}"),
    )
    return [
        f"{count} {'layer is' if count == 1 else 'layers are'} {what}"
        for count, what in counts
        if count
    ]


def _versions() -> dict[str, str]:
    """What measured. Neither the machine's name nor its folders are anybody's business."""
    version, _, processor = runtime().removeprefix("onnxruntime ").partition(", ")
    return {
        "onnxjl": onnxjl.__version__,
        "onnxruntime": version,
        "NumPy": np.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "processors": str(os.cpu_count() or "unknown"),
    }


def _commands(
    graphs: tuple[Graph, Graph],
    files: Mapping[str, str | None],
    seed: int,
    measure: bool,
) -> tuple[str, ...]:
    """Command lines, with files' names but not their folders; none where a network isn't a file."""
    names = [_name(graph, "") for graph in graphs]
    if not all(names):
        return ()
    words = ["onnxjl", "report", *names]
    for option, name in files.items():
        words += [] if name is None else [option, name]
    for name, shape in graphs[0].shapes.items():
        words += ["--shape", f"{name}={','.join(map(str, shape))}"]
    words += ["--seed", str(seed)] if seed else []
    words += [] if measure else ["--no-measure"]
    commands = [shlex.join([*words, "-o", "report.html"])]
    plan = files["--plan"]
    if plan is not None:
        commands.insert(0, shlex.join(["onnxjl", "apply", names[0], plan, "-o", names[1]]))
    return tuple(commands)


def _cost(layer: LayerCost | None) -> dict[str, Any] | None:
    if layer is None:
        return None
    return {
        "layer": layer.layer,
        "units": layer.outputs,
        "macs": layer.macs,
        "params": layer.params,
    }
