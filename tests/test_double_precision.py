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
    ],
)
def test_layers_in_double_are_those_of_onnxruntime(
    layer: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    model = network(f"g (float[N, 6, 4, 5] x) => (y) {{ y = {layer} }}", shapes)
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
