"""The proof in float64 must tell rounding that a network amplifies from a fault."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from double_precision import run_in_double
from oracle import difference, masked_outputs, run
from proof import TOLERANCE, TOLERANCE_IN_DOUBLE, prove_in_double
from text_networks import inputs, network

from onnxjl import apply, normalize
from onnxjl.structure import Structure, analyze

AMPLIFYING = network(
    """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) {
        a = Conv (x, w)
        c = Conv (a, v)
        far = Add (c, distance)
        mean = ReduceMean (far, axes)
        y = Sub (far, mean)
    }""",
    {"w": (8, 3, 1, 1), "v": (2, 8, 1, 1)},
    {"distance": np.full((1, 2, 1, 1), 1e5, np.float32), "axes": [2, 3]},
)
"""Far from zero float32 has steps of 1/128, and the distance is taken away again."""


@pytest.fixture(scope="module")
def structure() -> Structure:
    return analyze(normalize(AMPLIFYING))


def keep(structure: Structure, *units: int) -> list[np.ndarray]:
    """Return what leaves these units of the first layer."""
    (group,) = structure.groups
    return [np.isin(np.arange(group.size), units)]


def test_rounding_that_a_network_amplifies_is_small_in_double(structure: Structure) -> None:
    feeds = inputs(AMPLIFYING)
    rounded = {name: array.astype(np.float64) for name, array in run(AMPLIFYING, feeds).items()}
    assert difference(rounded, run_in_double(AMPLIFYING, feeds)) > TOLERANCE
    assert prove_in_double(structure, keep(structure, 0, 2, 5), [feeds]) <= TOLERANCE_IN_DOUBLE


def test_wrong_plan_is_as_wrong_in_double(structure: Structure) -> None:
    feeds = inputs(AMPLIFYING)
    small = ir.to_proto(apply(structure.graph, structure.plan(keep(structure, 0, 2, 5))).model)
    other = structure.plan(keep(structure, 0, 2, 6)).kept
    source = ir.to_proto(structure.graph.model)
    assert difference(run_in_double(small, feeds), masked_outputs(source, other, feeds)) == np.inf
    masked = masked_outputs(source, other, feeds, run_in_double)
    assert difference(run_in_double(small, feeds), masked) > 0.1


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        ("ConvTranspose <group = 3, strides = [2, 2]> (x, w, b)", {"w": (6, 2, 3, 3), "b": (6,)}),
        ("ConvTranspose <strides = [2, 2], pads = [1, 0, 1, 0]> (x, w)", {"w": (6, 5, 3, 3)}),
        ("LRN <size = 3, alpha = 0.5> (x)", {}),
        ("LRN <size = 5, beta = 0.5, bias = 2.0> (x)", {}),
        ("GlobalLpPool (x)", {}),
        ("GlobalLpPool <p = 1> (x)", {}),
        ("MaxRoiPool <pooled_shape = [2, 3], spatial_scale = 0.9> (x, boxes)", {}),
        ("Mean (w, x, x)", {"w": (5,)}),
        ("MeanVarianceNormalization (x)", {}),
        ("MeanVarianceNormalization <axes = [1]> (x)", {}),
        ("com.microsoft.Gelu (x)", {}),
        ("com.microsoft.BiasGelu (x, w)", {"w": (5,)}),
        ("com.microsoft.FastGelu (x)", {}),
        ("com.microsoft.FastGelu (x, w)", {"w": (5,)}),
        ("com.microsoft.QuickGelu (x)", {}),
        ("com.microsoft.QuickGelu <alpha = 1.5> (x)", {}),
        ("com.microsoft.FusedMatMul <alpha = 0.5> (x, w)", {"w": (5, 5)}),
    ],
)
def test_layers_in_double_are_those_of_onnxruntime(
    layer: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    boxes = np.float32([[0, 0, 0, 4, 3], [1, 1, 0, 2, 2]])
    _compare(f"g (float[N, 6, 4, 5] x) => (float[A, B, C, D] y) {{ y = {layer} }}", shapes, boxes)


@pytest.mark.parametrize(
    ("layers", "shapes"),
    [
        (
            "y, , , z = com.microsoft.SkipLayerNormalization (x, x, g, t, u)",
            {"g": (6,), "t": (6,), "u": (6,)},
        ),
        (
            "y, , , z = com.microsoft.SkipLayerNormalization <epsilon = 0.1> (x, x, g)",
            {"g": (6,)},
        ),
        (
            "y, , , z = com.microsoft.SkipSimplifiedLayerNormalization (x, x, g, u)",
            {"g": (6,), "u": (6,)},
        ),
        (
            "h, y = GRU <hidden_size = 2, linear_before_reset = 1> (x, w, r) z = Neg (y)",
            {"w": (1, 6, 6), "r": (1, 6, 2)},
        ),
        (
            """q = QuantizeLinear (x, step, zero) y = DequantizeLinear (q, step, zero)
            i = Cast <to = 6> (x) z = Cast <to = 1> (i)""",
            {},
        ),
        (
            "y, , , h = com.microsoft.SkipLayerNormalization (x, x, g) z = Clip (y, , one)",
            {"g": (6,)},
        ),
        (
            """y = com.microsoft.Attention <num_heads = 2> (x, w, b)
            z = com.microsoft.Attention <num_heads = 2, scale = 0.7, unidirectional = 1,
                qkv_hidden_sizes = [4, 4, 10]> (x, v, c)""",
            {"w": (6, 18), "b": (18,), "v": (6, 18), "c": (18,)},
        ),
        (
            """y = com.microsoft.Attention <num_heads = 3, mask_filter_value = -5.0>
                (x, w, b, seen)
            z = com.microsoft.Attention <num_heads = 3> (x, w, b, lengths, , added)""",
            {"w": (6, 18), "b": (18,), "added": (1, 3, 2, 2)},
        ),
        (
            """q = MatMul (x, w) r = MatMul (x, v)
            y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, x, r, b)
            z = com.microsoft.MultiHeadAttention <num_heads = 2, scale = 0.3>
                (q, x, x, , , added)""",
            {"w": (6, 6), "v": (6, 8), "b": (20,), "added": (1, 1, 2, 2)},
        ),
        (
            """q = MatMul (x, w) k = MatMul (x, v) e = MatMul (x, u)
            y = com.microsoft.RotaryEmbedding <interleaved = 1> (q, places, angles, angles)
            z = com.microsoft.GroupQueryAttention
                <num_heads = 4, kv_num_heads = 2, do_rotary = 1, scale = 0.3>
                (q, k, e, , , few, two, angles, angles, , added)""",
            {"w": (6, 64), "v": (6, 32), "u": (6, 32), "added": (1, 4, 2, 2), "angles": (2, 8)},
        ),
        (
            """q = MatMul (x, w)
            y = com.microsoft.RotaryEmbedding (q, start, angles, angles)
            z = com.microsoft.GroupQueryAttention
                <num_heads = 4, kv_num_heads = 2, do_rotary = 1, rotary_interleaved = 1>
                (q, , , , , few, two, angles, angles)""",
            {"w": (6, 128), "angles": (3, 8)},
        ),
        (
            """y = Neg (x)
            z, n, s = com.microsoft.EmbedLayerNormalization
                <epsilon = 0.01> (numbers, segments, w, p, t, g, b)""",
            {"w": (5, 6), "p": (4, 6), "t": (2, 6), "g": (6,), "b": (6,)},
        ),
        (
            """y = Neg (x)
            n, l, z = com.microsoft.EmbedLayerNormalization (numbers, , w, p, , g, b, seen)""",
            {"w": (5, 6), "p": (4, 6), "g": (6,), "b": (6,)},
        ),
    ],
)
def test_layers_of_sequences_in_double_are_those_of_onnxruntime(
    layers: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    _compare(f"g (float[3, 2, 6] x) => (float[A, B, C] y, float[E, F, G] z) {{ {layers} }}", shapes)


def _compare(
    text: str, shapes: dict[str, tuple[int, ...]], boxes: np.ndarray | None = None
) -> None:
    steps = {"step": np.float32([0.1, 0.2]), "zero": np.uint8([3, 5]), "one": np.float32(1)}
    numbers = np.int32([[1, 0], [4, 2], [3, 3]])
    steps |= {"numbers": numbers, "segments": np.int32([[0, 1], [1, 1], [0, 0]])}
    steps |= {"places": np.int64([[0, 1], [1, 1], [0, 0]]), "start": np.int64([1])}
    steps |= {"few": np.int32([1, 1, 1]), "two": np.int32(2)}
    steps |= {"seen": np.int32([[1, 0], [1, 1], [0, 1]]), "lengths": np.int32([2, 1, 2])}
    model = network(text, shapes, steps if boxes is None else {"boxes": boxes})
    feeds = inputs(model)
    found = run_in_double(model, feeds)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float64)}
    single = {name: array.astype(np.float64) for name, array in run(model, feeds).items()}
    assert difference(found, single) <= 1e-5


def test_constants_inside_nodes_are_doubled_too() -> None:
    """A value that ConstantOfShape holds, of float32, would make everything float32 again."""
    model = network(
        """g (float[N, 2] x) => (y) {
            shape = Shape (x)
            one = ConstantOfShape <value = float[1] {0.1}> (shape)
            y = Add (x, one)
        }""",
        {},
    )
    feeds = inputs(model)
    expected = feeds["x"].astype(np.float64) + np.float64(np.float32(0.1))
    np.testing.assert_allclose(run_in_double(model, feeds)["y"], expected, rtol=1e-15)
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
