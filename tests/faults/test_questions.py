"""Questions of running code while controllers and engines die."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ipython1.kernel.client import CompositeError

from .conftest import PATIENCE, Rig, until
from .test_engine_deaths import pid_of


class Somebody:
    """Answers when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []
        self.may_answer = threading.Event()

    def __call__(self, engine: int, prompt: str, password: bool) -> str:
        self.asked.append((engine, prompt))
        assert self.may_answer.wait(PATIENCE)
        return f"{prompt}{len(self.asked)}"


@pytest.mark.parametrize("without", [False, True], ids=["after", "between"])
def test_an_answer_outlives_the_controller(start: Callable[..., Rig], without: bool) -> None:
    """One that is given while there is no controller, and one to the next controller."""
    rig = start(2)
    mec = rig.client()
    mec.input_handler = somebody = Somebody()
    pending = mec.apply(lambda: (input("first "), input("second ")), targets=0, block=False)
    until(lambda: somebody.asked, "the question")
    before = rig.state.controller
    rig.kill(before)
    if without:
        somebody.may_answer.set()
    rig.next_controller(before)
    assert mec.apply(int, 5, targets=1) == [5]
    somebody.may_answer.set()
    assert pending.get_result(timeout=PATIENCE) == [("first 1", "second 2")]
    assert somebody.asked == [(0, "first "), (0, "second ")], "each once"


def test_an_engine_that_dies_while_it_asks(start: Callable[..., Rig]) -> None:
    rig = start(1)
    mec = rig.client()
    mec.input_handler = somebody = Somebody()
    victim = pid_of(mec, 0)
    pending = mec.apply(lambda: input("? "), block=False)
    until(lambda: somebody.asked, "the question")
    rig.kill(victim)
    with pytest.raises(CompositeError, match="EngineDied"):
        pending.get_result(timeout=PATIENCE)
    somebody.may_answer.set()
    mec.wait_for_engines(1)
    assert mec.apply(lambda: input("again "), targets=0) == ["again 2"]
