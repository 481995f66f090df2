"""Fixtures of the tests that run real reactors, sockets and processes."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet import reactor as _reactor
from twisted.internet.defer import maybeDeferred

#: Seconds that a call into the reactor thread may take.
PATIENCE = 20.0

reactor: Any = _reactor


class ReactorThread:
    """The global reactor, which runs once in a process, in a thread of its own."""

    reactor = reactor

    def __init__(self) -> None:
        self._thread = threading.Thread(
            target=reactor.run, kwargs={"installSignalHandlers": False}, name="reactor", daemon=True
        )

    def start(self) -> None:
        """Run the reactor, and return when it runs."""
        running = threading.Event()
        reactor.callWhenRunning(running.set)
        self._thread.start()
        assert running.wait(PATIENCE)

    def stop(self) -> None:
        """End the reactor for good."""
        reactor.callFromThread(reactor.stop)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def call(self, f: Callable[..., Any], *args: Any, timeout: float = PATIENCE, **kwargs: Any) -> Any:
        """What `f` returns in the reactor's thread; where that is a Deferred, its result."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            deferred = maybeDeferred(f, *args, **kwargs)
            deferred.addCallbacks(future.set_result, lambda failure: future.set_exception(failure.value))

        reactor.callFromThread(run)
        return future.result(timeout)


@pytest.fixture(scope="session")
def reactor_thread() -> Iterator[ReactorThread]:
    """The reactor, running in a thread until the tests end; see `ReactorThread.call`."""
    thread = ReactorThread()
    thread.start()
    yield thread
    thread.stop()
