"""FluxModel: a network as Flux layers in Julia, with a handle in Python.

The only module that imports juliacall, and only when a model is asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxjl import handover, julia_environment
from onnxjl.criteria.blocks import BlockCriterion, BlockScoring, BlockWeights
from onnxjl.criteria.gradient import mean_gradient
from onnxjl.criteria.registry import unknown
from onnxjl.criteria.weights import GroupWeights
from onnxjl.errors import DataError, JuliaError, UnsupportedOperator, UsageError
from onnxjl.graph import FLOATING, Graph
from onnxjl.inputs import graph_inputs
from onnxjl.load import Source, load
from onnxjl.losses import evaluate
from onnxjl.masks import masked_names, record
from onnxjl.normalize import normalize
from onnxjl.plan import Plan, apply
from onnxjl.structure import Block, Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from onnxjl.history import History
    from onnxjl.save import Saved

DEVICES = ("cpu", "gpu")

HANDLE_SIGNALS = "PYTHON_JULIACALL_HANDLE_SIGNALS"
"""What juliacall reads, once, when it starts Julia: whether Julia takes signals."""

Shape = Sequence[int | str | None]
"""An input's shape in ONNX's order: sizes, and names or `None` where any size will do."""

_started: Any = None
_failed: JuliaError | None = None
"""Why Julia failed while it was being started: a process can start it once."""

_forked = False
"""Whether this process was forked from one in which Julia ran, and has a Julia that doesn't."""

_one_thread = threading.RLock()
"""Held by the thread that is in Julia.

Whoever collects Julia's garbage waits for all that are in Julia, also for one that came back to
Python from there and waits for Python's own lock: without this one, both would wait for ever.
"""


def julia() -> Any:
    """Return the Julia module OnnxJL; the first call starts Julia.

    Raises
    ------
    JuliaError : Julia, or a package that OnnxJL needs, isn't there or can't be loaded; or this
        process was forked after Julia had started.
    """
    global _started
    if _forked:
        raise JuliaError(
            "Julia was started before this process was forked, and can't be used in it: start "
            "processes with multiprocessing's 'spawn' or 'forkserver', or fork before the first "
            "use of the Flux engine"
        )
    with _one_thread:
        if _started is None:
            with _blocking_streams():
                _started = _start()
    return _started


def _note_fork() -> None:
    global _forked, _one_thread
    _forked = _forked or "juliacall" in sys.modules
    _one_thread = threading.RLock()  # Who held it is gone.
    if _forked:
        # What juliacall calls when Python ends would wait for threads that aren't here.
        library = getattr(sys.modules["juliacall"], "CONFIG", {}).get("lib")
        if library is not None:
            library.jl_atexit_hook = lambda status: None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _start() -> Any:
    running = "juliacall" in sys.modules
    juliacall = sys.modules["juliacall"] if running else _import_juliacall()
    if not hasattr(juliacall, "Main"):
        raise JuliaError(
            "juliacall was imported, but Julia wasn't started (PYTHON_JULIACALL_INIT is 'no'); "
            "don't set it, and start Python anew"
        )
    main = juliacall.Main
    folder = str(julia_environment.FOLDER)
    with as_julia_error():
        # At the end: a package finds its dependencies only in environments before its own.
        if folder not in main.LOAD_PATH:
            main.push_b(main.LOAD_PATH, folder)
        if running:
            _check_packages(main)
        main.Base.require(main, main.Symbol("PythonCall"))
        module = main.Base.require(main, main.Symbol("OnnxJL"))
        source = Path(str(main.Base.pathof(module))).resolve()
        if not running:
            _leave_garbage_to_others(module)
    if not source.is_relative_to(folder):
        warnings.warn(
            f"Julia has OnnxJL from {source.parents[1]}, and this onnxjl brings its own in "
            f"{folder}: where they differ, things go wrong; `]rm OnnxJL` takes the other out of "
            "the Julia project",
            stacklevel=4,
        )
    return module


