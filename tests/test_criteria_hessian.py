"""The criterion of the Hessian's trace: against its closed form for a network of eight weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from flux_support import needs_julia
from text_networks import network

import onnxjl
from onnxjl import criteria
from onnxjl.criteria.gradient import PROBES, relative_trace
from onnxjl.criteria.weights import Scoring
from onnxjl.errors import UsageError
from onnxjl.structure import analyze

NETWORK = network(
    """g (float[N, 2] x) => (float[N, 2] y) {
        h = Gemm (x, w1)
        r = Relu (h)
        y = Gemm (r, w2)
    }""",
    {"w1": (2, 2), "w2": (2, 2)},
)
GRAPH = onnxjl.normalize(NETWORK)
GROUPS = analyze(GRAPH).groups
RANDOM = np.random.default_rng(5)
X = RANDOM.standard_normal((70, 2)).astype(np.float32)
TARGET = RANDOM.integers(0, 2, 70)
NAMES = ("w1", "w2")


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


class ByHand:
    """The network and its gradients in NumPy, float64: what the criterion asks of a Flux model."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.graph = GRAPH
        self.weights = {name: np.asarray(w, np.float64) for name, w in weights.items()}

    def gradient(
        self, loss: str, feeds: Mapping[str, np.ndarray], target: np.ndarray
    ) -> tuple[float, dict[str, np.ndarray]]:
        assert loss == "cross-entropy"
        x, w1, w2 = feeds["x"].astype(np.float64), self.weights["w1"], self.weights["w2"]
        h = x @ w1
        r = np.maximum(h, 0)
        p = softmax(r @ w2)
        delta = (p - np.eye(2)[target]) / len(x)
        back = delta @ w2.T * (h > 0)
        value = -np.log(p[np.arange(len(x)), target]).mean()
        return float(value), {"w1": x.T @ back, "w2": r.T @ delta}

    def moved(self, direction: Mapping[str, np.ndarray], step: float) -> ByHand:
        return ByHand({n: w + step * direction[n] for n, w in self.weights.items()})


MODEL = ByHand({name: GRAPH.weight(name) for name in NAMES})


def all_vectors() -> Iterator[dict[str, np.ndarray]]:
    """Every vector of ±1 but for its sign, which changes nothing."""
    for signs in itertools.product([-1.0, 1.0], repeat=7):
        v = np.array([1.0, *signs])
        yield {"w1": v[:4].reshape(2, 2), "w2": v[4:].reshape(2, 2)}


def closed_form() -> dict[str, np.ndarray]:
    """The diagonal of the Hessian matrix: for a ReLU's weights the curvature is the softmax's."""
    x, w1, w2 = X.astype(np.float64), MODEL.weights["w1"], MODEL.weights["w2"]
    h = x @ w1
    p = softmax(np.maximum(h, 0) @ w2)
    curvature = p[:, :, None] * np.eye(2) - p[:, :, None] * p[:, None, :]
    along = np.einsum("jk,nkl,jl->nj", w2, curvature, w2)
    return {
        "w1": np.einsum("ni,nj,nj->ij", x**2, h > 0, along) / len(x),
        "w2": np.einsum("nj,nk->jk", np.maximum(h, 0) ** 2, p * (1 - p)) / len(x),
    }


def expected(diagonal: Mapping[str, np.ndarray]) -> np.ndarray:
    """``tr(H_uu)/(2p)·Σw²`` of the two hidden units in both weights, p = 2."""
    w1, w2 = MODEL.weights["w1"], MODEL.weights["w2"]
    return np.array(
        [
            diagonal["w1"].sum(axis=0) / 4 * (w1**2).sum(axis=0),
            diagonal["w2"].sum(axis=1) / 4 * (w2**2).sum(axis=1),
        ]
    )


def scoring(model: object) -> Scoring:
    return Scoring(GRAPH, GROUPS, aggregation="mean", data=(X, TARGET), seed=0, model=model)  # type: ignore[arg-type]


def exact_rows(model: object) -> np.ndarray:
    rows = relative_trace(scoring(model), list(all_vectors()))
    return np.array([rows[0, 0], rows[0, 1]])


def test_closed_form_with_every_vector() -> None:
    """Central differences of float64 gradients hold six digits; no ReLU bends at any sample."""
    (group,) = GROUPS
    assert [(m.tensor, m.axis) for m in group.members] == [("w1", 1), ("w2", 0)]
    np.testing.assert_allclose(exact_rows(MODEL), expected(closed_form()), rtol=1e-4)


def test_probes_are_within_their_error() -> None:
    """Five standard errors, where each vector's estimate is known from the matrix itself."""
    steps = np.eye(8) * 1e-6
    columns = []
    for step in steps:
        parts = {"w1": step[:4].reshape(2, 2), "w2": step[4:].reshape(2, 2)}
        ahead, behind = (
            MODEL.moved(parts, sign).gradient("cross-entropy", {"x": X}, TARGET)[1]
            for sign in (1.0, -1.0)
        )
        columns.append(np.concatenate([(ahead[n] - behind[n]).ravel() / 2e-6 for n in NAMES]))
    hessian = np.array(columns).T
    estimates = []
    for v in all_vectors():
        flat = np.concatenate([v[name].ravel() for name in NAMES])
        each = flat * (hessian @ flat)
        estimates.append(expected({"w1": each[:4].reshape(2, 2), "w2": each[4:].reshape(2, 2)}))
    exact = expected(closed_form())
    np.testing.assert_allclose(np.mean(estimates, axis=0), exact, rtol=1e-4)
    error = np.std(estimates, axis=0).mean(axis=0) / np.sqrt(PROBES)
    scores = [
        criteria.score(
            GRAPH,
            GROUPS,
            "hessian-trace",
            data=(X, TARGET),
            model=MODEL,  # type: ignore[arg-type]
            normalization="none",
            seed=seed,
        )[0]
        for seed in (0, 0, 1)
    ]
    assert (np.abs(scores - exact.mean(axis=0)) <= 5 * error).all()
    np.testing.assert_array_equal(scores[0], scores[1])
    assert (scores[0] != scores[2]).any()


def test_gradients_are_needed() -> None:
    with pytest.raises(UsageError, match="'hessian-trace' needs gradients"):
        onnxjl.prune(NETWORK, amount=0.5, criterion="hessian-trace", data=(X, TARGET))


@needs_julia
@pytest.mark.xdist_group("julia")
def test_closed_form_in_julia() -> None:
    np.testing.assert_allclose(
        exact_rows(onnxjl.to_flux(NETWORK)), expected(closed_form()), rtol=1e-4
    )
    small = onnxjl.prune(
        onnxjl.to_flux(NETWORK), amount=0.5, criterion="hessian-trace", data=(X, TARGET)
    )
    assert small.graph.weight("w1").shape == (2, 1)
