"""Asian options over strikes and volatilities, each as exactly as asked for; Monte Carlo as tasks.

    ipcluster run -n 4 docs/examples/option_grid.py [ERROR]

An arithmetic Asian call pays ``max(mean(S) - K, 0)`` over the monthly prices S
of a geometric Brownian motion. Its price has no closed form; that of the
geometric Asian call, which pays by the geometric mean, has one (Kemna and
Vorst, 1990). Both are simulated on the same paths: the geometric price must
agree with its formula, and what it is off by corrects the arithmetic one.

Each task simulates one block of paths of one option, with a random stream of
its own (``SeedSequence.spawn``). An option gets more blocks until its standard
error is below ERROR, so that some need many more than others, and how many is
known only along the way. A serial run finds exactly the same.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait

import numpy as np

from ipython1.kernel import client

SPOT, RATE, YEARS, MONTHS = 100.0, 0.05, 1.0, 12
STRIKES = [90.0, 100.0, 110.0, 120.0]
SIGMAS = [0.10, 0.20, 0.40, 0.60]
SEED = 1990
#: Paths of one task.
BLOCK = 20_000
#: A price may be this many standard errors off; over 16 options that happens by chance once in 9,000 seeds.
ERRORS_ALLOWED = 4.5


def simulate(strike: float, sigma: float, seed: np.random.SeedSequence) -> np.ndarray:
    """The sums over one block of paths: of both payoffs a and g, then of a*a, a*g and g*g."""
    dt = YEARS / MONTHS
    normal = np.random.default_rng(seed).standard_normal((BLOCK, MONTHS))
    logs = np.cumsum((RATE - sigma**2 / 2) * dt + sigma * math.sqrt(dt) * normal, axis=1)
    discount = math.exp(-RATE * YEARS)
    a = discount * np.maximum(SPOT * np.exp(logs).mean(axis=1) - strike, 0.0)
    g = discount * np.maximum(SPOT * np.exp(logs.mean(axis=1)) - strike, 0.0)
    return np.array([a.sum(), g.sum(), (a * a).sum(), (a * g).sum(), (g * g).sum()])


def geometric_price(strike: float, sigma: float) -> float:
    """The exact price of the geometric Asian call: the log of its mean is normal."""

    def normal_cdf(x: float) -> float:
        return (1 + math.erf(x / math.sqrt(2))) / 2

    mean = math.log(SPOT) + (RATE - sigma**2 / 2) * YEARS * (MONTHS + 1) / (2 * MONTHS)
    width = sigma * math.sqrt(YEARS * (MONTHS + 1) * (2 * MONTHS + 1) / (6 * MONTHS**2))
    d = (mean - math.log(strike)) / width
    forward = math.exp(mean + width**2 / 2)
    return math.exp(-RATE * YEARS) * (forward * normal_cdf(d + width) - strike * normal_cdf(d))


class Option:
    """One option, and what is known of its price so far."""

    def __init__(self, strike: float, sigma: float, seed: np.random.SeedSequence) -> None:
        self.strike, self.sigma, self.seed = strike, sigma, seed
        self.exact = geometric_price(strike, sigma)
        self.blocks = 0
        self.sums = np.zeros(5)

    def next_block(self) -> tuple[float, float, np.random.SeedSequence]:
        """What `simulate` is to be called with next."""
        return self.strike, self.sigma, self.seed.spawn(1)[0]

    def add(self, sums: np.ndarray) -> None:
        """Take one more block into account."""
        self.blocks += 1
        self.sums += sums
        paths = self.blocks * BLOCK
        a, g, aa, ag, gg = (float(total) / paths for total in self.sums)
        var_a, cov, var_g = aa - a * a, ag - a * g, gg - g * g
        beta = cov / var_g
        self.geometric, self.geometric_error = g, math.sqrt(var_g / paths)
        self.plain_error = math.sqrt(var_a / paths)
        self.price = a - beta * (g - self.exact)
        self.error = math.sqrt(max(var_a - beta * cov, 0.0) / paths)


def options() -> list[Option]:
    """The grid, each option with its own seed."""
    cells = [(strike, sigma) for strike in STRIKES for sigma in SIGMAS]
    seeds = np.random.SeedSequence(SEED).spawn(len(cells))
    return [Option(*cell, seed) for cell, seed in zip(cells, seeds, strict=True)]


def price_serially(grid: list[Option], wanted: float) -> None:
    """Simulate one option after the other."""
    for option in grid:
        while option.blocks == 0 or option.error > wanted:
            option.add(simulate(*option.next_block()))


def price_by_tasks(submit: Callable[..., client.PendingResult], grid: list[Option], wanted: float) -> None:
    """One task for each option at a time; where it was not enough, the next."""
    running = {submit(simulate, *option.next_block()): option for option in grid}
    while running:
        for pending in wait(running, return_when=FIRST_COMPLETED).done:
            option = running.pop(pending)
            option.add(pending.result())
            if option.error > wanted:
                running[submit(simulate, *option.next_block())] = option


def main(wanted: float) -> int:
    """Price the grid twice, compare, print; the exit status."""
    serial, parallel = options(), options()
    started = time.perf_counter()
    price_serially(serial, wanted)
    serial_time = time.perf_counter() - started

    with client.TaskClient() as tc:
        engines = len(tc.ids)
        started = time.perf_counter()
        price_by_tasks(tc.submit, parallel, wanted)
        parallel_time = time.perf_counter() - started

    blocks = sum(option.blocks for option in parallel)
    print(f"Asian calls, spot {SPOT:.0f}: {blocks} tasks of {BLOCK:,} paths, errors below {wanted:g}")
    print("  strike" + "".join(f"{f'σ={sigma:.2f}':>18}" for sigma in SIGMAS))
    for row, strike in enumerate(STRIKES):
        cells = parallel[row * len(SIGMAS) :][: len(SIGMAS)]
        print(f"  {strike:6.1f}" + "".join(f"{o.price:10.4f} ±{o.error:.4f}" for o in cells))
        print("  blocks" + "".join(f"{o.blocks:18}" for o in cells))
    gain = min((o.plain_error / o.error) ** 2 for o in parallel)
    print(f"without the geometric price it would take at least {gain:.0f} times as many paths")
    worst = max(abs(o.geometric - o.exact) / o.geometric_error for o in parallel)
    print(f"geometric prices against their formula: at most {worst:.1f} standard errors apart")
    print(f"serial {serial_time:.3f} s, {engines} engines {parallel_time:.3f} s")
    if [(o.price, o.error, o.blocks) for o in parallel] != [(o.price, o.error, o.blocks) for o in serial]:
        print("serial and parallel prices DIFFER", file=sys.stderr)
        return 1
    if worst > ERRORS_ALLOWED:
        print("the geometric prices are WRONG", file=sys.stderr)
        return 1
    print("serial and parallel prices are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.002))
