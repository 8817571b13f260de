"""Labels against sets united one pair at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxjl.structure.labels import Kind, Labels


class Reference:
    """Disjoint sets as Python sets, with what was said of their members in order."""

    def __init__(self) -> None:
        self.sets: list[set[int]] = []

    def fresh(self, size: int) -> None:
        start = sum(map(len, self.sets))
        self.sets += [{label} for label in range(start, start + size)]

    def of(self, label: int) -> set[int]:
        return next(one for one in self.sets if label in one)

    def unite(self, a: int, b: int) -> None:
        first, second = self.of(a), self.of(b)
        if first is not second:
            first |= second
            self.sets = [one for one in self.sets if one is not second]


SIZES = st.integers(1, 40)


@st.composite
def unions(draw: st.DrawFn, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays of labels whose shapes broadcast together."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    labels = st.integers(0, count - 1)
    shapes = [(rows, columns), draw(st.sampled_from([(rows, columns), (1, columns), (rows, 1)]))]
    arrays = [
        np.array(draw(st.lists(labels, min_size=r * c, max_size=r * c)), np.int64).reshape(r, c)
        for r, c in shapes
    ]
    return arrays[0], arrays[1]


@settings(max_examples=60)
@given(data=st.data(), sizes=st.lists(SIZES, min_size=1, max_size=4))
def test_sets_are_those_of_scalar_unions(data: st.DataObject, sizes: list[int]) -> None:
    labels, reference = Labels(), Reference()
    for size in sizes:
        fresh = labels.fresh(size)
        assert fresh.tolist() == list(range(labels.count - size, labels.count))
        reference.fresh(size)
        for a, b in data.draw(st.lists(unions(labels.count), max_size=4)):
            labels.unite(a, b)
            for x, y in zip(*(m.ravel().tolist() for m in np.broadcast_arrays(a, b)), strict=True):
                reference.unite(x, y)
        if data.draw(st.booleans()):
            labels.find(np.zeros(1, np.int64))
    every = np.arange(labels.count).reshape(1, -1)
    expected = [[min(reference.of(label)) for label in range(labels.count)]]
    assert labels.find(every).tolist() == expected


@settings(max_examples=40)
@given(data=st.data(), count=st.integers(2, 40))
def test_marks_hold_for_the_whole_set_and_the_first_reason_is_told(
    data: st.DataObject, count: int
) -> None:
    labels, reference = Labels(), Reference()
    labels.fresh(count)
    reference.fresh(count)
    marked: dict[str, dict[int, int]] = {"fixed": {}, "inexact": {}}
    kinds: dict[int, int] = {}
    texts = [f"reason {i}" for i in range(6)]
    numbers = [labels.reason(text) for text in texts]
    assert [labels.reason_text(number) for number in numbers] == texts
    assert [labels.reason(text) for text in texts] == numbers
    for _ in range(data.draw(st.integers(0, 8))):
        some = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=4)), np.int64)
        what = data.draw(st.sampled_from(["unite", "fixed", "inexact", "kind"]))
        if what == "unite" and len(some):
            labels.unite(some, some[:1])
            for label in some.tolist():
                reference.unite(label, int(some[0]))
        elif what == "kind":
            kind = data.draw(st.sampled_from([Kind.HEAD, Kind.HEAD_DIM]))
            labels.mark_kind(some, kind)
            kinds.update({label: kinds.get(label, 0) | kind for label in some.tolist()})
        elif what in marked:
            reason = data.draw(st.sampled_from(numbers))
            (labels.fix if what == "fixed" else labels.mark_inexact)(some, reason)
            for label in some.tolist():
                marked[what].setdefault(label, reason)
    roots, fixed, inexact, kind = labels.summary()
    for members in reference.sets:
        root = min(members)
        assert {int(roots[label]) for label in members} == {root}
        for found, told in ((fixed, marked["fixed"]), (inexact, marked["inexact"])):
            assert found[root] == min((told[m] for m in members if m in told), default=0)
        assert kind[root] == np.bitwise_or.reduce([kinds.get(m, 0) for m in members])


@pytest.mark.parametrize("size", [1023, 1024, 1025, 5000])
def test_labels_grow_without_losing_what_is_known(size: int) -> None:
    labels = Labels()
    first = labels.fresh(3)
    labels.unite(first[:1], first[2:])
    labels.fix(first[1:2], labels.reason("held"))
    labels.fresh(size)
    roots, fixed, _, _ = labels.summary()
    assert roots[:3].tolist() == [0, 1, 0]
    assert np.array_equal(roots[3:], np.arange(3, size + 3))
    assert fixed[:3].tolist() == [0, labels.reason("held"), 0]


def test_long_chains_end_in_one_set() -> None:
    labels = Labels()
    chain = labels.fresh(20_000)
    order = np.random.default_rng(0).permutation(len(chain) - 1)
    labels.unite(chain[order], chain[order + 1])
    assert not labels.find(chain).any()
