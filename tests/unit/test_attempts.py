"""The places of a FURL, tried in turn, and the words for what failed."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from foolscap.tokens import BananaError, NegotiationError
from OpenSSL import SSL
from twisted.internet import error as errors
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from ipython1.kernel.error import ConnectionFailed, NobodyListening, Unreachable, WrongController
from ipython1.kernel.wire.attempts import (
    OTHER_CERTIFICATE,
    REFUSED,
    STAGGER,
    STRANGER,
    Attempts,
    in_words,
    place_of,
    sentences,
    unreachable,
)

A, B, C = "10.0.0.5:10105", "192.168.7.5:10105", "127.0.0.1:10105"


class Dial:
    """Attempts, as Foolscap asks for them: the last place first."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.attempts = Attempts(self.clock, [A, B, C])
        self.begun: list[str] = []
        self.turns: dict[str, Deferred[None]] = {}
        for place in (C, B, A):
            self.turns[place] = self.attempts.turn(place)
            self.turns[place].addCallbacks(lambda _, place=place: self.begun.append(place), lambda _: None)


@pytest.fixture
def dial() -> Dial:
    return Dial()


def test_one_after_the_other(dial: Dial) -> None:
    assert dial.begun == [A]
    dial.clock.advance(STAGGER)
    assert dial.begun == [A, B]
    dial.clock.advance(STAGGER)
    assert dial.begun == [A, B, C]
    assert dial.clock.getDelayedCalls() == []


def test_a_failure_lets_the_next_one_begin(dial: Dial) -> None:
    dial.attempts.failed(A, errors.ConnectionRefusedError())
    assert dial.begun == [A, B]
    dial.attempts.failed(f"tcp:{A}", errors.ConnectionDone())  # nothing new
    assert dial.begun == [A, B]
    dial.attempts.failed(B, errors.ConnectionRefusedError())
    assert dial.begun == [A, B, C]
    assert dial.clock.getDelayedCalls() == []


def test_those_that_need_not_begin_leave_no_timer(dial: Dial) -> None:
    dial.turns[C].cancel()
    dial.clock.advance(STAGGER)
    assert dial.begun == [A, B]
    assert dial.clock.getDelayedCalls() == []


def test_all_can_be_given_up(dial: Dial) -> None:
    for turn in dial.turns.values():
        turn.cancel()
    assert dial.begun == [A]
    assert dial.clock.getDelayedCalls() == []


def test_reasons(dial: Dial) -> None:
    dial.attempts.connected(B, None)
    dial.attempts.failed(C, errors.ConnectionRefusedError())
    dial.attempts.failed(A, CancelledError())
    dial.clock.pump([4.0])
    assert dial.attempts.reasons() == [(A, "timed out after 4 s"), (B, "no answer within 4 s"), (C, REFUSED)]


def test_how_long_it_took(dial: Dial) -> None:
    dial.clock.pump([10.04])
    assert dial.attempts.reasons()[0] == (A, "timed out after 10 s")
    assert dial.attempts.reasons(within=0.05)[0] == (A, "timed out after 0.05 s")


def test_who_won(dial: Dial) -> None:
    dial.attempts.connected(A, None)
    dial.attempts.failed(A, BananaError("unknown TubID"))
    dial.attempts.connected(C, None)
    assert not dial.attempts.over
    assert dial.attempts.won() == C
    assert dial.attempts.over


def test_a_tunnel_is_dialled_instead() -> None:
    attempts = Attempts(Clock(), [A], {A: "/run/0"})
    made, host = attempts.hint_to_endpoint(f"tcp:{A}", MemoryReactorClock(), None)
    assert type(made.endpoint) is UNIXClientEndpoint
    assert host == "10.0.0.5"


def test_names_of_places() -> None:
    assert place_of("tcp:a:0080") == place_of("a:80") == "a:80"
    assert place_of("tcp:[::1]:80") == "[::1]:80"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.ConnectionRefusedError(), REFUSED),
        (errors.TimeoutError(), "timed out"),
        (errors.TCPTimedOutError(), "timed out"),
        (errors.NoRouteError(), "no route to that host"),
        (errors.DNSLookupError("no results"), "no host of that name is known here"),
        (errors.ConnectError(osError=errno.ENETUNREACH), "network is unreachable"),
        (errors.ConnectError(), "it cannot be dialled"),
        (errors.ConnectionDone(), "it hung up during the handshake"),
        (
            BananaError("not right, got 'HTTP/1.1 500 Internal Server Error: unknown TubID x'"),
            OTHER_CERTIFICATE,
        ),
        (BananaError("connected to the wrong Tub"), OTHER_CERTIFICATE),
        (BananaError("TubID mismatch"), OTHER_CERTIFICATE),
        (BananaError("not right, got 'HTTP/1.1 404 Not Found'"), STRANGER),
        (SSL.Error([]), STRANGER),
        (IndexError(), STRANGER),
        (NegotiationError("no version in common"), "no version in common"),
        (RuntimeError("odd."), "odd"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_in_words(error: Any, words: str) -> None:
    assert in_words(error) == words


@pytest.mark.parametrize(
    ("reasons", "kind", "text"),
    [
        ([(A, REFUSED)], NobodyListening, f"Nobody listens at {A} (connection refused)."),
        ([(A, REFUSED), (C, REFUSED)], NobodyListening, f"Nobody listens at {A}, {C} (connection refused)."),
        ([(A, "timed out")], ConnectionFailed, f"The controller at {A} cannot be reached: timed out."),
        (
            [(A, "timed out"), (C, REFUSED)],
            Unreachable,
            f"Tried were {A}: timed out; {C}: connection refused.",
        ),
        ([(A, OTHER_CERTIFICATE), (C, REFUSED)], WrongController, f"listens at {A} is not the controller"),
        ([(A, STRANGER)], WrongController, f"{A} is not the controller of this FURL: something else answers"),
        ([(A, "timed out"), (C, OTHER_CERTIFICATE)], Unreachable, f"{C}: its certificate differs"),
        (
            [(A, OTHER_CERTIFICATE), (C, STRANGER)],
            WrongController,
            "certificate differs: the FURL is of another",
        ),
    ],
)
def test_the_error(reasons: list[tuple[str, str]], kind: type[ConnectionFailed], text: str) -> None:
    error = unreachable(reasons, "node7")
    assert type(error) is kind
    assert text in str(error)
    assert error.attempts == tuple(reasons)  # type: ignore[attr-defined]


def test_what_an_engine_says() -> None:
    assert sentences([(A, REFUSED)], "node7") == [
        f"controller at {A} not reachable from node7: connection refused"
    ]
