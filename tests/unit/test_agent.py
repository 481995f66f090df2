from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgpack
import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from ipython1 import __version__
from ipython1.kernel.engine import agent
from ipython1.kernel.engine.agent import ROUND_INTERVAL, Agent
from ipython1.kernel.engine.nanny import REMEMBERED, log_path
from ipython1.kernel.error import NobodyListening
from ipython1.kernel.interfaces import IDialer, ILinkSink
from ipython1.kernel.wire.codec import decode, decode_as, encode, pack, unpack_map
from ipython1.kernel.wire.records import Exited, Hello, Order, Record, Usage, Welcome


@implementer(IDialer)
class FakeController:
    """Answers every hello, while it is there, and remembers what it got."""

    address = "h:1"

    def __init__(self) -> None:
        self.there = True
        self.hellos: list[Hello] = []
        self.records: list[Record] = []
        self._sink: Any = None
        self._said = 0

    def dial(self, hello: bytes, sink: ILinkSink) -> Deferred[Any]:
        if not self.there:
            return fail(NobodyListening(address=self.address, reason="it is off"))
        self.hellos.append(decode_as(Hello, hello))
        self._sink = sink
        return succeed((encode(Welcome(__version__, True, len(self.records), pack({}))), self))

    def trouble(self) -> list[tuple[str, str]]:
        return [] if self.there else [(self.address, "it is off")]

    def close(self) -> Deferred[None]:
        return succeed(None)

    def send(self, batch: bytes) -> None:
        _, _, records = msgpack.unpackb(batch)
        self.records += [decode(raw) for raw in records]
        self.acknowledge()

    def acknowledge(self) -> None:
        assert self._sink is not None
        self._sink.batch_received(msgpack.packb((self._said + 1, len(self.records), [])))

    def say(self, record: Record) -> None:
        assert self._sink is not None
        self._said += 1
        self._sink.batch_received(msgpack.packb((self._said, len(self.records), [encode(record)])))

    def cut(self) -> None:
        assert self._sink is not None
        self._sink.link_lost(self)


