"""Make the skeletons of the test zoo from PyTorch networks with random weights.

    python -m tests.models.export_zoo [--only NAME ...] [--keep FOLDER]

Needs torch, torchvision, onnx, onnxscript and onnxruntime; the versions that made the committed
files are in README.md. Each network goes through PyTorch's exporters:

=============  ====================================================================================
ts13           TorchScript, opset 13, static batch of 2
ts17           TorchScript, opset 17, dynamic batch
ts17bn         TorchScript, opset 17, static batch, in training form: normalization is kept, no
               constant is folded
dynamo         torch.export, optimized, dynamic batch
dynamo_noopt   torch.export, static batch, not optimized
=============  ====================================================================================

Weights are PyTorch's random ones, made a little less regular: no two tensors are equal, and
normalization statistics fit the activations, so that neither the exporters' merging of equal
tensors nor vanishing activations hide anything. Every model is compared with PyTorch, and every
skeleton is restored and run, before it is kept.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision
from torch import Tensor, nn

from . import networks, zoo
from .skeleton import strip
from .verify import check_equal, run, write_skeleton

FOLDER = Path(__file__).parent / "skeletons"
BATCH = 2
"""Number of samples that a network is exported with."""

FITTED = 8
"""Number of samples that the statistics of batch normalization are fitted to."""


@dataclass(frozen=True)
class Input:
    """How to make one input: its shape, and for integers the exclusive upper bound.

    `free` names axes whose sizes the dynamic exporters leave open besides the batch's.
    """

    shape: tuple[int, ...]
    high: int | None = None
    batch_axis: int = 0
    free: tuple[tuple[int, str], ...] = ()

    def axes(self) -> dict[int, str]:
        return {self.batch_axis: "batch", **dict(self.free)}

    def sample(self, generator: np.random.Generator, batch: int = BATCH) -> Tensor:
        shape = list(self.shape)
        shape[self.batch_axis] = batch
        dtype = np.dtype(np.float32 if self.high is None else np.int64)
        return torch.from_numpy(zoo.draw(generator, shape, dtype, self.high or 2))

    def description(self) -> dict[str, Any]:
        found: dict[str, Any] = {"shape": list(self.shape), "batch_axis": self.batch_axis}
        return found if self.high is None else found | {"high": self.high}


@dataclass(frozen=True)
class Network:
    """A network to export: how to build it, its inputs, its outputs and its exporters."""

    build: Callable[[], nn.Module]
    inputs: dict[str, Input]
    outputs: tuple[str, ...] = ("output",)
    exporters: tuple[str, ...] = ("ts13", "ts17", "dynamo")


IMAGE = {"input": Input((2, 3, 224, 224))}
SMALL_IMAGE = {"input": Input((2, 3, 32, 32))}
UNFOLDED = ("ts13", "ts17", "ts17bn", "dynamo", "dynamo_noopt")
WITHOUT_13 = ("ts17", "dynamo")


def tokens(vocabulary: int) -> dict[str, Input]:
    return {"tokens": Input((2, 32), vocabulary)}


def torchvision_network(name: str, exporters: tuple[str, ...], **options: Any) -> Network:
    return Network(
        lambda: torchvision.models.get_model(name, weights=None, **options),
        IMAGE,
        ("output",),
        exporters,
    )


USUAL = ("ts13", "ts17", "dynamo")
NETWORKS: dict[str, Network] = {
    "resnet18": torchvision_network("resnet18", UNFOLDED),
    "mobilenet_v2": torchvision_network("mobilenet_v2", UNFOLDED),
    "densenet121": torchvision_network("densenet121", UNFOLDED),
    "vit_b_16": torchvision_network("vit_b_16", WITHOUT_13),
    "vit_tiny": Network(
        lambda: torchvision.models.VisionTransformer(
            image_size=32,
            patch_size=8,
            num_layers=2,
            num_heads=4,
            hidden_dim=64,
            mlp_dim=128,
            num_classes=10,
        ),
        SMALL_IMAGE,
        exporters=WITHOUT_13,
    ),
    "swin_tiny": Network(
        lambda: torchvision.models.SwinTransformer(
            patch_size=[2, 2],
            embed_dim=24,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=[4, 4],
            num_classes=10,
        ),
        SMALL_IMAGE,
    ),
    "lstm": Network(lambda: networks.TokenClassifier("LSTM"), tokens(500)),
    "bertlike": Network(networks.BertLike, tokens(1000), exporters=WITHOUT_13),
    "shufflenet_v2_x1_0": torchvision_network("shufflenet_v2_x1_0", USUAL),
    "unet": Network(networks.UNet, {"input": Input((2, 3, 96, 96))}, exporters=UNFOLDED),
    "yolo": Network(networks.Yolo, {"images": Input((2, 3, 128, 128))}, ("output",), UNFOLDED),
    "gru": Network(lambda: networks.TokenClassifier("GRU"), tokens(500)),
    "rnn": Network(lambda: networks.TokenClassifier("RNN"), tokens(500)),
    "rnn_relu": Network(
        lambda: networks.StackedRecurrent(nn.RNN(24, 40, 2, nonlinearity="relu")),
        {"signal": Input((12, 2, 24), batch_axis=1)},
    ),
    "lstm_stacked": Network(
        lambda: networks.StackedRecurrent(nn.LSTM(24, 40, 3)),
        {"signal": Input((12, 2, 24), batch_axis=1)},
    ),
    "encoder_mask": Network(
        networks.EncoderMask,
        {"input_ids": Input((2, 32), 300), "attention_mask": Input((2, 32), 2)},
        ("last_hidden_state", "pooler_output"),
    ),
    "gptlike": Network(networks.GptLike, tokens(200), ("logits",)),
    "decoder": Network(
        networks.Decoder,
        {"tokens": Input((2, 16), 200, free=((1, "time"),))},
        ("logits",),
        WITHOUT_13,
    ),
    "decoder_cached": Network(
        partial(networks.Decoder, cached=True),
        {"tokens": Input((2, 4), 200, free=((1, "time"),))}
        | {
            f"past_{kind}_{layer}": Input((2, 2, 5, 6), free=((2, "past"),))
            for layer in range(2)
            for kind in ("key", "value")
        },
        (
            "logits",
            *(f"present_{kind}_{layer}" for layer in range(2) for kind in ("key", "value")),
        ),
        WITHOUT_13,
    ),
    "tied_linear": Network(
        networks.TiedLinear, {"input": Input((2, 20))}, exporters=(*USUAL, "ts17bn")
    ),
    "tied_embedding": Network(
        networks.TiedEmbedding, {"tokens": Input((2, 16), 120)}, exporters=(*USUAL, "ts17bn")
    ),
    "conv_twice": Network(networks.ConvTwice, SMALL_IMAGE, exporters=(*USUAL, "ts17bn")),
    "conv1d": Network(networks.Conv1d, {"signal": Input((2, 2, 128))}, exporters=UNFOLDED),
    "attention_mix": Network(networks.AttentionMix, SMALL_IMAGE, exporters=UNFOLDED),
    "two_inputs": Network(
        networks.TwoInputs,
        {"image": Input((2, 3, 32, 32)), "vector": Input((2, 10))},
        ("class", "value"),
    ),
    "speaker": Network(
        networks.Speaker,
        {"tokens": Input((2, 12), 40, free=((1, "time"),))},
        ("wave",),
        ("ts17", "dynamo"),
    ),
    "two_stage": Network(
        networks.TwoStage,
        {"image": Input((2, 3, 32, 32))},
        ("boxes", "classes"),
        ("ts13", "dynamo_noopt"),
    ),
    "resnet50": torchvision_network("resnet50", USUAL),
    "mobilenet_v3_small": torchvision_network("mobilenet_v3_small", USUAL),
    "efficientnet_b0": torchvision_network("efficientnet_b0", USUAL),
    "squeezenet1_1": torchvision_network("squeezenet1_1", USUAL),
    "convnext_tiny": torchvision_network("convnext_tiny", USUAL),
    "regnet_y_400mf": torchvision_network("regnet_y_400mf", USUAL),
    "swin_t": torchvision_network("swin_t", USUAL),
    "googlenet": torchvision_network("googlenet", USUAL, aux_logits=False, init_weights=False),
    "alexnet": torchvision_network("alexnet", USUAL),
    "vgg11_bn": torchvision_network("vgg11_bn", USUAL),
}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    arguments.add_argument("--keep", type=Path, help="keep the complete models in this folder")
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    FOLDER.mkdir(exist_ok=True)
    failures = 0
    for name in options.only:
        for exporter in NETWORKS[name].exporters:
            try:
                print(f"{name}.{exporter}: {make(name, exporter, options.keep)}", flush=True)
            except Exception as error:
                failures += 1
                message = " ".join(str(error).split())[:300]
                print(f"{name}.{exporter}: {type(error).__name__}: {message}", flush=True)
    return min(failures, 1)


def make(name: str, exporter: str, keep: Path | None) -> str:
    """Export a network, check it, and write its skeleton; say how large both are."""
    network = NETWORKS[name]
    module = prepare(network)
    generator = np.random.default_rng(2)
    samples = tuple(value.sample(generator) for value in network.inputs.values())
    with torch.no_grad():
        expected = module(*samples)
    feeds = dict(zip(network.inputs, (sample.numpy() for sample in samples), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        file = (keep or Path(folder)) / f"{name}.{exporter}.onnx"
        export(module, samples, network, exporter, file)
        results = run(file.read_bytes(), feeds)
        check_equal(results, [value.numpy() for value in as_tuple(expected)])
        if keep is not None:
            np.savez_compressed(
                file.with_suffix(".io.npz"),
                **{f"in::{key}": value for key, value in feeds.items()},
                **{
                    f"out::{key}": value
                    for key, value in zip(network.outputs, results, strict=True)
                },
            )
        full_size = file.stat().st_size
        model = onnx.load(file)
    descriptions = {key: value.description() for key, value in network.inputs.items()}
    target = FOLDER / f"{name}.{exporter}.onnx.xz"
    write_skeleton(strip(model, descriptions), target)
    return f"{full_size / 1e6:.1f} MB, skeleton {target.stat().st_size / 1e3:.1f} kB"


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def prepare(network: Network) -> nn.Module:
    """Build a network for inference, with random weights that hide nothing.

    Tensors that initialization made constant or equal to another one get noise, and batch
    normalization gets statistics near those of its activations.
    """
    torch.manual_seed(0)
    module = network.build().eval()
    generator = torch.Generator().manual_seed(1)
    seen = set()
    for parameter in module.parameters():
        content = parameter.detach().numpy().tobytes()
        if parameter.requires_grad and (
            parameter.dim() == 1 or float(parameter.detach().std()) == 0 or content in seen
        ):
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
        seen.add(content)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.weight.data.uniform_(0.8, 1.2, generator=generator)
            part.bias.data.normal_(0, 0.1, generator=generator)
            part.register_forward_pre_hook(partial(fit_statistics, generator=generator))
    with torch.no_grad():
        inputs = np.random.default_rng(1)
        module(*(value.sample(inputs, FITTED) for value in network.inputs.values()))
    for part in module.modules():
        part._forward_pre_hooks.clear()
    return module


def fit_statistics(
    norm: nn.modules.batchnorm._BatchNorm, arguments: tuple[Tensor], generator: torch.Generator
) -> None:
    """Set the statistics of a batch normalization so that its output has a mean square near 1."""
    square = float(arguments[0].square().mean())
    norm.running_var.uniform_(0.8 * square, 1.2 * square, generator=generator)
    norm.running_mean.normal_(0, 0.1 * square**0.5, generator=generator)


def export(
    module: nn.Module, samples: tuple[Tensor, ...], network: Network, exporter: str, file: Path
) -> None:
    """Write a network to a file with one of the exporters."""
    options: dict[str, Any] = {
        "input_names": list(network.inputs),
        "output_names": list(network.outputs),
    }
    if exporter.startswith("dynamo"):
        options |= {"dynamo": True, "external_data": False, "verbose": False}
        if exporter == "dynamo":
            names = {name for value in network.inputs.values() for name in value.axes().values()}
            dims = {name: torch.export.Dim(name) for name in names}
            first, *rest = (
                {axis: dims[name] for axis, name in value.axes().items()}
                for value in network.inputs.values()
            )
            # Further inputs are taken as one argument that gathers them, or one by one.
            gathers = "caches" in inspect.signature(module.forward).parameters
            options["dynamic_shapes"] = (first, tuple(rest)) if gathers and rest else (first, *rest)
        else:
            options["optimize"] = False
    else:
        options |= {"dynamo": False, "opset_version": int(exporter[2:4])}
        if exporter == "ts17":
            axes = {key: value.axes() for key, value in network.inputs.items()}
            options["dynamic_axes"] = axes | {key: {0: "batch"} for key in network.outputs}
        elif exporter == "ts17bn":
            options["training"] = torch.onnx.TrainingMode.PRESERVE
            options["do_constant_folding"] = False
    torch.onnx.export(module, samples, str(file), **options)


if __name__ == "__main__":
    sys.exit(main())
