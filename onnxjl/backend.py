"""Backend: ONNX's own interface to an engine, over `to_flux`, so that ONNX's tests can judge it.

``import onnxjl.backend as backend; backend.run_model(model, inputs)`` needs Julia, as `to_flux`
does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

from onnxjl.errors import UnsupportedOperator, UsageError
from onnxjl.flux import FluxModel, to_flux
from onnxjl.handover import check_type
from onnxjl.normalize import normalize

_TRAINING = "nodes in training form"
"""How the warning begins with which a training form becomes an inference form."""


class FluxRep(BackendRep):
    """A network that is ready to run.

    Parameters
    ----------
    model : the network as Flux layers.
    """

    def __init__(self, model: FluxModel) -> None:
        self.model = model

    def run(self, inputs: Any, **options: Any) -> tuple[np.ndarray, ...]:
        """Return the outputs, in the network's order.

        Parameters
        ----------
        inputs : arrays in the order of the network's inputs, or by name; one array alone where
            there is one input. A sequence is a list of arrays, an empty optional value is None.
        """
        names = self.model.inputs
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        if not isinstance(inputs, Mapping):
            if len(inputs) != len(names):
                raise UsageError(f"expected {len(names)} inputs, came {len(inputs)}")
            inputs = dict(zip(names, inputs, strict=True))
        for name, given in inputs.items():
            if name in names:
                value = self.model.value(name, given)
                for array in value if isinstance(value, list) else [value]:
                    if array is not None:
                        check_type(f"input '{name}'", array.dtype)
        found = self.model.run(inputs)
        return tuple(found[name] for name in self.model.output_names)


class FluxBackend(Backend):
    """ONNX's Backend over `to_flux`. What isn't supported raises `UnsupportedOperator`."""

    @classmethod
    def prepare(
        cls,
        model: onnx.ModelProto,
        device: str = "CPU",
        *,
        bake: Mapping[str, np.ndarray] | None = None,
        **options: Any,
    ) -> FluxRep:
        """Return a network, ready to run.

        Parameters
        ----------
        model : the network.
        device : only ``"CPU"``.
        bake : inputs that are to be constants of the network, by name: from constant weights an
            operator becomes a layer, where Flux has one.

        Raises
        ------
        UnsupportedOperator : a node has an operator or an attribute that isn't there, or a dropout
            drops; or one is in the training form of operator sets before 14.
        """
        if not cls.supports_device(device):
            raise UsageError(f"there is no device '{device}', only 'CPU'")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_TRAINING)
            try:
                graph = normalize(_baked(model, bake) if bake else model, training=True)
                return FluxRep(to_flux(graph))
            except UserWarning as warning:
                if not str(warning).startswith(_TRAINING):
                    raise
                raise UnsupportedOperator(f"the Flux engine runs inference: {warning}") from None

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None,
        **options: Any,
    ) -> tuple[np.ndarray, ...]:
        """Return the outputs of one node.

        Parameters
        ----------
        node : the node.
        inputs : arrays in the order of its inputs, without absent ones; or by name.
        outputs_info : element type and shape of each output; inferred if not given.
        options : ``opset_version``, by default the newest.
        """
        opset = options.pop("opset_version", onnx.defs.onnx_opset_version())
        names = dict.fromkeys(name for name in node.input if name)
        if not isinstance(inputs, Mapping):
            inputs = dict(zip(names, inputs, strict=True))
        arrays = {name: np.asarray(inputs[name]) for name in names}
        model = _around(node, arrays, opset, outputs_info)
        return cls.prepare(model, device, **options).run(arrays)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return whether a device is the CPU."""
        return device == "CPU"


def _baked(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model with some of its inputs as initializers."""
    baked = onnx.ModelProto()
    baked.CopyFrom(model)
    baked.ir_version = max(baked.ir_version, 4)
    kept = [value for value in baked.graph.input if value.name not in arrays]
    del baked.graph.input[:]
    baked.graph.input.extend(kept)
    for name, array in arrays.items():
        baked.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return baked


def _around(
    node: onnx.NodeProto,
    arrays: Mapping[str, np.ndarray],
    opset: int,
    outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None,
) -> onnx.ModelProto:
    """A model of one node."""
    typed = {
        name: onnx.helper.make_tensor_type_proto(
            onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in arrays.items()
    }
    outputs = [name for name in node.output if name]
    if outputs_info is None:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        types = onnx.shape_inference.infer_node_outputs(
            schema,
            node,
            typed,
            {n: onnx.numpy_helper.from_array(x, n) for n, x in arrays.items()},
            opset_imports=[onnx.helper.make_opsetid(node.domain, opset)],
        )
    else:
        types = {
            name: onnx.helper.make_tensor_type_proto(
                onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
            )
            for name, (dtype, shape) in zip(outputs, outputs_info, strict=True)
        }
    graph = onnx.helper.make_graph(
        [node],
        node.op_type,
        [onnx.helper.make_value_info(name, kind) for name, kind in typed.items()],
        [onnx.helper.make_value_info(name, types[name]) for name in outputs],
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)]
    )


is_compatible = FluxBackend.is_compatible
prepare = FluxBackend.prepare
run_model = FluxBackend.run_model
run_node = FluxBackend.run_node
supports_device = FluxBackend.supports_device
