"""Measure what refitting gives back to the trained networks that packages carry.

    python benchmarks/recovery.py

Needs a checkout, and ``pip install -e '.[test]'``, whose packages carry the networks. Each loses
the same share of MACs, once as it is and once refitted; the error of both is the relative L2
distance of the outputs from the original's, on inputs that the refit hasn't seen. Writes
``benchmarks/recovery.json`` and ``docs/benchmarks-recovery.md``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
import re
import sys
import sysconfig
import textwrap
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from render import table
from run import HERE, ROOT, machine

import onnxjl
from onnxjl.evaluate import output_error

sys.path.insert(0, str(ROOT))

from tests.models import pretrained

Feeds = dict[str, np.ndarray]

MACS = 0.7
CALIBRATION, TEST = 512, 128
SCOPES = ("global", "local")
CRITERIA = ("l2", "reconstruction")
"""The first is plain pruning, which the others are held against, too."""

TARGET = 0.25
"""The share of plain pruning's error that a refit should stay below."""


def main() -> None:
    """Prune and refit, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--networks", nargs="*", default=list(INPUTS), choices=list(INPUTS))
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "networks": {}}
    for name in options.networks:
        path = pretrained.available().get(name)
        if path is None:
            raise SystemExit(f"{name} isn't installed: pip install -e '.[test]'")
        results["networks"][name] = found = compared(path, INPUTS[name])
        print(name, json.dumps(found), flush=True)
    (HERE / "recovery.json").write_text(json.dumps(results, indent=1) + "\n")
    (ROOT / "docs" / "benchmarks-recovery.md").write_text(page(results))


def compared(path: Path, inputs: Callable[[int, int], Feeds]) -> list[dict[str, Any]]:
    """Errors of a network, pruned with each scope."""
    graph = onnxjl.normalize(onnxjl.load(path))
    calibration, test = inputs(CALIBRATION, 0), inputs(TEST, 1)
    granularity = "head" if path.stem.startswith("paraphrase") else "channel"
    found = []
    for scope, criterion in itertools.product(SCOPES, CRITERIA):
        data = None if criterion == CRITERIA[0] else calibration
        start = time.perf_counter()
        small = onnxjl.prune(
            graph,
            macs=MACS,
            criterion=criterion,
            scope=scope,
            granularity=granularity,
            data=data,
        )
        choosing = time.perf_counter() - start
        start = time.perf_counter()
        refitted = onnxjl.recover(small, "refit", calibration)
        seconds = time.perf_counter() - start
        found.append(
            {
                "scope": scope,
                "criterion": criterion,
                "macs": small.macs / graph.macs,
                "pruned": output_error(graph, small, test),
                "refitted": output_error(graph, refitted, test),
                "choosing": choosing,
                "seconds": seconds,
            }
        )
    return found


# Inputs


def _sentences() -> list[str]:
    """Sentences of Python's own documentation, in an order that a seed gives."""
    text = " ".join(topics.values())
    prose = re.sub(r"\s+", " ", re.sub(r"[*`_\"|]+", "", text))
    found = [s.strip() for s in re.split(r"(?<=[.:])\s+(?=[A-Z])", prose)]
    kept = [s for s in found if 30 < len(s) < 160 and s.isascii()]
    return [kept[i] for i in np.random.default_rng(0).permutation(len(kept))]


def _chosen(count: int, part: int) -> list[str]:
    """Some sentences: those of part 0 are others than those of part 1."""
    sentences = _sentences()
    return sentences[:count] if part == 0 else sentences[-count:]


def _tokens(count: int, part: int) -> Feeds:
    """Sentences as word pieces of BERT, padded to 64."""
    with lzma.open(ROOT / "tests" / "models" / "bert-uncased.txt.xz", "rt") as file:
        number = {piece: i for i, piece in enumerate(file.read().split("\n"))}
    rows = np.zeros((count, 64), np.int64)
    for row, sentence in zip(rows, _chosen(count, part), strict=True):
        pieces = ["[CLS]"]
        for word in re.findall(r"\w+|[^\w\s]", sentence.lower()):
            pieces += _pieces(word, number)
        ids = [number[piece] for piece in [*pieces[:63], "[SEP]"]]
        row[: len(ids)] = ids
    return {"input_ids": rows, "attention_mask": (rows != 0).astype(np.int64)}


def _pieces(word: str, number: dict[str, int]) -> list[str]:
    found, start = [], 0
    while start < len(word):
        mark = "##" if start else ""
        ends = (end for end in range(len(word), start, -1) if mark + word[start:end] in number)
        end = next(ends, None)
        if end is None:
            return ["[UNK]"]
        found.append(mark + word[start:end])
        start = end
    return found


def _bytes(count: int, part: int) -> Feeds:
    """Beginnings and ends of files of a Python installation: source, headers, text, data."""
    folders = [sysconfig.get_paths()["stdlib"], *map(str, _packages())]
    files = sorted(
        path
        for folder in folders
        for path in Path(folder).rglob("*")
        if path.is_file() and 64 < path.stat().st_size < 2**21
    )
    by_kind: dict[str, list[Path]] = {}
    for path in files:
        by_kind.setdefault(path.suffix, []).append(path)
    random = np.random.default_rng(0)
    # By turns from each kind of file, so that sources don't crowd out the others.
    queues = [list(random.permutation(np.array(paths, dtype=object))) for paths in by_kind.values()]
    order = [paths[i] for i in range(max(map(len, queues))) for paths in queues if i < len(paths)]
    chosen = order[0 : 2 * count : 2] if part == 0 else order[1 : 2 * count : 2]
    content = np.full((count, 2048), 256, np.int32)
    for row, path in zip(content, chosen, strict=True):
        data = path.read_bytes().strip()
        first, last = data[:1024], data[-1024:]
        row[: len(first)] = list(first)
        row[2048 - len(last) :] = list(last)
    return {"bytes": content}


