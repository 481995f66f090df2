"""Signs of life on a fake clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from ipython1.kernel.wire.pulse import SIGNS, Pulse

DEAD = 10.0
PERIOD = DEAD / SIGNS


def make(clock: Clock, ends: bool = True) -> tuple[Pulse, list[Any]]:
    said: list[Any] = []
    give_up = (lambda: said.append("end")) if ends else None
    return Pulse(clock, DEAD, lambda: said.append(clock.seconds()), give_up), said


def test_silence_ends_it_once_and_in_time() -> None:
    clock = Clock()
    pulse, said = make(clock)
    pulse.start()
    clock.advance(PERIOD * 0.5)
    pulse.missed = 0  # something is heard
    clock.pump([PERIOD * 0.5, *[PERIOD] * (SIGNS - 2)])
    assert "end" not in said
    clock.pump([PERIOD] * 10)
    assert said == [PERIOD * (i + 1) for i in range(SIGNS - 1)] + ["end"]
    assert clock.getDelayedCalls() == []


def test_where_silence_ends_nothing_it_is_seen_and_signs_go_on() -> None:
    clock = Clock()
    pulse, said = make(clock, ends=False)
    pulse.start()
    clock.pump([PERIOD] * (SIGNS - 1))
    assert pulse.silent == 0.0
    clock.pump([PERIOD] * 3)
    assert pulse.silent == DEAD + 2 * PERIOD
    assert len(said) == SIGNS + 2
    pulse.missed = 0
    assert pulse.silent == 0.0
    pulse.stop()
    assert clock.getDelayedCalls() == []


def test_who_was_stopped_itself_hears_what_has_come_meanwhile_before_it_gives_up() -> None:
    clock = Clock()
    pulse, said = make(clock)
    pulse.start()
    clock.advance(100 * DEAD)
    assert "end" not in said
    pulse.missed = 0
    clock.pump([PERIOD] * (SIGNS - 1))
    assert "end" not in said
    pulse.stop()


def test_who_speaks_needs_no_sign() -> None:
    clock = Clock()
    pulse, said = make(clock)
    pulse.start()
    pulse.spoke = True
    clock.advance(PERIOD)
    assert said == []
    clock.advance(PERIOD)
    assert said == [2 * PERIOD]
    pulse.stop()


def test_another_time_from_now_on() -> None:
    clock = Clock()
    pulse, said = make(clock)
    pulse.start()
    pulse.start(100.0)
    clock.advance(19.9)
    assert said == []
    clock.advance(0.1)
    assert said == [20.0]
    pulse.stop()
