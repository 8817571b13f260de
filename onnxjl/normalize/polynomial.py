"""Polynomial: sizes that aren't numbers yet, such as ``12*batch`` or ``seq + 1``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

Monomial = tuple[str, ...]
_unknowns = count()

# Sizes in networks are sums of a few products; what grows beyond is given up.
_MOST_TERMS, _MOST_FACTORS, _LARGEST = 64, 16, 1 << 63


class Polynomial:
    """An integer polynomial over named sizes, immutable and never a mere number.

    Parameters
    ----------
    terms : sorted names (repeated for powers; none for the constant term) -> coefficient, not 0.

    Notes
    -----
    `+`, `-` and `*` are exact, and return an int where the result is one; what has more than 64
    terms or 16 factors becomes `unknown`. Names stand for dimensions, which aren't negative, except
    for those that `unknown` makes.
    """

    __slots__ = ("_bounded", "_terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self._terms = dict(terms)
        self._bounded: Polynomial | None = None

    @classmethod
    def symbol(cls, name: str) -> Polynomial:
        """The polynomial that is just this name."""
        return cls({(name,): 1})

    @classmethod
    def unknown(cls) -> Polynomial:
        """A number that nothing is known about, different from all others."""
        return cls({(f"?{next(_unknowns)}",): 1})

    def at_most(self, bound: int) -> Polynomial:
        """The smaller of this and a number, itself a new name."""
        smaller = Polynomial.symbol(f"Min({bound}, {self})")
        smaller._bounded = self
        return smaller

    @property
    def bounded(self) -> Polynomial | None:
        """What `at_most` bounded to make this one."""
        return self._bounded

    @property
    def names(self) -> frozenset[str]:
        """What it is made of."""
        return frozenset(name for names in self._terms for name in names)

    @property
    def is_known(self) -> bool:
        """Whether it consists of sizes only."""
        return not any(name.startswith("?") for name in self.names)

    @property
    def is_positive(self) -> bool:
        """Whether it is above zero, whatever the sizes are (even empty ones)."""
        return (
            self.is_known
            and self._terms.get((), 0) > 0
            and all(coefficient > 0 for coefficient in self._terms.values())
        )

    def divided(self, divisor: int | Polynomial) -> int | Polynomial | None:
        """The quotient where the division leaves no remainder whatever the sizes are, else None."""
        parts = _terms(divisor)
        if not parts:
            return None
        leading = max(parts, key=_order)
        quotient: dict[Monomial, int] = {}
        rest = dict(self._terms)
        while rest:
            names = max(rest, key=_order)
            left = list(names)
            for name in leading:
                if name not in left:
                    return None
                left.remove(name)
            if rest[names] % parts[leading] or len(quotient) == _MOST_TERMS:
                return None
            term = tuple(left)
            quotient[term] = rest[names] // parts[leading]
            for more, factor in parts.items():
                both = tuple(sorted(term + more))
                rest[both] = rest.get(both, 0) - quotient[term] * factor
                if not rest[both]:
                    del rest[both]
        return _number_or_polynomial(quotient)

    def __add__(self, other: object) -> int | Polynomial:
        terms = dict(self._terms)
        for names, coefficient in _terms(other).items():
            terms[names] = terms.get(names, 0) + coefficient
        return _number_or_polynomial(terms)

    def __mul__(self, other: object) -> int | Polynomial:
        terms: dict[Monomial, int] = {}
        for names, coefficient in self._terms.items():
            for more, factor in _terms(other).items():
                both = tuple(sorted(names + more))
                terms[both] = terms.get(both, 0) + coefficient * factor
        return _number_or_polynomial(terms)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> int | Polynomial:
        return self * -1

    def __sub__(self, other: object) -> int | Polynomial:
        return self + (-other)  # type: ignore[operator]

    def __rsub__(self, other: object) -> int | Polynomial:
        return (-self) + other  # type: ignore[operator]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self._terms == other._terms

    def __hash__(self) -> int:
        return hash(frozenset(self._terms.items()))

    def __str__(self) -> str:
        """As onnx_ir's symbolic dimensions are written: ``12*batch``, ``batch*seq + 1``."""
        text = ""
        for names, coefficient in sorted(self._terms.items(), key=lambda t: (-len(t[0]), t[0])):
            size = abs(coefficient)
            factors = ([str(size)] if size != 1 or not names else []) + list(names)
            sign = "-" if coefficient < 0 else "+"
            text += f" {sign} " if text else "-" if sign == "-" else ""
            text += "*".join(factors)
        return text

    __repr__ = __str__


def evaluated(text: str, sizes: Mapping[str, int]) -> int | None:
    """The number that a polynomial is at some sizes; None where a name isn't among them.

    Parameters
    ----------
    text : the polynomial, as `str` writes it.
    sizes : name -> size; names are words.
    """
    total = 0
    for term in text.replace(" - ", " + -").split(" + "):
        product = -1 if term.startswith("-") else 1
        for factor in term.removeprefix("-").split("*"):
            number = int(factor) if factor.isdecimal() else sizes.get(factor)
            if number is None:
                return None
            product *= number
        total += product
    return total


def _order(names: Monomial) -> tuple[int, Monomial]:
    """An order of monomials that products keep: by degree, then by names."""
    return len(names), names


def _terms(value: object) -> Mapping[Monomial, int]:
    if isinstance(value, Polynomial):
        return value._terms
    return {(): int(value)} if value else {}  # type: ignore[call-overload]


def _number_or_polynomial(terms: dict[Monomial, int]) -> int | Polynomial:
    terms = {names: coefficient for names, coefficient in terms.items() if coefficient}
    if len(terms) > _MOST_TERMS or any(
        len(names) > _MOST_FACTORS or abs(coefficient) >= _LARGEST
        for names, coefficient in terms.items()
    ):
        return Polynomial.unknown()
    if not terms:
        return 0
    if len(terms) == 1 and () in terms:
        return terms[()]
    return Polynomial(terms)
