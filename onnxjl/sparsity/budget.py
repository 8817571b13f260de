"""How many weights of each layer go: all layers ranked together, or each with a share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from onnxjl.sparsity.layers import Layer

Scope = Literal["global", "local", "erk"]
SCOPES: tuple[Scope, ...] = ("global", "local", "erk")


def share(amount: float, size: int) -> int:
    """Return the number that is nearest to a fraction of a number; halves go up."""
    # Fractions are written in decimals: 0.3 of 5 is 1.5, though not in binary.
    return int(np.floor(amount * size + 0.5 + 1e-9))


def counts(layers: Sequence[Layer], amount: float, scope: Scope) -> list[int]:
    """Return how many weights of each layer are to be zero.

    Parameters
    ----------
    layers : the layers that share the amount.
    amount : fraction of all their weights.
    scope : "local" or "erk".
    """
    if scope == "local":
        return [share(amount, layer.size) for layer in layers]
    return erk(layers, share(amount, sum(layer.size for layer in layers)))


def erk(layers: Sequence[Layer], zeros: int) -> list[int]:
    """Return how many weights of each layer are zero when small layers keep more of theirs.

    The share that a layer keeps is in proportion to the sum of its sizes over their product, as far
    as that is at most all: ``ε (n_in + n_out + k_h + k_w) / (n_in · n_out · k_h · k_w)``.

    Parameters
    ----------
    layers : by the shapes of their weights.
    zeros : over all layers; they add up to just this.

    Source: Evci et al. 2020, Rigging the Lottery, section 3 (1), Erdős–Rényi–Kernel.
    """
    sizes = np.array([layer.size for layer in layers], dtype=np.int64)
    raw = np.array([sum(layer.shape) / layer.size for layer in layers])
    dense = np.zeros(len(layers), dtype=bool)
    kept = float(sizes.sum() - zeros)
    while True:
        free = ~dense
        scale = (kept - sizes[dense].sum()) / (raw[free] * sizes[free]).sum()
        over = free & (raw * scale > 1)
        if not over.any():
            break
        dense |= over
    wanted = np.where(dense, 0.0, sizes * (1 - np.minimum(raw * scale, 1)))
    whole = np.floor(wanted + 1e-9).astype(np.int64)
    # What rounding left over goes to the largest rests; of equal ones to the first.
    rest = np.argsort(-(wanted - whole), kind="stable")
    for i in rest[: zeros - int(whole.sum())]:
        whole[i] += 1
    return [int(n) for n in whole]
