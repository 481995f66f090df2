from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import json
import pickle
import threading
import traceback
import tracemalloc
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import ensureDeferred, inlineCallbacks

from ipython1.kernel.client.pending import PendingResult, format_id, parse_id
from ipython1.kernel.client.results import ResultList
from ipython1.kernel.error import ClientClosed, CompositeError, RemoteFailure, UnknownResult
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.codec import encode_failure
from ipython1.kernel.wire.records import Event, Result


class FakeCore:
    """A client without a network. A wait runs `steps` until what is waited for is done."""

    def __init__(self) -> None:
        self.steps: deque[Callable[[], Any]] = deque()
        self.waits: list[float | None] = []
        self.aborts: list[bool] = []
        self.user_calls: list[tuple] = []

    def wait(self, future: concurrent.futures.Future, timeout: float | None) -> None:
        self.waits.append(timeout)
        while not future.done():
            if not self.steps:
                raise TimeoutError("nothing comes")
            self.steps.popleft()()

    def sent(self, id: str) -> tuple[int, int]:
        return 0, 0

    def call_user(self, f: Callable, *args: Any) -> None:
        self.user_calls.append((f, args))

    def run_user_calls(self) -> None:
        while self.user_calls:
            f, args = self.user_calls.pop(0)
            f(*args)

    def abort(self, pending: PendingResult, interrupt: bool = False) -> None:
        self.aborts.append(interrupt)


@pytest.fixture
def core() -> FakeCore:
    return FakeCore()


def make(core: FakeCore, targets: Any = (0, 1), finish: Any = None, method: str = "execute") -> PendingResult:
    return PendingResult(core, "c0ffee-7", method, targets, finish)


def ok(pending, engine, value=None, op="apply", started=10.0, completed=12.5, events=0):
    record = Result(pending.command_id, engine, op, "ok", started, completed, events, ())
    pending.deliver_result(record, [bytes(part) for part in objects.dumps(value)])


def error(pending, engine, ename="ZeroDivisionError", text="division by zero", started=10.0, pickled=b""):
    record = Result(pending.command_id, engine, "apply", "error", started, started and 11.0, 0, ())
    pending.deliver_result(record, [encode_failure(RemoteFailure(ename, text, "Traceback…", pickled))])


def unknown(pending, engine):
    pending.deliver_result(Result(pending.command_id, engine, "", "unknown", 0.0, 0.0, 0, ()), [])


def event(pending, engine, index, kind, text="", parts=()):
    pending.deliver_event(Event(pending.command_id, engine, index, kind, text, ()), list(parts))


def command(source, number=1, **more):
    return {"input": {"translated": source, "raw": source}, "number": number, **more}


# -- ids -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        ((0, 1, 2, 3, 7), "c-1@0-3,7"),
        ((2, 0), "c-1@2,0"),
        ((5,), "c-1@5"),
        ((), "c-1@"),
        ((3, 4, 4), "c-1@3-4,4"),
        (range(100_000), "c-1@0-99999"),
        (range(2, 3), "c-1@2"),
        (range(0), "c-1@"),
        (range(0, 6, 2), "c-1@0,2,4"),
    ],
)
def test_format_id(targets, text):
    assert format_id("c-1", targets) == text


@given(st.lists(st.integers(0, 30), unique=True))
def test_ids_come_back(targets):
    assert parse_id(format_id("5f3a-12", targets)) == ("5f3a-12", tuple(targets))


@pytest.mark.parametrize(
    "text", ["", "c-1", "c-1@x", "c-1@1-", "c-1@0-1,1", "c-1@3-1", "c-1@01", "c 1@1", "a@1@2", 5]
)
def test_what_is_no_id(text):
    with pytest.raises(ValueError, match="not the id of a result"):
        parse_id(text)


def test_an_id_has_its_targets(core):
    assert make(core, [0, 1, 2, 5]).id == "c0ffee-7@0-2,5"


def test_a_target_twice(core):
    with pytest.raises(ValueError, match="twice"):
        make(core, [1, 1])


# -- results ----------------------------------------------------------------------------


def test_values_come_in_target_order(core):
    pending = make(core, (3, 1))
    assert (pending.ready(), pending.progress) == (False, (0, 2))
    ok(pending, 1, "one")
    assert (pending.done(), pending.progress) == (False, (1, 2))
    ok(pending, 3, None)
    assert (pending.ready(), pending.progress) == (True, (2, 2))
    assert pending.result() == [None, "one"]
    assert pending.r is pending.result()
    assert pending.exception() is None


