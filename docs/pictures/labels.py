"""Draw how labels of weight axes become units.

python docs/pictures/labels.py    writes labels.svg
"""

from __future__ import annotations

from pathlib import Path

STREAM, INNER, FIXED, INK, PALE = "#4063d8", "#cb7a00", "#868e96", "#212529", "#e9ecef"
CELL = 20
TOP = 186
"""Of the weights."""

LAYERS = {
    # name: left edge of its weight, what labels its rows (outputs), and its columns (inputs)
    "stem": (78, "abcd", "··"),
    "expand": (238, "pqr", "abcd"),
    "reduce": (418, "abcd", "pqr"),
    "head": (640, "··", "abcd"),
}
GOES = {"b": STREAM, "r": INNER}
"""Labels of the two units that the drawing removes."""


def colour(label: str) -> str:
    """Return the colour of a label."""
    return STREAM if label in "abcd" else INNER if label in "pqr" else FIXED


def text(x: float, y: float, words: str, **options: object) -> str:
    """Return a line of text; its middle is at `x` unless `anchor` says otherwise."""
    anchor, size, fill, weight = (
        options.get(name, default)
        for name, default in (("anchor", "middle"), ("size", 13), ("fill", INK), ("weight", 400))
    )
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{fill}" '
        f'font-weight="{weight}">{words}</text>'
    )


def badge(x: float, y: float, label: str) -> str:
    """Return a label."""
    if label == "·":
        return f'<circle cx="{x}" cy="{y}" r="3" fill="{FIXED}"/>'
    disc = f'<circle cx="{x}" cy="{y}" r="8" fill="{colour(label)}"/>'
    return disc + text(x, y + 4, label, size=11, fill="#fff", weight=600)


def weight(left: float, rows: str, columns: str) -> str:
    """Return a weight: a row for each output, a column for each input."""
    parts = []
    for j, column in enumerate(columns):
        parts.append(badge(left + CELL * (j + 0.5), TOP - 13, column))
    for i, row in enumerate(rows):
        parts.append(badge(left - 13, TOP + CELL * (i + 0.5), row))
        for j, column in enumerate(columns):
            x, y = left + CELL * j, TOP + CELL * i
            fills = [GOES[label] for label in (row, column) if label in GOES]
            box = f'x="{x}" y="{y}" width="{CELL}" height="{CELL}" stroke="#fff" stroke-width="2"'
            parts.append(f'<rect {box} fill="{fills[0] if fills else PALE}"/>')
            if len(fills) == 2:
                corner = (
                    f"{x + CELL - 1},{y + 1} {x + CELL - 1},{y + CELL - 1} {x + 1},{y + CELL - 1}"
                )
                parts.append(f'<polygon points="{corner}" fill="{fills[1]}"/>')
    return "\n".join(parts)


def arrow(points: str) -> str:
    """Return a line with an arrow's head at its end."""
    return (
        f'<path d="{points}" fill="none" stroke="{INK}" stroke-width="1.4" '
        'marker-end="url(#head)"/>'
    )


def drawing() -> str:
    """Return the drawing."""
    flow = 92
    parts = [text(20, flow + 5, "x"), arrow(f"M30,{flow} H62")]
    for name, (left, rows, columns) in LAYERS.items():
        middle = left + CELL * len(columns) / 2
        box = f'x="{middle - 36}" y="{flow - 16}" width="72" height="32" rx="5"'
        parts.append(f'<rect {box} fill="#fff" stroke="{INK}" stroke-width="1.4"/>')
        parts.append(text(middle, flow + 5, name, weight=600))
        parts.append(weight(left, rows, columns))
    parts += [
        arrow(f"M134,{flow} H240"),
        arrow(f"M314,{flow} H410"),
        text(362, flow - 8, "Relu", size=12),
        arrow(f"M484,{flow} H548"),
        f'<circle cx="560" cy="{flow}" r="11" fill="#fff" stroke="{INK}" stroke-width="1.4"/>',
        text(560, flow + 5, "+", size=16),
        arrow(f"M571,{flow} H642"),
        arrow(f"M716,{flow} H742"),
        text(752, flow + 5, "y"),
        arrow(f"M180,{flow} V48 H560 V{flow - 12}"),
        f'<circle cx="180" cy="{flow}" r="3" fill="{INK}"/>',
        text(370, 40, "residual connection", size=12, fill=FIXED),
        text(560, flow + 30, "unites the labels", size=12, fill=STREAM),
        text(560, flow + 45, "that meet here", size=12, fill=STREAM),
        text(20, 148, "weights", anchor="start", size=12, fill=FIXED),
    ]
    lines = (
        (
            STREAM,
            "b",
            "one unit of the group stem: a row of stem, a column of expand, a row of "
            "reduce, a column of head",
        ),
        (INNER, "r", "one unit of the group expand: a row of expand, a column of reduce"),
        (FIXED, "·", "input and output of the network: they keep their sizes"),
    )
    for i, (_, label, words) in enumerate(lines):
        y = 306 + 24 * i
        parts += [badge(28, y, label), text(46, y + 5, words, anchor="start")]
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>'
    )
    body = "\n".join(parts)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 772 372" width="772" height="372" '
        'font-family="DejaVu Sans, Verdana, sans-serif" role="img">\n'
        "<title>Labels of weight axes, united where a residual connection meets them</title>\n"
        f'{head}\n<rect width="772" height="372" rx="8" fill="#fff"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    (Path(__file__).parent / "labels.svg").write_text(drawing(), encoding="utf-8")
