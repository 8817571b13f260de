"""Plans as data: JSON out and in, applied to their own source only, composed over rounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from oracle import difference, run
from proof import PLANS, random_keep
from small_networks import convolutions
from text_networks import inputs, network

from onnxjl import Graph, OutputError, Plan, PlanError, apply, normalize, prune
from onnxjl.structure import analyze

GROUPED = network(
    """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) {
        a = Conv (x, w1)
        g = Conv <group = 8> (a, w2)
        c = Gather <axis = 1> (g, order)
        d = Gather <axis = 1> (g, one)
        e = Unsqueeze (d, axis)
        h = Mul (c, e)
        r = Reshape (h, split)
        t = Transpose <perm = [0, 2, 1, 3, 4]> (r)
        s = Reshape (t, join)
        y = Conv (s, w3)
    }""",
    {"w1": (8, 3, 1, 1), "w2": (8, 1, 1, 1), "w3": (2, 8, 1, 1)},
    {
        "order": [7, 6, 5, 4, 3, 2, 1, 0],
        "one": 3,
        "axis": [1],
        "split": [0, 1, 8, 4, 4],
        "join": [0, 8, 4, 4],
    },
)


def arrays(graph: Graph) -> dict[str, np.ndarray]:
    """Return the weights and constants of a graph."""
    proto = ir.to_proto(graph.model)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def assert_same(a: Graph, b: Graph) -> None:
    """Check that two graphs have the same nodes and the same weights, bit by bit."""
    first, second = arrays(a), arrays(b)
    assert list(first) == list(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    nodes = [
        [onnx.printer.to_text(node) for node in ir.to_proto(graph.model).graph.node]
        for graph in (a, b)
    ]
    assert nodes[0] == nodes[1]


def some_plan(graph: Graph, seed: int = 0) -> Plan:
    structure = analyze(graph)
    return structure.plan(random_keep(structure, np.random.default_rng(seed)))


@pytest.mark.parametrize("model", [convolutions(), GROUPED], ids=["convolutions", "grouped"])
def test_json_round_trip_makes_the_same_graph(model: onnx.ModelProto, tmp_path: Path) -> None:
    graph = normalize(model)
    plan = some_plan(graph)
    path = tmp_path / "plan.json"
    plan.save(path)
    again = Plan.load(path)
    assert again == plan
    assert Plan.from_json(plan.to_json()) == plan
    assert again.source_graph is None
    assert_same(apply(graph, again), apply(graph, plan))
    # The file that `normalize` would read gives the same graph, and so fits the plan too.
    assert_same(apply(model, again), apply(graph, plan))


def test_plan_is_written_in_its_documented_format() -> None:
    graph = normalize(GROUPED)
    structure = analyze(graph)
    (group,) = structure.groups
    assert group.size == 7
    keep = np.array([True, False, True, True, False, True, False])
    data = json.loads(structure.plan([keep], request={"macs": 0.5}).to_json())
    # Unit 3 of 8 is looked up alone, and is therefore no unit of the group.
    left = [0, 2, 3, 4, 6]
    assert data == {
        "onnxjl": 1,
        "source": {"sha256": graph.fingerprint, "opset": 18},
        "request": {"macs": 0.5},
        "engine": "numpy",
        "kept": {"w1": {"0": left}, "w2": {"0": left}, "w3": {"1": [1, 3, 4, 5, 7]}},
        "attributes": {"g": {"group": 5}},
        "constants": {
            "order": [4, 3, 2, 1, 0],
            "one": 2,
            "split": [0, 1, 5, 4, 4],
            "join": [0, 5, 4, 4],
        },
        "removed_nodes": [],
        "stand_ins": {},
    }


def test_plan_tells_its_source() -> None:
    graph = normalize(convolutions())
    plan = some_plan(graph)
    assert len(graph.fingerprint) == 64
    assert plan.source == {"sha256": graph.fingerprint, "opset": 17}
    assert Plan.from_json(plan.to_json()).source == plan.source


def test_equality_is_of_edits_and_source() -> None:
    graph = normalize(convolutions())
    plan, other = some_plan(graph, 0), some_plan(graph, 1)
    assert plan == some_plan(graph, 0)
    assert plan != other
    assert plan != some_plan(normalize(convolutions(seed=1)), 0)
    assert plan != "plan"
    with pytest.raises(TypeError, match="unhashable"):
        hash(plan)


# Another graph


def changed_weight(model: onnx.ModelProto) -> None:
    array = numpy_helper.to_array(model.graph.initializer[0]).copy()
    array.reshape(-1)[-1] += 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "first.weight"))


def changed_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].ints[0] = 0
    model.graph.node[0].attribute[0].ints[2] = 2


def changed_operator(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "Tanh"


def renamed_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].name = "first.offset"
    model.graph.node[0].input[2] = "first.offset"


@pytest.mark.parametrize(
    "change", [changed_weight, changed_attribute, changed_operator, renamed_weight]
)
def test_another_graph_is_refused(change: Any) -> None:
    plan = Plan.from_json(some_plan(normalize(convolutions())).to_json())
    model = convolutions()
    change(model)
    with pytest.raises(PlanError, match=r"made for another graph: .*[0-9a-f]{12}…, this graph's"):
        apply(model, plan)


def test_pruned_graph_is_another_graph() -> None:
    graph = normalize(convolutions())
    plan = some_plan(graph)
    with pytest.raises(PlanError, match="made for another graph"):
        apply(apply(graph, plan), plan)


def test_constants_of_operators_count_as_the_graph() -> None:
    def filled(value: float) -> onnx.ModelProto:
        return network(
            f"""g (float[N, 6] x) => (float[N, 3] y) {{
                a = Gemm (x, w1)
                s = Shape (a)
                c = ConstantOfShape <value = float[1] {{{value}}}> (s)
                b = Add (a, c)
                y = Gemm (b, w2)
            }}""",
            {"w1": (6, 8), "w2": (8, 3)},
        )

    plan = Plan.from_json(some_plan(normalize(filled(1.0))).to_json())
    apply(filled(1.0), plan)
    with pytest.raises(PlanError, match="made for another graph"):
        apply(filled(2.0), plan)


# Composition


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), kinds=st.lists(st.sampled_from(PLANS), min_size=2, max_size=3))
def test_rounds_compose_to_one_plan_of_the_source(seed: int, kinds: list[Any]) -> None:
    for model in (convolutions(), GROUPED):
        source = normalize(model)
        generator = np.random.default_rng(seed)
        small = source
        for kind in kinds:
            structure = analyze(small)
            if not structure.groups:
                break  # one unit is left everywhere
            small = apply(small, structure.plan(kind(structure, generator)))
        assert small.source is source
        assert small.plan is not None
        assert small.plan.source["sha256"] == source.fingerprint
        assert_same(apply(source, small.plan), small)
        assert_same(apply(model, Plan.from_json(small.plan.to_json())), small)
        feeds = inputs(model)
        outputs = [run(ir.to_proto(g.model), feeds) for g in (apply(source, small.plan), small)]
        assert difference(*outputs) == 0


def test_later_edits_of_a_plan_win() -> None:
    first = Plan(
        kept={"w": {0: np.array([1, 3, 5])}},
        attributes={"node": {"group": 4, "scale": 0.5}},
        constants={"shape": np.array([3, 4]), "split": np.array([1, 2])},
        removed_nodes=("a",),
    )
    later = Plan(
        kept={"w": {0: np.array([0, 2]), 1: np.array([1])}, "v": {0: np.array([0])}},
        attributes={"node": {"group": 2}, "other": {"group": 3}},
        constants={"shape": np.array([2, 4])},
        removed_nodes=("b",),
        stand_ins={"b": 1},
    )
    both = first.then(later).to_dict()
    assert both["kept"] == {"w": {"0": [1, 5], "1": [1]}, "v": {"0": [0]}}
    assert both["attributes"] == {"node": {"group": 2, "scale": 0.5}, "other": {"group": 3}}
    assert both["constants"] == {"shape": [2, 4], "split": [1, 2]}
    assert both["removed_nodes"] == ["a", "b"]
    assert both["stand_ins"] == {"b": 1}


def test_pruning_twice_composes() -> None:
    source = normalize(convolutions())
    once = prune(source, amount=0.3)
    twice = prune(once, amount=0.3)
    assert twice.source is source
    assert twice.plan is not None
    assert once.plan is not None
    assert twice.plan.request["amount"] == 0.3
    assert_same(apply(source, twice.plan), twice)
    for name, axes in twice.plan.kept.items():
        for axis, kept in axes.items():
            before = once.plan.kept.get(name, {}).get(axis)
            assert before is None or set(kept) <= set(before)


def test_apply_changes_neither_the_source_nor_the_plan() -> None:
    graph = normalize(convolutions())
    before = {name: array.copy() for name, array in arrays(graph).items()}
    plan = some_plan(graph)
    text = plan.to_json()
    small = apply(graph, plan)
    assert plan.to_json() == text
    for name, array in arrays(graph).items():
        np.testing.assert_array_equal(array, before[name])
    assert small.normalized
    assert small.plan == plan
    assert small.source is graph


def test_declared_shapes_are_the_new_ones_and_stay_symbolic() -> None:
    graph = normalize(convolutions(batch="N"))
    structure = analyze(graph)
    keep = [np.arange(8) < 3, np.arange(4) < 2]
    plan = structure.plan(keep)
    for made in (apply(graph, plan), apply(graph, Plan.from_json(plan.to_json()))):
        shapes = {
            value.name: [str(d) for d in value.shape]
            for node in made.model.graph
            for value in node.outputs
        }
        assert shapes["a"] == ["N", "3", "6", "6"]
        assert shapes["d"] == ["N", "2", "4", "4"]
        assert shapes["f"] == ["N", "2"]
        assert shapes["y"] == ["N", "5"]


# Bad plans


VALID = json.loads(some_plan(normalize(convolutions())).to_json())
DROP = object()


def with_value(path: str, value: object) -> str:
    """Return the plan's text with another value at a path of keys."""
    data = json.loads(json.dumps(VALID))
    *way, last = path.split("/")
    place = data
    for key in way:
        place = place[key]
    if value is DROP:
        del place[last]
    else:
        place[last] = value
    return json.dumps(data)


