"""Graph: a thin view over an ONNX model, whose weights stay where they are until written."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxjl.errors import UsageError
from onnxjl.extras import need
from onnxjl.masks import masked_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from onnxjl.plan import Plan
    from onnxjl.save import Saved
    from onnxjl.sparsity.sparsify import Sparsified


@dataclass(frozen=True, eq=False)
class Graph:
    """An ONNX network, and how it came to be.

    Parameters
    ----------
    model : the network as onnx_ir's in-memory form. Treated as read-only by every function.
    path : the file it was loaded from, if any.
    normalized : whether `normalize` made it (or pruning did, from such a graph).
    shapes : concrete shapes for graph inputs whose declared shape is symbolic, by input name.
    plan : the edits that led from `source` to this graph, if it was pruned.
    source : the normalized graph that `plan` refers to, if it was pruned.
    sparsified : how it came to be sparse, if `sparsify` or `mask` made it.
    status : of the file when it was loaded, as `os.stat` gives it.
    analyses : what `onnxjl.structure.analyze` has found in it, which is not to be found again.
    """

    model: ir.Model
    path: Path | None = None
    normalized: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    plan: Plan | None = None
    source: Graph | None = None
    sparsified: Sparsified | None = None
    status: os.stat_result | None = field(default=None, repr=False)
    analyses: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __copy__(self) -> Graph:
        """Return another graph of the same network."""
        return replace(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a deep copy, or another process, gets: the network as a file would hold it.

        onnx_ir's nodes refer to one another, which `pickle` and `copy` follow until they give up.
        """
        from onnxjl.serialize import write

        file = io.BytesIO()
        write(self, file)
        names = list(self.model.graph.initializers)
        return {**vars(self), "model": (file.getvalue(), names), "analyses": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what another graph gave, with its weights in memory and in their order."""
        from onnxjl.load import load

        content, names = state["model"]
        model = load(content).model
        values = [model.graph.initializers[name] for name in names]
        model.graph.initializers.clear()
        for value in values:
            model.graph.initializers.add(value)
        vars(self).update(state, model=model, status=None)

    def save(self, path: str | os.PathLike[str], **options: Any) -> Saved:
        """Write the network to a file, checked; see `onnxjl.save`."""
        from onnxjl.save import save

        return save(self, path, **options)

    def plot(self, before: Graph | None = None) -> Figure:
        """Draw how wide each layer was before pruning, and how wide it is.

        Parameters
        ----------
        before : what to draw it beside; by default the network that it was pruned from.

        Returns
        -------
        A figure of Matplotlib's, which a notebook shows and ``savefig`` writes.

        Raises
        ------
        UsageError : the network wasn't pruned and there is no other, or Matplotlib is missing.
        """
        need("experiments", "matplotlib")
        from onnxjl.pairing import pair_layers, width_bars
        from onnxjl.pictures import widths_figure
        from onnxjl.structure import layer_costs

        before = before or self.source
        if before is None:
            raise UsageError(
                "only a pruned network knows how wide its layers were; give plot() the network to "
                "draw it beside"
            )
        return widths_figure(width_bars(pair_layers(layer_costs(before), layer_costs(self))))

    @cached_property
    def macs(self) -> int:
        """Multiply–accumulates for one sample, as budgets count them.

        Where inputs leave sizes open, they are those of `shapes`, or else assumed as in pruning.
        """
        from onnxjl.structure import analyze

        structure = analyze(self)
        return round(structure.macs.total(structure.sizes))

    @property
    def params(self) -> int:
        """Parameters: elements of floating-point weights."""
        tensors = [value.const_value for value in self.model.graph.initializers.values()]
        return sum(t.size for t in tensors if t is not None and t.dtype in FLOATING)

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Weights that are held sparse: initializer name -> bool of its shape, false where zero.

        They are those of `sparsify` and `mask`, here or in the network that the file was saved
        from: the model's metadata name the initializers, whose zeros are the mask.
        """
        return {name: self.weight(name) != 0 for name in masked_names(self.model)}

    @property
    def sparsity(self) -> dict[str, float]:
        """Fraction of zeros in each weight of a contraction, by initializer name."""
        from onnxjl.criteria.roles import role

        found = {}
        for name, value in self.model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.dtype not in FLOATING or len(tensor.shape) < 2:
                continue
            if role(value).contracted and tensor.size:
                found[name] = float((self.weight(name) == 0).mean())
                self.unmap(name)
        return found

    def __repr__(self) -> str:
        name = self.path.name if self.path else self.model.graph.name or ""
        state = "pruned" if self.plan else "normalized" if self.normalized else "as loaded"
        if masked_names(self.model):
            state += ", sparse"
        return (
            f"Graph({name!r}, {state}, opset {self.opset}, {len(self.model.graph)} nodes, "
            f"{self.params:,} parameters)"
        )

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.model.opset_imports.get("", 1)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of structure and weights, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for node in self.model.graph.all_nodes():
            names = [[v.name if v else "" for v in vs] for vs in (node.inputs, node.outputs)]
            digest.update(repr((node.domain, node.op_type, names)).encode())
            for name, attribute in sorted(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR:
                    _add(digest, name, attribute.as_tensor().numpy())
                elif attribute.type == ir.AttributeType.GRAPH:
                    initializers = attribute.as_graph().initializers
                    for key in sorted(initializers):
                        tensor = initializers[key].const_value
                        if tensor is not None:
                            _add(digest, f"{name} {key}", tensor.numpy())
                elif attribute.type != ir.AttributeType.GRAPHS:
                    digest.update(repr((name, str(attribute.value))).encode())
        for name in sorted(self.model.graph.initializers):
            _add(digest, name, self.weight(name))
        return digest.hexdigest()

    def weight(self, name: str) -> np.ndarray:
        """The initializer of this name, in ONNX's layout (read-only where memory-mapped)."""
        value = self.model.graph.initializers[name]
        assert value.const_value is not None
        return value.const_value.numpy()

    def unmap(self, name: str) -> None:
        """Give up the memory that a weight in external data is mapped to, until it is read again.

        Arrays that somebody still holds stay as they are.
        """
        unmap(self.model.graph.initializers[name].const_value)


def unmap(tensor: ir.TensorProtocol | None) -> None:
    """Give up the memory that external data are mapped to, until they are read again.

    Every tensor maps its file anew, and the system brings in the pages around those that are read:
    with many small tensors that is more than the file.
    """
    if isinstance(tensor, ir.ExternalTensor):
        try:
            tensor.release()
        except BufferError:
            # Somebody holds the array. It goes when they do; its pages can go before.
            if tensor.raw is not None and hasattr(mmap, "MADV_DONTNEED"):
                tensor.raw.madvise(mmap.MADV_DONTNEED)


def _add(digest: hashlib._Hash, name: str, array: np.ndarray) -> None:
    """Add an array to a digest."""
    digest.update(repr((name, str(array.dtype), array.shape)).encode())
    if array.dtype == object:
        digest.update(repr(array.tolist()).encode())
    else:
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)


FLOATING = frozenset(dtype for dtype in ir.DataType if dtype.is_floating_point())
"""Element types that are real numbers."""


def initializers(model: ir.Model) -> dict[str, ir.Value]:
    """Return the main graph's initializers by name, to be read.

    onnx_ir's mapping looks up one name after another: its dictionary is many times faster.
    """
    return model.graph.initializers.data


_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Return the graphs that a node's attributes hold."""
    found: list[ir.Graph] = []
    # onnx_ir's mapping looks up one attribute after another: its dictionary is many times faster.
    for attribute in node.attributes.data.values():
        kind = attribute.type
        if kind == _GRAPH:
            found.append(attribute.as_graph())
        elif kind == _GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def node_name(node: ir.Node) -> str:
    """Return the node's name, or its first output's where it has none."""
    return node.name or next((v.name for v in node.outputs if v.name), "")