def test_finish_makes_the_result_once(core):
    calls = []
    pending = make(core, finish=lambda values: calls.append(values) or sum(values))
    ok(pending, 0, 1)
    ok(pending, 1, 2)
    assert calls == []
    assert [pending.r, pending.result(), pending.get_result()] == [3, 3, 3]
    assert calls == [[1, 2]]


def test_an_error_of_finish_is_the_error(core):
    pending = make(core, (0,), finish=lambda values: 1 / values[0])
    ok(pending, 0, 0)
    with pytest.raises(ZeroDivisionError):
        pending.result()
    assert list(pending) == [0]


def test_no_targets_at_all(core):
    pending = make(core, (), finish=lambda values: ("nothing", values))
    assert pending.done()
    assert pending.result() == ("nothing", [])
    assert list(pending) == []


def test_get_result_without_waiting(core):
    pending = make(core, (0,))
    assert pending.get_result("not yet", block=False) == "not yet"
    assert core.waits == []
    ok(pending, 0, None)
    assert pending.get_result("not yet", block=False) == [None]


def test_a_timeout_leaves_the_work_going(core):
    pending = make(core, (0,))
    with pytest.raises(TimeoutError):
        pending.get_result(timeout=0.5)
    assert core.waits == [0.5]
    assert core.aborts == []
    ok(pending, 0, 1)
    assert pending.r == [1]


@pytest.mark.parametrize("cancel", [False, True])
def test_threads_that_wait_with_other_futures_wake_up(core, cancel):
    pending = make(core, (1,))
    other = concurrent.futures.Future()
    seen = []

    def wait_for_both():
        seen.append(concurrent.futures.wait([other, pending], 10, concurrent.futures.FIRST_COMPLETED).done)

    def take_them():
        seen.append({next(concurrent.futures.as_completed([pending, other], 10))})

    threads = [threading.Thread(target=f) for f in (wait_for_both, take_them)]
    for thread in threads:
        thread.start()
    while len(pending._waiters) < 2 or len(other._waiters) < 2:
        threads[0].join(0.001)
    if cancel:
        core.steps.append(lambda: error(pending, 1, "TaskAborted", started=0.0))
        assert pending.cancel()
    else:
        ok(pending, 1)
    for thread in threads:
        thread.join(5)
    assert seen == [{pending}, {pending}]


def test_concurrent_futures_wait_and_as_completed(core):
    first, second = make(core, (0,)), make(core, (0,))
    ok(second, 0, 2)
    assert concurrent.futures.wait([first, second], timeout=0).done == {second}
    ok(first, 0, 1)
    assert {pending.result()[0] for pending in concurrent.futures.as_completed([first, second])} == {1, 2}


@pytest.mark.parametrize("how", [error, lambda pending, _: pending.fail(ClientClosed())])
def test_who_waits_for_the_first_exception_hears_of_it(core, how):
    bad, good, other = (make(core, (0,)) for _ in range(3))
    waiter = concurrent.futures._base._create_and_install_waiters(
        [bad, good, other], concurrent.futures.FIRST_EXCEPTION
    )
    ok(good, 0)
    assert not waiter.event.is_set()
    how(bad, 0)
    assert waiter.event.is_set()
    assert isinstance(bad.exception(), (CompositeError, ClientClosed))


def test_repeats_and_strangers_are_ignored(core):
    pending = make(core)
    ok(pending, 0, "first")
    ok(pending, 0, "again")
    ok(pending, 9, "who?")
    assert pending.progress == (1, 2)
    ok(pending, 1)
    ok(pending, 1, "late")
    assert pending.r == ["first", None]


class Unpickled:
    threads: ClassVar[list[str]] = []

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def __setstate__(self, state: dict) -> None:
        Unpickled.threads.append(threading.current_thread().name)
        if state["fails"]:
            raise RuntimeError("not here")


def test_unpickling_happens_once_in_the_thread_that_reads(core):
    Unpickled.threads.clear()
    pending = make(core, (0,))
    parts = [pickle.dumps(Unpickled(False))]
    pending.deliver_result(Result("c0ffee-7", 0, "apply", "ok", 1.0, 2.0, 0, ()), parts)
    assert Unpickled.threads == []
    reader = threading.Thread(target=pending.result, name="reader")
    reader.start()
    reader.join()
    pending.result()
    assert Unpickled.threads == ["reader"]
    assert pending[0] is pending.result()[0]


