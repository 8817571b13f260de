"""Fine-tuning: steps that are what they should be, and accuracy that comes back."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flux_support import name_julia, needs_julia
from onnx import helper
from small_networks import convolutions, model

import onnxjl
from onnxjl.errors import DataError, OutputError, TrainingError, UsageError
from onnxjl.session import open_session, run

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

TRAINED = Path(__file__).parent / "models" / "mnist-resnet14.onnx"
RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "a.weight": RANDOM.normal(size=(6, 4)).astype(np.float32),
    "a.bias": RANDOM.normal(size=6).astype(np.float32),
    "b.weight": RANDOM.normal(size=(3, 6)).astype(np.float32),
    "b.bias": RANDOM.normal(size=3).astype(np.float32),
}
X = RANDOM.normal(size=(10, 4)).astype(np.float32)
Y = RANDOM.integers(0, 3, 10)


@pytest.fixture(scope="module", autouse=True)
def _julia():
    name_julia()


def dense():
    """Two layers, ``a`` and ``b``, with a ReLU between: 4 inputs, 3 classes."""
    nodes = [
        helper.make_node("Gemm", ["x", "a.weight", "a.bias"], ["h"], name="/a", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="/relu"),
        helper.make_node("Gemm", ["r", "b.weight", "b.bias"], ["y"], name="/b", transB=1),
    ]
    return onnxjl.to_flux(model(nodes, {"x": ("n", 4)}, {"y": ("n", 3)}, WEIGHTS))


def convolutional():
    return onnxjl.to_flux(convolutions(batch="n"))


def images(count=24, seed=1):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 3, 6, 6)).astype(np.float32)
    return x, generator.integers(0, 5, count)


def weights_of(flux):
    graph = flux.to_graph()
    return {name: np.array(graph.weight(name)) for name in graph.model.graph.initializers}


def same(a, b):
    """Whether two models hold the same numbers, bit for bit."""
    one, other = weights_of(a), weights_of(b)
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def check_usable(flux, inputs):
    """It is in test mode: what it computes is what onnxruntime makes of its file."""
    (expected,) = run(open_session(flux.to_graph()), {"x": inputs}).values()
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(flux(inputs), expected, rtol=1e-4, atol=1e-4)


# The same networks and rules in NumPy, in float64.


def softmax(scores):
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def forward(w, x):
    h = x @ w["a.weight"].T + w["a.bias"]
    return h, np.maximum(h, 0) @ w["b.weight"].T + w["b.bias"]


def one_hot(target):
    return np.eye(3)[target]


def gradient(w, x, delta):
    h, _ = forward(w, x)
    back = (delta @ w["b.weight"]) * (h > 0)
    return {
        "a.weight": back.T @ x,
        "a.bias": back.sum(axis=0),
        "b.weight": delta.T @ np.maximum(h, 0),
        "b.bias": delta.sum(axis=0),
    }


def sgd(lr, g, w, state, step):
    return lr * g


def momentum(lr, g, w, state, step):
    state["v"] = 0.9 * state.get("v", 0) + lr * g
    return state["v"]


def nesterov(lr, g, w, state, step):
    v = state.get("v", 0)
    state["v"] = 0.9 * v - lr * g
    return -(0.9 * state["v"] - lr * g)


def rmsprop(lr, g, w, state, step):
    state["s"] = 0.9 * state.get("s", 0) + 0.1 * g**2
    return lr * g / (np.sqrt(state["s"]) + 1e-8)


def adam(lr, g, w, state, step):
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["s"] = 0.999 * state.get("s", 0) + 0.001 * g**2
    m, s = state["m"] / (1 - 0.9**step), state["s"] / (1 - 0.999**step)
    return lr * m / (np.sqrt(s) + 1e-8)


def adamw(lr, g, w, state, step):
    return adam(lr, g, w, state, step) + lr * 0.01 * w


def with_decay(lr, g, w, state, step):
    return lr * (g + 0.1 * w)


def by_norm(gradients):
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert norm > 0.25
    return {name: g * 0.25 / norm for name, g in gradients.items()}


def by_value(gradients):
    assert max(np.abs(g).max() for g in gradients.values()) > 0.05
    return {name: np.clip(g, -0.05, 0.05) for name, g in gradients.items()}


def expected_weights(
    update: Callable, *, lr=0.05, clip=dict, delta=None, epochs=1, factors=(1, 1, 1, 1), batch=5
):
    """Weights after so many epochs of batches in their order, by NumPy."""
    w = {name: array.astype(np.float64) for name, array in WEIGHTS.items()}
    states: dict[str, dict] = {name: {} for name in w}
    step = 0
    for _ in range(epochs):
        for start in range(0, len(X), batch):
            x, y = X[start : start + batch].astype(np.float64), Y[start : start + batch]
            if delta is None:
                d = (softmax(forward(w, x)[1]) - one_hot(y)) / len(x)
            else:
                d = delta(forward(w, x)[1], x, y)
            rate = lr * factors[step]
            step += 1
            for name, g in clip(gradient(w, x, d)).items():
                w[name] = w[name] - update(rate, g, w[name], states[name], step)
    return w


def distilled(scores, x, y):
    """The gradient of 0.3 of cross-entropy and 0.7 of distillation at temperature 2."""
    _, teacher = forward({name: 2 * w for name, w in WEIGHTS.items()}, x)
    hard = softmax(scores) - one_hot(y)
    soft = 2 * (softmax(scores / 2) - softmax(teacher / 2))
    return (0.3 * hard + 0.7 * soft) / len(x)


STEPS = {
    "sgd": (expected_weights(sgd), {"optimiser": "sgd"}),
    "sgd, weight decay": (expected_weights(with_decay), {"optimiser": "sgd", "weight_decay": 0.1}),
    "momentum": (expected_weights(momentum), {"optimiser": "momentum"}),
    "nesterov": (expected_weights(nesterov), {"optimiser": "nesterov"}),
    "rmsprop": (expected_weights(rmsprop), {"optimiser": "rmsprop"}),
    "adam": (expected_weights(adam), {"optimiser": "adam"}),
    "adamw": (expected_weights(adamw), {"optimiser": "AdamW"}),
    "clipped by norm": (
        expected_weights(sgd, clip=by_norm),
        {"optimiser": "sgd", "clip_norm": 0.25},
    ),
    "clipped by value": (
        expected_weights(sgd, clip=by_value),
        {"optimiser": "sgd", "clip_value": 0.05},
    ),
    "cosine": (
        expected_weights(sgd, epochs=2, factors=(1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5)),
        {"optimiser": "sgd", "schedule": "cosine", "epochs": 2},
    ),
    "function of the step, warm-up": (
        expected_weights(sgd, epochs=2, factors=(1 / 2, 1 / 2, 1 / 3, 1 / 4)),
        {"optimiser": "sgd", "schedule": lambda k: 1 / (k + 1), "warmup": 2, "epochs": 2},
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps_are_what_numpy_computes(case):
    expected, options = STEPS[case]
    flux = dense()
    options = {"epochs": 1, **options}
    history = flux.finetune((X, Y), batch_size=5, lr=0.05, shuffle=False, **options)
    assert [epoch.steps for epoch in history] == [2] * options["epochs"]
    for name, array in weights_of(flux).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_distillation_is_what_numpy_computes():
    teacher = dense().to_graph()
    for name in WEIGHTS:
        teacher.model.graph.initializers[name].const_value.raw[...] *= 2
    expected = expected_weights(sgd, delta=distilled)
    options = {"teacher_weight": 0.7, "temperature": 2.0, "optimiser": "sgd", "lr": 0.05}
    for given, loss in ((teacher, None), (onnxjl.to_flux(teacher), cross_entropy)):
        flux = dense()
        options |= {"teacher": given, "loss": loss}
        flux.finetune((X, Y), epochs=1, batch_size=5, shuffle=False, **options)
        for name, array in weights_of(flux).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_history_says_what_numpy_measures():
    flux = dense()
    history = flux.finetune(
        (X, Y), epochs=1, batch_size=10, optimiser="sgd", lr=0.05, validate=(X, Y), shuffle=False
    )
    for weights, loss, metric in (
        (WEIGHTS, history[0].loss, history[0].metric),
        (weights_of(flux), history[0].validation_loss, history[0].validation_metric),
    ):
        _, scores = forward(weights, X)
        assert loss == pytest.approx(-np.log(softmax(scores)[np.arange(10), Y]).mean(), rel=1e-5)
        assert metric == pytest.approx((scores.argmax(axis=1) == Y).mean())
    assert (history[0].epoch, history[0].samples, history[0].lr) == (1, 10, 0.05)
    assert history.metric == "accuracy"


def test_a_rule_of_julias_own():
    rules = onnxjl.flux.julia().Optimisers
    for rule, lr in ((rules.Descent(0.05), None), (rules.Descent(7.0), 0.05)):
        flux = dense()
        history = flux.finetune(
            (X, Y), epochs=1, batch_size=5, optimiser=rule, lr=lr, shuffle=False
        )
        assert history[0].lr == 0.05
        expected = STEPS["sgd"][0]
        for name, array in weights_of(flux).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    with pytest.raises(UsageError, match="this optimiser has no learning rate"):
        dense().finetune((X, Y), optimiser=rules.AdaDelta(), lr=0.1)


def cross_entropy(output, target):
    p = softmax(output)
    return -np.log(p[np.arange(len(target)), target]).mean(), (p - one_hot(target)) / len(target)


@pytest.mark.parametrize("kind", ["python", "julia", "torch"])
def test_losses_of_all_kinds_train_alike(kind):
    if kind == "torch":
        torch = pytest.importorskip("torch", reason="PyTorch isn't installed")
    loss = {
        "python": lambda: cross_entropy,
        "julia": lambda: onnxjl.flux.julia().crossentropy,
        "torch": lambda: torch.nn.CrossEntropyLoss(),
    }[kind]()
    flux = dense()
    options = {"epochs": 1, "batch_size": 5, "optimiser": "sgd", "lr": 0.05, "shuffle": False}
    history = flux.finetune((X, Y), loss=loss, validate=(X, Y), **options)
    expected = STEPS["sgd"][0]
    for name, array in weights_of(flux).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    value, _ = cross_entropy(forward(expected, X)[1], Y)
    assert history[0].validation_loss == pytest.approx(value, rel=1e-4)


class Loader:
    """Yields lists as PyTorch's loader does, and can be gone through again."""

    def __iter__(self) -> Iterator:
        return iter([[X[:5], Y[:5]], [X[5:], Y[5:]]])


