"""A network of four groups whose costs meet, and its costs by hand, for tests of selection."""

from __future__ import annotations

import numpy as np
from text_networks import network

# Groups of 12, 8, 5 and 6 units, which meet in one another's costs; the last layer is fixed.
MODEL = network(
    """g (float[N, 3, 4, 4] x) => (float[N, 2] y) {
        ["/one"] a = Conv (x, "one.weight")
        r = Relu (a)
        ["/two"] b = Conv (r, "two.weight")
        ["/three"] c = Conv (r, "three.weight")
        s = Concat <axis = 1> (b, c)
        p = GlobalAveragePool (s)
        f = Flatten (p)
        ["/four"] d = Gemm (f, "four.weight")
        ["/five"] y = Gemm (d, "five.weight")
    }""",
    {
        "one.weight": (12, 3, 1, 1),
        "two.weight": (8, 12, 3, 3),
        "three.weight": (5, 12, 3, 3),
        "four.weight": (13, 6),
        "five.weight": (6, 2),
    },
)
SIZES = [12, 8, 5, 6]


def macs(kept: np.ndarray) -> int:
    """Return the multiply–accumulates of the network, counted by hand."""
    one, two, three, four = (int(n) for n in kept)
    return 16 * 3 * one + 4 * 9 * one * (two + three) + (two + three) * four + 2 * four


def params(kept: np.ndarray) -> int:
    """Return the parameters of the network, counted by hand."""
    one, two, three, four = (int(n) for n in kept)
    return 3 * one + 9 * one * (two + three) + (two + three) * four + 2 * four


COSTS = {
    "macs": macs,
    "params": params,
    "bytes": lambda kept: 4 * params(kept),
    "amount": lambda kept: int(kept.sum()),
}


def scores(seed: int = 0, levels: int = 1000) -> list[np.ndarray]:
    """Return random scores; with few levels there are many ties."""
    random = np.random.default_rng(seed)
    return [random.integers(0, levels, size).astype(np.float64) for size in SIZES]


def widths(size: int, round_to: int, min_units: int) -> list[int]:
    """Return the widths that a group may have."""
    smaller = [w for w in range(round_to, size, round_to) if w >= min_units]
    return [*smaller, size]
