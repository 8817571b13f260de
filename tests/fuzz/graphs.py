# ruff: noqa: E402 - the tests that it draws on are found by path
"""Many random valid networks, normalized, pruned and proved; run by hand, for as long as one likes.

    python tests/fuzz/graphs.py --examples 10000

It draws what ``tests/test_structure_random.py`` draws a few of, from other seeds. Hypothesis makes
an example that fails smaller, and prints it; the rest goes on. The counts are added to
``tests/fuzz/counts.json``.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]

import onnx
from files import add_counts
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from proof import PLANS, Keep
from random_networks import networks
from test_structure_random import check

from onnxjl.structure.groups import GRANULARITIES, Granularity

_CHUNK = 50


def main() -> None:
    """Draw examples in chunks, and add up what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1000, help="number of networks")
    parser.add_argument("--seed", type=int, default=1, help="of the first chunk")
    arguments = parser.parse_args()
    for number in range(-(-arguments.examples // _CHUNK)):
        outcomes = chunk(arguments.seed + number)
        print(time.strftime("%H:%M:%S"), (number + 1) * _CHUNK, dict(outcomes), flush=True)
        add_counts("graphs", outcomes)


def chunk(number: int) -> collections.Counter[str]:
    """Draw some examples from one seed; return what came of them."""
    outcomes: collections.Counter[str] = collections.Counter()

    @seed(number)
    @settings(
        max_examples=_CHUNK,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        # To explain, hypothesis would keep a trace of every line that each example ran: gigabytes.
        phases=[Phase.generate, Phase.shrink],
    )
    @given(
        model=networks(),
        granularity=st.sampled_from(GRANULARITIES),
        kind=st.sampled_from(PLANS),
        start=st.integers(0, 2**32 - 1),
    )
    def example(
        model: onnx.ModelProto, granularity: Granularity, kind: Callable[..., Keep], start: int
    ) -> None:
        outcomes[check(model, granularity, kind, start)] += 1

    try:
        example()
    except Exception:
        # What hypothesis drew to make it smaller counts for nothing.
        outcomes.clear()
        outcomes["failed"] = 1
        traceback.print_exc()
    return outcomes


if __name__ == "__main__":
    main()
