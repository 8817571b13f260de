"""Every command and every line of Python in the documentation works, and leads where it says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flux_support import needs_julia

import onnxjl
from onnxjl import cli
from onnxjl.flux import criterion_from

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)\s]*)?\)")
NUMBER = re.compile(r"\d+(\.\d+)*(e-?\d+)?")
UNIT = re.compile(r"(?<=#) ?(k|M|G)?(µs|ms|s|B)?(?=\s|$)")

COMMANDS = """
pip install . && onnxjl prune tests/models/mnist-resnet14.onnx -o small.onnx --macs 0.5
pip install -e '.[test]' && pytest
"""


def name(page: Path) -> str:
    """Return a page's path in the repository."""
    return page.relative_to(ROOT).with_suffix("").as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [code for kind, code in found if kind == language]


def shape(line: str) -> str:
    """Return a line with its numbers, their units and its spacing taken out."""
    return " ".join(UNIT.sub("", NUMBER.sub("#", line)).split())


def transcripts() -> list[tuple[Path, str, list[str]]]:
    """Return each command of each console block, with what it is said to print."""
    found: list[tuple[Path, str, list[str]]] = []
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                if line.startswith("$ "):
                    found.append((page, line[2:], []))
                elif line and line != "…":
                    found[-1][2].append(line)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a checkout, where commands may write."""
    models = tmp_path / "tests" / "models"
    models.mkdir(parents=True)
    for path in (ROOT / "tests" / "models").glob("mnist-resnet14.*"):
        shutil.copy(path, models)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_has_the_two_commands() -> None:
    assert COMMANDS.lstrip() in blocks(ROOT / "README.md", "sh")


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_python_runs(page: Path, folder: Path, pytestconfig: pytest.Config) -> None:
    # In a process of its own: rules and criteria that a page adds must not outlive it.
    code = "\n".join(blocks(page, "python"))
    # What pytest was told with -W comes after.
    warnings = ["error", *(pytestconfig.known_args_namespace.pythonwarnings or ())]
    command = [sys.executable, *(f"-W{text}" for text in warnings), "-c", code]
    environment = {"PYTHONPATH": str(Path(onnxjl.__file__).parents[1]), "PATH": ""}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


def _parameters(command: str, expected: list[str]) -> Any:
    marks = [needs_julia, pytest.mark.xdist_group("julia")] if "--engine flux" in command else []
    return pytest.param(command, expected, marks=marks, id=command[:60])


@pytest.mark.parametrize(
    ("command", "expected"), [_parameters(*found[1:]) for found in transcripts()]
)
def test_commands_print_what_is_shown(
    command: str, expected: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(command)
    assert program == "onnxjl"
    assert cli.main(arguments) == 0
    printed = iter([shape(line) for line in capsys.readouterr().out.splitlines()])
    for line in expected:
        assert shape(line) in printed, line  # consumes what comes before: the order counts


@needs_julia
@pytest.mark.xdist_group("julia")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "py") or blocks(p, "julia")], ids=name
)
def test_python_with_julia_runs(page: Path, folder: Path) -> None:
    for code in blocks(page, "py"):
        exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
    for code in blocks(page, "julia"):
        criteria = re.findall(r"^function (\w+)\(group\)", code, re.MULTILINE)
        if not criteria:
            continue
        (function,) = criteria
        (folder / "mine.jl").write_text(code, encoding="utf-8")
        criterion = criterion_from(folder / "mine.jl", function)
        model = onnxjl.to_flux("tests/models/mnist-resnet14.onnx")
        data = "tests/models/mnist-resnet14.calib.npz"
        small = onnxjl.prune(model, macs=0.7, criterion=criterion, data=data)
        assert small.plan.request["criterion"] == function


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        linked = page.parent / target
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor[1:] in slugs, anchor


def test_users_find_what_changed() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "\n## Unreleased\n" in text


def test_lines_fit() -> None:
    for page in PAGES:
        fenced = FENCE.sub("", page.read_text(encoding="utf-8"))
        for line in fenced.splitlines():
            assert len(line) <= 110 or line.startswith("|") or "](" in line, (page.name, line)
