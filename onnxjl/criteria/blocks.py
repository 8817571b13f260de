"""Criteria of blocks: how much a residual branch adds to what skips it.

A criterion is a function ``f(block, scoring) -> score``; larger is more important. A function of
the user's own is ``f(block, weights) -> score``, where `weights` maps the branch's weights to
arrays, or, in Julia, ``f(block) -> score``.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxjl import session
from onnxjl.criteria.gradient import mean_gradient
from onnxjl.criteria.registry import called, name_of, unknown
from onnxjl.criteria.roles import role
from onnxjl.criteria.weights import Scoring
from onnxjl.data import batches
from onnxjl.errors import DataError, UsageError
from onnxjl.graph import Graph, node_name
from onnxjl.progress import progress
from onnxjl.structure.blocks import Block
from onnxjl.structure.groups import Structure, layers
from onnxjl.structure.names import weight

if TYPE_CHECKING:
    from onnxjl.flux import FluxModel

# Outputs of the probe, by the number of the block: sums over the features of each position.
_PRODUCTS = ("skip·sum", "skip²", "sum²", "branch²")


@dataclass(frozen=True, eq=False)
class BlockScoring:
    """One request for scores: the graph, its blocks, and what has been measured of them.

    Parameters
    ----------
    structure : of the graph.
    blocks : all blocks that are scored.
    data : inputs for criteria that are measured; see `onnxjl.data`.
    seed : of random scores.
    model : the same network as Flux layers, for criteria that look at gradients.
    loss : whose gradients; see `FluxModel.gradient`. None is the cross-entropy.
    """

    structure: Structure
    blocks: Sequence[Block]
    data: Any = None
    seed: int = 0
    model: FluxModel | None = None
    loss: Any = None

    @cached_property
    def measured(self) -> Mapping[str, tuple[float, float]]:
        """Block's name -> mean relative change and mean influence, in one pass over the data."""
        return _measure(self)

    @cached_property
    def gradient(self) -> Mapping[str, np.ndarray] | None:
        """The mean gradient over the data, by the name of the weight; None where none are given."""
        if self.data is None:
            return None
        units = Scoring(
            self.structure.graph,
            (),
            aggregation="mean",
            data=self.data,
            seed=self.seed,
            model=self.model,
            loss=self.loss,
        )
        return mean_gradient(units)


@dataclass(frozen=True)
class BlockCriterion:
    """A way to tell how important a block is.

    Parameters
    ----------
    name : what it is asked for by.
    function : ``f(block, scoring) -> score``, larger is more important.
    source : the paper that it comes from.
    needs_data : whether it is measured on the caller's data.
    """

    name: str
    function: Callable[[Block, BlockScoring], float]
    source: str = ""
    needs_data: bool = False


class BlockWeights(Mapping[str, np.ndarray]):
    """The weights that only a block uses, read when asked for: name -> array in ONNX's layout."""

    def __init__(self, graph: Graph, block: Block) -> None:
        self._graph = graph
        self._block = block

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._block.weights:
            raise KeyError(name)
        return self._graph.weight(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._block.weights)

    def __len__(self) -> int:
        return len(self._block.weights)


def random(block: Block, scoring: BlockScoring) -> float:
    """Uniform in [0, 1), from the seed and the block's name."""
    return float(np.random.default_rng([scoring.seed, zlib.crc32(block.name.encode())]).random())


def l2(block: Block, scoring: BlockScoring) -> float:
    """Mean l2 norm of the weights of each output of the branch's last layer."""
    graph = scoring.structure.graph
    nodes = {node_name(node): node for node in layers(graph)}
    last = weight(nodes[[name for name in block.nodes if name in nodes][-1]])
    assert last is not None
    array = graph.weight(last.name or "").astype(np.float64)
    outputs = role(last).outputs or {0}
    others = tuple(axis for axis in range(array.ndim) if axis not in outputs)
    return float(np.sqrt(np.square(array).sum(axis=others)).mean())


