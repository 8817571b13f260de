"""Concrete shapes and random arrays for a graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxjl.errors import DataError
from onnxjl.inputs import graph_inputs, random_inputs, sample_shapes
from onnxjl.load import load
from onnxjl.normalize import normalize

F = TensorProto.FLOAT


def identities(inputs: Mapping[str, tuple[int, Sequence[int | str | None] | None]]):
    """A graph that puts out each of its inputs."""
    nodes, ins, outs = [], [], []
    for name, (element, shape) in inputs.items():
        nodes.append(helper.make_node("Identity", [name], [f"{name}_out"], name=name))
        ins.append(helper.make_tensor_value_info(name, element, shape))
        outs.append(helper.make_tensor_value_info(f"{name}_out", element, shape))
    graph = helper.make_graph(nodes, "identities", ins, outs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def halving(levels: int, *, shape: Sequence[int | str]) -> onnx.ModelProto:
    """An image halved `levels` times without padding, then enlarged and added to itself.

    Only sizes that are multiples of ``2 ** levels`` fit.
    """
    scale = float(2**levels)
    nodes = [
        helper.make_node(
            "AveragePool",
            ["x"],
            ["small"],
            kernel_shape=[2**levels] * 2,
            strides=[2**levels] * 2,
        ),
        helper.make_node("Resize", ["small", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Add", ["x", "large"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "halving",
        [helper.make_tensor_value_info("x", F, shape)],
        [helper.make_tensor_value_info("y", F, shape)],
        [numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"x": (F, [2, 3])}, {"x": (2, 3)}),
        ({"x": (F, [])}, {"x": ()}),
        ({"x": (F, ["batch", 3])}, {"x": (1, 3)}),
        ({"x": (F, [None, None])}, {"x": (1, 16)}),
        ({"x": (F, ["batch", 3, "h", "w"])}, {"x": (1, 3, 16, 16)}),
        # A symbol of a first axis is 1 everywhere, another one 16 everywhere.
        (
            {"a": (F, ["batch", "length"]), "b": (F, ["length", "batch"])},
            {"a": (1, 1), "b": (1, 1)},
        ),
        (
            {"a": (F, ["batch", "length"]), "b": (F, [4, "batch", "length"])},
            {"a": (1, 16), "b": (4, 1, 16)},
        ),
    ],
)
def test_shapes_that_are_not_given(declared, expected):
    assert sample_shapes(load(identities(declared))) == expected


def test_given_shapes_hold_and_bind_their_symbols():
    proto = identities({"a": (F, ["batch", "length"]), "b": (F, ["batch", "length", "other"])})
    graph = load(proto, shapes={"a": (5, 7)})
    assert sample_shapes(graph) == {"a": (5, 7), "b": (5, 7, 16)}


@pytest.mark.parametrize(("levels", "size"), [(3, 16), (4, 16), (5, 32), (6, 64), (7, 128)])
def test_sizes_are_raised_to_the_smallest_that_works(levels, size):
    proto = halving(levels, shape=["batch", 3, "h", "w"])
    for graph in (load(proto), normalize(proto)):
        assert sample_shapes(graph) == {"x": (1, 3, size, size)}


def test_no_size_works():
    with pytest.raises(DataError, match=r"no size up to 1024 of 'h', 'w' .*--shape NAME="):
        sample_shapes(load(halving(11, shape=["batch", 3, "h", "w"])))


def test_an_input_without_a_rank():
    graph = load(identities({"x": (F, None)}))
    with pytest.raises(DataError, match=r"input 'x' declares no shape; give it .*--shape x="):
        sample_shapes(graph)
    given = load(graph, shapes={"x": (2, 3)})
    assert sample_shapes(given) == {"x": (2, 3)}


def test_initializers_listed_as_inputs_are_defaults():
    proto = identities({"x": (F, [2]), "w": (F, [3])})
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "w"))
    graph = load(proto)
    assert [value.name for value in graph_inputs(graph)] == ["x"]
    assert list(sample_shapes(graph)) == ["x"]
    assert list(random_inputs(graph)) == ["x"]


def test_random_inputs_have_the_declared_types_and_ranges():
    declared = {
        "float": (F, [50, 40]),
        "half": (TensorProto.FLOAT16, [50, 40]),
        "double": (TensorProto.DOUBLE, [50, 40]),
        "brain": (TensorProto.BFLOAT16, [50, 40]),
        "long": (TensorProto.INT64, [50, 40]),
        "byte": (TensorProto.UINT8, [50, 40]),
        "flag": (TensorProto.BOOL, [50, 40]),
    }
    arrays = random_inputs(load(identities(declared)))
    for name, (element, _) in declared.items():
        assert arrays[name].dtype == helper.tensor_dtype_to_np_dtype(element)
        assert arrays[name].shape == (50, 40)
    for name in ("float", "half", "double", "brain"):
        values = arrays[name].astype(np.float64)
        # 2000 samples: the mean's deviation is 0.022, that of the standard deviation 0.016.
        assert abs(values.mean()) < 0.1
        assert abs(values.std() - 1) < 0.1
    for name in ("long", "byte", "flag"):
        assert set(np.unique(arrays[name]).tolist()) == {0, 1}
        assert abs(arrays[name].mean() - 0.5) < 0.1


def test_the_seed_decides():
    graph = load(identities({"x": (F, [4]), "y": (F, [4])}))
    first, second = random_inputs(graph), random_inputs(graph, seed=1)
    np.testing.assert_array_equal(first["x"], random_inputs(graph)["x"])
    assert not np.array_equal(first["x"], first["y"])
    assert not np.array_equal(first["x"], second["x"])


def test_strings_cannot_be_made_up():
    graph = load(identities({"x": (TensorProto.STRING, [4])}))
    with pytest.raises(DataError, match=r"input 'x' is a .*give the inputs"):
        random_inputs(graph)
