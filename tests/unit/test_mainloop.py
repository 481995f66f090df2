"""The loop that runs commands: order, cancelling, errors, and interrupts that hit only their target."""

from __future__ import annotations

import _thread
import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from ipython1.kernel.engine.failures import format_traceback
from ipython1.kernel.engine.jobs import Command
from ipython1.kernel.engine.mainloop import Job, MainLoop, NoBoard, user_code
from ipython1.kernel.engine.output import OutputBuffer
from ipython1.kernel.error import CommandTimeout
from ipython1.kernel.wire.codec import decode_failure
from ipython1.kernel.wire.records import Submit


def job(id, parts=()):
    return Job(id, parts=None if parts is None else list(parts))


class Loop:
    """A loop that runs Python functions, and what came of them."""

    def __init__(self, **functions):
        self.functions = functions
        self.results = {}
        self.order = []
        self.threads = set()
        self.clock = iter(range(10_000_000))
        self.loop = MainLoop(self.perform, self.done, lambda: float(next(self.clock)))

    def perform(self, job):
        return [user_code(self.functions[job.id])]

    def done(self, job, status, parts):
        self.threads.add(threading.get_ident())
        self.order.append(job.id)
        self.results[job.id] = parts[0] if status == "ok" else decode_failure(parts[0], 0, "execute")

    def put(self, *ids):
        for id in ids:
            self.loop.put(job(id))

    def run(self, driver):
        """Run on the main thread while `driver` works in another."""
        problems = []

        def drive():
            try:
                until(lambda: self.loop._thread is not None)
                driver()
            except BaseException as error:  # noqa: BLE001
                problems.append(error)
            finally:
                self.loop.stop()

        thread = threading.Thread(target=drive)
        thread.start()
        self.loop.run_forever()
        thread.join()
        if problems:
            raise problems[0]


def fail():
    raise ValueError("no")


# -- order -----------------------------------------------------------------------


def test_jobs_run_in_order_and_say_when():
    loop = Loop(a=lambda: b"1", b=fail, c=lambda: b"3")
    jobs = [job(id) for id in "abc"]
    for one in jobs:
        loop.loop.put(one)
    assert loop.loop.run_ready() == 3
    assert loop.order == ["a", "b", "c"]
    assert loop.results["c"] == b"3"
    assert loop.results["b"].summary == "ValueError: no"
    assert [(one.started, one.completed) for one in jobs] == [(0, 1), (2, 3), (4, 5)]
    assert loop.loop.running is None
    assert loop.loop.run_ready() == 0


def test_it_is_shown_what_runs():
    shown = []
    board = type("Shown", (NoBoard,), {"show": lambda self, id, timeout=0.0: shown.append(id)})()
    loop = MainLoop(
        lambda job: shown.append("performed") or [], lambda *job: shown.append("done"), board=board
    )
    loop.put(job("a"), job("b"))
    loop.run_ready()
    assert shown == ["a", "performed", "", "done", "b", "performed", "", "done"]


def test_several_jobs_are_put_at_once():
    loop = Loop(a=lambda: b"", b=lambda: b"", c=lambda: b"")

    def driver():
        loop.loop.put()
        loop.loop.put(job("a"), job("b"))
        until(lambda: loop.order == ["a", "b"])
        waiting = job("c", None)
        loop.loop.put(waiting)
        loop.loop.ready(waiting, [])
        until(lambda: loop.order == ["a", "b", "c"])

    loop.run(driver)


def test_a_job_whose_parts_are_not_there_holds_up_those_of_its_client_behind_it():
    ids = ("c-1", "c-2", "d-1", "d-2")
    loop = Loop(**{id: lambda: b"" for id in ids})
    waiting = job("c-1", None)
    loop.loop.put(waiting)
    for id in ids[1:3]:
        loop.put(id)
    assert loop.loop.run_ready() == 1
    assert loop.order == ["d-1"]
    also = job("d-2", None)
    loop.loop.put(also)
    loop.loop.ready(waiting, [b"x"])
    assert waiting.parts == [b"x"]
    assert loop.loop.run_ready() == 2
    loop.loop.ready(also, [])
    assert loop.loop.run_ready() == 1
    assert loop.order == ["d-1", "c-1", "c-2", "d-2"]


