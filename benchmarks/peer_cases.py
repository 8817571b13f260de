"""What peers do in one process, told in one line of JSON.

Run as ``python peer_cases.py CASE [ARGUMENTS]``:

``torch_pruning NETWORK RATIO OUTPUT``    a torchvision network: dependency graph, prune, export
``onnxsim MODEL SPARSITY REPEATS OUTPUT`` `apply_structured_pruning` on a model in memory

Runs in an environment of its own, with torch, torchvision, torch-pruning, onnx and onnxsim.
"""

from __future__ import annotations

import warnings
from importlib import metadata

from measure import Measurement, arguments, stay_on_one_core


def torch_pruning(network: str, ratio: str, output: str) -> None:
    """Dependency graph, global l2 pruning, and export by PyTorch's TorchScript exporter."""
    import torch
    import torch_pruning as tp
    import torchvision

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.get_model(network, weights=None).eval()
    image = torch.randn(1, 3, 224, 224)
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1000]
    attention = [m for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)]
    run = Measurement()
    pruner = run.step(
        "dependency graph",
        lambda: tp.pruner.MagnitudePruner(
            model,
            image,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=float(ratio),
            global_pruning=True,
            ignored_layers=last,
            num_heads={m: m.num_heads for m in attention},
        ),
    )
    run.step("prune", pruner.step)
    if attention:
        # The class checks its input against the width that it was built with.
        model.hidden_dim = model.conv_proj.out_channels
    run.step(
        "export",
        lambda: torch.onnx.export(model, (image,), output, opset_version=17, dynamo=False),
    )
    run.facts = versions("torch", "torchvision", "torch-pruning")
    run.report()


def onnxsim(model: str, sparsity: str, repeats: str, output: str) -> None:
    """Both forms of onnxsim's structured pruning, which take a model in memory and return one."""
    import onnx
    import onnxsim

    proto = onnx.load(model)
    run = Measurement()
    count, share = int(repeats), float(sparsity)
    prune, prune_native = onnxsim.apply_structured_pruning, onnxsim.apply_structured_pruning_cpp
    small = run.step("python", lambda: prune(proto, sparsity=share))
    run.repeat("python, repeated", lambda: prune(proto, sparsity=share), count)
    run.repeat("c++, repeated", lambda: prune_native(proto, sparsity=share), count)
    run.facts = versions("onnxsim")
    run.report()
    onnx.save(small, output)


def versions(*names: str) -> dict[str, dict[str, str]]:
    """Return which versions of packages are installed."""
    return {"versions": {name: metadata.version(name) for name in names}}


if __name__ == "__main__":
    stay_on_one_core()
    warnings.simplefilter("ignore")
    case, *rest = arguments()
    {f.__name__: f for f in (torch_pruning, onnxsim)}[case](*rest)
