from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ipython1.kernel.client.multiengine import MultiEngineClient
from ipython1.kernel.engine.operations import Operations
from ipython1.kernel.engine.postmortem import LastFailure
from ipython1.kernel.engine.shell import EngineShell
from ipython1.kernel.engine.this_engine import ThisEngine
from ipython1.kernel.error import CompositeError, IPython1Error, TaskRejected
from ipython1.kernel.testing import MemoryCluster


@pytest.fixture
def operations() -> Operations:
    return Operations(EngineShell(own_main=False), ThisEngine())


def fail(operations: Operations, code: str) -> None:
    try:
        operations.perform("execute", {}, [code.encode()])
    except BaseException as error:  # noqa: BLE001 -- as an engine does
        trace: Any = error.__traceback__
        operations.last_failure.keep(error.with_traceback(trace.tb_next))  # without this frame


def debug(operations: Operations, capsys: pytest.CaptureFixture[str], *commands: str) -> str:
    left = iter(commands)

    def ask(prompt: str, password: bool) -> str:
        assert prompt == "(Pdb) "
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    operations.shell.set_asking(ask)
    operations.perform("execute", {}, [b"pass"])
    with operations.shell.active():
        operations.perform("debug", {}, [])
    return capsys.readouterr().out


def test_the_users_frames(operations: Operations, capfd: pytest.CaptureFixture[str]) -> None:
    fail(operations, "def f(x):\n    y = x - 5\n    return 1 / y\nf(5)")
    shown = debug(operations, capfd, "p x, y", "up", "list", "w", "found = 7", "q")
    assert "ZeroDivisionError: division by zero\n" in shown
    assert "-> return 1 / y\n(5, 0)\n" in shown
    assert "-> f(5)\n" in shown
    assert "perform" not in shown, "our own frames are not shown"
    assert operations.shell.user_ns["found"] == 7


def test_the_end_of_the_input_ends_it(operations: Operations, capfd: pytest.CaptureFixture[str]) -> None:
    fail(operations, "1 / 0")
    assert "-> 1 / 0" in debug(operations, capfd)
    assert "-> 1 / 0" in debug(operations, capfd), "once more"


def test_an_interrupt_ends_it(operations: Operations) -> None:
    def strike(prompt: str, password: bool) -> str:
        raise KeyboardInterrupt

    fail(operations, "1 / 0")
    kept = operations.last_failure._error
    operations.shell.set_asking(strike)
    with operations.shell.active(), pytest.raises(KeyboardInterrupt) as caught:
        operations.perform("debug", {}, [])
    trace: Any = caught.value.__traceback__
    operations.last_failure.keep(caught.value.with_traceback(trace.tb_next))
    assert operations.last_failure._error is kept, "it can be debugged again"


def test_nothing_to_debug(operations: Operations) -> None:
    for error in (NameError("no frame of the user's"), TaskRejected()):
        operations.last_failure.keep(error)
    with pytest.raises(IPython1Error, match="Nothing has failed on this engine yet"):
        operations.perform("debug", {}, [])
    fail(operations, "1 / 0")
    operations.perform("reset", {}, [])
    with pytest.raises(IPython1Error, match="Nothing has failed on this engine yet"):
        operations.perform("debug", {}, [])


def test_python_knows_the_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("last_type", "last_value", "last_traceback", "last_exc")
    before = {name: vars(sys)[name] for name in names if name in vars(sys)}
    last = LastFailure(own_main=True)
    with pytest.raises(ZeroDivisionError) as caught:
        eval(compile("1 / 0", "<engine 0, In[1]>", "eval"))
    error = caught.value
    last.keep(error)
    assert (sys.last_type, sys.last_value, vars(sys)["last_exc"]) == (ZeroDivisionError, error, error)
    last.clear()
    assert not any(name in vars(sys) for name in names)
    vars(sys).update(before)


@pytest.fixture
def mec() -> Iterator[MultiEngineClient]:
    with MemoryCluster(2) as cluster:
        yield cluster.client()


def test_debug_needs_one_engine_and_somebody(mec: MultiEngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"Say which, as in debug\(0\)"):
        mec.debug()
    with pytest.raises(IPython1Error, match="Nobody can type here"):
        mec.debug(1)
    mec.input_handler = lambda engine, prompt, password: "q"
    with pytest.raises(CompositeError, match="Nothing has failed on this engine yet"):
        mec.debug(1)


def test_a_failed_function(mec: MultiEngineClient, capsys: pytest.CaptureFixture[str]) -> None:
    def invert(x: Any) -> Any:
        return 1 / x

    with pytest.raises(CompositeError):
        mec[1].apply(invert, 0)
    mec.input_handler = lambda engine, prompt, password: "q"
    with pytest.raises(CompositeError, match="StdinNotImplementedError"):  # a cluster in memory
        mec[1].debug()
    assert capsys.readouterr().out.count("-> return 1 / x") == 1
