"""The dashboard: what the engines of a cluster do, in a browser.

One page without any network asset, on the loopback interface. It opens with
a token in the address (``/?token=…``), which becomes a cookie; without either
every page but ``/health`` answers 403. The page shows a table that is made
here and fetched again each second.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTCP
from twisted.protocols.policies import WrappingFactory
from twisted.web.http import FORBIDDEN, NOT_FOUND
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

HOST = "127.0.0.1"

#: Attribute of a cell that holds a number.
NUMBER = ' class="n"'
#: Head of the table, and whether the column holds numbers.
COLUMNS = (
    ("id", True),
    ("host", False),
    ("pid", True),
    ("state", False),
    ("CPU", True),
    ("memory", True),
    ("running", False),
    ("for", True),
    ("queue", True),
    ("restarts", True),
)

DENIED = (
    "Open the dashboard with the whole address that ipcluster printed: its token is missing or wrong here."
)
MISSING = "There is no such page; the dashboard has /, /table, /status.json and /health."

#: Everything a page may load comes from the page itself; `{nonce}` is new on each.
POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ipython1 cluster</title>
<noscript><meta http-equiv="refresh" content="2"></noscript>
<style nonce="{nonce}">
:root {{ color-scheme: light dark;
  --ink: #1c1f24; --soft: #626a75; --line: #d9dde3; --page: #fff; --bad: #b3261e; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e4e7eb; --soft: #98a1ad; --line: #353b44; --page: #16181c; --bad: #ff8a80; }}
}}
body {{ margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: var(--ink); background: var(--page);
  font: 15px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.2rem; }}
table {{ width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  text-align: left; white-space: nowrap; }}
th {{ color: var(--soft); font-weight: 500; }}
.n {{ text-align: right; }}
.command {{ max-width: 22rem; overflow: hidden; text-overflow: ellipsis;
  font-family: ui-monospace, monospace; }}
meter {{ width: 4rem; vertical-align: middle; }}
.scroll {{ overflow-x: auto; }}
#lost {{ color: var(--bad); }}
</style>
</head>
<body>
<h1>ipython1 cluster</h1>
<div id="table" class="scroll">{table}</div>
<p id="lost" role="status" hidden>The controller does not answer; what stands above is what it said last.</p>
<script nonce="{nonce}">
"use strict";
if (location.search) history.replaceState(null, "", "/");
const table = document.getElementById("table"), lost = document.getElementById("lost");
async function refresh() {{
  try {{
    const answer = await fetch("/table", {{cache: "no-store"}});
    if (!answer.ok) throw new Error(answer.status);
    table.innerHTML = await answer.text();
    lost.hidden = true;
  }} catch {{
    lost.hidden = false;
  }}
  setTimeout(refresh, 1000);
}}
setTimeout(refresh, 1000);
</script>
</body>
</html>
"""


class StatusSource(Protocol):
    """What the dashboard shows: a controller."""

    def status(self) -> list[dict[str, Any]]:
        """One dict an engine: id, host, pid, state, cpu, rss, running, since, queue, restarts."""


def size(count: float | None) -> str:
    """A number of bytes, readable."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float) -> str:
    """A time span, readable; never negative, for clocks of two hosts differ."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _cells(engine: Mapping[str, Any], now: float) -> Iterable[str]:
    """The cells of one engine's row, as HTML, in the order of `COLUMNS`."""

    def text(name: str) -> str:
        value = engine.get(name)
        return "" if value is None else escape(str(value))

    yield text("id")
    yield text("host")
    yield text("pid")
    yield text("state")
    cpu = engine.get("cpu")
    yield "" if cpu is None else f'{cpu:.0f} % <meter min="0" max="100" value="{min(cpu, 100):.0f}"></meter>'
    yield size(engine.get("rss"))
    yield text("running")
    since = engine.get("since")
    busy = engine.get("running") is not None or engine.get("state") != "ready"
    yield duration(now - since) if since and busy else ""
    yield text("queue")
    yield text("restarts")


