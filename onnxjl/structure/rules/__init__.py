"""Rules: how each operator acts on labels, and what becomes of its shape inputs and attributes.

One file holds a family of operators. ``@rule("Conv")`` gives the labels of the outputs and unites
those of the inputs; ``@edit("Conv")`` rewrites what the surviving labels change. An operator
without a rule is fixed: it costs prunability, never correctness.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from onnxjl.structure.edits import Editor
    from onnxjl.structure.interpreter import Interpreter

Rule = Callable[["Interpreter", ir.Node], None]
Edit = Callable[["Editor", ir.Node], None]
Condition = Callable[[ir.Node], bool]

RULES: dict[tuple[str, str], Rule] = {}
EDITS: dict[tuple[str, str], tuple[Edit, Condition]] = {}


class Unruled(Exception):  # noqa: N818 - an answer, not an error: the caller fixes what the node touches
    """A rule can't treat this node; says why."""


def rule(*operators: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register the label rule of operators."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            if (domain, operator) in RULES:
                raise ValueError(f"{operator} has two label rules")
            RULES[domain, operator] = function
        return function

    return register


def _always(node: ir.Node) -> bool:
    return True


def edit(*operators: str, domain: str = "", when: Condition = _always) -> Callable[[Edit], Edit]:
    """Register what a plan changes in operators besides their weights, and in which nodes."""

    def register(function: Edit) -> Edit:
        for operator in operators:
            if (domain, operator) in EDITS:
                raise ValueError(f"{operator} has two edits")
            EDITS[domain, operator] = function, when
        return function

    return register


for _family in (
    "attention",
    "contraction",
    "elementwise",
    "indexing",
    "normalization",
    "recurrent",
    "selection",
    "shape",
    "spatial",
    "tables",
):
    import_module(f"{__name__}.{_family}")
