"""Data for calibration: forms, cutting, casting, and each way to get them wrong."""

import zipfile

import numpy as np
import onnx_ir as ir
import pytest

from onnxjl import data
from onnxjl.errors import DataError, UsageError
from onnxjl.graph import Graph


def graph_of(*declared: tuple[str, ir.DataType, list[int | str | None] | None]) -> Graph:
    """A graph without nodes, with these inputs."""
    values = [
        ir.Value(
            name=name, type=ir.TensorType(dtype), shape=None if shape is None else ir.Shape(shape)
        )
        for name, dtype, shape in declared
    ]
    return Graph(ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 18}), ir_version=10))


F32, F16, F64, I64 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT64
IMAGE = graph_of(("x", F32, ["N", 3, 4, 4]))
FIXED = graph_of(("x", F32, [8, 3]))
TOKENS = graph_of(("ids", I64, ["batch", "length"]), ("mask", I64, ["batch", "length"]))


def images(count: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, 4, 4)).astype(dtype)


def sizes(feeds_list: list[dict[str, np.ndarray]], name: str = "x") -> list[int]:
    return [len(feeds[name]) for feeds in feeds_list]


class Loader:
    """Yields lists ``[x, y]`` as PyTorch's loader does, and can be gone through again."""

    def __init__(self, x: np.ndarray, y: np.ndarray, size: int) -> None:
        self.x, self.y, self.size = x, y, size

    def __iter__(self):
        for start in range(0, len(self.x), self.size):
            yield [self.x[start : start + self.size], self.y[start : start + self.size]]


@pytest.mark.parametrize(
    "form", ["array", "mapping", "pair", "list", "generator", "loader", "file", "files"]
)
def test_every_form_gives_the_same_samples(form, tmp_path):
    x, y = images(10), np.arange(10)
    path = tmp_path / "data.npz"
    np.savez(path, x=x, target=y)
    given = {
        "array": x,
        "mapping": {"x": x, "target": y},
        "pair": (x, y),
        "list": [x[:6], {"x": x[6:]}],
        "generator": (x[i : i + 5] for i in (0, 5)),
        "loader": Loader(x, y, 4),
        "file": str(path),
        "files": [path],
    }[form]
    feeds = list(data.batches(given, IMAGE, batch_size=4))
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in feeds]), x)
    assert all(set(f) == {"x"} for f in feeds)


@pytest.mark.parametrize("form", ["mapping", "pair", "mapping in pair", "loader", "file"])
def test_labels_stay_with_their_samples(form, tmp_path):
    x, y = images(10), np.arange(10) * 7
    path = tmp_path / "data.npz"
    np.savez(path, x=x, target=y)
    given = {
        "mapping": {"target": y, "x": x},
        "pair": (x, y),
        "mapping in pair": ({"x": x}, y),
        "loader": Loader(x, y, 4),
        "file": path,
    }[form]
    seen = 0
    for feeds, target in data.labelled(given, IMAGE, batch_size=3):
        for sample, label in zip(feeds["x"], target, strict=True):
            assert label == 7 * seen
            np.testing.assert_array_equal(sample, x[seen])
            seen += 1
    assert seen == 10


def test_an_open_batch_is_cut_to_the_batch_size_with_a_smaller_last_one():
    assert sizes(list(data.batches(images(150), IMAGE))) == [64, 64, 22]
    assert sizes(list(data.batches(images(5), IMAGE, batch_size=2))) == [2, 2, 1]


def test_a_fixed_batch_drops_what_does_not_fill_it():
    feeds = list(data.batches(np.arange(60, dtype="f4").reshape(20, 3), FIXED, batch_size=4))
    assert sizes(feeds) == [8, 8]
    assert feeds[1]["x"][0, 0] == 24


def test_a_list_can_be_gone_through_again_and_a_generator_says_that_it_cannot():
    again = [images(2), images(3)]
    for _ in range(2):
        assert sizes(list(data.batches(again, IMAGE))) == [2, 3]
    once = (images(2) for _ in range(2))
    assert sizes(list(data.batches(once, IMAGE))) == [2, 2]
    with pytest.raises(DataError, match="generator can be gone through only once"):
        list(data.batches(once, IMAGE))


def test_an_iterable_is_read_one_item_at_a_time():
    read = []

    def stream():
        for i in range(3):
            read.append(i)
            yield images(2)

    feeds = data.batches(stream(), IMAGE)
    assert read == []
    next(feeds)
    assert read == [0]
    next(feeds)
    assert read == [0, 1]


def test_inputs_without_a_batch_axis_are_passed_whole():
    graph = graph_of(
        ("x", F32, ["N", 2]), ("table", F32, [5, 2]), ("scale", F32, []), ("names", F32, ["K"])
    )
    arrays = {
        "x": np.arange(12, dtype="f4").reshape(6, 2),
        "table": np.ones((5, 2), "f4"),
        "scale": np.float32(3),
        "names": np.zeros(9, "f4"),
    }
    feeds = list(data.batches(arrays, graph, batch_size=4))
    assert [{k: v.shape for k, v in f.items()} for f in feeds] == [
        {"x": (4, 2), "table": (5, 2), "scale": (), "names": (9,)},
        {"x": (2, 2), "table": (5, 2), "scale": (), "names": (9,)},
    ]


