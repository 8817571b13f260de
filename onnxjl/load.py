"""Load: a path, bytes or a model in memory becomes a Graph; weights are left where they lie."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import external_data

from onnxjl.equations import check_equations
from onnxjl.errors import ExternalDataError, ModelError, OnnxjlError, UsageError
from onnxjl.external import ExternalWeight
from onnxjl.garbage import without_collection
from onnxjl.graph import Graph, initializers, subgraphs
from onnxjl.proto import disguise, weightless
from onnxjl.wire import split_weights

# NumPy's arrays have no more.
_MOST_AXES = 64

Source = str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model | Graph


@without_collection
def load(
    model: Source,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    allow_external: Sequence[str | os.PathLike[str]] = (),
) -> Graph:
    """Read a model, repair what is merely untidy, and check it.

    Weights are not read: those of a file, inside it or in external data, stay memory-mapped,
    those of `bytes` are views into them; files must stay as they are meanwhile.

    Parameters
    ----------
    model : path of an ONNX file, its bytes, a ModelProto, an onnx_ir.Model, or a Graph. Never
        changed; tensors are shared.
    shapes : concrete shapes of inputs whose declared shape is symbolic, by input name.
    allow_external : folders, besides the model's own, in which external data may lie.

    Returns
    -------
    Graph
        Not yet normalized.

    Raises
    ------
    ModelError
        The model can't be read, isn't ONNX, or fails ONNX's checker even after repairs (nodes out
        of topological order, duplicate opset imports).
    ExternalDataError
        External data is missing, too short, or outside the allowed folders.
    UsageError
        `shapes` doesn't fit the inputs, or `model` is of another type.
    """
    if isinstance(model, Graph):
        graph = model
    elif isinstance(model, ir.Model):
        graph = Graph(_checked(clone(model), "the model", None, allow_external))
    elif isinstance(model, onnx.ModelProto):
        graph = Graph(_from_proto(model, _raw_weights(model), "the model", None, allow_external))
    elif isinstance(model, bytes | bytearray | memoryview):
        graph = Graph(_from_bytes(memoryview(model), "the bytes given", None, allow_external))
    elif isinstance(model, str | os.PathLike):
        path = Path(model)
        data, status = _map(path)
        network = _from_bytes(data, str(path), path.parent, allow_external)
        graph = Graph(network, path=path, status=status)
    else:
        raise UsageError(
            f"can't load a {type(model).__name__}; give a path, bytes, an onnx.ModelProto, "
            "an onnx_ir.Model or a Graph"
        )
    if shapes:
        graph = replace(graph, shapes={**graph.shapes, **_fitting(shapes, graph)})
    return graph


def _map(path: Path) -> tuple[memoryview, os.stat_result]:
    """The file's bytes, memory-mapped, and what the system says of the file."""
    try:
        # A pipe would be waited for.
        if not path.is_dir() and path.exists() and not path.is_file():
            raise ModelError(f"{path}: isn't a plain file")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise ModelError(f"{path}: the file is empty; expected an ONNX model")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), status
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path}: a folder; expected an ONNX file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: can't be read: {reason}") from error


def _from_bytes(
    data: memoryview, name: str, folder: Path | None, allow_external: Sequence[str | os.PathLike]
) -> ir.Model:
    if len(data) == 0:
        raise ModelError(f"{name}: empty; expected an ONNX model")
    try:
        rest, weights = split_weights(data)
        proto = onnx.ModelProto.FromString(rest)
    except Exception as error:  # protobuf's DecodeError, or ValueError from our own scan
        raise ModelError(
            f"{name}: not an ONNX model, or a truncated one (protobuf can't parse it)"
        ) from error
    return _from_proto(proto, weights, name, folder, allow_external)


