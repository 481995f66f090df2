"""The nanny's decisions, without processes: the zygote here only pretends to fork."""

from __future__ import annotations

import errno
import inspect
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from ipython1.kernel.engine.board import NUDGE, Board
from ipython1.kernel.engine.nanny import (
    DEATHS,
    ENDED,
    GRACE,
    LOOK_INTERVAL,
    NO_CONTROLLER,
    NO_ENGINE,
    PERIOD,
    Nanny,
    last_words,
)
from ipython1.kernel.engine.oom import OutOfMemory
from ipython1.kernel.engine.zygote import Lines, Main, Message, line


class FakeChild:
    def __init__(self, pid: int, heard: Callable[[Message], None], ended: Callable[[int], None]) -> None:
        self.pid = pid
        self.heard = heard
        self.ended = ended
        self.facts: dict[str, Any] = {}
        self.log: Path | None = None
        self.got: list[Message] = []  # messages
        self.signals: list[int] = []

    def send(self, message: Message) -> None:
        self.got.append(message)

    def kill(self, number: int) -> None:
        self.signals.append(number)

    def kill_group(self) -> None:
        self.signals.append(-signal.SIGKILL)

    def told(self, key: str) -> list[Any]:
        return [message[key] for message in self.got if key in message]


class FakeZygote(Clock):
    """Forks children that only remember. The main functions are the facts they were made from."""

    def __init__(self) -> None:
        super().__init__()
        self.engines: list[FakeChild] = []
        self.agents: list[FakeChild] = []
        self.boards: list[Board] = []  # of the engines
        self.full = False

    def fork(
        self,
        main: Main,
        heard: Callable[[Message], None],
        ended: Callable[[int], None],
        log: Path | None = None,
        outlives: bool = False,
    ) -> FakeChild:
        if self.full:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        siblings = self.agents if outlives else self.engines
        child = FakeChild(100 + len(self.engines) + 50 * outlives, heard, ended)
        child.facts = main  # type: ignore[assignment]
        child.log = log
        siblings.append(child)
        return child


@pytest.fixture
def zygote() -> FakeZygote:
    return FakeZygote()


def make(zygote: FakeZygote, folder: Path, restart: bool = True, **options: Any) -> Nanny:
    nanny = Nanny(
        zygote,
        lambda identity, board: zygote.boards.append(board) or identity,  # type: ignore[arg-type, func-returns-value, return-value]
        lambda facts: facts,  # type: ignore[arg-type, return-value]
        folder=folder,
        host="here",
        pid=99,
        restart=restart,
        **options,
    )
    nanny.start_agent()
    return nanny


@pytest.fixture
def nanny(zygote: FakeZygote, tmp_path: Path) -> Nanny:
    """A nanny with two registered engines."""
    nanny = make(zygote, tmp_path)
    nanny.start(2)
    for id, child in enumerate(zygote.engines):
        child.heard({"registered": id})
    return nanny


def order(zygote: FakeZygote, what: str, engine: FakeChild | None = None, number: int = 0) -> None:
    zygote.agents[-1].heard({"order": [what, engine.facts["uuid"] if engine else "", number, [], ""]})


def test_engines_have_identities_of_their_own(nanny: Nanny, zygote: FakeZygote, tmp_path: Path) -> None:
    first, second = zygote.engines
    assert first.facts["uuid"] != second.facts["uuid"]
    name = first.facts["uuid"]
    assert first.facts == {"uuid": name, "host": "here", "nanny": nanny.uuid, "wanted": -1, "replaces": {}}
    assert first.log == tmp_path / f"engine-{name}.log"
    facts = {"uuid": nanny.uuid, "host": "here", "pid": 99, "engines": {}, "exited": [], "stuck": {}}
    assert zygote.agents[0].facts == {**facts, "folder": str(tmp_path), "leaving": 0.0}
    assert zygote.agents[0].told("engines")[-1] == {
        child.facts["uuid"]: child.pid for child in zygote.engines
    }


def test_a_dead_engine_is_replaced_under_its_id(nanny: Nanny, zygote: FakeZygote) -> None:
    dead = zygote.engines[1]
    assert dead.log is not None
    dead.log.write_text("Fatal Python error: Segmentation fault\n")
    dead.ended(-11)
    old = dead.facts["uuid"]
    cause, output = "killed by signal 11 (SIGSEGV)", "Fatal Python error: Segmentation fault"
    new = zygote.engines[2]
    assert new.facts["wanted"] == 1
    assert new.facts["replaces"] == {"uuid": old, "cause": cause, "output": output}
    assert zygote.agents[0].told("exited") == [(old, cause, output, True, "")]
    assert zygote.agents[0].told("engines")[-1] == {
        zygote.engines[0].facts["uuid"]: 100,
        new.facts["uuid"]: 102,
    }
    assert dead.log.exists()  # it says something


