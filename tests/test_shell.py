"""Every block of shell commands in the documentation runs as it stands, in fresh environments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flux_support import is_there, needs_julia, own_depot
from test_readme import PAGES, ROOT, blocks, name

from onnxjl import julia_environment

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shell")]

PAGES_WITH_NOTEBOOKS = [*PAGES, ROOT / "notebooks" / "README.md"]

NOT_RUN = {
    "mkdocs serve": "doesn't end; test_site.py builds the site",
    "bash .ci/run": "is what runs these tests",
    "jupyter lab notebooks": "doesn't end; test_notebooks.py runs the notebooks",
    "python notebooks/run.py": "test_notebooks.py runs them all",
    "python -c 'import juliapkg; juliapkg.resolve()'": "installs Julia from its servers",
    "julia --project=PROJECT": "test_julia_package.py runs it",
    'JULIA_LOAD_PATH=":$PWD/julia" julia --project=PROJECT': "test_julia_package.py runs it",
    "export JULIA_CONDAPKG_BACKEND=Null": "test_flux_researcher.py runs it, with what follows",
}
"""What a line begins with that isn't run here, and why."""

RUN = {
    "README.md": ["pip install . && "],
    "CONTRIBUTING.md": ["python -m venv .venv", "pytest  "],
    "RELEASING.md": ["git tag"],
    "notebooks/README.md": ["pip install -e"],
    "docs/experiments.md": ["onnxjl prune"],
    "docs/howto/installation.md": ["pip install .  ", "pip wheel", "pip install --no-index"],
    "docs/julia.md": ["onnxjl doctor", "export PYTHON", "export JULIA_DEPOT", "export PYTHON"],
}
"""Page -> how the blocks begin that the tests below run."""


def without_comments(line: str) -> str:
    """Return a line of shell without its comment."""
    return re.sub(r"\s+#\s.*$", "", line)


def skipped(line: str) -> str | None:
    """Return the reason for which a line isn't run, or None."""
    return next((why for start, why in NOT_RUN.items() if line.startswith(start)), None)


def commands(page: str, number: int) -> str:
    """Return what is run of a page's n-th block that is run, from 0."""
    found = [b for b in blocks(ROOT / page, "sh") if not all(map(skipped, b.splitlines()))]
    block = found[number]
    assert block.startswith(RUN[page][number])
    return "\n".join(without_comments(line) for line in block.splitlines() if not skipped(line))


def shell(script: str, folder: Path, environment: Path | None = None, **variables: str) -> str:
    """Run a script in a folder, in a virtual environment, and return what it prints."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    if environment is not None:
        settings["PATH"] = os.pathsep.join([str(environment / "bin"), settings["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**settings, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}"
    return done.stdout


def fresh(folder: Path) -> Path:
    """Make a virtual environment with nothing in it."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone, as a newcomer has one, of the files as they are here."""
    folder = tmp_path_factory.mktemp("shell") / "onnxjl"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for path in filter(None, listed.stdout.split("\0")):
        if (ROOT / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path, follow_symlinks=False)
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    yield folder
    shutil.rmtree(folder)


def test_every_block_is_run_or_says_why_not() -> None:
    found: dict[str, list[str]] = {}
    unused = set(NOT_RUN)
    for page in PAGES_WITH_NOTEBOOKS:
        for block in blocks(page, "sh"):
            lines = block.splitlines()
            unused -= {start for start in unused for line in lines if line.startswith(start)}
            if not all(map(skipped, lines)):
                found.setdefault(f"{name(page)}.md", []).append(block)
    assert not unused
    assert sorted(found) == sorted(RUN)
    for page, starts in RUN.items():
        assert len(found[page]) == len(starts), page
        for block, start in zip(found[page], starts, strict=True):
            assert block.startswith(start), (page, block)


def test_the_two_commands(checkout: Path, tmp_path: Path) -> None:
    some = {"PYTEST_ADDOPTS": "tests/test_plan.py -k json"}  # of all the tests
    printed = shell(commands("README.md", 0), checkout, fresh(tmp_path / "fresh"), **some)
    assert "check: equals the masked source in onnxruntime" in printed
    assert re.search(r"^\d+ passed", printed.splitlines()[-1].strip("= ")), printed
    (checkout / "small.onnx").unlink()


