"""Sparsity: single weights set to zero, freely or in N:M patterns, and held there by masks.

To add a criterion for single weights, write a file beside these with a function decorated with
`register`, and import it here.
"""

from onnxjl.sparsity import gradient, magnitude, sparsegpt, wanda
from onnxjl.sparsity.registry import CRITERIA, Criterion, register
from onnxjl.sparsity.sparsify import Sparsified, mask, sparsify

__all__ = [
    "CRITERIA",
    "Criterion",
    "Sparsified",
    "gradient",
    "magnitude",
    "mask",
    "register",
    "sparsegpt",
    "sparsify",
    "wanda",
]
