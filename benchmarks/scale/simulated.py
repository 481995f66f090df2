"""A controller among engines that only speak records: what it does itself, without any connection.

Whatever engines, nannies and clients say is encoded before the time is taken, and what they are
told is decoded after.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgpack
import psutil

from benchmarks.scale.turns import Turns
from ipython1 import __version__
from ipython1.kernel.client.enginetable import EngineTable
from ipython1.kernel.controller.service import Controller
from ipython1.kernel.wire.codec import decode, decode_as, encode, pack, unpack_map
from ipython1.kernel.wire.records import (
    PROTOCOL,
    Ask,
    Batch,
    Engines,
    Exited,
    Forget,
    Hello,
    Outcomes,
    Record,
    Result,
    Submit,
    Taken,
    Usage,
    Welcome,
    Work,
)
from ipython1.web.overview import Changes, Overview

#: Bytes of the echo.
ECHO = bytes(1000)
#: Engines of one simulated host.
PER_HOST = 50
#: Tasks, and how many a client sends in one record.
TASKS, IN_RECORD = 10_000, 1000
#: Seconds in which all that was said is acknowledged.
SOON = 0.1


class Peer:
    """One end of a session with the controller; a link that keeps what it is sent."""

    def __init__(self, kind: str, furl: str, **detail: Any) -> None:
        self.kind, self.furl, self.key = kind, furl, detail.get("uuid", "")
        session = f"{self.key or kind:0>32}"
        self.hello = encode(Hello(PROTOCOL, __version__, kind, "", session, 0, pack(detail)))
        self.batches: list[bytes] = []
        self.sink: Any = None
        self.id = -1
        self._sent = self._received = 0

    def send(self, batch: bytes) -> None:
        """See `ILink`."""
        self.batches.append(batch)

    def close(self) -> None:
        """See `ILink`."""

    def say(self, *records: Record) -> tuple[Any, bytes]:
        """The batch that says it, and acknowledges all that was read; for `Simulation.hear`."""
        raws = [encode(record) for record in records]
        batch = msgpack.packb((self._sent + 1, self._received, raws))
        self._sent += len(raws)
        return self.sink, batch

    def read(self) -> list[bytes]:
        """The records that have come."""
        heard: list[bytes] = []
        for batch in self.batches:
            first, _, raws = msgpack.unpackb(batch, use_list=False)
            heard += raws
            self._received = first + len(raws) - 1
        self.batches.clear()
        return heard


def engine(number: int) -> Peer:
    """An engine that has yet to knock."""
    host = number // PER_HOST
    return Peer(
        "engine",
        "engine",
        uuid=f"{number:032x}",
        host=f"node{host}",
        pid=1000 + number,
        nanny=f"{host:031x}n",
        wanted=-1,
        replaces={},
        held=[],
        clients=[],
    )


def nanny(host: int, engines: Iterable[Peer]) -> Peer:
    """The nanny of a host."""
    uuids = [engine.key for engine in engines]
    return Peer("nanny", "engine", uuid=f"{host:031x}n", host=f"node{host}", pid=1, engines=uuids, exited=[])


class Simulation:
    """A controller with `n` engines to come.

    Parameters
    ----------
    n : int
    """

    def __init__(self, n: int) -> None:
        self.clock = Turns()
        self.notices: list[dict[str, Any]] = []
        self.controller = Controller(self.clock, self.notices.append)
        self.engines = [engine(number) for number in range(n)]
        self.hosts = [self.engines[start : start + PER_HOST] for start in range(0, n, PER_HOST)]
        self.nannies = [nanny(host, ()) for host in range(len(self.hosts))]
        self.client = Peer("multiengine", "multiengine", client="c" * 12)
        self.tasks = Peer("task", "task", client="t" * 12)
        #: Processor seconds of the controller since the last look.
        self.spent = 0.0
        for peer in (self.client, self.tasks, *self.nannies):
            self.knock(peer)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What happens within is the controller's."""
        begin = time.thread_time()
        yield
        self.spent += time.thread_time() - begin

    def seconds(self) -> float:
        """Processor seconds of the controller since the last look."""
        spent, self.spent = self.spent, 0.0
        return spent

    def knock(self, peer: Peer) -> None:
        """A peer comes."""
        door = self.controller.door(peer.furl)
        with self.timed():
            answer, peer.sink = door.knock(peer.hello, peer)  # type: ignore[arg-type]
        peer.id = unpack_map(decode_as(Welcome, answer).detail).get("id", -1)

    def hear(self, said: Sequence[tuple[Any, bytes]], wait: float = 0.0) -> None:
        """The controller hears what peers say, all of it in one turn of the reactor."""
        with self.timed():
            for sink, batch in said:
                sink.batch_received(batch)
            self.clock.pass_time(wait)

    def let_pass(self, seconds: float = SOON) -> None:
        """Time passes, and all acknowledge what they heard."""
        with self.timed():
            self.clock.pass_time(seconds)
        self.hear([peer.say() for peer in self._everyone() if peer.batches and peer.read()])

    def _everyone(self) -> list[Peer]:
        return [self.client, self.tasks, *self.nannies, *self.engines]

    # -- what is measured ---------------------------------------------------------------

    def register(self, pause: float) -> dict[str, float]:
        """All engines come, one every `pause` seconds."""
        tables: list[bytes] = []
        for peer in self.engines:
            self.knock(peer)
            tables += self._listen(self.client, pause)
        tables += self._listen(self.client, 1.0)
        tables = [raw for raw in tables if type(decode(raw)) is Engines]
        known = EngineTable()
        begin = time.thread_time()
        known.first({"engines": (), "failures": ()})
        for raw in tables:
            known.take(unpack_map(decode_as(Engines, raw).table))
        client = time.thread_time() - begin
        assert len(known.engines) == len(self.engines)
        self.let_pass()
        return {
            "controller": self.seconds(),
            "client": client,
            "tables": len(tables),
            "table bytes": sum(map(len, tables)),
            "notices": len(self.notices),
        }

    def _listen(self, peer: Peer, wait: float) -> list[bytes]:
        """What a client is told meanwhile."""
        with self.timed():
            self.clock.pass_time(wait)
        heard = peer.read()
        if heard:
            self.hear([peer.say()])
        return heard

    def echo(self, number: int) -> float:
        """A broadcast of 1 KB to all, and the same from each back."""
        ids = tuple(engine.id for engine in self.engines)
        id = f"{self.client.key or 'c' * 12}-{number}"
        submit = Submit(id, ids, "apply", "echo", -1, 0.0, b"", (ECHO,))
        self.hear([self.client.say(submit)])
        for peer in self.engines:
            (raw,) = peer.read()
            assert decode_as(Submit, raw).id == id
        now = time.time()
        answers = [
            peer.say(Result(id, peer.id, "apply", "ok", now, now, 0, (ECHO,))) for peer in self.engines
        ]
        self.hear(answers)
        heard = self.client.read()
        assert len(heard) == len(ids)
        self.hear([self.client.say(Forget((id,), ids))])
        self.let_pass()
        return self.seconds()

    def map(self, number: int) -> float:
        """`TASKS` tasks, which take no time."""
        id = f"{'t' * 12}-{number}"
        items = [(index, 0, (b"x" * 40,)) for index in range(TASKS)]
        self.hear([self.tasks.say(Batch(id, "call", "task", 0.0, pack({}), b"", (b"f" * 500,)))])
        for start in range(0, TASKS, IN_RECORD):
            self.hear([self.tasks.say(Work(id, tuple(items[start : start + IN_RECORD])))])
        left = TASKS
        while left:
            answers = [peer.say(*ends) for peer in self.engines if (ends := self._ends(peer))]
            self.hear(answers, 0.001)
            done = []
            for raw in self.tasks.read():
                record = decode(raw)
                if type(record) is Outcomes:
                    done += [end[0] for end in record.items]
            left -= len(done)
            if done:
                self.hear([self.tasks.say(Taken(id, tuple(done), False))])
        self.hear([self.tasks.say(Taken(id, (), True))])
        self.let_pass()
        return self.seconds()

    def _ends(self, peer: Peer) -> list[Outcomes]:
        now = time.time()
        ended = []
        for raw in peer.read():
            record = decode(raw)
            if type(record) is Work:
                ends = tuple(
                    (index, attempt, "ok", now, now + 1e-4, 0, (b"y" * 40,))
                    for index, attempt, _ in record.items
                )
                ended.append(Outcomes(record.batch, peer.id, ends))
        return ended

    def usage(self) -> float:
        """Every nanny tells once what its engines use."""
        said = []
        for peer, engines in zip(self.nannies, self.hosts, strict=True):
            table = {engine.key: (12.5, 50_000_000, 0.0) for engine in engines}
            said.append(peer.say(Usage(pack(table))))
        self.hear(said)
        self.let_pass()
        return self.seconds()

    def ask(self, what: str, **body: Any) -> float:
        """A question, and the bytes of the answer."""
        self.hear([self.client.say(Ask("q", what, pack(body)))])
        self.client.read()
        self.let_pass()
        return self.seconds()

    def dashboard(self) -> float:
        """One look of the dashboard, for all who watch."""
        changes = Changes(Overview(self.controller, "scale"))
        changes.look()
        with self.timed():
            changes.look()
        return self.seconds()

    def deaths(self, number: int) -> dict[str, float]:
        """Half of the engines die at once, while all have a command and tasks wait."""
        ids = tuple(engine.id for engine in self.engines)
        id = f"{'c' * 12}-{number}"
        self.hear([self.client.say(Submit(id, ids, "apply", "echo", -1, 0.0, b"", (ECHO,)))])
        batch = f"{'t' * 12}-{number}"
        items = tuple((index, 0, (b"x" * 40,)) for index in range(TASKS))
        self.hear([self.tasks.say(Batch(batch, "call", "task", 0.0, pack({}), b"", (b"f" * 500,)))])
        self.hear([self.tasks.say(Work(batch, items))])
        self.let_pass()
        self.seconds()
        half = self.hosts[: len(self.hosts) // 2]
        said = []
        for peer, engines in zip(self.nannies, half, strict=False):
            exits = [Exited(e.key, "killed by signal 9", "last words\n" * 20, False) for e in engines]
            said.append(peer.say(*exits))
        for engines in half:
            for peer in engines:
                with self.timed():
                    peer.sink.link_lost(peer)
        self.hear(said)
        told: list[bytes] = []
        for _ in range(50):
            told += self._listen(self.client, 0.02)
            self._listen(self.tasks, 0.0)
        dead = {peer for engines in half for peer in engines}
        self.engines = [peer for peer in self.engines if peer not in dead]
        tables = [raw for raw in told if type(decode(raw)) is Engines]
        assert sum(type(decode(raw)) is Result for raw in told) == len(dead)
        assert len(self.controller.registry) == len(self.engines)
        return {
            "controller": self.seconds(),
            "tables": len(tables),
            "table bytes": sum(map(len, tables)),
        }


def simulate(n: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything, for `n` engines."""
    found: dict[str, Any] = {"engines": n}
    world = Simulation(n)
    world.seconds()
    gc.collect()
    before = psutil.Process().memory_info().rss  # first of all: later there is room that was freed
    found["registered at once"] = world.register(0.0)
    gc.collect()
    found["memory per engine"] = (psutil.Process().memory_info().rss - before) / n
    say(f"{n}: registered")
    found["echo"] = sorted(world.echo(number) for number in range(7))[3]
    say(f"{n}: echo {found['echo']:.3f} s")
    found["tasks"] = sorted(world.map(100 + number) for number in range(3))[1]
    say(f"{n}: {TASKS} tasks {found['tasks']:.3f} s")
    found["usage"] = sorted(world.usage() for _ in range(5))[2]
    for what, body in (("status", {}), ("queue_status", {"targets": list(range(n))}), ("links", {})):
        found[what] = sorted(world.ask(what, **body) for _ in range(5))[2]
    found["dashboard"] = sorted(world.dashboard() for _ in range(5))[2]
    found["deaths"] = world.deaths(1000)
    world.controller.stop()
    world = Simulation(n)
    world.seconds()
    found["registered at 100 a second"] = world.register(0.01)
    world.controller.stop()
    return found