@pytest.mark.parametrize("form", ["mapping", "file", "list", "loader", "generator", "torch"])
def test_data_of_all_forms_train_alike(form, tmp_path):
    np.savez(tmp_path / "data.npz", x=X, target=Y)
    if form == "torch":
        torch = pytest.importorskip("torch", reason="PyTorch isn't installed")
        pairs = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    data = {
        "mapping": lambda: {"x": X, "target": Y},
        "file": lambda: tmp_path / "data.npz",
        "list": lambda: [(X[:5], Y[:5]), {"x": X[5:], "target": Y[5:]}],
        "loader": Loader,
        "generator": lambda: ((X[i : i + 5], Y[i : i + 5]) for i in (0, 5)),
        "torch": lambda: torch.utils.data.DataLoader(pairs, batch_size=5),
    }[form]()
    flux = dense()
    flux.finetune(data, epochs=1, batch_size=5, optimiser="sgd", lr=0.05, shuffle=False)
    for name, array in weights_of(flux).items():
        np.testing.assert_allclose(array, STEPS["sgd"][0][name], rtol=1e-4, atol=1e-6)


def test_shuffling_follows_the_seed():
    def trained(**options):
        flux = dense()
        flux.finetune((X, Y), epochs=2, batch_size=4, **options)
        return flux

    assert same(trained(seed=1), trained(seed=1))
    assert not same(trained(seed=1), trained(seed=2))
    assert not same(trained(seed=1), trained(shuffle=False))


