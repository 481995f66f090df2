"""Tasks on an engine with a real shell, against a controller that the test plays."""

from __future__ import annotations

from collections.abc import Iterator
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
from ipython1.kernel.wire.chunks import Row, join_rows, split_rows
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


def test_a_result_that_is_large_or_cannot_be_pickled(played: Played) -> None:
    def f(size: int) -> Any:
        return bytes(size) if size else (i for i in ())

    ends = played.run(batch(f), work(item(0, 100_000), item(1, 0), item(2, 1)))
    by_index = {end[0]: end for end in ends}
    ref = by_index[0][6][-1]
    assert isinstance(ref, BlobRef)
    assert ref.blob == "c-1#0/u/r/0"
    assert {record.blob for record in played.heard if isinstance(record, Chunk)} == {ref.blob}
    assert failure(by_index[1][6]).ename == "SerializationError"
    assert loads(by_index[2][6]) == b"\0"  # type: ignore[arg-type]


def test_an_error_has_the_lines_of_the_user_alone(played: Played) -> None:
    def f() -> None:
        raise ValueError("no")

    runner = Depending(Requiring(f, ["json"]), lambda: True)
    (end,) = played.run(batch(runner), work(item(0)))
    wrong = failure(end[6])
    assert wrong.summary == "ValueError: no"
    assert 'raise ValueError("no")' in wrong.traceback
    assert "runners.py" not in wrong.traceback
    assert "calls.py" not in wrong.traceback


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_nothing_that_is_raised_ends_the_engine(played: Played, error: type[BaseException]) -> None:
    def f(x: int) -> int:
        if x:
            raise error
        return x

    found = values(played.run(batch(f), work(item(0, 1), item(1, 0))))
    assert found[0].ename == error.__name__
    assert found[1] == 0


def test_an_interrupt_ends_a_chunk(played: Played) -> None:
    def f(x: int) -> int:
        if x == 2:
            raise KeyboardInterrupt
        if x == 0:
            raise ValueError
        return x

    rows = [Row((), plain(dumps(((x,), {})))) for x in (0, 1, 2, 3)]  # type: ignore[arg-type]
    chunk = Batch("c-1", "chunk", "", 0.0, b"", b"", plain(dumps_call(f)))
    (end,) = played.run(chunk, work((0, 0, plain(join_rows(rows)))))
    assert end[2] == "ok"
    found = list(split_rows(end[6]))  # type: ignore[arg-type]
    assert [row.facts[0] for row in found] == [False, True, False]
    assert loads(found[1].parts) == 1
    assert failure(tuple(found[2].parts)).ename == "KeyboardInterrupt"  # type: ignore[arg-type]


def test_coroutines_run(played: Played) -> None:
    async def f(x: int) -> int:
        return x + 1

    assert values(played.run(batch(f), work(item(0, 1)))) == {0: 2}


def test_a_function_is_loaded_once(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "FUNCTIONS_KEPT", 2)
    loaded: list[str] = []
    real = calls_module._LOADERS["call"]

    def load(common: Any, ns: dict[str, Any]) -> Any:
        loaded.append(common.id)
        return real(common, ns)

    monkeypatch.setitem(calls_module._LOADERS, "call", load)
    batches = [batch(abs, f"c-{i}") for i in range(3)]
    played.run(*batches, work(item(0, 1), item(1, 1), id="c-0"), work(item(0, 1), id="c-1"))
    assert loaded == ["c-0", "c-1"]
    played.run(work(item(2, 1), id="c-0"), work(item(0, 1), id="c-2"))  # c-1 makes room
    assert loaded == ["c-0", "c-1", "c-2"]
    found = played.run(work(item(3, 1), id="c-0"), work(item(5, -7), id="c-1"), work(item(4, 1), id="c-0"))
    assert values(found) == {3: 1, 4: 1, 5: 7}
    assert loaded == ["c-0", "c-1", "c-2", "c-1"]


