"""Render: benchmark results as the page docs/benchmarks.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

TITLES = {
    "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121",
    "mobilenet_v2": "MobileNetV2",
    "vit_b_16": "ViT-B/16",
}


def render(results: dict[str, Any]) -> str:
    """Return the page for what `run.py` found."""
    networks = [(TITLES[name], each) for name, each in results["networks"].items()]
    ratio = results["ratio"]
    parts = [
        "# Benchmarks",
        "Made by `python benchmarks/run.py`, which measured all of this in one run: each case in "
        f"a process of its own, bound to one core, {results['repetitions']} times, the contestants "
        "in turn. Figures are medians. Nobody's imports are counted.",
        _machine(results),
        "## From file to file",
        "Load, normalize, find groups, rank by l2, prune to half the multiply–accumulates, save. "
        "Against torch-pruning: dependency graph, global l2 pruning, export by PyTorch's "
        f"TorchScript exporter, with ratio {ratio} of the channels, which is its way to ask. "
        "“Kept” is what the results have left of the MACs, counted by onnxjl in all files. “With "
        "check” is what `save` does unless told not to: it compares the file with the masked "
        "original in onnxruntime, in a child process; torch-pruning has no such step, so the ratio "
        "is without.",
        table(
            ["network", "onnxjl", "kept", "with check", "torch-pruning", "kept", "ratio"],
            (_file_row(title, each) for title, each in networks),
        ),
        "Where the time goes:",
        table(
            ["network", *networks[0][1]["file"]["steps"]],
            (
                [title, *(_time(seconds) for seconds in each["file"]["steps"].values())]
                for title, each in networks
            ),
        ),
        "## Memory",
        "What is resident at the peak, over what is resident when everything is imported, from "
        "file to file. “External” weights lie in a file of their own beside the model; they are "
        "memory-mapped, and mapped pages count here too.",
        table(
            ["network", "weights", "external", "÷ weights", "in one file", "torch-pruning"],
            (_memory_row(title, each) for title, each in networks),
        ),
        "## In memory",
        "Groups, l2 and surgery of a normalized graph, against `apply_structured_pruning` of "
        f"onnxsim in Python, with sparsity {ratio}, on the same model, once in a fresh process. "
        "Load and normalize come before and start from the file's bytes. onnxjl copies what is "
        "left of a weight when somebody reads it, and onnxsim at once: “with reading” is with all "
        "weights read at the end. “Kept” is what onnxsim leaves of the MACs; onnxjl leaves half.",
        table(
            [
                "network",
                "groups, l2, apply",
                "with reading",
                "onnxsim",
                "ratio",
                "ratio with reading",
                "load, normalize",
                "ratio",
                "onnxsim kept",
            ],
            (_once_row(title, each) for title, each in networks),
        ),
        "The same repeated in one process, where the memory of the runs before is at hand. A graph "
        "remembers its groups: “again” is the same graph pruned once more, as with another budget, "
        "and read. onnxsim has a form in C++, too; ratios are to that in Python.",
        table(
            [
                "network",
                "groups, l2, apply",
                "ratio",
                "with reading",
                "ratio",
                "again",
                "ratio",
                "onnxsim",
                "onnxsim, C++",
                "load, normalize",
            ],
            (_repeated_row(title, each) for title, each in networks),
        ),
    ]
    if "import" in results:
        parts += [
            "## Import",
            f"`import onnxjl` takes {_time(results['import'])}; the limit is 0.3 s.",
        ]
    if "nodes" in results:
        parts += _growth(results)
    paragraphs = (p if p.startswith(("#", "|")) else textwrap.fill(p, 100) for p in parts)
    return "\n\n".join(paragraphs) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = dict(machine["versions"])
    for network in results["networks"].values():
        for case in ("torch_pruning", "onnxsim"):
            versions |= network.get(case, {}).get("versions", {})
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory'] / 2**30:.0f} GiB of memory, {machine['system']}, Python "
        f"{machine['python']}, load {machine['load']:.1f} before the run. Versions: "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    )


def _file_row(title: str, each: dict[str, Any]) -> list[str]:
    own, peer = each["file"], each.get("torch_pruning")
    row = [title, _time(own["seconds"]), _share(own), _time(each["checked"]["seconds"])]
    if peer is None:
        return [*row, "", "", ""]
    return [*row, _time(peer["seconds"]), _share(peer), f"{peer['seconds'] / own['seconds']:.1f}"]


def _memory_row(title: str, each: dict[str, Any]) -> list[str]:
    external, weights = each["external"]["increase"], each["weights"]
    peer = each.get("torch_pruning")
    return [
        title,
        _megabytes(weights),
        _megabytes(external),
        f"{external / weights:.2f}",
        _megabytes(each["file"]["increase"]),
        "" if peer is None else _megabytes(peer["increase"]),
    ]


def _once_row(title: str, each: dict[str, Any]) -> list[str]:
    steps, peer = each["memory"]["steps"], each.get("onnxsim")
    before, prune = steps["load, normalize"], steps["groups, l2, apply"]
    read = prune + steps["reading"]
    return [
        title,
        _time(prune),
        _time(read),
        _peer_time(peer, "python"),
        _ratio(prune, peer, "python"),
        _ratio(read, peer, "python"),
        _time(before),
        _ratio(before, peer, "python"),
        "" if peer is None else _share(peer),
    ]


def _repeated_row(title: str, each: dict[str, Any]) -> list[str]:
    steps, peer = each["memory"]["steps"], each.get("onnxsim")
    row = [title]
    for step in ("groups, l2, apply, repeated", "with reading, repeated", "again, with reading"):
        row += [_time(steps[step]), _ratio(steps[step], peer, "python, repeated")]
    row += [_peer_time(peer, "python, repeated"), _peer_time(peer, "c++, repeated")]
    return [*row, _time(steps["load, normalize, repeated"])]


def _peer_time(peer: dict[str, Any] | None, step: str) -> str:
    return "" if peer is None else _time(peer["steps"][step])


def _ratio(own: float, peer: dict[str, Any] | None, step: str) -> str:
    return "" if peer is None else f"{own / peer['steps'][step]:.2f}"


def _growth(results: dict[str, Any]) -> list[str]:
    parts = [
        "## Growth",
        "Synthetic residual networks: blocks of two convolutions around a stream of 16 channels, "
        "with 16 inside (by nodes); ten blocks around a stream of 64, with more and more inside "
        "(by units). “groups” is the structure analysis alone, “prune” the analysis, random "
        "scores, the choice and the surgery.",
    ]
    for kind, size, each in (("nodes", "nodes", "node"), ("channels", "units", "unit")):
        rows = results[kind]
        parts.append(
            table(
                [size, "normalize", "groups", "prune", f"groups, each {each}"],
                (
                    [
                        f"{row[size]:,}",
                        *(_time(row["steps"][step]) for step in ("normalize", "groups", "prune")),
                        f"{row['steps']['groups'] / row[size] * 1e6:.1f} µs",
                    ]
                    for row in rows
                ),
            )
        )
    return parts


def _share(case: dict[str, Any]) -> str:
    return f"{case['kept']['macs']:.0%}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.0f} MB"
