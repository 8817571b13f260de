"""ONNX's own backend tests through Flux: one command runs them all and writes the verdicts.

``python tests/backend_suite.py`` takes the whole suite and rewrites ``backend_verdicts.json``;
``--only PATTERN`` takes a part and prints what doesn't pass. All tests share one process, whose
Julia interprets what isn't compiled yet: arrays are tiny and every other test is the first of its
kind, so that compilation would take six times as long as all the rest. Where arrays are larger (the
tests from PyTorch, real networks, losses), tests have a process of their own, and Julia's compiler.
A test's verdict is

- ``pass``: outputs agree, by ONNX's own tolerance, shape and element type;
- ``unsupported``: `UnsupportedOperator` was raised, and says why;
- ``wrong``: it ran, and outputs differ;
- ``error``: anything else was raised.

Where it passes, the network is exported again, and the file judged the same way in onnxruntime, or
in onnx.reference where onnxruntime fails the original test too. Node tests that feed what usually
is a weight run once more with all inputs but the first as constants: so layers of Flux's come in.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from onnx.reference import ReferenceEvaluator

from onnxjl import UnsupportedOperator, backend
from onnxjl.flux import julia
from onnxjl.serialize import write

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
LARGE = r"test_(sce|nllloss)_"
"""The node tests whose arrays are large."""

VERDICTS = Path(__file__).with_name("backend_verdicts.json")
EXPANDED = "_expanded"

Arrays = list[Any]
Constants = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One of ONNX's tests.

    Parameters
    ----------
    kind : one of `KINDS`.
    source : the test as ONNX has it.
    """

    kind: str
    source: TestCase

    @property
    def name(self) -> str:
        """The test's name, which is its own among all kinds."""
        return str(self.source.name)

    @property
    def large(self) -> bool:
        """Whether to compile takes less time than to interpret."""
        return self.kind not in ("node", "simple") or bool(re.match(LARGE, self.name))

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The network."""
        if self.source.model is not None:
            return self.source.model
        return onnx.load(self._path)

    @property
    def _path(self) -> Path:
        if self.source.model_dir is not None:
            return Path(self.source.model_dir) / "model.onnx"
        return Path(onnx.__file__).parent / str(self.source.url).removeprefix("onnx/")

    @property
    def fed(self) -> list[onnx.ValueInfoProto]:
        """The inputs that a caller gives."""
        known = {tensor.name for tensor in self.model.graph.initializer}
        return [value for value in self.model.graph.input if value.name not in known]

    def data(self) -> list[tuple[Arrays, Arrays]]:
        """Inputs and expected outputs, once or more."""
        if self.source.model is not None:
            return [([*map(_array, i)], [*map(_array, o)]) for i, o in self.source.data_sets]
        graph = self.model.graph
        if self.source.model_dir is None:  # A light model: weights are made up as it runs.
            inputs = [Runner.generate_dummy_data(x, seed=0, random=False) for x in self.fed]
            stem = self._path.with_suffix("")
            return [
                (
                    inputs,
                    [
                        _read(stem.with_name(f"{stem.name}_output_{i}.pb"), value.type)
                        for i, value in enumerate(graph.output)
                    ],
                )
            ]
        sets = []
        for folder in sorted(self._path.parent.glob("test_data_set*")):
            inputs = len([*folder.glob("input_*.pb")])
            outputs = len([*folder.glob("output_*.pb")])
            sets.append(
                (
                    [_read(folder / f"input_{i}.pb", graph.input[i].type) for i in range(inputs)],
                    [
                        _read(folder / f"output_{i}.pb", graph.output[i].type)
                        for i in range(outputs)
                    ],
                )
            )
        return sets

    def constants(self) -> Constants:
        """The inputs after the first that a node test can have as constants, by name."""
        sets = self.data()
        if self.kind != "node" or len(sets) != 1 or self.model.ir_version < 4:
            return {}
        named = [*zip(self.fed, sets[0][0], strict=True)]
        return {
            value.name: x
            for value, x in named[1:]
            if isinstance(x, np.ndarray) and x.dtype.kind in "biuf" and x.dtype.isbuiltin == 1
        }


@dataclass
class Verdict:
    """What became of a test.

    Parameters
    ----------
    kind : the test's, of `KINDS`.
    verdict : ``pass``, ``unsupported``, ``wrong`` or ``error``.
    reason : why it isn't a pass.
    exported : ``pass``, or what is wrong with the exported network. Empty where the test didn't
        pass itself.
    engine : what judged the exported network: ``onnxruntime``, or ``reference`` where that fails
        the original.
    baked : ``pass``, or what is wrong where all inputs but the first are constants, before export
        and after. Empty where none can be.
    operators : the operators in it, with their domains.
    layers : ``operator: layer`` for nodes that became layers rather than functions.
    seconds : how long it took.
    """

    kind: str
    verdict: str
    reason: str = ""
    exported: str = ""
    engine: str = ""
    baked: str = ""
    operators: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    seconds: float = 0.0


def cases(kinds: Sequence[str] = KINDS) -> Iterator[Case]:
    """Yield ONNX's tests in a fixed order; those that need a download are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in kinds:
            for source in sorted(load_model_tests(kind=kind), key=lambda case: str(case.name)):
                here = source.model is not None or source.model_dir is not None
                if here or "/data/light/" in str(source.url):
                    yield Case(kind, source)


