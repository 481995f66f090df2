"""The lines of the table: what is measured, in which unit, and what it means."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks import limits, works
from benchmarks.systems.base import System
from benchmarks.works import MB

Run = Callable[[System, works.Context], list[float]]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    key, group, title, unit : str
    run : callable
        Measures it; the values of one session, each already checked. None: the session itself does.
    meaning : str
        What a reader should know.
    less : bool
        Whether less is better.
    limit : str
        The key of the physical limit that stands beside it.
    target : str
        What ipython1 has set itself, in words.
    """

    key: str
    group: str
    title: str
    unit: str
    run: Run | None = None
    meaning: str = ""
    less: bool = True
    limit: str = ""
    target: str = ""


@dataclass(frozen=True)
class Section:
    """Groups of rows that are shown together, and what they are about."""

    title: str
    groups: tuple[str, ...]
    about: str


SECTIONS = (
    Section(
        "Start, stop and idle memory",
        ("start", "memory"),
        "One start a repeat, of a system that has run before on this machine.",
    ),
    Section(
        "Small commands",
        ("latency", "pipelined"),
        "Execute runs ``a = a + 1`` as code, apply calls a function that adds two numbers; up to 200 of\n"
        "them, one after the other, each waited for. Peers that run no code call a function that runs it.",
    ),
    Section(
        "Many commands outstanding",
        ("outstanding",),
        "So many calls of a small function are sent to one engine before the first result is read; shown is\n"
        "what one of them costs, from the first submitted to the last result read. Ideally it does not\n"
        "depend on their number; with few of them the latency of the last one counts.",
    ),
    Section(
        "Tasks",
        ("tasks",),
        "Calls of a small function, spread over all engines as they become free: a task at a time, or in\n"
        "chunks of the size that the system takes by itself (ipyparallel, Dask and Ray: one; pool: a\n"
        "sixteenth of all for four processes).",
    ),
    Section(
        "Objects",
        ("push", "pull", "scatter", "gather", "writable", "dict"),
        "NumPy arrays of float64, each transfer of another content, checked afterwards by a checksum over a\n"
        "spread of the items; after one transfer that does not count. All of them means bytes delivered at\n"
        "all engines together. Where a system gives out views of shared memory, pages are only touched\n"
        "when they are used. *Writable* means that each receiver can change its array, and no other\n"
        "sees that: Ray gives out read-only views, and has to copy them for it; ipython1's are always\n"
        "writable, and a page is copied when it is first written to.",
    ),
    Section(
        "Afterwards, and in trouble",
        ("results", "death"),
        "What a scheduler keeps of work that is over, and how fast a death is noticed.",
    ),
)

_BEST = "the best peer's; aim: half of it"
_TWICE = "twice the best peer"
_GROWING = (10, 100, 1_000, 10_000, 100_000)
_TASKS = (100, 1_000, 10_000, 100_000)
_BULK = (8 * MB, 80 * MB, 400 * MB)

LIFE = [
    Row(
        "first-result",
        "start",
        "start to first result of all engines",
        "s",
        meaning="From the call that starts the system, in a process that has imported its library, "
        "to a result of every engine.",
        target="ahead of ipyparallel, Dask and Ray",
    ),
    Row("stop", "start", "stop", "s", meaning="Until it says so and no engine is left."),
    Row(
        "engine-memory",
        "memory",
        "memory of one idle engine",
        "B",
        meaning="What one engine has for itself alone (USS), the median of all, after one call.",
        target="ahead of ipyparallel, Dask and Ray",
    ),
    Row(
        "head-memory",
        "memory",
        "memory of the scheduler, idle",
        "B",
        meaning="USS of all processes that schedule. Dask's is the client's own, with all it has imported.",
    ),
]


def _size(n: int) -> str:
    return f"{n // MB} MB" if n >= MB else f"{n} B"


def _transfer_rows() -> list[Row]:
    rows = []
    directions = [
        ("push", works.push, "to one engine", "to all"),
        ("pull", works.pull, "from one engine", "from all"),
    ]
    for name, run, *wheres in directions:
        for n in (8, *_BULK):
            for engine, where in zip((0, None), wheres, strict=True):
                rows.append(
                    Row(
                        f"{name}-{_size(n).replace(' ', '')}-{'all' if engine is None else 'one'}",
                        name,
                        f"{name} {_size(n)} {where}",
                        "s" if n < MB else "B/s",
                        partial(run, n, engine),
                        less=n < MB,
                        limit="ping-unix" if n < MB else f"memcpy-{n // MB}MB",
                    )
                )
    return rows


def _dealing_rows() -> list[Row]:
    return [
        Row(
            f"{name}-{n // MB}MB",
            name,
            f"{name} {_size(n)}",
            "B/s",
            partial(run, n),
            meaning,
            target=target,
            less=False,
            limit=f"memcpy-{n // MB}MB",
        )
        for name, run, meaning, target in (
            ("scatter", works.scatter, "", ""),
            ("gather", works.gather, "Into one array.", _TWICE),
        )
        for n in _BULK[1:]
    ]


