"""Changes to a model that keep it parseable, but hardly ever valid."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

_NUMBERS = (0, 1, 2, 3, 5, 7, 64, -1, -2, 255, 1 << 16, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63))
_FLOATS = (0.0, -1.0, 1e-45, 65504.0, 1e38, float("inf"), float("-inf"), float("nan"))
_NAMES = ("", "x", "y", "../x", "a\0b", "ä" * 40, "n" * 300, "%s{0}", "v.folded")
_OPSETS = (0, -1, 1, 5, 7, 9, 11, 13, 14, 16, 18, 21, 24, 10**9, (1 << 63) - 1)
_OPERATORS = tuple(
    sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
)
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "local", "nowhere")


def mutated(data: bytes, seed: int, *, most: int = 4) -> bytes:
    """Return a serialized model with one to `most` changes; other bytes as they are.

    Parameters
    ----------
    data : a serialized ModelProto.
    seed : of the choices; the same seed makes the same changes.
    most : largest number of changes.
    """
    chance = random.Random(seed)
    try:
        model = ModelProto.FromString(data)
    except Exception:
        return data
    for _ in range(chance.randint(1, most)):
        # What there is nothing of, or what protobuf refuses, stays.
        try:
            chance.choice(_CHANGES)(model, chance)
        except (IndexError, ValueError, TypeError):
            continue
    return model.SerializeToString()


def _graphs(model: ModelProto) -> list[GraphProto]:
    """The main graph and its subgraphs."""
    found, pending = [], [model.graph]
    while pending:
        graph = pending.pop()
        found.append(graph)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)
    return found


def _nodes(model: ModelProto) -> list[NodeProto]:
    lists = [graph.node for graph in _graphs(model)]
    lists += [function.node for function in model.functions]
    return [node for nodes in lists for node in nodes]


def _attributes(model: ModelProto) -> list[AttributeProto]:
    return [attribute for node in _nodes(model) for attribute in node.attribute]


def _tensors(model: ModelProto) -> list[TensorProto]:
    found = [tensor for graph in _graphs(model) for tensor in graph.initializer]
    return found + [a.t for a in _attributes(model) if a.HasField("t")]


def _copied(message: Any) -> Any:
    """A message of its own: one can't be copied to where it, or what holds it, is."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _names(model: ModelProto) -> list[str]:
    names = [name for node in _nodes(model) for name in (*node.input, *node.output)]
    return [*names, *(tensor.name for tensor in _tensors(model)), *_NAMES]


def _change_dim(model: ModelProto, chance: random.Random) -> None:
    tensor = chance.choice(_tensors(model))
    how = chance.randrange(4)
    if how == 0:
        tensor.dims.append(chance.choice(_NUMBERS))
    elif how == 1:
        del tensor.dims[chance.randrange(len(tensor.dims))]
    elif how == 2:
        tensor.dims.reverse()
    else:
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(_NUMBERS)


def _change_declared(model: ModelProto, chance: random.Random) -> None:
    graph = chance.choice(_graphs(model))
    info = chance.choice([*graph.input, *graph.output, *graph.value_info])
    shape = info.type.tensor_type.shape
    how = chance.randrange(5)
    if how == 0:
        info.ClearField("type")
    elif how == 1:
        info.type.tensor_type.ClearField("shape")
    elif how == 2:
        shape.dim.add(dim_value=chance.choice(_NUMBERS))
    elif how == 3:
        chance.choice(shape.dim).dim_param = chance.choice(_NAMES)
    else:
        chance.choice(shape.dim).dim_value = chance.choice(_NUMBERS)


def _change_type(model: ModelProto, chance: random.Random) -> None:
    kind = chance.choice((*range(28), 99, -1))
    if chance.random() < 0.5:
        chance.choice(_tensors(model)).data_type = kind
    else:
        graph = chance.choice(_graphs(model))
        chance.choice([*graph.input, *graph.output]).type.tensor_type.elem_type = kind


