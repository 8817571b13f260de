"""What is said of a Julia that isn't there, or not as the Flux engine needs it. None is started."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from onnxjl import cli, doctor, flux, julia_environment
from onnxjl.errors import JuliaError
from onnxjl.julia_environment import EXECUTABLE, PROJECT, Place

GOOD = {
    "ChainRulesCore": "1.26.1",
    "Flux": "0.16.9",
    "Functors": "0.5.2",
    "NNlib": "0.9.36",
    "Optimisers": "0.4.8",
    "PrecompileTools": "1.2.1",
    "PythonCall": metadata.version("juliacall"),
    "Statistics": "1.10.0",
    "Zygote": "0.7.12",
}

Julia = Callable[..., Place]


@pytest.fixture
def julia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Julia:
    """Make an executable that answers as a Julia of a version with packages, and name it."""

    def make(version: str = "1.10.4", packages: dict[str, str | None] = GOOD) -> Place:
        lines = [version]
        for name, number in packages.items():
            source = tmp_path / name / "src" / f"{name}.jl"
            if number is not None:
                source.parent.mkdir(parents=True, exist_ok=True)
                source.touch()
                (tmp_path / name / "Project.toml").write_text(f'version = "{number}"\n')
            lines.append(f"{name}\t{'' if number is None else source}")
        answer, executable = tmp_path / "answer", tmp_path / "julia"
        answer.write_text("\n".join(lines))
        executable.write_text(f'#!/bin/sh\ncat "{answer}"\n')
        executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv(EXECUTABLE, str(executable))
        monkeypatch.setenv(PROJECT, str(tmp_path))
        return Place(str(executable), str(tmp_path))

    return make


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what this process's environment says, and a Julia that runs in it."""
    for name in (EXECUTABLE, PROJECT, "JULIA_NUM_THREADS", "PYTHON_JULIACALL_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "juliacall", raising=False)
    monkeypatch.setattr(flux, "_started", None)


def test_what_fits_has_no_faults(julia: Julia) -> None:
    place = julia()
    assert julia_environment.find() == place
    found = julia_environment.inspect(place)
    assert (found.julia, found.faults) == ("1.10.4", [])
    assert {package.name: package.version for package in found.packages} == GOOD
    found.check()


@pytest.mark.parametrize(
    ("version", "packages", "message"),
    [
        ("1.9.4", {}, r"{exe} is Julia 1\.9\.4, and OnnxJL needs 1\.10 or newer: install a newer"),
        ("1.10.0-rc1", {}, ""),
        ("1.12.3", {}, ""),
        (
            "1.10.4",
            {"Flux": None},
            r"the Julia project {project} lacks Flux: {exe} --project={project} -e 'import Pkg; "
            r'Pkg\.add\(\[\(name="Flux", version="0\.16"\)\]\)\'$',
        ),
        (
            "1.10.4",
            {"Flux": None, "NNlib": None, "Zygote": None},
            "lacks Flux, NNlib and Zygote: .*Flux.*NNlib.*Zygote",
        ),
        (
            "1.10.4",
            {"Flux": "0.14.25", "Zygote": None},
            r"lacks Zygote; OnnxJL needs Flux 0\.16, and the Julia project {project} has 0\.14\.25:"
            r" .*Flux.*Zygote",
        ),
        (
            "1.10.4",
            {"PythonCall": "0.9.28"},
            r"juliacall {juliacall} needs PythonCall {juliacall}, and the Julia project {project} "
            r'has 0\.9\.28: .*\(name="PythonCall", version="{juliacall}"\)',
        ),
    ],
)
def test_faults_name_what_is_wrong_and_what_mends_it(
    version: str, packages: dict[str, str | None], message: str, julia: Julia
) -> None:
    place = julia(version, {**GOOD, **packages})
    found = julia_environment.inspect(place)
    if not message:
        return found.check()
    values = {
        "exe": re.escape(place.executable),
        "project": re.escape(place.project),
        "juliacall": re.escape(metadata.version("juliacall")),
    }
    with pytest.raises(JuliaError, match=message.format(**values)) as caught:
        flux.julia()
    assert "\n" not in str(caught.value)
    assert "juliacall" not in sys.modules
    return None


def test_one_variable_without_the_other(julia: Julia, monkeypatch: pytest.MonkeyPatch) -> None:
    julia()
    monkeypatch.delenv(PROJECT)
    with pytest.raises(JuliaError, match=f"{EXECUTABLE} is set, and {PROJECT} isn't: set both"):
        flux.julia()
    julia()
    monkeypatch.delenv(EXECUTABLE)
    with pytest.raises(JuliaError, match=f"{PROJECT} is set, and {EXECUTABLE} isn't: set both"):
        flux.julia()


def test_variables_that_name_nothing(julia: Julia, monkeypatch: pytest.MonkeyPatch) -> None:
    julia()
    monkeypatch.setenv(PROJECT, "/none")
    with pytest.raises(JuliaError, match=f"{PROJECT} names '/none', which isn't a folder"):
        flux.julia()
    monkeypatch.setenv(EXECUTABLE, "/none/julia")
    with pytest.raises(JuliaError, match=f"{EXECUTABLE} names '/none/julia', which isn't an exec"):
        flux.julia()


def test_an_executable_that_is_no_julia(julia: Julia) -> None:
    place = julia()
    Path(place.executable).write_text("#!/bin/sh\necho cannot open shared object >&2\nexit 127\n")
    message = f"'{place.executable}' isn't a Julia that works: cannot open shared object"
    with pytest.raises(JuliaError, match=message):
        flux.julia()
    Path(place.executable).write_text("not a program")
    with pytest.raises(JuliaError, match=f"'{place.executable}' can't be run: Exec format error"):
        flux.julia()


def test_options_of_the_interpreter_count_as_variables(
    julia: Julia, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = julia()
    options = {"juliacall-exe": place.executable, "juliacall-project": place.project}
    monkeypatch.setattr(sys, "_xoptions", options)
    monkeypatch.delenv(EXECUTABLE)
    monkeypatch.delenv(PROJECT)
    assert julia_environment.find() == place


def test_juliapkg_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setitem(sys.modules, "juliapkg", types.SimpleNamespace(executable=fail))
    message = (
        "juliapkg can't install Julia and its packages: Name or service not known; it needs a "
        f"network once; without a network, name a Julia and its project with {EXECUTABLE} and "
        f"{PROJECT}"
    )
    with pytest.raises(JuliaError, match=message):
        flux.julia()


def test_juliapkg_installs_nothing_for_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    fake = types.SimpleNamespace(resolve=lambda dry_run: asked.append(dry_run))
    monkeypatch.setitem(sys.modules, "juliapkg", fake)
    with pytest.raises(JuliaError, match=r"aren't installed yet: .*juliapkg\.resolve"):
        julia_environment.find(set_up=False)
    assert asked == [True]


def test_what_juliapkg_looks_after_is_mended_by_it(julia: Julia) -> None:
    place = julia(packages={**GOOD, "Flux": None})
    found = julia_environment.inspect(Place(place.executable, place.project, managed=True))
    assert found.remedy == julia_environment.SET_UP


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "1"),
        ({"JULIA_NUM_THREADS": "4"}, "4"),
        ({"JULIA_NUM_THREADS": "auto"}, "auto"),
        ({"JULIA_NUM_THREADS": "4,1"}, "4,1"),
        ({"JULIA_NUM_THREADS": "4", "PYTHON_JULIACALL_THREADS": "2"}, "2"),
    ],
)
def test_threads(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert julia_environment.threads() == expected


@pytest.mark.parametrize("value", ["", "0", "many", "-1"])
def test_threads_that_would_end_the_process(
    value: str, julia: Julia, monkeypatch: pytest.MonkeyPatch
) -> None:
    julia()
    monkeypatch.setenv("JULIA_NUM_THREADS", value)
    with pytest.raises(JuliaError, match=f"JULIA_NUM_THREADS is '{value}': give a number of thre"):
        flux.julia()


class Running:
    """A Julia that somebody else started."""

    def __init__(self, packages: set[str]) -> None:
        self.LOAD_PATH: list[str] = []
        self.Base = types.SimpleNamespace(
            UUID=lambda text: text,
            PkgId=lambda uuid, name: name,
            locate_package=lambda name: name if name in packages else None,
            active_project=lambda: "/theirs/Project.toml",
        )

    def push_b(self, where: list[str], what: str) -> None:
        where.append(what)


def test_a_running_julia_that_lacks_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(GOOD.keys() - {"Flux", "Zygote"})
    fake = types.SimpleNamespace(Main=running, JuliaError=RuntimeError)
    monkeypatch.setitem(sys.modules, "juliacall", fake)
    message = (
        r"juliacall is already running, with the Julia project /theirs/Project\.toml, which lacks "
        r"Flux, Zygote: `\]add Flux Zygote` there, or start onnxjl before what started it"
    )
    with pytest.raises(JuliaError, match=message):
        flux.julia()


def test_juliacall_that_was_told_not_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "juliacall", types.SimpleNamespace())
    with pytest.raises(JuliaError, match="Julia wasn't started"):
        flux.julia()


