"""The dashboard's pages, its token, and its service, over an in-memory transport."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock, StringTransport

from ipython1.web.dashboard import DENIED, duration, render_table, serve_dashboard, size

ENGINE: dict[str, Any] = {
    "id": 0,
    "host": "mars",
    "pid": 4243,
    "state": "ready",
    "cpu": 99.6,
    "rss": 30 * 2**20,
    "running": "execute a=5",
    "since": 1000.0,
    "queue": 2,
    "restarts": 1,
}
IDLE: dict[str, Any] = {
    "id": 1,
    "host": "mars",
    "pid": 4244,
    "state": "ready",
    "cpu": None,
    "rss": None,
    "running": None,
    "since": 1080.0,
    "queue": 0,
    "restarts": 0,
}


class Controller:
    """A controller with engines that a test can change."""

    def __init__(self) -> None:
        self.engines = [ENGINE, IDLE]

    def status(self) -> list[dict[str, Any]]:
        return self.engines


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
            body = re.sub(rb"^[0-9a-f]+\r\n|\r\n0\r\n\r\n$", b"", body)
        self.text = body.decode()


class Browser:
    """Asks a dashboard that is served through a memory reactor."""

    def __init__(self, port: int = 10106, used: tuple[int, ...] = ()) -> None:
        self.controller = Controller()
        self.reactor = Reactor(used)
        found: list[Any] = []
        serve_dashboard(self.reactor, self.controller, port).addCallback(found.append)
        [(self.url, self.stop)] = found
        self.token = self.url.partition("?token=")[2]

    def connect(self) -> tuple[Any, StringTransport]:
        factory: Any
        port, factory, *_ = self.reactor.tcpServers[-1]
        transport = StringTransport(hostAddress=IPv4Address("TCP", "127.0.0.1", port))
        protocol = factory.buildProtocol(transport.getPeer())
        protocol.makeConnection(transport)
        return protocol, transport

    def get(self, path: str, cookie: str = "", method: str = "GET") -> Answer:
        protocol, transport = self.connect()
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
        lines += [f"Cookie: {cookie}"] if cookie else []
        protocol.dataReceived("\r\n".join([*lines, "", ""]).encode())
        return Answer(transport.value())


@pytest.fixture
def browser() -> Browser:
    return Browser()


def test_it_listens_on_loopback_only(browser: Browser) -> None:
    [(port, _, _, interface)] = browser.reactor.tcpServers
    assert (port, interface) == (10106, "127.0.0.1")
    assert re.fullmatch(r"http://127\.0\.0\.1:10106/\?token=[\w-]{32}", browser.url)


def test_a_used_port_gives_another_one() -> None:
    browser = Browser(used=(10106,))
    assert browser.url.startswith("http://127.0.0.1:40000/?token=")


def test_the_failure_to_listen_at_all_is_told() -> None:
    failed: list[Any] = []
    serve_dashboard(Reactor(used=(10106, 0)), Controller(), 10106).addErrback(failed.append)
    assert failed[0].check(CannotListenError)


def test_every_service_has_its_own_token() -> None:
    assert Browser().token != Browser().token


@pytest.mark.parametrize("path", ["/", "/table", "/status.json", "/nothing"])
@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?token=%FF", "?token=%s&token=%s"])
@pytest.mark.parametrize("cookie", ["", "ipython1-10106=wrong"])
def test_no_token_no_page(browser: Browser, path: str, query: str, cookie: str) -> None:
    answer = browser.get(path + query.replace("%s", browser.token), cookie)
    assert (answer.code, answer.text) == (403, DENIED + "\n")
    assert "set-cookie" not in answer.headers


def test_the_token_becomes_a_cookie(browser: Browser) -> None:
    answer = browser.get(f"/?token={browser.token}")
    assert answer.code == 200
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert cookie == f"ipython1-10106={browser.token}"
    assert {a.lower() for a in attributes} == {"path=/", "httponly", "samesite=strict"}
    assert browser.get("/", cookie).code == 200
    assert json.loads(browser.get("/status.json", cookie).text)["engines"] == [ENGINE, IDLE]
    assert browser.get("/", cookie + "x").code == 403


def test_the_page_needs_nothing_else(browser: Browser) -> None:
    answer = browser.get(f"/?token={browser.token}")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"https?://|<link|<img|\ssrc=|@import|url\(", answer.text)
    nonces = re.findall(r'nonce="([^"]+)"', answer.text)
    policy = answer.headers["content-security-policy"]
    assert len(nonces) == 2
    assert all(f"'nonce-{nonce}'" in policy for nonce in nonces)
    assert policy.startswith("default-src 'none';")
    assert " style=" not in answer.text  # the policy would ignore it
    assert browser.get(f"/?token={browser.token}").headers["content-security-policy"] != policy


def test_no_answer_is_kept_by_a_cache(browser: Browser) -> None:
    for path in (f"/?token={browser.token}", "/", "/health"):
        headers = browser.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"


def test_the_table_is_made_anew_each_time(browser: Browser) -> None:
    path = f"/table?token={browser.token}"
    assert "execute a=5" in browser.get(path).text
    browser.controller.engines = [{**ENGINE, "running": "pull b"}]
    answer = browser.get(path)
    assert "pull b" in answer.text
    assert "execute a=5" not in answer.text


def test_health_needs_no_token_and_tells_nothing(browser: Browser) -> None:
    answer = browser.get("/health")
    assert (answer.code, answer.text) == (200, "ok\n")


def test_other_paths_and_methods(browser: Browser) -> None:
    token = f"?token={browser.token}"
    assert browser.get("/nothing" + token).code == 404
    assert browser.get("/table/" + token).code == 200
    assert browser.get("/status.json" + token, method="POST").code == 405
    head = browser.get("/status.json" + token, method="HEAD")
    assert (head.code, head.text) == (200, "")


def test_stop_ends_the_connections(browser: Browser) -> None:
    protocol, transport = browser.connect()
    fired: list[None] = []
    browser.stop().addCallback(fired.append)
    assert fired == [None]
    assert transport.disconnected or transport.disconnecting
    assert protocol.transport is transport


class Rows(HTMLParser):
    """The text of the cells of a table, the tags used, and the titles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.titles: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.titles += [value for name, value in attrs if name == "title"]

    def handle_data(self, data: str) -> None:
        self.rows[-1][-1] += data


