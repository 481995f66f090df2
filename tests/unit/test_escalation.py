"""What the nanny makes of the board of an engine: interrupts that the engine takes, or does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock

from ipython1.kernel.engine.board import LATE_NEWS, Board
from ipython1.kernel.engine.escalation import (
    LEAVE,
    NOTHING,
    NUDGED,
    OVER,
    RESTART,
    RESTARTED,
    SIGNAL,
    SILENCE,
    STUCK,
    Escalation,
)

GRACE = 5.0


class Case:
    """A board that engine and nanny share; here both are the test."""

    def __init__(self, choice: str = LEAVE) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.board = Board(self.clock.seconds)
        self.watch = Escalation(self.board, choice, GRACE)

    def order(self, record: int = 1, ids: Any = (), choice: str = "") -> None:
        self.watch.ordered(self.clock.seconds(), record, ids, choice)

    def look(self, after: float = 0.0) -> str:
        self.clock.advance(after)
        return self.watch.look(self.clock.seconds())

    def looks(self, seconds: float) -> list[str]:
        """What is done within so many seconds, without what is nothing and without repetitions."""
        found: list[str] = []
        for _ in range(int(seconds / 0.25)):
            did = self.look(0.25)
            if did != NOTHING and did != (found[-1] if found else NOTHING):
                found.append(did)
        return found


@pytest.fixture
def case() -> Case:
    case = Case()
    case.board.show("c-1")
    return case


# -- the table ------------------------------------------------------------------


def test_nothing_is_done_where_nothing_is_wrong(case: Case) -> None:
    assert case.looks(100) == []
    case.board.show("")
    assert case.looks(100) == []


def test_an_engine_that_stands_still_is_interrupted_by_the_nanny(case: Case) -> None:
    case.order()
    assert case.look(SILENCE / 2) == NOTHING
    assert case.look(SILENCE / 2) == SIGNAL
    assert case.look(0.1) == NUDGED
    assert case.board.react(own=False) == (True, False)
    assert case.looks(100) == []


def test_an_engine_that_has_interrupted_its_job_is_left_alone(case: Case) -> None:
    case.order()
    case.board.interrupted()
    case.board.hear(1)
    assert case.look(SILENCE) == NOTHING
    assert case.look(SILENCE) == NUDGED
    assert case.board.react(own=True) == (True, False)
    assert case.looks(100) == []


def test_an_interrupt_that_the_nanny_never_heard_of_is_seen(case: Case) -> None:
    case.board.interrupted()
    assert case.looks(GRACE + 1) == [NUDGED, STUCK]


def test_an_interrupt_that_meant_another_job_is_none_of_this_one(case: Case) -> None:
    case.order(record=7)
    case.board.hear(7)  # and this job was not interrupted
    assert case.looks(100) == []


@pytest.mark.parametrize("ids", [["c-2"], ["c-2", "c-3#4"]])
def test_what_does_not_run_is_not_interrupted(case: Case, ids: list[str]) -> None:
    case.order(ids=ids)
    case.board.show("")
    case.order()
    case.board.show("c-2")
    assert case.looks(100) == []


def test_one_of_several_is_meant(case: Case) -> None:
    case.order(ids=["b#1", "c-1"])
    assert case.look(SILENCE) == SIGNAL


def test_a_job_that_does_not_react_is_left_where_that_is_chosen(case: Case) -> None:
    case.order()
    assert case.looks(GRACE + 60) == [SIGNAL, NUDGED, STUCK]
    assert case.watch.reason() == "command c-1 did not react to an interrupt"
    case.board.show("")
    assert case.looks(100) == [OVER]


@pytest.mark.parametrize("own", [True, False])
def test_or_the_engine_is_restarted(own: bool) -> None:
    case = Case(RESTART)
    case.board.show("b#3")
    case.order()
    if own:
        case.board.interrupted()
    expected = [NUDGED, STUCK, RESTARTED] if own else [SIGNAL, NUDGED, STUCK, RESTARTED]
    assert case.looks(GRACE + 60) == expected
    assert case.watch.reason() == "task b#3 did not react to an interrupt"


@pytest.mark.parametrize(("usual", "chosen"), [(LEAVE, RESTART), (RESTART, LEAVE)])
def test_what_an_interrupt_says_counts_more(usual: str, chosen: str) -> None:
    case = Case(usual)
    case.board.show("c-1")
    case.order(choice=chosen)
    case.order(record=2)  # says nothing: that does not take it back
    assert (RESTARTED in case.looks(GRACE + 60)) == (chosen == RESTART)


def test_the_choice_may_come_later(case: Case) -> None:
    case.order()
    assert case.looks(GRACE + 60)[-1] == STUCK
    case.order(record=2, choice=RESTART)
    assert case.looks(1) == [RESTARTED]


# -- jobs whose time is up --------------------------------------------------------


def test_a_late_job_is_interrupted_where_the_engine_cannot() -> None:
    case = Case(RESTART)
    case.board.show("c-1", 3.0)
    assert case.look(3.0) == NOTHING
    assert case.look(SILENCE) == SIGNAL
    assert case.board.react(own=False) == (True, True)
    case.board.settle()
    assert case.looks(100) == []  # it goes on, and is left to itself


def test_a_late_job_that_does_not_react() -> None:
    case = Case(RESTART)
    case.board.show("c-1", 3.0)
    assert case.looks(3 + GRACE + 1) == [SIGNAL, NUDGED, STUCK, RESTARTED]
    assert case.watch.reason() == "command c-1 did not react to an interrupt (timeout 3 s)"


def test_a_late_job_that_the_engine_has_interrupted() -> None:
    case = Case()
    case.board.show("c-1", 3.0)
    case.clock.advance(3.0)
    case.board.interrupted()
    assert case.looks(GRACE + 1) == [NUDGED, STUCK]
    assert case.watch.reason().endswith("(timeout 3 s)")


def test_time_is_up_after_a_job_has_caught_an_interrupt() -> None:
    case = Case()
    case.board.show("c-1", 10.0)
    case.board.interrupted()
    case.board.react(own=True)
    assert case.looks(9) == []
    assert case.looks(2) == [SIGNAL, NUDGED]


# -- never another job ---------------------------------------------------------------


def test_a_signal_for_a_job_that_has_ended_hits_no_other(case: Case) -> None:
    case.order()
    assert case.look(SILENCE) == SIGNAL
    case.board.show("")
    case.board.show("c-2")
    assert case.board.react(own=False) == (False, False)
    assert case.look() == NOTHING
    assert case.board.react(own=False) == (True, False)  # a later one, from elsewhere


def test_a_signal_of_its_own_counts_beside_one_that_comes_too_late(case: Case) -> None:
    case.order()
    assert case.look(SILENCE) == SIGNAL
    case.board.show("c-2")
    assert case.board.react(own=True) == (True, False)


def test_what_the_nanny_did_need_not_be_done_again(case: Case) -> None:
    case.order(record=7)
    assert not case.board.served(7)
    assert case.look(SILENCE) == SIGNAL
    case.order(record=8)  # an impatient user
    assert [case.board.served(record) for record in (6, 7, 8, 9)] == [True, True, True, False]
    case.board.new_session()
    assert not case.board.served(1)


def test_an_interrupt_that_is_heard_late_hits_no_later_job(case: Case) -> None:
    case.order(record=7)
    case.clock.advance(LATE_NEWS / 2)
    case.board.show("c-2")
    assert not case.board.served(7)  # heard at once: whatever runs
    case.clock.advance(LATE_NEWS)
    assert case.board.served(7)
    assert not case.board.served(8)


def test_what_is_named_is_not_aimed(case: Case) -> None:
    case.order(record=7, ids=["c-1"])
    case.clock.advance(1)
    case.board.show("c-2")
    assert not case.board.served(7)


# -- the board ---------------------------------------------------------------------


def test_the_board_shows_what_runs() -> None:
    board = Board(lambda: 42.0)
    assert (board.running(), board.read()) == (None, "")
    board.show("c-1#2", 1.5)
    running = board.running()
    assert running is not None
    assert running == (1, "c-1#2", 42.0, 1.5, 0.0)
    assert running.late_at == 43.5
    board.show("é" * 1000)
    assert board.read().startswith("é" * 100)  # what is too long is cut
    board.show("")
    assert (board.running(), board.read()) == (None, "")


class Engine(RuleBasedStateMachine):
    """An engine that does anything. Jobs are left alone that nobody wanted interrupted, or that reacted."""

    def __init__(self) -> None:
        super().__init__()
        self.case = Case(RESTART)
        self.job = 0
        self.asked_at = 0.0  # since when the running job should be interrupted; 0: it should not
        self.record = 0
        self.waiting: list[int] = []  # interrupts that the engine has not heard of
        self.signals: list[int] = []  # the job that a SIGINT under way is for
        self.ended = False

    @rule(timeout=st.sampled_from([0.0, 1.0, 4.0]))
    def start(self, timeout: float) -> None:
        self.job += 1
        self.asked_at = 0.0
        self.case.board.show("")
        self.case.board.show(f"c-{self.job}", timeout)
        self.late_at = self.case.clock.seconds() + timeout if timeout else 0.0
        self.ended = False

    @rule(named=st.booleans(), choice=st.sampled_from(["", LEAVE, RESTART]))
    @precondition(lambda self: self.job)
    def interrupt(self, named: bool, choice: str) -> None:
        self.record += 1
        self.waiting.append(self.record)
        self.case.order(self.record, [f"c-{self.job}"] if named else (), choice)
        self.asked_at = self.asked_at or self.case.clock.seconds()

    @rule()
    @precondition(lambda self: self.waiting)
    def hear(self) -> None:
        record = self.waiting.pop(0)
        if not self.case.board.served(record):
            self.case.board.interrupted()
            self.asked_at = self.asked_at or self.case.clock.seconds()
        self.case.board.hear(record)

    @rule(own=st.booleans())
    @precondition(lambda self: self.signals)
    def take_signal(self, own: bool) -> None:
        job = self.signals.pop(0)
        meant, _ = self.case.board.react(own)
        assert meant == (own or job == self.job)
        if meant:
            self.asked_at = 0.0
            if 0 < self.late_at <= self.case.clock.seconds():
                self.case.board.settle()
                self.late_at = 0.0

    @rule(seconds=st.sampled_from([0.1, 0.3, 1.0, 6.0]))
    @precondition(lambda self: self.job)
    def look(self, seconds: float) -> None:
        did, now = self.case.look(seconds), self.case.clock.seconds()
        since = min([at for at in (self.asked_at, self.late_at) if at], default=now + 1)
        if did == SIGNAL:
            assert since + SILENCE <= now + 1e-6
            self.signals = [self.job]  # two are one for the kernel
            self.asked_at = self.asked_at or now
        elif did == NUDGED:
            assert since <= now
        elif did in (STUCK, RESTARTED):
            assert since + GRACE <= now + 1e-6
            assert not (self.ended and did == RESTARTED)
            self.ended = self.ended or did == RESTARTED

    @invariant()
    def the_board_is_right(self) -> None:
        assert self.case.board.read() == (f"c-{self.job}" if self.job else "")


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
