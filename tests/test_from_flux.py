"""Flux models written by hand: as networks of ONNX's operators, and networks as plain Flux."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flux_support import name_julia, needs_julia
from models import zoo

import onnxjl
from onnxjl.errors import JuliaError, UnsupportedOperator, UsageError
from onnxjl.session import open_session, run

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

MODELS = Path(__file__).parent / "models"
TRAINED = MODELS / "mnist-resnet14.onnx"


@pytest.fixture(scope="module")
def chains():
    """The Julia module of tests/models/chains.jl."""
    name_julia()
    from onnxjl.flux import julia

    julia()
    from juliacall import Main

    Main.include(str(MODELS / "chains.jl"))
    Main.seval("using .Chains: Chains; using Flux")
    return Main.Chains


@pytest.fixture
def flux(chains):
    """Flux, in Julia."""
    return chains.Flux


def relative(a, b):
    return float(np.abs(a.astype(np.float64) - b).max() / max(1e-6, np.abs(b).max()))


def sample(shape, seed=0):
    sizes = [3 if n is None or isinstance(n, str) else n for n in shape]
    return np.random.default_rng(seed).standard_normal(sizes).astype(np.float32)


def applied(chain, *arrays):
    """What a model in Julia says itself: the oracle of everything here."""
    from juliacall import Main

    found = chain(*(Main.Array(x.T) for x in arrays))
    return [np.asarray(y).T for y in (found if isinstance(found, tuple) else (found,))]


def check(chain, model, feeds):
    """A model, its network in Julia, and its file in onnxruntime say the same."""
    expected = applied(chain, *feeds.values())
    ours = model.run(feeds)
    theirs = run(open_session(model.to_graph()), feeds)
    assert list(ours) == list(theirs) == model.output_names
    for y, (name, found) in zip(expected, ours.items(), strict=True):
        assert found.shape == theirs[name].shape == y.shape
        assert found.dtype == theirs[name].dtype == y.dtype
        assert relative(found, y) < 1e-5
        assert relative(theirs[name], y) < 1e-4


SHAPES = {
    "classifier": (None, 1, 9, 8),
    "signal": (None, 2, 9),
    "branches": (None, 3, 4, 6),
    "recurrent": (None, 7, 3),
    "pictures": (None, 4, 3, 4),
    "own": (None, 2, 2, 2),
    "tied": (None, 4),
    "attention": (None, 5, 6),
}
QUICK = ("classifier", "own")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SHAPES]
)
def test_a_chain_is_what_onnxruntime_makes_of_it(chains, name):
    chain = chains.stirred(getattr(chains, name)())
    model = onnxjl.from_flux(chain, input_shape=SHAPES[name])
    check(chain, model, {"input": sample(SHAPES[name])})


@pytest.mark.slow
def test_a_sequence_needs_no_batch(chains):
    chain = chains.recurrent()
    check(chain, onnxjl.from_flux(chain, input_shape=(7, 3)), {"input": sample((7, 3))})


@pytest.mark.slow
def test_an_embedding_takes_whole_numbers_that_count_from_1(chains):
    chain = chains.words()
    model = onnxjl.from_flux(chain, input_shape=("batch", 5), input_name="words")
    check(chain, model, {"words": np.array([[1, 2, 9, 4, 5], [3, 1, 1, 2, 8]])})


@pytest.mark.slow
def test_double_precision_stays(chains):
    chain = chains.double()
    model = onnxjl.from_flux(chain, input_shape=(None, 2))
    check(chain, model, {"input": sample((3, 2)).astype(np.float64)})


ACTIVATIONS = (
    "celu elu gelu_erf gelu_tanh gelu_sigmoid hardswish hardtanh hardσ leakyrelu lisht logσ mish "
    "relu relu6 selu sigmoid_fast softplus softshrink softsign swish tanhshrink tanh_fast trelu σ "
    "exp abs2"
).split()


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_functions(chains, name):
    chain = chains.activated(name)
    check(chain, onnxjl.from_flux(chain, input_shape=(None, 3)), {"input": sample((4, 3))})


def test_names_follow_the_model(chains):
    model = onnxjl.from_flux(
        chains.classifier(), input_shape=(None, 1, 9, 8), input_name="image", output_name="class"
    )
    graph = model.to_graph()
    assert (model.inputs, model.output_names) == (["image"], ["class"])
    assert list(graph.model.graph.initializers)[:6] == [
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
        "2.running_mean",
        "2.running_var",
    ]
    assert {"4.conv.weight", "4.norm.bias", "9.weight"} <= graph.model.graph.initializers.keys()
    (y,) = graph.model.graph.outputs
    assert [str(n) for n in y.shape] == ["batch", "3"]
    assert str(model["4.conv"]).startswith("Conv((3, 5), 4 => 4, pad=(1, 1, 2, 2)")


def test_several_inputs_and_outputs(chains):
    chain = chains.pair()
    model = onnxjl.from_flux(chain, input_shape={"a": (None, 2), "b": (None, 4)})
    check(chain, model, {"a": sample((3, 2)), "b": sample((3, 4), 1)})


def test_arrays_are_the_models_own(chains):
    chain = chains.tied()
    model = onnxjl.from_flux(chain, input_shape=(None, 4))
    assert chains.shared(chain, model.julia)
    x = sample((3, 4))
    before = model(x)
    chains.scale_b(chain, 1, 0.5)
    assert relative(model(x), before) > 1e-3
    check(chain, model, {"input": x})


def test_a_chain_is_pruned_and_saved(chains, tmp_path):
    chain = chains.stirred(chains.classifier())
    model = onnxjl.from_flux(chain, input_shape=(None, 1, 9, 8))
    small = onnxjl.prune(model, amount=0.5)
    assert small.plan == onnxjl.prune(model.to_graph(), amount=0.5).plan
    saved = small.save(tmp_path / "small.onnx")
    assert saved.check.status == "equal"
    x = sample((3, 1, 9, 8))
    (y,) = run(open_session(tmp_path / "small.onnx"), {"input": x}).values()
    assert relative(small(x), y) < 1e-4
    check(chain, model, {"input": x})  # which stays as it was


@pytest.mark.parametrize(
    ("name", "shape", "error", "message"),
    [
        (
            "anonymous",
            (None, 2),
            UnsupportedOperator,
            r"layer 'b\.2' \(an anonymous function, chains\.jl:\d+\): it calls .* no ONNX form",
        ),
        (
            "activation",
            (None, 2),
            UnsupportedOperator,
            r"layer '1' \(Dense\): ONNX has no operator for an anonymous function, chains\.jl",
        ),
        ("product", (None, 2), UnsupportedOperator, r"layer 'b' \(.*\): it calls \*, which"),
        ("stateful", (5, 2), UnsupportedOperator, r"layer '1' \(LSTM\): it returns its state"),
        ("untracked", (None, 2), UnsupportedOperator, r"'1' \(BatchNorm\): it keeps no statistics"),
        ("misfit", (None, 2), JuliaError, r"layer 'b' \(Dense\): it wants 3 .* size \(2, any\)"),
        ("misfit", (None, "n", 0), UsageError, r"input 'input' can't have the shape \(None, 'n'"),
    ],
)
def test_what_has_no_form_is_told(chains, name, shape, error, message):
    with pytest.raises(error, match=message):
        onnxjl.from_flux(getattr(chains, name)(), input_shape=shape)


def test_a_chain_is_one_of_julia():
    with pytest.raises(UsageError, match="chain is a Python str; give a model in Julia"):
        onnxjl.from_flux("Chain(Dense(2 => 2))", input_shape=(None, 2))


# The same network, imported and written by hand.


def check_same_parameters(chains, chain, imported, x):
    """Both have the same parameter arrays in the same order, and say the same with equal values."""
    assert [list(n) for n in chains.sizes(chain)] == [list(n) for n in chains.sizes(imported.julia)]
    taken = chains.take_b(chain, imported.julia)
    assert chains.same(taken, imported.julia)
    (expected,) = applied(taken, x)
    assert relative(imported(x), expected) < 1e-4


@pytest.mark.slow
def test_resnet18_has_the_parameters_of_one_written_by_hand(chains):
    imported = onnxjl.to_flux(zoo.load("resnet18.ts17bn"))
    (x,) = zoo.inputs("resnet18.ts17bn").values()
    check_same_parameters(chains, chains.resnet18(), imported, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"), [("resnet18", (None, 3, 64, 64)), ("vgg11", (None, 3, 32, 32))]
)
def test_a_saved_chain_has_the_parameters_of_the_chain(chains, tmp_path, name, shape):
    chain = chains.stirred(getattr(chains, name)())
    onnxjl.from_flux(chain, input_shape=shape).save(tmp_path / "net.onnx")
    imported = onnxjl.to_flux(tmp_path / "net.onnx")
    assert chains.same(chain, imported.julia)
    x = sample(shape)
    (expected,) = applied(chain, x)
    assert relative(imported(x), expected) < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_vgg11_of_pytorch_has_the_parameters_of_one_written_by_hand(chains, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch isn't installed: pip install torch")
    nn = torch.nn
    layers, before = [], 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        else:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 64)]
    network = nn.Sequential(*layers, nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    x = sample((4, 3, 32, 32))
    with torch.no_grad():
        network.train()(torch.from_numpy(x))  # statistics that aren't the first ones
        expected = network.eval()(torch.from_numpy(x)).numpy()
    torch.onnx.export(
        network,
        (torch.from_numpy(x),),
        str(tmp_path / "vgg.onnx"),
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    imported = onnxjl.to_flux(tmp_path / "vgg.onnx")
    assert relative(imported(x), expected) < 1e-4
    check_same_parameters(chains, chains.vgg11(), imported, x)


# Layers that are changed in Julia are what the file says.


@pytest.fixture
def model():
    return onnxjl.to_flux(TRAINED)


@pytest.fixture(scope="module")
def image():
    with np.load(TRAINED.with_suffix(".test.npz")) as file:
        return file["image"][:4]


def saved(model, image, tmp_path):
    """The saved file as a graph, after onnxruntime found it equal to Julia's own outputs."""
    path = tmp_path / "changed.onnx"
    assert model.save(path, force=True).check.status == "equal"
    (y,) = run(open_session(path), {"image": image}).values()
    assert relative(model(image), y) < 1e-4
    return onnxjl.load(path)


