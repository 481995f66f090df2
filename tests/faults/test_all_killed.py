"""All of a cluster killed at the same time, again and again: the next start finds nothing in its way."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import psutil

from ipython1.kernel.client import MultiEngineClient
from ipython1.kernel.files import ClusterFiles
from ipython1.launch.state import State, is_running

from .conftest import PATIENCE, Rig, left_files, lives, until
from .tally import dead_segments, gone_soon

MOMENTS = 20
#: Seconds within which the moment lies, from the start, from the first command, or from the request to stop.
SPANS = {"start": 1.5, "load": 0.4, "stop": 0.3}


def kill_all(rig: Rig) -> None:
    """Kill its processes, whatever they start meanwhile, until there is none."""

    def left() -> list[psutil.Process]:
        rig.look()
        return [process for process in rig._members if lives(process)]

    while members := left():
        for process in members:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        rig.process.poll()
    rig.process.communicate(timeout=PATIENCE)


def load(mec: MultiEngineClient, folder: Path) -> None:
    """Give it something of everything."""
    array = np.zeros(1_000_000)
    mec.push({"array": array}, block=False)
    mec.pull("array", block=False)
    mec.execute("import time; print('on'); time.sleep(0.05)", block=False)
    mec.execute(f"open({os.fspath(folder)!r} + f'/{{engine_id}}', 'w').write('x')", block=False)
    for _ in range(50):
        mec.apply(lambda: 1, block=False)


def test_everything_is_killed_at_random_moments(
    files: ClusterFiles, tmp_path: Path, reactor_thread: object
) -> None:
    chance = random.Random(20)
    moments = [chance.choice(list(SPANS)) for _ in range(MOMENTS)]
    for moment in [*moments, ""]:
        rig = Rig(files, ["-n", "4", "--no-dashboard"])
        mec = None
        try:
            if moment != "start":
                rig.ready()
                assert rig.said() == "", "a start that is clean"
                mec = rig.connect()
                mec.wait_for_engines(4, timeout=PATIENCE)
                assert mec.apply(lambda: 7) == [7] * 4
                assert gone_soon(dead_segments) == []
                load(mec, tmp_path)
            if moment == "":
                mec.barrier(list(mec.pending))  # type: ignore[union-attr]
                rig.stop()
                break
            if moment == "stop":
                rig.process.terminate()
            time.sleep(chance.random() * SPANS[moment])
            kill_all(rig)
            until(lambda: not is_running(files), "the lock is free")
        finally:
            rig.destroy()
    assert left_files(files) == []
    assert State.read(files).pid == 0
