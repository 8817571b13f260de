"""The commands of the command line: each takes its options and returns its exit status."""

from __future__ import annotations

import json
import tomllib
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxjl import criteria, data
from onnxjl.before_after import report as reported
from onnxjl.check import compare as compared
from onnxjl.completion import script as completion_script
from onnxjl.criteria.blocks import get_for_blocks
from onnxjl.doctor import describe, diagnose
from onnxjl.errors import OnnxjlError, UsageError
from onnxjl.experiment import Experiment
from onnxjl.flux import FluxModel, is_julia, to_flux
from onnxjl.graph import Graph
from onnxjl.history import History
from onnxjl.inputs import graph_inputs
from onnxjl.load import load
from onnxjl.normalize import normalize as normalized
from onnxjl.own import function_of, is_julia_place
from onnxjl.plan import Plan
from onnxjl.plan import apply as applied
from onnxjl.printable import printable, printable_json
from onnxjl.progress import Progress
from onnxjl.prune import prune as pruned
from onnxjl.recovery import check_request
from onnxjl.report import (
    Report,
    about_supposed_sizes,
    assumed_shapes,
    indent,
    make_report,
    quantity,
    reasons,
    shapes_text,
    shorten,
    table,
    wrap,
)
from onnxjl.save import Saved, check_output, input_files, save, save_text
from onnxjl.sparsity import registry as sparsity
from onnxjl.sparsity import sparsify as sparsified
from onnxjl.sparsity.report import SparsityReport
from onnxjl.sparsity.report import make_report as make_sparsity_report
from onnxjl.structure import analyze, layer_costs
from onnxjl.structure import blocks as blocks_of
from onnxjl.structure import groups as groups_of
from onnxjl.structure.groups import Granularity

FINETUNING = {
    "optimiser": "adamw",
    "lr": None,
    "schedule": "constant",
    "batch_size": data.BATCH_SIZE,
    "distil": False,
    "checkpoint": None,
    "resume": False,
}
"""Options of fine-tuning, with their defaults."""


def info(options: Namespace) -> int:
    """Print what is in a model."""
    with Progress("reading", total=2) as bar:
        bar.step(options.model)
        graph = _load(options)
        bar.step("analysis")
        facts = _facts(graph)
    _print(options, facts, lambda: _facts_text(facts))
    return 0


def normalize(options: Namespace) -> int:
    """Write a model in the form that pruning works on."""
    inputs = _inputs(options)
    with Progress("normalizing", total=3) as bar:
        bar.step("reading")
        graph = _load_for(options)
        bar.step("rewriting")
        normal = normalized(graph, opset=options.opset)
        bar.step("saving")
        saved = _save(options, normal, inputs)
    before, after = (sum(1 for _ in each.model.graph) for each in (graph, normal))
    facts = {
        "input": options.model,
        "output": options.output,
        "nodes": {"before": before, "after": after},
        "opset": {"before": graph.opset, "after": normal.opset},
        "bytes": saved.size,
        "check": {"status": saved.check.status, "text": saved.check.text},
    }
    _print(
        options,
        facts,
        lambda: (
            f"{options.model} → {options.output}\n"
            f"nodes {before} → {after}, opset {graph.opset} → {normal.opset}, "
            f"{quantity(saved.size, 'bytes')}\n" + wrap(f"check: {saved.check.text}")
        ),
    )
    return 0


