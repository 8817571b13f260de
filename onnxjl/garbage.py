"""Garbage: hold Python's collector off while many objects stay; keep the memory of large arrays."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def without_collection(function: Callable[P, R]) -> Callable[P, R]:
    """Let no garbage collection start while `function` runs.

    Reading a model makes tens of thousands of objects, none of them garbage. Python's collector
    looks through all of them again and again: up to half of the whole time.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if not gc.isenabled():
            return function(*args, **kwargs)
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            gc.enable()

    return wrapper


@cache
def keep_freed_memory() -> None:
    """Let the C library reuse the memory of arrays that are gone, instead of giving it back.

    glibc returns a freed block of more than 128 KiB to the system at once, and for the next one
    every page is fetched, and zeroed, anew: half of the time that it takes to cut a weight. It
    learns from the largest block that was freed so far, up to 32 MiB, that such blocks come again
    (mallopt(3), M_MMAP_THRESHOLD). So one is freed here, which nobody has written to.
    """
    np.empty(_LARGEST, dtype=np.uint8)


# What glibc learns from at most, less what it adds to a block.
_LARGEST = (1 << 25) - (1 << 13)
