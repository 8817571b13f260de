"""Activation criteria: against ONNX's reference implementation, sample by sample."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_networks as small
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from oracle import run

from onnxjl import criteria
from onnxjl.errors import DataError, ModelError, UsageError
from onnxjl.load import load
from onnxjl.normalize import normalize
from onnxjl.structure import Activation, Group, Member, analyze

RTOL = 1e-6  # float32 activations, summed in float64


def inputs(count: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(4).standard_normal((count, 3, 6, 6)).astype(dtype)


def value_of(proto: onnx.ModelProto, name: str, x: np.ndarray) -> np.ndarray:
    """An intermediate value for one batch, by the reference implementation."""
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    probe.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return ReferenceEvaluator(probe).run(None, {"x": x})[0].astype(np.float64)


def mean_magnitude(values: list[float]) -> float:
    return sum(abs(v) for v in values) / len(values)


def fraction_nonzero(values: list[float]) -> float:
    return sum(v != 0 for v in values) / len(values)


STATISTICS = {"activation": mean_magnitude, "apoz": fraction_nonzero}


@pytest.mark.parametrize("criterion", STATISTICS)
@pytest.mark.parametrize(
    ("batch", "samples", "used"), [("N", 70, 70), (4, 10, 8), (1, 3, 3)], ids=str
)
def test_units_of_a_network(criterion, batch, samples, used):
    proto = small.convolutions(batch=batch)
    graph = normalize(load(proto))
    groups = analyze(graph).groups
    x = inputs(samples)
    found = criteria.score(graph, groups, criterion, data=x, normalization="none")
    # "c" is what the second convolution consumes, "f" what the last layer does.
    for scores, name in zip(found, ("c", "f"), strict=True):
        step = batch if isinstance(batch, int) else used
        value = np.concatenate(
            [value_of(proto, name, x[i : i + step]) for i in range(0, used, step)]
        )
        expected = [
            STATISTICS[criterion](value[:, unit].ravel().tolist()) for unit in range(len(scores))
        ]
        np.testing.assert_allclose(scores, expected, rtol=RTOL)


def test_scores_do_not_depend_on_how_the_samples_come():
    graph = normalize(load(small.convolutions(batch="N")))
    groups = analyze(graph).groups
    x = inputs(90)
    at_once = criteria.score(graph, groups, "activation", data=x)
    streamed = criteria.score(
        graph, groups, "activation", data=({"x": x[i : i + 7]} for i in range(0, 90, 7))
    )
    for one, other in zip(at_once, streamed, strict=True):
        np.testing.assert_allclose(one, other, rtol=RTOL)


def identity_network(element: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """``v`` = relu of ``x`` (batch, 2, 6), which a product consumes."""
    nodes = [
        helper.make_node("Relu", ["x"], ["v"]),
        helper.make_node("MatMul", ["v", "w"], ["y"]),
    ]
    weights = {"w": np.ones((6, 4), helper.tensor_dtype_to_np_dtype(element))}
    return small.model(nodes, {"x": ("N", 2, 6)}, {"y": ("N", 2, 4)}, weights, element=element)


def group_of(*activations: tuple[str, int, np.ndarray]) -> Group:
    """A group with these activations, whose units are cut from ``w`` on axis 0."""
    made = tuple(Activation(v, axis, np.asarray(i, np.int64)) for v, axis, i in activations)
    members = (Member("w", 0, np.arange(6).reshape(2, 3)),)
    return Group("g", "channel", 2, members, made, True, None, (), (), 0.0, 0.0)


X = np.arange(1, 13, dtype=np.float32).reshape(1, 2, 6)


@pytest.mark.parametrize(
    ("activations", "aggregation", "expected"),
    [
        ([("v", 1, [[0], [1]])], "mean", [3.5, 9.5]),
        ([("v", 2, [[0, 2, 4], [1, 3, 5]])], "mean", [6, 7]),
        ([("v", 1, [[1], [0]]), ("v", 2, [[0, 2, 4], [1, 3, 5]])], "max", [9.5, 7]),
        ([("v", 1, [[1], [0]]), ("v", 2, [[0, 2, 4], [1, 3, 5]])], "sum", [15.5, 10.5]),
        # The same activation twice, as two consumers have it, counts once.
        (2 * [("v", 1, [[1], [0]])] + [("v", 2, [[0, 2, 4], [1, 3, 5]])], "sum", [15.5, 10.5]),
    ],
)
def test_axes_and_indices(activations, aggregation, expected):
    graph = normalize(load(identity_network()))
    (scores,) = criteria.score(
        graph,
        [group_of(*activations)],
        "activation",
        aggregation=aggregation,
        normalization="none",
        data=X,
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_element_types(element):
    graph = normalize(load(identity_network(element)))
    x = np.random.default_rng(8).standard_normal((300, 2, 6))
    (scores,) = criteria.score(
        graph, [group_of(("v", 1, [[0], [1]]))], "activation", data=x, normalization="none"
    )
    given = x.astype(helper.tensor_dtype_to_np_dtype(element)).astype(np.float64)
    np.testing.assert_allclose(scores, np.maximum(given, 0).mean((0, 2)), rtol=1e-12)


def test_a_group_that_no_contraction_consumes_has_l2_brought_to_the_mean_of_the_others():
    graph = normalize(load(identity_network()))
    alone, measured = group_of(), group_of(("v", 1, [[0], [1]]))
    for groups, mean in (([alone, measured], 6.5), ([alone], 1)):
        scores = criteria.score(graph, groups, "activation", normalization="none", data=X)
        (norms,) = criteria.score(graph, [alone], "l2", normalization="none")
        np.testing.assert_allclose(scores[0], norms / norms.mean() * mean, rtol=1e-12)


def low_rank(count: int) -> np.ndarray:
    """Images of rank 0 to 6, so that ranks of feature maps differ."""
    random = np.random.default_rng(4)
    images = np.zeros((count, 3, 6, 6), np.float32)
    for n in range(count):
        rank = n % 4
        images[n] = random.standard_normal((3, 6, rank)) @ random.standard_normal((3, rank, 6))
    return images


def test_ranks_of_feature_maps():
    proto = small.convolutions(batch="N")
    for tensor in proto.graph.initializer:
        if tensor.name == "first.weight":  # 1×1 within 3×3: ranks stay, but for the ReLU.
            array = np.zeros((8, 3, 3, 3), np.float32)
            array[:, :, 1, 1] = np.random.default_rng(1).standard_normal((8, 3))
            array[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    graph = normalize(load(proto))
    groups = analyze(graph).groups
    x = low_rank(37)
    found = criteria.score(graph, groups, "hrank", data=x, normalization="none")
    maps = onnxruntime_value(graph, "c", x)
    expected = [np.mean([np.linalg.matrix_rank(m) for m in maps[:, unit]]) for unit in range(8)]
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)
    assert found[0][0] <= 1 < found[0].max() < 6
    # What the last layer consumes are single numbers: of rank 1 where they aren't zero.
    features = onnxruntime_value(graph, "f", x)
    np.testing.assert_allclose(found[1], (features != 0).mean(axis=0), rtol=1e-12)


def onnxruntime_value(graph, name: str, x: np.ndarray) -> np.ndarray:
    probe = ir.to_proto(graph.model)
    del probe.graph.output[:]
    probe.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return run(probe, {"x": x})[name]


@pytest.mark.parametrize("axis", [1, 2])
def test_maps_of_one_axis_are_rows(axis):
    graph = normalize(load(identity_network()))
    x = np.random.default_rng(3).standard_normal((5, 2, 6)).astype(np.float32)
    x[1:3] = -1  # ReLU makes zeros of them.
    found = criteria.activation.mean_rank(graph, [("v", axis)], x)["v", axis]
    value = np.moveaxis(np.maximum(x, 0), axis, 1)
    np.testing.assert_allclose(found, (value != 0).any(axis=2).mean(axis=0), rtol=1e-12)


def test_maps_must_be_finite():
    graph = normalize(load(small.convolutions(batch="N")))
    x = inputs(4)
    x[2, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="on these data the activation 'c' is NaN or infinite"):
        criteria.score(graph, analyze(graph).groups, "hrank", data=x)


@pytest.mark.parametrize("criterion", [*STATISTICS, "hrank"])
def test_data_are_needed(criterion):
    graph = normalize(load(small.convolutions()))
    with pytest.raises(
        UsageError, match=f"'{criterion}' is measured on data: .*data=, --data FILE.npz"
    ):
        criteria.score(graph, analyze(graph).groups, criterion)


def test_data_must_fit():
    graph = normalize(load(small.convolutions(batch="N")))
    with pytest.raises(
        DataError, match=r"expected float32 \[N, 3, 6, 6\], came float32 \[2, 3, 5, 5\]"
    ):
        criteria.score(graph, analyze(graph).groups, "apoz", data=np.ones((2, 3, 5, 5), "f4"))


def test_activations_must_be_finite():
    graph = normalize(load(small.convolutions(batch="N")))
    x = inputs(4)
    x[2, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="on these data the activation 'c' is NaN or infinite"):
        criteria.score(graph, analyze(graph).groups, "activation", data=x)


def test_a_graph_that_onnxruntime_cannot_run_is_named():
    proto = identity_network()
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Unheard", "of"
    proto.opset_import.append(helper.make_opsetid("of", 1))
    with pytest.raises(ModelError, match="onnxruntime can't run"):
        criteria.score(load(proto), [group_of(("v", 1, [[0], [1]]))], "activation", data=X)


def test_the_graph_is_not_changed():
    graph = normalize(load(small.convolutions(batch="N")))
    before = graph.fingerprint
    outputs = [value.name for value in graph.model.graph.outputs]
    criteria.score(graph, analyze(graph).groups, "activation", data=inputs(2))
    assert [value.name for value in graph.model.graph.outputs] == outputs
    assert load(graph.model).fingerprint == before


def test_one_pass_over_the_data_and_no_batch_is_held():
    graph = normalize(load(small.convolutions(batch="N")))
    groups = analyze(graph).groups
    size, passes = 500, []

    def stream():
        passes.append(1)
        for _ in range(20):
            yield inputs(size)

    criteria.score(graph, groups, "activation", data=inputs(1))
    tracemalloc.start()
    criteria.score(graph, groups, "activation", data=stream())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert passes == [1]
    assert peak < 5 * inputs(size).nbytes
