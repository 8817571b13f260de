"""Weights that are cut: what they are, against NumPy's own indexing, and when they are read."""

from __future__ import annotations

import gc
import io
import os
import pickle
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import zoo

import onnxjl
from onnxjl.cut import Cut
from onnxjl.errors import ExternalDataError, PlanError
from onnxjl.serialize import write_tensor

NETWORK = Path(zoo.__file__).with_name("mnist-resnet14.onnx")


def tensor(*shape: int, dtype: ir.DataType = ir.DataType.FLOAT, seed: int = 0) -> ir.Tensor:
    numbers = np.random.default_rng(seed).normal(size=shape)
    return ir.Tensor(numbers.astype(dtype.numpy()), dtype=dtype, name="w")


def some(count: int, of: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(of)[:count])


def written(weight: ir.TensorProtocol) -> bytes:
    file = io.BytesIO()
    write_tensor(weight, file)
    return file.getvalue()


def cut_weights(graph: onnxjl.Graph) -> list[tuple[str, ir.Value]]:
    values = graph.model.graph.initializers.items()
    return [(name, value) for name, value in values if isinstance(value.const_value, Cut)]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.DOUBLE])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((7,), (0,)),
        ((300, 5, 3, 3), (0,)),
        ((5, 300, 3, 3), (1,)),
        ((5, 300, 3, 3), (1, 0)),
        ((2, 3, 400_000), (2, 0)),  # A row is more than is gathered at once.
        ((900, 4000), (0, 1)),  # Several blocks, the last one shorter.
        ((6, 5, 4), (0, 1, 2)),
    ],
)
def test_what_is_left_is_what_numpy_takes(
    shape: tuple[int, ...], axes: tuple[int, ...], dtype: ir.DataType
) -> None:
    whole = tensor(*shape, dtype=dtype)
    kept = {axis: some(shape[axis] // 2 + 1, shape[axis], axis) for axis in axes}
    wanted = whole.numpy()[np.ix_(*(kept.get(i, np.arange(n)) for i, n in enumerate(shape)))]
    left = Cut(whole, kept, "w")
    assert (tuple(left.shape), left.dtype, left.name) == (wanted.shape, dtype, "w")
    assert written(left) == wanted.tobytes()
    assert left.numpy().tobytes() == wanted.tobytes()
    assert left.numpy() is left.numpy()
    assert written(left) == left.tobytes() == wanted.tobytes()
    assert pickle.loads(pickle.dumps(left)).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.DOUBLE])
def test_a_weight_that_lies_anywhere_in_a_file(dtype: ir.DataType) -> None:
    array = tensor(6, 5, 4, dtype=dtype).numpy()
    anywhere = np.frombuffer(b"." + array.tobytes(), array.dtype, offset=1).reshape(array.shape)
    assert not anywhere.flags.aligned
    kept = {0: some(3, 6, 1), 1: some(2, 5, 2)}
    left = Cut(ir.Tensor(anywhere, dtype=dtype, name="w"), kept, "w").numpy()
    assert left.dtype == array.dtype
    assert left.flags.aligned
    assert left.tobytes() == array[np.ix_(*kept.values())].tobytes()


@pytest.mark.parametrize("read_between", [False, True])
def test_a_cut_of_a_cut(read_between: bool) -> None:
    whole = tensor(20, 12, 3)
    first, second = {0: some(9, 20, 1), 1: some(8, 12, 2)}, {0: some(4, 9, 3), 2: np.array([0, 2])}
    once = Cut(whole, first, "w")
    if read_between:
        once.numpy()
    twice = Cut(once, second, "w")
    wanted = whole.numpy()[first[0]][:, first[1]][second[0]][..., [0, 2]]
    assert written(twice) == wanted.tobytes()
    assert np.array_equal(twice.numpy(), wanted)


def test_the_whole_weight_is_let_go_when_the_cut_one_is_read() -> None:
    whole = tensor(8, 4)
    there = weakref.ref(whole.numpy())
    left = Cut(whole, {0: np.array([1, 5])}, "w")
    del whole
    gc.collect()
    assert there() is not None
    left.numpy()
    gc.collect()
    assert there() is None


def test_saving_keeps_no_copy_of_a_weight(tmp_path: Path) -> None:
    small = onnxjl.prune(NETWORK, macs=0.5)
    small.save(tmp_path / "small.onnx", check=False)
    large = [v.const_value for _, v in cut_weights(small) if v.const_value.nbytes > 1024]
    assert len(large) > 10
    assert all(tensor._array is None for tensor in large)
    stored = onnx.load(tmp_path / "small.onnx").graph.initializer
    for each in stored:
        assert np.array_equal(onnx.numpy_helper.to_array(each), small.weight(each.name))


@pytest.mark.parametrize("read", ["numpy", "save"])
def test_data_that_went_away(tmp_path: Path, read: str) -> None:
    onnx.save(
        onnx.load(NETWORK), tmp_path / "a.onnx", save_as_external_data=True, location="a.data"
    )
    small = onnxjl.prune(tmp_path / "a.onnx", macs=0.5)
    name = next(name for name, value in cut_weights(small) if value.const_value.nbytes > 1024)
    (tmp_path / "a.data").unlink()
    with pytest.raises(ExternalDataError, match=r"external data of '.+' are no longer there"):
        small.weight(name) if read == "numpy" else small.save(tmp_path / "b.onnx", check=False)
    assert not (tmp_path / "b.onnx").exists()


def test_an_index_that_is_not_there_is_told_before_anything_is_read() -> None:
    graph = onnxjl.normalize(NETWORK)
    name = next(n for n, v in graph.model.graph.initializers.items() if len(v.shape) == 4)
    rows = graph.weight(name).shape[0]
    plan = onnxjl.Plan(kept={name: {0: np.array([0, rows])}}, source_graph=graph)
    with pytest.raises(PlanError, match=f"'{name}' has shape .*: no such index on axis 0"):
        onnxjl.apply(graph, plan)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of open files here")
@pytest.mark.parametrize("read", ["numpy", "save"])
def test_no_file_stays_open_for_a_weight_that_was_read(tmp_path: Path, read: str) -> None:
    """Each external tensor maps its file anew, which keeps the file open."""
    onnx.save(
        onnx.load(NETWORK), tmp_path / "a.onnx", save_as_external_data=True, location="a.data"
    )
    small = onnxjl.prune(tmp_path / "a.onnx", macs=0.5)
    gc.collect()  # Errors that other tests raised keep files open until then.
    before = len(os.listdir("/proc/self/fd"))
    if read == "numpy":
        assert all(small.weight(n) is not None for n, v in cut_weights(small))
    else:
        small.save(tmp_path / "b.onnx", check=False)
    assert len(os.listdir("/proc/self/fd")) == before
