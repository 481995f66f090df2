from __future__ import annotations

import concurrent.futures
import logging
import os
import queue
import subprocess
import sys
import textwrap
import threading

import pytest

from ipython1.kernel.client import bridge as bridge_module
from ipython1.kernel.client.bridge import ReactorBridge
from ipython1.kernel.error import ClientClosed, ClientForked, WouldBlockReactor


class FakePool:
    threadFactory = threading.Thread  # noqa: N815 -- Twisted's name


class FakeReactor:
    """What the bridge uses of a reactor: a queue of calls, run by a thread, or by the test."""

    def __init__(self, running: bool = False) -> None:
        self.running = running
        self.calls: queue.SimpleQueue = queue.SimpleQueue()
        self.wakes = 0
        self.triggers: list[tuple] = []
        self.when_running: list[tuple] = []
        self.pool = FakePool()
        self.thread: threading.Thread | None = None

    def getThreadPool(self):
        return self.pool

    def callWhenRunning(self, f, *args):
        self.when_running.append((f, args))

    def callFromThread(self, f, *args, **kwargs):
        self.wakes += 1
        self.calls.put((f, args, kwargs))

    def addSystemEventTrigger(self, phase, event, f):
        self.triggers.append((phase, event, f))

    def run(self, installSignalHandlers=True):  # noqa: N803
        assert installSignalHandlers is False
        self.thread = threading.current_thread()
        self.running = True
        for f, args in self.when_running:
            f(*args)
        while self.running:
            f, args, kwargs = self.calls.get(timeout=20)
            f(*args, **kwargs)

    def stop(self):
        self.running = False

    def turn(self) -> None:
        """Run what waits, in this thread."""
        for _ in range(self.calls.qsize()):
            f, args, kwargs = self.calls.get()
            f(*args, **kwargs)


@pytest.fixture
def reactor():
    """A reactor that somebody else runs: the test."""
    return FakeReactor(running=True)


@pytest.fixture
def bridge(reactor):
    made = ReactorBridge(reactor)
    reactor.turn()
    reactor.wakes = 0
    return made


@pytest.fixture
def started():
    reactor = FakeReactor()
    made = ReactorBridge(reactor)
    yield made
    made._exit()


# -- submit -----------------------------------------------------------------------------


def test_calls_keep_their_order_and_share_a_wake_up(bridge, reactor):
    seen = []
    for i in range(5):
        bridge.submit(seen.append, i)
    assert (seen, reactor.wakes) == ([], 1)
    reactor.turn()
    assert seen == [0, 1, 2, 3, 4]
    bridge.submit(seen.append, 5)
    assert reactor.wakes == 2


def test_a_call_made_by_a_call_comes_in_the_next_turn(bridge, reactor):
    seen = []
    bridge.submit(lambda: bridge.submit(seen.append, "inner") or seen.append("outer"))
    bridge.submit(seen.append, "second")
    reactor.turn()
    assert seen == ["outer", "second"]
    reactor.turn()
    assert seen == ["outer", "second", "inner"]


def test_a_failing_call_is_logged_and_harms_no_other(bridge, reactor, logged_errors):
    seen = []
    bridge.submit(lambda: 1 / 0)
    bridge.submit(seen.append, 1)
    reactor.turn()
    assert seen == [1]
    assert len(logged_errors.flush(ZeroDivisionError)) == 1


# -- wait -------------------------------------------------------------------------------


def test_wait_returns_when_it_is_done_whatever_came_of_it(started):
    good, bad = concurrent.futures.Future(), concurrent.futures.Future()
    started.submit(good.set_result, 1)
    started.submit(bad.set_exception, ValueError())
    started.wait(good, None)
    started.wait(bad, 20)
    assert isinstance(bad.exception(), ValueError)


def test_wait_times_out(started):
    with pytest.raises(TimeoutError, match=r"within 0\.001 s"):
        started.wait(concurrent.futures.Future(), 0.001)


def test_the_reactor_thread_cannot_wait(bridge, monkeypatch):
    done = concurrent.futures.Future()
    done.set_result(None)
    monkeypatch.setattr(bridge, "in_reactor_thread", lambda: True)
    bridge.wait(done, None)
    with pytest.raises(WouldBlockReactor):
        bridge.wait(concurrent.futures.Future(), None)


