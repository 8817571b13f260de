"""Data for calibration and measurement: whatever the caller has, as batches that fit a graph.

Accepted wherever ``data`` is asked for:

- the path of an ``.npz`` file without pickle: arrays named as the graph's inputs, labels as
  ``target``;
- an array, for a graph with one input;
- a mapping from input name (and ``target``) to array;
- a pair ``(x, y)`` as a tuple: `x` an array or a mapping, `y` the labels;
- an iterable of these (in it a list of two is a pair too, as PyTorch's loaders yield it), read one
  item at a time. A list or a loader can be gone through again; a generator only once.

Axis 0 of the graph's first input counts samples. Arrays are cut along it into batches of
`batch_size` samples, or of the graph's own batch size where that is fixed: samples left over at the
end of an array that don't fill a fixed batch are dropped; an open one is then smaller. An input
whose axis 0 isn't the batch (another size, another symbol) is passed whole with every batch.

Floating arrays are cast to the input's floating type; integers, booleans and strings never are.
"""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxjl.errors import DataError, UsageError
from onnxjl.graph import Graph
from onnxjl.inputs import graph_inputs
from onnxjl.session import TARGET

BATCH_SIZE = 64

# Bytes that any archive may unpack to, and times its own size; deflating makes at most 1032.
_MOST_UNPACKED, _MOST_TIMES = 1 << 29, 100

# Held while an archive is read: its arrays tell type and shape in Python's syntax, whose parser
# fails now and then in Python 3.11 where several threads use it.
_parsing = threading.Lock()


@dataclass(frozen=True)
class Input:
    """What the graph declares for one of its inputs.

    Parameters
    ----------
    name : the input's name.
    dtype : element type; None where the graph doesn't say.
    shape : sizes, with a name (or None) for each symbolic one; None where the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            sizes = "of any shape"
        else:
            sizes = f"[{', '.join('?' if size is None else str(size) for size in self.shape)}]"
        return f"{self.dtype or 'any type'} {sizes}"


def inputs(graph: Graph) -> tuple[Input, ...]:
    """The inputs that a caller has to feed: those without a default among the initializers.

    Parameters
    ----------
    graph : any graph.

    Returns
    -------
    tuple of Input, in the graph's order.
    """
    return tuple(_declared(value) for value in graph_inputs(graph))


def batches(
    data: Any, graph: Graph, *, batch_size: int = BATCH_SIZE
) -> Iterator[dict[str, np.ndarray]]:
    """Feeds for a graph, batch by batch; labels in the data are passed over.

    Parameters
    ----------
    data : see the module's description.
    graph : the graph whose inputs are fed.
    batch_size : samples in a batch where the graph leaves the number open.

    Yields
    ------
    dict from input name to an array of the input's type and shape.

    Raises
    ------
    DataError : the data can't be read, don't fit the inputs, or hold no sample (or no full batch).
    """
    for feeds, _ in _cut(data, graph, batch_size):
        yield feeds


def labelled(
    data: Any,
    graph: Graph,
    *,
    batch_size: int = BATCH_SIZE,
    shuffle: np.random.Generator | None = None,
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Feeds for a graph with their labels, batch by batch.

    Parameters
    ----------
    data : see the module's description; it must hold labels.
    graph : the graph whose inputs are fed.
    batch_size : samples in a batch where the graph leaves the number open.
    shuffle : draws the order of the samples of an array, mapping, pair or file, and within each
        item of an iterable, whose items come in its own order; None keeps the order.

    Yields
    ------
    (feeds, target) : dict from input name to array, and the labels with axis 0 the samples.

    Raises
    ------
    DataError : as for `batches`, or there are no labels, or not one for each sample.
    """
    for feeds, target in _cut(data, graph, batch_size, shuffle):
        if target is None:
            raise DataError(
                f"the data have no labels: name an array '{TARGET}' in the file or mapping, "
                "or give a pair (x, y)"
            )
        yield feeds, target


