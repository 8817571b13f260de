"""Measure: wall time and memory of steps in this process, with the standard library alone."""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def memory(field: str) -> int:
    """Bytes that are resident: ``VmRSS`` now, ``VmHWM`` at most since the last reset."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def reset_peak() -> None:
    """Let ``VmHWM`` begin anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


class Measurement:
    """Wall time of named steps, and the memory that they take together.

    Made after all imports, so that it counts what the work needs and not what libraries weigh;
    `report` tells both.
    """

    def __init__(self) -> None:
        gc.collect()
        self.steps: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        self._before = memory("VmRSS")
        reset_peak()

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Run and time a step, once, and return what it returns."""
        start = time.perf_counter()
        result = work()
        self.steps[name] = time.perf_counter() - start
        return result

    def repeat(
        self,
        name: str,
        work: Callable[..., Any],
        times: int,
        prepare: Callable[[], tuple[Any, ...]] = tuple,
    ) -> Any:
        """Run a step several times after a warm-up; its time is the median.

        Every run begins alike: what the one before it made is gone. It is given what `prepare`
        makes for it, which isn't timed.
        """
        result = work(*prepare())
        seconds = []
        for _ in range(times):
            del result
            given = prepare()
            gc.collect()
            start = time.perf_counter()
            result = work(*given)
            seconds.append(time.perf_counter() - start)
        self.steps[name] = statistics.median(seconds)
        return result

    def report(self) -> None:
        """Print one line of JSON: seconds of each step, bytes of memory, further facts."""
        peak = memory("VmHWM")
        print(
            json.dumps(
                {
                    "steps": self.steps,
                    "seconds": sum(self.steps.values()),
                    "peak": peak,
                    "increase": peak - self._before,
                    **self.facts,
                }
            )
        )


def stay_on_one_core() -> None:
    """Bind this process to one of its cores, so that libraries can't use the others."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def arguments() -> list[str]:
    """What was given after the script's name."""
    return sys.argv[1:]
