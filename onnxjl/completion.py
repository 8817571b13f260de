"""Completion: scripts that make shells complete the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from onnxjl import cli
from onnxjl.criteria import CRITERIA
from onnxjl.criteria.blocks import BLOCK_CRITERIA
from onnxjl.errors import UsageError
from onnxjl.sparsity import CRITERIA as SINGLE_WEIGHTS

FILES = ("MODEL", "PLAN", "A", "B", "FILE", "FILE.npz")
FOLDERS = ("DIR",)
"""What arguments that name files and folders are called in the help."""


def script(shell: str) -> str:
    """Return the script for a shell.

    Parameters
    ----------
    shell : ``bash``, ``zsh``, ``fish`` or ``tcsh``.

    Raises
    ------
    UsageError : shtab, which writes it, isn't there.
    """
    try:
        import shtab
    except ImportError as error:
        raise UsageError("shtab is missing: pip install 'onnxjl[completion]' brings it") from error

    parser = cli.make_parser()
    for action in _actions(parser):
        if action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif "--criterion" in action.option_strings:
            # Of the kinds, the one that the command's own default is of; blocks are pruned, too.
            kinds = ({**CRITERIA, **BLOCK_CRITERIA}, SINGLE_WEIGHTS)
            action.choices = sorted(next(kind for kind in kinds if action.default in kind))
    text: str = shtab.complete(parser, shell=shell)
    return text


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action
