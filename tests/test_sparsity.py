"""sparsify: the right weights are zero, as many as were asked for, and stay so."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import small_networks as small
from cases import Case
from onnx import helper, numpy_helper

import onnxjl
from onnxjl.criteria.weights import Scoring
from onnxjl.errors import BudgetError, DataError, UsageError, WeightError
from onnxjl.sparsity import CRITERIA, register
from onnxjl.sparsity.budget import erk
from onnxjl.sparsity.layers import Layer, candidates
from onnxjl.sparsity.pattern import Pattern, largest, lowest
from onnxjl.sparsity.report import make_report
from onnxjl.sparsity.sparsegpt import DAMPING, reconstruct

MNIST = Path(__file__).parent / "models" / "mnist-resnet14.onnx"


@pytest.fixture
def random():
    return np.random.default_rng(0)


def run(model, feeds):
    """Outputs of a model in onnxruntime."""
    proto = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)


def dense(*sizes, seed=0):
    """``x`` → Gemm (out, in) ``w0`` → Relu → MatMul (in, out) ``w1`` → … → ``y``, by turns."""
    random = np.random.default_rng(seed)
    nodes, weights, value = [], {}, "x"
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        turned = i % 2 == 0
        shape = (outputs, inputs) if turned else (inputs, outputs)
        weights[f"w{i}"] = random.standard_normal(shape).astype(np.float32)
        operator = {"op_type": "Gemm", "transB": 1} if turned else {"op_type": "MatMul"}
        kind = operator.pop("op_type")
        out = "y" if i == len(sizes) - 2 else f"h{i}"
        nodes.append(helper.make_node(kind, [value, f"w{i}"], [out], name=f"/{i}", **operator))
        value = out
        if out != "y":
            nodes.append(helper.make_node("Relu", [out], [f"r{i}"], name=f"/relu{i}"))
            value = f"r{i}"
    shapes = {"x": ("N", sizes[0])}, {"y": ("N", sizes[-1])}
    return small.model(nodes, *shapes, weights)


# Operators: operator, inputs, attributes, shapes of x and of weights, and for each weight the axis
# that a pattern runs along.
OPERATORS = {
    "Conv": ("Conv", ["x", "w"], {}, (1, 8, 5, 5), {"w": (6, 8, 3, 3)}, {"w": 1}),
    "Conv1d": ("Conv", ["x", "w"], {}, (1, 8, 5), {"w": (6, 8, 3)}, {"w": 1}),
    "grouped Conv": ("Conv", ["x", "w"], {"group": 2}, (1, 8, 5, 5), {"w": (6, 4, 3, 3)}, {"w": 1}),
    "ConvTranspose": ("ConvTranspose", ["x", "w"], {}, (1, 8, 5, 5), {"w": (8, 6, 3, 3)}, {"w": 0}),
    "grouped ConvTranspose": (
        *("ConvTranspose", ["x", "w"], {"group": 2}),
        *((1, 8, 5, 5), {"w": (8, 3, 3, 3)}, {"w": 0}),
    ),
    "Gemm": ("Gemm", ["x", "w"], {}, (3, 8), {"w": (8, 6)}, {"w": 0}),
    "turned Gemm": ("Gemm", ["x", "w"], {"transB": 1}, (3, 8), {"w": (6, 8)}, {"w": 1}),
    "left Gemm": ("Gemm", ["w", "x"], {}, (8, 3), {"w": (6, 8)}, {"w": 1}),
    "MatMul": ("MatMul", ["x", "w"], {}, (2, 3, 8), {"w": (8, 6)}, {"w": 0}),
    "batched MatMul": ("MatMul", ["x", "w"], {}, (2, 3, 8), {"w": (2, 8, 6)}, {"w": 1}),
    "Einsum": (
        *("Einsum", ["x", "w"], {"equation": "bi,oi->bo"}),
        *((3, 8), {"w": (6, 8)}, {"w": 1}),
    ),
    "LSTM": (
        *("LSTM", ["x", "w", "r"], {"hidden_size": 4}),
        *((5, 1, 8), {"w": (1, 16, 8), "r": (1, 16, 4)}, {"w": 2, "r": 2}),
    ),
}


def operator(name):
    """A network of one node."""
    kind, inputs, attributes, x, shapes, _ = OPERATORS[name]
    random = np.random.default_rng(0)
    weights = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    node = helper.make_node(kind, inputs, ["y"], name="/node", **attributes)
    rank = 4 if kind == "LSTM" else len(x)
    return small.model([node], {"x": x}, {"y": tuple("abcd"[:rank])}, weights)


def naive(weight, axis, keep, of):
    """The mask of a pattern, run by run and weight by weight."""
    mask = np.zeros(weight.shape, bool)
    others = [range(n) for i, n in enumerate(weight.shape) if i != axis]
    for place in itertools.product(*others):
        for start in range(0, weight.shape[axis], of):
            run = [(*place[:axis], start + i, *place[axis:]) for i in range(of)]
            ranked = sorted(range(of), key=lambda i, run=run: (-abs(weight[run[i]]), i))
            for i in ranked[:keep]:
                mask[run[i]] = True
    return mask


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "1:2"])
@pytest.mark.parametrize("name", OPERATORS)
def test_patterns_run_along_what_is_summed_over(name, pattern):
    proto = operator(name)
    sparse = onnxjl.sparsify(proto, pattern=pattern)
    keep, of = map(int, pattern.split(":"))
    axes = OPERATORS[name][-1]
    assert sparse.masks.keys() == axes.keys()
    for tensor, axis in axes.items():
        weight = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == tensor))
        mask = naive(weight, axis, keep, of)
        assert np.array_equal(sparse.masks[tensor], mask)
        assert np.array_equal(sparse.weight(tensor), np.where(mask, weight, 0))
        assert sparse.sparsity[tensor] == pytest.approx(1 - keep / of)


def test_what_is_summed_over_is_seen_by_the_outputs():
    # The axis is right if zeros in all but the first input of each run make the outputs depend on
    # those alone.
    for name in ("Conv", "ConvTranspose", "Gemm", "turned Gemm", "MatMul"):
        x, (tensor, axis) = OPERATORS[name][3], *OPERATORS[name][-1].items()
        channel = len(x) - 1 if "Conv" not in name else 1
        proto = operator(name)
        weight = proto.graph.initializer[0]
        array = numpy_helper.to_array(weight).copy()
        np.moveaxis(array, axis, 0)[::4] += 100
        weight.CopyFrom(numpy_helper.from_array(array, tensor))
        sparse = onnxjl.sparsify(proto, pattern="1:4")
        feed = np.random.default_rng(0).standard_normal(x).astype(np.float32)
        changed = feed.copy()
        np.moveaxis(changed, channel, 0)[1:4] += 1
        model = onnx.ModelProto()
        model.CopyFrom(proto)
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(sparse.weight(tensor), tensor))
        assert np.array_equal(*(run(model, {"x": each})[0] for each in (feed, changed)))


def test_a_pattern_leaves_whole_what_it_does_not_fit():
    sparse = onnxjl.sparsify(small.convolutions(), pattern="2:4")
    assert set(sparse.masks) == {"second.weight", "head.weight"}
    assert [(w.layer, w.reason) for w in sparse.sparsified.whole] == [
        ("first", "its 3 inputs are no multiple of 4")
    ]
    assert sparse.sparsity["first.weight"] == 0


def test_patterns_are_read_and_tell_what_holds():
    assert Pattern.parse("2:4") == Pattern(2, 4)
    assert str(Pattern(4, 8)) == "4:8"
    mask = np.array([[True, False, True, False], [True, True, True, False]])
    assert Pattern(2, 4).holds(mask[:1], 1)
    assert not Pattern(2, 4).holds(mask, 1)
    assert Pattern(1, 2).holds(mask, 1) is False
    assert Pattern(1, 3).holds(mask, 1) is False


@pytest.mark.parametrize("text", ["4:2", "2:2", "0:4", "2-4", "2:4:8", "", 2])
def test_what_is_no_pattern(text):
    with pytest.raises(UsageError, match=r"a pattern is N:M, as '2:4', .* not "):
        onnxjl.sparsify(dense(8, 4), pattern=text)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 8])
def test_of_equal_scores_the_first_stay(count):
    scores = np.array([1.0, 0, 1, 0, 0, 1, 2, 0])
    order = sorted(range(8), key=lambda i: (scores[i], -i))
    assert np.array_equal(np.flatnonzero(lowest(scores, count)), sorted(order[:count]))
    assert np.array_equal(largest(scores, 8 - count), ~lowest(scores, count))


@pytest.mark.parametrize("amount", [0.1, 0.3, 0.5, 0.873])
def test_a_global_amount_is_exact_and_takes_the_smallest_weights(amount):
    proto = dense(7, 9, 5, 3)
    sparse = onnxjl.sparsify(proto, amount=amount)
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    flat = np.sort(np.concatenate([np.abs(w).ravel() for w in weights.values()]))
    zeros = int(np.floor(amount * len(flat) + 0.5))
    for name, weight in weights.items():
        expected = np.where(np.abs(weight) > flat[zeros - 1], weight, 0)
        assert np.array_equal(sparse.weight(name), expected)
    assert sum(int((~m).sum()) for m in sparse.masks.values()) == zeros


def test_a_local_amount_is_the_same_share_of_each():
    sparse = onnxjl.sparsify(dense(7, 9, 5, 3), amount=0.4, scope="local")
    assert {n: int((~m).sum()) for n, m in sparse.masks.items()} == {"w0": 25, "w1": 18, "w2": 6}


def layer(*shape):
    return Layer("l", "n", "Gemm", "w", shape, 0, shape[0])


def test_erk_keeps_more_of_small_layers():
    layers = [layer(100, 100), layer(100, 10), layer(10, 4)]
    # Densities in proportion to 0.02, 0.11 and 0.35. With 5540 weights left, ε = 5540 / (200 + 110
    # + 14) makes the second and third dense, and the first has what they leave.
    assert erk(layers, 11040 - 5540) == [10000 - 4500, 0, 0]
    # With 550 left, ε = 550 / 324 leaves 200 ε = 339.5, 110 ε = 186.7 and 14 ε = 23.8: 9660.5,
    # 813.3 and 16.2 go, and the largest rest makes up for what rounding down lost.
    assert erk(layers, 11040 - 550) == [9661, 813, 16]
    sparse = onnxjl.sparsify(dense(100, 50, 4), amount=0.9, scope="erk")
    zeros = {n: int((~m).sum()) for n, m in sparse.masks.items()}
    assert sum(zeros.values()) == round(0.9 * 5200)
    scale = 520 / (150 + 54)
    assert zeros["w1"] == pytest.approx(200 - scale * 54, abs=1)


def test_erk_counts_a_kernel():
    # (8 + 4 + 3 + 3) / (8·4·9) and (8 + 8) / 64.
    layers = [layer(8, 4, 3, 3), layer(8, 8)]
    scale = 34 / (18 + 16)
    assert erk(layers, 352 - 34) == [288 - round(scale * 18), 64 - round(scale * 16)]


@pytest.mark.parametrize("options", [{"amount": 0.5}, {"pattern": "1:2"}])
def test_random_masks_depend_on_the_seed_alone(options):
    first, again, other = (
        onnxjl.sparsify(dense(8, 8, 4), criterion="random", seed=seed, **options).masks
        for seed in (0, 0, 1)
    )
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert any(not np.array_equal(first[n], other[n]) for n in first)


def test_a_function_of_ones_own():
    proto = dense(8, 6, 4)

    def by_place(name, weight):
        assert not weight.flags.writeable
        return np.arange(weight.size).reshape(weight.shape) + (1000 if name == "w1" else 0)

    sparse = onnxjl.sparsify(proto, amount=0.25, criterion=by_place)
    assert sparse.masks["w1"].all()
    assert np.array_equal(np.flatnonzero(~sparse.masks["w0"]), np.arange(18))
    assert sparse.sparsified.request["criterion"] == "by_place"


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda n, w: w[0], r"weight 'w0': expected a score for each weight, shape \(4, 8\)"),
        (lambda n, w: w * np.nan, r"scores must be finite; at \[0, 0\] is nan"),
        (lambda n, w: w.astype(complex), "scores must be real numbers, not complex128"),
        (lambda n, w: [[1], [1, 2]], "its scores are no array"),
    ],
)
def test_scores_that_can_not_be_ranked(scores, message):
    with pytest.raises(UsageError, match=message):
        onnxjl.sparsify(dense(8, 4), amount=0.5, criterion=scores)


@pytest.mark.parametrize("criterion", ["magnitude", "random", "wanda", "sparsegpt"])
def test_weights_must_be_finite(criterion):
    proto = dense(8, 4)
    array = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array[1, 2] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w0"))
    data = np.ones((4, 8), np.float32)
    with pytest.raises(WeightError, match="weight 'w0' holds NaN"):
        onnxjl.sparsify(proto, amount=0.5, criterion=criterion, data=data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of amount"),
        ({"amount": 0.5, "pattern": "2:4"}, "exactly one of amount"),
        ({"amount": 1.5}, "amount must be a fraction between 0 and 1, not 1.5"),
        ({"amount": True}, "amount must be a fraction"),
        ({"amount": 0.5, "criterion": "magnitud"}, "did you mean 'magnitude'"),
        ({"amount": 0.5, "criterion": 3}, r"a criterion is a name or a function f\(name, weight\)"),
        ({"amount": 0.5, "criterion": "snip"}, "needs gradients, which the numpy engine hasn't"),
        ({"amount": 0.5, "criterion": "wanda"}, "'wanda' looks at what layers read: give some"),
        ({"amount": 0.5, "criterion": "wanda", "scope": "global"}, "its scope is 'local' or 'erk'"),
        ({"amount": 0.5, "scope": "both"}, "no scope 'both'; there are global, local, erk"),
        ({"pattern": "2:4", "scope": "local"}, "a pattern has none"),
        ({"amount": 0.5, "ignore": ["w7"]}, "no layer or node matches 'w7'"),
        ({"amount": 0.5, "seed": -1}, "seed must be a whole number"),
    ],
)
def test_requests_that_make_no_sense(options, message):
    with pytest.raises(UsageError, match=message):
        onnxjl.sparsify(dense(8, 4), **options)


def test_a_request_that_changes_nothing():
    with pytest.raises(
        BudgetError, match=r"no weight .* \(/0: its 7 inputs are no multiple of 4\)"
    ):
        onnxjl.sparsify(dense(7, 3), pattern="2:4")
    with pytest.raises(BudgetError, match=r"amount=0\.001 changes nothing: 0 of 32 weights"):
        onnxjl.sparsify(dense(8, 4), amount=0.001)
    half = onnxjl.sparsify(dense(8, 4), pattern="2:4")
    with pytest.raises(BudgetError, match=r"amount=0\.4 changes nothing: 16 of 32 weights"):
        onnxjl.sparsify(half, amount=0.4)
    with pytest.raises(BudgetError, match=r"the pattern changes nothing: 16 of 32 weights"):
        onnxjl.sparsify(half, pattern="2:4", criterion=lambda n, w: np.abs(w) > 0)


def test_layers_that_are_ignored_stay_whole():
    sparse = onnxjl.sparsify(small.convolutions(), amount=0.5, ignore=["head", "/first"])
    assert set(sparse.masks) == {"second.weight"}
    assert {w.layer: w.reason for w in sparse.sparsified.whole} == {
        "first": "ignored by '/first'",
        "head": "ignored by 'head'",
    }


def tied():
    """An embedding table of 8 × 4, which is also the last product's matrix, and a MatMul 4×4."""
    random = np.random.default_rng(0)
    weights = {
        "table": random.standard_normal((8, 4)).astype(np.float32),
        "place": random.standard_normal((8, 4)).astype(np.float32),
        "w": random.standard_normal((4, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["e"], name="/embed"),
        helper.make_node("Gather", ["place", "i"], ["p"], name="/place"),
        helper.make_node("Add", ["e", "p"], ["s"], name="/sum"),
        helper.make_node("MatMul", ["s", "w"], ["h"], name="/hidden"),
        helper.make_node("Gemm", ["h", "table"], ["y"], name="/out", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tied",
        [helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_embedding_tables_are_left_alone_even_where_they_are_tied():
    graph = onnxjl.normalize(tied())
    layers, whole = candidates(graph)
    assert [entry.tensor for entry in layers] == ["w"]
    reasons = {w.node: w.reason for w in whole}
    assert reasons["/place"] == "an embedding table"
    for node in ("/embed", "/out"):
        assert reasons[node] == "an embedding table, too: its weight is tied"


def test_weights_of_integers_are_left_whole():
    scale = np.array(0.1, np.float32)
    weights = {"w": np.ones((4, 4), np.int8), "s": scale, "v": np.ones((4, 4), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"], name="/first"),
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], name="/dequantize"),
        helper.make_node("MatMul", ["h", "d"], ["y"], name="/second"),
    ]
    proto = small.model(nodes, {"x": (2, 4)}, {"y": (2, 4)}, weights)
    sparse = onnxjl.sparsify(proto, amount=0.5)
    assert set(sparse.masks) == {"v"}
    assert [w.reason for w in sparse.sparsified.whole] == ["its weights are int8"]


def test_a_weight_that_is_summed_over_in_two_ways_has_no_pattern():
    weights = {"w": np.arange(16, dtype=np.float32).reshape(4, 4)}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], name="/there"),
        helper.make_node("Gemm", ["h", "w"], ["y"], name="/back", transB=1),
    ]
    proto = small.model(nodes, {"x": (2, 4)}, {"y": (2, 4)}, weights)
    with pytest.raises(BudgetError, match="its weight is summed over along different axes"):
        onnxjl.sparsify(proto, pattern="2:4")
    with pytest.raises(BudgetError, match="'wanda' is for Conv, Gemm and MatMul with a weight of"):
        onnxjl.sparsify(proto, amount=0.5, criterion="wanda", data=np.ones((2, 4), np.float32))
    assert onnxjl.sparsify(proto, amount=0.5).sparsity == {"w": 0.5}


