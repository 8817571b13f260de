"""The package's own source: nothing in a model or an array is ever run as code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "onnxjl").rglob("*.py"))

# `compile` is also a function of `re`; only the built-in of that name is meant.
RUNNERS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file with its dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_is_run_as_code(path: Path) -> None:
    found = [
        f"line {call.lineno}: {name}"
        for name, call in calls(ast.parse(path.read_text(encoding="utf-8")))
        # An empty text runs nothing: see `main` in onnxjl/cli.py.
        if (name in RUNNERS and ast.unparse(call) != "exec('')")
        or name.endswith((".seval", ".run_code"))
        or (name.startswith("subprocess.") and any(word.arg == "shell" for word in call.keywords))
    ]
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert not imported & {
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "marshal",
        "shelve",
    }
    for name, call in calls(tree):
        if name in {"np.load", "numpy.load"}:
            allowed = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert allowed.get("allow_pickle") == "False", f"line {call.lineno}"
        assert not name.endswith((".read_pickle", ".to_pickle", "torch.load")), call.lineno