def render_table(engines: Iterable[Mapping[str, Any]], now: float) -> str:
    """The table of engines as HTML; every value of theirs is escaped."""
    rows = []
    for engine in engines:
        cells = []
        for (name, is_number), cell in zip(COLUMNS, _cells(engine, now), strict=True):
            kind = NUMBER if is_number else ""
            if name == "running":
                kind = f' class="command" title="{cell}"'
            cells.append(f"<td{kind}>{cell}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    if not rows:
        return "<p>No engines. Start some with: ipcluster scale 4</p>"
    head = "".join(f'<th scope="col"{NUMBER if is_number else ""}>{name}</th>' for name, is_number in COLUMNS)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


class _Answer(Resource):
    """One answer, made when it is asked for."""

    isLeaf = True  # noqa: N815 -- Twisted's name

    def __init__(self, kind: str, make: Callable[[Request], str], code: int | None = None) -> None:
        super().__init__()
        self.kind, self.make, self.code = kind, make, code

    def render_GET(self, request: Request) -> bytes:
        if self.code is not None:
            request.setResponseCode(self.code)
        request.setHeader("content-type", f"{self.kind}; charset=utf-8")
        return self.make(request).encode("utf-8", "backslashreplace")


def _sentence(text: str, code: int | None = None) -> _Answer:
    return _Answer("text/plain", lambda request: text + "\n", code)


class Dashboard(Resource):
    """The pages, behind the token.

    Parameters
    ----------
    controller : StatusSource
        Whose engines are shown.
    token : str
        What must come in the query or in the cookie.
    now : callable
        Seconds since the epoch.
    """

    def __init__(self, controller: StatusSource, token: str, now: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.controller = controller
        self.token = token.encode()
        self.now = now
        self.pages = {
            b"": _Answer("text/html", self._page),
            b"table": _Answer("text/html", self._table),
            b"status.json": _Answer("application/json", self._json),
        }

    def getChild(self, name: bytes, request: Request) -> Resource:
        """The page called `name`, or a sentence why not."""
        request.setHeader("cache-control", "no-store")
        request.setHeader("x-content-type-options", "nosniff")
        request.setHeader("referrer-policy", "no-referrer")
        if name == b"health":
            return _sentence("ok")
        if not self._admitted(request):
            return _sentence(DENIED, FORBIDDEN)
        return self.pages.get(name) or _sentence(MISSING, NOT_FOUND)

    def _admitted(self, request: Request) -> bool:
        """Whether the token is there; one in the query becomes a cookie."""
        # Cookies of one host are shared among its ports, hence the port in the name.
        cookie = f"ipython1-{request.getHost().port}"
        [asked, *more] = request.args.get(b"token", [b""])
        if not more and secrets.compare_digest(asked, self.token):
            request.addCookie(cookie, self.token, path="/", httpOnly=True, sameSite="strict")
            return True
        kept = request.getCookie(cookie.encode())
        return kept is not None and secrets.compare_digest(kept, self.token)

    def _page(self, request: Request) -> str:
        nonce = secrets.token_urlsafe(16)
        request.setHeader("content-security-policy", POLICY.format(nonce=nonce))
        return PAGE.format(nonce=nonce, table=self._table(request))

    def _table(self, request: Request) -> str:
        return render_table(self.controller.status(), self.now())

    def _json(self, request: Request) -> str:
        return json.dumps({"time": self.now(), "engines": self.controller.status()}, default=str)


class _QuietSite(Site):
    """A site that writes no access log: the token stands in the first request's line."""

    noisy = False
    displayTracebacks = False  # noqa: N815 -- Twisted's name

    def log(self, request: Any) -> None:
        """Log nothing."""


def serve_dashboard(
    reactor: IReactorTCP, controller: StatusSource, port: int
) -> Deferred[tuple[str, Callable[[], Deferred[None]]]]:
    """Serve the dashboard of `controller` on the loopback interface.

    Parameters
    ----------
    reactor : IReactorTCP
        Where to listen.
    controller : StatusSource
        Whose ``status()`` is shown.
    port : int
        TCP port; another free one is taken where it is in use, or 0.

    Returns
    -------
    Deferred of (str, callable)
        The address with its token, and a function that ends the service and
        its connections, whose Deferred fires when nothing listens any more.
    """
    return maybeDeferred(_serve, reactor, controller, port)


def _serve(
    reactor: IReactorTCP, controller: StatusSource, port: int
) -> tuple[str, Callable[[], Deferred[None]]]:
    token = secrets.token_urlsafe(24)
    site = _QuietSite(Dashboard(controller, token), reactor=reactor)
    factory: Any = WrappingFactory(site)  # it knows the connections that are open
    factory.noisy = False
    try:
        listening: Any = reactor.listenTCP(port, factory, interface=HOST)
    except CannotListenError:
        listening = reactor.listenTCP(0, factory, interface=HOST)

    def stop() -> Deferred[None]:
        stopped: Deferred[None] = maybeDeferred(listening.stopListening)
        for connection in list(factory.protocols):
            connection.transport.abortConnection()
        return stopped

    return f"http://{HOST}:{listening.getHost().port}/?token={token}", stop
