"""Between the user's threads and the reactor thread.

The only module of the client that touches the global reactor. A process has
one bridge, made at the first `get_bridge` and never at import. Where the
reactor runs already, as in a Twisted program, it is used and never stopped;
else it runs in a daemon thread until the interpreter exits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import importlib
import logging
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from twisted.logger import Logger
from twisted.python import threadable

from ipython1.kernel.error import ClientClosed, ClientForked, WouldBlockReactor

#: Seconds that the threads have to end at interpreter exit.
EXIT_GRACE = 3.0
#: Seconds that the reactor has to start.
START_GRACE = 30.0

_log = Logger()
_user_log = logging.getLogger("ipython1.callbacks")
#: The process that made the reactor, as far as we can know.
_imported_by = os.getpid()
#: This process. Asked for with each command, where a system call would be dear.
_pid = os.getpid()


class IBridge(Protocol):
    """What a client needs between its user's threads and its reactor.

    `ReactorBridge` is the real one; `ipython1.kernel.testing` has one for a
    single thread. All methods may be called in any thread.
    """

    def submit(self, f: Callable[..., Any], *args: Any) -> None:
        """Call ``f(*args)`` in the reactor thread, soon, in the order of submission. Never waits."""

    def wait(self, future: concurrent.futures.Future[Any], timeout: float | None) -> None:
        """Block this thread until `future` is done, whatever came of it.

        Raises
        ------
        TimeoutError
            It is not done after `timeout` seconds (None: no limit).
        WouldBlockReactor
            This is the reactor thread.
        ClientForked, ClientClosed
            It can never be done, see `check`.
        """

    def call_user(self, f: Callable[..., Any], *args: Any) -> None:
        """Call ``f(*args)`` in the order of calls, in a thread where it may block. Never waits."""

    def check(self) -> None:
        """Raise `ClientForked` in a forked child, `ClientClosed` where the reactor has ended."""


class ReactorBridge:
    """The bridge to a Twisted reactor, which it starts unless it runs.

    Parameters
    ----------
    reactor : IReactorThreads and IReactorCore
        Where the network side of clients runs.
    """

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self._pid = _pid
        self._lock = threading.RLock()  # a client that is collected meanwhile closes itself
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._waking = False
        self._user_calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._user_thread: threading.Thread | None = None
        #: Done when the reactor has ended; whoever waits for anything waits for this too.
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._over = False
        self._thread: threading.Thread | None = None
        if _is_running(reactor):
            reactor.callFromThread(reactor.addSystemEventTrigger, "after", "shutdown", self._end)
        else:
            self._start()
        # Finalizers run in reverse order, and after later atexit functions: clients close before this.
        weakref.finalize(self, self._exit)

    # -- IBridge -------------------------------------------------------------------------

    def submit(self, f: Callable[..., Any], *args: Any) -> None:
        self.check()
        with self._lock:
            self._calls.append((f, args))
            wake = not self._waking
            self._waking = True
        if wake:
            self.reactor.callFromThread(self._run_calls)

    def wait(self, future: concurrent.futures.Future[Any], timeout: float | None) -> None:
        if future.done():
            return
        self.check()
        if self.in_reactor_thread():
            raise WouldBlockReactor()
        concurrent.futures.wait((future, self._ended), timeout, concurrent.futures.FIRST_COMPLETED)
        if not future.done():
            self.check()
            raise TimeoutError(f"no result within {timeout:g} s; the work goes on")

    def call_user(self, f: Callable[..., Any], *args: Any) -> None:
        self._check_process()
        self._user_calls.put((f, args))
        with self._lock:
            if self._user_thread is None:
                self._user_thread = threading.Thread(
                    target=self._run_user_calls, name="ipython1-callbacks", daemon=True
                )
                self._user_thread.start()

    def check(self) -> None:
        self._check_process()
        if self._over:
            raise ClientClosed("The Twisted reactor of this process has stopped, and its clients with it.")

    def _check_process(self) -> None:
        if _pid != self._pid:
            raise ClientForked(pid=self._pid)

    # -- the rest --------------------------------------------------------------------------

    def in_reactor_thread(self) -> bool:
        """Whether the caller runs in the reactor thread."""
        return bool(threadable.isInIOThread())

    def _start(self) -> None:
        """Run the reactor in a thread of its own; returns when it runs."""
        running: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                self.reactor.run(installSignalHandlers=False)
            except BaseException as error:
                if running.done():
                    raise
                running.set_exception(error)
            finally:
                self._end()

        # A worker thread of the reactor that waits for work must not keep the interpreter from exiting.
        self.reactor.getThreadPool().threadFactory = functools.partial(threading.Thread, daemon=True)
        self.reactor.callWhenRunning(running.set_result, None)
        self._thread = threading.Thread(target=run, name="ipython1-reactor", daemon=True)
        self._thread.start()
        try:
            running.result(START_GRACE)
        except Exception as error:
            raise ClientClosed(
                f"The Twisted reactor of this process cannot be started ({error!r})."
            ) from error

    def _run_calls(self) -> None:
        with self._lock:
            self._waking = False
            count = len(self._calls)
        for _ in range(count):
            f, args = self._calls.popleft()
            try:
                f(*args)
            except Exception:  # noqa: BLE001 -- one failing call must not take the others along
                _log.failure("a call into the reactor failed")

    def _run_user_calls(self) -> None:
        while (call := self._user_calls.get()) is not None:
            f, args = call
            try:
                f(*args)
            except BaseException:  # noqa: BLE001 -- user code; not even sys.exit() may end the callbacks of others
                _user_log.exception("exception in the callback %r", f)
            del call, f, args  # or they live until the next call

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._ended.set_result(None)

    def _exit(self) -> None:
        """At exit, when only daemon threads are left besides the main thread."""
        if _pid != self._pid:
            return
        if self._user_thread is not None:
            self._user_calls.put(None)
            self._user_thread.join(EXIT_GRACE)
        if self._thread is not None and not self._over:
            self.reactor.callFromThread(self.reactor.stop)
            self._thread.join(EXIT_GRACE)


def _is_running(reactor: Any) -> bool:
    """Whether somebody else runs `reactor`.

    The asyncio reactor is also running where its event loop is, though nobody
    has told the reactor so.
    """
    if reactor.running:
        return True
    loop = getattr(reactor, "_asyncioEventloop", None)
    if loop is None or not loop.is_running():
        return False
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if here:
        reactor.startRunning(installSignalHandlers=False)
    else:
        reactor.callFromThread(reactor.startRunning, installSignalHandlers=False)
    return True


_bridge: ReactorBridge | None = None
_bridge_lock = threading.Lock()


def get_bridge() -> ReactorBridge:
    """The bridge of this process; starts the reactor where nobody else has.

    Raises
    ------
    ClientForked
        The bridge belongs to the process this one was forked from.
    ClientClosed
        The reactor has stopped; it cannot be started again.
    """
    global _bridge
    with _bridge_lock:
        if _bridge is None:
            _bridge = ReactorBridge(_global_reactor())
        _bridge.check()
        return _bridge


def _global_reactor() -> Any:
    reactor: Any = importlib.import_module("twisted.internet.reactor")
    if os.getpid() != _imported_by and not _is_running(reactor):
        # It was made before a fork, and its epoll descriptor and waker are shared with the parent.
        reactor.__init__()
    return reactor


def _begin_child() -> None:
    """In a forked child: another thread of the parent may have held the lock."""
    global _bridge_lock, _pid
    _bridge_lock = threading.Lock()
    _pid = os.getpid()


os.register_at_fork(after_in_child=_begin_child)
