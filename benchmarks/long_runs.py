"""Measure whether memory grows over long runs with the Flux engine.

    python benchmarks/long_runs.py

Needs Linux, Julia as the engine uses it, and a checkout with onnxjl installed; takes some minutes.
Each case runs in a process of its own. Writes ``benchmarks/long_runs.json`` and
``docs/benchmarks-long-runs.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from render import table
from run import ROOT, machine

HERE = Path(__file__).parent
CASES = ("rounds", "networks")
COLUMNS = {
    "resident": "resident",
    "peak": "at most",
    "heap": "Julia's objects",
    "descriptors": "open files",
    "held": "Julia's, held by Python",
    "objects": "Python's, tracked",
    "networks": "networks alive",
}
MEGABYTES = ("resident", "peak", "heap")


def main() -> None:
    """Run all cases, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=100, metavar="N", help="default: 100")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "count": options.rounds}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            results[case] = child(case, str(options.rounds), folder)
    (HERE / "long_runs.json").write_text(json.dumps(results, indent=1) + "\n")
    (ROOT / "docs" / "benchmarks-long-runs.md").write_text(page(results))


def child(*arguments: str) -> list[dict[str, Any]]:
    """Run a case in a process of its own, and return what it recorded."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, str(HERE / "long_runs_case.py"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def page(results: dict[str, Any]) -> str:
    """The report as Markdown."""
    host, rounds = results["machine"], results["count"]
    paragraphs = [
        "# Memory over long runs",
        "Made by `python benchmarks/long_runs.py`, in one run, each case in a process of its own. "
        "“Resident” is what is there after Python's and Julia's garbage was collected, and the C "
        "library gave back what it could; “at most” the peak since the process began. Objects of "
        "Julia's that Python holds are counted by juliacall. “Networks alive” are Flux models "
        "that are still there, and their graphs, each of which its network in Julia holds.",
        f"Machine: {host['processor']}, {host['cores']} cores, {host['system']}, Python "
        f"{host['python']}.",
        f"## {rounds} rounds",
        "`tests/models/mnist-resnet14.onnx`, 16 images. A round is `to_flux` of the file, `prune` "
        "by 30 % on the gradient criterion `taylor`, `finetune` of two steps, and `save` with its "
        "check.",
        rows("round", results["rounds"]),
        f"From round 10 to round {rounds}, what is resident changed by at most "
        f"{change(results['rounds']):.1%}.",
        "## 20 networks",
        "The 20 smallest test networks of different architectures (`tests/models/zoo.py`), one "
        "after another: `to_flux`, and a forward pass. In the first turn Julia compiles for each "
        "what it hasn't compiled yet, and keeps it.",
        rows("after network", results["networks"]),
        "What lies between “resident” and “at most” is garbage, which Julia lets grow before it "
        "collects it.",
    ]
    return (
        "\n\n".join(
            each if each.startswith(("#", "|")) else textwrap.fill(each, 100) for each in paragraphs
        )
        + "\n"
    )


def rows(first: str, records: list[dict[str, Any]]) -> str:
    """What was recorded as a table."""
    return table(
        [first, *COLUMNS.values()],
        [[str(each["after"]), *(figure(each, column) for column in COLUMNS)] for each in records],
    )


def figure(record: dict[str, Any], column: str) -> str:
    """One of its cells."""
    value = record[column]
    return f"{value / 1e6:.0f} MB" if column in MEGABYTES else str(value)


def change(records: list[dict[str, Any]]) -> float:
    """The largest change of what is resident since round 10, as a share of it then."""
    later = [each["resident"] for each in records if each["after"] >= 10]
    return max(abs(value - later[0]) for value in later) / later[0]


if __name__ == "__main__":
    main()
