"""Inputs: concrete shapes and random arrays for a graph's inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from onnxjl.errors import DataError
from onnxjl.graph import Graph
from onnxjl.proto import weightless
from onnxjl.session import chosen

BATCH, SIZE, STEP, LARGEST = 1, 16, 32, 1024
LONGEST, MOST_ELEMENTS = 1 << 20, 1 << 26


def graph_inputs(graph: Graph) -> list[ir.Value]:
    """The inputs that a caller must feed: not those that have an initializer as their default."""
    initializers = graph.model.graph.initializers
    return [value for value in graph.model.graph.inputs if value.name not in initializers]


def given_inputs(
    graph: Graph, inputs: Mapping[str, np.ndarray] | None
) -> Mapping[str, np.ndarray] | None:
    """The arrays for a graph's inputs, without labels, which data files may hold as well.

    Raises
    ------
    DataError
        An input is missing, or there is no such input.
    """
    if inputs is None:
        return None
    needed = [value.name or "" for value in graph_inputs(graph)]
    every = [value.name or "" for value in graph.model.graph.inputs]
    return chosen(inputs, needed, every, ", ".join(map(repr, needed)) or "none")


def sample_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """A concrete shape for every input.

    What is declared or in `graph.shapes` holds. Of the rest, a symbol on axis 0 is a batch size
    and becomes 1; all others become 16 or, where shapes don't work out then, the smallest
    multiple of 32 with which they do. A symbol has one size wherever it occurs.

    Returns
    -------
    dict[str, tuple[int, ...]]
        Input name -> shape.

    Raises
    ------
    DataError
        An input has no declared rank, or no size up to 1024 works.
    """
    inputs = graph_inputs(graph)
    sizes = [SIZE, *range(STEP, LARGEST + 1, STEP)]
    proto = None
    for size in sizes:
        shapes, free = _bind(inputs, graph.shapes, size)
        if not free:
            return shapes
        if proto is None:
            proto = weightless(graph.model)
        if _works(proto, shapes):
            return shapes
    raise DataError(
        f"no size up to {LARGEST} of {', '.join(sorted(free))} makes the shapes inside the network "
        "work out; give the inputs' shapes (shapes=, --shape NAME=1,3,224,224)"
    )


def random_inputs(graph: Graph, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays of `sample_shapes`: floats standard normal, integers 0 or 1, booleans either.

    Parameters
    ----------
    seed : of NumPy's default generator, which fills the inputs in the graph's order.

    Returns
    -------
    dict[str, np.ndarray]
        Input name -> array of the declared type.

    Raises
    ------
    DataError
        An input isn't a tensor of numbers or booleans, has no usable shape, or more than 2**26
        elements.
    """
    generator = np.random.default_rng(seed)
    shapes = sample_shapes(graph)
    arrays = {}
    for value in graph_inputs(graph):
        assert value.name is not None
        if not isinstance(value.type, ir.TensorType) or value.dtype == ir.DataType.STRING:
            raise DataError(f"input '{value.name}' is a {value.type}; give the inputs (--inputs)")
        shape, dtype = shapes[value.name], value.type.dtype
        if math.prod(shape) > MOST_ELEMENTS:
            raise DataError(
                f"input '{value.name}' has shape {list(shape)}: too large for random numbers; give "
                "the inputs (inputs=, --inputs)"
            )
        if dtype.is_integer() or dtype == ir.DataType.BOOL:
            array: np.ndarray = generator.integers(0, 2, shape)
        else:
            array = generator.standard_normal(shape)
        arrays[value.name] = array.astype(dtype.numpy())
    return arrays


def _bind(
    inputs: list[ir.Value], given: Mapping[str, tuple[int, ...]], size: int
) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Shapes with `size` for free symbols, and which symbols (or dimensions) those are."""
    symbols: dict[str, int] = {}
    for value in inputs:
        if value.name is not None and value.name in given and value.shape is not None:
            for dim, known in zip(value.shape, given[value.name], strict=True):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    symbols[dim.value] = known
    for value in inputs:
        if value.shape and isinstance(value.shape[0], ir.SymbolicDim) and value.shape[0].value:
            symbols.setdefault(value.shape[0].value, BATCH)
    free: set[str] = set()
    shapes = {}
    for value in inputs:
        assert value.name is not None
        if value.name in given:
            shapes[value.name] = tuple(given[value.name])
            continue
        if value.shape is None:
            raise DataError(
                f"input '{value.name}' declares no shape; give it (shapes=, --shape {value.name}=…)"
            )
        shape = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                shape.append(dim)
            elif dim.value is not None and dim.value in symbols:
                shape.append(symbols[dim.value])
            elif axis == 0:
                shape.append(BATCH)
            else:
                free.add(f"'{value.name}' axis {axis}" if dim.value is None else f"'{dim.value}'")
                shape.append(size)
        shapes[value.name] = tuple(shape)
    return shapes, free


def _works(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether shape inference accepts these input shapes and finds no empty value."""
    for info in proto.graph.input:
        if info.name in shapes:
            dims = info.type.tensor_type.shape.dim
            for dim, size in zip(dims, shapes[info.name], strict=True):
                dim.dim_value = size
    del proto.graph.value_info[:]
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    try:
        plain = onnx.shape_inference.infer_shapes(proto).graph
        if any(_is_long(info.type.tensor_type.shape) for info in plain.value_info):
            return False
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except Exception:
        # onnx raises its own InferenceError, but also plain RuntimeError from single operators.
        return False
    return all(
        dim.dim_value > 0
        for info in [*inferred.graph.value_info, *inferred.graph.output]
        for dim in info.type.tensor_type.shape.dim
        if dim.HasField("dim_value")
    )


def _is_long(shape: onnx.TensorShapeProto) -> bool:
    """Whether a value is a list of so many elements that ONNX's data propagation takes too long."""
    return len(shape.dim) == 1 and shape.dim[0].dim_value > LONGEST
