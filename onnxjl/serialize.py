"""Write a Graph as protobuf without a second copy of its weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import onnx
import onnx_ir as ir

from onnxjl.cut import Cut
from onnxjl.errors import ModelError
from onnxjl.graph import Graph
from onnxjl.load import first_cause

INLINE_LIMIT = 1_800_000_000
"""Bytes of weights above which a model is written with external data (protobuf ends at 2 GiB)."""

SMALL = 1024
"""Tensors of up to this many bytes stay in the protobuf message: shapes must be readable there."""


MARK = "onnxjl.external_data"
"""Metadata key under which a model that we wrote names the data file that we wrote with it."""


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Write all of `data`."""


def weights(graph: Graph) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """The initializers of the main graph that are worth streaming, in the model's order.

    Parameters
    ----------
    graph : any graph.

    Yields
    ------
    Name and tensor of each initializer of more than 1024 bytes that isn't made of strings.
    """
    for name, value in graph.model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes > SMALL:
            yield name, tensor


def weight_bytes(graph: Graph) -> int:
    """Bytes of all `weights`."""
    return sum(tensor.nbytes for _, tensor in weights(graph))


def skeleton(
    graph: Graph, place: Callable[[str, ir.TensorProtocol], tuple[str, int] | None]
) -> onnx.ModelProto:
    """The model with its larger weights left out or elsewhere.

    Parameters
    ----------
    graph : any graph.
    place : gives, for each of `weights`, the location and offset of its external data, or None to
        leave it out.

    Returns
    -------
    The model, with the lowest IR version that its operator sets and types allow.

    Raises
    ------
    ModelError : a name, an attribute or the like is none that protobuf can hold.
    ExternalDataError : a file that holds a smaller tensor went away, or was exchanged.
    """
    model = graph.model
    main = model.graph
    large = dict(weights(graph))
    initializers = []
    for name, value in main.initializers.items():
        if name not in large:
            initializers.append(_inside(value))
        elif (spot := place(name, large[name])) is not None:
            initializers.append(_elsewhere(value, large[name], *spot))
    # A view serializes these initializers in place of the model's own, which stays untouched.
    view = ir.GraphView(
        main.inputs,
        main.outputs,
        nodes=tuple(main),
        initializers=initializers,
        doc_string=main.doc_string,
        opset_imports=dict(model.opset_imports),
        name=main.name,
        metadata_props=dict(main.metadata_props),
    )
    written = ir.Model(
        view,  # type: ignore[arg-type]
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        functions=tuple(model.functions.values()),
        metadata_props={k: v for k, v in model.metadata_props.items() if k != MARK},
    )
    try:
        proto = ir.serde.serialize_model(written)
    except Exception as error:
        raise ModelError(f"the network can't be written as ONNX: {first_cause(error)}") from error
    _take_in(proto, model)
    tensors = (value.const_value for value in main.initializers.values())
    dtypes = {tensor.dtype.value for tensor in tensors if tensor is not None}
    proto.ir_version = _lowest_ir_version(proto, max(dtypes, default=0))
    return proto


def write(graph: Graph, file: Sink) -> None:
    """Write the whole model as one protobuf message, one weight in memory at a time.

    Parameters
    ----------
    graph : any graph whose `weight_bytes` are at most `INLINE_LIMIT`.
    file : where to.
    """
    proto = skeleton(graph, lambda name, tensor: None)
    head = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    file.write(proto.SerializeToString(deterministic=True))

    large = dict(weights(graph))
    prefixes = {name: _tensor_prefix(name, tensor) for name, tensor in large.items()}
    sizes = {name: len(prefixes[name]) + tensor.nbytes for name, tensor in large.items()}
    total = len(head) + sum(1 + len(_varint(size)) + size for size in sizes.values())
    file.write(_tag(_field(onnx.ModelProto, "graph")) + _varint(total))
    file.write(head)
    initializer = _tag(_field(onnx.GraphProto, "initializer"))
    for name, tensor in large.items():
        file.write(initializer + _varint(sizes[name]) + prefixes[name])
        write_tensor(tensor, file)


