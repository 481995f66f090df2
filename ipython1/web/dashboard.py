"""The dashboard: what the engines of a cluster do, in a browser.

A page, its files and its data, on the loopback interface. It opens with a
token in the address (``/?token=…``), which becomes a cookie; without one every
page but ``/health`` answers 403.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.protocols.policies import WrappingFactory
from twisted.web.http import BAD_REQUEST, CONFLICT, FORBIDDEN, NOT_ALLOWED, NOT_FOUND
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from ipython1.kernel.controller.service import Controller
from ipython1.kernel.error import IPython1Error
from ipython1.web.events import Broadcast, Events, encoded
from ipython1.web.guard import Guard, Right
from ipython1.web.metrics import render_metrics
from ipython1.web.overview import Overview

HOST = "127.0.0.1"
#: Twisted has no name for this one.
MISDIRECTED_REQUEST = 421
#: Connections at a time, and bytes of what one sends with a request.
CONNECTIONS = 256
BODY_LIMIT = 64 * 1024

#: The files of the page, and what they are.
FILES: Mapping[str, str] = {
    "index.html": "text/html",
    "dashboard.css": "text/css",
    "main.js": "text/javascript",
    "engines.js": "text/javascript",
    "charts.js": "text/javascript",
    "timeline.js": "text/javascript",
    "format.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
PAGES = ("/state.json", "/events", "/metrics", "/health")
#: What may be done to engines, each with a POST.
ACTIONS = ("interrupt", "restart")

DENIED = (
    "Open the dashboard with the whole address that ipcluster printed: its token is missing or wrong here."
)
MISDIRECTED = "The dashboard is at 127.0.0.1 or localhost only; open it under one of these names."
MISSING = f"There is no such page; the dashboard has {', '.join(('/', *PAGES))}."
LOOK_ONLY = "This address may look, not act; or the request comes from another page than the dashboard."
READ_ONLY = "This page can be read, nothing else."
BAD_BODY = 'Send {"engines": [0, 1]}, ids of engines.'

#: Everything a page loads comes from here, and nothing in it runs but its own files.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class _Answer(Resource):
    """One answer, made when it is asked for."""

    isLeaf = True  # noqa: N815 -- Twisted's name

    def __init__(self, kind: str, make: Callable[[], bytes], code: int | None = None) -> None:
        super().__init__()
        self.kind, self.make, self.code = kind, make, code

    def render(self, request: Request) -> bytes:
        """Answer, whatever the method: who may send what was decided before."""
        if self.code is not None:
            request.setResponseCode(self.code)
        request.setHeader("content-type", f"{self.kind}; charset=utf-8")
        return self.make()


def _sentence(text: str, code: int | None = None) -> _Answer:
    return _Answer("text/plain", lambda: f"{text}\n".encode(), code)


class _Action(Resource):
    """Something done to engines, for those who may."""

    isLeaf = True  # noqa: N815 -- Twisted's name

    def __init__(self, act: Callable[[list[int]], None]) -> None:
        super().__init__()
        self.act = act

    def render_POST(self, request: Request) -> bytes:
        try:
            ids = json.loads(request.content.read())["engines"]  # type: ignore[union-attr]
            if not isinstance(ids, list) or not all(type(id) is int for id in ids):
                raise TypeError("engines must be ids")
        except (KeyError, TypeError, ValueError, RecursionError):
            return _sentence(BAD_BODY, BAD_REQUEST).render(request)
        try:
            self.act(ids)
        except IPython1Error as error:
            return _sentence(str(error), CONFLICT).render(request)
        return _sentence("done").render(request)


class Dashboard(Resource):
    """The pages, behind the guard.

    Parameters
    ----------
    overview : Overview
        What is shown.
    broadcast : Broadcast
        Who watches.
    guard : Guard
        Who may.
    """

    def __init__(self, overview: Overview, broadcast: Broadcast, guard: Guard) -> None:
        super().__init__()
        self.guard = guard
        self._overview = overview
        self._broadcast = broadcast
        folder = files("ipython1.web") / "static"
        self._files = {name: (folder / name).read_bytes() for name in FILES}

    def getChild(self, name: bytes, request: Request) -> Resource:
        """The page called `name`, or a sentence why not."""
        for header, value in HEADERS.items():
            request.setHeader(header, value)
        if name == b"health":
            return _sentence("ok")
        if not self.guard.called_rightly(request):
            return _sentence(MISDIRECTED, MISDIRECTED_REQUEST)
        right = self.guard.right(request)
        if right is None:
            return _sentence(DENIED, FORBIDDEN)
        page = name.decode("ascii", "replace")
        if page in ACTIONS:
            if request.method != b"POST" or not self.guard.may_act(request):
                return _sentence(LOOK_ONLY, FORBIDDEN)
            return _Action(self._interrupt if page == "interrupt" else self._restart)
        if request.method not in (b"GET", b"HEAD"):
            return _sentence(READ_ONLY, NOT_ALLOWED)
        return self._page(page, right) or _sentence(MISSING, NOT_FOUND)

    def _page(self, name: str, right: Right) -> Resource | None:
        name = name or "index.html"
        if name in FILES:
            return _Answer(FILES[name], lambda: self._files[name])
        may_act = right == "act"
        if name == "events":
            return Events(self._broadcast, may_act)
        if name == "state.json":
            return _Answer("application/json", lambda: encoded(self._overview.state(may_act)))
        if name == "metrics":
            watchers = self._broadcast.watchers
            kind = "text/plain; version=0.0.4"
            return _Answer(kind, lambda: render_metrics(self._overview, watchers).encode())
        return None

    def _interrupt(self, ids: list[int]) -> None:
        self._overview.controller.interrupt(ids)
        self._broadcast.soon()

    def _restart(self, ids: list[int]) -> None:
        self._overview.controller.questions.restart({"targets": ids})
        self._broadcast.soon()


class _Request(Request):
    """A request that brings no more with it than it needs."""

    def gotLength(self, length: int | None) -> None:
        """Called with the length of the body, None where that is not said."""
        super().gotLength(length)
        if length is None or length > BODY_LIMIT:
            transport: Any = self.channel.transport
            transport.abortConnection()


class _QuietSite(Site):
    """A site that writes no access log: the token stands in the first request's line."""

    noisy = False
    displayTracebacks = False  # noqa: N815 -- Twisted's name

    def log(self, request: Any) -> None:
        """Log nothing."""