def _raw_weights(proto: onnx.ModelProto) -> dict[int, memoryview]:
    """As `split_weights`, for a parsed model, which is left as it is."""
    return {
        index: memoryview(tensor.raw_data)
        for index, tensor in enumerate(proto.graph.initializer)
        if tensor.HasField("raw_data")
        and ir.DataType(tensor.data_type) != ir.DataType.STRING
        and ir.DataType(tensor.data_type).bitwidth % 8 == 0
    }


def _from_proto(
    proto: onnx.ModelProto,
    weights: Mapping[int, memoryview],
    name: str,
    folder: Path | None,
    allow_external: Sequence[str | os.PathLike],
) -> ir.Model:
    """The model of a proto whose i-th initializer has, where `weights` has i, its data there."""
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{name}: not an ONNX model (it holds no graph)")
    if proto.graph.sparse_initializer:
        sparse = proto.graph.sparse_initializer[0].values.name
        raise ModelError(f"{name}: initializer '{sparse}' is sparse; make it dense first")
    try:
        model = _with_weights(proto, weights, name)
    except OnnxjlError:
        raise
    except Exception as error:
        raise ModelError(f"{name}: invalid ONNX: {first_cause(error)}") from error
    model.graph.opset_imports.clear()
    if not proto.opset_import and proto.ir_version < 3:
        model.graph.opset_imports[""] = 1
    for opset in proto.opset_import:
        domain = "" if opset.domain == "ai.onnx" else opset.domain
        known = model.graph.opset_imports.get(domain, 0)
        model.graph.opset_imports[domain] = max(known, opset.version)
    if folder is not None:
        external_data.set_base_dir(model.graph, folder)
    model = _checked(model, name, folder, allow_external)
    _own_tensors(model, ir.serde.TensorProtoTensor)
    return model


def _with_weights(proto: onnx.ModelProto, weights: Mapping[int, memoryview], name: str) -> ir.Model:
    """The model of a proto, its weights where `weights` says."""
    names: set[str] = set()
    for tensor in proto.graph.initializer:
        if len(tensor.dims) > _MOST_AXES:
            raise ModelError(
                f"{name}: tensor '{tensor.name}' has {len(tensor.dims)} axes; {_MOST_AXES} at most "
                "are treated"
            )
        # Neither onnx_ir nor ONNX's checker minds, and the last would win.
        if tensor.name in names:
            raise ModelError(f"{name}: two initializers are called '{tensor.name}'")
        names.add(tensor.name)
        for entry in tensor.external_data:
            number = entry.key in ("offset", "length")
            if number and not (entry.value.isascii() and entry.value.isdecimal()):
                raise ExternalDataError(
                    f"{name}: external data of '{tensor.name}' has {entry.key} {entry.value!r}; "
                    "expected a number of bytes"
                )
    model = ir.serde.deserialize_model(proto)
    for index, data in weights.items():
        tensor = proto.graph.initializer[index]
        dtype = ir.DataType(tensor.data_type)
        value = model.graph.initializers[tensor.name]
        if dtype.bitwidth % 8 == 0 and dtype != ir.DataType.STRING:
            shell = ir.serde.TensorProtoTensor(tensor)
            value.const_value = _tensor_over(data, shell, name)
        else:
            tensor.raw_data = bytes(data)
    for value in model.graph.initializers.values():
        kept = value.const_value
        if isinstance(kept, ir.serde.TensorProtoTensor) and kept.nbytes > 1024:
            # Numbers one by one, not raw bytes: read them once, not at every look.
            value.const_value = ir.Tensor(kept.numpy(), dtype=kept.dtype, name=value.name)
    return model


def _checked(
    model: ir.Model,
    name: str,
    folder: Path | None,
    allow_external: Sequence[str | os.PathLike[str]],
) -> ir.Model:
    """The model (ours to change), repaired, its weights located, approved by ONNX's checker."""
    newest = onnx.defs.onnx_opset_version()
    if model.opset_imports.get("", 0) > newest:
        raise ModelError(
            f"{name}: opset {model.opset_imports['']} is newer than {newest}, the newest that the "
            "installed onnx knows; update onnx"
        )
    try:
        _locate_external(model, name, folder, [Path(f) for f in allow_external])
        if not _is_sorted(model.graph):
            model.graph.sort()
        check_equations(model)
        onnx.checker.check_model(disguise(_with_shapes(weightless(model))))
    except OnnxjlError:
        raise
    except Exception as error:
        raise ModelError(f"{name}: fails ONNX's checker: {first_cause(error)}") from error
    return model