def test_inputs_that_share_the_batch_symbol_are_cut_together():
    ids = np.arange(21).reshape(7, 3)
    feeds = list(data.batches({"ids": ids, "mask": ids + 100}, TOKENS, batch_size=5))
    assert sizes(feeds, "ids") == [5, 2]
    for f in feeds:
        np.testing.assert_array_equal(f["mask"], f["ids"] + 100)


def test_initializers_listed_as_inputs_need_no_data():
    graph = graph_of(("x", F32, ["N", 2]), ("w", F32, [2, 2]))
    value = graph.model.graph.inputs[1]
    value.const_value = ir.Tensor(np.eye(2, dtype="f4"), name="w")
    graph.model.graph.initializers["w"] = value
    assert [entry.name for entry in data.inputs(graph)] == ["x"]
    assert sizes(list(data.batches(np.ones((3, 2), "f4"), graph))) == [3]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("float64", F32),
        ("float32", F64),
        ("float32", F16),
        ("float16", F32),
        ("float32", ir.DataType.BFLOAT16),
    ],
)
def test_floats_are_cast_to_the_input_type(given, wanted):
    x = np.array([[0.5, -1.25]], dtype=given)
    (feeds,) = data.batches(x, graph_of(("x", wanted, ["N", 2])))
    assert feeds["x"].dtype == wanted.numpy()
    np.testing.assert_array_equal(feeds["x"].astype("f8"), [[0.5, -1.25]])


def test_text_is_passed_as_objects():
    (feeds,) = data.batches(np.array(["a", "bc"]), graph_of(("x", ir.DataType.STRING, ["N"])))
    assert feeds["x"].dtype == object
    assert feeds["x"].tolist() == ["a", "bc"]


BAD = {
    "rank": (
        IMAGE,
        images(1)[0],
        r"'x': expected float32 \[N, 3, 4, 4\], came float32 \[3, 4, 4\]",
    ),
    "size": (
        IMAGE,
        images(2).transpose(0, 2, 3, 1),
        r"expected float32 \[N, 3, 4, 4\], came float32 \[2, 4, 4, 3\]",
    ),
    "integers": (
        IMAGE,
        images(2).astype("int8"),
        r"input 'x': expected float32, came int8; only floats are cast",
    ),
    "narrow integers": (
        TOKENS,
        {k: np.ones((2, 3), "int32") for k in ("ids", "mask")},
        "expected int64, came int32",
    ),
    "overflow": (
        graph_of(("x", F16, ["N"])),
        np.array([1e6]),
        "input 'x': values are too large for float16",
    ),
    "missing": (
        TOKENS,
        {"ids": np.ones((2, 3), int)},
        "lack 'mask'; the graph's inputs are 'ids', 'mask'",
    ),
    "unknown": (
        IMAGE,
        {"x": images(2), "y": images(2)},
        "hold unknown 'y'; the graph's inputs are 'x'",
    ),
    "misspelt": (IMAGE, {"X": images(2)}, "lack 'x' and hold unknown 'X'"),
    "one array": (TOKENS, np.ones((2, 3), int), "a single array can't feed 2 inputs"),
    "counts": (
        TOKENS,
        {"ids": np.ones((2, 3), int), "mask": np.ones((4, 3), int)},
        "'mask' has 4 samples where 'ids' has 2",
    ),
    "table": (
        graph_of(("x", F32, ["N"]), ("t", F32, [5])),
        {"x": np.ones(3, "f4"), "t": np.ones(4, "f4")},
        r"input 't': expected float32 \[5\], came float32 \[4\]",
    ),
    "labels": (IMAGE, (images(3), np.arange(4)), r"'target' has shape \(4,\) for 3 samples of 'x'"),
    "no samples": (IMAGE, images(0), "the data hold less than a sample$"),
    "no batch": (FIXED, np.ones((7, 3), "f4"), "less than a full batch, which is 8 samples"),
    "number": (IMAGE, 3, "expected an array, a mapping .* for 'x'; came int"),
    "item": (IMAGE, [images(1), 3], "an item of the data: expected .*; came int"),
    "triple": (IMAGE, (images(1), 3, 4), "an item of the data: expected .*; came int"),
    "objects": (IMAGE, np.array([None]), "'x' is an array of Python objects"),
    "ragged": (IMAGE, {"x": [[1.0], [1.0, 2.0]]}, "'x' is not an array: .*inhomogeneous"),
    "scalar": (graph_of(("x", F32, [])), np.float32(1), "no axis to count samples along"),
}


@pytest.mark.parametrize("case", BAD)
def test_data_that_do_not_fit_say_what_was_expected_and_what_came(case):
    graph, given, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        list(data.batches(given, graph))
    assert "\n" not in str(caught.value)


def test_labels_are_required_where_asked_for():
    with pytest.raises(DataError, match="the data have no labels: name an array 'target'"):
        list(data.labelled(images(2), IMAGE))


