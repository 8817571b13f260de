"""Write splits into a sequence, whose members are then taken by number, as `Split`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxjl.normalize.fold import fold
from onnxjl.normalize.surgery import (
    Names,
    add_initializer,
    constant,
    is_onnx,
    remove,
    take_place,
)


def unpack_sequences(model: ir.Model) -> ir.Model:
    """Turn `SplitToSequence` of known sizes and its `SequenceAt` into `Split`.

    Shapes are inferred again then, since sequences hide them, until no further one is known.
    """
    while _unpack(model.graph):
        fold(model)
    return model


def _sizes(node: ir.Node) -> np.ndarray | None:
    """The sizes of the parts, from the node's second input: those, or the size of all but one."""
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None or given.ndim:
        return given
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    whole = None if shape is None else shape[node.attributes.get_int("axis", 0)]
    if not isinstance(whole, int):
        return None
    part = int(given)
    return np.array([min(part, whole - start) for start in range(0, whole, part)])


def _unpack(graph: ir.Graph) -> bool:
    changed = False
    names = Names(graph)
    for node in list(graph):
        if not is_onnx(node, "SplitToSequence"):
            continue
        sizes = _sizes(node)
        sequence = node.outputs[0]
        if sizes is None or sequence.is_graph_output():
            continue
        members: dict[ir.Node, int] = {}
        for use in sequence.uses():
            index = constant(use.node.inputs[1]) if is_onnx(use.node, "SequenceAt") else None
            if index is None or use.node.graph is not graph:
                break
            members[use.node] = int(index.reshape(-1)[0]) % len(sizes)
        if len(members) < len(sequence.uses()):
            continue
        split_sizes = names.fresh(f"{sequence.name}_sizes")
        split = ir.Node(
            "",
            "Split",
            [node.inputs[0], add_initializer(graph, split_sizes, sizes.astype(np.int64))],
            [ir.AttrInt64("axis", node.attributes.get_int("axis", 0))],
            name=node.name,
            num_outputs=len(sizes),
        )
        graph.insert_before(node, split)
        for number, output in enumerate(split.outputs):
            output.name = names.fresh(f"{sequence.name}_{number}")
        taken: set[int] = set()
        for user, number in members.items():
            if number in taken:
                user.outputs[0].replace_all_uses_with(split.outputs[number])
            else:
                take_place(user.outputs[0], split.outputs[number])
                taken.add(number)
            remove([user])
        remove([node])
        changed = True
    return changed
