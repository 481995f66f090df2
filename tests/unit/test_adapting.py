"""The number of engines follows the work: the policy with a clock, and what drives it."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipython1.kernel.error import LaunchError
from ipython1.launch.adapting import PATIENCE, Adapter, Policy


def load(engines: int, waiting: int = 0, *idle: float) -> dict[str, Any]:
    return {"engines": engines, "waiting": waiting, "idle": list(idle)}


def test_it_grows_when_work_waits_for_some_time() -> None:
    policy = Policy(1, 4, queue=1.0, after=2.0)
    assert policy.decide(0.0, load(1, 1)) is None  # one may wait for each
    assert policy.decide(1.0, load(1, 4)) is None
    assert policy.decide(2.9, load(1, 4)) is None
    assert policy.decide(3.0, load(1, 4)) == 3  # then one of them waits for each
    assert policy.decide(3.5, load(1, 4)) is None  # they come
    assert policy.decide(4.0, load(2, 3)) is None
    assert policy.decide(4.5, load(3, 2)) is None
    assert policy.decide(5.0, load(3, 50)) is None
    assert policy.decide(7.0, load(3, 50)) == 4  # not more than the maximum
    assert policy.decide(9.0, load(4, 50)) is None


def test_work_that_waits_for_a_moment_is_nothing() -> None:
    policy = Policy(1, 4, after=2.0)
    for now in range(20):
        assert policy.decide(now, load(1, 30 * (now % 2))) is None


def test_without_engines_any_task_is_reason_enough() -> None:
    policy = Policy(0, 4, after=0.0)
    assert policy.decide(0.0, load(0, 0)) is None
    assert policy.decide(1.0, load(0, 1)) == 1


def test_the_minimum_is_there_at_once() -> None:
    policy = Policy(3, 4)
    assert policy.decide(0.0, load(1)) == 3
    assert policy.decide(0.5, load(1)) is None
    assert policy.decide(1.0, load(3)) is None
    assert policy.decide(2.0, load(2)) == 3  # one died


def test_it_shrinks_by_those_that_are_idle() -> None:
    policy = Policy(1, 4, idle=10.0)
    assert policy.decide(0.0, load(4, 0, 100.0, 100.0, 3.0)) is None
    assert policy.decide(9.9, load(4, 0, 109.0, 109.0, 12.0)) is None
    assert policy.decide(10.0, load(4, 0, 109.0, 109.0, 9.0)) == 2
    assert policy.decide(10.5, load(2, 0, 9.5)) is None
    assert policy.decide(11.0, load(2, 0, 10.0)) == 1
    assert policy.decide(12.0, load(1, 0, 10.0)) is None  # the minimum


def test_it_does_not_shrink_while_tasks_wait() -> None:
    policy = Policy(1, 4, idle=10.0)
    for now in range(100):
        assert policy.decide(now, load(2, 1, 100.0)) is None  # that engine cannot help


def test_more_than_the_maximum_go_only_when_they_are_idle() -> None:
    policy = Policy(1, 2, idle=0.0)
    assert policy.decide(0.0, load(5, 0, 3.0)) == 4
    assert policy.decide(1.0, load(4, 0)) is None


def test_what_was_ordered_and_is_not_wanted_any_more() -> None:
    policy = Policy(1, 8, after=0.0, idle=10.0)
    assert policy.decide(0.0, load(1, 15)) == 8
    assert policy.decide(30.0, load(1, 0)) is None
    assert policy.decide(40.0, load(1, 0, 10.0)) == 1
    assert policy.decide(41.0, load(1, 0, 11.0)) is None


def test_what_does_not_come_is_ordered_again() -> None:
    policy = Policy(1, 8, after=0.0)
    assert policy.decide(0.0, load(1, 15)) == 8
    assert policy.decide(PATIENCE - 1, load(1, 15)) is None
    assert policy.decide(PATIENCE, load(1, 1)) == 8
    assert policy.decide(PATIENCE + 1, load(1, 1)) is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((-1, 3), ValueError),
        ((4, 3), ValueError),
        ((0, 0), ValueError),
        ((1.0, 3), TypeError),
        ((1, True), TypeError),
        ((1, 2, -1.0), ValueError),
        ((1, 2, 1.0, float("nan")), ValueError),
        ((1, 2, 1.0, 1.0, "x"), ValueError),
        ((1, 2, 1.0, 1.0, float("inf")), ValueError),
    ],
)
def test_bad_bounds(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        Policy(*arguments)


class Model:
    """A cluster that does what it is told: engines come after a while, idle ones are stopped."""

    def __init__(self, policy: Policy, engines: int, delay: int) -> None:
        self.policy = policy
        self.idle = [0] * engines  # of each engine for how long; -1: it works
        self.delay = delay
        self.coming: list[int] = []
        self.orders = 0
        self.now = 0

    def run(self, seconds: int, tasks: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self.step(self.now, tasks)

    def step(self, now: int, tasks: int) -> None:
        self.idle += [0] * sum(at <= now for at in self.coming)
        self.coming = [at for at in self.coming if at > now]
        works = min(tasks, len(self.idle))
        self.idle = [-1] * works + [max(0, each + 1) for each in sorted(self.idle)[works:]]
        waiting = tasks - works
        before = len(self.idle)
        wanted = self.policy.decide(now, load(before, waiting, *[each for each in self.idle if each >= 0]))
        if wanted is None:
            return
        self.orders += 1
        assert self.policy.minimum <= wanted
        assert wanted <= max(self.policy.maximum, before)
        missing = max(0, wanted - before)
        self.coming = [*self.coming, *[now + self.delay] * missing][:missing]
        for _ in range(before - wanted):
            longest = max(self.idle)
            assert longest >= self.policy.idle, "one that works, or has just worked, was stopped"
            self.idle.remove(longest)


@settings(deadline=None)
@given(
    st.integers(0, 4),
    st.integers(1, 6),
    st.integers(0, 8),
    st.integers(0, 70),
    st.floats(0, 3),
    st.floats(0, 3),
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10)), max_size=6),
)
def test_any_work(
    minimum: int,
    more: int,
    engines: int,
    delay: int,
    queue: float,
    after: float,
    work: list[tuple[int, int]],
) -> None:
    policy = Policy(minimum, minimum + more, queue, after, idle=5.0)
    model = Model(policy, engines, delay)
    for tasks, seconds in work:
        model.run(seconds, tasks)
    model.run(100, 30)  # long work: as many engines as it takes
    assert len(model.idle) >= policy.maximum or (30 - len(model.idle)) <= queue * len(model.idle)
    orders = model.orders
    model.run(100, 30)
    assert model.orders == orders  # and then it is quiet
    model.run(100, 0)
    assert (len(model.idle), model.coming) == (minimum, [])


# -- the thread ----------------------------------------------------------------------------------


class FakeClient:
    """A client that answers from a list, an exception by raising it."""

    def __init__(self, answers: list[Any]) -> None:
        self._core = self
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.closed = False

    def ask(self, what: str, **body: Any) -> Future[Any]:
        self.asked.append((what, body))
        future: Future[Any] = Future()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future

    def wait(self, future: Future[Any], timeout: float) -> None:
        assert future.done()

    def close(self) -> None:
        self.closed = True


def test_what_is_decided_is_ordered_with_the_time_that_counts_as_idle() -> None:
    client: Any = FakeClient([load(1), 2, load(2)])
    adapter = Adapter(Policy(2, 4, idle=7.0), lambda: client)
    adapter.look(0.0)
    adapter.look(1.0)
    assert client.asked == [("load", {}), ("scale", {"n": 2, "idle": 7.0}), ("load", {})]


def test_it_goes_on_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    failure = LaunchError("no nanny is connected.")
    clients: list[Any] = [
        FakeClient([load(1), failure]),
        FakeClient([load(1), failure]),
        FakeClient([load(2)] * 2),
    ]
    made: list[Any] = []

    def connect() -> Any:
        if len(made) == len(clients):
            done.set()
            raise ConnectionError("it is gone")
        made.append(clients[len(made)])
        return made[-1]

    policy = Policy(2, 4)
    adapter = Adapter(policy, connect, interval=0.001)
    asked: list[float] = []
    policy.decide = lambda now, found: asked.append(now) or (2 if found["engines"] < 2 else None)  # type: ignore[method-assign]
    clients[2].ask = lambda what, **body: (_ for _ in ()).throw(ConnectionError("cut"))
    adapter.start()
    assert done.wait(10)
    adapter.stop()
    assert all(client.closed for client in clients)
    assert len(asked) == 2
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[0] == "The cluster does not adapt now: no nanny is connected."
    assert warnings[1:3] == [
        "The cluster does not adapt now: cut",
        "The cluster does not adapt now: it is gone",
    ]


def test_it_ends_before_its_first_look() -> None:
    adapter = Adapter(Policy(1, 2), lambda: SimpleNamespace(), interval=1000.0)  # type: ignore[arg-type, return-value]
    adapter.start()
    adapter.stop()
    assert adapter.problem == ""
