"""Criteria: scores against loops over single units, and every way to ask for the wrong thing."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import small_networks as small
from onnx import numpy_helper

from onnxjl import criteria
from onnxjl.criteria import weights as weights_module
from onnxjl.errors import UsageError, WeightError
from onnxjl.graph import Graph
from onnxjl.load import load
from onnxjl.normalize import normalize
from onnxjl.structure import Group, Member, analyze

RTOL = 1e-12
DATA_FREE = [
    name for name, c in criteria.CRITERIA.items() if not (c.needs_data or c.needs_gradient)
]


@pytest.fixture(scope="module")
def graph():
    return normalize(load(small.convolutions()))


@pytest.fixture(scope="module")
def groups(graph):
    return analyze(graph).groups


# The weights that contractions use, of the groups that `small.convolutions` has.
CONTRACTED = {
    "first": [("first.weight", 0), ("second.weight", 1)],
    "second": [("second.weight", 0), ("head.weight", 1)],
}


def group_of(*members: tuple[str, int, np.ndarray], name: str = "g") -> Group:
    """A group with these members."""
    made = tuple(Member(t, axis, np.asarray(i, np.int64)) for t, axis, i in members)
    return Group(name, "channel", len(made[0].indices), made, (), True, None, (), (), 0.0, 0.0)


def graph_of(nodes: list[tuple[str, list[str]]], arrays: dict[str, np.ndarray]) -> Graph:
    """A graph of nodes, each with its inputs by name, where only weights matter."""
    values = {
        name: ir.Value(name=name, const_value=ir.Tensor(array, name=name))
        for name, array in arrays.items()
    }
    x = ir.Value(name="x")
    made = [ir.node(op, [values.get(name, x) for name in names]) for op, names in nodes]
    network = ir.Graph([x], [made[-1].outputs[0]], nodes=made, initializers=list(values.values()))
    return Graph(ir.Model(network, ir_version=10))


def units(array: np.ndarray, axis: int, indices: np.ndarray) -> list[np.ndarray]:
    """Each unit's slice, flat, in float64."""
    return [array.take(row, axis).astype(np.float64).ravel() for row in indices]


def every(count: int, step: int = 1) -> np.ndarray:
    return np.arange(count * step).reshape(count, step)


MAGNITUDES = {
    "l1": lambda w: sum(abs(v) for v in w),
    "l2": lambda w: sum(v * v for v in w) ** 0.5,
    "linf": lambda w: max(abs(v) for v in w),
}
AGGREGATIONS = {
    "mean": lambda values: sum(values) / len(values),
    "sum": sum,
    "max": max,
}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("criterion", MAGNITUDES)
def test_magnitudes_of_a_network_are_those_of_its_contractions(
    graph, groups, criterion, aggregation
):
    assert [group.name for group in groups] == list(CONTRACTED)
    found = criteria.score(graph, groups, criterion, aggregation=aggregation, normalization="none")
    for group, scores in zip(groups, found, strict=True):
        assert scores.dtype == np.float64
        for unit in range(group.size):
            values = [
                MAGNITUDES[criterion](graph.weight(tensor).take(unit, axis).astype(float).ravel())
                for tensor, axis in CONTRACTED[group.name]
            ]
            assert scores[unit] == pytest.approx(AGGREGATIONS[aggregation](values), rel=RTOL)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16], ids=lambda d: d.__name__
)
@pytest.mark.parametrize("criterion", MAGNITUDES)
@pytest.mark.parametrize(
    ("shape", "axis", "indices"),
    [
        ((6, 5), 0, every(6)),
        ((6, 5), 1, every(5)),
        ((4, 6, 3, 3), 1, every(3, 2)),
        ((4, 6, 3, 3), 0, np.array([[3], [1]])),
        ((2, 12, 5), 1, every(3, 4)),
        ((2, 12, 5), 2, every(5)),
        ((1, 7, 300), 2, every(60, 5)),
    ],
    ids=str,
)
def test_magnitudes_of_any_shape_and_type(criterion, shape, axis, indices, dtype):
    array = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    graph = graph_of([("MatMul", ["x", "w"])], {"w": array})
    (scores,) = criteria.score(
        graph, [group_of(("w", axis, indices))], criterion, normalization="none"
    )
    expected = [MAGNITUDES[criterion](w) for w in units(array, axis, indices)]
    np.testing.assert_allclose(scores, expected, rtol=RTOL)