# The doctor


def starts(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the doctor run some other Python code instead of starting Julia."""
    monkeypatch.setattr(doctor, "_START", code)
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "torch" else version(name))


def test_the_doctor_says_that_all_is_well(
    julia: Julia, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = julia()
    starts(monkeypatch, "pass")
    assert cli.main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"^  juliacall +" + re.escape(GOOD["PythonCall"]) + "$", out, re.M)
    assert re.search(r"^  Flux +0\.16\.9$", out, re.M)
    assert f"Julia 1.10.4  {place.executable}, threads: 1\nproject {place.project}\n" in out
    assert out.endswith("The Flux engine works: Julia and OnnxJL started in 0 s.\n")


def test_the_doctor_prints_the_command_that_mends_it(
    julia: Julia, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    julia(packages={**GOOD, "Flux": None, "Zygote": "0.6.75"})
    starts(monkeypatch, "raise SystemExit('not reached')")
    assert cli.main(["doctor"]) == 1
    out, _ = capsys.readouterr()
    assert re.search(r"^  Flux +missing +needs 0\.16$", out, re.M)
    assert re.search(r"^  Zygote +0\.6\.75 +needs 0\.7$", out, re.M)
    problem, mends, command = out.splitlines()[-3:]
    assert problem.startswith("The Flux engine doesn't work: the Julia project")
    assert mends == "This mends it:"
    assert 'Pkg.add([(name="Flux", version="0.16"), (name="Zygote", version="0.7")])' in command

    assert cli.main(["doctor", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["works"] is False
    assert facts["remedy"] == command.strip()
    versions = {p["name"]: p["version"] for p in facts["environment"]["packages"]}
    assert versions == {**GOOD, "Flux": None, "Zygote": "0.6.75"}


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "Julia crashed with SIGSEGV"),
        ("from onnxjl import JuliaError; raise JuliaError('what it is')", "what it is"),
    ],
)
def test_the_doctor_outlives_julia(
    code: str,
    problem: str,
    julia: Julia,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    julia()
    starts(monkeypatch, code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    assert cli.main(["doctor"]) == 1
    assert f"The Flux engine doesn't work: {problem}\n" in capsys.readouterr().out


def test_the_doctor_names_python_packages_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = doctor._version
    gone = ("juliacall", "torch")
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in gone else version(name))
    assert cli.main(["doctor"]) == 1
    out, _ = capsys.readouterr()
    assert re.search(r"^  juliacall +missing$", out, re.M)
    assert f"  {sys.executable} -m pip install juliacall\n" in out


def test_the_doctor_says_where_pytorch_has_to_come_second(
    julia: Julia, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    julia()
    starts(monkeypatch, "pass")
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0")

    def start(code: str) -> None:
        if code.startswith("import torch"):
            raise JuliaError("Julia crashed with SIGSEGV")

    monkeypatch.setattr(doctor, "_start", start)
    assert cli.main(["doctor"]) == 0
    assert (
        "It doesn't where PyTorch was imported first: Julia crashed with SIGSEGV. Call "
        "onnxjl.to_flux before `import torch`."
    ) in capsys.readouterr().out