def judge(case: Case) -> Verdict:
    """Run a test: as it is, exported, and with constants where its node has inputs for weights."""
    begin = time.perf_counter()
    verdict, model = _judge(case, {})
    verdict.operators = sorted(operators(case.model.graph))
    layers = set()
    if model is not None:
        verdict.exported = _judge_export(case, model, {})
        verdict.engine = "onnxruntime" if runs_in_onnxruntime(case) else "reference"
        layers |= _layers(model)
    if constants := case.constants():
        baked, model = _judge(case, constants)
        verdict.baked = baked.verdict
        if model is not None:
            verdict.baked = _judge_export(case, model, constants)
            layers |= _layers(model)
        elif baked.reason != verdict.reason:
            verdict.baked = f"{baked.verdict}: {baked.reason}"
    verdict.layers = sorted(layers)
    verdict.seconds = round(time.perf_counter() - begin, 2)
    return verdict


def _judge(case: Case, constants: Constants) -> tuple[Verdict, backend.FluxRep | None]:
    try:
        rep = backend.prepare(case.model, bake=constants)
        for inputs, expected in case.data():
            found = rep.run(_without(case, inputs, constants))
            try:
                _compare(case, expected, found)
            except AssertionError as error:
                return Verdict(case.kind, "wrong", _line(error)), None
        return Verdict(case.kind, "pass"), rep
    except UnsupportedOperator as error:
        return Verdict(case.kind, "unsupported", _line(error)), None
    except Exception as error:
        return Verdict(case.kind, "error", f"{type(error).__name__}: {_line(error)}"), None


def _judge_export(case: Case, rep: backend.FluxRep, constants: Constants) -> str:
    try:
        file = io.BytesIO()
        write(rep.model.to_graph(), file)
        onnx.checker.check_model(file.getvalue())
        engine: Any = _session if runs_in_onnxruntime(case) else ReferenceEvaluator
        _judge_elsewhere(engine, file.getvalue(), case, constants)
        return "pass"
    except Exception as error:
        return f"{type(error).__name__}: {_line(error)}"


def runs_in_onnxruntime(case: Case) -> bool:
    """Return whether onnxruntime passes a test."""
    try:
        _judge_elsewhere(_session, case.model.SerializeToString(), case, {})
    except Exception:
        return False
    return True


def _judge_elsewhere(
    engine: Callable[[bytes], Any], data: bytes, case: Case, constants: Constants
) -> None:
    """Raise an error unless another engine gives what is expected."""
    session = engine(data)
    for inputs, expected in case.data():
        _compare(case, expected, session.run(None, _without(case, inputs, constants)))


def _without(case: Case, inputs: Arrays, constants: Constants) -> dict[str, Any]:
    """The inputs by name but for those that are constants."""
    named = {v.name: x for v, x in zip(case.fed, inputs, strict=True)}
    return {name: x for name, x in named.items() if name not in constants}


def _layers(rep: backend.FluxRep) -> set[str]:
    rows = [[str(x) for x in row] for row in julia().kinds(rep.model.julia)]
    named = [(f"{domain}::{name}" if domain else name, kind) for domain, name, kind in rows]
    return {f"{name}: {kind}" for name, kind in named if kind != "function"}


def _session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _compare(case: Case, expected: Arrays, found: Sequence[Any]) -> None:
    assert len(expected) == len(found), f"expected {len(expected)} values, came {len(found)}"
    for wanted, x in zip(expected, found, strict=True):
        if isinstance(wanted, list):  # ONNX's runner takes apart the arrays of a sequence, too.
            assert isinstance(x, list), f"expected a sequence, came a {type(x).__name__}"
            _compare(case, wanted, x)
        else:
            rtol, atol = case.source.rtol, case.source.atol
            Runner.assert_similar_outputs([wanted], [np.asarray(x)], rtol=rtol, atol=atol)


def operators(graph: onnx.GraphProto) -> set[str]:
    """Return the operators of a graph and of those within it, as ``domain::Operator``."""
    found = set()
    for node in graph.node:
        domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}::"
        found.add(domain + node.op_type)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= operators(attribute.g)
    return found


