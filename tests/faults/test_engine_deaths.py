"""Engines, nannies and agents that are killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ipython1.kernel.client import CompositeError, MapTask, MultiEngineClient
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.error import LaunchError, TaskTimeout

from . import conftest
from .conftest import DEATH_LIMIT, Rig, lives, until
from .tally import TALLY

SLEEP = "print('on')\nimport time; time.sleep(100)"


def pid_of(mec: MultiEngineClient, id: int) -> int:
    """Process id of an engine that is ready, else 0."""
    return next((e["pid"] for e in mec._core.engines() if e["id"] == id and e["state"] == "ready"), 0)


def running(pending: PendingResult) -> PendingResult:
    """The same, once it runs everywhere."""
    until(lambda: pending.stdout == ["on\n"] * len(pending.targets), "a command runs")
    return pending


def back(mec: MultiEngineClient, id: int, before: int) -> int:
    """Wait for an engine's successor, and return its pid."""
    new: int = until(lambda: pid_of(mec, id) not in (0, before) and pid_of(mec, id), f"engine {id} is back")
    return new


def died(pending: PendingResult, timeout: float = DEATH_LIMIT) -> CompositeError:
    """The error of a command that lost engines."""
    with pytest.raises(CompositeError) as caught:
        pending.get_result(timeout=timeout)
    assert {failure.ename for failure in caught.value.elist} == {"EngineDied"}
    return caught.value


def test_an_idle_engine_comes_back_under_its_id(start: Callable[..., Rig]) -> None:
    rig = start(2)
    mec = rig.client()
    mec.execute("x = engine_id")
    before = pid_of(mec, 0)
    rig.kill(before)
    back(mec, 0, before)
    assert mec.get_ids() == [0, 1]
    assert [r["result"]["text/plain"] for r in mec.execute("'x' in globals(), engine_id")] == [
        "(False, 0)",
        "(True, 1)",
    ]
    assert mec.status()[0]["restarts"] == 1


def test_a_running_command_fails_soon_and_alone(
    start: Callable[..., Rig], figure: Callable[[str, float], None]
) -> None:
    rig = start(3)
    mec = rig.client()
    mec.execute("import os; os.write(2, b'my last words\\n')", targets=1)
    before = pid_of(mec, 1)
    child = mec.execute("import subprocess; p = subprocess.Popen(['sleep', '100']); p.pid", targets=1)
    mine = psutil.Process(int(child[0]["result"]["text/plain"]))
    others = mec.execute("import time; time.sleep(0.5); 'well'", targets=[0, 2], block=False)
    pending = running(mec.execute(SLEEP, targets=[1], block=False))
    began = time.monotonic()
    rig.kill(before)
    error = died(pending)
    figure("death to error", time.monotonic() - began)
    assert "killed by signal 9 (SIGKILL)" in str(error)
    assert "my last words" in str(error)
    assert [r["result"]["text/plain"] for r in others.get_result(timeout=10)] == ["'well'"] * 2
    until(lambda: not lives(mine), "what the engine had started ends with it")
    back(mec, 1, before)
    assert mec.apply(lambda: 7, targets="all") == [7, 7, 7]


def test_what_is_queued_fails_too_and_has_not_run(start: Callable[..., Rig], tmp_path: Path) -> None:
    rig = start(2)
    mec = rig.client()
    path = tmp_path / "ran"
    mec.push({"path": str(path)})
    before = pid_of(mec, 0)
    first = running(mec.execute(SLEEP, targets=[0], block=False))
    queued = [
        mec.execute(f"open(path, 'a').write('{i}\\n')", targets=[0], block=False, silent=True)
        for i in range(200)
    ]
    until(lambda: len(mec.queue_status(targets=[0])[0][1]["queue"]) == 200, "all are queued")
    rig.kill(before)
    died(first)
    for pending in queued:
        died(pending)
    back(mec, 0, before)
    assert mec.execute("1 + 1", targets=[0])[0]["result"]["text/plain"] == "2"
    assert not path.exists()
    assert not mec.pending


