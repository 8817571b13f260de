"""Tiny valid networks that fuzzing starts from, of every kind that the package treats."""

from __future__ import annotations

import numpy as np
import onnx
import small_networks
from onnx import helper, numpy_helper
from text_networks import network, split_in_two

_ATTENTION = """g (float[N, 4, 6] x) => (float[N, 4, 2] y) {
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    qr = Reshape (q, heads)
    kr = Reshape (k, heads)
    vr = Reshape (v, heads)
    qh = Transpose <perm = [0, 2, 1, 3]> (qr)
    kh = Transpose <perm = [0, 2, 3, 1]> (kr)
    vh = Transpose <perm = [0, 2, 1, 3]> (vr)
    s = MatMul (qh, kh)
    p = Softmax <axis = -1> (s)
    m = MatMul (p, vh)
    mt = Transpose <perm = [0, 2, 1, 3]> (m)
    mr = Reshape (mt, flat)
    n = LayerNormalization <axis = -1> (mr, scale)
    y = MatMul (n, wo)
}"""

_SHAPES = """g (float[N, 3, 4, 4] x) => (float[N, K] y) {
    c = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, w, b)
    r = Relu (c)
    shape = Shape (r)
    batch = Gather <axis = 0> (shape, zero)
    batch1 = Unsqueeze (batch, axes)
    rest = Constant <value = int64[1] {-1}> ()
    target = Concat <axis = 0> (batch1, rest)
    f = Reshape (r, target)
    size = Shape (f)
    ones = ConstantOfShape <value = float[1] {1.0}> (size)
    g = Mul (f, ones)
    row = Expand (bias, size)
    h = Add (g, row)
    y = MatMul (h, last)
}"""

_CONSTANTS = """g (float[N, 6] x) => (float[N, 4] y) {
    a = Gemm <transB = 1> (x, w)
    start = Constant <value = int64 {0}> ()
    limit = Constant <value = int64 {8}> ()
    step = Constant <value = int64 {1}> ()
    order = Range (start, limit, step)
    repeats = Constant <value = int64[1] {1}> ()
    tiled = Tile (order, repeats)
    b = Gather <axis = 1> (a, tiled)
    pads = Constant <value = int64[4] {0, 0, 0, 0}> ()
    p = Pad (b, pads)
    y = MatMul (p, w2)
}"""

_SPATIAL = """g (float[1, 2, 4, 4] x) => (float[1, 3, 8, 8] y) {
    a = Conv (x, w1)
    m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
    u = Resize <mode = "nearest"> (m, , scales)
    s = SpaceToDepth <blocksize = 2> (u)
    d = DepthToSpace <blocksize = 2> (s)
    t = ConvTranspose <strides = [2, 2], kernel_shape = [2, 2]> (d, w2)
    i = InstanceNormalization (t, scale, shift)
    y = Conv (i, w3)
}"""

_RECURRENT = """g (float[3, N, 4] x) => (float[3, N, 2] y) {
    o, h, c = LSTM <hidden_size = 5> (x, w, r, b)
    s = Squeeze (o, axes)
    y = MatMul (s, last)
}"""

_SLICES = """g (float[N, 6] x) => (float[N, 2] y) {
    a = MatMul (x, w)
    l = Slice (a, starts, ends, axis)
    r, rest = Split <axis = 1> (a, sizes)
    j = Concat <axis = 1> (l, r, rest)
    e = Einsum <equation = "nk,km->nm"> (j, w2)
    t = Transpose <perm = [1, 0]> (e)
    u = Transpose <perm = [1, 0]> (t)
    z = ReduceMean <keepdims = 1> (u, axis)
    v = Sub (u, z)
    y = MatMul (v, w3)
}"""

_BRANCH = """g (float[N, 6] x, bool go) => (float[N, 4] y) {
    c = Gemm (x, w0)
    a = Gemm (c, w)
    b = If (go) <
        then_branch = t () => (float[N, 8] p) { p = Relu (a) },
        else_branch = e () => (float[N, 8] q) { q = Identity (a) }
    >
    y = MatMul (b, w2)
}"""

_FUNCTION = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
g (float[N, 6] x, float[6, 8] w, float[8, 2] w2) => (float[N, 2] y) {
    a = local.layer <slope = 0.1> (x, w)
    y = MatMul (a, w2)
}
<domain: "local", opset_import: ["" : 18]>
layer <slope> (v, m) => (o) {
    p = MatMul (v, m)
    o = LeakyRelu <alpha: float = @slope> (p)
}"""


def _old() -> onnx.ModelProto:
    """A network of opset 6, which is converted."""
    weights = {
        "w": np.ones((4, 3, 1, 1), np.float32),
        "s": np.ones(4, np.float32),
        "v": np.ones((2, 4, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "s", "s", "s", "s"], ["b"], is_test=1),
        helper.make_node("Dropout", ["b"], ["c"], is_test=1),
        helper.make_node("Conv", ["c", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "old",
        [
            helper.make_tensor_value_info("x", 1, [1, 3, 2, 2]),
            *(helper.make_tensor_value_info(n, 1, a.shape) for n, a in weights.items()),
        ],
        [helper.make_tensor_value_info("y", 1, [1, 2, 2, 2])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=3)


def _function() -> onnx.ModelProto:
    model = onnx.parser.parse_model(_FUNCTION)
    random = np.random.default_rng(0)
    for value in list(model.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    return model


def seeds() -> dict[str, onnx.ModelProto]:
    """Return the networks by name; each is loaded, normalized and pruned without an error."""
    return {
        "convolutions": small_networks.convolutions(),
        "half": small_networks.convolutions(dtype=np.float16),
        "split": split_in_two(3, 5),
        "attention": network(
            _ATTENTION,
            {"wq": (6, 8), "wk": (6, 8), "wv": (6, 8), "scale": (8,), "wo": (8, 2)},
            {"heads": [0, 4, 2, 4], "flat": [0, 4, 8]},
        ),
        "shapes": network(
            _SHAPES,
            {"w": (4, 3, 3, 3), "b": (4,), "bias": (1, 64), "last": (64, 2)},
            {"zero": np.int64(0), "axes": [0]},
        ),
        "constants": network(_CONSTANTS, {"w": (8, 6), "w2": (8, 4)}),
        "spatial": network(
            _SPATIAL,
            {
                "w1": (4, 2, 1, 1),
                "w2": (4, 6, 2, 2),
                "scale": (6,),
                "shift": (6,),
                "w3": (3, 6, 1, 1),
            },
            {"scales": np.array([1, 1, 2, 2], np.float32)},
        ),
        "recurrent": network(
            _RECURRENT,
            {"w": (1, 20, 4), "r": (1, 20, 5), "b": (1, 40), "last": (5, 2)},
            {"axes": [1]},
        ),
        "slices": network(
            _SLICES,
            {"w": (6, 8), "w2": (12, 6), "w3": (6, 2)},
            {"starts": [1], "ends": [5], "axis": [1], "sizes": [3, 5]},
        ),
        "branch": network(_BRANCH, {"w0": (6, 5), "w": (5, 8), "w2": (8, 4)}),
        "function": _function(),
        "old": _old(),
    }