class _Connections(WrappingFactory):
    """Knows the connections that are open, and has no more than `CONNECTIONS`."""

    noisy = False

    def buildProtocol(self, addr: Any) -> Any:
        """Take a connection, or None to turn it away."""
        return super().buildProtocol(addr) if len(self.protocols) < CONNECTIONS else None


class Served(NamedTuple):
    """A dashboard that is served."""

    url: str  # with the token of those who may act
    look: str  # ... of those who may look
    #: Ends the service and its connections; its Deferred fires when nothing listens any more.
    stop: Callable[[], Deferred[None]]


def serve_dashboard(
    reactor: Any, controller: Controller, port: int, furls: Mapping[str, str], cluster: str = ""
) -> Deferred[Served]:
    """Serve the dashboard of `controller` on the loopback interface.

    Parameters
    ----------
    reactor : IReactorTCP, IReactorTime
        Where to listen.
    controller : Controller
        What is shown.
    port : int
        TCP port; another free one is taken where it is in use, or 0.
    furls : mapping
        The FURLs by kind, from which the tokens are made.
    cluster : str
        What it is called.
    """
    return maybeDeferred(_serve, reactor, controller, port, furls, cluster)


def _serve(reactor: Any, controller: Controller, port: int, furls: Mapping[str, str], cluster: str) -> Served:
    overview, guard = Overview(controller, cluster), Guard(furls)
    broadcast = Broadcast(reactor, overview)
    site = _QuietSite(Dashboard(overview, broadcast, guard), requestFactory=_Request, reactor=reactor)
    factory: Any = _Connections(site)
    try:
        listening: Any = reactor.listenTCP(port, factory, interface=HOST)
    except CannotListenError:
        listening = reactor.listenTCP(0, factory, interface=HOST)

    def stop() -> Deferred[None]:
        stopped: Deferred[None] = maybeDeferred(listening.stopListening)
        for connection in list(factory.protocols):
            connection.transport.abortConnection()
        broadcast.stop()
        return stopped

    address = f"http://{HOST}:{listening.getHost().port}/?token="
    return Served(address + guard.tokens["act"], address + guard.tokens["look"], stop)
