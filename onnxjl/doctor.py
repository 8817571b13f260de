"""Whether the Flux engine works here, and what mends it if it doesn't.

Julia runs in processes of its own, so that nothing that it does ends this one.
"""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import onnxjl
from onnxjl import julia_environment
from onnxjl.errors import JuliaError
from onnxjl.julia_environment import Environment
from onnxjl.report import indent, table

NEEDED = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "juliacall")
"""Python packages that onnxjl needs."""

_START = "from onnxjl.flux import julia; julia()"
_PATIENCE = 1800.0
"""Seconds for Julia to start: it compiles all packages when it does so for the first time."""


@dataclass(frozen=True)
class Diagnosis:
    """What is there, and whether the Flux engine works with it.

    Parameters
    ----------
    python : Python packages and their versions; None for what isn't there.
    environment : Julia and its packages, as far as they can be found.
    threads : how many threads Julia is given.
    problem, remedy : what is wrong, and the command or the words that mend it.
    seconds : how long Julia and OnnxJL took to start, if they did.
    after_torch : what is wrong when PyTorch is imported first: nothing (an empty text) or the
        problem; None where it isn't installed.
    """

    python: dict[str, str | None]
    environment: Environment | None = None
    threads: str = "1"
    problem: str | None = None
    remedy: str | None = None
    seconds: float | None = None
    after_torch: str | None = None

    @property
    def works(self) -> bool:
        """Whether the Flux engine works."""
        return self.problem is None

    def facts(self) -> dict[str, Any]:
        """Return all of it as plain values, for JSON."""
        versions = {"onnxjl": onnxjl.__version__, "Python": platform.python_version()}
        return {"works": self.works, **asdict(self), "python": {**versions, **self.python}}


def diagnose() -> Diagnosis:
    """Look at Python's packages, at Julia's, and start Julia if all are there."""
    python = {name: _version(name) for name in (*NEEDED, "torch")}
    missing = [name for name in NEEDED if python[name] is None]
    if missing:
        return Diagnosis(
            python,
            problem=f"Python lacks {', '.join(missing)}",
            remedy=f"{sys.executable} -m pip install {' '.join(missing)}",
        )
    environment, threads = None, "1"
    try:
        threads = julia_environment.threads()
        environment = julia_environment.inspect(julia_environment.find(set_up=False))
        if environment.faults:
            return Diagnosis(
                python, environment, threads, "; ".join(environment.faults), environment.remedy
            )
        begin = time.perf_counter()
        _start(_START)
        seconds = time.perf_counter() - begin
    except JuliaError as error:
        return Diagnosis(python, environment, threads, str(error))
    after_torch = None
    if python["torch"] is not None:
        try:
            _start(f"import torch; {_START}")
            after_torch = ""
        except JuliaError as error:
            after_torch = str(error)
    return Diagnosis(python, environment, threads, seconds=seconds, after_torch=after_torch)


def describe(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as text."""
    shown = {"onnxjl": onnxjl.__version__, **diagnosis.python}
    rows = [(name, version or "missing") for name, version in shown.items()]
    if diagnosis.python["torch"] is None:
        del rows[-1]
    lines = [
        f"Python {platform.python_version()}  {sys.executable}",
        indent(table(rows, align="ll")),
    ]
    environment = diagnosis.environment
    if environment is not None:
        place = environment.place
        found = [
            (p.name, p.version or "missing", "" if p.fits else f"needs {p.compat}")
            for p in environment.packages
        ]
        lines += [
            f"Julia {environment.julia}  {place.executable}, threads: {diagnosis.threads}",
            f"project {place.project}" + (" (juliapkg's)" if place.managed else ""),
            indent(table(found, align="lll")),
        ]
    if diagnosis.problem is not None:
        lines.append(f"The Flux engine doesn't work: {diagnosis.problem}")
        if diagnosis.remedy is not None:
            lines += ["This mends it:", indent(diagnosis.remedy)]
        return "\n".join(lines)
    lines.append(f"The Flux engine works: Julia and OnnxJL started in {diagnosis.seconds:.0f} s.")
    if diagnosis.after_torch:
        lines.append(
            f"It doesn't where PyTorch was imported first: {diagnosis.after_torch}. Call "
            "onnxjl.to_flux before `import torch`."
        )
    return "\n".join(lines)


def _start(code: str) -> None:
    """Run Python code that starts Julia in a process of its own; a bad end is a JuliaError."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise JuliaError(f"Julia didn't start within {_PATIENCE:.0f} s") from error
    if done.returncode < 0:
        raise JuliaError(f"Julia crashed with {signal.Signals(-done.returncode).name}")
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise JuliaError(said[-1].removeprefix("onnxjl.errors.JuliaError: "))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