def test_half_precision():
    proto = small.convolutions(dtype=np.float16)
    sparse = onnxjl.sparsify(proto, amount=0.5)
    assert sparse.weight("first.weight").dtype == np.float16
    zeros = sum(int((~m).sum()) for m in sparse.masks.values())
    assert zeros == round(0.5 * (8 * 27 + 4 * 72 + 20))


def test_no_argument_changes():
    proto = small.convolutions()
    before = proto.SerializeToString()
    graph = onnxjl.normalize(proto)
    weights = {n: graph.weight(n).copy() for n in graph.model.graph.initializers}
    onnxjl.sparsify(graph, amount=0.5)
    onnxjl.mask(graph, {"head.weight": np.zeros((5, 4), bool)})
    data = np.ones((2, 3, 6, 6), np.float32)
    onnxjl.sparsify(graph, amount=0.5, criterion="sparsegpt", data=data)
    assert proto.SerializeToString() == before
    assert graph.masks == {}
    assert all(np.array_equal(graph.weight(n), w) for n, w in weights.items())


@pytest.mark.filterwarnings("ignore")
def test_masks_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch isn't installed")
    from torch.ao.pruning import WeightNormSparsifier
    from torch.nn.utils import prune

    proto = dense(16, 24, 8)
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    layers = {n: torch.nn.Linear(*w.shape[::-1], bias=False) for n, w in weights.items()}
    for name, weight in weights.items():
        layers[name].weight.data = torch.tensor(weight)
    prune.global_unstructured(
        [(each, "weight") for each in layers.values()], prune.L1Unstructured, amount=0.37
    )
    sparse = onnxjl.sparsify(proto, amount=0.37)
    for name, each in layers.items():
        assert np.array_equal(sparse.masks[name], each.weight_mask.numpy() > 0)

    linear = torch.nn.Sequential(torch.nn.Linear(16, 24, bias=False))
    linear[0].weight.data = torch.tensor(weights["w0"])
    sparsifier = WeightNormSparsifier(1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(linear, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    expected = linear[0].parametrizations.weight[0].mask.numpy() > 0
    assert np.array_equal(onnxjl.sparsify(proto, pattern="2:4").masks["w0"], expected)


# What a mask does later


def test_a_file_has_the_zeros_and_knows_its_masks(tmp_path, random):
    proto = small.convolutions(batch="N")
    sparse = onnxjl.sparsify(proto, amount=0.6)
    saved = sparse.save(tmp_path / "sparse.onnx")
    assert saved.check.text.startswith("equals the sparse network in onnxruntime")
    written = onnx.load(tmp_path / "sparse.onnx")
    found = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    for tensor in expected.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name in sparse.masks:
            array = np.where(sparse.masks[tensor.name], array, np.float32(0))
            # Bit by bit: no zero has a sign.
            assert found[tensor.name].tobytes() == array.tobytes()
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    feeds = {"x": random.standard_normal((3, 3, 6, 6)).astype(np.float32)}
    np.testing.assert_allclose(run(written, feeds)[0], run(expected, feeds)[0], rtol=1e-5)
    for again in (
        onnxjl.load(tmp_path / "sparse.onnx"),
        onnxjl.normalize(tmp_path / "sparse.onnx"),
        onnxjl.normalize(tmp_path / "sparse.onnx", opset=20),
    ):
        assert again.masks.keys() == sparse.masks.keys()
        assert all(np.array_equal(m, sparse.masks[n]) for n, m in again.masks.items())
        assert "sparse" in repr(again)


def test_the_check_finds_zeros_that_are_not_in_the_file(tmp_path, monkeypatch):
    sparse = onnxjl.sparsify(small.convolutions(), amount=0.6)
    written = onnxjl.save.__globals__["write"]
    whole = onnxjl.normalize(small.convolutions())
    monkeypatch.setitem(onnxjl.save.__globals__, "write", lambda graph, file: written(whole, file))
    with pytest.raises(onnxjl.CheckError, match="differs from the sparse network"):
        sparse.save(tmp_path / "sparse.onnx")
    assert list(tmp_path.iterdir()) == []


def test_external_data_has_the_zeros(tmp_path):
    sparse = onnxjl.sparsify(small.convolutions(), amount=0.6)
    sparse.save(tmp_path / "sparse.onnx", external=True)
    again = onnxjl.load(tmp_path / "sparse.onnx")
    assert {n: int((~m).sum()) for n, m in again.masks.items()} == {
        n: int((~m).sum()) for n, m in sparse.masks.items()
    }


def test_metadata_of_others_are_no_masks():
    for text in ("[", "3", '{"a": 1}', '["absent", "first.bias"]'):
        proto = small.convolutions()
        proto.metadata_props.add(key="onnxjl.masks", value=text)
        assert set(onnxjl.load(proto).masks) <= {"first.bias"}


def test_more_goes_on_top_of_what_is_gone():
    once = onnxjl.sparsify(dense(8, 8, 8), amount=0.3)
    twice = onnxjl.sparsify(once, amount=0.6, criterion="random")
    for name, mask in twice.masks.items():
        assert not mask[~once.masks[name]].any()
    assert sum(int((~m).sum()) for m in twice.masks.values()) == round(0.6 * 128)
    both = onnxjl.sparsify(once, pattern="2:4", criterion="random")
    for name, mask in both.masks.items():
        assert not mask[~once.masks[name]].any()
        assert Pattern(2, 4).holds(mask, 1 if name == "w0" else 0)
    data = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    for criterion in ("wanda", "sparsegpt"):
        for options in ({"amount": 0.6}, {"pattern": "2:4"}):
            more = onnxjl.sparsify(once, criterion=criterion, data=data, **options)
            assert all(not m[~once.masks[n]].any() for n, m in more.masks.items())


def test_pruning_cuts_masks_with_their_weights(tmp_path):
    sparse = onnxjl.sparsify(small.convolutions(), amount=0.5)
    small_one = onnxjl.keep(sparse, {"first": [0, 2, 3, 7]})
    assert np.array_equal(
        small_one.masks["first.weight"], sparse.masks["first.weight"][[0, 2, 3, 7]]
    )
    assert np.array_equal(
        small_one.masks["second.weight"], sparse.masks["second.weight"][:, [0, 2, 3, 7]]
    )
    saved = small_one.save(tmp_path / "small.onnx")
    assert saved.check.text.startswith("equals the masked source")
    more = onnxjl.sparsify(small_one, amount=0.7)
    assert more.plan is None
    assert more.save(tmp_path / "more.onnx").check.status == "equal"


@pytest.mark.parametrize("method", ["refit", "bn"])
def test_recovery_keeps_zeros(method):
    random = np.random.default_rng(0)
    sparse = onnxjl.sparsify(small.convolutions(batch="N"), amount=0.5)
    cut = onnxjl.keep(sparse, {"first": [0, 1, 2, 5, 7]})
    data = random.standard_normal((64, 3, 6, 6)).astype(np.float32)
    better = onnxjl.recover(cut, method, data)
    for name, mask in cut.masks.items():
        assert np.array_equal(better.masks[name], mask)
    if method == "refit":
        assert not np.array_equal(better.weight("second.weight"), cut.weight("second.weight"))
        errors = [
            np.square(outputs(each, data) - outputs(sparse, data)).sum() for each in (cut, better)
        ]
        assert errors[1] < 0.5 * errors[0]


def outputs(graph, x):
    """The output of a graph in onnxruntime."""
    return run(onnx_ir.to_proto(graph.model), {"x": x})[0]


def test_masks_of_ones_own():
    proto = dense(8, 6, 4)
    given = np.random.default_rng(0).random((6, 8)) < 0.5
    masked = onnxjl.mask(proto, {"w0": given})
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    assert np.array_equal(masked.weight("w0"), np.where(given, weight, 0))
    assert masked.masks.keys() == {"w0"}
    other = np.random.default_rng(1).random((6, 8)) < 0.5
    both = onnxjl.mask(masked, {"w0": other})
    assert np.array_equal(both.masks["w0"], given & other)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"w": np.ones((4, 8), bool)}, "no initializer is called 'w'"),
        ({"w0": np.ones((8, 4), bool)}, r"'w0': expected a mask of bool of shape \(4, 8\)"),
        ({"w0": np.ones((4, 8))}, "came float64"),
    ],
)
def test_masks_that_do_not_fit(masks, message):
    with pytest.raises(UsageError, match=message):
        onnxjl.mask(dense(8, 4), masks)


