"""Measure onnxjl side by side with its peers, in one run.

    python benchmarks/run.py --peer-python PATH/TO/python

Needs Linux and a checkout with onnxjl installed. The peers' Python has torch, torchvision,
torch-pruning, onnx and onnxsim; without ``--peer-python`` only onnxjl is measured. Each case runs
in a process of its own, bound to one core, several times, the contestants in turn; the report has
medians.
Writes ``benchmarks/results.json`` and ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
from render import render

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from tests.models import zoo  # noqa: E402

NETWORKS = ("resnet50", "densenet121", "mobilenet_v2", "vit_b_16")
RATIO = "0.3"
"""Share of channels that the peers remove: about half the MACs of a convolutional network."""

CASES = ("file", "external", "checked", "memory", "torch_pruning", "onnxsim")
BLOCKS = (20, 50, 100, 200, 500, 1000, 2000)
WIDTHS = (1024, 4096, 16384, 65536, 262144)
REPEATS = "5"
"""Runs of a step inside a process, where steps are repeated there."""


def main() -> None:
    """Run everything that was asked for, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer-python", metavar="PATH", help="Python with torch and the peers")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--no-growth", action="store_true", help="leave out the synthetic networks")
    parser.add_argument("--results", type=Path, default=HERE / "results.json", metavar="FILE")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "ratio": float(RATIO), "networks": {}}
    results["repetitions"] = options.repetitions
    imports = [child(sys.executable, "import_case.py") for _ in range(options.repetitions)]
    results["import"] = statistics.median(run["seconds"] for run in imports)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            results["networks"][name] = compare(name, Path(folder), options)
    if not options.no_growth:
        for kind, sizes in (("nodes", BLOCKS), ("channels", WIDTHS)):
            results[kind] = [
                median([ours(kind, str(size)) for _ in range(options.repetitions)])
                for size in sizes
            ]
    results["load"] = {"after": os.getloadavg()[0]}
    options.results.write_text(json.dumps(results, indent=1) + "\n")
    options.report.write_text(render(results))


def compare(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure every contestant on one network."""
    model, external = folder / f"{name}.onnx", folder / f"{name}.external.onnx"
    proto = zoo.load(f"{name}.ts17")
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    onnx.save(proto, model)
    onnx.save(proto, external, save_as_external_data=True, location=f"{name}.data")
    del proto
    outputs = {case: folder / case / "small.onnx" for case in CASES}
    contestants: dict[str, Callable[[], dict[str, Any]]] = {
        "file": lambda: ours("file", model, outputs["file"]),
        "external": lambda: ours("file", external, outputs["external"]),
        "checked": lambda: ours("checked", model, outputs["checked"]),
        "memory": lambda: ours("memory", model, REPEATS),
    }
    if options.peer_python:
        peer = partial(child, options.peer_python, "peer_cases.py")
        contestants |= {
            "torch_pruning": lambda: peer("torch_pruning", name, RATIO, outputs["torch_pruning"]),
            "onnxsim": lambda: peer("onnxsim", model, RATIO, REPEATS, outputs["onnxsim"]),
        }
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in contestants}
    for _ in range(options.repetitions):
        for case, run in contestants.items():
            # Writing a file and replacing one are different jobs.
            shutil.rmtree(outputs[case].parent, ignore_errors=True)
            outputs[case].parent.mkdir()
            runs[case].append(run())
        print(name, {case: round(r[-1]["seconds"], 3) for case, r in runs.items()}, flush=True)
    result: dict[str, Any] = {case: median(each) for case, each in runs.items()}
    result["weights"] = weights
    whole = ours("macs", model)
    for case in {"file", "torch_pruning", "onnxsim"} & set(contestants):
        found = ours("macs", outputs[case])
        result[case]["kept"] = {key: found[key] / whole[key] for key in ("macs", "params")}
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return result


def ours(case: str, *given: str | Path) -> dict[str, Any]:
    """Run a case of onnxjl."""
    return child(sys.executable, "onnxjl_cases.py", case, *given)


def child(python: str, script: str, *given: str | Path) -> dict[str, Any]:
    """Run a case in a process of its own and return what it reports."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [python, str(HERE / script), *map(str, given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The runs' medians, number by number, and how far their totals lie apart."""
    result = dict(runs[0])
    result["steps"] = {
        step: statistics.median(run["steps"][step] for run in runs) for step in runs[0]["steps"]
    }
    for key in ("seconds", "peak", "increase"):
        result[key] = statistics.median(run[key] for run in runs)
    result["fastest"], result["slowest"] = (f(run["seconds"] for run in runs) for f in (min, max))
    return result


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    names = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in _cpu_lines()}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": names.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "memory": pages,
        "system": f"{platform.system()} {platform.release()}",
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name) for name in ("numpy", "onnx", "onnx_ir", "onnxruntime")
        },
    }


def _cpu_lines() -> list[str]:
    return [line for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]


if __name__ == "__main__":
    main()
