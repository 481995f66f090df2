"""The dashboard's pages, rights, events and metrics, over an in-memory transport."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

import ipython1.web
from ipython1.kernel.controller.service import Controller
from ipython1.kernel.wire.records import Event
from ipython1.web import dashboard
from ipython1.web.dashboard import BAD_BODY, DENIED, FILES, LOOK_ONLY, MISDIRECTED, serve_dashboard
from ipython1.web.events import CATCH_UP, TICK, WATCHERS
from ipython1.web.guard import token_of
from tests.dashboards import FURLS, Books

STATIC = Path(ipython1.web.__file__).parent / "static"
GUARDED = ["/", "/main.js", "/state.json", "/events", "/metrics", "/interrupt", "/nothing"]
EVIL = "<script>alert(1)</script>\"' onclick=x &amp;"


class Reactor(MemoryReactorClock):
    """A reactor whose ports may be in use; port 0 becomes 40000."""

    def __init__(self, used: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.used = used

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        if port in self.used:
            raise CannotListenError(interface, port, OSError("in use"))
        listening = super().listenTCP(port, factory, backlog, interface)
        listening.getHost = lambda: IPv4Address("TCP", interface, port or 40_000)
        return listening


class Answer:
    """A parsed HTTP answer."""

    def __init__(self, raw: bytes) -> None:
        head, _, body = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.code = int(lines[0].split()[1])
        self.headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
        if self.headers.get("transfer-encoding") == "chunked":
            body = b"".join(re.split(rb"(?:^|\r\n)[0-9a-f]+\r\n", body)).removesuffix(b"\r\n\r\n")
        self.text = body.decode()

    def json(self) -> Any:
        return json.loads(self.text)


class Stream:
    """The events of one who watches."""

    def __init__(self, protocol: Any, transport: StringTransport) -> None:
        self.protocol, self.transport = protocol, transport

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """What has come since."""
        text = Answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + self.raw()).text
        return [(kind, json.loads(data)) for kind, data in re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)]

    def raw(self) -> bytes:
        raw = self.transport.value()
        self.transport.clear()
        return raw.partition(b"\r\n\r\n")[2] if raw.startswith(b"HTTP") else raw

    def close(self) -> None:
        """The browser is gone."""
        self.protocol.connectionLost(Failure(ConnectionDone()))


class Browser:
    """Asks a dashboard that is served through a memory reactor."""

    def __init__(self, port: int = 10106, used: tuple[int, ...] = (), n: int = 2) -> None:
        self.reactor = Reactor(used)
        self.reactor.advance(1_700_000_000.0)
        self.controller = Controller(self.reactor, now=self.reactor.seconds)
        self.books = Books(self.controller, n, self.reactor.seconds)
        found: list[Any] = []
        serve_dashboard(self.reactor, self.controller, port, FURLS, "mine").addCallback(found.append)
        [self.served] = found
        self.act, self.look = (url.partition("?token=")[2] for url in self.served[:2])

    def connect(self) -> tuple[Any, StringTransport]:
        factory: Any
        port, factory, *_ = self.reactor.tcpServers[-1]
        transport = StringTransport(hostAddress=IPv4Address("TCP", "127.0.0.1", port))
        protocol = factory.buildProtocol(transport.getPeer())
        if protocol is not None:
            protocol.makeConnection(transport)
        return protocol, transport

    def ask(self, path: str, method: str = "GET", body: str = "", **headers: str) -> StringTransport:
        protocol, transport = self.connect()
        headers = {"Host": "127.0.0.1:10106", "Content-Length": str(len(body)), **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
        protocol.dataReceived("\r\n".join([*lines, "", body]).encode())
        self.protocol = protocol
        return transport

    def get(self, path: str, method: str = "GET", body: str = "", **headers: str) -> Answer:
        return Answer(self.ask(path, method, body, Connection="close", **headers).value())

    def post(self, action: str, ids: Any, **headers: str) -> Answer:
        headers = {"Cookie": f"ipython1-10106={self.act}", "Origin": "http://127.0.0.1:10106", **headers}
        return self.get(f"/{action}", "POST", json.dumps({"engines": ids}), **headers)

    def watch(self, token: str) -> Stream:
        stream = Stream(None, self.ask(f"/events?token={token}"))
        stream.protocol = self.protocol
        self.reactor.advance(0)
        return stream


@pytest.fixture
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.served.stop()
    browser.controller.stop()


# -- where it is, and its tokens ---------------------------------------------------------


def test_it_listens_on_loopback_only(browser: Browser) -> None:
    [(port, _, _, interface)] = browser.reactor.tcpServers
    assert (port, interface) == (10106, "127.0.0.1")
    assert re.fullmatch(r"http://127\.0\.0\.1:10106/\?token=[\w-]{32}", browser.served.url)


def test_a_used_port_gives_another_one() -> None:
    assert Browser(used=(10106,)).served.url.startswith("http://127.0.0.1:40000/?token=")


def test_the_failure_to_listen_at_all_is_told() -> None:
    failed: list[Any] = []
    reactor = Reactor(used=(10106, 0))
    serve_dashboard(reactor, Controller(reactor), 10106, FURLS).addErrback(failed.append)
    assert failed[0].check(CannotListenError)


def test_tokens_belong_to_furls(browser: Browser) -> None:
    """So they stay good when the controller is restarted, and go with the FURL."""
    assert browser.act == token_of(FURLS["multiengine"] + "\n") != browser.look == token_of(FURLS["view"])
    assert token_of(FURLS["multiengine"] + "x") != browser.act
    for token in (browser.act, browser.look):
        assert "secret" not in token


def test_the_token_becomes_a_cookie(browser: Browser) -> None:
    answer = browser.get(f"/?token={browser.act}")
    assert answer.code == 200
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert cookie == f"ipython1-10106={browser.act}"
    assert {a.lower() for a in attributes} == {"path=/", "httponly", "samesite=strict"}
    assert browser.get("/", Cookie=cookie).code == 200
    assert browser.get("/state.json", Cookie=cookie).json()["may_act"] is True
    assert browser.get("/", Cookie=cookie + "x").code == 403


def test_programs_send_it_as_a_header(browser: Browser) -> None:
    answer = browser.get("/state.json", Authorization=f"Bearer {browser.look}")
    assert answer.json()["may_act"] is False
    assert "set-cookie" not in answer.headers
    assert browser.get("/state.json", Authorization="Bearer wrong").code == 403
    assert browser.get("/state.json", Authorization=f"Basic {browser.look}").code == 403


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?token=%FF", "?token=%s&token=%s"])
@pytest.mark.parametrize("cookie", ["", "ipython1-10106=wrong"])
def test_no_token_no_page(browser: Browser, path: str, query: str, cookie: str) -> None:
    answer = browser.get(path + query.replace("%s", browser.act), Cookie=cookie)
    assert (answer.code, answer.text) == (403, DENIED + "\n")
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:10106", "127.0.0.1.evil.example", "", "[::2]:1"]
)
def test_another_name_is_not_ours(browser: Browser, path: str, host: str) -> None:
    """Else a page could have its name point here, and read what is here as its own."""
    answer = browser.get(f"{path}?token={browser.act}", Host=host)
    assert (answer.code, answer.text) == (421, MISDIRECTED + "\n")
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:10106"])
def test_these_are(browser: Browser, host: str) -> None:
    assert browser.get(f"/?token={browser.act}", Host=host).code == 200


# -- pages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_files(browser: Browser, name: str) -> None:
    answer = browser.get(f"/{name}?token={browser.look}")
    assert answer.headers["content-type"] == f"{FILES[name]}; charset=utf-8"
    assert answer.text == (STATIC / name).read_text(encoding="utf-8")


def test_every_file_is_served_and_packaged() -> None:
    assert {path.name for path in STATIC.iterdir()} == set(FILES)
    assert '"static/*"' in (STATIC.parents[2] / "setup.py").read_text()


def test_nothing_comes_from_elsewhere_nor_becomes_markup() -> None:
    for name in FILES:
        text = (STATIC / name).read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|@import|\burl\(|innerHTML|outerHTML|insertAdjacent|eval\(", text), (
            name
        )
        assert len(text.splitlines()) < 400
    page = (STATIC / "index.html").read_text()
    assert " style=" not in page
    assert "<style" not in page
    assert not re.search(r"\son\w+=|<script(?![^>]*\ssrc=)", page)
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', page)) <= {*FILES, "state.json"}


def test_the_policy_allows_nothing_else(browser: Browser) -> None:
    for path in (f"/?token={browser.look}", "/", "/health"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"].split("; ")
        assert policy[0] == "default-src 'none'"
        assert {"script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"} <= set(policy)
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_health_needs_no_token_and_tells_nothing(browser: Browser) -> None:
    answer = browser.get("/health", Host="10.0.0.1")
    assert (answer.code, answer.text) == (200, "ok\n")


def test_other_paths_and_methods(browser: Browser) -> None:
    token = f"?token={browser.act}"
    assert browser.get("/nothing" + token).code == 404
    assert browser.get("/../guard.py" + token).code == 404
    assert browser.get("/static/main.js" + token).code == 404
    head = browser.get("/state.json" + token, method="HEAD")
    assert (head.code, head.text) == (200, "")
    assert browser.get("/interrupt" + token).code == 403
    for method in ("POST", "PUT", "DELETE", "X"):
        assert browser.get("/state.json" + token, method=method).code == 405


@pytest.mark.parametrize("length", ["70000", "9" * 12])
def test_a_large_body_ends_the_connection(browser: Browser, length: str) -> None:
    transport = browser.ask("/interrupt", "POST", "", **{"Content-Length": length})
    assert transport.disconnected or transport.disconnecting
    assert transport.value() == b""


def test_so_does_one_of_unknown_length(browser: Browser) -> None:
    protocol, transport = browser.connect()
    protocol.dataReceived(
        b"POST /interrupt HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    assert transport.disconnected or transport.disconnecting


def test_connections_are_bounded(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "CONNECTIONS", 3)
    protocols = [browser.connect()[0] for _ in range(5)]
    assert [protocol is None for protocol in protocols] == [False, False, False, True, True]


def test_stop_ends_the_connections(browser: Browser) -> None:
    protocol, transport = browser.connect()
    fired: list[None] = []
    browser.served.stop().addCallback(fired.append)
    assert fired == [None]
    assert transport.disconnected or transport.disconnecting
    assert protocol.transport is transport


# -- the state -----------------------------------------------------------------------------


def test_the_state(browser: Browser) -> None:
    browser.books.history(60.0)
    browser.books.trouble()
    state = browser.get(f"/state.json?token={browser.act}").json()
    assert (state["cluster"], state["time"]) == ("mine", browser.reactor.seconds())
    assert [engine["id"] for engine in state["engines"]] == [0, 1]
    assert {"host", "pid", "state", "cpu", "rss", "running", "since", "queue", "restarts", "stuck"} <= set(
        state["engines"][0]
    )
    assert state["tasks"] == {"blocked": 0, "ready": 0, "handed": 0, "ended": 0}
    assert state["totals"]["commands"] > 0
    for name in ("spans", "rates"):
        assert all(len(row) == len(state["fields"][name]) for row in state[name])
        assert state[name]
    assert state["links"] == {"counts": {}, "rows": []}


def test_those_who_look_do_not_read_output(browser: Browser) -> None:
    actor, looker = browser.watch(browser.act), browser.watch(browser.look)
    browser.controller.output.event(Event("c-1", 0, 0, "stdout", "secret", ()))
    assert "output" in browser.get(f"/state.json?token={browser.act}").json()
    assert "output" not in browser.get(f"/state.json?token={browser.look}").json()
    browser.reactor.advance(TICK)
    assert actor.take()[-1][1]["output"][0][3] == "secret"
    assert "secret" not in str(looker.take())
    actor.close()
    assert not browser.controller.output.watched


def test_whatever_comes_from_the_cluster_is_json(browser: Browser) -> None:
    engine = browser.controller.registry.get(0)
    assert engine is not None
    engine.host, engine.cpu = EVIL, float("nan")
    browser.books.submit(engine, f"a='\ud800'{EVIL}")
    answer = browser.get(f"/state.json?token={browser.act}")
    row = answer.json()["engines"][0]
    assert (row["host"], row["running"], row["cpu"]) == (EVIL, f"a='\ud800'{EVIL}", 0.0)
    assert answer.headers["content-type"].startswith("application/json")


# -- events -----------------------------------------------------------------------------------


def test_first_the_state_then_changes(browser: Browser) -> None:
    stream = browser.watch(browser.act)
    [(kind, state)] = stream.take()
    assert kind == "state"
    assert [engine["id"] for engine in state["engines"]] == [0, 1]
    browser.reactor.advance(TICK)
    assert stream.take() == [("change", {"time": browser.reactor.seconds()})]
    engine = browser.controller.registry.get(1)
    assert engine is not None
    command = browser.books.submit(engine, "step()")
    browser.reactor.advance(TICK)
    [(_, change)] = stream.take()
    assert [(row["id"], row["running"]) for row in change["engines"]] == [(1, "step()")]
    browser.controller.registry.remove(engine)
    browser.controller.timeline.note("died", 1, "gone")
    browser.reactor.advance(TICK)
    [(_, change)] = stream.take()
    assert change["gone"] == [1]
    assert [incident["what"] for incident in change["incidents"]] == ["died"]
    assert command.label == "step()"
    stream.close()


def test_changes_lead_to_the_state(browser: Browser) -> None:
    """Who puts all changes together has what the state says."""
    stream = browser.watch(browser.act)
    [(_, state)] = stream.take()
    engines = {row["id"]: row for row in state["engines"]}
    spans: dict[int, Any] = {}
    for i in range(20):
        browser.reactor.advance(TICK)
        browser.books.history(3.0 + i)
        if i == 10:
            browser.books.trouble()
        for _, change in stream.take():
            engines.update({row["id"]: row for row in change.get("engines", ())})
            spans.update({span[0]: span for span in change.get("spans", ())})
    browser.reactor.advance(TICK)
    for _, change in stream.take():
        engines.update({row["id"]: row for row in change.get("engines", ())})
        spans.update({span[0]: span for span in change.get("spans", ())})
    state = browser.get(f"/state.json?token={browser.act}").json()
    assert list(engines.values()) == state["engines"]
    assert [spans[serial] for serial in sorted(spans)] == state["spans"]
    stream.close()


def test_nobody_watches_nothing_is_looked_at(browser: Browser) -> None:
    calls = len(browser.reactor.getDelayedCalls())
    stream = browser.watch(browser.look)
    assert len(browser.reactor.getDelayedCalls()) == calls + 1
    stream.close()
    assert len(browser.reactor.getDelayedCalls()) == calls


def test_who_reads_too_slowly_gets_the_newest_state(browser: Browser) -> None:
    slow, quick = browser.watch(browser.look), browser.watch(browser.look)
    browser.reactor.advance(TICK)
    slow.take(), quick.take()
    slow.transport.producer.pauseProducing()
    for i in range(100):
        engine = browser.controller.registry.get(0)
        assert engine is not None
        engine.cpu = float(i)
        browser.reactor.advance(TICK)
    assert slow.raw() == b""
    assert [kind for kind, _ in quick.take()] == ["change"] * 100
    slow.transport.producer.resumeProducing()
    browser.reactor.advance(TICK)
    [(kind, state)] = slow.take()
    assert (kind, state["engines"][0]["cpu"]) == ("state", 99.0)
    slow.transport.producer.pauseProducing()
    browser.reactor.advance(TICK)
    slow.transport.producer.resumeProducing()
    browser.reactor.advance(TICK)
    assert slow.raw() == b"", "whole states are large"
    browser.reactor.pump([TICK] * int(CATCH_UP / TICK))
    assert next(kind for kind, _ in slow.take()) == "state"
    slow.close()
    quick.close()


def test_watchers_are_bounded(browser: Browser) -> None:
    streams = [browser.watch(browser.look) for _ in range(WATCHERS)]
    assert browser.get(f"/events?token={browser.look}").code == 503
    for stream in streams:
        stream.close()


# -- actions ---------------------------------------------------------------------------------


@pytest.fixture
def done(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What was done to engines."""
    done: list[tuple[str, Any]] = []
    monkeypatch.setattr(browser.controller, "interrupt", lambda ids: done.append(("interrupt", ids)))
    restart = lambda body: done.append(("restart", body["targets"]))  # noqa: E731
    monkeypatch.setattr(browser.controller.questions, "restart", restart)
    return done