def test_a_generator_is_enough_for_one_epoch_only():
    flux = dense()
    with pytest.raises(UsageError, match=r"data is a generator, .* only once, and there are 2 epo"):
        flux.finetune(iter([(X, Y)]), epochs=2)
    with pytest.raises(UsageError, match="validate is a generator"):
        flux.finetune((X, Y), epochs=2, validate=iter([(X, Y)]))


def test_frozen_layers_stay_as_they_are():
    flux = convolutional()
    before = weights_of(flux)
    # By a layer's name, and by a node's.
    flux.finetune(images(), epochs=2, batch_size=8, freeze=["first", "/norm"])
    for name, array in weights_of(flux).items():
        assert np.array_equal(array, before[name]) == name.startswith(("first.", "norm.")), name
    check_usable(flux, images()[0])


def test_frozen_weights_do_not_count_for_the_gradients_norm():
    def only_b(gradients):
        free = {name: g for name, g in gradients.items() if name.startswith("b.")}
        return by_norm(free)

    flux = dense()
    flux.finetune(
        (X, Y), epochs=1, batch_size=10, optimiser="sgd", lr=0.05, clip_norm=0.25, freeze="a"
    )
    expected = expected_weights(sgd, clip=only_b, batch=10)
    for name, array in weights_of(flux).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("optimiser", ["adamw", "momentum"])
