"""Structure analysis: which slices of which weights can go together."""

from onnxjl.structure.blocks import Block, Blocks, blocks
from onnxjl.structure.groups import (
    Activation,
    Granularity,
    Group,
    Groups,
    Member,
    Structure,
    Whole,
    analyze,
    groups,
)
from onnxjl.structure.layers import LayerCost, layer_costs
from onnxjl.structure.names import layer_names, node_name

__all__ = [
    "Activation",
    "Block",
    "Blocks",
    "Granularity",
    "Group",
    "Groups",
    "LayerCost",
    "Member",
    "Structure",
    "Whole",
    "analyze",
    "blocks",
    "groups",
    "layer_costs",
    "layer_names",
    "node_name",
]