def groups(options: Namespace) -> int:
    """Print what can be removed together, and why not more."""
    with Progress("finding groups", total=2) as bar:
        bar.step("reading")
        graph = normalized(_load(options))
        bar.step("analysis")
        if options.granularity == "block":
            return _blocks(options, graph)
        found = groups_of(
            graph,
            granularity=options.granularity,
            allow_inexact=options.allow_inexact,
            ignore=options.ignore,
        )
    facts = {
        "input": options.model,
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "size": group.size,
                "exact": group.exact,
                "reason": group.reason,
                "layers": list(group.layers),
                "macs": group.macs,
                "params": group.params,
                "members": [
                    {"tensor": m.tensor, "axis": m.axis, "indices": m.indices.tolist()}
                    for m in group.members
                ],
            }
            for group in found
        ],
        "whole": [{"layer": whole.layer, "reason": whole.reason} for whole in found.whole],
        "assumed_shapes": _lists(assumed_shapes(graph)),
    }

    def text() -> str:
        units = sum(group.size for group in found)
        count = "1 group" if len(found) == 1 else f"{len(found)} groups"
        lines = [f"{options.model}: {count}, {units} units that can go"]
        if len(found):
            header = ("group", "units", "", "MACs each", "parameters each", "layers")
            rows = [
                (
                    group.name,
                    str(group.size),
                    group.kind + ("" if group.exact else ", inexact"),
                    quantity(group.macs, "MACs"),
                    quantity(group.params, "parameters"),
                    str(len(group.layers)),
                )
                for group in found
            ]
            lines.append(indent(table([header, *rows], align="lrlrrr")))
        if found.whole:
            lines += [
                "left whole",
                indent(reasons(((w.layer, w.reason) for w in found.whole), width=98)),
            ]
        lines += _assumed(graph, options.granularity)
        return "\n".join(lines)

    _print(options, facts, text)
    return 0


def _blocks(options: Namespace, graph: Graph) -> int:
    """Print what can be removed as a whole, and which sums end no block."""
    found = blocks_of(graph, ignore=options.ignore)
    facts = {
        "input": options.model,
        "blocks": [
            {
                "name": block.name,
                "kind": block.kind,
                "reason": block.reason,
                "projection": block.projection,
                "layers": list(block.layers),
                "nodes": [*block.nodes, block.sum],
                "macs": block.macs,
                "params": block.params,
            }
            for block in found
        ],
        "whole": [{"layer": whole.layer, "reason": whole.reason} for whole in found.whole],
        "assumed_shapes": _lists(assumed_shapes(graph)),
    }

    def text() -> str:
        count = "1 block" if len(found) == 1 else f"{len(found)} blocks"
        lines = [f"{options.model}: {count} that can go"]
        if len(found):
            header = ("block", "kind", "MACs", "parameters", "layers", "skipped by")
            rows = [
                (
                    block.name,
                    block.kind,
                    quantity(block.macs, "MACs"),
                    quantity(block.params, "parameters"),
                    str(len(block.layers)),
                    "" if block.projection is None else shorten(block.projection, 30),
                )
                for block in found
            ]
            lines.append(indent(table([header, *rows], align="llrrrl")))
        if found.whole:
            pairs = [(w.layer, w.reason) for w in found.whole]
            lines += ["other sums", indent(reasons(pairs, width=98, what="sums"))]
        return "\n".join([*lines, *_assumed(graph)])

    _print(options, facts, text)
    return 0


def prune(options: Namespace) -> int:
    """Make a model smaller."""
    amounts = _amounts(options.amount_for)
    # What is wrong with the request is told before the long work begins.
    if options.plan is not None:
        if Path(options.plan).resolve() == Path(options.output).resolve():
            raise UsageError("--plan and --output name the same file")
        check_output(options.plan, force=options.force, inputs=[Path(options.model)])
    _check_engine(options)
    inputs, validate = _inputs(options), _validation(options)
    samples = None if options.data is None else data.read(options.data)
    criterion = _criterion(options, samples)
    calibration = None if options.calibrate is None else data.read(options.calibrate)
    if options.recover is not None:
        check_request(options.recover, calibration)
    more = {} if options.normalization is None else {"normalization": options.normalization}
    flux = options.engine == "flux"
    with Progress("pruning", total=5 + flux + (options.finetune is not None)) as bar:
        network, loss = _network(options, bar)
        bar.step("choosing")
        small = pruned(
            network,
            amount=options.amount,
            macs=options.macs,
            params=options.params,
            bytes=options.bytes,
            latency=options.latency,
            criterion=criterion,
            scope=options.scope,
            aggregation=options.aggregation,
            ignore=options.ignore,
            amount_for=amounts,
            round_to=options.round_to,
            min_units=options.min_units,
            granularity=options.granularity,
            allow_inexact=options.allow_inexact,
            data=samples,
            inputs=inputs,
            seed=options.seed,
            recover=options.recover,
            calibration=calibration,
            loss=loss,
            **more,
        )
        history = _train(options, bar, small, network, samples, loss)
        bar.step("saving and checking")
        saved = _save(options, small, inputs)
        if options.plan is not None:
            assert small.plan is not None
            save_text(small.plan.to_json() + "\n", options.plan, force=options.force)
            options.written.append(options.plan)
        bar.step("measuring")
        report = make_report(
            small.to_graph() if isinstance(small, FluxModel) else small,
            saved,
            inputs=inputs,
            validate=validate,
            measure=options.measure,
            plan=options.plan,
            history=history,
        )
    return _report(options, report)


