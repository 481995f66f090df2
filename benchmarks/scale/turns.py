"""The time of a simulation: as the reactor keeps it, and moved by hand."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from twisted.internet.base import DelayedCall


class Turns:
    """An `IReactorTime` whose calls cost what they do in a reactor. (``task.Clock`` sorts all for each.)"""

    def __init__(self) -> None:
        self._now = 0.0
        self._calls: list[DelayedCall] = []

    def seconds(self) -> float:
        """The time."""
        return self._now

    def callLater(self, delay: float, f: Callable[..., Any], *args: Any, **kwargs: Any) -> DelayedCall:
        """See `IReactorTime`."""
        call = DelayedCall(self._now + delay, f, args, kwargs, _nothing, _nothing, self.seconds)
        heapq.heappush(self._calls, call)
        return call

    def pass_time(self, seconds: float = 0.0) -> None:
        """Do what is due until then, and what that makes due."""
        end = self._now + seconds
        while self._calls and self._calls[0].time <= end:
            call = heapq.heappop(self._calls)
            if call.cancelled:
                continue
            if call.delayed_time > 0:
                call.activate_delay()
                heapq.heappush(self._calls, call)
                continue
            self._now = max(self._now, call.time)
            call.called = 1
            call.func(*call.args, **call.kw)
        self._now = end


def _nothing(call: DelayedCall) -> None:
    """The reactor would count it."""
