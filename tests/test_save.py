"""save: what is on the disk is complete and checked, or as it was."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_networks as small
from onnx import numpy_helper

from onnxjl.check import Checker
from onnxjl.errors import CheckError, ExternalDataError, OutputError, UsageError
from onnxjl.graph import Graph
from onnxjl.load import load
from onnxjl.plan import Plan
from onnxjl.save import check_output, save, save_arrays, save_text
from onnxjl.session import open_session, run

# The package's attribute of this name is the function.
saving = importlib.import_module("onnxjl.save")
serializing = importlib.import_module("onnxjl.serialize")


@pytest.fixture
def proto():
    return small.convolutions()


@pytest.fixture
def graph(proto):
    return load(proto)


def state(folder):
    """Content of every file below a folder."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def initializers(path):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_what_is_saved_is_the_graph(graph, proto, tmp_path):
    done = save(graph, tmp_path / "out.onnx")
    assert (done.path, done.data) == (tmp_path / "out.onnx", None)
    assert done.size == (tmp_path / "out.onnx").stat().st_size
    assert done.check.status == "runs"
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    x = {"x": np.ones((1, 3, 6, 6), np.float32)}
    np.testing.assert_array_equal(
        run(open_session(tmp_path / "out.onnx"), x)["y"], run(open_session(proto), x)["y"]
    )
    assert state(tmp_path).keys() == {"out.onnx"}


def test_anything_that_load_takes_can_be_saved(proto, tmp_path):
    onnx.save(proto, tmp_path / "in.onnx")
    assert save(tmp_path / "in.onnx", tmp_path / "out.onnx").check.status == "equal"


def test_equal_graphs_give_equal_bytes(proto, tmp_path):
    for external in (False, True):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            save(
                load(proto), tmp_path / name / "o.onnx", check=False, external=external, force=True
            )
        assert state(tmp_path / "a") == state(tmp_path / "b")


def test_permissions_are_those_of_the_replaced_file_or_of_the_umask(graph, tmp_path):
    previous = os.umask(0o027)
    try:
        save(graph, tmp_path / "new.onnx", check=False)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "new.onnx").stat().st_mode) == 0o640
    (tmp_path / "new.onnx").chmod(0o664)
    save(graph, tmp_path / "new.onnx", check=False, force=True)
    assert stat.S_IMODE((tmp_path / "new.onnx").stat().st_mode) == 0o664


def test_a_link_leads_to_the_file_that_is_written(graph, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real" / "out.onnx")
    assert save(graph, tmp_path / "link.onnx", check=False).path == tmp_path / "real" / "out.onnx"
    assert (tmp_path / "link.onnx").is_symlink()
    with pytest.raises(OutputError, match="is a link; external data must lie beside"):
        save(graph, tmp_path / "link.onnx", check=False, force=True, external=True)


# What can't be an output


@pytest.fixture
def places(proto, tmp_path):
    """A folder with an input and some things in the way."""
    onnx.save(
        proto, tmp_path / "in.onnx", save_as_external_data=True, location="in.w", size_threshold=0
    )
    (tmp_path / "exists.onnx").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.onnx").symlink_to("in.onnx")
    os.link(tmp_path / "in.onnx", tmp_path / "hard.onnx")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("name", "message", "stops_force"),
    [
        ("exists.onnx", r"exists\.onnx: exists; --force \(force=True\) replaces it", False),
        ("in.onnx", r"in\.onnx: is the input", True),
        ("link.onnx", "is the input", True),
        ("hard.onnx", "is the input", True),
        ("in.w", "is the input", True),
        ("folder", "folder: is a folder; name a file in it", True),
        ("folder/", "is a folder", True),
        ("nowhere/out.onnx", "the folder .*nowhere doesn't exist", True),
        ("exists.onnx/out.onnx", "the folder .*exists.onnx doesn't exist", True),
        ("pipe", "exists and isn't a plain file", True),
        ("x" * 300, "can't be written: File name too long", True),
        ("nul\0.onnx", "can't be written: .*embedded null", True),
    ],
)
def test_an_output_that_cannot_be_is_refused_at_once(places, name, message, force, stops_force):
    graph, before = load(places / "in.onnx"), state(places)
    if force and not stops_force:
        save(graph, places / name, force=True, check=False, external=False)
        assert initializers(places / name).keys() == initializers(places / "in.onnx").keys()
        return
    path = f"{places}/{name}"
    with pytest.raises(OutputError, match=message) as caught:
        save(graph, path, force=force)
    assert isinstance(caught.value, OSError)
    assert "\n" not in str(caught.value)
    assert state(places) == before


