"""Tasks as users describe them: `StringTask`, `MapTask`, and what they depend on."""

from __future__ import annotations

import functools
import math
import numbers
import operator
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, Union

from ipython1.kernel.client.ids import TASKS, parse_id
from ipython1.kernel.client.taskmap import MapPending
from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.client.taskresult import TaskResult
from ipython1.kernel.error import SerializationError
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.runners import Depending, Requiring

#: Recovery tasks of recovery tasks, at most.
RECOVERY_DEPTH = 8
_WHEN = ("success", "failure", "completion")

#: What names a task: its id, or what came of it.
TaskRef = Union[str, TaskPending, TaskResult]


def task_keys(tasks: Any, what: str = "a task") -> list[tuple[str, int]]:
    """The tasks that are meant, as batch and number.

    Raises
    ------
    TypeError, ValueError
        Something else is among them.
    """
    if tasks is None:
        return []
    if isinstance(tasks, (str, TaskPending, TaskResult)):
        tasks = [tasks]
    if not isinstance(tasks, Iterable):
        raise TypeError(f"{what} is named by its id or its result, not by {type(tasks).__name__}.")
    keys: list[tuple[str, int]] = []
    for task in tasks:
        if isinstance(task, MapPending):
            raise TypeError(f"{what} is one task, not a map; submit its items one by one.")
        if isinstance(task, (TaskPending, TaskResult)):
            task = task.id if isinstance(task, TaskPending) else task.taskid
        if not isinstance(task, str):
            raise TypeError(f"{what} is named by its id or its result, not by {type(task).__name__}.")
        try:
            batch, indexes = parse_id(task)
        except ValueError:
            indexes = ()
        if not indexes or TASKS not in task:
            raise ValueError(f"{task!r} is not the id of a task; give what run() or PendingResult.id says.")
        keys += [(batch, index) for index in indexes]
    return keys


class Task:
    """What `StringTask` and `MapTask` have in common.

    Parameters
    ----------
    clear_before, clear_after : bool
        Reset the engine's namespace before the task, or after it.
    retries : int
        How many times it is tried again where it fails.
    recovery_task : Task, optional
        Runs where the task has failed for good; what comes of it stands in
        the place of the task. It has options of its own.
    depend : callable or (callable, args, kwargs), optional
        Called on the engine before the task. Where it returns something false
        other than None, or raises `TaskRejected`, the task goes to another engine.
    after : tasks, optional
        The task waits for these: ids, or results of `submit`.
    when : {'success', 'failure', 'completion'}
        Which end of those in `after` it waits for. Where they end otherwise
        it fails with `ImpossibleDependency`.
    any : bool
        One of those in `after`, and of those in `follow`, is enough; else all are needed.
    follow : tasks, optional
        It runs on an engine on which these have run, after them.
    timeout : float, optional
        Seconds that it may run; then it is interrupted and fails with `TaskTimeout`.
    wait : float, optional
        Seconds that it may wait for what it depends on; then it fails with
        `TaskTimeout`. Without it, it waits for other tasks as long as they
        take, and fails at once where every engine has rejected it.
    label : str, optional
        What `status` shows while it runs.
    priority : int
        Tasks of higher priority go first.
    """

    def __init__(
        self,
        *,
        clear_before: bool = False,
        clear_after: bool = False,
        retries: int = 0,
        recovery_task: Task | None = None,
        depend: Any = None,
        after: Any = None,
        when: str = "success",
        any: bool = False,
        follow: Any = None,
        timeout: float | None = None,
        wait: float | None = None,
        label: str | None = None,
        priority: int = 0,
    ) -> None:
        self.clear_before = _flag("clear_before", clear_before)
        self.clear_after = _flag("clear_after", clear_after)
        self.retries = _whole("retries", retries)
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, not {retries}.")
        self.recovery_task = recovery_task
        _check_recovery(self)
        self.depend = _checked_depend(depend)
        self.after = task_keys(after, "a task in after")
        self.follow = task_keys(follow, "a task in follow")
        if when not in _WHEN:
            raise ValueError(f"when must be 'success', 'failure' or 'completion', not {when!r}.")
        self.when = when
        self.any = _flag("any", any)
        self.timeout = _seconds("timeout", timeout)
        self.wait = _seconds("wait", wait)
        if label is not None and not isinstance(label, str):
            raise TypeError(f"label must be a str, not {type(label).__name__}.")
        self.label = label
        self.priority = _whole("priority", priority)

    def _rules(self) -> dict[str, Any]:
        """What the controller is to mind."""
        rules: dict[str, Any] = {
            "retries": self.retries,
            "priority": self.priority,
            "after": self.after,
            "follow": self.follow,
            "wait": self.wait or 0.0,
        }
        if self.after or self.follow:
            rules.update(all=not self.any, when=self.when)
        return {name: value for name, value in rules.items() if value or name == "all"}

    def _args(self) -> dict[str, Any]:
        """What the engine is to mind."""
        args = {"clear_before": self.clear_before, "clear_after": self.clear_after}
        return {name: value for name, value in args.items() if value}