def test_what_cannot_be_unpickled_is_the_error_of_that_target(core):
    pending = make(core)
    ok(pending, 0, "fine")
    parts = [pickle.dumps(Unpickled(True))]
    pending.deliver_result(Result("c0ffee-7", 1, "apply", "ok", 1.0, 2.0, 0, ()), parts)
    with pytest.raises(CompositeError) as caught:
        pending.result()
    assert (
        "[1:execute]: SerializationError: the result cannot be rebuilt here: RuntimeError: not here"
        in str(caught.value)
    )
    assert caught.value.results == {0: "fine"}


def test_a_garbled_failure_is_an_error_too(core):
    pending = make(core, (0,))
    pending.deliver_result(Result("c0ffee-7", 0, "apply", "error", 1.0, 2.0, 0, ()), [b"\xc1"])
    with pytest.raises(CompositeError, match="cannot be rebuilt here"):
        pending.result()


# -- errors -----------------------------------------------------------------------------


def test_engines_that_failed(core):
    pending = make(core, (2, 0, 1))
    error(pending, 1, "NameError", "name 'a' is not defined")
    ok(pending, 2, "good")
    error(pending, 0)
    with pytest.raises(CompositeError) as caught:
        pending.result()
    assert str(caught.value) == (
        "one or more exceptions from call to method: execute\n"
        "[0:execute]: ZeroDivisionError: division by zero\n"
        "[1:execute]: NameError: name 'a' is not defined"
    )
    assert caught.value.results == {2: "good"}
    assert caught.value.engines == [0, 1]


def test_errors_raise_the_same_each_time(core):
    pending = make(core, (0,))
    error(pending, 0)
    lengths = set()
    raised = set()
    for read in (pending.result, pending.get_result, lambda: pending.r) * 3:
        try:
            read()
        except CompositeError as caught:
            raised.add(id(caught))
            lengths.add(len(traceback.extract_tb(caught.__traceback__)) - (read.__name__ != "result"))
    assert raised == {id(pending.exception())}
    assert max(lengths) <= 3


def test_an_error_does_not_keep_the_result_alive_in_a_cycle(core):
    pending = make(core, (0,))
    error(pending, 0)
    gc.collect()
    gc.disable()
    try:
        try:
            pending.result()
        except CompositeError:
            pass
        gone = weakref.ref(pending)
        del pending
        assert gone() is None
    finally:
        gc.enable()


def test_the_connection_is_lost(core):
    pending = make(core)
    ok(pending, 1, "in time")
    pending.fail(ClientClosed())
    pending.fail(RuntimeError("later"))
    ok(pending, 0, "too late")
    with pytest.raises(ClientClosed):
        pending.result()
    assert pending.progress == (1, 2)
    values = iter(pending)
    assert next(values) == "in time"
    with pytest.raises(ClientClosed):
        next(values)
    assert pending[1] == "in time"
    with pytest.raises(ClientClosed):
        pending[0]
    assert "failed: This client is closed" in repr(pending)


def test_unknown_everywhere(core):
    pending = make(core)
    unknown(pending, 0)
    unknown(pending, 1)
    with pytest.raises(UnknownResult, match="c0ffee-7@0-1"):
        pending.result()


def test_unknown_to_one_engine(core):
    pending = make(core)
    unknown(pending, 0)
    ok(pending, 1, 5)
    with pytest.raises(CompositeError, match="UnknownResult: No result c0ffee-7@0-1") as caught:
        pending.result()
    with pytest.raises(UnknownResult):
        caught.value.raise_exception()


# -- events ------------------------------------------------------------------------------


def test_output_of_a_command_becomes_keys(core):
    pending = make(core, (0, 1), finish=ResultList)
    event(pending, 0, 0, "stdout", "1")
    event(pending, 0, 1, "stderr", "oops\n")
    event(pending, 0, 2, "stdout", "0\n")
    bundle = {"data": {"image/png": b"\x89PNG", "text/plain": "<fig>"}, "metadata": {}}
    event(pending, 0, 3, "display", parts=[msgpack.packb(bundle)])
    ok(pending, 0, command("print(10)", 4, result={"text/plain": "5"}), "execute", events=4)
    ok(pending, 1, command("print(10)", 4), "execute")
    first, second = pending.result()
    assert list(first.items()) == [
        ("input", {"translated": "print(10)", "raw": "print(10)"}),
        ("number", 4),
        ("id", 0),
        ("stdout", "10\n"),
        ("stderr", "oops\n"),
        ("result", {"text/plain": "5"}),
        ("outputs", [bundle]),
    ]
    assert list(second) == ["input", "number", "id"]
    assert (first.started, first.completed, first.elapsed) == (10.0, 12.5, 2.5)
    assert first.size > second.size > 0


