"""Plan: what to remove, as plain data, and its application."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from onnxjl.cut import Cut
from onnxjl.duplicate import duplicate
from onnxjl.errors import PlanError
from onnxjl.garbage import keep_freed_memory, without_collection
from onnxjl.graph import Graph, initializers, node_name
from onnxjl.normalize import normalize

FORMAT = 1
Kept = Mapping[str, Mapping[int, NDArray[np.int64]]]


@dataclass(frozen=True, eq=False)
class Plan:
    """The edits that turn one normalized graph into a smaller one.

    Parameters
    ----------
    kept : initializer name -> axis -> (k,) int, the 0-based sorted indices that stay.
    attributes : node name (its first output's, where it has none) -> attribute -> new value.
    constants : integer initializer name -> its whole new value.
    removed_nodes : names of nodes that go; what used their output uses their first input, or the
        one that `stand_ins` tells.
    stand_ins : name of a node that goes -> position of the input that stands in for its output.
    source_graph : the normalized graph that the names refer to, where it is at hand.
    fingerprint : SHA-256 of that graph, if the plan was read from a file.
    opset : opset of that graph, likewise.
    request : what was asked for.
    engine : ``"numpy"`` or ``"flux"``.
    sizes : intermediate value name -> axis -> new size, where the analysis that made the plan is
        at hand; otherwise `apply` infers shapes. No part of the plan as data.
    """

    kept: Kept
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    removed_nodes: tuple[str, ...] = ()
    stand_ins: Mapping[str, int] = field(default_factory=dict)
    source_graph: Graph | None = field(default=None, repr=False)
    fingerprint: str | None = None
    opset: int | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "numpy"
    sizes: Mapping[str, Mapping[int, int]] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        indices = sum(len(kept) for axes in self.kept.values() for kept in axes.values())
        asked = ", ".join(f"{key}={value!r}" for key, value in self.request.items() if value)
        removed = f", removes {len(self.removed_nodes)} nodes" if self.removed_nodes else ""
        return (
            f"Plan(keeps {indices:,} indices of {len(self.kept)} weights{removed}, {self.engine} "
            f"engine; {asked or 'no request'})"
        )

    @property
    def source(self) -> dict[str, Any]:
        """Fingerprint and opset of the graph that the plan refers to."""
        if self.source_graph is not None:
            return {"sha256": self.source_graph.fingerprint, "opset": self.source_graph.opset}
        return {"sha256": self.fingerprint, "opset": self.opset}

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON's types."""
        return {
            "onnxjl": FORMAT,
            "source": self.source,
            "request": dict(self.request),
            "engine": self.engine,
            "kept": {
                name: {str(axis): indices.tolist() for axis, indices in sorted(axes.items())}
                for name, axes in self.kept.items()
            },
            "attributes": {name: dict(values) for name, values in self.attributes.items()},
            "constants": {name: np.asarray(v).tolist() for name, v in self.constants.items()},
            "removed_nodes": list(self.removed_nodes),
            "stand_ins": dict(self.stand_ins),
        }

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from JSON text.

        Raises
        ------
        PlanError : the text isn't a plan of a format that is known.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"not a plan: {error}") from error
        version = data.get("onnxjl") if isinstance(data, dict) else None
        if version != FORMAT or isinstance(version, bool):
            raise PlanError(
                f"not a plan of format {FORMAT}: the key 'onnxjl' is missing or another"
            )
        try:
            source = _object(data["source"], "source")
            return cls(
                kept={
                    name: {
                        _axis(axis): _indices(name, axis, indices)
                        for axis, indices in _object(axes, name).items()
                    }
                    for name, axes in _object(data["kept"], "kept").items()
                },
                attributes={
                    name: {key: _setting(value, key) for key, value in _object(v, name).items()}
                    for name, v in _object(data.get("attributes", {}), "attributes").items()
                },
                constants={
                    name: _integers(value, name)
                    for name, value in _object(data.get("constants", {}), "constants").items()
                },
                removed_nodes=tuple(_texts(data.get("removed_nodes", []), "removed_nodes")),
                stand_ins={
                    name: _position(value, name)
                    for name, value in _object(data.get("stand_ins", {}), "stand_ins").items()
                },
                fingerprint=_text(source["sha256"], "sha256"),
                opset=source.get("opset"),
                request=_request(data.get("request", {})),
                engine=_text(data.get("engine", "numpy"), "engine"),
            )
        except KeyError as error:
            raise PlanError(f"not a plan: {error} is missing") from error
        except (ValueError, OverflowError) as error:
            raise PlanError(f"not a plan: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, over a file that is there.

        Raises
        ------
        OutputError : the file can't be written; what was there is as it was.
        """
        from onnxjl.save import save_text

        save_text(self.to_json() + "\n", path, force=True)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a JSON file.

        Raises
        ------
        PlanError : the file can't be read, or isn't a plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it isn't text"
            raise PlanError(f"{path}: can't be read: {reason}") from error
        try:
            return cls.from_json(text)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error

    def __eq__(self, other: object) -> bool:
        """Return whether both make the same edits to the same graph."""
        if not isinstance(other, Plan):
            return NotImplemented
        mine, theirs = self.to_dict(), other.to_dict()
        edits = ("source", "kept", "attributes", "constants", "removed_nodes", "stand_ins")
        return all(mine[key] == theirs[key] for key in edits)

    __hash__ = None  # type: ignore[assignment]

    def then(self, later: Plan) -> Plan:
        """Return the plan that has the effect of this one and, after it, of `later`."""
        recovered = {k: v for k, v in self.request.items() if k == "recover"}
        kept: dict[str, dict[int, NDArray[np.int64]]] = {n: dict(a) for n, a in self.kept.items()}
        for name, axes in later.kept.items():
            for axis, indices in axes.items():
                earlier = kept.setdefault(name, {}).get(axis)
                kept[name][axis] = indices if earlier is None else earlier[indices]
        attributes = {name: dict(values) for name, values in self.attributes.items()}
        for name, values in later.attributes.items():
            attributes.setdefault(name, {}).update(values)
        return replace(
            self,
            kept=kept,
            attributes=attributes,
            constants={**self.constants, **later.constants},
            removed_nodes=(*self.removed_nodes, *later.removed_nodes),
            stand_ins={**self.stand_ins, **later.stand_ins},
            request={**later.request, **recovered},
            sizes=None,
        )


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"'{name}' is {value!r}, not an object")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {value!r}, not text")
    return value


def _texts(values: Any, name: str) -> list[str]:
    if not isinstance(values, list):
        raise ValueError(f"'{name}' is {values!r}, not a list")
    return [_text(value, name) for value in values]


def _axis(text: str) -> int:
    if not (text.isdecimal() and str(int(text)) == text):
        raise ValueError(f"'{text}' is no axis: they are written as decimals from 0")
    return int(text)


def _position(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(
            f"what stands in for '{name}' is {value!r}, not an input's position from 0"
        )
    return value


def _setting(value: Any, name: str) -> Any:
    """An attribute's value: a number, text, or a list of whole numbers, of others, or of texts."""
    kinds = {type(one) for one in value} if isinstance(value, list) else {type(value)}
    if kinds not in ({int}, {float}, {str}):
        raise ValueError(f"attribute '{name}' is {value!r}, not numbers or text")
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, int) and not -(1 << 63) <= one < 1 << 63:
            raise ValueError(f"attribute '{name}' holds {one}, which 64 bits don't")
        if isinstance(one, str):
            one.encode()
    name.encode()
    return value


def _request(value: Any) -> dict[str, Any]:
    """What was asked for: anything, as far as nothing is made of it; reports read some of it."""
    request = _object(value, "request")
    granularity = request.get("granularity", "channel")
    if granularity not in ("channel", "head", "head-dim", "block"):
        raise ValueError(f"the request's 'granularity' is {granularity!r}")
    _texts(request.get("ignore", []), "ignore")
    if "round_to_asked" in request:
        _figure(request, "round_to", least=1)
    for name, (keys, least) in _FIGURES.items():
        if name in request:
            for key in keys:
                _figure(_object(request[name], name), key, least=least)
    return request


# What reports show of a request; times are divided by.
_FIGURES = {
    "predicted": (("before_ms", "after_ms"), 1e-9),
    "importance": (("kept", "of", "bound"), -math.inf),
}


def _figure(values: Mapping[str, Any], name: str, *, least: float) -> None:
    value: Any = values.get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value >= least):
        raise ValueError(f"the request's '{name}' is {value!r}, not a number of its kind")


