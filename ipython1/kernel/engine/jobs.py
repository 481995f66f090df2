"""The two kinds of jobs: commands, and tasks with the batches they are of."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Union

from ipython1.kernel.engine.failures import encoded, encoded_text
from ipython1.kernel.engine.kept import Buffer, Kept
from ipython1.kernel.error import CommandTimeout, RemoteFailure, TaskRejected, TaskTimeout
from ipython1.kernel.wire.codec import unpack_map
from ipython1.kernel.wire.records import Batch, Parts, Submit


class Command(Kept):
    """A job that a `Submit` asks for.

    Attributes
    ----------
    submit : Submit
    sent : tuple
        The parts as they came: with it, or with the result of its source.
    """

    __slots__ = ("sent", "submit")

    def __init__(self, submit: Submit) -> None:
        super().__init__(submit.id, submit.timeout)
        self.submit = submit
        self.sent: Parts = submit.parts

    @property
    def client(self) -> str:
        """The id of the client."""
        return self.id.partition("-")[0]

    def failed(self, error: BaseException) -> tuple[str, bytes]:
        """See `Job`."""
        if self.overdue and isinstance(error, KeyboardInterrupt):
            error = CommandTimeout(timeout=self.timeout).with_traceback(error.__traceback__)
        return "error", encoded(error)


class Common:
    """What the tasks of one batch have in common on this engine.

    Attributes
    ----------
    parts : sequence of buffers, optional
        None: they have not all arrived yet.
    failure : RemoteFailure, optional
        Why they will not.
    loaded : object, optional
        What the main thread made of them; see `TaskOperations`.
    dropped : bool
        It shall not be kept.
    detached : bool
        What comes of its tasks is for other clients as well.
    tasks : dict
        The tasks that are here, by index; not those whose client has what came of them.
    waiting : list
        The tasks among them that only lack the parts of the batch, and their own parts.
    """

    def __init__(self, batch: Batch) -> None:
        self.id = batch.id
        self.client = batch.id.partition("-")[0]
        self.op = batch.op
        self.timeout = batch.timeout
        self._args = batch.args
        self.sent: Parts = batch.parts
        self.parts: list[Buffer] | None = None
        self.failure: RemoteFailure | None = None
        self.loaded: Any = None
        self.dropped = False
        self.detached = batch.detached
        self.tasks: dict[int, Task] = {}
        self.waiting: list[tuple[Task, list[Buffer]]] = []

    @cached_property
    def args(self) -> Mapping[str, Any]:
        """What the batch asks for besides."""
        return unpack_map(self._args) if self._args else {}

    def drop(self) -> None:
        """Give up what is large; tasks that run keep what they use."""
        self.dropped = True  # first: who loads the function now looks at this afterwards
        self.loaded = self.parts = None
        self.waiting.clear()


class Task(Kept):
    """One attempt at a task."""

    __slots__ = ("attempt", "common", "index", "sent")

    def __init__(self, common: Common, index: int, attempt: int, sent: Parts) -> None:
        super().__init__(f"{common.id}#{index}", common.timeout)
        self.common = common
        self.index = index
        self.attempt = attempt
        self.sent = sent

    @property
    def client(self) -> str:
        """The id of the client."""
        return self.common.client

    def failed(self, error: BaseException) -> tuple[str, bytes]:
        """See `Job`."""
        if isinstance(error, TaskRejected):
            return "rejected", encoded_text(error, TaskRejected.__name__)
        if self.overdue and isinstance(error, KeyboardInterrupt):
            late = TaskTimeout(reason="ran", timeout=self.timeout)
            error = late.with_traceback(error.__traceback__)
        return "error", encoded(error)


AnyJob = Union[Command, Task]