def test_zeros_stay_zero(optimiser):
    proto = convolutions(batch="n")
    masked = onnxjl.normalize(proto)
    array = np.array(masked.weight("second.weight"))
    zero = np.random.default_rng(0).random(array.shape) < 0.5
    for initializer in proto.graph.initializer:
        if initializer.name == "second.weight":
            initializer.raw_data = np.where(zero, 0, array).astype(np.float32).tobytes()
    flux = onnxjl.to_flux(proto)
    options = {"batch_size": 8, "optimiser": optimiser, "lr": 0.01}
    flux.finetune(images(), epochs=2, keep_zeros=True, **options)
    after = weights_of(flux)["second.weight"]
    assert (after[zero] == 0).all()
    # ReLU switches off channels 3, 4 and 6, which no gradient reaches.
    live = ~zero[:, [0, 1, 2, 5, 7]]
    assert (after != array)[:, [0, 1, 2, 5, 7]][live].all()
    flux.finetune(images(), epochs=1, **options)
    assert (weights_of(flux)["second.weight"][zero] != 0).any()


def batch_statistics(x):
    """Mean and unbiased variance of the first convolution's channels."""
    weights = {i.name: i for i in convolutions().graph.initializer}
    from onnx import numpy_helper

    kernel = numpy_helper.to_array(weights["first.weight"])
    bias = numpy_helper.to_array(weights["first.bias"])
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows, kernel) + bias[:, None, None]
    return y.mean(axis=(0, 2, 3)), y.var(axis=(0, 2, 3), ddof=1)


def test_batch_normalization_tracks_its_batches():
    x, y = images()
    flux = convolutional()
    before = weights_of(flux)
    flux.finetune((x, y), epochs=1, batch_size=24, shuffle=False, lr=0.0)
    after = weights_of(flux)
    for name, batch in zip(("running_mean", "running_var"), batch_statistics(x), strict=True):
        expected = 0.9 * before[f"norm.{name}"] + 0.1 * batch
        np.testing.assert_allclose(after[f"norm.{name}"], expected, rtol=1e-4, atol=1e-5)
    check_usable(flux, x)


