"""Wire: find the weights inside a serialized model without parsing, hence without copying, them."""

from __future__ import annotations

from collections.abc import Iterator

# Field numbers of onnx.proto, fixed by its format: ModelProto.graph, GraphProto.initializer,
# TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Weights shorter than this stay in the proto, where constants are cheap to read.
_SMALL = 1024


def split_weights(data: memoryview) -> tuple[bytes, dict[int, memoryview]]:
    """Take the raw data of the main graph's large initializers out of a serialized model.

    Parameters
    ----------
    data : a serialized ModelProto.

    Returns
    -------
    bytes
        The serialized model without these weights; small, and safe to parse.
    dict[int, memoryview]
        Index of the initializer (0-based) -> its raw data, a view into `data`.

    Raises
    ------
    ValueError
        `data` isn't in protobuf's wire format.
    """
    weights: dict[int, memoryview] = {}
    rest: list[bytes | memoryview] = []
    count = 0
    for number, start, content, end in _fields(data, 0, len(data)):
        if number != _GRAPH or content is None:
            rest.append(data[start:end])
            continue
        graph: list[bytes | memoryview] = []
        for inner, inner_start, inner_content, inner_end in _fields(data, content, end):
            if inner != _INITIALIZER or inner_content is None:
                graph.append(data[inner_start:inner_end])
                continue
            tensor: list[bytes | memoryview] = []
            for leaf, leaf_start, leaf_content, leaf_end in _fields(data, inner_content, inner_end):
                if leaf == _RAW_DATA and leaf_content and leaf_end - leaf_content > _SMALL:
                    weights[count] = data[leaf_content:leaf_end]
                else:
                    # Of a field that comes twice protobuf takes the last.
                    if leaf == _RAW_DATA:
                        weights.pop(count, None)
                    tensor.append(data[leaf_start:leaf_end])
            graph.append(_message(_INITIALIZER, tensor))
            count += 1
        rest.append(_message(_GRAPH, graph))
    return b"".join(rest), weights


def _fields(
    data: memoryview, position: int, end: int
) -> Iterator[tuple[int, int, int | None, int]]:
    """Yield (field number, start, start of its content where that is bytes else None, end)."""
    while position < end:
        start = position
        key, position = _varint(data, position, end)
        kind = key & 7
        content = None
        if kind == _VARINT:
            _, position = _varint(data, position, end)
        elif kind == _BYTES:
            length, content = _varint(data, position, end)
            position = content + length
        elif kind == _FIXED32:
            position += 4
        elif kind == _FIXED64:
            position += 8
        else:
            raise ValueError(f"wire type {kind} at byte {start}")
        if position > end:
            raise ValueError(f"field at byte {start} runs past the end")
        yield key >> 3, start, content, position


def _varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"broken integer before byte {position}")


def _message(number: int, chunks: list[bytes | memoryview]) -> bytes:
    body = b"".join(chunks)
    return _encoded(number << 3 | _BYTES) + _encoded(len(body)) + body


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
