"""A network of 3 GB, in a process whose memory is watched; run with ONNXJL_HUGE=1 and --slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc"),
    pytest.mark.skipif("ONNXJL_HUGE" not in os.environ, reason="ONNXJL_HUGE=1 runs it"),
]

WIDTH, HIDDEN = 1024, 393_216

_RUN = """
import json, sys, threading, time
import onnxjl

def anonymous():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))

peak = 0
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.005)

threading.Thread(target=watch, daemon=True).start()
before = anonymous()
graph = onnxjl.prune(onnxjl.load(sys.argv[1]), amount=0.5)
saved = graph.save(sys.argv[2], check=False)
print(json.dumps([peak - before, saved.size, graph.params]))
"""


def test_three_gigabytes_are_pruned_in_less_than_half_as_much_again(tmp_path: Path) -> None:
    """Weights are a file without content, but with one number in each unit that stays."""
    tensors, offset = [], 0
    for name, shape in (("first", (HIDDEN, WIDTH)), ("second", (WIDTH, HIDDEN))):
        tensor = TensorProto(name=name, data_type=1, dims=shape, data_location=1)
        tensor.external_data.add(key="location", value="weights")
        tensor.external_data.add(key="offset", value=str(offset))
        tensors.append(tensor)
        offset += 4 * WIDTH * HIDDEN
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(offset)
        for unit in range(1, HIDDEN, 2):
            file.seek(4 * WIDTH * unit)
            file.write(b"\x00\x00\x80\x3f")
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "first"], ["h"], name="first", transB=1),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "second"], ["y"], name="second", transB=1),
        ],
        "huge",
        [helper.make_tensor_value_info("x", 1, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", 1, ["N", WIDTH])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    arguments = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx")]
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, size, params = json.loads(done.stdout)
    print(f"{offset / 1e9:.2f} GB of weights, {peak / 1e9:.2f} GB of memory at most")
    assert peak < 1.5 * offset
    assert params == WIDTH * HIDDEN
    assert size >= 4 * params
    small = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert [list(t.dims) for t in small.graph.initializer] == [
        [HIDDEN // 2, WIDTH],
        [WIDTH, HIDDEN // 2],
    ]
    # All units that stayed are those with a number, which comes first.
    (data,) = tmp_path.glob("out.*.data")
    with data.open("rb") as file:
        for unit in range(0, HIDDEN // 2, 1000):
            file.seek(4 * WIDTH * unit)
            assert file.read(4) == b"\x00\x00\x80\x3f"
