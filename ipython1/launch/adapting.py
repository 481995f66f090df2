"""The number of engines follows the work.

==========================================  =====================================================
what is seen                                what is ordered
==========================================  =====================================================
fewer engines than the minimum              the minimum, at once
more tasks wait than `queue` an engine,     as many more engines as it takes, so that no more than
for `after` seconds                         `queue` wait for each; at most the maximum
no task waits, for `idle` seconds           fewer: those go that had nothing to do for `idle`
                                            seconds, down to the minimum; and what was ordered and
                                            is not there yet is not wanted any more
==========================================  =====================================================

Only tasks count for more engines: a command has its engine, and no other one can help it. But an engine that
has a command or a task is never stopped. The controller looks at that itself when it is asked to stop those
that are idle, so nothing can come in between.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ipython1.kernel.error import IPython1Error

if TYPE_CHECKING:
    from ipython1.kernel.client import MultiEngineClient

#: Seconds between two looks.
INTERVAL = 0.5
#: Seconds after which engines that did not come are ordered again.
PATIENCE = 60.0
#: Seconds that the controller has to answer.
ANSWER_TIME = 10.0

log = logging.getLogger(__name__)


@dataclass
class Policy:
    """Decides how many engines there should be; `decide` is told what there is again and again.

    Parameters
    ----------
    minimum, maximum : int
        The bounds.
    queue : float
        How many tasks may wait for each engine.
    after : float
        Seconds that more of them wait before there are more engines.
    idle : float
        Seconds that an engine has nothing to do before it is stopped.

    Raises
    ------
    TypeError, ValueError
        No such bounds or times.
    """

    minimum: int
    maximum: int
    queue: float = 1.0
    after: float = 1.0
    idle: float = 30.0
    #: The number that was ordered and is not there yet, and when it was; -1: none.
    ordered: int = field(default=-1, init=False)
    _ordered_at: float = field(default=0.0, init=False)
    _busy_since: float | None = field(default=None, init=False)
    _calm_since: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for name in ("minimum", "maximum"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is a number of engines, not {value!r}.")
        if not 0 <= self.minimum <= self.maximum or self.maximum < 1:
            raise ValueError(
                f"a cluster adapts between a minimum of 0 or more engines and a maximum that is not less, "
                f"and 1 or more; not from {self.minimum} to {self.maximum}."
            )
        for name in ("queue", "after", "idle"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is a number that is 0 or more, not {value!r}.")

    def decide(self, now: float, load: Mapping[str, Any]) -> int | None:
        """The number of engines to order, or None where that of the last time is still good.

        Parameters
        ----------
        now : float
            Seconds, from any point on.
        load : mapping
            The controller's answer to ``load``: ``engines``, ``waiting``, ``idle``.
        """
        engines, waiting = int(load["engines"]), int(load["waiting"])
        idle = sum(seconds >= self.idle for seconds in load["idle"])
        self._busy_since = _since(self._busy_since, now, waiting > self.queue * engines)
        self._calm_since = _since(self._calm_since, now, not waiting)
        if engines >= self.ordered:
            self.ordered = -1
        wanted = coming = max(engines, self.ordered)
        if self._busy_since is not None and now - self._busy_since >= self.after:
            wanted = max(wanted, min(self.maximum, math.ceil((waiting + engines) / (1 + self.queue))))
        elif self._calm_since is not None and now - self._calm_since >= self.idle:
            wanted = engines - min(idle, max(0, engines - self.minimum))
        wanted = max(wanted, self.minimum)
        if wanted == coming and (coming == engines or now - self._ordered_at < PATIENCE):
            return None
        self.ordered, self._ordered_at = wanted, now
        return wanted


def _since(since: float | None, now: float, holds: bool) -> float | None:
    """Since when something holds without a break; None: it does not."""
    if not holds:
        return None
    return now if since is None else since


class Adapter:
    """On a thread of its own, asks a cluster for its load now and then, and orders what a `Policy` decides.

    Parameters
    ----------
    policy : Policy
        Decides.
    connect : callable
        Makes a client of the cluster; again, where the connection is lost.
    interval : float
        Seconds between two looks.
    """

    def __init__(
        self, policy: Policy, connect: Callable[[], MultiEngineClient], interval: float = INTERVAL
    ) -> None:
        self.policy = policy
        #: Why it could not do what it wanted, the last time.
        self.problem = ""
        self._connect = connect
        self._interval = interval
        self._over = threading.Event()
        self._client: MultiEngineClient | None = None
        self._thread = threading.Thread(target=self._run, name="ipython1-adapt", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the last order is given."""
        if self._thread.is_alive():  # not in a fork of this process
            self._over.set()
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over.wait(self._interval):
                self._try()
        finally:
            self._leave()

    def _try(self) -> None:
        try:
            self.look(time.monotonic())
        except (IPython1Error, OSError, TimeoutError) as error:
            self._leave()
            if str(error) != self.problem and not self._over.is_set():
                log.warning("The cluster does not adapt now: %s", error)
            self.problem = str(error)
        else:
            self.problem = ""

    def look(self, now: float) -> None:
        """Ask, decide, and order."""
        wanted = self.policy.decide(now, self._ask("load"))
        if wanted is not None:
            log.info("%d engines are ordered", wanted)
            self._ask("scale", n=wanted, idle=self.policy.idle)

    def _ask(self, what: str, **body: Any) -> Any:
        if self._client is None or self._client.closed:
            self._client = self._connect()
        answer = self._client._core.ask(what, **body)
        self._client._core.wait(answer, ANSWER_TIME)
        return answer.result()

    def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
