"""The networks that the proof is about, with the weights and inputs that it uses."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from models import pretrained, zoo
from onnx import numpy_helper

from onnxjl import Graph, normalize
from onnxjl.structure import Structure, analyze

Feeds = Mapping[str, np.ndarray]

SEEDS = {"efficientnet_b0": 6, "yolo": 4}
"""Seeds of weights with which rounding doesn't grow to something that looks like a difference."""

SHARPENED = {"efficientnet_b0": (".fc", 2.0), "keras_attention": ("query", 100.0)}
"""Weights (part of their name) to multiply: else gates and attention are so even that nothing
moves them."""

BEFORE_THE_LAST = ("rapidocr_detector",)
"""Networks compared before their last node, a sigmoid whose outputs fall below rounding."""

LIGHT = tuple(
    "light_" + name
    for name in (
        "bvlc_alexnet densenet121 inception_v1 inception_v2 resnet50 shufflenet squeezenet vgg19 "
        "zfnet512"
    ).split()
)
TRAINED = (*pretrained.FILES, *LIGHT)
"""Networks out of installed packages."""


class Case:
    """A network, with what several tests need of it.

    Parameters
    ----------
    name : a name of the zoo, or one of `TRAINED`.

    Attributes
    ----------
    graph : normalized.
    feeds : inputs: of one sample and, if the network takes them, of three.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.graph, self.feeds = _trained(name) if name in TRAINED else _exported(name)
        self._analyze = functools.cache(functools.partial(analyze, self.graph))

    def structure(self, granularity: str = "channel") -> Structure:
        """Return the structure; found out once for each granularity."""
        return self._analyze(granularity=granularity)

    def has_more(self, granularity: str) -> bool:
        """Return whether a granularity offers anything that "channel" doesn't."""
        return granularity == "channel" or offered(self.structure(granularity)) != offered(
            self.structure()
        )


def offered(structure: Structure) -> list[tuple[str, int]]:
    """Return names and sizes of the exact groups."""
    return [(group.name, group.size) for group in structure.groups if group.exact]


def _exported(name: str) -> tuple[Graph, list[Feeds]]:
    network = zoo.network(name)
    model = zoo.load(name, SEEDS.get(network, 0))
    part, factor = SHARPENED.get(network, ("", 1.0))
    for tensor in model.graph.initializer:
        if part and part in tensor.name:
            array = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    dynamic = any(
        dimension.HasField("dim_param")
        for value in model.graph.input
        for dimension in value.type.tensor_type.shape.dim
    )
    batches = (1, 3) if dynamic else (None,)
    return normalize(model), [zoo.inputs(model, seed=1, batch=batch) for batch in batches]


def _trained(name: str) -> tuple[Graph, list[Feeds]]:
    path = pretrained.available()[name]
    if name in BEFORE_THE_LAST:
        model = onnx.load(path)
        last = model.graph.node.pop()
        model.graph.output[0].name = last.input[0]
        graph = normalize(model)
    else:
        graph = normalize(path)
    if name in LIGHT:
        return _with_random_weights(graph), [pretrained.inputs(name)]
    return graph, [pretrained.inputs(name, batch, seed=1) for batch in (1, 3)]


def _with_random_weights(graph: Graph) -> Graph:
    """Return the graph with other weights: onnx's light networks have one number in all of them."""
    model = ir.to_proto(graph.model)
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind != "f" or array.size == 1:
            continue
        if array.ndim > 1:
            array = random.normal(0, np.sqrt(2 / np.prod(array.shape[1:])), array.shape)
        else:
            array = random.uniform(0.5, 1.5, array.shape)
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return normalize(model)