def _with_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same, with inputs and outputs of unknown rank, which the checker refuses, as scalars."""
    for info in [*proto.graph.input, *proto.graph.output]:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.SetInParent()
    return proto


def _is_sorted(graph: ir.Graph) -> bool:
    """Whether every node comes after the producers of its inputs, in subgraphs too."""
    done: set[ir.Node] = set()

    def ready(graph: ir.Graph) -> bool:
        for node in graph:
            for value in node.inputs:
                if value is not None:
                    producer = value.producer()
                    if producer is not None and producer not in done:
                        return False
            if not all(map(ready, subgraphs(node))):
                return False
            done.add(node)
        return True

    return ready(graph)


def clone(model: ir.Model) -> ir.Model:
    """A copy that shares the weights' data but neither nodes nor the tensors' (mutable) names."""
    try:
        copy = model.clone()
    except Exception:
        # onnx_ir clones in node order, which may not be topological; protobuf doesn't mind.
        try:
            copy = ir.serde.deserialize_model(ir.serde.serialize_model(model))
        except Exception as error:
            raise ModelError(f"the model: invalid ONNX: {first_cause(error)}") from error
    _own_tensors(copy, ir.serde.TensorProtoTensor, ir.Tensor)
    return copy


def _own_tensors(model: ir.Model, *kinds: type[ir.Tensor | ir.serde.TensorProtoTensor]) -> None:
    """Let a model have tensors of its own, which share their data: they have (mutable) names."""
    for value in initializers(model).values():
        tensor = value.const_value
        if isinstance(tensor, kinds):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)


def _tensor_over(data: memoryview, tensor: ir.TensorProtocol, name: str) -> ir.Tensor:
    """A tensor of the same name, type and shape as `tensor`, whose values lie in `data`."""
    shape = tensor.shape.numpy()
    dtype = tensor.dtype.numpy()
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    _check_size(tensor, len(data), expected, name)
    array = np.frombuffer(data, dtype=dtype.newbyteorder("<")).reshape(shape)
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)


def _check_size(tensor: ir.TensorProtocol, size: int, expected: int, name: str) -> None:
    if size != expected:
        raise ModelError(
            f"{name}: tensor '{tensor.name}' of type {tensor.dtype} and shape "
            f"{list(tensor.shape)} needs {expected} bytes but has {size}"
        )


def _check_numbers(tensor: ir.TensorProtocol, name: str) -> None:
    """The same where numbers are stored one by one."""
    try:
        tensor.numpy()
    except Exception as error:
        raise ModelError(
            f"{name}: tensor '{tensor.name}' of type {tensor.dtype} and shape "
            f"{list(tensor.shape)} holds other numbers: {first_cause(error)}"
        ) from error


def _tensors(model: ir.Model) -> Iterator[tuple[ir.Value | None, ir.TensorProtocol]]:
    """Every tensor of a model, functions included, with its initializer where it has one."""
    pending = [model.graph, *(function.graph for function in model.functions.values())]
    while pending:
        graph = pending.pop()
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue  # a function's own attribute: its value stands where it is called
                if attribute.type == ir.AttributeType.TENSOR:
                    yield None, attribute.value
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from ((None, tensor) for tensor in attribute.value)
                elif attribute.type == ir.AttributeType.GRAPH:
                    pending.append(attribute.value)
                elif attribute.type == ir.AttributeType.GRAPHS:
                    pending.extend(attribute.value)


def _locate_external(
    model: ir.Model, name: str, folder: Path | None, allowed: Sequence[Path]
) -> None:
    """Make sure that every external tensor is there, whole, and in an allowed folder."""
    for value, tensor in _tensors(model):
        if isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.raw.HasField("raw_data"):
            _check_size(tensor, len(tensor.raw.raw_data), tensor.nbytes, name)
        elif isinstance(tensor, ir.serde.TensorProtoTensor):
            _check_numbers(tensor, name)
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        where = f"{name}: external data of '{tensor.name}'"
        base = folder if folder is not None else Path(tensor.base_dir) if tensor.base_dir else None
        location = Path(tensor.location)
        if base is None and not allowed:
            raise ExternalDataError(
                f"{where} lies in {str(location)!r}, relative to an unknown folder; "
                "load the model by its path"
            )
        bases = [base] if base is not None else list(allowed)
        try:
            path = next((p for b in bases if (p := b / location).exists()), bases[0] / location)
            real = path.resolve()
        except (OSError, ValueError, RuntimeError) as error:  # A null byte, too long, a loop.
            reason = getattr(error, "strerror", None) or error
            raise ExternalDataError(
                f"{where} can't lie in {tensor.location!r}: {reason}"
            ) from error
        roots = [root.resolve() for root in ([base] if base is not None else []) + list(allowed)]
        if not any(real.is_relative_to(root) for root in roots):
            raise ExternalDataError(
                f"{where} lies in {str(location)!r} ({real}), outside the model's folder; if you "
                f"trust it, allow its folder (allow_external=, --allow-external {real.parent})"
            )
        try:
            status = real.stat()
        except OSError as error:
            raise ExternalDataError(f"{where} is missing: {path}") from error
        if not real.is_file():
            raise ExternalDataError(f"{where} isn't a file: {path}")
        begin = tensor.offset or 0
        if tensor.length is not None and tensor.length != tensor.nbytes:
            raise ExternalDataError(
                f"{where} has {tensor.length} bytes, but type {tensor.dtype} and shape "
                f"{list(tensor.shape)} need {tensor.nbytes}"
            )
        if begin < 0 or begin + tensor.nbytes > status.st_size:
            raise ExternalDataError(
                f"{where} needs bytes {begin} to {begin + tensor.nbytes} of {path}, "
                f"which has {status.st_size}"
            )
        if base is not None and real.is_relative_to(base.resolve()) and status.st_nlink == 1:
            if value is not None:
                value.const_value = ExternalWeight(tensor, status)
            continue
        # onnx_ir refuses what we've just allowed, and hard links (of package caches) as well.
        if value is None:
            raise ExternalDataError(
                f"{where} is a Constant node's; only initializers may be outside"
            )
        value.const_value = _tensor_over(_mapped(real, begin, tensor.nbytes), tensor, name)


def _mapped(path: Path, begin: int, count: int) -> memoryview:
    if count == 0:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[
            begin : begin + count
        ]


def _fitting(shapes: Mapping[str, Sequence[int]], graph: Graph) -> dict[str, tuple[int, ...]]:
    """`shapes`, after a look at what the inputs declare."""
    inputs = {
        value.name: value
        for value in graph.model.graph.inputs
        if value.name not in graph.model.graph.initializers
    }
    fitting = {}
    for name, given in shapes.items():
        if name not in inputs:
            raise UsageError(
                f"no input is named '{name}'; there are {', '.join(map(repr, inputs))}"
            )
        shape = tuple(int(size) for size in given)
        declared = inputs[name].shape
        if any(size < 0 for size in shape):
            raise UsageError(f"shape {list(shape)} given for input '{name}' is negative")
        if declared is not None and (
            len(declared) != len(shape)
            or any(isinstance(d, int) and d != s for d, s in zip(declared, shape, strict=True))
        ):
            raise UsageError(
                f"shape {list(shape)} given for input '{name}' doesn't fit its declared {declared}"
            )
        fitting[name] = shape
    return fitting


def first_cause(error: BaseException) -> str:
    """The innermost message of a chain of exceptions, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