def test_shuffling_keeps_samples_with_their_labels():
    x, y = images(10), np.arange(10)

    def labels(seed):
        generator = np.random.default_rng(seed)
        found = []
        for feeds, target in data.labelled((x, y), IMAGE, batch_size=4, shuffle=generator):
            assert np.array_equal(feeds["x"], x[target])
            found.append(target.tolist())
        return found

    assert [len(batch) for batch in labels(0)] == [4, 4, 2]
    assert sorted(np.concatenate(labels(0))) == list(range(10))
    assert labels(0) == labels(0) != labels(1)


def test_shuffling_keeps_the_items_of_an_iterable_in_their_order():
    items = [(images(3), np.arange(3)), (images(3), np.arange(3, 6))]
    generator = np.random.default_rng(0)
    found = [y for _, y in data.labelled(items, IMAGE, batch_size=2, shuffle=generator)]
    assert sorted(np.concatenate(found[:2])) == [0, 1, 2]
    assert sorted(np.concatenate(found[2:])) == [3, 4, 5]


class Unsized:
    """A loader over data without a length, as PyTorch has it."""

    def __len__(self):
        raise TypeError("no length")

    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("graph", "given", "expected"),
    [
        (IMAGE, images(10), 3),
        (IMAGE, {"x": images(8)}, 2),
        (FIXED, np.ones((20, 3), "f4"), 2),
        (IMAGE, [images(4), images(4)], 2),
        (IMAGE, iter([images(4)]), None),
        (IMAGE, Unsized(), None),
    ],
)
def test_batches_are_counted_where_they_can_be(graph, given, expected):
    assert data.count_batches(given, graph, batch_size=4) == expected


def test_a_batch_size_below_one_is_misuse():
    with pytest.raises(UsageError, match="batch_size=0"):
        list(data.batches(images(2), IMAGE, batch_size=0))


def truncated(path):
    np.savez(path, x=images(20))
    path.write_bytes(path.read_bytes()[:500])


def corrupted(path):
    np.savez_compressed(path, x=images(20))
    content = bytearray(path.read_bytes())
    content[300:400] = bytes(100)
    path.write_bytes(bytes(content))


def with_note(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("note.txt", "not an array")


def with_header(text):
    """An array whose header is this text."""

    def make(path):
        content = text.encode("latin-1") + b"\n"
        size = len(content).to_bytes(2, "little")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + size + content)

    return make


def packed(method, count=10):
    """Zeros, packed well."""

    def make(path):
        with (
            zipfile.ZipFile(path, "w", method) as archive,
            archive.open("x.npy", "w", force_zip64=True) as file,
        ):
            zeros = np.zeros((1 << 20,), np.uint8)
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": (count << 20,)}
            )
            for _ in range(count):
                file.write(zeros.data)

    return make


def changed_flags(offset, value):
    """A member whose header, and its entry at the end, say something else."""

    def make(path):
        np.savez(path, x=images(2))
        content = bytearray(path.read_bytes())
        entry = content.find(b"PK\x01\x02")
        content[offset] = content[entry + offset + 2] = value
        path.write_bytes(bytes(content))

    return make


BROKEN = {
    "unfinished header": (with_header("{'descr': ((("), "'x' can't be read"),
    "unfinished text": (with_header("'''{"), "'x' can't be read"),
    "indented header": (with_header("  a\n b\n"), "'x' can't be read"),
    "deep header": (with_header("-" * 9000 + "1"), "'x' can't be read"),
    "bzip2": (packed(zipfile.ZIP_BZIP2), "is packed in a way of its own"),
    "LZMA": (packed(zipfile.ZIP_LZMA), "is packed in a way of its own"),
    "trap": (packed(zipfile.ZIP_DEFLATED, 600), "bytes that unpack to 629,[0-9,]+ are taken for"),
    "encrypted": (changed_flags(6, 1), "'x' can't be read: .*encrypted"),
    "of another version": (changed_flags(4, 99), "can't be read: zip file version 9.9"),
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "not an .npz archive"),
    "random": (lambda path: path.write_bytes(bytes(range(256)) * 8), "not an .npz archive"),
    "npy": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "not an .npz archive"),
    "folder": (lambda path: path.mkdir(), "can't be read: .*directory"),
    "truncated": (truncated, "not an .npz archive"),
    "corrupted": (corrupted, "'x' can't be read"),
    "pickled": (lambda path: np.savez(path, x=np.array([{}])), "'x' holds pickled Python objects"),
    "other member": (with_note, "'note.txt' is not an array"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named_with_what_is_wrong(case, tmp_path):
    make, message = BROKEN[case]
    path = tmp_path / "data.npz"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        list(data.batches(path, IMAGE))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_read_gives_all_arrays_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3), target=np.ones(2))
    arrays = data.read(tmp_path / "a.npz")
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "x": [0, 1, 2],
        "target": [1, 1],
    }


def test_much_of_the_same_can_be_packed(tmp_path):
    packed(zipfile.ZIP_DEFLATED, 20)(tmp_path / "a.npz")
    assert data.read(tmp_path / "a.npz")["x"].shape == (20 << 20,)