def test_the_source_of_a_pruned_graph_is_an_input_too(proto, tmp_path):
    onnx.save(proto, tmp_path / "in.onnx")
    source = load(tmp_path / "in.onnx")
    graph = Graph(source.model, plan=Plan({}), source=source)
    with pytest.raises(OutputError, match="is the input"):
        save(graph, tmp_path / "in.onnx", force=True)


@pytest.mark.parametrize(
    ("locked", "message"), [("folder", "isn't writable"), ("folder/out.onnx", "write-protected")]
)
def test_write_protection_is_respected(locked, message, graph, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "out.onnx").write_bytes(b"old")
    # The superuser may write everywhere, so the question is answered in its place.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / locked)
    with pytest.raises(OutputError, match=message):
        check_output(tmp_path / "folder" / "out.onnx", force=True)


# Failures on the way


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_):
    raise KeyboardInterrupt


FAILURES = [
    (full, OutputError, "out.onnx: can't be written: No space left on device; every existing"),
    (interrupted, KeyboardInterrupt, "^$"),
]


@pytest.mark.parametrize(
    ("where", "name", "external"),
    [
        (serializing, "skeleton", False),
        (serializing, "write_tensor", False),
        (saving, "write", False),
        (saving, "write_tensor", True),
        (saving, "skeleton", True),
        *((os, name, external) for name in ("open", "fsync", "replace") for external in (0, 1)),
        (Checker, "check", False),
        (Checker, "check", True),
    ],
)
@pytest.mark.parametrize(("failure", "error", "message"), FAILURES)
def test_a_failure_leaves_everything_as_it_was(
    where, name, external, failure, error, message, graph, tmp_path, monkeypatch
):
    save(graph, tmp_path / "out.onnx", check=False, external=True)
    before = state(tmp_path)
    other = load(small.convolutions(seed=1))
    reached = []
    monkeypatch.setattr(where, name, lambda *_, **__: (reached.append(name), failure()))
    with pytest.raises(error, match=message):
        save(other, tmp_path / "out.onnx", force=True, external=bool(external))
    assert reached
    monkeypatch.undo()
    assert state(tmp_path) == before


def test_an_interruption_after_the_renaming_keeps_the_new_files(graph, tmp_path, monkeypatch):
    replace = os.replace

    def late(source, target):
        replace(source, target)
        if str(target).endswith(".onnx"):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(KeyboardInterrupt):
        save(graph, tmp_path / "out.onnx", external=True, check=False)
    onnx.checker.check_model(tmp_path / "out.onnx")
    assert len(initializers(tmp_path / "out.onnx")) == 10


def test_a_model_that_fails_its_check_is_not_saved(proto, tmp_path):
    plan = Plan(
        {
            "head.weight": {1: np.array([0, 1, 2])},
            "second.bias": {0: np.array([0, 1, 2])},
            "second.weight": {0: np.array([0, 1, 2])},
        }
    )
    wrong = onnx.ModelProto()
    wrong.CopyFrom(proto)
    for tensor in wrong.graph.initializer:
        array = numpy_helper.to_array(tensor)
        for axis in plan.kept.get(tensor.name, {}):
            array = np.take(array, [0, 1, 3], axis)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    graph = Graph(load(wrong).model, normalized=True, plan=plan, source=load(proto))
    (tmp_path / "out.onnx").write_bytes(b"old")
    with pytest.raises(CheckError, match="output 'y' differs from the masked source"):
        save(graph, tmp_path / "out.onnx", force=True)
    assert state(tmp_path) == {"out.onnx": b"old"}
    assert save(graph, tmp_path / "out.onnx", force=True, check=False).check.status == "skipped"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can mount a small file system")
