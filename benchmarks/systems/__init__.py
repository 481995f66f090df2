"""The systems that are compared, each behind one small class."""

from __future__ import annotations

import importlib
import importlib.util

from benchmarks.systems.base import NotOffered, System

__all__ = ["OURS", "PEERS", "NotOffered", "System", "installed", "load"]

OURS = "ipython1"
PEERS = ("ipyparallel", "dask", "ray", "mpi", "pool")

#: Module and class, and what has to be installed.
_CLASSES = {
    "ipython1": ("ours", "IPython1", ("ipython1",)),
    "ipyparallel": ("ipp", "IPyParallel", ("ipyparallel",)),
    "dask": ("dask_local", "Dask", ("distributed",)),
    "ray": ("ray_actors", "Ray", ("ray",)),
    "mpi": ("mpi", "MPI", ("mpi4py",)),
    "pool": ("pool", "Pool", ()),
}


def load(name: str) -> type[System]:
    """The class of a system, imported now."""
    module, cls, _ = _CLASSES[name]
    found: type[System] = getattr(importlib.import_module(f"benchmarks.systems.{module}"), cls)
    return found


def installed(name: str) -> bool:
    """Whether what a system needs is there."""
    return all(importlib.util.find_spec(needed) is not None for needed in _CLASSES[name][2])
