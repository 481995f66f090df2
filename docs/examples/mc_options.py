"""Prices of European and Asian call options by Monte Carlo, over strikes and volatilities.

    ipcluster run -n 4 docs/examples/mc_options.py [PATHS]

A European call pays ``max(S(T) - K, 0)``; an arithmetic Asian call pays
``max(mean(S) - K, 0)`` over the daily prices. The price follows a geometric
Brownian motion. Every cell of the grid draws from a seed of its own, so the
engines find exactly what a serial run finds, however many they are; and the
European prices must agree with the formula of Black and Scholes (1973).
"""

from __future__ import annotations

import math
import sys
import time
from typing import NamedTuple

import numpy as np

from ipython1.kernel import client

SPOT, RATE, YEARS, STEPS = 100.0, 0.05, 1.0, 252
STRIKES = [90.0, 95.0, 100.0, 105.0, 110.0]
SIGMAS = [0.10, 0.20, 0.30, 0.40]
#: Paths simulated at a time, to bound the memory.
BLOCK = 1000
#: A price may be this many standard errors off; over 20 cells that happens by chance once in 7,000 seeds.
ERRORS_ALLOWED = 4.5


class Price(NamedTuple):
    """Two prices and the standard error of the first."""

    european: float
    error: float
    asian: float


def price(strike: float, sigma: float, seed: int, paths: int) -> Price:
    """The discounted mean payoffs over `paths` simulated years."""
    rng = np.random.default_rng(seed)
    dt = YEARS / STEPS
    european, asian = [], []
    for done in range(0, paths, BLOCK):
        normal = rng.standard_normal((min(BLOCK, paths - done), STEPS))
        steps = (RATE - sigma**2 / 2) * dt + sigma * math.sqrt(dt) * normal
        prices = SPOT * np.exp(np.cumsum(steps, axis=1))
        european.append(np.maximum(prices[:, -1] - strike, 0.0))
        asian.append(np.maximum(prices.mean(axis=1) - strike, 0.0))
    discount = math.exp(-RATE * YEARS)
    payoffs = discount * np.concatenate(european)
    error = payoffs.std(ddof=1) / math.sqrt(paths)
    return Price(float(payoffs.mean()), float(error), float(discount * np.concatenate(asian).mean()))


def black_scholes(strike: float, sigma: float) -> float:
    """The exact price of the European call."""

    def normal_cdf(x: float) -> float:
        return (1 + math.erf(x / math.sqrt(2))) / 2

    width = sigma * math.sqrt(YEARS)
    d1 = (math.log(SPOT / strike) + (RATE + sigma**2 / 2) * YEARS) / width
    return SPOT * normal_cdf(d1) - strike * math.exp(-RATE * YEARS) * normal_cdf(d1 - width)


def main(paths: int) -> int:
    """Price the grid twice, compare, print; the exit status."""
    cells = [(strike, sigma) for strike in STRIKES for sigma in SIGMAS]
    strikes, sigmas = zip(*cells, strict=True)
    arguments = (strikes, sigmas, range(len(cells)), [paths] * len(cells))

    started = time.perf_counter()
    serial = list(map(price, *arguments))
    serial_time = time.perf_counter() - started

    with client.MultiEngineClient() as mec:
        engines = len(mec)
        started = time.perf_counter()
        parallel = mec.map(price, *arguments)
        parallel_time = time.perf_counter() - started

    for title, column in (("European", "european"), ("Asian", "asian")):
        print(f"{title} call, spot {SPOT:.0f}, {paths:,} paths")
        print("  strike" + "".join(f"{f'σ={sigma:.2f}':>9}" for sigma in SIGMAS))
        for strike in STRIKES:
            row = [getattr(p, column) for p, cell in zip(parallel, cells, strict=True) if cell[0] == strike]
            print(f"  {strike:6.1f}" + "".join(f"{value:9.3f}" for value in row))
    worst = max(
        abs(p.european - black_scholes(*cell)) / p.error for p, cell in zip(parallel, cells, strict=True)
    )
    print(f"European prices against Black-Scholes: at most {worst:.1f} standard errors apart")
    print(f"serial {serial_time:.3f} s, {engines} engines {parallel_time:.3f} s")
    if parallel != serial:
        print("serial and parallel prices DIFFER", file=sys.stderr)
        return 1
    if worst > ERRORS_ALLOWED:
        print("the European prices are WRONG", file=sys.stderr)
        return 1
    print("serial and parallel prices are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