def _network(options: Namespace, bar: Progress) -> tuple[Graph | FluxModel, Any]:
    """The normalized network of the engine that is asked for, and the loss, which fits it."""
    bar.step("reading")
    graph = _load_for(options)
    bar.step("normalizing")
    graph = normalized(graph)
    network: Graph | FluxModel = graph
    if options.engine == "flux":
        bar.step("starting Julia")
        network = to_flux(graph)
    loss = None if options.loss is None else function_of(options.loss)
    if isinstance(network, FluxModel):
        network.check_loss(loss)
    return network, loss


def sparsify(options: Namespace) -> int:
    """Set single weights to zero."""
    _check_engine(options)
    inputs, validate = _inputs(options), _validation(options)
    samples = None if options.data is None else data.read(options.data)
    criterion = _weight_criterion(options, samples)
    flux = options.engine == "flux"
    with Progress("sparsifying", total=5 + flux + (options.finetune is not None)) as bar:
        network, loss = _network(options, bar)
        bar.step("choosing")
        sparse = sparsified(
            network,
            amount=options.amount,
            pattern=options.pattern,
            criterion=criterion,
            scope=options.scope,
            ignore=options.ignore,
            data=samples,
            seed=options.seed,
            loss=loss,
        )
        history = _train(options, bar, sparse, network, samples, loss)
        bar.step("saving and checking")
        saved = _save(options, sparse, inputs)
        bar.step("measuring")
        report = make_sparsity_report(
            sparse.to_graph() if isinstance(sparse, FluxModel) else sparse,
            saved,
            validate=validate,
            measure=options.measure,
            history=history,
        )
    return _report(options, report)


def _weight_criterion(options: Namespace, samples: Mapping[str, np.ndarray] | None) -> Any:
    """The criterion for single weights asked for, once it is clear that it has what it needs."""
    if is_julia_place(options.criterion):
        raise UsageError("a criterion for single weights is a function in Python: FILE.py:NAME")
    chosen = function_of(options.criterion)
    criterion = sparsity.get(chosen, gradients=options.engine == "flux")
    if criterion.needs_data and samples is None:
        raise UsageError(f"criterion '{criterion.name}' needs inputs; give some with --data")
    labels = options.finetune is not None or criterion.needs_labels
    if labels and samples is not None and data.TARGET not in samples:
        raise UsageError(f"{options.data} has no labels: an array '{data.TARGET}' is needed")
    return chosen


def _train(
    options: Namespace,
    bar: Progress,
    small: Graph | FluxModel,
    original: Graph | FluxModel,
    samples: Mapping[str, np.ndarray] | None,
    loss: Any,
) -> History | None:
    """Fine-tune a Flux model, if that was asked for."""
    if options.finetune is None or not isinstance(small, FluxModel):
        return None
    bar.step("fine-tuning")
    return small.finetune(
        samples,
        epochs=options.finetune,
        loss=loss,
        optimiser=options.optimiser,
        lr=options.lr,
        schedule=options.schedule,
        batch_size=options.batch_size,
        teacher=original if options.distil else None,
        checkpoint=options.checkpoint,
        resume=options.resume,
        seed=options.seed,
    )


def _check_engine(options: Namespace) -> None:
    """Raise a UsageError for options that the engine or one another lacks."""
    if options.finetune is None:
        for name, default in FINETUNING.items():
            if getattr(options, name) != default:
                raise UsageError(f"--{name.replace('_', '-')} is for --finetune EPOCHS")
    elif options.engine != "flux":
        raise UsageError("--finetune needs gradients: add --engine flux")
    elif options.data is None:
        raise UsageError("--finetune needs labelled samples: --data FILE.npz")
    elif options.finetune < 1:
        raise UsageError(f"--finetune {options.finetune}: at least 1 epoch is needed")
    if options.loss is not None and options.engine != "flux":
        raise UsageError("--loss is for gradients: add --engine flux")
    if options.resume and options.checkpoint is None:
        raise UsageError("--resume needs the --checkpoint FILE to go on from")


