"""Every exception of ipython1, under one root.

The docstring of a class is the message its user reads; the names in braces
are the keyword arguments, kept as attributes.
"""

from __future__ import annotations

import functools
import inspect
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from ipython1.kernel import tracebacks

#: Failures listed in a `CompositeError` before the rest is counted.
LINES_SHOWN = 4
#: Characters of each.
LINE_LENGTH = 1000


class IPython1Error(Exception):
    """Something failed in ipython1."""

    def __init__(self, message: str | None = None, **facts: Any) -> None:
        if message is None:
            message = " ".join(inspect.cleandoc(type(self).__doc__ or "").split()).format(**facts)
        super().__init__(message)
        self.__dict__.update(facts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(cls: type[IPython1Error], args: tuple[Any, ...], facts: dict[str, Any]) -> IPython1Error:
    exception = cls.__new__(cls, *args)
    exception.args = args
    exception.__dict__.update(facts)
    return exception


# -- connecting --------------------------------------------------------------


class ConnectionFailed(IPython1Error, ConnectionError):
    """The controller at {address} cannot be reached: {reason}."""


class Unreachable(ConnectionFailed):
    """The controller cannot be reached from {host}. Tried were {reasons}."""


class TunnelFailed(ConnectionFailed):
    """There is no tunnel through {host}: {reason}."""


class NoFURLFile(ConnectionFailed):
    """No running cluster is known here (looked for {paths}). Start one with:
    ipcluster -n 4"""


class BadFURL(ConnectionFailed):
    """{furl} is not a FURL, and not the path of a FURL file. Give a path, a
    FURL, or a (host, port) pair."""


class NobodyListening(ConnectionFailed):
    """Nobody listens at {address} ({reason}). Is the controller still running?
    Look with: ipcluster list"""


class WrongController(ConnectionFailed):
    """What listens at {address} is not the controller of this FURL: {reason}.
    Take the FURL file of the cluster that runs now."""


class NotAllowed(ConnectionFailed):
    """This FURL does not allow {what}. Use the FURL that was made for it, from
    the cluster's security folder."""


class VersionMismatch(ConnectionFailed):
    """The controller runs ipython1 {theirs} and this is ipython1 {ours}. Install
    the same version on both sides."""


class ClientClosed(IPython1Error, RuntimeError):
    """This client is closed. Create a new one."""


class ClientForked(ClientClosed):
    """This client belongs to the process that was forked (pid {pid}). Create a
    new client in this process, started without fork."""


class WouldBlockReactor(IPython1Error, RuntimeError):
    """This call would block the Twisted reactor it runs in. Use block=False and
    await the PendingResult, or call from another thread."""


# -- bad input, found at the call --------------------------------------------


class InvalidEngineID(IPython1Error, LookupError):
    """There is no engine {target}. The engines are: {ids}."""


class NoEnginesRegistered(IPython1Error, RuntimeError):
    """The cluster has no engines. Start some with: ipcluster scale 4"""


class SerializationError(IPython1Error, TypeError):
    """{what} cannot be sent: {reason}."""


class UnknownResult(IPython1Error, KeyError):
    """No result {id} is known to this cluster."""

    __str__ = Exception.__str__


class WireError(IPython1Error, ValueError):
    """Malformed bytes from the peer: {reason}."""


# -- what can happen to a command --------------------------------------------


class RemoteError(IPython1Error):
    """{ename}: {evalue}"""


class EngineDied(IPython1Error):
    """Engine {engine} died: {cause}.{output}"""


class CommandTimeout(IPython1Error, TimeoutError):
    """The command was interrupted: it ran longer than its timeout of {timeout} s."""


class QueueFull(IPython1Error):
    """The controller holds as much work that waits as it may, {limit} MiB (``--queue-limit``).
    Wait for some of the results before you send more."""


class QueueCleared(IPython1Error):
    """The command was taken out of the queue before it ran."""


class TaskAborted(IPython1Error):
    """The work was aborted before it ran."""


class TaskTimeout(IPython1Error, TimeoutError):
    """The task {reason} for longer than its timeout of {timeout} s."""


class TaskRejected(IPython1Error):
    """The task does not run on this engine. A task that raises this goes to another one."""


class DetachFailed(IPython1Error):
    """The work was not detached, and ends with its client: {reason}."""


class ImpossibleDependency(IPython1Error):
    """The task cannot run: {reason}."""


# -- launching ---------------------------------------------------------------


class LaunchError(IPython1Error):
    """{what} did not start: {reason}."""


@dataclass(frozen=True)
class RemoteFailure:
    """What went wrong for one command on one engine, as data.

    Parameters
    ----------
    ename, evalue : str
        Type name and text of the exception.
    traceback : str
        The remote traceback, ready to print.
    pickled : bytes, optional
        The pickled exception, where it could be pickled.
    facts : dict
        Attributes of an error that ipython1 itself made.
    engine : int
        Engine id.
    method : str
        The call that failed, as in ``execute``.
    """

    ename: str
    evalue: str
    traceback: str = ""
    pickled: bytes = b""
    facts: Mapping[str, Any] = field(default_factory=dict)
    engine: int = -1
    method: str = ""

    def __str__(self) -> str:
        return f"[{self.engine}:{self.method}]: {self._short()}"

    def _short(self) -> str:
        """The summary; of an error that is not our own its first line, for the traceback has it all."""
        if self.ename in globals():
            return self.summary
        first, _, rest = self.summary.strip().partition("\n")
        return f"{first[:LINE_LENGTH]} …" if rest or len(first) > LINE_LENGTH else first

    @property
    def summary(self) -> str:
        """The last line of a traceback."""
        return f"{self.ename}: {self.evalue}" if self.evalue else self.ename

    def exception(self) -> BaseException:
        """The original exception where it can be rebuilt, else a `RemoteError`.

        Its ``__cause__`` is a `RemoteError` that carries the remote traceback.
        """
        remote = RemoteError(
            self.traceback or self.summary,
            ename=self.ename,
            evalue=self.evalue,
            traceback=self.traceback,
            engine=self.engine,
        )
        exception: BaseException | None = None
        own = globals().get(self.ename)
        if not self.pickled and isinstance(own, type) and issubclass(own, IPython1Error):
            exception = own(self.evalue, **self.facts)
        elif self.pickled:
            try:
                loaded = pickle.loads(self.pickled)
            except Exception:  # noqa: BLE001 -- any class may refuse to be rebuilt
                loaded = None
            exception = loaded if isinstance(loaded, BaseException) else None
        if exception is None:
            exception = RemoteError(
                self.summary,
                ename=self.ename,
                evalue=self.evalue,
                traceback=self.traceback,
                engine=self.engine,
            )
        # Past the class, which may refuse attributes, as a frozen dataclass does.
        vars(BaseException)["__cause__"].__set__(exception, remote)
        return exception


def own_failure(ename: str) -> RemoteFailure:
    """An error of ours as data, with the text of its docstring."""
    return RemoteFailure(ename, str(globals()[ename]()))


class CompositeError(IPython1Error):
    """One or more engines failed.

    Attributes
    ----------
    elist : list of RemoteFailure
        One entry per engine that failed, in target order.
    results : dict
        What the good engines returned, by engine id.
    """

    elist: list[RemoteFailure]
    results: dict[int, Any]
    method: str

    def __init__(
        self, method: str, elist: Sequence[RemoteFailure], results: Mapping[int, Any] | None = None
    ) -> None:
        lines = [f"one or more exceptions from call to method: {method}"]
        lines += [str(failure) for failure in elist[:LINES_SHOWN]]
        if len(elist) > LINES_SHOWN:
            lines.append(f"… {len(elist) - LINES_SHOWN} more")
        super().__init__("\n".join(lines), method=method, elist=list(elist), results=dict(results or {}))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the tracebacks of the engines, not the frames of this package."""
        shell = tracebacks.running_shell()
        message = f"{type(self).__name__}: {self}"
        if str(getattr(getattr(shell, "InteractiveTB", None), "mode", "")) == "Minimal":
            return [message]
        colours = tracebacks.has_colours(sys.stdout, shell)
        lines: list[str] = []
        for traceback in self._folded():
            lines += [*(tracebacks.coloured(traceback) if colours else traceback.text.split("\n")), ""]
        return [*lines, tracebacks.coloured_message(message) if colours else message]

    @functools.cached_property
    def __notes__(self) -> list[str]:
        """What Python shows behind the message, from 3.11 on."""
        return [f"\n{traceback.text}" for traceback in self._folded()]

    def _folded(self) -> list[tracebacks.Folded]:
        """Those that say more than the message."""
        traced = (failure for failure in self.elist if "\n" in failure.traceback.strip())
        return tracebacks.folded(traced)[:LINES_SHOWN]

    @property
    def engines(self) -> list[int]:
        """The ids of the engines that failed."""
        return [failure.engine for failure in self.elist]

    def print_tracebacks(self, i: int | None = None, file: TextIO | None = None) -> None:
        """Print the remote tracebacks, equal ones once, or only that of entry `i` of `elist`."""
        out = file if file is not None else sys.stdout
        colours = tracebacks.has_colours(out, tracebacks.running_shell())
        for traceback in tracebacks.folded(self.elist if i is None else [self._failure(i)]):
            print("\n".join(tracebacks.coloured(traceback)) if colours else traceback.text, file=out)

    def raise_exception(self, i: int = 0) -> None:
        """Raise the exception of entry `i` of `elist`, with its own type where possible."""
        raise self._failure(i).exception()

    def _failure(self, i: int) -> RemoteFailure:
        n = len(self.elist)
        if not -n <= i < n:
            entries = "only entry 0" if n == 1 else f"entries 0 to {n - 1}"
            raise IndexError(
                f"There is no entry {i} in elist: this error has {entries}, one an engine that failed."
            )
        return self.elist[i]