@pytest.mark.parametrize("name", ["bertlike.ts17", "lstm_stacked.ts17", "mobilenet_v2.ts17"])
def test_networks_of_several_families(name):
    case = Case(name)
    half = onnxjl.sparsify(case.graph, pattern="2:4")
    for entry in half.sparsified.layers:
        weight = case.graph.weight(entry.tensor)
        mask = half.masks[entry.tensor]
        assert Pattern(2, 4).holds(mask, entry.axis)
        assert np.array_equal(half.weight(entry.tensor), np.where(mask, weight, 0))
    others = set(case.graph.model.graph.initializers) - half.masks.keys()
    assert all(half.weight(n) is case.graph.weight(n) for n in others)
    assert not any("embedding" in name for name in half.masks)
    sparse = onnxjl.sparsify(case.graph, amount=0.5, criterion="wanda", data=case.feeds[0])
    sizes = [entry.size for entry in sparse.sparsified.layers]
    zeros = sum(int((~mask).sum()) for mask in sparse.masks.values())
    assert zeros == sum(int(np.floor(0.5 * size + 0.5)) for size in sizes)


# Wanda


def rows_within(scores, zeros):
    """The mask that takes an equal share of every row, weight by weight."""
    mask = np.ones(scores.shape, bool)
    for r, row in enumerate(scores):
        count = (r + 1) * zeros // len(scores) - r * zeros // len(scores)
        for i in sorted(range(len(row)), key=lambda i, row=row: (row[i], -i))[:count]:
            mask[r, i] = False
    return mask


