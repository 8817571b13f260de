"""Progress on standard error, where somebody is there to see it and the work takes a while.

Somebody is at a terminal, and at a notebook.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TextIO, TypeVar

from onnxjl.printable import printable

Element = TypeVar("Element")

DELAY = 2.0
"""Seconds of work before anything is shown."""

_INTERVAL = 0.2
_BAR = 24

# Only the innermost of nested displays is drawn; its text follows those around it.
_open: list[Progress] = []


class Progress:
    """A bar for work in steps, drawn by a thread of its own so that long steps move as well.

    Parameters
    ----------
    text : what is being done.
    total : number of steps, if known.
    stream : where to draw; standard error unless given. Nothing is drawn if it is neither a
        terminal nor a notebook's.
    delay : seconds before the first drawing.

    Examples
    --------
    >>> with Progress("pruning", total=2) as bar:
    ...     bar.step("scoring")
    ...     bar.step("cutting")
    """

    def __init__(
        self,
        text: str,
        *,
        total: int | None = None,
        stream: TextIO | None = None,
        delay: float = DELAY,
    ) -> None:
        self._text = text
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._delay = delay
        self._done = 0
        self._note = ""
        self._width = 0  # of what is drawn
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        _open.append(self)
        if self._stream is not None and (self._stream.isatty() or _of_notebook(self._stream)):
            self._thread = threading.Thread(target=self._draw, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _open.remove(self)
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            if self._width:
                self._show("")
                self._write("\r\x1b[K")

    def step(self, note: str = "") -> None:
        """Say that the next step begins, and what it is.

        Parameters
        ----------
        note : shown after the text.
        """
        self._note = note
        self._done += 1

    def _draw(self) -> None:
        wait = self._delay
        while not self._stop.wait(wait):
            wait = _INTERVAL
            if _open and _open[-1] is self:
                # What is wider than a terminal breaks its line, and that can't be drawn anew.
                width = (
                    None if _of_notebook(self._stream) else shutil.get_terminal_size().columns - 1
                )
                self._show(self._line()[:width])

    def _show(self, line: str) -> None:
        # Spaces over what was longer: a notebook knows no sequence that erases it.
        self._write("\r" + line.ljust(self._width))
        self._width = len(line)

    def _line(self) -> str:
        texts = [f"{bar._text}: {bar._note}" if bar._note else bar._text for bar in list(_open)]
        seconds = time.monotonic() - self._start
        # A step counts as done once the next begins.
        finished = max(0, self._done - 1)
        if self._total:
            filled = min(_BAR, _BAR * finished // self._total)
            bar = f"[{'#' * filled}{' ' * (_BAR - filled)}] {finished}/{self._total} "
        else:
            bar = f"{finished} " if finished else ""
        return printable(f"{bar}{' – '.join(texts)} ({seconds:.0f} s)")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # A terminal that went away must not end the work.
            self._stop.set()


def _of_notebook(stream: TextIO) -> bool:
    """Whether a stream goes to a notebook, which shows a line anew as a terminal does."""
    return type(stream).__module__.startswith("ipykernel")


def progress(
    iterable: Iterable[Element],
    text: str,
    *,
    total: int | None = None,
    stream: TextIO | None = None,
    delay: float = DELAY,
) -> Iterator[Element]:
    """Iterate, and show how far it is.

    Parameters
    ----------
    iterable : what to go through.
    text : what is being done.
    total : number of elements; asked of the iterable if it has a length.
    stream, delay : as for `Progress`.

    Yields
    ------
    The elements of `iterable`.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(text, total=total, stream=stream, delay=delay) as bar:
        for element in iterable:
            bar.step()
            yield element