def count_batches(data: Any, graph: Graph, *, batch_size: int = BATCH_SIZE) -> int | None:
    """How many batches the data make, where that can be told without going through them.

    Parameters
    ----------
    data, graph, batch_size : as for `batches`.

    Returns
    -------
    The number; for an iterable with a length that length, as if each item were a batch; else None.
    """
    if _is_item(data):
        return sum(1 for _ in batches(data, graph, batch_size=batch_size))
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # A loader of PyTorch's over a data set without a length.
        return None


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file, by name; pickled objects are refused.

    Parameters
    ----------
    path : the file.

    Returns
    -------
    dict from name to array.

    Raises
    ------
    DataError : the file is missing, broken, not an ``.npz`` archive, or needs pickle.
    """
    file = os.fspath(path)
    try:
        with open(file, "rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise DataError(f"{file}: not an .npz archive; write one with numpy.savez")
            stream.seek(0)
            _check_archive(zipfile.ZipFile(stream), os.fstat(stream.fileno()).st_size, file)
            stream.seek(0)
            with _parsing, np.load(stream, allow_pickle=False) as archive:
                arrays = {}
                for name in archive.files:
                    array = _member(archive, name, file)
                    if not isinstance(array, np.ndarray):
                        raise DataError(f"{file}: '{name}' is not an array")
                    arrays[name] = array
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file") from error
    # A broken archive fails in any way: besides its own errors in those of its numbers and texts.
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: can't be read: {_line(error)}") from error
    return arrays


def _check_archive(archive: zipfile.ZipFile, size: int, file: str) -> None:
    """Refuse what NumPy doesn't write: a small file must not unpack to more than there is room."""
    members = archive.infolist()
    if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
        raise DataError(f"{file}: is packed in a way of its own; write it with numpy.savez")
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_MOST_UNPACKED, _MOST_TIMES * size):
        raise DataError(
            f"{file}: {size:,} bytes that unpack to {unpacked:,} are taken for a trap; if they "
            "are none, write them with numpy.savez, not numpy.savez_compressed"
        )


def _member(archive: Any, name: str, file: str) -> Any:
    try:
        return archive[name]
    # What stands for a shape and a type is a text in Python's syntax, which can break anywhere.
    except Exception as error:
        if "pickle" in str(error):
            raise DataError(
                f"{file}: '{name}' holds pickled Python objects, which are not read; "
                "store a numeric array"
            ) from error
        raise DataError(f"{file}: '{name}' can't be read: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _declared(value: ir.Value) -> Input:
    dtype: np.dtype[Any] | None = None
    if value.dtype == ir.DataType.STRING:
        dtype = np.dtype(object)
    elif value.dtype is not None and value.dtype != ir.DataType.UNDEFINED:
        dtype = np.dtype(value.dtype.numpy())
    shape = None
    if value.shape is not None:
        shape = tuple(size if isinstance(size, int) else size.value for size in value.shape)
    return Input(value.name or "", dtype, shape)


def _cut(
    data: Any, graph: Graph, batch_size: int, shuffle: np.random.Generator | None = None
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None]]:
    """Go through the data in batches of feeds and labels (None where there are none)."""
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: at least 1 is needed")
    declared = inputs(graph)
    empty = True
    fixed: int | None = None
    for arrays, target in _items(data, declared):
        for entry in declared:
            _check_shape(arrays[entry.name], entry)
        first = next((entry for entry in declared if arrays[entry.name].ndim > 0), None)
        if first is None:
            raise DataError("the graph's inputs have no axis to count samples along")
        samples = len(arrays[first.name])
        batch = first.shape[0] if first.shape else None
        fixed = batch if isinstance(batch, int) else None
        cut = [e.name for e in declared if _is_batched(e, first, arrays[e.name], samples)]
        if target is not None and (target.ndim == 0 or len(target) != samples):
            raise DataError(
                f"'{TARGET}' has shape {target.shape} for {samples} samples of '{first.name}'; "
                "its axis 0 must count the samples"
            )
        order = None if shuffle is None else shuffle.permutation(samples)
        step = fixed or batch_size
        for start in range(0, samples, step):
            stop = min(start + step, samples)
            if fixed is not None and stop - start < fixed:
                break
            empty = False
            chosen = slice(start, stop) if order is None else order[start:stop]
            feeds = {
                entry.name: _cast(
                    arrays[entry.name][chosen] if entry.name in cut else arrays[entry.name],
                    entry,
                )
                for entry in declared
            }
            yield feeds, None if target is None else target[chosen]
    if empty:
        need = (
            "a sample"
            if fixed is None
            else f"a full batch, which is {fixed} samples for this graph"
        )
        once = "; a generator can be gone through only once, a list again and again"
        raise DataError(
            f"the data hold less than {need}{once if isinstance(data, Iterator) else ''}"
        )


