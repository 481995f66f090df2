"""Questions to the controller itself, and its answers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ipython1.kernel.error import ConnectionFailed
from ipython1.kernel.wire.codec import decode_failure, unpack
from ipython1.kernel.wire.records import Answer, Ask, Record

#: Questions that are orders: not asked again of a new controller, which may obey a second time.
ORDERS = frozenset({"signal", "restart", "kill"})


class Questions:
    """The questions that are open; reactor thread only.

    Parameters
    ----------
    send : callable
        Sends a record.
    """

    def __init__(self, send: Callable[[Record], None]) -> None:
        self._send = send
        self._open: dict[str, tuple[Ask, Future[Any]]] = {}

    def ask(self, ask: Ask, future: Future[Any]) -> None:
        """Send a question; `future` gets the answer."""
        self._open[ask.id] = (ask, future)
        self._send(ask)

    def answered(self, answer: Answer) -> None:
        """Take an answer."""
        ask, future = self._open.pop(answer.id, (None, None))
        if ask is None or future is None:
            return
        if answer.ok:
            future.set_result(unpack(answer.body))
        else:
            future.set_exception(decode_failure(answer.body, -1, ask.what).exception())

    def ask_again(self, address: str) -> None:
        """Ask the new controller at `address`, except for what the one before may have done."""
        for ask, future in list(self._open.values()):
            if ask.what in ORDERS:
                del self._open[ask.id]
                reason = f"it was restarted before it answered {ask.what!r}"
                future.set_exception(ConnectionFailed(address=address, reason=reason))
            else:
                self._send(ask)

    def fail(self, error: Exception) -> None:
        """No answer will come any more."""
        for _, future in self._open.values():
            future.set_exception(error)
        self._open.clear()
