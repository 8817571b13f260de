"""Versions and requirements that stand in several files are the same in each."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

import onnxjl
from onnxjl import cli

ROOT = Path(__file__).parents[1]


def table(name: str) -> dict[str, Any]:
    """A TOML file of the repository."""
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))


PYTHON, JULIA = table("pyproject.toml"), table("julia/Project.toml")
JULIAPKG = json.loads((ROOT / "onnxjl" / "juliapkg.json").read_text(encoding="utf-8"))


def test_the_version_is_the_same_everywhere() -> None:
    assert PYTHON["project"]["dynamic"] == ["version"]
    assert PYTHON["tool"]["hatch"]["version"]["path"] == "onnxjl/__init__.py"
    # juliapkg sets packages up anew only when its file changes.
    assert JULIA["version"] == JULIAPKG["version"] == onnxjl.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {onnxjl.__version__}\n" in citation


def test_the_command_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"onnxjl {onnxjl.__version__}\n"


def test_the_licence_is_the_same_for_pip_and_for_citations() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nlicense: {PYTHON['project']['license']}\n" in citation
    (author,) = PYTHON["project"]["authors"]
    assert f'\n  - name: "{author["name"]}"\n' in citation


def test_julia_packages_are_the_same_for_pip_and_for_julia() -> None:
    packages, compat = JULIAPKG["packages"], JULIA["compat"]
    assert {name: entry["uuid"] for name, entry in packages.items()} == JULIA["deps"]
    assert {name: entry["version"] for name, entry in packages.items()} == {
        name: compat[name] for name in JULIA["deps"]
    }
    assert JULIAPKG["julia"] == compat["julia"]
    assert "OnnxJL" not in packages


def test_juliacall_and_pythoncall_are_of_one_release() -> None:
    (requirement,) = (r for r in PYTHON["project"]["dependencies"] if r.startswith("juliacall"))
    assert requirement.replace("juliacall==", "=") == JULIA["compat"]["PythonCall"]


def test_the_bundled_folder_is_the_julia_package() -> None:
    link = ROOT / "onnxjl" / "julia"
    assert link.resolve() == ROOT / "julia"
    assert link.is_symlink()
