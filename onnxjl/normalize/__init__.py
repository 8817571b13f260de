"""Normalize: write a network one way, without a change in what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxjl.equations import check_equations
from onnxjl.errors import ModelError, OnnxjlError
from onnxjl.garbage import without_collection
from onnxjl.graph import Graph
from onnxjl.load import Source, clone, first_cause, load
from onnxjl.normalize.constants import lift_constants
from onnxjl.normalize.dead import drop_dead
from onnxjl.normalize.fold import fold
from onnxjl.normalize.gemm import to_gemm
from onnxjl.normalize.inference_form import drop_identities, to_inference_form
from onnxjl.normalize.layer_norm import to_layer_norm
from onnxjl.normalize.names import name_nodes
from onnxjl.normalize.no_ops import drop_no_ops
from onnxjl.normalize.opset import lower_ir_version, raise_opset
from onnxjl.normalize.sequences import unpack_sequences
from onnxjl.normalize.signature import drop_default_inputs
from onnxjl.normalize.split import write_split_sizes
from onnxjl.normalize.transposes import cancel_transposes
from onnxjl.normalize.unshare import unshare_constants
from onnxjl.normalize.untyped import drop_shapes_without_type

# The largest networks that are known have some ten thousand.
_MOST_NODES = 1_000_000


def inline_functions(model: ir.Model) -> ir.Model:
    """Replace calls of the model's own functions by their bodies."""
    if not model.functions:
        return model
    _check_calls(model)
    for function in model.functions.values():
        # onnx_ir wants equal versions; ONNX's checker has made sure that these mean the same.
        function.opset_imports.update(
            {
                domain: v
                for domain, v in model.opset_imports.items()
                if domain in function.opset_imports
            }
        )
    return InlinePass()(model).model


def _check_calls(model: ir.Model) -> None:
    """Refuse functions that call each other so often that their bodies fill the memory."""
    sizes: dict[ir.OperatorIdentifier, int] = {}

    def size(graph: ir.Graph | ir.Function) -> int:
        return sum(sizes.get(node.op_identifier(), 1) for node in graph.all_nodes())

    # ONNX's checker has made sure that no function calls itself, and that chains are short.
    pending = dict(model.functions)
    while pending:
        ready = [
            key
            for key, function in pending.items()
            if not any(node.op_identifier() in pending for node in function.all_nodes())
        ]
        if not ready:
            raise ModelError(f"function '{next(iter(pending))[1]}' calls itself")
        for key in ready:
            sizes[key] = size(pending.pop(key))
    if (total := size(model.graph)) > _MOST_NODES:
        raise ModelError(
            f"written out, the model's functions make {total:,} nodes; {_MOST_NODES:,} at most "
            "are treated"
        )


Pass = Callable[[ir.Model], ir.Model]

PASSES: tuple[Pass, ...] = (
    inline_functions,
    check_equations,
    drop_default_inputs,
    lift_constants,
    to_inference_form,
    raise_opset,
    lift_constants,
    drop_identities,
    drop_dead,
    fold,
    unpack_sequences,
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
    # What `load` has just read is ours; what came in memory isn't.
    given = isinstance(model, Graph | ir.Model)
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