def test_what_a_function_finds_in_the_namespace_is_always_current(played: Played) -> None:
    def f() -> Any:
        global made
        made = globals().get("made", 0) + 1
        return made, globals().get("x", "none"), x  # type: ignore[name-defined]  # noqa: F821

    played.ns["x"] = 1
    assert values(played.run(batch(f), work(item(0)))) == {0: (1, 1, 1)}
    played.ns["x"] = 2
    assert values(played.run(work(item(1)))) == {1: (2, 2, 2)}
    del played.ns["x"]
    assert values(played.run(work(item(2))))[2].summary == "NameError: name 'x' is not defined"
    played.ns["x"] = 3
    assert values(played.run(work(item(3)))) == {3: (4, 3, 3)}


def test_references_and_functions_among_the_arguments(played: Played) -> None:
    played.ns["n"] = 5
    found = played.run(
        batch(lambda g, k=None: (g(1), k)),
        work(item(0, lambda x: x + n), (1, 0, plain(dumps(((abs,), {"k": Reference("n")}))))),  # type: ignore[name-defined]  # noqa: F821
        work(item(2, abs, Reference("gone"))),
    )
    assert values(found[:2]) == {0: (6, None), 1: (1, 5)}
    assert values(found[2:])[2].summary == "NameError: name 'gone' is not defined"


def test_a_bad_batch_fails_its_tasks_alone(played: Played) -> None:
    found = values(
        played.run(
            Batch("c-1", "call", "", 0.0, b"", b"\xc1", ()),
            Batch("c-2", "other", "", 0.0, b"", b"", ()),
            batch(abs, "c-3"),
            work((0, 0, (b"",)), id="c-1"),
            work((1, 0, (b"",)), id="c-2"),
            work(item(2, -2), id="c-3"),
            work(item(3), id="c-4"),
        )
    )
    assert found[2] == 2
    assert [found[i].ename for i in (0, 1, 3)] == ["WireError", "KeyError", "TaskAborted"]


# -- code --------------------------------------------------------------------------


def test_code_gets_names_and_gives_names(played: Played) -> None:
    found = played.run(
        code("y = x * 2\nprint(y)\ny", pull=["y", "x"]), work(pushed(0, x=4), pushed(1, x=5)), work(pushed(2))
    )
    assert values(found) == {0: {"y": 8, "x": 4}, 1: {"y": 10, "x": 5}, 2: {"y": 10, "x": 5}}
    assert played.events()[0] == ("c-1#0", 0, 0, "stdout", "8\n")
    assert played.engine.shell.execution_count == 0
    assert values(played.run(code("z = 1", "c-2"), work(pushed(0), id="c-2"))) == {0: {}}
    missing = values(played.run(code("pass", "c-3", pull=["nix"]), work(pushed(0), id="c-3")))[0]
    assert missing.summary == "NameError: name 'nix' is not defined"
    wrong = values(played.run(code("1 /", "c-4"), work(pushed(0), id="c-4")))[0]
    assert wrong.ename == "SyntaxError"


def test_the_namespace_is_cleared_before_and_after(played: Played) -> None:
    played.ns["old"] = 1
    found = values(
        played.run(code("new = 'old' in globals()", pull=["new"], clear_before=True), work(pushed(0)))
    )
    assert found == {0: {"new": False}}
    assert "new" in played.ns
    source = "def g():\n    return new\nif bad: 1 / 0"
    found = values(
        played.run(
            code(source, "c-2", pull=["g"], clear_after=True),
            work(pushed(0, bad=False), id="c-2"),
            work(pushed(1, bad=True), id="c-2"),
        )
    )
    assert found[0]["g"]() is False
    assert found[1].ename == "ZeroDivisionError"
    assert played.engine.shell.user_names() == []
    played.ns["old"] = 1
    played.run(batch(abs, "c-3", clear_before=True), work(item(0, 1), id="c-3"))
    assert "old" not in played.ns


# -- dependencies ------------------------------------------------------------------


def test_what_depends_on_the_engine_is_rejected(played: Played) -> None:
    def fits(need: str) -> bool:
        return need in ipython1.this_engine.properties

    guarded = batch(Depending(abs, fits, ("gpu",)))
    (end,) = played.run(guarded, work(item(0, -1)))
    assert end[:3] == (0, 0, "rejected")
    assert failure(end[6]).summary == "TaskRejected: The task does not run on this engine: fits says False."
    assert values(played.run(Seek("c-1", (0,)))) == {0: "unknown"}  # it may come again
    played.engine.operations.engine.properties["gpu"] = 1
    (end,) = played.run(work(item(0, -1, attempt=1)))
    assert end[:3] == (0, 1, "ok")


