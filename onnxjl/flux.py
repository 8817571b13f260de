"""FluxModel: a network as Flux layers in Julia, with a handle in Python.

The only module that imports juliacall, and only when a model is asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxjl import handover
from onnxjl.criteria.registry import unknown
from onnxjl.errors import DataError, JuliaError, UnsupportedOperator, UsageError
from onnxjl.graph import Graph
from onnxjl.inputs import graph_inputs
from onnxjl.load import Source, load
from onnxjl.losses import evaluate
from onnxjl.normalize import normalize
from onnxjl.plan import Plan

if TYPE_CHECKING:
    from onnxjl.history import History

_started: Any = None


def julia() -> Any:
    """Return the Julia module OnnxJL; the first call starts Julia.

    Raises
    ------
    JuliaError : Julia, or a package that OnnxJL needs, isn't there or can't be loaded.
    """
    global _started
    if _started is None:
        _started = _start()
    return _started


def _start() -> Any:
    os.environ.setdefault("PYTHON_JULIACALL_HANDLE_SIGNALS", "no")
    try:
        import juliacall
    except Exception as error:
        raise JuliaError(f"Julia can't be started: {error}") from error
    main = juliacall.Main
    folder = str(Path(__file__).with_name("julia").resolve())
    with as_julia_error():
        # At the end: a package finds its dependencies only in environments before its own.
        if folder not in main.LOAD_PATH:
            main.push_b(main.LOAD_PATH, folder)
        main.Base.require(main, main.Symbol("PythonCall"))
        return main.Base.require(main, main.Symbol("OnnxJL"))


@contextlib.contextmanager
def as_julia_error() -> Iterator[None]:
    """Turn an error in Julia into one of ours: one line, with the cause chained."""
    import juliacall

    try:
        yield
    except juliacall.JuliaError as error:
        if _started is None:
            raise JuliaError(f"Julia can't load OnnxJL: {_first_line(str(error))}") from error
        kind, text = _started.explain(error.exception)
        if kind == "unsupported":
            raise UnsupportedOperator(text) from error
        raise JuliaError(_first_line(text)) from error


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


class FluxModel:
    """A network as Flux layers in Julia.

    Parameters
    ----------
    graph : the normalized graph that the layers were made of, with the plan that led to it.
    julia : the Julia object, an ``OnnxJL.FluxGraph``.
    """

    def __init__(self, graph: Graph, julia: Any) -> None:
        self.graph = graph
        self.julia = julia
        self._inputs = [value.name or "" for value in graph_inputs(graph)]
        self._outputs = [value.name or "" for value in graph.model.graph.outputs]

    @property
    def plan(self) -> Plan | None:
        """The edits that led from `source` to this network, if it was pruned."""
        return self.graph.plan

    @property
    def source(self) -> Graph | None:
        """The normalized graph that `plan` refers to, if the network was pruned."""
        return self.graph.source

    def __call__(
        self, inputs: np.ndarray | Mapping[str, np.ndarray]
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Run the network.

        Parameters
        ----------
        inputs : an array for a network with one input, else a dict by input name; ONNX's layout.

        Returns
        -------
        An array for a network with one output, else a dict by output name.

        Raises
        ------
        DataError : the inputs aren't the network's.
        JuliaError : a layer can't take what it gets.
        """
        with as_julia_error():
            outputs = [np.asarray(y).T for y in julia().run(self.julia, self.arrays(inputs))]
        if len(outputs) == 1:
            return outputs[0]
        return dict(zip(self._outputs, outputs, strict=True))

    def gradient(
        self,
        loss: Any,
        inputs: np.ndarray | Mapping[str, np.ndarray],
        target: np.ndarray | None = None,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Return a loss, and its gradient with respect to every trainable weight.

        Parameters
        ----------
        loss : a name (see `losses`); a Julia function ``f(outputs..., target)`` of arrays with
            axes reversed; or a Python function ``f(output, target)`` that returns the loss and its
            gradient with respect to the output, both NumPy, or takes and returns PyTorch tensors.
            For several outputs, `output` is a dict by name, and so is the gradient.
        inputs : as for a call.
        target : labels, as (samples,) integers from 0, or what the loss wants; ONNX's layout.

        Returns
        -------
        The loss, and initializer name -> gradient of the weight's shape, in ONNX's layout.

        Raises
        ------
        UsageError : there is no such loss, or it returned something else.
        DataError, JuliaError : as for a call.
        """
        value, tree = self.backward(loss, inputs, target)
        with as_julia_error():
            found = julia().namedgradients(self.julia, tree)
            return value, {str(k): np.array(v.T, order="C") for k, v in found.items()}

    def backward(
        self,
        loss: Any,
        inputs: np.ndarray | Mapping[str, np.ndarray],
        target: np.ndarray | None = None,
    ) -> tuple[float, Any]:
        """Return a loss, and its gradient as a Julia object, as Flux and Optimisers use it.

        Parameters are those of `gradient`.
        """
        bridge = julia()
        with as_julia_error():
            passed = bridge.forward(self.julia, self.arrays(inputs))
            value, deltas = self.loss_gradient(loss, passed, target)
            return value, bridge.backward(passed, deltas)

    def loss_gradient(self, loss: Any, passed: Any, target: Any) -> tuple[float, Any]:
        """Return a loss, and its gradients with respect to the outputs of a pass, for Julia."""
        if isinstance(loss, str) or is_julia(loss):
            wanted = None if target is None else np.asarray(target, order="C").T
            value, deltas = julia().measure(self._loss(loss), passed, wanted)
            return float(value), deltas
        return self._python_loss(loss, passed, target)

    def loss_value(self, loss: Any, passed: Any, target: Any) -> float:
        """Return a loss of the outputs of a pass."""
        if isinstance(loss, str) or is_julia(loss):
            wanted = None if target is None else np.asarray(target, order="C").T
            return float(julia().lossvalue(self._loss(loss), passed, wanted))
        return evaluate(loss, self.outputs(passed), target)[0]

    def outputs(self, passed: Any) -> np.ndarray | dict[str, np.ndarray]:
        """Return the outputs of a pass, as a call does."""
        arrays = [np.array(np.asarray(y).T, order="C") for y in julia().outputs(passed)]
        return arrays[0] if len(arrays) == 1 else dict(zip(self._outputs, arrays, strict=True))

    def arrays(self, inputs: np.ndarray | Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return inputs as Julia takes them: in the network's order, their axes reversed."""
        return [np.asarray(x, order="C").T for x in self._ordered(inputs)]

    def finetune(self, data: Any, **options: Any) -> History:
        """Train the network, which changes in place; see `onnxjl.finetune.finetune`."""
        from onnxjl.finetune import finetune

        return finetune(self, data, **options)

    def _loss(self, loss: Any) -> Any:
        if isinstance(loss, str) and loss not in julia().LOSSES:
            raise UsageError(unknown("loss", loss, sorted(map(str, julia().LOSSES))))
        return loss

    def _python_loss(self, loss: Any, passed: Any, target: Any) -> tuple[float, list[np.ndarray]]:
        output = self.outputs(passed)
        arrays = list(output.values()) if isinstance(output, Mapping) else [output]
        value, gradients = evaluate(loss, output, target)
        if not isinstance(gradients, Mapping):
            gradients = {self._outputs[0]: gradients}
        deltas = []
        for name, y in zip(self._outputs, arrays, strict=True):
            given = np.asarray(gradients.get(name, np.zeros_like(y)), dtype=y.dtype, order="C")
            if given.shape != y.shape:
                raise UsageError(
                    f"the loss's gradient for output '{name}' has shape {given.shape}, not "
                    f"{y.shape}"
                )
            deltas.append(given.T)
        return value, deltas

    def _ordered(self, inputs: np.ndarray | Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if not isinstance(inputs, Mapping):
            if len(self._inputs) != 1:
                raise DataError(
                    f"the network has {len(self._inputs)} inputs ({', '.join(self._inputs)}); give "
                    "a dict by input name"
                )
            inputs = {self._inputs[0]: inputs}
        if set(inputs) != set(self._inputs):
            raise DataError(
                f"expected the inputs {', '.join(self._inputs)}, came {', '.join(inputs)}"
            )
        return [inputs[name] for name in self._inputs]

    def __getitem__(self, name: str) -> Any:
        """Return a layer, by the prefix of its weight, or its node's or output's name."""
        if not julia().haskey(self.julia, name):
            raise KeyError(name)
        return julia().getindex(self.julia, name)

    def __repr__(self) -> str:
        """Show the network as Flux does."""
        return str(julia().text(self.julia))

    def to_graph(self) -> Graph:
        """Return the network as an ONNX graph: what its layers say now."""
        with as_julia_error():
            plain, arrays = julia().deliver(self.julia)
        graph = handover.to_graph(
            self.graph,
            plain,
            {str(name): np.array(x.T, order="C") for name, x in arrays.items()},
        )
        return replace(graph, plan=self.plan, source=self.source)

    def save(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Write the network to a file, checked; see `onnxjl.save`."""
        from onnxjl.save import save

        return save(self.to_graph(), path, **options)


def to_flux(model: Source, **options: Any) -> FluxModel:
    """Return a network as Flux layers; the first call starts Julia.

    Parameters
    ----------
    model : whatever `onnxjl.load` takes; normalized if it isn't.
    options : as for `onnxjl.load`.

    Raises
    ------
    UnsupportedOperator : a node has an operator or an attribute that isn't there; names it.
    JuliaError : Julia, or what it needs, isn't there.
    """
    graph = normalize(load(model, **options))
    plain = handover.nodes(graph.model.graph)
    bridge = julia()
    with as_julia_error():
        handle = bridge.receive(
            plain,
            handover.tensors(graph),
            [value.name for value in graph_inputs(graph)],
            [value.name for value in graph.model.graph.outputs],
            dict(graph.model.opset_imports),
            handover.trainable(graph),
        )
    return FluxModel(graph, handle)


def pruned(model: FluxModel, plan: Plan, small: Graph) -> FluxModel:
    """Return the smaller model that a plan makes.

    Parameters
    ----------
    model : the model that the plan was made for.
    plan : the edits of this round alone.
    small : what the same plan makes of the model as a graph.
    """
    bridge = julia()
    with as_julia_error():
        handle = bridge.prune(model.julia, bridge.edits(plan))
    return FluxModel(small, handle)


def is_julia(value: Any) -> bool:
    """Return whether a value is an object of Julia's."""
    return type(value).__module__.startswith("juliacall")
