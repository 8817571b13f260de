"""The test networks: every skeleton of this folder by name, with sensible inputs.

A name is ``NETWORK.EXPORTER``, for example ``resnet18.ts17``; README.md says what each of them is.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto

from .skeleton import INPUTS_KEY, restore, tensors

FOLDER = Path(__file__).parent / "skeletons"
SUFFIX = ".onnx.xz"

NAMES: list[str] = sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob("*" + SUFFIX))
"""Names of all skeletons."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "attention": (
        "bertlike",
        "decoder",
        "decoder_cached",
        "encoder_mask",
        "gptlike",
        "swin_t",
        "swin_tiny",
        "vit_b_16",
        "vit_tiny",
    ),
    "detection": ("two_stage", "yolo"),
    "mixed": ("attention_mix", "keras_attention", "two_inputs"),
    "recurrent": ("gru", "lstm", "lstm_stacked", "rnn", "rnn_relu"),
    "segmentation": ("unet",),
    "speech": ("speaker",),
    "tied": ("conv_twice", "tied_embedding", "tied_linear"),
}
"""Networks that are no plain image or signal classifier, by family."""


def network(name: str) -> str:
    """Return the network of a name: ``resnet18`` for ``resnet18.ts17``."""
    return name.partition(".")[0]


def exporter(name: str) -> str:
    """Return the exporter of a name: ``ts17`` for ``resnet18.ts17``."""
    return name.partition(".")[2]


def family(name: str) -> str:
    """Return the kind of network: a key of `FAMILIES`, or ``convolution``."""
    for kind, networks in FAMILIES.items():
        if network(name) in networks:
            return kind
    return "convolution"


def path(name: str) -> Path:
    """Return where the skeleton of a name lies."""
    return FOLDER / (name + SUFFIX)


def size(name: str) -> int:
    """Return the number of weights, without loading them; to choose what a test can afford."""
    return sum(int(np.prod(tensor.dims)) for tensor in tensors(_skeleton(name)))


def load(name: str, seed: int = 0) -> ModelProto:
    """Return a complete model, with weights drawn with `seed`."""
    return restore(path(name), seed)


def inputs(
    model: str | ModelProto, seed: int = 0, batch: int | None = None
) -> dict[str, np.ndarray]:
    """Make inputs of the sizes, and within the range, that a network was exported with.

    Parameters
    ----------
    model
        A name out of `NAMES`, or a model. Where its metadata has no description of its inputs,
        they follow from its declared types: batch 1, other symbols 16, integers 0 or 1.
    seed
        Seed of the values.
    batch
        Size of the batch instead of the exported one; only for networks exported with a dynamic
        batch.

    Returns
    -------
    dict of str to ndarray
        For each graph input an array. Real inputs are normal, with a scale and an offset of their
        own for each sample and channel, so that the samples of a batch differ after pooling too.
    """
    proto = _skeleton(model) if isinstance(model, str) else model
    stored = {entry.key: entry.value for entry in proto.metadata_props}
    descriptions = json.loads(stored.get(INPUTS_KEY, "{}"))
    constants = {tensor.name for tensor in proto.graph.initializer}
    generator = np.random.default_rng(seed)
    return {
        value.name: _sample(value, descriptions.get(value.name), generator, batch)
        for value in proto.graph.input
        if value.name not in constants
    }


def _skeleton(name: str) -> ModelProto:
    return onnx.load_model_from_string(lzma.decompress(path(name).read_bytes()))


def _sample(
    value: ValueInfoProto,
    description: Mapping[str, Any] | None,
    generator: np.random.Generator,
    batch: int | None,
) -> np.ndarray:
    description = description or {"shape": _declared(value)}
    shape = list(description["shape"])
    if batch is not None:
        shape[description.get("batch_axis", 0)] = batch
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return draw(generator, shape, dtype, description.get("high", 2))


def draw(
    generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype, high: int = 2
) -> np.ndarray:
    """Draw one input: integers below `high`, or normal numbers as `inputs` describes them."""
    if dtype.kind in "iub":
        return generator.integers(0, high, shape).astype(dtype)
    values = generator.standard_normal(shape)
    if len(shape) > 2:
        each = (*shape[:2], *(1 for _ in shape[2:]))
        scale, offset = generator.uniform(0.5, 1.5, each), generator.normal(0, 0.5, each)
        values = values * scale + offset
    return values.astype(dtype)


def _declared(value: ValueInfoProto) -> list[int]:
    sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
    return [size or (16 if axis else 1) for axis, size in enumerate(sizes)]