def test_a_kept_result_brings_its_own_output(core):
    pending = make(core, (3,), method="get_result")
    ok(pending, 3, command("x", 2, stdout="hi\n", started=1.0, completed=4.0), "get_result")
    [result] = pending.r
    assert result == command("x", 2, id=3, stdout="hi\n")
    assert result.elapsed == 3.0


@given(st.data())
def test_events_count_once_whatever_is_replayed(data):
    """A model of the engine: it replays events 0.. at any moment, up to where it is."""
    pending = make(FakeCore(), (0,))
    texts = [str(i) for i in range(data.draw(st.integers(0, 8)))]
    written = 0
    while written < len(texts):
        start = data.draw(st.sampled_from([0, written]))
        stop = data.draw(st.integers(written, len(texts)))
        for index in range(start, stop):
            event(pending, 0, index, "stdout", texts[index])
        written = max(written, stop)
    ok(pending, 0, events=len(texts))
    assert pending.stdout == ["".join(texts)]


def test_a_gap_waits_for_the_replay(core):
    pending = make(core, (0,))
    event(pending, 0, 1, "stdout", "b")
    assert pending.stdout == [""]
    event(pending, 0, 0, "stdout", "a")
    event(pending, 0, 1, "stdout", "b")
    assert pending.stdout == ["ab"]
    event(pending, 7, 0, "stdout", "who?")
    ok(pending, 0)
    event(pending, 0, 2, "stdout", "late")
    assert pending.stdout == ["ab"]


def test_output_so_far_by_target(core):
    pending = make(core, (2, 0))
    event(pending, 0, 0, "stdout", "zero")
    event(pending, 2, 0, "stderr", "two")
    assert pending.stdout == ["", "zero"]
    assert pending.stderr == ["two", ""]


def test_published_objects(core):
    pending = make(core)
    event(pending, 1, 0, "publish", parts=objects.dumps({"loss": 0.5}))
    assert pending.published == [{"loss": 0.5}]
    event(pending, 0, 0, "publish", parts=[b"garbage"])
    event(pending, 1, 1, "publish", parts=objects.dumps(None))
    first, broken, last = pending.published
    assert first is pending.published[0]
    assert isinstance(broken, Exception)
    assert last is None


def test_progress_of_engines_keeps_only_the_last(core):
    pending = make(core)
    for done in range(100):
        event(pending, 1, done, "progress", json.dumps({"done": done, "total": 100, "label": "load"}))
    assert pending.engine_progress == {1: {"done": 99, "total": 100, "label": "load"}}
    assert pending._arrivals.log(0) == []


