"""ONNX's own backend tests through Flux: what passed before passes still, and nothing is wrong."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import backend_suite
import backend_table
import numpy as np
import onnx
import pytest
from backend_exclusions import EXCLUSIONS
from backend_suite import EXPANDED, VERDICTS, Case, Verdict, cases, saved
from flux_support import needs_julia
from onnx import TensorProto, helper

from onnxjl import UnsupportedOperator, UsageError, backend

VERDICT = saved()
VERSIONS = {k: v for k, v in json.loads(VERDICTS.read_text()).items() if k != "tests"}

in_julia = [needs_julia, pytest.mark.xdist_group("julia")]
same_onnx = pytest.mark.skipif(
    onnx.__version__ != VERSIONS["onnx"],
    reason=f"the verdicts are of the tests of onnx {VERSIONS['onnx']}",
)

QUICK = """
test_add_bcast test_attention_4d_causal test_averagepool_2d_pads_count_include_pad
test_basic_conv_with_padding test_batchnorm_example test_cast_FLOAT_to_FLOAT16
test_causal_conv_with_state_basic test_clip_example test_col2im test_concat_2d_axis_1
test_constant test_convtranspose_output_shape test_cumsum_2d_axis_0
test_depthtospace_crd_mode_example test_dequantizelinear_axis test_einsum_batch_matmul
test_expand_dim_changed test_gather_negative_indices test_gelu_tanh_1 test_gemm_all_attributes
test_gridsample_bilinear test_group_normalization_example test_gru_defaults test_if
test_instancenorm_example test_layer_normalization_4d_axis1 test_logsoftmax_axis_1 test_loop11
test_lstm_with_peepholes test_matmul_4d test_maxpool_2d_ceil test_onehot_with_axis test_reflect_pad
test_quantizelinear_axis test_reduce_l2_keep_dims_random test_resize_upsample_scales_linear
test_linear_attention_gated_delta_gqa test_optional_get_element_sequence
test_rms_normalization_2d_axis1 test_rotary_embedding test_scan9_sum test_scatternd_add
test_sequence_map_add_2_sequences test_sequence_model4 test_shape_start_1 test_slice_neg_steps
test_softmax_axis_0 test_split_equal_parts_1d_opset18 test_string_split_maxsplit
test_strnorm_model_monday_casesensintive_nochangecase test_swiglu test_tile test_top_k
test_transpose_default test_where_example
""".split()
"""A test or two of each family of operators."""


@functools.cache
def suite() -> dict[str, Case]:
    return {case.name: case for case in cases()}


@same_onnx
def test_every_test_has_its_verdict() -> None:
    assert suite().keys() == VERDICT.keys()


def test_what_does_not_pass_is_excluded_with_a_reason() -> None:
    failed = {name for name, verdict in VERDICT.items() if verdict.verdict != "pass"}
    covering = {name: [e for e in EXCLUSIONS if e.covers(name)] for name in VERDICT}
    assert {name for name, found in covering.items() if found} == failed
    assert all(len(found) <= 1 for found in covering.values())
    assert all(any(e.covers(name) for name in failed) for e in EXCLUSIONS)


def test_what_does_not_pass_is_unsupported_or_draws_other_numbers() -> None:
    wrong = {name for name, verdict in VERDICT.items() if verdict.verdict == "wrong"}
    assert wrong == {name for name in VERDICT if name.startswith("test_bernoulli")}
    others = {verdict.verdict for name, verdict in VERDICT.items() if name not in wrong}
    assert others == {"pass", "unsupported"}


def test_as_many_pass_as_were_asked_for() -> None:
    passed = {name for name, verdict in VERDICT.items() if verdict.verdict == "pass"}
    kinds = Counter(VERDICT[name].kind for name in passed)
    assert kinds["node"] >= 1440
    assert kinds["simple"] + kinds["pytorch-converted"] + kinds["pytorch-operator"] >= 120
    assert kinds["real"] == sum(v.kind == "real" for v in VERDICT.values())
    assert sum(EXPANDED in name for name in passed) >= 400
    exported = sum(VERDICT[name].exported == "pass" for name in passed)
    assert exported >= 0.9 * len(passed)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    """The verdicts of the quick tests, now."""
    folder = tmp_path_factory.mktemp("backend")
    (folder / "names").write_text("\n".join(QUICK))
    return run_suite(folder, "--from", str(folder / "names"))


def run_suite(folder: Path, *options: str) -> dict[str, Verdict]:
    """Run tests in a process of their own, in which Julia interprets."""
    out = folder / "verdicts.json"
    command = [sys.executable, backend_suite.__file__, *options, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert out.exists(), done.stderr
    return saved(out)


@same_onnx
@needs_julia
@pytest.mark.xdist_group("backend")
@pytest.mark.parametrize("name", QUICK)
def test_passes_and_is_exported(name: str, quick: dict[str, Verdict]) -> None:
    verdict = quick[name]
    assert (verdict.verdict, verdict.reason, verdict.exported) == ("pass", "", "pass")
    assert verdict.baked in ("", "pass")


@same_onnx
@pytest.mark.slow
@needs_julia
def test_whole_suite(tmp_path: Path) -> None:
    """Six minutes on two cores."""
    found = run_suite(tmp_path)
    for what in ("verdict", "exported", "baked"):
        lost = {
            name: getattr(found[name], what)
            for name, verdict in VERDICT.items()
            if getattr(verdict, what) == "pass" != getattr(found[name], what)
        }
        assert lost == {}


class TestInterface:
    pytestmark = in_julia

    def test_runs_a_node(self) -> None:
        node = helper.make_node("Gemm", ["a", "b"], ["y"], transB=1)
        a, b = np.eye(2, 3, dtype=np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
        (y,) = backend.run_node(node, [a, b])
        np.testing.assert_array_equal(y, a @ b.T)
        (y,) = backend.run_node(node, {"a": a, "b": b}, outputs_info=[(np.float32, (2, 2))])
        np.testing.assert_array_equal(y, a @ b.T)

    def test_runs_a_node_of_an_older_operator_set(self) -> None:
        node = helper.make_node("ReduceSum", ["x"], ["y"], axes=[0], keepdims=0)
        (y,) = backend.run_node(node, [np.ones((2, 3), np.float32)], opset_version=11)
        np.testing.assert_array_equal(y, [2, 2, 2])

    def test_runs_a_model_with_inputs_as_constants(self) -> None:
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "product",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2]),
                helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        x, w = np.array([[1, 2]], np.float32), np.array([[1, 2], [3, 4]], np.float32)
        np.testing.assert_array_equal(backend.run_model(model, [x, w])[0], x @ w)
        baked = backend.prepare(model, bake={"w": w})
        np.testing.assert_array_equal(baked.run(x)[0], x @ w)
        assert "Dense" in repr(baked.model)
        with pytest.raises(UsageError, match="expected 2 inputs, came 1"):
            backend.run_model(model, [x])

    def test_knows_one_device(self) -> None:
        assert backend.supports_device("CPU")
        assert not backend.supports_device("CUDA")
        node = helper.make_node("Relu", ["x"], ["y"])
        with pytest.raises(UsageError, match="'CUDA'"):
            backend.run_node(node, [np.zeros(1, np.float32)], "CUDA")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("test_image_decoder_decode_png_rgb", r"'output' \(ImageDecoder\): .*\(opset 20\)"),
            ("test_cast_FLOAT_to_INT4", r"'output' \(Cast\): .*element type 22 \(opset \d+\)"),
            ("test_training_dropout", r"'y' \(Dropout\): dropout that drops"),
            ("test_scan_sum", r"'y' \(Scan\): that of opset 8"),
            ("test_cast_BFLOAT16_to_FLOAT", "input 'input' holds bfloat16"),
        ],
    )
    @same_onnx
    def test_unsupported_says_what_and_where(self, name: str, message: str) -> None:
        with pytest.raises(UnsupportedOperator, match=message):
            backend.run_model(suite()[name].model, suite()[name].data()[0][0])


@same_onnx
class TestPage:
    pytestmark = in_julia

    def test_says_what_the_verdicts_say(self) -> None:
        """Where this fails, ``python tests/backend_table.py`` brings the page up to date."""
        page = backend_table.write(backend_table.known(), VERDICT, VERSIONS)
        assert backend_table.PAGE.read_text(encoding="utf-8") == page