@pytest.mark.parametrize("criterion", MAGNITUDES)
@pytest.mark.parametrize("axis", [0, 1])
def test_large_weights_are_summed_exactly_and_without_a_copy(criterion, axis):
    array = np.random.default_rng(2).standard_normal((1500, 700, 3)).astype(np.float32)
    graph = graph_of([("Conv", ["x", "w"])], {"w": array})
    group = group_of(("w", axis, every(array.shape[axis])))
    tracemalloc.start()
    (scores,) = criteria.score(graph, [group], criterion, normalization="none")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    wide = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
    order = {"l1": 1, "l2": 2, "linf": np.inf}[criterion]
    np.testing.assert_allclose(scores, np.linalg.norm(wide, order, axis=1), rtol=RTOL)
    assert peak < array.nbytes / 8


def test_a_weight_is_read_once_for_both_its_axes(monkeypatch):
    calls = []
    original = weights_module._totals
    monkeypatch.setattr(
        weights_module, "_totals", lambda *given: calls.append(given[1]) or original(*given)
    )
    graph = graph_of([("Conv", ["x", "w"])], {"w": np.ones((3, 4), np.float32)})
    groups = [group_of(("w", 0, every(3)), name="a"), group_of(("w", 1, every(4)), name="b")]
    criteria.score(graph, groups, "l2")
    assert calls == [2]


def test_biases_and_normalization_parameters_do_not_count():
    plain, changed = small.convolutions(), small.convolutions()
    for tensor in changed.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 1 and not tensor.name.endswith("running_var"):
            tensor.CopyFrom(numpy_helper.from_array(array * 100, tensor.name))
    for criterion in ("l1", "l2", "linf", "lamp", "fpgm"):
        scores = [
            criteria.score(g, analyze(g).groups, criterion)
            for g in (normalize(load(plain)), normalize(load(changed)))
        ]
        for one, other in zip(*scores, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_group_without_contracted_weights_is_scored_by_all_floats_that_it_has():
    arrays = {
        "scale": np.array([1, -2, 3], np.float32),
        "table": np.array([[4, 0, 3], [3, 1, 4]], np.float32),
        "index": np.array([50, 60, 70]),
    }
    graph = graph_of([("Mul", ["x", "scale"]), ("Gather", ["table", "index"])], arrays)
    group = group_of(("scale", 0, every(3)), ("table", 1, every(3)), ("index", 0, every(3)))
    (scores,) = criteria.score(graph, [group], "l2", aggregation="sum", normalization="none")
    np.testing.assert_allclose(scores, [1 + 5, 2 + 1, 3 + 5], rtol=RTOL)


def test_a_group_without_floats_cannot_be_scored():
    graph = graph_of([("MatMulInteger", ["x", "w"])], {"w": np.ones((3, 2), np.int8)})
    with pytest.raises(WeightError, match="group 'g': it has no floating-point weight"):
        criteria.score(graph, [group_of(("w", 0, every(3)))], "l1")


def lamp_by_definition(squared: list[float]) -> list[float]:
    return [u / sum(v for v in squared if v >= u) if u else 0.0 for u in squared]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_lamp_of_a_network(graph, groups, aggregation):
    found = criteria.score(graph, groups, "lamp", aggregation=aggregation)
    for group, scores in zip(groups, found, strict=True):
        squared = [
            AGGREGATIONS[aggregation](
                [
                    sum(float(v) ** 2 for v in graph.weight(tensor).take(unit, axis).ravel())
                    for tensor, axis in CONTRACTED[group.name]
                ]
            )
            for unit in range(group.size)
        ]
        np.testing.assert_allclose(scores, lamp_by_definition(squared), rtol=1e-11)
        assert scores.max() == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3], [1 / 14, 4 / 13, 1]),
        ([2, -2, 1], [4 / 8, 4 / 8, 1 / 9]),
        ([0, 3, 0], [0, 1, 0]),
        ([0, 0], [0, 0]),
    ],
    ids=str,
)
def test_lamp_with_equal_and_vanishing_units(values, expected):
    graph = graph_of([("MatMul", ["x", "w"])], {"w": np.array([values], np.float32)})
    (scores,) = criteria.score(graph, [group_of(("w", 1, every(len(values))))], "lamp")
    np.testing.assert_allclose(scores, expected, rtol=RTOL)


