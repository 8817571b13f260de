"""Write docs/families.md: what can be pruned in every family of networks, and that it was proved.

    python tests/families.py                      # all networks; hours, since the proofs are run
    python tests/families.py --only resnet18.ts17 minilm       # these, in the table that is there

Each row is one network with one granularity. `test_families.py` checks that the rows of the quick
networks are what the code finds now.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import LIGHT, TRAINED, Case
from models import pretrained, zoo
from proof import PLANS, TOLERANCE, prove

from onnxjl.structure import Structure

PAGE = Path(__file__).parent.parent / "docs" / "families.md"

FAMILIES: dict[str, tuple[str, ...]] = {
    "VGG-BN, AlexNet": ("alexnet", "vgg11_bn", "light_bvlc_alexnet", "light_vgg19"),
    "ResNet, RegNet, ConvNeXt": (
        "resnet18",
        "resnet50",
        "regnet_y_400mf",
        "convnext_tiny",
        "light_resnet50",
        "light_zfnet512",
    ),
    "MobileNet, EfficientNet": ("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"),
    "DenseNet, GoogLeNet, SqueezeNet, U-Net": (
        "densenet121",
        "googlenet",
        "squeezenet1_1",
        "unet",
        "light_densenet121",
        "light_inception_v1",
        "light_inception_v2",
        "light_squeezenet",
    ),
    "ShuffleNet": ("shufflenet_v2_x1_0", "light_shufflenet"),
    "Detectors and readers": (
        "yolo",
        "two_stage",
        "rapidocr_classifier",
        "rapidocr_detector",
        "rapidocr_recognizer",
    ),
    "ViT, Swin, encoders, decoders": (
        "vit_b_16",
        "vit_tiny",
        "swin_t",
        "swin_tiny",
        "bertlike",
        "encoder_mask",
        "gptlike",
        "decoder",
        "decoder_cached",
        "attention_mix",
        "minilm",
    ),
    "LSTM, GRU, RNN": ("lstm", "gru", "rnn", "lstm_stacked", "rnn_relu"),
    "Shared weights": ("tied_linear", "tied_embedding", "conv_twice"),
    "Keras through tf2onnx": (
        "keras_mobilenet_v2",
        "keras_resnet50",
        "keras_attention",
        "magika",
    ),
    "One axis, two inputs, speech": ("conv1d", "two_inputs", "speaker"),
}
"""Heading -> networks, in the order of the page."""

ORIGINS = {
    "magika": "tf2onnx",
    "minilm": "pretrained",
    "rapidocr_classifier": "Paddle",
    "rapidocr_detector": "Paddle",
    "rapidocr_recognizer": "Paddle",
    **dict.fromkeys(LIGHT, "caffe2"),
}
"""What wrote the networks that packages carry."""

INTRODUCTION = f"""# Families of networks, and what can be pruned in them

<!-- Written by `python tests/families.py`; don't edit. -->

For each network: how many groups there are and how many units in them, which share of the
multiply–accumulates (MACs) remains at the strongest exact pruning, one unit left of each group, and
the largest difference that the proof found.

**The proof.** For random plans of exact groups (another number of units of each group, one unit
left of each, units of one group only) the pruned network computes what the original computes when
everything that goes is masked wherever a convolution, a matrix product or a recurrent cell sums
over it. Both run in onnxruntime, optimizations off; differences are relative to the largest output,
and every row must stay below {TOLERANCE:g}. The oracle (`tests/oracle.py`) shares no code with the
analysis.

*Inexact* units change statistics that a normalization or softmax takes over them; they are offered
only when asked for (`--allow-inexact`), and aren't in the other columns. Rows for `head` and
`head-dim` are there where these granularities offer something else than `channel`.

