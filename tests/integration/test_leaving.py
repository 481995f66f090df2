"""Engines that leave by themselves before the time of their job is over, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from ipython1.kernel.client import Cluster, TaskClient
from ipython1.kernel.error import CompositeError
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.processes import TIME_OVER
from ipython1.launch.local import environment
from tests.faults.conftest import until

#: Seconds that anything may take before the test gives up.
PATIENCE = 40.0


def slow(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_what_engines_that_leave_do_not_finish_is_done_elsewhere() -> None:
    with Cluster(n=1, cluster="leaving") as mec:
        times = ["--leave-after", "7", "--leave-within", "1", "--leave-when-empty"]
        command = [sys.executable, "-m", "ipython1.scripts.ipengine", "--cluster", "leaving", *times]
        nanny = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
        try:
            mec.wait_for_engines(2)
            stays, leaves = mec.apply(os.getpid)
            with TaskClient(str(ClusterFiles("leaving").furl("task"))) as tasks:
                long = [tasks.submit(slow, 10.0) for _ in range(2)]
                until(lambda: mec.queue_status(1)[0][1]["pending"], "one of them there")
                command_there = mec.execute("pass", targets=1, block=False)
                _, said = nanny.communicate(timeout=PATIENCE)
                assert nanny.returncode == 0
                assert mec.get_ids() == [0]
                assert [each.get_result(timeout=PATIENCE) for each in long] == [stays] * 2
            with pytest.raises(CompositeError, match=f"EngineDied: Engine 1 died: {TIME_OVER}"):
                command_there.get_result(timeout=PATIENCE)
        finally:
            nanny.kill()
            nanny.wait()
    assert f"engine 1 (pid {leaves}) {TIME_OVER}" in said
    assert "the job's time is almost over: the engines leave within 1 s" in said
