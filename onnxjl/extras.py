"""Extras: packages that only some of what onnxjl does needs."""

from __future__ import annotations

import importlib

from onnxjl.errors import UsageError


def need(extra: str, *packages: str) -> None:
    """Find out before work begins whether packages are there.

    Parameters
    ----------
    extra : of onnxjl, that installs them.
    packages : names to import.

    Raises
    ------
    UsageError : one is missing; says what brings it.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(
                f"{package} is missing: pip install 'onnxjl[{extra}]' brings it"
            ) from error
