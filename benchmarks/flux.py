"""Measure the Flux engine against the same network written by hand in Flux.

    python benchmarks/flux.py

Needs Linux, Julia as the engine uses it, and a checkout with onnxjl installed. Each case runs in a
process of its own, the contestants in turn, several times; the report has medians. Writes
``benchmarks/flux.json`` and ``docs/benchmarks-flux.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from render import table
from run import ROOT, machine

from onnxjl import julia_environment

HERE = Path(__file__).parent
STEPS = {
    "ready": "from a cold process to the first output",
    "gradient 1": "first gradient",
    "update 1": "first update of Optimisers",
    "named": "a later gradient, by name, in NumPy",
    "update": "a later update",
}
IN_TURN = {"forward": "a later forward pass", "gradient": "a later gradient"}


def main() -> None:
    """Run both contestants, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="images (default: 2)")
    parser.add_argument("--size", type=int, default=64, metavar="N", help="pixels (default: 64)")
    parser.add_argument("--repetitions", type=int, default=3, metavar="N", help="default: 3")
    options = parser.parse_args()
    shape = (str(options.batch), str(options.size))
    runs: dict[str, list[dict[str, Any]]] = {"imported": [], "by hand": []}
    with tempfile.TemporaryDirectory() as folder:
        inside, external = Path(folder, "inside.onnx"), Path(folder, "external.onnx")
        python("write", str(inside), shape[1])
        onnx.save(onnx.load(inside), external, save_as_external_data=True, location="weights")
        for _ in range(options.repetitions):
            runs["imported"].append(python("speed", str(inside), *shape))
            runs["by hand"].append(by_hand(*shape))
            print({who: round(each[-1]["gradient"][0], 1) for who, each in runs.items()})
        turns = python("turns", str(inside), *shape)
        memory = {
            "inside the file": python("memory", str(inside)),
            "external": python("memory", str(external)),
        }
    results = {
        "machine": machine(),
        "batch": options.batch,
        "size": options.size,
        "repetitions": options.repetitions,
        "seconds": {who: medians(each) for who, each in runs.items()},
        "in turn": turns,
        "memory": memory,
    }
    (HERE / "flux.json").write_text(json.dumps(results, indent=1) + "\n")
    (ROOT / "docs" / "benchmarks-flux.md").write_text(page(results))


def python(*arguments: str) -> dict[str, Any]:
    """Run a case of onnxjl."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return child([sys.executable, str(HERE / "flux_case.py"), *arguments], environment)


def by_hand(*arguments: str) -> dict[str, Any]:
    """Run the network written by hand, in the Julia and the project that the engine uses."""
    place = julia_environment.find()
    command = [str(place.executable), "--startup-file=no", f"--project={place.project}"]
    return child([*command, str(HERE / "handwritten.jl"), *arguments], dict(os.environ))


def child(command: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a process and return what its last line says."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    lines = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The runs' medians, step by step."""
    steps: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.items():
            if isinstance(value, list):
                steps.setdefault(f"{name} 1", []).append(value[0])
                steps.setdefault(name, []).append(value[1])
            else:
                steps.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in steps.items()}


def page(results: dict[str, Any]) -> str:
    """The report as Markdown."""
    imported, hand = results["seconds"]["imported"], results["seconds"]["by hand"]
    rows = [
        [
            text,
            seconds(imported[step]),
            seconds(hand[step]) if step in hand else "",
            f"{imported[step] / hand[step]:.2f}" if step in hand else "",
        ]
        for step, text in STEPS.items()
    ]
    for step, text in IN_TURN.items():
        ours, theirs = results["in turn"][step]
        rows.append([text, seconds(ours), seconds(theirs), f"{ours / theirs:.2f}"])
    memory = [
        [
            where,
            f"{each['weights'] / 1e6:.0f} MB",
            f"{each['increase'] / 1e6:.0f} MB",
            f"{each['increase'] / each['weights']:.2f}",
        ]
        for where, each in results["memory"].items()
    ]
    host, size = results["machine"], results["size"]
    paragraphs = [
        "# The Flux engine's benchmarks",
        f"Made by `python benchmarks/flux.py`, in one run: ResNet-50 with batch normalization, a "
        f"batch of {results['batch']} images of {size}×{size}, as a `Chain` written by hand "
        "(`benchmarks/handwritten.jl`), and the same `Chain` written to ONNX and imported. Each "
        f"case ran in a process of its own, {results['repetitions']} times, in turn; figures are "
        "medians. Packages were precompiled. The imported network is called from Python, with "
        "NumPy arrays, but for the last two rows: these were measured in one process, from Julia, "
        "both networks by turns.",
        f"Machine: {host['processor']}, {host['cores']} cores, {host['system']}, Python "
        f"{host['python']}, load {host['load']:.1f} before the run.",
        "## Speed",
        table(["step", "imported", "by hand", "ratio"], rows),
        "“From a cold process” counts, for the imported network, Python's imports, the start of "
        "Julia, `to_flux` and a forward pass; for the one written by hand the packages are loaded "
        "already.",
        "## Memory",
        "What is resident at the peak of `to_flux`, over what is resident when Julia has started.",
        table(["weights", "size", "increase", "÷ size"], memory),
    ]
    return (
        "\n\n".join(
            each if each.startswith(("#", "|")) else textwrap.fill(each, 100) for each in paragraphs
        )
        + "\n"
    )


def seconds(value: float) -> str:
    """A time in three digits."""
    return (
        f"{value:.1f} s"
        if value >= 10
        else f"{value:.2f} s"
        if value >= 1
        else (f"{1000 * value:.0f} ms")
    )


if __name__ == "__main__":
    main()
