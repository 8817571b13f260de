"""Operators that draw random numbers, in Julia: how they are distributed, and what else stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from flux_support import needs_julia

import onnxjl

pytestmark = [needs_julia, pytest.mark.xdist_group("julia")]

DRAWN = """
<ir_version: 8, opset_import: ["": 17]>
agraph (float[rows,4] x, float[rows,4] p) => (
    float[300,200] normal, float[300,200] uniform, double[rows,4] like, float[rows,4] range,
    int64[rows,4] flipped, int32[rows,9] classes
)
{
    normal = RandomNormal <shape = [300, 200], mean = 2.0, scale = 0.5> ()
    uniform = RandomUniform <shape = [300, 200], low = -3.0, high = 1.0> ()
    like = RandomNormalLike <dtype = 11> (x)
    range = RandomUniformLike <high = 2.0> (x)
    flipped = Bernoulli <dtype = 7> (p)
    logs = Log (p)
    classes = Multinomial <sample_size = 9> (logs)
}
"""

NOISY = """
<ir_version: 8, opset_import: ["": 17]>
agraph (float[rows,4] x) => (float[rows,2] y)
<float[4,3] w = {0.1, -0.4, 0.3, 0.7, 0.2, 0.5, -0.6, 0.1, 0.9, -0.2, 0.4, 0.3},
 float[3,2] v = {0.5, -0.3, 0.2, 0.8, -0.7, 0.4}>
{
    a = MatMul (x, w)
    noise = RandomNormalLike (a)
    b = Add (a, noise)
    y = MatMul (b, v)
}
"""


def both(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the outputs in Julia and in onnxruntime."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return [
        onnxjl.to_flux(model)(feeds),
        dict(zip(names, session.run(names, feeds), strict=True)),
    ]


def test_numbers_are_distributed_as_onnxruntimes() -> None:
    p = np.tile(np.float32([0.1, 0.2, 0.3, 0.4]), (20_000, 1))
    model = onnx.parser.parse_model(DRAWN)
    ours, theirs = both(model, {"x": np.zeros_like(p), "p": p})
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape
        assert ours[name].dtype == expected.dtype
        if name == "flipped":
            continue  # onnxruntime runs ONNX's function, which contradicts ONNX's text: 1 − p
        assert ours[name].mean() == pytest.approx(expected.mean(), abs=0.03)
        assert ours[name].std() == pytest.approx(expected.std(), abs=0.03)
    assert ours["flipped"].mean(0) == pytest.approx(p[0], abs=0.02)
    for counted in (ours["classes"], theirs["classes"]):
        assert np.bincount(counted.reshape(-1)) / counted.size == pytest.approx(p[0], abs=0.01)


def test_a_seed_gives_the_same_numbers_each_time() -> None:
    model = onnx.parser.parse_model(NOISY)
    x = np.ones((2, 4), np.float32)
    noisy = onnxjl.to_flux(model)
    assert not np.array_equal(noisy(x), noisy(x))
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("seed", 3.0))
    seeded = onnxjl.to_flux(model)
    assert np.array_equal(seeded(x), seeded(x))


def test_gradients_pass_noise_by(tmp_path: Path) -> None:
    model = onnxjl.to_flux(onnx.parser.parse_model(NOISY))
    x = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    target = np.random.default_rng(1).standard_normal((200, 2)).astype(np.float32)
    onnxjl.save(model, tmp_path / "before.onnx")
    model.finetune((x, target), loss="mse", epochs=2)
    onnxjl.save(model, tmp_path / "after.onnx")
    before, after = (onnxjl.load(tmp_path / f"{name}.onnx") for name in ("before", "after"))
    for name in ("w", "v"):
        assert not np.array_equal(after.weight(name), before.weight(name))


def test_a_pruned_network_that_draws_numbers_is_saved(tmp_path: Path) -> None:
    graph = onnx.parser.parse_model(
        NOISY.replace("y = MatMul (b, v)", "c = MatMul (b, v) y = MatMul (c, u)").replace(
            "<float[4,3] w", "<float[2,2] u = {0.5, -0.3, 0.2, 0.8}, float[4,3] w"
        )
    )
    model = onnxjl.to_flux(graph)
    small = onnxjl.prune(model, amount=0.5, criterion="l2")
    saved = onnxjl.save(small, tmp_path / "small.onnx")
    assert saved.check.status == "runs"
    assert "gives other outputs each time" in saved.check.text
