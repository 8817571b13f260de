"""Save: a file is complete and checked before it takes its name, and nothing is lost before."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxjl.check import SKIPPED, Checker, Outcome
from onnxjl.errors import ModelError, OutputError, UsageError
from onnxjl.external import DATA_NAME, digest_of, has_changed
from onnxjl.flux import FluxModel
from onnxjl.graph import Graph
from onnxjl.load import load
from onnxjl.serialize import (
    INLINE_LIMIT,
    MARK,
    skeleton,
    weight_bytes,
    weights,
    write,
    write_tensor,
)

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows has no such locks: nothing is cleaned up there.
    flock = None  # type: ignore[assignment]

_SUFFIX = ".onnxjl-tmp"
_ALIGNMENT = 64  # Bytes; memory-mapped weights then suit any vector instruction.
_FORCE = "--force (force=True) replaces it"


@dataclass(frozen=True)
class Saved:
    """A file that was written.

    Parameters
    ----------
    path : the model.
    data : its external data, if any.
    size : bytes of both.
    check : what the check found.
    """

    path: Path
    data: Path | None
    size: int
    check: Outcome


def save(
    graph: Any,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    check: bool = True,
    inputs: Mapping[str, np.ndarray] | None = None,
    external: bool | None = None,
) -> Saved:
    """Write a graph to an ONNX file, check it, and only then give it its name.

    Weights of more than 1.8 GB go to a file ``STEM.HASH.data`` beside the model, and so do those
    that were in such a file before. Equal graphs give equal bytes.

    Parameters
    ----------
    graph : what to write: a Graph, a FluxModel, or anything else that `onnxjl.load` takes.
    path : where to. Its folder must exist.
    force : whether an existing file may be replaced. The file that the graph was loaded from
        never is.
    check : whether to compare the new file with its source in onnxruntime (see `onnxjl.check`).
    inputs : what to run the check on, by input name; random ones if not given.
    external : whether weights go to a file of their own; None decides as said above.

    Returns
    -------
    Saved
        Where it is, its size, and the outcome of the check.

    Raises
    ------
    OutputError : the file can't be written, or exists; every existing file is as it was.
    CheckError : the new file failed its check; nothing was written.
    ModelError : the file that the graph was loaded from was written to; nothing was written.
    ExternalDataError : likewise, of its external data, or they are no longer there.
    """
    expected = None
    if isinstance(graph, FluxModel):
        expected = graph.as_written().run
        graph = graph.to_graph()
    elif not isinstance(graph, Graph):
        graph = load(graph)
    target = check_output(path, force=force, inputs=input_files(graph))
    _check_unchanged(graph)
    size = weight_bytes(graph)
    if external is None:
        external = size > INLINE_LIMIT or _was_external(graph)
    elif not external and size > INLINE_LIMIT:
        raise UsageError(
            f"{size / 1e9:.1f} GB of weights don't fit into one file; use external=True"
        )
    if external and Path(path).is_symlink():
        raise OutputError(f"{path}: is a link; external data must lie beside the file it leads to")
    _clean(target.parent)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_as_output_error(path))
        checker = stack.enter_context(Checker()) if check else None

        def finish(temporary: _Temporary) -> Outcome:
            temporary.flush()
            if checker is None:
                return SKIPPED
            return checker.check(graph, temporary.path, inputs=inputs, expected=expected)

        if external:
            return _save_in_two(graph, target, finish)
        old = _marked_data(target)
        with _Temporary(target) as temporary:
            write(graph, temporary.file)
            outcome = finish(temporary)
            size = temporary.rename(target).st_size
        _remove_unnamed(old, graph)
        return Saved(target, None, size, outcome)


def save_text(text: str, path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write a text file, such as a plan, as carefully as `save` writes a model.

    Parameters
    ----------
    text : the content.
    path : where to.
    force : whether an existing file may be replaced.

    Returns
    -------
    The file.

    Raises
    ------
    OutputError : the file can't be written, or exists.
    """
    target = check_output(path, force=force)
    with _as_output_error(path), _Temporary(target) as temporary:
        temporary.file.write(text.encode())
        temporary.flush()
        temporary.rename(target)
    return target


