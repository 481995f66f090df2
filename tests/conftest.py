"""Fixtures of the whole test suite.

Every test module gets an `IPYTHON1_DIR` of its own, and a test that leaves an
error in Twisted's log fails, whatever else it found.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from twisted.internet import reactor as _reactor
from twisted.internet.defer import maybeDeferred
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

#: Errors kept for the report of one test, and characters shown of each.
ERRORS_KEPT = 3
TEXT_SHOWN = 4000
#: Seconds that a call into the reactor thread may take.
PATIENCE = 20.0

reactor: Any = _reactor
pytest_plugins = ["tests.workers"]

# No deadline: the machine may be busy. The same examples each time where a failure must mean the change.
settings.register_profile("ipython1", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ipython1")


def keep_out_of_collections() -> None:
    """What is there now stays: spare it the collections of `logged_errors`, which took most of all time."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    """What the imports made."""
    keep_out_of_collections()


@pytest.fixture(scope="session", autouse=True)
def _late_errors() -> Iterator[None]:
    """Fails the last test for errors in what outlived the module of its test."""
    yield
    with log_watched():
        gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _survivors() -> Iterator[None]:
    """What outlives a module, such as what its tests imported."""
    yield
    with log_watched():
        keep_out_of_collections()


@pytest.fixture(scope="module", autouse=True)
def ipython1_dir() -> Iterator[Path]:
    """An empty `IPYTHON1_DIR`, one per test module; short, for Unix sockets have short names."""
    folder = Path(tempfile.mkdtemp(prefix="ip1-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHON1_DIR", os.fspath(folder))
        patch.delenv("IPYTHON1_FURL", raising=False)
        yield folder
    shutil.rmtree(folder)


def failure_of(event: Mapping[str, Any]) -> Failure | None:
    """The failure an event tells of, logged the new way or with `log.err`."""
    return event.get("log_failure") or event.get("failure")


class LoggedErrors:
    """The errors logged during one test; an observer of `twisted.logger`."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[Mapping[str, Any]] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        level = event.get("log_level")
        if failure_of(event) is None:
            if level is None or level < LogLevel.error:
                return
            if event.get("log_namespace") == "twisted.internet.defer":
                return  # the heading of the event that follows it, with the failure
        self.count += 1
        if len(self.kept) < ERRORS_KEPT:
            self.kept.append(event)

    def flush(self, *types: type[BaseException]) -> list[Mapping[str, Any]]:
        """Take out the errors of the given types (all of them, where none is given)."""
        gc.collect()
        taken = []
        for event in self.kept:
            failure = failure_of(event)
            if not types or (failure is not None and failure.check(*types)):
                taken.append(event)
        self.kept = [event for event in self.kept if event not in taken]
        self.count -= len(taken)
        return taken

    def report(self) -> str:
        """What was logged, bounded."""
        texts = []
        for event in self.kept:
            failure = failure_of(event)
            text = formatEvent(event) if failure is None else failure.getTraceback()
            texts.append(text if len(text) <= TEXT_SHOWN else "…" + text[-TEXT_SHOWN:])
        return "\n".join([f"{self.count} error(s) in Twisted's log:", *texts])


@contextlib.contextmanager
def log_watched() -> Iterator[LoggedErrors]:
    """The errors logged meanwhile. Those that nobody did `flush` fail the test."""
    errors = LoggedErrors()
    globalLogPublisher.addObserver(errors)
    try:
        yield errors
        gc.collect()  # a failed Deferred in a reference cycle speaks when it is collected
    finally:
        globalLogPublisher.removeObserver(errors)
    if errors.count:
        pytest.fail(errors.report(), pytrace=False)


@pytest.fixture(autouse=True)
def logged_errors() -> Iterator[LoggedErrors]:
    """The errors the test logs. Those it did not `flush` fail it."""
    with log_watched() as errors:
        yield errors


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