def write_tensor(tensor: ir.TensorProtocol, file: Sink) -> None:
    """Write a tensor's bytes, little-endian, as ONNX's ``raw_data`` holds them.

    Parameters
    ----------
    tensor : any tensor but one of strings.
    file : where to.

    Raises
    ------
    ExternalDataError : the file that holds the tensor went away, or was exchanged.
    """
    if isinstance(tensor, ir.ExternalTensor) and tensor.length in (None, tensor.nbytes):
        # Copied from file to file in pieces, so that its pages never count as ours.
        tensor.tofile(_Chunks(file))
    elif tensor.dtype.bitwidth % 8 == 0 and np.little_endian:
        for array in tensor.blocks() if isinstance(tensor, Cut) else (tensor.numpy(),):
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    else:
        file.write(tensor.tobytes())


class _Chunks:
    """Hides a file's descriptor from onnx_ir, which would write past Python's buffer and hashes."""

    def __init__(self, file: Sink) -> None:
        self._file = file

    def write(self, data: bytes) -> object:
        return self._file.write(data)


def _inside(value: ir.Value) -> ir.Value:
    """The initializer with its data in memory, if they aren't there already."""
    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor | ir.LazyTensor | Cut):
        return value
    return _with(value, ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name))


def _elsewhere(value: ir.Value, tensor: ir.TensorProtocol, location: str, offset: int) -> ir.Value:
    """The initializer with its data at this place."""
    external = ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name or "",
    )
    return _with(value, external)


def _with(value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    """A copy of an initializer that holds another tensor."""
    placed = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=tensor)
    placed.metadata_props.update(value.metadata_props)
    placed.meta.update(value.meta)
    return placed


def _take_in(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Put external data of subgraphs and attributes, which are rare and small, into the message."""
    outside = {
        (str(tensor.location), tensor.offset or 0, tensor.name): tensor
        for tensor in _nested_tensors(model)
        if isinstance(tensor, ir.ExternalTensor)
    }
    if not outside:
        return
    for message in _nested_messages(proto):
        entries = {entry.key: entry.value for entry in message.external_data}
        if entries:
            key = (entries.get("location", ""), int(entries.get("offset", 0)), message.name)
            message.ClearField("external_data")
            message.ClearField("data_location")
            message.raw_data = outside[key].tobytes()


def _nested_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Tensors of attributes, and initializers of subgraphs."""
    for graph in (*model.graphs(), *(function.graph for function in model.functions.values())):
        if graph is not model.graph:
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.as_tensor()


def _nested_messages(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The same in the protobuf message."""
    pending = [proto.graph.node, *(function.node for function in proto.functions)]
    while pending:
        for node in pending.pop():
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    yield from graph.initializer
                    pending.append(graph.node)


def _tensor_prefix(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A TensorProto up to where the bytes of its ``raw_data`` begin."""
    proto = onnx.TensorProto(
        name=name,
        data_type=tensor.dtype.value,
        dims=tensor.shape.numpy(),
        doc_string=tensor.doc_string,
    )
    for key in sorted(tensor.metadata_props):
        proto.metadata_props.add(key=key, value=tensor.metadata_props[key])
    prefix = proto.SerializeToString(deterministic=True)
    return prefix + _tag(_field(onnx.TensorProto, "raw_data")) + _varint(tensor.nbytes)


def _field(message: type, name: str) -> int:
    return message.DESCRIPTOR.fields_by_name[name].number  # type: ignore[attr-defined]


def _tag(field: int) -> bytes:
    """The key of a length-delimited field."""
    return _varint(field << 3 | 2)


def _varint(number: int) -> bytes:
    """Protobuf's variable-length integer: seven bits a byte, lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _lowest_ir_version(proto: onnx.ModelProto, newest_type: int) -> int:
    lowest = onnx.helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    # Initializers need not be inputs as of version 4; functions came with version 8, and element
    # types with the versions of their enumeration.
    for first_type, version in ((17, 9), (21, 10), (23, 11), (24, 12), (25, 13), (27, 14)):
        if newest_type >= first_type:
            lowest = max(lowest, version)
    return min(max(lowest, 8 if proto.functions else 4), onnx.IR_VERSION)
