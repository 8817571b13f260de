"""Shells complete the command line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onnxjl import cli
from onnxjl.budget import SCOPES

SHELLS = ("bash", "zsh", "fish", "tcsh")

ASK = """
source completion.bash
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
complete -p onnxjl | grep -q -- '-F _shtab_onnxjl '
_shtab_onnxjl onnxjl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
"""What bash does when the last of its arguments is to be completed."""


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with two files, a folder, and the script for bash."""
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out, encoding="utf-8")
    for name in ("net.onnx", "nest.npz"):
        (tmp_path / name).touch()
    (tmp_path / "nets").mkdir()
    return tmp_path


@pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("bash") is None, reason="there is no bash"
)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pr", {"prune"}),
        ("prune --mac", {"--macs"}),
        ("prune --criterion f", {"fisher", "fpgm"}),
        ("sparsify --criterion s", {"snip", "sparsegpt"}),
        ("prune net.onnx --macs 0.5 --scope ", set(SCOPES)),
        ("prune ne", {"net.onnx", "nest.npz", "nets"}),
        ("prune net.onnx -o net.", {"net.onnx"}),
        ("apply net.onnx nes", {"nest.npz"}),
        ("info net.onnx --allow-external ne", {"nets"}),
        ("completion ", set(SHELLS)),
        ("doctor --ma", set()),
    ],
)
def test_bash_completes(words: str, expected: set[str], folder: Path) -> None:
    command = ["bash", "--norc", "-c", ASK, "bash", "onnxjl", *words.split(" ")]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    assert {word.removesuffix("/") for word in done.stdout.split()} == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_there_is_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    # For tcsh, shtab knows commands and files, and no options of commands.
    options = () if shell == "tcsh" else ("macs", "bn-scale")
    for word in ("onnxjl", "prune", *options):
        assert word in script
    if shutil.which(shell) and shell != "tcsh":  # which can't read without running
        done = subprocess.run(
            [shell, "-n"], input=script, capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_shell_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "csh"]) == 2
    assert "invalid choice: 'csh'" in capsys.readouterr().err


def test_without_shtab_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert "shtab is missing: pip install 'onnxjl[completion]'" in capsys.readouterr().err
