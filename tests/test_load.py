"""Loading: every kind of source, repairs, and one clear error for each kind of bad input."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxjl.errors import ExternalDataError, ModelError, UsageError
from onnxjl.graph import Graph
from onnxjl.load import load
from onnxjl.wire import split_weights

WEIGHT = np.arange(2000, dtype=np.float32).reshape(40, 50)


def linear(
    weight: np.ndarray = WEIGHT, *, opset: int = 17, batch: int | str = "batch"
) -> onnx.ModelProto:
    """``y = Relu(x @ w)``."""
    element = helper.np_dtype_to_tensor_dtype(weight.dtype)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="product"),
            helper.make_node("Relu", ["product"], ["y"], name="relu"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", element, [batch, weight.shape[0]])],
        [helper.make_tensor_value_info("y", element, [batch, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def external(folder: Path, location: str, *, data: Path | None = None, **info: int) -> Path:
    """Write `linear` with its weight in `data` (by default where `location` says)."""
    model = linear()
    data = folder / location if data is None else data
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_bytes(WEIGHT.tobytes())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **info}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def stored(graph: Graph) -> ir.TensorProtocol:
    tensor = graph.model.graph.initializers["w"].const_value
    assert tensor is not None
    return tensor


def test_every_kind_of_source_gives_the_same_graph(tmp_path):
    proto = linear()
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    sources = [
        path,
        str(path),
        path.read_bytes(),
        memoryview(path.read_bytes()),
        proto,
        ir.from_proto(proto),
    ]
    graphs = [load(source) for source in sources]
    for graph in graphs:
        np.testing.assert_array_equal(graph.weight("w"), WEIGHT)
        assert [node.op_type for node in graph.model.graph] == ["MatMul", "Relu"]
        assert graph.opset == 17
        assert not graph.normalized
    assert {graph.fingerprint for graph in graphs} == {graphs[0].fingerprint}
    assert [graph.path for graph in graphs] == [path, path, None, None, None, None]


def test_a_graph_is_returned_as_it_is():
    graph = load(linear())
    assert load(graph) is graph


def test_a_weight_gets_another_name_without_the_proto_it_came_from():
    proto = linear()
    tensor = helper.make_tensor("w", TensorProto.FLOAT, WEIGHT.shape, WEIGHT.reshape(-1))
    few = helper.make_tensor("few", TensorProto.FLOAT, [2], [1.0, 2.0])
    proto.graph.initializer[0].CopyFrom(tensor)
    proto.graph.initializer.append(few)
    before = proto.SerializeToString()
    weights = load(proto).model.graph.initializers
    weights["w"].name, weights["few"].name = "v", "many"
    assert weights["many"].const_value.name == "many"
    assert proto.SerializeToString() == before


def test_nothing_passed_in_is_changed():
    proto = linear()
    proto.graph.node.reverse()
    before = proto.SerializeToString()
    load(proto)
    assert proto.SerializeToString() == before
    model = ir.from_proto(linear())
    weight = model.graph.initializers["w"].const_value
    loaded = load(model).model
    loaded.graph.initializers["w"].name = "other"
    ir.to_proto(loaded)
    assert model.graph.initializers["w"].const_value is weight
    assert weight is not None
    assert weight.name == "w"


def test_weights_of_a_file_are_not_copied(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(linear().SerializeToString())
    array = load(path).weight("w")
    assert not array.flags.writeable
    assert not array.flags.owndata
    data = linear().SerializeToString()
    inside = load(data).weight("w")
    assert np.shares_memory(inside, np.frombuffer(data, np.uint8))


def test_external_weights_stay_external(tmp_path):
    path = external(tmp_path, "weights.bin", offset=0, length=WEIGHT.nbytes)
    graph = load(path)
    assert isinstance(stored(graph), ir.ExternalTensor)
    np.testing.assert_array_equal(graph.weight("w"), WEIGHT)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_loading_external_weights_takes_no_memory(tmp_path):
    weight = np.zeros((1 << 12, 1 << 12), np.float32)
    path = tmp_path / "net.onnx"
    onnx.save(linear(weight), path, save_as_external_data=True, location="net.data")
    script = (
        "import sys, onnxjl.load as _; from onnxjl.load import load\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(l for l in lines if 'VmHWM' in l).split()[1])\n"
        "before = peak(); graph = load(sys.argv[1]); print(peak() - before)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert int(done.stdout) * 1024 < weight.nbytes / 4


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "bfloat16", "int4"])
def test_weights_of_other_types(tmp_path, dtype):
    element = helper.np_dtype_to_tensor_dtype(
        ir.DataType[dtype.upper().replace("FLOAT64", "DOUBLE")].numpy()
    )
    values = np.arange(4000).reshape(40, 100) % 7
    weight = values.astype(helper.tensor_dtype_to_np_dtype(element))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "weights",
        [],
        [helper.make_tensor_value_info("y", element, [40, 100])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    np.testing.assert_array_equal(load(path).weight("w").astype(np.int64), values)


def test_nodes_are_put_in_order():
    proto = linear()
    proto.graph.node.reverse()
    assert [node.name for node in load(proto).model.graph] == ["product", "relu"]
    model = ir.from_proto(proto)
    assert [node.name for node in load(model).model.graph] == ["product", "relu"]
    assert [node.name for node in model.graph] == ["relu", "product"]


def test_duplicate_opset_imports_count_once_with_the_newest():
    proto = linear()
    proto.opset_import.extend([helper.make_opsetid("ai.onnx", 15), helper.make_opsetid("", 13)])
    assert load(proto).model.opset_imports == {"": 17}


def test_numbers_that_are_not_raw_bytes_are_read_once():
    proto = linear()
    proto.graph.initializer[0].CopyFrom(
        helper.make_tensor("w", TensorProto.FLOAT, WEIGHT.shape, WEIGHT.reshape(-1))
    )
    graph = load(proto.SerializeToString())
    np.testing.assert_array_equal(graph.weight("w"), WEIGHT)
    assert np.shares_memory(graph.weight("w"), graph.weight("w"))


def test_shapes_are_noted():
    graph = load(linear(), shapes={"x": [4, 40]})
    assert graph.shapes == {"x": (4, 40)}
    assert load(graph, shapes={"x": (8, 40)}).shapes == {"x": (8, 40)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 40)}, "no input is named 'z'; there are 'x'"),
        ({"x": (1, 41)}, r"shape \[1, 41\] given for input 'x' doesn't fit its declared"),
        ({"x": (1, 40, 1)}, r"shape \[1, 40, 1\] given for input 'x' doesn't fit"),
        ({"x": (-1, 40)}, r"shape \[-1, 40\] given for input 'x' is negative"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(UsageError, match=message):
        load(linear(), shapes=shapes)


def truncated(path: Path) -> None:
    path.write_bytes(linear().SerializeToString()[:-3000])


def cut_weight(path: Path) -> None:
    model = linear()
    model.graph.initializer[0].raw_data = WEIGHT.tobytes()[:-4]
    path.write_bytes(model.SerializeToString())


def cut_small_weight(path: Path) -> None:
    model = linear(WEIGHT[:2, :3])
    model.graph.initializer[0].raw_data = WEIGHT[:2, :3].tobytes()[:-4]
    path.write_bytes(model.SerializeToString())


def cyclic(path: Path) -> None:
    model = linear()
    model.graph.node[0].input[0] = "y"
    path.write_bytes(model.SerializeToString())


def dangling(path: Path) -> None:
    model = linear()
    model.graph.node[0].input[0] = "nowhere"
    path.write_bytes(model.SerializeToString())


def defined_twice(path: Path) -> None:
    model = linear()
    model.graph.node[0].output[0] = "y"
    path.write_bytes(model.SerializeToString())


def unknown_operator(path: Path) -> None:
    model = linear()
    model.graph.node[1].op_type = "Rely"
    path.write_bytes(model.SerializeToString())


def unknown_attribute(path: Path) -> None:
    model = linear()
    model.graph.node[1].attribute.append(helper.make_attribute("slope", 1.0))
    path.write_bytes(model.SerializeToString())


def without_type(path: Path) -> None:
    model = linear()
    model.graph.input[0].ClearField("type")
    path.write_bytes(model.SerializeToString())


def from_the_future(path: Path) -> None:
    path.write_bytes(linear(opset=999).SerializeToString())


def sparse(path: Path) -> None:
    model = linear()
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    path.write_bytes(model.SerializeToString())


BAD_FILES = [
    (lambda path: None, "no such file"),
    (lambda path: path.mkdir(), "a folder; expected an ONNX file"),
    (lambda path: path.touch(), "the file is empty"),
    (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not an ONNX model"),
    (lambda path: path.write_text("a line of text\n" * 100), "not an ONNX model"),
    (lambda path: path.write_bytes(b"\x08\x07"), r"not an ONNX model \(it holds no graph\)"),
    (truncated, "not an ONNX model, or a truncated one"),
    (cut_weight, "tensor 'w' of type FLOAT and shape .* needs 8000 bytes but has 7996"),
    (cut_small_weight, r"tensor 'w' of type FLOAT and shape \[2, 3\] needs 24 bytes but has 20"),
    (cyclic, "fails ONNX's checker: .*cycle"),
    (dangling, "fails ONNX's checker: .*nowhere"),
    (defined_twice, "invalid ONNX: .*'y' is redeclared"),
    (unknown_operator, "fails ONNX's checker: No Op registered for Rely"),
    (unknown_attribute, "fails ONNX's checker: Unrecognized attribute: slope"),
    (without_type, "fails ONNX's checker: .*type"),
    (from_the_future, "opset 999 is newer than .*; update onnx"),
    (sparse, "initializer 's' is sparse"),
]


@pytest.mark.parametrize(("write", "message"), BAD_FILES, ids=lambda v: getattr(v, "__name__", ""))
def test_bad_files_give_one_line_that_names_the_file(tmp_path, write, message):
    path = tmp_path / "net.onnx"
    write(path)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_cause_is_chained(tmp_path):
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "missing.onnx")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(ModelError) as caught:
        load(b"\xff\xff")
    assert caught.value.__cause__ is not None


def test_every_truncation_is_noticed():
    data = linear().SerializeToString()
    for size in range(0, len(data) - 1, 97):
        with pytest.raises(ModelError):
            load(data[:size])


@pytest.mark.parametrize("source", [b"", 3, None, [b"a"]])
def test_other_sources_are_errors(source):
    with pytest.raises((UsageError, ModelError), match=r"can't load a|empty"):
        load(source)


def test_external_data_that_is_missing(tmp_path):
    path = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExternalDataError, match=r"external data of 'w' is missing: .*weights.bin"):
        load(path)


def test_external_data_that_is_too_short(tmp_path):
    path = external(tmp_path, "weights.bin", offset=16)
    with pytest.raises(ExternalDataError, match=r"needs bytes 16 to 8016 of .*, which has 8000"):
        load(path)
    path = external(tmp_path, "weights.bin", length=4)
    with pytest.raises(ExternalDataError, match=r"has 4 bytes, but type FLOAT .* need 8000"):
        load(path)


def escaping(tmp_path: Path, kind: str) -> tuple[Path, Path]:
    """A model whose data lie in a folder beside its own; returns the model and that folder."""
    inside, outside = tmp_path / "model", tmp_path / "elsewhere"
    inside.mkdir()
    data = outside / "weights.bin"
    if kind == "parent":
        path = external(inside, "../elsewhere/weights.bin", data=data)
    elif kind == "absolute":
        path = external(inside, str(data), data=data)
    elif kind == "symlink":
        path = external(inside, "weights.bin", data=data)
        (inside / "weights.bin").symlink_to(data)
    else:
        path = external(inside, "linked/weights.bin", data=data)
        (inside / "linked").symlink_to(outside)
    return path, outside


@pytest.mark.parametrize("kind", ["parent", "absolute", "symlink", "symlinked folder"])
def test_external_data_outside_the_folder(tmp_path, kind):
    path, outside = escaping(tmp_path, kind)
    with pytest.raises(ExternalDataError, match=r"outside the model's folder; .*--allow-external"):
        load(path)
    with pytest.raises(ExternalDataError, match="outside"):
        load(path, allow_external=[tmp_path / "model"])
    np.testing.assert_array_equal(load(path, allow_external=[outside]).weight("w"), WEIGHT)
    np.testing.assert_array_equal(load(path, allow_external=[str(tmp_path)]).weight("w"), WEIGHT)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "isn't a file"),
        (".", "isn't a file"),
        ("..", "outside the model's folder"),
        ("weights.bin/../../x", "outside the model's folder"),
        ("inner/../../secret", "outside the model's folder"),
        ("/dev/zero", "outside the model's folder"),
        ("a\0b", "can't lie in .*null (byte|character)"),
        ("n" * 300, "can't lie in .*: File name too long"),
        ("loop", "can't lie in 'loop'|outside|is missing"),
        ("..\\weights.bin", "is missing|outside"),
    ],
)
def test_locations_that_no_honest_file_has(tmp_path, location, message):
    path = external(tmp_path / "model", location, data=tmp_path / "model" / "weights.bin")
    (tmp_path / "model" / "inner").mkdir()
    (tmp_path / "model" / "loop").symlink_to("loop")
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ExternalDataError, match=message):
        load(path)


def test_the_case_of_a_location_counts_where_the_file_system_says_so(tmp_path):
    path = external(tmp_path, "WEIGHTS.bin", data=tmp_path / "weights.bin")
    if (tmp_path / "WEIGHTS.BIN").exists():
        np.testing.assert_array_equal(load(path).weight("w"), WEIGHT)
    else:
        with pytest.raises(ExternalDataError, match="is missing"):
            load(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"offset": -1}, "has offset '-1'; expected a number of bytes"),
        ({"length": -8000}, "has length '-8000'; expected a number of bytes"),
        ({"offset": "1e3"}, "has offset '1e3'"),
        ({"offset": "٣"}, "has offset"),
        ({"offset": 1 << 62}, "needs bytes 4611686018427387904 to .*, which has 8000"),
        ({"length": 1 << 62}, "has 4611686018427387904 bytes, but type FLOAT"),
    ],
)
def test_offsets_and_lengths_that_no_file_has(tmp_path, entry, message):
    with pytest.raises(ExternalDataError, match=message):
        load(external(tmp_path, "weights.bin", **entry))


def test_data_of_functions_and_constants_are_looked_at_too(tmp_path):
    (tmp_path / "secret").write_bytes(np.ones(4, np.float32).tobytes())
    text = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 18]>
        f (v) => (o) { c = Constant <value = float[4] {1, 2, 3, 4}> () o = Add (v, c) }"""
    model = onnx.parser.parse_model(text)
    constant = model.functions[0].node[0].attribute[0].t
    constant.ClearField("float_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value=str(tmp_path / "secret"))
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "net.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExternalDataError, match="outside the model's folder"):
        load(path)
    with pytest.raises(ExternalDataError, match="only initializers may be outside"):
        load(path, allow_external=[tmp_path])


def test_two_initializers_of_one_name():
    model = linear()
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(ModelError, match="two initializers are called 'w'"):
        load(model)


def test_numbers_one_by_one_that_are_too_few():
    model = linear()
    model.graph.initializer.append(helper.make_tensor("b", TensorProto.FLOAT, [2], [1, 2]))
    model.graph.initializer[1].dims[0] = 3
    with pytest.raises(ModelError, match=r"tensor 'b' of type FLOAT and shape \[3\] holds other"):
        load(model)


def test_a_tensor_of_more_axes_than_numpy_has():
    model = linear()
    model.graph.initializer.append(helper.make_tensor("b", TensorProto.FLOAT, [1] * 65, [1]))
    with pytest.raises(ModelError, match="tensor 'b' has 65 axes; 64 at most"):
        load(model)


def test_links_inside_the_folder_are_fine(tmp_path):
    path = external(tmp_path, "weights.bin", data=tmp_path / "blobs" / "1234")
    (tmp_path / "weights.bin").symlink_to(tmp_path / "blobs" / "1234")
    np.testing.assert_array_equal(load(path).weight("w"), WEIGHT)


def test_a_model_behind_a_link_finds_its_data_beside_either(tmp_path):
    """As package caches lay them out: names link to blobs in another folder."""
    blobs = tmp_path / "blobs"
    path = external(blobs, "weights.bin")
    names = tmp_path / "names"
    names.mkdir()
    (names / "net.onnx").symlink_to(path)
    (names / "weights.bin").symlink_to(blobs / "weights.bin")
    with pytest.raises(ExternalDataError, match="outside"):
        load(names / "net.onnx")
    graph = load(names / "net.onnx", allow_external=[blobs])
    np.testing.assert_array_equal(graph.weight("w"), WEIGHT)


def test_hard_links_are_fine(tmp_path):
    path = external(tmp_path, "weights.bin", offset=0)
    os.link(tmp_path / "weights.bin", tmp_path / "second.bin")
    np.testing.assert_array_equal(load(path).weight("w"), WEIGHT)


def test_external_data_of_a_model_without_a_folder(tmp_path):
    data = external(tmp_path, "weights.bin").read_bytes()
    for source in (data, onnx.ModelProto.FromString(data)):
        with pytest.raises(ExternalDataError, match="load the model by its path"):
            load(source)
        graph = load(source, allow_external=[tmp_path])
        np.testing.assert_array_equal(graph.weight("w"), WEIGHT)


def test_split_weights_gives_back_all_bytes():
    model = linear()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(3), "small"))
    data = model.SerializeToString()
    rest, weights = split_weights(memoryview(data))
    assert list(weights) == [0]
    assert bytes(weights[0]) == WEIGHT.tobytes()
    stripped = onnx.ModelProto.FromString(rest)
    stripped.graph.initializer[0].raw_data = bytes(weights[0])
    assert stripped == model


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0b", "wire type 3 at byte 0"),
        (b"\x08\xff", "broken integer before byte 2"),
        (b"\x0a\x05ab", "field at byte 0 runs past the end"),
    ],
)
def test_split_weights_refuses_what_is_not_protobuf(data, message):
    with pytest.raises(ValueError, match=message):
        split_weights(memoryview(data))