def _packages() -> list[Path]:
    return [
        Path(spec.origin).parent
        for name in ("onnx", "matplotlib", "numpy")
        if (spec := find_spec(name)) and spec.origin
    ]


def _lines(height: int, width: int, rows: int) -> Callable[[int, int], Feeds]:
    """Printed lines of text, black on white or the reverse, in fonts that Matplotlib carries."""

    def made(count: int, part: int) -> Feeds:
        from matplotlib import font_manager
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        folder = Path(font_manager.__file__).parent / "mpl-data" / "fonts" / "ttf"
        fonts = [
            folder / f"DejaVu{kind}.ttf"
            for kind in ("Sans", "Sans-Bold", "Serif", "SansMono", "Serif-Italic")
        ]
        random = np.random.default_rng(part)
        images = np.zeros((count, 3, height, width), np.float32)
        words = " ".join(_chosen(8 * count, part)).split()
        for image in images:
            figure = Figure(figsize=(width / 100, height / 100), dpi=100)
            canvas = FigureCanvasAgg(figure)
            dark, light = random.uniform(0, 0.3, 3), random.uniform(0.7, 1, 3)
            ink, paper = (dark, light) if random.random() < 0.8 else (light, dark)
            figure.patch.set_facecolor(paper)
            font = fonts[random.integers(len(fonts))]
            for row in range(rows):
                start = random.integers(len(words) - 12)
                figure.text(
                    random.uniform(0.01, 0.05),
                    1 - (row + 0.5) / rows,
                    " ".join(words[start : start + 12]),
                    font=font,
                    fontsize=random.uniform(0.4, 0.62) * height / rows * 0.72,
                    color=ink,
                    va="center",
                    parse_math=False,
                )
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())[:, :, :3].astype(np.float32) / 127.5 - 1
            image[:] = pixels.transpose(2, 0, 1)
            if rows == 1 and random.random() < 0.5 and height == 48 and width == 192:
                image[:] = image[:, ::-1, ::-1]  # upside down: what the classifier tells apart
        noise = random.normal(0, 0.02, images.shape).astype(np.float32)
        return {"x": images + noise}

    return made


INPUTS: dict[str, Callable[[int, int], Feeds]] = {
    "rapidocr_classifier": _lines(48, 192, 1),
    "rapidocr_detector": _lines(96, 160, 3),
    "rapidocr_recognizer": _lines(48, 320, 1),
    "magika": _bytes,
    "minilm": _tokens,
}
TOLD = {
    "rapidocr_classifier": "printed lines, half of them upside down",
    "rapidocr_detector": "three printed lines each",
    "rapidocr_recognizer": "printed lines",
    "magika": "files of Python, its headers and packages",
    "minilm": "sentences of Python's documentation",
}


def page(results: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows, missed = [], []
    for name, cases in results["networks"].items():
        for case in cases:
            # Plain pruning of the same scope.
            plain = next(c for c in cases if c["scope"] == case["scope"])
            share = case["refitted"] / plain["pruned"]
            if share > TARGET:
                missed.append(f"`{name}` ({case['scope']}, {case['criterion']})")
            rows.append(
                [
                    f"`{name}`",
                    TOLD[name],
                    case["scope"],
                    case["criterion"],
                    f"{case['macs']:.0%}".replace("%", " %"),
                    f"{case['pruned']:.3f}",
                    f"{case['refitted']:.3f}",
                    f"{share:.2f}",
                    f"{case['choosing']:.1f}",
                    f"{case['seconds']:.1f}",
                ]
            )
    host = results["machine"]
    paragraphs = [
        "# What refitting gives back",
        "Made by `python benchmarks/recovery.py`: trained networks that packages carry, pruned "
        f"to {MACS:.0%} of their MACs, as they are and refitted".replace("%", " %")
        + f" on {CALIBRATION} inputs, which the criterion `reconstruction` is measured on, too. "
        "The error is the relative L2 distance of the outputs from "
        f"the original's on {TEST} other inputs of the same kind. "
        "Inputs are made on the machine: text is that of Python's documentation, in the fonts that "
        "Matplotlib carries. “÷” is the refitted error over that of plain pruning, which is "
        "pruning by `l2` with the same scope; the last columns are the times that pruning and "
        "refitting took, in s.",
        table(
            [
                "network",
                "inputs",
                "scope",
                "criterion",
                "MACs",
                "pruned",
                "refitted",
                "÷",
                "pruning",
                "refit",
            ],
            rows,
        ),
        (
            f"The refitted error is above a quarter of plain pruning's for {', '.join(missed)}."
            if missed
            else "The refitted error is at most a quarter of plain pruning's everywhere."
        ),
        f"Machine: {host['processor']}, {host['cores']} cores, {host['system']}, onnxruntime "
        f"{host['versions']['onnxruntime']}, load {host['load']:.1f} before the run.",
    ]
    return (
        "\n\n".join(
            each if each.startswith(("#", "|")) else textwrap.fill(each, 100) for each in paragraphs
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
