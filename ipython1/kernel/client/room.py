"""How much outstanding work a client has: who sends more than that waits."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from ipython1.kernel.client.bridge import IBridge
from ipython1.kernel.error import WouldBlockReactor

#: Bytes of records outstanding. The controller holds them until engines take them.
ROOM = 256 * 1024 * 1024
#: Who waits goes on when less than this is outstanding.
ROOM_AGAIN = ROOM * 3 // 4
#: What a command for an engine, or a task, counts besides its bytes.
OVERHEAD = 1024


class Room:
    """Bytes that are outstanding.

    Parameters
    ----------
    bridge : IBridge
        Waits.
    """

    def __init__(self, bridge: IBridge) -> None:
        self._bridge = bridge
        self._lock = threading.Lock()
        self._used = 0
        self._over = False
        self._waiter: Future[None] | None = None

    @property
    def full(self) -> bool:
        """Whether `wait` would wait."""
        return self._used >= ROOM and not self._over

    def wait(self) -> None:
        """Return as soon as there is room; any thread that holds no lock the reactor thread may want.

        Nobody waits in the reactor thread: the controller has a limit of its own.
        """
        while True:
            with self._lock:
                if not self.full:
                    return
                waiter = self._waiter = self._waiter or Future()
            try:
                self._bridge.wait(waiter, None)
            except WouldBlockReactor:
                return

    def take(self, size: int, wait: bool = True) -> None:
        """Count what is going to be sent; any thread. See `wait`."""
        if wait:
            self.wait()
        with self._lock:
            self._used += size

    def free(self, size: int) -> None:
        """So much is not outstanding any more; the reactor thread."""
        with self._lock:
            self._used -= size
            self._let_in()

    def end(self) -> None:
        """Nothing is sent any more: nobody waits."""
        with self._lock:
            self._over = True
            self._let_in()

    def _let_in(self) -> None:
        if self._waiter is not None and (self._over or self._used < ROOM_AGAIN):
            waiter, self._waiter = self._waiter, None
            waiter.set_result(None)
