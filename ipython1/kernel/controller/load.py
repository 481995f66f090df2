"""How much work that has not ended the controller may hold."""

from __future__ import annotations

from typing import Any

from ipython1.kernel.error import QueueFull, RemoteFailure

#: Bytes, all clients together.
QUEUE_LIMIT = 1024 * 1024 * 1024
#: What a command for an engine, or a task, counts besides its bytes.
OVERHEAD = 1024


class Load:
    """Bytes of work that is held.

    Parameters
    ----------
    limit : int
        How many there may be.
    """

    def __init__(self, limit: int = QUEUE_LIMIT) -> None:
        self.limit = limit
        self.used = 0

    def admits(self, size: int) -> bool:
        """Whether there is room for so many more."""
        return self.used + size <= self.limit

    def refusal(self) -> RemoteFailure:
        """What is said where there is none."""
        facts: dict[str, Any] = {"limit": self.limit >> 20}
        return RemoteFailure("QueueFull", str(QueueFull(**facts)), facts=facts)
