"""Equations of `Einsum`: refused where they are none, before ONNX's shape inference sees them."""

from __future__ import annotations

import re

import onnx_ir as ir

from onnxjl.errors import ModelError
from onnxjl.graph import node_name

_TERM = r"[A-Za-z]*(\.\.\.)?[A-Za-z]*"
_EQUATION = re.compile(rf"{_TERM}(,{_TERM})*(->{_TERM})?")


def check_equations(model: ir.Model) -> ir.Model:
    """Return the model, if its equations are letters, commas, an arrow, and ``...`` once a term.

    ONNX's shape inference never ends on some others, and can't be interrupted.

    Parameters
    ----------
    model : any model; equations that functions take from their callers are passed over.

    Raises
    ------
    ModelError : an equation isn't one.
    """
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        for node in graph.all_nodes():
            equation = node.attributes.get("equation") if node.op_type == "Einsum" else None
            if equation is None or equation.is_ref() or equation.type != ir.AttributeType.STRING:
                continue
            text = "".join(equation.as_string().split())
            if not _EQUATION.fullmatch(text):
                shown = text if len(text) <= 60 else f"{text[:60]}…"
                raise ModelError(
                    f"node '{node_name(node)}' (Einsum): {shown!r} is no equation; expected one "
                    "such as 'ij,jk->ik'"
                )
    return model
