"""Bytes that nobody foresaw, at everything that reads bytes of others.

Seeds are real frames; what follows is mutated, with the guidance of coverage where `atheris` is
installed (``IPYTHON1_FUZZ=600`` seconds for each target; 1 where not given), else at random.
Nothing but `WireError` may come out, and what was read goes on to work.
"""

from __future__ import annotations

import importlib.util
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import msgpack
import pytest
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger

from ipython1 import __version__
from ipython1.kernel.controller.facets import ADMITTED, Door
from ipython1.kernel.controller.service import Controller
from ipython1.kernel.error import WireError
from ipython1.kernel.wire import codec, lanes
from ipython1.kernel.wire.bounds import Complaints, Guests
from ipython1.kernel.wire.codec import decode, encode, pack
from ipython1.kernel.wire.records import PROTOCOL, Hello, Refusal, Welcome
from ipython1.kernel.wire.session import BATCH_LIMIT, Session
from ipython1.kernel.wire.sniffing import MAGIC, Sniffing
from tests.unit.test_facets import CELLS

#: Seconds for each target.
SECONDS = float(os.environ.get("IPYTHON1_FUZZ", "1"))
#: Bytes of memory that a target may have.
MEMORY = 2 << 30
#: Modules whose branches guide the mutations.
WATCHED = ("ipython1.kernel.wire.", "ipython1.kernel.controller.")
RECORDS = [encode(record) for record in CELLS]
BOMBS = [
    b"\x91" * 2000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\x81\x80\xc0",
    b"\xd6\xff\xff\xff\xff\xff",
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xcb\x7f\xf8" + bytes(6),
    b"",
]


class Silent:
    """A link that swallows everything, and notes whether it is closed."""

    def __init__(self) -> None:
        self.closed = False

    def send(self, batch: bytes) -> None:
        """Into the void."""

    def close(self) -> None:
        """Noted."""
        self.closed = True


# -- the targets -------------------------------------------------------------------


def fuzz_decode(data: bytes) -> None:
    """`codec.decode`: a record, which stays the same, or `WireError`."""
    try:
        record = decode(data)
    except WireError:
        return
    assert decode(encode(record)) == record


def fuzz_values(data: bytes) -> None:
    """What stands in the `bytes` fields."""
    for read in (codec.unpack, codec.unpack_map, lambda raw: codec.decode_failure(raw, 0, "x")):
        try:
            read(data)
        except WireError:
            pass


def fuzz_session(data: bytes) -> None:
    """`Session.batch_received`: refused, or taken; the next good batch is."""
    clock = Clock()
    taken: list[bytes] = []
    session = Session(clock, taken.append)
    session.attach(Silent(), 0)  # type: ignore[arg-type]
    try:
        session.batch_received(data)
    except WireError:
        pass
    assert session.received == len(taken)
    session.batch_received(msgpack.packb((session.received + 1, 0, [b"good"])))
    assert taken[-1] == b"good"
    session.end()
    assert clock.getDelayedCalls() == []


class _Owner:
    def __init__(self) -> None:
        self.ends = 0

    def opened(self, lane: Any) -> None:
        """It begins."""

    def said(self, lane: lanes.LaneLink, frame: bytes) -> None:
        """As a visit does."""
        if len(frame) > lanes.TICKET_SIZE:
            raise AssertionError("a frame over the limit")
        if frame.startswith(b"begin"):
            lane.begin(Session(Clock(), lambda raw: None))

    def ended(self, lane: Any, why: str) -> None:
        """Once."""
        self.ends += 1


def fuzz_lane(data: bytes) -> None:
    """The frames of a lane, in pieces: those within limits are handed over, and the end is told once."""
    owner = _Owner()
    lane = lanes.LaneLink(Clock(), owner)
    transport = StringTransport()
    lane.makeConnection(transport)
    size = 1 + (data[0] if data else 0)
    for start in range(0, len(data), size):
        lane.dataReceived(data[start : start + size])
    assert sum(map(len, lane._pieces)) <= BATCH_LIMIT + 4
    if transport.disconnecting or transport.disconnected or not lane._open:
        lane.dataReceived(b"\x00\x00\x00\x05begin")
    lane.connectionLost()
    assert owner.ends == 1


