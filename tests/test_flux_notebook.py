"""The Flux engine in a notebook: output, progress, and the interruption of a training."""

from __future__ import annotations

import os
import signal
import threading
import time
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from flux_support import needs_julia

ROOT = Path(__file__).parents[1]
NETWORK = ROOT / "tests" / "models" / "mnist-resnet14.onnx"
DATA = NETWORK.with_suffix(".calib.npz")

pytestmark = [
    needs_julia,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(util.find_spec, ("ipykernel", "nbclient"))),
        reason="a notebook's kernel isn't there: pip install ipykernel nbclient",
    ),
    # Of asyncio and ZeroMQ, as nbclient uses them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]

START = f"""
import numpy as np
import onnxjl

model = onnxjl.to_flux({str(NETWORK)!r})
with np.load({str(DATA)!r}) as file:
    data = {{name: file[name] for name in file.files}}
model
"""

GRADIENT = """
loss, gradients = model.gradient("cross-entropy", data["image"][:8], data["target"][:8])
print(loss > 0, len(gradients) > 10, all(np.isfinite(g).all() for g in gradients.values()))
"""

FINETUNE = """
before = np.array(model["conv1"].weight)
history = model.finetune(data, epochs=1000, batch_size=32)
"""

AFTER = """
print(history.interrupted, (before != np.array(model["conv1"].weight)).any())
loss, gradients = model.gradient("cross-entropy", data["image"][:8], data["target"][:8])
print(np.isfinite(model(data["image"][:8])).all(), np.isfinite(loss))
"""


@pytest.fixture(scope="module")
def outputs() -> list[list[dict[str, Any]]]:
    """What the cells leave; the training is interrupted once its progress is shown."""
    import nbformat
    from nbclient import NotebookClient

    cells = [nbformat.v4.new_code_cell(text) for text in (START, GRADIENT, FINETUNE, AFTER)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3")

    def interrupt() -> None:
        deadline = time.monotonic() + 300
        while "samples/s" not in _text(cells[2]) and time.monotonic() < deadline:
            time.sleep(0.5)
        os.kill(client.km.provisioner.pid, signal.SIGINT)

    def started(cell: dict[str, Any], cell_index: int) -> None:
        if cell_index == 2:
            threading.Thread(target=interrupt, daemon=True).start()

    client.on_cell_execute = started
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    client.execute(env={**os.environ, "PYTHONPATH": path})
    return [cell["outputs"] for cell in notebook.cells]


def _text(cell: dict[str, Any]) -> str:
    return "".join(output.get("text", "") for output in cell["outputs"])


def test_a_model_is_shown_as_flux_shows_it(outputs: list[list[dict[str, Any]]]) -> None:
    (shown,) = [o["data"]["text/plain"] for o in outputs[0] if o["output_type"] == "execute_result"]
    assert '"conv1" => Conv((3, 3), 1 => 16' in shown


def test_gradients_work(outputs: list[list[dict[str, Any]]]) -> None:
    assert "".join(o["text"] for o in outputs[1]) == "True True True\n"


def test_progress_is_shown_while_a_network_is_trained(outputs: list[list[dict[str, Any]]]) -> None:
    drawn = "".join(o["text"] for o in outputs[2] if o.get("name") == "stderr")
    assert "\r" in drawn
    assert "fine-tuning: epoch 1 of 1000" in drawn
    assert "samples/s" in drawn


def test_an_interrupted_training_leaves_a_model_that_works(
    outputs: list[list[dict[str, Any]]],
) -> None:
    warned = "".join(o.get("text", "") for o in outputs[2])
    assert "interrupted" in warned
    assert "".join(o["text"] for o in outputs[3]) == "True True\nTrue True\n"
