"""What the users of the soak do, and what is said of it."""

from __future__ import annotations

import collections
import os
import random
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ipython1.kernel.client import CompositeError, MapTask, MultiEngineClient, StringTask, TaskClient
from ipython1.kernel.error import ConnectionFailed
from ipython1.kernel.files import ClusterFiles
from tests.faults.conftest import until

C = TypeVar("C", MultiEngineClient, TaskClient)

#: Seconds after which a result counts as lost.
PATIENCE = 60.0
#: Seconds in which engines that were killed are back, and all of them with a new controller, at the latest.
RESTART_TIME = 15.0
#: What a command may fail with where an engine was killed, and a task that depends on one there.
OF_KILLED = ("EngineDied", "NameError", "NoEnginesRegistered", "InvalidEngineID", "ImpossibleDependency")


def echo(key: str, seconds: float = 0.0) -> str:
    """Runs on an engine."""
    import time

    time.sleep(seconds)
    return key


def stumble(path: str, key: str, times: int) -> str:
    """Runs on an engine: fails so many times, which a file knows."""
    import pathlib

    name = pathlib.Path(path) / key
    count = int(name.read_text()) if name.exists() else 0
    name.write_text(str(count + 1))
    if count < times:
        raise RuntimeError("not yet")
    name.unlink()
    return key


def engines_of(mec: MultiEngineClient) -> list[int]:
    """Ids; there are none for a moment where all were killed."""
    ids: list[int] = until(mec.get_ids, "there are engines", PATIENCE)
    return ids


