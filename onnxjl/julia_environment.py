"""The Julia that the Flux engine runs in: which one, what it has and what it lacks.

Nothing here starts Julia in this process.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxjl.errors import JuliaError

EXECUTABLE, PROJECT = "PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT"
"""Environment variables that name a Julia, and a project that has what OnnxJL needs."""

FOLDER = Path(__file__).with_name("julia").resolve()
"""The Julia package OnnxJL."""

SET_UP = (
    f"{shlex.quote(sys.executable or 'python')} -c 'import juliapkg; juliapkg.resolve(force=True)'"
)
"""The command with which juliapkg installs what is missing; it needs a network."""

_OWN = f"without a network, name a Julia and its project with {EXECUTABLE} and {PROJECT}"


@dataclass(frozen=True)
class Place:
    """A Julia and its project.

    Parameters
    ----------
    executable, project : the paths.
    managed : whether juliapkg looks after them.
    """

    executable: str
    project: str
    managed: bool = False


@dataclass(frozen=True)
class Package:
    """A Julia package that OnnxJL needs.

    Parameters
    ----------
    name, uuid : as Julia has them.
    compat : the versions that will do, as in a Project.toml.
    version : the one that is there, if any.
    """

    name: str
    uuid: str
    compat: str
    version: str | None = None

    @property
    def fits(self) -> bool:
        """Whether a version is there that will do."""
        return self.version is not None and _fits(self.version, self.compat)


@dataclass(frozen=True)
class Environment:
    """What there is at a place.

    Parameters
    ----------
    place : the Julia and its project.
    julia : Julia's version.
    packages : what OnnxJL needs.
    """

    place: Place
    julia: str
    packages: tuple[Package, ...]

    @property
    def faults(self) -> list[str]:
        """What keeps the Flux engine from working, each in a few words."""
        wanted = _project()["compat"]["julia"]
        if not _fits(self.julia, wanted):
            return [
                f"{self.place.executable} is Julia {self.julia}, and OnnxJL needs {wanted} or newer"
            ]
        missing = [package.name for package in self.packages if package.version is None]
        others = [package for package in self.packages if package.version and not package.fits]
        found = (
            [f"the Julia project {self.place.project} lacks {_list(missing)}"] if missing else []
        )
        for package in others:
            who = f"juliacall {_juliacall()}" if package.name == "PythonCall" else "OnnxJL"
            found.append(
                f"{who} needs {package.name} {package.compat.removeprefix('=')}, and the Julia "
                f"project {self.place.project} has {package.version}"
            )
        return found

    @property
    def remedy(self) -> str:
        """The command, or else the words, that mend the faults."""
        if not _fits(self.julia, _project()["compat"]["julia"]):
            return f"install a newer Julia, and name it with {EXECUTABLE}"
        if self.place.managed:
            return SET_UP
        wrong = [package for package in self.packages if not package.fits]
        wanted = ", ".join(
            f'(name="{p.name}", version="{p.compat.removeprefix("=")}")' for p in wrong
        )
        command = [self.place.executable, f"--project={self.place.project}", "-e"]
        return shlex.join([*command, f"import Pkg; Pkg.add([{wanted}])"])

    def check(self) -> None:
        """Raise a JuliaError if the Flux engine can't work here."""
        if self.faults:
            raise JuliaError(f"{'; '.join(self.faults)}: {self.remedy}")


def find(*, set_up: bool = True) -> Place:
    """Return the Julia to run: what the environment names, else what juliapkg has.

    Parameters
    ----------
    set_up : whether juliapkg may install what it lacks.

    Raises
    ------
    JuliaError : there is none, or the environment names one half.
    """
    executable, project = _setting(EXECUTABLE), _setting(PROJECT)
    if not executable and not project:
        return _managed(set_up)
    if not (executable and project):
        given, other = (EXECUTABLE, PROJECT) if executable else (PROJECT, EXECUTABLE)
        raise JuliaError(
            f"{given} is set, and {other} isn't: set both, to use a Julia and a project of your "
            "own, or neither, and juliapkg looks after them"
        )
    found = shutil.which(executable)
    if found is None:
        raise JuliaError(f"{EXECUTABLE} names '{executable}', which isn't an executable file")
    if not os.path.isdir(project):
        raise JuliaError(f"{PROJECT} names '{project}', which isn't a folder")
    return Place(os.path.abspath(found), os.path.abspath(project))


