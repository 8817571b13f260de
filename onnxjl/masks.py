"""Masks: which weights of a network are held at zero, as the model itself says.

The model's metadata name the initializers that have a mask, as a JSON list under ``onnxjl.masks``;
the mask of each is where its weight isn't zero. So a mask is saved with the file, is cut with its
weight, and is there again when the file is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

KEY = "onnxjl.masks"
"""Metadata key under which a model names the initializers that have a mask."""


def masked_names(model: ir.Model) -> list[str]:
    """Return the initializers that have a mask, in the model's order.

    Parameters
    ----------
    model : any model. Names that it no longer has are passed over.
    """
    try:
        names = json.loads(model.metadata_props.get(KEY, "[]"))
    except (ValueError, RecursionError):
        return []
    recorded = set(map(str, names)) if isinstance(names, list) else set()
    return [
        name
        for name, value in model.graph.initializers.items()
        if name in recorded
        and value.const_value is not None
        and value.const_value.dtype.is_floating_point()
    ]


def record(model: ir.Model, names: Iterable[str]) -> None:
    """Write down in a model (which changes) that just these initializers have a mask."""
    listed = sorted(names)
    if listed:
        model.metadata_props[KEY] = json.dumps(listed)
    else:
        model.metadata_props.pop(KEY, None)


def with_zeros(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a weight with zeros where its mask is false.

    Parameters
    ----------
    array : of any floating type.
    mask : bool, of the same shape.
    """
    result = np.array(array, order="C")
    # The sign goes, too: a negative zero has bits that are set.
    result[~mask] = 0
    return result


def tensors(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> dict[str, ir.Tensor]:
    """Return arrays as a model's weights, in the types that these have."""
    found = {}
    for name, array in arrays.items():
        value = model.graph.initializers[name].const_value
        assert value is not None
        cast = np.asarray(array, dtype=value.dtype.numpy(), order="C")
        found[name] = ir.Tensor(cast, dtype=value.dtype, name=name)
    return found