def bn_scale(block: Block, scoring: BlockScoring) -> float:
    """Mean ``|γ|`` of the last batch normalization of the branch.

    Raises
    ------
    UsageError : the branch has none that isn't folded.
    """
    graph = scoring.structure.graph
    for node in reversed([*graph.model.graph]):
        if node.op_type == "BatchNormalization" and node_name(node) in block.nodes:
            scale = node.inputs[1]
            if scale is not None and scale.is_initializer():
                return float(np.abs(graph.weight(scale.name or "").astype(np.float64)).mean())
    raise UsageError(
        f"criterion 'bn-scale', block '{block.name}': it has no batch normalization (exporters "
        "fold it by default); l2 needs none"
    )


def relative_change(block: Block, scoring: BlockScoring) -> float:
    """Relative size of what the branch adds: ``‖f(x)‖ / ‖x + f(x)‖``, the mean over samples."""
    return scoring.measured[block.name][0]


def block_influence(block: Block, scoring: BlockScoring) -> float:
    """Change of direction: ``1 − cos(x, x + f(x))``, the mean over samples and positions."""
    return scoring.measured[block.name][1]


BLOCK_CRITERIA: dict[str, BlockCriterion] = {
    criterion.name: criterion
    for criterion in (
        BlockCriterion("random", random),
        BlockCriterion("l2", l2, "as Li et al. 2017, Pruning Filters for Efficient ConvNets"),
        BlockCriterion(
            "bn-scale", bn_scale, "as Liu et al. 2017, Network Slimming, section 3, for a branch"
        ),
        BlockCriterion(
            "relative-change",
            relative_change,
            "as Jastrzębski et al. 2018, Residual Connections Encourage Iterative Inference, who "
            "relate a branch to what skips it",
            needs_data=True,
        ),
        BlockCriterion(
            "block-influence",
            block_influence,
            "Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant Than "
            "You Expect, eq. 1",
            needs_data=True,
        ),
    )
}
"""Name -> criterion of blocks."""


def get_for_blocks(criterion: Any) -> BlockCriterion:
    """Return the criterion of blocks that is meant.

    Parameters
    ----------
    criterion : a name of `BLOCK_CRITERIA`, or any function ``f(block, weights) -> score``.

    Raises
    ------
    UsageError : no criterion of blocks has that name, or it isn't a Python function.
    """
    if isinstance(criterion, str):
        if criterion not in BLOCK_CRITERIA:
            raise UsageError(unknown("criterion of blocks", criterion, BLOCK_CRITERIA))
        return BLOCK_CRITERIA[criterion]
    if not callable(criterion) or type(criterion).__module__.startswith("juliacall"):
        raise UsageError(
            "a criterion of blocks is a name or a function f(block, weights) -> score; of a Flux "
            f"model (onnxjl.to_flux) it may be Julia's f(block) -> score; not {criterion!r}"
        )

    def own(block: Block, scoring: BlockScoring) -> float:
        found: float = criterion(block, BlockWeights(scoring.structure.graph, block))
        return found

    return BlockCriterion(name_of(criterion), own)


def score_blocks(scoring: BlockScoring, criterion: BlockCriterion) -> np.ndarray:
    """Score every block.

    Returns
    -------
    (blocks,) float64, larger is more important.

    Raises
    ------
    UsageError : data are missing, or a score is no finite number.
    DataError : the data don't fit the graph.
    """
    if criterion.needs_data and scoring.data is None:
        raise UsageError(
            f"criterion '{criterion.name}' is measured on data: give some (data=, --data FILE.npz)"
        )
    registered = BLOCK_CRITERIA.get(criterion.name) is criterion
    scores = []
    for block in scoring.blocks:
        start = f"criterion '{criterion.name}', block '{block.name}'"
        score = called(criterion.function, block, scoring, registered=registered, start=start)
        cause: Exception | None = None
        try:
            number = float(score)
        except (TypeError, ValueError) as error:
            number, cause = np.nan, error
        if not np.isfinite(number):
            raise UsageError(f"{start}: expected one finite number, came {score!r}") from cause
        scores.append(number)
    return np.array(scores, dtype=np.float64)