def test_batch_normalization_may_keep_its_statistics():
    flux = convolutional()
    before = weights_of(flux)
    flux.finetune(images(), epochs=1, batch_size=8, batchnorm="frozen")
    changed = {k for k, array in weights_of(flux).items() if not np.array_equal(array, before[k])}
    assert changed == set(before) - {"norm.running_mean", "norm.running_var"}


def test_a_last_sample_alone_has_no_variance_and_is_left_out():
    history = convolutional().finetune(images(17), epochs=1, batch_size=8)
    assert (history[0].steps, history[0].samples) == (2, 16)
    history = dense().finetune((X[:9], Y[:9]), epochs=1, batch_size=4)
    assert (history[0].steps, history[0].samples) == (3, 9)


def scripted(values):
    """A metric that says what it was told to, of the training and the validation data in turn."""
    rest = iter([value for each in values for value in (0.0, each)])
    return lambda output, target: next(rest)


@pytest.mark.parametrize(
    ("values", "options", "epochs", "best"),
    [
        ([0.1, 0.5, 0.3, 0.4, 0.9], {"patience": 2}, 4, 2),
        # Among equal metrics the loss decides, which falls here.
        ([0.1, 0.5, 0.3, 0.5, 0.4], {"patience": 2}, 5, 4),
        ([0.1, 0.5, 0.3, 0.6, 0.2], {"patience": 2}, 5, 4),
        ([0.3, 0.2, 0.1], {"epochs": 3}, 3, 1),
        ([0.1, 0.2, 0.3], {"epochs": 3}, 3, 3),
        ([0.3, 0.2, 0.1], {"epochs": 3, "restore_best": False}, 3, 1),
    ],
)
def test_the_best_epoch_ends_training_and_comes_back(values, options, epochs, best):
    options = {"epochs": 5, **options}
    flux = dense()
    history = flux.finetune(
        (X, Y),
        batch_size=10,
        validate=(X, Y),
        metric=scripted(values),
        monitor="metric",
        **options,
    )
    assert len(history) == epochs
    assert history.best == best
    restored = options.get("restore_best", True)
    assert history.restored == (restored and best != epochs)
    again = dense()
    again.finetune((X, Y), epochs=best if restored else epochs, batch_size=10)
    assert same(flux, again)


def test_the_best_epoch_has_the_lowest_loss_where_there_is_no_accuracy():
    target = RANDOM.normal(size=(10, 3)).astype(np.float64)
    # Each epoch doubles the last one's step: what was better becomes worse.
    history = dense().finetune(
        (X, target),
        epochs=6,
        batch_size=10,
        loss="mse",
        optimiser="sgd",
        lr=0.05,
        schedule=lambda step: 3.0**step,
        validate=(X, target),
    )
    losses = [epoch.validation_loss for epoch in history]
    assert history.metric is None
    assert history.best == np.argmin(losses) + 1
    assert history.restored


def without_seconds(history):
    return [{k: v for k, v in e.items() if k != "seconds"} for e in history.as_dict()["epochs"]]


def interrupting(after):
    """A metric that presses Ctrl-C after so many batches."""
    count = 0

    def metric(output, target):
        nonlocal count
        count += 1
        if count == after:
            raise KeyboardInterrupt
        return float((output.argmax(axis=1) == target).mean())

    return metric


def accuracy(output, target):
    return float((output.argmax(axis=1) == target).mean())