class Work:
    """The users of one cluster.

    Parameters
    ----------
    files : ClusterFiles
    seed : int
    over : Event
        Set when the time is.

    Attributes
    ----------
    counts : Counter
        Of what was begun, by kind.
    excused : int
        How much failed for want of an engine, as it may.
    problems : list of str
        What should not have happened; ``LOST`` is in those that are results that did not come.
    engines_killed, controller_killed : float
        When any was, on the monotonic clock.
    """

    def __init__(self, files: ClusterFiles, seed: int, over: threading.Event) -> None:
        self.seed = seed
        self.over = over
        self.counts: collections.Counter[str] = collections.Counter()
        self.excused = 0
        self.problems: list[str] = []
        self.engines_killed = self.controller_killed = -1e9
        self._files = files
        self._lock = threading.Lock()
        self._number = 0

    @property
    def lost(self) -> int:
        """How many results did not come."""
        return sum("LOST" in problem for problem in self.problems)

    def user(self, number: int) -> None:
        """One user: a client after the other, until time is over."""
        chance = random.Random(f"{self.seed} {number}")
        while not self.over.is_set():
            try:
                self._visit(chance)
            except Exception:  # noqa: BLE001 -- whatever it is, it is what we look for
                self.problems.append(traceback.format_exc())
                if len(self.problems) > 20:
                    return

    def _visit(self, chance: random.Random) -> None:
        """A client for commands and one for tasks, and some work for both."""
        with (
            self._connected(MultiEngineClient, "multiengine") as mec,
            self._connected(TaskClient, "task") as tc,
        ):
            self.counts["clients"] += 2
            for _ in range(chance.randrange(5, 25)):
                if self.over.is_set():
                    return
                what = chance.choice(KINDS)
                self._excused(what.__name__.strip("_"), lambda what=what: what(self, chance, mec, tc))  # type: ignore[misc]

    def _connected(self, client: Callable[..., C], kind: str) -> C:
        """A new client; none gets in before the next controller is there."""
        while True:
            try:
                return client(os.fspath(self._files.furl(kind)), timeout=PATIENCE)
            except ConnectionFailed:
                if self.controller_killed < time.monotonic() - RESTART_TIME:
                    raise
            self.over.wait(0.1)

    def _key(self, what: str) -> str:
        """A new name for a piece of work."""
        with self._lock:
            self._number += 1
            self.counts[what] += 1
            return f"{what.replace(' ', '_')}_{self._number}"

    def _excused(self, what: str, f: Callable[[], Any], began: float = 0.0) -> Any:
        """What `f` returns; None where it failed for an engine that was killed since, or not long before."""
        began = began or time.monotonic()
        try:
            return f()
        except TimeoutError:
            self.problems.append(f"LOST: {what}: {traceback.format_exc()}")
        except Exception as error:  # noqa: BLE001 -- judged by its name: it may hold those of engines
            text = f"{type(error).__name__}: {error}"
            killed = self.engines_killed > began - RESTART_TIME and any(name in text for name in OF_KILLED)
            away = self.controller_killed > began - RESTART_TIME and "NoEnginesRegistered" in text
            if killed or away:
                with self._lock:
                    self.excused += 1
            else:
                self.problems.append(f"{what}: {traceback.format_exc()}")
        return None

    def _all_right(self, sent: Sequence[tuple[Any, Any]], began: float) -> None:
        """Wait for what was sent: each the value it should have, and the pending result."""
        for value, pending in sent:
            got = self._excused(str(value), lambda p=pending: p.get_result(timeout=PATIENCE), began)  # type: ignore[misc]
            assert got is None or got == value, (value, got)

    def _commands(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """Several at once, to some engines."""
        ids, began = engines_of(mec), time.monotonic()
        sent = []
        for _ in range(chance.randrange(1, 30)):
            key, seconds = self._key("commands"), chance.choice((0, 0, 0, 0.01, 0.1))
            sent.append(([key], mec.apply(echo, key, seconds, targets=[chance.choice(ids)], block=False)))
        self._all_right(sent, began)

    def _arrays(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """Small ones, and such as go through shared memory, there and back; output."""
        name = self._key("pushes")
        array: Any = np.arange(chance.choice((10, 10_000, 1_000_000))) + chance.randrange(1000)
        mec.push({name: array}, block=False).get_result(timeout=PATIENCE)
        for back in mec.pull(name, block=False).get_result(timeout=PATIENCE):
            assert (back == array).all()
        code = f"print({array[0]}); del {name}"
        for each in mec.execute(code, block=False).get_result(timeout=PATIENCE):
            assert each.get("stdout") == f"{array[0]}\n", ("output is missing", dict(each))

    def _scatter(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """And gather."""
        name = self._key("scatters")
        data = list(range(chance.randrange(1, 5000)))
        ids = engines_of(mec)
        mec.scatter(name, data, targets=ids, block=False).get_result(timeout=PATIENCE)
        assert list(mec.gather(name, targets=ids, block=False).get_result(timeout=PATIENCE)) == data

    def _output(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """Much of it, from everywhere: all there, in order."""
        count = chance.randrange(1, 5000)
        self.counts["floods of output"] += 1
        for each in mec.execute(f"for i in range({count}): print(i)", block=False).get_result(
            timeout=PATIENCE
        ):
            assert each.get("stdout") == "".join(f"{i}\n" for i in range(count)), "output is wrong"

    def _interrupts(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """One command, and no other; an interrupt is lost with the controller that has it."""
        code = "import time; print('on'); time.sleep(5)"
        self.counts["interrupts"] += 1
        began = time.monotonic()
        pending = mec.execute(code, targets=[chance.choice(engines_of(mec))], block=False)
        until(lambda: pending.ready() or pending.stdout == ["on\n"], "LOST: it runs", PATIENCE)
        pending.abort(interrupt=True)
        try:
            pending.get_result(timeout=PATIENCE)
        except CompositeError as error:
            if [failure.ename for failure in error.elist] != ["KeyboardInterrupt"]:
                raise
        else:
            assert self.controller_killed > began - RESTART_TIME, "it was not interrupted"

    def _tasks(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """Single ones, some of which fail at first."""
        began, sent = time.monotonic(), []
        for _ in range(chance.randrange(1, 40)):
            key = self._key("tasks")
            sent.append((key, tc.submit(echo, key, chance.choice((0, 0, 0.01, 0.1)))))
        key = self._key("tasks that fail at first")
        retried = tc.run(MapTask(stumble, (os.fspath(self._files.root), key, 2), retries=50))
        self._all_right(sent, began)
        assert self._ended(tc, retried) == key

    def _dependencies(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """Tasks that wait for others, run where others ran, and stand in for those that failed."""
        first = tc.submit(echo, self._key("tasks with dependencies"), 0.01)
        second = tc.run(MapTask(echo, ("second",), after=[first]))
        third = tc.run(StringTask("b = a + 1", push={"a": 1}, pull="b", after=[second], follow=[first]))
        failing = MapTask(divmod, (1, 0), recovery_task=MapTask(echo, ("recovered",)), after=[second])
        assert self._ended(tc, tc.run(failing)) == "recovered"
        assert self._ended(tc, second) == "second"
        assert self._ended(tc, third) == {"b": 2}

    def _ended(self, tc: TaskClient, id: Any) -> Any:
        """The outcome of a task."""
        tc.barrier([id], timeout=PATIENCE)
        result = tc.get_task_result(id)
        assert result is not None, "LOST"
        result.raise_exception()
        return result.results

    def _left_behind(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """Work that nobody waits for, some of it when the client has gone."""
        for _ in range(5):
            tc.submit(echo, self._key("left behind"), 0.01)
            mec.execute("1", block=False)

    def _map(self, chance: random.Random, mec: MultiEngineClient, tc: TaskClient) -> None:
        """Many small tasks."""
        keys = [self._key("mapped") for _ in range(chance.randrange(1, 300))]
        seconds = chance.choice((0, 0.001))
        pending = tc.map(echo, keys, [seconds] * len(keys), block=False)
        assert list(pending.get_result(timeout=PATIENCE)) == keys


#: What they do, one as likely as the other.
KINDS = (
    Work._commands,
    Work._arrays,
    Work._scatter,
    Work._output,
    Work._interrupts,
    Work._tasks,
    Work._dependencies,
    Work._map,
    Work._left_behind,
)
