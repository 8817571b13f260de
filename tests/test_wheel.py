"""The package as users get it: built, installed into a fresh environment, and used elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from environments import (
    MODELS,
    ROOT,
    build,
    copy_checkout,
    environment,
    install,
    prune_a_network,
    run,
)
from flux_support import needs_julia, own_depot
from hatchling.builders.wheel import WheelBuilder

import onnxjl

pytestmark = pytest.mark.xdist_group("wheel")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What builds read, in a folder of its own."""
    folder = tmp_path_factory.mktemp("checkout")
    copy_checkout(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout."""
    return build("wheel", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution built from the checkout."""
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel that are the package's."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("onnxjl/")]
        return {name: archive.read(name) for name in names}


def package_files() -> dict[str, Path]:
    """What a wheel has to hold: path in the wheel -> file of the checkout."""
    found = {f"onnxjl/{name}": ROOT / "onnxjl" / name for name in ("juliapkg.json", "py.typed")}
    for path in (ROOT / "onnxjl").rglob("*.py"):
        found[path.relative_to(ROOT).as_posix()] = path
    for path in (ROOT / "julia").rglob("*"):
        if path.suffix in (".jl", ".toml") and path.name != "Manifest.toml":
            found[f"onnxjl/{path.relative_to(ROOT).as_posix()}"] = path
    return found


def test_a_wheel_would_hold_the_package_and_the_julia_folder() -> None:
    included = WheelBuilder(str(ROOT)).recurse_included_files()
    assert {f.distribution_path: Path(f.path).resolve() for f in included} == package_files()


@pytest.mark.slow
def test_the_wheel_holds_the_package(wheel: Path) -> None:
    expected = {name: path.read_bytes() for name, path in package_files().items()}
    assert contents(wheel) == expected
    with zipfile.ZipFile(wheel) as archive:
        info = f"onnxjl-{onnxjl.__version__}.dist-info"
        assert f"{info}/licenses/LICENSE" in archive.namelist()
        metadata = archive.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {onnxjl.__version__}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata


@pytest.mark.slow
def test_a_wheel_from_the_sdist_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    (tmp_path / "out").mkdir()
    second = build("wheel", source, tmp_path / "out")
    assert contents(second) == contents(wheel)
    assert (source / "tests" / "test_wheel.py").is_file()


@pytest.mark.slow
def test_the_main_job_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "environment")
    install(python, wheel)
    folder = tmp_path / "work"
    folder.mkdir()
    prune_a_network(python, folder)


@pytest.mark.slow
def test_an_editable_install_uses_the_checkout(checkout: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "environment")
    install(python, "--no-deps", "--editable", checkout)
    found = run([python, "-c", "import onnxjl; print(onnxjl.__file__)"], tmp_path).strip()
    assert Path(found) == checkout / "onnxjl" / "__init__.py"
    version = "import importlib.metadata as m; print(m.version('onnxjl'))"
    assert run([python, "-c", version], tmp_path).strip() == onnxjl.__version__


# Julia, from each layout

START = """
import json, sys
from pathlib import Path
import numpy as np
from onnxjl import flux

folder = Path(sys.argv[1])
images = np.load(folder / "mnist-resnet14.calib.npz")["image"][:4]
logits = flux.to_flux(folder / "mnist-resnet14.onnx")(images)
source = sys.modules["juliacall"].Main.Base.pathof(flux.julia())
print(json.dumps([flux.__file__, str(Path(str(source)).resolve()), logits.tolist()]))
"""
"""Run a network in Julia: onnxjl's file, OnnxJL's, and what comes out."""


def start_from(python: str | Path, path: Sequence[Path], folder: Path) -> tuple[Path, Path]:
    """Run a network in Julia with onnxjl from a path; return where onnxjl and OnnxJL come from."""
    import onnxruntime

    settings = {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [str(python), "-c", START, str(MODELS)],
        cwd=folder,
        env={**os.environ, **settings, **own_depot(folder / "depot")},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    module, source, logits = json.loads(done.stdout)
    session = onnxruntime.InferenceSession(MODELS / "mnist-resnet14.onnx")
    images = np.load(MODELS / "mnist-resnet14.calib.npz")["image"][:4]
    (expected,) = session.run(None, {"image": images})
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    return Path(module), Path(source)


def packages() -> Path:
    """The folder with what onnxjl depends on."""
    return Path(np.__file__).parents[1]


@pytest.mark.slow
@needs_julia
def test_julia_runs_from_a_wheel_that_nobody_may_write_to(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    install(Path(sys.executable), "--no-deps", "--no-compile", "--target", site, wheel)
    before = {path: path.stat().st_mtime_ns for path in sorted(site.rglob("*"))}
    for path in [site, *before]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        module, source = start_from(sys.executable, [site, packages()], tmp_path)
    finally:
        for path in [site, *before]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert module == site / "onnxjl" / "flux.py"
    assert source == site / "onnxjl" / "julia" / "src" / "OnnxJL.jl"
    # Who runs as root may write all the same; what Julia compiles goes to the user's depot.
    assert {path: path.stat().st_mtime_ns for path in sorted(site.rglob("*"))} == before


@pytest.mark.slow
@needs_julia
def test_julia_runs_from_an_editable_install(checkout: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "environment")
    install(python, "--no-deps", "--editable", checkout)
    module, source = start_from(python, [packages()], tmp_path)
    # An installation of onnxjl beside the packages that it depends on would come first.
    assert module == checkout / "onnxjl" / "flux.py"
    assert source == checkout / "julia" / "src" / "OnnxJL.jl"
