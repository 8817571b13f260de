"""ONNX's backend tests that the Flux engine doesn't pass, each with the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Exclusion:
    """Tests that don't pass.

    Parameters
    ----------
    pattern : a regular expression for their whole names.
    reason : why they don't.
    """

    pattern: str
    reason: str

    def covers(self, name: str) -> bool:
        """Return whether a test is one of these."""
        return re.fullmatch(self.pattern, name) is not None


EXCLUSIONS = (
    Exclusion(
        r"test_.*(_bf16|bfloat16|BFLOAT16).*",
        "bfloat16: Julia has no such type without a package",
    ),
    Exclusion(
        r"test_.*(FLOAT8|FLOAT4|_e4m3fn|_e5m2|float4e2m1).*",
        "floats of 8 or 4 bits: Julia has no such types",
    ),
    Exclusion(
        r"test_.*([^A-Z]U?INT[24](?!\d)|_u?int[24](?!\d)).*",
        "integers of 4 or 2 bits: Julia has no such types",
    ),
    Exclusion(
        r"test_(adagrad|adam|momentum|nesterov_momentum|gradient_of).*",
        "optimizers and gradients as ONNX operators (preview): Flux has its own",
    ),
    Exclusion(
        r"test_training_dropout(_default)?(_mask)?",
        "random numbers: no two engines drop the same",
    ),
    Exclusion(r"test_bernoulli.*", "random numbers: no two engines draw the same"),
    Exclusion(
        r"test_ai_onnx_ml_tree_ensemble.*",
        "ai.onnx.ml: trees aren't neural networks",
    ),
    Exclusion(r"test_image_decoder.*", "files of images: not a network's arithmetic"),
    Exclusion(r"test_flexattention(?!.*_expanded).*", "ai.onnx.preview: may change any day"),
    Exclusion(r"test_scan_sum", "Scan of operator set 8, on batches, as no later one is"),
)
