"""`TaskClient`: one connection to a cluster, for work that any engine may do."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Union

from ipython1.kernel.client.calls import _checked_block, short_label
from ipython1.kernel.client.connect import DEFAULT_CLUSTER, FURLSpec, _open
from ipython1.kernel.client.functions import _callable_name
from ipython1.kernel.client.status import fetch_task_status
from ipython1.kernel.client.taskbatches import dump_arguments
from ipython1.kernel.client.taskcalls import TaskCalls
from ipython1.kernel.client.taskmap import Feeder, MapPending
from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.client.taskresult import TaskResult
from ipython1.kernel.client.taskspec import (
    MapTask,
    StringTask,
    Task,
    TaskRef,
    _check_recovery,
    dumped_dependency,
    task_keys,
)
from ipython1.kernel.error import UnknownResult, WouldBlockReactor
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.blobs import Buffer
from ipython1.kernel.wire.runners import Depending

if TYPE_CHECKING:
    from ipython1.kernel.client.core import ClientCore
    from ipython1.kernel.client.taskexecutor import TaskExecutor

#: Seconds to wait for what is known of a task of another client.
SEEK_TIME = 1.0

TaskRefs = Union[TaskRef, Iterable[TaskRef], None]


class _Run(TaskPending):
    """What comes of a task that was given to `run`."""

    recovery: _Run | None = None


class TaskClient(TaskCalls):
    """Runs functions and code on whichever engine is free.

    Parameters
    ----------
    furl : str, path or (host, port), optional
        A FURL, the path of a FURL file, or the address of a cluster whose FURL
        file is known here. ``ssh://[user@]host[:port]/[cluster]`` is a cluster
        on another host, which is reached through ssh. Nothing: the variable
        ``IPYTHON1_FURL``, else the FURL file of `cluster`.
    cluster : str
        Name of the cluster.
    timeout : float
        Seconds to wait for the controller.
    ssh : str, optional
        ``[user@]host[:port]`` of a host to go through with ssh, where only that
        one can reach the controller.

    Raises
    ------
    ConnectionFailed
        One of its kinds says what was tried, and why it failed.

    Examples
    --------
    >>> tc = TaskClient()
    >>> tc.submit(pow, 2, 5).r
    32
    >>> tc.map(lambda x: x ** 2, range(5))
    [0, 1, 4, 9, 16]
    """

    def __init__(
        self,
        furl: FURLSpec = None,
        *,
        cluster: str = DEFAULT_CLUSTER,
        timeout: float = 10.0,
        ssh: str | None = None,
    ) -> None:
        self._attach(_open(furl, cluster, timeout, "task", ssh))

    def _attach(self, core: ClientCore) -> None:
        super()._attach(core)
        self._runs: dict[str, _Run] = {}

    # -- tasks with options ----------------------------------------------------------------

    def run(self, task: Task, block: bool = False) -> Any:
        """Run a task.

        Parameters
        ----------
        task : StringTask or MapTask
        block : bool
            Wait for what comes of it.

        Returns
        -------
        str or TaskResult
            The id of the task, for `get_task_result`; with `block` what came of it.
        """
        if not isinstance(task, (StringTask, MapTask)):
            raise TypeError(f"run takes a StringTask or MapTask, not {type(task).__name__}.")
        wait = _checked_block(block)
        self._check()
        _check_recovery(task)
        chain: list[Task] = [task]
        while chain[-1].recovery_task is not None:
            chain.append(chain[-1].recovery_task)
        prepared = [(each, *_dumped(each)) for each in chain]  # all that can fail comes first
        runs: list[_Run] = []
        for each, op, function, item in prepared:
            rules = each._rules()
            if runs:
                rules = {**rules, "after": [task_keys(runs[-1])[0]], "when": "failure", "all": True}
            runs.append(self._run(each, op, function, item, rules))
        for run, recovery in itertools.pairwise(runs):
            run.recovery = recovery
        run = runs[0]
        self._runs[run.id] = run
        return self.get_task_result(run.id, block=True) if wait else run.id

    def _run(
        self, task: Task, op: str, function: list[Buffer], item: list[Buffer], rules: Mapping[str, Any]
    ) -> _Run:
        core = self._core
        args = task._args()
        if isinstance(task, StringTask):
            args["pull"] = task.pull
            if task.depend is not None:
                args["depend"] = dumped_dependency(task.depend)
        batch = core.tasks.open(
            op,
            function,
            label=short_label(task.label or _label(task)),
            timeout=task.timeout or 0.0,
            rules=rules,
            args=args,
        )
        slots = core.tasks.reserve(batch)
        run = _Run(core, batch, "run", slots, _first)
        core.tasks.add(run, slots, (item,))
        core.tasks.close(batch)
        return run

    def get_task_result(self, id: TaskRef, block: bool = False) -> TaskResult | None:
        """What came of a task, also of one of another client.

        Parameters
        ----------
        id : str or PendingResult
            What `run` returned, or the result of `submit`.
        block : bool
            Wait until it has ended.

        Returns
        -------
        TaskResult or None
            None where it has not ended.

        Raises
        ------
        UnknownResult
            Nothing is known of such a task.
        """
        keys = task_keys(id)
        if len(keys) != 1:
            raise ValueError(f"{id!r} names {len(keys)} tasks, not one.")
        name = f"{keys[0][0]}#{keys[0][1]}"
        task = id if isinstance(id, TaskPending) else self._find(name, *keys[0])
        while True:
            if block:
                self._core.wait(task, None)
            if not task.done():
                return None
            result = self._outcome(task, name)
            recovery = task.recovery if isinstance(task, _Run) else None
            if result.failure is None or recovery is None:
                break
            task = recovery
        if result.failure is not None and result.failure.ename == UnknownResult.__name__:
            self._runs.pop(name, None)
            raise UnknownResult(id=name)
        return result

    def get_pending(self, id: str) -> TaskPending:
        """The result of a task, now or later, by the id that `run` returned, also of one of another client.

        It can be waited for together with others (`concurrent.futures.wait`,
        ``await``), and shows what the task prints. A recovery task has a
        result of its own.

        Parameters
        ----------
        id : str

        Raises
        ------
        UnknownResult
            When it is read, where nothing is known of it.
        """
        [(batch, index)] = task_keys(id)
        return self._kept_open(self._find(f"{batch}#{index}", batch, index))

    def _kept_open(self, task: TaskPending) -> TaskPending:
        """A result that a user gets: this client stays open as long as it is there.

        Not before: until they are asked for, results are kept by the client alone, and go with it.
        """
        if isinstance(task, _Run):
            task._kept = self
        return task

    def _find(self, name: str, batch: str, index: int) -> TaskPending:
        """What comes of a task; asks for it where it is not waited for."""
        core = self._core
        known = self._runs.get(name)
        if known is not None:
            return known
        core.check_usable()
        for pending in core.tasks.pending():
            if not isinstance(pending, Feeder) and pending.id == name:
                return pending
        run = self._runs[name] = _Run(core, batch, "get_task_result", range(index, index + 1), _first)
        core.tasks.seek(run)
        with contextlib.suppress(TimeoutError, WouldBlockReactor):
            core.wait(run, SEEK_TIME)
        return run

    def _outcome(self, task: TaskPending, name: str) -> TaskResult:
        """What came of a task that has ended, told as that of task `name`."""
        if task._broken is not None:
            raise task._broken
        [slot] = task.targets
        source = task._arrivals.decode(slot)
        own = self._core.is_own(task)
        submitted = time.time() - (time.monotonic() - task._submitted) if own else 0.0
        return TaskResult(
            name,
            source.engine,
            source.value,
            source.failure,
            submitted,
            source.started,
            source.completed,
            source.text("stdout"),
            source.text("stderr"),
        )

    # -- what is outstanding -------------------------------------------------------------------

    @property
    def pending(self) -> list[TaskPending]:
        """The results that are outstanding: of `submit`, `map`, `imap` and `run`."""
        return [self._kept_open(task) for task in self._outstanding()]

    def _outstanding(self) -> list[TaskPending]:
        found = self._core.tasks.pending()
        return [pending.pending if isinstance(pending, Feeder) else pending for pending in found]

    def abort(self, ids: TaskRefs | MapPending, interrupt: bool = False) -> None:
        """Do not start tasks, or results of `map`. Never waits; what has ended is left alone.

        Parameters
        ----------
        ids : str or PendingResult, or several
        interrupt : bool
            Interrupt those that run.
        """
        several = [ids] if isinstance(ids, (str, TaskPending, TaskResult)) else list(ids or ())
        self._core.check_usable()
        wanted: dict[str, list[int]] = {}
        for each in several:
            if isinstance(each, MapPending):
                each.abort(interrupt)
                continue
            for batch, index in task_keys(each):
                if batch.partition("-")[0] != self._core.client_id:
                    text = f"task {batch}#{index} was sent by another client, which alone can abort it."
                    raise ValueError(text)
                run = self._runs.get(f"{batch}#{index}")
                if run is None:
                    wanted.setdefault(batch, []).append(index)
                else:
                    _abort_all(run, interrupt)
        for batch, indexes in wanted.items():
            self._core.tasks.withdraw(batch, indexes, interrupt)

    def barrier(self, ids: TaskRefs = None, timeout: float | None = None) -> None:
        """Wait until tasks have ended. Their errors are raised where they are read.

        Parameters
        ----------
        ids : str or PendingResult, or several, optional
            Nothing: all that are outstanding.
        timeout : float, optional
            Seconds to wait in all.

        Raises
        ------
        TimeoutError
            Some are outstanding after `timeout`; the work goes on.
        """
        self._core.check_usable()
        end = None if timeout is None else time.monotonic() + timeout
        for pending in self._outstanding() if ids is None else self._named(ids):
            self._core.wait(pending, None if end is None else max(0.0, end - time.monotonic()))

    def _named(self, ids: Any) -> list[TaskPending]:
        several = [ids] if isinstance(ids, (str, TaskPending, TaskResult)) else list(ids)
        found: list[TaskPending] = []
        for each in several:
            if isinstance(each, TaskPending):
                found.append(each)
                continue
            for batch, index in task_keys(each):
                task: TaskPending | None = self._find(f"{batch}#{index}", batch, index)
                while task is not None:
                    found.append(task)
                    task = task.recovery if isinstance(task, _Run) else None
        return found

    def clear(self, ids: TaskRefs = None) -> None:
        """Forget what came of tasks given to `run`: by default of all that have ended.

        The client keeps it until then, for `get_task_result`.
        """
        if ids is None:
            for name in [name for name, run in list(self._runs.items()) if run.done()]:
                self._runs.pop(name, None)
            return
        for batch, index in task_keys(ids):
            self._runs.pop(f"{batch}#{index}", None)

    def queue_status(self, verbose: bool = False) -> dict[str, Any]:
        """How many tasks of all clients are in which state.

        ``blocked`` wait for other tasks, ``ready`` for an engine, ``handed``
        are with one, and ``ended`` wait for their client to take the results.

        Parameters
        ----------
        verbose : bool
            Their ids, of each state up to ten thousand.
        """
        return fetch_task_status(self._core, verbose)

    # -- neighbours ------------------------------------------------------------------------------

    def executor(self) -> TaskExecutor:
        """A `concurrent.futures.Executor` over the cluster."""
        from ipython1.kernel.client.taskexecutor import TaskExecutor

        return TaskExecutor(self)

    def register_joblib_backend(self, name: str = "ipython1") -> None:
        """Let joblib use this client, and with it scikit-learn.

        Without it, ``parallel_config('ipython1')`` makes a client of its own, for the default
        cluster or the one that its options `furl` and `cluster` tell.

        Examples
        --------
        >>> tc.register_joblib_backend()
        >>> with joblib.parallel_config('ipython1'):
        ...     scores = cross_val_score(model, X, y, n_jobs=-1)
        """
        from ipython1.kernel.client.joblib_backend import register  # imports joblib: only where it is used

        register(self, name)


def _first(values: list[Any]) -> Any:
    return values[0]


def _abort_all(run: _Run, interrupt: bool) -> None:
    """Abort a task; its recovery first, or the end of the task would start it."""
    if run.recovery is not None:
        _abort_all(run.recovery, interrupt)
    run.abort(interrupt)


def _dumped(task: Task) -> tuple[str, list[Buffer], list[Buffer]]:
    """The operation of a task, and its function or code and its arguments."""
    if isinstance(task, StringTask):
        code: list[Buffer] = [task.code.encode("utf-8", "surrogatepass")]
        return "code", code, list(objects.dumps(task.push, "what the task pushes", own=1))
    assert isinstance(task, MapTask)
    f = task.f if task.depend is None else Depending(task.f, *task.depend)
    return "call", list(objects.dumps_call(f)), dump_arguments(task.args, task.kwargs)


def _label(task: Task) -> str:
    return task.code if isinstance(task, StringTask) else _callable_name(task.f)  # type: ignore[attr-defined]
