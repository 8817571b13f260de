"""Handover: a graph as plain values for Julia, and what Julia says of it as a graph again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxjl.errors import DataError, UnsupportedOperator, UsageError
from onnxjl.graph import FLOATING, Graph, node_name
from onnxjl.inputs import graph_inputs

PlainNode = tuple[str, str, str, list[str], list[str], dict[str, Any]]
"""Name, operator, domain, inputs, outputs (absent ones are empty), attributes."""

_TYPES = frozenset(
    np.dtype(name)
    for name in (
        *("bool", "float16", "float32", "float64"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
)

_TEXT = "OSUT"
"""The kinds of NumPy's types that hold strings."""


def check_type(where: str, dtype: np.dtype) -> None:
    """Raise an UnsupportedOperator unless Julia has this element type.

    Parameters
    ----------
    where : what has it, for the message.
    """
    if dtype not in _TYPES and dtype.kind not in _TEXT:
        raise UnsupportedOperator(
            f"{where} holds {dtype.name}: the Flux engine has 16, 32 and 64-bit floats, 8 to "
            "64-bit integers, booleans and strings; convert the model"
        )


def check_inputs(graph: Graph) -> None:
    """Raise an UnsupportedOperator unless every input of the graph has a type that Julia has."""
    for value in graph_inputs(graph):
        kind = value.type
        while isinstance(kind, ir.SequenceType | ir.OptionalType):
            kind = kind.elem_type
        if isinstance(kind, ir.TensorType):
            check_type(f"input '{value.name}'", kind.dtype.numpy())
        elif kind is not None:
            name = type(kind).__name__.removesuffix("Type").lower()
            raise UnsupportedOperator(
                f"input '{value.name}' is of type {name}: the Flux engine has tensors, sequences "
                "and optional values"
            )


def to_julia(value: Any) -> Any:
    """Return a value as Julia takes it: its axes reversed, texts as `str`.

    Parameters
    ----------
    value : an array, a list of values for a sequence, or None for an optional value that is empty.
    """
    if value is None:
        return None
    if isinstance(value, list):
        return [to_julia(entry) for entry in value]
    array = np.asarray(value, order="C")
    return (_texts(array) if array.dtype.kind in _TEXT else array).T


def from_julia(value: Any) -> Any:
    """Return a value that Julia gives, with its axes reversed, as `to_julia` takes it."""
    if value is None:
        return None
    if isinstance(value, list):
        return [from_julia(entry) for entry in value]
    return np.asarray(value).T


def _texts(array: np.ndarray) -> np.ndarray:
    """An array of strings or bytes as one of `str`."""
    texts = [x.decode() if isinstance(x, bytes) else x for x in array.ravel().tolist()]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"expected an array of strings, came one with {text!r}")
    result = np.empty(len(texts), dtype=object)
    result[:] = texts
    return result.reshape(array.shape)


def nodes(graph: ir.Graph) -> list[PlainNode]:
    """Return a graph's nodes as plain values.

    Raises
    ------
    UnsupportedOperator : a node has an attribute of a type that the Flux engine doesn't know.
    """
    return [
        (
            node.name or "",
            node.op_type,
            node.domain,
            _names(node.inputs),
            _names(node.outputs),
            {key: _plain(node, attribute) for key, attribute in node.attributes.items()},
        )
        for node in graph
    ]