class House:
    """An agent between a fake controller and a fake nanny."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.controller = FakeController()
        self.told: list[dict[str, Any]] = []
        self.finished: list[bool] = []
        self.facts: dict[str, Any] = {
            "uuid": "n",
            "host": "here",
            "pid": 9,
            "engines": {"a": os.getpid()},
            "exited": [],
            "stuck": {},
            "folder": "/",
        }
        self.agent = Agent(
            self.clock,
            self.controller,
            self.facts,
            self.told.append,
            lambda: self.finished.append(True),
            patience=10.0,
            grace=100.0,
        )

    def settle(self, seconds: float = 0.1) -> None:
        for _ in range(10):
            self.clock.advance(seconds / 10)


@pytest.fixture
def house() -> House:
    house = House()
    house.agent.start()
    house.settle()
    return house


def test_the_hello_says_who_and_what(house: House) -> None:
    [hello] = house.controller.hellos
    assert hello.kind == "nanny"
    detail = {"uuid": "n", "host": "here", "pid": 9, "engines": ("a",), "exited": ()}
    assert unpack_map(hello.detail) == detail


def test_orders_go_to_the_nanny(house: House) -> None:
    house.controller.say(Order("signal", "a", 10))
    house.controller.say(Order("interrupt", "a", 7, ("c-1",), "restart"))
    assert house.told == [
        {"order": ["signal", "a", 10, (), ""]},
        {"order": ["interrupt", "a", 7, ("c-1",), "restart"]},
    ]


def test_other_records_are_refused(house: House) -> None:
    house.controller.say(Exited("a", "", "", False))
    assert house.told == []


def test_deaths_go_to_the_controller_and_into_later_hellos(house: House) -> None:
    house.agent.heard({"exited": ["a", "exit status 3", "bang", True, ""]})
    house.agent.heard({"engines": {"b": os.getpid()}})
    house.settle()
    assert house.controller.records == [Exited("a", "exit status 3", "bang", True)]
    house.controller.cut()
    house.settle()
    detail = unpack_map(house.controller.hellos[1].detail)
    assert detail["exited"] == (("a", "exit status 3", "bang", True, ""),)
    assert detail["engines"] == ("b",)


def test_only_so_many_deaths_are_remembered(house: House) -> None:
    for number in range(REMEMBERED + 5):
        house.agent.heard({"exited": [str(number), "", "", False, ""]})
    house.settle()
    assert len(house.controller.records) == REMEMBERED + 5
    house.controller.cut()
    house.settle()
    remembered = unpack_map(house.controller.hellos[1].detail)["exited"]
    assert [uuid for uuid, *_ in remembered] == [str(number) for number in range(5, REMEMBERED + 5)]


def test_usage_is_reported_while_there_is_a_link(house: House) -> None:
    house.agent.heard({"engines": {"a": os.getpid(), "gone": 2**22 + 1}})  # no pid is that high
    house.settle(2 * ROUND_INTERVAL)
    usages = [unpack_map(record.table) for record in house.controller.records if isinstance(record, Usage)]
    assert len(usages) == 2
    [(name, (cpu, rss, stuck))] = usages[-1].items()
    assert (name, cpu >= 0, rss > 1_000_000, stuck) == ("a", True, True, 0.0)
    house.controller.there = False
    house.controller.cut()
    house.settle(2 * ROUND_INTERVAL)
    house.controller.there = True
    house.settle(1.0)
    assert len(house.controller.records) == 2


def test_engines_that_do_not_react_are_told_at_once(house: House) -> None:
    house.agent.heard({"stuck": {"a": 5.0}})
    house.agent.heard({"stuck": {}})
    house.settle()
    usages = [unpack_map(record.table) for record in house.controller.records if isinstance(record, Usage)]
    assert [usage["a"][2] for usage in usages] == [5.0, 0.0]


def test_the_loss_of_the_controller_is_told_once(house: House) -> None:
    house.controller.there = False
    house.controller.cut()
    house.settle(99)
    assert house.told == []
    house.settle(10)
    [told] = house.told
    assert "it is off" in told["lost"]


def test_a_controller_that_never_was_there() -> None:
    house = House()
    house.controller.there = False
    house.agent.start()
    house.settle(3)
    assert house.told == []
    house.settle(6)
    lines = ["controller at h:1 not reachable from here: it is off", "it is tried for 6 s more"]
    assert house.told == [{"trouble": lines}]
    house.settle(2)
    assert [list(message) for message in house.told] == [["trouble"], ["lost"]]


def test_a_controller_that_comes_late_is_told_of_only_if_it_is_very_late() -> None:
    house = House()
    house.controller.there = False
    house.agent.start()
    house.settle(2)
    house.controller.there = True
    house.settle(30)
    assert house.told == []


def test_what_was_told_arrives_before_the_end(house: House) -> None:
    house.agent.heard({"exited": ["a", "stopped on request", "", False, ""]})
    house.agent.heard({"quit": True})
    assert house.finished == []
    house.settle()
    assert house.finished == [True]
    assert house.controller.records == [Exited("a", "stopped on request", "", False)]
    house.settle(3 * ROUND_INTERVAL)
    assert len(house.controller.records) == 1


def test_an_orphan_tells_that_the_engines_are_gone_and_ends(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(agent, "kill_group", killed.append)
    house.facts["folder"] = str(tmp_path)
    for name, text in (("a", "my last words\n"), ("b", "")):
        log_path(tmp_path, name).write_text(text)
    house.agent.heard({"engines": {"a": 1001, "b": 1002}})
    house.agent.orphaned()
    house.settle()
    cause = "ended with its nanny (pid 9)"
    assert house.controller.records == [
        Exited("a", cause, "my last words", False),
        Exited("b", cause, "", False),
    ]
    assert killed == [1001, 1002]
    assert list(tmp_path.iterdir()) == [log_path(tmp_path, "a")]
    assert house.finished == [True]


def test_quit_without_a_controller() -> None:
    house = House()
    house.controller.there = False
    house.agent.start()
    house.agent.heard({"quit": True})
    house.settle()
    assert house.finished == [True]
