"""How fast a cluster is from here, measured."""

from __future__ import annotations

import pickle
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ipython1.kernel.texts import size_text
from ipython1.kernel.wire.runners import nothing, zeros

if TYPE_CHECKING:
    from ipython1.kernel.client.views import TargetView

#: Calls measured one after the other, and calls sent without waiting.
ROUNDS, BURST = 50, 500
#: Bytes of one bulk transfer, and how many there are: the best counts, since first touch of memory is slow.
BULK, BULK_ROUNDS = 32 * 1000 * 1000, 3


@dataclass(frozen=True)
class Benchmark:
    """What was measured. Times in seconds, rates in bytes a second.

    Attributes
    ----------
    engines : int
        How many there were.
    latency, latency_all : float
        Median time of a call to one engine, and to all at once.
    calls : float
        Calls a second to one engine, sent without waiting for each.
    push, pull : float
        Bulk rate to one engine, and back.
    broadcast : float
        Bulk rate to all engines at once, all their bytes counted.
    """

    engines: int
    latency: float
    latency_all: float
    calls: float
    push: float
    pull: float
    broadcast: float

    def __str__(self) -> str:
        return "\n".join(
            [
                f"one call, one engine     {self.latency * 1e3:8.2f} ms",
                f"one call, {self.engines:3d} engines    {self.latency_all * 1e3:8.2f} ms",
                f"calls without waiting    {self.calls:8.0f} /s",
                f"push to one engine       {_rate(self.push)}",
                f"pull from one engine     {_rate(self.pull)}",
                f"push to {self.engines:3d} engines      {_rate(self.broadcast)}",
            ]
        )


def run_benchmark(view: TargetView, clock: Callable[[], float] = time.perf_counter) -> Benchmark:
    """Measure the engines of `view`; leaves nothing in their namespaces."""
    ids = view.ids
    every, one = view.view(ids, block=True), view.view(ids[:1], block=True)
    every.apply(nothing)  # what only the first call costs

    def seconds(call: Callable[[], Any]) -> float:
        begin = clock()
        call()
        return clock() - begin

    def burst() -> None:
        for pending in [one.apply(nothing, block=False) for _ in range(BURST)]:
            pending.result()

    def median(call: Callable[[], Any]) -> float:
        return statistics.median(seconds(call) for _ in range(ROUNDS))

    def best(call: Callable[[], Any]) -> float:
        return min(seconds(call) for _ in range(BULK_ROUNDS))

    bulk = pickle.PickleBuffer(bytearray(BULK))
    return Benchmark(
        engines=len(ids),
        latency=median(lambda: one.apply(nothing)),
        latency_all=median(lambda: every.apply(nothing)),
        calls=BURST / seconds(burst),
        push=BULK / best(lambda: one.apply(nothing, bulk)),
        pull=BULK / best(lambda: one.apply(zeros, BULK)),
        broadcast=len(ids) * BULK / best(lambda: every.apply(nothing, bulk)),
    )


def _rate(value: float) -> str:
    return f"{size_text(value):>8s}/s"