def test_what_ran_on_an_engine_that_died_is_told(nanny: Nanny, zygote: FakeZygote) -> None:
    first, second = zygote.boards
    first.show("c-1#2")
    first.show("c-1")
    second.show("d-" + 300 * "é")
    second.show("")
    zygote.engines[0].ended(-9)
    zygote.engines[1].ended(-9)
    assert [running for *_, running in zygote.agents[0].told("exited")] == ["c-1", ""]
    assert zygote.boards[2].read() == ""


def test_an_empty_log_is_removed(nanny: Nanny, zygote: FakeZygote) -> None:
    log = zygote.engines[0].log
    assert log is not None
    log.touch()
    zygote.engines[0].ended(-9)
    assert not log.exists()


def test_three_deaths_in_a_minute_end_the_restarts(nanny: Nanny, zygote: FakeZygote) -> None:
    for death in range(DEATHS):
        zygote.advance(1)
        zygote.engines[-1].ended(-9)
        assert len(zygote.engines) == min(3 + death, 2 + DEATHS - 1)
    assert [replaced for *_, replaced, _ in zygote.agents[0].told("exited")] == [True, True, False]
    zygote.engines[0].ended(-9)  # another engine has a count of its own
    assert zygote.engines[-1].facts["wanted"] == 0
    assert nanny.status is None


def test_rare_deaths_do_not_end_the_restarts(nanny: Nanny, zygote: FakeZygote) -> None:
    for _ in range(3 * DEATHS):
        zygote.advance(PERIOD / 2)
        zygote.engines[-1].ended(-9)
    assert all(replaced for *_, replaced, _ in zygote.agents[0].told("exited"))


def test_a_replacement_that_never_registers_still_replaces_the_first(
    nanny: Nanny, zygote: FakeZygote
) -> None:
    first = zygote.engines[1]
    first.ended(-9)
    zygote.engines[2].ended(1)
    assert zygote.engines[3].facts["replaces"]["uuid"] == first.facts["uuid"]
    assert zygote.engines[3].facts["wanted"] == 1


