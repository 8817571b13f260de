"""Make the reference gradients of `gradients/` with PyTorch, for a small network of each family.

    python -m tests.models.export_gradients [--only NAME ...]

Needs torch, torchvision, onnx and onnxruntime; the versions that made the committed files are in
README.md. A network is exported with its batch normalization and its weights' own names where the
exporter keeps them. References are computed in float64, and stored as float32 by the names of the
normalized graph's weights, in ONNX's layout:

=================  ===============================================================================
input/NAME         an input of the network
target             (samples,) classes, for the cross-entropy
loss/MODE          the loss, MODE is ``test`` or ``train``
MODE/NAME          its gradient with respect to a weight
CRITERION/NAME/k   scores of the units that lie on axis k of a weight, of `CHANNELS` only
=================  ===============================================================================
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import DenseNet, ShuffleNetV2, VisionTransformer
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, conv1x1
from torchvision.ops import Conv2dNormActivation

import onnxjl

from . import networks
from .export_zoo import NETWORKS, Input, Network, prepare, tokens

FOLDER = Path(__file__).parent / "gradients"
SAMPLES = 8
MODES = ("test", "train")

NUDGE = 1e-5
"""How far weights are moved, relative to each, to see how well conditioned a gradient is."""

SETTLED = 5e-4
"""Largest relative change of a gradient by a nudge, for inputs that are kept."""

BATCHES = (5, 3)
"""Samples of the batches that criteria are measured on."""

CHANNELS = {
    "conv1.weight": 0,
    "layer1.conv1.weight": 1,
    "layer1.conv2.weight": 0,
    "layer2.conv1.weight": 1,
    "layer2.downsample.0.weight": 1,
}
"""The channels of the small ResNet's first stage: weight -> axis."""


def image(size: int) -> dict[str, Input]:
    return {"input": Input((2, 3, size, size))}


def resnet() -> nn.Module:
    """Return a ResNet of two blocks, the second with a projection."""
    block = BasicBlock(8, 8)
    wider = BasicBlock(8, 12, 2, nn.Sequential(conv1x1(8, 12, 2), nn.BatchNorm2d(12)))
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 8, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(8),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, 2, 1),
        layer1=block,
        layer2=wider,
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(12, 5),
    )
    return nn.Sequential(layers)


