"""Stream: a network run on calibration data piece by piece, without holding its activations.

What is computed is kept in files, batch by batch, and dropped when nothing needs it any more, so
memory doesn't grow with the number of samples, and nothing is computed twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
import onnx_ir as ir

from onnxjl.graph import Graph, subgraphs
from onnxjl.session import open_session, run


class Stream:
    """Values of a graph on batches of data, computed when asked for.

    Parameters
    ----------
    graph : its weights may be replaced between computations; a computed value stays as it is.
    batches : feeds by input name.
    """

    def __init__(self, graph: Graph, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
        self.graph = graph
        self._folder = tempfile.TemporaryDirectory(prefix="onnxjl-")
        self._present: set[str] = set()
        self._count = 0
        self._numbers: dict[str, int] = {}
        self._forms: dict[Path, tuple[np.dtype, tuple[int, ...]]] = {}
        self._inputs: set[str] = set()
        try:
            for feeds in batches:
                for name, array in feeds.items():
                    self._write(name, self._count, array)
                    self._inputs.add(name)
                self._count += 1
        except BaseException:
            # Data that don't fit are found out here, before there is a stream to be left.
            self._folder.cleanup()
            raise
        self._present |= self._inputs

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def batches(self, *values: ir.Value) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield arrays of these values, batch by batch; compute what isn't there yet."""
        self.compute(*values)
        for i in range(self._count):
            yield tuple(self._read(v.name or "", i) for v in values)

    def compute(self, *values: ir.Value) -> None:
        """Compute values from those that are there."""
        wanted = [v for v in values if v.name not in self._present and not v.is_initializer()]
        if not wanted:
            return
        proto, needed = self._piece(wanted)
        session = open_session(proto.SerializeToString())
        names = [v.name or "" for v in wanted]
        for i in range(self._count):
            arrays = run(session, {name: self._read(name, i) for name in needed}, names)
            for name, array in arrays.items():
                self._write(name, i, array)
        self._present.update(names)

    def samples(self, value: ir.Value) -> int:
        """Return the number of samples (axis 0) over all batches of a computed value."""
        return sum(len(self._read(value.name or "", i)) for i in range(self._count))

    def keep_only(self, names: set[str]) -> None:
        """Forget all values but these and the inputs."""
        for name in self._present - names - self._inputs:
            for i in range(self._count):
                self._file(name, i).unlink(missing_ok=True)
        self._present &= names | self._inputs

    def needed_for(self, values: Iterable[ir.Value]) -> set[str]:
        """Return the names of the values present from which these are computed."""
        return set(self._trace(values)[1])

    def _trace(self, values: Iterable[ir.Value]) -> tuple[set[ir.Node], list[str]]:
        """Return the nodes to run, and the present values to start from."""
        nodes: set[ir.Node] = set()
        start: list[str] = []
        pending = list(values)
        seen: set[str] = set()
        while pending:
            value = pending.pop()
            name = value.name or ""
            if name in seen or value.is_initializer():
                continue
            seen.add(name)
            if name in self._present:
                start.append(name)
                continue
            node = value.producer()
            if node is None or node in nodes:
                continue
            nodes.add(node)
            pending.extend(v for v in node.inputs if v is not None)
            pending.extend(_captured(node))
        return nodes, start

    def _piece(self, wanted: list[ir.Value]) -> tuple[onnx.ModelProto, list[str]]:
        """Return the part of the model that computes values from those present."""
        nodes, start = self._trace(wanted)
        model = self.graph.model
        ordered = [node for node in model.graph if node in nodes]
        graph = onnx.GraphProto(name="piece")
        graph.node.extend(ir.serde.serialize_node(node) for node in ordered)
        used = {v.name for n in ordered for v in (*n.inputs, *_captured(n)) if v is not None}
        for name, value in model.graph.initializers.items():
            if name in used and value.const_value is not None and name not in start:
                tensor = graph.initializer.add()
                tensor.CopyFrom(onnx.numpy_helper.from_array(value.const_value.numpy(), name))
        by_name = {v.name: v for n in model.graph for v in (*n.inputs, *n.outputs) if v is not None}
        for name in start:
            graph.input.append(_declared(by_name[name]))
        for value in wanted:
            graph.output.append(_declared(value))
        proto = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
        for domain, version in model.opset_imports.items():
            proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
        return proto, start

    def _file(self, name: str, i: int) -> Path:
        number = self._numbers.setdefault(name, len(self._numbers))
        return Path(self._folder.name) / f"{number}.{i}"

    # NumPy's own files tell type and shape in Python's syntax, whose parser fails now and then in
    # Python 3.11 where several threads use it.

    def _write(self, name: str, i: int, array: np.ndarray) -> None:
        file = self._file(name, i)
        self._forms[file] = array.dtype, array.shape
        array.tofile(file)

    def _read(self, name: str, i: int) -> np.ndarray:
        file = self._file(name, i)
        dtype, shape = self._forms[file]
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, "r", shape=shape)


def _declared(value: ir.Value) -> onnx.ValueInfoProto:
    """Return a value's name and type, with its rank but no sizes: batches differ in theirs."""
    shape = None if value.shape is None else [None] * len(value.shape)
    kind = int(value.dtype) if value.dtype is not None else int(ir.DataType.FLOAT)
    return onnx.helper.make_tensor_value_info(value.name or "", kind, shape)


def _captured(node: ir.Node) -> list[ir.Value]:
    """Return what a node's subgraphs use of the graph around them."""
    return [v for g in subgraphs(node) for n in g.all_nodes() for v in n.inputs if v is not None]