@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk(external, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container can't mount a file system")
    try:
        (disk / "out.onnx").write_bytes(b"old")
        weight = np.zeros((100, 1000), np.float32)
        node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
        large = load(small.model([node], {"x": (1, 100)}, {"y": (1, 1000)}, {"w": weight}))
        with pytest.raises(OutputError, match="No space left on device"):
            save(large, disk / "out.onnx", force=True, external=external)
        assert state(disk) == {"out.onnx": b"old"}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_files_of_killed_processes_are_cleaned_and_others_left(graph, tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from onnxjl.save import _Temporary\n"
        "_Temporary(Path(sys.argv[1])).__enter__(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "out.onnx"], check=False)
    (stale,) = state(tmp_path)
    assert stale.endswith(".onnxjl-tmp")
    with saving._Temporary(tmp_path / "other.onnx") as busy:
        save(graph, tmp_path / "out.onnx", check=False)
        assert state(tmp_path).keys() == {"out.onnx", busy.path.name}
    assert state(tmp_path).keys() == {"out.onnx"}


def test_a_temporary_file_that_was_cleaned_before_it_was_locked_is_made_again(
    tmp_path, monkeypatch
):
    flock, calls = fcntl.flock, []

    def stolen(descriptor, operation):
        calls.append(descriptor)
        if len(calls) == 1:
            (path,) = tmp_path.glob(".*")
            path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(saving, "flock", stolen)
    assert save_text("text", tmp_path / "plan.json").read_text() == "text"
    assert len(calls) == 2


# External data


def test_external_weights_stay_external(proto, tmp_path):
    onnx.save(
        proto, tmp_path / "in.onnx", save_as_external_data=True, location="in.w", size_threshold=0
    )
    done = save(load(tmp_path / "in.onnx"), tmp_path / "out.onnx")
    assert done.check.status == "equal"
    content = done.data.read_bytes()
    assert done.data.name == f"out.{hashlib.sha256(content).hexdigest()[:16]}.data"
    assert done.size == len(content) + (tmp_path / "out.onnx").stat().st_size
    found, expected = initializers(tmp_path / "out.onnx"), initializers(tmp_path / "in.onnx")
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    onnx.checker.check_model(tmp_path / "out.onnx")
    assert save(load(tmp_path / "in.onnx"), tmp_path / "one.onnx", external=False).data is None


def test_a_graph_pruned_from_external_weights_is_saved_so(proto, tmp_path):
    onnx.save(
        proto, tmp_path / "in.onnx", save_as_external_data=True, location="in.w", size_threshold=0
    )
    source = load(tmp_path / "in.onnx")
    graph = Graph(load(small.convolutions()).model, plan=Plan({}), source=source)
    assert save(graph, tmp_path / "out.onnx").data is not None


def test_more_than_one_message_holds_goes_outside(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "INLINE_LIMIT", 100)
    assert save(graph, tmp_path / "out.onnx", check=False).data is not None
    with pytest.raises(UsageError, match="don't fit into one file"):
        save(graph, tmp_path / "one.onnx", external=False)


def test_an_old_data_file_goes_only_if_it_is_ours_and_unnamed(proto, graph, tmp_path):
    target = tmp_path / "out.onnx"
    first = save(graph, target, check=False, external=True).data
    again = save(graph, target, check=False, external=True, force=True).data
    assert first == again
    assert first.exists()
    other = load(small.convolutions(seed=1))
    (tmp_path / "copy.onnx").write_bytes(target.read_bytes())
    second = save(other, target, check=False, external=True, force=True).data
    assert state(tmp_path).keys() == {"out.onnx", "copy.onnx", first.name, second.name}
    (tmp_path / "copy.onnx").unlink()
    save(other, target, check=False, external=False, force=True)
    assert state(tmp_path).keys() == {"out.onnx", first.name}
    first.unlink()

    onnx.save(proto, target, save_as_external_data=True, location="theirs", size_threshold=0)
    save(graph, target, check=False, force=True)
    assert state(tmp_path).keys() == {"out.onnx", "theirs"}


def test_the_mark_does_not_outlive_the_data_file(graph, tmp_path):
    save(graph, tmp_path / "two.onnx", check=False, external=True)
    save(load(tmp_path / "two.onnx"), tmp_path / "one.onnx", check=False, external=False)
    assert not onnx.load(tmp_path / "one.onnx").metadata_props


def test_a_data_file_of_the_same_name_is_not_overwritten(graph, tmp_path):
    data = save(graph, tmp_path / "out.onnx", check=False, external=True).data
    data.write_bytes(b"something else")
    before = state(tmp_path)
    with pytest.raises(OutputError, match="exists and isn't ours; move it away"):
        save(graph, tmp_path / "out.onnx", check=False, external=True, force=True)
    assert state(tmp_path) == before


def test_weights_that_went_away_are_named(proto, tmp_path):
    onnx.save(
        proto, tmp_path / "in.onnx", save_as_external_data=True, location="in.w", size_threshold=0
    )
    graph = load(tmp_path / "in.onnx")
    (tmp_path / "in.w").unlink()
    with pytest.raises(ExternalDataError, match=r"'second\.weight' are no longer there"):
        save(graph, tmp_path / "out.onnx")
    assert state(tmp_path).keys() == {"in.onnx"}


def test_weights_that_were_exchanged_for_a_link_are_not_written(proto, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(
        proto, folder / "in.onnx", save_as_external_data=True, location="in.w", size_threshold=0
    )
    graph = load(folder / "in.onnx")
    (folder / "in.w").rename(tmp_path / "secret")
    (folder / "in.w").symlink_to(tmp_path / "secret")
    for external in (False, True):
        with pytest.raises(ExternalDataError, match="were exchanged"):
            save(graph, folder / "out.onnx", external=external, check=False)
    assert sorted(path.name for path in folder.iterdir()) == ["in.onnx", "in.w"]


@pytest.mark.parametrize("external", [False, True])
def test_the_data_that_a_graph_still_reads_stay(proto, external, tmp_path):
    """Where the replaced model is a copy of the one that was loaded, and that one is gone."""
    data = save(load(proto), tmp_path / "a.onnx", check=False, external=True).data
    graph = load(tmp_path / "a.onnx")
    (tmp_path / "a.onnx").rename(tmp_path / "b.onnx")
    expected = data.read_bytes()
    save(graph, tmp_path / "b.onnx", check=False, external=external, force=True)
    assert data.read_bytes() == expected
    np.testing.assert_array_equal(graph.weight("first.weight"), load(proto).weight("first.weight"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_saving_external_weights_needs_no_memory_for_them(tmp_path):
    size = 200_000_000
    with (tmp_path / "w").open("wb") as file:
        file.truncate(size)
    weight = onnx.TensorProto(name="w", data_type=1, dims=(size // 4000, 1000))
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = small.model([node], {"x": (1, size // 4000)}, {"y": (1, 1000)}, {"w": np.zeros(1)})
    del proto.graph.initializer[:]
    proto.graph.initializer.append(weight)
    onnx.save(proto, tmp_path / "in.onnx")
    code = (
        "import sys; from onnxjl.load import load; from onnxjl.save import save\n"
        "save(load(sys.argv[1]), sys.argv[2], check=False)\n"
        # Not ru_maxrss, which a process inherits from the one that started it.
        "lines = open('/proc/self/status').read().splitlines()\n"
        "print(1024 * int(next(line for line in lines if 'VmHWM' in line).split()[1]))"
    )
    arguments = [sys.executable, "-c", code, tmp_path / "in.onnx", tmp_path / "out.onnx"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < size
    assert (tmp_path / "out.onnx").stat().st_size < 5000


# Text


def test_arrays_are_saved_over_earlier_ones_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "arrays.npz"
    save_arrays({"part/0": np.arange(3)}, path)
    save_arrays({"part/0": np.arange(4)}, path)
    with np.load(path) as file:
        assert file["part/0"].tolist() == [0, 1, 2, 3]
    before = state(tmp_path)

    def full(file, **arrays):
        file.write(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OutputError, match="No space left on device"):
        save_arrays({"part/0": np.arange(5)}, path)
    assert state(tmp_path) == before


def test_text_is_saved_as_carefully(tmp_path, monkeypatch):
    assert save_text("{}", tmp_path / "plan.json").read_text() == "{}"
    with pytest.raises(OutputError, match="exists; --force"):
        save_text("[]", tmp_path / "plan.json")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_text("[]", tmp_path / "plan.json", force=True)
    assert state(tmp_path) == {"plan.json": b"{}"}


@pytest.mark.parametrize("kept", ["copy.pb", "copy"])
def test_data_that_a_model_of_another_name_still_names_stay(kept, tmp_path):
    save(small.convolutions(), tmp_path / "a.onnx", external=True, check=False)
    shutil.copy(tmp_path / "a.onnx", tmp_path / kept)
    before = onnx.load(tmp_path / kept)
    save(small.convolutions(seed=1), tmp_path / "a.onnx", external=True, check=False, force=True)
    assert onnx.load(tmp_path / kept) == before


def test_data_that_a_model_only_claims_to_have_stay(tmp_path):
    """The metadata of a file that is replaced say that another model's data are its own."""
    data = save(small.convolutions(), tmp_path / "b.model", external=True, check=False).data
    (tmp_path / "b.model").unlink()
    liar = small.convolutions()
    onnx.helper.set_model_props(liar, {"onnxjl.external_data": data.name})
    onnx.save(liar, tmp_path / "a.onnx")
    save(small.convolutions(seed=1), tmp_path / "a.onnx", check=False, force=True)
    assert data.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_a_pipe_called_like_a_temporary_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".x.onnxjl-tmp")
    save(small.convolutions(), tmp_path / "a.onnx", check=False)
    assert (tmp_path / ".x.onnxjl-tmp").exists()


def test_a_name_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("\N{GRINNING FACE}" * 62 + ".onnx")
    save(small.convolutions(), path, check=False)
    assert load(path).path == path


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes")
def test_a_name_that_is_not_unicode(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.onnx")
    with pytest.raises(OutputError, match="its name isn't Unicode"):
        save(small.convolutions(), path, external=True, check=False)
    assert not list(tmp_path.iterdir())
    save(small.convolutions(), path, check=False)
    assert load(path).fingerprint
