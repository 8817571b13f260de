"""Normalization: the same outputs, written one way.

Small graphs, one for each thing that real files hold, and the test networks as a whole. The oracle
is onnxruntime on the graph as it came.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from models import pretrained, zoo
from onnx import TensorProto, helper, numpy_helper
from oracle import run

from onnxjl.errors import ModelError, UnsupportedOperator, UsageError
from onnxjl.graph import Graph
from onnxjl.inputs import random_inputs
from onnxjl.load import load
from onnxjl.normalize import normalize

F, LONG, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Value = tuple[str, int, Sequence[int | str | None] | None]

RANDOM = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def node(op_type: str, inputs: str, outputs: str, name: str | None = None, **attributes):
    """A node; names are separated by blanks, ``-`` stands for an absent input."""
    return helper.make_node(
        op_type,
        ["" if n == "-" else n for n in inputs.split()],
        outputs.split(),
        name=outputs.split()[0] if name is None else name,
        **attributes,
    )


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    domains: Mapping[str, int] | None = None,
    declared: Sequence[Value] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        value_info=[helper.make_tensor_value_info(*value) for value in declared],
    )
    imports = {"": opset, **(domains or {})}
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*i) for i in imports.items()], ir_version=8
    )


def relative(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    if not a.size:
        return 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.abs(a - b).max() / max(1e-6, np.abs(b).max()))


def assert_same(
    proto: onnx.ModelProto, graph: Graph, feeds: Mapping[str, np.ndarray], tolerance: float = 1e-5
) -> None:
    expected = run(proto, feeds)
    outputs = run(ir.to_proto(graph.model), feeds)
    assert list(outputs) == list(expected)
    for name, output in outputs.items():
        assert np.isfinite(expected[name].astype(np.float64)).all()
        assert relative(output, expected[name]) <= tolerance


def normalized(
    proto: onnx.ModelProto,
    *,
    sizes: Mapping[str, int] | None = None,
    tolerance: float = 1e-5,
    **options,
) -> Graph:
    """Normalize, and compare the outputs, and those of normalizing a second time."""
    before = proto.SerializeToString()
    graph = normalize(proto, **options)
    assert proto.SerializeToString() == before
    assert graph.normalized
    shapes = {}
    for value in graph.model.graph.inputs:
        shape = value.shape
        assert shape is not None
        shapes[value.name] = [
            d if isinstance(d, int) else (sizes or {}).get(str(d), 3) for d in shape
        ]
    feeds = random_inputs(Graph(graph.model, shapes=shapes), seed=3)
    assert_same(proto, graph, feeds, tolerance)
    onnx.checker.check_model(ir.to_proto(graph.model))
    again = normalize(ir.to_proto(graph.model))
    assert operators(again) == operators(graph)
    assert weight_names(again) == weight_names(graph)
    assert again.fingerprint == graph.fingerprint
    return graph


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.model.graph]


def weight_names(graph: Graph) -> set[str | None]:
    return set(graph.model.graph.initializers)


def shape_of(graph: Graph, name: str) -> list[int | str | None]:
    for node_ in graph.model.graph:
        for value in node_.outputs:
            if value.name == name:
                assert value.shape is not None
                return [d if isinstance(d, int) else d.value for d in value.shape]
    raise AssertionError(f"no value '{name}'")


def test_a_normalized_graph_is_returned_as_it_is():
    graph = normalize(zoo.load("tied_linear.ts17"))
    assert normalize(graph) is graph


def test_normalize_is_deterministic():
    for name in ("yolo.ts17", "vit_tiny.ts17"):
        proto = zoo.load(name)
        first, second = (ir.to_proto(normalize(proto).model) for _ in range(2))
        assert first.SerializeToString(deterministic=True) == second.SerializeToString(
            deterministic=True
        )


def test_neither_a_model_nor_its_tensors_are_changed():
    proto = zoo.load("mobilenet_v3_small.ts17")
    given = ir.from_proto(proto)
    tensors = {n: v.const_value for n, v in given.graph.initializers.items()}
    normalize(given)
    assert {n: v.const_value for n, v in given.graph.initializers.items()} == tensors
    assert all(tensor is not None and tensor.name == n for n, tensor in tensors.items())
    assert ir.to_proto(given).graph.node == proto.graph.node


# Weights


def test_constants_become_initializers_of_the_same_name():
    proto = model(
        [
            node("Constant", "", "w", value=numpy_helper.from_array(floats(4, 5), "other")),
            node("Constant", "", "shift", value_floats=[1.0, 2.0, 3.0, 4.0, 5.0]),
            node("Constant", "", "scale", value_float=0.5),
            node("MatMul", "x w", "product"),
            node("Add", "product shift", "sum"),
            node("Mul", "sum scale", "y"),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 5])],
    )
    graph = normalized(proto)
    assert weight_names(graph) == {"w", "shift", "scale"}
    assert operators(graph) == ["Gemm", "Mul"]


def test_weights_behind_identities_and_fills_become_initializers():
    value = numpy_helper.from_array(np.array([0.25], np.float32))
    proto = model(
        [
            node("ConstantOfShape", "w_shape", "w", value=value),
            node("Identity", "bias", "bias_again"),
            node("Identity", "bias_again", "b"),
            node("Conv", "x w b", "y", kernel_shape=[3, 3]),
        ],
        [("x", F, ["batch", 3, 6, 6])],
        [("y", F, ["batch", 8, 4, 4])],
        {"w_shape": np.array([8, 3, 3, 3]), "bias": floats(8)},
    )
    graph = normalized(proto)
    assert weight_names(graph) == {"w", "bias"}
    np.testing.assert_array_equal(graph.weight("w"), np.full((8, 3, 3, 3), 0.25, np.float32))


def test_a_large_fill_takes_no_memory_and_an_absurd_one_stays():
    def fill(size: int) -> Graph:
        return normalize(
            model(
                [
                    node("ConstantOfShape", "shape", "w"),
                    node("MatMul", "x w", "y"),
                ],
                [("x", F, ["batch", 1 << 14])],
                [("y", F, ["batch", size])],
                {"shape": np.array([1 << 14, size])},
            )
        )

    large = fill(1 << 11).weight("w")
    assert large.shape == (1 << 14, 1 << 11)
    assert large.strides == (0, 0)
    assert operators(fill(1 << 20)) == ["ConstantOfShape", "MatMul"]


def test_initializers_listed_as_inputs_are_none():
    proto = model(
        [node("MatMul", "x w", "y")],
        [("x", F, ["batch", 4]), ("w", F, [4, 5])],
        [("y", F, ["batch", 5])],
        {"w": floats(4, 5)},
    )
    graph = normalized(proto)
    assert [value.name for value in graph.model.graph.inputs] == ["x"]


def test_rearranged_weights_keep_their_name_with_a_suffix():
    proto = model(
        [
            node("Transpose", "fc.weight", "t", perm=[1, 0]),
            node("MatMul", "x t", "product"),
            node("Unsqueeze", "norm.weight axis", "n"),
            node("Mul", "product n", "y"),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 5])],
        {"fc.weight": floats(5, 4), "norm.weight": floats(5), "axis": np.array([0])},
    )
    graph = normalized(proto)
    assert weight_names(graph) == {"fc.weight_transposed", "norm.weight_reshaped"}
    assert operators(graph) == ["MatMul", "Mul"]


def test_arithmetic_of_constants_is_folded():
    proto = model(
        [
            node("Add", "variance epsilon", "sum"),
            node("Sqrt", "sum", "deviation"),
            node("Div", "scale deviation", "factor"),
            node("Exp", "factor", "exponential"),
            node("Mul", "x exponential", "y"),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 4])],
        {
            "variance": np.abs(floats(4)),
            "epsilon": np.array(1e-3, np.float32),
            "scale": floats(4),
        },
    )
    graph = normalized(proto)
    assert operators(graph) == ["Mul"]
    assert weight_names(graph) == {"exponential"}


def test_random_numbers_are_not_constants():
    proto = model(
        [node("RandomNormal", "", "r", shape=[4], seed=1.0), node("Add", "x r", "y")],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 4])],
    )
    assert operators(normalize(proto)) == ["RandomNormal", "Add"]


def test_quantized_weights_stay_as_they_are():
    proto = model(
        [
            node("DequantizeLinear", "q scale zero", "w", axis=0),
            node("MatMul", "x w", "y"),
        ],
        [("x", F, ["batch", 40])],
        [("y", F, ["batch", 50])],
        {
            "q": RANDOM.integers(-99, 99, (40, 50)).astype(np.int8),
            "scale": np.array(0.01, np.float32),
            "zero": np.array(0, np.int8),
        },
    )
    graph = normalized(proto)
    assert operators(graph) == ["DequantizeLinear", "MatMul"]
    assert graph.weight("q").dtype == np.int8


def test_a_tied_weight_is_not_stored_twice():
    proto = model(
        [
            node("Gather", "embedding tokens", "embedded"),
            node("Transpose", "embedding", "transposed", perm=[1, 0]),
            node("MatMul", "embedded transposed", "y"),
        ],
        [("tokens", LONG, ["batch", 6])],
        [("y", F, ["batch", 6, 100])],
        {"embedding": floats(100, 32)},
    )
    graph = normalized(proto)
    assert weight_names(graph) == {"embedding"}
    assert operators(graph) == ["Gather", "Transpose", "MatMul"]


def test_an_embedding_table_stays_whole():
    proto = model(
        [node("Gather", "table rows", "positions"), node("Add", "x positions", "y")],
        [("x", F, ["batch", 6, 32])],
        [("y", F, ["batch", 6, 32])],
        {"table": floats(100, 32), "rows": np.arange(6)},
    )
    graph = normalized(proto)
    assert operators(graph) == ["Gather", "Add"]
    assert graph.weight("table").shape == (100, 32)


# Sharing


def test_integer_constants_get_a_copy_for_each_use():
    proto = model(
        [
            node("Unsqueeze", "x axis", "a"),
            node("ReduceSum", "a axis", "b", keepdims=1),
            node("Squeeze", "b axis", "y"),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 4])],
        {"axis": np.array([1])},
    )
    graph = normalized(proto)
    assert [n.inputs[1].name for n in graph.model.graph] == ["axis", "axis_1", "axis_2"]


def test_vectors_are_unshared_and_matrices_stay_tied():
    proto = model(
        [
            node("Gemm", "x w zeros", "a"),
            node("Relu", "a", "b"),
            node("Gemm", "b w zeros", "y"),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 4])],
        {"w": floats(4, 4), "zeros": np.zeros(4, np.float32)},
    )
    graph = normalized(proto)
    assert weight_names(graph) == {"w", "zeros", "zeros_1"}
    first, second = (n for n in graph.model.graph if n.op_type == "Gemm")
    assert first.inputs[1] is second.inputs[1]
    assert [first.inputs[2].name, second.inputs[2].name] == ["zeros", "zeros_1"]


def test_vectors_of_any_rank_and_what_one_number_fills_are_unshared():
    proto = model(
        [
            node("Mul", "x scale", "a"),
            node("MatMul", "a w", "b"),
            node("Mul", "b scale", "c"),
            node("Add", "c state", "d"),
            node("MatMul", "d w", "e"),
            node("Add", "e state", "f"),
            node("Add", "f table", "h"),
            node("Mul", "h table", "y"),
        ],
        [("x", F, ["batch", 4, 4])],
        [("y", F, ["batch", 4, 4])],
        {
            "w": np.ones((4, 4), np.float32),
            "scale": floats(1, 4, 1),
            "state": np.zeros((1, 4, 4), np.float32),
            "table": floats(1, 4, 4),
        },
    )
    graph = normalized(proto)
    assert weight_names(graph) == {"w", "scale", "scale_1", "state", "state_1", "table"}


def test_states_of_zeros_are_unshared_and_weights_of_recurrent_layers_stay_tied():
    proto = model(
        [
            node("RNN", "x w w - - state", "a", hidden_size=1),
            node("Squeeze", "a axis", "b"),
            node("RNN", "b w w - - state", "y", hidden_size=1),
        ],
        [("x", F, [3, 2, 1])],
        [("y", F, [3, 1, 2, 1])],
        {
            "w": floats(1, 1, 1),
            "state": np.zeros((1, 2, 1), np.float32),
            "axis": np.array([1]),
        },
    )
    graph = normalized(proto)
    assert weight_names(graph) == {"w", "state", "state_1", "axis"}


def test_a_table_of_indices_is_unshared():
    proto = model(
        [
            node("Gather", "x i", "a", axis=1),
            node("Gather", "a i", "y", axis=1),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 2, 2, 2])],
        {"i": np.array([[1, 0], [0, 1]])},
    )
    assert weight_names(normalized(proto)) == {"i", "i_1"}


def test_one_node_that_uses_a_vector_twice_gets_two():
    proto = model(
        [node("BatchNormalization", "x ones zeros zeros ones", "y")],
        [("x", F, ["batch", 3, 4, 4])],
        [("y", F, ["batch", 3, 4, 4])],
        {"ones": np.ones(3, np.float32), "zeros": np.zeros(3, np.float32)},
    )
    (norm,) = normalized(proto).model.graph
    assert [value.name for value in norm.inputs[1:]] == ["ones", "zeros", "zeros_1", "ones_1"]


# Nodes


def test_an_operator_whose_inputs_are_all_left_out_stays():
    proto = model(
        [node("OptionalHasElement", "-", "y")], [], [("y", TensorProto.BOOL, [])], opset=18
    )
    assert [n.op_type for n in normalize(proto).model.graph] == ["OptionalHasElement"]


def test_a_range_without_a_limit_is_left_to_the_runtime():
    proto = model(
        [node("Range", "start limit step", "y")],
        [],
        [("y", TensorProto.INT64, [None])],
        {"start": np.array(0), "limit": np.array([], np.int64), "step": np.array(1)},
    )
    assert [n.op_type for n in normalize(proto).model.graph] == ["Range"]


def test_dead_branches_and_unused_weights_are_dropped():
    proto = model(
        [
            node("Relu", "x", "y"),
            node("MatMul", "x w", "dead"),
            node("Exp", "dead", "more"),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 4])],
        {"w": floats(4, 4), "unused": floats(3)},
    )
    graph = normalized(proto)
    assert operators(graph) == ["Relu"]
    assert not weight_names(graph)


def test_identities_and_dropouts_are_dropped_and_output_names_stay():
    proto = model(
        [
            node("Relu", "x", "a"),
            node("Identity", "a", "b"),
            node("Dropout", "b", "c"),
            node("Sigmoid", "c", "d"),
            node("Identity", "d", "y"),
            node("Identity", "x", "copy"),
            node("Identity", "d", "again"),
        ],
        [("x", F, ["batch", 4])],
        [(name, F, ["batch", 4]) for name in ("y", "copy", "again")],
    )
    graph = normalized(proto)
    assert operators(graph) == ["Relu", "Sigmoid", "Identity", "Identity"]
    assert [value.name for value in graph.model.graph.outputs] == ["y", "copy", "again"]


def test_a_dropout_whose_mask_is_used_stays():
    proto = model(
        [node("Dropout", "x", "a mask"), node("Where", "mask a x", "y")],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 4])],
    )
    assert operators(normalized(proto)) == ["Dropout", "Where"]


def test_training_forms_become_inference_forms_with_a_warning():
    weights = {name: np.abs(floats(3)) for name in ("scale", "bias", "mean", "variance")}
    norm = "BatchNormalization"
    training = model(
        [
            node(norm, "x scale bias mean variance", "a m v", training_mode=1),
            node("Dropout", "a ratio training", "y"),
        ],
        [("x", F, ["batch", 3, 4, 4])],
        [("y", F, ["batch", 3, 4, 4])],
        {**weights, "ratio": np.array(0.5, np.float32), "training": np.array(True)},
    )
    inference = model(
        [node(norm, "x scale bias mean variance", "y")],
        [("x", F, ["batch", 3, 4, 4])],
        [("y", F, ["batch", 3, 4, 4])],
        weights,
    )
    with pytest.warns(UserWarning, match=r"training form.*a \(BatchNormalization\), y \(Dropout\)"):
        graph = normalize(training)
    assert operators(graph) == [norm]
    assert_same(inference, graph, {"x": floats(2, 3, 4, 4)})
    kept = normalize(training, training=True)
    assert operators(kept) == [norm, "Dropout"]
    first, second = kept.model.graph
    assert first.attributes.get_int("training_mode") == 1
    assert len(second.inputs) == 3


def test_training_statistics_that_are_outputs_become_the_running_ones():
    weights = {name: np.abs(floats(3)) for name in ("scale", "bias", "mean", "variance")}
    proto = model(
        [
            node("BatchNormalization", "x scale bias mean variance", "a m v sm sv"),
            node("Relu", "a", "y"),
        ],
        [("x", F, [2, 3, 4, 4])],
        [("y", F, [2, 3, 4, 4]), ("m", F, [3]), ("v", F, [3])],
        weights,
        opset=9,
    )
    with pytest.warns(UserWarning, match="training form"):
        graph = normalize(proto)
    outputs = run(ir.to_proto(graph.model), {"x": floats(2, 3, 4, 4)})
    np.testing.assert_array_equal(outputs["m"], weights["mean"])
    np.testing.assert_array_equal(outputs["v"], weights["variance"])


def test_batch_normalization_is_kept():
    proto = zoo.load("resnet18.ts17bn")
    before = sum(n.op_type == "BatchNormalization" for n in proto.graph.node)
    assert before == 20
    assert operators(normalize(proto)).count("BatchNormalization") == before


def test_nameless_and_repeated_nodes_get_names():
    proto = model(
        [
            node("Relu", "x", "a", name=""),
            node("Sigmoid", "a", "b", name="same"),
            node("Tanh", "b", "c", name="same"),
            node("Exp", "c", "y", name="same_1"),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 4])],
    )
    graph = normalize(proto)
    names = [n.name for n in graph.model.graph]
    assert len(set(names)) == 4
    assert names[1:] == ["same", "same_2", "same_1"]
    assert names[0]
    # onnxruntime refuses repeated names.
    for n in proto.graph.node:
        n.name = ""
    assert_same(proto, graph, {"x": floats(2, 4)})


def test_names_of_surviving_nodes_and_weights_stay():
    proto = zoo.load("resnet18.ts17bn")
    graph = normalize(proto)
    assert {n.name for n in graph.model.graph} <= {n.name for n in proto.graph.node}
    assert weight_names(graph) <= {t.name for t in proto.graph.initializer}
    kept = {n.name for n in graph.model.graph if n.op_type == "Conv"}
    assert kept == {n.name for n in proto.graph.node if n.op_type == "Conv"}


def test_what_changes_nothing_is_dropped():
    proto = model(
        [
            node("Cast", "x", "a", to=F),
            node("Pad", "a none", "b"),
            node("Slice", "b zero end axis", "c"),
            node("Reshape", "c shape", "d"),
            node("Concat", "d", "e", axis=0),
            node("Expand", "e ones", "f"),
            node("Relu", "f", "y"),
            node("Reshape", "f shape", "z"),
            node("Slice", "f last first axis back", "reversed"),
        ],
        [("x", F, ["batch", 4, 5])],
        [(name, F, ["batch", 4, 5]) for name in ("y", "z", "reversed")],
        {
            "none": np.zeros(6, np.int64),
            "zero": np.array([0]),
            "end": np.array([2**63 - 1]),
            "axis": np.array([1]),
            "shape": np.array([0, 4, -1]),
            "ones": np.array([1, 1, 1]),
            "last": np.array([-1]),
            "first": np.array([-(2**63)]),
            "back": np.array([-1]),
        },
    )
    graph = normalized(proto)
    # What would make the input an output has to stay.
    assert operators(graph) == ["Relu", "Reshape", "Slice"]


def test_functions_are_inlined():
    body = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [node("Relu", "a", "r", name="relu"), node("Add", "r r", "b", name="add")],
        [helper.make_opsetid("", 17)],
    )
    proto = model(
        [node("Twice", "x", "z", domain="local"), node("Twice", "z", "y", domain="local")],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 4])],
        domains={"local": 1},
    )
    proto.functions.append(body)
    graph = normalized(proto)
    assert operators(graph) == ["Relu", "Add", "Relu", "Add"]
    assert not graph.model.functions


def test_a_function_of_another_opset_is_inlined():
    body = helper.make_function(
        "local", "F", ["a"], ["b"], [node("Tanh", "a", "b")], [helper.make_opsetid("", 13)]
    )
    proto = model(
        [node("F", "x", "z", domain="local"), node("Relu", "z", "y")],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 4])],
        domains={"local": 1},
    )
    proto.functions.append(body)
    assert operators(normalized(proto)) == ["Tanh", "Relu"]


def test_a_function_that_calls_itself():
    body = helper.make_function(
        "local",
        "F",
        ["a"],
        ["b"],
        [node("F", "a", "b", domain="local")],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
    )
    proto = model(
        [node("F", "x", "y", domain="local")],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 4])],
        domains={"local": 1},
    )
    proto.functions.append(body)
    with pytest.raises(ModelError, match=r"must not be recursive|Cyclic dependency|Cycle detected"):
        normalize(proto)


def test_a_function_that_cannot_be_inlined():
    choice = node("If", "flag", "b")
    for branch in ("then_branch", "else_branch"):
        choice.attribute.add(
            name=branch, ref_attr_name=branch, type=onnx.AttributeProto.AttributeType.GRAPH
        )
    body = helper.make_function(
        "local",
        "Choose",
        ["flag"],
        ["b"],
        [choice],
        [helper.make_opsetid("", 17)],
        attributes=["then_branch", "else_branch"],
    )
    branch_result = helper.make_tensor_value_info("r", F, [1])
    constant = numpy_helper.from_array(np.ones(1, np.float32))
    graph = helper.make_graph(
        [node("Constant", "", "r", value=constant)], "branch", [], [branch_result]
    )
    proto = model(
        [node("Choose", "flag", "y", domain="local", then_branch=graph, else_branch=graph)],
        [("flag", BOOL, [])],
        [("y", F, [1])],
        domains={"local": 1},
    )
    proto.functions.append(body)
    with pytest.raises(ModelError, match=r"can't be normalized \(inline_functions\): .") as caught:
        normalize(proto)
    assert caught.value.__cause__ is not None


def test_sequences_become_splits():
    proto = model(
        [
            node("SplitToSequence", "x sizes", "s", axis=1),
            node("SequenceAt", "s one", "b"),
            node("SequenceAt", "s zero", "a"),
            node("SplitToSequence", "b half", "t", axis=1),
            node("SequenceAt", "t zero", "c"),
            node("SequenceAt", "t minus", "d"),
            node("Concat", "c a d", "y", axis=1),
        ],
        [("x", F, ["batch", 7])],
        [("y", F, ["batch", 7])],
        {
            "sizes": np.array([2, 5]),
            "half": np.array(3),
            "zero": np.array(0),
            "one": np.array(1),
            "minus": np.array(-1),
        },
    )
    graph = normalized(proto)
    assert operators(graph) == ["Split", "Split", "Concat"]
    assert shape_of(graph, "d") == ["batch", 2]


# Gathers by tables


@pytest.mark.parametrize("places", [[[2], [0], [-1]], [[[1], [1]], [[0], [2]]]])
def test_places_of_one_number_are_gathered(places):
    proto = model(
        [node("GatherND", "x i", "y", name="look")],
        [("x", F, [3, "batch"])],
        [("y", F, [*np.shape(places)[:-1], "batch"])],
        {"i": np.array(places)},
    )
    graph = normalized(proto)
    assert operators(graph) == ["Gather"]
    assert graph.model.graph[0].name == "look"


def test_computed_places_of_one_number_are_gathered():
    proto = model(
        [
            node("Cast", "f", "i", to=int(LONG)),
            node("GatherND", "x i", "g"),
            node("Neg", "i", "n"),
            node("Relu", "g", "y"),
        ],
        [("x", F, [3, 4]), ("f", F, ["batch", 1])],
        [("y", F, ["batch", 4]), ("n", LONG, ["batch", 1])],
    )
    graph = normalized(proto)
    assert operators(graph) == ["Cast", "Squeeze", "Gather", "Neg", "Relu"]
    assert shape_of(graph, "g") == ["batch", 4]


@pytest.mark.parametrize(
    ("places", "batch_dims"),
    [([[0, 1], [2, 1]], 0), ([[[1], [0]]] * 3, 1)],
    ids=["two numbers", "of each sample"],
)
def test_other_places_stay(places, batch_dims):
    proto = model(
        [node("GatherND", "x i", "y", batch_dims=batch_dims)],
        [("x", F, [3, 2, 5])],
        [("y", F, [len(places), *[2] * batch_dims, 5])],
        {"i": np.array(places)},
    )
    assert operators(normalized(proto)) == ["GatherND"]


def test_a_gather_of_all_in_order_is_a_reshape():
    proto = model(
        [node("Gather", "x all", "r", axis=1), node("Relu", "r", "y")],
        [("x", F, ["batch", 6, "time"])],
        [("y", F, ["batch", 2, 3, "time"])],
        {"all": np.arange(6).reshape(2, 3)},
    )
    graph = normalized(proto)
    assert operators(graph) == ["Reshape", "Relu"]
    assert shape_of(graph, "r") == ["batch", 2, 3, "time"]


@pytest.mark.parametrize(
    ("indices", "dims"),
    [
        ([[0, 2, 1], [3, 4, 5]], [2, 3]),
        ([0, 1, 2, 3, 4], [5]),
        ([0, 1, 2, 3, 4, 5, 0], [7]),
    ],
    ids=["another order", "not all", "one twice"],
)
def test_other_gathers_stay(indices, dims):
    proto = model(
        [node("Gather", "x i", "y", axis=0)],
        [("x", F, [6, "time"])],
        [("y", F, [*dims, "time"])],
        {"i": np.array(indices)},
    )
    assert operators(normalized(proto)) == ["Gather"]


GRID = np.stack(np.meshgrid(np.arange(3), np.arange(2), indexing="ij"), -1)


@pytest.mark.parametrize("table", [GRID, GRID[:, :1, :1].reshape(3, 1)], ids=["elements", "rows"])
def test_writing_all_gives_what_is_written(table):
    proto = model(
        [node("Exp", "x", "e"), node("Neg", "x", "n"), node("ScatterND", "e i n", "y")],
        [("x", F, [3, 2])],
        [("y", F, [3, 2])],
        {"i": table},
    )
    assert operators(normalized(proto)) == ["Neg"]


def test_writing_all_at_places_put_together_gives_what_is_written():
    proto = model(
        [
            node("Add", "rows one", "r"),
            node("Concat", "rows columns", "i", axis=2),
            node("Neg", "x", "n"),
            node("ScatterND", "x i n", "s"),
            node("Relu", "s", "y"),
        ],
        [("x", F, [3, 2])],
        [("y", F, [3, 2])],
        {"rows": GRID[..., :1], "columns": GRID[..., 1:], "one": np.array(1)},
    )
    assert operators(normalized(proto)) == ["Neg", "Relu"]


@pytest.mark.parametrize(
    ("table", "reduction"),
    [(GRID[::-1], "none"), (GRID, "add"), (GRID[:, ::-1], "none"), (GRID[:2], "none")],
    ids=["rows turned round", "added", "columns turned round", "not all"],
)
def test_other_writing_stays(table, reduction):
    proto = model(
        [
            node("Slice", "x zero some", "part"),
            node("Neg", "part", "n"),
            node("ScatterND", "x i n", "y", reduction=reduction),
        ],
        [("x", F, [3, 2])],
        [("y", F, [3, 2])],
        {"i": np.ascontiguousarray(table), "zero": np.array([0]), "some": np.array([len(table)])},
        opset=16,
    )
    assert "ScatterND" in operators(normalized(proto))


# Matrix products


@pytest.mark.parametrize("bias_first", [False, True])
@pytest.mark.parametrize("bias_shape", [(5,), (1, 5)])
def test_a_product_and_a_bias_become_gemm(bias_first, bias_shape):
    proto = model(
        [
            node("MatMul", "x w", "p", name="dense"),
            node("Add", "b p" if bias_first else "p b", "y", name="add"),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 5])],
        {"w": floats(4, 5), "b": floats(*bias_shape)},
    )
    graph = normalized(proto)
    assert operators(graph) == ["Gemm"]
    assert graph.model.graph[0].name == "dense"


@pytest.mark.parametrize(
    ("x", "weights", "nodes"),
    [
        (["batch", 3, 4], {"w": (4, 5), "b": (5,)}, ()),
        (["batch", 4], {"w": (4, 5), "b": (1,)}, ()),
        (["batch", 4], {"w": (4, 5), "b": (5,)}, (node("Exp", "p", "z"),)),
    ],
    ids=["three axes", "scalar bias", "product used twice"],
)
def test_other_products_stay(x, weights, nodes):
    outputs = [("y", F, [*x[:-1], 5])] + [("z", F, [*x[:-1], 5])] * len(nodes)
    proto = model(
        [node("MatMul", "x w", "p"), node("Add", "p b", "y"), *nodes],
        [("x", F, x)],
        outputs,
        {name: floats(*shape) for name, shape in weights.items()},
    )
    assert operators(normalized(proto))[:2] == ["MatMul", "Add"]


# Layer normalization


def written_out(spelling: str, rank: int = 3, width: int = 8) -> tuple[list, dict]:
    """Nodes from ``x`` to ``y`` of ``(x - mean) / sqrt(variance + epsilon) * scale + bias``."""
    weights = {
        "epsilon": np.array(1e-5, np.float32),
        "two": np.array(2, np.float32),
        "one": np.array(1, np.float32),
        "share": np.array(1 / width, np.float32),
        "last": np.array([-1]),
        "scale": floats(width),
        "bias": floats(width),
    }

    def mean(source: str, result: str) -> list:
        if "sum" in spelling:
            return [
                node("ReduceSum", f"{source} last", f"{result}_sum", keepdims=1),
                node("Mul", f"{result}_sum share", result),
            ]
        if "pool" in spelling:
            return [node("GlobalAveragePool", source, result)]
        return [node("ReduceMean", source, result, axes=[-1], keepdims=1)]

    nodes = [
        *mean("x", "mean"),
        node("Sub", "x mean", "d"),
        node("Mul", "d d", "square") if "keras" in spelling else node("Pow", "d two", "square"),
        *mean("square", "variance"),
        node("Add", "epsilon variance" if "keras" in spelling else "variance epsilon", "v"),
        node("Sqrt", "v", "deviation"),
    ]
    if "keras" in spelling:
        nodes += [
            node("Reciprocal", "deviation", "r"),
            node("Mul", "r scale", "factor"),
            node("Mul", "x factor", "scaled"),
            *(
                [
                    node("Neg", "mean", "negative"),
                    node("Mul", "negative factor", "offset"),
                    node("Add", "offset bias", "shift"),
                ]
                if "negated" in spelling
                else [node("Mul", "mean factor", "offset"), node("Sub", "bias offset", "shift")]
            ),
            node("Add", "scaled shift", "y"),
        ]
    elif "reciprocal" in spelling:
        nodes += [
            node("Div", "one deviation", "r"),
            node("Mul", "d r", "n"),
            node("Mul", "scale n", "m"),
            node("Add", "bias m", "y"),
        ]
    elif "plain" in spelling:
        nodes += [node("Div", "d deviation", "y")]
    else:
        nodes += [
            *([node("Sub", "x mean", "d_again")] if "twice" in spelling else []),
            node("Div", "d_again deviation" if "twice" in spelling else "d deviation", "n"),
            node("Mul", "n scale", "m"),
            node("Add", "m bias", "y"),
        ]
    used = {name for n in nodes for name in n.input}
    return nodes, {name: array for name, array in weights.items() if name in used}


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize(
    "spelling",
    ["torch", "twice", "plain", "reciprocal", "sum", "keras", "keras negated", "keras pool"],
)
def test_layer_normalization_is_recognized(spelling, opset):
    nodes, weights = written_out(spelling)
    proto = model(
        nodes, [("x", F, ["batch", 5, 8])], [("y", F, ["batch", 5, 8])], weights, opset=opset
    )
    graph = normalized(proto)
    assert operators(graph) == ["LayerNormalization"]
    assert graph.opset == 17
    (norm,) = graph.model.graph
    assert norm.attributes["axis"].as_int() == -1
    np.testing.assert_allclose(norm.attributes["epsilon"].as_float(), 1e-5, rtol=1e-6)
    if spelling != "plain":
        assert [value.name for value in norm.inputs[1:]] == ["scale", "bias"]


def test_a_chain_of_layer_normalizations():
    nodes, weights = written_out("torch")
    second = []
    for n in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(n)
        copy.name += "_2"
        copy.input[:] = ["y" if i == "x" else i if i in weights else f"{i}_2" for i in n.input]
        copy.output[:] = [f"{o}_2" for o in n.output]
        second.append(copy)
    proto = model(
        [*nodes, *second], [("x", F, ["batch", 5, 8])], [("y_2", F, ["batch", 5, 8])], weights
    )
    assert operators(normalized(proto)) == ["LayerNormalization"] * 2


def test_a_normalization_over_channels_stays_written_out():
    nodes, weights = written_out("torch")
    for n in nodes:
        if n.op_type == "ReduceMean":
            n.attribute[0].CopyFrom(helper.make_attribute("axes", [1]))
    weights |= {name: weights[name].reshape(8, 1) for name in ("scale", "bias")}
    proto = model(
        nodes, [("x", F, ["batch", 8, 5])], [("y", F, ["batch", 8, 5])], weights, opset=13
    )
    graph = normalized(proto)
    assert "LayerNormalization" not in operators(graph)
    assert graph.opset == 13


@pytest.mark.parametrize("wrong", ["square", "mean", "type"])
def test_what_only_resembles_layer_normalization_stays(wrong):
    nodes, weights = written_out("torch")
    dtype, element = np.float32, F
    if wrong == "square":
        weights["two"] = np.array(4, np.float32)
    elif wrong == "mean":
        nodes[1].input[1] = "variance"
        nodes = [nodes[0], node("ReduceMean", "x", "m2", axes=[1], keepdims=1), *nodes[1:]]
        nodes[2].input[1] = "m2"
    else:
        dtype, element = np.float64, TensorProto.DOUBLE
    weights = {name: array.astype(dtype) for name, array in weights.items()}
    proto = model(nodes, [("x", element, [2, 5, 8])], [("y", element, [2, 5, 8])], weights)
    assert "LayerNormalization" not in operators(normalized(proto))


# Transposes


def test_transposes_around_channels_last_operators_cancel():
    weights = {
        "w1": floats(8, 3, 3, 3),
        "w2": floats(8, 8, 3, 3),
        "scale": floats(8),
        "pads": np.array([0, 1, 1, 0, 0, 1, 1, 0]),
    }
    to_last, to_first = {"perm": [0, 2, 3, 1]}, {"perm": [0, 3, 1, 2]}
    proto = model(
        [
            node("Transpose", "x", "t0", **to_first),
            node("Conv", "t0 w1", "c1", pads=[1, 1, 1, 1]),
            node("Transpose", "c1", "t1", **to_last),
            node("Mul", "t1 scale", "scaled"),
            node("Relu", "scaled", "r"),
            node("Pad", "r pads", "padded"),
            node("Transpose", "padded", "t2", **to_first),
            node("Conv", "t2 w2", "c2"),
            node("Transpose", "c2", "t3", **to_last),
            node("Concat", "r t3", "both", axis=-1),
            node("ReduceMean", "both", "pooled", axes=[1, 2], keepdims=1),
            node("Transpose", "pooled", "y", **to_first),
        ],
        [("x", F, ["batch", 6, 6, 3])],
        [("y", F, ["batch", 16, 1, 1])],
        weights,
    )
    graph = normalized(proto)
    assert operators(graph).count("Transpose") == 1
    assert graph.model.graph[0].op_type == "Transpose"
    assert shape_of(graph, "both") == ["batch", 16, 6, 6]


def test_transposes_that_do_not_cancel_stay():
    proto = model(
        [
            node("Transpose", "x", "t", perm=[0, 2, 1]),
            node("Relu", "t", "r"),
            node("MatMul", "r w", "y"),
        ],
        [("x", F, ["batch", 4, 5])],
        [("y", F, ["batch", 5, 6])],
        {"w": floats(4, 6)},
    )
    assert operators(normalized(proto)) == ["Transpose", "Relu", "MatMul"]


def test_a_value_that_is_also_an_output_keeps_its_layout():
    proto = model(
        [
            node("Transpose", "x", "t", perm=[0, 2, 1]),
            node("Relu", "t", "r"),
            node("Exp", "r", "e"),
            node("Transpose", "r", "y", perm=[0, 2, 1]),
            node("Transpose", "e", "z", perm=[0, 2, 1]),
        ],
        [("x", F, ["batch", 4, 5])],
        [("y", F, ["batch", 4, 5]), ("z", F, ["batch", 4, 5]), ("r", F, ["batch", 5, 4])],
    )
    graph = normalized(proto)
    assert operators(graph).count("Transpose") == 1


def test_transposes_in_a_row_become_one_or_none():
    proto = model(
        [
            node("Transpose", "x", "a", perm=[1, 2, 0]),
            node("Transpose", "a", "b", perm=[1, 2, 0]),
            node("Transpose", "b", "c", perm=[1, 2, 0]),
            node("Relu", "c", "r"),
            node("Transpose", "x", "d", perm=[1, 2, 0]),
            node("Transpose", "d", "y", perm=[0, 2, 1]),
        ],
        [("x", F, [3, 4, 5])],
        [("r", F, [3, 4, 5]), ("y", F, [4, 3, 5])],
    )
    graph = normalized(proto)
    assert operators(graph) == ["Relu", "Transpose"]


# Shapes


def test_wrong_declared_shapes_are_replaced():
    proto = model(
        [node("Conv", "x w", "c"), node("Relu", "c", "y")],
        [("x", F, ["batch", 3, 8, 8])],
        [("y", F, ["batch", 8, 6, 6])],
        {"w": floats(8, 3, 3, 3)},
        declared=[("c", F, ["batch", 99, 6, 6])],
    )
    graph = normalized(proto)
    assert shape_of(graph, "c") == ["batch", 8, 6, 6]
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 77
    assert shape_of(normalize(proto), "y") == ["batch", 8, 6, 6]


def test_shape_arithmetic_folds_and_the_batch_stays_symbolic():
    """Heads as PyTorch writes them: every size is read off a shape."""
    proto = model(
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape zero", "batch"),
            node("Gather", "shape one", "length"),
            node("Gather", "shape two", "width"),
            node("Div", "width heads", "size"),
            node("Unsqueeze", "batch axis", "b"),
            node("Unsqueeze", "length axis", "l"),
            node("Unsqueeze", "size axis", "s"),
            node("Concat", "b l four s", "target", axis=0),
            node("Reshape", "x target", "split"),
            node("Transpose", "split", "heads_first", perm=[0, 2, 1, 3]),
            node("Mul", "batch heads", "rows"),
            node("Unsqueeze", "rows axis", "r"),
            node("Concat", "r l s", "flat", axis=0),
            node("Reshape", "heads_first flat", "y"),
        ],
        [("x", F, ["batch", "length", 12])],
        [("y", F, None)],
        {
            "zero": np.array(0),
            "one": np.array(1),
            "two": np.array(2),
            "heads": np.array(4),
            "axis": np.array([0]),
            "four": np.array([4]),
        },
    )
    graph = normalized(proto, sizes={"batch": 2, "length": 5})
    assert (
        operators(graph)[-3:] == ["Reshape", "Transpose", "Reshape"] or len(graph.model.graph) > 3
    )
    assert shape_of(graph, "split") == ["batch", "length", 4, 3]
    assert shape_of(graph, "y") == ["4*batch", "length", 3]
    first = next(n for n in graph.model.graph if n.op_type == "Reshape")
    np.testing.assert_array_equal(first.inputs[1].const_value.numpy(), [0, 0, 4, 3])


@pytest.mark.parametrize("allowzero", [0, 1])
def test_a_target_with_one_unknown_size_becomes_a_constant(allowzero):
    proto = model(
        [
            node("Shape", "x", "shape", start=0, end=1),
            node("Concat", "shape rest", "target", axis=0),
            node("Reshape", "x target", "y", allowzero=allowzero),
        ],
        [("x", F, ["batch", 3, 4])],
        [("y", F, ["batch", 12])],
        {"rest": np.array([-1])},
    )
    graph = normalized(proto)
    assert operators(graph) == ["Reshape"]
    np.testing.assert_array_equal(graph.model.graph[0].inputs[1].const_value.numpy(), [0, 12])


def test_an_expanded_token_has_a_plain_target():
    """The class token of a vision transformer, with the tests for -1 that exporters write."""
    proto = model(
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape zero", "batch"),
            node("Unsqueeze", "batch axis", "b"),
            node("Concat", "b minus minus", "sizes", axis=0),
            node("ConstantOfShape", "three", "fill", value=numpy_helper.from_array(np.array([1]))),
            node("Mul", "fill minus", "negative"),
            node("Equal", "sizes negative", "unknown"),
            node("Where", "unknown fill sizes", "target"),
            node("Expand", "token target", "expanded"),
            node("Concat", "expanded x", "y", axis=1),
        ],
        [("x", F, ["batch", 5, 8])],
        [("y", F, ["batch", 6, 8])],
        {
            "zero": np.array(0),
            "axis": np.array([0]),
            "minus": np.array([-1]),
            "three": np.array([3]),
            "token": floats(1, 1, 8),
        },
    )
    graph = normalized(proto)
    assert operators(graph) == ["Shape", "Gather", "Unsqueeze", "Concat", "Expand", "Concat"]
    assert shape_of(graph, "y") == ["batch", 6, 8]


def test_unnamed_and_negative_dimensions_of_inputs_get_names():
    proto = model([node("Relu", "x", "y")], [("x", F, [None, 4])], [("y", F, [None, 4])])
    assert shape_of(normalized(proto), "y") == ["x_dim_0", 4]
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert shape_of(normalize(proto), "y") == ["x_dim_0", 4]


def test_symbolic_sizes_through_other_operators():
    proto = model(
        [
            node("Flatten", "x", "flat"),
            node("Concat", "x x", "twice", axis=1),
            node("Slice", "twice zero one axis", "first"),
            node("Slice", "twice minus end axis", "last"),
            node("Add", "first last", "sum"),
            node("Resize", "image - scales", "larger", mode="nearest"),
            node("Shape", "twice", "shape", start=1, end=2),
            node("Squeeze", "shape", "length"),
            node("Range", "start length step", "positions"),
        ],
        [("x", F, ["batch", "length", 4]), ("image", F, ["batch", 3, 5, "width"])],
        [
            ("flat", F, ["batch", None]),
            ("sum", F, [None, None, 4]),
            ("larger", F, [None, 3, 10, None]),
            ("positions", LONG, [None]),
        ],
        {
            "zero": np.array([0]),
            "one": np.array([1]),
            "minus": np.array([-1]),
            "end": np.array([2**31 - 1]),
            "axis": np.array([1]),
            "scales": np.array([1, 1, 2, 2], np.float32),
            "start": np.array(0),
            "step": np.array(1),
        },
    )
    graph = normalized(proto)
    assert shape_of(graph, "flat") == ["batch", "4*length"]
    assert shape_of(graph, "sum") == ["batch", 1, 4]
    assert shape_of(graph, "larger") == ["batch", 3, 10, "2*width"]
    assert shape_of(graph, "positions") == ["2*length"]


# Operator sets


OLD = [
    (7, [node("Upsample", "x", "y", mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])], {}),
    (8, [node("BatchNormalization", "x s s s s", "y")], {"s": np.ones(4, np.float32)}),
    (9, [node("Upsample", "x k", "y", mode="linear")], {"k": np.array([1, 1, 2, 2], np.float32)}),
    (9, [node("Softmax", "x", "y", axis=1)], {}),
    (9, [node("Slice", "x", "y", axes=[1, 3], starts=[1, 0], ends=[3, -1])], {}),
    (9, [node("Pad", "x", "y", pads=[0, 0, 1, 0, 0, 0, 0, 1], value=2.0)], {}),
    (9, [node("Clip", "x", "y", min=0.0, max=6.0)], {}),
    (10, [node("Resize", "x k", "y", mode="nearest")], {"k": np.array([1, 1, 2, 2], np.float32)}),
    (10, [node("Resize", "x k", "y", mode="linear")], {"k": np.array([1, 1, 3, 2], np.float32)}),
    (10, [node("Dropout", "x", "d", ratio=0.5), node("Relu", "d", "y")], {}),
    (11, [node("Unsqueeze", "x", "u", axes=[0]), node("Squeeze", "u", "y", axes=[0])], {}),
    (12, [node("Split", "x", "a y", axis=1, split=[1, 3])], {}),
    (12, [node("ReduceSum", "x", "y", axes=[2, 3])], {}),
]


@pytest.mark.parametrize(("opset", "nodes", "weights"), OLD)
def test_old_operator_sets_are_raised_to_17(opset, nodes, weights):
    proto = model(
        nodes, [("x", F, ["batch", 4, 5, 5])], [("y", F, [None] * 4)], weights, opset=opset
    )
    graph = normalized(proto)
    assert graph.opset == 17
    assert graph.model.ir_version == 8


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 20])
def test_newer_operator_sets_stay(opset):
    proto = model([node("Relu", "x", "y")], [("x", F, [2])], [("y", F, [2])], opset=opset)
    graph = normalized(proto)
    assert graph.opset == opset
    assert graph.model.ir_version == helper.find_min_ir_version_for(proto.opset_import)


@pytest.mark.parametrize("opset", [17, 18, 21, 23])
def test_the_operator_set_can_be_raised_further(opset):
    proto = zoo.load("mobilenet_v3_small.ts13")
    graph = normalize(proto, opset=opset)
    assert graph.opset == opset
    assert_same(proto, graph, zoo.inputs(proto))


def test_raising_a_normalized_graph():
    graph = normalize(zoo.load("conv1d.ts17"))
    assert normalize(graph, opset=19).opset == 19
    assert graph.opset == 17


@pytest.mark.parametrize("opset", [12, 999])
def test_an_operator_set_that_cannot_be(opset):
    with pytest.raises(UsageError, match=rf"opset {opset} asked for; the model has 17"):
        normalize(zoo.load("conv1d.ts17"), opset=opset)


def test_raising_the_operator_set_keeps_what_is_said_about_the_model():
    proto = model([node("Relu", "x", "y")], [("x", F, [2])], [("y", F, [2])], opset=9)
    proto.metadata_props.add(key="origin", value="here")
    proto.producer_name, proto.doc_string, proto.model_version = "us", "a test", 3
    converted = ir.to_proto(normalize(proto).model)
    assert converted.metadata_props == proto.metadata_props
    assert (converted.producer_name, converted.doc_string, converted.model_version) == (
        "us",
        "a test",
        3,
    )
    assert converted.graph.name == "test"


def test_scans_of_batches_cannot_be_converted():
    body = helper.make_graph(
        [node("Add", "a b", "c"), node("Identity", "c", "d")],
        "body",
        [helper.make_tensor_value_info(n, F, [2]) for n in "ab"],
        [helper.make_tensor_value_info(n, F, [2]) for n in "cd"],
    )
    proto = model(
        [node("Scan", "- s x", "f y", body=body, num_scan_inputs=1)],
        [("s", F, [1, 2]), ("x", F, [1, 3, 2])],
        [("f", F, [1, 2]), ("y", F, [1, 3, 2])],
        opset=8,
    )
    with pytest.raises(UnsupportedOperator, match="that of opset 8 works on batches"):
        normalize(proto)


@pytest.mark.parametrize("shape", [[2, 3], [2, 3, 4], [2, 3, 4, 5]])
def test_slopes_of_old_prelu_belong_to_channels(shape):
    proto = model(
        [node("PRelu", "x slope", "y")],
        [("x", F, shape)],
        [("y", F, shape)],
        {"slope": np.array([1, 2, 3], np.float32)},
        opset=6,
    )
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    slope = np.array([1, 2, 3], np.float32).reshape(3, *[1] * (len(shape) - 2))
    converted = ir.to_proto(normalize(proto).model)
    (y,) = onnx.reference.ReferenceEvaluator(converted).run(None, {"x": x})
    np.testing.assert_array_equal(y, np.where(x < 0, x * slope, x))


def test_slopes_of_old_prelu_whose_input_has_no_rank():
    proto = model(
        [node("Reshape", "x shape", "r"), node("PRelu", "r slope", "y")],
        [("x", F, [6]), ("shape", onnx.TensorProto.INT64, None)],
        [("y", F, None)],
        {"slope": np.array([1, 2, 3], np.float32)},
        opset=6,
    )
    with pytest.raises(ModelError, match=r"PRelu.*rank isn't known"):
        normalize(proto)


# Subgraphs, other domains, other types


def branches(captured: str) -> dict[str, onnx.GraphProto]:
    result = [helper.make_tensor_value_info("out", F, ["batch", 4])]
    return {
        "then_branch": helper.make_graph(
            [node("Identity", captured, "j"), node("Add", "j j", "out")], "then", [], result
        ),
        "else_branch": helper.make_graph([node("Mul", f"{captured} w", "out")], "else", [], result),
    }


def test_an_if_survives_with_what_it_captures():
    proto = model(
        [
            node("Identity", "x", "i"),
            node("Relu", "i", "captured"),
            node("If", "flag", "chosen", **branches("captured")),
            node("Add", "chosen w", "y"),
        ],
        [("x", F, ["batch", 4]), ("flag", BOOL, [])],
        [("y", F, ["batch", 4])],
        {"w": floats(4)},
    )
    graph = normalized(proto)
    assert operators(graph) == ["Relu", "If", "Add"]
    branch = graph.model.graph[1].attributes["then_branch"].as_graph()
    assert [n.op_type for n in branch] == ["Identity", "Add"]
    other = graph.model.graph[1].attributes["else_branch"].as_graph()
    assert other[0].inputs[1].name == "w"
    assert graph.model.graph[2].inputs[1].name == "w_1"


def test_loops_and_scans_survive():
    loop = helper.make_graph(
        [node("Add", "s w", "t"), node("Identity", "c", "d")],
        "loop",
        [
            helper.make_tensor_value_info("i", LONG, []),
            helper.make_tensor_value_info("c", BOOL, []),
            helper.make_tensor_value_info("s", F, [2, 4]),
        ],
        [
            helper.make_tensor_value_info("d", BOOL, []),
            helper.make_tensor_value_info("t", F, [2, 4]),
        ],
    )
    scan = helper.make_graph(
        [node("Add", "a b", "c2"), node("Identity", "c2", "d2")],
        "scan",
        [helper.make_tensor_value_info(n, F, [4]) for n in "ab"],
        [helper.make_tensor_value_info(n, F, [4]) for n in ("c2", "d2")],
    )
    proto = model(
        [
            node("Loop", "count - x", "looped", body=loop),
            node("Scan", "w looped", "f y", body=scan, num_scan_inputs=1),
        ],
        [("x", F, [2, 4])],
        [("f", F, [4]), ("y", F, [2, 4])],
        {"count": np.array(3), "w": floats(4)},
        opset=13,
    )
    assert operators(normalized(proto)) == ["Loop", "Scan"]


def test_operators_of_other_domains_survive():
    proto = model(
        [
            node("FastGelu", "x", "a", domain="com.microsoft"),
            node("Scaler", "a", "b", domain="ai.onnx.ml", scale=[2.0], offset=[0.5]),
            node("MatMul", "b w", "y"),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 5])],
        {"w": floats(4, 5)},
        opset=9,
        domains={"com.microsoft": 1, "ai.onnx.ml": 1},
    )
    graph = normalized(proto)
    assert operators(graph) == ["FastGelu", "Scaler", "MatMul"]
    assert graph.model.opset_imports == {"": 17, "com.microsoft": 1, "ai.onnx.ml": 1}


def test_types_and_shapes_are_known_behind_operators_of_onnxruntime(caplog):
    """What random networks found: values of no type had shapes, about which onnx_ir complains."""
    proto = model(
        [
            node("SkipLayerNormalization", "x x s", "a mean scale b", domain="com.microsoft"),
            node("QuickGelu", "b", "c", domain="com.microsoft"),
            node("Reshape", "c to", "d"),
            node("Inverse", "d", "e", domain="com.microsoft"),
            node("Reshape", "e to", "f"),
            node("Add", "a f", "y"),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 4])],
        {"s": floats(4), "to": np.array([-1, 1, 4])},
        domains={"com.microsoft": 1},
    )
    graph = normalize(proto)
    known = {v.name: (v.type, v.shape) for node in graph.model.graph for v in node.outputs}
    for name, shape in (("a", ["batch", 4]), ("c", ["batch", 4]), ("d", ["batch", 1, 4])):
        assert known[name] == (ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)), name
    assert known["e"] == known["f"] == (None, None)
    written = ir.to_proto(graph.model).graph.value_info
    assert all(value.type.tensor_type.elem_type for value in written)
    assert not caplog.records


def test_types_and_shapes_are_known_behind_attention_of_onnxruntime():
    proto = model(
        [
            node("EmbedLayerNormalization", "n  w p  g b m", "e l t", domain="com.microsoft"),
            node("Attention", "e k c l", "a", domain="com.microsoft", num_heads=2),
            node("MultiHeadAttention", "a e v", "h", domain="com.microsoft", num_heads=2),
            node("Relu", "h", "y"),
            node("Relu", "t", "z"),
            node("Identity", "l", "lengths"),
        ],
        [("n", TensorProto.INT32, ["batch", "time"]), ("m", TensorProto.INT32, ["batch", "time"])],
        [("y", F, None), ("z", F, None), ("lengths", TensorProto.INT32, None)],
        {
            **{"w": floats(9, 4), "p": floats(7, 4), "g": floats(4), "b": floats(4)},
            **{"k": floats(4, 12), "c": floats(12), "v": floats(1, 7, 6)},
        },
        domains={"com.microsoft": 1},
    )
    graph = normalize(proto)
    known = {v.name: (v.dtype, v.shape) for node in graph.model.graph for v in node.outputs}
    kind, time = ir.DataType.FLOAT, ["batch", "time"]
    assert known["e"] == known["t"] == known["a"] == (kind, ir.Shape([*time, 4]))
    assert known["h"] == (kind, ir.Shape([*time, 6]))
    assert known["lengths"] == (ir.DataType.INT32, ir.Shape(["batch"]))


def test_unknown_operators_survive_and_leave_the_declared_output():
    proto = model(
        [node("Relu", "x", "a"), node("Mystery", "a", "y", domain="nobody.knows")],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 7])],
        domains={"nobody.knows": 1},
    )
    graph = normalize(proto)
    assert operators(graph) == ["Relu", "Mystery"]
    assert shape_of(graph, "y") == ["batch", 7]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floating_types(dtype):
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = model(
        [
            node("Transpose", "w", "t", perm=[1, 0]),
            node("MatMul", "x t", "p"),
            node("Add", "p b", "s"),
            node("Cast", "s", "c", to=F),
            node("Relu", "c", "y"),
        ],
        [("x", element, ["batch", 4])],
        [("y", F, ["batch", 5])],
        {"w": floats(5, 4).astype(dtype), "b": floats(5).astype(dtype)},
    )
    graph = normalized(proto, tolerance=2e-3 if dtype == np.float16 else 1e-5)
    assert operators(graph) == ["Gemm", "Cast", "Relu"]
    assert graph.weight("w_transposed").dtype == dtype


def test_bfloat16_weights():
    element = TensorProto.BFLOAT16
    weight = floats(4, 5)
    tensor = helper.make_tensor("w", element, [4, 5], weight.reshape(-1))
    proto = model(
        [
            node("Cast", "x", "h", to=element),
            node("MatMul", "h w", "p"),
            node("Cast", "p", "y", to=F),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 5])],
    )
    proto.graph.initializer.append(tensor)
    graph = normalize(proto)
    assert operators(graph) == ["Cast", "MatMul", "Cast"]
    assert graph.weight("w").dtype.name == "bfloat16"
    np.testing.assert_allclose(graph.weight("w").astype(np.float32), weight, rtol=2**-8)


def test_constant_casts_fold():
    proto = model(
        [
            node("Cast", "w16", "w", to=F),
            node("MatMul", "x w", "p"),
            node("Cast", "one", "f", to=F),
            node("Add", "p f", "y"),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 5])],
        {"w16": floats(4, 5).astype(np.float16), "one": np.array(1)},
    )
    graph = normalized(proto)
    assert operators(graph) == ["MatMul", "Add"]
    assert "w16_cast" in weight_names(graph)


# Whole networks


def check_network(name: str) -> None:
    proto = zoo.load(name)
    graph = normalize(proto)
    assert_same(proto, graph, zoo.inputs(proto))
    dynamic = any(
        dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim
    )
    if dynamic:
        assert_same(proto, graph, zoo.inputs(proto, batch=3, seed=1))
    unknown = {
        value.name
        for n in graph.model.graph
        for value in n.outputs
        if value.shape is None or any(dim == ir.SymbolicDim(None) for dim in value.shape)
    }
    # Behind sizes that data decide there are no others.
    assert bool(unknown) == (zoo.network(name) in ("speaker", "two_stage"))
    assert normalize(ir.to_proto(graph.model)).fingerprint == graph.fingerprint


FAST = [
    "attention_mix.dynamo_noopt",
    "attention_mix.ts17",
    "conv1d.dynamo",
    "decoder_cached.ts17",
    "gptlike.ts13",
    "keras_attention.tf17",
    "lstm.dynamo",
    "mobilenet_v3_small.ts17",
    "tied_embedding.ts17bn",
    "vit_tiny.ts17",
    "yolo.dynamo",
]


@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name in FAST])
def test_network(name):
    check_network(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in FAST])
def test_every_network(name):
    check_network(name)


def check_pretrained(name: str) -> Graph:
    path = pretrained.available()[name]
    proto = onnx.load(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nodes in training form")
        graph = normalize(path)
    assert_same(proto, graph, pretrained.inputs(name))
    return graph


PRETRAINED = sorted(pretrained.available())


@pytest.mark.parametrize("name", [n for n in PRETRAINED if n in ("magika", "light_squeezenet")])
def test_pretrained(name):
    check_pretrained(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINED)
def test_every_pretrained(name):
    check_pretrained(name)


def test_shape_arithmetic_of_a_whole_transformer_is_gone():
    graph = normalize(zoo.load("swin_tiny.ts17"))
    assert not {"Shape", "Concat_shape", "Where", "Equal", "ConstantOfShape"} & set(
        operators(graph)
    )
    assert load(graph) is graph