def distances(slices: list[np.ndarray]) -> list[float]:
    return [sum(float(np.sqrt(((a - b) ** 2).sum())) for b in slices) for a in slices]


@pytest.mark.parametrize("blocks", ["large", "small"])
@pytest.mark.parametrize(
    ("shape", "axis", "indices"),
    [
        ((9, 4, 3, 3), 0, every(9)),
        ((5, 12), 0, np.array([[4, 1], [0, 3]])),
        ((2, 12, 5), 1, every(3, 4)),
        ((8,), 0, every(8)),
    ],
    ids=str,
)
def test_fpgm_sums_the_distances_between_slices(monkeypatch, blocks, shape, axis, indices):
    if blocks == "small":
        monkeypatch.setattr(criteria.fpgm, "BLOCK", 20)
        monkeypatch.setattr(criteria.fpgm, "PAIRS", 2 * len(indices))
    array = np.random.default_rng(3).standard_normal(shape).astype(np.float32) + 5
    graph = graph_of([("Conv", ["x", "w"])], {"w": array})
    (scores,) = criteria.score(
        graph, [group_of(("w", axis, indices))], "fpgm", normalization="none"
    )
    np.testing.assert_allclose(scores, distances(units(array, axis, indices)), rtol=1e-9)


def test_fpgm_looks_at_the_weights_that_make_the_units(graph, groups):
    found = criteria.score(graph, groups, "fpgm", normalization="none")
    for group, scores in zip(groups, found, strict=True):
        weight = graph.weight(f"{group.name}.weight")
        np.testing.assert_allclose(
            scores, distances(units(weight, 0, every(group.size))), rtol=1e-9
        )


def test_fpgm_of_equal_slices_is_zero():
    array = np.tile(np.float32([0.1, 0.7, 1e3]), (4, 1))
    graph = graph_of([("Conv", ["x", "w"])], {"w": array})
    (scores,) = criteria.score(graph, [group_of(("w", 0, every(4)))], "fpgm")
    np.testing.assert_array_equal(scores, np.zeros(4))


def test_bn_scale_is_the_absolute_scale_and_l2_brought_to_its_mean_without_one(graph, groups):
    first, second = criteria.score(graph, groups, "bn-scale", normalization="none")
    scale = np.abs(graph.weight("norm.weight").astype(np.float64))
    np.testing.assert_allclose(first, scale, rtol=RTOL)
    norms = criteria.score(graph, groups, "l2", normalization="none")[1]
    np.testing.assert_allclose(second, norms / norms.mean() * scale.mean(), rtol=RTOL)
    np.testing.assert_allclose(
        criteria.score(graph, groups, "bn-scale")[1], norms / norms.mean(), rtol=RTOL
    )


def test_bn_scale_of_several_indices_is_their_mean_over_several_normalizations_as_asked():
    arrays = {
        "a": np.array([1, -3, 5, 7], np.float32),
        "b": np.array([10, 20], np.float32),
        "w": np.ones((4, 2), np.float32),
    }
    nodes = [
        ("BatchNormalization", ["x", "a", "x", "x", "x"]),
        ("LayerNormalization", ["x", "b"]),
        ("MatMul", ["x", "w"]),
    ]
    graph = graph_of(nodes, arrays)
    group = group_of(("a", 0, every(2, 2)), ("b", 0, every(2)), ("w", 0, every(2, 2)))
    (scores,) = criteria.score(graph, [group], "bn-scale", aggregation="max", normalization="none")
    np.testing.assert_allclose(scores, [10, 20], rtol=RTOL)
    (scores,) = criteria.score(graph, [group], "bn-scale", aggregation="sum", normalization="none")
    np.testing.assert_allclose(scores, [12, 26], rtol=RTOL)


