"""Recurrent cells: one hidden unit is a row of every gate, in both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxjl.structure import axes as ax
from onnxjl.structure.rules import edit, rule

if TYPE_CHECKING:
    from onnxjl.structure.edits import Editor
    from onnxjl.structure.interpreter import Interpreter

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@rule("RNN", "GRU", "LSTM")
def recurrent(run: Interpreter, node: ir.Node) -> None:
    """Unite a hidden unit's rows in every gate, the columns of R, states and outputs."""
    x, w, r = (run.of(v) for v in node.inputs[:3])
    value = node.inputs[0]
    assert value is not None
    gates = GATES[node.op_type]
    directions, hidden = ax.size(w[0]), ax.size(r[2])
    for axis in (w[0], r[0], x[0], x[1]):
        run.fix(axis, f"time, batch or direction of {node.op_type} '{node.name}'")
    inner = run.unite(x[2], w[2], node)
    units = r[2]

    def tie(axis: ax.Axis, copies: int) -> None:
        if hidden == 1:
            # The one unit has to stay, and so have its gates.
            run.fix(axis, f"the only hidden unit of {node.op_type} '{node.name}'")
            return
        vector, one = run.vector(axis), run.vector(units)
        if vector is None or one is None:
            run.fix(axis, f"hidden units of {node.op_type} '{node.name}'")
            run.fix(units, f"hidden units of {node.op_type} '{node.name}'")
        else:
            run.labels.unite(np.asarray(vector).reshape(copies, hidden), one)

    tie(w[1], gates)
    tie(r[1], gates)
    for i, copies in ((3, 2 * gates), (7, 3)):
        if len(node.inputs) > i and node.inputs[i] is not None:
            parameter = run.of(node.inputs[i])
            run.fix(parameter[0], f"directions of {node.op_type} '{node.name}'")
            tie(parameter[1], copies)
    for i in (5, 6):
        if len(node.inputs) > i and node.inputs[i] is not None:
            state = run.of(node.inputs[i])
            for axis in state[:2]:
                run.fix(axis, f"batch or direction of {node.op_type} '{node.name}'")
            units = run.unite(units, state[2], node)
    for output in node.outputs:
        if output.name:
            sizes = run.sizes(output)
            run.set(output, [*(ax.plain(d) for d in sizes[:-1]), units])
    steps = ax.size(x[0]) * ax.size(x[1]) * directions * gates
    run.product(node, steps, (units, inner), [(value, 2)])
    run.product(node, steps, (units, units), [])


@edit("RNN", "GRU", "LSTM")
def hidden_size(editor: Editor, node: ir.Node) -> None:
    """Set `hidden_size` to the units that survive."""
    recurrence = node.inputs[2]
    assert recurrence is not None
    kept = editor.mask(recurrence, 2)
    if kept is not None:
        editor.set_attribute(node, "hidden_size", int(kept.sum()))
