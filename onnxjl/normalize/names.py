"""Give every node a name of its own, for plans to refer to."""

from __future__ import annotations

import onnx_ir as ir


def name_nodes(model: ir.Model) -> ir.Model:
    """Name nameless nodes of the main graph after their first output; number repeated names.

    Of several nodes with one name the first keeps it.
    """
    used: set[str] = set()
    repeated: list[ir.Node] = []
    for node in model.graph:
        if node.name and node.name not in used:
            used.add(node.name)
        else:
            repeated.append(node)
    for node in repeated:
        name = node.name or next((v.name for v in node.outputs if v.name), node.op_type)
        candidate, count = name, 0
        while candidate in used:
            count += 1
            candidate = f"{name}_{count}"
        node.name = candidate
        used.add(candidate)
    return model
