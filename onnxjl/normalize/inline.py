"""Inline: calls of the model's own functions become their bodies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest

import onnx_ir as ir

from onnxjl.equations import check_equations
from onnxjl.errors import ModelError
from onnxjl.graph import subgraphs

# The largest networks that are known have some ten thousand.
_MOST_NODES = 100_000


def inline_functions(model: ir.Model) -> ir.Model:
    """Replace calls of the model's own functions by their bodies.

    It is what onnx_ir's `InlinePass` makes, which looks for a free name by trying all numbers: some
    thousand calls of one function take it minutes.

    Raises
    ------
    ModelError : a function calls itself or is called with more inputs than it has, all of them make
        too many nodes, or a call gives an equation that is none.
    """
    if not model.functions:
        return model
    functions = dict(model.functions)
    _check_size(model)
    for function in functions.values():
        _agree_on_versions(model, function)
    naming = _Naming(model.graph)
    pending = list(model.graph.all_nodes())[::-1]
    while pending:
        node = pending.pop()
        called = functions.get(node.op_identifier())
        if called is not None:
            pending += _replace(node, called, naming)[::-1]
    model.functions.clear()
    # Those that bodies took from their callers are known now.
    return check_equations(model)


def _check_size(model: ir.Model) -> None:
    """Refuse functions that call each other so often that their bodies fill the memory."""
    sizes: dict[ir.OperatorIdentifier, int] = {}

    def size(graph: ir.Graph | ir.Function) -> int:
        return sum(sizes.get(node.op_identifier(), 1) for node in graph.all_nodes())

    # ONNX's checker has made sure that no function calls itself, and that chains are short.
    pending = dict(model.functions)
    while pending:
        ready = [
            key
            for key, function in pending.items()
            if not any(node.op_identifier() in pending for node in function.all_nodes())
        ]
        if not ready:
            raise ModelError(f"function '{next(iter(pending))[1]}' calls itself")
        for key in ready:
            sizes[key] = size(pending.pop(key))
    if (total := size(model.graph)) > _MOST_NODES:
        raise ModelError(
            f"written out, the model's functions make {total:,} nodes; {_MOST_NODES:,} at most "
            "are treated"
        )


def _agree_on_versions(model: ir.Model, function: ir.Function) -> None:
    """Let the model import what a function does.

    Where both import a domain, ONNX's checker has made sure that their versions mean the same.
    """
    for domain, version in function.opset_imports.items():
        model.opset_imports.setdefault(domain, version)


def _replace(call: ir.Node, function: ir.Function, naming: _Naming) -> list[ir.Node]:
    """Put a copy of a function's body in place of a call; return its nodes, and nested ones."""
    if len(call.inputs) > len(function.inputs):
        raise ModelError(
            f"function '{function.name}' takes {len(function.inputs)} inputs; it is called with "
            f"{len(call.inputs)}"
        )
    body = function.clone()
    _resolve(body, {**_defaults(function), **call.attributes})
    results = _results(body)
    for formal, actual in zip_longest(list(body.inputs), call.inputs):
        if actual is not None:
            formal.replace_all_uses_with(actual)
            continue
        for use in list(formal.uses()):
            use.node.replace_input_with(use.idx, None)
    nodes = list(body)
    body.remove(nodes)
    made = list(_with_nested(nodes))
    for node in made:
        for key, text in call.metadata_props.items():
            node.metadata_props.setdefault(key, text)
        naming.rename(node)
    graph = call.graph
    assert graph is not None
    graph.insert_before(call, nodes)
    for old, new in zip(call.outputs, results, strict=False):
        new.name = old.name or new.name
        new.type, new.shape = old.type or new.type, old.shape or new.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(call, safe=True)
    return made


def _defaults(function: ir.Function) -> dict[str, ir.Attr]:
    return {a.name: a for a in function.attributes.values() if a.value is not None}


def _resolve(body: ir.Function, attributes: Mapping[str, ir.Attr]) -> None:
    """Put a call's attributes where a body refers to them; what a call leaves out is left out."""
    for node in body.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if not attribute.is_ref():
                continue
            given = attributes.get(attribute.ref_attr_name or "")
            if given is None:
                del node.attributes[name]
            else:
                node.attributes[name] = ir.Attr(name, given.type, given.value)


def _results(body: ir.Function) -> list[ir.Value]:
    """What a body returns, each made by a node of its own, and no longer its outputs."""
    results: list[ir.Value] = []
    for value in list(body.outputs):
        if value.producer() is None:
            copy = ir.Node("", "Identity", [value], num_outputs=1)
            body.append(copy)
            value = copy.outputs[0]
        results.append(value)
    body.outputs.clear()
    return results


def _with_nested(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from graph.all_nodes()


class _Naming:
    """Names for nodes and values that nothing in a graph has.

    Parameters
    ----------
    graph : the graph.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._nodes: dict[str, int] = {}
        self._values: dict[str, int] = {}
        for inner in (graph, *graph.subgraphs()):
            names = (value.name or "" for value in inner.inputs)
            self._values.update(dict.fromkeys([*names, *inner.initializers], 1))
        for node in graph.all_nodes():
            self._nodes[node.name or ""] = 1
            self._values.update(dict.fromkeys((value.name or "" for value in node.outputs), 1))

    def rename(self, node: ir.Node) -> None:
        """Give a node and its outputs names that are free."""
        node.name = _free(self._nodes, node.name or "node")
        for value in node.outputs:
            if value.name != "":
                value.name = _free(self._values, value.name or "val")


def _free(taken: dict[str, int], name: str) -> str:
    """Return a name if it is free, else with the first number that makes it so; it is taken now."""
    candidate, number = name, taken.get(name, 0)
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken[name] = number
    taken.setdefault(candidate, 1)
    return candidate
