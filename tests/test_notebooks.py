"""The notebooks run from a clean start, and show what a run of them printed."""

from __future__ import annotations

import getpass
import re
import shutil
import sys
from importlib import util
from pathlib import Path
from typing import Any

import flux_support
import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "notebooks").rglob("*.jl"))
NOTEBOOKS = sorted(
    path for path in (ROOT / "notebooks").rglob("*.ipynb") if path.with_suffix(".jl") not in SCRIPTS
)

pytestmark = pytest.mark.skipif(
    not all(map(util.find_spec, ("ipykernel", "nbclient"))),
    reason="a notebook's kernel isn't there: pip install ipykernel nbclient",
)


def read(path: Path) -> Any:
    """Return a notebook as nbformat reads it."""
    import nbformat

    return nbformat.read(path, as_version=4)


def cells(path: Path) -> list[Any]:
    """Return a notebook's code cells that aren't empty."""
    return [c for c in read(path).cells if c.cell_type == "code" and c.source.strip()]


def is_here(name: str) -> bool:
    """Whether what a notebook needs is here: Julia, or a package of Python's."""
    if name == "julia":
        return flux_support.named() or shutil.which("julia") is not None
    return util.find_spec(name) is not None


def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module that runs notebooks."""
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    monkeypatch.delitem(sys.modules, "run", raising=False)
    import run

    return run


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = read(path).metadata.get("onnxjl", {}).get("needs", [])
    missing = [name for name in needs if not is_here(name)]
    if missing:
        pytest.skip(f"needs what isn't here: {', '.join(missing)}")
    if "julia" in needs:
        flux_support.name_julia()
    runner(monkeypatch).run(path)  # a cell that fails raises


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_outputs_are_of_one_run(path: Path) -> None:
    found = cells(path)
    assert [cell.execution_count for cell in found] == list(range(1, len(found) + 1))
    assert not any(output.output_type == "error" for cell in found for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_names_no_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"/(?:home|root|tmp|Users|work|opt)/[^\"\s]*", text)
    assert f"/{getpass.getuser()}/" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_shows_a_picture_and_tells_a_story(path: Path) -> None:
    kinds = [kind for c in cells(path) for o in c.outputs for kind in o.get("data", {})]
    assert any(kind.startswith("image/") for kind in kinds)
    told = [c for c in read(path).cells if c.cell_type == "markdown"]
    assert told
    assert told[0].source.startswith("# ")


@flux_support.needs_julia
@pytest.mark.slow
@pytest.mark.xdist_group("researcher")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_julia_runs_the_script(path: Path) -> None:
    done = flux_support.julia(path)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    assert "equals Julia's own outputs in onnxruntime" in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_is_made_from_the_script(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jupytext")
    made = runner(monkeypatch).of_script(path)
    stored = read(path.with_suffix(".ipynb"))
    assert stored == made, "run python notebooks/run.py julia"
    assert made.cells[0].source.startswith("# ")
