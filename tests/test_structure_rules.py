"""Every rule of the structure analysis: it prunes what it should, and what it prunes is proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from proof import PLANS, TOLERANCE, prove
from text_networks import inputs, network

from onnxjl import normalize
from onnxjl.structure import analyze
from onnxjl.structure.rules import RULES

BIG = 2**63 - 1


@dataclass(frozen=True)
class Row:
    """One network, and what can be pruned in it.

    Parameters
    ----------
    name : of the test.
    text : the graph.
    weights, constants : see `network`.
    units : sizes of the exact groups that granularity "channel" offers.
    inexact : sizes of those that it offers when asked.
    more : other granularity -> sizes of its exact groups.
    opset : version of the default operator set.
    """

    name: str
    text: str
    weights: Mapping[str, Sequence[int]]
    constants: Mapping[str, object]
    units: Sequence[int]
    inexact: Sequence[int] = ()
    more: Mapping[str, Sequence[int]] = field(default_factory=dict)
    opset: int = 18

    def model(self) -> onnx.ModelProto:
        return network(self.text, self.weights, self.constants, opset=self.opset)

    def expected(self) -> list[tuple[str, Sequence[int]]]:
        """Return the granularities to try, with the sizes of their exact groups."""
        return [("channel", self.units), *self.more.items()]


ROWS: list[Row] = []


def row(
    name: str,
    text: str,
    weights: Mapping[str, Sequence[int]],
    units: Sequence[int],
    constants: Mapping[str, object] | None = None,
    *,
    inexact: Sequence[int] = (),
    opset: int = 18,
    **more: Sequence[int],
) -> None:
    """Add a network."""
    others = {granularity.replace("_", "-"): sizes for granularity, sizes in more.items()}
    ROWS.append(Row(name, text, weights, constants or {}, units, inexact, others, opset))


def dense(
    name: str,
    middle: str,
    units: Sequence[int] = (8,),
    constants: Mapping[str, object] | None = None,
    *,
    weights: Mapping[str, Sequence[int]] | None = None,
    rows: int = 8,
    inexact: Sequence[int] = (),
    opset: int = 18,
) -> None:
    """Add a network in which `middle` makes z out of a (and b), 8 features each."""
    text = f"""g (float[N, 6] x) => (float[N, 3] y) {{
        a = Gemm (x, w1, b1)
        {"b = Gemm (x, w0)" if "b" in _words(middle) else ""}
        {middle}
        y = Gemm (z, w2)
    }}"""
    shapes = {"w1": (6, 8), "b1": (8,), "w2": (rows, 3)}
    shapes |= {"w0": (6, 8)} if "b" in _words(middle) else {}
    row(name, text, {**shapes, **(weights or {})}, units, constants, inexact=inexact, opset=opset)


def image(
    name: str,
    middle: str,
    units: Sequence[int] = (8,),
    constants: Mapping[str, object] | None = None,
    *,
    weights: Mapping[str, Sequence[int]] | None = None,
    channels: int = 8,
    inexact: Sequence[int] = (),
    opset: int = 18,
    batch: int | str = "N",
    output: str = "y",
) -> None:
    """Add a network in which `middle` makes z out of a, 8 channels of 6 by 6."""
    text = f"""g (float[{batch}, 3, 8, 8] x) => ({output}) {{
        a = Conv (x, w1, b1)
        {middle}
        y = Conv (z, w2)
    }}"""
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (5, channels, 1, 1), **(weights or {})}
    row(name, text, shapes, units, constants, inexact=inexact, opset=opset)


def _words(text: str) -> set[str]:
    return set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())


# Elementwise: labels pass, and unite where inputs meet.

TO_FLOAT = "z = Cast <to = 1> (t)"
for operator in (
    "Abs Asinh Atan Ceil Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish Identity LeakyRelu Mish "
    "Neg Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Tan Tanh ThresholdedRelu "
    "Celu Dropout Clip"
).split():
    dense(operator, f"z = {operator} (a)")
for operator in "Acos Asin Atanh Log Sqrt Reciprocal".split():
    dense(operator, f"s = Sigmoid (a) z = {operator} (s)")
dense("Acosh", "e = Exp (a) s = Add (e, one) z = Acosh (s)", [8], {"one": np.float32([1])})
for operator in ("Bernoulli", "RandomNormalLike", "RandomUniformLike"):
    drawn = f"p = Sigmoid (a) r = {operator} (p) nothing = Mul (r, zero) z = Add (a, nothing)"
    dense(operator, drawn, [], {"zero": np.float32(0)}, inexact=[8])
dense("Gelu", "z = Gelu (a)", opset=20)
dense("Swish", "z = Swish (a)", opset=24)
dense("Cast", f"t = Cast <to = 6> (a) {TO_FLOAT}")
dense(
    "Clip with bounds",
    "z = Clip (a, low, high)",
    [8],
    {"low": np.float32(-1), "high": np.float32(1)},
)
for operator in ("IsNaN", "IsInf"):
    dense(operator, f"t = {operator} (a) u = Not (t) f = Cast <to = 1> (u) z = Mul (f, a)")
dense("BitwiseNot", f"i = Cast <to = 6> (a) t = BitwiseNot (i) {TO_FLOAT}")
for operator in ("Gelu", "QuickGelu"):
    dense(f"com.microsoft {operator}", f"z = com.microsoft.{operator} (a)")
for operator in ("FastGelu", "BiasGelu"):
    dense(f"com.microsoft {operator}", f"z = com.microsoft.{operator} (a, p)", weights={"p": (8,)})
for operator in "Add Div Max Mean Min Mul Sub Sum".split():
    dense(f"{operator} of activations", f"z = {operator} (a, b)")
    dense(f"{operator} of a parameter", f"z = {operator} (a, p)", weights={"p": (8,)})
dense("Mod", "z = Mod <fmod = 1> (a, p)", weights={"p": (8,)})
dense("Pow", "s = Sigmoid (a) z = Pow (s, p)", weights={"p": (8,)})
dense("PRelu", "z = PRelu (a, p)", weights={"p": (8,)})
dense("CastLike", "z = CastLike (a, b)", [8, 8])
for operator in "Equal Greater GreaterOrEqual Less LessOrEqual".split():
    dense(operator, f"t = {operator} (a, b) f = Cast <to = 1> (t) z = Add (f, a)")
for operator in "And Or Xor".split():
    dense(
        operator,
        f"i = Greater (a, o) j = Greater (b, o) t = {operator} (i, j) {TO_FLOAT}",
        [8],
        {"o": np.float32([0])},
    )
for operator in "BitwiseAnd BitwiseOr BitwiseXor".split():
    dense(operator, f"i = Cast <to = 6> (a) j = Cast <to = 6> (b) t = {operator} (i, j) {TO_FLOAT}")
dense(
    "BitShift",
    f's = Abs (a) i = Cast <to = 12> (s) t = BitShift <direction = "LEFT"> (i, i) {TO_FLOAT}',
)
dense("Where", "t = Greater (a, b) z = Where (t, a, p)", weights={"p": (8,)})
dense("broadcast of one column", "c = Gemm (x, w3) z = Mul (a, c)", weights={"w3": (6, 1)})
dense(
    "QuantizeLinear, one scale",
    "q = QuantizeLinear (a, s, o) z = DequantizeLinear (q, s, o)",
    [8],
    {"s": np.float32(0.1), "o": np.int8(0)},
)
dense(
    "QuantizeLinear, a scale for each",
    "q = QuantizeLinear <axis = 1> (a, s) z = DequantizeLinear <axis = 1> (q, s)",
    [8],
    {"s": np.linspace(0.1, 0.2, 8, dtype=np.float32)},
)

# Contractions

image("Conv", "z = Relu (a)")
row(
    "Conv with one and three spatial axes",
    """g (float[N, 2, 9] x, float[N, 2, 4, 5, 6] u) => (y, v) {
        a = Conv (x, w1)
        y = Conv <strides = [2]> (a, w2)
        b = Conv (u, w3)
        v = Conv <dilations = [1, 2, 1]> (b, w4, b4)
    }""",
    {
        "w1": (6, 2, 3),
        "w2": (2, 6, 3),
        "w3": (5, 2, 1, 1, 1),
        "w4": (3, 5, 2, 2, 2),
        "b4": (3,),
    },
    [6, 5],
)
image(
    "grouped Conv: the same positions of every group",
    "z = Conv <group = 2> (a, g, gb)",
    [4, 6],
    weights={"g": (12, 4, 1, 1), "gb": (12,)},
    channels=12,
)
image(
    "depthwise Conv",
    "z = Conv <group = 8> (a, g, gb)",
    [8],
    weights={"g": (8, 1, 3, 3), "gb": (8,)},
)
image(
    "depthwise Conv with a multiplier: its outputs go together",
    "z = Conv <group = 8> (a, g)",
    [8],
    weights={"g": (24, 1, 3, 3)},
    channels=24,
)
image(
    "grouped Conv with a kernel that is computed: what it reads stays",
    """m = ReduceMean <keepdims = 0> (x)
       e = Mul (d, m)
       k = Reshape (e, shape)
       z = Conv <group = 2> (a, k)""",
    [4],
    {"shape": [8, 4, 3, 3]},
    weights={"d": (8, 36)},
)
image(
    "grouped Conv with one output each: whole groups",
    "z = Conv <group = 4> (a, g)",
    [4],
    weights={"g": (4, 2, 1, 1)},
    channels=4,
)
image(
    "depthwise after grouped Conv",
    "p = Conv <group = 2> (a, g) q = Relu (p) z = Conv <group = 12> (q, d)",
    [4, 6],
    weights={"g": (12, 4, 1, 1), "d": (12, 1, 1, 1)},
    channels=12,
)
image(
    "grouped Conv after grouped Conv",
    "p = Conv <group = 2> (a, g) z = Conv <group = 4> (p, h)",
    [4, 3, 2],
    weights={"g": (12, 4, 1, 1), "h": (8, 3, 1, 1)},
)
row(
    "grouped Conv and depthwise Conv with a multiplier, of inputs that stay",
    """g (float[N, 8, 6, 6] x, float[N, 4, 6, 6] u) => (y, v) {
        a = Conv <group = 4> (x, w1, b1)
        p = Relu (a)
        y = Conv <group = 2> (p, w2)
        b = Conv <group = 4> (u, w3)
        v = Conv (b, w4)
    }""",
    {
        "w1": (12, 2, 3, 3),
        "b1": (12,),
        "w2": (4, 6, 1, 1),
        "w3": (12, 1, 3, 3),
        "w4": (3, 12, 1, 1),
    },
    [3, 3],
)
image(
    "ConvTranspose",
    "z = ConvTranspose <strides = [2, 2]> (a, t, tb)",
    [8, 6],
    weights={"t": (8, 6, 2, 2), "tb": (6,)},
    channels=6,
)
image(
    "grouped ConvTranspose",
    "z = ConvTranspose <group = 2> (a, t, tb)",
    [4, 3],
    weights={"t": (8, 3, 2, 2), "tb": (6,)},
    channels=6,
)
image(
    "depthwise ConvTranspose",
    "z = ConvTranspose <group = 8> (a, t)",
    [8],
    weights={"t": (8, 1, 2, 2)},
)
image(
    "depthwise ConvTranspose with a multiplier",
    "z = ConvTranspose <group = 8> (a, t)",
    [8],
    weights={"t": (8, 3, 2, 2)},
    channels=24,
)
row(
    "Gemm, transposed in both ways",
    """g (float[6, 4] x) => (float[4, 3] y) {
        a = Gemm <transA = 1, transB = 1, alpha = 0.5> (x, w1, b1)
        c = Gemm <transB = 1, beta = 0.5> (a, w2, b2)
        t = Transpose (c)
        y = Gemm <transA = 1> (t, w3, b3)
    }""",
    {"w1": (8, 6), "b1": (1, 8), "w2": (5, 8), "b2": (4, 5), "w3": (5, 3), "b3": (4, 1)},
    [8, 5],
)
row(
    "MatMul with a weight on either side and a bias",
    """g (float[N, 4, 6] x) => (y) {
        a = MatMul (x, w1)
        b = Add (a, b1)
        c = MatMul (b, w2)
        d = Transpose <perm = [0, 2, 1]> (c)
        e = MatMul (w3, d)
        y = MatMul (w4, e)
    }""",
    {"w1": (6, 8), "b1": (8,), "w2": (8, 7), "w3": (9, 7), "w4": (2, 9)},
    [8, 7, 9],
)
row(
    "MatMul with vectors and stacked weights",
    """g (float[N, 1, 1, 6] x) => (y, float[5] v) {
        a = MatMul (x, w1)
        b = MatMul (a, w2)
        y = MatMul (b, w3)
        c = MatMul (w4, w5)
        v = MatMul (c, w6)
    }""",
    {"w1": (6, 8), "w2": (5, 8, 7), "w3": (5, 7, 1), "w4": (4,), "w5": (4, 9), "w6": (9, 5)},
    [8, 7, 9],
)
row(
    "Einsum with weights",
    """g (float[N, 4, 6] x) => (y) {
        a = Einsum <equation = "bti,io->bto"> (x, w1)
        b = Einsum <equation = "...i,oi->...o"> (a, w2)
        c = Einsum <equation = "b t i , i h d -> b h t d"> (b, w3)
        y = Einsum <equation = "bhtd,hdo->bto"> (c, w4)
    }""",
    {"w1": (6, 8), "w2": (7, 8), "w3": (7, 2, 5), "w4": (2, 5, 3)},
    [8, 7, 2, 5],
)

# Attention, in every spelling

WEIGHTS = {"wq": (12, 12), "wk": (12, 12), "wv": (12, 12), "wo": (12, 5)}
SPLITS = {"sq": [0, 0, 3, 4], "sk": [0, 0, 3, 4], "sv": [0, 0, 3, 4], "join": [0, 0, 12]}
PROJECTED = """
    q = MatMul (x, wq)
    qs = Reshape (q, sq)
    k = MatMul (x, wk)
    ks = Reshape (k, sk)
    v = MatMul (x, wv)
    vs = Reshape (v, sv)
