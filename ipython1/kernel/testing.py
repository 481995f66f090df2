"""A whole cluster in one process: no sockets, no threads, time on a `Clock`.

For tests of code that drives a cluster, and of ipython1 itself::

    with MemoryCluster(4) as cluster:
        mec = cluster.client()
        mec.execute("a = 5")
        assert mec["a"] == [5, 5, 5, 5]

Everything between the public client and the engine's shell is the real thing;
only links, reactor and processes are replaced. User code runs inline, on the
thread that waits for it. Time passes only where something waits for it.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.task import Clock

from ipython1.kernel.client.core import ClientCore
from ipython1.kernel.client.life import ClientLife
from ipython1.kernel.client.multiengine import MultiEngineClient
from ipython1.kernel.client.task import TaskClient
from ipython1.kernel.client.viewclient import ViewClient
from ipython1.kernel.controller.ledger import CUSTODY_LIMIT, Folder
from ipython1.kernel.controller.service import Controller
from ipython1.kernel.engine.engine import Engine
from ipython1.kernel.engine.shell import EngineShell
from ipython1.kernel.interfaces import IDoor
from ipython1.kernel.wire.connection import Connection
from ipython1.kernel.wire.memory import MemoryDialer
from ipython1.kernel.wire.records import Exited, Order, Record
from ipython1.kernel.wire.shared import SharedMemory

__all__ = ["InlineBridge", "MemoryCluster"]

C = TypeVar("C", bound=ClientLife)


class InlineBridge:
    """Runs at once what a real bridge carries to the reactor thread; waiting turns the clock."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster

    def check(self) -> None:
        """Always usable."""

    def submit(self, f: Callable[..., Any], *args: Any) -> None:
        """Run `f` now."""
        f(*args)

    def call_user(self, f: Callable[..., Any], *args: Any) -> None:
        """Run a user's callback now."""
        f(*args)

    def wait(self, future: Future[Any], timeout: float | None = None) -> None:
        """Let the cluster work until `future` is done."""
        self._cluster.run_until(future.done, timeout)


class _Engine(Engine):
    """One engine process, in memory."""

    def __init__(self, cluster: MemoryCluster, wanted: int, replaces: dict[str, str]) -> None:
        self.uuid = uuid.uuid4().hex
        self.wanted = wanted
        self.dialer = MemoryDialer(cluster.clock, lambda: cluster.door("engine"))
        identity = {
            "uuid": self.uuid,
            "host": "memory",
            "pid": 0,
            "nanny": cluster.nanny.uuid,
            "wanted": wanted,
            "replaces": replaces,
        }
        shell = EngineShell(own_main=False)
        shared = cluster.shared_memory()
        super().__init__(
            cluster.clock, self.dialer, shell, identity, _nothing, _nothing, wait=False, shared=shared
        )
        self.service.start()


def _nothing(news: object) -> None:
    """Nobody needs to know."""


