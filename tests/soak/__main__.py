"""The command line of the soak: the cluster, and the count."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import pytest

from ipython1.kernel.files import ClusterFiles
from tests.faults import notes
from tests.faults.conftest import Rig, left_files, until
from tests.faults.tally import TALLY, dead_segments, gone_soon, processes_of, worded

from .harm import Harm
from .work import PATIENCE, Work

ENGINES = 4
#: Seconds that the work of killed clients stays; others wait for what they had half sent.
CLIENT_GRACE = 5


def soak(root: Path, minutes: float, seed: int, users: int) -> list[str]:
    """Run it in `root`; returns what should not have been."""
    rig = Rig(
        ClusterFiles("soak", root), f"-n {ENGINES} --no-dashboard --client-grace {CLIENT_GRACE}".split()
    )
    try:
        rig.ready()
        work = Work(rig.files, seed, threading.Event())
        rig.client()
        harm = Harm(rig, work)
        began = time.monotonic()
        threads = [threading.Thread(target=work.user, args=(number,)) for number in range(users)]
        harming = threading.Thread(target=harm.run)
        for thread in (*threads, harming):
            thread.start()
        while time.monotonic() < began + minutes * 60 and any(thread.is_alive() for thread in threads):
            time.sleep(1.0)
        if not harming.is_alive():
            work.problems.append("there were no faults to the end")
        work.over.set()
        harming.join()
        for thread in threads:
            thread.join(4 * PATIENCE)
            if thread.is_alive():
                work.problems.append("LOST: a user still waits")
        try:
            until(lambda: len(rig.client().get_ids()) == ENGINES, "all engines are back", PATIENCE)
            rig.stop()
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 -- whatever it is, it is told
            work.problems.append(traceback.format_exc())
    finally:
        rig.destroy()
    ran = notes.read(root / "notes", lambda pid: pid not in harm.killed)
    TALLY.commands, TALLY.tasks, TALLY.twice = ran.commands, ran.tasks, len(ran.twice)
    TALLY.lost += work.lost
    left = [gone_soon(lambda: list(processes_of(root))), gone_soon(dead_segments), left_files(rig.files)]
    TALLY.left.update(dict(zip(("processes", "segments", "files"), map(len, left), strict=True)))
    print(f"{time.monotonic() - began:.0f} s, {ENGINES} engines, {users} users; seed {seed}")
    print(f"begun: {worded(work.counts)}; failed for want of an engine: {work.excused}")
    return work.problems + ran.twice + [str(each) for each in left if each]


def main() -> None:
    """The command line."""
    parse = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Everything at once, with faults."
    )
    parse.add_argument("--minutes", type=float, default=5.0, help="how long [5]")
    parse.add_argument("--seed", type=int, default=1, help="of what is done [1]")
    parse.add_argument("--users", type=int, default=3, help="clients at work at the same time [3]")
    options = parse.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ip1-soak-"))
    os.environ.update(IPYTHON1_DIR=os.fspath(root), IP1_NOTES=os.fspath(root / "notes"))
    problems = soak(root, options.minutes, options.seed, options.users)
    print("\n".join(TALLY.lines()))
    if not problems:
        shutil.rmtree(root)
        return
    print(*problems[:10], f"{len(problems)} problems in all; logs: {root}", sep="\n", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
