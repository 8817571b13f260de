"""Copies of networks, in this process and through `pickle` to another one."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from flux_support import needs_julia
from models import zoo

import onnxjl
from onnxjl.session import open_session, run

NETWORK = Path(zoo.__file__).with_name("mnist-resnet14.onnx")


def pickled(graph: onnxjl.Graph) -> onnxjl.Graph:
    return pickle.loads(pickle.dumps(graph))


def content(graph: onnxjl.Graph, folder: Path) -> bytes:
    graph.save(folder / "copy.onnx", check=False, force=True, external=False)
    return (folder / "copy.onnx").read_bytes()


def halved(graph: onnxjl.Graph) -> tuple[str, list[str]]:
    """What pruning makes of a graph, and the order in which groups have their members."""
    order = [str((m.tensor, m.axis)) for group in onnxjl.groups(graph) for m in group.members]
    return onnxjl.prune(graph, amount=0.5).fingerprint, order


@pytest.mark.parametrize("make", [copy.deepcopy, pickled])
@pytest.mark.parametrize("name", ["densenet121.ts17", "mobilenet_v2.ts17", "lstm.ts17"])
def test_a_copy_is_the_same_network(name: str, make, tmp_path: Path) -> None:
    """Networks of hundreds of nodes that refer to one another, and their plans."""
    graph = onnxjl.normalize(zoo.load(name))
    other = make(graph)
    assert other.model is not graph.model
    assert content(other, tmp_path) == content(graph, tmp_path)
    assert halved(other) == halved(graph)


@pytest.mark.parametrize("make", [copy.deepcopy, pickled])
def test_a_pruned_network_keeps_its_plan_and_source(make, tmp_path: Path) -> None:
    first = onnxjl.prune(onnxjl.load(NETWORK, shapes={"image": (4, 1, 28, 28)}), macs=0.7)
    graph = onnxjl.prune(first, macs=0.7)
    other = make(graph)
    assert (other.path, other.shapes, other.normalized) == (graph.path, graph.shapes, True)
    assert other.plan == graph.plan
    assert other.source is other.plan.source_graph
    assert other.source is not graph.source
    assert onnxjl.apply(other.source, other.plan).fingerprint == graph.fingerprint
    other.save(tmp_path / "small.onnx")  # With its check against the source.


@pytest.mark.parametrize("make", [copy.deepcopy, pickled])
def test_weights_of_every_type_and_in_files(make, tmp_path: Path) -> None:
    weights = {
        "half": np.arange(600, dtype=np.float16).reshape(30, 20),
        "brain": np.arange(600).astype(ml_dtypes.bfloat16).reshape(30, 20),
        "bytes": np.arange(1200).astype(np.int8),
        "text": np.array(["a", "ü", ""], dtype=object),
        "one": np.array(3, dtype=np.int64),
    }
    nodes = [onnx.helper.make_node("Identity", [name], [f"{name}.y"]) for name in weights]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "types",
            [],
            [
                onnx.helper.make_tensor_value_info(
                    f"{name}.y",
                    onnx.TensorProto.STRING
                    if name == "text"
                    else onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
                    array.shape,
                )
                for name, array in weights.items()
            ],
            [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 21)],
    )
    onnx.save(
        model,
        tmp_path / "a.onnx",
        save_as_external_data=True,
        location="a.data",
        size_threshold=1000,
    )
    graph = onnxjl.load(tmp_path / "a.onnx")
    other = make(graph)
    (tmp_path / "a.data").unlink()
    assert list(other.model.graph.initializers) == list(weights)
    assert [text.decode() for text in other.weight("text")] == weights.pop("text").tolist()
    for name, array in weights.items():
        assert other.weight(name).dtype == array.dtype
        assert other.weight(name).tolist() == array.tolist()


def test_a_shallow_copy_shares_the_network() -> None:
    graph = onnxjl.load(NETWORK)
    assert copy.copy(graph).model is graph.model


def test_sparse_weights_stay_so() -> None:
    graph = onnxjl.sparsify(NETWORK, amount=0.5)
    other = pickled(graph)
    assert other.masks.keys() == graph.masks.keys()
    assert all(np.array_equal(other.masks[name], mask) for name, mask in graph.masks.items())


def pruned_elsewhere(graph: onnxjl.Graph) -> onnxjl.Graph:
    return onnxjl.prune(graph, macs=0.5)


def test_graphs_go_to_another_process_and_back() -> None:
    graph = onnxjl.normalize(zoo.load("densenet121.ts17"))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        small = pool.submit(pruned_elsewhere, graph).result()
    assert small.fingerprint == onnxjl.prune(graph, macs=0.5).fingerprint


def outputs_elsewhere(model: onnxjl.flux.FluxModel, inputs: np.ndarray) -> np.ndarray:
    return model(inputs)


def images(count: int) -> np.ndarray:
    with np.load(NETWORK.with_suffix(".calib.npz")) as file:
        return file["image"][:count]


@needs_julia
@pytest.mark.xdist_group("julia")
def test_a_deep_copy_of_a_flux_model_is_trained_apart() -> None:
    model = onnxjl.prune(onnxjl.to_flux(NETWORK), macs=0.5)
    before, x = model.to_graph().fingerprint, images(4)
    other = copy.deepcopy(model)
    assert (other.plan, other.source) == (model.plan, model.source)
    assert np.array_equal(other(x), model(x))
    with np.load(NETWORK.with_suffix(".calib.npz")) as file:
        data = [(file["image"][:16], file["target"][:16])]
    other.finetune(data, epochs=2)
    assert model.to_graph().fingerprint == before != other.to_graph().fingerprint
    shallow = copy.copy(other)
    shallow.finetune(data, epochs=2)
    assert np.array_equal(shallow(x), other(x))


@needs_julia
@pytest.mark.xdist_group("julia")
def test_a_deep_copy_holds_the_same_zeros() -> None:
    model = onnxjl.sparsify(onnxjl.to_flux(NETWORK), amount=0.5)
    other = copy.deepcopy(model)
    assert other.masks.keys() == model.masks.keys() != set()
    assert all(np.array_equal(other.masks[name], mask) for name, mask in model.masks.items())


@needs_julia
@pytest.mark.slow
@pytest.mark.xdist_group("julia")
def test_flux_models_go_to_another_process() -> None:
    """Which starts a Julia of its own for them."""
    model = onnxjl.prune(onnxjl.to_flux(NETWORK), macs=0.5)
    x = images(4)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        elsewhere = pool.submit(outputs_elsewhere, model, x).result()
    there = run(open_session(model.to_graph()), {"image": x})
    assert np.allclose(elsewhere, model(x), rtol=0, atol=1e-5)
    assert np.allclose(elsewhere, next(iter(there.values())), rtol=1e-4, atol=1e-4)
    again = pickle.loads(pickle.dumps(model))
    assert again.plan == model.plan
    assert again.to_graph().fingerprint == model.to_graph().fingerprint