def _measure(scoring: BlockScoring) -> dict[str, tuple[float, float]]:
    """The relative change and the influence of every block, on the data."""
    graph = scoring.structure.graph
    opened = session.open_session(_probe(scoring))
    changes = np.zeros((len(scoring.blocks), 2))
    samples = 0
    for feeds in progress(batches(scoring.data, graph), "measuring blocks"):
        results = session.run(opened, feeds)
        count = 0
        for i, block in enumerate(scoring.blocks):
            both, skip, whole, branch = (
                np.atleast_1d(results[f"onnxjl.{what}.{i}"]) for what in _PRODUCTS
            )
            if not (np.isfinite(whole).all() and np.isfinite(branch).all()):
                raise DataError(f"on these data the block '{block.name}' is NaN or infinite")
            count = len(whole)
            changes[i, 0] += _ratio(_each(branch), _each(whole)).sum()
            # What is zero and stays zero has not changed; what becomes or leaves zero has.
            lengths = np.sqrt(skip) * np.sqrt(whole)
            cosine = np.where(lengths > 0, both / np.where(lengths > 0, lengths, 1), skip == whole)
            changes[i, 1] += (1 - cosine).reshape(count, -1).mean(axis=1).sum()
        samples += count
    means = changes / max(1, samples)
    return {
        block.name: (float(change), float(influence))
        for block, (change, influence) in zip(scoring.blocks, means, strict=True)
    }


def _each(squares: np.ndarray) -> np.ndarray:
    """The norm of each sample."""
    norms: np.ndarray = np.sqrt(squares.reshape(len(squares), -1).sum(axis=1))
    return norms


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a / b``, at most 10¹² where a branch cancels what skips it; 0 where both are zero."""
    largest = np.maximum(b, 1e-12 * a)
    return np.where(largest > 0, a / np.where(largest > 0, largest, 1), 0.0)


def _probe(scoring: BlockScoring) -> Graph:
    """A copy of the graph whose only outputs are sums of products over features."""
    graph = scoring.structure.graph
    model = graph.model.clone()
    network = model.graph
    values = {value.name: value for value in network.inputs}
    values |= {value.name: value for node in network for value in node.outputs}
    sums = {node_name(node): node.outputs[0] for node in network}
    network.outputs.clear()
    for i, block in enumerate(scoring.blocks):
        skip, branch, whole = values[block.skip], values[block.branch], sums[block.sum]
        axis = _features(scoring.structure, whole)
        axes = ir.Tensor(np.array([axis], np.int64), name=f"onnxjl.axis.{i}")
        constant = ir.Value(
            name=axes.name,
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([1]),
            const_value=axes,
        )
        network.register_initializer(constant)
        wide = {}
        for key, value in (("skip", skip), ("sum", whole), ("branch", branch)):
            wide[key] = _add(network, "Cast", [value], {"to": ir.DataType.DOUBLE})
        for name, pair in zip(
            _PRODUCTS,
            (("skip", "sum"), ("skip", "skip"), ("sum", "sum"), ("branch", "branch")),
            strict=True,
        ):
            product = _add(network, "Mul", [wide[key] for key in pair])
            total = _add(network, "ReduceSum", [product, constant], {"keepdims": 0})
            total.name, total.dtype = f"onnxjl.{name}.{i}", ir.DataType.DOUBLE
            rank = len(scoring.structure.run.shapes.sizes[whole.name or ""])
            total.shape = ir.Shape([None] * (rank - 1))
            network.outputs.append(total)
    RemoveUnusedNodesPass()(model)
    return dataclasses.replace(graph, model=model)


def _features(structure: Structure, value: ir.Value) -> int:
    """The axis of features: the labelled one, else the channels of images, or the last."""
    axes = structure.run.axes.get(value.name or "", ())
    # Windows of an image may have labels, too, but as a part of its height or width.
    marked = [i for i, axis in enumerate(axes) if axis and all(f.labels is not None for f in axis)]
    if len(marked) == 1:
        return marked[0]
    rank = len(structure.run.shapes.sizes[value.name or ""])
    return 1 if rank > 3 else rank - 1


def _add(
    network: ir.Graph,
    operator: str,
    inputs: Sequence[ir.Value],
    attributes: Mapping[str, Any] | None = None,
) -> ir.Value:
    node = ir.node(operator, list(inputs), dict(attributes or {}))
    network.append(node)
    return node.outputs[0]