class _Heard(Protocol):  # type: ignore[misc]
    def __init__(self, heard: list[bytes]) -> None:
        self._heard = heard

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self._heard.append(data)


def fuzz_sniffer(data: bytes) -> None:
    """The first bytes of a connection: all reach one of two, in order, or are the beginning of `MAGIC`."""
    clock = Clock()
    lane: list[bytes] = []
    other: list[bytes] = []
    guests = Guests(5)
    sniffing = Sniffing(
        clock,
        Factory.forProtocol(lambda: _Heard(lane)),
        Factory.forProtocol(lambda: _Heard(other)),
        Complaints(Logger(observer=lambda event: None), clock),
        guests,
    )
    transport: Any = StringTransport()
    transport.protocol = sniffing.buildProtocol(None)
    transport.protocol.makeConnection(transport)
    size = 1 + (data[-1] % 20 if data else 0)
    for start in range(0, len(data), size):
        transport.protocol.dataReceived(data[start : start + size])
    if data.startswith(MAGIC):
        assert (b"".join(lane), other) == (data[len(MAGIC) :], [])
    elif MAGIC.startswith(data):
        assert (lane, other, len(guests)) == ([], [], 1)
    else:
        assert (lane, b"".join(other)) == ([], data)
    transport.protocol.connectionLost()
    assert len(guests) == 0
    assert clock.getDelayedCalls() == []


def fuzz_hello(data: bytes) -> None:
    """A hello at every door: a `Refusal`, or a `Welcome` and a session; none is left over."""
    clock = Clock()
    controller = Controller(clock, now=clock.seconds)
    for furl in ADMITTED:
        answer, sink = Door(furl, controller._admit).knock(data, Silent())  # type: ignore[arg-type]
        record = decode(answer)
        assert isinstance(record, Welcome if sink is not None else Refusal)
    controller.stop()
    assert clock.getDelayedCalls() == []


def fuzz_records(data: bytes) -> None:
    """Records to a controller from each kind of peer: never more than the end of the link."""
    clock = Clock()
    controller = Controller(clock, now=clock.seconds)
    for number, raw in enumerate(HELLOS):
        sink = Door("engine" if number > 2 else "multiengine", controller._admit).knock(raw, Silent())[1]  # type: ignore[arg-type]
        assert sink is not None
        first = 1
        for piece in data.split(b"|||"):
            try:
                sink.batch_received(msgpack.packb((first, 0, [piece])))
            except WireError:
                pass
            first += 1
    clock.pump([0.1] * 5)
    assert controller.status() is not None
    controller.stop()
    assert clock.getDelayedCalls() == []


def _hello(kind: str, detail: dict[str, Any]) -> bytes:
    return encode(Hello(PROTOCOL, __version__, kind, "", f"{kind:f<40}", 0, pack(detail)))


HELLOS = [
    _hello("multiengine", {"client": "c"}),
    _hello("task", {"client": "c-t"}),
    _hello("view", {"client": "v"}),
    _hello(
        "engine",
        {"uuid": "e", "host": "h", "pid": 1, "nanny": "n", "wanted": -1}
        | {
            "replaces": {"uuid": "x", "cause": "", "output": ""},
            "held": [["c-1", "push", ""]],
            "clients": [],
        },
    ),
    _hello("nanny", {"uuid": "n", "engines": ["e"], "exited": [["x", "", "", True, ""]]}),
]
BATCHES = [msgpack.packb((1, 0, RECORDS[i : i + 5])) for i in range(0, len(RECORDS), 5)]
FRAMES = [len(batch).to_bytes(4, "big") + batch for batch in BATCHES]
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "decode": (fuzz_decode, RECORDS + BOMBS),
    "values": (fuzz_values, [*HELLOS, pack(["ValueError", "x", "tb", b"p", {"a": 1}]), *BOMBS]),
    "session": (fuzz_session, BATCHES + BOMBS),
    "lane": (fuzz_lane, [b"\x00\x00\x00\x05begin" + frame for frame in FRAMES] + FRAMES + BOMBS),
    "sniffer": (
        fuzz_sniffer,
        [MAGIC, b"GET /id/abc HTTP/1.1\r\n", MAGIC + b"\x16\x03\x01", b"ipython1", b""],
    ),
    "hello": (fuzz_hello, HELLOS + BOMBS),
    "records": (fuzz_records, [*RECORDS, b"|||".join(RECORDS), *BOMBS]),
}


