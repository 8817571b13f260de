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
    pending = [model.graph, *(function.graph for function in model.functions.values())]
    while pending:
        for node in pending.pop():
            for attribute in node.attributes.data.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.GRAPH:
                    pending.append(attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS:
                    pending.extend(attribute.as_graphs())
                elif (node.op_type, attribute.name) == ("Einsum", "equation"):
                    _check(node, attribute)
    return model


def _check(node: ir.Node, equation: ir.Attr) -> None:
    text = "".join(equation.as_string().split())
    if not _EQUATION.fullmatch(text):
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        raise ModelError(
            f"node '{node_name(node)}' (Einsum): {shown!r} is no equation; expected one such as "
            "'ij,jk->ik'"
        )
