# ruff: noqa: PT012, SIM117 - what is held ends where the inner block does
"""Ctrl-C that waits."""

from __future__ import annotations

import os
import signal

import pytest

from onnxjl.interruption import Interruption


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_held_interrupt_comes_at_the_end() -> None:
    done = []
    with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        with interruption.held():
            interrupt()
            done.append("rest of the block")
        done.append("after it")
    assert done == ["rest of the block"]


def test_a_second_one_is_not_held() -> None:
    done = []
    with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        with interruption.held():
            interrupt()
            done.append("first")
            interrupt()
            done.append("second")
    assert done == ["first"]


def test_outside_of_what_is_held_it_comes_at_once() -> None:
    with Interruption(), pytest.raises(KeyboardInterrupt):
        interrupt()


def test_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_where_nobody_handles_it_nothing_changes() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption, interruption.held():
            interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