# -- who drives them ------------------------------------------------------------------


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    """A seed with some bytes changed, cut out, doubled, or taken from another seed."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((0, 1, 1, 2, 3, 8))):
        place = chance.randrange(len(data) + 1)
        end = place + chance.choice((0, 1, 1, 2, 4, 9, 40))
        how = chance.randrange(5)
        if how == 0:
            data[place:end] = chance.randbytes(end - place)
        elif how == 1:
            del data[place:end]
        elif how == 2:
            data[place:place] = data[place:end] * chance.randrange(1, 20)
        elif how == 3:
            other = chance.choice(seeds)
            begin = chance.randrange(len(other) + 1)
            data[place:end] = other[begin : begin + 20]
        elif place < len(data):
            # lengths, and the values at the ends of ranges
            data[place] = chance.choice((0, 1, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xCB, 0xDD, 0xDF, 0xFF))
    return bytes(data)


def at_random(target: Callable[[bytes], None], seeds: list[bytes], seconds: float, seed: str) -> int:
    """Run a target on mutated seeds; returns how often."""
    chance = random.Random(seed)
    for known in seeds:
        target(known)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        data = mutated(seeds, chance)
        try:
            target(data)
        except BaseException:
            print(f"fails on {data!r}")
            raise
        count += 1
    return count


@pytest.mark.timeout(SECONDS + 100)
@pytest.mark.parametrize("name", TARGETS)
def test_anything_at_all(name: str, tmp_path: Path) -> None:
    target, seeds = TARGETS[name]
    if importlib.util.find_spec("atheris") is None:
        chosen = "the same" if "CI" in os.environ else str(time.time())
        assert at_random(target, seeds, SECONDS, chosen) > 10
        return
    for number, known in enumerate(seeds):
        target(known)
        (tmp_path / str(number)).write_bytes(known)
    command = [sys.executable, "-m", "tests.unit.test_fuzz", name, os.fspath(tmp_path)]
    options = [f"-max_total_time={max(1, round(SECONDS))}", "-timeout=10", "-rss_limit_mb=0"]
    ran = subprocess.run(
        [*command, *options, f"-artifact_prefix={tmp_path}/"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert "Done" in ran.stdout


def main() -> None:
    """Fuzz one target with atheris; arguments: its name, a folder of seeds, options of libFuzzer."""
    import atheris

    name, *rest = sys.argv[1:]
    # libFuzzer's own limit counts what the parent once had.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for module in [sys.modules[name] for name in sys.modules if name.startswith(WATCHED)]:
        owners = [module, *(value for value in vars(module).values() if isinstance(value, type))]
        for owner in owners:
            for value in vars(owner).values():
                if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                    atheris.instrument_func(value)
    target = atheris.instrument_func(TARGETS[name][0])
    atheris.Setup([sys.argv[0], *rest], target)
    atheris.Fuzz()


# -- time and memory that grow no faster than what comes in ---------------------------------


def work(target: Callable[[bytes], Any], data: bytes) -> int:
    """How many lines of Python run: a measure of time that no busy machine changes."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        target(data)
    except WireError:
        pass
    finally:
        sys.settrace(before)
    return count


