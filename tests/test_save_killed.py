"""save, killed at any moment, or two at once: the target is the old file or the new one, whole."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys

import onnx
import pytest
import small_networks as small

from onnxjl.errors import OutputError
from onnxjl.external import digest_of
from onnxjl.load import load
from onnxjl.save import save

saving = importlib.import_module("onnxjl.save")  # `onnxjl.save` is the function.
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and sends signals")

# Writes one of two networks over the other, in a child that is killed after a random time; the
# network that it finds has to be one of the two. Once for every kill, for whoever has the time.
KILLS = int(os.environ.get("ONNXJL_KILLS", "100"))
_WRITER = """
import hashlib, json, os, random, re, signal, sys, time
from collections import Counter
from pathlib import Path
import onnx
import onnxjl
from onnxjl.save import save

folder, kills, external = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"
graphs = [onnxjl.load(folder / name) for name in ("a.model", "b.model")]
target = folder / "out.onnx"

def write(graph):
    save(graph, target, force=True, check=False, external=external)

def content():
    # Of the model and its data: what a reader gets.
    model = onnx.load(target)
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()

known, taken = [], []
for graph in graphs:
    for _ in range(3):
        start = time.monotonic()
        write(graph)
        taken.append(time.monotonic() - start)
    known.append(content())
