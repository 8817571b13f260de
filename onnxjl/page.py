"""Page: two networks beside one another as one file of HTML, which fetches nothing.

Elements are made by `xml.etree`, so that text is always escaped: a node may be called
``<script>``. The page's policy lets a browser run its own script alone, should that ever fail.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from onnxjl.before_after import BeforeAfter
from onnxjl.comparison import OutputComparison
from onnxjl.latency import Latency
from onnxjl.pairing import Bars, LayerPair, macs_bars, width_bars
from onnxjl.printable import printable
from onnxjl.report import Change, quantity, shapes_text
from onnxjl.structure import LayerCost

_STYLE = """
:root { color-scheme: light dark;
  --page: #fff; --text: #1c2024; --muted: #5a6470; --line: #d9dee4; --card: #f5f7f9;
  --before: #c3cedb; --after: #3357c0; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171c; --text: #e4e7eb; --muted: #a3adb8; --line: #343b45; --card: #1d2229;
  --before: #47525f; --after: #86a3ff; } }
@media print { :root { color-scheme: light;
  --page: #fff; --text: #000; --muted: #444; --line: #bbb; --card: #fff;
  --before: #c3cedb; --after: #3357c0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { max-width: none !important; padding: 0 !important; font-size: 11px !important; }
  .wide { overflow: visible !important; } .wide td, .wide th { padding: .1rem .3rem !important; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--page);
  color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; break-after: avoid; }
h3 { font-size: .95rem; margin: 0; font-weight: 600; break-after: avoid; }
p { margin: .2rem 0; }
.muted { color: var(--muted); font-size: .87rem; }
.cards { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  padding: .7rem .9rem; break-inside: avoid; overflow-wrap: anywhere; }
.card .figure { font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.card svg { display: block; width: 100%; height: 6px; margin: .35rem 0; }
.bar-before { fill: var(--before); } .bar-after { fill: var(--after); }
.bar-cut { fill: var(--page); }
.legend { white-space: nowrap; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .6em; }
.key.before { background: var(--before); } .key.after { background: var(--after); }
.pictures { display: grid; gap: 1rem 2.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.bars { list-style: none; margin: .4rem 0 0; padding: 0; }
.bars li { display: grid; grid-template-columns: 1fr auto; column-gap: .8rem;
  font-size: .8rem; align-items: end;
  break-inside: avoid; padding-bottom: .3rem; }
.bars .figure { font-variant-numeric: tabular-nums; color: var(--muted); white-space: nowrap; }
.bars svg { grid-column: 1 / 3; display: block; width: 100%; height: 8px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; }
th, td { padding: .22rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
tr { break-inside: avoid; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.name, code { unicode-bidi: isolate; }
td.name { overflow-wrap: anywhere; min-width: 12rem; }
th.over { text-align: center; border-bottom: 0; } thead td { border-bottom: 0; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--after); }
@media print { th button { display: contents; } }
th[aria-sort=ascending] button::after { content: " ▲"; font-size: .7em; }
th[aria-sort=descending] button::after { content: " ▼"; font-size: .7em; }
code { font: .87rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; margin: .4rem 0;
  padding: .6rem .8rem; white-space: pre-wrap; break-inside: avoid; }
dl { margin: .3rem 0; overflow-wrap: anywhere; } dt { font-weight: 600; }
dd { margin: 0 0 .5rem; }
li { overflow-wrap: anywhere; }
"""

_SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, column = head.cellIndex;
    const body = head.closest("table").tBodies[0];
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const key = row => {
      const cell = row.cells[column], value = cell.getAttribute("data-value");
      return value === null ? cell.textContent : Number(value);
    };
    const compare = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b);
    const sign = order === "ascending" ? 1 : -1;
    body.append(...[...body.rows].sort((a, b) => sign * compare(key(a), key(b))));
  });
}
"""


def page(found: BeforeAfter) -> str:
    """Return the page.

    Parameters
    ----------
    found : what was measured.

    Returns
    -------
    A whole document, UTF-8 once it is encoded; for equal figures the same text.
    """
    root = Element("html", lang="en")
    title = f"{found.before} → {found.after}"
    _head(root, title)
    body = SubElement(root, "body")
    header = _add(body, "header")
    heading = _add(header, "h1")
    _name(heading, "span", found.before).tail = " → "
    _name(heading, "span", found.after)
    main = _add(body, "main")
    _figures(main, found)
    if found.notes:
        section = _section(main, "Notes")
        _items(section, found.notes)
    _latency(main, found)
    if found.layers:
        _pictures(main, found.layers)
        _table_of_layers(main, found.layers)
    _whole(main, found.whole)
    _outputs(main, found)
    if found.request is not None:
        _request(main, found.request)
    _origin(main, found)
    _add(body, "script", _SCRIPT)
    text = tostring(root, encoding="unicode", method="html")
    # Names may hold what no browser shows, turns the text around, or can't be encoded.
    return f"<!doctype html>\n{printable(text, lines=True)}\n"


def _head(root: Element, title: str) -> None:
    head = SubElement(root, "head")
    SubElement(head, "meta", charset="utf-8")
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy})
    SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    _add(head, "title", title)
    _add(head, "style", _STYLE)


def _figures(parent: Element, found: BeforeAfter) -> None:
    """The figures that matter most, on cards."""
    cards = _add(parent, "div", kind="cards")
    for change in found.changes:
        card = _add(cards, "div", kind="card")
        _add(card, "h3", _TITLES.get(change.name, change.name))
        line = _add(card, "p", kind="figure")
        _figure(line, change.before, change.unit).tail = " → "
        _figure(line, change.after, change.unit)
        longest = max(change.before, change.after)
        if longest > 0:
            _bar(card, change.before / longest, change.after / longest)
        _add(card, "p", _share(change), "muted")
        if change.note:
            _add(card, "p", change.note, "muted")
    if found.comparison is not None:
        card = _add(cards, "div", kind="card")
        _add(card, "h3", "output difference")
        line = _add(card, "p", kind="figure")
        difference = found.comparison.difference
        if math.isfinite(difference):
            _data(line, difference, f"{difference:.2g}")
        else:
            line.text = "can't be compared"
        _add(card, "p", "largest, relative to the largest output", "muted")
        _add(card, "p", f"inputs: {found.inputs}", "muted")


_TITLES = {"MACs": "multiply–accumulates (MACs)", "file": "file size"}


def _share(change: Change) -> str:
    if change.unit == "fraction":
        return f"{100 * (change.after - change.before):+.1f} points".replace("-", "−")
    return "" if change.ratio is None else f"{_percent(change.after, change.before)} of what it was"


def _percent(after: float, before: float) -> str:
    return f"{after / before:.0%}".replace("%", " %") if before else ""


def _latency(parent: Element, found: BeforeAfter) -> None:
    """Measured, with its spread, and predicted."""
    predicted = (found.request or {}).get("predicted")
    rows: list[tuple[str, float, float, tuple[Latency, Latency] | None]] = []
    if found.latency is not None:
        before, after = found.latency
        rows.append(("measured", before.median_ms, after.median_ms, found.latency))
    if isinstance(predicted, Mapping) and {"before_ms", "after_ms"} <= predicted.keys():
        both = float(predicted["before_ms"]), float(predicted["after_ms"])
        rows.append(("while units were chosen", *both, None))
    if not rows:
        return
    section = _section(parent, "Latency")
    text = "Median of one run in onnxruntime; in brackets the middle half of all runs."
    if isinstance(predicted, Mapping) and predicted.get("runtime"):
        text += f" Units were chosen with {predicted['runtime']}."
    _add(section, "p", text, "muted")
    body = _table(section, ("", "before|number", "after|number", "left|number"))
    for name, first, second, spread in rows:
        row = _add(body, "tr")
        _add(row, "td", name)
        for value, latency in zip((first, second), spread or (None, None), strict=True):
            cell = _add(row, "td", kind="number")
            _data(cell, value, f"{value:.3g} ms")
            if latency is not None and latency.quartiles_ms is not None:
                lower, upper = latency.quartiles_ms
                _add(cell, "div", f"({lower:.3g} to {upper:.3g})", "muted")
        _add(row, "td", _percent(second, first), "number")


def _pictures(parent: Element, layers: Sequence[LayerPair]) -> None:
    """The widths and the MACs of layers, as bars."""
    section = _section(parent, "Layers")
    legend = _add(section, "p", "In graph order, from the input to the output:", "muted")
    for kind in ("before", "after"):
        _add(_add(legend, "span", kind="legend"), "span", kind=f"key {kind}").tail = f"{kind} "
    pictures = _add(section, "div", kind="pictures")
    for bars in (width_bars(layers), macs_bars(layers)):
        picture = _add(pictures, "div")
        _add(picture, "h3", bars.title)
        if any(map(bars.cut, bars.bars)):
            text = f"bars with a gap are longer than the picture, which ends at {bars.scale:,}"
            _add(picture, "p", text, "muted")
        _list_of_bars(picture, bars)


def _list_of_bars(parent: Element, bars: Bars) -> None:
    items = _add(parent, "ol", kind="bars")
    for bar in bars.bars:
        item = _add(items, "li")
        _name(item, "span", bar.label)
        before, after = (_in_words(value, bars.unit) for value in (bar.before, bar.after))
        figure = _add(item, "span", f"{after} of {before}" if bar.before else after, "figure")
        figure.set("title", f"{bar.after:,} of {bar.before:,}")
        _bar(item, bars.length(bar.before), bars.length(bar.after), cut=bars.cut(bar))


def _in_words(value: int, unit: str) -> str:
    return f"{value:,}" if unit == "units" else quantity(value, unit)


def _bar(parent: Element, before: float, after: float, *, cut: bool = False) -> None:
    """A bar of two lengths in [0, 1], one upon the other."""
    drawing = SubElement(parent, "svg", {"aria-hidden": "true"})
    lengths = (("bar-before", before), ("bar-after", after))
    for kind, length in sorted(lengths, key=lambda each: -each[1]):  # the shorter one on top
        SubElement(
            drawing, "rect", {"class": kind, "width": f"{100 * length:.2f}%", "height": "100%"}
        )
    if cut:
        place = {"class": "bar-cut", "x": "96%", "width": "4", "height": "100%"}
        SubElement(drawing, "rect", place)


_COLUMNS: tuple[tuple[str, str], ...] = (
    ("units", "outputs"),
    ("MACs", "macs"),
    ("parameters", "params"),
)


def _table_of_layers(parent: Element, layers: Sequence[LayerPair]) -> None:
    section = _section(parent, "Table of layers")
    hint = "A click on a column's head sorts by it; MACs are those of one sample."
    _add(section, "p", hint, "muted")
    heads = ["#|number", "layer", "operator"]
    heads += ["before|number", "after|number", "left|number"] * len(_COLUMNS)
    above = [("", 3), *((name, 3) for name, _ in _COLUMNS)]
    body = _table(section, heads, above=above)
    for number, pair in enumerate(layers, 1):
        row = _add(body, "tr")
        _cell(row, number, str(number))
        _name(row, "td", pair.either.layer)
        _add(row, "td", pair.either.operator)
        for _, key in _COLUMNS:
            values = [_value(layer, key) for layer in (pair.before, pair.after)]
            for value in values:
                _cell(row, -1 if value is None else value, "–" if value is None else f"{value:,}")
            before, after = values
            known = before is not None and after is not None and before > 0
            share = after / before if known and before and after is not None else -1.0
            _cell(row, share, f"{share:.0%}".replace("%", " %") if known else "–")


def _value(layer: LayerCost | None, key: str) -> int | None:
    return None if layer is None else int(getattr(layer, key))


def _whole(parent: Element, whole: Sequence[tuple[str, str]]) -> None:
    """What stays whole, under the reason that layers share."""
    if not whole:
        return
    section = _section(parent, "Left whole, and why")
    layers: dict[str, list[str]] = {}
    for layer, reason in whole:
        layers.setdefault(reason, []).append(layer)
    listed = _add(section, "dl")
    for reason, names in layers.items():
        _add(listed, "dt", f"{reason} ({len(names)} layers)" if len(names) > 1 else reason)
        place = _add(listed, "dd")
        for number, name in enumerate(names):
            _name(place, "span", name).tail = ", " if number + 1 < len(names) else None


def _outputs(parent: Element, found: BeforeAfter) -> None:
    if found.comparison is None:
        return
    section = _section(parent, "Outputs")
    text = (
        "Both networks ran on the same inputs in onnxruntime, optimizations off; the figure is "
        f"max|a−b| / max(10⁻⁶, max|b|). Inputs: {found.inputs}."
    )
    _add(section, "p", text, "muted")
    body = _table(section, ("output", "shape", "difference|number", ""))
    for output in found.comparison.outputs:
        row = _add(body, "tr")
        _name(row, "td", output.name)
        _add(row, "td", _shapes(output))
        place = _add(row, "td", kind="number")
        if math.isfinite(output.difference):
            _data(place, output.difference, f"{output.difference:.2g}")
        _add(row, "td", output.problem or ("equal" if output.equal() else "differs"))


def _shapes(output: OutputComparison) -> str:
    texts = [
        "–" if shape is None else "×".join(map(str, shape)) or "scalar" for shape in output.shapes
    ]
    return " against ".join(dict.fromkeys(texts))


def _request(parent: Element, request: Mapping[str, Any]) -> None:
    """What the plan was asked for."""
    section = _section(parent, "Request")
    _add(section, "p", "What pruning was asked for, as the plan has it.", "muted")
    body = _table(section, ("option", "value"))
    for name, value in request.items():
        if name != "predicted" and value is not None and value not in ("", [], {}, False):
            row = _add(body, "tr")
            _add(row, "td", name)
            _name(row, "td", _words(value))


def _words(value: Any) -> str:
    if value is True:
        return "yes"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_words(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return str(value)


def _origin(parent: Element, found: BeforeAfter) -> None:
    """How to make it again, and what made it."""
    section = _section(parent, "How this was made")
    if found.commands:
        _add(_add(section, "pre"), "code", "\n".join(found.commands))
    if len(found.commands) > 1:
        text = "The first makes the smaller network as it was before any recovery or training."
        _add(section, "p", text, "muted")
    listed = _add(section, "dl")
    for name, text in (
        ("versions", ", ".join(f"{name} {value}" for name, value in found.versions.items())),
        ("assumed input shapes", shapes_text(dict(found.shapes))),
        (f"{found.before}, SHA-256 of structure and weights", found.fingerprints[0]),
        (f"{found.after}, SHA-256 of structure and weights", found.fingerprints[1]),
    ):
        if text:
            _add(listed, "dt", name)
            _add(_add(listed, "dd"), "code", text)


def _section(parent: Element, title: str) -> Element:
    section = SubElement(parent, "section")
    _add(section, "h2", title)
    return section


def _items(parent: Element, texts: Sequence[str]) -> None:
    items = _add(parent, "ul")
    for text in texts:
        _add(items, "li", text)


def _table(
    parent: Element, heads: Sequence[str], *, above: Sequence[tuple[str, int]] = ()
) -> Element:
    """Add a table and return its body.

    Parameters
    ----------
    heads : of each column the text, and after a ``|`` its class.
    above : heads over several columns, with their number; such a table can be sorted.
    """
    table = _add(_add(parent, "div", kind="wide"), "table")
    head = _add(table, "thead")
    if above:
        row = _add(head, "tr")
        for text, columns in above:
            cell = _add(row, "th", text, "over") if text else _add(row, "td")
            cell.set("colspan", str(columns))
    row = _add(head, "tr")
    for each in heads:
        text, _, kind = each.partition("|")
        cell = _add(row, "th", None if above else text, kind)
        cell.set("scope", "col")
        if above:
            _add(cell, "button", text).set("type", "button")
    return _add(table, "tbody")


def _cell(row: Element, value: float, text: str) -> None:
    """A cell that sorts by a number."""
    _add(row, "td", text, "number").set("data-value", f"{value:.12g}")


def _figure(parent: Element, value: float, unit: str) -> Element:
    return _data(parent, value, quantity(value, unit))


def _data(parent: Element, value: float, text: str) -> Element:
    """A number in few digits, with all of them behind it."""
    element = _add(parent, "data", text)
    element.set("value", repr(float(value)))
    element.set("title", f"{value:,}" if float(value).is_integer() else repr(float(value)))
    return element


def _add(parent: Element, name: str, text: str | None = None, kind: str = "") -> Element:
    """Add an element with a text, which is escaped, and a class."""
    element = SubElement(parent, name, {"class": kind} if kind else {})
    if text:
        element.text = _clean(text) if name not in ("style", "script") else text
    return element


def _name(parent: Element, name: str, text: str) -> Element:
    """Add an element with a name of the model, which may be broken behind its separators."""
    first, *rest = re.split(r"(?<=[/._])(?=[^/._])", _clean(text))
    element = _add(parent, name, first, "name")
    for part in rest:
        SubElement(element, "wbr").tail = part
    return element


def _clean(text: str) -> str:
    """Text without what HTML has no place for: control characters, and halves of characters."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "�", text)
