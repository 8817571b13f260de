"""Count how many of ONNX's own backend tests others pass.

    python benchmarks/backends.py [ENGINE …]

Engines are `onnx.reference`, `onnxruntime`, `onnx2torch`, and `onnx2torch, any version`: the same,
but an operator of a version that it hasn't is converted as the newest older one. Results go to
`backends.json`. Needs onnxjl's test cases (`tests/backend_suite.py`), and for the last two PyTorch,
torchvision and onnx2torch. Tests run in a process of their own, which is started anew when one
crashes it or takes more than a minute.

What onnxjl passes stands in `tests/backend_verdicts.json`.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import unittest
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "backends.json"
TIMEOUT = 60  # seconds

sys.path.insert(0, str(FOLDER.parent / "tests"))

Run = Callable[[Any, dict[str, Any]], list[Any]]


def reference(model: Any, inputs: dict[str, Any]) -> list[Any]:
    """Run a model in onnx.reference."""
    from onnx.reference import ReferenceEvaluator

    return list(ReferenceEvaluator(model).run(None, inputs))


def onnxruntime(model: Any, inputs: dict[str, Any]) -> list[Any]:
    """Run a model in onnxruntime, optimizations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    return list(session.run(None, inputs))


def onnx2torch(model: Any, inputs: dict[str, Any]) -> list[Any]:
    """Run a model as the PyTorch module that onnx2torch makes of it."""
    import onnx2torch as converter
    import torch

    module = converter.convert(model).eval()
    with torch.no_grad():
        outputs = module(*map(_tensor, inputs.values()))
    return [_value(x) for x in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


def onnx2torch_any_version(model: Any, inputs: dict[str, Any]) -> list[Any]:
    """Run the same; operators of unknown versions are converted as the newest older one."""
    from onnx2torch import converter
    from onnx2torch.node_converters import registry

    known = registry._CONVERTER_REGISTRY

    def nearest(operation_type: str, version: int, domain: str = "") -> Any:
        versions = {
            key.version: found
            for key, found in known.items()
            if (key.operation_type, key.domain) == (operation_type, domain)
            and key.version <= version
        }
        if not versions:
            raise NotImplementedError(operation_type)
        return versions[max(versions)]

    converter.get_converter = nearest
    return onnx2torch(model, inputs)


ENGINES: dict[str, tuple[str, Run]] = {
    # name: package, how it runs a model
    "onnx.reference": ("onnx", reference),
    "onnxruntime": ("onnxruntime", onnxruntime),
    "onnx2torch": ("onnx2torch", onnx2torch),
    "onnx2torch, any version": ("onnx2torch", onnx2torch_any_version),
}


def _tensor(x: Any) -> Any:
    import torch

    if isinstance(x, list):
        return [_tensor(item) for item in x]
    return None if x is None else torch.from_numpy(np.array(x))


def _value(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return [_value(item) for item in x]
    return x.detach().numpy() if hasattr(x, "detach") else np.asarray(x)


def judge(case: Any, run: Run) -> str:
    """Return `pass`, `wrong` where outputs differ, else the kind of error."""
    from backend_suite import _compare

    try:
        for inputs, expected in case.data():
            named = {value.name: x for value, x in zip(case.fed, inputs, strict=True)}
            found = run(case.model, named)
            try:
                _compare(case, expected, found)
            except (AssertionError, TypeError, ValueError, unittest.SkipTest):
                return "wrong"
    except Exception as error:
        return type(error).__name__
    return "pass"


def work(engine: str, pipe: Any) -> None:
    """Judge the tests whose numbers come through a pipe."""
    from backend_suite import cases

    warnings.simplefilter("ignore")
    found = list(cases())
    pipe.send([case.name for case in found])
    while (number := pipe.recv()) is not None:
        pipe.send(judge(found[number], ENGINES[engine][1]))


def count(engine: str) -> dict[str, Any]:
    """Judge every test, and return how many ended in which way."""
    spawn = multiprocessing.get_context("spawn")

    def start() -> tuple[Any, Any, list[str]]:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=work, args=(engine, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours, ours.recv()

    process, pipe, names = start()
    verdicts = Counter[str]()
    for number in range(len(names)):
        pipe.send(number)
        try:
            verdict = pipe.recv() if pipe.poll(TIMEOUT) else "timeout"
        except EOFError:
            verdict = "crash"
        verdicts[verdict] += 1
        if verdict in ("timeout", "crash"):
            process.kill()
            process, pipe, _ = start()
    pipe.send(None)
    process.join()
    package = ENGINES[engine][0]
    return {
        "version": f"{package} {metadata.version(package)}",
        "onnx": metadata.version("onnx"),
        "tests": len(names),
        "verdicts": dict(verdicts.most_common()),
    }


def main() -> None:
    """Count for the engines that are named, or for all."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for engine in sys.argv[1:] or ENGINES:
        found[engine] = count(engine)
        print(engine, found[engine], flush=True)
        ordered = {name: found[name] for name in ENGINES if name in found}
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
