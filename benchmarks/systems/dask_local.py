"""Dask's distributed scheduler, which runs in the client's process, and workers that are processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import distributed  # type: ignore[import-not-found]

from benchmarks import payloads
from benchmarks.systems.base import System, in_thread, split

if TYPE_CHECKING:
    import numpy as np


class Dask(System):
    """A `LocalCluster`. Addressed calls are ``Client.run``, a tenth of the latency of ``submit``."""

    distribution = "distributed"
    note = "the scheduler is a thread of the client's process"

    def start(self) -> None:
        self.cluster = distributed.LocalCluster(
            n_workers=self.n, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        )
        self.client = distributed.Client(self.cluster)
        self.client.wait_for_workers(self.n)
        self.workers = sorted(self.client.scheduler_info(n_workers=-1)["workers"])
        self.kept: dict[str, list[Any]] = {}

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()

    def head_pids(self) -> list[int]:
        return [os.getpid()]

    def one(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        worker = self.workers[engine]
        return self.client.run(f, *args, workers=[worker])[worker]

    def all(self, f: Callable[..., Any], *args: Any) -> list[Any]:
        values = self.client.run(f, *args)
        return [values[worker] for worker in self.workers]

    def submit(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        return self.client.submit(f, *args, workers=[self.workers[engine]], pure=False)

    def collect(self, handles: Sequence[Any]) -> list[Any]:
        return self.client.gather(list(handles))  # type: ignore[no-any-return]

    def background(self, engine: int, f: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        return in_thread(self.one, engine, f, *args)

    def tasks(self, f: Callable[[Any], Any], items: Sequence[Any], chunk: int | None) -> list[Any]:
        return self.collect(self.client.map(f, items, pure=False))

    def push(self, name: str, value: Any, engine: int | None) -> None:
        workers = self.workers if engine is None else [self.workers[engine]]
        # Futures of dicts and lists would come back as dicts and lists of futures.
        [future] = self.client.scatter(
            [value], workers=workers, broadcast=engine is None, direct=True, hash=False
        )
        self.kept[name] = [future] * self.n

    def pull(self, name: str, engine: int | None) -> list[Any]:
        futures = self.kept[name] if engine is None else [self.kept[name][engine]]
        return self.client.gather(futures, direct=True)  # type: ignore[no-any-return]

    def make(self, name: str, f: Callable[..., Any], *args: Any) -> None:
        self.kept[name] = [self.submit(i, f, *args) for i in range(self.n)]
        distributed.wait(self.kept[name])

    def use(self, name: str, f: Callable[[Any], Any], engine: int) -> Any:
        return self.submit(engine, f, self.kept[name][engine]).result()

    def increase(self, name: str) -> None:
        self.collect([self.submit(i, payloads.increase, value) for i, value in enumerate(self.kept[name])])

    def drop(self, name: str) -> None:
        del self.kept[name]

    def scatter(self, name: str, value: np.ndarray) -> None:
        parts = split(value, self.n)
        self.kept[name] = self.client.scatter(parts, workers=self.workers, direct=True, hash=False)