def _criterion(options: Namespace, samples: Mapping[str, np.ndarray] | None) -> Any:
    """The criterion asked for, once it is clear that it has what it needs."""
    flux = options.engine == "flux"
    if is_julia_place(options.criterion) and not flux:
        raise UsageError("a criterion in Julia needs the engine in Julia: add --engine flux")
    chosen = function_of(options.criterion)
    labels = options.finetune is not None
    if is_julia(chosen):
        # Without data it gets no gradients, and with data those of the loss.
        labels = labels or (samples is not None and options.loss is None)
    elif options.granularity == "block":
        of_blocks = get_for_blocks(chosen)
        if of_blocks.needs_data and samples is None:
            raise UsageError(f"criterion '{of_blocks.name}' needs inputs; give some with --data")
    else:
        criterion = criteria.get(chosen, gradients=flux)
        calibrated = options.calibrate is not None and not criterion.needs_gradient
        if criterion.needs_data and samples is None and not calibrated:
            raise UsageError(f"criterion '{criterion.name}' needs inputs; give some with --data")
        labels = labels or (criterion.needs_gradient and criterion.needs_data)
    if labels and samples is not None and data.TARGET not in samples:
        raise UsageError(f"{options.data} has no labels: an array '{data.TARGET}' is needed")
    return chosen


def apply(options: Namespace) -> int:
    """Remove what a plan says."""
    inputs, validate = _inputs(options), _validation(options)
    plan = Plan.load(options.plan)
    with Progress("applying", total=4) as bar:
        bar.step("reading")
        graph = normalized(_load_for(options, plan=options.plan))
        bar.step("cutting")
        small = applied(graph, plan)
        bar.step("saving and checking")
        saved = _save(options, small, inputs)
        bar.step("measuring")
        report = make_report(
            small, saved, inputs=inputs, validate=validate, measure=options.measure
        )
    return _report(options, report)


def compare(options: Namespace) -> int:
    """Print how far the outputs of two models are apart; 1 if they differ."""
    inputs = _inputs(options)
    with Progress("comparing"):
        if options.shape or options.allow_external:
            files: list[Any] = [
                load(each, shapes=_shapes(options.shape), allow_external=options.allow_external)
                for each in (options.a, options.b)
            ]
        else:
            files = [options.a, options.b]
        found = compared(*files, inputs=inputs, seed=options.seed, tolerance=options.tolerance)
    facts = {
        "a": options.a,
        "b": options.b,
        "equal": found.equal(),
        "difference": _finite(found.difference),
        "outputs": [
            {
                "name": output.name,
                "equal": output.equal(options.tolerance),
                "difference": _finite(output.difference),
                "problem": output.problem,
                "shapes": output.shapes,
                "dtypes": output.dtypes,
            }
            for output in found.outputs
        ],
        "inputs": _lists(found.inputs),
    }
    _print(
        options,
        facts,
        lambda: (
            f"{found}\ninputs: {'random, ' if inputs is None else ''}{shapes_text(found.inputs)}"
        ),
    )
    return 0 if found.equal() else 1


def report(options: Namespace) -> int:
    """Write a page that shows two models beside one another."""
    given = (options.a, options.b, options.plan, options.inputs, options.validate)
    files = {Path(name) for name in given if name is not None}
    check_output(options.output, force=options.force, inputs=files)
    shapes, folders = _shapes(options.shape), options.allow_external
    with Progress("reporting"):
        a, b = (
            load(each, shapes=shapes, allow_external=folders) for each in (options.a, options.b)
        )
        check_output(options.output, force=options.force, inputs=input_files(a) | input_files(b))
        found = reported(
            a,
            b,
            plan=options.plan,
            inputs=options.inputs,
            validate=options.validate,
            measure=options.measure,
            seed=options.seed,
        )
        found.save(options.output, force=options.force)
        options.written.append(options.output)
    facts = {**found.to_dict(), "a": options.a, "b": options.b, "output": options.output}
    _print(options, facts, lambda: f"{options.a} → {options.b}, {options.output}\n\n{found}")
    return 0


