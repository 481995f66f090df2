"""The covariance of a table whose rows lie on the ranks of an MPI job, against NumPy.

    ipcluster start -n 4 --engines mpi
    python docs/examples/mpi_allreduce.py [ROWS]

Each engine has some of the rows. The sums that the covariance is made of are
added up by `Allreduce`, so that afterwards every engine has the covariance of
the whole table, and no row has moved.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from ipython1.kernel import client

COLUMNS = 40


def covariance() -> Any:
    """Of all rows, on each rank; `rows` are its own."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    count, sums = len(rows), rows.sum(axis=0)  # noqa: F821 -- a name of the engine
    count = world.allreduce(count)
    world.Allreduce(MPI.IN_PLACE, sums)
    centred = rows - sums / count  # noqa: F821
    products = centred.T @ centred
    world.Allreduce(MPI.IN_PLACE, products)
    return products / (count - 1)


def main(n: int) -> int:
    """Compute, compare, print; the exit status."""
    table = np.random.default_rng(1).standard_normal((n, COLUMNS)).cumsum(axis=1)
    started = time.perf_counter()
    serial = np.cov(table, rowvar=False)
    serial_time = time.perf_counter() - started

    with client.MultiEngineClient() as mec:
        engines = len(mec)
        mec.execute("from mpi4py import MPI\nsize = MPI.COMM_WORLD.size\nrank = MPI.COMM_WORLD.rank")
        if mec["size"] != [engines] * engines or mec["rank"] != mec.get_ids():
            print("these engines are not one MPI job; start them with: ipcluster start -n 4 --engines mpi")
            return 1
        mec.scatter("rows", table)
        started = time.perf_counter()
        parallel = mec.apply(covariance)
        parallel_time = time.perf_counter() - started

    print(f"covariance of {COLUMNS} columns in {n:,} rows, as on each of {engines} ranks")
    print(f"serial {serial_time:.3f} s, {engines} engines {parallel_time:.3f} s")
    if not all(np.allclose(each, serial, rtol=1e-9, atol=1e-9) for each in parallel):
        print("the serial and the parallel covariance differ")
        return 1
    print("serial and parallel covariances are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