def _items(
    data: Any, declared: tuple[Input, ...]
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None]]:
    """Arrays by input name, and labels, for each item of the data."""
    if _is_item(data):
        yield _item(data, declared)
        return
    if not isinstance(data, Iterable):
        raise DataError(f"{_expected(declared)}; came {_describe(data)}")
    for item in data:
        if isinstance(item, list) and len(item) == 2:
            item = tuple(item)
        if not _is_item(item):
            raise DataError(f"an item of the data: {_expected(declared)}; came {_describe(item)}")
        yield _item(item, declared)


def _is_item(data: Any) -> bool:
    return (
        isinstance(data, (str, os.PathLike, Mapping))
        or hasattr(data, "__array__")
        or (isinstance(data, tuple) and len(data) == 2)
    )


def _item(
    item: Any, declared: tuple[Input, ...]
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    names = [entry.name for entry in declared]
    target = None
    if isinstance(item, tuple):
        item, target = item
    if isinstance(item, (str, os.PathLike)):
        item = read(item)
    if not isinstance(item, Mapping):
        if len(names) != 1:
            raise DataError(
                f"a single array can't feed {len(names)} inputs; "
                f"give a mapping with {_quoted(names)}"
            )
        item = {names[0]: item}
    arrays = {str(name): _array(value, str(name)) for name, value in item.items()}
    if TARGET in arrays and TARGET not in names:
        labels = arrays.pop(TARGET)
        target = labels if target is None else target
    missing = [name for name in names if name not in arrays]
    unknown = [name for name in arrays if name not in names]
    if missing or unknown:
        wrong = [f"lack {_quoted(missing)}"] * bool(missing)
        wrong += [f"hold unknown {_quoted(unknown)}"] * bool(unknown)
        raise DataError(f"the data {' and '.join(wrong)}; the graph's inputs are {_quoted(names)}")
    return arrays, None if target is None else _array(target, TARGET)


def _array(value: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"'{name}' is not an array: {_line(error)}") from error
    if array.dtype == object and not all(isinstance(text, str) for text in array.flat):
        raise DataError(f"'{name}' is an array of Python objects; give numbers")
    return array


def _check_shape(array: np.ndarray, entry: Input) -> None:
    """Rank and fixed sizes; the size of axis 0 is a matter of cutting."""
    if entry.shape is None:
        return
    fits = array.ndim == len(entry.shape) and all(
        not isinstance(size, int) or size == actual
        for size, actual in zip(entry.shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        raise DataError(
            f"input '{entry.name}': expected {entry}, came {array.dtype} {list(array.shape)}"
        )


def _is_batched(entry: Input, first: Input, array: np.ndarray, samples: int) -> bool:
    """Whether axis 0 of this input is the batch, and so is cut."""
    if array.ndim == 0:
        return False
    own, batch = (e.shape[0] if e.shape else None for e in (entry, first))
    if len(array) == samples and (own == batch or not isinstance(own, int)):
        return True
    if own == batch and not (isinstance(own, int) and len(array) == own):
        raise DataError(
            f"input '{entry.name}' has {len(array)} samples where '{first.name}' has {samples}"
        )
    if isinstance(own, int) and len(array) != own:
        raise DataError(
            f"input '{entry.name}': expected {entry}, came {array.dtype} {list(array.shape)}"
        )
    return False


def _cast(array: np.ndarray, entry: Input) -> np.ndarray:
    """The array in the input's type."""
    if entry.dtype is None or array.dtype == entry.dtype:
        return np.asarray(array, order="C")
    if entry.dtype == object and array.dtype.kind == "U":
        return array.astype(object)
    if not (_is_float(array.dtype) and _is_float(entry.dtype)):
        raise DataError(
            f"input '{entry.name}': expected {entry.dtype}, came {array.dtype}; "
            f"only floats are cast: convert it with .astype('{entry.dtype}')"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(entry.dtype, order="C")
        overflow = np.isinf(cast).any() and not np.isinf(array).any()
    if overflow:
        raise DataError(f"input '{entry.name}': values are too large for {entry.dtype}")
    return cast


def _is_float(dtype: np.dtype[Any]) -> bool:
    # ml_dtypes' bfloat16 and float8 are no subtypes of np.floating; onnx_ir knows them.
    try:
        return ir.DataType.from_numpy(dtype).is_floating_point()
    except TypeError:
        return False


def _expected(declared: tuple[Input, ...]) -> str:
    return (
        "expected an array, a mapping of arrays, a pair (x, y), the path of an .npz file, "
        f"or an iterable of these, for {_quoted([entry.name for entry in declared])}"
    )


def _describe(value: Any) -> str:
    length = f" of {len(value)}" if isinstance(value, (list, tuple)) else ""
    return f"{type(value).__name__}{length}"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
