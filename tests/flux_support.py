"""Julia for tests: whether it is there, and which one is used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onnxjl import julia_environment

EXECUTABLE = "PYTHON_JULIACALL_EXE"
PROJECT = "PYTHON_JULIACALL_PROJECT"


def named() -> bool:
    """Return whether the environment names a Julia and a project."""
    return bool(os.environ.get(EXECUTABLE) and os.environ.get(PROJECT))


def is_there() -> bool:
    """Return whether there is a Julia, named or on the path."""
    return named() or shutil.which("julia") is not None


needs_julia = pytest.mark.skipif(
    not is_there(),
    reason=f"Julia isn't there: put julia on the PATH, or set {EXECUTABLE} and {PROJECT}",
)
"""Marks tests that start Julia. Where one is there they run, and what goes wrong is a failure."""


def name_julia() -> None:
    """Name the Julia on the PATH and its default project, unless the environment names one."""
    if named():
        return
    executable = shutil.which("julia")
    assert executable is not None
    ask = [executable, "--startup-file=no", "-e", "print(dirname(Base.active_project()))"]
    done = subprocess.run(ask, capture_output=True, text=True, check=True)
    os.environ[EXECUTABLE], os.environ[PROJECT] = executable, done.stdout


def own_depot(folder: Path) -> dict[str, str]:
    """Let Julia compile into a folder: for an OnnxJL that isn't the checkout's.

    Julia has one file for a package of this name, wherever it comes from. To replace it under a
    process that runs from it isn't safe: some builds of libunwind read it again.
    """
    others = os.environ.get("JULIA_DEPOT_PATH", "")  # An empty entry stands for Julia's own.
    return {"JULIA_DEPOT_PATH": os.pathsep.join([str(folder), others])}


def julia(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Julia with a Python that has onnxjl."""
    place = julia_environment.find()
    path = os.pathsep.join(
        [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    python = {"JULIA_PYTHONCALL_EXE": sys.executable, "JULIA_CONDAPKG_BACKEND": "Null"}
    return subprocess.run(
        [place.executable, "--startup-file=no", f"--project={place.project}", *arguments],
        env={**os.environ, "PYTHONPATH": path, **python, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
