"""Flux models: the same outputs as onnxruntime's, the same plans as NumPy's, and back to ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from flux_support import name_julia, needs_julia
from models import pretrained, zoo
from text_networks import inputs, network

import onnxjl
from onnxjl import criteria
from onnxjl.check import masked
from onnxjl.errors import DataError, JuliaError, UsageError
from onnxjl.session import open_session, run

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

TRAINED = Path(__file__).parent / "models" / "mnist-resnet14.onnx"
# One of each path: residual, recurrent, attention, several inputs, TensorFlow.
SMOKE = ("conv1d.ts17", "lstm.ts17", "bertlike.dynamo", "two_inputs.dynamo", "keras_attention.tf17")
LARGE = 15_000_000
# Exporters that leave the batch open.
DYNAMIC = ("ts17", "dynamo", "tf13", "tf17")


@pytest.fixture(scope="module", autouse=True)
def _julia():
    name_julia()


@pytest.fixture(scope="module")
def model():
    return onnxjl.to_flux(TRAINED)


@pytest.fixture(scope="module")
def samples():
    with np.load(TRAINED.with_suffix(".test.npz")) as file:
        return {name: file[name][:32] for name in file.files}


def relative(a, b):
    return float(np.abs(a.astype(np.float64) - b).max() / max(1e-6, np.abs(b).max()))


def check_parity(source, *samples):
    graph = onnxjl.normalize(onnxjl.load(source))
    flux = onnxjl.to_flux(graph)
    session = open_session(graph)
    for feeds in samples:
        expected = run(session, feeds)
        outputs = flux.run(feeds)
        assert list(outputs) == list(expected)
        for name, y in expected.items():
            assert outputs[name].dtype == y.dtype
            assert outputs[name].shape == y.shape
            assert relative(outputs[name], y) < 1e-4
    assert flux.to_graph().fingerprint == graph.fingerprint


def check_network(name):
    network = zoo.load(name)
    batches = (1, 4) if zoo.exporter(name) in DYNAMIC else (None,)
    check_parity(network, *(zoo.inputs(network, seed=1, batch=batch) for batch in batches))


@pytest.mark.parametrize("name", SMOKE)
def test_outputs_are_those_of_onnxruntime(name):
    check_network(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in zoo.NAMES if n not in SMOKE])
def test_outputs_are_those_of_onnxruntime_for_every_family(name):
    check_network(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(pretrained.available()))
def test_outputs_are_those_of_onnxruntime_for_trained_networks(name):
    check_parity(pretrained.available()[name], pretrained.inputs(name))


OF_ONNXRUNTIME = """g (float[N, T, 6] x, int32[N, T] n) => (float[A, B, C] y, float[D, E, F] z) {
    e, l, t = com.microsoft.EmbedLayerNormalization (n, n, w6, p, w6, g, b, n)
    a = com.microsoft.Attention <num_heads = 2, qkv_hidden_sizes = [4, 4, 6]> (e, k, c, l)
    m = com.microsoft.MultiHeadAttention <num_heads = 3, scale = 0.3> (x, t, a, d)
    s, , , u = com.microsoft.SkipLayerNormalization (m, x, g, b)
    v = com.microsoft.SkipSimplifiedLayerNormalization (s, u, g)
    f = com.microsoft.FastGelu (v, b)
    q = com.microsoft.QuickGelu (f)
    h = com.microsoft.BiasGelu (q, b)
    y = com.microsoft.Gelu (h)
    z = com.microsoft.Attention <num_heads = 3, unidirectional = 1> (u, o, r, n)
}"""


def test_operators_of_onnxruntime():
    shapes = dict.fromkeys("gb", (6,)) | {"w6": (2, 6), "p": (7, 6), "k": (6, 14), "c": (14,)}
    proto = network(OF_ONNXRUNTIME, {**shapes, "d": (18,), "o": (6, 18), "r": (18,)})
    generator = np.random.default_rng(0)
    check_parity(
        proto,
        *(
            {
                "x": generator.normal(size=(n, t, 6)).astype(np.float32),
                "n": np.tri(n, t, 1, dtype=np.int32),
            }
            for n, t in ((1, 4), (3, 5))
        ),
    )


DECODERS_OF_ONNXRUNTIME = """g (
    float[1, 3, 12] x, float[1, 2, 5, 16] k, float[1, 2, 5, 16] v, float[2, 4, 12] z
) => (
    float[1, 3, 96] y, float[1, 2, 8, 16] nk, float[1, 2, 8, 16] nv,
    float[2, 4, 96] a, float[2, 2, 4, 16] ak, float[2, 2, 4, 16] av, float[2, 6, 4, 16] t
) {
    q = MatMul (x, wq)
    h = MatMul (x, wk)
    r = com.microsoft.RotaryEmbedding <num_heads = 6> (q, later, cos, sin)
    s = com.microsoft.RotaryEmbedding (h, later, cos, sin)
    m, mk, mv = com.microsoft.GroupQueryAttention <num_heads = 6, kv_num_heads = 2, scale = 0.4,
        local_window_size = 4, softcap = 3.0> (r, s, h, k, v, last, total, , , , bias, sinks)
    y, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 6, kv_num_heads = 2, do_rotary = 1>
        (m, h, h, k, v, last, total, cos, sin)
    p = MatMul (z, wp)
    a, ak, av = com.microsoft.GroupQueryAttention <num_heads = 6, kv_num_heads = 2, do_rotary = 1,
        rotary_interleaved = 1, smooth_softmax = 1> (p, , , , , all, four, cos, sin, places)
    b = Reshape (a, apart)
    c = Transpose <perm = [0, 2, 1, 3]> (b)
    t = com.microsoft.RotaryEmbedding <interleaved = 1> (c, places, cos, sin)
}"""


REGIONS = """
<ir_version: 8, opset_import: ["": 17]>
agraph (float[2,3,9,11] x, float[n,5] rois) => (float[n,3,2,4] y, float[n,3,3,3] z)
{
    y = MaxRoiPool <pooled_shape = [2, 4], spatial_scale = 0.5> (x, rois)
    z = MaxRoiPool <pooled_shape = [3, 3]> (x, rois)
}
"""


def test_largest_of_regions():
    random = np.random.default_rng(1)
    corners = random.uniform(-4, 24, (40, 2))
    extents = random.uniform(-2, 14, (40, 2))
    images = random.integers(0, 2, (40, 1))
    rois = np.concatenate([images, corners, corners + extents], 1).astype(np.float32)
    x = random.standard_normal((2, 3, 9, 11)).astype(np.float32)
    check_parity(onnx.parser.parse_model(REGIONS), {"x": x, "rois": rois})


def test_decoders_of_operators_of_onnxruntime():
    weights = {"wq": (12, 96), "wk": (12, 32), "wp": (12, 160), "sinks": (6,)}
    proto = network(
        DECODERS_OF_ONNXRUNTIME,
        {**weights, "bias": (1, 6, 3, 8), "cos": (12, 8), "sin": (12, 8)},
        {
            **{"last": np.array([7], np.int32), "total": np.array(8, np.int32)},
            **{"all": np.array([3, 3], np.int32), "four": np.array(4, np.int32)},
            **{"later": [5], "places": [[2, 1, 5, 0], [0, 7, 6, 3]], "apart": [0, 0, 6, 16]},
        },
    )
    check_parity(proto, inputs(proto))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_transformer_that_onnxruntime_has_optimized(tmp_path):
    path = pretrained.optimized_transformer(tmp_path)
    if path is None:
        pytest.skip("its package isn't installed")
    check_parity(path, pretrained.inputs("minilm"))
    graph, request = onnxjl.normalize(path), {"amount": 0.4, "criterion": "random", "seed": 1}
    for granularity in ("head", "head-dim"):
        other = onnxjl.prune(graph, granularity=granularity, **request)
        small = onnxjl.prune(onnxjl.to_flux(graph), granularity=granularity, **request)
        assert small.plan == other.plan
        assert small.to_graph().fingerprint == other.fingerprint


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_may_have_any_size(model, samples, batch):
    image = samples["image"][:batch]
    expected = run(open_session(onnxjl.load(TRAINED)), {"image": image})
    (y,) = expected.values()
    assert relative(model(image), y) < 1e-4


def test_layers_are_flux_layers_by_their_weights_name(model):
    assert str(model["layer1.0.conv1"]).startswith("Conv((3, 3), 16 => 16, pad=1")
    assert str(model["/conv1/Conv"]) == str(model["conv1"])
    assert "BatchNorm(16, relu" in str(model["bn1"])
    assert "175_258 parameters" in repr(model)
    with pytest.raises(KeyError):
        model["conv9"]


def test_wrong_inputs_are_told(model):
    with pytest.raises(DataError, match="expected the inputs image, came picture"):
        model({"picture": np.zeros((1, 1, 28, 28), np.float32)})
    with pytest.raises(JuliaError, match=r"node '/conv1/Conv' \(Conv\).*Float32\[28×28\]"):
        model(np.zeros((28, 28), np.float32))


@pytest.fixture(scope="module")
def small(model):
    return onnxjl.prune(model, macs=0.5)


def test_both_engines_make_the_same_network(small):
    other = onnxjl.prune(TRAINED, macs=0.5)
    assert small.plan == other.plan
    assert small.plan.engine == "flux"
    assert small.to_graph().fingerprint == other.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in zoo.NAMES if zoo.size(n) < LARGE])
def test_both_engines_make_the_same_network_of_every_family(name):
    graph = onnxjl.normalize(zoo.load(name))
    request = {"amount": 0.3, "criterion": "random", "seed": 3}
    other = onnxjl.prune(graph, **request)
    small = onnxjl.prune(onnxjl.to_flux(graph), **request)
    assert small.plan == other.plan
    assert small.to_graph().fingerprint == other.fingerprint
    # And Julia computes what onnxruntime does of the original, with what was removed masked.
    feeds = zoo.inputs(zoo.load(name), seed=2)
    expected = run(open_session(masked(graph, small.plan)), feeds)
    for output, y in small.run(feeds).items():
        assert relative(y, expected[output]) < 1e-4


def test_a_pruned_model_is_saved_and_equals_its_file(small, samples, tmp_path):
    path = tmp_path / "small.onnx"
    saved = small.save(path)
    assert saved.check.status == "equal"
    assert "Julia's own outputs" in saved.check.text
    (y,) = run(open_session(path), {"image": samples["image"]}).values()
    assert relative(small(samples["image"]), y) < 1e-4
    # It isn't the original any more, which still is as it was.
    assert small.to_graph().fingerprint != onnxjl.normalize(TRAINED).fingerprint


def cross_entropy(output, target):
    """The loss and its gradient."""
    p = np.exp(output - output.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(target))
    delta = p.copy()
    delta[rows, target] -= 1
    return -np.log(p[rows, target]).mean(), delta / len(target)


def test_a_loss_by_name_and_one_in_python_give_the_same_gradient(model, samples):
    value, gradient = model.gradient("cross-entropy", samples["image"], samples["target"])
    again, same = model.gradient(cross_entropy, samples["image"], samples["target"])
    assert value == pytest.approx(again, rel=1e-5)
    assert gradient.keys() == same.keys()
    for name, g in gradient.items():
        assert g.shape == model.graph.weight(name).shape
        np.testing.assert_allclose(g, same[name], atol=1e-7)


def test_the_gradient_is_that_of_central_differences(model, samples):
    double = model.moved({}, 0.0)
    image = samples["image"][:4].astype(np.float64)
    target = samples["target"][:4]
    _, gradient = double.gradient("cross-entropy", image, target)
    assert {"conv1.weight", "fc.bias", "layer3.0.downsample.0.weight"} <= gradient.keys()
    generator = np.random.default_rng(0)
    for name in ("conv1.weight", "bn1.weight", "layer2.0.conv2.weight", "fc.weight", "fc.bias"):
        direction = generator.standard_normal(gradient[name].shape)
        values = [
            cross_entropy(model.moved({name: direction}, h)(image), target)[0]
            for h in (1e-6, -1e-6)
        ]
        expected = (values[0] - values[1]) / 2e-6
        assert float((gradient[name] * direction).sum()) == pytest.approx(expected, rel=1e-4)


def test_an_unknown_loss_is_told(model, samples):
    with pytest.raises(UsageError, match=r"no loss 'mee'.*there are.*cross-entropy"):
        model.gradient("mee", samples["image"], samples["target"])


GRADIENT = [n for n, c in criteria.CRITERIA.items() if c.needs_gradient]


@pytest.mark.parametrize("criterion", GRADIENT)
def test_gradient_criteria_prune_to_the_budget(model, samples, criterion):
    few = {name: array[:8] for name, array in samples.items()}
    found = onnxjl.prune(model, macs=0.7, criterion=criterion, data=few)
    assert found.plan.request["criterion"] == criterion
    assert np.isfinite(found(few["image"])).all()


def test_taylor_is_the_square_of_the_sum_of_weight_times_gradient(model, samples):
    graph = model.to_graph()
    (group, *_) = onnxjl.groups(graph)
    (scores,) = criteria.score(
        graph, [group], "taylor", data=samples, model=model, normalization="none", aggregation="sum"
    )
    _, gradient = model.gradient("cross-entropy", samples["image"], samples["target"])
    expected = np.zeros(group.size)
    for member in group.members:
        weight = graph.weight(member.tensor)
        if weight.ndim < 2:
            continue
        product = np.moveaxis(weight.astype(np.float64) * gradient[member.tensor], member.axis, 0)
        rows = product.reshape(len(product), -1).sum(axis=1)
        expected += rows[member.indices].sum(axis=1) ** 2
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_criterion_may_be_written_in_julia(model, tmp_path):
    source = tmp_path / "mine.jl"
    source.write_text(
        "function magnitude(group)\n"
        "    parts = filter(m -> ndims(m.weight) > 1, group.members)\n"
        "    return [sum(sqrt(sum(abs2, slice(m, u))) for m in parts) / length(parts)\n"
        "            for u in 1:length(group)]\n"
        "end\n"
    )
    from onnxjl.flux import criterion_from

    found = onnxjl.prune(model, macs=0.5, criterion=criterion_from(source, "magnitude"))
    assert found.plan.kept.keys() == onnxjl.prune(model, macs=0.5, criterion="l2").plan.kept.keys()
    assert found.plan == onnxjl.prune(model, macs=0.5, criterion="l2").plan


def test_an_error_in_a_criterion_tells_whose_it_is(model, tmp_path):
    from onnxjl.flux import criterion_from

    source = tmp_path / "mine.jl"
    source.write_text("wrong(group) = group.weights\n")
    with pytest.raises(JuliaError, match=r"criterion 'wrong', group '.*': .*weights"):
        onnxjl.prune(model, macs=0.5, criterion=criterion_from(source, "wrong"))


def test_a_criterion_in_julia_gets_gradients(model, samples, tmp_path):
    from onnxjl.flux import criterion_from

    source = tmp_path / "mine.jl"
    source.write_text(
        "function snip(group)\n"
        "    parts = filter(m -> ndims(m.weight) > 1, group.members)\n"
        "    return [sum(sum(abs, slice(m, u) .* slice(m, u, m.gradient)) for m in parts) /\n"
        "            length(parts) for u in 1:length(group)]\n"
        "end\n"
    )
    mine = onnxjl.prune(model, macs=0.6, criterion=criterion_from(source, "snip"), data=samples)
    assert mine.plan == onnxjl.prune(model, macs=0.6, criterion="snip", data=samples).plan
