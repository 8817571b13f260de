"""The proof: a pruned network computes what the masked one does, and is as small as foretold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from double_precision import run_in_double
from onnx import numpy_helper
from oracle import difference, masked_outputs, run

from onnxjl import apply
from onnxjl.structure import Structure, analyze

TOLERANCE = 1e-4
"""Largest difference, relative to each output's largest element."""

TOLERANCE_IN_DOUBLE = 1e-9
"""The same in float64, whose roundings are 2²⁹ times as small as those of float32."""

Keep = list[np.ndarray]


def random_keep(structure: Structure, generator: np.random.Generator) -> Keep:
    """Return for every group which units stay: of each exact one another number, at least one."""
    return [
        _some(g.size, int(generator.integers(1, g.size + 1)) if g.exact else g.size, generator)
        for g in structure.groups
    ]


def strongest_keep(structure: Structure, generator: np.random.Generator) -> Keep:
    """Return what leaves one unit of every exact group."""
    return [
        _some(group.size, 1 if group.exact else group.size, generator) for group in structure.groups
    ]


def single_keep(structure: Structure, generator: np.random.Generator) -> Keep:
    """Return what takes units of one exact group only."""
    exact = [i for i, group in enumerate(structure.groups) if group.exact]
    chosen = int(generator.choice(exact))
    return [
        _some(g.size, int(generator.integers(1, g.size)) if i == chosen else g.size, generator)
        for i, g in enumerate(structure.groups)
    ]


PLANS = (random_keep, strongest_keep, single_keep)
"""Kinds of random plans."""


def _some(size: int, count: int, generator: np.random.Generator) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[generator.permutation(size)[:count]] = True
    return mask


def counts(keep: Keep) -> np.ndarray:
    """Return how many units each group keeps."""
    return np.array([mask.sum() for mask in keep], dtype=np.int64)


def prove(structure: Structure, keep: Keep, feeds: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Prune, and check all that is known of the result.

    Weights are the kept slices of the source's, everything else is unchanged but for the plan's
    constants; parameters, bytes and multiply–accumulates are what the structure foretold; ONNX's
    checker accepts it.

    Parameters
    ----------
    keep : which units of each group stay.
    feeds : inputs to run on.

    Returns
    -------
    The largest relative difference from the masked source.
    """
    plan = structure.plan(keep)
    small = apply(structure.graph, plan)
    proto = ir.to_proto(small.model)
    onnx.checker.check_model(proto, full_check=True)
    source = ir.to_proto(structure.graph.model)
    _check_weights(source, proto, plan.kept, plan.constants)
    _check_costs(structure, counts(keep), source, proto)
    again = analyze(small, granularity=structure.granularity)
    foretold = structure.macs.total(counts(keep))
    np.testing.assert_allclose(again.macs.total(again.sizes), foretold, rtol=1e-9)
    content = proto.SerializeToString()
    worst = 0.0
    for inputs in feeds:
        worst = max(
            worst, difference(run(content, inputs), masked_outputs(source, plan.kept, inputs))
        )
    return worst


def prove_in_double(
    structure: Structure, keep: Keep, feeds: Sequence[Mapping[str, np.ndarray]]
) -> float:
    """Return the largest relative difference of a pruned network from the masked one in float64.

    A network may amplify rounding without end: one that subtracts a mean from what is nearly the
    mean leaves little else. In float64 such a difference all but vanishes; that of a wrong plan is
    as large as in float32.
    """
    plan = structure.plan(keep)
    small = ir.to_proto(apply(structure.graph, plan).model)
    source = ir.to_proto(structure.graph.model)
    return max(
        difference(
            run_in_double(small, inputs), masked_outputs(source, plan.kept, inputs, run_in_double)
        )
        for inputs in feeds
    )


def _arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def _check_weights(
    source: onnx.ModelProto,
    small: onnx.ModelProto,
    kept: Mapping[str, Mapping[int, np.ndarray]],
    constants: Mapping[str, np.ndarray],
) -> None:
    before, after = _arrays(source), _arrays(small)
    assert list(before) == list(after)
    for name, array in before.items():
        for axis, indices in kept.get(name, {}).items():
            array = np.take(array, indices, axis)
        if name in constants:
            assert array.dtype.kind in "iu"
            array = np.asarray(constants[name], array.dtype)
        np.testing.assert_array_equal(after[name], array, err_msg=name)
        assert after[name].dtype == array.dtype


def _check_costs(
    structure: Structure, kept: np.ndarray, source: onnx.ModelProto, small: onnx.ModelProto
) -> None:
    before, after = _arrays(source), _arrays(small)
    params = sum(array.size for array in after.values() if array.dtype.kind == "f")
    assert structure.params.total(kept) == params
    # Tables of indices shrink too; that is no reason to remove anything.
    integers = sum(before[n].nbytes - a.nbytes for n, a in after.items() if a.dtype.kind in "iu")
    size = sum(array.nbytes for array in after.values())
    assert structure.bytes.total(kept) == size + integers