@pytest.mark.parametrize("optimiser", ["adamw", "momentum", "rmsprop", "radam"])
def test_a_resumed_training_is_one_that_was_never_interrupted(optimiser, tmp_path):
    options = {
        "epochs": 4,
        "batch_size": 8,
        "optimiser": optimiser,
        "lr": 0.01,
        "schedule": "cosine",
        "keep_zeros": True,
        "validate": images(16, seed=2),
    }
    whole = convolutional()
    history = whole.finetune(images(), metric=accuracy, **options)
    path = tmp_path / "training.npz"
    # Three training and two validation batches in an epoch: in the middle of the third.
    first = interrupting(12)
    first.__name__ = "accuracy"
    with pytest.warns(UserWarning, match="interrupted after 2 of 4 epochs"):
        part = convolutional().finetune(images(), metric=first, checkpoint=path, **options)
    assert part.interrupted
    assert len(part) == 2
    rest = convolutional()
    resumed = rest.finetune(images(), metric=accuracy, checkpoint=path, resume=True, **options)
    assert same(rest, whole)
    assert without_seconds(resumed) == without_seconds(history)
    assert (resumed.best, resumed.restored) == (history.best, history.restored)
    # Finished already: the same network again, at once.
    again = convolutional()
    final = again.finetune(images(), metric=accuracy, checkpoint=path, resume=True, **options)
    assert without_seconds(final) == without_seconds(history)
    assert same(again, whole)
    assert [file.name for file in tmp_path.iterdir()] == ["training.npz"]


def test_a_later_start_has_the_rates_and_samples_of_the_epochs_that_are_left():
    options = {"epochs": 3, "schedule": "cosine", "optimiser": "sgd", "batch_size": 4, "lr": 0.1}
    states = {}
    whole, part = dense(), dense()
    history = whole.finetune(
        (X, Y), after_epoch=lambda e: states.update({e.epoch: whole.to_graph()}), **options
    )
    assert list(states) == [1, 2, 3]
    assert np.array_equal(states[3].weight("a.weight"), whole.to_graph().weight("a.weight"))
    # SGD has no state: from the weights of after the first epoch on, it is the same training.
    part = onnxjl.to_flux(states[1])
    rest = part.finetune((X, Y), start_epoch=1, validate=(X, Y), restore_best=False, **options)
    assert [(e.epoch, e.lr, e.loss) for e in rest] == [
        (e.epoch, e.lr, e.loss) for e in list(history)[1:]
    ]
    assert rest.best in (2, 3)
    for name in WEIGHTS:
        assert np.array_equal(part.to_graph().weight(name), whole.to_graph().weight(name))


@pytest.mark.parametrize("start", [-1, 3])
def test_a_start_after_the_last_epoch(start):
    with pytest.raises(UsageError, match=f"start_epoch={start}: one of the 3 epochs has to be"):
        dense().finetune((X, Y), epochs=3, start_epoch=start)


def test_checkpoints_that_cannot_be_resumed(tmp_path):
    path = tmp_path / "training.npz"
    options = {"epochs": 1, "batch_size": 5, "checkpoint": path}
    dense().finetune((X, Y), **options)
    with pytest.raises(OutputError, match=r"training\.npz: exists; resume=True goes on from it"):
        dense().finetune((X, Y), **options)
    with pytest.raises(UsageError, match=r"its training has lr=0\.001, not 0\.5; go on with the"):
        dense().finetune((X, Y), resume=True, lr=0.5, **options)
    # Where no schedule looks at their number, there may be more epochs.
    assert len(dense().finetune((X, Y), resume=True, **{**options, "epochs": 3})) == 3
    with pytest.raises(UsageError, match=r"can't be resumed: .* belongs to another network"):
        convolutional().finetune(images(), resume=True, **options)
    np.savez(path, x=X)
    with pytest.raises(DataError, match="is no checkpoint of a training"):
        dense().finetune((X, Y), resume=True, **options)
    with pytest.raises(OutputError, match=r"the folder .* doesn't exist"):
        dense().finetune((X, Y), checkpoint=tmp_path / "none" / "training.npz")
    with pytest.raises(UsageError, match="resume needs a checkpoint=FILE"):
        dense().finetune((X, Y), resume=True)