def test_tasks_may_reject_themselves(played: Played) -> None:
    class Sorry(TaskRejected):
        def __str__(self) -> str:
            raise ValueError

    def f(x: int) -> None:
        if x == 0:
            raise TaskRejected
        raise Sorry

    def check() -> None:
        raise TaskRejected("not me")

    found = played.run(batch(f), work(item(0, 0), item(1, 1)))
    assert [end[2] for end in found] == ["rejected", "rejected"]
    assert {failure(end[6]).ename for end in found} == {"TaskRejected"}
    (end,) = played.run(batch(Depending(f, check), "c-2"), work(item(0, 0), id="c-2"))
    assert (end[2], failure(end[6]).evalue) == ("rejected", "not me")
    (end,) = played.run(batch(Depending(abs, lambda: None), "c-3"), work(item(0, -1), id="c-3"))
    assert end[2] == "ok"


def test_what_requires_a_module_is_rejected_without_it(played: Played) -> None:
    def f() -> str:
        return str(n)  # type: ignore[name-defined]  # noqa: F821

    played.ns["n"] = 7
    assert values(played.run(batch(Requiring(f, ["json", "wave"])), work(item(0)))) == {0: "7"}
    (end,) = played.run(batch(Requiring(f, ["no_such_module"]), "c-2"), work(item(0), id="c-2"))
    assert end[2] == "rejected"
    assert "it requires no_such_module (No module named" in failure(end[6]).evalue


def test_code_may_depend_as_well(played: Played) -> None:
    def fits(bound: int, *, other: int = 0) -> bool:
        return limit > bound + other  # type: ignore[name-defined,no-any-return]  # noqa: F821

    (depend,) = plain(dumps((fits, (5,), {"other": 1})))
    played.ns["limit"] = 5
    (end,) = played.run(code("ran = True", depend=depend), work(pushed(0, pushed=1)))
    assert end[2] == "rejected"
    assert not {"ran", "pushed"} & played.ns.keys()
    played.ns["limit"] = 7
    (end,) = played.run(work(pushed(0, attempt=1)))
    assert end[2] == "ok"


# -- repeats -----------------------------------------------------------------------


def test_attempts(played: Played) -> None:
    def f(x: int) -> int:
        print("at", x)
        return x

    played.run(batch(f), work(item(0, 1)))
    (end,) = played.run(work(item(0, 1)))  # a repeat is answered
    assert (end[1], loads(end[6])) == (0, 1)  # type: ignore[arg-type]
    assert played.events() == [("c-1#0", 0, 0, "stdout", "at 1\n")]
    (end,) = played.run(work(item(0, 5, attempt=2)))
    assert (end[1], end[5], loads(end[6])) == (2, 1, 5)  # type: ignore[arg-type]
    assert played.events() == [("c-1#0", 2, 0, "stdout", "at 5\n")]
    assert played.run(work(item(0, 6, attempt=1))) == []
    played.say(work(item(1, 1)), work(item(1, 1)), work(item(1, 2, attempt=1)), work(item(1, 3)))
    (end,) = played.run()
    assert (end[:3], loads(end[6])) == ((1, 1, "ok"), 2)  # type: ignore[arg-type]


def test_a_later_attempt_while_the_earlier_one_runs(played: Played) -> None:
    def f(x: int) -> int:
        hook(x)  # type: ignore[name-defined]  # noqa: F821
        print("at", x)
        return x

    def does(x: int) -> None:
        if x == 1:
            played.say(work(item(0, 2, attempt=1)), Seek("c-1", (0,)))

    played.ns["hook"] = does
    ends = played.run(batch(f), work(item(0, 1)))
    assert [end[:3] for end in ends] == [(0, 1, "held"), (0, 1, "ok")]
    assert [event for event in played.events() if event[1] == 1] == [("c-1#0", 1, 0, "stdout", "at 2\n")]


