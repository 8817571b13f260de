"""onnxjl: prune trained ONNX networks, with NumPy or as Flux layers in Julia.

Importing this package starts neither Julia nor onnxruntime.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxjl.before_after import report
    from onnxjl.check import compare
    from onnxjl.depth import remove_blocks
    from onnxjl.errors import (
        BudgetError,
        CheckError,
        DataError,
        ExternalDataError,
        JuliaError,
        ModelError,
        OnnxjlError,
        OutputError,
        PlanError,
        TrainingError,
        UnsupportedOperator,
        UsageError,
        WeightError,
    )
    from onnxjl.evaluate import accuracy
    from onnxjl.experiment import Experiment, Result
    from onnxjl.flux import FluxModel, from_flux, to_flux
    from onnxjl.graph import Graph
    from onnxjl.load import load
    from onnxjl.normalize import normalize
    from onnxjl.plan import Plan, apply
    from onnxjl.prune import keep, prune
    from onnxjl.recovery import recover
    from onnxjl.save import save
    from onnxjl.sparsity.sparsify import mask, sparsify
    from onnxjl.structure import Block, Blocks, Group, Groups
    from onnxjl.structure.blocks import blocks
    from onnxjl.structure.groups import groups
    from onnxjl.sweep import Sensitivity, Sweep, sensitivity, sweep

__version__ = "0.1.0"

# Public name -> the module that has it, imported when the name is first used.
_PUBLIC = {
    "Block": "structure",
    "Blocks": "structure",
    "BudgetError": "errors",
    "CheckError": "errors",
    "DataError": "errors",
    "Experiment": "experiment",
    "ExternalDataError": "errors",
    "FluxModel": "flux",
    "Graph": "graph",
    "Group": "structure",
    "Groups": "structure",
    "JuliaError": "errors",
    "ModelError": "errors",
    "OnnxjlError": "errors",
    "OutputError": "errors",
    "Plan": "plan",
    "PlanError": "errors",
    "Result": "experiment",
    "Sensitivity": "sweep",
    "Sweep": "sweep",
    "TrainingError": "errors",
    "UnsupportedOperator": "errors",
    "UsageError": "errors",
    "WeightError": "errors",
    "accuracy": "evaluate",
    "apply": "plan",
    "blocks": "structure",
    "compare": "check",
    "from_flux": "flux",
    "groups": "structure",
    "keep": "prune",
    "load": "load",
    "mask": "sparsity",
    "normalize": "normalize",
    "prune": "prune",
    "recover": "recovery",
    "remove_blocks": "depth",
    "report": "before_after",
    "save": "save",
    "sensitivity": "sweep",
    "sparsify": "sparsity",
    "sweep": "sweep",
    "to_flux": "flux",
}

__all__ = [
    "Block",
    "Blocks",
    "BudgetError",
    "CheckError",
    "DataError",
    "Experiment",
    "ExternalDataError",
    "FluxModel",
    "Graph",
    "Group",
    "Groups",
    "JuliaError",
    "ModelError",
    "OnnxjlError",
    "OutputError",
    "Plan",
    "PlanError",
    "Result",
    "Sensitivity",
    "Sweep",
    "TrainingError",
    "UnsupportedOperator",
    "UsageError",
    "WeightError",
    "__version__",
    "accuracy",
    "apply",
    "blocks",
    "compare",
    "from_flux",
    "groups",
    "keep",
    "load",
    "mask",
    "normalize",
    "prune",
    "recover",
    "remove_blocks",
    "report",
    "save",
    "sensitivity",
    "sparsify",
    "sweep",
    "to_flux",
]


class _Package(ModuleType):
    """The package, in which importing ``onnxjl.load`` doesn't hide the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'onnxjl' has no attribute '{name}'")
    value = getattr(import_module(f"onnxjl.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