class StringTask(Task):
    """Code to run on some engine.

    Parameters
    ----------
    code : str
        In IPython syntax.
    pull : str or sequence of str, optional
        Names of variables that are its result.
    push : dict, optional
        Variables that are set before it runs.
    **options
        See `Task`.

    Examples
    --------
    >>> id = tc.run(client.StringTask('b = a + 1', push={'a': 1}, pull='b'))
    >>> tc.get_task_result(id, block=True)['b']
    2
    """

    def __init__(
        self,
        code: str,
        pull: str | Sequence[str] | None = None,
        push: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(code, str):
            raise TypeError(f"StringTask takes the code as a str, not {type(code).__name__}.")
        self.code = code
        self.pull = [_variable(name) for name in ([pull] if isinstance(pull, str) else pull or ())]
        self.push = {_variable(name): value for name, value in dict(push or {}).items()}
        super().__init__(**options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.code.strip().partition(chr(10))[0][:60]!r}>"


class MapTask(Task):
    """A function to call on some engine.

    Parameters
    ----------
    f : callable
    args : sequence
    kwargs : dict, optional
    **options
        See `Task`.

    Examples
    --------
    >>> tc.run(client.MapTask(pow, (2, 5), retries=2), block=True).results
    32
    """

    def __init__(
        self,
        f: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if not callable(f):
            raise TypeError(f"MapTask takes a function, not {type(f).__name__}.")
        if isinstance(args, (str, bytes)) or not isinstance(args, Iterable):
            raise TypeError(f"args must be a sequence of arguments, not {type(args).__name__}; write (x,).")
        self.f = f
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        if not all(isinstance(name, str) for name in self.kwargs):
            raise TypeError("kwargs must have names as keys.")
        super().__init__(**options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {getattr(self.f, '__name__', type(self.f).__name__)}>"


def dumped_dependency(depend: tuple[Any, ...]) -> bytes:
    """What a `StringTask` depends on, as one piece.

    Raises
    ------
    SerializationError
        It cannot be sent, or only with large arrays.
    """
    check, args, kwargs = depend
    parts = objects.dumps((check, args, kwargs), "what the task depends on")
    if len(parts) > 1:
        raise SerializationError(what="what the task depends on", reason="it holds large arrays or bytes")
    return bytes(parts[0])


def require(*modules: str | types.ModuleType) -> Callable[[Callable[..., Any]], Requiring]:
    """Decorate a function: as a task, it runs on engines that can import these modules.

    Examples
    --------
    >>> @require('numpy')
    ... def f(x):
    ...     import numpy
    ...     return numpy.sqrt(x)
    """
    names = [module.__name__ if isinstance(module, types.ModuleType) else module for module in modules]
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError("require takes names of modules: @require('numpy')")

    def decorate(function: Callable[..., Any]) -> Requiring:
        requiring = Requiring(_function(function), names)
        functools.update_wrapper(requiring, function, updated=())  # what it holds is its own
        return requiring

    return decorate


def depend(
    check: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Callable[[Callable[..., Any]], Depending]:
    """Decorate a function: as a task, it runs on engines where ``check(*args, **kwargs)`` allows it.

    It does not where `check` returns something false other than None, or
    raises `TaskRejected`.

    Examples
    --------
    >>> def has_gpu():
    ...     from ipython1 import this_engine
    ...     return this_engine.properties.get('gpu', False)
    >>> @depend(has_gpu)
    ... def train(x): ...
    """
    _function(check)

    def decorate(function: Callable[..., Any]) -> Depending:
        depending = Depending(_function(function), check, args, kwargs)
        functools.update_wrapper(depending, function, updated=())
        return depending

    return decorate


def _variable(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{name!r} is not the name of a variable.")
    return objects.variable_name(name)


def _function(f: Any) -> Any:
    if not callable(f):
        raise TypeError(f"a function is needed, not {type(f).__name__}.")
    return f


def _checked_depend(depend: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    if depend is None:
        return None
    check: Any = depend
    args: Any = ()
    kwargs: Any = {}
    if isinstance(depend, tuple) and 1 <= len(depend) <= 3:
        check = depend[0]
        args = depend[1] if len(depend) > 1 else args
        kwargs = depend[2] if len(depend) > 2 else kwargs
    if not callable(check) or not isinstance(args, (tuple, list)) or not isinstance(kwargs, Mapping):
        raise TypeError("depend must be a function, or (function, args, kwargs).")
    return check, tuple(args), dict(kwargs)


def _check_recovery(task: Task) -> None:
    depth, recovery = 0, task.recovery_task
    while recovery is not None:
        if not isinstance(recovery, Task):
            raise TypeError(f"recovery_task must be a StringTask or MapTask, not {type(recovery).__name__}.")
        if recovery.after:
            raise ValueError("a recovery task runs after the task it is for; it cannot have an after.")
        depth += 1
        if recovery is task or depth > RECOVERY_DEPTH:
            raise ValueError(
                f"recovery tasks must end: a task may have {RECOVERY_DEPTH} of them behind each other."
            )
        recovery = recovery.recovery_task


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}.")
    return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be an int, not {value!r}.")
    number = operator.index(value)
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"{name} is too large: {number}.")
    return number


def _seconds(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, or None for no limit, not {value!r}.")
    return float(value)
