"""Isomorphism: which groups couple the same operators in the same way, whatever their sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import onnx_ir as ir

from onnxjl.structure.groups import Structure

Place = tuple[bool, int, int]
"""Where a node has a group's units: whether in an output, which value of the node, which axis."""


# Operators that don't tell their inputs apart, but for where a concatenation puts them.
_SYMMETRIC = frozenset("Add Concat Max Mean Min Mul Sum".split())


def topologies(structure: Structure) -> list[int]:
    """Return for each group the number of its class: equal ones have the same topology.

    A group's topology is the graph of the nodes that its units go through: operators, the inputs,
    outputs and axes by which each carries the units, and which follows which. Sizes, attributes and
    names don't matter. Graphs are told apart by refining colours.

    Source: the classes of Fang et al. 2024, *Isomorphic Pruning for Vision Models*, section 3;
    the colours of Weisfeiler and Leman 1968, *The reduction of a graph to canonical form*.

    Parameters
    ----------
    structure : whose groups are compared.

    Returns
    -------
    A number for each group, from 0, in the order in which the classes occur.
    """
    places = _places(structure)
    interned: dict[Hashable, int] = {}
    classes: dict[Hashable, int] = {}
    result = []
    for number, group in enumerate(structure.groups):
        signature = (group.kind, _signature(places[number], interned))
        result.append(classes.setdefault(signature, len(classes)))
    return result


def _places(structure: Structure) -> Sequence[Mapping[ir.Node, list[Place]]]:
    """For each group, where its nodes have its units."""
    found: list[dict[ir.Node, list[Place]]] = [defaultdict(list) for _ in structure.groups]
    on: dict[str, list[tuple[int, int]]] = {}
    for node in structure.graph.model.graph:
        for output, values in ((False, node.inputs), (True, node.outputs)):
            for slot, value in enumerate(values):
                if value is None or not value.name:
                    continue
                if value.name not in on:
                    on[value.name] = structure.groups_on(value.name)
                for group, axis in on[value.name]:
                    found[group][node].append((output, _slot(node, slot, output), axis))
    return found


def _slot(node: ir.Node, slot: int, output: bool = False) -> int:
    """The number of an input or output, if it makes a difference."""
    return 0 if node.op_type in _SYMMETRIC and not output else slot


def _signature(places: Mapping[ir.Node, list[Place]], interned: dict[Hashable, int]) -> Hashable:
    """What is equal for groups of the same topology: the colours of the nodes, once they settle."""

    def number(colour: Hashable) -> int:
        return interned.setdefault(colour, len(interned))

    def carry(node: ir.Node) -> set[int]:
        """The outputs of a node that carry the units, by their number."""
        return {slot for output, slot, _ in places[node] if output}

    before = {
        node: [
            (_slot(node, slot), source)
            for slot, value in enumerate(node.inputs)
            if value is not None
            and (source := value.producer()) is not None
            and source in places
            and value.index() in carry(source)
        ]
        for node in places
    }
    after: dict[ir.Node, list[tuple[int, ir.Node]]] = defaultdict(list)
    for node, sources in before.items():
        for slot, source in sources:
            after[source].append((slot, node))
    colours = {
        node: number((node.domain, node.op_type, tuple(sorted(where))))
        for node, where in places.items()
    }
    rounds = 0
    while True:
        refined = {
            node: number(
                (
                    colours[node],
                    tuple(sorted((slot, colours[source]) for slot, source in before[node])),
                    tuple(sorted((slot, colours[reader]) for slot, reader in after[node])),
                )
            )
            for node in places
        }
        rounds += 1
        settled = len(set(refined.values())) == len(set(colours.values()))
        colours = refined
        if settled:
            return rounds, tuple(sorted(colours.values()))
