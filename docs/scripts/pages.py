"""Hooks of the documentation site: pages that are, or show parts of, files at the top.

A line ``<!-- include: ../README.md#how-it-works -->`` stands for that section of that file, up to
its next heading, and without ``#…`` for the whole file. Links are written as GitHub follows them;
those to a file that is a page here lead to the page and bear its title, those to other files of the
repository become text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
PAGES = {
    "README.md": "docs/index.md",
    "CONTRIBUTING.md": "docs/contributing.md",
    "CHANGELOG.md": "docs/changelog.md",
    "RELEASING.md": "docs/releasing.md",
}
"""Files at the top -> the pages that show them."""

INCLUDE = re.compile(r"^<!-- include: (?P<path>[^#\s]+)(#(?P<section>\S+))? -->$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<!<pre>)<code>[^<]*</code>")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, /, *, page: Any, **_: Any) -> str:
    """Return a page with what it includes, and with links that lead somewhere in the site."""
    path = f"{DOCS}/{page.file.src_uri}"

    def include(found: re.Match[str]) -> str:
        source = posixpath.normpath(posixpath.join(posixpath.dirname(path), found["path"]))
        text = (ROOT / source).read_text(encoding="utf-8")
        if found["section"]:
            text = section(text, found["section"], source)
        return linked(text, source, path)

    return INCLUDE.sub(include, linked(markdown, path, path))


def on_page_content(html: str, /, **_: Any) -> str:
    """Return a page whose code in tables has ``|`` where GitHub wants it escaped, too."""
    return CODE.sub(lambda found: found[0].replace("\\|", "|"), html)


def section(text: str, slug: str, name: str) -> str:
    """Return a section of a file, from its heading to the next one."""
    masked = FENCE.sub(lambda found: " " * len(found[0]), text)
    headings = list(re.finditer(r"^#+ (.*)$", masked, re.MULTILINE))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=True):
        if re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-") == slug:
            return text[heading.start() : end]
    raise ValueError(f"{name} has no section '{slug}'")


def title(path: str) -> str:
    """Return the title of a page."""
    text = (ROOT / path).read_text(encoding="utf-8")
    shown = INCLUDE.match(text)
    if shown:
        text = (ROOT / shown["path"].removeprefix("../")).read_text(encoding="utf-8")
    return text.splitlines()[0].removeprefix("# ")


def linked(text: str, source: str, page: str) -> str:
    """Return text of a file with links that lead from a page to the same places."""

    def link(found: re.Match[str]) -> str:
        target = found["target"]
        if "://" in target:
            return found[0]
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        whole = PAGES.get(whole, whole)
        if not whole.startswith(f"{DOCS}/"):
            return found["text"]
        to = posixpath.relpath(whole, posixpath.dirname(page))
        text = title(whole) if found["text"].endswith(".md") else found["text"]
        return f"{found['image']}[{text}]({to}{found['anchor'] or ''})"

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(link, text[end:])])