def _import_juliacall() -> Any:
    """Start Julia, after a look at what there is."""
    global _failed
    if _failed is not None:
        raise _failed
    julia_environment.inspect(julia_environment.find()).check()
    # With one thread, signals are Python's alone. With several, Julia's garbage collector needs
    # some, and Julia takes all of them.
    several = julia_environment.threads() != "1"
    signals = "yes" if several else "no"
    with warnings.catch_warnings(), _python_signals(), _variable(HANDLE_SIGNALS, signals):
        if sys.platform == "linux":
            # True of releases whose libraries export LLVM's symbols; either order works since.
            warnings.filterwarnings("ignore", "torch was imported before juliacall")
        try:
            import juliacall
        except Exception as error:
            _failed = JuliaError(
                f"Julia can't be started: {_first_line(str(error))}; `onnxjl doctor` says more"
            )
            raise _failed from error
    return juliacall


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable that isn't set, for a while: child processes choose anew."""
    ours = name not in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if ours:
            del os.environ[name]


@contextlib.contextmanager
def _python_signals() -> Iterator[None]:
    """Give Python what it had of Ctrl-C and termination before, even if Julia took them."""
    main_thread = threading.current_thread() is threading.main_thread()
    if not (main_thread and hasattr(signal, "pthread_sigmask")):
        yield
        return
    ours = {signal.SIGINT, signal.SIGTERM}
    handlers = {number: signal.getsignal(number) for number in ours}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours - blocked)


@contextlib.contextmanager
def _blocking_streams() -> Iterator[None]:
    """Let standard streams block as before: Julia changes pipes, and Python reads them as ended."""
    blocked = []
    for number in range(3):
        with contextlib.suppress(OSError, AttributeError):  # closed; Windows before Python 3.12
            blocked.append((number, os.get_blocking(number)))
    try:
        yield
    finally:
        for number, blocking in blocked:
            with contextlib.suppress(OSError):
                os.set_blocking(number, blocking)


def _check_packages(main: Any) -> None:
    """Raise a JuliaError if the Julia that somebody else started lacks a package."""
    missing = [
        package.name
        for package in julia_environment.requirements()
        if main.Base.locate_package(main.Base.PkgId(main.Base.UUID(package.uuid), package.name))
        is None
    ]
    if missing:
        raise JuliaError(
            f"juliacall is already running, with the Julia project {main.Base.active_project()}, "
            f"which lacks {', '.join(missing)}: `]add {' '.join(missing)}` there, or start onnxjl "
            "before what started it"
        )


def _leave_garbage_to_others(module: Any) -> None:
    """Let other threads collect Julia's garbage while this one, which started it, isn't in Julia.

    Else they would wait until it calls Julia again: of its own accord, Julia takes this for a
    thread that is always in Julia. What calls Julia from here enters and leaves.
    """
    ctypes.PYFUNCTYPE(ctypes.c_int8)(int(module.gcsafeenter()))()


@contextlib.contextmanager
def in_julia() -> Iterator[None]:
    """Be the only thread that is in Julia, with its errors as ours.

    Whatever touches Julia's objects belongs inside, and no function of the user's: it may wait for
    a thread that wants to enter.
    """
    julia()
    with _one_thread, as_julia_error():
        yield