chance, found, current = random.Random(0), Counter(), 1
for number in range(kills):
    child = os.fork()
    if not child:
        write(graphs[1 - current])
        os._exit(0)
    time.sleep(chance.uniform(0, 1.5 * sorted(taken)[len(taken) // 2]))
    os.kill(child, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    now = known.index(content())  # Neither: a ValueError.
    found["new" if now != current else "old", "killed" if killed else "done"] += 1
    current = now
write(graphs[0])
left = sorted(path.name for path in folder.iterdir())
print(json.dumps({"found": {" ".join(k): v for k, v in found.items()}, "left": left}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("external", [False, True])
def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(external, tmp_path):
    for name, seed in (("a.model", 0), ("b.model", 1)):
        onnx.save(small.convolutions(seed=seed), tmp_path / name)
    arguments = [str(tmp_path), str(KILLS // 2), str(int(external))]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WRITER, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    print(result)
    # Some were killed on the way, or else nothing was tested.
    assert result["found"].get("old killed", 0) > KILLS // 50
    names = set(result["left"]) - {"a.model", "b.model", "out.onnx"}
    # Data whose model never got its name may stay: it is whole, as its name says.
    for name in names:
        digest = re.fullmatch(r"out\.([0-9a-f]{16})\.data", name)
        assert digest, name
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:16] == digest[1]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_save_leaves_the_file_as_it_was(sent, tmp_path):
    """Sent when the new file is written and not yet renamed; the next save cleans up."""
    onnx.save(small.convolutions(), tmp_path / "in.model")
    (tmp_path / "out.onnx").write_bytes(b"old")
    code = (
        "import os, sys, time, onnxjl, importlib\n"
        "saving = importlib.import_module('onnxjl.save')\n"
        "def slow(*_):\n"
        "    print('now', flush=True)\n"
        "    time.sleep(60)\n"
        "os.replace = slow\n"
        "saving.save(sys.argv[1], sys.argv[2], force=True, check=False)\n"
    )
    arguments = [str(tmp_path / "in.model"), str(tmp_path / "out.onnx")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.send_signal(sent)
        _, errors = process.communicate()
    assert said == "now\n", errors
    assert process.returncode == -sent
    assert (tmp_path / "out.onnx").read_bytes() == b"old"
    save(tmp_path / "in.model", tmp_path / "out.onnx", force=True, check=False)
    assert {path.name for path in tmp_path.iterdir()} == {"in.model", "out.onnx"}


@pytest.mark.parametrize("external", [False, True])
def test_two_processes_write_one_target(external, tmp_path):
    for name, seed in (("a.model", 0), ("b.model", 1)):
        onnx.save(small.convolutions(seed=seed), tmp_path / name)
    code = (
        "import sys, onnxjl\n"
        "from onnxjl.save import save\n"
        "graph = onnxjl.load(sys.argv[1])\n"
        "for _ in range(60):\n"
        "    save(graph, sys.argv[2], force=True, check=False, external=sys.argv[3] == '1')\n"
    )
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                code,
                str(tmp_path / name),
                str(tmp_path / "out.onnx"),
                str(int(external)),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a.model", "b.model")
    ]
    wanted = [load(tmp_path / name).fingerprint for name in ("a.model", "b.model")]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    assert load(tmp_path / "out.onnx").fingerprint in wanted
    assert not list(tmp_path.glob(".*"))


def test_the_other_writer_removes_what_is_being_looked_at(tmp_path, monkeypatch):
    """The data of an equal model are there, and gone before they are read; then those just made."""
    onnx.save(small.convolutions(), tmp_path / "in.model")
    target = tmp_path / "out.onnx"
    data = save(tmp_path / "in.model", target, check=False, external=True).data

    def gone(path):
        os.unlink(path)
        return digest_of(path)

    monkeypatch.setattr(saving, "digest_of", gone)
    again = save(tmp_path / "in.model", target, force=True, check=False, external=True)
    assert again.data == data
    assert load(target).fingerprint == load(tmp_path / "in.model").fingerprint

    def replaced(source, name):
        replace(source, name)
        if os.fspath(name) == os.fspath(target):
            data.unlink()

    replace = os.replace
    monkeypatch.setattr(saving, "digest_of", digest_of)
    monkeypatch.setattr(os, "replace", replaced)
    third = save(tmp_path / "in.model", target, force=True, check=False, external=True)
    assert third.size == again.size


def test_data_are_named_and_removed_by_one_process_at_a_time(tmp_path, monkeypatch):
    """Or one would remove the file that another has put there after the first looked at it."""
    fcntl = pytest.importorskip("fcntl")
    folder, alone = os.open(tmp_path, os.O_RDONLY), []

    def looked(name, function):
        def wrapper(*args):
            if name == "_holds" or str(args[-1]).endswith(".data"):
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    alone.append((name, True))
                else:
                    fcntl.flock(folder, fcntl.LOCK_UN)
                    alone.append((name, False))
            return function(*args)

        return wrapper

    for name, seed in (("a.model", 0), ("b.model", 1)):
        onnx.save(small.convolutions(seed=seed), tmp_path / name)
    first = save(tmp_path / "a.model", tmp_path / "out.onnx", check=False, external=True)
    monkeypatch.setattr(os, "replace", looked("replace", os.replace))
    monkeypatch.setattr(saving, "_holds", looked("_holds", saving._holds))
    save(tmp_path / "b.model", tmp_path / "out.onnx", force=True, check=False, external=True)
    os.close(folder)
    assert set(alone) == {("replace", True), ("_holds", True)}
    assert first.data is not None
    assert not first.data.exists()


def test_a_writer_that_lives_keeps_its_temporary_file(tmp_path):
    """Another process's save cleans up around it."""
    onnx.save(small.convolutions(), tmp_path / "in.model")
    code = (
        "import sys, time; from pathlib import Path; from onnxjl.save import _Temporary\n"
        "with _Temporary(Path(sys.argv[1])) as temporary:\n"
        "    print(temporary.path.name, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "other.onnx")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        save(tmp_path / "in.model", tmp_path / "out.onnx", check=False)
        assert (tmp_path / name).exists()
        process.stdin.close()
        process.wait()
    assert not (tmp_path / name).exists()


@pytest.mark.skipif(os.name != "posix", reason="mounts a file system")
def test_a_folder_that_cannot_be_written(tmp_path):
    onnx.save(small.convolutions(), tmp_path / "in.model")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out.onnx").write_bytes(b"old")
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    if not mounted:
        if os.geteuid() == 0:
            pytest.skip("the superuser writes everywhere, and can't mount a file system here")
        folder.chmod(0o500)
    try:
        with pytest.raises(OutputError, match=r"isn't writable|Read-only"):
            save(tmp_path / "in.model", folder / "out.onnx", force=True, check=False)
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        folder.chmod(0o700)
    assert {path.name for path in folder.iterdir()} == {"out.onnx"}
    assert (folder / "out.onnx").read_bytes() == b"old"
