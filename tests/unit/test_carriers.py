"""What several engines of a host are sent goes to one of them; whatever happens, all get the right bytes."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from ipython1.kernel.client import CompositeError, PendingResult
from ipython1.kernel.controller.blobs import BlobRoutes
from ipython1.kernel.error import RemoteFailure
from ipython1.kernel.wire import blobs
from ipython1.kernel.wire.blobs import ChunkStore
from ipython1.kernel.wire.codec import decode, encode
from ipython1.kernel.wire.records import BlobRef, Chunk, Fetch, Grant, Record, Share
from ipython1.kernel.wire.segments import user_folder

from .hosts import CHUNK, HostMemory, Hosts, chunks, disturb

pytestmark = pytest.mark.skipif(user_folder() is None, reason="there is no shared memory here")

SIZE = 20 * CHUNK


@pytest.fixture
def cluster() -> Iterator[Hosts]:
    with chunks(), Hosts(6, 2) as cluster:
        yield cluster


def content(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def test_each_host_gets_it_once_and_each_engine_has_its_own(cluster: Hosts) -> None:
    mec = cluster.client()
    mec.push({"x": bytearray(content(1))})
    assert sorted(cluster.carried()) == [0, 0, 0, 0, SIZE, SIZE]
    cluster.nothing_left()
    assert not any(memory._uses for memory in cluster.memories)  # no name is left of what was shared
    mec.execute("x[0] = engine_id")
    assert [bytes(x) for x in mec["x"]] == [bytes([i]) + content(1)[1:] for i in range(6)]
    cluster.nothing_left()


def test_of_hosts_that_are_gone_nothing_is_known(cluster: Hosts) -> None:
    cluster.everybody_knows()
    routes = cluster.controller.router.blobs  # type: ignore[union-attr]
    assert set(routes._neighbours) == {"a", "b"}
    for engine in cluster.engines[:]:
        if engine.service.id % 2 == 0:
            cluster.end_engine(engine, "killed")
    cluster.settle()
    assert set(routes._neighbours) == {"b"}


# -- the protocol by itself, in any order ---------------------------------------------------

TINY = 10


class End:
    """A peer of the controller with its store; what is on its way to and from it waits to be delivered."""

    def __init__(self, kind: str, memory: HostMemory | None) -> None:
        self.kind = kind
        self.memory = memory.host if memory is not None else ""
        self.behind = False
        self.linked = self.alive = True
        self.here: deque[Record] = deque()
        self.there: deque[Record] = deque()
        self.store = ChunkStore(self.there.append, memory, Clock())
        self.session = SimpleNamespace(send=lambda raw: self.send(decode(raw)))
        self.got: list[bytes] = []
        self.chunked = 0
        self.expecting = False
        self.again: Callable[[], None] = lambda: None
        self._caught_up: list[Callable[[], None]] = []

    def send(self, record: Record) -> None:
        if self.alive:
            self.here.append(record)

    def when_caught_up(self, callback: Callable[[], None]) -> None:
        self._caught_up.append(callback)

    def catch_up(self) -> None:
        self.behind = False
        waiting, self._caught_up = self._caught_up, []
        for callback in waiting:
            callback()

    def take(self) -> None:
        record = self.here.popleft()
        self.chunked += len(record.data) if isinstance(record, Chunk) else 0
        {
            Fetch: lambda _: self.again(),
            Chunk: self.store.chunk_received,
            Grant: self.store.grant_received,
            Share: self.store.share_received,
        }[type(record)](record)


class Hub:
    """A client, engines on two hosts, and the controller's routes between them.

    `place`: as in `BlobRef`; `result`: what is sent is as the result of an engine.
    """

    def __init__(self, engines: int, place: str = "elsewhere:x/y:0", result: bool = False) -> None:
        self.result = result
        self.memories = [HostMemory(name) for name in "aaabbb"[:engines]]
        self.client = End("multiengine", None)
        self.engines = [End("engine", memory) for memory in self.memories]
        self.routes = BlobRoutes()
        for engine in self.engines:
            self.routes.engine_ready(engine)
        self.ref = BlobRef("c-1/s0/0", 12 * TINY - 3, place)
        self.data = content(5, self.ref.size)
        self.dropped: set[End] = set()
        if place:
            self.client.store._places[self.ref.blob] = place
        self.client.store.offer(self.ref.blob, memoryview(self.data))
        for engine in self.engines:
            engine.again = partial(self.heard_again, engine)
        self.open(self.engines[:2] if result else self.engines)

    def open(self, receivers: list[End]) -> None:
        may_read = None if self.result else self.engines.__contains__
        self.routes.open([self.ref], "c-1/", self.client, receivers, may_read)

    def again(self, engine: End) -> None:
        """The source says once more what it has, because an engine asked."""
        if self.result:
            self.client.there.append(Fetch("", (self.engines.index(engine),)))
            self.client.store.offer(self.ref.blob, memoryview(self.data))

    def expect(self, engine: End) -> None:
        """Its command has come to it."""
        engine.expecting = True
        found = engine.store.expect(*self.ref)
        found.addCallback(lambda data: engine.got.append(bytes(data)))

    def heard_again(self, engine: End) -> None:
        """A result comes to an engine, perhaps not for the first time."""
        if not engine.expecting:
            self.expect(engine)
        elif not engine.store.ask_again(self.ref.blob):
            engine.there.append(Grant(self.ref.blob, -1))

    def hear(self, end: End) -> None:
        """The controller takes a record of a peer."""
        record = end.there.popleft()
        if isinstance(record, Chunk):
            self.routes.chunk(end, record, encode(record))
        elif isinstance(record, Grant):
            self.routes.grant(end, record)
        elif isinstance(record, Fetch):
            engine = self.engines[record.targets[0]]
            if engine.alive:
                self.open([engine])
                engine.here.append(record)
        else:
            assert isinstance(record, Share)
            self.routes.share(end, record)

    def ways(self) -> list[Callable[[], None]]:
        """What can be delivered next."""
        ends = [end for end in [self.client, *self.engines] if end.linked and end.alive]
        return [
            *[partial(self.hear, end) for end in ends if end.there],
            *[end.take for end in ends if end.here],
        ]

    def settle(self) -> None:
        """Deliver all there is, which comes to an end."""
        for _ in range(10_000):
            ways = self.ways()
            if not ways:
                return
            ways[0]()
        pytest.fail("they talk for ever")

    def carriers(self) -> list[End]:
        """Those at which something arrives for others."""
        return [
            engine
            for engine in self.engines
            if engine.alive and any(each._draft is not None for each in engine.store._incoming.values())
        ]

    def memory(self, engine: End) -> HostMemory:
        return self.memories[self.engines.index(engine)]

    def fill(self, engine: End) -> None:
        self.memory(engine).full = True

    def blind(self, engine: End) -> None:
        self.memory(engine).blind = True

    def stall(self, engine: End) -> None:
        engine.behind = True

    def drop(self, engine: End) -> None:
        if engine.store._incoming:
            engine.store.drop(self.ref.blob)
            self.dropped.add(engine)

    def cut(self, engine: End) -> None:
        if engine.linked:
            engine.linked = False
            self.routes.away(engine)

    def mend(self, engine: End) -> None:
        if not engine.linked:
            engine.linked = True
            engine.store.ask_for_all()

    def kill(self, engine: End) -> None:
        if engine.alive:
            self.cut(engine)
            engine.alive = False
            self.memories[self.engines.index(engine)].close()
            self.routes.gone(engine)
            engine.here.clear()


@settings(max_examples=600, deadline=None)
@example(300, "", 4, True)
@example(301, "", 4, True)
@given(st.integers(0, 2**32), st.sampled_from(["", "elsewhere:x/y:0"]), st.integers(2, 6), st.booleans())
def test_in_any_order_each_gets_the_bytes_once(seed: int, place: str, engines: int, result: bool) -> None:
    chance = random.Random(seed)
    with chunks(TINY, active=seed % 2) as patch:  # 0: others are sent first
        hub = Hub(engines, place, result)
        waiting = list(hub.engines)
        if result:  # that comes to some at once, and to others when they ask
            for engine in waiting[:2]:
                hub.expect(engine)
            waiting = []
        faults = [hub.cut, hub.cut, hub.mend, hub.kill, hub.fill, hub.blind, hub.stall, hub.drop, hub.again]
        faults.append(End.catch_up)
        for _ in range(chance.randrange(200)):
            ways = hub.ways()
            if ways and chance.random() < 0.85:
                chance.choice(ways)()
            elif waiting and chance.random() < 0.4:
                engine = waiting.pop(chance.randrange(len(waiting)))
                if engine.alive:
                    hub.expect(engine)
            else:
                chance.choice(faults)(chance.choice([*hub.engines, *hub.carriers() * 2]))
        patch.setattr(blobs, "ACTIVE", 1)
        hub.client.store._start_waiting("c")
        for engine in hub.engines:
            if engine in waiting and engine.alive:
                hub.expect(engine)
            elif not engine.expecting:
                hub.again(engine)
            engine.catch_up()
            hub.mend(engine)
        hub.settle()
        for engine in hub.engines:
            if engine.alive and engine not in hub.dropped:
                assert engine.got == [hub.data]
        hub.routes.close([hub.ref.blob])
        hub.settle()
        for memory in hub.memories:
            arena = memory._arena
            known = [*arena._published.values(), *arena._released.values(), *arena._free.values()]
            assert not arena._published
            assert arena.held == sum(block.capacity for block in known)  # no draft is left
            memory.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with chunks(TINY):
        hub = Hub(3)
        yield hub
        for memory in hub.memories:
            memory.close()


def until_it_has(hub: Hub, engine: End, size: int) -> None:
    while engine.chunked < size:
        hub.ways()[0]()


def test_when_one_that_shares_it_dies_another_one_does(hub: Hub) -> None:
    first, second, third = hub.engines
    hub.expect(first)
    hub.settle()
    hub.kill(first)
    for engine in (second, third):
        hub.expect(engine)
    hub.settle()
    assert [engine.chunked for engine in hub.engines] == [hub.ref.size, hub.ref.size, 0]
    assert second.got == third.got == [hub.data]


def test_who_has_more_of_it_goes_on(hub: Hub) -> None:
    first, second, third = hub.engines
    for engine in hub.engines:
        hub.expect(engine)
    until_it_has(hub, first, 6 * TINY)
    hub.cut(first)
    until_it_has(hub, second, 2 * TINY)
    hub.mend(first)
    hub.settle()
    assert [engine.got for engine in hub.engines] == [[hub.data]] * 3
    assert first.chunked <= hub.ref.size + 4 * TINY  # and what was on its way
    assert second.chunked <= 6 * TINY
    assert third.chunked == 0


def test_a_source_that_skips_what_a_new_receiver_lacks_begins_anew() -> None:
    source, first, second = (End(kind, None) for kind in ("engine", "multiengine", "multiengine"))
    routes, ref = BlobRoutes(), BlobRef("c-1/r/0", 100)
    routes.open([ref], "c-1/", source, [first])
    for offset in range(0, 80, TINY):
        routes.chunk(source, chunk := Chunk(ref.blob, offset, bytes(TINY)), encode(chunk))
        routes.grant(first, Grant(ref.blob, offset + TINY))
    routes.open(
        [ref], "c-1/", source, [second]
    )  # the source says it once more, and then hears the last grant
    source.here.clear()
    routes.chunk(source, chunk := Chunk(ref.blob, 80, bytes(TINY)), encode(chunk))
    assert list(source.here) == [Grant(ref.blob, -1), Grant(ref.blob, 0)]
    assert len(first.here) == 9
    assert not second.here


# -- the whole cluster, whatever happens ------------------------------------------------------

N = 5
ENGINES = st.integers(0, N - 1)
TARGETS = st.sets(ENGINES, min_size=1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), TARGETS),
        st.tuples(st.just("pull"), TARGETS),
        st.tuples(st.just("abort"), TARGETS),
        st.tuples(st.just("cut client")),
        st.tuples(st.just("cut engine"), ENGINES),
        st.tuples(st.just("kill engine"), ENGINES),
        st.tuples(st.just("fill memory"), ENGINES),
        st.tuples(st.just("kill controller")),
        st.tuples(st.just("turn"), st.integers(1, 8)),
        st.tuples(st.just("wait"), st.sampled_from([0.02, 0.1, 1.0])),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with chunks(), Hosts(N, 2) as cluster:
        yield cluster


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_every_engine_gets_the_right_bytes_or_is_dead(hosts: Hosts, steps: list[tuple]) -> None:
    cluster = hosts
    for memory in cluster.memories:
        memory.full = False
    cluster.everybody_knows()
    mec = cluster.client()
    pushed, others = [], []
    dead = [0] * N  # how often each died
    for number, step in enumerate(steps):
        if step[0] in ("push", "pull", "abort"):
            targets = sorted(step[1])
            data = content(number, 8 * CHUNK + number * 4001)
            if step[0] == "pull":
                others.append(mec.pull("x", targets=targets, block=False))
                continue
            pending = mec.push({"x": data, f"x{number}": data}, targets=targets, block=False)
            if step[0] == "abort":
                pending.abort()
                others.append(pending)
            else:
                pushed.append((number, data, pending, list(dead)))
        elif step[0] == "fill memory":
            cluster.memory(step[1]).full = True
        else:
            disturb(cluster, mec, *step)
            if step[0] == "kill engine":
                dead[step[1]] += 1
    cluster.everybody_knows()
    for number, data, pending, before in pushed:
        died = {int(failure.engine) for failure in errors(pending)}
        assert died <= {id for id in pending.targets if dead[id]}
        for id in set(pending.targets) - died:
            if dead[id] == before[id]:
                assert mec.pull(f"x{number}", targets=id) == [data]
    for pending in others:
        errors(pending)
    assert not mec._core.pending
    mec.close()
    cluster.nothing_left()


def errors(pending: PendingResult) -> list[RemoteFailure]:
    """What has failed of a command, once all of it has ended."""
    try:
        pending.get_result(timeout=200)
    except CompositeError as error:
        return [failure for failure in error.elist if failure.ename != "NameError"]
    return []