def test_a_stopped_engine_holds_up_nobody_and_goes_on(start: Callable[..., Rig]) -> None:
    rig = start(2)
    mec = rig.client()
    mec.execute("log = []")
    stopped = pid_of(mec, 0)
    rig.kill(stopped, 19)
    pending = [mec.execute(f"log.append({i})", targets=[0], block=False) for i in range(100)]
    for i in range(20):
        mec.execute(f"log.append({i})", targets=[1])
    assert not any(each.ready() for each in pending)
    rig.kill(stopped, 18)
    for each in pending:
        each.get_result(timeout=20)
    assert mec["log"] == [list(range(100)), list(range(20))]
    assert pid_of(mec, 0) == stopped
    rig.kill(stopped, 19)
    lost = mec.execute("1", targets=[0], block=False)
    rig.kill(stopped, 9)
    died(lost)
    back(mec, 0, stopped)


def test_three_deaths_in_a_minute_are_enough(start: Callable[..., Rig]) -> None:
    rig = start(2)
    mec = rig.client()
    before = 0
    for _ in range(2):
        before = back(mec, 1, before)
        rig.kill(before)
    before = back(mec, 1, before)
    pending = running(mec.execute(SLEEP, targets=[1], block=False))
    rig.kill(before)
    died(pending)
    until(lambda: mec.get_ids() == [0], "its id is given up")
    assert mec.execute("1", timeout=10)[0]["input"]["raw"] == "1"
    assert "not restarted, for it died 3 times" in (rig.files.log / "ipengine.out").read_text()


def test_no_restart(start: Callable[..., Rig]) -> None:
    rig = start(2, "--no-restart")
    mec = rig.client()
    pending = running(mec.execute(SLEEP, targets=[0], block=False))
    rig.kill(pid_of(mec, 0))
    died(pending)
    until(lambda: mec.get_ids() == [1], "its id is given up")
    mec.scale(2)
    mec.wait_for_engines(2, timeout=20)
    assert mec.get_ids() == [0, 1]


def test_the_nanny_and_its_engines_are_replaced_under_the_same_ids(
    start: Callable[..., Rig], figure: Callable[[str, float], None]
) -> None:
    rig = start(2)
    mec = rig.client()
    before = rig.state.nanny
    first, second = pid_of(mec, 0), pid_of(mec, 1)
    pending = running(mec.execute(SLEEP, block=False))
    began = time.monotonic()
    rig.kill(before)
    error = died(pending)
    figure("death of the nanny to error", time.monotonic() - began)
    assert "nanny" in str(error)
    until(lambda: rig.state.nanny != before, "a new nanny")
    back(mec, 0, first)
    back(mec, 1, second)
    figure("death of the nanny to new engines", time.monotonic() - began)
    assert mec.get_ids() == [0, 1]
    assert mec.apply(lambda: 7) == [7, 7]
    assert rig.state.nanny != before


def test_the_death_of_the_agent_touches_no_engine(start: Callable[..., Rig]) -> None:
    rig = start(2)
    mec = rig.client()
    mec.execute("x = engine_id")
    pending = mec.execute("import time; time.sleep(0.5); 'well'", block=False)
    before = rig.agent()
    rig.kill(before)
    assert [r["result"]["text/plain"] for r in pending.get_result(timeout=10)] == ["'well'"] * 2
    until(lambda: rig.agent() not in (0, before), "a new agent")
    assert mec["x"] == [0, 1]
    lost = running(mec.execute(SLEEP, targets=[1], block=False))
    victim = pid_of(mec, 1)
    rig.kill(victim)
    died(lost)
    back(mec, 1, victim)


#: Seconds that an engine of the tests below has to react.
STUCK_AFTER = 2.0
#: What makes engines of a host die before they are ready, from when on a file is there.
BROKEN = """
import faulthandler, os
enable = faulthandler.enable
def broken(**options):
    if os.path.exists(os.environ["IP1_BROKEN"]):
        raise RuntimeError("this host has no flux")
    enable(**options)
faulthandler.enable = broken
"""


@pytest.fixture
def rig(start: Callable[..., Rig]) -> Rig:
    return start(2, "--stuck-after", f"{STUCK_AFTER:g}")


# -- every way to die ------------------------------------------------------------

