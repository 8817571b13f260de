"""What the package depends on: all of it declared, between bounds, and tested at the lower ones.

Every other test runs with the newest versions that the bounds allow, as pip installs them.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator, Set
from pathlib import Path

import pytest
from environments import (
    PROJECT,
    PYPROJECT,
    ROOT,
    build,
    copy_checkout,
    environment,
    install,
    lower_bound,
    lowest,
    prune_a_network,
    requirements,
    run,
    upper_bound,
)
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.xdist_group("wheel")

EXTRAS = ("completion", "experiments", "optimal")
"""Extras of which the package imports something."""

SOURCES = sorted((ROOT / "onnxjl").rglob("*.py"))
PICTURES = ROOT / "onnxjl" / "pictures.py"
"""Is imported inside functions only."""

SUBSET = """
allocation bombs budget check cli completion criteria criteria_activation data fuzz load normalize
normalize_evaluate optimal page plan prune report save session sparsity structure structure_rules
sweep
""".split()
"""Tests that run with the lowest versions: those of each part of the package, in two minutes."""


def imports(tree: ast.AST, *, later: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Every package that a file imports, the line, and whether it may be without it until then."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno, later
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno, later
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        called = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, later=later or typing or called)


def undeclared(source: str, always: Set[str], extras: Set[str]) -> list[str]:
    """What a source file imports though it may not be installed then, with its line."""
    own = {"onnxjl", *sys.stdlib_module_names}
    return [
        f"line {line}: {name}"
        for name, line, later in imports(ast.parse(source))
        if name not in own and canonicalize_name(name) not in (always | extras if later else always)
    ]


def names(*extras: str) -> set[str]:
    """The distributions that the package depends on, and those that extras add."""
    return {canonicalize_name(requirement.name) for requirement in requirements(*extras)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_is_declared(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    extras = names(*EXTRAS)
    assert undeclared(source, extras if path == PICTURES else names(), extras) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os.path, onnxjl.load", []),
        ("from __future__ import annotations\nfrom . import plan", []),
        ("import onnx_ir as ir, numpy.typing", []),
        ("import onnx_ir as ir, torch.nn", ["line 1: torch"]),
        ("from ml_dtypes import bfloat16", ["line 1: ml_dtypes"]),
        ("try:\n    import scipy\nexcept ImportError:\n    scipy = None", ["line 2: scipy"]),
        ("if TYPE_CHECKING:\n    import scipy", []),
        ("class A:\n    def f(self):\n        from scipy.optimize import milp", []),
        ("def f():\n    if True:\n        import torch", ["line 3: torch"]),
    ],
)
def test_imports_of_what_is_not_declared_are_found(source: str, found: list[str]) -> None:
    assert undeclared(source, {"numpy", "onnx-ir"}, {"scipy"}) == found


def all_requirements() -> list[Requirement]:
    """Every requirement of pyproject.toml, those of the build among them."""
    builds = [Requirement(text) for text in PYPROJECT["build-system"]["requires"]]
    return builds + requirements(*PROJECT["optional-dependencies"])


@pytest.mark.parametrize("requirement", sorted(set(map(str, all_requirements()))))
def test_every_dependency_has_both_bounds(requirement: str) -> None:
    found = Requirement(requirement)
    lower, upper = lower_bound(found), upper_bound(found)
    assert lower is not None
    assert upper is not None
    if "==" not in requirement:
        assert Version(lower) < Version(upper)


def test_the_tests_need_what_users_of_the_extras_do() -> None:
    optional = PROJECT["optional-dependencies"]
    assert {text for extra in EXTRAS for text in optional[extra]} <= set(optional["test"])


def test_a_distribution_has_the_same_bounds_everywhere() -> None:
    found: dict[str, set[str]] = {}
    for requirement in all_requirements():
        found.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert {name: bounds for name, bounds in found.items() if len(bounds) > 1} == {}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the lowest versions, and the package in it."""
    if sys.version_info >= (3, 12):
        pytest.skip("the lowest versions are those for Python 3.11, the lowest that is allowed")
    folder = tmp_path_factory.mktemp("lowest")
    (folder / "checkout").mkdir()
    copy_checkout(folder / "checkout")
    wheel = build("wheel", folder / "checkout", folder)
    python = environment(folder / "environment")
    pins = [f"{name}=={version}" for name, version in lowest("test").items()]
    install(python, f"onnxjl[test] @ {wheel.as_uri()}", *pins)
    return python


@pytest.mark.slow
def test_the_lowest_versions_go_together(python: Path, tmp_path: Path) -> None:
    assert run([python, "-m", "pip", "check"], tmp_path).strip() == "No broken requirements found."
    listed = json.loads(run([python, "-m", "pip", "list", "--format", "json"], tmp_path))
    versions = {canonicalize_name(entry["name"]): Version(entry["version"]) for entry in listed}
    expected = {canonicalize_name(name): Version(v) for name, v in lowest("test").items()}
    assert {name: versions.get(name) for name in expected} == expected


@pytest.mark.slow
def test_the_main_job_with_the_lowest_versions(python: Path, tmp_path: Path) -> None:
    prune_a_network(python, tmp_path)


@pytest.mark.slow
def test_the_tests_pass_with_the_lowest_versions(python: Path) -> None:
    # The lowest versions use what the newest of their own dependencies advise against.
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning"]
    files = [ROOT / "tests" / f"test_{name}.py" for name in SUBSET]
    # -P: the package of the environment, not that of the checkout.
    text = run([python, "-P", "-m", "pytest", *options, *files], ROOT)
    passed = re.search(r"(\d+) passed", text)
    assert passed is not None, text
    assert int(passed[1]) > 1000