def _change_data(model: ModelProto, chance: random.Random) -> None:
    tensor = chance.choice(_tensors(model))
    how = chance.randrange(4)
    if how == 0:
        tensor.raw_data = tensor.raw_data[: chance.randrange(len(tensor.raw_data))]
    elif how == 1:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([chance.choice(_FLOATS)] * chance.randrange(8))
    elif how == 2:
        data = bytearray(tensor.raw_data)
        data[chance.randrange(len(data))] = chance.randrange(256)
        tensor.raw_data = bytes(data)
    else:
        number = chance.choice(_NUMBERS).to_bytes(8, "little", signed=True)
        tensor.raw_data = number * (len(tensor.raw_data) // 8 or 1)


def _change_name(model: ModelProto, chance: random.Random) -> None:
    name = chance.choice(_names(model))
    how = chance.randrange(5)
    if how == 0:
        chance.choice(_tensors(model)).name = name
    elif how == 1:
        chance.choice(_nodes(model)).name = name
    elif how == 2:
        graph = chance.choice(_graphs(model))
        chance.choice([*graph.input, *graph.output]).name = name
    else:
        node = chance.choice(_nodes(model))
        places = node.input if how == 3 else node.output
        places[chance.randrange(len(places))] = name


def _change_operator(model: ModelProto, chance: random.Random) -> None:
    node = chance.choice(_nodes(model))
    if chance.random() < 0.8:
        node.op_type = chance.choice((*_OPERATORS, "Nothing", "layer", ""))
    else:
        node.domain = chance.choice(_DOMAINS)


def _change_opset(model: ModelProto, chance: random.Random) -> None:
    how = chance.randrange(4)
    if how == 0:
        model.opset_import.add(domain=chance.choice(_DOMAINS), version=chance.choice(_OPSETS))
    elif how == 1:
        model.ir_version = chance.choice((*range(15), -1, 1 << 40))
    elif how == 2:
        del model.opset_import[chance.randrange(len(model.opset_import))]
    else:
        chance.choice(model.opset_import).version = chance.choice(_OPSETS)


def _change_attribute(model: ModelProto, chance: random.Random) -> None:
    attribute = chance.choice(_attributes(model))
    how = chance.randrange(7)
    if how == 0:
        attribute.i = chance.choice(_NUMBERS)
    elif how == 1:
        attribute.f = chance.choice(_FLOATS)
    elif how == 2:
        attribute.s = chance.choice(_NAMES).encode()
    elif how == 3:
        attribute.ints.append(chance.choice(_NUMBERS))
    elif how == 4:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(_NUMBERS)
    elif how == 5:
        attribute.type = chance.choice(range(15))
    else:
        attribute.ref_attr_name = chance.choice(_NAMES)


def _move_attribute(model: ModelProto, chance: random.Random) -> None:
    node = chance.choice(_nodes(model))
    how = chance.randrange(3)
    if how == 0:
        del node.attribute[chance.randrange(len(node.attribute))]
    elif how == 1:
        node.attribute.append(_copied(chance.choice(_attributes(model))))
    else:
        node.attribute.append(
            onnx.helper.make_attribute(
                chance.choice(("axis", "perm", "group", "to", "keepdims", "axes", "equation")),
                chance.choice((*_NUMBERS, [1, 0], [], b"ij,jk")) if chance.random() < 0.9 else 0.5,
            )
        )


def _change_inputs(model: ModelProto, chance: random.Random) -> None:
    node = chance.choice(_nodes(model))
    how = chance.randrange(4)
    if how == 0:
        node.input.append(chance.choice(_names(model)))
    elif how == 1:
        del node.input[chance.randrange(len(node.input))]
    elif how == 2:
        node.output.append(chance.choice(_names(model)))
    else:
        del node.output[chance.randrange(len(node.output))]


def _change_nodes(model: ModelProto, chance: random.Random) -> None:
    graph = chance.choice(_graphs(model))
    how = chance.randrange(6)
    index = chance.randrange(len(graph.node))
    if how == 0:
        graph.node.append(_copied(graph.node[index]))
    elif how == 1:
        del graph.node[index]
    elif how == 2:
        # A cycle, where the node is anything's producer.
        graph.node[0].input[0] = graph.node[index].output[0]
    elif how == 3:
        node = _copied(graph.node[index])
        del graph.node[index]
        graph.node.insert(chance.randrange(len(graph.node) + 1), node)
    elif how == 4:
        # A subgraph that is the graph around it.
        inner = onnx.helper.make_attribute("then_branch", _copied(model.graph))
        graph.node[index].attribute.append(inner)
    else:
        names = chance.sample(_names(model), 2)
        graph.node.add(op_type=chance.choice(_OPERATORS), input=names, output=["added"])


def _change_signature(model: ModelProto, chance: random.Random) -> None:
    graph = chance.choice(_graphs(model))
    fields: Sequence[Any] = (graph.input, graph.output, graph.initializer)
    field = chance.choice(fields)
    how = chance.randrange(3)
    if how == 0:
        del field[chance.randrange(len(field))]
    elif how == 1:
        field.append(_copied(chance.choice(field)))
    else:
        graph.output.add(name=chance.choice(_names(model)))


def _change_function(model: ModelProto, chance: random.Random) -> None:
    function = chance.choice(model.functions)
    how = chance.randrange(4)
    if how == 0:
        # It calls itself.
        function.node.add(
            domain=function.domain, op_type=function.name, input=function.input, output=["again"]
        )
    elif how == 1:
        model.functions.append(_copied(function))
    elif how == 2:
        del function.node[chance.randrange(len(function.node))]
    else:
        function.name = chance.choice((*_NAMES, "Relu"))


def _make_external(model: ModelProto, chance: random.Random) -> None:
    tensor = chance.choice(_tensors(model))
    tensor.data_location = TensorProto.EXTERNAL
    key = chance.choice(("location", "offset", "length", "checksum"))
    value = chance.choice((*_NAMES, *map(str, _NUMBERS), "/etc/hostname", "1e3", "0x10"))
    tensor.external_data.add(key=key, value=value)


def _make_special(model: ModelProto, chance: random.Random) -> None:
    how = chance.randrange(3)
    if how == 0:
        sparse = model.graph.sparse_initializer.add()
        sparse.values.CopyFrom(_copied(chance.choice(_tensors(model))))
    elif how == 1:
        annotation = model.graph.quantization_annotation.add()
        annotation.tensor_name = chance.choice(_names(model))
    else:
        model.metadata_props.add(key=chance.choice(_NAMES), value=chance.choice(_NAMES))


_CHANGES: tuple[Callable[[ModelProto, random.Random], None], ...] = (
    _change_dim,
    _change_declared,
    _change_type,
    _change_data,
    _change_name,
    _change_operator,
    _change_opset,
    _change_attribute,
    _change_attribute,
    _move_attribute,
    _change_inputs,
    _change_inputs,
    _change_nodes,
    _change_nodes,
    _change_signature,
    _change_function,
    _make_external,
    _make_special,
)