MALFORMED = {
    "empty": "",
    "no JSON": "{",
    "number": "1",
    "list": "[]",
    "null": "null",
    "deep": "[" * 100_000,
    "no format": with_value("onnxjl", DROP),
    "another format": with_value("onnxjl", 2),
    "format as text": with_value("onnxjl", "1"),
    "format as a truth": with_value("onnxjl", True),
    "no source": with_value("source", DROP),
    "source as text": with_value("source", "abc"),
    "source without a fingerprint": with_value("source/sha256", DROP),
    "fingerprint as a number": with_value("source/sha256", 5),
    "no kept": with_value("kept", DROP),
    "kept as a list": with_value("kept", []),
    "axes as a list": with_value("kept/first.weight", [[0]]),
    "axis as a word": with_value("kept/first.weight", {"first": [0]}),
    "negative axis": with_value("kept/first.weight", {"-1": [0]}),
    "padded axis": with_value("kept/first.weight", {" 0": [0]}),
    "indices as a number": with_value("kept/first.weight", {"0": 3}),
    "indices as text": with_value("kept/first.weight", {"0": ["0", "1"]}),
    "fractional indices": with_value("kept/first.weight", {"0": [0, 1.5]}),
    "true and false as indices": with_value("kept/first.weight", {"0": [False, True]}),
    "nested indices": with_value("kept/first.weight", {"0": [[0], [1]]}),
    "ragged indices": with_value("kept/first.weight", {"0": [0, [1]]}),
    "unsorted indices": with_value("kept/first.weight", {"0": [1, 0]}),
    "repeated indices": with_value("kept/first.weight", {"0": [1, 1]}),
    "negative indices": with_value("kept/first.weight", {"0": [-1, 1]}),
    "no indices": with_value("kept/first.weight", {"0": []}),
    "huge indices": with_value("kept/first.weight", {"0": [10**30]}),
    "NaN as an index": with_value("kept/first.weight", {"0": [float("nan")]}),
    "attributes as a list": with_value("attributes", [1]),
    "attributes of a node as text": with_value("attributes", {"/first": "group"}),
    "attribute without a value": with_value("attributes", {"/first": {"group": None}}),
    "attribute that is an object": with_value("attributes", {"/first": {"group": {"a": 1}}}),
    "constants as text": with_value("constants", "none"),
    "constant without a value": with_value("constants", {"shape": None}),
    "fractional constant": with_value("constants", {"shape": [1.5]}),
    "constant as text": with_value("constants", {"shape": ["1"]}),
    "ragged constant": with_value("constants", {"shape": [[1], [1, 2]]}),
    "removed nodes as text": with_value("removed_nodes", "/first"),
    "removed nodes as numbers": with_value("removed_nodes", [1]),
    "stand-ins as a list": with_value("stand_ins", [1]),
    "stand-in as text": with_value("stand_ins", {"/relu": "x"}),
    "request as text": with_value("request", "macs"),
    "attribute of more than 64 bits": with_value("attributes", {"/first": {"group": 1 << 70}}),
    "attribute of numbers of two kinds": with_value("attributes", {"/first": {"pads": [1, 2.5]}}),
    "attribute that is half a character": with_value("attributes", {"/first": {"a": "\ud800"}}),
    "attribute called half a character": with_value("attributes", {"/first": {"\ud800": "a"}}),
    "request with a number to ignore": with_value("request/ignore", 5),
    "request with numbers to ignore": with_value("request/ignore", [5]),
    "request of an unknown granularity": with_value("request/granularity", "pixel"),
    "request of a list as granularity": with_value("request/granularity", []),
    "step without a number": with_value("request", {"round_to_asked": "auto"}),
    "step as text": with_value("request", {"round_to_asked": "auto", "round_to": "8"}),
    "latency as a number": with_value("request/predicted", 3),
    "latency of nothing": with_value("request/predicted", {"before_ms": 0, "after_ms": 0}),
    "latency as text": with_value("request/predicted", {"before_ms": "1", "after_ms": 1}),
    "importance without figures": with_value("request/importance", {}),
    "importance without a bound": with_value(
        "request/importance", {"kept": 1, "of": 2, "bound": float("inf")}
    ),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_plan_is_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json(text)
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=r"plan\.json: not a plan"):
        Plan.load(path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats(allow_nan=True)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200)