def test_the_loop_wakes_for_a_job_behind_one_that_waits():
    loop = Loop(**{id: lambda: b"" for id in ("c-1", "d-1", "e-1")})
    waiting, behind = job("c-1", None), job("d-1", None)

    def driver():
        loop.loop.put(waiting)
        loop.loop.put(behind)
        loop.loop.ready(behind, [])
        until(lambda: loop.order == ["d-1"])
        loop.loop.put(job("e-1"))
        until(lambda: loop.order == ["d-1", "e-1"])

    loop.run(driver)


def test_cancel_takes_out_what_has_not_started():
    loop = Loop()
    cancelled = []

    def first():
        cancelled.extend(j.id for j in loop.loop.cancel(lambda j: j.id != "c"))
        assert loop.loop.run_ready() == 0  # not while one runs
        return b""

    loop.functions = {"a": first, "b": fail, "c": lambda: b"", "d": fail}
    loop.put("a", "b", "c", "d")
    assert loop.loop.run_ready() == 2
    assert cancelled == ["b", "d"]
    assert loop.order == ["a", "c"]


def test_run_forever_takes_jobs_from_other_threads():
    done = threading.Event()
    loop = Loop(a=lambda: b"", b=lambda: done.set() or b"")
    waiting = job("a", None)

    def driver():
        loop.loop.put(waiting)
        loop.put("b")
        loop.loop.ready(waiting, [])
        assert done.wait(10)

    loop.run(driver)
    assert loop.order == ["a", "b"]
    assert loop.threads == {threading.get_ident()}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -- errors ----------------------------------------------------------------------


class Nasty(BaseException):
    def __str__(self):
        raise SystemExit(3)


def raises(error):
    def f():
        raise error

    return f


@pytest.mark.parametrize(
    ("error", "ename"),
    [
        (SystemExit(1), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (MemoryError(), "MemoryError"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), "UnicodeEncodeError"),
        (ValueError("\ud800"), "ValueError"),
        (Nasty(), "Nasty"),
    ],
)
def test_whatever_user_code_raises_is_the_error_of_its_command(error, ename):
    loop = Loop(a=raises(error), b=lambda: b"fine")
    loop.put("a", "b")
    assert loop.loop.run_ready() == 2
    assert loop.results["a"].ename == ename
    assert loop.results["b"] == b"fine"


def test_recursion_ends_as_an_error():
    def f():
        return f()

    loop = Loop(a=f, b=lambda: b"fine")
    loop.put("a", "b")
    loop.loop.run_ready()
    assert loop.results["a"].ename == "RecursionError"
    assert "more times]" in loop.results["a"].traceback
    assert loop.results["b"] == b"fine"


def test_tracebacks_hold_only_the_users_frames():
    loop = Loop(a=fail)
    loop.put("a")
    loop.loop.run_ready()
    lines = loop.results["a"].traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "kernel/engine" not in loop.results["a"].traceback
    assert lines[-2].strip() == 'raise ValueError("no")'
    assert lines[-1] == "ValueError: no"


def test_tracebacks_keep_causes_and_notes():
    try:
        try:
            fail()
        except ValueError as error:
            raise KeyError("b") from error
    except KeyError as error:
        text = format_traceback(error)
    assert "ValueError: no" in text
    assert "direct cause" in text
    assert text.endswith("KeyError: 'b'")


