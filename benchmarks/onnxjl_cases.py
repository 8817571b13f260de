"""What onnxjl does in one process, told in one line of JSON.

Run as ``python onnxjl_cases.py CASE [ARGUMENTS]``:

``file MODEL OUTPUT``     load, normalize, groups, l2 at half the MACs, save without the check
``checked MODEL OUTPUT``  the same with the check
``memory MODEL REPEATS``  the same steps in memory, without files: once, and several times
``nodes BLOCKS``          the analysis of a residual network of 5 × BLOCKS nodes
``channels WIDTH``        the analysis of ten residual blocks that are WIDTH channels wide inside
``macs MODEL``            multiply–accumulates and parameters of any file
"""

from __future__ import annotations

from pathlib import Path

import networks
import onnx_ir
from measure import Measurement, arguments, stay_on_one_core

from onnxjl import Graph, load, normalize, prune, save
from onnxjl.structure import analyze, groups

HALF = 0.5


def file(model: str, output: str) -> None:
    """From file to file, every step once, as a command would do it."""
    run = Measurement()
    graph = run.step("load, normalize", lambda: normalize(model))
    small = run.step("groups, l2, apply", lambda: prune(graph, macs=HALF, criterion="l2"))
    run.step("save", lambda: save(small, output, check=False))
    run.report()


def checked(model: str, output: str) -> None:
    """As `file`, with the check before the file gets its name; memory is this process's own."""
    run = Measurement()
    small = run.step("prune", lambda: prune(model, macs=HALF, criterion="l2"))
    run.step("save and check", lambda: save(small, output))
    run.report()


def memory(model: str, repeats: str) -> None:
    """Without files: the source is bytes in memory, and nothing is written."""
    content = Path(model).read_bytes()
    run = Measurement()
    graph = run.step("load, normalize", lambda: normalize(content))
    _once(run, graph)

    # A graph remembers its analysis: another one each time, and then the same one again.
    def another() -> tuple[Graph]:
        return (normalize(content),)

    count = int(repeats)
    run.repeat("load, normalize, repeated", another, count)
    run.repeat("groups, l2, apply, repeated", _prune, count, prepare=another)
    run.repeat("with reading, repeated", lambda graph: _read(_prune(graph)), count, prepare=another)
    run.repeat("again, with reading", lambda: _read(_prune(graph)), count)
    run.report()


def _once(run: Measurement, graph: Graph) -> None:
    small = run.step("groups, l2, apply", lambda: _prune(graph))
    run.step("reading", lambda: _read(small))


def _prune(graph: Graph) -> Graph:
    return prune(graph, macs=HALF, criterion="l2")


def _read(graph: Graph) -> Graph:
    """Read every weight: those that are cut are copied only now, and peers' are there at once."""
    for name in graph.model.graph.initializers:
        graph.weight(name)
    return graph


def nodes(blocks: str) -> None:
    """Growth with the number of nodes."""
    _growth(networks.residual(int(blocks), 16, 16))


def channels(width: str) -> None:
    """Growth with the number of channels."""
    _growth(networks.residual(10, 64, int(width)))


def _growth(model: onnx_ir.Model) -> None:
    run = Measurement()
    graph = run.step("load", lambda: load(model))
    normal = run.step("normalize", lambda: normalize(graph))
    found = run.step("groups", lambda: groups(normal))
    run.step("prune", lambda: prune(normal, macs=HALF, criterion="random"))
    run.facts = {
        "nodes": sum(1 for _ in normal.model.graph),
        "units": sum(group.size for group in found),
    }
    run.report()


def macs(model: str) -> None:
    """Costs of a file, whoever wrote it."""
    structure = analyze(normalize(model))
    run = Measurement()
    run.facts = {
        "macs": structure.macs.total(structure.sizes),
        "params": structure.params.total(structure.sizes),
    }
    run.report()


if __name__ == "__main__":
    stay_on_one_core()
    case, *rest = arguments()
    {f.__name__: f for f in (file, checked, memory, nodes, channels, macs)}[case](*rest)