def _integers(values: Any, name: str) -> NDArray[np.int64]:
    """Whole numbers as an array; NumPy alone would round, and read text."""
    pending = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"'{name}' holds {value!r}, not a whole number")
    return np.array(values, dtype=np.int64)


def _indices(name: str, axis: str, values: Any) -> NDArray[np.int64]:
    indices = _integers(values, name)
    if indices.ndim != 1 or not len(indices) or indices[0] < 0 or (np.diff(indices) <= 0).any():
        raise ValueError(
            f"kept indices of '{name}' axis {axis} aren't one or more, sorted, unique and ≥ 0"
        )
    return indices


@without_collection
def apply(graph: Graph, plan: Plan) -> Graph:
    """Return the smaller graph that a plan makes of its source.

    Parameters
    ----------
    graph : the normalized graph that the plan refers to (or one that `normalize` turns into it).

    Raises
    ------
    PlanError : the plan belongs to another graph, or names what isn't there.
    """
    graph = normalize(graph)
    if plan.source_graph is not graph and plan.source["sha256"] != graph.fingerprint:
        raise PlanError(
            "the plan was made for another graph: its source's fingerprint is "
            f"{str(plan.source['sha256'])[:12]}…, this graph's {graph.fingerprint[:12]}…"
        )
    tensors = {
        **{name: _cut(graph, name, axes) for name, axes in plan.kept.items()},
        **{name: _constant(graph, name, value) for name, value in plan.constants.items()},
    }
    keep_freed_memory()
    model = duplicate(graph.model, tensors)
    _edit_nodes(model.graph, plan)
    if plan.sizes is None:
        _infer_shapes(model)
    else:
        _shrink_shapes(model, plan.sizes)
    # A plan is about structure: applied to its source it recovers nothing.
    asked = {key: value for key, value in plan.request.items() if key != "recover"}
    plan = replace(plan, request=asked)
    before = graph.plan
    return replace(
        graph,
        model=model,
        plan=plan if before is None else before.then(plan),
        source=graph if before is None else graph.source,
        sparsified=None,
    )


