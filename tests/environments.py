"""Fresh environments: made, filled, and used as a user would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "tests" / "models"

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]

LOOK = """
import json, onnxjl, onnxruntime, numpy as np

assert "site-packages" in onnxjl.__file__, onnxjl.__file__
session = onnxruntime.InferenceSession("small.onnx")
images = np.load("mnist-resnet14.test.npz")["image"][:100]
(logits,) = session.run(None, {"image": images})
small = onnxjl.load("small.onnx")
shapes = {name: small.weight(name).shape for name in ("conv1.weight", "fc.weight")}
print(json.dumps([logits.shape, bool(np.isfinite(logits).all()), shapes]))
"""
"""What a user would do with the pruned file."""


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command in a folder, without this environment's settings, and return what it prints."""
    ours = ("PYTHON", "PYTEST", "VIRTUAL")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def environment(folder: Path) -> Path:
    """Make a fresh environment and return its interpreter."""
    run([sys.executable, "-m", "venv", folder], folder.parent)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    return scripts / ("python.exe" if os.name == "nt" else "python")


def install(python: Path, *what: str | Path) -> None:
    """Install distributions into an environment."""
    run([python, "-m", "pip", "install", "--quiet", *what], python.parent)


def copy_checkout(folder: Path) -> None:
    """Copy what builds read, apart from everything else that lies about in a working folder."""
    for name in ("onnxjl", "julia", "benchmarks", "docs", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "skeletons", "*.npz")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored, symlinks=True)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)


def build(kind: str, checkout: Path, folder: Path) -> Path:
    """Build a "wheel" or an "sdist" of a checkout into a folder, and return its path."""
    run([sys.executable, "-m", "build", f"--{kind}", "--outdir", folder, checkout], folder)
    (path,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


def requirements(*extras: str) -> list[Requirement]:
    """What the package depends on, and what some of its extras add."""
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def lower_bound(requirement: Requirement) -> str | None:
    """The lowest version that a requirement allows, as it names it; None if it names none."""
    found = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
    return found[0] if len(found) == 1 else None


def upper_bound(requirement: Requirement) -> str | None:
    """The version that a requirement allows none from, or allows alone; None if it names none."""
    found = [s.version for s in requirement.specifier if s.operator in ("<", "==")]
    return found[0] if len(found) == 1 else None


def lowest(*extras: str) -> dict[str, str]:
    """The lowest version of each direct dependency that is needed here, by distribution."""
    found: dict[str, str] = {}
    for requirement in requirements(*extras):
        version = lower_bound(requirement)
        if requirement.marker is None or requirement.marker.evaluate():
            assert version is not None, requirement
            found[requirement.name] = version
    return found


def prune_a_network(python: Path, folder: Path) -> None:
    """Do the main job with the package that is installed in an environment, in an empty folder."""
    for name in ("mnist-resnet14.onnx", "mnist-resnet14.test.npz"):
        shutil.copy(MODELS / name, folder)
    command = python.with_name("onnxjl")
    budget = ["--macs", "0.5"]
    text = run([command, "prune", "mnist-resnet14.onnx", "-o", "small.onnx", *budget], folder)
    assert "mnist-resnet14.onnx → small.onnx" in text
    assert "check: equals the masked source in onnxruntime" in text
    shape, finite, weights = json.loads(run([python, "-c", LOOK], folder))
    assert shape == [100, 10]
    assert finite
    assert weights["conv1.weight"][0] < 16
    assert weights["fc.weight"][1] < 64
    assert sorted(path.name for path in folder.iterdir()) == [
        "mnist-resnet14.onnx",
        "mnist-resnet14.test.npz",
        "small.onnx",
    ]