@given(key=st.sampled_from(sorted(VALID)), value=JSON)
def test_any_other_value_is_read_or_refused(key: str, value: object) -> None:
    """Whatever stands in a plan, what comes out is a plan that can be written, or a PlanError."""
    text = with_value(key, value)
    try:
        plan = Plan.from_json(text)
    except PlanError:
        return
    assert Plan.from_json(plan.to_json()) == plan
    try:
        apply(GRAPH, plan)
    except PlanError:
        return


GRAPH = normalize(convolutions())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("kept/none", {"0": [0]}, "no initializer is called 'none'"),
        ("kept/first.weight", {"4": [0]}, r"'first\.weight' has shape \(8, 3, 3, 3\): no such"),
        ("kept/first.weight", {"0": [8]}, r"'first\.weight' has shape \(8, 3, 3, 3\): no such"),
        ("attributes", {"/none": {"group": 2}}, "no node is called '/none'"),
        ("constants", {"none": [1]}, "no initializer is called 'none'"),
        ("constants", {"first.bias": [1]}, "'first.bias' holds float"),
        ("removed_nodes", ["/none"], "no node is called '/none'"),
        ("removed_nodes", ["/head"], "node '/head' can't go: it makes an output of the network"),
    ],
)
def test_plan_that_names_what_is_not_there_is_told(path: str, value: object, message: str) -> None:
    plan = Plan.from_json(with_value(path, value))
    with pytest.raises(PlanError, match=message):
        apply(GRAPH, plan)


def test_nodes_can_be_removed() -> None:
    data = {**VALID, "kept": {}, "removed_nodes": ["/relu"]}
    small = apply(GRAPH, Plan.from_json(json.dumps(data)))
    assert [node.op_type for node in small.model.graph] == [
        n.op_type for n in GRAPH.model.graph if n.name != "/relu"
    ]
    second = next(node for node in small.model.graph if node.name == "/second")
    assert second.inputs[0] is not None
    assert second.inputs[0].name == "b"
    onnx.checker.check_model(ir.to_proto(small.model))


def test_missing_and_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.json: can't be read: No such file"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(PlanError, match="can't be read: Is a directory"):
        Plan.load(tmp_path)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"binary\.json: can't be read: it isn't text"):
        Plan.load(binary)


def test_a_plan_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, path = some_plan(GRAPH), tmp_path / "plan.json"
    with pytest.raises(OutputError, match="doesn't exist"):
        plan.save(tmp_path / "none" / "plan.json")
    plan.save(path)
    before = path.read_text()
    monkeypatch.setattr(Plan, "to_json", lambda _: "{}")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        plan.save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