def test_seek(played: Played) -> None:
    def f(x: int) -> int:
        print(x)
        return x

    played.run(batch(f), work(item(0, 1)))
    played.say(work(item(1, 2)))
    del played.heard[:]
    played.say(Seek("c-1", (0, 1, 2)), Seek("c-2", (0,)))
    ends = played.ends()
    assert [(end[0], end[2]) for end in ends] == [(0, "ok"), (1, "held"), (2, "unknown"), (0, "unknown")]
    assert loads(ends[0][6]) == 1  # type: ignore[arg-type]
    assert [type(record) for record in played.heard] == [Event, Outcomes, Outcomes]
    played.run()
    played.run(Taken("c-1", (0, 1), True))
    assert values(played.run(Seek("c-1", (0, 1)))) == {0: 1, 1: 2}  # for whoever asks by id
    assert played.engine.service._tasks._batches == {}


def test_after_a_restart_of_the_controller(played: Played) -> None:
    played.run(batch(abs), work(item(0, -1)))
    played.say(work(item(1, -2)))
    played.engine_id = 5
    played.restart()
    assert played.hellos[-1]["held"] == ()  # of commands only
    assert played.hellos[-1]["clients"] == ("c",)
    assert played.heard == []
    played.say(batch(abs), Seek("c-1", (0, 1)))
    assert values(played.ends()) == {0: 1, 1: "held"}
    assert {record.engine for record in played.heard if isinstance(record, Outcomes)} == {5}
    assert values(played.run()) == {1: 2}


# -- withdrawal --------------------------------------------------------------------


def test_recall(played: Played) -> None:
    seen: list[tuple[int, str]] = []

    def does(x: int) -> int:
        if x == 0:
            played.say(Withdraw("c-1", (0, 1, 9), "recall"))
            seen.extend((end[0], end[2]) for end in played.ends())
        return x

    played.ns["hook"] = does
    played.say(batch(lambda x: hook(x)), work(item(0, 0), item(1, 1), item(2, 2)))  # type: ignore[name-defined]  # noqa: F821
    ends = played.run()
    assert seen == [(1, "back")]
    assert [(end[0], end[2]) for end in ends] == [(1, "back"), (0, "ok"), (2, "ok")]
    assert played.run(Withdraw("c-1", (0, 1), "recall"), Withdraw("c-7", (), "recall")) == []
    assert values(played.run(work(item(1, 1, attempt=1)))) == {1: 1}


def test_abort(played: Played) -> None:
    def does(x: int) -> int:
        if x == 0:
            played.say(Withdraw("c-1", (0, 1), "abort"))
        return x

    played.ns["hook"] = does
    played.say(batch(lambda x: hook(x)), work(*[item(i, i) for i in range(5)]))  # type: ignore[name-defined]  # noqa: F821
    played.say(batch(abs, "c-2"), work(item(0, -1), id="c-2"))
    played.say(Withdraw("c-1", (3,), "abort"))
    assert [(end[0], end[2], end[3]) for end in played.ends()] == [(3, "error", 0.0)]
    found = played.run()
    assert [(end[0], end[2], end[3] > 0) for end in found if end[0]] == [
        (1, "error", False),
        (2, "ok", True),
        (4, "ok", True),
    ]
    assert failure(found[0][6]).ename == "TaskAborted"
    assert played.events() == [("c-1#0", 0, 0, "started", "")]
    assert values(played.run(work(item(1, 1))))[1].ename == "TaskAborted"  # a repeat
    played.say(work(*[item(i, i) for i in range(5, 8)]))
    found = played.run(Withdraw("c-1", (), "interrupt"))
    assert {failure(end[6]).ename for end in found} == {"TaskAborted"}
    assert [end[0] for end in found] == [5, 6, 7]


def test_an_interrupt_by_id_reaches_a_task_that_waits(played: Played) -> None:
    played.say(batch(abs), work(item(0, -1), item(1, -1)))
    found = values(played.run(Interrupt((0,), "c-1#1")))
    assert found[0] == 1
    assert found[1].summary == "KeyboardInterrupt: before it ran"


def test_commands_and_tasks_stand_in_one_queue(played: Played) -> None:
    def execute(n: int) -> Submit:
        source = (f"order.append({n})".encode(),)
        return Submit(f"c-9{n}", (0,), "execute", "", -1, 0.0, pack({}), source)

    played.ns["order"] = []
    append = batch(lambda x: order.append(x))  # type: ignore[name-defined]  # noqa: F821
    played.run(append, execute(0), work(item(0, 1), item(1, 2)), execute(3), work(item(2, 4)))
    assert played.ns["order"] == [0, 1, 2, 3, 4]
    played.say(work(item(3, 5)), execute(6))
    played.run(Cancel((), (0,), "QueueCleared"))  # commands alone
    assert played.ns["order"] == [0, 1, 2, 3, 4, 5]


