"""Surgery: the few edits of a graph that all passes are made of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxjl.external import ExternalWeight


class Names:
    """Hands out value names that nothing in a model, subgraphs included, bears yet.

    Parameters
    ----------
    graph : the model's main graph.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._used: set[str] | None = None
        self._numbers: dict[str, int] = {}

    def fresh(self, name: str) -> str:
        """`name` if it is free, else `name` with the first free number; taken from now on."""
        if self._used is None:
            self._used = self._collect()
        candidate, number = name, self._numbers.get(name, 0)
        while candidate in self._used:
            number += 1
            candidate = f"{name}_{number}"
        self._numbers[name] = number
        self._used.add(candidate)
        return candidate

    def _collect(self) -> set[str]:
        used: set[str] = set()
        for inner in [self._graph, *self._graph.subgraphs()]:
            used.update(value.name or "" for value in inner.inputs)
            used.update(inner.initializers)
            for node in inner:
                used.update(value.name or "" for value in node.outputs)
        return used


def is_onnx(node: ir.Node | None, *op_types: str) -> bool:
    """Whether a node is one of these operators of the default domain."""
    return node is not None and node.domain == "" and node.op_type in op_types


def add_initializer(graph: ir.Graph, name: str, tensor: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """Register a new initializer; `name` must be free."""
    if isinstance(tensor, np.ndarray):
        tensor = ir.Tensor(tensor, name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def renamed(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The same data under another name; `tensor` keeps its own."""
    if isinstance(tensor, ExternalWeight):
        return tensor.renamed(name)
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=tensor.base_dir,
        )
    if isinstance(tensor, ir.StringTensor):
        return ir.StringTensor(tensor.numpy(), shape=ir.Shape(tensor.shape.numpy()), name=name)
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer that no caller can override, else None."""
    if value is None or not is_constant(value):
        return None
    assert value.const_value is not None
    return value.const_value.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer that is no graph input."""
    return (
        value is not None
        and value.const_value is not None
        and value.is_initializer()
        and not value.is_graph_input()
    )


def substitute(old: ir.Value, new: ir.Value) -> bool:
    """Let every user of `old` use `new`, also where `old` is a graph output, whose name stays.

    Returns
    -------
    bool
        False, with nothing changed, where a graph output can't be `new`: it is a graph input, an
        initializer or another output, or belongs to another graph.
    """
    if old.is_graph_output():
        if new.producer() is None or new.is_graph_output() or new.graph is not old.graph:
            return False
        name = old.name
        old.name = f"{name}.replaced"
        new.name = name
        if new.type is None:
            new.type = old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    return True


def take_place(old: ir.Value, new: ir.Value) -> None:
    """Let a node's new output be used, and called, as `old` was; also as graph output."""
    name, old.name = old.name, None
    new.name = name
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def remove(nodes: Iterable[ir.Node]) -> None:
    """Take nodes that nothing uses out of their graph."""
    for node in nodes:
        assert node.graph is not None
        node.graph.remove(node, safe=True)
