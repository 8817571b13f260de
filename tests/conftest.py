"""Options and profiles of the whole suite.

``pytest`` runs what a developer waits for, ``pytest --slow`` all there is. With
``--hypothesis-profile ci`` the property tests draw more examples.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

import flux_support
import pytest
from hypothesis import HealthCheck, settings

# What a shell starts in the background ignores Ctrl-C, and so do its children, which tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Measurements of this machine are the user's; tests make their own, once for each process.
os.environ["ONNXJL_CACHE"] = tempfile.mkdtemp(prefix="onnxjl-")
atexit.register(shutil.rmtree, os.environ["ONNXJL_CACHE"], ignore_errors=True)

SLOW = pytest.StashKey[int]()

# Examples are whole networks: they take their time, and the same ones are drawn each time.
settings.register_profile(
    "default",
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("ci", settings.get_profile("default"), max_examples=40)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--slow``."""
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests unless they are asked for."""
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.stash[SLOW] = len(slow)
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Name the Julia that a test is about to start."""
    if flux_support.needs_julia.mark in item.iter_markers("skipif"):
        flux_support.name_julia()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what was left out."""
    left_out = terminalreporter.config.stash.get(SLOW, 0)
    if left_out:
        terminalreporter.write_line(f"{left_out} slow tests left out; --slow runs them")
