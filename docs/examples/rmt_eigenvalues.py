"""Spacings between neighbouring eigenvalues of random matrices, against Wigner's surmise.

    ipcluster run -n 4 docs/examples/rmt_eigenvalues.py [MATRICES]

The middle two eigenvalues of a random real symmetric matrix (the Gaussian
orthogonal ensemble) repel each other. Their distance s, in units of its mean,
follows closely p(s) = pi/2 s exp(-pi/4 s**2), which E. Wigner surmised in
1957. Each matrix has a seed of its own, so a serial run finds the same.
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np

from ipython1.kernel import client

SIZE = 40
EDGES = np.linspace(0.0, 3.0, 13)
#: Largest difference of the distribution functions; with n matrices chance alone makes about 1/sqrt(n).
DISTANCE_ALLOWED = 2.0


def spacings(seeds: range) -> list[float]:
    """The distance between the middle two eigenvalues of one matrix per seed."""
    found = []
    for seed in seeds:
        square = np.random.default_rng(seed).standard_normal((SIZE, SIZE))
        eigenvalues = np.linalg.eigvalsh(square + square.T)
        found.append(float(eigenvalues[SIZE // 2] - eigenvalues[SIZE // 2 - 1]))
    return found


def wigner_cdf(s: np.ndarray) -> np.ndarray:
    """The share of spacings up to `s` by Wigner's surmise."""
    return 1 - np.exp(-math.pi / 4 * s**2)


def main(matrices: int) -> int:
    """Compute, compare, print; the exit status."""
    started = time.perf_counter()
    serial = spacings(range(matrices))
    serial_time = time.perf_counter() - started

    with client.MultiEngineClient() as mec:
        engines = len(mec)
        blocks = [
            range(matrices)[i * matrices // engines : (i + 1) * matrices // engines] for i in range(engines)
        ]
        started = time.perf_counter()
        parallel = [spacing for block in mec.map(spacings, blocks) for spacing in block]
        parallel_time = time.perf_counter() - started

    s = np.sort(parallel) / np.mean(parallel)
    shares = np.histogram(s, EDGES)[0] / matrices
    surmised = np.diff(wigner_cdf(EDGES))
    print(f"{matrices:,} matrices of {SIZE} x {SIZE}: spacing of the middle two eigenvalues")
    print("        s      found  Wigner")
    for low, high, share, wigner in zip(EDGES, EDGES[1:], shares, surmised, strict=False):
        print(f"  {low:4.2f}-{high:4.2f}  {share:7.1%} {wigner:7.1%}  {'#' * round(200 * share)}")
    steps = np.arange(matrices + 1) / matrices
    distance = max(np.max(steps[1:] - wigner_cdf(s)), np.max(wigner_cdf(s) - steps[:-1]))
    chance = 1 / math.sqrt(matrices)
    print(f"largest difference of the distribution functions {distance:.4f} (chance: {chance:.4f})")
    print(f"serial {serial_time:.3f} s, {engines} engines {parallel_time:.3f} s")
    # linear algebra libraries may round differently with another number of threads
    if len(parallel) != matrices or not np.allclose(parallel, serial, rtol=1e-9, atol=1e-9):
        print("serial and parallel spacings DIFFER", file=sys.stderr)
        return 1
    if distance * math.sqrt(matrices) > DISTANCE_ALLOWED:
        print("the spacings do NOT follow Wigner's surmise", file=sys.stderr)
        return 1
    print("serial and parallel spacings are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000))
