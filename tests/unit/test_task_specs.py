"""`StringTask` and `MapTask`: what they take, and what they ask of the cluster."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ipython1.kernel.client import MapTask, StringTask, TaskResult
from ipython1.kernel.client.taskbatches import Unchanged, dump_arguments
from ipython1.kernel.client.taskspec import dumped_dependency, task_keys
from ipython1.kernel.error import RemoteFailure, SerializationError
from ipython1.kernel.wire import objects


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"retries": -1}, ValueError, "retries must be 0 or more"),
        ({"retries": 1.5}, TypeError, "retries must be an int"),
        ({"retries": True}, TypeError, "retries must be an int"),
        ({"priority": "high"}, TypeError, "priority must be an int"),
        ({"priority": 2**40}, ValueError, "priority is too large"),
        ({"timeout": 0}, ValueError, "timeout must be a number of seconds above 0"),
        ({"timeout": math.inf}, ValueError, "timeout"),
        ({"wait": -1}, ValueError, "wait must be"),
        ({"clear_before": 1}, TypeError, "clear_before must be True or False"),
        ({"any": None}, TypeError, "any must be"),
        ({"when": "always"}, ValueError, "'success', 'failure' or 'completion'"),
        ({"label": 3}, TypeError, "label must be a str"),
        ({"recovery_task": "b = 1"}, TypeError, "recovery_task must be a StringTask or MapTask"),
        ({"after": "nonsense"}, ValueError, "'nonsense' is not the id of a task"),
        ({"after": 3}, TypeError, "a task in after is named by its id"),
        ({"follow": [3]}, TypeError, "a task in follow is named by its id"),
        ({"depend": "x"}, TypeError, "depend must be a function"),
        ({"depend": (len, 3)}, TypeError, "depend must be a function"),
        ({"colour": "red"}, TypeError, "colour"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        MapTask(abs, (1,), **options)
    with pytest.raises(error, match=text):
        StringTask("a = 1", **options)


@pytest.mark.parametrize("seconds", [np.int64(5), np.float32(5.0), Fraction(5)])
def test_seconds_may_be_a_number_of_any_kind(seconds: Any) -> None:
    task = MapTask(abs, (1,), timeout=seconds, wait=seconds)
    assert (task.timeout, task.wait) == (5.0, 5.0)
    assert {type(task.timeout), type(task.wait)} == {float}


def test_wrong_tasks() -> None:
    with pytest.raises(TypeError, match="takes the code as a str"):
        StringTask(b"a = 1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'a b' is not the name of a variable"):
        StringTask("a = 1", pull="a b")
    with pytest.raises(ValueError, match="'1' is not the name"):
        StringTask("a = 1", push={"1": 1})
    with pytest.raises(TypeError, match="takes a function"):
        MapTask("abs")  # type: ignore[arg-type]
    for args in ("ab", 1):
        with pytest.raises(TypeError, match="sequence of arguments"):
            MapTask(abs, args)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="names as keys"):
        MapTask(abs, (), {1: 2})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="cannot have an after"):
        MapTask(abs, (1,), recovery_task=MapTask(abs, (1,), after="5f3a-7#0"))


def test_only_what_was_asked_for_is_sent() -> None:
    assert MapTask(abs, (1,))._rules() == {}
    assert MapTask(abs, (1,))._args() == {}
    task = MapTask(
        abs,
        (1,),
        retries=np.int64(2),
        priority=-1,
        after=["5f3a-7#0-1", "5f3a-8#3"],
        follow="5f3a-8#3",
        any=True,
        when="completion",
        wait=2,
        clear_after=True,
    )
    assert task._rules() == {
        "retries": 2,
        "priority": -1,
        "after": [("5f3a-7", 0), ("5f3a-7", 1), ("5f3a-8", 3)],
        "follow": [("5f3a-8", 3)],
        "all": False,
        "when": "completion",
        "wait": 2.0,
    }
    assert task._args() == {"clear_after": True}


def test_what_names_a_task() -> None:
    result = TaskResult("5f3a-7#2", 0, None, None, 0.0, 0.0, 0.0)
    assert task_keys([result, "5f3a-7#3"]) == [("5f3a-7", 2), ("5f3a-7", 3)]
    assert task_keys(None) == []
    with pytest.raises(ValueError, match="not the id of a task"):
        task_keys("5f3a-7@2")


def test_how_they_show() -> None:
    assert repr(StringTask("a = 1\nb = 2")) == "<StringTask 'a = 1'>"
    assert repr(MapTask(abs)) == "<MapTask abs>"


def test_a_dependency_is_small() -> None:
    assert isinstance(dumped_dependency((len, ([1],), {})), bytes)
    with pytest.raises(SerializationError, match="large arrays"):
        dumped_dependency((len, (np.zeros(10_000),), {}))


def test_how_a_result_shows() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise OSError

    good = TaskResult("5f3a-7#0", 2, "<b>", None, 1.0, 10.0, 12.5)
    assert "engine 2" in repr(good)
    assert "duration 2.5 s" in repr(good)
    assert "&lt;b&gt;" in good._repr_html_()
    assert "its repr failed: OSError" in repr(TaskResult("x", 0, Broken(), None, 0.0, 0.0, 0.0))
    failed = TaskResult("5f3a-7#0", -1, None, RemoteFailure("TaskAborted", "no"), 0.0, 0.0, 0.0)
    assert repr(failed) == "<TaskResult 5f3a-7#0: engine none, failure TaskAborted: no>"
    assert len(repr(TaskResult("x", 0, "a" * 10_000, None, 0.0, 0.0, 0.0))) < 400


# -- whether a function has changed ------------------------------------------------------------


def make(x: Any) -> Any:
    """A function with a closure."""

    def f(y: int = 1, *, z: int = 2) -> Any:
        return x, y, z, helper

    helper = None
    return f


def uses_globals() -> Any:
    """A function that travels by value where this module is not known elsewhere."""
    return json, abs, MODULE_CONSTANT


MODULE_CONSTANT = 1


@pytest.mark.parametrize("f", [abs, len, json.dumps, math.sqrt, make(1), make("x"), make(json), lambda: 1])
def test_what_can_be_told_to_be_unchanged(f: Any) -> None:
    assert Unchanged(f)


@pytest.mark.parametrize("f", [make([1]), make(np.zeros(3)), make(object()), [].append, np.add])
def test_what_has_to_be_pickled_again(f: Any) -> None:
    assert not Unchanged(f)


def test_changes_are_seen() -> None:
    f = make(1)
    unchanged = Unchanged(f)
    assert unchanged
    f.__defaults__ = (5,)
    assert not unchanged
    f = make(1)
    unchanged = Unchanged(f)
    f.__code__ = make(2).__code__.replace(co_name="g")
    assert not unchanged
    f = make(1)
    unchanged = Unchanged(f)
    f.__kwdefaults__ = {"z": 3}
    assert not unchanged
    f.__kwdefaults__ = None
    assert not unchanged
    f = make(1)
    unchanged = Unchanged(f)
    f.__closure__[1].cell_contents = 7
    assert not unchanged
    f = make(1)
    f.extra = []
    assert not Unchanged(f)


def test_changes_of_globals_are_seen() -> None:
    ns: dict[str, Any] = {"__name__": "__main__", "a": 1}
    exec("def f(): return a + b()\ndef b(): return c", ns)
    unchanged = Unchanged(ns["f"])
    assert unchanged
    ns["c"] = 3  # of a function that it uses
    assert not unchanged
    unchanged = Unchanged(ns["f"])
    assert unchanged
    ns["a"] = 2
    assert not unchanged
    ns["a"] = [1]
    assert not Unchanged(ns["f"])


def test_recursive_functions() -> None:
    ns: dict[str, Any] = {"__name__": "__main__"}
    exec("def f(n): return n and g(n - 1)\ndef g(n): return n and f(n - 1)", ns)
    assert Unchanged(ns["f"])


def test_small_arguments_are_pickled_as_others_are() -> None:
    args, kwargs = (1, 2.0, "x", None, True, 1j), {"y": 2}
    for own_args in (args, (*args, [1])):
        assert objects.loads(dump_arguments(own_args, kwargs)) == (own_args, kwargs)
    assert len(dump_arguments((b"x" * 100_000,), {})) == 2  # large ones do not go into the pickle
