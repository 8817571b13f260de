"""Losses written in Python: NumPy functions with a gradient of their own, or PyTorch's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxjl.errors import UsageError

Output = np.ndarray | Mapping[str, np.ndarray]


def evaluate(loss: Callable[..., Any], output: Output, target: Any) -> tuple[float, Any]:
    """Return a Python loss, and its gradient with respect to the output.

    Parameters
    ----------
    loss : ``f(output, target) -> (value, gradient)`` of NumPy arrays, or a function of PyTorch
        tensors that returns a tensor of one element (where PyTorch has been imported).
    output : an array, or a dict of several by name.
    target : whatever the loss wants.

    Returns
    -------
    The value, and the gradient: an array, or a dict by name as `output` is one.

    Raises
    ------
    UsageError : it isn't callable, or returned something else.
    """
    if not callable(loss):
        raise UsageError(
            f"a loss is a name, a Julia function or a Python function, not {type(loss).__name__}"
        )
    torch = sys.modules.get("torch")
    if torch is not None and _is_torch(loss):
        return _torch(torch, loss, output, target)
    result = loss(output, target)
    if torch is not None and isinstance(result, torch.Tensor):
        raise UsageError("a PyTorch loss must be a torch.nn.Module or come from PyTorch")
    if not (isinstance(result, tuple) and len(result) == 2):
        raise UsageError(
            "a loss in Python returns (value, gradient with respect to the output), or is a "
            f"PyTorch function; this one returned {type(result).__name__}"
        )
    return float(result[0]), result[1]


def _is_torch(loss: Any) -> bool:
    module = getattr(loss, "__module__", None) or type(loss).__module__
    return module.partition(".")[0] == "torch"


def _torch(torch: Any, loss: Any, output: Output, target: Any) -> tuple[float, Any]:
    several = isinstance(output, Mapping)
    arrays = dict(output) if isinstance(output, Mapping) else {"": output}
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in arrays.items()}
    wanted = torch.as_tensor(target) if isinstance(target, np.ndarray) else target
    value = loss(tensors if several else tensors[""], wanted)
    value.backward()
    gradients = {k: t.grad.numpy() for k, t in tensors.items() if t.grad is not None}
    return float(value.detach()), gradients if several else gradients[""]
