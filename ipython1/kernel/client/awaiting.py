"""Waiting for a result without blocking: in asyncio tasks and in Twisted programs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Generator
from typing import Any

from twisted.internet.defer import Deferred

#: Calls a function (quick) in the reactor thread once something is over, or at once where it is.
WhenOver = Callable[[Callable[[], None]], None]


def until_over(when_over: WhenOver) -> Generator[Any, Any, None]:
    """Wait, as a part of `__await__`, in an asyncio task or in a Twisted coroutine."""
    # A Twisted coroutine may run under asyncio's reactor: only a task understands asyncio's futures.
    if _in_asyncio_task():
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        when_over(functools.partial(_wake_asyncio, loop, waiter))
        yield from waiter
    else:
        over: Deferred[None] = Deferred()
        when_over(lambda: over.callback(None))
        yield from over.__await__()


def deferred_result(when_over: WhenOver, read: Callable[[], Any]) -> Deferred[Any]:
    """A Deferred of what `read` returns or raises once it is over."""
    deferred: Deferred[Any] = Deferred()

    def fire() -> None:
        try:
            value = read()
        except Exception:  # noqa: BLE001 -- passed on
            deferred.errback()
        else:
            deferred.callback(value)

    when_over(fire)
    return deferred


def _in_asyncio_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


def _wake_asyncio(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    """Any thread: let the task that waits go on, if its loop still runs."""
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(_wake, waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