def test_times(core, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pending = make(core)
    now[0] = 102.0
    assert (pending.elapsed, pending.serial_time, pending.speedup) == (2.0, 0, 0.0)
    ok(pending, 0, started=1.0, completed=4.0)
    ok(pending, 1, started=2.0, completed=7.0)
    now[0] = 200.0
    assert pending.elapsed == pending.wall_time == 2.0
    assert pending.serial_time == 8.0
    assert pending.speedup == 4.0


# -- one target at a time -------------------------------------------------------------------


def test_iteration_yields_as_engines_finish(core):
    pending = make(core, (0, 1, 2))
    core.steps += [lambda: ok(pending, 2, "c"), lambda: ok(pending, 0, "a"), lambda: ok(pending, 1, "b")]
    values = iter(pending)
    assert next(values) == "c"
    assert len(core.steps) == 2
    assert list(values) == ["a", "b"]
    assert list(pending) == ["c", "a", "b"]


def test_iteration_raises_at_the_end(core):
    pending = make(core, (0, 1, 2))
    error(pending, 1)
    core.steps += [lambda: ok(pending, 2, "c"), lambda: ok(pending, 0, "a")]
    values = iter(pending)
    assert [next(values), next(values)] == ["c", "a"]
    with pytest.raises(CompositeError, match="1:execute"):
        next(values)


def test_index_waits_for_that_target_only(core):
    pending = make(core, (5, 7, 9))
    core.steps += [lambda: event(pending, 9, 0, "stdout", "x"), lambda: ok(pending, 7, "seven")]
    assert pending[1] == "seven"
    assert not pending.done()
    error(pending, 9)
    with pytest.raises(CompositeError) as first:
        pending[-1]
    with pytest.raises(CompositeError) as second:
        pending[2]
    assert first.value is second.value
    assert first.value.engines == [9]
    ok(pending, 5, "five")
    assert pending[:2] == ["five", "seven"]


def test_bad_index(core):
    pending = make(core)
    with pytest.raises(IndexError, match="no target 2"):
        pending[2]
    with pytest.raises(TypeError):
        pending["0"]


# -- callbacks --------------------------------------------------------------------------------


def test_callbacks_form_a_chain_outside_the_reactor_thread(core):
    pending = make(core, (0,))
    seen = []
    pending.add_callback(lambda result, n, k: [*result, n, k], 2, k=3)
    pending.add_callback(seen.append)
    pending.add_callback(seen.append)
    ok(pending, 0, 1)
    assert seen == []
    core.run_user_calls()
    assert seen == [[1, 2, 3], None]
    assert pending.r == [1]


def test_a_late_callback_runs_at_once_and_gets_the_last_value(core):
    pending = make(core, (0,))
    ok(pending, 0, 1)
    seen = []
    pending.add_callback(lambda result: "changed")
    pending.add_callback(seen.append)
    assert seen == ["changed"]
    assert core.user_calls == []


def test_a_late_callback_keeps_its_place_behind_those_that_wait(core):
    pending = make(core, (0,))
    seen = []
    pending.add_callback(lambda result: seen.append("early"))
    ok(pending, 0)
    pending.add_callback(lambda value: seen.append("late"))
    core.run_user_calls()
    assert seen == ["early", "late"]


def test_a_callback_that_adds_a_callback(core):
    pending = make(core, (0,))
    seen = []
    pending.add_callback(lambda result: pending.add_callback(seen.append) or "outer")
    ok(pending, 0)
    core.run_user_calls()
    assert seen == ["outer"]


def test_a_callback_that_raises_ends_the_chain(core):
    pending = make(core, (0,))
    seen = []
    pending.add_callback(lambda result: 1 / 0)
    pending.add_callback(seen.append)
    ok(pending, 0, 1)
    with pytest.raises(ZeroDivisionError):
        core.run_user_calls()
    with pytest.raises(ZeroDivisionError):
        pending.add_callback(seen.append)
    assert seen == []
    assert pending.r == [1]


def test_callbacks_of_a_failed_command_are_not_called(core):
    pending = make(core, (0,))
    seen = []
    pending.add_callback(seen.append)
    error(pending, 0)
    core.run_user_calls()
    pending.add_callback(seen.append)
    assert seen == []


def test_callbacks_do_not_keep_a_result_alive(core):
    early, late = make(core, (0,)), make(core, (0,))
    early.add_callback(str)
    gone = [weakref.ref(early), weakref.ref(late)]
    gc.collect()
    gc.disable()
    try:
        ok(early, 0)
        ok(late, 0)
        core.run_user_calls()
        late.add_callback(str)
        del early, late
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def test_a_callback_must_be_callable(core):
    with pytest.raises(TypeError, match="callable"):
        make(core).add_callback(5)


def test_done_callbacks(core):
    pending = make(core, (0,))
    seen = []
    pending.add_done_callback(lambda future: seen.append(future.result()))
    ok(pending, 0, 1)
    assert seen == []
    core.run_user_calls()
    pending.add_done_callback(seen.append)
    assert seen == [[1], pending]


# -- await --------------------------------------------------------------------------------------


def test_await_in_asyncio(core):
    async def main():
        pending, failing, done = make(core, (0,)), make(core, (0,)), make(core, (0,))
        ok(done, 0, "at once")
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: threading.Thread(target=ok, args=(pending, 0, 5)).start())
        loop.call_soon(lambda: threading.Thread(target=error, args=(failing, 0)).start())
        with pytest.raises(CompositeError):
            await failing
        return await asyncio.gather(_value(pending), _value(done))

    assert asyncio.run(main()) == [[5], ["at once"]]