@contextlib.contextmanager
def as_julia_error() -> Iterator[None]:
    """Turn an error in Julia into one of ours: one line, with the cause chained."""
    juliacall = sys.modules["juliacall"]
    try:
        yield
    except juliacall.JuliaError as error:
        # Without Julia's stack, which `julia_traceback` has.
        cause = juliacall.JuliaError(error.exception)
        if _started is None:
            raise JuliaError(
                f"Julia can't load OnnxJL: {_first_line(str(cause))}; `onnxjl doctor` says more",
                error,
            ) from cause
        kind, text = _started.explain(error.exception)
        if kind == "unsupported":
            raise UnsupportedOperator(text) from cause
        raise JuliaError(_first_line(text), error) from cause
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
        self._types = {value.name or "": value.type for value in graph_inputs(graph)}
        self._inputs = [*self._types]
        self._outputs = [value.name or "" for value in graph.model.graph.outputs]
        self._lock = threading.RLock()

    def __copy__(self) -> FluxModel:
        """Return another handle of the same layers."""
        return FluxModel(self.graph, self.julia)

    def __deepcopy__(self, memo: dict[int, Any]) -> FluxModel:
        """Return a model with layers of its own, which can be pruned and trained apart."""
        return self.masked(self.graph, {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what another process makes the model of: the network as an ONNX graph.

        There it is on the CPU and in test mode.
        """
        return to_flux, (self.to_graph(),)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only thread that uses the network; the others wait, as while it is trained."""
        if _forked:
            julia()  # Whoever held the lock is gone.
        with self._lock:
            yield

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        with self.alone(), in_julia():
            yield

    @property
    def plan(self) -> Plan | None:
        """The edits that led from `source` to this network, if it was pruned."""
        return self.graph.plan

    @property
    def source(self) -> Graph | None:
        """The normalized graph that `plan` refers to, if the network was pruned."""
        return self.graph.source

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Weights that are held sparse: initializer name -> bool of its shape, false where zero."""
        with self._entered():
            arrays = julia().namedarrays(self.julia.masks)
            return {str(name): np.array(x.T, order="C") for name, x in arrays.items()}

    @property
    def sparsity(self) -> dict[str, float]:
        """Fraction of zeros in each weight of a contraction, by initializer name."""
        return self.to_graph().sparsity

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
            A sequence is a list of arrays, an optional value that is empty None.

        Returns
        -------
        An array for a network with one output, else a dict by output name.

        Raises
        ------
        DataError : the inputs aren't the network's.
        JuliaError : a layer can't take what it gets.
        """
        with self._entered():
            outputs = [*map(handover.from_julia, julia().run(self.julia, self.arrays(inputs)))]
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
        The loss, and initializer name -> gradient of the weight's shape, in ONNX's layout; in the
        order of the graph's initializers.

        Raises
        ------
        UsageError : there is no such loss, or it returned something else.
        DataError, JuliaError : as for a call.
        """
        value, tree = self.backward(loss, inputs, target)
        with self._entered():
            found = julia().namedgradients(self.julia, tree)
            arrays = {str(k): np.array(v.T, order="C") for k, v in found.items()}
        place = {name: i for i, name in enumerate(self.graph.model.graph.initializers)}
        names = sorted(arrays, key=lambda name: place.get(name, len(place)))
        return value, {name: arrays[name] for name in names}

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
        with self.alone(), as_julia_error():
            with in_julia():
                passed = bridge.forward(self.julia, self.arrays(inputs))
            value, deltas = self.loss_gradient(loss, passed, target)
            with in_julia():
                return value, bridge.backward(passed, deltas)

    def loss_gradient(self, loss: Any, passed: Any, target: Any) -> tuple[float, Any]:
        """Return a loss, and its gradients with respect to the outputs of a pass, for Julia."""
        if isinstance(loss, str) or is_julia(loss):
            wanted = None if target is None else np.asarray(target, order="C").T
            with in_julia():
                value, deltas = julia().measure(self.check_loss(loss), passed, wanted)
                return float(value), deltas
        return self._python_loss(loss, passed, target)

    def loss_value(self, loss: Any, passed: Any, target: Any) -> float:
        """Return a loss of the outputs of a pass."""
        if isinstance(loss, str) or is_julia(loss):
            wanted = None if target is None else np.asarray(target, order="C").T
            with in_julia():
                return float(julia().lossvalue(self.check_loss(loss), passed, wanted))
        return evaluate(loss, self.outputs(passed), target)[0]

    def outputs(self, passed: Any) -> np.ndarray | dict[str, np.ndarray]:
        """Return the outputs of a pass, as a call does."""
        with in_julia():
            arrays = [np.array(np.asarray(y).T, order="C") for y in julia().outputs(passed)]
        return arrays[0] if len(arrays) == 1 else dict(zip(self._outputs, arrays, strict=True))

    def arrays(self, inputs: np.ndarray | Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return inputs as Julia takes them: in the network's order, their axes reversed."""
        given = zip(self._inputs, self._ordered(inputs), strict=True)
        return [handover.to_julia(self.value(name, x)) for name, x in given]

    def value(self, name: str, given: Any) -> Any:
        """Return what is given for an input as an array; a list of them where it's a sequence.

        Raises
        ------
        DataError : it's None, and the input isn't optional; or no list, and the input a sequence.
        """
        kind = self._types[name]
        if isinstance(kind, ir.OptionalType):
            if given is None:
                return None
            kind = kind.elem_type
        if given is None:
            raise DataError(f"input '{name}' isn't optional")
        if isinstance(kind, ir.SequenceType):
            if not isinstance(given, list | tuple):
                raise DataError(f"input '{name}' is a sequence: give a list of arrays")
            return [np.asarray(entry) for entry in given]
        return np.asarray(given)

    def finetune(self, data: Any, **options: Any) -> History:
        """Train the network, which changes in place; see `onnxjl.finetune.finetune`."""
        from onnxjl.finetune import finetune

        return finetune(self, data, **options)

    def trainmode(self) -> FluxModel:
        """Make normalizations use, and keep, the statistics of each batch; returns the model."""
        with self._entered():
            julia().Flux.trainmode_b(self.julia)
        return self

    def testmode(self) -> FluxModel:
        """Make normalizations use the statistics that they keep, as at first; returns the model."""
        with self._entered():
            julia().Flux.testmode_b(self.julia)
        return self

    def to(self, device: str) -> FluxModel:
        """Return the network on another device; batches go where it is.

        Parameters
        ----------
        device : ``cpu``, or ``gpu`` for the one that Julia's MLDataDevices finds, which needs a
            package in the Julia project: CUDA and cuDNN, AMDGPU, Metal or oneAPI.

        Raises
        ------
        UsageError : there is no such device.
        JuliaError : no GPU works here.
        """
        _check_device(device)
        with self._entered():
            return FluxModel(self.graph, julia().todevice(self.julia, device))

    def masked(self, graph: Graph, weights: Mapping[str, np.ndarray]) -> FluxModel:
        """Return a copy in which some weights are others, and are held at zero where they are zero.

        Parameters
        ----------
        graph : what the copy is as a graph, with its masks.
        weights : initializer name -> array of the weight's shape.
        """
        arrays = {name: np.asarray(x, order="C").T for name, x in weights.items()}
        with self._entered():
            return FluxModel(graph, julia().maskedcopy(self.julia, arrays, graph))

    def moved(self, direction: Mapping[str, np.ndarray], step: float) -> FluxModel:
        """Return a copy in float64 with its weights moved.

        Parameters
        ----------
        direction : initializer name -> array of the weight's shape.
        step : how far: ``weight + step · direction``.
        """
        arrays = {name: np.asarray(x, order="C").T for name, x in direction.items()}
        with self._entered():
            return FluxModel(self.graph, julia().movedby(self.julia, arrays, float(step)))

    def positive(self) -> FluxModel:
        """Return a copy in float64 with the absolute values of its weights."""
        with self._entered():
            return FluxModel(self.graph, julia().positive(self.julia))

    def check_loss(self, loss: Any) -> Any:
        """Return a loss; raise a UsageError for a name that none has."""
        with in_julia():
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
        with self._entered():
            if not julia().haskey(self.julia, name):
                raise KeyError(name)
            return julia().getindex(self.julia, name)

    def __repr__(self) -> str:
        """Show the network as Flux does."""
        with self._entered():
            return str(julia().text(self.julia))

    def to_graph(self) -> Graph:
        """Return the network as an ONNX graph: what its layers say now."""
        with self._entered():
            graph = handover.to_graph(self.graph, julia().deliver(self.julia))
            record(graph.model, map(str, self.julia.masks.keys()))
        return replace(graph, plan=self.plan, source=self.source)

    def as_written(self) -> FluxModel:
        """Return the network in the precision of its weights in `graph`, as files have it."""
        tensors = (value.const_value for value in self.graph.model.graph.initializers.values())
        sizes = {t.dtype.itemsize for t in tensors if t is not None and t.dtype in FLOATING}
        if len(sizes) != 1:
            return self
        with self._entered():
            return FluxModel(self.graph, julia().inprecision(self.julia, 8 * sizes.pop()))

    def save(self, path: str | os.PathLike[str], **options: Any) -> Saved:
        """Write the network to a file; see `onnxjl.save`.

        The check compares what onnxruntime makes of the file with Julia's own outputs.
        """
        from onnxjl.save import save

        return save(self, path, **options)

    def plot(self) -> Figure:
        """Draw how wide each layer was before pruning, and how wide it is; see `Graph.plot`."""
        return self.graph.plot()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name, for inputs by name."""
        found = self(inputs)
        return found if isinstance(found, dict) else {self._outputs[0]: found}


def to_flux(model: Source, *, device: str = "cpu", **options: Any) -> FluxModel:
    """Return a network as Flux layers; the first call starts Julia.

    Parameters
    ----------
    model : whatever `onnxjl.load` takes; normalized if it isn't.
    device : ``cpu`` or ``gpu``; see `FluxModel.to`.
    options : as for `onnxjl.load`.

    Raises
    ------
    UnsupportedOperator : a node has an operator or an attribute that isn't there; names it.
    UsageError : there is no such device.
    JuliaError : Julia, or what it needs, isn't there, or no GPU works.
    """
    _check_device(device)
    return _made(normalize(load(model, **options)), device)


def from_flux(
    chain: Any,
    *,
    input_shape: Shape | Mapping[str, Shape],
    input_name: str = "input",
    output_name: str = "output",
    device: str = "cpu",
) -> FluxModel:
    """Return a Flux model that was written by hand in Julia as a network of ONNX's operators.

    Its layers are those of Flux, in test mode, and their arrays are the model's own wherever ONNX
    has them in the same order. Weights are called as their layers: ``block.2.weight``.

    Parameters
    ----------
    chain : the model in Julia: a ``Chain``, another layer of Flux, or a type of one's own, of which
        the documentation of ``OnnxJL.trace`` says more.
    input_shape : (batch, channels, …), ONNX's order; ``None`` or a name where any size will do.
        For several inputs, a dict by input name.
    input_name : what the input is called, if there is one.
    output_name : what the output is called; several are numbered: ``output_1``.
    device : ``cpu`` or ``gpu``; see `FluxModel.to`.

    Raises
    ------
    UnsupportedOperator : ONNX has no form for a layer; names it and its place.
    UsageError : `chain` is nothing of Julia's, a shape isn't one, or there is no such device.
    JuliaError : Julia, or what it needs, isn't there.
    """
    _check_device(device)
    if not is_julia(chain):
        raise UsageError(
            f"chain is a Python {type(chain).__name__}; give a model in Julia, as "
            "juliacall.Main.seval returns it"
        )
    shapes = input_shape if isinstance(input_shape, Mapping) else {input_name: input_shape}
    inputs = [(name, handover.declared(name, shape)) for name, shape in shapes.items()]
    with in_julia():
        bridge = julia()
        fixed = [(name, [n if isinstance(n, int) else None for n in s]) for name, s in inputs]
        written = bridge.write(chain, fixed, output_name)
        model = handover.to_model(bridge.deliver(written), inputs)
    return _made(normalize(model), device, written)


def _made(graph: Graph, device: str, written: Any = None) -> FluxModel:
    """The model of a normalized graph; arrays of a network that Julia has `written` are shared."""
    handover.check_inputs(graph)
    plain = handover.nodes(graph.model.graph)
    with in_julia():
        bridge = julia()
        handle = bridge.receive(
            plain,
            handover.tensors(graph),
            [value.name for value in graph_inputs(graph)],
            [value.name for value in graph.model.graph.outputs],
            dict(graph.model.opset_imports),
            handover.trainable(graph),
            graph,
            written,
        )
        names = masked_names(graph.model)
        if names:
            bridge.holdzeros_b(handle, names)
    made = FluxModel(graph, handle)
    return made if device == "cpu" else made.to(device)


def _check_device(device: str) -> None:
    if device not in DEVICES:
        raise UsageError(unknown("device", device, DEVICES))


def pruned(model: FluxModel, plan: Plan, small: Graph | None = None) -> FluxModel:
    """Return the smaller model that a plan makes.

    Parameters
    ----------
    model : the model that the plan was made for.
    plan : the edits of this round alone.
    small : what the same plan makes of the model as a graph, where that is known.

    Raises
    ------
    PlanError : the plan belongs to another network.
    """
    if small is None:
        small = apply(model.to_graph(), plan)
    with model.alone(), in_julia():
        bridge = julia()
        handle = bridge.prune(model.julia, bridge.edits(plan), small)
    return FluxModel(small, handle)


def criterion_from(path: str | os.PathLike[str], name: str) -> Any:
    """Return a function from a Julia file, as a criterion.

    Parameters
    ----------
    path : a ``.jl`` file.
    name : the function's; it takes an ``OnnxJL.Group`` and returns a score for each unit.
    """
    with in_julia():
        return julia().criterion(os.fspath(path), name)


def julia_criterion(function: Any) -> Callable[[Group, GroupWeights], np.ndarray]:
    """Return a criterion written in Julia as one of Python's.

    Parameters
    ----------
    function : a Julia function of an ``OnnxJL.Group``, that returns (units,) real numbers.
    """

    name = _julia_name(function)

    def scores(group: Group, weights: GroupWeights) -> np.ndarray:
        measured = weights.scoring.data is not None
        tensors = _for_julia(weights, mean_gradient(weights.scoring) if measured else None)
        members = [(m.tensor, m.axis, m.indices.T) for m in group.members]
        with _own(f"criterion '{name}', group '{group.name}'"):
            return np.array(julia().score(function, group, tensors, members))

    scores.__name__ = name
    return scores


def julia_block_criterion(function: Any) -> BlockCriterion:
    """Return a criterion of blocks written in Julia as one of Python's.

    Parameters
    ----------
    function : a Julia function of an ``OnnxJL.Block``, that returns a real number.
    """
    name = _julia_name(function)

    def score(block: Block, scoring: BlockScoring) -> float:
        weights = BlockWeights(scoring.structure.graph, block)
        real = {key: array for key, array in weights.items() if array.dtype.kind == "f"}
        tensors = _for_julia(real, scoring.gradient)
        with _own(f"criterion '{name}', block '{block.name}'"):
            found: float = julia().scoreblock(function, block, tensors)
            return found

    return BlockCriterion(name, score)


def _julia_name(function: Any) -> str:
    with in_julia():
        return str(julia().Base.string(function))


def _for_julia(
    weights: Mapping[str, np.ndarray], gradient: Mapping[str, np.ndarray] | None
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Weights and their gradients, which what isn't trained (statistics) has none of."""
    return {
        name: (
            np.asarray(array, order="C").T,
            None if gradient is None else gradient.get(name, np.zeros_like(array)).T,
        )
        for name, array in weights.items()
    }


@contextlib.contextmanager
def _own(start: str) -> Iterator[None]:
    """Run a function of the user's own in Julia; `start` begins the message where it fails."""
    try:
        with in_julia():
            yield
    except JuliaError as error:
        raise JuliaError(f"{start}: {error}", error.failure) from error


def is_julia(value: Any) -> bool:
    """Return whether a value is an object of Julia's."""
    return type(value).__module__.startswith("juliacall")
