"""Docstrings for the documentation site: what NumPy's style has for types, ours uses for prose.

The signature tells the type, so ``name : what it is`` becomes a name and a description.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ITEM = re.compile(r"^(?P<name>\*{0,2}\w+(, \*{0,2}\w+)*) : (?P<text>.*)$")


class Descriptions(griffe.Extension):
    """Rewrites the sections of every docstring before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of what was found."""
        if obj.docstring is not None:
            text = rewritten(obj.docstring.value)
            if obj.is_class and "NamedTuple" in map(str, obj.bases):  # which has no signature
                text = text.replace("Parameters\n----------", "Attributes\n----------")
            obj.docstring.value = text


def rewritten(text: str) -> str:
    """Return a docstring whose items have descriptions, and no types."""
    lines = text.splitlines()
    starts = [i for i in range(len(lines) - 1) if lines[i] and re.fullmatch("-{3,}", lines[i + 1])]
    if not starts:
        return text
    done = lines[: starts[0]]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        body = lines[start + 2 : end]
        done += lines[start : start + 2] + (
            _returns(body) if lines[start] in ("Returns", "Yields") else _items(body)
        )
    return "\n".join(done)


def _items(lines: list[str]) -> list[str]:
    done = []
    for line in lines:
        found = ITEM.match(line)
        done += [found["name"], f"    {found['text']}"] if found else [line]
    return done


def _returns(lines: list[str]) -> list[str]:
    """Return prose as a description of the signature's type; a type that is told stays."""
    if any(line.startswith(" ") for line in lines):
        return lines
    return [":", *(f"    {line}" if line else line for line in lines)]