def test_bn_scale_needs_a_normalization_somewhere():
    graph = graph_of([("MatMul", ["x", "w"])], {"w": np.ones((3, 2), np.float32)})
    with pytest.raises(UsageError, match=r"'bn-scale' needs normalizations.*use 'l2'"):
        criteria.score(graph, [group_of(("w", 0, every(3)))], "bn-scale")


def test_random_scores_follow_seed_and_name_and_nothing_else(graph, groups):
    first, second = criteria.score(graph, groups, "random", seed=7)
    np.testing.assert_array_equal(criteria.score(graph, groups[1:], "random", seed=7)[0], second)
    assert (criteria.score(graph, groups, "random", seed=8)[0] != first).all()
    assert first[: len(second)].tolist() != second.tolist()
    assert ((first >= 0) & (first < 1)).all()
    many = group_of(("w", 0, every(20000)))
    wide = graph_of([("MatMul", ["x", "w"])], {"w": np.ones((20000, 1), np.float32)})
    histogram, _ = np.histogram(criteria.score(wide, [many], "random")[0], 10, (0, 1))
    np.testing.assert_allclose(histogram, 2000, rtol=0.1)


@pytest.mark.parametrize("seed", [-1, 0.5, "1", None])
def test_a_seed_is_a_whole_number(graph, groups, seed):
    with pytest.raises(UsageError, match=f"seed must be a whole number.*not {seed!r}"):
        criteria.score(graph, groups, "random", seed=seed)


@pytest.mark.parametrize("criterion", [name for name in DATA_FREE if name != "random"])
def test_scores_follow_units_when_these_are_permuted(graph, groups, criterion):
    order = np.random.default_rng(5).permutation(groups[0].size)
    permuted = group_of(
        *((m.tensor, m.axis, m.indices[order]) for m in groups[0].members), name="first"
    )
    (scores,) = criteria.score(graph, groups[:1], criterion)
    (other,) = criteria.score(graph, [permuted], criterion)
    np.testing.assert_allclose(other, scores[order], rtol=1e-10)


NORMALIZED = {
    ("mean", (1, 2, 6)): (1 / 3, 2 / 3, 2),
    ("max", (1, 2, 6)): (1 / 6, 1 / 3, 1),
    ("none", (1, 2, 6)): (1, 2, 6),
    ("mean", (-1, 0, -3)): (-0.75, 0, -2.25),
    ("max", (-1, 0, -4)): (-0.25, 0, -1),
    ("mean", (0, 0, 0)): (0, 0, 0),
    ("max", (0, 0, 0)): (0, 0, 0),
}


@pytest.mark.parametrize("case", NORMALIZED, ids=str)
def test_normalization_divides_by_the_group(case):
    normalization, given = case
    graph = graph_of([("MatMul", ["x", "w"])], {"w": np.ones((3, 2), np.float32)})
    (scores,) = criteria.score(
        graph, [group_of(("w", 0, every(3)))], lambda g, w: given, normalization=normalization
    )
    np.testing.assert_allclose(scores, NORMALIZED[case], rtol=RTOL)


@pytest.mark.parametrize("criterion", DATA_FREE)
def test_scores_are_divided_by_the_mean_unless_they_are_made_to_be_compared(
    graph, groups, criterion
):
    own = {"lamp": "none", "random": "none"}.get(criterion, "mean")
    for plain, explicit in zip(
        criteria.score(graph, groups, criterion),
        criteria.score(graph, groups, criterion, normalization=own),
        strict=True,
    ):
        np.testing.assert_array_equal(plain, explicit)
        assert (plain.mean() == pytest.approx(1)) == (own == "mean")


