"""Skeletons: ONNX files whose large floating-point tensors are replaced by a description.

A skeleton is an xz-compressed ``ModelProto``. A floating-point tensor (an initializer, or the
tensor attribute of a node, in any graph or function) of more than `LARGE` elements has no data;
its ``doc_string`` describes what to fill in, as JSON after the prefix `PREFIX`:

``{"value": v}``
    every element is ``v``;
``{"seed": k, "mean": m, "std": s, "min": a, "max": b}``
    normal(m, s) clipped to [a, b]. Tensors that had equal contents have equal ``k``.

Everything else stays exactly as the exporter wrote it: integers, small tensors, and large tensors
that compress well (masks, coordinate grids), since those are structure rather than weights.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

LARGE = 64
"""Largest number of elements of a floating-point tensor that is kept exactly."""

PREFIX = "skeleton:"
"""Start of the ``doc_string`` of a tensor without data."""

INPUTS_KEY = "skeleton.inputs"
"""Key of the model's metadata that describes sensible inputs, see `strip`."""

STRUCTURED = 0.25
"""A tensor whose compressed data is below this fraction of its size is kept exactly."""

FLOATING: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.DOUBLE: "<f8",
    TensorProto.FLOAT16: "<f2",
}
"""Data types that are described, with the layout of their ``raw_data``."""

UNWANTED_METADATA = ("pkg.torch.onnx.stack_trace",)
"""Metadata of nodes that names source files of the exporting machine."""


def strip(model: ModelProto, inputs: Mapping[str, Mapping[str, Any]] | None = None) -> bytes:
    """Turn a model into a skeleton.

    Parameters
    ----------
    model
        The model with its weights inside; it is not changed.
    inputs
        For each graph input how to make a sensible value, stored in the model's metadata:
        ``{"shape": [2, 3, 224, 224], "batch_axis": 0, "high": 500}``. ``high`` (integers only) is
        the exclusive upper bound of the values.

    Returns
    -------
    bytes
        The contents of a ``.onnx.xz`` file.
    """
    skeleton = ModelProto()
    skeleton.CopyFrom(model)
    seeds: dict[bytes, int] = {}
    for tensor in tensors(skeleton):
        if tensor.data_type in FLOATING and int(np.prod(tensor.dims)) > LARGE:
            _describe(tensor, seeds)
    for node in nodes(skeleton):
        kept = [entry for entry in node.metadata_props if entry.key not in UNWANTED_METADATA]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    if inputs is not None:
        skeleton.metadata_props.add(key=INPUTS_KEY, value=json.dumps(inputs))
    return lzma.compress(skeleton.SerializeToString(deterministic=True), preset=9)


def restore(path: Path | str, seed: int = 0) -> ModelProto:
    """Read a skeleton and fill in its weights.

    Parameters
    ----------
    path
        A ``.onnx.xz`` file written with `strip`.
    seed
        Other weights for another seed; the same weights for the same seed.

    Returns
    -------
    ModelProto
        A complete model.
    """
    model = onnx.load_model_from_string(lzma.decompress(Path(path).read_bytes()))
    for tensor in tensors(model):
        if tensor.doc_string.startswith(PREFIX):
            _fill(tensor, seed)
    return model


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every dense tensor of a model: initializers and attributes, in file order."""
    for graph in _graphs(model):
        yield from graph.initializer
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Yield every node of a model, its subgraphs and its functions, in file order."""
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    pending = [model.graph]
    for function in model.functions:
        pending += _subgraphs(function.node)
    while pending:
        graph = pending.pop(0)
        yield graph
        pending += _subgraphs(graph.node)


def _subgraphs(members: Any) -> list[GraphProto]:
    found = []
    for node in members:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found.append(attribute.g)
            found += attribute.graphs
    return found


def _describe(tensor: TensorProto, seeds: dict[bytes, int]) -> None:
    array = numpy_helper.to_array(tensor)
    description: dict[str, float]
    if np.all(array == array.flat[0]):
        description = {"value": float(array.flat[0])}
    else:
        data = np.ascontiguousarray(array).tobytes()
        if not np.isfinite(array).all() or len(zlib.compress(data, 1)) < STRUCTURED * len(data):
            return
        values = array.astype(np.float64)
        description = {
            "seed": seeds.setdefault(hashlib.sha256(data).digest(), len(seeds)),
            "mean": _rounded(values.mean()),
            "std": _rounded(values.std()),
            "min": _rounded(values.min()),
            "max": _rounded(values.max()),
        }
    for field in ("raw_data", "float_data", "double_data", "int32_data"):
        tensor.ClearField(field)
    tensor.doc_string = PREFIX + json.dumps(description)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _fill(tensor: TensorProto, seed: int) -> None:
    description = json.loads(tensor.doc_string.removeprefix(PREFIX))
    shape = tuple(tensor.dims)
    if "value" in description:
        array = np.full(shape, description["value"], np.float32)
    else:
        generator = np.random.default_rng([seed, description["seed"]])
        array = generator.standard_normal(shape, np.float32)
        array *= np.float32(description["std"])
        array += np.float32(description["mean"])
        np.clip(array, description["min"], description["max"], out=array)
    tensor.ClearField("doc_string")
    tensor.raw_data = array.astype(FLOATING[tensor.data_type], copy=False).tobytes()