def test_the_table() -> None:
    gone = {**IDLE, "id": 2, "state": "restarting", "pid": None}
    table = Rows(render_table([ENGINE, IDLE, gone], now=1090.0))
    assert table.rows == [
        ["id", "host", "pid", "state", "CPU", "memory", "running", "for", "queue", "restarts"],
        ["0", "mars", "4243", "ready", "100 % ", "30 MiB", "execute a=5", "0:01:30", "2", "1"],
        ["1", "mars", "4244", "ready", "", "", "", "", "0", "0"],
        ["2", "mars", "", "restarting", "", "", "", "10 s", "0", "0"],
    ]


def test_everything_is_escaped() -> None:
    evil = "<script>alert(1)</script>\"' onclick=x &amp;"
    table = Rows(render_table([{**ENGINE, "host": evil, "state": evil, "running": evil, "queue": evil}], 0.0))
    assert table.tags == {"table", "thead", "tbody", "tr", "th", "td", "meter"}
    assert [table.rows[1][i] for i in (1, 3, 6, 8)] == [evil] * 4
    assert table.titles == [evil]


def test_a_lone_surrogate_in_a_command_is_shown(browser: Browser) -> None:
    browser.controller.engines = [{**ENGINE, "running": "a='\ud800'"}]
    for path in ("/", "/table", "/status.json"):
        answer = browser.get(f"{path}?token={browser.token}")
        assert answer.code == 200
        assert "\\ud800" in answer.text


def test_no_engines() -> None:
    assert "No engines" in render_table([], 0.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0.0 s"), (0.25, "0.2 s"), (59.4, "59 s"), (61, "0:01:01"), (7325, "2:02:05")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, ""), (0, "0 B"), (2048, "2 KiB"), (3 * 2**20, "3 MiB"), (5 * 2**29, "2.5 GiB")]
)
def test_size(count: float | None, text: str) -> None:
    assert size(count) == text
