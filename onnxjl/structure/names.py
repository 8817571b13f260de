"""What nodes and layers are called."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxjl.errors import UsageError
from onnxjl.graph import Graph, node_name


def weight(node: ir.Node) -> ir.Value | None:
    """Return a layer's main weight: its largest initializer with two axes or more.

    Normalizations, whose parameters have one axis, count with their first parameter.
    """
    first: ir.Value | None = None
    wide: list[tuple[ir.Value, ir.TensorProtocol]] = []
    for value in node.inputs:
        if value is None or not value.is_initializer() or not value.name:
            continue
        tensor = value.const_value
        if tensor is None:
            continue
        first = first or value
        if len(tensor.shape) >= 2:
            wide.append((value, tensor))
    if len(wide) > 1:
        return max(wide, key=lambda found: found[1].size)[0]
    return wide[0][0] if wide else first


def layer_names(graph: Graph) -> dict[ir.Node, str]:
    """Return a name for each node: its weight's prefix where that is unique, else `node_name`.

    ``layer1.0.conv1.weight`` names the layer ``layer1.0.conv1``. A prefix is a layer's own where
    no other node uses a weight of that prefix.
    """
    prefixes: dict[ir.Node, str] = {}
    for node in graph.model.graph:
        value = weight(node)
        if value is not None and value.name and "." in value.name:
            prefixes[node] = value.name.rpartition(".")[0]
    count = Counter(prefixes.values())
    return {
        node: prefixes[node] if count.get(prefixes.get(node, ""), 0) == 1 else node_name(node)
        for node in graph.model.graph
    }


def check_patterns(names: Mapping[ir.Node, str], patterns: Sequence[str]) -> None:
    """Raise a UsageError for an fnmatch pattern that matches neither a layer nor a node.

    Parameters
    ----------
    names : node -> its layer's name, as `layer_names` gives them.
    patterns : what layers and nodes are chosen by.
    """
    for pattern in patterns:
        if not any(
            fnmatch.fnmatchcase(n, pattern)
            for node in names
            for n in (names[node], node_name(node))
        ):
            raise UsageError(f"no layer or node matches '{pattern}'; `onnxjl info` lists them")
