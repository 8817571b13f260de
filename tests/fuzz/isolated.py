"""Files go through the pipeline in a process of its own, whose time and memory are measured."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Cost:
    """What a file came to.

    Parameters
    ----------
    outcome : as the pipeline says, with the message; "killed" where the process is no more.
    seconds : of the processor.
    peak : bytes that its memory grew by at most, file-backed pages included.
    """

    outcome: str
    message: str
    seconds: float
    peak: int


class Isolated:
    """A process that takes one file after another; ended where one takes too long.

    Parameters
    ----------
    seconds : that a file may take, on the clock: longer than on an idle machine.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def cost(self, data: bytes) -> Cost:
        """Send a file through."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(self._seconds, process.kill)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(struct.pack("<q", len(data)) + data)
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            self._end()
            return Cost("killed", "", self._seconds, 0)
        return Cost(**json.loads(line))

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(map(str, (HERE.parents[1], HERE.parent, HERE)))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]
            self._process.wait()
            self._process = None


def memory(key: str) -> int:
    """Return a line of the process's status, such as VmHWM, in bytes."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key))


def forget_peak() -> None:
    """Let the peak of memory (VmHWM) begin anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _serve() -> None:
    from pipeline import outcome, steps
    from seeds import seeds

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for model in seeds().values():
        outcome(model.SerializeToString())
    while header := sys.stdin.buffer.read(8):
        data = sys.stdin.buffer.read(*struct.unpack("<q", header))
        forget_peak()
        before, start = memory("VmRSS"), time.process_time()
        try:
            result, message = steps(data)
        except Exception as error:
            result, message = "escaped", repr(error)[:500]
        seconds, peak = time.process_time() - start, memory("VmHWM") - before
        cost = {"outcome": result, "message": message, "seconds": seconds, "peak": peak}
        print(json.dumps(cost), file=answers)


if __name__ == "__main__":
    _serve()
