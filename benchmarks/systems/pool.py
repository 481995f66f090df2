"""The standard library's process pools: pipes, one host, no controller. A yardstick, not a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.systems.base import System


class Pool(System):
    """A `ProcessPoolExecutor` of one process for each engine, and one of all for tasks."""

    note = "one process pool of the standard library an engine, and one of all for tasks"

    def start(self) -> None:
        self.pools = [ProcessPoolExecutor(1) for _ in range(self.n)]
        self.spread: ProcessPoolExecutor | None = None

    def stop(self) -> None:
        for pool in self.pools:
            pool.shutdown()
        if self.spread is not None:
            self.spread.shutdown()

    def one(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        return self.submit(engine, f, *args).result()

    def all(self, f: Callable[..., Any], *args: Any) -> list[Any]:
        return self.collect([self.submit(i, f, *args) for i in range(self.n)])

    def submit(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        return self.pools[engine].submit(f, *args)

    def collect(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.result() for handle in handles]

    def tasks(self, f: Callable[[Any], Any], items: Sequence[Any], chunk: int | None) -> list[Any]:
        if self.spread is None:
            self.spread = ProcessPoolExecutor(self.n)
        size = chunk or math.ceil(len(items) / (4 * self.n))
        return list(self.spread.map(f, items, chunksize=size))