def save_arrays(arrays: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> Path:
    """Write an ``.npz`` file as carefully as `save` writes a model, over one that is there.

    Parameters
    ----------
    arrays : by name.
    path : where to.

    Returns
    -------
    The file.

    Raises
    ------
    OutputError : the file can't be written.
    """
    target = check_output(path, force=True)
    named: dict[str, Any] = dict(arrays)
    with _as_output_error(path), _Temporary(target) as temporary:
        np.savez(temporary.file, **named)
        temporary.flush()
        temporary.rename(target)
    return target


def check_output(
    path: str | os.PathLike[str], *, force: bool = False, inputs: Iterable[Path] = ()
) -> Path:
    """Find out before long work begins whether a file can be written.

    Parameters
    ----------
    path : the file to be.
    force : whether an existing file may be replaced.
    inputs : files that must not be replaced whatever `force` says.

    Returns
    -------
    The file that a link in `path` leads to, else `path`, with its folder resolved.

    Raises
    ------
    OutputError : the file can't be written, and why.
    """
    try:
        if not os.fspath(path) or Path(path).is_dir():
            raise OutputError(f"{os.fspath(path) or 'the output'}: is a folder; name a file in it")
        target = Path(path).resolve()
        folder = target.parent
        if not folder.is_dir():
            raise OutputError(f"{path}: the folder {folder} doesn't exist")
        if target.exists():
            if any(file.exists() and target.samefile(file) for file in inputs):
                raise OutputError(f"{path}: is the input; write to another file")
            if not target.is_file():
                raise OutputError(f"{path}: exists and isn't a plain file")
            if not force:
                raise OutputError(f"{path}: exists; {_FORCE}")
            if not os.access(target, os.W_OK):
                raise OutputError(f"{path}: is write-protected")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{path}: the folder {folder} isn't writable")
    except OutputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path!s}: can't be written: {reason}") from error
    return target


def input_files(graph: Graph) -> set[Path]:
    """The files that a graph and its source were loaded from, external data included."""
    files: set[Path] = set()
    for each in (graph, graph.source):
        if each is not None:
            if each.path is not None:
                files.add(Path(each.path))
            tensors = (tensor for _, tensor in weights(each))
            files |= {Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)}
    return files


def _check_unchanged(graph: Graph) -> None:
    """Raise `ModelError` if the file that weights are still mapped to was written to.

    One that was replaced, as `save` does it, is there as long as it is mapped.
    """
    for each in (graph, graph.source):
        if each is None or each.path is None or each.status is None:
            continue
        with contextlib.suppress(OSError):
            now = each.path.stat()
            same_file = (now.st_dev, now.st_ino) == (each.status.st_dev, each.status.st_ino)
            if same_file and has_changed(now, each.status):
                raise ModelError(
                    f"{each.path}: was written to after the model was loaded, so its weights may "
                    "be others; load it anew"
                )


def _was_external(graph: Graph) -> bool:
    """Whether weights of the graph, or of what it was made from, are outside its file."""
    sources = [each for each in (graph, graph.source) if each is not None]
    return any(
        isinstance(tensor, ir.ExternalTensor) for each in sources for _, tensor in weights(each)
    )


def _save_in_two(graph: Graph, target: Path, finish: Callable[[_Temporary], Outcome]) -> Saved:
    """Write the weights, then the model that names them."""
    old = _marked_data(target)
    offsets: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        # Its lock is held to the end, so that no other process takes the data for abandoned.
        temporary = stack.enter_context(_Temporary(target))
        sink = _Hashing(temporary.file)
        for name, tensor in weights(graph):
            sink.write(bytes(-sink.count % _ALIGNMENT))
            offsets[name] = sink.count
            write_tensor(tensor, sink)
        temporary.flush()
        data = _data_name(target, sink.digest)
        # Its name tells its content: a file that is there already is the same, or not ours.
        with contextlib.suppress(FileNotFoundError):  # By now, perhaps.
            if not stat.S_ISREG(data.stat().st_mode) or digest_of(data) != sink.digest:
                raise OutputError(f"{data}: exists and isn't ours; move it away")
        with _alone_in(data.parent):
            known = data.exists()
            written = temporary.rename(data)
        if not known:
            stack.enter_context(_removed_on_error(data, written.st_ino, target))
        proto = skeleton(graph, lambda name, tensor: (data.name, offsets[name]))
        proto.metadata_props.add(key=MARK, value=data.name)
        with _Temporary(target) as temporary:
            temporary.file.write(proto.SerializeToString(deterministic=True))
            outcome = finish(temporary)
            size = written.st_size + temporary.rename(target).st_size
    if old != data:
        _remove_unnamed(old, graph)
    return Saved(target, data, size, outcome)


def _data_name(target: Path, digest: str) -> Path:
    """Where the weights of a model go."""
    name = f"{target.stem}.{digest}.data"
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise OutputError(
            f"{target}: its name isn't Unicode, as that of external data has to be; name another "
            "file, or use external=False"
        ) from error
    return target.with_name(name)


