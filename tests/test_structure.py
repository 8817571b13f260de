"""What a structure says of its groups: names, members, activations, costs; what it offers."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import zoo
from onnx import helper, numpy_helper
from small_networks import convolutions
from text_networks import network, split_in_two

from onnxjl import UsageError, groups, normalize
from onnxjl.structure import analyze, layer_costs, layer_names
from onnxjl.structure.shapes import Shapes


def indices(*values: int) -> list[list[int]]:
    """Return one index for each unit."""
    return [[value] for value in values]


def test_group_knows_its_members() -> None:
    found = groups(convolutions())
    assert [group.name for group in found] == ["first", "second"]
    first, second = found
    assert (first.kind, first.size, first.exact, first.reason) == ("channel", 8, True, None)
    assert first.layers == ("first",)
    assert first.nodes == ("/first",)
    members = {(m.tensor, m.axis): m.indices.tolist() for m in first.members}
    cut = ("first.weight", "first.bias", "norm.weight", "norm.bias")
    moments = ("norm.running_mean", "norm.running_var")
    assert members == {
        **{(name, 0): indices(*range(8)) for name in (*cut, *moments)},
        ("second.weight", 1): indices(*range(8)),
    }
    assert [(a.value, a.axis, a.indices.tolist()) for a in first.activations] == [
        ("c", 1, indices(*range(8)))
    ]
    assert {(m.tensor, m.axis) for m in second.members} == {
        ("second.weight", 0),
        ("second.bias", 0),
        ("head.weight", 1),
    }
    assert [(a.value, a.axis) for a in second.activations] == [("f", 1)]
    assert [(w.layer, w.node, w.reason) for w in found.whole] == [
        ("head", "/head", "network output 'y'")
    ]


def test_costs_of_one_unit_are_those_counted_by_hand() -> None:
    first, second = groups(convolutions())
    # 6 by 6 outputs of 3 by 3 kernels over 3 channels; 4 by 4 outputs of 3 by 3 over this channel.
    assert first.macs == 36 * 27 + 16 * 9 * 4
    assert first.params == 27 + 1 + 4 + 9 * 4
    assert second.macs == 16 * 9 * 8 + 5
    assert second.params == 9 * 8 + 1 + 5
    structure = analyze(normalize(convolutions()))
    assert structure.macs.total(structure.sizes) == 36 * 27 * 8 + 16 * 72 * 4 + 20
    assert structure.params.total(structure.sizes) == 8 * 27 + 8 + 32 + 4 * 72 + 4 + 20 + 5
    assert structure.bytes.total(structure.sizes) == 4 * structure.params.total(structure.sizes)


def test_costs_are_of_one_sample() -> None:
    batch = analyze(normalize(convolutions(batch=7)))
    single = analyze(normalize(convolutions(batch=1)))
    symbolic = analyze(normalize(convolutions(batch="N")))
    for structure in (batch, symbolic):
        assert structure.macs.total(structure.sizes) == single.macs.total(single.sizes)
        assert [group.macs for group in structure.groups] == [g.macs for g in single.groups]


@pytest.mark.parametrize(
    ("text", "weights", "opset", "macs"),
    [
        (
            "g (float[N, 3, 8, 8] x) => (y) { y = Conv <group = 3, strides = [2, 2]> (x, w, b) }",
            {"w": (6, 1, 3, 3), "b": (6,)},
            18,
            3 * 3 * 6 * 3 * 3,
        ),
        (
            "g (float[N, 6, 5, 5] x) => (y) { y = ConvTranspose <group = 2> (x, w) }",
            {"w": (6, 4, 3, 3)},
            18,
            5 * 5 * 6 * 4 * 3 * 3,
        ),
        ("g (float[N, 6] x) => (y) { y = Gemm (x, w, b) }", {"w": (6, 4), "b": (4,)}, 18, 6 * 4),
        ("g (float[7, 6] x) => (y) { y = Gemm <transA = 1> (x, w) }", {"w": (7, 4)}, 18, 6 * 4),
        ("g (float[N, 5, 6] x) => (y) { y = MatMul (x, w) }", {"w": (6, 4)}, 18, 5 * 6 * 4),
        (
            "g (float[N, 5, 6] x, float[N, 6, 7] u) => (y) { y = MatMul (x, u) }",
            {},
            18,
            5 * 6 * 7,
        ),
        (
            """g (float[N, 5, 6] x, float[N, 6, 7] u) => (y) {
                y = Einsum <equation = "bij,bjk->bik"> (x, u)
            }""",
            {},
            18,
            5 * 6 * 7,
        ),
        (
            "g (float[N, 2, 5, 4] x) => (y) { y = Attention (x, x, x) }",
            {},
            23,
            2 * (2 * 5 * 5 * 4),
        ),
        (
            """g (float[N, 5, 24] q, float[N, 5, 8] k, float[N, 2, 3, 4] p)
                => (y, float[N, 2, 8, 4] r) {
                y, r, s = Attention <q_num_heads = 6, kv_num_heads = 2> (q, k, k, , p, p)
            }""",
            {},
            23,
            2 * (6 * 5 * 8 * 4),
        ),
        (
            "g (float[9, N, 6] x) => (y) { y, h = RNN <hidden_size = 5> (x, w, r) }",
            {"w": (1, 5, 6), "r": (1, 5, 5)},
            18,
            9 * 5 * (6 + 5),
        ),
        (
            """g (float[9, 3, 6] x) => (y) {
                y, h = GRU <hidden_size = 5, direction = "bidirectional"> (x, w, r)
            }""",
            {"w": (2, 15, 6), "r": (2, 15, 5)},
            18,
            9 * 2 * 3 * 5 * (6 + 5),
        ),
        (
            "g (float[9, 3, 6] x) => (y) { y, h, c = LSTM <hidden_size = 5> (x, w, r) }",
            {"w": (1, 20, 6), "r": (1, 20, 5)},
            18,
            9 * 4 * 5 * (6 + 5),
        ),
    ],
)
def test_macs_are_those_counted_by_hand(
    text: str, weights: dict[str, tuple[int, ...]], opset: int, macs: int
) -> None:
    structure = analyze(normalize(network(text, weights, opset=opset)))
    assert structure.macs.total(structure.sizes) == macs


def test_bytes_follow_the_element_type() -> None:
    structure = analyze(normalize(convolutions(dtype=np.float64)))
    assert structure.bytes.total(structure.sizes) == 8 * structure.params.total(structure.sizes)


def test_unit_of_flattened_channels_has_several_indices() -> None:
    model = network(
        """g (float[N, 3, 2, 2] x) => (float[N, 2] y) {
            a = Conv (x, w1)
            f = Flatten (a)
            y = Gemm (f, w2)
        }""",
        {"w1": (3, 3, 1, 1), "w2": (12, 2)},
    )
    (group,) = groups(model)
    (rows,) = (m.indices for m in group.members if m.tensor == "w2")
    assert rows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    (activation,) = group.activations
    assert (activation.value, activation.axis) == ("f", 1)
    assert activation.indices.tolist() == rows.tolist()


def test_head_has_the_indices_of_its_features() -> None:
    model = network(
        """g (float[N, 5, 6] x) => (float[N, 5, 3] y) {
            f = MatMul (x, w)
            r = Reshape (f, split)
            t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
            q, k, v = Split <axis = 0> (t, ones)
            kt = Transpose <perm = [0, 1, 2, 4, 3]> (k)
            s = MatMul (q, kt)
            p = Softmax (s)
            m = MatMul (p, v)
            mt = Transpose <perm = [0, 1, 3, 2, 4]> (m)
            o = Reshape (mt, join)
            y = MatMul (o, wo)
        }""",
        {"w": (6, 12), "wo": (4, 3)},
        {"split": [0, 0, 3, 2, 2], "ones": [1, 1, 1], "join": [-1, 5, 4]},
    )
    assert len(groups(model)) == 0
    (heads,) = groups(model, granularity="head")
    assert (heads.name, heads.kind, heads.size) == ("f", "head", 2)
    (columns,) = (m.indices for m in heads.members if m.tensor == "w")
    assert columns.tolist() == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    (features,) = groups(model, granularity="head-dim")
    assert (features.name, features.kind, features.size) == ("f", "head-dim", 2)
    (columns,) = (m.indices for m in features.members if m.tensor == "w")
    assert columns.tolist() == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]


SHARED = network(
    """g (float[N, 6] x) => (float[N, 3] y) {
        ["/a"] a = Gemm (x, "a.weight")
        ["/b"] b = Gemm (x, "b.weight")
        s = Add (a, b)
        n = LayerNormalization (s, "norm.weight")
        ["/c"] c = Gemm (n, "c.weight")
        ["/d"] y = Gemm (c, "d.weight")
    }""",
    {
        "a.weight": (6, 8),
        "b.weight": (6, 8),
        "norm.weight": (8,),
        "c.weight": (8, 7),
        "d.weight": (7, 3),
    },
)


def test_group_of_several_layers_is_named_after_the_first_and_lists_all() -> None:
    group = groups(SHARED, allow_inexact=True)["a"]
    assert group.layers == ("a", "b")
    assert group.nodes == ("/a", "/b")
    assert group.matches("b")
    assert group.matches("/a")
    assert group.matches("?")
    assert not group.matches("c")


def test_inexact_groups_are_offered_when_asked_for() -> None:
    offered = groups(SHARED)
    assert [group.name for group in offered] == ["c"]
    reason = "LayerNormalization 'n' takes statistics over it"
    assert {(w.layer, w.reason) for w in offered.whole} == {
        ("a", f"{reason}; allow_inexact offers it"),
        ("b", f"{reason}; allow_inexact offers it"),
        ("d", "network output 'y'"),
    }
    inexact = groups(SHARED, allow_inexact=True)
    assert [(g.name, g.exact, g.reason) for g in inexact] == [
        ("a", False, reason),
        ("c", True, None),
    ]
    assert [w.layer for w in inexact.whole] == ["d"]


@pytest.mark.parametrize("pattern", ["c", "/c", "[c]", "*c"])
def test_ignored_layers_stay_whole(pattern: str) -> None:
    found = groups(SHARED, ignore=[pattern])
    assert len(found) == 0
    assert ("c", f"ignored by '{pattern}'") in {(w.layer, w.reason) for w in found.whole}


def test_layers_that_make_two_groups_number_them() -> None:
    model = split_in_two(3, 5)
    assert [(group.name, group.size) for group in groups(model)] == [("a", 3), ("a#2", 5)]


def test_a_layer_names_its_group() -> None:
    model = network(
        """g (float[N, 6] x) => (float[N, 2] y, float[N, 2] z) {
            a = Gemm (x, w)
            b = Gemm (x, v)
            c = Add (a, b)
            p, q = Split <axis = 1> (c, sizes)
            y = Gemm (p, wp)
            z = Gemm (q, wq)
        }""",
        {"w": (6, 8), "v": (6, 8), "wp": (3, 2), "wq": (5, 2)},
        {"sizes": [3, 5]},
    )
    found = groups(model)
    assert found["a"] is found[0]  # which bears its name, though it is in two
    with pytest.raises(UsageError, match="layer 'b' is in several groups: 'a', 'a#2'; name one"):
        found["b"]
    model = network(
        """g (float[N, 6] x) => (float[N, 2] y) {
            a = Gemm (x, w)
            b = Gemm (x, v)
            c = Add (a, b)
            y = Gemm (c, u)
        }""",
        {"w": (6, 8), "v": (6, 8), "u": (8, 2)},
    )
    found = groups(model)
    assert found["b"] is found["a"] is found[0]


def test_unknown_names_are_told() -> None:
    found = groups(SHARED)
    assert found["c"] is found[0]
    with pytest.raises(UsageError, match="no group is called 'e'; there are c"):
        found["e"]
    with pytest.raises(UsageError, match="no layer or node matches 'e'"):
        groups(SHARED, ignore=["e"])
    with pytest.raises(UsageError, match="no granularity 'layer'; there are channel, head, head-d"):
        groups(SHARED, granularity="layer")


def test_groups_print_a_line_each_and_what_stays() -> None:
    lines = repr(groups(SHARED, allow_inexact=True)).splitlines()
    assert lines[0] == "2 groups, 15 units"
    assert lines[1].split()[:4] == ["a", "8", "×", "channel"]
    assert "inexact: LayerNormalization 'n'" in lines[1]
    assert lines[3:] == ["1 layer stays whole", "  d: network output 'y'"]


def test_layer_names_are_weight_prefixes_where_these_are_unique() -> None:
    model = network(
        """g (float[N, 4] x) => (float[N, 2] y) {
            ["/one"] a = Gemm (x, "one.weight")
            ["/two"] b = MatMul (a, "shared.weight")
            ["/three"] c = MatMul (b, "shared.weight")
            ["/four"] d = MatMul (c, anonymous)
            e = MatMul (d, other)
            y = Relu (e)
        }""",
        {"one.weight": (4, 5), "shared.weight": (5, 5), "anonymous": (5, 5), "other": (5, 2)},
    )
    names = list(layer_names(normalize(model)).values())
    assert names == ["one", "/two", "/three", "/four", "e", "y"]


def test_layer_costs_are_those_counted_by_hand() -> None:
    rows = layer_costs(normalize(convolutions()))
    assert [(r.layer, r.node, r.operator, r.outputs, r.macs, r.params) for r in rows] == [
        ("first", "/first", "Conv", 8, 36 * 27 * 8, 8 * 27 + 8),
        ("second", "/second", "Conv", 4, 16 * 72 * 4, 4 * 72 + 4),
        ("head", "/head", "Gemm", 5, 20, 25),
    ]
    assert rows[0].width == "Conv 8"


def test_analysis_is_deterministic_and_leaves_the_graph_alone() -> None:
    graph = normalize(convolutions())
    before = graph.model
    text = onnx.printer.to_text(ir.to_proto(graph.model))
    first, second = analyze(graph), analyze(replace(graph))
    for a, b in zip(first.groups, second.groups, strict=True):
        assert a.name == b.name
        for one, other in zip(a.members, b.members, strict=True):
            assert (one.tensor, one.axis) == (other.tensor, other.axis)
            assert np.array_equal(one.indices, other.indices)
    assert graph.model is before
    assert onnx.printer.to_text(ir.to_proto(graph.model)) == text


def test_what_was_found_in_a_graph_is_remembered() -> None:
    graph = normalize(convolutions())
    first = analyze(graph)
    assert analyze(graph).groups is first.groups
    assert analyze(graph).graph is first.graph is graph
    assert analyze(graph, granularity="head").granularity == "head"
    assert analyze(graph).groups is first.groups
    assert analyze(replace(graph)).groups is not first.groups


def _stride(model: ir.Model) -> None:
    model.graph[0].attributes["strides"] = ir.AttrInt64s("strides", [2, 2])


def _input(model: ir.Model) -> None:
    relu = next(node for node in model.graph if node.op_type == "Relu")
    relu.replace_input_with(0, relu.inputs[0].producer().inputs[0])


def _name(model: ir.Model) -> None:
    model.graph[0].name = "other"


def _weight(model: ir.Model) -> None:
    value = model.graph.initializers["first.weight"]
    value.const_value = ir.Tensor(np.zeros((8, 3, 3, 3), np.float16), name=value.name)


def _size(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape([2, 3, 8, 8])


def _gone(model: ir.Model) -> None:
    model.graph.remove(model.graph[-1])


@pytest.mark.parametrize("change", [_stride, _input, _name, _weight, _size, _gone])
def test_a_network_that_was_changed_is_analyzed_anew(change: Callable[[ir.Model], None]) -> None:
    graph = normalize(convolutions())
    before = analyze(graph)
    change(graph.model)
    assert analyze(graph).groups is not before.groups


def test_an_analyzed_graph_goes_with_its_last_reference() -> None:
    graph = normalize(convolutions())
    analyze(graph)
    gone = weakref.ref(graph)
    gc.disable()
    try:
        del graph
        assert gone() is None
    finally:
        gc.enable()


def test_an_analyzed_graph_can_be_copied() -> None:
    graph = normalize(convolutions())
    names = [group.name for group in analyze(graph).groups]
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert [group.name for group in analyze(other).groups] == names


def test_sizes_that_are_products_of_named_ones_need_no_inference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = """g (float[batch, seq, 8] x) => (y) {
        h = MatMul (x, a)  r = Reshape (h, flat)  y = MatMul (r, b)
    }"""
    graph = normalize(network(text, {"a": (8, 6), "b": (6, 2)}, {"flat": [-1, 6]}))
    assert str(graph.model.graph[1].outputs[0].shape) == "[batch*seq,6]"
    expected = Shapes(graph).sizes
    monkeypatch.setattr(Shapes, "_take_declared", lambda *_: False)
    assert Shapes(graph).sizes == expected
    monkeypatch.undo()
    monkeypatch.delattr(Shapes, "_infer_whole")
    assert Shapes(graph).sizes == expected


def chain(layers: int) -> onnx.ModelProto:
    """Return a residual network of many layers."""
    nodes, weights = [], []
    random = np.random.default_rng(0)
    value = "x"
    for i in range(layers):
        for name, rows, columns in ((f"a{i}", 6, 4), (f"b{i}", 4, 6)):
            array = random.standard_normal((rows, columns)).astype(np.float32)
            weights.append(numpy_helper.from_array(array, f"{name}.weight"))
        nodes += [
            helper.make_node("MatMul", [value, f"a{i}.weight"], [f"h{i}"]),
            helper.make_node("Relu", [f"h{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", f"b{i}.weight"], [f"s{i}"]),
            helper.make_node("Add", [value, f"s{i}"], [f"t{i}"]),
        ]
        value = f"t{i}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", 1, ("N", 6))],
        [helper.make_tensor_value_info(value, 1, ("N", 6))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_deep_networks_are_analyzed() -> None:
    found = groups(chain(600))
    assert len(found) == 600
    assert {group.size for group in found} == {4}


def test_strings_beside_the_weights_cost_nothing() -> None:
    proto = convolutions()
    before = analyze(normalize(proto))
    words = helper.make_tensor("words", onnx.TensorProto.STRING, [2], [b"a", b"b"])
    proto.graph.initializer.append(words)
    proto.graph.node.append(helper.make_node("Identity", ["words"], ["said"]))
    proto.graph.output.append(helper.make_tensor_value_info("said", words.data_type, [2]))
    after = analyze(normalize(proto))
    assert after.bytes.total(after.sizes) == before.bytes.total(before.sizes)
    assert [group.size for group in groups(proto)] == [8, 4]


def test_numbers_cast_to_strings_stay_numbers() -> None:
    proto = convolutions()
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(3), "numbers"))
    to = onnx.TensorProto.STRING
    proto.graph.node.append(helper.make_node("Cast", ["numbers"], ["said"], to=to))
    proto.graph.output.append(helper.make_tensor_value_info("said", to, [3]))
    assert [group.size for group in groups(proto)] == [8, 4]


def test_groups_do_not_hold_the_network_and_can_be_sent() -> None:
    graph = normalize(zoo.load("densenet121.ts17"))
    found = groups(graph)
    model = weakref.ref(graph.model)
    del graph
    gc.collect()
    assert model() is None
    sent = pickle.loads(pickle.dumps(found))
    assert len(sent) == len(found)
    for ours, theirs in zip(found, sent, strict=True):
        assert len(ours.activations) == len(theirs.activations) > 0
        for a, b in zip(ours.activations, theirs.activations, strict=True):
            assert (a.value, a.axis, a.indices.tolist()) == (b.value, b.axis, b.indices.tolist())