DEATHS = [
    ("import os; os._exit(3)", "exit status 3", ""),
    (
        "import ctypes\ndef crash():\n    ctypes.string_at(0)\ncrash()",
        "killed by signal 11 (SIGSEGV)",
        "in crash",
    ),
    ("import os\ndef stop():\n    os.abort()\nstop()", "killed by signal 6 (SIGABRT)", "in stop"),
    ("import os; os.kill(os.getpid(), 9)", "killed by signal 9 (SIGKILL).", ""),
    ("import os; os.kill(os.getpid(), 24)", "killed by signal 24 (SIGXCPU).", ""),
    ("import os; os.write(2, b'no more\\n'); os._exit(0)", "exit status 0", "no more"),
]


def test_the_cause_of_a_death_is_told_in_words(start: Callable[..., Rig]) -> None:
    rig = start(len(DEATHS))
    mec = rig.client()
    for id, (code, cause, output) in enumerate(DEATHS):
        before = pid_of(mec, id)
        TALLY.fault("engines that end themselves")
        error = died(mec.execute(code, targets=[id], block=False))
        assert f"Engine {id} died: {cause}" in str(error)
        assert output in str(error)
        assert "likely" not in str(error)
        assert "mainloop.py" not in str(error)
        back(mec, id, before)


ERRORS = {
    "SystemExit": "import sys; sys.exit(4)",
    "MemoryError": (
        "import resource; was = resource.getrlimit(resource.RLIMIT_AS)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**33, was[1]))\n"
        "try: x = bytearray(2**34)\n"
        "finally: resource.setrlimit(resource.RLIMIT_AS, was)"
    ),
    "RecursionError": "def f(): f()\nf()",
}


def test_what_does_not_kill_is_an_error(rig: Rig) -> None:
    mec = rig.client()
    before = pid_of(mec, 0)
    for ename, code in ERRORS.items():
        with pytest.raises(CompositeError) as caught:
            mec.execute(code, targets=[0])
        assert caught.value.elist[0].ename == ename
    # A thread that exits ends itself alone.
    code = "import sys, threading; t = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join(); 7"
    assert mec.execute(code, targets=[0])[0]["result"]["text/plain"] == "7"
    assert pid_of(mec, 0) == before