class _Temporary:
    """A file beside its target, with a name and a lock of its own; gone at the end unless renamed.

    A file of this kind that nobody locks is left from a process that was killed.
    """

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> _Temporary:
        while True:
            stem = self._target.stem.encode(errors="replace")[:100].decode(errors="ignore")
            name = f".{stem}.{os.getpid()}.{secrets.token_hex(4)}{_SUFFIX}"
            self.path = self._target.with_name(name)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(self.path, flags, 0o666)
            self.file: IO[bytes] = os.fdopen(descriptor, "wb")
            # Another process may have taken the file for a stale one before it was locked.
            if _lock(descriptor) and os.fstat(descriptor).st_nlink:
                break
            self.file.close()
        if self._target.is_file():
            self.path.chmod(stat.S_IMODE(self._target.stat().st_mode))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.path.unlink(missing_ok=True)
        # What couldn't be written before can't be written now either, and the file is gone.
        with contextlib.suppress(OSError):
            self.file.close()

    def flush(self) -> None:
        """Bring everything to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def rename(self, target: Path) -> os.stat_result:
        """Give the file, which was flushed, its name, replacing the file that has it.

        What it is like is returned, since another process may replace it at once.
        """
        status = os.fstat(self.file.fileno())
        os.replace(self.path, target)
        return status


class _Hashing:
    """Passes bytes on, and counts and hashes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.count = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.count += len(data)

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 so far."""
        return self._hash.hexdigest()[:16]


def _lock(descriptor: int) -> bool:
    """Lock a file for this process. False: another one has the lock."""
    if flock is None:
        return True
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # A file system without locks.
    return True


def _clean(folder: Path) -> None:
    """Remove temporary files that processes left which are no more."""
    if flock is None:
        return
    for path in folder.glob(f".*{_SUFFIX}"):
        # Somebody else's, or gone meanwhile: then it isn't ours to remove.
        with contextlib.suppress(OSError):
            # A pipe or a link of such a name isn't ours either, and must not be waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    flock(descriptor, LOCK_EX | LOCK_NB)
                    path.unlink()
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _as_output_error(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path!s}: can't be written: {error.strerror or error}; "
            "every existing file is as it was"
        ) from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let no other process give a data file its name, or remove one, in a folder meanwhile."""
    with contextlib.ExitStack() as stack:
        if flock is not None:
            with contextlib.suppress(OSError):  # It can't be read, or has no locks.
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                flock(descriptor, LOCK_EX)
        yield


@contextlib.contextmanager
def _removed_on_error(data: Path, made: int, target: Path) -> Iterator[None]:
    """Remove the new data file, of this inode, if the model that names it didn't get its name."""
    try:
        yield
    except BaseException:
        with _alone_in(data.parent):
            # Another process may have put an equal one in its place, for a model of its own.
            if _marked_data(target) != data and data.exists() and data.stat().st_ino == made:
                data.unlink(missing_ok=True)
        raise


def _marked_data(target: Path) -> Path | None:
    """The data file that we wrote together with an existing model, if it is there."""
    # Such a model is small, since its weights are elsewhere.
    if not target.is_file() or target.stat().st_size > 1 << 28:
        return None
    content = target.read_bytes()
    if MARK.encode() not in content:
        return None
    try:
        properties = onnx.load_model_from_string(content).metadata_props
    except Exception:
        # Whatever is about to be replaced need not be a model.
        return None
    name = next((entry.value for entry in properties if entry.key == MARK), "")
    # A model can claim what it likes: what was written with it is called as it is.
    if not DATA_NAME.fullmatch(name) or name[: -len(".0123456789abcdef.data")] != target.stem:
        return None
    data = target.with_name(name)
    return data if data.is_file() and not data.is_symlink() else None


def _remove_unnamed(data: Path | None, graph: Graph) -> None:
    """Remove a data file that we wrote, if no model in its folder names it any more."""
    if data is None:
        return
    # A model that can't be read may name it.
    with contextlib.suppress(OSError), _alone_in(data.parent):
        # The graph that was saved may still be reading its weights from there.
        if any(file.exists() and data.samefile(file) for file in input_files(graph)):
            return
        with data.open("rb") as file:
            # Locked, or another file by now: a process is about to write a model that names it.
            if not _lock(file.fileno()) or not os.path.samestat(
                os.fstat(file.fileno()), data.stat()
            ):
                return
            # Whatever they are called: ONNX files begin with their version, field 1 of protobuf.
            for model in data.parent.iterdir():
                if model.is_file() and _holds(model, data.name.encode()):
                    return
            data.unlink()


def _holds(path: Path, text: bytes) -> bool:
    """Whether an ONNX file holds a text."""
    with path.open("rb") as file:
        if file.read(1) != b"\x08" or os.fstat(file.fileno()).st_size < len(text):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text) >= 0
