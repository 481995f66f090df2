"""The chain of callbacks on a result."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_NOTHING = object()


class CallbackChain:
    """Callbacks on a Future, each called with what the one before returned, the first with the result.

    They run in the order they were added, one at a time. Where the Future
    failed none is called. One that raises ends the chain for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[Any], Any]] = deque()
        self._running = False
        self._value: Any = _NOTHING
        self._error: Exception | None = None

    def add(self, callback: Callable[[Any], Any]) -> None:
        """Put a callback at the end."""
        with self._lock:
            self._waiting.append(callback)

    def __bool__(self) -> bool:
        """Whether callbacks wait to be called."""
        return bool(self._waiting)

    def run(self, future: Future[Any]) -> None:
        """Call what waits for `future`, which is done; returns where another thread, or a caller, is at it.

        Raises
        ------
        Exception
            What a callback has raised, now or earlier.
        """
        while True:
            with self._lock:
                if self._running or not self._waiting:
                    return
                callback = self._waiting.popleft()
                self._running = True
            try:
                self._call(callback, future)
            finally:
                with self._lock:
                    self._running = False

    def _call(self, callback: Callable[[Any], Any], future: Future[Any]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        if self._error is not None:
            raise self._error.with_traceback(None)
        try:
            self._value = callback(future.result() if self._value is _NOTHING else self._value)
        except Exception as error:
            self._error = error
            with self._lock:
                self._waiting.clear()
            raise
