"""Measure what each allocation leaves of the test network's accuracy, and write it into the page.

python docs/scripts/allocation.py
"""

from __future__ import annotations

from pathlib import Path

import onnxjl

PAGE = Path(__file__).parents[1] / "allocation.md"
NETWORK = Path(__file__).parents[2] / "tests" / "models" / "mnist-resnet14.onnx"
CALIBRATION = NETWORK.with_suffix(".calib.npz")
TEST = NETWORK.with_suffix(".test.npz")
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"

MACS = 0.25
ROWS = (
    ("global", 1),
    ("local", 1),
    ("isomorphic", 1),
    ("erk", 1),
    ("sensitivity", 1),
    ("optimal", 1),
    ("optimal", 8),
)
CRITERIA = ("l2", "activation")


def accuracy(criterion: str, scope: str, min_units: int) -> float:
    """Return the accuracy on the test digits, refitted on the calibration digits."""
    small = onnxjl.prune(
        NETWORK,
        macs=MACS,
        criterion=criterion,
        scope=scope,
        min_units=min_units,
        data=CALIBRATION,
        calibration=CALIBRATION,
        recover="refit",
    )
    return onnxjl.accuracy(small, TEST)


def table() -> str:
    """Return the table of the page."""
    lines = ["| allocation | " + " | ".join(f"`{name}`" for name in CRITERIA) + " |"]
    lines.append("|---|" + "--:|" * len(CRITERIA))
    for scope, min_units in ROWS:
        name = f'`"{scope}"`' + (f", `min_units={min_units}`" if min_units > 1 else "")
        cells = [f"{100 * accuracy(each, scope, min_units):.2f} %" for each in CRITERIA]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