def _array(x: Any) -> Any:
    if isinstance(x, onnx.TensorProto):
        return numpy_helper.to_array(x)
    return np.asarray(x) if isinstance(x, np.generic) else x


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    data = path.read_bytes()
    match kind.WhichOneof("value"):
        case "sequence_type":
            return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
        case "optional_type":
            return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
        case _:
            return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def report(verdicts: Mapping[str, Verdict]) -> str:
    """Return the counts as a table."""
    names = ("pass", "unsupported", "wrong", "error")
    lines = [
        f"{'':24}{'all':>8}" + "".join(f"{n:>13}" for n in names) + f"{'exported':>11}{'baked':>8}"
    ]
    groups = {kind: [n for n, v in verdicts.items() if v.kind == kind] for kind in KINDS}
    groups["expanded"] = [n for n in groups["node"] if EXPANDED in n]
    groups["together"] = list(verdicts)
    for group, members in groups.items():
        count = Counter(verdicts[name].verdict for name in members)
        exported = sum(verdicts[name].exported == "pass" for name in members)
        columns = "".join(f"{count[n]:13}" for n in names)
        baked = sum(verdicts[name].baked == "pass" for name in members)
        lines.append(f"{group:24}{len(members):8}{columns}{exported:11}{baked:8}")
    return "\n".join(lines)


def save(verdicts: Mapping[str, Verdict], path: Path) -> None:
    """Write verdicts, a test a line."""
    rows = []
    for name, verdict in verdicts.items():
        fields = {k: x for k, x in asdict(verdict).items() if x and k != "seconds"}
        rows.append(f"{json.dumps(name)}: {json.dumps(fields)}")
    body = ",\n".join(rows)
    head = f'"onnx": "{onnx.__version__}", "onnxruntime": "{onnxruntime.__version__}"'
    path.write_text(f'{{{head}, "tests": {{\n{body}\n}}}}\n')


def saved(path: Path = VERDICTS) -> dict[str, Verdict]:
    """Return verdicts that `save` wrote."""
    tests = json.loads(path.read_text())["tests"]
    return {name: Verdict(**fields) for name, fields in tests.items()}


def interpret() -> None:
    """Make Julia, which isn't running yet, interpret what isn't compiled."""
    # The package itself had better be compiled, by a Julia that compiles.
    subprocess.run([sys.executable, "-c", "from onnxjl.flux import julia; julia()"], check=True)
    os.environ["PYTHON_JULIACALL_COMPILE"] = "min"


def judge_all(chosen: Iterable[Case]) -> dict[str, Verdict]:
    """Run tests, and print those that don't pass."""
    verdicts = {}
    begin = time.perf_counter()
    for case in chosen:
        verdict = judge(case)
        verdicts[case.name] = verdict
        results = {"reason": verdict.reason} | {
            what: getattr(verdict, what) for what in ("exported", "baked")
        }
        bad = "; ".join(f"{k}: {v}" for k, v in results.items() if v not in ("", "pass"))
        if bad:
            print(f"{verdict.verdict:12}{verdict.seconds:6.2f}s {case.name}: {bad}", flush=True)
        elif len(verdicts) % 100 == 0:
            print(f"{len(verdicts)} tests, {time.perf_counter() - begin:.0f} s", flush=True)
    return verdicts


def judge_apart(arguments: Sequence[str]) -> dict[str, Verdict]:
    """Run the tests that are better compiled, in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "verdicts.json"
        environment = {k: v for k, v in os.environ.items() if k != "PYTHON_JULIACALL_COMPILE"}
        command = [sys.executable, "-u", __file__, *arguments, "--compiled", "--out", str(out)]
        subprocess.run(command, env=environment)
        return saved(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite, or a part of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="PATTERN", help="tests whose name has this in it")
    parser.add_argument("--from", dest="listed", metavar="FILE", help="tests named in a file")
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument(
        "--compiled", action="store_true", help="only those that are compiled, in this process"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="where the verdicts go")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    begin = time.perf_counter()
    names = None if options.listed is None else set(Path(options.listed).read_text().split())
    chosen = [
        case
        for case in cases(options.kind or KINDS)
        if re.search(options.only or "", case.name) and (names is None or case.name in names)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options.compiled:
            verdicts = judge_all(case for case in chosen if case.large)
        else:
            interpret()
            verdicts = judge_all(case for case in chosen if not case.large)
            if any(case.large for case in chosen):
                verdicts |= judge_apart(given)
    verdicts = {case.name: verdicts[case.name] for case in chosen if case.name in verdicts}
    print(report(verdicts))
    print(f"{len(verdicts)} tests in {time.perf_counter() - begin:.0f} s")
    whole = not (options.only or options.listed or options.kind)
    if out := options.out or (VERDICTS if whole else None):
        save(verdicts, out)
    return int(any(verdict.verdict in ("wrong", "error") for verdict in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