async def _value(pending):
    return await pending


def test_asyncio_reads_it_as_a_future(core):
    pending = make(core, (0,))

    async def main():
        future = asyncio.wrap_future(pending)
        ok(pending, 0, 5)
        core.run_user_calls()
        return await future

    assert asyncio.run(main()) == [5]
    assert pending._get_snapshot() == (True, False, [5], None)


def test_a_loop_does_not_wait_for_what_it_cancels(core):
    pending, called = make(core, (0,)), []
    pending.add_done_callback(called.append)

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(pending), 0.001)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert (core.aborts, core.waits) == ([False], [])
    error(pending, 0, "TaskAborted", started=0.0)
    assert pending.cancelled()
    core.run_user_calls()
    assert called == [pending]


def test_code_in_a_task_may_wait_for_what_it_cancels(core):
    pending = make(core, (0,))
    core.steps.append(lambda: error(pending, 0, "TaskAborted", started=0.0))

    async def main():
        return pending.cancel()

    assert asyncio.run(main()) is True


def test_giving_up_an_await_leaves_the_work_going(core):
    async def main():
        pending = make(core, (0,))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_value(pending), 0)
        ok(pending, 0, 3)
        return await pending

    assert asyncio.run(main()) == [3]


def test_a_loop_that_has_ended_is_left_alone(core):
    pending = make(core, (0,))

    async def main():
        task = asyncio.ensure_future(_value(pending))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    ok(pending, 0, 4)
    assert pending.r == [4]


def test_await_in_twisted(core):
    async def main(pending):
        return await pending

    pending, failing = make(core, (0,)), make(core, (0,))
    good, bad = ensureDeferred(main(pending)), ensureDeferred(main(failing))
    assert not good.called
    ok(pending, 0, 5)
    error(failing, 0)
    assert good.result == [5]
    got = []
    bad.addErrback(lambda failure: got.append(failure.check(CompositeError)))
    assert got == [CompositeError]


def test_as_deferred(core):
    @inlineCallbacks
    def main(pending):
        value = yield pending.as_deferred()
        return value

    pending, failing = make(core, (0,)), make(core, (0,))
    waiting = main(pending)
    ok(pending, 0, 5)
    assert waiting.result == [5]
    assert main(pending).result == [5]
    got = []
    failing.as_deferred().addErrback(lambda failure: got.append(failure.value))
    error(failing, 0)
    assert got == [failing.exception()]


# -- watching --------------------------------------------------------------------------------------


def test_stream_prints_output_as_it_comes(core, capsys):
    pending = make(core)
    event(pending, 0, 0, "stdout", "a\nb")
    core.steps += [
        lambda: event(pending, 1, 0, "stdout", "other\n"),
        lambda: event(pending, 0, 1, "stdout", "c\n"),
        lambda: event(pending, 1, 1, "stderr", "bad\n"),
        lambda: ok(pending, 1, command("x", 3, result={"text/plain": "15"}), "execute"),
        lambda: event(pending, 0, 2, "display", parts=[msgpack.packb({"data": {"text/plain": "<fig>"}})]),
        lambda: event(pending, 0, 3, "stdout", "open"),
        lambda: error(pending, 0),
    ]
    pending.stream()
    out, err = capsys.readouterr()
    assert out == (
        "[stdout:0] a\n[stdout:1] other\n[stdout:0] bc\n[1] Out[3]: 15\n[output:0] <fig>\n[stdout:0] open\n"
    )
    assert err == "[stderr:1] bad\n"
    pending.stream()
    assert capsys.readouterr().out == out


def test_watch_says_when_nothing_comes(core):
    pending = make(core, (0,))

    def nothing():
        raise TimeoutError

    core.steps += [nothing, lambda: event(pending, 0, 0, "stdout", "x"), lambda: ok(pending, 0)]
    kinds = [output and output.kind for output in pending.watch(0.5)]
    assert kinds == [None, "stdout", "end"]
    assert set(core.waits) == {0.5}


# -- ending it ----------------------------------------------------------------------------------------


def test_abort_never_waits(core):
    pending = make(core)
    pending.abort()
    pending.abort(interrupt=True)
    assert core.aborts == [False, True]
    ok(pending, 0)
    ok(pending, 1)
    pending.abort()
    assert (core.aborts, core.waits) == ([False, True], [])


