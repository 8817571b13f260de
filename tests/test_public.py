"""The package as it is imported: its names, and what it leaves asleep."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from importlib import resources

import pytest

import onnxjl

FOREIGN = ("juliacall", "onnxruntime", "onnxscript", "torch")
"""What takes long to import, and is imported only when it is needed, if at all."""


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "import onnxjl",
        "from onnxjl import *",
        "import onnxjl.cli",
        "import onnxjl.prune, onnxjl.save",
    ],
)
def test_importing_starts_nothing_else(code: str) -> None:
    assert run(f"{code}; import sys; print([m for m in {FOREIGN} if m in sys.modules])") == "[]"


PRUNE = """
import sys
import numpy as np
from onnx import numpy_helper, parser
import onnxjl

model = parser.parse_model('''
    <ir_version: 8, opset_import: ["": 17]>
    network (float[1, 4] x) => (float[1, 3] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }
''')
for name, shape in (("a", (4, 8)), ("b", (8, 3))):
    weight = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    model.graph.initializer.append(numpy_helper.from_array(weight, name))
small = onnxjl.prune(model, amount=0.5)
print(small.weight("a").shape, small.weight("b").shape)
"""


def test_pruning_in_memory_starts_nothing_else() -> None:
    printed = run(f"{PRUNE}\nprint([m for m in {FOREIGN} if m in sys.modules])")
    assert printed.splitlines() == ["(4, 4) (4, 3)", "[]"]


def test_every_public_name_is_there() -> None:
    for name in onnxjl.__all__:
        assert getattr(onnxjl, name) is not None
    assert dir(onnxjl) == sorted(onnxjl.__all__)
    assert len(set(onnxjl.__all__)) == len(onnxjl.__all__)


@pytest.mark.parametrize("name", [n for n in onnxjl.__all__ if not n.startswith("_")])
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(onnxjl, name)
    assert inspect.getdoc(value), name
    if inspect.isfunction(value):
        parameters = inspect.signature(value).parameters.values()
        assert all(p.annotation is not inspect.Parameter.empty for p in parameters)
        assert "Parameters\n----------" in (inspect.getdoc(value) or "")


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match="module 'onnxjl' has no attribute 'prun'"):
        onnxjl.prun  # noqa: B018


@pytest.mark.parametrize("name", ["load", "normalize", "prune", "report", "save"])
def test_importing_a_module_does_not_hide_the_function_of_its_name(name: str) -> None:
    module = importlib.import_module(f"onnxjl.{name}")
    assert inspect.ismodule(module)
    assert inspect.isfunction(getattr(onnxjl, name))
    code = f"import onnxjl.{name}, inspect; print(inspect.isfunction(onnxjl.{name}))"
    assert run(code) == "True"


def test_the_package_says_that_it_is_typed() -> None:
    assert resources.files("onnxjl").joinpath("py.typed").is_file()


def test_python_m_is_the_command() -> None:
    code = (
        "import runpy, sys; sys.argv = ['onnxjl', '--version']\n"
        "try: runpy.run_module('onnxjl', run_name='__main__')\n"
        "except SystemExit as end: print('status', end.code)"
    )
    assert run(code).splitlines() == [f"onnxjl {onnxjl.__version__}", "status 0"]