def experiment(options: Namespace) -> int:
    """Run an experiment, and print its rounds."""
    path = Path(options.file)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            text = json.dumps(tomllib.loads(text))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it isn't text"
        raise UsageError(f"{path}: can't be read: {reason}") from error
    except (ValueError, RecursionError) as error:  # Numbers too long, or lists too deep, as well.
        raise UsageError(f"{path}: isn't TOML: {error}") from error
    except TypeError as error:
        raise UsageError(f"{path}: isn't TOML that an experiment can hold: {error}") from error
    found = Experiment.from_json(text).run(options.output)
    options.written.append(options.output)
    _print(options, found.to_dict(), lambda: f"{found}\n{options.output}: networks and plans")
    return 0


def doctor(options: Namespace) -> int:
    """Print whether the Flux engine works, and what mends it if it doesn't."""
    with Progress("looking at Python and Julia"):
        diagnosis = diagnose()
    _print(options, diagnosis.facts(), lambda: describe(diagnosis))
    return 0 if diagnosis.works else 1


def completion(options: Namespace) -> int:
    """Print a script that makes a shell complete commands, options and files."""
    print(completion_script(options.shell))
    return 0


def _report(options: Namespace, report: Report | SparsityReport) -> int:
    """Print a report with the files' names as the user gave them."""
    report = replace(report, source=options.model, target=options.output)
    _print(options, report.to_dict(), lambda: str(report))
    return 0


def _load(options: Namespace) -> Graph:
    return load(options.model, shapes=_shapes(options.shape), allow_external=options.allow_external)


def _load_for(options: Namespace, **others: str) -> Graph:
    """Load the model, once it is clear that the output can be written."""
    inputs = {Path(options.model), *map(Path, others.values())}
    check_output(options.output, force=options.force, inputs=inputs)
    graph = _load(options)
    check_output(options.output, force=options.force, inputs=input_files(graph))
    return graph


def _save(
    options: Namespace, graph: Graph | FluxModel, inputs: Mapping[str, np.ndarray] | None
) -> Saved:
    saved = save(graph, options.output, force=options.force, check=options.check, inputs=inputs)
    options.written.append(options.output)
    return saved


def _inputs(options: Namespace) -> dict[str, np.ndarray] | None:
    return None if options.inputs is None else data.read(options.inputs)


def _validation(options: Namespace) -> Any:
    """The labelled data asked for, once it is clear that they can be read."""
    if options.validate is not None:
        data.read(options.validate)
    return options.validate


def _shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in texts:
        name, separator, sizes = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.split(",")) if sizes else ()
        except ValueError:
            shape = (-1,)
        if not separator or not name or any(size < 0 for size in shape):
            raise UsageError(f"--shape {text}: expected NAME=1,3,224,224")
        shapes[name] = shape
    return shapes


def _amounts(texts: Sequence[str]) -> dict[str, float]:
    amounts = {}
    for text in texts:
        pattern, _, amount = text.rpartition("=")
        try:
            amounts[pattern] = float(amount)
        except ValueError:
            pattern = ""
        if not pattern:
            raise UsageError(f"--amount-for {text}: expected PATTERN=FRACTION, as 'layer4.*=0.3'")
    return amounts


def _facts(graph: Graph) -> dict[str, Any]:
    """What `info` tells, as JSON's types."""
    model = graph.model
    tensors = [
        v.const_value for v in model.graph.initializers.values() if v.const_value is not None
    ]
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[_dtype(tensor.dtype)] += int(tensor.size)
    operators = Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in model.graph.all_nodes()
    )
    facts: dict[str, Any] = {
        "input": str(graph.path),
        "bytes": sum(path.stat().st_size for path in input_files(graph)),
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "ir_version": model.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        "functions": len(model.functions),
        "inputs": [_value(value) for value in graph_inputs(graph)],
        "outputs": [_value(value) for value in model.graph.outputs],
        "operators": dict(operators.most_common()),
        "tensors": len(tensors),
        "elements": dict(elements.most_common()),
        "assumed_shapes": _lists(assumed_shapes(graph)),
    }
    try:
        structure = analyze(normalized(graph))
        facts["macs"] = round(structure.macs.total(structure.sizes))
        facts["params"] = round(structure.params.total(structure.sizes))
        facts["layers"] = [
            {
                "layer": entry.layer,
                "node": entry.node,
                "operator": entry.operator,
                "units": entry.outputs,
                "macs": entry.macs,
                "params": entry.params,
            }
            for entry in layer_costs(structure)
        ]
        facts["notes"] = about_supposed_sizes(structure)
    except OnnxjlError as error:
        facts["unknown"] = str(error)
    return facts