def test_who_may_acts(browser: Browser, done: list[tuple[str, Any]]) -> None:
    assert browser.post("interrupt", [1]).text == "done\n"
    assert browser.post("restart", [0, 1], Host="localhost:8000", Origin="http://localhost:8000").code == 200
    bearer = {"Authorization": f"Bearer {browser.act}"}
    assert browser.get("/interrupt", "POST", '{"engines": []}', **bearer).code == 200
    assert done == [("interrupt", [1]), ("restart", [0, 1]), ("interrupt", [])]


@pytest.mark.parametrize("action", ["interrupt", "restart"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Cookie": "ipython1-10106={look}"},
        {"Cookie": "", "Authorization": "Bearer {look}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:10106"},  # another page on this host
        {"Origin": "http://127.0.0.1:8888"},
        {"Origin": "http://127.0.0.1"},
    ],
    ids=str,
)
def test_nobody_else_does(
    browser: Browser, done: list[tuple[str, Any]], action: str, headers: dict[str, str]
) -> None:
    given = {name: value.format(look=browser.look) for name, value in headers.items()}
    answer = browser.post(action, [0], **given)
    assert (answer.code, answer.text) == (403, LOOK_ONLY + "\n")
    assert done == []


def test_a_cookie_alone_does_not_act(browser: Browser, done: list[tuple[str, Any]]) -> None:
    answer = browser.get("/interrupt", "POST", '{"engines": [0]}', Cookie=f"ipython1-10106={browser.act}")
    assert (answer.code, done) == (403, [])


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        '{"engines": 0}',
        '{"engines": ["0"]}',
        '{"engines": [true]}',
        '{"engines": [1e400]}',
        '{"engines": [%s]}' % ("9" * 10_000),
        "[" * 60_000,
        "\x00",
    ],
    ids=lambda body: body[:20],
)
def test_a_bad_body_is_told(browser: Browser, done: list[tuple[str, Any]], body: str) -> None:
    answer = browser.get("/interrupt", "POST", body, Authorization=f"Bearer {browser.act}")
    assert (answer.code, answer.text, done) == (400, BAD_BODY + "\n", [])


