"""What a system has to offer to be compared."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks import payloads

if TYPE_CHECKING:
    import numpy as np


class NotOffered(Exception):
    """The system has nothing like it, or it would take too long; the message says which."""


class System(abc.ABC):
    """A number of worker processes, and the calls that reach them.

    Engines are numbered from 0. What is not abstract here is made of calls
    of functions; a system that has it itself does it its own way.

    Parameters
    ----------
    n : int
        Number of engines.
    folder : Path
        For its files; removed afterwards.
    """

    #: The distribution whose version the report shows.
    distribution: ClassVar[str] = ""
    #: What stands in the report beside the name.
    note: ClassVar[str] = ""
    #: Whether arrays have to be writable where they arrive; those of most systems always are.
    writable = False

    def __init__(self, n: int, folder: Path) -> None:
        self.n = n
        self.folder = folder

    # -- its life -------------------------------------------------------------

    @abc.abstractmethod
    def start(self) -> None:
        """Start everything; returns when calls can be made."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Stop everything; returns when nothing of it is left."""

    def engine_pids(self) -> list[int]:
        """The processes that run what is called."""
        return self.all(os.getpid)

    def head_pids(self) -> list[int]:
        """The processes that schedule, and run nothing of the user."""
        raise NotOffered("has no scheduler process")

    # -- calls ----------------------------------------------------------------

    @abc.abstractmethod
    def one(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        """Call `f` on one engine."""

    @abc.abstractmethod
    def all(self, f: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `f` on every engine at once; the values by engine."""

    @abc.abstractmethod
    def submit(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        """Begin a call on one engine; returns a handle at once."""

    @abc.abstractmethod
    def collect(self, handles: Sequence[Any]) -> list[Any]:
        """The values of calls that were begun."""

    def pipelined(
        self, engine: int, f: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """Call `f` on one engine once for each, without waiting in between."""
        return self.collect([self.submit(engine, f, *args) for args in arguments])

    def background(self, engine: int, f: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        """Begin an addressed call; what is returned waits for it, and raises its error."""
        handle = self.submit(engine, f, *args)
        return lambda: self.collect([handle])[0]

    def execute(self, code: str, engine: int | None) -> None:
        """Run code on one engine, or on all."""
        if engine is None:
            self.all(payloads.run_code, code)
        else:
            self.one(engine, payloads.run_code, code)

    def tasks(self, f: Callable[[Any], Any], items: Sequence[Any], chunk: int | None) -> list[Any]:
        """Spread calls over all engines; `chunk` items at a time, or as many as the system thinks best."""
        raise NotOffered("has no load balancing")

    # -- objects on the engines -------------------------------------------------

    def push(self, name: str, value: Any, engine: int | None) -> None:
        """Put an object on one engine, or a copy on each."""
        if engine is None:
            self.all(payloads.keep, name, value)
        else:
            self.one(engine, payloads.keep, name, value)

    def pull(self, name: str, engine: int | None) -> list[Any]:
        """Objects from one engine, or from each."""
        return self.all(payloads.fetch, name) if engine is None else [self.one(engine, payloads.fetch, name)]

    def make(self, name: str, f: Callable[..., Any], *args: Any) -> None:
        """Make an object on every engine."""
        self.all(payloads.make, name, f, *args)

    def use(self, name: str, f: Callable[[Any], Any], engine: int) -> Any:
        """Call `f` with the object that is on an engine."""
        return self.one(engine, payloads.use, name, f)

    def increase(self, name: str) -> None:
        """Add 1 to every item of an array on every engine, in place."""
        self.all(payloads.use, name, payloads.increase)

    def drop(self, name: str) -> None:
        """Forget an object everywhere."""
        self.all(payloads.drop, name)

    def scatter(self, name: str, value: np.ndarray) -> None:
        """Deal an array out in contiguous parts."""
        parts = split(value, self.n)
        self.collect([self.submit(i, payloads.keep, name, part) for i, part in enumerate(parts)])

    def gather(self, name: str) -> np.ndarray:
        """The parts, as one array."""
        import numpy as np

        whole: np.ndarray = np.concatenate(self.pull(name, None))
        return whole


def split(value: np.ndarray, n: int) -> list[np.ndarray]:
    """Contiguous parts of an array."""
    import numpy as np

    return np.array_split(value, n)


def in_thread(f: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Begin a blocking call in a thread of its own; what is returned waits for it, and takes a timeout."""
    import threading

    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(f(*args))
        except Exception as error:  # noqa: BLE001 -- raised where it is waited for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result