def _writable_rows(rows: Sequence[Row]) -> list[Row]:
    """The large ones of these transfers, of arrays that can be changed where they arrive."""
    return [
        replace(
            row,
            key=f"writable-{row.key}",
            group="writable",
            title=f"{row.title}, writable",
            run=partial(works.writable, row.run),
            target=_TWICE,
        )
        for row in rows
        if row.group in ("push", "pull", "scatter") and row.limit in ("memcpy-80MB", "memcpy-400MB")
    ] + [
        Row(
            f"changed-{n // MB}MB",
            "writable",
            f"push {_size(n)} to all, and change all of it",
            "B/s",
            partial(works.writable, partial(works.push, n, None, changed=True)),
            "Each engine adds 1 to every item in place: no page stays shared.",
            less=False,
        )
        for n in _BULK[1:]
    ]


_TRANSFERS = [*_transfer_rows(), *_dealing_rows()]

WORK = [
    Row(
        "execute-one",
        "latency",
        "execute, one engine",
        "s",
        partial(works.latency_of_execute, 0),
        limit="ping-unix",
        target=_BEST,
    ),
    Row(
        "execute-all",
        "latency",
        "execute, all engines",
        "s",
        partial(works.latency_of_execute, None),
        target=_BEST,
    ),
    Row(
        "apply-one",
        "latency",
        "apply, one engine",
        "s",
        partial(works.latency_of_apply, 0),
        limit="ping-unix",
    ),
    Row("apply-all", "latency", "apply, all engines", "s", partial(works.latency_of_apply, None)),
    Row(
        "pipelined",
        "pipelined",
        "small commands to one engine, not waiting",
        "/s",
        works.pipelined,
        "2,000 calls submitted one after the other, then all results read.",
        less=False,
        target="10,000 /s",
    ),
    *[
        Row(
            f"outstanding-{n}",
            "outstanding",
            f"one command, {n:,} outstanding",
            "s",
            partial(works.outstanding, n),
        )
        for n in _GROWING
    ],
    *[
        Row(
            f"tasks-{n}-{'default' if chunk is None else chunk}",
            "tasks",
            f"{n:,} tasks, {'default chunk' if chunk is None else 'one at a time'}",
            "/s",
            partial(works.tasks, n, chunk),
            less=False,
            target="5 x the best of ipyparallel, Dask and Ray, 1 x pool" if n == 10_000 else "",
        )
        for chunk in (1, None)
        for n in _TASKS
    ],
    *_TRANSFERS,
    *_writable_rows(_TRANSFERS),
    Row("dict-push", "dict", "push a dict of 200,000 items", "s", partial(works.push_mapping, 200_000)),
    Row("dict-pull", "dict", "pull a dict of 200,000 items", "s", partial(works.pull_mapping, 200_000)),
    Row(
        "results-memory",
        "results",
        "memory the scheduler keeps after 5,000 results of 100 KB",
        "B",
        works.memory_of_results,
        "Growth of its USS after all results were read and dropped. Below 0: it had more before.",
    ),
    Row(
        "death",
        "death",
        "kill -9 of an engine to the error",
        "s",
        works.death,
        "The process that runs an addressed command is killed; until waiting for the command raises.",
    ),
]


def _limit(run: Callable[..., list[float]], *args: Any) -> Run:
    return lambda system, context: run(*args, context.count(200 if run is limits.ping_pong else 7))


def _bulk_limit(run: Callable[..., list[float]], n: int, *args: Any) -> Run:
    return lambda system, context: run(*args, context.size(n), context.count(7))


LIMITS = [
    Row("ping-tcp", "limits", "TCP ping-pong over loopback", "s", _limit(limits.ping_pong, socket.AF_INET)),
    Row("ping-unix", "limits", "Unix socket ping-pong", "s", _limit(limits.ping_pong, socket.AF_UNIX)),
    *[
        Row(
            f"{key}-{_size(n).replace(' ', '')}",
            "limits",
            f"{title} of {_size(n)}",
            "B/s",
            _bulk_limit(run, n, *args),
            less=False,
        )
        for key, title, run, args, sizes in (
            ("memcpy", "memcpy, warm", limits.copy_rate, (), _BULK),
            ("fresh", "memcpy into fresh memory", limits.fresh_copy_rate, (), _BULK[1:]),
            ("unix", "Unix socket copy", limits.socket_rate, (socket.AF_UNIX,), _BULK[1:2]),
            ("tcp", "TCP copy over loopback", limits.socket_rate, (socket.AF_INET,), _BULK[1:2]),
        )
        for n in sizes
    ],
]

ROWS = [*LIFE, *WORK]


#: The beginnings of keys that `IMPORTANT` stands for.
_IMPORTANT = (
    *("first-result", "stop", "engine-memory", "head-memory", "execute-", "apply-", "pipelined"),
    *("push-8B-", "push-80MB-", "pull-80MB-", "scatter-80MB", "gather-80MB", "outstanding-"),
    *("writable-push-80MB-", "writable-pull-80MB-", "writable-scatter-80MB", "changed-80MB"),
    *("tasks-", "results-memory", "death"),
)
#: Stands in `chosen` for the rows that say the most.
IMPORTANT = "important"


def chosen(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """The rows whose group is named, or whose key begins with a name; all where none is."""
    if not only:
        return list(rows)
    names = [name for name in only if name != IMPORTANT]
    if IMPORTANT in only:
        names += _IMPORTANT
    return [row for row in rows if any(row.group == name or row.key.startswith(name) for name in names)]


def urgency(row: Row) -> int:
    """Where a row stands in a session that may run out of time; `death` ends an engine, and is last."""
    if row.key == "death":
        return len(_IMPORTANT) + 1
    return next((i for i, key in enumerate(_IMPORTANT) if row.key.startswith(key)), len(_IMPORTANT))
