"""Server-sent events: one look at the controller serves all who watch.

Who reads too slowly is sent nothing until there is room again, and then the
whole state as it is by then: nothing piles up here.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from ipython1.web.overview import Changes, Overview, State

#: Seconds between two looks.
TICK = 0.5
#: Seconds after which a browser that was cut off tries again, in milliseconds.
RETRY = 1000
#: Seconds between two whole states for one who reads slowly: they are large.
CATCH_UP = 5.0
#: Who can watch at a time.
WATCHERS = 32


def encoded(state: State) -> bytes:
    """JSON, on one line."""
    return json.dumps(state, separators=(",", ":"), default=str).encode()


def message(event: str, state: State) -> bytes:
    """One server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), encoded(state))


@implementer(IPushProducer)
class Watcher:
    """One stream; knows whether its reader keeps up."""

    def __init__(self, request: Request, may_act: bool) -> None:
        self.request = request
        self.may_act = may_act
        self.paused = False
        self.behind = True  # it needs the whole state
        self.not_before = 0.0  # ... and gets it from this time on

    def pauseProducing(self) -> None:
        """Called by the transport: what was sent is not read yet."""
        self.paused = True

    def resumeProducing(self) -> None:
        """Called by the transport: there is room."""
        self.paused = False

    def stopProducing(self) -> None:
        """Called by the transport: the connection is gone; so is the request, which says so."""
        self.paused = True


class Broadcast:
    """Looks at the controller as long as somebody watches.

    Parameters
    ----------
    clock : IReactorTime
    overview : Overview
    """

    def __init__(self, clock: Any, overview: Overview) -> None:
        self._clock = clock
        self._overview = overview
        self._changes = Changes(overview)
        self._watchers: list[Watcher] = []
        self._call: Any = None

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    def add(self, request: Request, may_act: bool) -> None:
        """Somebody watches, until the request ends."""
        watcher = Watcher(request, may_act)
        request.notifyFinish().addBoth(lambda _: self._remove(watcher))
        request.registerProducer(watcher, True)
        request.write(b"retry: %d\n\n" % RETRY)
        self._watchers.append(watcher)
        self._watch_output()
        self.soon()

    def soon(self) -> None:
        """Look now, not at the next tick: something was done that is to be seen."""
        if self._watchers:
            self.stop()
            self._call = self._clock.callLater(0, self._tick)

    def stop(self) -> None:
        """End the timer."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _remove(self, watcher: Watcher) -> None:
        self._watchers.remove(watcher)
        self._watch_output()
        if not self._watchers:
            self.stop()

    def _watch_output(self) -> None:
        watched = any(watcher.may_act for watcher in self._watchers)
        if watched != self._overview.controller.output.watched:
            self._overview.controller.output.watched = watched

    def _tick(self) -> None:
        self._call = self._clock.callLater(TICK, self._tick)
        change, now = self._changes.look(), self._clock.seconds()
        messages: dict[tuple[bool, bool], bytes] = {}  # each made once, however many take it
        for watcher in self._watchers:
            watcher.behind = watcher.behind or watcher.paused
            if watcher.paused or (watcher.behind and now < watcher.not_before):
                continue
            if watcher.behind:
                watcher.not_before = now + CATCH_UP
            kind = watcher.behind, watcher.may_act
            if kind not in messages:
                messages[kind] = self._message(change, *kind)
            watcher.behind = False
            watcher.request.write(messages[kind])

    def _message(self, change: State, behind: bool, may_act: bool) -> bytes:
        if behind:
            return message("state", self._changes.full(may_act))
        if not may_act:
            change = {name: value for name, value in change.items() if name != "output"}
        return message("change", change)


class Events(Resource):
    """The stream of one who watches."""

    isLeaf = True  # noqa: N815 -- Twisted's name

    def __init__(self, broadcast: Broadcast, may_act: bool) -> None:
        super().__init__()
        self._broadcast = broadcast
        self._may_act = may_act

    def render_GET(self, request: Request) -> int | bytes:
        """Begin the stream."""
        if self._broadcast.watchers >= WATCHERS:
            request.setResponseCode(503)
            return b"So many watch already that no more can.\n"
        request.setHeader("content-type", "text/event-stream; charset=utf-8")
        self._broadcast.add(request, self._may_act)
        return NOT_DONE_YET