"""
row(
    "attention by MatMul",
    f"""g (float[N, 5, 12] x) => (float[N, 5, 5] y) {{
        {PROJECTED}
        qt = Transpose <perm = [0, 2, 1, 3]> (qs)
        kt = Transpose <perm = [0, 2, 3, 1]> (ks)
        vt = Transpose <perm = [0, 2, 1, 3]> (vs)
        s = MatMul (qt, kt)
        c = Mul (s, scale)
        p = Softmax (c)
        m = MatMul (p, vt)
        mt = Transpose <perm = [0, 2, 1, 3]> (m)
        o = Reshape (mt, join)
        y = MatMul (o, wo)
    }}""",
    WEIGHTS,
    [],
    {**SPLITS, "scale": np.float32(0.5)},
    head=[3],
    head_dim=[4, 4],
)
row(
    "attention by Einsum",
    f"""g (float[N, 5, 12] x) => (float[N, 5, 5] y) {{
        {PROJECTED}
        s = Einsum <equation = "bqhd,bkhd->bhqk"> (qs, ks)
        p = Softmax (s)
        m = Einsum <equation = "bhqk,bkhd->bqhd"> (p, vs)
        o = Reshape (m, join)
        y = MatMul (o, wo)
    }}""",
    WEIGHTS,
    [],
    SPLITS,
    head=[3],
    head_dim=[4, 4],
)
row(
    "attention with query, key and value in one projection",
    """g (float[N, 5, 12] x) => (float[N, 5, 5] y) {
        f = MatMul (x, w)
        r = Reshape (f, split)
        t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
        q = Gather <axis = 0> (t, i0)
        k = Gather <axis = 0> (t, i1)
        v = Gather <axis = 0> (t, i2)
        kt = Transpose <perm = [0, 1, 3, 2]> (k)
        s = MatMul (q, kt)
        p = Softmax (s)
        m = MatMul (p, v)
        mt = Transpose <perm = [0, 2, 1, 3]> (m)
        o = Reshape (mt, join)
        y = MatMul (o, wo)
    }""",
    {"w": (12, 36), "wo": (12, 5)},
    [],
    {"split": [0, 0, 3, 3, 4], "join": [0, 0, -1], "i0": 0, "i1": 1, "i2": 2},
    head=[3],
    head_dim=[4],
)
row(
    "attention whose values are convolved head by head",
    f"""g (float[N, 5, 12] x) => (float[N, 5, 5] y) {{
        {PROJECTED}
        qt = Transpose <perm = [0, 2, 1, 3]> (qs)
        kt = Transpose <perm = [0, 2, 3, 1]> (ks)
        vt = Transpose <perm = [0, 2, 3, 1]> (vs)
        vr = Reshape (vt, rows)
        c = Conv <group = 4, pads = [1, 1]> (vr, kernel, bias)
        cr = Reshape (c, split)
        ct = Transpose <perm = [0, 1, 3, 2]> (cr)
        s = MatMul (qt, kt)
        p = Softmax (s)
        m = MatMul (p, ct)
        mt = Transpose <perm = [0, 2, 1, 3]> (m)
        o = Reshape (mt, join)
        y = MatMul (o, wo)
    }}""",
    {**WEIGHTS, "kernel": (4, 1, 3), "bias": (4,)},
    [],
    {**SPLITS, "rows": [-1, 4, 5], "split": [-1, 3, 4, 5]},
    head=[3],
    head_dim=[4, 4],
)
for name, keys in (
    (
        "looked up by places",
        """s = MatMul (qr, kr) t = Shape (s) i = Expand (places, t)
        c = GatherElements <axis = 2> (s, i)""",
    ),
    (
        "to places repeated for each sample",
        """e = MatMul (places_weight, wk) es = Reshape (e, sv)
        et = Transpose <perm = [0, 2, 3, 1]> (es) er = Reshape (et, columns)
        t = Shape (qr) all = Gather (t, zero) times = Div (all, three)
        r = Concat <axis = 0> (times, one, one)
        ek = Tile (er, r) c = MatMul (qr, ek)""",
    ),
):
    row(
        f"attention of heads among samples, {name}",
        f"""g (float[N, 5, 12] x) => (float[N, 5, 5] y) {{
            {PROJECTED}
            qt = Transpose <perm = [0, 2, 1, 3]> (qs)
            kt = Transpose <perm = [0, 2, 3, 1]> (ks)
            vt = Transpose <perm = [0, 2, 1, 3]> (vs)
            qr = Reshape (qt, rows)
            kr = Reshape (kt, columns)
            vr = Reshape (vt, rows)
            {keys}
            p = Softmax (c)
            m = MatMul (p, vr)
            mr = Reshape (m, split)
            mt = Transpose <perm = [0, 2, 1, 3]> (mr)
            o = Reshape (mt, join)
            y = MatMul (o, wo)
        }}""",
        {**WEIGHTS, "places_weight": (1, 5, 12)},
        [],
        {
            **SPLITS,
            "places": np.random.default_rng(4).integers(0, 5, (1, 5, 5)),
            "rows": [-1, 5, 4],
            "columns": [-1, 4, 5],
            "split": [-1, 3, 5, 4],
            "zero": [0],
            "one": [1],
            "three": [3],
        },
        head=[3],
        head_dim=[4, 4],
    )
row(
    "attention whose scores are looked up by a table for each head",
    f"""g (float[2, 5, 12] x) => (float[2, 5, 5] y) {{
        {PROJECTED}
        qt = Transpose <perm = [0, 2, 1, 3]> (qs)
        kt = Transpose <perm = [0, 2, 3, 1]> (ks)
        vt = Transpose <perm = [0, 2, 1, 3]> (vs)
        s = MatMul (qt, kt)
        c = GatherElements <axis = 3> (s, i)
        p = Softmax (c)
        m = MatMul (p, vt)
        mt = Transpose <perm = [0, 2, 1, 3]> (m)
        o = Reshape (mt, join)
        y = MatMul (o, wo)
    }}""",
    WEIGHTS,
    [],
    {**SPLITS, "i": np.random.default_rng(4).integers(0, 5, (2, 3, 5, 5))},
    head=[3],
    head_dim=[4, 4],
)
row(
    "attention whose heads are sliced out of one projection",
    """g (float[N, 5, 12] x) => (float[N, 5, 5] y) {
        f = MatMul (x, w)
        r = Reshape (f, split)
        q = Slice (r, zero, three, two)
        rest = Slice (r, three, nine, two)
        k, v = Split <axis = 2> (rest, sizes)
        qt = Transpose <perm = [0, 2, 1, 3]> (q)
        kt = Transpose <perm = [0, 2, 3, 1]> (k)
        vt = Transpose <perm = [0, 2, 1, 3]> (v)
        s = MatMul (qt, kt)
        p = Softmax (s)
        m = MatMul (p, vt)
        mt = Transpose <perm = [0, 2, 1, 3]> (m)
        o = Reshape (mt, join)
        y = MatMul (o, wo)
    }""",
    {"w": (12, 36), "wo": (12, 5)},
    [],
    {
        "split": [0, 0, 9, 4],
        "join": [0, 0, -1],
        "zero": [0],
        "three": [3],
        "nine": [9],
        "two": [2],
        "sizes": [3, 3],
    },
    head=[3],
    head_dim=[4],
)
OPERATOR = f"""g (float[N, 5, 12] x) => (float[N, 5, 5] y) {{
    {PROJECTED}
    qt = Transpose <perm = [0, 2, 1, 3]> (qs)
    kt = Transpose <perm = [0, 2, 1, 3]> (ks)
    vt = Transpose <perm = [0, 2, 1, 3]> (vs)
    m = Attention (qt, kt, vt)
    mt = Transpose <perm = [0, 2, 1, 3]> (m)
    o = Reshape (mt, join)
    y = MatMul (o, wo)
}}"""
row(
    "attention as an operator",
    OPERATOR,
    WEIGHTS,
    [],
    SPLITS,
    opset=23,
    head=[3],
    head_dim=[4, 4],
)
for name, numbers, keys, cached, head, head_dim in (
    ("with three axes", "q_num_heads = 3, kv_num_heads = 3", 24, False, [3], [8, 8]),
    ("with scale", "q_num_heads = 3, kv_num_heads = 3, scale = 0.3", 24, False, [3], [8, 8]),
    ("with a soft cap", "q_num_heads = 3, kv_num_heads = 3, softcap = 0.5", 24, False, [3], [8, 8]),
    ("whose heads share keys", "q_num_heads = 6, kv_num_heads = 2", 8, False, [2], [4, 4]),
    ("to earlier steps", "q_num_heads = 6, kv_num_heads = 2", 8, True, [3], []),
    ("whose head stays", "q_num_heads = 1, kv_num_heads = 1", 24, False, [], [24, 24]),
):
    row(
        f"attention {name}",
        f"""g (float[2, 5, 12] x{
            ", float[2, 2, 4, 4] pk, float[2, 2, 4, 4] pv" if cached else ""
        }) => (float[2, 5, 5] y{
            ", float[2, 2, 9, 4] nk, float[2, 2, 9, 4] nv" if cached else ""
        }) {{
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            m{", nk, nv" if cached else ""} = Attention <{numbers}, is_causal = 1>
                (q, k, v{", , pk, pv" if cached else ""})
            y = MatMul (m, wo)
        }}""",
        {"wq": (12, 24), "wk": (12, keys), "wv": (12, keys), "wo": (24, 5)},
        [],
        opset=23,
        head=head,
        head_dim=head_dim,
    )
row(
    "attention of four axes whose heads share keys",
    OPERATOR,
    {"wq": (12, 24), "wk": (12, 8), "wv": (12, 8), "wo": (24, 5)},
    [],
    {"sq": [0, 5, 6, 4], "sk": [0, 5, 2, 4], "sv": [0, 5, 2, 4], "join": [0, 5, 24]},
    opset=23,
    head=[2],
    head_dim=[4, 4],
)
for name, attributes, values, more in (
    ("as onnxruntime fuses it", "", 4, {}),
    ("with mask and bias", "", 4, {"seen": np.int32([[1, 1, 0, 1, 1]] * 2)}),
    ("with values of another size", ", qkv_hidden_sizes = [12, 12, 6]", 2, {}),
    ("with a scale of its own", ", scale = 0.3, unidirectional = 1", 4, {}),
):
    row(
        f"attention {name}",
        f"""g (float[2, 5, 12] x) => (float[2, 5, 5] y) {{
            m = com.microsoft.Attention <num_heads = 3{attributes}>
                (x, w, b{", seen, , added" if more else ""})
            y = MatMul (m, wo)
        }}""",
        {
            "w": (12, 24 + 3 * values),
            "b": (24 + 3 * values,),
            "wo": (3 * values, 5),
            **({"added": (1, 1, 5, 5)} if more else {}),
        },
        [],
        more,
        head=[3],
        head_dim=[4, values],
    )
row(
    "attention with a bias for each head",
    """g (float[2, 5, 12] x) => (float[2, 5, 5] y) {
        m = com.microsoft.Attention <num_heads = 3> (x, w, b, , , added)
        y = MatMul (m, wo)
    }""",
    {"w": (12, 36), "b": (36,), "wo": (12, 5), "added": (1, 3, 5, 5)},
    [],
    head=[],
    head_dim=[4, 4],
)
for name, attributes, given in (
    ("without a bias", "", ""),
    ("with a bias", "", ", b"),
    ("with a scale", ", scale = 0.3", ", b, , added"),
):
    row(
        f"attention of three inputs {name}",
        f"""g (float[N, 5, 12] x) => (float[N, 5, 5] y) {{
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            m = com.microsoft.MultiHeadAttention <num_heads = 3{attributes}> (q, k, v{given})
            y = MatMul (m, wo)
        }}""",
        {
            **{"wq": (12, 12), "wk": (12, 12), "wv": (12, 6), "wo": (6, 5)},
            **({"b": (30,)} if given else {}),
            **({"added": (1, 1, 5, 5)} if "added" in given else {}),
        },
        [],
        head=[3],
        head_dim=[4, 2],
    )
row(
    "attention to earlier steps stays whole",
    """g (float[2, 5, 12] x, float[2, 2, 3, 4, 4] past) => (float[2, 5, 5] y) {
        m, present = com.microsoft.Attention <num_heads = 3> (x, w, b, , past)
        y = MatMul (m, wo)
    }""",
    {"w": (12, 36), "b": (36,), "wo": (12, 5)},
    [],
    head=[],
    head_dim=[],
)
for given, inner, head in (
    # Keys and values that are the network's stay: the same heads of both groups go.
    ("q, k, v, pk, pv, last, total", "", [3]),
    ("q, k, v, pk, pv, last, total, cos, sin", ", do_rotary = 1, scale = 0.4", [3]),
    ("p, , , pk, pv, last, total, , , , , sinks", ", softcap = 5.0", [3]),
    ("q, k, v, , , all, few", "", [2]),
    ("q, k, v, , , all, few, , , , bias", "", [2]),
    ("q, k, v, , , all, few, , , , biases", "", []),
    ("p, , , , , all, few, cos, sin, , , sinks", ", do_rotary = 1", [2]),
):
    cached = "pk" in given
    row(
        f"heads that share keys: {given}{inner}",
        f"""g (float[{"1, 3" if cached else "2, 5"}, 12] x{
            ", float[1, 2, 5, 16] pk, float[1, 2, 5, 16] pv" if cached else ""
        }) => (float[N, T, 5] y{
            ", float[1, 2, 8, 16] nk, float[1, 2, 8, 16] nv" if cached else ""
        }) {{
            {"p = MatMul (x, w)" if given[0] == "p" else "q = MatMul (x, wq)"}
            {"k = MatMul (x, wk) v = MatMul (x, wv)" if given[0] == "q" else ""}
            m, nk, nv = com.microsoft.GroupQueryAttention
                <num_heads = 6, kv_num_heads = 2{inner}> ({given})
            y = MatMul (m, wo)
        }}""",
        {
            **({"w": (12, 160)} if given[0] == "p" else {"wq": (12, 96)}),
            **({"wk": (12, 32), "wv": (12, 32)} if given[0] == "q" else {}),
            **{"wo": (96, 5)},
            **({"sinks": (6,)} if "sinks" in given else {}),
            **({"biases": (1, 6, 5, 5)} if "biases" in given else {}),
            **({"bias": (1, 1, 5, 5)} if given.endswith("bias") else {}),
            **({"cos": (9, 8), "sin": (9, 8)} if "cos" in given else {}),
        },
        [],
        {
            **({"last": np.array([7], np.int32), "total": np.array(8, np.int32)}),
            **({"all": np.array([4, 4], np.int32), "few": np.array(5, np.int32)}),
        },
        head=head,
        head_dim=[],
    )
for domain, attributes, x, opset in (
    ("com.microsoft.", " <num_heads = 3>", "q, at, cos, sin", 18),
    ("com.microsoft.", "", "q, at, cos, sin", 18),
    ("com.microsoft.", " <interleaved = 1>", "t, at, cos, sin", 18),
    ("", " <num_heads = 3>", "q, cos, sin, at", 23),
    ("", " <interleaved = 1>", "t, cos, sin, at", 23),
):
    row(
        f"rotary embeddings: {domain}RotaryEmbedding{attributes} ({x})",
        f"""g (float[N, 5, 12] z) => (float[N, 5, 4] y) {{
            q = MatMul (z, wq)
            s = Reshape (q, apart)
            t = Transpose <perm = [0, 2, 1, 3]> (s)
            r = {domain}RotaryEmbedding{attributes} ({x})
            k = MatMul (z, wk)
            u = Reshape ({"r" if x[0] == "q" else "q"}, apart)
            v = {"Transpose <perm = [0, 2, 1, 3]> (u)" if x[0] == "q" else "Identity (r)"}
            l = Reshape (k, apart)
            n = Transpose <perm = [0, 2, 3, 1]> (l)
            a = MatMul (v, n)
            b = Softmax (a)
            c = Transpose <perm = [0, 1, 3, 2]> (n)
            d = MatMul (b, c)
            e = Transpose <perm = [0, 2, 1, 3]> (d)
            f = Reshape (e, joined)
            y = MatMul (f, wo)
        }}""",
        {"wq": (12, 24), "wk": (12, 24), "wo": (24, 4), "cos": (5, 4), "sin": (5, 4)},
        [],
        {"at": [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]], "apart": [0, 5, 3, 8], "joined": [0, 5, 24]},
        head=[3],
        head_dim=[],
        opset=opset,
    )
for name, layer, weights in (
    (
        "four bits",
        "a = com.microsoft.MatMulNBits <K = 32, N = 6, bits = 4, block_size = 32> (x, few, scales)",
        {"scales": (6,)},
    ),
    (
        "integers, whose input is quantized",
        "a = com.microsoft.DynamicQuantizeMatMul (x, whole, scale)",
        {"scale": ()},
    ),
    (
        "integers, and of integers",
        """q, s, z = DynamicQuantizeLinear (x)
        a = com.microsoft.MatMulIntegerToFloat (q, whole, s, scale, z)""",
        {"scale": ()},
    ),
):
    row(
        f"what is behind a layer of {name}",
        f"""g (float[2, 5, 32] x) => (float[N, 5, 3] y) {{
            {layer}
            b = MatMul (a, w1)
            c = Relu (b)
            y = MatMul (c, w2)
        }}""",
        {**weights, "w1": (6, 8), "w2": (8, 3)},
        [8],
        {
            "few": np.random.default_rng(4).integers(0, 256, (6, 1, 16), np.uint8),
            "whole": np.random.default_rng(4).integers(-9, 9, (32, 6), np.int8),
        },
    )
row(
    "attention of one packed input stays whole",
    """g (float[2, 5, 3, 3, 4] x) => (float[2, 5, 5] y) {
        p = Relu (x)
        m = com.microsoft.MultiHeadAttention <num_heads = 3> (p)
        y = MatMul (m, wo)
    }""",
    {"wo": (12, 5)},
    [],
    head=[],
    head_dim=[],
)
row(
    "attention to another sequence",
    """g (float[N, 5, 12] x, float[N, 7, 8] z) => (float[N, 5, 5] y) {
        q = MatMul (x, wq)
        k = MatMul (z, wk)
        v = MatMul (z, wv)
        m = com.microsoft.MultiHeadAttention <num_heads = 3> (q, k, v)
        y = MatMul (m, wo)
    }""",
    {"wq": (12, 12), "wk": (8, 12), "wv": (8, 12), "wo": (12, 5)},
    [],
    head=[3],
    head_dim=[4, 4],
)
row(
    "embeddings that onnxruntime has fused",
    """g (int32[N, 5] n, int32[N, 5] s) => (float[N, 5, 3] y) {
        e, l, t = com.microsoft.EmbedLayerNormalization (n, s, words, places, tables, g, b)
        h = MatMul (e, w)
        r = com.microsoft.BiasGelu (h, c)
        y = MatMul (r, wo)
    }""",
    {
        **{"words": (2, 6), "places": (5, 6), "tables": (2, 6), "g": (6,), "b": (6,)},
        **{"w": (6, 8), "c": (8,), "wo": (8, 3)},
    },
    [8],
    inexact=[6],
)
row(
    "linear attention: features of two activations are head features",
    """g (float[N, 5, 6] x) => (float[N, 5, 4] y) {
        q = MatMul (x, wq)
        qr = Relu (q)
        k = MatMul (x, wk)
        kt = Transpose <perm = [0, 2, 1]> (k)
        kr = Relu (kt)
        v = MatMul (x, wv)
        c = MatMul (kr, v)
        m = MatMul (qr, c)
        y = MatMul (m, wo)
    }""",
    {"wq": (6, 7), "wk": (6, 7), "wv": (6, 8), "wo": (8, 4)},
    [],
    head=[],
    head_dim=[7, 8],
)

# Indexing

dense(
    "Slice from the start",
    "z = Slice (a, s, e, one)",
    [5, 3],
    {"s": [0], "e": [5], "one": [1]},
    rows=5,
)
dense(
    "Slice to the end",
    "z = Slice (a, s, e, one)",
    [5, 3],
    {"s": [3], "e": [BIG], "one": [1]},
    rows=5,
)
dense(
    "Slice with negative bounds",
    "z = Slice (a, s, e, one)",
    [4, 4],
    {"s": [-6], "e": [-2], "one": [-1]},
    rows=4,
)
dense("Slice without axes", "z = Slice (a, s, e)", [4, 4], {"s": [0, 2], "e": [BIG, 6]}, rows=4)
dense(
    "Slice past the end",
    "z = Slice (a, s, e, one)",
    [6, 2],
    {"s": [2], "e": [100], "one": [1]},
    rows=6,
)
dense(
    "Slices joined the other way round",
    "h = Slice (a, s, m, one) t = Slice (a, n, e, one) z = Concat <axis = 1> (t, h)",
    [3, 5],
    {"s": [0], "m": [3], "n": [3], "e": [8], "one": [1]},
)
for name, start, end, units in (
    ("all", -1, -BIG, [8]),
    ("all, from a number on", 7, -BIG, []),
    ("all but the first", -1, -8, []),
    ("all but the last", -2, -BIG, []),
):
    dense(
        f"Slice backwards: {name}",
        "z = Slice (a, s, e, one, step)",
        units,
        {"s": [start], "e": [end], "one": [1], "step": [-1]},
        rows=8 if "but" not in name else 7,
    )
dense(
    "Slice backwards and added to what it was",
    "t = Slice (a, s, e, one, step) z = Add (a, t)",
    [4],
    {"s": [-1], "e": [-BIG], "one": [1], "step": [-1]},
)
dense(
    "Slice backwards of a part, in one node",
    "b3 = Unsqueeze (a, two) z3 = Slice (b3, s, e, axes, step) z = Squeeze (z3, two)",
    [8],
    {"s": [-1, 0], "e": [-BIG, 1], "axes": [1, 2], "step": [-1, 1], "two": [2]},
)
dense(
    "Slice of one alone keeps it",
    "z = Slice (a, s, e, one)",
    [7],
    {"s": [2], "e": [3], "one": [1]},
    rows=1,
)
dense(
    "Gather one alone keeps it",
    "c = Gather <axis = 1> (a, i) d = Unsqueeze (c, one) z = Mul (a, d)",
    [7],
    {"i": -3, "one": [1]},
)
dense(
    "Gather in another order", "z = Gather <axis = 1> (a, i)", [8], {"i": [3, 1, 0, 7, 6, 2, 4, 5]}
)
dense(
    "Gather some, one twice",
    "z = Gather <axis = 1> (a, i)",
    [3, 4],
    {"i": [3, 1, -1, 3, 0]},
    rows=5,
)
dense(
    "Gather by a table",
    "t = Gather <axis = 1> (a, i) z = Flatten (t)",
    [],
    {"i": [[3, 1], [0, 2]]},
    rows=4,
)
row(
    "Gather from an embedding",
    """g (int64[N, 4] tokens) => (float[N, 4, 3] y) {
        e = Gather (table, tokens)
        y = MatMul (e, w)
    }""",
    {"table": (10, 8), "w": (8, 3)},
    [8],
)
row(
    "Gather by computed indices that go",
    """g (float[N, 6] x) => (float[N, 3] y) {
        a = MatMul (x, w1)
        s = Sigmoid (a)
        t = Mul (s, four)
        i = Cast <to = 7> (t)
        e = Gather (table, i)
        z = ReduceMax <keepdims = 0> (e, last)
        y = MatMul (z, w2)
    }""",
    {"w1": (6, 8), "table": (5, 7), "w2": (8, 3)},
    [8],
    {"four": np.float32([4]), "last": [2]},
    inexact=[7],
)
image("Trilu", "t = Trilu (a) z = Relu (t)")
dense("Trilu along units", "z = Trilu <upper = 0> (a)", [])
for name, middle in (
    (
        "GatherElements of the first by computed indices",
        "e = GatherElements <axis = 0> (table, i) z = Mul (e, twenty)",
    ),
    ("ScatterElements at computed places", "z = ScatterElements <axis = 1> (zeros, i, a)"),
    (
        "ScatterND at computed places",
        """columns = Unsqueeze (i, two) shape = Shape (columns) rows = Expand (numbers, shape)
        places = Concat <axis = 2> (rows, columns) z = ScatterND (zeros, places, a)""",
    ),
):
    row(
        name,
        f"""g (float[2, 6] x) => (float[2, 3] y) {{
            a = MatMul (x, w1)
            s = Sigmoid (a)
            f = Mul (s, twenty)
            i = Cast <to = 7> (f)
            {middle}
            y = MatMul (z, w2)
        }}""",
        {"w1": (6, 8), "w2": (8 if "first" in name else 20, 3), "table": (20, 9)},
        [],
        {
            "twenty": np.float32(20),
            "two": [2],
            "numbers": [[[0]], [[1]]],
            "zeros": np.zeros((2, 20), np.float32),
        },
    )
for along, units in (("1", [8]), ("2", []), ("-2", [8])):
    for operator, middle in (
        (
            "TopK",
            "t, i = TopK <axis = {}> (a, two) f = Cast <to = 1> (i) z = Concat <axis = 1> (t, f)",
        ),
        ("ArgMax", "i = ArgMax <axis = {}> (a) f = Cast <to = 1> (i) z = Add (a, f)"),
        (
            "ArgMin",
            "i = ArgMin <axis = {}, keepdims = 0> (a) f = Cast <to = 1> (i) {} z = Add (a, e)",
        ),
        ("Compress", "z = Compress <axis = {}> (a, mask)"),
        ("ReverseSequence", "z = ReverseSequence <batch_axis = 0, time_axis = {}> (a, lengths)"),
    ):
        if operator == "ReverseSequence" and along == "-2":
            continue  # ONNX allows no negative ones
        row(
            f"{operator} along axis {along}",
            f"""g (float[N, 4, 6] x) => (y) {{
                a = MatMul (x, w1)
                {middle.format(along, "e = Unsqueeze (f, along)")}
                y = MatMul (z, w2)
            }}""",
            {"w1": (6, 8), "w2": (8, 3)},
            units,
            {
                "two": [8 if along == "2" else 2],
                "along": [int(along)],
                "mask": np.ones(8, bool) if along == "2" else np.array([True, False, True, True]),
                "lengths": [3, 4],
            },
        )
TABLES = """g (float[{n}, 4, 6] x) => (float y) {{
    a = MatMul (x, w1)
    {middle}
    y = MatMul (z, w2)
}}"""
for name, middle, units, constants in (
    ("GatherElements along rows", "z = GatherElements <axis = 1> (a, i)", [8], {"i": (2, 3, 8)}),
    ("GatherElements along units", "z = GatherElements <axis = 2> (a, i)", [], {"i": (2, 4, 8)}),
    ("GatherElements of some", "z = GatherElements <axis = 1> (a, i)", [], {"i": (2, 3, 5)}),
    (
        "GatherElements by a shared table",
        "t = GatherElements <axis = 1> (a, i) f = Cast <to = 1> (i) z = Add (t, f)",
        [8],
        {"i": (2, 3, 8)},
    ),
    (
        "ScatterElements along rows",
        "u = MatMul (x, w3) z = ScatterElements <axis = 1> (a, i, u)",
        [8],
        {"i": (2, 4, 8)},
    ),
    (
        "ScatterElements along units",
        "u = MatMul (x, w3) z = ScatterElements <axis = 2> (a, i, u)",
        [],
        {"i": (2, 4, 8)},
    ),
    (
        "ScatterElements to some, summed",
        """u = MatMul (x, w4) r = Relu (u)
        z = ScatterElements <axis = 1, reduction = "add"> (a, i, r)""",
        [],
        {"i": (2, 4, 5)},
    ),
    ("GatherND of rows", "z = GatherND (a, i)", [8], {"i": (3, 2)}),
    ("GatherND of samples", "z = GatherND (a, i)", [8], {"i": (3, 1)}),
    ("GatherND of elements", "t = GatherND (a, i) z = Unsqueeze (t, one)", [], {"i": (8, 3)}),
    ("GatherND of each sample", "z = GatherND <batch_dims = 1> (a, i)", [8], {"i": (2, 3, 1)}),
    (
        "ScatterND of rows",
        "u = MatMul (x, w3) t = Gather <axis = 1> (u, one) z = ScatterND (a, i, t)",
        [8],
        {"i": (2, 1, 2)},
    ),
    (
        "ScatterND of rows into a constant",
        "u = Relu (a) z = ScatterND (zero, i, u)",
        [8],
        {"i": (2, 4, 2), "zero": np.zeros((3, 5, 8), np.float32)},
    ),
):
    given: dict[str, object] = {"one": [1]}
    for key, value in constants.items():
        # Small numbers are indices of every axis.
        shape_or_array = value
        if isinstance(value, tuple):
            shape_or_array = np.random.default_rng(5).integers(0, 2, value)
        given[key] = shape_or_array
    row(
        name,
        TABLES.format(n=2, middle=middle),
        {"w1": (6, 8), "w3": (6, 8), "w4": (6, 5), "w2": (8, 3)},
        units,
        given,
    )
image(
    "Pad channels after and before",
    "z = Pad (a, p)",
    [8, 3],
    {"p": [0, 1, 0, 0, 0, 2, 0, 0]},
    channels=11,
)
image(
    "Pad channels of a sum",
    "p1 = Pad (a, p) s = Conv (x, ws) z = Add (s, p1)",
    [8, 5],
    {"p": [0, 2, 0, 0, 0, 3, 0, 0]},
    weights={"ws": (13, 3, 3, 3)},
    channels=13,
)
image(
    "Pad by axes",
    "z = Pad (a, p, v, axes)",
    [8, 3],
    {"p": [1, 2], "v": np.float32(0.5), "axes": [1]},
    channels=11,
)
image("Pad space", 'z = Pad <mode = "reflect"> (a, p)', [8], {"p": [0, 0, 1, 1, 0, 0, 2, 2]})
image(
    "Pad channels by reflection",
    'z = Pad <mode = "reflect"> (a, p)',
    [],
    {"p": [0, 1, 0, 0, 0, 1, 0, 0]},
    channels=10,
)
image("Pad that crops channels", "z = Pad (a, p)", [], {"p": [0, -1, 0, 0, 0, 0, 0, 0]}, channels=7)

# Shapes

row(
    "Flatten between Conv and Gemm",
    """g (float[N, 3, 4, 4] x) => (float[N, 2] y) {
        a = Conv (x, w1)
        f = Flatten (a)
        y = Gemm (f, w2)
    }""",
    {"w1": (8, 3, 3, 3), "w2": (32, 2)},
    [8],
)
for spec in ([0, -1], [-1, 32], [0, 32]):
    row(
        f"Reshape to {spec} between Conv and Gemm",
        """g (float[N, 3, 4, 4] x) => (float[N, 2] y) {
            a = Conv (x, w1)
            f = Reshape (a, s)
            y = Gemm (f, w2)
        }""",
        {"w1": (8, 3, 3, 3), "w2": (32, 2)},
        [8],
        {"s": spec},
    )
row(
    "Reshape to a computed shape",
    """g (float[N, 3, 4, 4] x) => (y) {
        a = Conv (x, w1)
        s = Shape (x)
        n = Slice (s, zero, one)
        t = Concat <axis = 0> (n, rest)
        f = Reshape (a, t)
        y = MatMul (w2, f)
    }""",
    {"w1": (8, 3, 3, 3), "w2": (4, 16)},
    [8],
    {"zero": [0], "one": [1], "rest": [16, 2]},
)
row(
    "Reshape by the shape of what is pruned",
    """g (float[N, 3, 6, 6] x) => (y) {
        a = Conv (x, w1)
        f = Reshape (a, flat)
        r = Relu (f)
        s = Shape (a)
        u = Reshape (r, s)
        y = Conv (u, w2)
    }""",
    {"w1": (8, 3, 3, 3), "w2": (2, 8, 1, 1)},
    [8],
    {"flat": [0, 8, -1]},
)
row(
    "channel shuffle",
    """g (float[N, 3, 4, 4] x) => (y) {
        a = Conv (x, w1)
        r = Reshape (a, split)
        t = Transpose <perm = [0, 2, 1, 3, 4]> (r)
        b = Reshape (t, join)
        y = Conv (b, w2)
    }""",
    {"w1": (8, 3, 1, 1), "w2": (2, 8, 1, 1)},
    [4],
    {"split": [0, 2, 4, 4, 4], "join": [0, -1, 4, 4]},
)
dense(
    "Unsqueeze and Squeeze",
    """u = Unsqueeze (a, two) t = Transpose <perm = [2, 1, 0]> (u)
    s = Squeeze (t, zero) z = Transpose (s)""",
    [8],
    {"two": [2], "zero": [0]},
)
row(
    "Squeeze that names no axes",
    """g (float[2, 6] x) => (y) {
        a = Gemm (x, w1)
        u = Unsqueeze (a, axes)
        s = Squeeze (u)
        y = Gemm (s, w2)
    }""",
    {"w1": (6, 8), "w2": (8, 3)},
    [],
    {"axes": [0]},
)
row(
    "Expand over an axis of one and over the batch",
    """g (float[N, 6] x) => (float[N, 5, 3] y) {
        a = Gemm (x, w1)
        u = Unsqueeze (a, one)
        e = Expand (u, shape)
        p = Expand (parameter, shape)
        s = Add (e, p)
        y = MatMul (s, w2)
    }""",
    {"w1": (6, 8), "w2": (8, 3), "parameter": (8,)},
    [8],
    {"one": [1], "shape": [1, 5, 8]},
)
row(
    "Expand to the shape of what is pruned",
    """g (float[N, 6] x) => (float[N, 3] y) {
        a = Gemm (x, w1)
        s = Shape (a)
        e = Expand (half, s)
        p = Mul (a, e)
        y = Gemm (p, w2)
    }""",
    {"w1": (6, 8), "w2": (8, 3)},
    [8],
    {"half": np.float32([[0.5]])},
)
row(
    "ConstantOfShape as a part of a sum",
    """g (float[N, 6] x) => (float[N, 3] y) {
        a = Gemm (x, w1)
        n = Shape <end = 1> (x)
        s = Concat <axis = 0> (n, eight)
        c = ConstantOfShape <value = float[1] {0.5}> (s)
        p = Add (a, c)
        y = Gemm (p, w2)
    }""",
    {"w1": (6, 8), "w2": (8, 3)},
    [8],
    {"eight": [8]},
)
dense("Tile along units", "z = Tile (a, r)", [8], {"r": [1, 3]}, rows=24)
dense("Concat", "z = Concat <axis = 1> (a, b, a)", [8, 8], rows=24)
dense("Concat with an input", "z = Concat <axis = -1> (x, a)", [8], rows=14)
dense(
    "Concat with one column",
    "c = Gemm (x, w3) z = Concat <axis = 1> (c, a)",
    [8],
    weights={"w3": (6, 1)},
    rows=9,
)
dense("Split", "p, q = Split <axis = 1> (a, s) z = Concat <axis = 1> (q, p)", [3, 5], {"s": [3, 5]})
dense(
    "Split in equal parts",
    "p, q = Split <axis = 1, num_outputs = 2> (a) z = Mul (p, q)",
    [4],
    rows=4,
)
dense(
    "Split of one alone keeps it",
    "p, q = Split <axis = 1> (a, s) z = Mul (p, q)",
    [7],
    {"s": [1, 7]},
    rows=7,
)
image("DepthToSpace", "z = DepthToSpace <blocksize = 2> (a)", [2], channels=2)
image(
    "DepthToSpace, the other way",
    'z = DepthToSpace <blocksize = 2, mode = "CRD"> (a)',
    [2],
    channels=2,
)
image("SpaceToDepth", "z = SpaceToDepth <blocksize = 2> (a)", [8], channels=32)

# Space

for operator in "GlobalAveragePool GlobalMaxPool GlobalLpPool".split():
    image(operator, f"z = {operator} (a)")
for operator in "AveragePool MaxPool LpPool".split():
    image(operator, f"z = {operator} <kernel_shape = [2, 2]> (a)")
row(
    "GridSample",
    """g (float[N, 3, 6, 6] x, float[N, 4, 4, 2] grid) => (y) {
        a = Conv (x, w1)
        s = GridSample (a, grid)
        y = Conv (s, w2)
    }""",
    {"w1": (8, 3, 1, 1), "w2": (2, 8, 1, 1)},
    [8],
)
row(
    "GridSample by computed positions, which keep both coordinates",
    """g (float[N, 3, 6, 6] x) => (y) {
        a = Conv (x, w1)
        p = Conv (x, wp)
        t = Tanh (p)
        grid = Transpose <perm = [0, 2, 3, 1]> (t)
        s = GridSample (a, grid)
        y = Conv (s, w2)
    }""",
    {"w1": (8, 3, 1, 1), "wp": (2, 3, 1, 1), "w2": (2, 8, 1, 1)},
    [8],
)
row(
    "RoiAlign",
    """g (float[1, 3, 6, 6] x) => (y) {
        a = Conv (x, w1)
        s = RoiAlign <output_height = 2, output_width = 2> (a, boxes, which)
        y = Conv (s, w2)
    }""",
    {"w1": (8, 3, 1, 1), "w2": (2, 8, 1, 1)},
    [8],
    {"which": [0, 0], "boxes": np.float32([[0, 0, 3, 3], [1, 1, 5, 5]])},
)
row(
    "MaxRoiPool",
    """g (float[1, 3, 6, 6] x) => (y) {
        a = Conv (x, w1)
        s = MaxRoiPool <pooled_shape = [2, 2]> (a, boxes)
        y = Conv (s, w2)
    }""",
    {"w1": (8, 3, 1, 1), "w2": (2, 8, 1, 1)},
    [8],
    {"boxes": np.float32([[0, 0, 0, 3, 3], [0, 1, 1, 5, 5]])},
)
image("Resize by scales", "z = Resize (a, , scales)", [8], {"scales": np.float32([1, 1, 2, 2])})
image(
    "Resize to sizes",
    'z = Resize <mode = "linear"> (a, , , sizes)',
    [8],
    {"sizes": [1, 8, 9, 9]},
    batch=1,
)
image("Resize of two axes", "z = Resize <axes = [2, 3]> (a, , , sizes)", [8], {"sizes": [9, 9]})
image(
    "Resize to sizes that follow from the input",
    "s = Shape (a) h = Slice (s, zero, two) k = Concat <axis = 0> (h, hw) z = Resize (a, , , k)",
    [8],
    {"zero": [0], "two": [2], "hw": [9, 9]},
)
image(
    "Resize along channels",
    "z = Resize (a, , scales)",
    [],
    {"scales": np.float32([1, 2, 1, 1])},
    channels=16,
)
image("Upsample", "z = Upsample (a, scales)", [8], {"scales": np.float32([1, 1, 2, 2])}, opset=9)

# Normalizations and reductions

image(
    "BatchNormalization",
    "z = BatchNormalization (a, s, b, m, variance)",
    weights={"s": (8,), "b": (8,), "m": (8,), "variance": (8,)},
)
image(
    "InstanceNormalization", "z = InstanceNormalization (a, s, b)", weights={"s": (8,), "b": (8,)}
)
image(
    "InstanceNormalization over channels",
    """t = Transpose <perm = [0, 2, 1, 3]> (a) n = InstanceNormalization (t, s, b)
    z = Transpose <perm = [0, 2, 1, 3]> (n)""",
    [],
    weights={"s": (6,), "b": (6,)},
    inexact=[8],
)
image(
    "GroupNormalization",
    "z = GroupNormalization <num_groups = 4> (a, s, b)",
    [4],
    weights={"s": (8,), "b": (8,)},
    opset=21,
    output="float[N, 5, 6, 6] y",
)
image(
    "group normalization as instance normalization",
    """r = Reshape (a, split) n = InstanceNormalization (r, s, b) t = Reshape (n, join)
    u = Mul (t, p) z = Add (u, q)""",
    [4],
    {
        "split": [0, 4, -1],
        "join": [0, 8, 6, 6],
        "s": np.ones(4, np.float32),
        "b": np.zeros(4, np.float32),
    },
    weights={"p": (8, 1, 1), "q": (8, 1, 1)},
)
image("LRN", "z = LRN <size = 3> (a)", [], inexact=[8])
image("MeanVarianceNormalization over space", "z = MeanVarianceNormalization <axes = [2, 3]> (a)")
image(
    "MeanVarianceNormalization over channels",
    "z = MeanVarianceNormalization <axes = [1, 2, 3]> (a)",
    [],
    inexact=[8],
)
dense(
    "LayerNormalization",
    "z = LayerNormalization (a, s, b0)",
    [],
    weights={"s": (8,), "b0": (8,)},
    inexact=[8],
)
dense(
    "RMSNormalization",
    "z = RMSNormalization (a, s)",
    [],
    weights={"s": (8,)},
    inexact=[8],
    opset=23,
)
row(
    "SkipLayerNormalization and its simplified form",
    """g (float[N, 4, 6] x) => (float[N, 4, 3] y) {
        a = MatMul (x, w1)
        b = MatMul (x, w2)
        n = com.microsoft.SkipLayerNormalization (a, b, s, t, u)
        m = com.microsoft.SkipSimplifiedLayerNormalization (n, b, s)
        y = MatMul (m, w3)
    }""",
    {"w1": (6, 8), "w2": (6, 8), "s": (8,), "t": (8,), "u": (8,), "w3": (8, 3)},
    [],
    inexact=[8],
)
for operator in "Softmax LogSoftmax Hardmax LpNormalization".split():
    dense(f"{operator} over units", f"z = {operator} (a)", [], inexact=[8])
row(
    "Softmax over something else",
    """g (float[N, 4, 6] x) => (y) {
        a = MatMul (x, w1)
        s = Softmax <axis = 1> (a)
        y = MatMul (s, w2)
    }""",
    {"w1": (6, 8), "w2": (8, 3)},
    [8],
)
for operator in (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare"
).split():
    image(
        f"{operator} over space",
        f"e = Abs (a) z = {operator} <keepdims = 1> (e, hw)",
        [8],
        {"hw": [2, 3]},
    )
    dense(
        f"{operator} over units",
        f"e = Abs (a) m = {operator} <keepdims = 1> (e, last) z = Mul (a, m)",
        [],
        {"last": [-1]},
        inexact=[8],
    )
dense("reduction of everything", "m = ReduceMean (a) z = Mul (a, m)", [], inexact=[8])
dense("reduction of nothing", "z = ReduceMean <noop_with_empty_axes = 1> (a)")
row(
    "CumSum over time and over units",
    """g (float[N, 4, 6] x) => (y, v) {
        a = MatMul (x, w1)
        t = CumSum (a, one)
        y = MatMul (t, w2)
        b = MatMul (x, w3)
        u = CumSum (b, two)
        v = MatMul (u, w4)
    }""",
    {"w1": (6, 8), "w2": (8, 3), "w3": (6, 7), "w4": (7, 3)},
    [8],
    {"one": 1, "two": 2},
)
dense("CumProd", "z = CumProd (a, one)", [], {"one": 1}, opset=26)

# Recurrent cells


def cell(
    name: str,
    operator: str,
    gates: int,
    directions: int = 1,
    *,
    attributes: str = "",
    **extra: Sequence[int],
) -> None:
    """Add a network of two recurrent layers of 5 and 4 units, with all their outputs."""
    way = {1: "", 2: ', direction = "bidirectional"'}[directions] + attributes
    second = directions * 5
    states = ", c" if operator == "LSTM" else ""
    shapes = {
        "w1": (directions, gates * 5, 6),
        "r1": (directions, gates * 5, 5),
        "b1": (directions, gates * 10),
        "w2": (directions, gates * 4, second),
        "r2": (directions, gates * 4, 4),
        "o": (directions * 4, 2),
        "p": (4, 3),
        **extra,
    }
    given = f", , {'h0' if 'h0' in extra else ''}"
    if operator == "LSTM":
        given += f", {'c0' if 'c0' in extra else ''}, {'peep' if 'peep' in extra else ''}"
    text = f"""g (float[3, 2, 6] x) => (y, v, c0_out) {{
        h, last{states} = {operator} <hidden_size = 5{way}> (x, w1, r1, b1{given})
        t = Transpose <perm = [0, 2, 1, 3]> (h)
        s = Reshape (t, join)
        h2, last2 = {operator} <hidden_size = 4{way}> (s, w2, r2)
        t2 = Transpose <perm = [0, 2, 1, 3]> (h2)
        s2 = Reshape (t2, join)
        y = MatMul (s2, o)
        v = MatMul (last2, p)
        c0_out = MatMul ({"c" if states else "last"}, q)
    }}"""
    row(name, text, {**shapes, "q": (5, 2)}, [5, 4], {"join": [0, 0, -1]})


for operator, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
    cell(operator, operator, gates)
    cell(f"{operator} in both directions", operator, gates, 2)
    cell(f"{operator} with an initial state", operator, gates, h0=(1, 2, 5))
cell("LSTM with peepholes and both states", "LSTM", 4, h0=(1, 2, 5), c0=(1, 2, 5), peep=(1, 15))
cell(
    "LSTM in both directions with all inputs",
    "LSTM",
    4,
    2,
    h0=(2, 2, 5),
    c0=(2, 2, 5),
    peep=(2, 15),
)
cell("GRU that resets afterwards", "GRU", 3, 2, attributes=", linear_before_reset = 1")
row(
    "LSTM with zeros as its initial state",
    """g (float[3, N, 6] x) => (y) {
        n = Shape <start = 1, end = 2> (x)
        s = Concat <axis = 0> (one, n, five)
        z = ConstantOfShape (s)
        h, last = LSTM <hidden_size = 5> (x, w, r, , , z, z)
        y = MatMul (last, o)
    }""",
    {"w": (1, 20, 6), "r": (1, 20, 5), "o": (5, 2)},
    [5],
    {"one": [1], "five": [5]},
)
row(
    "LSTM with an expanded initial state",
    """g (float[3, N, 6] x) => (y) {
        n = Shape <start = 1, end = 2> (x)
        s = Concat <axis = 0> (one, n, one)
        z = Expand (h0, s)
        h, last = LSTM <hidden_size = 5> (x, w, r, , , z, z)
        y = MatMul (last, o)
    }""",
    {"w": (1, 20, 6), "r": (1, 20, 5), "o": (5, 2), "h0": (1, 1, 5)},
    [5],
    {"one": [1]},
)


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_rule(case: Row) -> None:
    model = case.model()
    graph = normalize(model)
    feeds = [inputs(model)]
    for granularity, units in case.expected():
        structure = analyze(graph, granularity=granularity)
        exact = [group.size for group in structure.groups if group.exact]
        assert sorted(exact) == sorted(units), (granularity, structure.whole)
        if granularity == "channel":
            assert [g.size for g in structure.groups if not g.exact] == list(case.inexact)
        generator = np.random.default_rng(3)
        for kind in PLANS if exact else ():
            assert prove(structure, kind(structure, generator), feeds) <= TOLERANCE


def test_every_rule_has_a_row() -> None:
    used = set()
    for case in ROWS:
        used |= {(node.domain, node.op_type) for node in case.model().graph.node}
    assert set(RULES) - used == set()