def test_a_child_forked_by_user_code_ends_where_its_command_ends():
    code = """
import os
from ipython1.kernel.engine.mainloop import Job, MainLoop
loop = MainLoop(lambda job: [str(os.fork()).encode()], lambda *a: print('done', flush=True))
loop.put(Job('a', 0.0, []))
loop.run_ready()
os.wait()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "done\n"


# -- interrupts ------------------------------------------------------------------


def spin():
    while True:
        pass


def until_running(loop, id):
    while loop.loop.running is None or loop.loop.running.id != id:
        time.sleep(0)


entered = threading.Event()


async def doze():
    entered.set()
    await asyncio.sleep(60)


def with_child():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        entered.set()
        try:
            child.wait()
        finally:
            child.kill()


BUSY = {
    "python": lambda: entered.set() or spin(),
    "sleep": lambda: entered.set() or time.sleep(60),
    "lock": lambda: entered.set() or threading.Event().wait(60),
    "child": with_child,
    "asyncio": lambda: asyncio.run(doze()),
    "thread": lambda: threading.Thread(target=entered.set).start() or spin(),
}


@pytest.mark.parametrize("what", BUSY)
def test_an_interrupt_ends_the_command_and_only_that(what):
    entered.clear()
    loop = Loop(a=BUSY[what], b=lambda: b"fine")

    def driver():
        loop.put("a", "b")
        assert entered.wait(10)
        assert not loop.loop.interrupt("b")
        assert loop.loop.interrupt("a")
        until(lambda: "b" in loop.results)

    started = time.monotonic()
    loop.run(driver)
    assert time.monotonic() - started < 10
    assert loop.results["a"].ename == "KeyboardInterrupt"
    assert loop.results["b"] == b"fine"


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def test_an_interrupt_just_before_a_blocking_call_ends_it(monkeypatch):
    kill = signal.pthread_kill

    def without_waking(thread, number):
        if number == signal.SIGINT:
            _thread.interrupt_main(signal.SIGINT)  # what is left of a signal that came too early
        else:
            kill(thread, number)

    monkeypatch.setattr(signal, "pthread_kill", without_waking)
    entered.clear()
    loop = Loop(a=BUSY["sleep"], b=lambda: b"fine")

    def driver():
        loop.put("a", "b")
        assert entered.wait(10)
        spin_for(0.02)  # so that it sleeps
        loop.loop.interrupt("a")
        until(lambda: "b" in loop.results)
        until(lambda: not loop.loop._nudging)

    loop.run(driver)
    assert loop.results["a"].ename == "KeyboardInterrupt"
    assert loop.results["b"] == b"fine"
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL


def test_a_timeout_is_an_interrupt_by_another_name():
    loop = Loop(a=spin)
    late = Command(Submit("a", (0,), "execute", "", -1, 1.5, b"", ()))
    late.parts = ()

    def driver():
        loop.loop.put(late)
        until_running(loop, "a")
        assert not loop.loop.expire(job("a"))  # another of that id
        assert loop.loop.expire(late)
        until(lambda: "a" in loop.results)

    loop.run(driver)
    error = loop.results["a"].exception()
    assert type(error) is CommandTimeout
    assert error.timeout == 1.5


def test_a_signal_from_outside_interrupts_what_runs_and_is_ignored_when_idle():
    loop = Loop(a=spin, b=lambda: b"fine")

    def driver():
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGINT)
        loop.put("a")
        until_running(loop, "a")
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: "a" in loop.results)
        loop.put("b")
        until(lambda: "b" in loop.results)

    loop.run(driver)
    assert loop.results["a"].ename == "KeyboardInterrupt"
    assert loop.results["b"] == b"fine"


def test_a_command_may_catch_its_interrupt_and_be_interrupted_again():
    caught = threading.Event()

    def stubborn():
        try:
            spin()
        except KeyboardInterrupt:
            caught.set()
        spin()

    loop = Loop(a=stubborn)

    def driver():
        loop.put("a")
        until_running(loop, "a")
        loop.loop.interrupt()
        assert caught.wait(10)
        loop.loop.interrupt()
        until(lambda: "a" in loop.results)

    loop.run(driver)
    assert loop.results["a"].ename == "KeyboardInterrupt"


def test_what_surrounds_user_code_is_never_interrupted():
    trace = []

    class Careful(Loop):
        def perform(self, job):
            trace.append("in")
            spin_for(0.0005)
            try:
                return [user_code(lambda: spin_for(0.0005) or b"")]
            finally:
                spin_for(0.0005)
                trace.append("out")

    loop = Careful()
    done = threading.Event()

    def driver():
        for n in range(200):
            loop.loop.put(job(str(n)))
        while len(loop.results) < 200:
            loop.loop.interrupt()
            time.sleep(random.random() * 0.001)
        done.set()

    loop.run(driver)
    assert done.is_set()
    assert trace == ["in", "out"] * 200
    assert loop.order == [str(n) for n in range(200)]


def spin_for(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_an_interrupt_between_two_jobs_is_for_the_one_about_to_start():
    loop = Loop(a=lambda: 1, b=lambda: 2, c=lambda: 3)
    done = loop.loop._done

    def interrupt_after(job, *result):
        done(job, *result)
        if job.id == "a":
            assert loop.loop.interrupt()
            assert not loop.loop.interrupt("b")  # whoever names it takes it out of the queue

    loop.loop._done = interrupt_after
    loop.put("a", "b", "c")
    loop.run(lambda: until(lambda: len(loop.results) == 3))
    assert loop.results["b"].ename == "KeyboardInterrupt"
    assert (loop.results["a"], loop.results["c"]) == (1, 3)
    assert not loop.loop.interrupt()  # nothing runs or waits


def test_an_early_interrupt_strikes_when_user_code_begins():
    entered = []

    class Slow(Loop):
        def perform(self, job):
            assert self.loop.interrupt(job.id)
            spin_for(0.001)
            return [user_code(lambda: entered.append(1) or b"")]

    loop = Slow()
    loop.loop.put(job("a"))
    loop.run(lambda: until(lambda: "a" in loop.results))
    assert loop.results["a"].ename == "KeyboardInterrupt"
    assert entered == []


@pytest.mark.parametrize("seed", range(3))
def test_random_interrupts_hit_their_target_and_nothing_else(seed):
    chance = random.Random(seed)
    count = 400
    lengths = {str(n): chance.choice([0.0, 0.0002, 0.0005, 0.001, None]) for n in range(count)}
    loop = Loop(
        **{
            id: spin if length is None else (lambda s=length: spin_for(s) or b"")
            for id, length in lengths.items()
        }
    )
    aimed = set()

    def driver():
        loop.put(*lengths)
        while len(loop.results) < count:
            running = loop.loop.running
            if running is None:
                continue
            id = running.id
            if lengths[id] is not None and int(id) % 2:
                time.sleep(0)
                continue  # never aimed at
            if chance.random() < 0.5:
                spin_for(chance.random() * 0.0006)
            aimed.add(id)
            loop.loop.interrupt(id)

    loop.run(driver)
    hit = {id for id, result in loop.results.items() if result != b""}
    assert loop.order == list(lengths)
    assert hit <= aimed
    assert {id for id, length in lengths.items() if length is None} <= hit
    assert {loop.results[id].ename for id in hit} == {"KeyboardInterrupt"}
    assert loop.loop.running is None


def test_a_command_that_prints_without_end_is_interrupted_while_it_waits_for_the_taker():
    output = OutputBuffer(lambda: None)

    def flood():
        while True:
            output.write("publish", "x" * 100_000)

    class Printing(Loop):
        def perform(self, job):
            output.begin(job.id)
            return super().perform(job)

        def done(self, job, status, parts):
            output.end()
            super().done(job, status, parts)

    loop = Printing(a=flood)

    def driver():
        loop.put("a")
        until(lambda: output._put - output._taken > 4 * 1024 * 1024)
        loop.loop.interrupt("a")
        until(lambda: "a" in loop.results)

    loop.run(driver)
    assert loop.results["a"].ename == "KeyboardInterrupt"


def test_user_code_that_changes_the_handler_does_not_break_the_loop():
    loop = Loop(a=lambda: (signal.signal(signal.SIGINT, signal.SIG_IGN), b"")[1], b=spin)

    def driver():
        loop.put("a", "b")
        until_running(loop, "b")
        loop.loop.interrupt("b")
        until(lambda: "b" in loop.results)

    loop.run(driver)
    assert loop.results["b"].ename == "KeyboardInterrupt"


def test_inline_there_is_nothing_to_interrupt_with():
    loop = Loop()
    loop.functions["a"] = lambda: b"no" if loop.loop.interrupt() else b"fine"
    loop.put("a")
    loop.loop.run_ready()
    assert loop.results["a"] == b"fine"
    assert not loop.loop.interrupt()
