"""The package as users get it: built, installed into a fresh environment, and used elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import onnxjl

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "tests" / "models"

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
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
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


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What builds read, apart from everything else that lies about in a working folder."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("onnxjl", "benchmarks", "docs", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "skeletons", "*.npz")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout."""
    target = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--outdir", target, checkout], target)
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution built from the checkout."""
    target = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-m", "build", "--sdist", "--outdir", target, checkout], target)
    (path,) = target.glob("*.tar.gz")
    return path


def environment(folder: Path) -> Path:
    """Make a fresh environment and return its interpreter."""
    run([sys.executable, "-m", "venv", folder], folder.parent)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    return scripts / ("python.exe" if os.name == "nt" else "python")


def oldest() -> list[str]:
    """The lower bounds of what the package depends on, as requirements that leave no choice."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for requirement in project["dependencies"]:
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)(,<[\d.]+)?", requirement)
        assert match, requirement
        found.append(f"{match[1]}=={match[2]}")
    return found


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel that are the package's."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("onnxjl/")]
        return {name: archive.read(name) for name in names}


def test_the_wheel_holds_the_package(wheel: Path) -> None:
    modules = (ROOT / "onnxjl").rglob("*.py")
    expected = {path.relative_to(ROOT).as_posix() for path in modules} | {"onnxjl/py.typed"}
    assert set(contents(wheel)) == expected
    with zipfile.ZipFile(wheel) as archive:
        info = f"onnxjl-{onnxjl.__version__}.dist-info"
        assert f"{info}/licenses/LICENSE" in archive.namelist()
        metadata = archive.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {onnxjl.__version__}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata


def test_a_wheel_from_the_sdist_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "out", source], tmp_path)
    (second,) = (tmp_path / "out").glob("*.whl")
    assert contents(second) == contents(wheel)
    assert (source / "tests" / "test_wheel.py").is_file()


@pytest.mark.parametrize("versions", ["newest", "oldest"])
def test_the_main_job_in_a_fresh_environment(wheel: Path, versions: str, tmp_path: Path) -> None:
    python = environment(tmp_path / "environment")
    bounds = oldest() if versions == "oldest" else []
    run([python, "-m", "pip", "install", "--quiet", wheel, *bounds], tmp_path)
    folder = tmp_path / "work"
    folder.mkdir()
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


def test_an_editable_install_uses_the_checkout(checkout: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "environment")
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", checkout], tmp_path)
    found = run([python, "-c", "import onnxjl; print(onnxjl.__file__)"], tmp_path).strip()
    assert Path(found) == checkout / "onnxjl" / "__init__.py"
    version = "import importlib.metadata as m; print(m.version('onnxjl'))"
    assert run([python, "-c", version], tmp_path).strip() == onnxjl.__version__