Weights are random, also those of `light_*`, which come from the package onnx; `magika`, `minilm`
and `rapidocr_*` are trained networks out of the packages of these names. `ts13` and `ts17` are
files of PyTorch's older exporter with opset 13 and 17, `ts17bn` of the same with batch
normalization kept, `dynamo` of its newer one, `dynamo_noopt` of that without its optimizer, `tf13`
and `tf17` of tf2onnx.
"""

COLUMNS = (
    "network",
    "file",
    "granularity",
    "groups",
    "units",
    "MACs left",
    "inexact units",
    "difference",
)


@dataclass(frozen=True)
class Row:
    """What is known of one network with one granularity, as text.

    Parameters
    ----------
    network, file, granularity : which.
    groups, units, left, inexact : numbers, as the table has them.
    difference : the largest that the proof found.
    """

    network: str
    file: str
    granularity: str
    groups: str
    units: str
    left: str
    inexact: str
    difference: str

    @property
    def found(self) -> tuple[str, str, str, str]:
        """What the analysis alone tells."""
        return self.groups, self.units, self.left, self.inexact


def describe(case: Case, granularity: str, difference: float = 0.0) -> Row:
    """Return the row of a network with one granularity.

    Parameters
    ----------
    difference : as `largest_difference` returns it.
    """
    structure = case.structure(granularity)
    exact = [group for group in structure.groups if group.exact]
    least = np.array([1 if group.exact else group.size for group in structure.groups])
    left = structure.macs.total(least) / structure.macs.total(structure.sizes)
    trained = case.name in TRAINED
    return Row(
        network=case.name if trained else zoo.network(case.name),
        file=ORIGINS[case.name] if trained else zoo.exporter(case.name),
        granularity=granularity,
        groups=str(len(exact)),
        units=f"{sum(group.size for group in exact):,}",
        left=f"{100 * left:.2f} %",
        inexact=f"{sum(group.size for group in structure.groups if not group.exact):,}",
        difference=f"{difference:.0e}",
    )


def largest_difference(structure: Structure, case: Case) -> float:
    """Return the largest difference over one plan of each kind, on the largest batch."""
    generator = np.random.default_rng(0)
    plans = [kind(structure, generator) for kind in PLANS]
    return max(prove(structure, keep, case.feeds[-1:]) for keep in plans)


def rows_of(name: str) -> list[Row]:
    """Return the rows of a network, proved."""
    case = Case(name)
    rows = []
    for granularity in ("channel", "head", "head-dim"):
        if not case.has_more(granularity):
            continue
        difference = largest_difference(case.structure(granularity), case)
        if not difference <= TOLERANCE:
            raise SystemExit(f"{name}, {granularity}: the proof fails by {difference:.1e}")
        rows.append(describe(case, granularity, difference))
    return rows


def read(page: str) -> list[Row]:
    """Return the rows of a page, one for each file."""
    rows = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or len(cells) != len(COLUMNS) or cells[0] in ("", COLUMNS[0]):
            continue
        if re.fullmatch(r"[-:]+", cells[0]):
            continue
        network, files, *rest = cells
        rows += [Row(network.strip("`"), file, *rest) for file in files.split(", ")]
    return rows


def write(rows: Iterable[Row]) -> str:
    """Return the page: files of a network with the same numbers share a line."""
    lines: defaultdict[tuple[str, str, tuple[str, ...]], list[Row]] = defaultdict(list)
    order = {"channel": 0, "head": 1, "head-dim": 2}
    for row in sorted(rows, key=lambda r: (r.network, order[r.granularity], r.file)):
        lines[row.network, row.granularity, row.found].append(row)
    parts = [INTRODUCTION]
    for family, networks in FAMILIES.items():
        parts += [f"## {family}\n", _line(COLUMNS), _line(["---"] * 3 + ["---:"] * 5)]
        for network in networks:
            for (name, granularity, found), shared in lines.items():
                if name == network:
                    files = ", ".join(row.file for row in shared)
                    worst = max((row.difference for row in shared), key=float)
                    parts.append(_line([f"`{name}`", files, granularity, *found, worst]))
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the page."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--only", nargs="+", metavar="NAME", help="networks to do anew")
    names = options.parse_args().only or [
        *zoo.NAMES,
        *(name for name in TRAINED if name in pretrained.available()),
    ]
    for name in names:
        rows = rows_of(name)
        key = (rows[0].network, rows[0].file)
        others = read(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else []
        others = [row for row in others if (row.network, row.file) != key]
        PAGE.write_text(write([*others, *rows]), encoding="utf-8")
        print(
            name, *(f"{r.granularity} {' '.join(r.found)} {r.difference}" for r in rows), sep="\n  "
        )


if __name__ == "__main__":
    main()
