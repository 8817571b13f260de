"""Julia for tests: whether it is there, and which one is used."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

EXECUTABLE = "PYTHON_JULIACALL_EXE"
PROJECT = "PYTHON_JULIACALL_PROJECT"


def named() -> bool:
    """Return whether the environment names a Julia and a project."""
    return bool(os.environ.get(EXECUTABLE) and os.environ.get(PROJECT))


needs_julia = pytest.mark.skipif(
    not (named() or shutil.which("julia")),
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