def operators(graph):
    return [node.op_type for node in graph.model.graph]


def node_of(graph, weight):
    return next(n for n in graph.model.graph if any(v and v.name == weight for v in n.inputs))


def test_layers_of_another_width_and_activation(chains, flux, model, image, tmp_path):
    layers = model.julia
    layers["layer1.0.conv1"] = chains.conv((5, 5), 16, 24, pad=2, stride=2)
    layers["layer1.0.bn1"] = chains.testing(flux.BatchNorm(24, flux.swish))
    layers["layer1.0.conv2"] = chains.conv((3, 3), 24, 16, pad=1)
    graph = saved(model, image, tmp_path)
    assert graph.weight("layer1.0.conv1.weight").shape == (24, 16, 5, 5)
    assert graph.weight("layer1.0.conv1.bias").shape == (24,)  # which it didn't have
    assert graph.weight("layer1.0.bn1.running_mean").shape == (24,)
    attributes = node_of(graph, "layer1.0.conv1.weight").attributes
    assert list(attributes["pads"].value) == [2, 2, 2, 2]
    assert list(attributes["strides"].value) == [2, 2]
    assert operators(graph).count("Sigmoid") == 1
    assert operators(graph).count("Relu") == operators(onnxjl.normalize(TRAINED)).count("Relu") - 1


