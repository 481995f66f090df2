"""A command of a batch system, run in a child process that nobody waits for."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

#: Seconds after which a command is given up.
PATIENCE = 60.0


class Errand:
    """A command that runs beside this process.

    Parameters
    ----------
    command : sequence of str
        What to run. Where there is no such program, it has failed at once.
    stdin : Path, optional
        A file to read.
    now : callable
        The monotonic time.
    """

    def __init__(
        self, command: Sequence[str], stdin: Path | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.command = command[0]
        #: Its exit status, what it printed, and what it said on stderr or why it failed; once it is done.
        self.status, self.output, self.errors = -1, "", ""
        self._now = now
        self._deadline = now() + PATIENCE
        self._process: subprocess.Popen[bytes] | None = None
        self._files = ExitStack()
        enter = self._files.enter_context
        stdout, stderr = self._texts = [enter(tempfile.TemporaryFile()) for _ in range(2)]  # noqa: SIM115
        source = subprocess.DEVNULL if stdin is None else enter(stdin.open("rb"))
        try:
            # In a session of its own: a Ctrl-C must not end it between submitting a job and saying so.
            self._process = subprocess.Popen(
                list(command), stdin=source, stdout=stdout, stderr=stderr, start_new_session=True
            )
        except OSError as error:
            self.errors = f"{command[0]}: {error.strerror}"
            self._files.close()

    @property
    def is_done(self) -> bool:
        """Whether it has ended, or was given up."""
        process = self._process
        if process is None:
            return True
        if process.poll() is None and self._now() < self._deadline:
            return False
        late = process.returncode is None
        if late:
            process.kill()
        process.wait()
        self._process = None
        self.output, self.errors = map(_text, self._texts)
        self.status = process.returncode
        if late:
            self.errors = f"{self.command} did not answer within {PATIENCE:g} s"
        self._files.close()
        return True

    def words(self) -> str:
        """For the user, why it failed."""
        return (self.errors or self.output).strip() or f"exit status {self.status}"


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