def inspect(place: Place) -> Environment:
    """Return what there is at a place; runs Julia in a process of its own for a moment.

    Raises
    ------
    JuliaError : it doesn't run.
    """
    wanted = requirements()
    command = [
        place.executable,
        f"--project={place.project}",
        "--startup-file=no",
        "-O0",
        "--compile=min",
        str(FOLDER / "environment.jl"),
        *(f"{package.name}={package.uuid}" for package in wanted),
    ]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    except OSError as error:
        raise JuliaError(f"'{place.executable}' can't be run: {error.strerror}") from error
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}"
        raise JuliaError(f"'{place.executable}' isn't a Julia that works: {said}")
    files = dict(line.split("\t") for line in lines[1:])
    packages = (
        Package(p.name, p.uuid, p.compat, _version(files[p.name], lines[0])) for p in wanted
    )
    return Environment(place, lines[0], tuple(packages))


def requirements() -> list[Package]:
    """Return what OnnxJL and juliacall need."""
    project = _project()
    found = [Package(n, u, project["compat"][n]) for n, u in project["deps"].items()]
    found.append(Package("PythonCall", project["weakdeps"]["PythonCall"], f"={_juliacall()}"))
    return found


def threads() -> str:
    """Return how many threads Julia is to have, as its ``--threads`` takes it.

    Raises
    ------
    JuliaError : what is set isn't a number of threads.
    """
    name = "PYTHON_JULIACALL_THREADS"
    value = _setting(name)
    if value is None:
        name, value = "JULIA_NUM_THREADS", os.environ.get("JULIA_NUM_THREADS")
    if value is None:
        return "1"
    if not re.fullmatch(r"(auto|[1-9]\d*)(,(auto|\d+))?", value):
        raise JuliaError(f"{name} is '{value}': give a number of threads, or auto")
    return value


def _setting(variable: str) -> str | None:
    """Return a setting of juliacall's, which it also takes as ``python -X juliacall-exe=…``."""
    option = variable.removeprefix("PYTHON_").lower().replace("_", "-")
    value = sys._xoptions.get(option, os.environ.get(variable))
    return value if isinstance(value, str) else None


def _managed(set_up: bool) -> Place:
    """Return the Julia and the project that juliapkg looks after."""
    try:
        import juliapkg

        if not set_up and not juliapkg.resolve(dry_run=True):
            raise JuliaError(f"Julia and its packages aren't installed yet: {SET_UP} ({_OWN})")
        return Place(juliapkg.executable(), juliapkg.project(), managed=True)
    except JuliaError:
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        if isinstance(error, subprocess.CalledProcessError):
            said = f"Julia's package manager ended with exit status {error.returncode}"
        raise JuliaError(
            f"juliapkg can't install Julia and its packages: {said}; it needs a network once; "
            f"{_OWN}"
        ) from error


@cache
def _project() -> dict[str, Any]:
    return tomllib.loads((FOLDER / "Project.toml").read_text(encoding="utf-8"))


@cache
def _juliacall() -> str:
    return metadata.version("juliacall")


def _version(file: str, julia: str) -> str | None:
    """Return the version of the package whose source file is given; Julia's own have Julia's."""
    if not file:
        return None
    project = Path(file).parents[1] / "Project.toml"
    version = tomllib.loads(project.read_text(encoding="utf-8")).get("version", julia)
    return str(version)


def _fits(version: str, compat: str) -> bool:
    from juliapkg.compat import Compat, Version

    # Releases to come are taken for what they will be: 1.12.0-rc1 for 1.12.0.
    return Version.parse(version).finalize_version() in Compat.parse(compat)


def _list(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
