"""Copying by several threads: every byte, once, at its place."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.wire import copying


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads that were started."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    return started


@given(st.integers(0, 300), st.integers(0, 20), st.booleans(), st.integers(1, 40), st.integers(1, 300))
def test_all_bytes_and_no_others_are_copied(
    size: int, spare: int, numpy: bool, step: int, piece: int
) -> None:
    source = bytes(i % 251 for i in range(size))
    target = bytearray(b"\xff" * (size + spare))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "STEP", step)
        patch.setattr(copying, "SHARE", 10)
        patch.setattr(copying, "_idle_cores", lambda: 3)
        patch.setattr(copying, "PIECE", piece)
        if not numpy:
            patch.delitem(sys.modules, "numpy")
        copying.copy_bytes(memoryview(target), memoryview(source))
    assert target == source + b"\xff" * spare


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=4),
    st.integers(1, 3),
    st.integers(1, 100),
)
def test_arrays_of_any_layout_are_copied(shapes: list[tuple[int, int]], stride: int, piece: int) -> None:
    sources = [np.arange(rows * columns).reshape(rows, columns) for rows, columns in shapes]
    targets = [np.zeros((rows * stride, columns), int)[::stride] for rows, columns in shapes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "SHARE", 10)
        patch.setattr(copying, "_idle_cores", lambda: 3)
        patch.setattr(copying, "PIECE", piece)
        copying.copy_arrays(list(zip(targets, sources, strict=True)))
    for target, source in zip(targets, sources, strict=True):
        np.testing.assert_array_equal(target, source)


def test_threads_help_with_what_is_large_only(
    threads: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_idle_cores", lambda: 3)
    source = np.arange(4 * copying.SHARE, dtype="u1")
    target = np.zeros_like(source)
    copying.copy_bytes(memoryview(target)[: copying.SHARE], memoryview(source)[: copying.SHARE])
    assert threads == []
    copying.copy_bytes(memoryview(target), memoryview(source))
    assert len(threads) == 2  # and this one
    assert not any(thread.is_alive() for thread in threads)
    np.testing.assert_array_equal(target, source)


@pytest.mark.parametrize("number", [1, 0, -20])
def test_where_no_core_is_idle_nobody_helps(
    threads: list[threading.Thread], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(copying, "_idle_cores", lambda: number)
    source = np.arange(4 * copying.SHARE, dtype="u1")
    target = np.zeros_like(source)
    copying.copy_arrays([(target, source)])
    assert threads == []
    np.testing.assert_array_equal(target, source)


def test_idle_cores_are_no_more_than_there_are() -> None:
    assert copying._idle_cores() <= max(1, os.cpu_count() or 1)


def test_where_no_thread_can_be_had_one_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(copying, "_idle_cores", lambda: 4)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    source = np.arange(4 * copying.SHARE, dtype="u1")
    target = np.zeros_like(source)
    copying.copy_arrays([(target, source)])
    np.testing.assert_array_equal(target, source)


def test_after_ctrl_c_nobody_copies(threads: list[threading.Thread], monkeypatch: pytest.MonkeyPatch) -> None:
    work = copying._work

    def interrupted(left: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        work(left)

    monkeypatch.setattr(copying, "_idle_cores", lambda: 2)
    monkeypatch.setattr(copying, "_work", interrupted)
    source = np.zeros(4 * copying.SHARE, "u1")
    with pytest.raises(KeyboardInterrupt):
        copying.copy_bytes(memoryview(np.zeros_like(source)), memoryview(source))
    assert len(threads) == 1
    assert not threads[0].is_alive()
