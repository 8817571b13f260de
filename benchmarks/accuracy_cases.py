"""What the accuracy benchmark does in PyTorch, told in one line of JSON.

Run as ``python accuracy_cases.py CASE [ARGUMENTS]``:

``train DATASET PACKAGE FOLDER``            read the images of a package, train a network on them
``torch_pruning FOLDER CRITERION SCOPE MACS OUTPUT RATE``  prune and recover that network
``onnxsim FOLDER MACS OUTPUT``              prune its file, with batch normalization folded
``finetune FOLDER MODEL OUTPUT RATE``       read any file back into PyTorch, and train it

A folder holds ``train.npz``, ``test.npz`` (``image`` (n, 1, 28, 28) float32, ``target``), the
network as ``network.pt``, ``network.onnx`` (batch normalization kept) and ``folded.onnx``.
Needs torch, torch-pruning, onnx2torch, onnxsim, onnx and onnxruntime.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.models.train_digits import (
    BATCH,
    ResNet14,
    export,
    normalize,
    read_digits,
    shifted,
    split,
    train,
)

EPOCHS = 12
FINETUNE_EPOCHS = 3
CALIBRATION = 2000
"""Training images, without labels, that batch normalization is estimated on."""

STEPS = 50
"""Steps in which torch-pruning goes on until the budget is met."""


class _Arrays(pickle.Unpickler):
    """Reads pickled NumPy arrays, and refuses all else."""

    allowed = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if not module.startswith("numpy") or name not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} isn't an array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_animals(wheel: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the silhouettes of the package animal-mnist: (n, 28, 28) uint8, (n,) int64."""
    found = []
    with zipfile.ZipFile(wheel) as archive:
        for kind in ("data", "label"):
            name = f"animal_mnist/data/Animal_MNIST/animal_{kind}_version_3.gz"
            found.append(_Arrays(io.BytesIO(gzip.decompress(archive.read(name)))).load())
    images, targets = found
    return images.reshape(-1, 28, 28).astype(np.uint8), targets.astype(np.int64).ravel()


DATASETS = {"digits": read_digits, "animals": read_animals}


def train_network(dataset: str, package: str, folder: str) -> dict[str, Any]:
    """Train the reference network, with a fifth of each class set aside, and export it."""
    place = Path(folder)
    images, targets = DATASETS[dataset](Path(package))
    training, testing = split(targets, 0.2, seed=0)
    for name, chosen in (("train", training), ("test", testing)):
        np.savez(place / name, image=normalize(images[chosen]), target=targets[chosen])
    torch.manual_seed(0)
    network = ResNet14()
    x, y = arrays(place, "train")
    start = time.perf_counter()
    train(network, x, y, EPOCHS)
    seconds = time.perf_counter() - start
    torch.save(network.state_dict(), place / "network.pt")
    export(network, place / "network.onnx")
    save(network, place / "folded.onnx")
    return {"accuracy": accuracy(network, place), "seconds": seconds}


def torch_pruning(
    folder: str, criterion: str, scope: str, macs: str, output: str, rate: str
) -> dict[str, Any]:
    """Prune step by step until the budget is met, then recover in each way."""
    import torch_pruning as tp

    place = Path(folder)
    torch.manual_seed(0)
    network = ResNet14()
    network.load_state_dict(torch.load(place / "network.pt"))
    network.eval()
    example = torch.zeros(1, 1, 28, 28)
    whole, _ = tp.utils.count_ops_and_params(network, example)
    kinds = {
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "lamp": lambda: tp.importance.LAMPImportance(p=2),
        "fpgm": lambda: tp.importance.FPGMImportance(p=2),
        "bn-scale": lambda: tp.importance.BNScaleImportance(),
        "taylor": lambda: tp.importance.GroupTaylorImportance(),
    }
    x, y = arrays(place, "train")
    start = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        network,
        example,
        importance=kinds[criterion](),
        global_pruning=scope == "global",
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=STEPS,
        ignored_layers=[network.fc],
    )
    for _ in range(STEPS):
        if criterion == "taylor":
            network.zero_grad()
            functional.cross_entropy(network(x[:256]), y[:256]).backward()
        pruner.step()
        left, _ = tp.utils.count_ops_and_params(network, example)
        if left <= float(macs) * whole:
            break
    seconds = time.perf_counter() - start
    network.zero_grad()
    save(network, Path(output))
    return {
        "macs": left / whole,
        "seconds": seconds,
        "pruned": accuracy(network, place),
        "bn": accuracy(reestimated(network, x[:CALIBRATION]), place),
        "finetuned": accuracy(finetuned(network, x, y, float(rate)), place),
    }


def onnxsim(folder: str, macs: str, output: str) -> dict[str, Any]:
    """Prune the folded file with the least sparsity that meets the budget."""
    import onnx
    import onnxsim

    import onnxjl

    proto = onnx.load(Path(folder) / "folded.onnx")
    whole = onnxjl.load(proto).macs
    low, high = 0.0, 1.0
    start = time.perf_counter()
    for _ in range(8):
        middle = (low + high) / 2
        small = onnxsim.apply_structured_pruning(proto, sparsity=middle)
        if onnxjl.load(small).macs <= float(macs) * whole:
            high = middle
        else:
            low = middle
    small = onnxsim.apply_structured_pruning(proto, sparsity=high)
    seconds = time.perf_counter() - start
    onnx.save(small, output)
    return {"macs": onnxjl.load(small).macs / whole, "seconds": seconds, "sparsity": high}


def finetune(folder: str, model: str, output: str, rate: str) -> dict[str, Any]:
    """Read a file back into PyTorch, and train what came."""
    from onnx2torch import convert

    torch.manual_seed(0)
    place = Path(folder)
    network = finetuned(convert(model), *arrays(place, "train"), float(rate))
    save(network, Path(output))
    return {"finetuned": accuracy(network, place)}


def finetuned(
    network: nn.Module, images: torch.Tensor, targets: torch.Tensor, rate: float
) -> nn.Module:
    """Return a copy that was trained for some epochs, as the network was at first."""
    torch.manual_seed(0)
    found = copy.deepcopy(network)
    for parameter in found.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(
        found.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = FINETUNE_EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.2
    )
    found.train()
    for _ in range(FINETUNE_EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(found(shifted(images[chosen])), targets[chosen]).backward()
            optimizer.step()
            schedule.step()
    return found.eval()


def reestimated(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return a copy with statistics of batch normalization taken anew."""
    found = copy.deepcopy(network)
    for layer in found.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    found.train()
    with torch.no_grad():
        for part in images.split(200):
            found(part)
    return found.eval()


def arrays(folder: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels of a folder."""
    with np.load(folder / f"{name}.npz") as found:
        return torch.from_numpy(found["image"]), torch.from_numpy(found["target"])


def accuracy(network: nn.Module, folder: Path) -> float:
    """Return the share of test images that a network classifies right."""
    images, targets = arrays(folder, "test")
    network.eval()
    with torch.no_grad():
        right = sum(
            int((network(x).argmax(1) == y).sum())
            for x, y in zip(images.split(500), targets.split(500), strict=True)
        )
    return right / len(targets)


def save(network: nn.Module, path: Path) -> None:
    """Export a network for any batch, with batch normalization folded."""
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 1, 28, 28),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    case, *rest = sys.argv[1:]
    cases = {f.__name__: f for f in (torch_pruning, onnxsim, finetune)} | {"train": train_network}
    print(json.dumps(cases[case](*rest)))