def test_ctrl_c_ends_training_after_a_batch():
    flux = convolutional()
    flux.finetune(images(), epochs=1)  # so that nothing is left to compile
    before = weights_of(flux)
    x, y = images(4096)
    pressed = subprocess.Popen(["sh", "-c", f"sleep 1; kill -INT {os.getpid()}"])
    start = time.monotonic()
    with pytest.warns(UserWarning, match=r"interrupted after \d+ of 100000 epochs"):
        history = flux.finetune((x, y), epochs=100_000, batch_size=512)
    assert time.monotonic() - start < 30
    assert pressed.wait() == 0
    assert history.interrupted
    assert "interrupted" in str(history)
    after = weights_of(flux)
    assert any(not np.array_equal(after[name], before[name]) for name in after)
    check_usable(flux, images()[0])
    # And it can be trained on.
    assert not flux.finetune(images(), epochs=1).interrupted


@pytest.mark.parametrize("first", [0, 5], ids=["first epoch", "second epoch"])
def test_a_loss_that_is_not_finite_puts_the_last_good_weights_back(first):
    calls = 0

    class Breaking:
        def __iter__(self):
            nonlocal calls
            for x, y in [images(8, seed=1), images(8, seed=2)]:
                calls += 1
                yield (np.full_like(x, np.nan) if calls == first + 2 else x), y

    class Sound:
        def __iter__(self):
            return iter([images(8, seed=1), images(8, seed=2)])

    flux, reference = convolutional(), convolutional()
    good = (first + 1) // 2
    if good:
        reference.finetune(Sound(), epochs=good)
    epoch, step = good + 1, (first + 1) % 2 + 1
    message = (
        rf"epoch {epoch}, step {step}: the loss is nan; the weights are "
        + (f"those of epoch {good}" if good else "as before training")
        + "; try a smaller lr than 0.001, clip_norm"
    )
    with pytest.raises(TrainingError, match=message):
        flux.finetune(Breaking(), epochs=5)
    assert same(flux, reference)
    check_usable(flux, images()[0])


def test_a_gradient_that_is_not_finite_changes_nothing():
    def loss(output, target):
        return 1.0, np.full_like(output, np.inf)

    flux = dense()
    with pytest.raises(TrainingError, match=r"step 1: the gradient's norm is (inf|nan)"):
        flux.finetune((X, Y), loss=loss)
    assert same(flux, dense())


