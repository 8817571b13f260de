"""Drop shapes that a file has no place for."""

from __future__ import annotations

import onnx_ir as ir


def drop_shapes_without_type(model: ir.Model) -> ir.Model:
    """Drop shapes of values whose element type isn't known: files hold a shape in the type only.

    Such values come after operators that ONNX doesn't know.
    """
    for node in model.graph:
        for value in node.outputs:
            if value.type is None:
                value.shape = None
    return model