def tensors(graph: Graph) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the initializers, one at a time, with their axes reversed: as Julia has them.

    What is in external data leaves memory again before the next.

    Raises
    ------
    UnsupportedOperator : a tensor has a type that the Flux engine doesn't know.
    """
    for name in graph.model.graph.initializers:
        array = graph.weight(name)
        check_type(f"initializer '{name}'", array.dtype)
        yield name, to_julia(array)
        del array
        graph.unmap(name)


def trainable(graph: Graph) -> list[str]:
    """Return the initializers that training may change: floating, of more than one element."""
    return _trainable(graph.model.graph)


def _trainable(graph: ir.Graph) -> list[str]:
    return [
        name
        for name, value in graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype in FLOATING
        and value.const_value.size > 1
    ]


def declared(name: str, shape: Any) -> list[int | str | None]:
    """Return an input's shape as a list; an axis 0 of any size is called ``batch``.

    Raises
    ------
    UsageError : it isn't a sequence of positive sizes, names and `None`.
    """
    sizes = list(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else None
    if not sizes or not all(
        n is None or (isinstance(n, int) and n > 0) or (isinstance(n, str) and n) for n in sizes
    ):
        raise UsageError(
            f"input '{name}' can't have the shape {shape!r}: give a size for each axis, batch "
            "first, and None or a name where any size will do"
        )
    return ["batch" if n is None and axis == 0 else n for axis, n in enumerate(sizes)]


def to_model(
    delivered: Sequence[Any], inputs: Sequence[tuple[str, Sequence[int | str | None]]]
) -> ir.Model:
    """Return the model that a network written in Julia makes.

    Parameters
    ----------
    delivered : nodes and tensors as `to_graph` takes them, the element types of the inputs, the
        names of the outputs, the versions of the operator sets, and shapes by value.
    inputs : name and shape of each input.
    """
    network, types, outputs, opsets, shapes = delivered
    plain, arrays = _delivered(network)
    empty = ir.Graph(
        [
            ir.Value(
                name=name,
                type=ir.TensorType(ir.DataType.from_numpy(np.dtype(str(dtype)))),
                shape=ir.Shape(shape),
            )
            for (name, shape), dtype in zip(inputs, types, strict=True)
        ],
        [ir.Value(name=str(name)) for name in outputs],
        nodes=[],
        opset_imports={str(domain): int(version) for domain, version in opsets.items()},
        name="network",
    )
    used = dict.fromkeys(name for node in plain for name in map(str, node[3]) if name in arrays)
    graph = _graph(empty, plain, {name: arrays[name] for name in used}, {})
    model = ir.Model(graph, ir_version=10, producer_name="onnxjl")
    _infer_shapes(model)
    unknown = [v for node in graph for v in node.outputs if v.shape is None and v.name in shapes]
    if unknown:  # ONNX doesn't infer what GroupNormalization gives, nor what comes after it.
        for value in unknown:
            value.shape = ir.Shape(shapes[value.name])
            value.type = graph.inputs[0].type
        _infer_shapes(model)
    return model


def to_graph(like: Graph, delivered: Sequence[Any]) -> Graph:
    """Return the graph that nodes and tensors from Julia make.

    Parameters
    ----------
    like : the graph that they came from. Inputs, outputs and metadata are its, and so are nodes
        but for what differs.
    delivered : nodes as `nodes` gives them, with only those attributes that differ from `like`'s,
        and a dict of initializer name -> array with its axes reversed. Where Julia computes in
        another precision, weights get that of `like` again.
    """
    nodes, arrays = _delivered(delivered)
    result = _graph(like.model.graph, nodes, _in_precision_of(like, arrays), {})
    model = ir.Model(
        result,
        ir_version=like.model.ir_version,
        producer_name=like.model.producer_name,
        producer_version=like.model.producer_version,
        domain=like.model.domain,
        model_version=like.model.model_version,
        doc_string=like.model.doc_string,
        metadata_props=dict(like.model.metadata_props),
    )
    declared = {value: value.shape for value in result.outputs}
    if _resized(like.model.graph, result):
        for node in result:
            for value in node.outputs:
                value.shape = None
    if any(value.shape is None for node in result for value in node.outputs):
        _infer_shapes(model)
    for value, shape in declared.items():
        value.shape = shape if value.shape is None else value.shape
    return replace(like, model=model, plan=None, source=None)


def _infer_shapes(model: ir.Model) -> None:
    """Infer shapes; where they don't fit together, running the network says it better."""
    every = list(model.graph.all_nodes())
    sequences = any(n.op_type.startswith(("Optional", "Sequence", "SplitToSeq")) for n in every)
    # The pass takes sequences for tensors where it finds no type.
    untyped = [v for n in every for v in n.outputs if sequences and v.type is None]
    logger = logging.getLogger(ShapeInferencePass.__module__)
    before, logger.disabled = logger.disabled, True
    try:
        ShapeInferencePass()(model)
    finally:
        logger.disabled = before
    for value in untyped:
        value.type = value.shape = None


def _resized(before: ir.Graph, after: ir.Graph) -> bool:
    """Whether weights changed their shapes, or windows theirs: then values did."""
    shapes = {
        name: value.const_value.shape
        for name, value in before.initializers.items()
        if value.const_value is not None
    }
    if any(shapes.get(name) != value.shape for name, value in after.initializers.items()):
        return True
    windows = {node.outputs[0].name: _window(node) for node in before}
    return any(windows.get(node.outputs[0].name) != _window(node) for node in after)


def _window(node: ir.Node) -> list[Any]:
    """What a node says of the windows that it slides, which the size of its output depends on."""
    return [node.op_type] + [
        node.attributes[key].value
        for key in ("kernel_shape", "strides", "pads", "dilations", "output_padding")
        if key in node.attributes
    ]


