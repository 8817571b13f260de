"""Write the page of the command line from the parser that ``onnxjl --help`` prints.

python docs/scripts/command_line.py
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from onnxjl import cli

PAGE = Path(__file__).parents[1] / "reference" / "command-line.md"

TOP = """\
# Command line

<!-- Written by `python docs/scripts/command_line.py`; don't edit. -->

{description}

`onnxjl --help` and `onnxjl COMMAND --help` print what stands here; `onnxjl --version`
prints the version, `python -m onnxjl` is the same as `onnxjl`.

Results go to standard output, and with `--json` are all of it; progress and warnings go to
standard error. Exit status: 0 done (of `compare`: the outputs are equal), 1 failed or interrupted,
2 misused.
With `{debug}=1` in the environment an error shows Python's traceback.
[Completion](../howto/completion.md) of commands and options is there for several shells.
"""


def page() -> str:
    """Return the page."""
    parser = cli.make_parser()
    description = textwrap.fill(parser.description or "", 100)
    parts = [TOP.format(description=description, debug=cli.DEBUG)]
    parts.append("| command | |\n|---|---|\n" + "".join(map(_row, commands(parser).items())))
    parts += [_section(name, command) for name, command in commands(parser).items()]
    return "\n".join(parts)


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return a parser's commands by name."""
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def summary(name: str) -> str:
    """Return what the list of commands says of one."""
    (action,) = (a for a in cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    (found,) = (a.help for a in action._choices_actions if a.dest == name)
    return found or ""


def _row(command: tuple[str, argparse.ArgumentParser]) -> str:
    name, _ = command
    return f"| [`{name}`](#onnxjl-{name}) | {summary(name)} |\n"


def _section(name: str, command: argparse.ArgumentParser) -> str:
    parts = [f"## onnxjl {name}\n", f"{command.description}\n"]
    example = (command.epilog or "").removeprefix("example:\n")
    if example:
        lines = [line.removeprefix("  ") for line in example.splitlines()]
        parts.append("```text\n" + "\n".join(lines) + "\n```\n")
    for group in command._action_groups:
        actions = [a for a in group._group_actions if not isinstance(a, argparse._HelpAction)]
        if actions:
            title = {"positional arguments": "argument", "options": "option"}.get(
                group.title or "", group.title
            )
            rows = "".join(f"| {_name(a)} | {_text(a)} |\n" for a in actions)
            parts.append(f"| {title} | |\n|---|---|\n{rows}")
    return "\n".join(parts)


def _name(action: argparse.Action) -> str:
    """Return how an argument is given."""
    value = "" if action.nargs == 0 else action.metavar or "|".join(action.choices or ())
    if not action.option_strings:
        return f"`{value or action.dest}`".replace("|", "\\|")
    *short, last = action.option_strings
    given = f"{last} {value}".strip()
    return ", ".join(f"`{option}`" for option in [*short, given]).replace("|", "\\|")


def _text(action: argparse.Action) -> str:
    """Return what the help says of an argument."""
    needed = " (required)" if action.required and action.option_strings else ""
    return f"{action.help or ''}{needed}".replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