def test_cancel_before_anything_started(core):
    pending = make(core)
    core.steps += [
        lambda: error(pending, 0, "TaskAborted", started=0.0),
        lambda: error(pending, 1, "TaskAborted", started=0.0),
    ]
    called = []
    pending.add_done_callback(called.append)
    assert pending.cancel() is True
    assert core.aborts == [False]
    assert pending.cancelled()
    assert pending.cancel() is True
    error(pending, 1, "TaskAborted", started=0.0)
    with pytest.raises(concurrent.futures.CancelledError):
        pending.result()
    with pytest.raises(concurrent.futures.CancelledError):
        list(pending)
    assert concurrent.futures.wait([pending], 0).done == {pending}
    core.run_user_calls()
    assert called == [pending]
    assert "cancelled" in repr(pending)


def test_cancel_when_some_had_started(core):
    pending = make(core)
    core.steps += [
        lambda: error(pending, 1, "TaskAborted", started=0.0),
        lambda: ok(pending, 0, 1),
    ]
    assert pending.cancel() is False
    assert pending.done()
    assert not pending.cancelled()
    assert pending.exception().results == {0: 1}


def test_cancel_when_an_engine_says_that_it_has_started(core):
    pending = make(core)
    core.steps += [
        lambda: error(pending, 1, "TaskAborted", started=0.0),
        lambda: event(pending, 0, 0, "started", ""),
    ]
    assert pending.cancel() is False
    assert pending.running()
    assert pending.stdout == ["", ""]
    ok(pending, 0, 1)
    assert pending.exception().results == {0: 1}


@pytest.mark.parametrize("ename", ["EngineDied", "QueueCleared"])
def test_what_ended_in_another_way_was_not_cancelled(core, ename):
    pending = make(core, (0,))
    core.steps += [lambda: error(pending, 0, ename, started=0.0)]
    assert pending.cancel() is False
    assert pending.exception().elist[0].ename == ename


def test_cancel_of_what_runs_is_refused_without_asking(core):
    pending = make(core)
    assert not pending.running()
    event(pending, 0, 0, "stdout", "here")
    assert pending.running()
    assert pending.cancel() is False
    assert core.aborts == []
    ok(pending, 0)
    ok(pending, 1)
    assert pending.cancel() is False


def test_cancel_when_the_connection_goes(core):
    pending = make(core)
    core.steps += [lambda: pending.fail(ClientClosed())]
    assert pending.cancel() is False
    assert isinstance(pending.exception(), ClientClosed)


def test_cancel_without_a_connection(core, monkeypatch):
    def closed(pending):
        raise ClientClosed()

    monkeypatch.setattr(core, "abort", closed)
    pending = make(core)
    assert pending.cancel() is False
    assert not pending.done()


def test_cancel_when_the_last_word_came_just_before(core):
    pending = make(core, (0,))
    aborted = [encode_failure(RemoteFailure("TaskAborted", "gone"))]
    pending._arrivals.result(Result("c0ffee-7", 0, "apply", "error", 0.0, 0.0, 0, ()), aborted)
    assert pending.cancel() is True


def test_repr(core):
    pending = make(core, (0, 1, 4))
    assert repr(pending) == "<PendingResult c0ffee-7@0-1,4 execute: 0 of 3 finished>"
    error(pending, 4)
    assert repr(pending) == "<PendingResult c0ffee-7@0-1,4 execute: 1 of 3 finished, 1 failed>"
    ok(pending, 0)
    ok(pending, 1)
    assert repr(pending) == "<PendingResult c0ffee-7@0-1,4 execute: finished, 1 failed>"


# -- tasks: values are kept under numbers, whichever engine ran them ------------------------------------


def task_ok(pending, task, value, engine=5):
    record = Result(pending.command_id, engine, "apply", "ok", 1.0, 2.0, 0, ())
    pending.deliver_result(record, [bytes(part) for part in objects.dumps(value)], task)


def task_error(pending, task, engine, started=1.0, ename="ZeroDivisionError"):
    record = Result(pending.command_id, engine, "apply", "error", started, started, 0, ())
    pending.deliver_result(record, [encode_failure(RemoteFailure(ename, "no"))], task)


def task_says(pending, task, engine, index, kind, text):
    pending.deliver_event(Event(pending.command_id, engine, index, kind, text, ()), [], task)


def tasks(core, n):
    return PendingResult(core, "c0ffee-7", "submit", range(n))


