"""The documentation site: its pages are current and complete, and it builds without a warning."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest
from flux_support import needs_julia

import onnxjl
from onnxjl import julia_environment

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def script(name: str) -> ModuleType:
    """Return a script of the documentation as a module."""
    spec = util.spec_from_file_location(name, DOCS / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"[\w/-]+\.md$", text[text.index("\nnav:") :], re.MULTILINE)
    assert sorted(listed) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


def test_every_public_name_has_its_place_in_the_reference() -> None:
    pages = (DOCS / "reference" / "python").glob("*.md")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    headings = re.findall(r"heading: onnxjl\.(\w+)", text)
    assert set(onnxjl.__all__) - {"__version__"} <= set(headings)
    assert len(set(headings)) == len(headings)


def test_the_page_of_the_command_line_is_current() -> None:
    command_line = script("command_line")
    assert command_line.PAGE.read_text(encoding="utf-8") == command_line.page()


def test_sections_are_included_and_links_lead_to_pages() -> None:
    pages = script("pages")
    text = "# A\none\n\n```sh\n# no heading\n```\n\n## B b\ntwo\n"
    assert pages.section(text, "b-b", "x.md") == "## B b\ntwo\n"
    assert pages.section(text, "a", "x.md") == text[: text.index("## B")]
    with pytest.raises(ValueError, match=r"x\.md has no section 'c'"):
        pages.section(text, "c", "x.md")
    links = {
        "[Guide](docs/guide.md#plans)": "[Guide](../guide.md#plans)",
        "[docs/guide.md](docs/guide.md)": "[Guide](../guide.md)",
        "[changes](CHANGELOG.md)": "[changes](../changelog.md)",
        "![drawing](docs/pictures/labels.svg)": "![drawing](../pictures/labels.svg)",
        "[LICENSE](LICENSE)": "LICENSE",
        "[far](https://onnx.ai)": "[far](https://onnx.ai)",
        "```\n[x](y)\n```": "```\n[x](y)\n```",
    }
    for written, expected in links.items():
        assert pages.linked(written, "README.md", "docs/howto/page.md") == expected


def test_code_in_tables_is_shown_without_the_backslash_of_its_source() -> None:
    shown = script("pages").on_page_content
    assert shown(r"<td><code>max\|w\|</code> \|</td>") == r"<td><code>max|w|</code> \|</td>"
    block = r"<pre><code>a \| b</code></pre>"
    assert shown(block) == block


def test_docstrings_keep_descriptions_and_leave_types_to_the_signature() -> None:
    pytest.importorskip("griffe")
    rewritten = script("docstrings").rewritten
    text = """\
Do it.

Parameters
----------
a, b : two numbers,
    of any kind.
**options : what else.

Returns
-------
Their sum.
Exact.

Raises
------
ValueError : never."""
    assert (
        rewritten(text)
        == """\
Do it.

Parameters
----------
a, b
    two numbers,
    of any kind.
**options
    what else.

Returns
-------
:
    Their sum.
    Exact.

Raises
------
ValueError
    never."""
    )
    assert rewritten("Do it.") == "Do it."


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(util.find_spec, ("mkdocs", "material", "mkdocstrings_handlers"))),
    reason="what builds the site isn't there: pip install -e '.[docs]'",
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "<title>onnxjl</title>" in index
    fetched = re.findall(r'<(?:script|link)[^>]+(?:src|href)="(https?:[^"]+)', index)
    assert fetched == []
    prune = (tmp_path / "site" / "reference" / "python" / "pruning.html").read_text("utf-8")
    assert "fraction of the prunable units to remove" in prune


def test_the_comparison_says_what_was_counted() -> None:
    text = (DOCS / "comparison.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks" / "backends.json").read_text(encoding="utf-8"))
    ours = json.loads((ROOT / "tests" / "backend_verdicts.json").read_text(encoding="utf-8"))
    passed = Counter(case["verdict"] for case in ours["tests"].values())
    rows = [(f"onnxjl {onnxjl.__version__}", passed)]
    for name, entry in found.items():
        engine, version = name.split(",")[0], entry["version"].split()[-1]
        rows.append((f"{engine} {version}", entry["verdicts"]))
    for engine, verdicts in rows:
        counts = f"{verdicts['pass']:,} | {verdicts['wrong']} |"
        row = rf"^\| {re.escape(engine)}\b.*\| {re.escape(counts)}$"
        assert re.search(row, text, re.MULTILINE), engine
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    operators = (DOCS / "operators.md").read_text(encoding="utf-8")
    count = len(re.findall(r"^\| `", operators, re.MULTILINE))
    for page in (text, readme):
        assert f"{passed['pass']:,} |" in page
        assert f"| {count} |" in page


@pytest.mark.slow
@needs_julia
def test_the_julia_page_is_current(tmp_path: Path) -> None:
    place = julia_environment.find()
    source, page = DOCS / "scripts" / "reference.jl", tmp_path / "julia.md"
    subprocess.run(
        [place.executable, "--startup-file=no", f"--project={place.project}", source, page],
        check=True,
        timeout=1200,
    )
    current = (DOCS / "reference" / "julia.md").read_text(encoding="utf-8")
    assert current == page.read_text(encoding="utf-8")


def test_pictures_show_what_is_said_of_them() -> None:
    pictures = DOCS / "pictures"
    drawing = runpy.run_path(str(pictures / "labels.py"))["drawing"]()
    assert (pictures / "labels.svg").read_text(encoding="utf-8") == drawing
    found = json.loads((pictures / "accuracy.json").read_text(encoding="utf-8"))
    rows = zip(found["budgets"], found["refitted"], found["finetuned"], strict=True)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "it stays above 97 % down to a fifth" in readme
    assert all(min(accuracy) > 0.97 for budget, *accuracy in rows if budget >= 0.2)
