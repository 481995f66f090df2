"""Ray: one actor an engine, and its shared-memory store for objects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import psutil
import ray  # type: ignore[import-not-found]

from benchmarks import payloads
from benchmarks.systems.base import System, split

if TYPE_CHECKING:
    import numpy as np

#: Processes of Ray that schedule and store, and run nothing of the user.
HEADS = ("gcs_server", "raylet")


class Engine:
    """An actor that calls what it is told."""

    def call(self, f: Callable[..., Any], *args: Any) -> Any:
        """Call `f`; arguments in the store are taken from there."""
        return f(*args)


class Ray(System):
    """Actors, called by name of the function; objects go once into the store, and engines see them there."""

    distribution = "ray"
    note = "arrays are read-only views of its store"

    def start(self) -> None:
        ray.init(
            num_cpus=self.n,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(self.folder / "r"),
        )
        engine = ray.remote(num_cpus=0)(Engine)  # the CPUs are for its tasks
        self.actors: list[Any] = [engine.remote() for _ in range(self.n)]

    def stop(self) -> None:
        ray.shutdown()

    def head_pids(self) -> list[int]:
        children = psutil.Process().children(recursive=True)
        return [child.pid for child in children if child.name() in HEADS]

    def one(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        return ray.get(self.submit(engine, f, *args))

    def all(self, f: Callable[..., Any], *args: Any) -> list[Any]:
        return self.collect([self.submit(i, f, *args) for i in range(self.n)])

    def submit(self, engine: int, f: Callable[..., Any], *args: Any) -> Any:
        return self.actors[engine].call.remote(f, *args)

    def collect(self, handles: Sequence[Any]) -> list[Any]:
        return ray.get(list(handles))  # type: ignore[no-any-return]

    def tasks(self, f: Callable[[Any], Any], items: Sequence[Any], chunk: int | None) -> list[Any]:
        task = ray.remote(num_cpus=1)(payloads.map_part)
        size = chunk or 1
        parts = [task.remote(f, items[i : i + size]) for i in range(0, len(items), size)]
        return [value for part in self.collect(parts) for value in part]

    def push(self, name: str, value: Any, engine: int | None) -> None:
        stored = ray.put(value)
        if engine is None:
            self.all(self._keep, name, stored)
        else:
            self.one(engine, self._keep, name, stored)

    def pull(self, name: str, engine: int | None) -> list[Any]:
        values = super().pull(name, engine)
        return [payloads.own(value) for value in values] if self.writable else values

    def scatter(self, name: str, value: np.ndarray) -> None:
        parts = [ray.put(part) for part in split(value, self.n)]
        self.collect([self.submit(i, self._keep, name, part) for i, part in enumerate(parts)])

    @property
    def _keep(self) -> Callable[[str, Any], None]:
        return payloads.keep_own if self.writable else payloads.keep
