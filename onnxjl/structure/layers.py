"""What each layer costs."""

from __future__ import annotations

from dataclasses import dataclass

from onnxjl.graph import Graph
from onnxjl.structure import axes as ax
from onnxjl.structure.groups import Structure, analyze, layers, output_axis
from onnxjl.structure.names import node_name


@dataclass(frozen=True)
class LayerCost:
    """A layer with weights: its size and what it costs.

    Parameters
    ----------
    layer : its name.
    node : its node's name.
    operator : ONNX operator.
    outputs : size of the axis that carries its units: channels, features, hidden units.
    macs : multiply–accumulates for one sample.
    params : elements of its floating-point weights; shared ones count at their first user.
    """

    layer: str
    node: str
    operator: str
    outputs: int
    macs: int
    params: int

    @property
    def width(self) -> str:
        """Operator and units, in words."""
        return f"{self.operator} {self.outputs}"


def layer_costs(model: Graph | Structure) -> tuple[LayerCost, ...]:
    """Return the costs of every layer with weights, in graph order.

    Parameters
    ----------
    model : a graph (normalized if it isn't), or its structure where that is at hand.
    """
    structure = model if isinstance(model, Structure) else analyze(model)
    macs: dict[str, float] = {}
    for term, cost in zip(structure.terms, structure.macs.each(structure.sizes), strict=True):
        macs[term] = macs.get(term, 0.0) + float(cost)
    counted: set[str] = set()
    result = []
    for node in layers(structure.graph):
        params = 0
        for value in node.inputs:
            if value is None or not value.is_initializer() or value.const_value is None:
                continue
            if value.const_value.dtype.is_floating_point() and value.name not in counted:
                counted.add(value.name or "")
                params += int(value.const_value.size)
        result.append(
            LayerCost(
                layer=structure.names[node],
                node=node_name(node),
                operator=node.op_type,
                outputs=ax.size(output_axis(structure.run, node)),
                macs=round(macs.get(node_name(node), 0.0)),
                params=params,
            )
        )
    return tuple(result)