def test_a_function_gets_the_weights_of_its_group_and_they_are_read_only(graph, groups):
    seen = []

    def criterion(group, weights):
        seen.append((group.name, sorted(weights)))
        with pytest.raises(ValueError, match="read-only"):
            weights["second.weight"][:] = 0
        with pytest.raises(KeyError):
            weights["elsewhere"]
        axis = {"first": 1, "second": 0}[group.name]
        return np.abs(np.moveaxis(weights["second.weight"], axis, 0)).sum((1, 2, 3))

    before = graph.weight("second.weight").copy()
    scores = criteria.score(graph, groups, criterion, aggregation="max", normalization="none")
    assert seen == [
        (
            "first",
            ["first.bias", "first.weight", "norm.bias", "norm.running_mean", "norm.running_var",
             "norm.weight", "second.weight"],
        ),
        ("second", ["head.weight", "second.bias", "second.weight"]),
    ]  # fmt: skip
    weight = graph.weight("second.weight")
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_allclose(scores[0], np.abs(weight).sum((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(scores[1], np.abs(weight).sum((1, 2, 3)), rtol=1e-6)


def test_weights_are_read_only_when_asked_for(graph, groups, monkeypatch):
    read = []
    original = Graph.weight
    monkeypatch.setattr(
        Graph, "weight", lambda self, name: read.append(name) or original(self, name)
    )
    criteria.score(graph, groups, lambda group, weights: np.arange(len(group.members[0].indices)))
    assert read == []
    criteria.score(graph, groups[:1], lambda group, weights: weights["norm.weight"])
    assert read == ["norm.weight"]


RESULTS = {
    "too few": (lambda g, w: np.ones(7), r"shape \(8,\), came shape \(7,\)"),
    "rows": (lambda g, w: np.ones((2, 8)), r"shape \(8,\), came shape \(2, 8\)"),
    "one": (lambda g, w: 1.0, r"shape \(8,\), came shape \(\)"),
    "NaN": (lambda g, w: [0, 1, np.nan, 3, 4, 5, 6, 7], r"scores must be finite; at \[2\] is nan"),
    "infinity": (lambda g, w: np.full(8, -np.inf), r"scores must be finite; at \[0\] is -inf"),
    "text": (lambda g, w: list("abcdefgh"), "scores must be real numbers, not <U1"),
    "complex": (lambda g, w: np.ones(8) * 1j, "scores must be real numbers, not complex128"),
    "none": (lambda g, w: None, "scores must be real numbers, not object"),
    "ragged": (lambda g, w: [[1], [1, 2]], "its scores are no array"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_what_a_function_returns_is_checked(graph, groups, case):
    criterion, message = RESULTS[case]
    with pytest.raises(UsageError, match=f"criterion '<lambda>', group 'first': .*{message}"):
        criteria.score(graph, groups, criterion)


def test_what_a_function_raises_is_chained(graph, groups):
    def criterion(group, weights):
        return weights["nothing"]

    message = "criterion 'criterion', group 'first': it raised KeyError: 'nothing'"
    with pytest.raises(UsageError, match=message) as caught:
        criteria.score(graph, groups, criterion)
    assert isinstance(caught.value.__cause__, KeyError)


def with_value(value, tensor="second.weight", at=(1, 2, 0, 1)):
    proto = small.convolutions()
    for initializer in proto.graph.initializer:
        if initializer.name == tensor:
            array = numpy_helper.to_array(initializer).copy()
            array[at] = value
            initializer.CopyFrom(numpy_helper.from_array(array, tensor))
    return normalize(load(proto))


@pytest.mark.parametrize("criterion", ["l1", "l2", "linf", "lamp", "fpgm"])
@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (-np.inf, "infinity")])
def test_a_scored_weight_must_be_finite(criterion, value, name):
    broken = with_value(value)
    message = rf"'second.weight' holds {name} \(first at \[1, 2, 0, 1\]\)"
    for group in analyze(broken).groups[int(criterion == "fpgm") :]:
        with pytest.raises(WeightError, match=f"group '{group.name}': weight {message}"):
            criteria.score(broken, [group], criterion)


def test_a_scale_that_is_scored_must_be_finite():
    broken = with_value(np.nan, "norm.weight", 3)
    with pytest.raises(WeightError, match=r"weight 'norm.weight' holds NaN \(first at \[3\]\)"):
        criteria.score(broken, analyze(broken).groups, "bn-scale")


def test_a_function_that_meets_nan_weights_names_them():
    broken = with_value(np.nan)
    with pytest.raises(WeightError, match=r"group 'first': weight 'second\.weight' holds NaN"):
        criteria.score(
            broken,
            analyze(broken).groups,
            lambda group, weights: weights["second.weight"].sum((0, 2, 3)),
        )


def test_what_is_not_scored_may_be_infinite(graph, groups):
    odd = with_value(np.inf, "first.bias", 0)
    for criterion in DATA_FREE:
        for one, other in zip(
            criteria.score(odd, analyze(odd).groups, criterion),
            criteria.score(graph, groups, criterion),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    assert len(criteria.score(with_value(np.nan), groups, "random")) == 2


def test_magnitudes_that_overflow_are_told_apart_from_infinite_weights():
    graph = graph_of([("MatMul", ["x", "w"])], {"w": np.full((3, 2), 1e200)})
    group = group_of(("w", 0, every(3)))
    with pytest.raises(WeightError, match="weight 'w' is too large: its magnitudes overflow"):
        criteria.score(graph, [group], "l2")
    np.testing.assert_array_equal(criteria.score(graph, [group], "linf")[0], np.ones(3))


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="there is already a criterion 'l2'"):
        criteria.register("l2")
    with pytest.raises(ValueError, match="there is already a criterion 'taylor'"):
        criteria.register("taylor")


def test_a_registered_criterion_may_return_a_row_for_each_tensor(graph, groups, monkeypatch):
    monkeypatch.setattr(criteria.registry, "CRITERIA", dict(criteria.CRITERIA))
    monkeypatch.setattr(criteria, "CRITERIA", criteria.registry.CRITERIA)

    @criteria.register("two-rows", source="nowhere")
    def two_rows(group, weights):
        """Two rows."""
        return np.stack([np.arange(group.size), np.full(group.size, 3)])

    scores = criteria.score(graph, groups, "two-rows", aggregation="max", normalization="none")
    assert scores[0].tolist() == [3, 3, 3, 3, 4, 5, 6, 7]
    assert scores[1].tolist() == [3, 3, 3, 3]


def test_every_criterion_says_what_it_is_and_where_it_is_from():
    assert set(criteria.CRITERIA) == {
        "random", "l1", "l2", "linf", "bn-scale", "lamp", "fpgm", "activation", "apoz",
        "hrank", "reconstruction", "taylor", "fisher", "obd", "snip", "synflow", "grasp",
        "hessian-trace",
    }  # fmt: skip
    for name, criterion in criteria.CRITERIA.items():
        assert criterion.name == name
        assert criteria.get(name) is criterion
        assert criterion.source[0].isupper()
        assert criterion.summary.endswith(".")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("l3", "no criterion 'l3'; did you mean 'l.'.*there are .*bn-scale.*random"),
        ("bn_scale", "did you mean 'bn-scale'"),
        ("L2", "did you mean 'l2'"),
        ("zzz", "no criterion 'zzz'; there are"),
        ("taylor", "criterion 'taylor' needs gradients.*Flux model.*--engine flux"),
        ("synflow", "criterion 'synflow' needs gradients"),
        (3, r"a criterion is a name or a function f\(group, weights\) -> scores, not 3"),
    ],
)
def test_unknown_criteria_are_misuse(graph, groups, asked, message):
    with pytest.raises(UsageError, match=message) as caught:
        criteria.score(graph, groups, asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "avg"}, "no aggregation 'avg'; .*there are mean, sum, max"),
        ({"aggregation": "Mean"}, "did you mean 'mean'"),
        ({"normalization": "min"}, "no normalization 'min'; .*there are mean, max, none"),
    ],
)
def test_unknown_options_are_misuse(graph, groups, options, message):
    with pytest.raises(UsageError, match=message):
        criteria.score(graph, groups, **options)


def test_criteria_have_names():
    class Custom:
        def __call__(self, group, weights):
            return np.ones(group.size)

    assert criteria.name_of("l2") == "l2"
    assert criteria.name_of(criteria.get("lamp")) == "lamp"
    assert criteria.name_of(distances) == "distances"
    assert criteria.name_of(Custom()) == "Custom"