@pytest.mark.slow
def test_a_stride_moves_everything_behind_it(chains, flux, model, image, tmp_path):
    model.julia["conv1"] = chains.conv((3, 3), 1, 16, flux.gelu, pad=1, stride=2, bias=False)
    graph = saved(model, image, tmp_path)
    assert list(node_of(graph, "conv1.weight").attributes["strides"].value) == [2, 2]
    assert list(node_of(graph, "conv1.weight").attributes["pads"].value) == [1, 1, 1, 1]
    written = model.to_graph().model.graph
    pooled = next(node for node in written if node.op_type == "GlobalAveragePool")
    assert list(pooled.inputs[0].shape)[1:] == [64, 2, 2]


@pytest.mark.slow
def test_a_dense_layer_without_bias_and_with_fewer_outputs(chains, flux, model, image, tmp_path):
    model.julia["fc"] = chains.dense(64, 5, flux.tanh, bias=False)
    graph = saved(model, image, tmp_path)
    assert "fc.bias" not in graph.model.graph.initializers
    assert graph.weight("fc.weight").shape == (5, 64)
    assert operators(graph)[-2:] == ["Gemm", "Tanh"]
    assert list(graph.model.graph.outputs[0].shape)[1] == 5


@pytest.mark.slow
def test_weights_changed_in_place(chains, model, image, tmp_path):
    before = onnxjl.normalize(TRAINED).weight("layer2.0.conv1.weight")
    chains.scale_b(model.julia, "layer2.0.conv1", 0.5)
    graph = saved(model, image, tmp_path)
    np.testing.assert_array_equal(graph.weight("layer2.0.conv1.weight"), before / 2)