# -- an engine that is to end -------------------------------------------------------


def test_what_the_end_of_an_engine_interrupts_is_not_told(played: Played) -> None:
    def f(x: int) -> int:
        if x == 1:
            leave()  # type: ignore[name-defined]  # noqa: F821
            raise KeyboardInterrupt
        return x

    played.ns["leave"] = played.engine.service.leave
    assert values(played.run(batch(f), work(item(0, 0), item(1, 1)))) == {0: 0}


def test_nor_a_chunk_that_it_was_in(played: Played) -> None:
    def f(x: int) -> int:
        if x == 1:
            leave()  # type: ignore[name-defined]  # noqa: F821
            raise KeyboardInterrupt
        return x

    played.ns["leave"] = played.engine.service.leave
    rows = [Row((), plain(dumps(((x,), {})))) for x in (0, 1, 2)]  # type: ignore[arg-type]
    chunk = Batch("c-1", "chunk", "", 0.0, b"", b"", plain(dumps_call(f)))
    assert played.run(chunk, work((0, 0, plain(join_rows(rows))))) == []


@pytest.mark.parametrize(("source", "told"), [("leave()", ["ok"]), ("leave(); raise KeyboardInterrupt", [])])
def test_nor_a_command(played: Played, source: str, told: list[str]) -> None:
    played.ns["leave"] = played.engine.service.leave
    played.run(Submit("c-1", (0,), "execute", "", -1, 0.0, pack({}), (source.encode(),)))
    assert [record.status for record in played.heard if isinstance(record, Result)] == told


# -- blobs -------------------------------------------------------------------------


def test_large_parts_of_batches_and_tasks(played: Played) -> None:
    data = bytes(70_000)
    parts = plain(dumps_call(lambda x: len(x) + n))  # type: ignore[name-defined]  # noqa: F821
    played.ns["n"] = 1
    large = Batch(
        "c-1",
        "call",
        "",
        0.0,
        b"",
        b"",
        (BlobRef("c-1/b0", len(parts[0])), *parts[1:]),  # type: ignore[arg-type]
    )
    (raw,) = plain(dumps(((data,), {})))
    assert isinstance(raw, bytes)
    assert isinstance(parts[0], bytes)
    played.say(large, work(item(0, b"x"), (1, 0, (BlobRef("c-1#1/a0", len(raw)),)), item(2, b"xy")))
    played.say(batch(abs, "c-2"), work(item(7, -3), id="c-2"))
    assert played.run(Chunk("c-1#1/a0", 0, raw)) == []  # they keep their places
    found = played.run(Chunk("c-1/b0", 0, parts[0]))
    assert [end[0] for end in found if end[0] != 7] == [0, 1, 2]
    assert values(found) == {0: 2, 1: 70_001, 2: 3, 7: 3}


@pytest.mark.parametrize("lost", ["c-1/b0", "c-1#0/a0"])
def test_parts_that_will_not_come(played: Played, lost: str) -> None:
    whole = batch(abs)
    parts = plain(dumps_call(abs))
    large = Batch("c-1", "call", "", 0.0, b"", b"", (BlobRef("c-1/b0", len(parts[0])), *parts[1:]))
    head = large if lost == "c-1/b0" else whole
    own = item(0, -1)[2] if lost == "c-1/b0" else (BlobRef("c-1#0/a0", 10),)
    played.say(head, work((0, 0, own)), batch(abs, "c-2"), work(item(1, -1), id="c-2"))
    found = values(played.run(Chunk(lost, -1, b"")))
    assert (found[0].ename, found[1]) == ("ConnectionError", 1)
    if lost == "c-1/b0":
        later = values(played.run(work(item(2, -2))))
        assert later[2].ename == "ConnectionError"
        assert values(played.run(whole, work(item(3, -3)))) == {3: 3}  # it came again
    assert not played.engine.service._blobs._incoming


# -- the end of a batch ---------------------------------------------------------------