class _Nanny:
    """Starts and ends the engines in memory, as the controller orders."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self.uuid = uuid.uuid4().hex
        self.exited: list[tuple[str, str, str, bool, str]] = []
        self._cluster = cluster
        self.dialer = MemoryDialer(cluster.clock, lambda: cluster.door("engine"))
        self.connection = Connection(
            cluster.clock,
            self.dialer,
            "nanny",
            detail=self._detail,
            receive=self._order,
            welcomed=lambda detail, resumed: None,
            lost=lambda reason: None,
            grace=60.0,
        )
        self.connection.start()

    def _detail(self) -> dict[str, Any]:
        alive = [engine.uuid for engine in self._cluster.engines]
        return {"uuid": self.uuid, "host": "memory", "pid": 0, "engines": alive, "exited": self.exited}

    def _order(self, order: Record, raw: bytes) -> None:
        assert isinstance(order, Order)
        if order.what == "start":
            for _ in range(order.number):
                self._cluster.start_engine()
        elif order.what == "quit":
            self.connection.stop()
        elif order.what == "interrupt":
            pass  # engines in memory react by themselves
        else:
            for engine in [engine for engine in self._cluster.engines if engine.uuid == order.uuid]:
                restart = order.what == "restart"
                cause = f"{'restarted' if restart else 'stopped'} on request"
                self._cluster.end_engine(engine, cause, restart=restart)


class MemoryCluster:
    """Controller, nanny, engines and clients in one process.

    Parameters
    ----------
    n : int
        Number of engines.

    Attributes
    ----------
    clock : twisted.internet.task.Clock
        The time of everything in the cluster.
    controller : Controller
        None while it is down.
    engines : list
        In the order of their start.
    detach_limit : int
        Bytes of detached work that a controller keeps; for those started later.
    """

    detach_limit = CUSTODY_LIMIT

    def __init__(self, n: int = 4) -> None:
        self.clock = Clock()
        self.notices: list[dict[str, Any]] = []
        self._disk = tempfile.TemporaryDirectory(prefix="ipython1-")
        self.controller: Controller | None = None
        self.start_controller()
        self.engines: list[_Engine] = []
        self._clients: list[ClientLife] = []
        self.nanny = _Nanny(self)
        for _ in range(n):
            self.start_engine()
        self.run_until(lambda: len(self.ready_ids()) == n)

    def __enter__(self) -> MemoryCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def client(self) -> MultiEngineClient:
        """A new client, connected."""
        return self._client(MultiEngineClient, "multiengine")

    def task_client(self) -> TaskClient:
        """A new client for tasks, connected."""
        return self._client(TaskClient, "task")

    def view_client(self) -> ViewClient:
        """A new client that looks, connected."""
        return self._client(ViewClient, "view")

    def _client(self, cls: type[C], kind: str) -> C:
        dialer = MemoryDialer(self.clock, lambda: self.door(kind))
        core = ClientCore(self.clock, InlineBridge(self), dialer, kind)
        opened = core.open()
        self.run_until(opened.done)
        opened.result()
        client = cls._from_core(core)
        self._clients.append(client)
        return client

    def close(self) -> None:
        """End everything."""
        for client in self._clients:
            client.close()
        for engine in self.engines:
            engine.service.stop()
        self.nanny.connection.stop()
        self.stop_controller()
        self._disk.cleanup()

    # -- time -------------------------------------------------------------------------

    def step(self) -> bool:
        """Let everything that is due happen once; False where nothing was."""
        now = self.clock.seconds()
        due = any(call.getTime() <= now for call in self.clock.getDelayedCalls())
        self.clock.advance(0)
        ran = [engine.loop.run_ready() for engine in list(self.engines)]
        return due or any(ran)

    def run_until(self, done: Callable[[], bool], timeout: float | None = None) -> None:
        """Work until `done()`; time jumps to the next event where nothing is due now.

        Raises
        ------
        TimeoutError
            The clock would have to pass `timeout` seconds from now.
        RuntimeError
            Nothing is left that could change anything.
        """
        deadline = None if timeout is None else self.clock.seconds() + timeout
        while not done():
            if self.step():
                continue
            times = [call.getTime() for call in self.clock.getDelayedCalls()]
            if not times:
                raise RuntimeError("the cluster in memory waits for something that nothing can bring about")
            if deadline is not None and min(times) > deadline:
                self.clock.advance(deadline - self.clock.seconds())
                raise TimeoutError(f"not done after {timeout} s")
            self.clock.advance(min(times) - self.clock.seconds())

    def settle(self) -> None:
        """Let everything happen that is due now."""
        while self.step():
            pass

    # -- trouble ----------------------------------------------------------------------------

    def door(self, kind: str) -> IDoor | None:
        """The controller's door of that kind, if it is up."""
        return self.controller.door(kind) if self.controller is not None else None

    def start_engine(self, wanted: int = -1, replaces: dict[str, str] | None = None) -> None:
        """One more engine."""
        self.engines.append(_Engine(self, wanted, replaces or {}))

    def shared_memory(self) -> SharedMemory | None:
        """What the next engine shares with others of its host; None: all goes in chunks."""
        return None

    def engine(self, id: int) -> _Engine:
        """The engine with this id."""
        return next(engine for engine in self.engines if engine.service.id == id)

    def end_engine(self, engine: _Engine, cause: str, restart: bool = False) -> None:
        """The engine's process ends, and the nanny says so."""
        self.engines.remove(engine)
        engine.loop.stop()
        engine.dialer.cut()
        engine.service.stop()
        self.nanny.exited.append((engine.uuid, cause, "", restart, ""))
        self.nanny.connection.send(Exited(engine.uuid, cause, "", restart))
        if restart:
            death = {"uuid": engine.uuid, "cause": cause, "output": ""}
            self.start_engine(engine.service.id if engine.service.id >= 0 else engine.wanted, death)

    def stop_controller(self) -> None:
        """The controller dies: all links break, all it knew is gone."""
        if self.controller is None:
            return
        controller, self.controller = self.controller, None
        controller.stop()

    def start_controller(self) -> None:
        """A controller comes up where the last one was."""
        folder = Folder(Path(self._disk.name) / "detached", self.detach_limit)
        self.controller = Controller(self.clock, self.notices.append, detached=folder)

    def ready_ids(self) -> list[int]:
        """The ids of the engines that are registered and linked."""
        if self.controller is None:
            return []
        return [engine.id for engine in self.controller.registry if engine.state == "ready"]