@pytest.mark.slow
def test_changed_layers_are_pruned(chains, flux, model, image, tmp_path):
    model.julia["layer1.0.conv1"] = chains.conv((3, 3), 16, 24, pad=1, stride=2)
    model.julia["layer1.0.bn1"] = chains.testing(flux.BatchNorm(24, flux.relu))
    model.julia["layer1.0.conv2"] = chains.conv((3, 3), 24, 16, pad=1)
    small = onnxjl.prune(model, macs=0.5)
    assert small.plan == onnxjl.prune(model.to_graph(), macs=0.5).plan
    graph = saved(small, image, tmp_path)
    width = graph.weight("layer1.0.conv1.weight").shape[0]
    assert 1 <= width < 24
    small.julia["layer1.0.bn1"] = chains.testing(flux.BatchNorm(width, flux.leakyrelu))
    assert "LeakyRelu" in operators(saved(small, image, tmp_path))


@pytest.mark.slow
def test_a_layer_of_another_kind_is_told(flux, model):
    model.julia["conv1"] = flux.MaxPool((2, 2))
    with pytest.raises(JuliaError, match=r"layer 'conv1' was a Conv and is now MaxPool"):
        model.to_graph()


# Plain Flux again.


def test_a_network_is_a_chain_of_its_own_layers(chains, flux, model, image):
    chain = flux.Chain(model.julia)
    assert chains.shared(chain, model.julia)
    assert str(chain).count("SkipConnection(") == 3
    (y,) = applied(chain, image)
    np.testing.assert_array_equal(y, model(image))


@pytest.mark.slow
def test_a_chain_of_a_network_is_a_network_again(flux, model, image):
    chain = flux.Chain(model.julia)
    again = onnxjl.from_flux(chain, input_shape=(None, 1, 28, 28))
    check(chain, again, {"input": image})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18.ts17bn", "squeezenet1_1.ts17", "mobilenet_v2.ts17bn"])
def test_series_parallel_networks_are_chains(flux, name):
    model = onnxjl.to_flux(zoo.load(name))
    (x,) = zoo.inputs(name, seed=1).values()
    (y,) = applied(flux.Chain(model.julia), x)
    assert relative(y, model(x)) < 1e-6


@pytest.mark.slow
def test_a_network_that_is_no_chain_is_told(flux):
    model = onnxjl.to_flux(zoo.load("densenet121.ts17"))
    with pytest.raises(Exception, match=r"node '.*' \(.*\) belongs to several branches"):
        flux.Chain(model.julia)
