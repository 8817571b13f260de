"""Damaged files give an error of ours, or a network: those that once did not, and new ones."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FUZZ))

from mutations import mutated  # noqa: E402
from pipeline import outcome  # noqa: E402
from seeds import seeds  # noqa: E402

ERRORS = {"BudgetError", "DataError", "ExternalDataError", "ModelError", "WeightError"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """onnx_ir says of each what is wrong with it."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", seeds())
def test_what_fuzzing_starts_from_is_pruned(name: str) -> None:
    assert outcome(seeds()[name].SerializeToString()) == "pruned"


@pytest.mark.parametrize("path", sorted(FUZZ.glob("corpus/*.onnx")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_fuzzing_found_gives_an_error_or_a_network(path: Path) -> None:
    assert outcome(path.read_bytes()) in {"pruned", *ERRORS}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_damaged_networks_give_an_error_or_a_network() -> None:
    valid = [model.SerializeToString() for model in seeds().values()]
    outcomes = Counter(
        outcome(mutated(valid[seed % len(valid)], seed, most=2)) for seed in range(400)
    )
    assert outcomes.keys() <= {"pruned", *ERRORS}
    # Not all of them fail at the door.
    assert outcomes["pruned"] > 40
