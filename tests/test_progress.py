"""progress: drawn for people who wait, and for nobody else."""

from __future__ import annotations

import io
import time

import pytest

from onnxjl.progress import Progress, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def wait_for(stream, text):
    deadline = time.monotonic() + 10
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.01)


def test_steps_are_drawn_and_wiped():
    stream = Terminal()
    with Progress("pruning", total=4, stream=stream, delay=0.0) as bar:
        bar.step("reading")
        wait_for(stream, "0/4 pruning: reading (0 s)")
        bar.step("cutting")
        wait_for(stream, f"[{'#' * 6}{' ' * 18}] 1/4 pruning: cutting")
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_notebook_gets_spaces_over_what_was_longer():
    # Notebooks' streams are no terminals, and know no sequence that erases a line.
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    with Progress("pruning", stream=stream, delay=0.0) as bar:
        bar.step("a long note")
        wait_for(stream, "pruning: a long note (0 s)")
        bar.step("cut")
        wait_for(stream, "1 pruning: cut (0 s)      \r")
    assert stream.getvalue().endswith("\r" + " " * len("1 pruning: cut (0 s)") + "\r\x1b[K")


def test_only_the_innermost_is_drawn_after_the_text_of_the_outer():
    stream = Terminal()
    with Progress("pruning", stream=stream, delay=0.0):
        for element in progress([1, 2], "batches", stream=stream, delay=0.0):
            wait_for(stream, f"{element - 1}/2 pruning – batches")


@pytest.mark.parametrize(("stream", "delay"), [(io.StringIO(), 0.0), (Terminal(), 60.0)])
def test_nothing_is_drawn_without_a_terminal_or_for_quick_work(stream, delay):
    assert list(progress(iter("abc"), "letters", stream=stream, delay=delay)) == ["a", "b", "c"]
    time.sleep(0.05)
    assert stream.getvalue() == ""


def test_a_terminal_that_goes_away_does_not_end_the_work():
    stream = Terminal()
    with Progress("pruning", stream=stream, delay=0.0) as bar:
        wait_for(stream, "pruning")
        stream.close()
        bar.step("on")
    with Progress("pruning", stream=Terminal(), delay=0.0):
        pass


def test_an_error_inside_wipes_the_line_and_passes_on():
    stream = Terminal()

    def work():
        with Progress("pruning", stream=stream, delay=0.0):
            wait_for(stream, "pruning")
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert stream.getvalue().endswith("\r\x1b[K")