def test_an_engine_that_cannot_start_is_told_at_once(
    start: Callable[..., Rig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its output, and without waiting for the time to be up."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    monkeypatch.setenv("IP1_BROKEN", os.fspath(tmp_path / "broken"))
    monkeypatch.setattr(conftest, "ROOT", f"{tmp_path}{os.pathsep}{conftest.ROOT}")
    rig = start(2)
    mec = rig.client()
    (tmp_path / "broken").touch()
    began = time.monotonic()
    mec.scale(3)
    with pytest.raises(LaunchError) as caught:
        mec.wait_for_engines(3, timeout=60)
    assert time.monotonic() - began < 10
    assert "this host has no flux" in str(caught.value)
    assert mec.get_ids() == [0, 1]


# -- interrupts that engines cannot take by themselves ---------------------------------

GIL = [
    "import ctypes; print('on', flush=True); ctypes.PyDLL(None).sleep(100)",
    "print('on', flush=True); x = 3 ** (3 * 10**8)",
    "import re; print('on', flush=True); re.match(r'(a+)+$', 40 * 'a' + 'b')",
]
ENDLESS = "print('on', flush=True)\ndef work():\n    sum(range(10**12))\nwork()"


def late_enough() -> None:
    """What printed has lost the interpreter to C code by then: nothing else tells."""
    time.sleep(0.3)


@pytest.mark.parametrize("how", ["interrupt", "timeout", "abort"])
def test_c_code_that_holds_the_interpreter_is_interrupted(rig: Rig, how: str) -> None:
    mec = rig.client()
    before = pid_of(mec, 0)
    for code in GIL:
        pending = mec.execute(code, targets=[0], block=False, timeout=0.5 if how == "timeout" else None)
        behind = mec.execute("'well'", targets=[0], block=False)
        late_enough()
        if how == "interrupt":
            mec.interrupt(targets=[0])
        elif how == "abort":
            pending.abort(interrupt=True)
        with pytest.raises(CompositeError) as caught:
            pending.get_result(timeout=10)
        ename = "CommandTimeout" if how == "timeout" else "KeyboardInterrupt"
        assert [failure.ename for failure in caught.value.elist] == [ename]
        assert behind.get_result(timeout=10)[0]["result"]["text/plain"] == "'well'"
    assert pid_of(mec, 0) == before


def test_an_interrupt_that_comes_too_late_hits_nothing_else(rig: Rig) -> None:
    mec = rig.client()
    pending = mec.execute("import ctypes; ctypes.PyDLL(None).usleep(500_000)", targets=[0], block=False)
    behind = mec.execute("import time; time.sleep(1); 'well'", targets=[0], block=False)
    time.sleep(0.2)
    mec.interrupt(targets=[0])  # the nanny would help a moment after the end of that call
    pending.exception(10)  # it may be interrupted in its last moment
    assert behind.get_result(timeout=10)[0]["result"]["text/plain"] == "'well'"


def test_a_task_that_holds_the_interpreter_is_interrupted(rig: Rig) -> None:
    mec = rig.client()
    with mec.task_client() as tc:
        late = tc.run(MapTask(hold, timeout=0.5), block=True)
        with pytest.raises(TaskTimeout):
            late.raise_exception()
        pending = tc.submit(hold)
        late_enough()
        tc.abort(pending, interrupt=True)
        error = pending.exception(10)
        assert isinstance(error, CompositeError)
        assert error.elist[0].ename == "KeyboardInterrupt"
        assert tc.submit(lambda: 7).result(10) == 7


def hold() -> None:
    import ctypes

    ctypes.PyDLL(None).sleep(100)


def test_code_that_catches_an_interrupt_gets_the_next_one(rig: Rig) -> None:
    mec = rig.client()
    code = (
        "import time\n"
        "try: print('on'); time.sleep(100)\n"
        "except KeyboardInterrupt: print('caught'); time.sleep(100)"
    )
    pending = running(mec.execute(code, targets=[0], block=False))
    mec.interrupt(targets=[0], stuck="restart")
    until(lambda: pending.stdout == ["on\ncaught\n"], "the code goes on")
    time.sleep(STUCK_AFTER + 1)  # it has reacted, so it is left alone
    assert not pending.ready()
    mec.interrupt(targets=[0])
    with pytest.raises(CompositeError, match="KeyboardInterrupt"):
        pending.get_result(timeout=10)


def test_what_does_not_react_is_left_and_shown_until_that_is_enough(rig: Rig) -> None:
    mec = rig.client()
    before = pid_of(mec, 0)
    pending = mec.execute(ENDLESS, targets=[0], block=False)
    behind = mec.execute("1", targets=[0], block=False)
    late_enough()
    mec.interrupt(targets=[0])
    until(lambda: mec.status()[0]["stuck"], "it is seen not to react")
    assert "(does not react to interrupts)" in repr(mec.status()).splitlines()[1]
    assert mec.execute("7", targets=[1])[0]["result"]["text/plain"] == "7"
    assert not pending.ready()
    mec.interrupt(targets=[0], stuck="restart")
    error = died(pending)
    assert f"restarted: command {pending.command_id} did not react to an interrupt" in str(error)
    assert "in work" in str(error)  # where it stood
    assert "before it ran" in str(died(behind))
    back(mec, 0, before)
    assert mec.status()[0]["stuck"] == 0
    assert mec.execute("7", targets=[0], timeout=10)[0]["result"]["text/plain"] == "7"


def test_a_stopped_engine_and_one_that_ignores_interrupts_are_restarted(rig: Rig) -> None:
    mec = rig.client()
    before = [pid_of(mec, id) for id in (0, 1)]
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    pending = [
        running(mec.execute(code, targets=[id], block=False))
        for id, code in [(0, SLEEP), (1, ignore + SLEEP)]
    ]
    rig.kill(before[0], 19)
    mec.interrupt(stuck="restart")
    for each in pending:
        assert "did not react to an interrupt" in str(died(each, timeout=10))
    for id in (0, 1):
        back(mec, id, before[id])


def test_restart_may_be_the_rule(start: Callable[..., Rig]) -> None:
    rig = start(2, "--stuck", "restart", "--stuck-after", f"{STUCK_AFTER:g}")
    mec = rig.client()
    for _ in range(3):  # more than deaths are allowed, which these are not
        before = pid_of(mec, 0)
        pending = mec.execute(ENDLESS, targets=[0], block=False, timeout=0.5)
        error = died(pending, timeout=20)
        assert "did not react to an interrupt (timeout 0.5 s)" in str(error)
        back(mec, 0, before)
    assert mec.get_ids() == [0, 1]