WRONG = {
    "epochs": ({"epochs": 0}, "epochs=0: at least 1"),
    "batch size": ({"batch_size": 0}, "batch_size=0: at least 1"),
    "loss": ({"loss": "cross"}, "no loss 'cross'; did you mean 'cross-entropy'"),
    "optimiser": ({"optimiser": "adamww"}, "no optimiser 'adamww'; did you mean 'adamw'"),
    "rule": ({"optimiser": 3}, "an optimiser is a name or a rule of Optimisers.jl, not 3"),
    "lr": ({"lr": -1.0}, "lr=-1.0: a number of at least 0"),
    "decay": ({"weight_decay": -1.0}, "weight_decay=-1.0: a number of at least 0"),
    "norm": ({"clip_norm": 0.0}, "clip_norm=0.0: a number above 0"),
    "value": ({"clip_value": 0.0}, "clip_value=0.0: a number above 0"),
    "schedule": ({"schedule": "cos"}, "no schedule 'cos'"),
    "freeze": ({"freeze": "conv*"}, r"no layer or node matches 'conv\*'"),
    "batchnorm": ({"batchnorm": "test"}, "no batchnorm 'test'; there are train, frozen"),
    "metric": ({"metric": "accurracy"}, "no metric 'accurracy'; did you mean 'accuracy'"),
    "no metric": ({"metric": 3}, r"a metric is a name or a function f\(output, target\)"),
    "monitor": ({"monitor": "los", "validate": (X, Y)}, "no monitor 'los'; did you mean 'loss'"),
    "unmeasured": ({"patience": 1}, "monitor and patience need validate="),
    "patience": ({"patience": 0, "validate": (X, Y)}, "patience=0: at least 1 epoch"),
    "teacher's weight": ({"teacher_weight": 0.0}, r"teacher_weight=0.0: a number in \(0, 1\]"),
    "temperature": ({"temperature": 0.0}, "temperature=0.0: a number above 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_that_cannot_be(case):
    options, message = WRONG[case]
    with pytest.raises(UsageError, match=message) as caught:
        dense().finetune((X, Y), **options)
    assert "\n" not in str(caught.value)


def test_data_that_cannot_be():
    with pytest.raises(DataError, match="the data have no labels"):
        dense().finetune(X)
    with pytest.raises(UsageError, match="labels of float32 have no default loss; give loss='mse'"):
        dense().finetune((X, X[:, :3]))
    with pytest.raises(DataError, match=r"accuracy needs outputs of shape \(samples, classes\)"):
        dense().finetune((X, X[:, :3]), loss="mse", metric="accuracy")
    with pytest.raises(UsageError, match="these data have no accuracy; give metric="):
        dense().finetune((X, X[:, :3]), loss="mse", validate=(X, X[:, :3]), monitor="metric")
    flux = dense()
    with pytest.raises(UsageError, match="the teacher is the network itself"):
        flux.finetune((X, Y), teacher=flux)


def test_progress_says_loss_metric_and_speed(monkeypatch):
    notes = []

    class Recorded(SimpleNamespace):
        def __init__(self, text, *, total):
            super().__init__(text=text, total=total)

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731

        def step(self, note):
            notes.append((self.total, note))

    monkeypatch.setattr("onnxjl.finetune.Progress", Recorded)
    dense().finetune((X, Y), epochs=2, batch_size=4)
    assert [total for total, _ in notes] == [6] * 6
    assert notes[0][1] == "epoch 1 of 2"
    assert all("epoch 2 of 2, loss" in note for _, note in notes[4:])
    assert ", accuracy " in notes[5][1]
    assert notes[5][1].endswith(" samples/s")


@pytest.fixture(scope="module")
def digits():
    """Digits that the shipped network was trained on, and ones that nobody trains on."""
    parts = {}
    for name in ("calib", "test"):
        with np.load(TRAINED.with_suffix(f".{name}.npz")) as file:
            parts[name] = dict(file)
    return parts


def right(flux, samples):
    return float((flux(samples["image"]).argmax(axis=1) == samples["target"]).mean())


@pytest.mark.slow
def test_a_step_of_a_residual_network_follows_the_gradient(digits):
    few = {name: array[:16] for name, array in digits["calib"].items()}
    flux = onnxjl.to_flux(TRAINED)
    before = flux.to_graph()
    _, found = flux.gradient("cross-entropy", few["image"], few["target"])
    options = {"optimiser": "sgd", "lr": 0.1, "batchnorm": "frozen", "freeze": "layer2.*"}
    history = flux.finetune(few, epochs=1, **options)
    after = flux.to_graph()
    assert len(history) == 1
    assert any(name.startswith("layer2.") for name in found)
    for name, g in found.items():
        moved = after.weight(name) - before.weight(name)
        if name.startswith("layer2."):
            assert not moved.any()
        else:
            np.testing.assert_allclose(moved, -0.1 * g, atol=1e-6)


@pytest.mark.slow
def test_three_epochs_bring_the_accuracy_of_half_a_network_back(digits):
    graph = onnxjl.load(TRAINED)
    original = onnxjl.to_flux(graph)
    small = onnxjl.to_flux(onnxjl.prune(graph, macs=0.5))
    before, pruned = right(original, digits["test"]), right(small, digits["test"])
    assert pruned < before - 0.1
    history = small.finetune(digits["calib"], epochs=3)
    assert len(history) == 3
    assert right(small, digits["test"]) >= before - 0.01


@pytest.mark.slow
def test_the_documented_way_brings_it_back_too(digits, tmp_path, monkeypatch, capsys):
    page = (TRAINED.parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")
    code = page.partition("```py\n")[2].partition("```")[0]
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "models").symlink_to(TRAINED.parent)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert capsys.readouterr().out == f"{names['history']}\n"
    saved = onnxjl.to_flux("small.onnx")
    assert right(saved, digits["test"]) >= 0.991 - 0.01