def _lane_bytes(data: bytes) -> None:
    lane = lanes.LaneLink(Clock(), _Owner())
    lane.makeConnection(StringTransport())
    for i in range(0, len(data), 100):
        lane.dataReceived(data[i : i + 100])


def _session_bytes(data: bytes) -> None:
    session = Session(Clock(), lambda raw: None)
    session.attach(Silent(), 0)  # type: ignore[arg-type]
    session.batch_received(data)


@pytest.mark.parametrize(
    ("target", "make"),
    [
        (decode, lambda n: encode_with(n, "parts")),
        (decode, lambda n: encode_with(n, "targets")),
        (decode, lambda n: encode_with(n, "items")),
        (_session_bytes, lambda n: msgpack.packb((1, 0, [b"x"] * n))),
        (_session_bytes, lambda n: msgpack.packb((1, 0, [b"x" * n]))),
        (_lane_bytes, lambda n: b"\x00\x00\x00\x05begin" + b"\x00\x00\x00\x00" * n),
        (_lane_bytes, lambda n: b"\x00\x00\x00\x05begin" + (n * 100).to_bytes(4, "big") + bytes(n * 100)),
        (lambda data: codec.unpack_map(data), lambda n: pack({str(i): i for i in range(n)})),
    ],
)
def test_the_work_grows_with_the_bytes(target: Callable[[bytes], Any], make: Callable[[int], bytes]) -> None:
    small, large = make(500), make(4000)
    growth = work(target, large) / max(work(target, small), 20)
    assert growth < 1.5 * len(large) / len(small)


def encode_with(count: int, field: str) -> bytes:
    """A record with many of something."""
    fields: dict[str, Any] = {"targets": [0], "parts": []}
    if field == "items":
        return bytes(msgpack.packb([61, "c-1", [[i, 0, [["b", 1, ""]]] for i in range(count)], False]))
    fields[field] = [["b", 1, ""]] * count if field == "parts" else list(range(count))
    return bytes(msgpack.packb([10, "c-1", fields["targets"], "push", "", 0, 0.0, b"", fields["parts"], []]))


def colliding(count: int) -> list[tuple[int, int]]:
    """Pairs of numbers with the same hash: CPython hashes tuples without a secret."""
    one, two, start, top = 11400714785074694791, 14029467366897019727, 2870177450012600261, 2**64 - 1
    inverse = pow(two, -1, 2**64)
    wanted = None
    pairs: list[tuple[int, int]] = []
    first = 0
    while len(pairs) < count:
        first += 1
        lane = (start + first * two) & top
        lane = ((lane << 31 | lane >> 33) & top) * one & top
        wanted = lane + 5 * two if wanted is None else wanted
        second = (wanted - lane) * inverse & top
        if second < 2**61 - 1:
            pairs.append((first, second))
    return pairs


def test_keys_that_share_a_hash_are_refused() -> None:
    """As keys of one map, 300,000 of them in 4 MiB would keep the controller busy for minutes."""
    pairs = colliding(200)
    assert len({hash(pair) for pair in pairs}) == 1, "no attack any more: the test needs another one"
    raw = b"\xde\x00\xc8" + b"".join(msgpack.packb(pair) + b"\xc0" for pair in pairs)
    for read in (codec.unpack, decode, _session_bytes):
        with pytest.raises(WireError):
            read(raw)


@pytest.mark.parametrize("unit", [b"\x80", b"\x81\xa0\xc0", b"\x91\xc0"])
@pytest.mark.parametrize("read", [codec.unpack, decode, _session_bytes])
def test_a_bomb_takes_little_memory(read: Callable[[bytes], Any], unit: bytes) -> None:
    """Four MiB that would become 300."""
    import tracemalloc

    count = (4 * 2**20 - 5) // len(unit)
    raw = b"\xdd" + count.to_bytes(4, "big") + unit * count
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            read(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * 2**20


if __name__ == "__main__":
    main()