def test_a_reactor_that_stops_releases_who_waits(bridge, reactor):
    future = concurrent.futures.Future()
    errors = []

    def wait():
        try:
            bridge.wait(future, 20)
        except ClientClosed as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    [(phase, name, end)] = reactor.triggers
    assert (phase, name) == ("after", "shutdown")
    end()
    waiter.join(20)
    assert "stopped" in str(errors[0])
    for use in (lambda: bridge.submit(print), bridge.check, lambda: bridge.wait(future, None)):
        with pytest.raises(ClientClosed):
            use()


# -- starting and ending -------------------------------------------------------------------


def test_a_reactor_that_runs_is_used_and_not_stopped(bridge, reactor):
    bridge._exit()
    reactor.turn()
    assert reactor.thread is None
    assert reactor.running


def test_its_own_reactor_runs_in_a_daemon_thread_until_exit(started):
    reactor = started.reactor
    assert reactor.running
    assert reactor.thread.daemon
    assert reactor.pool.threadFactory(target=print).daemon
    started._exit()
    assert not reactor.thread.is_alive()
    with pytest.raises(ClientClosed):
        started.check()


def test_a_reactor_that_cannot_start():
    class Stopped(FakeReactor):
        def run(self, installSignalHandlers=True):  # noqa: N803
            raise RuntimeError("not restartable")

    with pytest.raises(ClientClosed, match="not restartable"):
        ReactorBridge(Stopped())


# -- callbacks of users --------------------------------------------------------------------


def test_user_calls_run_in_order_in_a_thread_of_their_own(bridge):
    seen: queue.SimpleQueue = queue.SimpleQueue()
    for i in range(3):
        bridge.call_user(lambda i=i: seen.put((i, threading.current_thread().name)))
    assert [seen.get(timeout=20) for _ in range(3)] == [(i, "ipython1-callbacks") for i in range(3)]


def test_exit_lets_the_callbacks_finish(bridge):
    seen = []
    bridge.call_user(seen.append, 1)
    bridge._exit()
    assert seen == [1]


def test_a_callback_that_raises_is_logged(bridge, caplog):
    seen = []
    with caplog.at_level(logging.ERROR):
        bridge.call_user(sys.exit, 3)
        bridge.call_user(seen.append, 1)
        bridge._exit()
    assert seen == [1]
    assert "exception in the callback" in caplog.text
    assert "SystemExit" in caplog.text


# -- forks --------------------------------------------------------------------------------------


def test_a_child_is_told_at_once(bridge, monkeypatch):
    parent = os.getpid()
    monkeypatch.setattr(bridge_module, "_pid", parent + 1)
    never = concurrent.futures.Future()
    uses = (
        bridge.check,
        lambda: bridge.submit(print),
        lambda: bridge.call_user(print),
        lambda: bridge.wait(never, None),
    )
    for use in uses:
        with pytest.raises(ClientForked, match=rf"pid {parent}\b"):
            use()
    bridge._exit()


# -- the real reactor, in processes of their own ---------------------------------------------------


