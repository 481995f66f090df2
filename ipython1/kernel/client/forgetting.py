"""Telling engines which results this client has, so that they need not be kept for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ipython1.kernel.wire.records import BlobRef, Forget, Record, Result

#: Results may be told as received together: after so many seconds, or so many of them. So soon that the
#: controller has not acknowledged them yet, and need not do so by itself.
FORGET_DELAY = 0.01
FORGET_COUNT = 200
#: Of these records, the last ones: they may be lost with a controller.
FORGETS_KEPT = 50


class Forgetting:
    """What has been received and is to be told; reactor thread only.

    Parameters
    ----------
    clock : IReactorTime
    client_id : str
        Only results of this client's commands are told: another client says itself what it has.
    send : callable
        Sends a record.
    """

    def __init__(self, clock: Any, client_id: str, send: Callable[[Record], None]) -> None:
        self._clock = clock
        self._client_id = client_id
        self._send = send
        self._planned: dict[int, list[str]] = {}  # by engine
        self._sent: deque[Forget] = deque(maxlen=FORGETS_KEPT)
        self._call: Any = None

    def plan(self, result: Result) -> None:
        """`result` is here: say so soon, and where it is large now."""
        if result.id.partition("-")[0] != self._client_id:
            return
        ids = self._planned.setdefault(result.engine, [])
        ids.append(result.id)
        if BlobRef in map(type, result.parts) or len(ids) >= FORGET_COUNT:
            self.flush()
        elif self._call is None:
            self._call = self._clock.callLater(FORGET_DELAY, self.flush)

    def flush(self) -> None:
        """Say what is planned."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        planned, self._planned = self._planned, {}
        together: dict[tuple[str, ...], list[int]] = {}  # a broadcast is the same ids of very many
        for engine, ids in planned.items():
            together.setdefault(tuple(ids), []).append(engine)
        for of, targets in together.items():
            forget = Forget(of, tuple(targets))
            self._sent.append(forget)
            self._send(forget)

    def send_again(self) -> None:
        """To a new controller: the one before may not have passed it on."""
        for forget in self._sent:
            self._send(forget)

    def stop(self) -> None:
        """Say nothing by itself any more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
