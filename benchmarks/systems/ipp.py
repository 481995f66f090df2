"""ipyparallel, with its own launchers and ZeroMQ over loopback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipyparallel  # type: ignore[import-not-found]
import psutil

from benchmarks.systems.base import System

if TYPE_CHECKING:
    import numpy as np


class IPyParallel(System):
    """A cluster of the class that its manual begins with."""

    distribution = "ipyparallel"

    def start(self) -> None:
        self.cluster = ipyparallel.Cluster(n=self.n, controller_ip="127.0.0.1", log_level=logging.ERROR)
        self.client = self.cluster.start_and_connect_sync(activate=False)
        self.every = self.client[:]
        self.views = [self.client[i] for i in self.client.ids]

    def stop(self) -> None:
        self.client.close()
        self.cluster.stop_cluster_sync()

    def head_pids(self) -> list[int]:
        children = psutil.Process().children(recursive=True)
        return [child.pid for child in children if "ipyparallel.controller" in child.cmdline()]

    def one(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        return self.views[engine].apply_sync(f, *args)

    def all(self, f: Callable[..., Any], *args: Any) -> list[Any]:
        return list(self.every.apply_sync(f, *args))

    def submit(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        return self.views[engine].apply_async(f, *args)

    def collect(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.get() for handle in handles]

    def execute(self, code: str, engine: int | None) -> None:
        self._view(engine).execute(code, block=True).get()

    def tasks(self, f: Callable[[Any], Any], items: Sequence[Any], chunk: int | None) -> list[Any]:
        view = self.client.load_balanced_view()
        return list(view.map_sync(f, items, **({} if chunk is None else {"chunksize": chunk})))

    def push(self, name: str, value: Any, engine: int | None) -> None:
        self._view(engine).push({name: value}, block=True)

    def pull(self, name: str, engine: int | None) -> list[Any]:
        values = self._view(engine).pull(name, block=True)
        return list(values) if engine is None else [values]

    def make(self, name: str, f: Callable[..., Any], *args: Any) -> None:
        self.every.push({"make": f, "arguments": args}, block=True)
        self.execute(f"{name} = make(*arguments)", None)

    def use(self, name: str, f: Callable[[Any], Any], engine: int) -> Any:
        return self.one(engine, f, ipyparallel.Reference(name))

    def increase(self, name: str) -> None:
        self.execute(f"{name} += 1", None)

    def drop(self, name: str) -> None:
        self.execute(f"del {name}", None)

    def scatter(self, name: str, value: np.ndarray) -> None:
        self.every.scatter(name, value, block=True)

    def gather(self, name: str) -> np.ndarray:
        return self.every.gather(name, block=True)  # type: ignore[no-any-return]

    def _view(self, engine: int | None) -> Any:
        return self.every if engine is None else self.views[engine]
