"""Measure how much faster smaller networks run in onnxruntime, against the MACs that they lost.

    python benchmarks/speedup.py --peer-python PATH/TO/python

Needs Linux and a checkout with onnxjl installed. The peer's Python has torch, torchvision,
torch-pruning and onnx; without ``--peer-python`` only onnxjl is measured. All files of a network
run in one process, by turns, on one thread. Writes ``benchmarks/speedup.json`` and
``docs/benchmarks-speedup.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import onnx
from render import table
from run import HERE, NETWORKS, RATIO, ROOT, child, machine, zoo

import onnxjl
from onnxjl.latency import measure_all

REQUESTS: dict[str, dict[str, Any]] = {
    "any width": {"macs": 0.5},
    "auto": {"macs": 0.5, "round_to": "auto"},
    "latency": {"latency": 0.5},
}
PEER = "torch-pruning"
TITLES = {
    "any width": "`macs=0.5`",
    "auto": '`macs=0.5, round_to="auto"`',
    "latency": "`latency=0.5`",
    PEER: "torch-pruning, global",
}


def main() -> None:
    """Prune, measure, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer-python", metavar="PATH", help="Python with torch and torch-pruning")
    parser.add_argument("--seconds", type=float, default=30, metavar="S", help="for each network")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "seconds": options.seconds, "networks": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            results["networks"][name] = measured(name, Path(folder), options)
            print(name, results["networks"][name], flush=True)
    (HERE / "speedup.json").write_text(json.dumps(results, indent=1) + "\n")
    (ROOT / "docs" / "benchmarks-speedup.md").write_text(page(results))


def measured(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Latency, MACs and step of every contestant on one network."""
    proto = zoo.load(f"{name}.ts17")
    inputs = {key: array[:1] for key, array in zoo.inputs(f"{name}.ts17").items()}
    graph = onnxjl.normalize(onnxjl.load(proto))
    granularity = "head" if name.startswith("vit") else "channel"
    smaller: dict[str, Any] = {
        case: onnxjl.prune(graph, granularity=granularity, **request)
        for case, request in REQUESTS.items()
    }
    facts: dict[str, dict[str, Any]] = {
        case: {"step": small.plan.request["round_to"]} for case, small in smaller.items()
    }
    if options.peer_python:
        path = folder / f"{name}.onnx"
        child(options.peer_python, "peer_cases.py", "torch_pruning", name, RATIO, path)
        smaller[PEER] = onnxjl.load(renamed(onnx.load(path), *inputs))
        facts[PEER] = {}
    whole = graph.macs
    times = measure_all([graph, *smaller.values()], inputs, seconds=options.seconds)
    for case, taken in zip(smaller, times[1:], strict=True):
        facts[case] |= {"macs": onnxjl.normalize(smaller[case]).macs / whole, "ms": taken.median_ms}
    return {"macs": whole, "ms": times[0].median_ms, "runs": times[0].runs, "cases": facts}


def renamed(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with another name for its only input."""
    old = model.graph.input[0].name
    model.graph.input[0].name = name
    for node in model.graph.node:
        node.input[:] = [name if each == old else each for each in node.input]
    return model


def page(results: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = []
    for name, network in results["networks"].items():
        for case, found in network["cases"].items():
            speedup, reduction = network["ms"] / found["ms"], 1 / found["macs"]
            rows.append(
                [
                    name,
                    TITLES[case],
                    str(found.get("step", "")),
                    f"{found['macs']:.0%}",
                    f"{network['ms']:.1f} ms",
                    f"{found['ms']:.1f} ms",
                    f"{speedup:.2f}",
                    f"{speedup / reduction:.2f}",
                ]
            )
    head = ["network", "request", "step", "MACs kept", "before", "after", "speed-up", "÷ MACs"]
    host = results["machine"]
    paragraphs = [
        "# Smaller, and faster?",
        "Made by `python benchmarks/speedup.py`: how much faster onnxruntime runs a smaller "
        "network, on one thread, optimizations on, batch 1. “÷ MACs” is the speed-up over the "
        "reduction of MACs: 1 means that half the MACs take half the time. “Step” is what widths "
        "are multiples of. Weights are random, as the zoo has them; ViT is pruned in whole heads "
        "and hidden units. torch-pruning removes 0.3 of all channels, ranked globally, its way to "
        "ask.",
        f"Machine: {host['processor']}, {host['cores']} cores, {host['system']}, onnxruntime "
        f"{host['versions']['onnxruntime']}, load {host['load']:.1f} before the run. All files of "
        f"a network ran in one process, by turns, for {results['seconds']:.0f} s; figures are "
        "medians.",
        table(head, rows),
    ]
    return (
        "\n\n".join(
            each if each.startswith(("#", "|")) else textwrap.fill(each, 100) for each in paragraphs
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