def test_two_networks_are_put_on_a_page(checkout: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    printed = shell(commands("docs/experiments.md", 0), checkout, PYTHONPATH=str(ROOT), PATH=path)
    assert "small.onnx, report.html\n" in printed
    page = (checkout / "report.html").read_text(encoding="utf-8")
    assert "while units were chosen" not in page
    assert "onnxjl apply mnist-resnet14.onnx small.plan.json -o small.onnx" in page
    for file in ("small.onnx", "small.plan.json", "report.html"):
        (checkout / file).unlink()


def test_a_contributor_sets_up_and_checks(checkout: Path) -> None:
    printed = shell(commands("CONTRIBUTING.md", 0), checkout)
    assert "pre-commit installed at .git/hooks/pre-commit" in printed
    some = {"PYTEST_ADDOPTS": "tests/test_plan.py -k json"}
    printed = shell(commands("CONTRIBUTING.md", 1), checkout, checkout / ".venv", **some)
    assert len(re.findall(r"\d+ passed", printed)) == 3
    assert "All checks passed!" in printed
    assert "no issues found" in printed
    shell(commands("notebooks/README.md", 0), checkout, checkout / ".venv")
    assert (checkout / ".venv" / "bin" / "jupyter-lab").exists()


def test_a_release_is_built_and_tried(checkout: Path, tmp_path: Path) -> None:
    environment = fresh(tmp_path / "fresh")
    shell("pip install --quiet build", checkout, environment)
    variables = {**julia_named(), **own_depot(tmp_path / "depot")}
    printed = shell(allowing(commands("RELEASING.md", 0)), checkout, environment, **variables)
    assert "Successfully built onnxjl-" in printed
    assert "onnxjl 0." in printed


def test_it_is_installed_from_files_alone(checkout: Path, tmp_path: Path) -> None:
    page = "docs/howto/installation.md"
    variables = {**julia_named(), **own_depot(tmp_path / "depot")}
    shell(allowing(commands(page, 0)), checkout, fresh(tmp_path / "first"), **variables)
    shell(commands(page, 1), checkout, fresh(tmp_path / "second"))
    (tmp_path / "elsewhere").mkdir()
    shutil.move(checkout / "wheels", tmp_path / "elsewhere")
    environment = fresh(tmp_path / "third")
    shell(
        commands(page, 2), tmp_path / "elsewhere", environment, PIP_INDEX_URL="http://localhost:9"
    )
    assert "onnxjl 0." in shell("onnxjl --version", tmp_path, environment)


def julia_named() -> dict[str, str]:
    """Name the Julia of the tests, if they have one, to an environment that has never had any."""
    if not is_there():
        return {}
    place = julia_environment.find()
    return {
        "PYTHON_JULIACALL_EXE": str(place.executable),
        "PYTHON_JULIACALL_PROJECT": str(place.project),
        "ONNXJL_WORKLOAD": "no",
    }


def allowing(script: str) -> str:
    """Let the doctor find nothing, where Julia isn't there."""
    if is_there():
        return script
    return re.sub(r"(\S*onnxjl doctor)", r"(\1 || [ $? = 1 ])", script)


@needs_julia
def test_julia_is_named_and_shared(tmp_path: Path) -> None:
    here = Path(sys.executable).parent.parent
    place = julia_environment.find()
    path = {
        "PYTHONPATH": str(ROOT),
        "ONNXJL_WORKLOAD": "no",
        "PATH": os.pathsep.join(
            [str(here / "bin"), str(Path(place.executable).parent), os.environ["PATH"]]
        ),
    }
    page = "docs/julia.md"
    works = "The Flux engine works"
    assert works in shell(commands(page, 0), tmp_path, **{**path, **julia_named()})
    assert works in shell(commands(page, 1), tmp_path, **path)
    # What is shared: Julia, the depot, and a project that gets its packages between the calls.
    shared = tmp_path / "shared"
    (shared / "julia" / "bin").mkdir(parents=True)
    (shared / "julia" / "bin" / "julia").symlink_to(Path(place.executable).resolve())
    depot = shell("julia -e 'print(join(DEPOT_PATH, \":\"))'", tmp_path, **path).split(":")
    (shared / "depot").symlink_to(depot[0])
    copy = f"cp {place.project}/*.toml /shared/onnxjl"
    # The first call may find nothing, or what the user's default environment has.
    first, second = (
        part + "onnxjl doctor" for part in commands(page, 2).split("onnxjl doctor")[:2]
    )
    script = f"{first} || [ $? = 1 ]\n{copy}{second}"
    assert works in shell(script.replace("/shared/", f"{shared}/"), tmp_path, **path)
    script = commands(page, 3).replace("/shared/", f"{shared}/")
    assert works in shell(script, tmp_path, **path)
