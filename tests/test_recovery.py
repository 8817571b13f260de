"""Recovery: networks whose removed units were redundant come back; the shipped one nearly does."""

from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxjl
from onnxjl.evaluate import accuracy
from onnxjl.recovery import recover
from onnxjl.structure import analyze

MODEL = Path(__file__).parent / "models" / "mnist-resnet14"


def network(nodes, weights, inputs, outputs, opset=17):
    return helper.make_model(
        helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
            [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


def run(graph_or_model, x):
    model = graph_or_model
    if isinstance(model, onnxjl.Graph):
        model = onnx_ir.to_proto(model.model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def without_second_half(graph, layer):
    """Remove the second half of the units that a layer makes, and nothing else."""
    structure = analyze(graph)
    keep = [np.ones(g.size, dtype=bool) for g in structure.groups]
    for mask, group in zip(keep, structure.groups, strict=True):
        if layer in group.layers:
            mask[group.size // 2 :] = False
    return onnxjl.apply(graph, structure.plan(keep))


def redundant(consumer):
    """A network whose layer `a` makes every unit twice, and a consumer of these units."""
    r = np.random.default_rng(0)
    half = r.standard_normal((4, 3, 3, 3))
    weights = {"a.weight": np.concatenate([half, half]), "a.bias": np.tile(r.standard_normal(4), 2)}
    nodes = [
        helper.make_node("Conv", ["x", "a.weight", "a.bias"], ["a"], name="a", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["h"], name="relu"),
    ]
    outputs = {"y": ["N", 5, 6, 6]}
    if consumer == "conv":
        weights |= {"b.weight": r.standard_normal((5, 8, 3, 3)), "b.bias": r.standard_normal(5)}
        nodes.append(helper.make_node("Conv", ["h", "b.weight", "b.bias"], ["y"], pads=[1] * 4))
    elif consumer == "strided conv":
        weights |= {"b.weight": r.standard_normal((5, 8, 3, 2))}
        nodes.append(
            helper.make_node(
                "Conv",
                ["h", "b.weight"],
                ["y"],
                strides=[2, 1],
                dilations=[1, 2],
                pads=[1, 0, 0, 2],
            )
        )
        outputs = {"y": ["N", 5, 2, 6]}
    elif consumer == "same conv":
        weights |= {"b.weight": r.standard_normal((5, 8, 3, 2)), "b.bias": r.standard_normal(5)}
        nodes.append(
            helper.make_node("Conv", ["h", "b.weight", "b.bias"], ["y"], auto_pad="SAME_UPPER")
        )
    elif consumer == "upsampling":
        weights |= {"b.weight": r.standard_normal((8, 5, 2, 3)), "b.bias": r.standard_normal(5)}
        names = ["h", "b.weight", "b.bias"]
        nodes.append(helper.make_node("ConvTranspose", names, ["y"], strides=[2, 3]))
        outputs = {"y": ["N", 5, 12, 18]}
    elif consumer == "conv with a shared bias":
        weights |= {"b.weight": r.standard_normal((5, 8, 3, 3)), "b.bias": r.standard_normal(5)}
        weights |= {"c.weight": r.standard_normal((5, 5, 1, 1))}
        names = ["h", "b.weight", "b.bias"]
        nodes.append(helper.make_node("Conv", names, ["b"], pads=[1] * 4))
        nodes.append(helper.make_node("Conv", ["b", "c.weight", "b.bias"], ["y"]))
    elif consumer == "batch norm":
        weights |= {"b.weight": r.standard_normal((5, 8, 1, 1))}
        weights |= {f"n.{k}": r.uniform(0.5, 1.5, 5) for k in ("scale", "bias", "mean", "var")}
        nodes.append(helper.make_node("Conv", ["h", "b.weight"], ["b"], name="b"))
        names = ["b", "n.scale", "n.bias", "n.mean", "n.var"]
        nodes.append(helper.make_node("BatchNormalization", names, ["y"], name="n"))
    elif consumer == "gemm":
        weights |= {"b.weight": r.standard_normal((5, 288)), "b.bias": r.standard_normal(5)}
        nodes.append(helper.make_node("Flatten", ["h"], ["f"]))
        nodes.append(helper.make_node("Gemm", ["f", "b.weight", "b.bias"], ["y"], transB=1))
        outputs = {"y": ["N", 5]}
    elif consumer == "matmul":
        weights |= {"b.weight": r.standard_normal((8, 5)), "b.bias": r.standard_normal(5)}
        nodes.append(helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 3, 1]))
        nodes.append(helper.make_node("MatMul", ["t", "b.weight"], ["m"], name="b"))
        nodes.append(helper.make_node("Add", ["m", "b.bias"], ["y"]))
        outputs = {"y": ["N", 6, 6, 5]}
    elif consumer == "residual":
        weights |= {"b.weight": r.standard_normal((3, 8, 1, 1)), "c.weight": np.ones((5, 3, 1, 1))}
        nodes.append(helper.make_node("Conv", ["h", "b.weight"], ["b"], name="b"))
        nodes.append(helper.make_node("Add", ["b", "x"], ["s"], name="sum"))
        nodes.append(helper.make_node("Conv", ["s", "c.weight"], ["y"], name="c"))
    return network(nodes, weights, {"x": ["N", 3, 6, 6]}, outputs)


@pytest.mark.parametrize(
    "consumer",
    [
        "conv",
        "strided conv",
        "same conv",
        "conv with a shared bias",
        "upsampling",
        "batch norm",
        "gemm",
        "matmul",
        "residual",
    ],
)
def test_refit_brings_back_what_redundant_units_computed(consumer):
    model = redundant(consumer)
    graph = onnxjl.normalize(model)
    r = np.random.default_rng(1)
    calibration = r.standard_normal((400, 3, 6, 6)).astype(np.float32)
    x = r.standard_normal((7, 3, 6, 6)).astype(np.float32)
    expected = run(model, x)
    small = without_second_half(graph, "a")
    plain = run(small, x)
    refitted = recover(small, "refit", calibration)
    found = run(refitted, x)
    scale = np.abs(expected).max()
    assert np.abs(plain - expected).max() > 0.1 * scale
    assert np.abs(found - expected).max() < 2e-3 * scale
    # The graph that was given is as it was.
    np.testing.assert_array_equal(run(small, x), plain)
    assert refitted.plan.request["recover"] == "refit"


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_refit_of_the_inputs_of_a_recurrent_layer(operator, directions, bias):
    """Units are repeated but for a constant, which only a bias can make up for."""
    r = np.random.default_rng(0)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator] * 5
    half = r.standard_normal((6, 4))
    weights = {
        "a.weight": np.concatenate([half, half], axis=1),
        "w": r.standard_normal((directions, gates, 8)) / 2,
        "r": r.standard_normal((directions, gates, 5)) / 2,
    }
    if bias:
        weights |= {
            "a.bias": np.concatenate([np.zeros(4), r.standard_normal(4)]),
            "b": r.standard_normal((directions, 2 * gates)),
        }
    nodes = [helper.make_node("MatMul", ["x", "a.weight"], ["a" if not bias else "p"], name="a")]
    if bias:
        nodes.append(helper.make_node("Add", ["p", "a.bias"], ["a"]))
    nodes.append(
        helper.make_node(
            operator,
            ["a", "w", "r", *(["b"] if bias else [])],
            ["y"],
            name="recurrent",
            hidden_size=5,
            direction="bidirectional" if directions == 2 else "forward",
        )
    )
    shape = [9, 7, 6]
    model = network(nodes, weights, {"x": shape}, {"y": [9, directions, 7, 5]})
    calibration = [r.standard_normal(shape).astype(np.float32) for _ in range(30)]
    x = r.standard_normal(shape).astype(np.float32)
    small = without_second_half(onnxjl.normalize(model), "a")
    expected, plain = run(model, x), run(small, x)
    found = run(recover(small, "refit", calibration), x)
    assert np.abs(plain - expected).max() > 0.1
    assert np.abs(found - expected).max() < 2e-3


def test_refit_of_a_recurrent_layer_that_lost_units_itself():
    """What is left of it is solved for; its own units go as without a refit."""
    r = np.random.default_rng(0)
    half = r.standard_normal((6, 4))
    weights = {
        "a.weight": np.concatenate([half, half], axis=1),
        "w": r.standard_normal((1, 20, 8)) / 2,
        "r": r.standard_normal((1, 20, 5)) / 2,
        "b": r.standard_normal((1, 40)),
        "c.weight": r.standard_normal((5, 3)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight"], ["a"], name="a"),
        helper.make_node("LSTM", ["a", "w", "r", "b"], ["h"], name="lstm", hidden_size=5),
        helper.make_node("Squeeze", ["h", "one"], ["s"]),
        helper.make_node("MatMul", ["s", "c.weight"], ["y"], name="c"),
    ]
    model = network(nodes, weights, {"x": [9, 7, 6]}, {"y": [9, 7, 3]})
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    graph = onnxjl.normalize(model)
    calibration = [r.standard_normal((9, 7, 6)).astype(np.float32) for _ in range(30)]
    structure = analyze(graph)
    names = [group.name for group in structure.groups]
    first, own = names.index("a"), names.index("lstm")
    keep = [np.ones(g.size, dtype=bool) for g in structure.groups]
    keep[own][3:] = False
    alone = onnxjl.apply(graph, structure.plan(keep))
    keep[first][4:] = False
    both = recover(onnxjl.apply(graph, structure.plan(keep)), "refit", calibration)
    x = calibration[0]
    weight = both.weight("w")
    # Of each gate the units that stay: with repeated inputs the weights of both halves add up.
    whole = alone.weight("w")
    np.testing.assert_allclose(weight, whole[:, :, :4] + whole[:, :, 4:], atol=2e-3)
    assert run(both, x).shape == (9, 7, 3)


def test_refit_of_a_depthwise_convolution_follows_its_inputs():
    """Group by group: a depthwise layer after a refitted one is solved on its own channel."""
    r = np.random.default_rng(0)
    half = r.standard_normal((4, 3, 1, 1))
    weights = {
        "a.weight": np.concatenate([half, half]),
        "b.weight": r.standard_normal((6, 8, 1, 1)),
        "d.weight": r.standard_normal((6, 1, 3, 3)),
        "d.bias": r.standard_normal(6),
        "e.weight": r.standard_normal((2, 6, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["ar"]),
        helper.make_node("Conv", ["ar", "b.weight"], ["b"], name="b"),
        helper.make_node("Conv", ["b", "d.weight", "d.bias"], ["d"], group=6, pads=[1] * 4),
        helper.make_node("Conv", ["d", "e.weight"], ["y"], name="e"),
    ]
    model = network(nodes, weights, {"x": ["N", 3, 6, 6]}, {"y": ["N", 2, 6, 6]})
    calibration = r.standard_normal((300, 3, 6, 6)).astype(np.float32)
    x = r.standard_normal((5, 3, 6, 6)).astype(np.float32)
    small = without_second_half(onnxjl.normalize(model), "a")
    expected, found = run(model, x), run(recover(small, "refit", calibration), x)
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


def test_refit_is_ridge_least_squares():
    """One product alone, against NumPy's least squares: the pull to the old weights is weak."""
    r = np.random.default_rng(0)
    weights = {"a.weight": r.standard_normal((6, 4)), "b.weight": r.standard_normal((4, 2))}
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight"], ["a"], name="a"),
        helper.make_node("Tanh", ["a"], ["h"]),
        helper.make_node("MatMul", ["h", "b.weight"], ["y"], name="b"),
    ]
    model = network(nodes, weights, {"x": ["N", 6]}, {"y": ["N", 2]})
    x = r.standard_normal((2000, 6)).astype(np.float32)
    small = without_second_half(onnxjl.normalize(model), "a")
    refitted = recover(small, "refit", x)
    h = np.tanh(x.astype(np.float64) @ weights["a.weight"].astype(np.float32)[:, :2])
    expected = np.linalg.lstsq(h, run(model, x).astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(refitted.weight("b.weight"), expected, rtol=0, atol=2e-3)


def test_bn_sets_the_statistics_of_the_calibration_data():
    graph = onnxjl.normalize(f"{MODEL}.onnx")
    small = onnxjl.prune(graph, macs=0.7)
    x = np.load(f"{MODEL}.calib.npz")["image"][:200]
    recovered = recover(small, "bn", x)
    model = onnx_ir.to_proto(recovered.model)
    first = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    model.graph.output.append(helper.make_empty_tensor_value_info(first.input[0]))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    before = session.run([first.input[0]], {"image": x})[0].astype(np.float64)
    mean, variance = (recovered.weight(name) for name in first.input[3:5])
    np.testing.assert_allclose(mean, before.mean(axis=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(variance, before.var(axis=(0, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize(("macs", "method", "least"), [(0.5, "refit", 0.98), (0.5, "bn", 0.9)])
def test_the_shipped_network_recovers(macs, method, least):
    small = onnxjl.prune(
        f"{MODEL}.onnx", macs=macs, recover=method, calibration=f"{MODEL}.calib.npz"
    )
    assert accuracy(small, f"{MODEL}.test.npz") >= least


def test_calibration_alone_means_refit():
    small = onnxjl.prune(
        f"{MODEL}.onnx", macs=0.9, calibration=np.load(f"{MODEL}.calib.npz")["image"][:64]
    )
    assert small.plan.request["recover"] == "refit"


def test_recovery_is_told_from_pruning_in_plans():
    graph = onnxjl.normalize(f"{MODEL}.onnx")
    x = np.load(f"{MODEL}.calib.npz")["image"][:64]
    first = onnxjl.prune(graph, macs=0.8, calibration=x)
    # Pruned again, its weights are still the refitted ones.
    assert onnxjl.prune(first, macs=0.9).plan.request["recover"] == "refit"
    # Applied to the source, a plan recovers nothing.
    again = onnxjl.apply(graph, onnxjl.Plan.from_json(first.plan.to_json()))
    assert "recover" not in again.plan.request
    kept = first.plan.kept["layer2.0.conv1.weight"]
    expected = graph.weight("layer2.0.conv1.weight")[np.ix_(kept[0], kept[1])]
    np.testing.assert_array_equal(again.weight("layer2.0.conv1.weight"), expected)
    assert not np.array_equal(first.weight("layer2.0.conv1.weight"), expected)


def test_errors():
    graph = onnxjl.normalize(f"{MODEL}.onnx")
    small = onnxjl.prune(graph, macs=0.9)
    x = np.zeros((4, 1, 28, 28), np.float32)
    with pytest.raises(onnxjl.UsageError, match="no recovery 'magic'; there are refit, bn"):
        recover(small, "magic", x)
    with pytest.raises(onnxjl.UsageError, match="needs inputs: calibration="):
        onnxjl.prune(graph, macs=0.9, recover="bn")
    with pytest.raises(onnxjl.UsageError, match="only a pruned graph can be recovered"):
        recover(graph, "refit", x)
    bare = without_second_half(onnxjl.normalize(redundant("conv")), "a")
    with pytest.raises(onnxjl.UsageError, match="needs batch normalization"):
        recover(bare, "bn", np.zeros((4, 3, 6, 6), np.float32))
    with pytest.raises(onnxjl.DataError):
        recover(small, "refit", np.zeros((4, 3, 28, 28), np.float32))


@pytest.mark.parametrize(("samples", "together"), [(20, 20), (55, 55), (400, 400), (400, 1)])
def test_few_samples_do_no_harm(samples, together):
    r = np.random.default_rng(1)
    weights = {
        "a.weight": r.standard_normal((64, 96)),
        "a.bias": r.standard_normal(96),
        "b.weight": r.standard_normal((96, 8)) * np.where(np.arange(96) < 48, 1, 0.3)[:, None],
        "b.bias": r.standard_normal(8),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "a.weight", "a.bias"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["h"], name="relu"),
        helper.make_node("Gemm", ["h", "b.weight", "b.bias"], ["y"], name="b"),
    ]
    model = network(nodes, weights, {"x": ["n", 64]}, {"y": ["n", 8]})
    graph = onnxjl.normalize(onnxjl.load(model))
    small = without_second_half(graph, "a")
    seen = r.standard_normal((samples, 64)).astype(np.float32)
    unseen = r.standard_normal((4000, 64)).astype(np.float32)
    expected = run(graph, unseen)
    plain, refitted = (
        np.linalg.norm(run(each, unseen) - expected)
        for each in (small, recover(small, "refit", np.split(seen, samples // together)))
    )
    assert refitted < plain
