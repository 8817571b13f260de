"""Functions of the user's own on the command line, written FILE.py:NAME or FILE.jl:NAME."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

from onnxjl.errors import UsageError

_PLACE = re.compile(r"(?P<path>.+\.(?P<language>py|jl)):(?P<name>[^:/\\]+)")


def is_julia_place(text: str) -> bool:
    """Return whether a text names a function in a Julia file."""
    found = _PLACE.fullmatch(text)
    return found is not None and found["language"] == "jl"


def function_of(text: str) -> Any:
    """Return the function that a text names, or the text if it is no such place.

    Parameters
    ----------
    text : ``FILE.py:NAME``, ``FILE.jl:NAME`` (which starts Julia), or anything else.

    Raises
    ------
    UsageError : there is no such file, or in it no such function, or it can't be run.
    JuliaError : likewise, of a Julia file.
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        if re.search(r"\.(py|jl)$", text):
            raise UsageError(f"{text}: which function? write {text}:NAME")
        return text
    path, name = Path(found["path"]), found["name"]
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if found["language"] == "jl":
        from onnxjl.flux import criterion_from

        return criterion_from(path, name)
    try:
        defined = runpy.run_path(str(path))
    except Exception as error:
        raise UsageError(f"{path}: {type(error).__name__}: {error}") from error
    if not callable(defined.get(name)):
        raise UsageError(f"{path} defines no function '{name}'")
    return defined[name]