def _graph(
    before: ir.Graph,
    plain: Iterable[Sequence[Any]],
    arrays: Mapping[str, np.ndarray],
    outer: Mapping[str, ir.Value],
) -> ir.Graph:
    """The graph that nodes and tensors make, as `to_graph` says; `outer` are values around it."""
    known = {value.name: value for node in before for value in node.outputs}
    originals = {node.outputs[0].name: node for node in before}
    values = {**outer, **{value.name or "": _value(value) for value in before.inputs}}
    for name, array in arrays.items():
        original = before.initializers.get(name)
        if name not in values:
            values[name] = ir.Value(name=name) if original is None else _value(original)
        value = values[name]
        tensor = _tensor(np.asarray(array, order="C"), name)
        value.const_value, value.shape = tensor, tensor.shape
        value.type = ir.TensorType(tensor.dtype)
    made = []
    for name, operator, domain, inputs, outputs, edited in plain:
        for output in outputs:
            values[output] = _value(known[output]) if output in known else ir.Value(name=output)
        original_node = originals.get(outputs[0])
        same = original_node is not None and original_node.op_type == operator
        attributes = dict(original_node.attributes.data) if same and original_node else {}
        for key, setting in edited.items():
            if isinstance(setting, tuple):
                graph = _graph(attributes[key].as_graph(), *_delivered(setting), values)
                attributes[key] = ir.AttrGraph(key, graph)
            else:
                attributes[key] = ir.convenience.convert_attribute(key, setting)
        made.append(
            ir.Node(
                domain,
                operator,
                [values[i] if i else None for i in inputs],
                attributes.values(),
                outputs=[values[o] for o in outputs],
                name=name,
                doc_string=original_node.doc_string if same and original_node else None,
                metadata_props=dict(original_node.metadata_props) if same and original_node else {},
            )
        )
    return ir.Graph(
        [values[v.name or ""] for v in before.inputs],
        [values[v.name or ""] for v in before.outputs],
        nodes=made,
        initializers=[values[name] for name in _order(before, arrays)],
        doc_string=before.doc_string,
        opset_imports=dict(before.opset_imports),
        name=before.name,
        metadata_props=dict(before.metadata_props),
    )


def _tensor(array: np.ndarray, name: str) -> ir.Tensor | ir.StringTensor:
    if array.dtype.kind not in _TEXT:
        return ir.Tensor(array, name=name)
    texts = [text.encode() for text in array.ravel()]
    return ir.StringTensor(texts, shape=ir.Shape(array.shape), name=name)


def _delivered(plain: Sequence[Any]) -> tuple[Any, dict[str, np.ndarray]]:
    """Nodes and arrays as Julia delivers them, the arrays in ONNX's layout."""
    nodes, arrays = plain
    return nodes, {str(name): np.array(x.T, order="C") for name, x in arrays.items()}


def _in_precision_of(like: Graph, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays with the floating types that they had in a graph; new ones change alike."""
    known = {
        name: value.const_value.dtype.numpy()
        for name, value in like.model.graph.initializers.items()
        if value.const_value is not None and value.const_value.dtype in FLOATING
    }
    alike = {arrays[name].dtype: dtype for name, dtype in known.items() if name in arrays}
    return {
        name: x.astype(known.get(name, alike.get(x.dtype, x.dtype)), copy=False)
        for name, x in arrays.items()
    }


def _order(before: ir.Graph, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the arrays: the graph's in its order, then new ones."""
    return [n for n in before.initializers if n in arrays] + [
        n for n in arrays if n not in before.initializers
    ]


def _inner(graph: ir.Graph) -> tuple[Any, ...]:
    """A graph that is an attribute: nodes, tensors, inputs, outputs, and what may be trained."""
    arrays = []
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            array = value.const_value.numpy()
            check_type(f"initializer '{name}'", array.dtype)
            arrays.append((name, to_julia(array)))
    return (
        nodes(graph),
        arrays,
        _names(graph.inputs),
        _names(graph.outputs),
        _trainable(graph),
    )


def _names(values: Sequence[ir.Value | None]) -> list[str]:
    return ["" if value is None else value.name or "" for value in values]


def _value(value: ir.Value) -> ir.Value:
    return ir.Value(
        name=value.name,
        type=value.type,
        shape=None if value.shape is None else value.shape.copy(),
        doc_string=value.doc_string,
        metadata_props=dict(value.metadata_props),
    )


def _plain(node: ir.Node, attribute: ir.Attr) -> Any:
    """An attribute's value as Julia takes it: a number, text, a list of these, or an array."""
    kind = ir.AttributeType
    match attribute.type:
        case kind.INT | kind.FLOAT | kind.STRING:
            return attribute.value
        case kind.INTS | kind.FLOATS | kind.STRINGS:
            return list(attribute.value)
        case kind.TENSOR:
            array = attribute.as_tensor().numpy()
            check_type(
                f"node '{node_name(node)}' ({node.op_type}): '{attribute.name}'", array.dtype
            )
            return to_julia(array)
        case kind.GRAPH:
            return _inner(attribute.as_graph())
        case kind.TYPE_PROTO:
            return str(attribute.value)
        case _:
            raise UnsupportedOperator(
                f"node '{node_name(node)}' ({node.op_type}): the Flux engine doesn't know its "
                f"attribute '{attribute.name}', a {attribute.type.name.lower()}"
            )
