"""The works: how each is measured, and checked to have done what it says."""

from __future__ import annotations

import gc
import math
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import limits, payloads
from benchmarks.processes import unique_bytes
from benchmarks.systems.base import NotOffered, System, in_thread, split

MB = 1_000_000
#: Why a row is missing that came too late.
NO_TIME = "no time was left"
#: Seconds in which the death of a process has to show.
DEATH_LIMIT = 20.0
#: Results whose traces in the scheduler are measured, their size, and how many are outstanding at a time.
RESULTS, RESULT_SIZE, RESULT_BATCH = 5_000, 100_000, 500


class WrongResultError(Exception):
    """A system gave something else than what was asked for: its time means nothing."""


@dataclass
class Context:
    """How much is done in one session, and what is found beside the times.

    Attributes
    ----------
    folder : Path
        For files of the session.
    small : bool
        Sizes and counts are a hundredth and a tenth: to try things out.
    budget : float
        Seconds that one row of a growing series may be expected to take.
    end : float
        When, by `time.monotonic`, the session has to be over.
    facts : dict
        What else was seen of the system.
    """

    folder: Path
    small: bool = False
    budget: float = 60.0
    end: float = math.inf
    facts: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)

    def size(self, n: int) -> int:
        """Bytes or items, made smaller where asked for; always whole float64."""
        return max(8, n // 800 * 8) if self.small else n

    def count(self, n: int) -> int:
        """How often something is done."""
        return max(2, n // 10) if self.small else n

    @property
    def left(self) -> float:
        """Seconds until the session has to be over."""
        return self.end - time.monotonic()

    def afford(self, series: str, n: int) -> None:
        """Refuse where the next of a series would take too long, by the cost of the one before."""
        expected = self.costs.get(series, 0.0) * n
        if expected > self.budget:
            raise NotOffered(f"would take more than {self.budget:g} s")
        if expected > self.left:
            raise NotOffered(NO_TIME)

    def learn(self, series: str, n: int, elapsed: float) -> None:
        """Remember what one item of a series costs."""
        self.costs[series] = elapsed / n


def expect(found: object, wanted: object, what: str) -> None:
    """Raise where a result is wrong."""
    if found != wanted:
        raise WrongResultError(f"{what}: {str(found)[:80]} instead of {str(wanted)[:80]}")


def timed(f: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it returned."""
    begin = time.perf_counter()
    value = f()
    return time.perf_counter() - begin, value


# -- small calls ------------------------------------------------------------------


def latency_of_execute(engine: int | None, system: System, context: Context) -> list[float]:
    for _ in range(10):
        system.execute("a = 1", engine)
    gc.collect()
    found = limits.seconds(lambda: system.execute("a = a + 1", engine), context.count(200))
    system.execute(f"assert a == {1 + len(found)}", engine)
    return found


def latency_of_apply(engine: int | None, system: System, context: Context) -> list[float]:
    def call(i: int) -> Any:
        return system.all(payloads.add, i, 1) if engine is None else system.one(engine, payloads.add, i, 1)

    for i in range(10):
        call(i)
    gc.collect()
    values = []
    found = limits.seconds(lambda: values.append(call(len(values))), context.count(200))
    wanted = range(1, len(values) + 1)
    expect(values, [[i] * system.n for i in wanted] if engine is None else [*wanted], "apply")
    return found


def _burst(system: System, n: int) -> float:
    """Seconds of so many calls sent to one engine without waiting in between."""
    arguments = [(i, 1) for i in range(n)]
    gc.collect()
    elapsed, values = timed(lambda: system.pipelined(0, payloads.add, arguments))
    expect(values, list(range(1, n + 1)), "pipelined calls")
    return elapsed


def pipelined(system: System, context: Context) -> list[float]:
    n = context.count(2_000)
    _burst(system, n // 10)
    found: list[float] = []
    while len(found) < 3 and sum(found) < limits.LONG_ENOUGH:
        found.append(_burst(system, n))
    return [n / elapsed for elapsed in found]


def outstanding(n: int, system: System, context: Context) -> list[float]:
    n = context.count(n)
    context.afford("outstanding", n)
    found: list[float] = []
    begin = time.perf_counter()
    while not found or (len(found) < 1_000 // n and time.perf_counter() - begin < limits.LONG_ENOUGH):
        found.append(_burst(system, n) / n)
    context.learn("outstanding", 1, statistics.median(found))
    return found


def tasks(n: int, chunk: int | None, system: System, context: Context) -> list[float]:
    n = context.count(n)
    series = f"tasks {chunk}"
    context.afford(series, n)
    system.tasks(payloads.square, range(4), chunk)  # what only the first call costs
    gc.collect()
    items = list(range(n))
    found: list[float] = []
    begin = time.perf_counter()
    while not found or (len(found) < 1_000 // n and time.perf_counter() - begin < limits.LONG_ENOUGH):
        elapsed, values = timed(lambda: system.tasks(payloads.square, items, chunk))
        expect(values, [i * i for i in items], "tasks")
        found.append(elapsed)
    context.learn(series, n, statistics.median(found))
    return [n / elapsed for elapsed in found]


# -- objects -----------------------------------------------------------------------


def _transfers(
    context: Context,
    n: int,
    move: Callable[[], Any],
    check: Callable[[Any], None],
    change: Callable[[], None],
) -> list[float]:
    """Seconds of several transfers, each of another content, and after one that does not count."""
    found: list[float] = []
    spent = 0.0
    for i in range(1 + context.count(30 if n < MB else 7 if n < 50 * MB else 3)):
        change()
        gc.collect()
        elapsed, value = timed(move)
        check(value)
        del value
        spent += elapsed
        if i or elapsed > context.budget / 3:
            found.append(elapsed)
        if spent > context.budget:
            break
    return found


def _rates(n: int, moved: int, found: list[float]) -> list[float]:
    """Bytes a second, where `moved` were; for a row of very small objects (`n`) the seconds."""
    return found if n < MB else [moved / elapsed for elapsed in found]


def push(n: int, engine: int | None, system: System, context: Context, changed: bool = False) -> list[float]:
    """`changed`: where it has arrived, 1 is added to every item in place."""
    size = context.size(n)
    value = payloads.array(size, 0)
    targets = range(system.n) if engine is None else [engine]

    def change() -> None:
        value[...] += 1

    def move() -> None:
        system.push("pushed", value, engine)
        if changed:
            system.increase("pushed")

    def check(_: Any) -> None:
        wanted = payloads.digest(value + changed)
        for target in targets:
            expect(system.use("pushed", payloads.digest, target), wanted, f"push to {target}")

    found = _transfers(context, n, move, check, change)
    _note_writable("pushed", system.use("pushed", payloads.writable, targets[0]), system, context)
    system.drop("pushed") if engine is None else system.push("pushed", value[:0], engine)
    return _rates(n, size * len(targets), found)


def _note_writable(how: str, found: bool, system: System, context: Context) -> None:
    if system.writable:
        expect(found, True, f"writable where {how}")
    else:
        context.facts[f"writable where {how}"] = found


def writable(run: Callable[..., list[float]], system: System, context: Context) -> list[float]:
    """A work whose arrays can be changed where they arrive."""
    system.writable = True
    try:
        return run(system, context)
    finally:
        system.writable = False


def pull(n: int, engine: int | None, system: System, context: Context) -> list[float]:
    size = context.size(n)
    count = system.n if engine is None else 1
    seed = 0

    def change() -> None:
        nonlocal seed
        seed += 1
        system.make("made", payloads.array, size, seed)

    def check(values: list[Any]) -> None:
        _note_writable("pulled", payloads.writable(values[0]), system, context)
        wanted = payloads.digest(payloads.array(size, seed))
        expect([payloads.digest(value) for value in values], [wanted] * count, "pull")

    found = _transfers(context, n, lambda: system.pull("made", engine), check, change)
    system.drop("made")
    return _rates(n, size * count, found)


def scatter(n: int, system: System, context: Context) -> list[float]:
    value = payloads.array(context.size(n), 0)

    def change() -> None:
        value[...] += 1

    def check(_: Any) -> None:
        for engine, part in enumerate(split(value, system.n)):
            found = system.use("dealt", payloads.digest, engine)
            expect(found, payloads.digest(part), f"scatter to {engine}")

    found = _transfers(context, n, lambda: system.scatter("dealt", value), check, change)
    _note_writable("scattered", system.use("dealt", payloads.writable, 0), system, context)
    system.drop("dealt")
    return _rates(n, value.nbytes, found)


def gather(n: int, system: System, context: Context) -> list[float]:
    value = payloads.array(context.size(n), 0)

    def change() -> None:
        value[...] += 1
        system.scatter("dealt", value)

    def check(whole: Any) -> None:
        expect(payloads.digest(whole), payloads.digest(value), "gather")

    found = _transfers(context, n, lambda: system.gather("dealt"), check, change)
    system.drop("dealt")
    return _rates(n, value.nbytes, found)


def push_mapping(n: int, system: System, context: Context) -> list[float]:
    n = context.size(n)
    value = payloads.mapping(n, 0)

    def check(_: Any) -> None:
        expect(system.use("mapping", payloads.digest, 0), payloads.digest(value), "push of a dict")

    def change() -> None:
        value["key 0"] = (0, time.perf_counter(), "")

    # Counted as a transfer of 80 MB is: a few times.
    return _transfers(context, 80 * MB, lambda: system.push("mapping", value, 0), check, change)


def pull_mapping(n: int, system: System, context: Context) -> list[float]:
    n = context.size(n)
    seed = 0

    def change() -> None:
        nonlocal seed
        seed += 1
        system.make("mapping", payloads.mapping, n, seed)

    def check(values: list[Any]) -> None:
        expect(values == [payloads.mapping(n, seed)], True, "pull of a dict")

    return _transfers(context, 80 * MB, lambda: system.pull("mapping", 0), check, change)


# -- memory and death ----------------------------------------------------------------


def memory_of_results(system: System, context: Context) -> list[float]:
    heads = system.head_pids()
    size, total, batch = context.size(RESULT_SIZE), context.count(RESULTS), context.count(RESULT_BATCH)
    system.all(payloads.add, 1, 1)
    gc.collect()
    before = sum(unique_bytes(heads))
    for begin in range(0, total, batch):
        seeds = range(begin, min(begin + batch, total))
        values = system.collect([system.submit(i % system.n, payloads.block, size, i) for i in seeds])
        expect(values == [payloads.block(size, i) for i in seeds], True, "results")
        del values
    system.all(payloads.add, 1, 1)  # whatever was freed only later has been heard of by now
    gc.collect()
    return [float(sum(unique_bytes(heads)) - before)]


def death(system: System, context: Context) -> list[float]:
    engine = system.n - 1
    note = context.folder / "runs"
    wait = system.background(engine, payloads.sleep_in, str(note), 10 * DEATH_LIMIT)
    begin = time.perf_counter()
    while not note.exists():
        if time.perf_counter() - begin > DEATH_LIMIT:
            raise NotOffered("the command never began")
        time.sleep(0.005)  # it is another process that says so
    result = in_thread(wait)
    begin = time.perf_counter()
    os.kill(int(note.read_text()), signal.SIGKILL)
    try:
        value = result(DEATH_LIMIT)
    except TimeoutError:
        raise NotOffered(f"no error in {DEATH_LIMIT:.0f} s") from None
    except Exception as error:  # noqa: BLE001 -- each system has its own
        elapsed = time.perf_counter() - begin
        context.facts["error of a death"] = type(error).__name__
        return [elapsed]
    raise WrongResultError(f"a command whose process was killed returned {value!r}")
