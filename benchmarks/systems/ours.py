"""ipython1 itself."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.systems.base import System
from ipython1.kernel import client

if TYPE_CHECKING:
    import numpy as np


class IPython1(System):
    """A private cluster, its `MultiEngineClient`, and its `TaskClient`."""

    distribution = "ipython1"

    def start(self) -> None:
        self.cluster = client.Cluster(n=self.n)
        self.mec = self.cluster.start()

    @functools.cached_property
    def tc(self) -> client.TaskClient:
        return self.mec.task_client()

    def stop(self) -> None:
        if "tc" in self.__dict__:
            self.tc.close()
        self.cluster.stop()

    def head_pids(self) -> list[int]:
        children = psutil.Process().children(recursive=True)
        return [child.pid for child in children if any("ipcontroller" in word for word in child.cmdline())]

    def engine_pids(self) -> list[int]:
        return self.mec.apply(os.getpid)  # type: ignore[no-any-return]

    def one(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        return self.mec.apply(f, *args, targets=engine)[0]

    def all(self, f: Callable[..., Any], *args: Any) -> list[Any]:
        return self.mec.apply(f, *args)  # type: ignore[no-any-return]

    def submit(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        return self.mec.apply(f, *args, targets=engine, block=False)

    def collect(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.result()[0] for handle in handles]

    def tasks(self, f: Callable[[Any], Any], items: Sequence[Any], chunk: int | None) -> list[Any]:
        return self.tc.map(f, items, chunksize=chunk)  # type: ignore[no-any-return]

    def execute(self, code: str, engine: int | None) -> None:
        self.mec.execute(code, targets="all" if engine is None else engine)

    def push(self, name: str, value: Any, engine: int | None) -> None:
        self.mec.push({name: value}, targets="all" if engine is None else engine)

    def pull(self, name: str, engine: int | None) -> list[Any]:
        return self.mec.pull(name, targets="all" if engine is None else engine)  # type: ignore[no-any-return]

    def make(self, name: str, f: Callable[..., Any], *args: Any) -> None:
        self.mec.push({"make": f, "arguments": args})
        self.mec.execute(f"{name} = make(*arguments)")

    def use(self, name: str, f: Callable[[Any], Any], engine: int) -> Any:
        return self.one(engine, f, client.Reference(name))

    def increase(self, name: str) -> None:
        self.execute(f"{name} += 1", None)

    def drop(self, name: str) -> None:
        self.mec.execute(f"del {name}")

    def scatter(self, name: str, value: np.ndarray) -> None:
        self.mec.scatter(name, value)

    def gather(self, name: str) -> np.ndarray:
        return self.mec.gather(name)  # type: ignore[no-any-return]
