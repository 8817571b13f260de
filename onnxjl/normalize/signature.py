"""Settle which inputs a graph has."""

from __future__ import annotations

import onnx_ir as ir


def drop_default_inputs(model: ir.Model) -> ir.Model:
    """Make initializers that are also listed as inputs plain initializers.

    Files older than version 4 of the format had to list them, and converters still do. A weight
    that a caller could override couldn't be pruned.
    """
    graph = model.graph
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    return model
