"""Printable: text of files, as a terminal may show it.

A node may be called anything. Control characters in a name could erase lines, recolour them, set a
window's title or forge a line of a report; so they are shown, as Python would write them.
"""

from __future__ import annotations

import json

_KEPT = "\u00a0"  # A space that doesn't end a line; see `report.wrap`.


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return a text with what isn't printable written as Python writes it, ``\x1b`` or ``\u202e``.

    Parameters
    ----------
    text : any text.
    lines : whether line ends stay.
    """
    if text.isprintable():
        return text
    kept = _KEPT + "\n" if lines else _KEPT
    return "".join(
        c if c in kept or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def printable_json(text: str) -> str:
    r"""Return a text in JSON with what isn't printable written as JSON writes it, ``\u001b``.

    Parameters
    ----------
    text : valid JSON, whose line ends and blanks are all its own.
    """
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)
