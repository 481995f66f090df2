"""Tasks on an engine with a real shell, against a controller that the test plays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock

import ipython1
from ipython1.kernel.engine import calls as calls_module
from ipython1.kernel.engine import kept as kept_module
from ipython1.kernel.engine import tasks as tasks_module
from ipython1.kernel.engine.engine import Engine
from ipython1.kernel.engine.jobs import Task
from ipython1.kernel.engine.shell import EngineShell
from ipython1.kernel.error import RemoteFailure, TaskRejected
from ipython1.kernel.wire.codec import decode, decode_as, decode_failure, encode, pack, unpack_map
from ipython1.kernel.wire.memory import MemoryDialer, MemoryLink
from ipython1.kernel.wire.objects import Reference, dumps, dumps_call, loads
from ipython1.kernel.wire.records import (
    Batch,
    BlobRef,
    Cancel,
    Chunk,
    Departed,
    End,
    Event,
    Hello,
    Interrupt,
    Outcomes,
    Parts,
    Record,
    Result,
    Seek,
    Submit,
    Taken,
    Welcome,
    Withdraw,
    Work,
)
from ipython1.kernel.wire.runners import Depending, Requiring
from ipython1.kernel.wire.session import Session


class Played:
    """A controller without a will of its own, and an engine."""

    def __init__(self, shell: EngineShell) -> None:
        self.clock = Clock()
        self.heard: list[Record] = []
        self.hellos: list[dict[str, Any]] = []
        self.engine_id = 0
        self.session: Session | None = None
        self.dialer = MemoryDialer(self.clock, lambda: self)  # type: ignore[arg-type,return-value]
        identity = {"uuid": "u", "host": "h", "pid": 1, "nanny": "", "wanted": -1, "replaces": {}}
        self.engine = Engine(
            self.clock, self.dialer, shell, identity, lambda id: None, lambda reason: None, wait=False
        )
        self.loop = self.engine.loop
        self.ns = shell.user_ns
        self.engine.service.start()
        self.turn()

    def knock(self, raw: bytes, link: MemoryLink) -> tuple[bytes, Any]:
        hello = decode_as(Hello, raw)
        self.hellos.append(unpack_map(hello.detail))
        resumed = self.session is not None and self.session.id == hello.session
        if self.session is None or not resumed:
            self.session = Session(self.clock, lambda raw: self.heard.append(decode(raw)), id=hello.fresh)
        self.session.attach(link, hello.received if resumed else 0)
        welcome = Welcome("0", resumed, self.session.received, pack({"id": self.engine_id}))
        return encode(welcome), self.session

    def restart(self) -> None:
        self.session = None
        del self.heard[:]
        self.dialer.cut()
        self.turn()

    def turn(self) -> None:
        for _ in range(10):
            self.clock.advance(0.1)

    def say(self, *said: Record) -> None:
        assert self.session is not None
        for record in said:
            self.session.send(encode(record))
        self.turn()

    def run(self, *said: Record) -> list[End]:
        """Say something, run all there is to run, and return the outcomes that come."""
        del self.heard[:]
        self.say(*said)
        self.loop.run_ready()
        self.turn()
        return self.ends()

    def ends(self) -> list[End]:
        return [end for record in self.heard if isinstance(record, Outcomes) for end in record.items]

    def events(self) -> list[tuple[str, int, int, str, str]]:
        events = [record for record in self.heard if isinstance(record, Event)]
        return [(event.id, event.attempt, event.index, event.kind, event.text) for event in events]


@pytest.fixture(scope="module")
def shell() -> EngineShell:
    return EngineShell(own_main=False)


@pytest.fixture
def played(shell: EngineShell) -> Iterator[Played]:
    shell.reset()
    played = Played(shell)
    yield played
    played.engine.service.stop()
    for _ in range(3):
        played.turn()
    if played.session is not None:
        played.session.end()
    assert not played.clock.getDelayedCalls()


def plain(parts: Any) -> Parts:
    return tuple(bytes(part) for part in parts)


def batch(f: Any, id: str = "c-1", timeout: float = 0.0, **args: Any) -> Batch:
    return Batch(id, "call", "label", timeout, pack({}), pack(args), plain(dumps_call(f)))


def code(source: str, id: str = "c-1", **args: Any) -> Batch:
    return Batch(id, "code", "label", 0.0, pack({}), pack(args), (source.encode(),))


def item(index: int, *args: Any, attempt: int = 0) -> tuple[int, int, Parts]:
    return index, attempt, plain(dumps((args, {})))


def pushed(index: int, attempt: int = 0, **ns: Any) -> tuple[int, int, Parts]:
    return index, attempt, plain(dumps(ns))


def work(*items: Any, id: str = "c-1") -> Work:
    return Work(id, items)


def values(ends: list[End]) -> dict[int, Any]:
    """What each came to: its value, or its failure, or another status."""
    found: dict[int, Any] = {}
    for index, _, status, _, _, _, parts in ends:
        assert index not in found
        if status == "ok":
            found[index] = loads(parts)  # type: ignore[arg-type]
        elif status in ("error", "rejected"):
            found[index] = failure(parts)
        else:
            assert not parts
            found[index] = status
    return found


def failure(parts: Parts) -> RemoteFailure:
    (raw,) = parts
    assert isinstance(raw, bytes)
    return decode_failure(raw, 0, "")


# -- calls -------------------------------------------------------------------------


def test_tasks_run_in_order_with_what_they_have_in_common(played: Played) -> None:
    def f(x: int, y: int = 1) -> int:
        print("f", x)
        return x * factor + y  # type: ignore[name-defined,no-any-return]  # noqa: F821

    played.ns["factor"] = 10
    ends = played.run(batch(f), work(item(0, 1), item(3, Reference("factor"), 5)))
    assert values(ends) == {0: 11, 3: 105}
    assert [end[:3] for end in ends] == [(0, 0, "ok"), (3, 0, "ok")]
    assert [end[5] for end in ends] == [1, 1]
    assert all(0 < end[3] <= end[4] for end in ends)
    assert played.events() == [("c-1#0", 0, 0, "stdout", "f 1\n"), ("c-1#3", 0, 0, "stdout", "f 10\n")]
    kinds = [type(record) for record in played.heard]
    assert kinds == [Event, Event, Outcomes]  # all outcomes in one