@pytest.mark.parametrize("options", [{"amount": 0.4}, {"pattern": "2:4"}])
def test_wanda_is_what_the_paper_says(options, random):
    proto = dense(8, 12, 4)
    x = (random.standard_normal((50, 8)) * np.arange(1, 9)).astype(np.float32)
    sparse = onnxjl.sparsify(proto, criterion="wanda", data=x, **options)
    w0, w1 = (numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer)

    def mask(weight, inputs):
        scores = np.abs(weight) * np.linalg.norm(inputs, axis=0)
        if "pattern" in options:
            return naive(scores, 1, 2, 4)
        return rows_within(scores, int(np.floor(0.4 * weight.size + 0.5)))

    first = mask(w0, x)
    assert np.array_equal(sparse.masks["w0"], first)
    hidden = np.maximum(x @ (w0 * first).T, 0)
    second = mask(w1.T, hidden).T
    assert np.array_equal(sparse.masks["w1"], second)
    assert np.array_equal(sparse.weight("w1"), np.where(second, w1, 0).astype(np.float32))


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"strides": [2, 1], "pads": [0, 1, 2, 0]},
        {"dilations": [2, 1], "pads": [1, 1, 1, 1]},
        {"strides": [2, 1], "auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "VALID"},
        {"group": 2},
    ],
)
def test_wanda_reads_the_patches_of_convolutions(attributes, random):
    group = attributes.get("group", 1)
    weight = random.standard_normal((4, 4 // group, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="/conv", **attributes)
    proto = small.model([node], {"x": ("N", 4, 9, 8)}, {"y": ("N", 4, "h", "w")}, {"w": weight})
    x = random.standard_normal((70, 4, 9, 8)).astype(np.float32)
    # One convolution with a single one in its kernel gives what that element of a patch reads.
    norms = np.zeros((4 // group, 3, 3, group))
    for g, c, i, j in np.ndindex(group, 4 // group, 3, 3):
        kernel = np.zeros_like(weight)
        kernel[g * 4 // group, c, i, j] = 1
        model = small.model([node], {"x": ("N", 4, 9, 8)}, {"y": ("N", 4, "h", "w")}, {"w": kernel})
        norms[c, i, j, g] = np.linalg.norm(run(model, {"x": x})[0][:, g * 4 // group])
    sparse = onnxjl.sparsify(proto, amount=0.5, criterion="wanda", data=x)
    scores = np.abs(weight) * np.stack([norms[..., o * group // 4] for o in range(4)])
    # Within an output, in the order (places of the kernel, channels) that ties are broken by.
    flat = scores.transpose(0, 2, 3, 1).reshape(4, -1)
    expected = rows_within(flat, weight.size // 2).reshape(4, 3, 3, -1).transpose(0, 3, 1, 2)
    assert np.array_equal(sparse.masks["w"], expected)


# SparseGPT


def obs(weight, gram, zeros, pattern, block):
    """SparseGPT without its factorization: for each weight the inverse of what is left of H."""
    weight = weight.astype(np.float64).copy()
    outputs, inputs = weight.shape
    hessian = gram + DAMPING * np.diag(gram).mean() * np.eye(inputs)
    inverses = [np.linalg.inv(hessian[j:, j:]) for j in range(inputs)]
    gone = np.zeros(weight.shape, bool)
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        costs = np.array(
            [
                [weight[r, j] ** 2 / inverses[j][0, 0] for j in range(start, end)]
                for r in range(outputs)
            ]
        )
        if pattern is None:
            count = zeros * end // inputs - int(gone.sum())
            order = np.argsort(costs.ravel(), kind="stable")[:count]
            chosen = np.zeros(costs.size, bool)
            chosen[order] = True
            gone[:, start:end] = chosen.reshape(costs.shape)
        for j in range(start, end):
            if pattern is not None and j % pattern.of == 0:
                for r in range(outputs):
                    run = [weight[r, j + i] ** 2 / inverses[j + i][0, 0] for i in range(pattern.of)]
                    stay = np.argsort(run)[::-1][: pattern.keep]
                    gone[r, [j + i for i in range(pattern.of) if i not in stay]] = True
            for r in range(outputs):
                if gone[r, j]:
                    weight[r, j:] -= weight[r, j] / inverses[j][0, 0] * inverses[j][0]
                    weight[r, j] = 0
    return weight


@pytest.mark.parametrize("block", [4, 5, 12, 64])
@pytest.mark.parametrize("pattern", [None, Pattern(2, 4), Pattern(1, 2)])
def test_sparsegpt_is_obs_column_by_column(pattern, block, random):
    weight = random.standard_normal((6, 12))
    x = random.standard_normal((40, 12)) @ random.standard_normal((12, 12))
    zeros = None if pattern else 30
    live = np.ones(weight.shape, bool)
    found = reconstruct(weight, x.T @ x, live, zeros=zeros, pattern=pattern, block=block)
    width = block if pattern is None else max(1, block // pattern.of) * pattern.of
    expected = obs(weight, x.T @ x, zeros, pattern, width)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
    assert int((found == 0).sum()) == (30 if pattern is None else 36)


def test_sparsegpt_takes_silent_inputs_first(random):
    weight = random.standard_normal((4, 8))
    x = random.standard_normal((30, 8))
    x[:, [1, 6]] = 0
    found = reconstruct(weight, x.T @ x, np.ones(weight.shape, bool), zeros=8)
    assert np.array_equal(np.flatnonzero((found == 0).all(axis=0)), [1, 6])
    others = [0, 2, 3, 4, 5, 7]
    np.testing.assert_allclose(found[:, others], weight[:, others], rtol=1e-12)


@pytest.mark.parametrize("options", [{"amount": 0.5}, {"pattern": "2:4"}])
def test_sparsegpt_loses_less_than_magnitude(options, random):
    proto = dense(32, 24)
    # Features that say much of each other, as those of trained networks do.
    causes = random.standard_normal((400, 6)) @ random.standard_normal((6, 32))
    x = (causes + 0.3 * random.standard_normal((400, 32))).astype(np.float32)
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    scope = {"scope": "local"} if "amount" in options else {}
    errors = {}
    for criterion in ("magnitude", "wanda", "sparsegpt"):
        more = scope if criterion == "magnitude" else {"data": x}
        sparse = onnxjl.sparsify(proto, criterion=criterion, **options, **more)
        assert sparse.sparsity["w0"] == 0.5
        errors[criterion] = np.square(x @ (sparse.weight("w0") - weight).T).sum()
    assert errors["sparsegpt"] < 0.5 * errors["wanda"]
    assert errors["sparsegpt"] < 0.5 * errors["magnitude"]


@pytest.mark.parametrize("options", [{"amount": 0.5}, {"pattern": "2:4"}])
def test_sparsegpt_of_convolutions(options, random):
    weight = random.standard_normal((6, 8, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="/conv", pads=[1, 1, 1, 1], group=1)
    proto = small.model([node], {"x": ("N", 8, 6, 6)}, {"y": ("N", 6, 6, 6)}, {"w": weight})
    x = random.standard_normal((8, 8, 6, 6)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    rows = windows.transpose(0, 2, 3, 4, 5, 1).reshape(-1, 72).astype(np.float64)
    sparse = onnxjl.sparsify(proto, criterion="sparsegpt", data=x, **options)
    zeros = None if "pattern" in options else 216
    pattern = None if zeros else Pattern(2, 4)
    flat = weight.transpose(0, 2, 3, 1).reshape(6, 72)
    expected = obs(flat, rows.T @ rows, zeros, pattern, 128)
    found = sparse.weight("w").transpose(0, 2, 3, 1).reshape(6, 72)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if pattern:
        assert pattern.holds(sparse.masks["w"], 1)


def test_data_that_do_not_fit():
    for criterion in ("wanda", "sparsegpt"):
        with pytest.raises(DataError, match="x"):
            onnxjl.sparsify(dense(8, 4), amount=0.5, criterion=criterion, data=np.ones((3, 7)))
        with pytest.raises(DataError, match="the activation 'x' is NaN or infinite"):
            onnxjl.sparsify(
                dense(8, 4), amount=0.5, criterion=criterion, data=np.full((3, 8), np.inf)
            )


# A trained network


def test_a_trained_network_keeps_more_with_sparsegpt():
    test = MNIST.with_suffix(".test.npz")
    with np.load(MNIST.with_suffix(".calib.npz")) as file:
        inputs = {"image": file["image"][:64]}
    plain = onnxjl.sparsify(MNIST, pattern="2:4")
    better = onnxjl.sparsify(MNIST, pattern="2:4", criterion="sparsegpt", data=inputs)
    assert onnxjl.accuracy(plain, test) < 0.6
    assert onnxjl.accuracy(better, test) > 0.95
    for sparse in (plain, better):
        for entry in sparse.sparsified.layers:
            assert Pattern(2, 4).holds(sparse.masks[entry.tensor], entry.axis)


# Registry and report


def test_criteria_say_where_they_come_from():
    for name, criterion in CRITERIA.items():
        assert criterion.name == name
        assert criterion.source
        assert inspect.getdoc(criterion.function or criterion.solver)
        assert (criterion.function is None) != (criterion.solver is None)


def test_a_criterion_is_registered_once(monkeypatch):
    monkeypatch.setattr("onnxjl.sparsity.registry.CRITERIA", {})

    @register("first")
    def first(layer: Layer, scoring: Scoring) -> np.ndarray:
        return np.arange(layer.size).reshape(layer.shape)

    with pytest.raises(ValueError, match="there is already a criterion 'first' for weights"):
        register("first")(first)
    sparse = onnxjl.sparsify(dense(8, 4), amount=0.25, criterion="first")
    assert np.array_equal(np.flatnonzero(~sparse.masks["w0"]), np.arange(8))


def test_a_report_counts_zeros(tmp_path):
    sparse = onnxjl.sparsify(small.convolutions(), amount=0.5, ignore=["first"])
    report = make_report(sparse, sparse.save(tmp_path / "s.onnx"))
    zeros = {e.tensor: e.zeros for e in report.layers}
    assert zeros == {n: int((~m).sum()) for n, m in sparse.masks.items()}
    text = str(report)
    assert "second.weight" in text
    assert "ignored by 'first': first" in text
    assert "as fast as" in text
    assert max(map(len, text.splitlines())) <= 100
    with pytest.raises(UsageError, match="only a graph that sparsify made"):
        make_report(onnxjl.normalize(small.convolutions()), report)


def test_a_report_names_layers_that_lost_everything(tmp_path):
    proto = dense(8, 6, 4)
    tiny = numpy_helper.to_array(proto.graph.initializer[1]) * np.float32(1e-3)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(tiny, "w1"))
    sparse = onnxjl.sparsify(proto, amount=0.5)
    report = make_report(sparse, sparse.save(tmp_path / "s.onnx"), measure=False)
    assert report.notes[0].startswith("/1: no weight is left; scope 'local' or 'erk'")
