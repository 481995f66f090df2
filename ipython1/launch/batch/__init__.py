"""Engines in the jobs of batch systems."""

from ipython1.launch.batch.htcondor import HTCondor
from ipython1.launch.batch.lsf import LSF
from ipython1.launch.batch.pbs import PBS
from ipython1.launch.batch.sge import SGE
from ipython1.launch.batch.slurm import Slurm

__all__ = ["LSF", "PBS", "SGE", "HTCondor", "Slurm"]
