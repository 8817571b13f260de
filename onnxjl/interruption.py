"""Ctrl-C that waits until what mustn't be torn apart is done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType


class Interruption:
    """Holds Ctrl-C back while a step is running, as Julia can't be interrupted within one.

    A second Ctrl-C isn't held back. Outside the main thread, where none arrives, and where nobody
    handles it in Python, nothing changes.

    Examples
    --------
    >>> with Interruption() as interruption:
    ...     with interruption.held():
    ...         step()
    """

    def __init__(self) -> None:
        self._held = False
        self._pending = False

    def __enter__(self) -> Interruption:
        self._before = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        self._installed = main and callable(self._before)
        if self._installed:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold Ctrl-C back until the end of the block, where it has its usual effect."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._pending:
                self._pending = False
                self._pass_on(signal.SIGINT, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._held and not self._pending:
            self._pending = True
        else:
            self._pending = False
            self._pass_on(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        assert callable(self._before)
        self._before(number, frame)
