"""The Julia package OnnxJL has tests of its own, which need no Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from flux_support import needs_julia

from onnxjl import julia_environment

TESTS = Path(__file__).parent


@pytest.mark.slow
@needs_julia
def test_the_package_passes_its_own_tests() -> None:
    place = julia_environment.find()
    project, script = f"--project={place.project}", TESTS / "package.jl"
    done = subprocess.run(
        [place.executable, "--startup-file=no", project, script, TESTS.parent / "julia"],
        env={**os.environ, "JULIA_CONDAPKG_BACKEND": "Null"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-10_000:]
