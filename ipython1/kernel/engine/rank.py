"""The place of a process in an MPI job, before MPI is there: ``mpiexec`` puts it into the environment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

#: Who sets which: Open MPI, PMIx, Hydra (MPICH, Intel MPI), MVAPICH, Slurm. The last is also set in a batch
#: script, where a `mpiexec` may be below it: so it comes last.
VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")


def mpi_rank(environ: Mapping[str, str]) -> int | None:
    """The rank of this process, None where it is not part of an MPI job.

    Parameters
    ----------
    environ : mapping
        The environment.
    """
    for name in VARIABLES:
        if environ.get(name, "").isdecimal():
            return int(environ[name])
    return None


def remove_leftovers(environ: Mapping[str, str], shm: Path = Path("/dev/shm")) -> None:
    """Remove what the job has left on this host, where its ``mpiexec`` was killed and cannot.

    Open MPI only: others are not known to leave anything.

    Parameters
    ----------
    environ : mapping
        The environment.
    shm : Path
        Where shared memory is.
    """
    job = environ.get("OMPI_MCA_ess_base_jobid", "")
    if not job.isdecimal():
        return
    for segment in shm.glob(f"*_segment.*.{os.getuid()}.{int(job):x}.*"):
        segment.unlink(missing_ok=True)  # the other ranks do the same
    folder = environ.get("PMIX_SERVER_TMPDIR")
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # there are other jobs
            Path(folder).parent.rmdir()
