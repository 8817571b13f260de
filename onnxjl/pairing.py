"""Pairing: the layers of two networks side by side, and what is drawn of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from onnxjl.structure import LayerCost

# A bar this many times longer than all that changed would leave the others without a length.
_CUT = 2.0


@dataclass(frozen=True)
class LayerPair:
    """A layer before and after.

    Parameters
    ----------
    before, after : what it costs in either network; None where that one has no such layer.
    by : how the two were found to be one layer: by their ``"name"``, or by their ``"place"``
        between layers of the same names; None where there is only one.
    """

    before: LayerCost | None
    after: LayerCost | None
    by: Literal["name", "place"] | None = None

    @property
    def either(self) -> LayerCost:
        """The layer before, or after where there was none."""
        found = self.before or self.after
        assert found is not None
        return found

    @property
    def shrank(self) -> bool:
        """Whether it has fewer units after than before."""
        return self.before is not None and (
            self.after is None or self.after.outputs < self.before.outputs
        )


def pair_layers(before: Sequence[LayerCost], after: Sequence[LayerCost]) -> tuple[LayerPair, ...]:
    """Find out which layers of two networks are the same.

    Layers are the same whose nodes, or else whose weights, have the same name. Between two that
    are, layers with other names are paired in their order if there are as many on both sides, of
    the same operators, and none has more units after than before.

    Parameters
    ----------
    before, after : layers in graph order, as `layer_costs` gives them.

    Returns
    -------
    The pairs in the order of `before`; what only `after` has stands behind what it follows there.
    """
    partner: dict[int, int] = {}
    for key in ("node", "layer"):
        ours, theirs = (_unique(layers, key) for layers in (before, after))
        taken = set(partner.values())
        for name, i in ours.items():
            if i not in partner and name in theirs and theirs[name] not in taken:
                partner[i] = theirs[name]
    by_place = _by_place(before, after, partner)
    partner |= by_place
    follows: dict[int, list[int]] = {}
    last = -1
    back = {j: i for i, j in partner.items()}
    for j in range(len(after)):
        if j in back:
            last = back[j]
        else:
            follows.setdefault(last, []).append(j)
    pairs: list[LayerPair] = [LayerPair(None, after[j]) for j in follows.get(-1, ())]
    for i, layer in enumerate(before):
        if i in partner:
            pairs.append(LayerPair(layer, after[partner[i]], "place" if i in by_place else "name"))
        else:
            pairs.append(LayerPair(layer, None))
        pairs += [LayerPair(None, after[j]) for j in follows.get(i, ())]
    return tuple(pairs)


@dataclass(frozen=True)
class Bar:
    """A figure of one layer before and after.

    Parameters
    ----------
    label : the layer.
    before, after : the figure; 0 where there is no such layer.
    """

    label: str
    before: int
    after: int


@dataclass(frozen=True)
class Bars:
    """What a picture of layers shows.

    Parameters
    ----------
    title : what the figures are.
    unit : as `onnxjl.report.Change` has it; ``"units"`` for widths.
    bars : in graph order.
    scale : the figure whose bar is as long as the picture is wide; longer ones are cut.
    """

    title: str
    unit: str
    bars: tuple[Bar, ...]
    scale: int

    def length(self, figure: float) -> float:
        """Length of a figure's bar as a share of the picture's width, in [0, 1]."""
        return min(figure / self.scale, 1.0)

    def cut(self, bar: Bar) -> bool:
        """Whether a bar is longer than the picture is wide."""
        return max(bar.before, bar.after) > self.scale


def width_bars(pairs: Sequence[LayerPair]) -> Bars:
    """Return the widths of layers (channels, features, hidden units), to be drawn.

    Parameters
    ----------
    pairs : from `pair_layers`.
    """
    bars = tuple(
        Bar(
            pair.either.layer,
            0 if pair.before is None else pair.before.outputs,
            0 if pair.after is None else pair.after.outputs,
        )
        for pair in pairs
    )
    # A vocabulary's width stays whole, and is a hundred times that of what was pruned.
    longest = max((max(bar.before, bar.after) for bar in bars), default=1)
    changed = max((bar.before for bar in bars if bar.before != bar.after), default=longest)
    return Bars("widths", "units", bars, max(1, changed if longest > _CUT * changed else longest))


def macs_bars(pairs: Sequence[LayerPair]) -> Bars:
    """Return the multiply–accumulates of layers for one sample, to be drawn.

    Parameters
    ----------
    pairs : from `pair_layers`.
    """
    bars = tuple(
        Bar(
            pair.either.layer,
            0 if pair.before is None else pair.before.macs,
            0 if pair.after is None else pair.after.macs,
        )
        for pair in pairs
    )
    longest = max((max(bar.before, bar.after) for bar in bars), default=1)
    return Bars("multiply–accumulates", "MACs", bars, max(1, longest))


def _unique(layers: Sequence[LayerCost], key: str) -> dict[str, int]:
    """Index of each layer whose name no other has."""
    names = [getattr(layer, key) for layer in layers]
    counts = Counter(names)
    return {name: i for i, name in enumerate(names) if name and counts[name] == 1}


def _by_place(
    before: Sequence[LayerCost], after: Sequence[LayerCost], partner: dict[int, int]
) -> dict[int, int]:
    """Pairs of layers with different names, between those that are paired already."""
    found: dict[int, int] = {}
    taken = set(partner.values())
    known = [(-1, -1), *sorted(partner.items()), (len(before), len(after))]
    for (i, j), (next_i, next_j) in pairwise(known):
        ours = range(i + 1, next_i)
        theirs = [k for k in range(j + 1, next_j) if k not in taken]
        alike = len(ours) == len(theirs) and all(
            before[a].operator == after[b].operator and before[a].outputs >= after[b].outputs
            for a, b in zip(ours, theirs, strict=True)
        )
        if alike:
            found |= dict(zip(ours, theirs, strict=True))
    return found