def _facts_text(facts: dict[str, Any]) -> str:
    opsets = ", ".join(
        str(version) if domain == "ai.onnx" else f"{domain} {version}"
        for domain, version in facts["opsets"].items()
    )
    producer = f", written by {facts['producer']}" if facts["producer"] else ""
    size = quantity(facts["bytes"], "bytes")
    nodes = sum(facts["operators"].values())
    kinds = ", ".join(f"{count}\u00a0{name}" for name, count in facts["operators"].items())
    weights = ", ".join(f"{quantity(n, '')}\u00a0{name}" for name, n in facts["elements"].items())
    lines = [
        wrap(
            f"{facts['input']}: {size}, opset {opsets}, IR version {facts['ir_version']}{producer}"
        )
    ]
    for kind in ("inputs", "outputs"):
        rows = [
            (
                e["name"],
                e["type"],
                "×".join(map(str, e["shape"])) if e["shape"] is not None else "?",
            )
            for e in facts[kind]
        ]
        lines += [kind, indent(table(rows, align="lll"))]
    shapes = {name: tuple(shape) for name, shape in facts["assumed_shapes"].items()}
    if shapes:
        lines.append(wrap(f"counted with {shapes_text(shapes)} (--shape gives others)"))
    functions = f", {facts['functions']} functions" if facts["functions"] else ""
    lines += [wrap(f"{nodes} nodes{functions}: {kinds}")]
    lines += [wrap(f"{facts['tensors']} tensors with {weights or 'no'} elements")]
    if "unknown" in facts:
        return "\n".join([*lines, wrap(f"MACs unknown: {facts['unknown']}")])
    lines.append(
        f"{quantity(facts['macs'], 'MACs')} MACs for one sample, "
        f"{quantity(facts['params'], 'parameters')} parameters"
    )
    lines += map(wrap, facts["notes"])
    if facts["layers"]:
        header = ("layer", "operator", "units", "MACs", "parameters", "node")
        layers = [
            (
                entry["layer"],
                entry["operator"],
                str(entry["units"]),
                quantity(entry["macs"], "MACs"),
                quantity(entry["params"], "parameters"),
                "" if entry["node"] == entry["layer"] else shorten(entry["node"], 30),
            )
            for entry in facts["layers"]
        ]
        lines.append(table([header, *layers], align="llrrrl"))
    return "\n".join(lines)


def _value(value: ir.Value) -> dict[str, Any]:
    shape = None
    if value.shape is not None:
        shape = [size if isinstance(size, int) else size.value or "?" for size in value.shape]
    kind = _dtype(value.dtype) if isinstance(value.type, ir.TensorType) else str(value.type)
    return {"name": value.name, "type": kind, "shape": shape}


def _dtype(dtype: ir.DataType | None) -> str:
    return "unknown" if dtype is None else dtype.name.lower()


def _assumed(graph: Graph, granularity: Granularity = "channel") -> list[str]:
    shapes = assumed_shapes(graph)
    lines = [f"counted with {shapes_text(shapes)} (--shape gives others)"] if shapes else []
    structure = analyze(graph, granularity=granularity)  # found already, and remembered
    return [wrap(line) for line in (*lines, *about_supposed_sizes(structure))]


def _finite(number: float) -> float | None:
    """A number as JSON has it: there is no infinity."""
    return number if np.isfinite(number) else None


def _lists(shapes: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in shapes.items()}


def _print(options: Namespace, facts: Mapping[str, Any], text: Callable[[], str]) -> None:
    if options.json:
        print(printable_json(json.dumps(facts, indent=1, ensure_ascii=False)))
    else:
        print(printable(text(), lines=True))