def mobilenet() -> nn.Module:
    """Return a MobileNetV2 of two blocks, the first with a shortcut."""
    return nn.Sequential(
        Conv2dNormActivation(3, 8, stride=2, activation_layer=nn.ReLU6),
        InvertedResidual(8, 8, 1, 4),
        InvertedResidual(8, 12, 2, 4),
        Conv2dNormActivation(12, 24, kernel_size=1, activation_layer=nn.ReLU6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


SMALL: dict[str, Network] = {
    "resnet": Network(resnet, image(16)),
    "mobilenet": Network(mobilenet, image(16)),
    "densenet": Network(
        lambda: DenseNet(
            growth_rate=6, block_config=(2, 2), num_init_features=8, bn_size=2, num_classes=5
        ),
        image(32),
    ),
    "shufflenet": Network(
        lambda: ShuffleNetV2([2, 1, 1], [8, 12, 16, 24, 24], num_classes=5), image(48)
    ),
    "vit": Network(
        lambda: VisionTransformer(
            image_size=16,
            patch_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=32,
            num_classes=5,
        ),
        image(16),
    ),
    "lstm": Network(lambda: networks.TokenClassifier("LSTM", 50, 12, 10), tokens(50)),
    "bert": Network(lambda: networks.BertLike(50, 16, 2), tokens(50)),
}
"""Networks of a few thousand weights, whose references are committed."""

WHOLE: dict[str, Network] = {
    name: replace(NETWORKS[name], inputs=image(64))
    if name in ("resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0")
    else NETWORKS[name]
    for name in (
        "resnet18",
        "mobilenet_v2",
        "densenet121",
        "shufflenet_v2_x1_0",
        "vit_b_16",
        "lstm",
        "bertlike",
    )
}
"""The networks as they are used."""


@dataclass(frozen=True)
class Reference:
    """A network's inputs, and what PyTorch makes of them, by the names of the graph's weights.

    Parameters
    ----------
    feeds : name -> input.
    target : (samples,) classes.
    losses : mode -> the loss, in float64.
    gradients : mode -> weight -> gradient, in float64.
    """

    feeds: dict[str, np.ndarray]
    target: np.ndarray
    losses: dict[str, float]
    gradients: dict[str, dict[str, np.ndarray]]


def build(network: Network) -> nn.Module:
    """Return a network without dropout, with random weights."""
    torch.backends.mha.set_fastpath_enabled(False)
    module = prepare(network)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    return module


def reference(
    module: nn.Module, network: Network, file: Path, samples: int = SAMPLES, seed: int = 0
) -> Reference:
    """Export a network to a file, and compute its gradients."""
    generator = np.random.default_rng(seed)
    inputs = tuple(coarse(value.sample(generator, samples)) for value in network.inputs.values())
    export(module, network, inputs, file)
    graph = onnxjl.normalize(onnxjl.load(file))
    with torch.no_grad():
        classes = module(*inputs).shape[1]
    target = torch.arange(samples) % classes
    losses, gradients = {}, {}
    for mode in modes(module):
        losses[mode], found = gradient(module, inputs, target, mode)
        gradients[mode] = by_weight(graph, module, found)
    feeds = {name: x.numpy() for name, x in zip(network.inputs, inputs, strict=True)}
    return Reference(feeds, target.numpy(), losses, gradients)


def coarse(x: Tensor) -> Tensor:
    """Round real inputs to sixteenths, which take little room in a file."""
    return torch.round(16 * x) / 16 if x.is_floating_point() else x


def export(module: nn.Module, network: Network, inputs: tuple[Tensor, ...], file: Path) -> None:
    """Write a network to a file, with its batch normalization, for any batch and length."""
    axes = {
        key: {0: "batch"} if value.high is None else {0: "batch", 1: "time"}
        for key, value in network.inputs.items()
    }
    options = {}
    if normalizes_batches(module):
        options = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            str(file),
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            dynamic_axes=axes | {key: {0: "batch"} for key in network.outputs},
            opset_version=17,
            dynamo=False,
            **options,
        )


def modes(module: nn.Module) -> tuple[str, ...]:
    """Return the modes in which a network's gradients differ, or the one that stands for both."""
    return MODES if normalizes_batches(module) else MODES[:1]


def normalizes_batches(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def gradient(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    target: Tensor,
    mode: str,
    nudge: int | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """Return the cross-entropy and its gradient by parameter, in float64.

    Parameters
    ----------
    nudge : seed of a `NUDGE` of the weights; none is taken without.
    """
    module = copy.deepcopy(module).double().train(mode == "train")
    if nudge is not None:
        generator = torch.Generator().manual_seed(nudge)
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data *= 1 + NUDGE * noise
    value = loss(module, inputs, target)
    value.backward()
    return float(value.detach()), {
        name: parameter.grad for name, parameter in module.named_parameters()
    }


def loss(module: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Return the cross-entropy, in the precision of the module."""
    dtype = next(module.parameters()).dtype
    cast = (x.to(dtype) if x.is_floating_point() else x for x in inputs)
    return cross_entropy(module(*cast), target)


def by_weight(
    graph: onnxjl.Graph, module: nn.Module, gradients: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Return gradients by the names of the weights of a graph, and laid out like these.

    A weight is recognized by its value: it is a parameter, the transpose of one, or those of an
    LSTM joined as ONNX joins them.

    Raises
    ------
    ValueError : a parameter is no weight of the graph.
    """
    weights = {}
    for name, value in graph.model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            array = graph.weight(name)
            weights[array.shape, array.tobytes()] = name
    found: dict[str, np.ndarray] = {}
    missing = set(gradients)
    for parameters, arrangement in arrangements(module):
        values = dict(module.named_parameters())
        value = arrangement([values[p].detach().numpy() for p in parameters])
        name = weights.get((value.shape, value.tobytes()))
        if name is not None:
            found[name] = arrangement([gradients[p].numpy() for p in parameters])
            missing.difference_update(parameters)
    if missing:
        raise ValueError(f"no weight of the graph is {', '.join(sorted(missing))}")
    return found


Arrangement = tuple[tuple[str, ...], Callable[[list[np.ndarray]], np.ndarray]]


def arrangements(module: nn.Module) -> Iterator[Arrangement]:
    """Yield the ways in which parameters can be weights of a graph."""
    for name, parameter in module.named_parameters():
        yield (name,), lambda arrays: arrays[0]
        if parameter.dim() == 2:
            yield (name,), lambda arrays: np.ascontiguousarray(arrays[0].T)
    for path, part in module.named_modules():
        if not isinstance(part, nn.LSTM):
            continue
        directions = ("", "_reverse") if part.bidirectional else ("",)
        for layer in range(part.num_layers):
            for kinds in (("weight_ih",), ("weight_hh",), ("bias_ih", "bias_hh")):
                names = tuple(f"{path}.{k}_l{layer}{d}" for d in directions for k in kinds)
                yield names, partial(gates, joined=len(kinds))


def gates(arrays: list[np.ndarray], joined: int) -> np.ndarray:
    """Stack the directions of an LSTM, each of `joined` arrays, in ONNX's order of gates.

    PyTorch's is input, forget, cell, output; ONNX's is input, output, forget, cell.
    """
    ordered = [np.concatenate([np.split(a, 4)[gate] for gate in (0, 3, 1, 2)]) for a in arrays]
    pairs = [ordered[k : k + joined] for k in range(0, len(ordered), joined)]
    return np.stack([np.concatenate(pair) for pair in pairs])


def criteria(
    module: nn.Module, inputs: tuple[Tensor, ...], target: Tensor
) -> dict[str, np.ndarray]:
    """Return the scores of `CHANNELS` by the criteria's formulas, in test mode.

    ===========  ================================================================================
    taylor       mean over batches of ``(Σ g·w)²`` (Molchanov et al. 2019, eq. 8)
    fisher       mean over samples of ``½ (Σ g·w)²`` (Theis et al. 2018, eq. 5)
    grasp        ``Σ w·Hg``, by differentiating twice (Wang et al. 2020, eq. 8, of what is kept)
    ===========  ================================================================================
    """
    module = copy.deepcopy(module).double().eval()
    parameters = dict(module.named_parameters())

    def gradients(first: int, last: int) -> list[Tensor]:
        value = loss(module, tuple(x[first:last] for x in inputs), target[first:last])
        return list(torch.autograd.grad(value, list(parameters.values()), create_graph=True))

    def sums(found: list[Tensor]) -> dict[str, np.ndarray]:
        products = {n: w * g for (n, w), g in zip(parameters.items(), found, strict=True)}
        return {
            f"{name}/{axis}": products[name].detach().movedim(axis, 0).flatten(1).sum(1).numpy()
            for name, axis in CHANNELS.items()
        }

    count = len(target)
    edges = np.cumsum((0, *BATCHES))
    batches = [sums(gradients(first, last)) for first, last in pairwise(edges)]
    samples = [sums(gradients(i, i + 1)) for i in range(count)]
    whole = gradients(0, count)
    norm = sum((g * g.detach()).sum() for g in whole)
    products = sums(list(torch.autograd.grad(norm, list(parameters.values()))))
    found = {}
    for key in products:
        found[f"taylor/{key}"] = np.mean([s[key] ** 2 for s in batches], axis=0)
        found[f"fisher/{key}"] = np.mean([s[key] ** 2 / 2 for s in samples], axis=0)
        found[f"grasp/{key}"] = products[key]
    return found


def nudged(
    module: nn.Module, made: Reference, mode: str, count: int
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Yield the gradients, and those at weights that are a `NUDGE` away, for several of them."""
    inputs = tuple(torch.from_numpy(x) for x in made.feeds.values())
    target = torch.from_numpy(made.target)
    _, exact = gradient(module, inputs, target, mode)
    for seed in range(count):
        yield exact, gradient(module, inputs, target, mode, nudge=seed)[1]


def unsettled(module: nn.Module, made: Reference) -> float:
    """Return how much a nudge of the weights changes a parameter's gradient, relative to it.

    Where it is little, no activation is so near to a bend of ReLU, or to another one in a window
    of a max pooling, that rounding to float32 decides.
    """
    change = 0.0
    for mode in made.losses:
        for exact, moved in nudged(module, made, mode, 4):
            least = 1e-3 * max(float(g.abs().max()) for g in exact.values())
            for name, g in exact.items():
                difference = float((moved[name] - g).abs().max())
                change = max(change, difference / max(least, float(g.abs().max())))
    return change


def conditioning(module: nn.Module, made: Reference, mode: str) -> float:
    """Return how much a nudge of the weights changes all gradients, relative to their length."""
    found = []
    for exact, moved in nudged(module, made, mode, 3):
        square = sum(float((moved[name] - g).square().sum()) for name, g in exact.items())
        found.append((square / sum(float(g.square().sum()) for g in exact.values())) ** 0.5)
    return max(found)


def make(name: str) -> str:
    """Write a small network and its references; say how large they are."""
    network, file = SMALL[name], FOLDER / f"{name}.onnx"
    module = build(network)
    for seed in range(50):
        made = reference(module, network, file, seed=seed)
        if unsettled(module, made) <= SETTLED:
            break
    else:
        raise ValueError("no inputs give a gradient that is well conditioned")
    arrays: dict[str, np.ndarray] = {f"input/{key}": x for key, x in made.feeds.items()}
    arrays["target"] = made.target
    for mode in made.losses:
        arrays[f"loss/{mode}"] = np.float64(made.losses[mode])
        arrays |= {f"{mode}/{n}": g.astype(np.float32) for n, g in made.gradients[mode].items()}
    if name == "resnet":
        inputs = tuple(torch.from_numpy(x) for x in made.feeds.values())
        arrays |= criteria(module, inputs, torch.from_numpy(made.target))
    np.savez_compressed(file.with_suffix(".npz"), **arrays)
    onnx.checker.check_model(str(file))
    sizes = [f.stat().st_size / 1e3 for f in (file, file.with_suffix(".npz"))]
    return f"inputs {seed}, {sizes[0]:.0f} + {sizes[1]:.0f} kB"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--only", nargs="+", default=list(SMALL), choices=list(SMALL))
    options = arguments.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in options.only:
        print(f"{name}: {make(name)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
