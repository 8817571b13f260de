"""Weights in external data whose file is another by the time that it is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_networks as small

import onnxjl
from onnxjl.errors import ExternalDataError, ModelError
from onnxjl.external import ExternalWeight
from onnxjl.load import load
from onnxjl.save import save


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A network with its weights in a file of its own."""
    onnx.save(
        small.convolutions(),
        tmp_path / "a.onnx",
        save_as_external_data=True,
        location="a.w",
        size_threshold=0,
    )
    return tmp_path / "a.onnx"


def replaced(data: Path) -> None:
    other = data.with_name("other")
    other.write_bytes(bytes(data.stat().st_size))
    os.replace(other, data)


def written_over(data: Path) -> None:
    data.write_bytes(bytes(data.stat().st_size))


def cut_short(data: Path) -> None:
    os.truncate(data, data.stat().st_size - 4)


CHANGES: list[Callable[[Path], None]] = [replaced, written_over, cut_short]
USES: dict[str, Callable[[onnxjl.Graph], object]] = {
    "read": lambda graph: graph.weight("first.weight"),
    "fingerprint": lambda graph: graph.fingerprint,
    "prune": lambda graph: onnxjl.prune(graph, amount=0.4),
    "compare": lambda graph: onnxjl.compare(graph, graph),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("use", USES)
def test_data_that_changed_are_not_read(
    use: str, change: Callable[[Path], None], model: Path
) -> None:
    graph = load(model)
    change(model.with_name("a.w"))
    with pytest.raises(ExternalDataError, match="were exchanged after the model was loaded"):
        USES[use](graph)


@pytest.mark.parametrize("use", USES)
def test_data_that_are_gone(use: str, model: Path) -> None:
    graph = load(model)
    model.with_name("a.w").unlink()
    with pytest.raises(ExternalDataError, match="are no longer there"):
        USES[use](graph)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("change", [*CHANGES, Path.unlink])
def test_nothing_is_saved_from_data_that_changed(
    change: Callable[[Path], None], external: bool, model: Path
) -> None:
    """Not even what pruning left, which is read only now; small weights are no exception."""
    pruned = onnxjl.prune(model, amount=0.4)
    change(model.with_name("a.w"))
    there = sorted(model.parent.iterdir())
    with pytest.raises(ExternalDataError, match=r"were exchanged after|are no longer there"):
        save(pruned, model.with_name("b.onnx"), external=external, check=False)
    assert sorted(model.parent.iterdir()) == there


def test_equal_data_written_anew_are_as_good(model: Path) -> None:
    save(load(model), model.with_name("b.onnx"), check=False)
    graph = load(model.with_name("b.onnx"))
    before = graph.weight("first.weight").copy()
    graph.unmap("first.weight")
    save(load(model), model.with_name("b.onnx"), check=False, force=True)
    assert np.array_equal(graph.weight("first.weight"), before)


def test_a_renamed_weight_is_looked_after_too(model: Path) -> None:
    weight = load(model).model.graph.initializers["first.weight"].const_value
    assert isinstance(weight, ExternalWeight)
    other = weight.renamed("other")
    assert other.name == "other"
    assert np.array_equal(other.numpy(), weight.numpy())
    written_over(model.with_name("a.w"))
    with pytest.raises(ExternalDataError, match="of 'other' were exchanged"):
        other.tobytes()


def test_a_file_with_weights_inside_that_was_written_to(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    onnx.save(small.convolutions(), path)
    pruned = onnxjl.prune(path, amount=0.4)
    path.write_bytes(small.convolutions(seed=1).SerializeToString())
    with pytest.raises(ModelError, match=r"a\.onnx: was written to after the model was loaded"):
        save(pruned, tmp_path / "b.onnx", check=False)
    assert not (tmp_path / "b.onnx").exists()


def test_a_file_with_weights_inside_that_was_replaced(tmp_path: Path) -> None:
    """What was mapped stays: the old weights are saved."""
    path = tmp_path / "a.onnx"
    onnx.save(small.convolutions(), path)
    pruned = onnxjl.prune(path, amount=0.4)
    wanted = onnxjl.prune(small.convolutions(), amount=0.4).fingerprint
    save(small.convolutions(seed=1), path, force=True, check=False)
    save(pruned, tmp_path / "b.onnx", check=False)
    assert load(tmp_path / "b.onnx").fingerprint == wanted