def test_without_restart_a_dead_engine_is_gone(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = make(zygote, tmp_path, restart=False)
    nanny.start(1)
    zygote.engines[0].heard({"registered": 0})
    zygote.engines[0].ended(3)
    assert len(zygote.engines) == 1
    assert zygote.agents[0].told("exited") == [
        (zygote.engines[0].facts["uuid"], "exit status 3", "", False, "")
    ]
    assert nanny.status is None  # more may be ordered
    order(zygote, "start", number=2)
    assert len(zygote.engines) == 3


def test_where_no_engine_can_start_the_nanny_ends(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = make(zygote, tmp_path)
    nanny.start(1)
    for child in zygote.engines:  # grows by each replacement
        assert child.log is not None
        child.log.write_text("ImportError: no such thing\n")
        child.ended(1)
    assert len(zygote.engines) == DEATHS
    assert zygote.agents[0].told("exited")[-1][1:] == (
        "exit status 1; not restarted, for it died 3 times in 60 s",
        "ImportError: no such thing",
        False,
        "",
    )
    assert zygote.agents[0].told("quit") == [True]
    zygote.agents[0].ended(0)
    assert nanny.status == NO_ENGINE


def test_order_stop(nanny: Nanny, zygote: FakeZygote) -> None:
    engine = zygote.engines[0]
    order(zygote, "stop", engine)
    assert engine.signals == [signal.SIGTERM]
    zygote.advance(GRACE)
    assert engine.signals == [signal.SIGTERM, -signal.SIGKILL]
    engine.ended(-9)
    assert zygote.agents[0].told("exited") == [(engine.facts["uuid"], "stopped on request", "", False, "")]
    assert len(zygote.engines) == 2


def test_an_engine_that_heeds_sigterm_is_not_killed(nanny: Nanny, zygote: FakeZygote) -> None:
    order(zygote, "stop", zygote.engines[0])
    zygote.engines[0].ended(0)
    zygote.advance(GRACE)
    assert zygote.engines[0].signals == [signal.SIGTERM]


@pytest.mark.parametrize("restart", [True, False])
def test_order_restart(zygote: FakeZygote, tmp_path: Path, restart: bool) -> None:
    nanny = make(zygote, tmp_path, restart)
    nanny.start(1)
    for _ in range(2 * DEATHS):  # asked for, so however often
        engine = zygote.engines[-1]
        engine.heard({"registered": 5})
        order(zygote, "restart", engine)
        assert engine.signals == [signal.SIGTERM]
        engine.ended(0)
        assert zygote.engines[-1].facts["wanted"] == 5
        assert zygote.engines[-1].facts["replaces"]["uuid"] == engine.facts["uuid"]
    assert zygote.agents[0].told("exited")[-1][1:] == ("restarted on request", "", True, "")


@pytest.mark.parametrize("orders", [("restart", "stop"), ("stop", "restart")])
def test_stop_wins_over_restart(nanny: Nanny, zygote: FakeZygote, orders: tuple[str, str]) -> None:
    for what in orders:
        order(zygote, what, zygote.engines[0])
    assert zygote.engines[0].signals == [signal.SIGTERM]
    zygote.engines[0].ended(0)
    assert len(zygote.engines) == 2


def test_order_signal(nanny: Nanny, zygote: FakeZygote, caplog: pytest.LogCaptureFixture) -> None:
    order(zygote, "signal", zygote.engines[0], signal.SIGUSR1)
    order(zygote, "signal", zygote.engines[0], 4711)
    assert zygote.engines[0].signals == [signal.SIGUSR1]
    assert "4711" in caplog.text


@pytest.mark.parametrize("what", ["stop", "restart", "signal", "dance"])
def test_orders_that_cannot_be_followed_are_logged(
    nanny: Nanny, zygote: FakeZygote, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    zygote.agents[0].heard({"order": [what, "0123456789abcdef", 9, [], ""]})
    assert ("dance" if what == "dance" else "01234567") in caplog.text
    assert [child.signals for child in zygote.engines] == [[], []]


def interrupt(zygote: FakeZygote, engine: FakeChild, record: int = 1, choice: str = "") -> None:
    zygote.agents[-1].heard({"order": ["interrupt", engine.facts["uuid"], record, [], choice]})


def advance(zygote: FakeZygote, seconds: float) -> None:
    for _ in range(int(seconds / LOOK_INTERVAL)):
        zygote.advance(LOOK_INTERVAL)


def test_an_engine_that_does_not_react_is_interrupted_and_left(
    nanny: Nanny, zygote: FakeZygote, caplog: pytest.LogCaptureFixture
) -> None:
    engine, board = zygote.engines[0], nanny.engines[zygote.engines[0].facts["uuid"]].board
    board.show("c-1")
    interrupt(zygote, engine)
    advance(zygote, 60)
    assert engine.signals[0] == signal.SIGINT
    assert set(engine.signals) == {signal.SIGINT, NUDGE, signal.SIGQUIT}
    assert (engine.signals.count(signal.SIGINT), engine.signals.count(signal.SIGQUIT)) == (1, 1)
    [stuck] = zygote.agents[0].told("stuck")
    assert list(stuck) == [engine.facts["uuid"]]
    assert "engine 0: command c-1 did not react to an interrupt; see " in caplog.text
    assert nanny.facts()["stuck"] == stuck
    board.show("")
    advance(zygote, 1)
    assert zygote.agents[0].told("stuck")[1:] == [{}]
    assert zygote.engines[1].signals == []


@pytest.mark.parametrize("chosen", ["at the start", "with the interrupt"])
def test_an_engine_that_does_not_react_is_restarted(zygote: FakeZygote, tmp_path: Path, chosen: str) -> None:
    options = {"stuck": "restart"} if chosen == "at the start" else {}
    nanny = make(zygote, tmp_path, restart=False, stuck_after=2.0, **options)
    nanny.start(1)
    for _ in range(2 * DEATHS):  # as often as it takes
        engine = zygote.engines[-1]
        engine.heard({"registered": 3})
        nanny.engines[engine.facts["uuid"]].board.show("b#1")
        interrupt(zygote, engine, choice="" if options else "restart")
        advance(zygote, 2)
        assert -signal.SIGKILL not in engine.signals
        advance(zygote, 1)
        assert engine.signals[-2:] == [signal.SIGQUIT, -signal.SIGKILL]
        advance(zygote, 5)
        assert engine.signals[-2:] == [signal.SIGQUIT, -signal.SIGKILL]
        engine.ended(-9)
        assert zygote.engines[-1].facts["wanted"] == 3
    assert zygote.agents[0].told("exited")[-1][1:] == (
        "restarted: task b#1 did not react to an interrupt",
        "",
        True,
        "b#1",
    )


def test_an_interrupt_for_an_engine_that_is_gone(nanny: Nanny, zygote: FakeZygote) -> None:
    zygote.agents[0].heard({"order": ["interrupt", "0123456789abcdef", 1, [], ""]})
    advance(zygote, 2)
    assert [child.signals for child in zygote.engines] == [[], []]


def test_nobody_looks_where_there_are_no_engines(nanny: Nanny, zygote: FakeZygote) -> None:
    for engine in zygote.engines[:2]:
        order(zygote, "stop", engine)
        engine.ended(0)
    advance(zygote, GRACE)
    assert zygote.getDelayedCalls() == []
    order(zygote, "start", number=1)
    assert len(zygote.getDelayedCalls()) == 1


def test_a_kill_for_want_of_memory_is_called_that(zygote: FakeZygote, tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("oom_kill 1\n")
    nanny = make(zygote, tmp_path, memory=OutOfMemory([events]))
    nanny.start(2)
    for status, kills in [(-9, 1), (-11, 2), (-9, 2)]:
        events.write_text(f"oom_kill {kills}\n")
        zygote.engines[-1].ended(status)
    advance(zygote, 60)
    zygote.engines[0].ended(-9)
    assert [cause for _, cause, *_ in zygote.agents[0].told("exited")] == [
        "killed by signal 9 (SIGKILL)",
        "killed by signal 11 (SIGSEGV)",
        "killed by signal 9 (SIGKILL), likely because there was not enough memory; not restarted, "
        "for it died 3 times in 60 s",
        "killed by signal 9 (SIGKILL)",
    ]


def test_quit_stops_the_engines_then_the_agent(nanny: Nanny, zygote: FakeZygote) -> None:
    order(zygote, "quit")
    assert [child.signals for child in zygote.engines] == [[signal.SIGTERM], [signal.SIGTERM]]
    order(zygote, "start", number=1)
    zygote.engines[0].ended(0)
    assert zygote.agents[0].told("quit") == []
    zygote.engines[1].ended(-9)  # died by itself meanwhile: not replaced
    assert len(zygote.engines) == 2
    assert zygote.agents[0].told("quit") == [True]
    assert [cause for _, cause, *_ in zygote.agents[0].told("exited")] == ["stopped on request"] * 2
    assert nanny.status is None
    zygote.agents[0].ended(0)
    assert nanny.status == ENDED


def test_quit_does_not_wait_for_ever_for_the_agent(nanny: Nanny, zygote: FakeZygote) -> None:
    nanny.quit()
    for child in zygote.engines:
        child.ended(0)
    assert zygote.agents[0].signals == []
    zygote.advance(10)
    assert zygote.agents[0].signals == [signal.SIGKILL]


def test_quit_without_an_agent(nanny: Nanny, zygote: FakeZygote) -> None:
    nanny.quit()
    zygote.agents[0].ended(-9)
    assert nanny.status is None
    for child in zygote.engines:
        child.ended(0)
    assert nanny.status == ENDED
    assert len(zygote.agents) == 1


def test_why_the_controller_is_not_found_is_shown_line_by_line(
    nanny: Nanny, zygote: FakeZygote, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["controller at a:1 not reachable from b: 100 %s lost", "more"]
    zygote.agents[0].heard({"trouble": lines})
    assert [record.getMessage() for record in caplog.records][-2:] == lines
    assert nanny.status is None


def test_the_loss_of_the_controller_ends_all(
    nanny: Nanny, zygote: FakeZygote, caplog: pytest.LogCaptureFixture
) -> None:
    zygote.agents[0].heard({"lost": "The controller at h:1 cannot be reached: it is off."})
    for child in zygote.engines:
        assert child.signals == [signal.SIGTERM]
        child.ended(0)
    zygote.agents[0].ended(0)
    assert nanny.status == NO_CONTROLLER
    assert "The controller at h:1 cannot be reached" in caplog.text


def test_a_dead_agent_is_replaced_and_knows_all(nanny: Nanny, zygote: FakeZygote) -> None:
    zygote.advance(100)
    zygote.engines[0].ended(-9)
    zygote.agents[0].ended(-9)
    zygote.advance(0)
    facts = zygote.agents[1].facts
    assert list(facts["engines"].values()) == [101, 102]
    assert facts["exited"] == zygote.agents[0].told("exited")
    order(zygote, "stop", zygote.engines[1])  # the new one carries orders
    assert zygote.engines[1].signals == [signal.SIGTERM]


def test_agents_that_die_young_are_replaced_slowly(nanny: Nanny, zygote: FakeZygote) -> None:
    zygote.agents[0].ended(1)
    zygote.advance(0.9)
    assert len(zygote.agents) == 1
    zygote.engines[0].ended(-9)  # nobody to tell, yet not forgotten
    zygote.advance(0.2)
    assert len(zygote.agents) == 2
    assert zygote.agents[1].facts["exited"][0][1] == "killed by signal 9 (SIGKILL)"


def test_no_new_agent_once_the_end_is_decided(nanny: Nanny, zygote: FakeZygote) -> None:
    zygote.agents[0].ended(-9)
    nanny.quit()
    zygote.advance(10)
    for child in zygote.engines:
        child.ended(0)
    assert len(zygote.agents) == 1
    assert nanny.status == ENDED


def test_a_host_that_has_no_room_for_an_engine(nanny: Nanny, zygote: FakeZygote) -> None:
    zygote.full = True
    zygote.engines[1].ended(-9)
    died, failed = zygote.agents[0].told("exited")
    assert (died[1], died[3]) == ("killed by signal 9 (SIGKILL)", True)
    assert failed[1:] == ("could not be started: Resource temporarily unavailable", "", False, "")
    assert zygote.agents[0].told("engines")[-1] == {zygote.engines[0].facts["uuid"]: 100}
    assert nanny.status is None
    zygote.agents[0].ended(-9)
    zygote.advance(2)
    assert len(zygote.agents) == 1
    zygote.full = False
    zygote.advance(2)
    assert len(zygote.agents) == 2


def test_a_host_that_has_no_room_at_all(zygote: FakeZygote, tmp_path: Path) -> None:
    nanny = make(zygote, tmp_path)
    zygote.full = True
    nanny.start(2)
    assert len(zygote.agents[0].told("exited")) == 1
    zygote.agents[0].ended(0)
    assert nanny.status == NO_ENGINE


def test_an_engine_may_say_why_it_ends(nanny: Nanny, zygote: FakeZygote) -> None:
    zygote.engines[0].heard({"reason": "the controller does not want it"})
    zygote.engines[0].ended(1)
    assert zygote.agents[0].told("exited")[0][1] == "the controller does not want it"


def test_the_log_names_engine_cause_and_file(
    nanny: Nanny, zygote: FakeZygote, caplog: pytest.LogCaptureFixture
) -> None:
    log = zygote.engines[1].log
    assert log is not None
    log.write_text("oops\n")
    zygote.engines[1].ended(-9)
    record = caplog.records[-1]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == f"engine 1 (pid 101) killed by signal 9 (SIGKILL); restarted, see {log}"


def test_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {i}\n" for i in range(100)))
    assert last_words(log).splitlines() == [f"line {i}" for i in range(80, 100)]
    with log.open("a") as file:
        file.write("Fatal Python error: Aborted\n\n" + "".join(f"  File {i}\n" for i in range(100)))
    lines = last_words(log).splitlines()
    assert (len(lines), lines[0], lines[2]) == (20, "Fatal Python error: Aborted", "  File 0")
    ours = [f'  File "{inspect.getfile(Nanny)}", line 1 in f', "  File 'more'"]
    log.write_text(
        "\n".join(["before", "Fatal Python error: Segmentation fault", "", "  File 'theirs'", *ours])
    )
    assert last_words(log).splitlines() == ["Fatal Python error: Segmentation fault", "", "  File 'theirs'"]
    stack = ["Stack (most recent call first):", "  File 'theirs'"]
    log.write_text("\n".join(["before", *stack, *ours]))
    assert last_words(log).splitlines() == stack
    log.write_text("\n".join([*stack, *ours, "what came later"]))
    assert last_words(log).splitlines() == [*stack, *ours, "what came later"]


def test_lines() -> None:
    lines = Lines()
    whole = line({"a": "é\n"}) + line({"b": [1]})
    assert [message for byte in whole for message in lines.feed(bytes([byte]))] == [{"a": "é\n"}, {"b": [1]}]
    for garbage in (b"what\n", b"[1]\n", b"\xff\n"):
        with pytest.raises(ValueError):  # noqa: PT011 -- json raises one of its own
            Lines().feed(garbage)


def test_messages_are_one_line_of_ascii() -> None:
    assert line({"output": "a\nb\ud800"}).count(b"\n") == 1
