"""A dashboard without processes: a controller with engines that are only in its books.

``python -m tests.dashboards 500`` serves one of 500 engines, until Ctrl-C.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ipython1.kernel.controller.queue import Command
from ipython1.kernel.controller.registry import Engine
from ipython1.kernel.controller.service import Controller
from ipython1.kernel.wire.records import Event, Result
from ipython1.web.dashboard import serve_dashboard

FURLS = {
    "multiengine": "pb://certificate@tcp:127.0.0.1:10105/secret-of-multiengine",
    "view": "pb://certificate@tcp:127.0.0.1:10105/secret-of-view",
}
LABELS = ("execute step(grid)", "apply simulate", "pull energies", "run analyse.py", "push parameters")


class Books:
    """Fills the books of a controller as if its engines worked.

    Parameters
    ----------
    controller : Controller
    n : int
        Number of engines.
    now : callable
        Wall-clock time in seconds.
    """

    def __init__(self, controller: Controller, n: int, now: Any = time.time) -> None:
        self.controller = controller
        self.now = now
        self.random = random.Random(n)
        self.count = 0
        for i in range(n):
            controller.registry.register(
                uuid=f"uuid-{i}",
                wanted=i,
                host=f"node{i // 16:02d}",
                pid=4000 + i,
                nanny=f"nanny-{i // 16}",
                send=lambda raw: None,
            ).queue.open(lambda raw: None)

    def submit(self, engine: Engine, label: str) -> Command:
        """A command for an engine."""
        self.count += 1
        command = Command(f"c0ffee-{self.count}", "execute", label, b"raw")
        engine.queue.put(command)
        return command

    def history(self, seconds: float) -> None:
        """As if the engines had worked for some time."""
        timeline, chance, end = self.controller.timeline, self.random, self.now()
        told: list[tuple[float, int, Callable[[], None]]] = []  # in the order in which it is told
        engines = list(self.controller.registry)
        for engine in engines:
            engine.rss = chance.randrange(60, 900) << 20
            time = end - seconds * chance.uniform(0.9, 1.0)
            while True:
                ended = time + chance.choice([0.4, 1.5, 2.5, 8.0]) * chance.uniform(0.5, 1.5)
                if ended > end - 0.2:
                    break
                told.append((ended, len(told), partial(self._some, engine, time, ended)))
                time = ended + chance.choice([0.05, 0.3, 1.0, 3.0])
        for ended, _, tell in sorted(told):
            timeline._now = lambda ended=ended: ended
            tell()
            n, wave = len(engines), math.sin(ended / 25)
            timeline.sample(partial(tuple, (round(n * (0.75 + 0.2 * wave)), round(n * (1 + wave)))))
        timeline._now = self.now

    def _some(self, engine: Engine, began: float, ended: float) -> None:
        """Tasks, or a command."""
        timeline, chance = self.controller.timeline, self.random
        if chance.random() < 0.4:
            times = [(began + i * 0.0045, began + i * 0.0045 + 0.004) for i in range(100)]
            timeline.tasks(
                engine.id, "beef-7", "map price", [(i, 1, "ok", *times[i], 0, ()) for i in range(100)]
            )
            return
        self.count += 1
        command = Command(f"c0ffee-{self.count}", "execute", chance.choice(LABELS), b"")
        command.queued = began - chance.random() * 0.2
        status = "error" if chance.random() < 0.04 else "ok"
        timeline.command(
            engine.id, command, Result(command.id, engine.id, "execute", status, began, ended, 0, ())
        )

    def trouble(self) -> None:
        """Some die, some are away, some print."""
        engines = list(self.controller.registry)
        timeline = self.controller.timeline
        for i, engine in enumerate(engines[3 :: max(4, len(engines) // 4)]):
            timeline._now = partial(float, self.now() - 200 + 37 * i)
            cause = "killed by signal 9 (SIGKILL); the kernel likely ran out of memory"
            timeline.note("died", engine.id, cause)
            timeline.note("restarted", engine.id, f"pid {engine.pid}")
            engine.restarts += 1
        timeline._now = self.now
        if len(engines) > 8:
            engines[7].state, engines[8].stuck = "away", self.now() - 20
            timeline.note("away", 7)
        for engine in engines[::2]:
            engine.cpu = self.random.choice([38.0, 97.0, 99.6])
            self.submit(engine, self.random.choice(LABELS))
            engine.queue.running.since = self.now() - self.random.uniform(1, 40)  # type: ignore[union-attr]
        for engine in engines[:: max(2, len(engines) // 9)]:
            for _ in range(3):
                self.submit(engine, "apply simulate")

    def prints(self) -> None:
        """Engines print."""
        for i, engine in enumerate(list(self.controller.registry)[:6]):
            text = f"step {100 * i}: energy {-1.5 + i / 9:.4f}, accepted 0.{41 + i}\n"
            self.controller.output.event(
                Event("c0ffee-1", engine.id, 0, "stderr" if i == 2 else "stdout", text, ())
            )


def main(n: int) -> None:
    """Serve, and print the addresses."""
    from twisted.internet import reactor as global_reactor
    from twisted.internet.task import LoopingCall

    reactor: Any = global_reactor
    controller = Controller(reactor)
    books = Books(controller, n)
    books.history(280.0)
    books.trouble()
    LoopingCall(books.prints).start(2.0)
    serve_dashboard(reactor, controller, 0, FURLS, "default").addCallback(
        lambda served: print(served.url, served.look, flush=True)
    )
    reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