def test_tasks_end_in_any_order_on_any_engine(core):
    pending = tasks(core, 3)
    core.steps += [
        lambda: task_ok(pending, 2, "two", engine=5),
        lambda: task_ok(pending, 0, "zero", engine=7),
        lambda: task_ok(pending, 0, "again", engine=5),
        lambda: task_ok(pending, 3, "who?", engine=5),
        lambda: task_ok(pending, 1, "one", engine=5),
    ]
    assert pending[2] == "two"
    assert pending.progress == (1, 3)
    assert list(pending) == ["two", "zero", "one"]
    assert pending.result() == ["zero", "one", "two"]
    assert pending.id == "c0ffee-7@0-2"
    assert (pending.serial_time, pending.value_of(1), pending.value_of(9)) == (3.0, "one", None)


def test_the_failure_of_a_task_says_where_it_ran(core):
    pending = tasks(core, 3)
    task_ok(pending, 2, "two", engine=7)
    task_error(pending, 1, engine=5)
    task_ok(pending, 0, "zero", engine=7)
    with pytest.raises(CompositeError) as caught:
        pending.result()
    assert "[5:submit]: ZeroDivisionError: no" in str(caught.value)
    assert caught.value.results == {0: "zero", 2: "two"}
    assert caught.value.engines == [5]
    with pytest.raises(CompositeError, match=r"\[5:submit\]"):
        pending[1]
    assert repr(pending) == "<PendingResult c0ffee-7@0-2 submit: finished, 1 failed>"


def test_an_engine_is_not_taken_for_a_task(core):
    pending = tasks(core, 3)
    ok(pending, 5)
    event(pending, 7, 0, "stdout", "who?")
    assert pending.progress == (0, 3)
    assert pending.stdout == ["", "", ""]


def test_output_of_tasks(core, capsys):
    pending = tasks(core, 3)
    task_says(pending, 2, 5, 0, "stdout", "two\n")
    task_says(pending, 1, 5, 0, "stdout", "one\n")
    task_says(pending, 2, 5, 1, "progress", json.dumps({"done": 1}))
    for task in range(3):
        task_ok(pending, task, None)
    assert pending.stdout == ["", "one\n", "two\n"]
    assert pending.engine_progress == {2: {"done": 1}}
    assert [(output.slot, output.engine, output.kind) for output in pending.watch()] == [
        (2, 5, "stdout"),
        (1, 5, "stdout"),
        (0, 5, "end"),
        (1, 5, "end"),
        (2, 5, "end"),
    ]
    pending.stream(group="order")
    assert capsys.readouterr().out == "[stdout:5] one\n[stdout:5] two\n"


def test_code_run_as_a_task_has_the_id_of_its_engine(core):
    pending = tasks(core, 1)
    record = Result("c0ffee-7", 5, "execute", "ok", 1.0, 2.0, 0, ())
    pending.deliver_result(record, [bytes(part) for part in objects.dumps(command("x", 2))], 0)
    assert pending[0]["id"] == 5


# -- very many --------------------------------------------------------------------------------------------

MANY = 100_000


def test_very_many_tasks_cost_nothing_before_they_end(core):
    tracemalloc.start()
    try:
        pending = tasks(core, MANY)
        task_ok(pending, MANY - 1, "last")
        assert pending[-1] == "last"
        assert pending.progress == (1, MANY)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(60)  # where anything takes time for each of all tasks, it takes hours
def test_very_many_tasks_are_read_in_no_time(core):
    pending = tasks(core, MANY)
    parts = [pickle.dumps(None)]
    record = Result("c0ffee-7", 5, "apply", "ok", 1.0, 2.0, 0, ())
    for task in reversed(range(MANY)):
        pending.deliver_result(record, parts, task)
        pending.progress  # noqa: B018 -- takes its time, or does not
    assert pending.result() == [None] * MANY
    assert sum(1 for _ in pending) == MANY
    assert all(pending[i] is None for i in range(MANY))
    assert len(pending.stdout) == MANY


@pytest.mark.timeout(60)
def test_very_many_unknown_tasks_are_one_error(core):
    pending = tasks(core, MANY)
    record = Result("c0ffee-7", -1, "", "unknown", 0.0, 0.0, 0, ())
    for task in range(MANY):
        pending.deliver_result(record, [], task)
    with pytest.raises(UnknownResult, match="c0ffee-7@0-99999"):
        pending.result()