def run(code: str, timeout: float = 60) -> str:
    """What a script prints; it must end by itself, and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def test_importing_starts_nothing():
    code = """
        import sys, threading
        import ipython1.kernel.client.bridge
        print("twisted.internet.reactor" in sys.modules, threading.active_count())
    """
    assert run(code) == "False 1\n"


def test_a_program_that_just_ends():
    code = """
        import os, threading
        from concurrent.futures import Future
        from ipython1.kernel.client.bridge import get_bridge
        def say(*words):  # whole lines, whichever thread it is
            os.write(1, (" ".join(map(str, words)) + "\\n").encode())
        bridge = get_bridge()
        assert get_bridge() is bridge
        future = Future()
        bridge.submit(lambda: bridge.reactor.callInThread(future.set_result, bridge.in_reactor_thread()))
        bridge.wait(future, 20)
        bridge.call_user(say, "callback")
        def late():
            threading.main_thread().join()
            future = Future()
            bridge.submit(future.set_result, None)
            bridge.wait(future, 20)
            say("late", future.done())
        threading.Thread(target=late).start()
        say(future.result(), bridge.in_reactor_thread())
    """
    assert sorted(run(code).splitlines()) == ["True False", "callback", "late True"]


def test_a_forked_child_is_told_and_ends():
    code = """
        import os
        from concurrent.futures import Future
        from ipython1.kernel.client.bridge import get_bridge
        from ipython1.kernel.error import ClientForked
        bridge = get_bridge()
        never = Future()
        pid = os.fork()
        if not pid:
            for use in (get_bridge, lambda: bridge.wait(never, None)):
                try:
                    use()
                except ClientForked as error:
                    print(type(error).__name__, flush=True)
            raise SystemExit(5)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        future = Future()
        bridge.submit(future.set_result, 1)
        bridge.wait(future, 20)
    """
    # Python 3.12 warns of forks with threads; that is what this is about.
    code = "import warnings; warnings.simplefilter('ignore')\n" + textwrap.dedent(code)
    assert run(code) == "ClientForked\nClientForked\n5\n"


def test_a_child_forked_before_the_first_use_has_a_reactor_of_its_own():
    code = """
        import os
        from twisted.internet import reactor
        from concurrent.futures import Future
        from ipython1.kernel.client.bridge import get_bridge
        pid = os.fork()
        bridge = get_bridge()
        future = Future()
        bridge.submit(reactor.callLater, 0.01, future.set_result, 1)
        bridge.wait(future, 20)
        if pid:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert run(code) == "0\n"


def test_a_twisted_program_keeps_its_reactor():
    code = """
        from twisted.internet import reactor, threads
        from concurrent.futures import Future
        from ipython1.kernel.client.bridge import get_bridge
        from ipython1.kernel.error import WouldBlockReactor
        def main():
            bridge = get_bridge()
            try:
                bridge.wait(Future(), None)
            except WouldBlockReactor:
                print("refused")
            threads.deferToThread(worker, bridge).addBoth(lambda result: (print(result), reactor.stop()))
        def worker(bridge):
            future = Future()
            bridge.submit(lambda: future.set_result(bridge.in_reactor_thread()))
            bridge.wait(future, 20)
            return future.result()
        reactor.callWhenRunning(main)
        reactor.run()
        print("ended")
    """
    assert run(code) == "refused\nTrue\nended\n"


def test_asyncio_programs_with_twisteds_asyncio_reactor():
    code = """
        import asyncio
        from concurrent.futures import Future
        async def main():
            from twisted.internet import asyncioreactor
            asyncioreactor.install(asyncio.get_running_loop())
            from ipython1.kernel.client.bridge import get_bridge
            from ipython1.kernel.error import WouldBlockReactor
            bridge = get_bridge()
            future = Future()
            bridge.submit(lambda: future.set_result(bridge.in_reactor_thread()))
            try:
                bridge.wait(future, None)
            except WouldBlockReactor:
                print("refused")
            print(await asyncio.wrap_future(future))
        asyncio.run(main())
    """
    assert run(code) == "refused\nTrue\n"


def test_ctrl_c_ends_a_wait():
    code = """
        import os, signal, threading, time
        from concurrent.futures import Future
        from ipython1.kernel.client.bridge import get_bridge
        bridge = get_bridge()
        at = []
        def interrupt():
            at.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
        bridge.submit(lambda: bridge.reactor.callLater(0.2, interrupt))
        try:
            bridge.wait(Future(), None)
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - at[0] < 0.5)
    """
    assert run(code) == "interrupted True\n"


def test_two_threads_get_one_bridge(monkeypatch):
    made = []

    class Counted:
        def __init__(self, reactor):
            made.append(reactor)

        def check(self):
            pass

    monkeypatch.setattr(bridge_module, "ReactorBridge", Counted)
    monkeypatch.setattr(bridge_module, "_global_reactor", object)
    monkeypatch.setattr(bridge_module, "_bridge", None)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        bridges = {id(bridge) for bridge in pool.map(lambda _: bridge_module.get_bridge(), range(8))}
    assert len(bridges) == len(made) == 1
