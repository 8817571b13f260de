"""FluxModel: a network as Flux layers in Julia, with a handle in Python.

The only module that imports juliacall, and only when a model is asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxjl import handover
from onnxjl.criteria.gradient import mean_gradient
from onnxjl.criteria.registry import unknown
from onnxjl.criteria.weights import GroupWeights
from onnxjl.errors import DataError, JuliaError, UnsupportedOperator, UsageError
from onnxjl.graph import Graph
from onnxjl.inputs import graph_inputs
from onnxjl.load import Source, load
from onnxjl.losses import evaluate
from onnxjl.normalize import normalize
from onnxjl.plan import Plan
from onnxjl.structure import Group

if TYPE_CHECKING:
    from onnxjl.save import Saved

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
    with _as_julia_error():
        # At the end: a package finds its dependencies only in environments before its own.
        if folder not in main.LOAD_PATH:
            main.push_b(main.LOAD_PATH, folder)
        main.Base.require(main, main.Symbol("PythonCall"))
        return main.Base.require(main, main.Symbol("OnnxJL"))


@contextlib.contextmanager
def _as_julia_error() -> Iterator[None]:
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
    except TypeError as error:  # What juliacall makes of a MethodError.
        if not str(error).startswith("Julia: "):
            raise
        raise JuliaError(_first_line(str(error).removeprefix("Julia: "))) from error


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

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs that a call must be given, in the network's order."""
        return list(self._inputs)

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in the network's order."""
        return list(self._outputs)

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
        arrays = [np.asarray(x, order="C").T for x in self._ordered(inputs)]
        with _as_julia_error():
            outputs = [np.asarray(y).T for y in julia().run(self.julia, arrays)]
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
        with _as_julia_error():
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
        arrays = [np.asarray(x, order="C").T for x in self._ordered(inputs)]
        wanted = None if target is None else np.asarray(target, order="C").T
        bridge = julia()
        with _as_julia_error():
            passed = bridge.forward(self.julia, arrays)
            if isinstance(loss, str) or is_julia(loss):
                value, deltas = bridge.measure(self._loss(loss), passed, wanted)
            else:
                value, deltas = self._python_loss(loss, passed, target)
            return float(value), bridge.backward(passed, deltas)

    def trainmode(self) -> FluxModel:
        """Make normalizations use, and keep, the statistics of each batch; returns the model."""
        julia().Flux.trainmode_b(self.julia)
        return self

    def testmode(self) -> FluxModel:
        """Make normalizations use the statistics that they keep, as at first; returns the model."""
        julia().Flux.testmode_b(self.julia)
        return self

    def moved(self, direction: Mapping[str, np.ndarray], step: float) -> FluxModel:
        """Return a copy in float64 with its weights moved.

        Parameters
        ----------
        direction : initializer name -> array of the weight's shape.
        step : how far: ``weight + step · direction``.
        """
        arrays = {name: np.asarray(x, order="C").T for name, x in direction.items()}
        with _as_julia_error():
            return FluxModel(self.graph, julia().movedby(self.julia, arrays, float(step)))

    def positive(self) -> FluxModel:
        """Return a copy in float64 with the absolute values of its weights."""
        with _as_julia_error():
            return FluxModel(self.graph, julia().positive(self.julia))

    def _loss(self, loss: Any) -> Any:
        if isinstance(loss, str) and loss not in julia().LOSSES:
            raise UsageError(unknown("loss", loss, sorted(map(str, julia().LOSSES))))
        return loss

    def _python_loss(self, loss: Any, passed: Any, target: Any) -> tuple[float, list[np.ndarray]]:
        arrays = [np.array(np.asarray(y).T, order="C") for y in julia().outputs(passed)]
        output = arrays[0] if len(arrays) == 1 else dict(zip(self._outputs, arrays, strict=True))
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
        with _as_julia_error():
            graph = handover.to_graph(self.graph, julia().deliver(self.julia))
        return replace(graph, plan=self.plan, source=self.source)

    def save(self, path: str | os.PathLike[str], **options: Any) -> Saved:
        """Write the network to a file; see `onnxjl.save`.

        The check compares what onnxruntime makes of the file with Julia's own outputs.
        """
        from onnxjl.save import save

        return save(self, path, **options)

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name, for inputs by name."""
        found = self(inputs)
        return found if isinstance(found, dict) else {self._outputs[0]: found}


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
    handover.check_inputs(graph)
    plain = handover.nodes(graph.model.graph)
    bridge = julia()
    with _as_julia_error():
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
    with _as_julia_error():
        handle = bridge.prune(model.julia, bridge.edits(plan))
    return FluxModel(small, handle)


def criterion_from(path: str | os.PathLike[str], name: str) -> Any:
    """Return a function from a Julia file, as a criterion.

    Parameters
    ----------
    path : a ``.jl`` file.
    name : the function's; it takes an ``OnnxJL.Group`` and returns a score for each unit.
    """
    bridge = julia()
    with _as_julia_error():
        return bridge.criterion(os.fspath(path), name)


def julia_criterion(function: Any) -> Callable[[Group, GroupWeights], np.ndarray]:
    """Return a criterion written in Julia as one of Python's.

    Parameters
    ----------
    function : a Julia function of an ``OnnxJL.Group``, that returns (units,) real numbers.
    """

    def scores(group: Group, weights: GroupWeights) -> np.ndarray:
        members = [(m.tensor, m.axis, m.indices.T) for m in group.members]
        gradients = mean_gradient(weights.scoring) if weights.scoring.data is not None else {}
        tensors = {
            name: (np.asarray(array, order="C").T, _transposed(gradients.get(name)))
            for name, array in weights.items()
        }
        with _as_julia_error():
            return np.array(julia().score(function, group.name, tensors, members))

    scores.__name__ = str(julia().Base.string(function))
    return scores


def _transposed(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else np.asarray(array, order="C").T


def is_julia(value: Any) -> bool:
    """Return whether a value is an object of Julia's."""
    return type(value).__module__.startswith("juliacall")
