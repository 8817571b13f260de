"""Report: which weights `sparsify` set to zero, as data and as text of at most 100 columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxjl.errors import UsageError
from onnxjl.graph import Graph
from onnxjl.report import (
    WIDTH,
    Change,
    accuracy_change,
    changes_dict,
    changes_table,
    indent,
    quantity,
    reasons,
    table,
    wrap,
)
from onnxjl.save import Saved, input_files

if TYPE_CHECKING:
    from onnxjl.history import History

NOT_FASTER = (
    "onnxruntime multiplies by zero as by anything else: in it, the sparse network is as fast as "
    "the dense one"
)


@dataclass(frozen=True)
class LayerSparsity:
    """The weights of a layer.

    Parameters
    ----------
    layer : its name.
    tensor : the initializer.
    operator : ONNX operator.
    size : number of weights.
    zeros : how many of them are zero.
    """

    layer: str
    tensor: str
    operator: str
    size: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return self.zeros / self.size


@dataclass(frozen=True)
class SparsityReport:
    """What `sparsify` did.

    Parameters
    ----------
    source, target : the files.
    request : what was asked for.
    changes : figures before and after.
    layers : those that are sparse, in graph order.
    whole : (layer, why) of each layer that was left whole.
    check : outcome of the check: its status and one sentence.
    notes : anything else worth knowing.
    history : the epochs of fine-tuning, if there was any.
    """

    source: str
    target: str
    request: Mapping[str, Any]
    changes: tuple[Change, ...]
    layers: tuple[LayerSparsity, ...]
    whole: tuple[tuple[str, str], ...]
    check: tuple[str, str]
    notes: tuple[str, ...] = ()
    history: History | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON's types."""
        return {
            "input": self.source,
            "output": self.target,
            "request": dict(self.request),
            **changes_dict(self.changes),
            "layers": [
                {
                    "layer": e.layer,
                    "tensor": e.tensor,
                    "operator": e.operator,
                    "size": e.size,
                    "zeros": e.zeros,
                    "sparsity": e.sparsity,
                }
                for e in self.layers
            ],
            "whole": [{"layer": layer, "reason": reason} for layer, reason in self.whole],
            "check": {"status": self.check[0], "text": self.check[1]},
            "notes": list(self.notes),
            "finetuning": None if self.history is None else self.history.as_dict(),
        }

    def __str__(self) -> str:
        parts = [f"{self.source} → {self.target}"]
        parts.append(changes_table(self.changes))
        cells = [
            (
                e.tensor,
                e.operator,
                quantity(e.zeros, "parameters"),
                f"of {quantity(e.size, 'parameters')}",
                quantity(e.sparsity, "fraction"),
            )
            for e in self.layers
        ]
        parts.append("zeros\n" + indent(table(cells, align="llrlr")))
        if self.whole:
            parts.append("left whole\n" + indent(reasons(self.whole, width=WIDTH - 2)))
        if self.history is not None:
            parts.append("fine-tuning\n" + indent(str(self.history)))
        last = (f"check: {self.check[1]}", *self.notes)
        parts.append("\n".join(wrap(line) for line in last))
        return "\n\n".join(parts)


def make_report(
    sparse: Graph,
    saved: Saved,
    *,
    validate: Any = None,
    measure: bool = True,
    history: History | None = None,
) -> SparsityReport:
    """Count zeros, and measure what they cost.

    Parameters
    ----------
    sparse : a graph that `sparsify` made.
    saved : the file that it was saved in.
    validate : labelled data for the accuracy; as in `onnxjl.report.make_report`.
    measure : whether accuracy is measured at all.
    history : the epochs of fine-tuning, if there was any.

    Raises
    ------
    UsageError : `sparsify` didn't make the graph.
    """
    how = sparse.sparsified
    if how is None:
        raise UsageError("only a graph that sparsify made has something to report")
    layers = []
    before = 0
    for layer in how.layers:
        zeros = int((sparse.weight(layer.tensor) == 0).sum())
        before += int((how.dense.weight(layer.tensor) != 0).sum())
        layers.append(LayerSparsity(layer.name, layer.tensor, layer.operator, layer.size, zeros))
    after = sum(entry.size - entry.zeros for entry in layers)
    changes = [Change("nonzero weights", before, after, "parameters", "of the layers below")]
    size = sum(path.stat().st_size for path in input_files(how.dense) if path.is_file())
    if size:
        changes.append(Change("file", size, saved.size, "bytes"))
    notes = []
    if measure:
        measured = accuracy_change(how.dense, sparse, validate)
        if isinstance(measured, Change):
            changes.append(measured)
        elif measured:
            notes.append(measured)
    if empty := [entry.layer for entry in layers if entry.zeros == entry.size]:
        notes.append(
            f"{', '.join(empty)}: no weight is left; scope 'local' or 'erk' leaves some to each "
            "layer"
        )
    return SparsityReport(
        source=str(how.dense.path or "the model"),
        target=str(saved.path),
        request=how.request,
        changes=tuple(changes),
        layers=tuple(layers),
        whole=tuple((entry.layer, entry.reason) for entry in how.whole),
        check=(saved.check.status, saved.check.text),
        notes=(*notes, NOT_FASTER),
        history=history,
    )