def _cut(graph: Graph, name: str, axes: Mapping[int, NDArray[np.int64]]) -> ir.TensorProtocol:
    """Return a weight with the indices that stay."""
    tensor = _initializer(graph, name)
    shape = tensor.shape.dims
    for axis, indices in axes.items():
        if axis >= len(shape) or (len(indices) and indices[-1] >= shape[axis]):
            raise PlanError(f"'{name}' has shape {shape}: no such index on axis {axis}")
    return Cut(tensor, axes, name) if axes else tensor


def _constant(graph: Graph, name: str, value: np.ndarray) -> ir.Tensor:
    """Return a new value of a shape constant."""
    dtype = _initializer(graph, name).dtype
    if not dtype.is_integer():
        raise PlanError(f"'{name}' holds {dtype.name.lower()}, and is no constant")
    array = np.asarray(value).astype(dtype.numpy(), order="C")
    return ir.Tensor(array, dtype=dtype, name=name)


def _initializer(graph: Graph, name: str) -> ir.TensorProtocol:
    value = initializers(graph.model).get(name)
    if value is None or value.const_value is None:
        raise PlanError(f"no initializer is called '{name}'")
    return value.const_value


def _edit_nodes(network: ir.Graph, plan: Plan) -> None:
    """Set attributes, and take nodes out."""
    if not (plan.attributes or plan.removed_nodes or plan.stand_ins):
        return
    nodes = {node_name(node): node for node in network}
    for name in (*plan.attributes, *plan.removed_nodes):
        if name not in nodes:
            raise PlanError(f"no node is called '{name}'")
    for name, values in plan.attributes.items():
        for key, setting in values.items():
            nodes[name].attributes[key] = ir.convenience.convert_attribute(key, setting)
    removed = frozenset(plan.removed_nodes)
    if strange := [name for name in plan.stand_ins if name not in removed]:
        raise PlanError(f"node '{strange[0]}' stays, and needs no input to stand in for it")
    going = [node for node in network if node_name(node) in removed]
    for node in going:
        if any(value.is_graph_output() for value in node.outputs):
            raise PlanError(f"node '{node_name(node)}' can't go: it makes an output of the network")
        position = plan.stand_ins.get(node_name(node), 0)
        passed = node.inputs[position] if position < len(node.inputs) else None
        if passed is not None:
            node.outputs[0].replace_all_uses_with(passed)
        elif node_name(node) in plan.stand_ins or not _used_in(node, removed):
            raise PlanError(f"node '{node_name(node)}' has no input to stand in for it")
    read = [value for node in going for value in node.inputs if value is not None]
    # From the last to the first: what a node makes besides its first output is used by later ones.
    for node in reversed(going):
        if any(value.uses() for value in node.outputs):
            raise PlanError(f"node '{node_name(node)}' can't go: others use what it makes")
        network.remove(node, safe=True)
    for value in read:
        if value.is_initializer() and not value.uses() and not value.is_graph_output():
            network.initializers.pop(value.name or "", None)


def _used_in(node: ir.Node, names: frozenset[str]) -> bool:
    """Return whether all that uses a node's first output are nodes of these names."""
    return all(node_name(use.node) in names for use in node.outputs[0].uses())


def _infer_shapes(model: ir.Model) -> None:
    """Infer the shapes of intermediate values anew."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    ShapeInferencePass()(model)


def _shrink_shapes(model: ir.Model, sizes: Mapping[str, Mapping[int, int]]) -> None:
    """Write the shapes that intermediate values have now."""
    for node in model.graph:
        for value in node.outputs:
            changed, shape = sizes.get(value.name or ""), value.shape
            if changed is None or shape is None:
                continue
            for axis, size in changed.items():
                # A symbolic size that shrinks, as batch times heads, has no name of its own.
                shape[axis] = size if isinstance(shape[axis], int) else None
