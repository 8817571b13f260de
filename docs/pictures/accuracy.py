"""Draw what pruning costs the shipped network, and what gets it back.

    python docs/pictures/accuracy.py           run, write accuracy.json, draw accuracy.svg
    python docs/pictures/accuracy.py --draw    draw what accuracy.json says

Needs matplotlib, and Julia for the run, which takes some minutes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import onnxjl

FOLDER = Path(__file__).parent
MODELS = FOLDER.parents[1] / "tests" / "models"
SOURCE = MODELS / "mnist-resnet14.onnx"
CALIBRATION = MODELS / "mnist-resnet14.calib.npz"
TEST = MODELS / "mnist-resnet14.test.npz"

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
LINES = {
    "finetuned": ("3 epochs of fine-tuning, in Julia", "#9558b2", "o"),
    "refitted": ("weights refitted in closed form, no labels", "#0b7285", "s"),
    "plain": ("nothing but the removal", "#868e96", "^"),
}


def measure() -> dict[str, Any]:
    """Return the accuracy on the test digits, for each budget and way of recovery."""
    graph = onnxjl.normalize(onnxjl.load(SOURCE))
    found: dict[str, Any] = {"original": accuracy(graph), "budgets": list(BUDGETS)}
    for way in LINES:
        found[way] = [accuracy(smaller(graph, budget, way)) for budget in BUDGETS]
        print(way, found[way], flush=True)
    return found


def smaller(graph: onnxjl.Graph, budget: float, way: str) -> onnxjl.Graph | onnxjl.FluxModel:
    """Return the network with a fraction of its multiply–accumulates."""
    if way == "refitted":
        return onnxjl.prune(graph, macs=budget, calibration=CALIBRATION)
    small = onnxjl.prune(graph, macs=budget)
    if way == "finetuned":
        model = onnxjl.to_flux(small)
        model.finetune(CALIBRATION, epochs=3, schedule="cosine")
        return model
    return small


def accuracy(model: onnxjl.Graph | onnxjl.FluxModel) -> float:
    """Return the share of the test digits that a network's file reads rightly, in onnxruntime."""
    import onnxruntime

    data = np.load(TEST)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "net.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "net.onnx")
        (scores,) = session.run(None, {"image": data["image"]})
    return float((scores.argmax(1) == data["target"]).mean())


def draw(found: dict[str, Any]) -> None:
    """Draw the picture."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.hashsalt": "onnxjl", "svg.fonttype": "path", "font.size": 10}
    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
    kept = [100 * budget for budget in found["budgets"]]
    for way, (label, colour, marker) in LINES.items():
        percent = [100 * share for share in found[way]]
        axes.plot(kept, percent, color=colour, marker=marker, markersize=5, label=label)
    original = 100 * found["original"]
    axes.axhline(original, color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.text(8, original + 1, f"original: {original:.1f} %", ha="right", va="bottom", fontsize=9)
    axes.set_xlim(102, 8)
    axes.set_ylim(0, 108)
    axes.set_xlabel("multiply–accumulates kept (%)")
    axes.set_ylabel("accuracy on 2,000 test digits (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.89))
    metadata = {"Date": None, "Title": "Accuracy against multiply–accumulates"}
    figure.savefig(FOLDER / "accuracy.svg", metadata=metadata, facecolor="white")


def main() -> None:
    """Run what is asked for."""
    record = FOLDER / "accuracy.json"
    if sys.argv[1:] != ["--draw"]:
        record.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    draw(json.loads(record.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