def test_the_end_of_a_batch(played: Played) -> None:
    kept = played.engine.service._tasks
    played.run(batch(abs), work(*[item(i, -i) for i in range(3)]))
    common = kept._batches["c-1"]
    assert common.loaded is not None
    played.run(Taken("c-1", (0, 9), False))
    assert sorted(common.tasks) == [1, 2]
    played.say(work(item(5, 1)))  # nobody wants it any more
    assert played.run(Taken("c-1", (1,), True)) == []
    assert kept._batches == {}
    assert (common.loaded, common.parts, common.tasks) == (None, None, {})
    assert values(played.run(batch(abs), work(item(6, -6)))) == {6: 6}
    assert values(played.run(Taken("c-8", (1,), True), Seek("c-1", (2, 5)))) == {2: 2, 5: "unknown"}


def test_a_client_that_departed_and_comes_back(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def does(x: int) -> int:
        ran.append(x)
        if x == 1:
            played.say(Departed("c"), Seek("c-1", (0, 1, 2)))
        return x

    played.ns["hook"] = does
    mine = batch(lambda x: hook(x))  # type: ignore[name-defined]  # noqa: F821
    played.say(mine, work(*[item(i, i) for i in range(3)]), batch(abs, "d-1"), work(item(9, -9), id="d-1"))
    ends = played.run()
    assert ran == [0, 1]
    mine_ended = [(end[0], end[2]) for end in ends if end[0] != 9]
    assert mine_ended == [(0, "ok"), (2, "error"), (0, "ok"), (1, "held"), (2, "error"), (1, "ok")]
    assert list(played.engine.service._tasks._batches) == ["d-1"]
    found = values(played.run(mine, Seek("c-1", (0, 1, 2))))
    assert (found[0], found[1], found[2].ename) == (0, 1, "TaskAborted")
    assert values(played.run(work(item(0, 0), item(3, 3)))) == {0: 0, 3: 3}
    assert ran == [0, 1, 3]
    monkeypatch.setattr(kept_module, "KEPT_COUNT", 1)
    played.run(Departed("c"))
    found = values(played.run(mine, Seek("c-1", (0,)), work(item(1, 1))))
    assert [found[i].ename for i in (0, 1)] == ["UnknownResult", "UnknownResult"]
    assert ran == [0, 1, 3]


def test_outcomes_are_split_by_size(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "OUTCOMES_SIZE", 2500)
    found = played.run(batch(bytes), work(*[item(i, 1000) for i in range(5)]))
    assert sorted(values(found)) == list(range(5))
    counts = [len(record.items) for record in played.heard if isinstance(record, Outcomes)]
    assert counts == [3, 2]


# -- time --------------------------------------------------------------------------


def test_a_task_that_takes_too_long(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[str] = []
    monkeypatch.setattr(played.loop, "expire", lambda job: late.append(job.id))

    def does(seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            played.clock.advance(0.1)

    played.ns["hook"] = does
    slow = batch(lambda x: hook(x), timeout=2.0)  # type: ignore[name-defined]  # noqa: F821
    played.run(slow, work(item(0, 1.5), item(1, 1.5), item(2, 2.5), item(3, 0.1)))
    assert late == ["c-1#2"]


def test_what_a_timeout_does_to_a_task(played: Played) -> None:
    played.say(batch(abs, timeout=2.0), work(item(0, -1)))
    (task,) = played.loop._jobs
    assert isinstance(task, Task)
    assert decode_failure(task.failed(KeyboardInterrupt())[1], 0, "").ename == "KeyboardInterrupt"
    task.overdue = True
    wrong = decode_failure(task.failed(KeyboardInterrupt())[1], 0, "").exception()
    assert type(wrong).__name__ == "TaskTimeout"
    assert wrong.timeout == 2.0  # type: ignore[attr-defined]
    assert decode_failure(task.failed(ValueError())[1], 0, "").ename == "ValueError"


def test_a_command_is_known_apart_from_a_task(played: Played) -> None:
    played.run(batch(abs), work(item(0, -1)))
    played.run(Submit("c-5", (0,), "execute", "", -1, 0.0, pack({}), (b"1",)))
    (result,) = [record for record in played.heard if isinstance(record, Result)]
    assert result.status == "ok"
    assert values(played.run(Seek("c-5", (0,)))) == {0: "unknown"}
