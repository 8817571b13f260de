"""Drop what no output depends on."""

from __future__ import annotations

import onnx_ir as ir


def drop_dead(model: ir.Model) -> ir.Model:
    """Drop the main graph's nodes and initializers that no output depends on."""
    graph = model.graph
    for node in reversed(graph):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del graph.initializers[name]
    return model
