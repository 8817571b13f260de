"""Evaluating operators on constants, against onnx's reference implementation."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxjl.normalize.evaluate import evaluate
from onnxjl.normalize.polynomial import Polynomial

X = np.arange(-12, 12, dtype=np.float32).reshape(2, 3, 4) / 4
N = np.array([7, -7, 8, -9])
D = np.array([2, 2, -3, 4])


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES: list[tuple[str, list[np.ndarray | None], dict]] = [
    ("Abs", [X], {}),
    ("Add", [X, X[0]], {}),
    ("And", [X > 0, X < 1], {}),
    ("Cast", [X], {"to": TensorProto.INT64}),
    ("Cast", [X], {"to": TensorProto.FLOAT16}),
    ("Cast", [N], {"to": TensorProto.BOOL}),
    ("CastLike", [X, N], {}),
    ("Ceil", [X], {}),
    ("Clip", [X, np.float32(-1), np.float32(1)], {}),
    ("Concat", [X, X * 2], {"axis": -1}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("CumSum", [X, np.array(1)], {}),
    ("Div", [N, D], {}),
    ("Div", [X, np.float32(3)], {}),
    ("Equal", [N, D], {}),
    ("Exp", [X], {}),
    ("Expand", [X[:, :1], ints(2, 1, 2, 1, 4)], {}),
    ("Flatten", [X], {"axis": 2}),
    ("Flatten", [X], {"axis": 0}),
    ("Flatten", [X], {"axis": -1}),
    ("Floor", [X], {}),
    ("Gather", [X, ints(2, 0, -1)], {"axis": 1}),
    ("Gather", [N, np.array(1)], {}),
    ("Greater", [N, D], {}),
    ("Identity", [X], {}),
    ("Max", [X, -X, X * 2], {}),
    ("Min", [N, D], {}),
    ("Mod", [N, D], {}),
    ("Mod", [-N, D], {"fmod": 1}),
    ("Mod", [X, np.float32(0.7)], {"fmod": 1}),
    ("Mul", [X, X[0, 0]], {}),
    ("Neg", [N], {}),
    ("Not", [X > 0], {}),
    ("Pow", [X, np.float32(2)], {}),
    ("Range", [np.array(3), np.array(20), np.array(4)], {}),
    ("Range", [np.float32(1), np.float32(-1), np.float32(-0.5)], {}),
    ("ReduceProd", [N], {"keepdims": 0}),
    ("ReduceProd", [X, ints(0, -1)], {}),
    ("ReduceSum", [X, ints(1)], {"keepdims": 0}),
    ("Reshape", [X, ints(0, -1, 2)], {}),
    ("ScatterND", [X, ints(1, 0).reshape(2, 1), X[::-1] * 3], {}),
    ("Slice", [X, ints(1), ints(100), ints(-1)], {}),
    ("Slice", [X, ints(-1, 0), ints(-100, 2), ints(2, 1), ints(-2, 1)], {}),
    ("Slice", [X, ints(3), ints(0), ints(2), ints(-1)], {}),
    ("Split", [X, ints(1, 3)], {"axis": 2}),
    ("Split", [X], {"axis": 2, "num_outputs": 2}),
    ("Sqrt", [np.abs(X)], {}),
    ("Squeeze", [X[:1], ints(0)], {}),
    ("Squeeze", [X[:1]], {}),
    ("Sub", [N, D], {}),
    ("Tile", [X, ints(1, 2, 1)], {}),
    ("Transpose", [X], {}),
    ("Transpose", [X], {"perm": [1, 2, 0]}),
    ("Trilu", [X, np.array(1)], {"upper": 0}),
    ("Unsqueeze", [X, ints(0, -1)], {}),
    ("Where", [X > 0, X, -X], {}),
]


def reference(proto: onnx.NodeProto, arrays: list[np.ndarray | None]) -> list[np.ndarray]:
    graph = helper.make_graph(
        [proto],
        "one",
        [
            helper.make_tensor_value_info(
                name, int(ir.DataType.from_numpy(np.asarray(a).dtype)), None
            )
            for name, a in zip(proto.input, arrays, strict=True)
        ],
        [onnx.ValueInfoProto(name=name) for name in proto.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return ReferenceEvaluator(model).run(None, dict(zip(proto.input, arrays, strict=True)))


@pytest.mark.parametrize(("op_type", "arrays", "attributes"), CASES)
def test_operator(op_type, arrays, attributes):
    names = [f"x{i}" for i in range(len(arrays))]
    outputs = ["a", "b"] if op_type == "Split" else ["a"]
    proto = helper.make_node(op_type, names, outputs, **attributes)
    arrays = [np.asarray(array) for array in arrays]
    found = evaluate(ir.from_proto(proto), arrays, 18)
    expected = reference(proto, arrays)
    assert found is not None
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


SEQ = Polynomial.symbol("seq")


def symbolic(*elements: object) -> np.ndarray:
    return np.array(elements, object)


@pytest.mark.parametrize(
    ("op_type", "arrays", "attributes", "expected"),
    [
        ("Add", [symbolic(SEQ, 3), ints(1, 2)], {}, [SEQ + 1, 5]),
        ("Sub", [symbolic(SEQ, SEQ), symbolic(SEQ, 1)], {}, [0, SEQ - 1]),
        ("Mul", [symbolic(SEQ, 3), ints(4, 2)], {}, [SEQ * 4, 6]),
        ("Div", [symbolic(SEQ * 4, 7), ints(4, 2)], {}, [SEQ, 3]),
        ("Concat", [symbolic(SEQ), ints(4)], {"axis": 0}, [SEQ, 4]),
        ("Gather", [symbolic(5, SEQ), ints(1)], {}, [SEQ]),
        ("Slice", [symbolic(5, SEQ, 2), ints(1), ints(3)], {}, [SEQ, 2]),
        ("Equal", [symbolic(SEQ + 1, 4), ints(-1, 4)], {}, [False, True]),
        ("Where", [np.array([True, False]), ints(1, 1), symbolic(SEQ, SEQ)], {}, [1, SEQ]),
        ("Max", [symbolic(SEQ, SEQ), symbolic(SEQ + 1, SEQ)], {}, [SEQ + 1, SEQ]),
        ("Min", [symbolic(SEQ, SEQ), symbolic(SEQ + 1, SEQ)], {}, [SEQ, SEQ]),
        ("ReduceProd", [symbolic(SEQ, 3)], {"keepdims": 0}, [SEQ * 3]),
        ("Cast", [symbolic(SEQ)], {"to": TensorProto.INT32}, [SEQ]),
        ("Identity", [symbolic(SEQ)], {}, [SEQ]),
        ("Neg", [symbolic(SEQ)], {}, [SEQ * -1]),
    ],
)
def test_operator_on_sizes(op_type, arrays, attributes, expected):
    proto = helper.make_node(op_type, [f"x{i}" for i in range(len(arrays))], ["a"], **attributes)
    found = evaluate(ir.from_proto(proto), arrays, 18)
    assert found is not None
    assert found[0].reshape(-1).tolist() == expected


@pytest.mark.parametrize(
    ("op_type", "arrays", "attributes"),
    [
        ("Equal", [symbolic(SEQ), ints(4)], {}),
        ("Equal", [symbolic(SEQ), ints(0)], {}),
        ("Cast", [symbolic(SEQ)], {"to": TensorProto.FLOAT}),
        ("Reshape", [ints(1, 2), symbolic(SEQ)], {}),
        ("Expand", [ints(1), symbolic(SEQ)], {}),
        ("Slice", [ints(1, 2), symbolic(SEQ), ints(2)], {}),
        ("Gather", [ints(1, 2), symbolic(SEQ)], {}),
        ("Sqrt", [symbolic(SEQ)], {}),
        ("Div", [N, N * 0], {}),
        ("Mod", [N, N * 0], {}),
        ("Mod", [X, np.float32(2)], {}),
        ("Range", [np.array(0), np.array(1), np.array(0)], {}),
        ("Cast", [np.ones((2, 2), np.int8)], {"to": TensorProto.FLOAT}),
        ("Cast", [X], {"to": TensorProto.INT8}),
        ("Cast", [X], {"to": TensorProto.STRING}),
        ("RandomNormalLike", [X], {}),
        ("DequantizeLinear", [np.ones(2, np.int8), np.float32(1)], {}),
    ],
)
def test_what_is_not_evaluated(op_type, arrays, attributes):
    proto = helper.make_node(op_type, [f"x{i}" for i in range(len(arrays))], ["a"], **attributes)
    arrays = [np.asarray(array) for array in arrays]
    assert evaluate(ir.from_proto(proto), arrays, 18) is None


@pytest.mark.parametrize("op_type", ["Div", "Max", "Min"])
def test_an_unknown_outcome_is_like_no_other(op_type):
    arrays = [symbolic(SEQ, SEQ), ints(3, 3)]
    proto = helper.make_node(op_type, ["x0", "x1"], ["a"])
    found = evaluate(ir.from_proto(proto), arrays, 18)
    assert found is not None
    first, second = found[0]
    assert not first.is_known
    assert first != second