def test_the_garbage_collector_is_as_it_was(tmp_path):
    load(linear())
    assert gc.isenabled()
    with pytest.raises(ModelError):
        load(tmp_path / "missing.onnx")
    assert gc.isenabled()
    gc.disable()
    try:
        load(linear())
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"net\.onnx: isn't a plain file"):
        load(tmp_path / "net.onnx")


def test_data_given_twice_are_those_given_last():
    """As protobuf has it, whether they are large or small."""
    model = linear()
    large = model.graph.initializer[0]
    small = TensorProto(raw_data=b"abcd")
    graph = onnx.GraphProto.FromString(model.graph.SerializeToString())
    graph.ClearField("initializer")
    whole = onnx.ModelProto.FromString(model.SerializeToString())
    whole.ClearField("graph")

    def bytes_of(*parts: TensorProto) -> bytes:
        content = b"".join(part.SerializeToString() for part in parts)
        body = graph.SerializeToString() + b"\x2a" + varint(len(content)) + content
        return whole.SerializeToString() + b"\x3a" + varint(len(body)) + body

    def varint(number: int) -> bytes:
        if number < 128:
            return bytes([number])
        return bytes([number & 127 | 128]) + varint(number >> 7)

    assert np.array_equal(load(bytes_of(small, large)).weight("w"), WEIGHT)
    with pytest.raises(ModelError, match=r"invalid ONNX: .* size 1 "):
        load(bytes_of(large, small))


@pytest.mark.parametrize("text", ["[" * 100_000, "[1", "{}", "[" + "1" * 5000 + "]"])
def test_metadata_about_masks_that_say_nothing(text):
    model = linear()
    helper.set_model_props(model, {"onnxjl.masks": text})
    graph = load(model)
    assert graph.masks == {}
    assert "sparse" not in repr(graph)
