"""Several threads and processes at once: each gets what one alone would."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest
import small_networks as small

import onnxjl
from onnxjl.load import load

AMOUNTS = (0.2, 0.4, 0.6, 0.8)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pruned(model: str | Path | onnxjl.Graph, amount: float, target: Path) -> str:
    """Prune, apply the plan again, save; return what was written."""
    graph = onnxjl.prune(model, amount=amount)
    assert graph.plan is not None
    again = onnxjl.apply(onnxjl.load(model), graph.plan)
    again.save(target, check=False, force=True)
    return digest(target)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.model"
    onnx.save(small.convolutions(), path)
    return path


@pytest.fixture
def alone(path: Path, tmp_path: Path) -> list[str]:
    """What one thread writes, one amount after another."""
    return [pruned(path, amount, tmp_path / "alone.onnx") for amount in AMOUNTS]


@pytest.mark.parametrize("shared", [False, True])
def test_threads_get_what_one_alone_gets(
    shared: bool, path: Path, alone: list[str], tmp_path: Path
) -> None:
    """Of a file, and of one graph that all of them use."""
    graph = onnxjl.normalize(load(path))
    source: Path | onnxjl.Graph = graph if shared else path
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(pruned, source, amount, tmp_path / f"{turn}-{i}.onnx")
            for turn in range(5)
            for i, amount in enumerate(AMOUNTS)
        ]
        found = [job.result() for job in jobs]
    assert found == alone * 5


def test_threads_normalize_one_graph(path: Path) -> None:
    graph = load(path)
    with ThreadPoolExecutor(4) as pool:
        prints = {job.result().fingerprint for job in [pool.submit(onnxjl.normalize, graph)] * 8}
    assert prints == {onnxjl.normalize(load(path)).fingerprint}


def test_threads_check_what_they_save(path: Path, tmp_path: Path) -> None:
    """Each with a process of its own that checks."""
    graph = onnxjl.prune(path, amount=0.5)
    with ThreadPoolExecutor(2) as pool:
        saved = list(pool.map(graph.save, [tmp_path / "a.onnx", tmp_path / "b.onnx"]))
    assert [each.check.status for each in saved] == ["equal", "equal"]
    assert digest(tmp_path / "a.onnx") == digest(tmp_path / "b.onnx")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_get_what_one_alone_gets(
    method: str, path: Path, alone: list[str], tmp_path: Path
) -> None:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        jobs = [
            pool.submit(pruned, path, amount, tmp_path / f"{i}.onnx")
            for i, amount in enumerate(AMOUNTS)
        ]
        assert [job.result() for job in jobs] == alone


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_after_work_was_done_works(path: Path, alone: list[str], tmp_path: Path) -> None:
    """In a process of its own, where nothing else has started threads."""
    code = (
        "import os, sys\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path\n"
        "from test_threads import AMOUNTS, pruned\n"
        "path, folder = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "pruned(path, 0.5, folder / 'parent.onnx')\n"
        "for i, amount in enumerate(AMOUNTS):\n"
        "    if os.fork() == 0:\n"
        "        pruned(path, amount, folder / f'{i}.onnx')\n"
        "        os._exit(0)\n"
        "for _ in AMOUNTS:\n"
        "    assert os.wait()[1] == 0\n"
    )
    arguments = [str(path), str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [digest(tmp_path / f"{i}.onnx") for i in range(len(AMOUNTS))] == alone
