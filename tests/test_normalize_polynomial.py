"""Polynomials of sizes, against Python's own arithmetic on numbers."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxjl.normalize.polynomial import Polynomial, evaluated

SIZES = {"batch": 3, "seq": 7, "h": 11}

numbers = st.integers(-5, 5)
symbols = st.sampled_from(sorted(SIZES)).map(Polynomial.symbol)
polynomials = st.recursive(
    numbers | symbols,
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: t[0] + t[2] if t[1] == "+" else t[0] - t[2] if t[1] == "-" else t[0] * t[2]
    ),
    max_leaves=6,
)


def value(polynomial: int | Polynomial) -> int:
    """What it is at `SIZES`; it is written as Python would write it."""
    return eval(str(polynomial), {}, dict(SIZES))


@given(polynomials, polynomials)
def test_arithmetic(a, b):
    assert value(a + b) == value(a) + value(b)
    assert value(a - b) == value(a) - value(b)
    assert value(a * b) == value(a) * value(b)
    assert a - a == 0
    assert isinstance(a * 0, int)


@given(polynomials, polynomials)
def test_division_is_exact_or_none(a, b):
    if not isinstance(a, Polynomial) or b == 0:
        return
    quotient = a.divided(b)
    if quotient is not None:
        assert quotient * b == a
    product = a * b
    if isinstance(product, Polynomial) and product.is_known:
        assert product.divided(b) == a


@given(polynomials)
def test_a_positive_one_is_positive(a):
    if isinstance(a, Polynomial) and a.is_positive:
        assert value(a) > 0


@pytest.mark.parametrize(
    ("polynomial", "text"),
    [
        (Polynomial.symbol("batch") * 12, "12*batch"),
        (Polynomial.symbol("seq") * Polynomial.symbol("batch") + 1, "batch*seq + 1"),
        (1 - Polynomial.symbol("seq"), "-seq + 1"),
        (Polynomial.symbol("seq").at_most(512), "Min(512, seq)"),
    ],
)
def test_text_is_what_onnx_ir_reads(polynomial, text):
    assert str(polynomial) == text
    assert ir.SymbolicDim(text).evaluate(SIZES) == eval(text, {"Min": min}, dict(SIZES))


@given(polynomials)
def test_text_is_evaluated(polynomial):
    assert evaluated(str(polynomial), SIZES) == value(polynomial)


@pytest.mark.parametrize(
    "text", ["depth", "2*depth", "seq + depth", "Min(512, seq)", "?0", "", "*"]
)
def test_text_with_other_names_has_no_value(text):
    assert evaluated(text, SIZES) is None


def test_unknown_ones_differ():
    a, b = Polynomial.unknown(), Polynomial.unknown()
    assert a != b
    assert a == a + 0
    assert not a.is_known
    assert not (a + 1).is_positive


def test_a_bound_is_remembered():
    seq = Polynomial.symbol("seq")
    assert seq.at_most(512).bounded == seq
    assert seq.bounded is None
    assert seq.at_most(512) == seq.at_most(512)
