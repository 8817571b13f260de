"""Normalize: write a network one way, without a change in what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from onnxjl.errors import ModelError, OnnxjlError
from onnxjl.garbage import without_collection
from onnxjl.graph import Graph
from onnxjl.load import Source, clone, first_cause, load
from onnxjl.normalize.constants import lift_constants
from onnxjl.normalize.dead import drop_dead
from onnxjl.normalize.fold import fold
from onnxjl.normalize.gathers import simplify_gathers
from onnxjl.normalize.gemm import to_gemm
from onnxjl.normalize.inference_form import drop_identities, to_inference_form
from onnxjl.normalize.inline import inline_functions
from onnxjl.normalize.layer_norm import to_layer_norm
from onnxjl.normalize.names import name_nodes
from onnxjl.normalize.no_ops import drop_no_ops
from onnxjl.normalize.opset import lower_ir_version, raise_opset
from onnxjl.normalize.sequences import unpack_sequences
from onnxjl.normalize.signature import drop_default_inputs
from onnxjl.normalize.split import write_split_sizes
from onnxjl.normalize.transposes import cancel_transposes
from onnxjl.normalize.unfuse import unfuse
from onnxjl.normalize.unshare import unshare_constants
from onnxjl.normalize.untyped import drop_shapes_without_type

Pass = Callable[[ir.Model], ir.Model]

PASSES: tuple[Pass, ...] = (
    inline_functions,
    drop_default_inputs,
    lift_constants,
    to_inference_form,
    raise_opset,
    unfuse,
    lift_constants,
    drop_identities,
    drop_dead,
    fold,
    unpack_sequences,
    simplify_gathers,
    drop_no_ops,
    drop_dead,
    to_layer_norm,
    cancel_transposes,
    write_split_sizes,
    to_gemm,
    unshare_constants,
    drop_dead,
    drop_shapes_without_type,
    name_nodes,
    lower_ir_version,
)


@without_collection
def normalize(model: Source, *, opset: int | None = None, training: bool = False) -> Graph:
    """Write a network one way: the form that everything after this expects.

    Outputs stay the same, as do the names of inputs, outputs and surviving nodes and weights.
    Batch normalization is kept as it is.

    Parameters
    ----------
    model : whatever `load` takes; never changed.
    opset : raise the default operator set to this version. Otherwise it stays, if it is at
        least 13, or becomes 17.
    training : whether nodes in training form stay so, instead of doing what they do in inference.

    Returns
    -------
    Graph
        Normalized; a graph that already is comes back as it is unless `opset` differs.

    Raises
    ------
    ModelError
        See `load`, or its operators are too old to be converted.
    UsageError
        `opset` is lower than the model's, or unknown.
    """
    graph = load(model)
    if graph.normalized and opset in (None, graph.opset):
        return graph
    # What `load` has just made is ours; a graph that came may not change.
    given = isinstance(model, Graph)
    copy = clone(graph.model) if given else graph.model
    options: dict[Pass, Pass] = {
        raise_opset: partial(raise_opset, opset=opset),
        to_inference_form: partial(to_inference_form, training=training),
    }
    for step in PASSES:
        try:
            copy = options.get(step, step)(copy)
        except (OnnxjlError, Warning):
            raise
        except Exception as error:
            where = graph.path or "the model"
            raise ModelError(
                f"{where}: can't be normalized ({step.__name__}): {first_cause(error)}"
            ) from error
    return replace(graph, model=copy, normalized=True)
