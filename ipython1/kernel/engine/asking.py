"""Questions of running code to the user of the client that sent it: ``input()``, ``getpass()``, debuggers.

A question is an event of the command, so that it comes in order with what was
printed before, and once. The thread that asks waits for the `Input` with its
number, for the departure of the client, or for an interrupt.
"""

from __future__ import annotations

import io
import itertools
import json
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from IPython.core.error import StdinNotImplementedError

from ipython1.kernel.engine.jobs import AnyJob, Command
from ipython1.kernel.engine.output import OutputBuffer
from ipython1.kernel.texts import sendable
from ipython1.kernel.wire.records import Departed, Input

#: Characters of a prompt.
PROMPT_LIMIT = 32 * 1024
#: Departed clients remembered: a command of theirs that is kept may ask later.
DEPARTED_KEPT = 1000

_END = ("end", "")


class Asking:
    """Carries questions out, and hands the answers to who waits.

    Parameters
    ----------
    output : OutputBuffer
        Takes questions.
    running : callable
        Returns the job that runs.
    wait : bool
        False where the thread that runs code also takes the answers, so that it cannot wait for one.
    """

    def __init__(self, output: OutputBuffer, running: Callable[[], AnyJob | None], wait: bool = True) -> None:
        self._output = output
        self._running = running
        self._wait = wait
        self._serials = itertools.count(1)
        self._open: dict[int, tuple[Command, SimpleQueue[tuple[str, str]]]] = {}
        self._departed: deque[str] = deque(maxlen=DEPARTED_KEPT)

    # -- any thread of user code ---------------------------------------------------------

    def ask(self, prompt: str = "", password: bool = False) -> str:
        """A line that the user types, without its end.

        Raises
        ------
        EOFError
            The user ended the input, or is gone.
        StdinNotImplementedError
            Nobody can be asked; the text says why.
        """
        job = self._running()
        if not self._wait or not isinstance(job, Command):
            raise StdinNotImplementedError(
                "Nobody can be asked here: input() works in commands (execute, apply, %px), not in tasks."
            )
        serial = next(self._serials)
        answer: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._open[serial] = job, answer  # before the look, so that a departure meanwhile is seen
        try:
            if job.client in self._departed:
                raise EOFError("the client that sent this command is gone")
            shown = sendable(prompt[:PROMPT_LIMIT])
            self._output.add(
                "input", json.dumps({"serial": serial, "prompt": shown, "password": password}), []
            )
            how, text = answer.get()
        finally:
            del self._open[serial]
        if how == "line":
            return text
        if how == "end":
            raise EOFError(text or "the user ended the input")
        raise StdinNotImplementedError(text)

    # -- the thread that runs jobs ---------------------------------------------------------

    def ended(self, job: AnyJob) -> None:
        """A job is over: threads that it left behind get no answer any more."""
        for asker, answer in list(self._open.values()):
            if asker is job:
                answer.put(_END)

    # -- the reactor thread ------------------------------------------------------------------

    def answered(self, record: Input) -> None:
        """The user, or the client, has answered."""
        job, answer = self._open.get(record.serial, (None, None))
        if job is not None and answer is not None and job.id == record.id:
            answer.put((record.how, record.text))

    def departed(self, record: Departed) -> None:
        """A client is gone for good."""
        self._departed.append(record.client)
        for job, answer in list(self._open.values()):
            if job.client == record.client:
                answer.put(("end", "the client that sent this command is gone"))


def nobody(prompt: str = "", password: bool = False) -> str:
    """What `Asking.ask` is where there is none."""
    raise StdinNotImplementedError("Nobody can be asked here: no command runs.")


class TypedInput(io.TextIOBase):
    """``sys.stdin`` of an engine: lines that the user of the client types.

    Parameters
    ----------
    ask : callable
        As `Asking.ask`.
    """

    encoding = "utf-8"

    def __init__(self, ask: Callable[..., str]) -> None:
        self._ask = ask
        self._rest = ""

    def readable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        if not self._rest:
            try:
                self._rest = self._ask() + "\n"
            except EOFError:
                return ""
        count = len(self._rest) if size is None or size < 0 else size
        line, self._rest = self._rest[:count], self._rest[count:]
        return line

    def read(self, size: int | None = -1, /) -> str:
        if size is not None and size >= 0:
            return self.readline(size)
        return "".join(iter(self.readline, ""))


def input_functions(ask: Callable[..., str]) -> tuple[Callable[..., str], Callable[..., str]]:
    """What user code finds as ``input`` and as ``getpass.getpass``."""

    def input(prompt: Any = "", /) -> str:
        """Ask the user of the client that sent this command for a line."""
        return ask(str(prompt))

    def getpass(prompt: str = "Password: ", stream: Any = None, **options: Any) -> str:
        """Ask the user of the client that sent this command for a password, which is not shown."""
        return ask(str(prompt), password=True)

    return input, getpass