def test_what_cannot_be_done_is_told(browser: Browser) -> None:
    answer = browser.post("restart", [1])  # no nanny is linked here
    assert answer.code == 409
    assert "Engine 1 was left alone" in answer.text


def test_an_interrupt_reaches_only_engines_that_are_there(browser: Browser) -> None:
    assert browser.post("interrupt", [1, 7, -1, 2**70]).code == 200


# -- metrics -----------------------------------------------------------------------------------


def test_metrics(browser: Browser) -> None:
    browser.books.history(60.0)
    browser.books.trouble()
    engine = browser.controller.registry.get(0)
    assert engine is not None
    engine.host = 'a"b\\c\nd'
    answer = browser.get(f"/metrics?token={browser.look}")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples: dict[str, float] = {}
    described: dict[str, set[str]] = {"HELP": set(), "TYPE": set()}
    for line in answer.text.splitlines():
        if line.startswith("#"):
            _, what, name, _ = line.split(" ", 3)
            described[what].add(name)
            continue
        found = re.fullmatch(r'(\w+)(\{(?:\w+="(?:[^"\\\n]|\\.)*",?)*\})? (\S+)', line)
        assert found, line
        assert found[1] in described["HELP"] & described["TYPE"]
        samples[found[1] + (found[2] or "")] = float(found[3])
    totals = browser.controller.timeline.totals
    assert samples["ipython1_commands_total"] == totals["commands"] > 0
    assert samples['ipython1_engines{state="ready"}'] == 2
    assert samples['ipython1_engine_busy{engine="1",host="node00"}'] in (0, 1)
    assert samples['ipython1_engine_memory_bytes{engine="0",host="a\\"b\\\\c\\nd"}'] == engine.rss
    assert samples["ipython1_busy_seconds_total"] == pytest.approx(browser.controller.timeline.busy)


# -- many engines --------------------------------------------------------------------------------


def test_500_engines() -> None:
    browser = Browser(n=500)
    browser.books.history(10.0)
    stream = browser.watch(browser.look)
    [(_, state)] = stream.take()
    assert len(state["engines"]) == 500
    browser.reactor.advance(TICK)
    assert stream.take() == [("change", {"time": browser.reactor.seconds()})]
    stream.close()
    browser.served.stop()
    browser.controller.stop()
