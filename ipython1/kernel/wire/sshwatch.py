"""The process that keeps one tunnel: it runs ssh, starts it again, and leaves nothing behind.

It ends when its stdin does, so with whoever started it, however that ends.
Standard library only, one thread; see `tunnels` for the other side.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ipython1.kernel.processes import die_with_parent, exit_words

#: Seconds before ssh is started again, at first and at most.
FIRST_DELAY, MAX_DELAY = 0.25, 5.0
#: Seconds between looks whether the forwards are there, while ssh logs in.
LOOK = 0.05
#: Seconds from SIGTERM to SIGKILL.
GRACE = 1.0
#: In the folder of the tunnel: what is wrong, empty where nothing is.
WORDS = "words"
UP = "up"

#: Lines of ssh that do not say what went wrong.
_CHATTER = ("Warning:", "** ", "debug", "Connection to ", "Killed by", "Pseudo-terminal", "Transferred:")
_BY_HAND = ("Permission denied", "Host key verification failed", "Too many authentication failures")


def in_words(lines: Sequence[str], status: int, host: str) -> str:
    """What ssh said of its end, and what to do.

    Parameters
    ----------
    lines : sequence of str
        Its stderr.
    status : int
        As in `subprocess.Popen.returncode`.
    host : str
        As it is given to ssh.
    """
    told = [line.strip() for line in lines if line.strip() and not line.startswith(_CHATTER)]
    if not told:
        return f"ssh ended with {exit_words(status)}"
    text = re.sub(r"^\S+@\S+: ", "", told[-1]).removeprefix("ssh: ").rstrip(".")
    if any(words in line for line in told for words in _BY_HAND):
        return f"{text}. Log in once with: ssh {host}"
    return text


class Watch:
    """Runs ssh as long as it is wanted.

    Parameters
    ----------
    command : sequence of str
        ssh with all its options.
    host : str
        As it is given to ssh.
    folder : Path
        Holds the sockets, and what is to be said.
    sockets : sequence of str
        What ssh listens on when it is ready.
    """

    def __init__(self, command: Sequence[str], host: str, folder: Path, sockets: Sequence[str]) -> None:
        self._command = list(command)
        self._host = host
        self._folder = folder
        self._sockets = [Path(each) for each in sockets]
        self._lines: list[str] = []
        self._rest = b""
        self._ssh: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Until stdin ends."""
        delay, first = FIRST_DELAY, True
        try:
            while True:
                up, wanted = self._once(first)
                if not wanted or not (up or not first):
                    return
                first = False
                delay = FIRST_DELAY if up else min(2 * delay, MAX_DELAY)
                if self._ended(delay):
                    return
        finally:
            self.stop()

    def _once(self, first: bool) -> tuple[bool, bool]:
        """One life of ssh: whether it was ready, and whether another one is wanted."""
        for path in self._sockets:
            path.unlink(missing_ok=True)
        self._lines, self._rest, up = [], b"", False
        try:
            self._ssh = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        except OSError as error:
            self._say(f"{self._command[0]} cannot be run ({error.strerror})", first)
            return False, True
        assert self._ssh.stderr is not None
        errors = self._ssh.stderr.fileno()
        while True:
            ready, _, _ = select.select([0, errors], [], [], None if up else LOOK)
            if 0 in ready and not os.read(0, 4096):
                return up, False
            if errors in ready and not self._read(errors):
                break
            if not up and all(path.exists() for path in self._sockets):
                up = True
                self._say(UP if first else "", first)
        status = self._ssh.wait()
        self._say(in_words(self._lines, status, self._host), first and not up)
        return up, True

    def _read(self, errors: int) -> bool:
        data = os.read(errors, 65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for raw in [*lines, *([] if data else [self._rest])]:
            line = raw.decode("utf-8", "replace").strip()
            self._lines = [*self._lines[-50:], line]
            _, failed, why = line.partition("open failed: ")
            if failed:
                self._write(f"{self._host} says: {why}")
        return bool(data)

    def _say(self, text: str, first: bool) -> None:
        """What holds from now on; the first time on stdout as well, where it is waited for."""
        self._write("" if text == UP else text)
        if first:
            with contextlib.suppress(BrokenPipeError):  # stdin tells it too
                print(text, flush=True)

    def _write(self, text: str) -> None:
        new = self._folder / "new"
        try:
            new.write_text(text)
            new.replace(self._folder / WORDS)
        except OSError:  # somebody has removed the folder, or the disk is full
            pass

    def _ended(self, delay: float) -> bool:
        """Whether stdin ends within so many seconds."""
        deadline = time.monotonic() + delay
        while (left := deadline - time.monotonic()) > 0:
            if select.select([0], [], [], left)[0] and not os.read(0, 4096):
                return True
        return False

    def stop(self) -> None:
        """End ssh, and remove the folder."""
        if self._ssh is not None and self._ssh.poll() is None:
            self._ssh.terminate()
            try:
                self._ssh.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._ssh.kill()
                self._ssh.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def main() -> None:
    """Keep the tunnel that the first line of stdin describes."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 1)
        if not data:
            return
        line += data
    told: dict[str, Any] = json.loads(line)
    watch = Watch(told["command"], told["host"], Path(told["folder"]), told["sockets"])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))  # unwinds through `run`
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch.run()
