"""`MultiEngineClient` and its views, on a cluster in memory."""

from __future__ import annotations

import functools
import gc
import operator
import pickle
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ipython1.kernel import client
from ipython1.kernel.client.multiengine import MultiEngineClient
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.client.results import Result, ResultList
from ipython1.kernel.error import (
    ClientClosed,
    CompositeError,
    InvalidEngineID,
    LaunchError,
    NoEnginesRegistered,
    QueueCleared,
    SerializationError,
    UnknownResult,
)
from ipython1.kernel.testing import MemoryCluster


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(3) as cluster:
        yield cluster


@pytest.fixture
def mec(cluster: MemoryCluster) -> MultiEngineClient:
    return cluster.client()


@pytest.fixture
def empty() -> Iterator[MultiEngineClient]:
    with MemoryCluster(0) as cluster:
        yield cluster.client()


#: Every call that goes to engines, with arguments, and what it gives on three engines.
CALLS: dict[str, tuple[Callable[..., Any], Any]] = {
    "push": (lambda c, **kw: c.push({"p": 1}, **kw), [None] * 3),
    "pull": (lambda c, **kw: c.pull("a", **kw), [5] * 3),
    "zip_pull": (lambda c, **kw: c.zip_pull(["a", "a"], **kw), [(5, 5, 5), (5, 5, 5)]),
    "push_function": (lambda c, **kw: c.push_function({"f": len}, **kw), [None] * 3),
    "pull_function": (lambda c, **kw: c.pull_function("g", **kw), [max] * 3),
    "apply": (lambda c, **kw: c.apply(pow, 2, 3, **kw), [8] * 3),
    "map": (lambda c, **kw: c.map(abs, [-1, -2], **kw), [1, 2]),
    "raw_map": (lambda c, **kw: c.raw_map(pow, [[2, 3], [3, 2]], **kw), [8, 9]),
    "mapper": (lambda c, **kw: c.mapper(**kw).map(abs, [-1]), [1]),
    "parallel": (lambda c, **kw: c.parallel(**kw)(abs)([-1]), [1]),
    "remote": (lambda c, **kw: c.remote(**kw)(abs)(-1), [1] * 3),
    "scatter": (lambda c, **kw: c.scatter("s", range(3), **kw), [None] * 3),
    "gather": (lambda c, **kw: c.gather("part", **kw), [0, 1] * 3),
    "keys": (lambda c, **kw: c.keys(**kw), [["a", "g", "part"]] * 3),
    "reset": (lambda c, **kw: c.reset(**kw), [None] * 3),
    "set_properties": (lambda c, **kw: c.set_properties({"k": 1}, **kw), [None] * 3),
    "get_properties": (lambda c, **kw: c.get_properties(**kw), [{"gpu": True}] * 3),
    "has_properties": (lambda c, **kw: c.has_properties(["gpu", "no"], **kw), [[True, False]] * 3),
    "del_properties": (lambda c, **kw: c.del_properties("gpu", **kw), [None] * 3),
    "clear_properties": (lambda c, **kw: c.clear_properties(**kw), [None] * 3),
    "clear_queue": (lambda c, **kw: c.clear_queue(**kw), [None] * 3),
    "queue_status": (
        lambda c, **kw: c.queue_status(**kw),
        [(id, {"queue": [], "pending": None}) for id in range(3)],
    ),
    "restart": (lambda c, **kw: c.restart(**kw), [None] * 3),
    "kill": (lambda c, **kw: c.kill(**kw), [None] * 3),
    "signal": (lambda c, **kw: c.signal("USR1", **kw), [None] * 3),
}
NUMBERED: dict[str, Callable[..., Any]] = {
    "execute": lambda c, **kw: c.execute("a", **kw),
    "run": lambda c, **kw: c.run(__file__, **kw),
    "get_result": lambda c, **kw: c.get_result(1, **kw),
}


@pytest.fixture
def ready(mec: MultiEngineClient) -> MultiEngineClient:
    """A client whose engines have what `CALLS` ask for."""
    mec.push({"a": 5, "g": max, "part": [0, 1]})
    mec.set_properties({"gpu": True})
    return mec


@pytest.mark.parametrize("name", CALLS)
def test_a_blocking_call_returns_its_result(ready: MultiEngineClient, name: str) -> None:
    call, expected = CALLS[name]
    assert call(ready) == expected
    assert ready.pending == []


@pytest.mark.parametrize("name", CALLS)
def test_without_blocking_a_pending_result_comes_at_once(ready: MultiEngineClient, name: str) -> None:
    call, expected = CALLS[name]
    pending = call(ready, block=False)
    assert isinstance(pending, PendingResult)
    assert not pending.done()
    assert pending.r == expected
    assert pending.r == expected  # any number of times


@pytest.mark.parametrize("name", CALLS)
def test_targets_of_one_call(ready: MultiEngineClient, name: str) -> None:
    call, expected = CALLS[name]
    pending = call(ready, targets=[2, 0], block=False)
    assert set(pending.targets) <= {0, 2}
    if len(expected) == 3 and name != "queue_status":
        assert pending.r == expected[:2]


@pytest.mark.parametrize("name", [*CALLS, *NUMBERED])
def test_attributes_are_the_defaults(ready: MultiEngineClient, name: str) -> None:
    call = NUMBERED.get(name) or CALLS[name][0]
    ready.block = False
    ready.targets = 1
    pending = call(ready)
    assert isinstance(pending, PendingResult)
    assert pending.targets == (1,)


@pytest.mark.parametrize("name", [*CALLS, *NUMBERED])
def test_bad_targets_are_found_at_the_call(ready: MultiEngineClient, name: str) -> None:
    call = NUMBERED.get(name) or CALLS[name][0]
    with pytest.raises(InvalidEngineID, match="The engines are: 0 1 2"):
        call(ready, targets=[0, 3], block=False)
    assert ready.pending == []


@pytest.mark.parametrize("name", [*CALLS, *NUMBERED])
def test_no_engines(empty: MultiEngineClient, name: str) -> None:
    call = NUMBERED.get(name) or CALLS[name][0]
    with pytest.raises(NoEnginesRegistered):
        call(empty, block=False)


@pytest.mark.parametrize("name", [*CALLS, *NUMBERED])
def test_a_closed_client_says_so(ready: MultiEngineClient, name: str) -> None:
    call = NUMBERED.get(name) or CALLS[name][0]
    ready.close()
    with pytest.raises(ClientClosed):
        call(ready, block=False)


# -- code -----------------------------------------------------------------------------


def test_execute(mec: MultiEngineClient) -> None:
    results = mec.execute("d = 10; print(d)")
    assert isinstance(results, ResultList)
    assert [dict(result) for result in results] == [
        {
            "input": {"translated": "d = 10; print(d)", "raw": "d = 10; print(d)"},
            "number": 1,
            "id": id,
            "stdout": "10\n",
        }
        for id in range(3)
    ]
    assert list(results[0]) == ["input", "number", "id", "stdout"]
    assert all(result.completed >= result.started > 0 for result in results)


def test_results_come_in_target_order(mec: MultiEngineClient) -> None:
    assert [result["id"] for result in mec.execute("1", targets=[2, 0])] == [2, 0]
    assert mec.pull("engine_id", targets=[2, 0, 1]) == [2, 0, 1]


def test_silent(mec: MultiEngineClient) -> None:
    [result] = mec.execute("6 * 7", targets=0, silent=True)
    assert result["number"] is None
    assert "result" not in result


def test_source_with_a_lone_surrogate(mec: MultiEngineClient) -> None:
    with pytest.raises(CompositeError, match="UnicodeEncodeError"):  # no Python compiles that
        mec.execute("len('\udc80')", targets=0)
    assert len(mec.execute("1")) == 3


@pytest.mark.parametrize("code", [b"1", None, 1])
def test_code_is_text(mec: MultiEngineClient, code: Any) -> None:
    with pytest.raises(TypeError, match="code as a str"):
        mec.execute(code)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), True, "5"])
def test_impossible_timeouts(mec: MultiEngineClient, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        mec.execute("1", timeout=timeout)


@pytest.mark.parametrize("timeout", [np.int64(5), np.float32(0.5), Fraction(1, 2)])
def test_timeouts_of_any_kind_of_number(mec: MultiEngineClient, timeout: Any) -> None:
    assert len(mec.execute("1", timeout=timeout)) == 3


def test_run(mec: MultiEngineClient, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_bytes("# -*- coding: latin-1 -*-\nword = 'grün'\n".encode("latin-1"))
    results = mec.run(script)
    assert isinstance(results, ResultList)
    assert mec["word"] == ["grün"] * 3


def test_run_shows_name_and_lines_of_the_file(mec: MultiEngineClient, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("x = 1\nx.nothing_like_it\n", encoding="utf-8")
    with pytest.raises(CompositeError) as caught:
        mec.run(script, targets=0)
    traceback = caught.value.elist[0].traceback
    assert "script.py" in traceback
    assert "x.nothing_like_it" in traceback


def test_run_without_a_file(mec: MultiEngineClient) -> None:
    with pytest.raises(FileNotFoundError, match="no_such"):
        mec.run("no_such_file.py")


def test_get_result(mec: MultiEngineClient) -> None:
    mec.execute("print('one')")
    mec.execute("2")
    [first] = mec.get_result(1, targets=1)
    assert isinstance(first, Result)
    assert (first["id"], first["number"], first["stdout"]) == (1, 1, "one\n")
    assert [result["number"] for result in mec.get_result()] == [2, 2, 2]
    assert first.completed > 0


@pytest.mark.parametrize("i", [0, -1])
def test_commands_are_numbered_from_one(mec: MultiEngineClient, i: int) -> None:
    with pytest.raises(ValueError, match="numbered from 1"):
        mec.get_result(i)


def test_errors_are_composite_even_of_one(mec: MultiEngineClient) -> None:
    with pytest.raises(CompositeError) as caught:
        mec.execute("1 / (engine_id - 1)")
    assert str(caught.value).splitlines() == [
        "one or more exceptions from call to method: execute",
        "[1:execute]: ZeroDivisionError: division by zero",
    ]
    assert sorted(caught.value.results) == [0, 2]
    with pytest.raises(ZeroDivisionError):
        caught.value.raise_exception()


def test_labels_are_short_and_whole_text(cluster: MemoryCluster, mec: MultiEngineClient) -> None:
    mec.execute("\n\nx = '" + "\udc80" * 500 + "'\ny = 2", block=False)
    [(_, facts)] = mec.queue_status(targets=0)
    assert facts["pending"].startswith("x = ")
    assert len(facts["pending"]) <= 60


# -- names ------------------------------------------------------------------------------


def test_push_and_pull(mec: MultiEngineClient) -> None:
    mec.push({"x": 1, "y": "two"})
    assert mec.pull("x") == [1, 1, 1]
    assert mec.pull(["x", "y"]) == [[1, "two"]] * 3
    assert mec.pull(("x",)) == [[1]] * 3
    assert mec.pull([]) == [[]] * 3


def test_zip_pull(mec: MultiEngineClient) -> None:
    mec.execute("x = engine_id; y = -x")
    assert mec.zip_pull(["x", "y"]) == [(0, 1, 2), (0, -1, -2)]
    assert mec.zip_pull("x") == (0, 1, 2)
    assert mec.zip_pull([]) == []


@pytest.mark.parametrize("keys", ["a", ["x", "a"]])
def test_a_missing_name(mec: MultiEngineClient, keys: Any) -> None:
    mec["x"] = 1
    with pytest.raises(CompositeError) as caught:
        mec.pull(keys)
    assert caught.value.elist[0].summary == "NameError: name 'a' is not defined"


@pytest.mark.parametrize("ns", [[("x", 1)], "x", {1: 2}, None])
def test_push_takes_a_dict_by_name(mec: MultiEngineClient, ns: Any) -> None:
    with pytest.raises(TypeError):
        mec.push(ns)


@pytest.mark.parametrize("keys", [1, [1], [["x"]], None])
def test_names_are_text(mec: MultiEngineClient, keys: Any) -> None:
    with pytest.raises(TypeError):
        mec.pull(keys)


def test_what_cannot_be_sent_is_named_at_the_call(mec: MultiEngineClient) -> None:
    with pytest.raises(SerializationError, match="'lock'"):
        mec.push({"x": 1, "lock": threading.Lock()}, block=False)
    with pytest.raises(SerializationError):
        mec.apply(lambda: threading.Lock(), threading.Lock())
    assert mec.pending == []
    assert mec.keys(targets=0) == [[]]


def test_a_change_after_the_call_is_not_seen(mec: MultiEngineClient) -> None:
    array = np.zeros(100_000)
    pending = mec.push({"array": array}, block=False)
    array[:] = 1
    pending.result()
    assert [each.sum() for each in mec["array"]] == [0.0] * 3


def test_functions(mec: MultiEngineClient) -> None:
    mec["factor"] = 10
    mec.push_function({"f": lambda x: factor * x})  # type: ignore[name-defined]  # noqa: F821
    mec.execute("y = f(engine_id)")
    assert mec["y"] == [0, 10, 20]
    [f] = mec.pull_function("f", targets=0)
    assert callable(f)


def test_push_function_takes_callables(mec: MultiEngineClient) -> None:
    with pytest.raises(TypeError, match="'x' is a int"):
        mec.push_function({"x": 1})


def test_subscripts(mec: MultiEngineClient) -> None:
    mec["a"] = 1
    assert mec["a"] == [1, 1, 1]
    assert "a" in mec
    del mec["a"]
    assert "a" not in mec
    with pytest.raises(CompositeError):
        del mec["a"]


def test_a_name_is_in_it_only_where_all_engines_have_it(mec: MultiEngineClient) -> None:
    mec.push({"a": 1}, targets=[0, 1])
    assert "a" not in mec
    assert "a" in mec[:2]


def test_subscripts_always_wait(mec: MultiEngineClient) -> None:
    mec.block = False
    mec["a"] = 1
    assert mec["a"] == [1, 1, 1]
    assert "a" in mec


def test_keys_and_reset(mec: MultiEngineClient) -> None:
    mec.execute("a = 1; _b = 2; import os")
    assert mec.keys(targets=0) == [["a", "os"]] or "a" in mec.keys(targets=0)[0]
    mec.reset()
    assert mec.keys() == [[], [], []]
    assert [result["number"] for result in mec.execute("1")] == [1, 1, 1]


# -- views --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "targets"),
    [
        (0, 0),
        (-1, 2),
        (np.int32(1), 1),
        (slice(1, 3), [1, 2]),
        ([0, 2], [0, 2]),
        (range(2), [0, 1]),
    ],
)
def test_indexing_gives_a_view(mec: MultiEngineClient, index: Any, targets: Any) -> None:
    view = mec[index]
    assert view.targets == targets
    assert view.ids == ([targets] if isinstance(targets, int) else targets)
    assert len(view) == len(view.ids)
    view["a"] = 1
    assert ["a" in each for each in mec] == [id in view.ids for id in range(3)]


@pytest.mark.parametrize("index", [3, -4, [0, 5], slice(5, 9), None, 1.0, b"a", ("a", "b"), True])
def test_indexing_what_is_not_there(mec: MultiEngineClient, index: Any) -> None:
    with pytest.raises(InvalidEngineID):
        mec[index]


def test_a_view_of_a_view_is_a_part_of_it(mec: MultiEngineClient) -> None:
    assert mec[1:][-1].ids == [2]
    assert mec[1:][1].ids == [1]
    with pytest.raises(InvalidEngineID):
        mec[1:][0]


def test_a_view_takes_over_block(mec: MultiEngineClient) -> None:
    mec.block = False
    assert mec[0].block is False
    assert mec.view("all", block=True).block is True
    assert mec.view().block is False


def test_a_view_resolves_its_targets_when_called(empty: MultiEngineClient) -> None:
    view = empty.view("all")
    with pytest.raises(NoEnginesRegistered):
        view.execute("1")
    empty.scale(2)
    empty.wait_for_engines(2)
    assert view.ids == [0, 1]


def test_a_view_is_the_same_client(mec: MultiEngineClient) -> None:
    view = mec[1]
    view.stop_on_error = True
    assert mec.stop_on_error is True
    mec.stop_on_error = False
    assert view.stop_on_error is False
    pending = mec[0].execute("1", block=False)
    assert view.pending == [pending]
    assert view.get_pending(pending.id) is pending
    view.barrier()
    assert pending.done()
    lost = mec.execute("1", block=False)
    view.flush()
    assert lost.done()
    view.scale(4)
    view.wait_for_engines(4)
    assert mec.ids == [0, 1, 2, 3]


def test_iterating_gives_a_view_of_each(mec: MultiEngineClient) -> None:
    assert [view["engine_id"] for view in mec] == [[0], [1], [2]]


def test_lengths_and_truth(mec: MultiEngineClient, empty: MultiEngineClient) -> None:
    assert len(mec) == 3
    assert len(empty) == 0
    assert empty  # a client without engines is not nothing
    assert 1 in mec
    assert 3 not in mec


@pytest.mark.parametrize("targets", ["some", None, 1.5, ["a"], True])
def test_targets_are_checked_when_set(mec: MultiEngineClient, targets: Any) -> None:
    with pytest.raises(InvalidEngineID):
        mec.targets = targets
    assert mec.targets == "all"


@pytest.mark.parametrize("block", [1, None, "no"])
def test_block_is_checked(mec: MultiEngineClient, block: Any) -> None:
    with pytest.raises(TypeError, match="block must be True or False"):
        mec.block = block
    if block is not None:
        with pytest.raises(TypeError, match="block must be True or False"):
            mec.execute("1", block=block)


def test_reprs(mec: MultiEngineClient) -> None:
    assert repr(mec) == "<MultiEngineClient memory:0: 3 engines, targets='all', block=True>"
    assert repr(mec[:2]) == "<TargetView targets=[0, 1] block=True>"
    mec.close()
    assert repr(mec) == "<MultiEngineClient memory:0: closed>"


def test_the_repr_of_a_lost_client(mec: MultiEngineClient, cluster: MemoryCluster) -> None:
    cluster.stop_controller()
    cluster.run_until(lambda: mec._core._error is not None)
    reason = "Nobody listens at memory:0"
    assert repr(mec).startswith(f"<MultiEngineClient memory:0: lost: {reason}")


# -- functions -------------------------------------------------------------------------------


def test_apply(mec: MultiEngineClient) -> None:
    def f(x: int, *, y: int = 0) -> int:
        return x * offset + y

    offset = 100
    assert mec.apply(f, 2, y=1) == [201] * 3
    assert mec.apply(functools.partial(operator.add, 1), 2, targets=0) == [3]


def test_apply_passes_keywords_that_look_like_ours(mec: MultiEngineClient) -> None:
    assert mec.apply(dict, f=1, self=2, targets=0) == [{"f": 1, "self": 2}]


def test_names_are_those_that_python_makes_of_them(mec: MultiEngineClient) -> None:
    """In code 'µ' (micro sign) is 'μ' (the letter), and 'ﬁ' (one sign) is 'fi'."""
    mec.execute("µ = 3")
    assert mec["µ"] == [3] * 3
    assert "µ" in mec
    mec["µ"] = 4
    assert mec.execute("µ")[0]["result"]["text/plain"] == "4"
    assert mec.apply(operator.neg, client.Reference("µ")) == [-4] * 3
    mec.push_function({"ﬁ": abs})
    assert mec.pull_function("ﬁ", targets=0) == [abs]
    assert mec.apply(lambda: fi(-1)) == [1] * 3  # type: ignore[name-defined] # noqa: F821
    mec.scatter("µ", [1, 2, 3])
    assert mec.gather("µ") == [1, 2, 3]
    mec.transfer("µ", source=0, targets=2, name="ﬁ")
    assert mec.zip_pull("ﬁ", targets=2) == ([1],)
    del mec["µ"]
    assert mec.keys() == [["fi"]] * 3
    with pytest.raises(ValueError, match="cannot be the name of a variable"):
        mec["ｉｆ"] = 1  # 'if', in full width
    with pytest.raises(ValueError, match="engine_id"):
        mec.push({"ｅngine_id": 1})


def test_references(mec: MultiEngineClient) -> None:
    mec.execute("x = engine_id + 1")
    assert mec.apply(operator.neg, client.Reference("x")) == [-1, -2, -3]
    assert mec.map(operator.add, [1, 2, 3], [client.Reference("x")] * 3) == [2, 4, 6]


@pytest.mark.parametrize("f", ["f", None, 1])
def test_a_function_is_needed(mec: MultiEngineClient, f: Any) -> None:
    with pytest.raises(TypeError, match="a function is needed"):
        mec.apply(f)
    with pytest.raises(TypeError, match="a function is needed"):
        mec.map(f, [1])


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 10])
def test_map_is_like_map(mec: MultiEngineClient, dist: str, count: int) -> None:
    assert mec.map(lambda x: x * 2, range(count), dist=dist) == [x * 2 for x in range(count)]


def test_map_takes_any_iterable(mec: MultiEngineClient) -> None:
    assert mec.map(operator.add, (n for n in range(4)), deque([1] * 4)) == [1, 2, 3, 4]
    assert sorted(mec.map(abs, {-1, -2})) == [1, 2]
    assert mec.map(str.upper, "abc") == ["A", "B", "C"]
    assert mec.map(float, np.arange(4)) == [0.0, 1.0, 2.0, 3.0]
    assert mec.map(str, {"k": 1}) == ["k"]


def test_map_leaves_nothing_behind(mec: MultiEngineClient) -> None:
    mec.map(lambda x: x, range(5))
    mec.apply(lambda: 1)
    assert mec.keys() == [[], [], []]


def test_unequal_lengths(mec: MultiEngineClient) -> None:
    with pytest.raises(ValueError, match="length"):
        mec.map(operator.add, [1, 2], [1])


def test_map_without_sequences(mec: MultiEngineClient) -> None:
    with pytest.raises(TypeError, match="at least one sequence"):
        mec.map(abs)


@pytest.mark.parametrize("dist", ["x", None, 1])
def test_unknown_distribution(mec: MultiEngineClient, dist: Any) -> None:
    for call in (mec.map, mec.raw_map):
        with pytest.raises(ValueError, match="dist"):
            call(abs, [[1]], dist=dist)
    with pytest.raises(ValueError, match="dist"):
        mec.scatter("s", [1], dist=dist)


def test_a_map_with_an_error(mec: MultiEngineClient) -> None:
    with pytest.raises(CompositeError) as caught:
        mec.map(lambda x: 1 // (x - 1), range(3))
    assert caught.value.engines == [1]
    assert caught.value.method == "map"


def test_decorators(mec: MultiEngineClient) -> None:
    @mec.parallel(dist="r")
    def add(x: int, y: int) -> int:
        """Add."""
        return x + y

    @mec.remote(targets=[0, 2])
    def me(sign: int = 1) -> int:
        return sign * engine_id  # type: ignore[name-defined,no-any-return]  # noqa: F821

    assert add(range(4), [10] * 4) == [10, 11, 12, 13]
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert me() == [0, 2]
    assert me(sign=-1) == [0, -2]
    assert add.function(1, 2) == 3


def test_a_decorator_without_its_parentheses(mec: MultiEngineClient) -> None:
    with pytest.raises(TypeError, match="parentheses"):
        mec.parallel(abs)  # type: ignore[arg-type]


# -- sequences ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize(
    "seq",
    [list(range(10)), tuple("abcdefg"), "hello world", b"bytes", [], [1], np.arange(12.0).reshape(6, 2)],
)
def test_scatter_and_gather(mec: MultiEngineClient, seq: Any, dist: str) -> None:
    mec.scatter("s", seq, dist)
    back = mec.gather("s", dist)
    assert type(back) is type(seq)
    assert np.array_equal(back, seq) if isinstance(seq, np.ndarray) else back == seq


def test_the_parts(mec: MultiEngineClient) -> None:
    mec.scatter("s", range(10))
    assert mec["s"] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    mec.scatter("s", range(10), dist="r", targets=[0, 1])
    assert mec["s"] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9], [7, 8, 9]]
    mec.scatter("s", [1, 2])
    assert mec["s"] == [[1], [2], []]


def test_flatten(mec: MultiEngineClient) -> None:
    mec.scatter("s", [1, 2, 3], flatten=True)
    assert mec["s"] == [1, 2, 3]
    assert mec.gather("s") == [1, 2, 3]


def test_frames(mec: MultiEngineClient) -> None:
    frame = pd.DataFrame({"x": range(7), "y": list("abcdefg")}, index=range(10, 17))
    mec.scatter("df", frame, dist="r")
    pd.testing.assert_frame_equal(mec.gather("df", dist="r"), frame)


def test_a_mapping_is_no_sequence(mec: MultiEngineClient) -> None:
    with pytest.raises(TypeError):
        mec.scatter("s", {"a": 1})


# -- the engines themselves ---------------------------------------------------------------------


def test_properties(mec: MultiEngineClient) -> None:
    mec.set_properties({"gpu": True, "os": "linux"}, targets=[0, 1])
    assert mec.has_properties("gpu") == [True, True, False]
    assert mec.get_properties("os", targets=0) == [{"os": "linux"}]
    mec.del_properties(["os"], targets=[0, 1])
    assert mec.get_properties() == [{"gpu": True}, {"gpu": True}, {}]
    mec.clear_properties()
    assert mec.get_properties() == [{}, {}, {}]


@pytest.mark.parametrize("properties", [None, [1], "x"])
def test_properties_are_a_dict(mec: MultiEngineClient, properties: Any) -> None:
    with pytest.raises(TypeError):
        mec.set_properties(properties)


def test_queue_status_and_clear_queue(cluster: MemoryCluster, mec: MultiEngineClient) -> None:
    pending = [mec.execute(f"x = {n}", block=False, targets=0) for n in range(100)]
    [(id, facts)] = mec.queue_status(targets=0)
    assert id == 0
    assert facts["pending"] is not None
    assert facts["queue"][-1] == "x = 99"
    more = [mec.execute(f"y = {n}", block=False, targets=0) for n in range(100)]
    mec.clear_queue(targets=0)
    assert more[-1].exception().elist[0].ename == "QueueCleared"  # type: ignore[union-attr]
    with pytest.raises(QueueCleared):
        more[-1].exception().raise_exception()  # type: ignore[union-attr]
    mec.barrier(pending)


def test_restart(mec: MultiEngineClient, cluster: MemoryCluster) -> None:
    mec["a"] = 1
    before = cluster.engine(1).uuid
    assert mec.restart(targets=1) == [None]
    assert cluster.engine(1).uuid != before
    assert mec.ids == [0, 1, 2]
    assert ["a" in each for each in mec] == [True, False, True]


def test_kill(mec: MultiEngineClient) -> None:
    assert mec.kill(targets=[0, 2]) == [None, None]
    assert mec.ids == [1]


def test_kill_everything(mec: MultiEngineClient, cluster: MemoryCluster) -> None:
    mec.kill(controller=True)
    assert mec.closed
    with pytest.raises(ClientClosed):
        mec.execute("1")
    cluster.run_until(lambda: {"event": "shutdown"} in cluster.notices)


@pytest.mark.parametrize("sig", ["SIGUSR1", "usr1", "USR1", int(signal.SIGUSR1), signal.SIGUSR1])
def test_signals(mec: MultiEngineClient, sig: Any) -> None:
    assert mec.signal(sig, targets=0) == [None]


@pytest.mark.parametrize(
    ("sig", "error"), [("SIGNOTHING", ValueError), (9999, ValueError), (None, TypeError)]
)
def test_no_such_signal(mec: MultiEngineClient, sig: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        mec.signal(sig)


def test_interrupt_checks_its_targets(mec: MultiEngineClient) -> None:
    assert mec.interrupt() is None  # type: ignore[func-returns-value]
    with pytest.raises(InvalidEngineID):
        mec.interrupt(targets=9)
    with pytest.raises(ValueError, match="'leave', 'restart' or None"):
        mec.interrupt(stuck="explode")


def test_status(mec: MultiEngineClient) -> None:
    status = mec.status()
    assert [row["id"] for row in status] == [0, 1, 2]
    assert repr(status).splitlines()[0].split() == [
        *("id", "host", "pid", "CPU", "memory", "running", "since", "queue")
    ]
    assert [row["id"] for row in mec[1].status()] == [1]


def test_status_without_engines(empty: MultiEngineClient) -> None:
    assert repr(empty.status()) == "no engines"


def test_ids(mec: MultiEngineClient, empty: MultiEngineClient) -> None:
    assert mec.get_ids() == mec.ids == [0, 1, 2]
    assert empty.get_ids() == []


def test_scale_and_wait(mec: MultiEngineClient) -> None:
    mec.scale(5)
    assert mec.wait_for_engines(5) is None  # type: ignore[func-returns-value]
    assert mec.ids == [0, 1, 2, 3, 4]


def test_waiting_in_vain(mec: MultiEngineClient) -> None:
    with pytest.raises(TimeoutError, match="3 engines after 5 s, not 4"):
        mec.wait_for_engines(4, timeout=5)


def test_an_engine_that_dies_while_starting_ends_the_wait(
    mec: MultiEngineClient, cluster: MemoryCluster
) -> None:
    assert cluster.controller is not None
    given_up = cluster.controller.registry.given_up
    cluster.clock.callLater(2.0, given_up, "exited with status 1", "ImportError: no numpy")
    with pytest.raises(LaunchError, match="ImportError: no numpy"):
        mec.wait_for_engines(4, timeout=60)
    assert cluster.clock.seconds() < 30
    # It was told; later waits are about later engines.
    mec.scale(4)
    mec.wait_for_engines(4)


def test_an_engine_that_is_gone_for_good_ends_the_wait(
    mec: MultiEngineClient, cluster: MemoryCluster
) -> None:
    cluster.end_engine(cluster.engine(2), "exit status 1; not restarted, for it died 3 times in 60 s")
    cluster.run_until(lambda: mec.get_ids() == [0, 1])
    with pytest.raises(LaunchError, match="engine 2 died: exit status 1; not restarted"):
        mec.wait_for_engines(3)
    assert cluster.clock.seconds() < 30
    mec.scale(3)
    mec.wait_for_engines(3)


def test_an_engine_that_was_told_to_stop_ends_no_wait(mec: MultiEngineClient) -> None:
    mec.kill(targets=2)
    with pytest.raises(TimeoutError):
        mec.wait_for_engines(3, timeout=5)


# -- outstanding results ---------------------------------------------------------------------------


def test_barrier_waits_for_the_last_first(mec: MultiEngineClient, monkeypatch: Any) -> None:
    waited: list[Any] = []

    def wait(future: Any, timeout: float | None) -> None:
        if not future.done():
            waited.append(future)
        real(future, timeout)

    real = mec._core.wait
    monkeypatch.setattr(mec._core, "wait", wait)
    sent = [mec.execute("1", targets=0, block=False) for _ in range(5)]
    mec.barrier(sent)
    assert waited == sent[-1:]


def test_pending_and_barrier(mec: MultiEngineClient) -> None:
    pending = [mec.execute(f"x = {n}", block=False) for n in range(3)]
    assert mec.pending == pending
    mec.barrier(pending[0])
    assert pending[0].done()
    mec.barrier()
    assert all(each.done() for each in pending)
    assert mec.pending == []
    mec.barrier([])


def test_barrier_leaves_errors_to_the_reader(mec: MultiEngineClient) -> None:
    pending = mec.execute("1/0", block=False)
    mec.barrier([pending])
    with pytest.raises(CompositeError):
        pending.result()


def test_barrier_takes_results_only(mec: MultiEngineClient) -> None:
    with pytest.raises(TypeError, match="PendingResults"):
        mec.barrier(["id"])  # type: ignore[list-item]


def test_flush(mec: MultiEngineClient) -> None:
    pending = mec.execute("x = 1", block=False)
    mec.flush()
    assert mec.pending == []
    with pytest.raises(UnknownResult, match="flush"):
        pending.result()
    assert mec["x"] == [1, 1, 1]  # the work went on


def test_get_pending(mec: MultiEngineClient, cluster: MemoryCluster) -> None:
    pending = mec.execute("print(engine_id)", block=False)
    assert mec.get_pending(pending.id) is pending
    expected = pending.result()
    again = cluster.client().get_pending(pending.id)
    assert isinstance(again.r, ResultList)
    assert repr(again.r) == repr(expected)
    call = mec.apply(pow, 2, 2, block=False)
    cluster.settle()
    assert cluster.client().get_pending(call.id).r == [4, 4, 4]


def test_two_threads_that_ask_for_one_result(mec: MultiEngineClient, cluster: MemoryCluster) -> None:
    id = mec.execute("1", block=False).id
    other = cluster.client()
    fetch, found, threads = other._core.fetch, [], []

    def slow(*args: Any) -> None:
        if not threads:
            threads.append(threading.Thread(target=lambda: found.append(other.get_pending(id))))
            threads[0].start()
            threads[0].join(0.1)  # the time to come in between
        fetch(*args)

    other._core.fetch = slow  # type: ignore[method-assign]
    found.append(other.get_pending(id))
    threads[0].join()
    assert found[0] is found[1]
    assert len(found[0].r) == 3


def test_questions_of_others_are_not_for_our_input_handler(
    mec: MultiEngineClient, cluster: MemoryCluster
) -> None:
    mec.input_handler = lambda engine, prompt, password: "here"
    own = mec.execute("1", block=False)
    theirs = cluster.client().execute("1", block=False)
    mec.flush()
    assert mec.get_pending(own.id) is not own
    assert mec.get_pending(own.id)._input_handler() is mec.input_handler
    assert mec.get_pending(theirs.id)._input_handler() is None


@pytest.mark.parametrize("id", ["", "5", "x@y", None, 7])
def test_what_is_no_id(mec: MultiEngineClient, id: Any) -> None:
    with pytest.raises(ValueError, match="not the id of a result"):
        mec.get_pending(id)


def test_an_id_nobody_knows(mec: MultiEngineClient) -> None:
    with pytest.raises(UnknownResult):
        mec.get_pending("0123456789ab-1@0-2").result()


def test_stop_on_error(mec: MultiEngineClient) -> None:
    assert mec.stop_on_error is False
    mec.stop_on_error = True
    first = mec.execute("1/0", block=False, targets=0)
    second = mec[0].execute("x = 1", block=False)
    assert first.exception() is not None
    with pytest.raises(CompositeError) as caught:
        second.result()
    with pytest.raises(QueueCleared):
        caught.value.raise_exception()
    assert "x" not in mec[0]
    with pytest.raises(TypeError, match="stop_on_error"):
        mec.stop_on_error = 1  # type: ignore[assignment]


def test_ctrl_c_interrupts_the_engines_part(
    mec: MultiEngineClient, cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = mec._core
    wait, waits, aborted = core.wait, [], []

    def interrupted(future: Any, timeout: float | None) -> None:
        waits.append(timeout)
        if len(waits) == 1:
            raise KeyboardInterrupt
        wait(future, timeout)

    monkeypatch.setattr(core, "wait", interrupted)
    monkeypatch.setattr(core, "abort", lambda pending, interrupt=False: aborted.append((pending, interrupt)))
    with pytest.raises(KeyboardInterrupt):
        mec.execute("x = 1")
    [(pending, interrupt)] = aborted
    assert interrupt
    assert pending.done()
    assert waits[1] is not None
    assert waits[1] < 1.0


def test_a_second_ctrl_c_stops_waiting_at_once(
    mec: MultiEngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(future: Any, timeout: float | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mec._core, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mec.execute("x = 1")
    assert [each.method for each in mec.pending] == ["execute"]


# -- the life of a client -----------------------------------------------------------------------------


def test_a_client_is_a_context_manager(cluster: MemoryCluster) -> None:
    with cluster.client() as mec:
        pending = mec.execute("1", block=False)
    assert mec.closed
    with pytest.raises(ClientClosed):
        pending.result()
    mec.close()  # again


@pytest.mark.parametrize(
    ("ask", "value"),
    [
        (lambda mec, id: mec.get_pending(id), [1, 1, 1]),
        (lambda mec, id: mec.clear_queue(block=False), [None] * 3),
        (lambda mec, id: mec[0].queue_status(block=False), [(0, {"queue": [], "pending": None})]),
    ],
)
def test_what_it_asked_for_keeps_a_client_open(
    mec: MultiEngineClient, cluster: MemoryCluster, ask: Callable[..., Any], value: Any
) -> None:
    known = mec.apply(abs, -1, block=False)
    assert known.r == [1, 1, 1]
    asks = cluster.client()
    cluster._clients.remove(asks)
    core, pending = asks._core, ask(asks, known.id)
    del asks
    gc.collect()
    assert pending.r == value
    core.check_usable()
    del pending
    gc.collect()
    with pytest.raises(ClientClosed):
        core.check_usable()


def test_a_dropped_client_closes(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    cluster._clients.remove(mec)
    core, dropped = mec._core, weakref.ref(mec)
    view = mec[0]
    pending = mec.execute("1", block=False)
    del mec
    gc.collect()
    assert view["engine_id"] == [0]
    del view
    gc.collect()
    assert len(pending.r) == 3
    del pending
    gc.collect()
    assert dropped() is None
    with pytest.raises(ClientClosed):
        core.check_usable()


def test_a_benchmark(mec: MultiEngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipython1.kernel.client.benchmark.BULK", 1000)
    monkeypatch.setattr("ipython1.kernel.client.benchmark.BURST", 5)
    benchmark = mec.benchmark()
    assert benchmark.engines == 3
    assert min(benchmark.latency, benchmark.latency_all, benchmark.calls, benchmark.push, benchmark.pull) > 0
    assert mec.keys() == [[], [], []]
    report = mec.benchmark_report()
    assert [line.split()[-1] for line in report.splitlines()][:3] == ["ms", "ms", "/s"]
    assert "3 engines" in report


def test_two_clients_do_not_disturb_each_other(cluster: MemoryCluster) -> None:
    one, two = cluster.client(), cluster.client()
    failing = one.execute("1/0", block=False)
    assert [len(result) for result in two.execute("1")] == [4, 4, 4]
    assert failing.exception() is not None


def test_get_result_of_no_command(mec: MultiEngineClient) -> None:
    mec.execute("1")
    with pytest.raises(
        CompositeError, match="No result of command 7 is known to this engine; its last one"
    ) as caught:
        mec.get_result(7)
    with pytest.raises(UnknownResult):
        caught.value.raise_exception()


def test_views_know_their_ids(mec: MultiEngineClient) -> None:
    assert mec.get_ids() == [0, 1, 2]
    assert mec[1:].get_ids() == [1, 2]


@pytest.mark.parametrize("n", [-1, "x", 1.5, True])
def test_numbers_of_engines_are_checked(mec: MultiEngineClient, n: Any) -> None:
    for call in (mec.scale, mec.wait_for_engines):
        with pytest.raises(ValueError, match="a number of engines is 0 or more, not"):
            call(n)


@pytest.mark.parametrize("timeout", [0, -1, "x"])
def test_timeouts_are_checked(mec: MultiEngineClient, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout must be a number of seconds above 0"):
        mec.execute("1", timeout=timeout)


def test_names_are_checked(mec: MultiEngineClient) -> None:
    for call in (mec.pull, mec.zip_pull, mec.pull_function):
        with pytest.raises(TypeError, match="a name is a str, several are a sequence of them, not 3"):
            call(3)
    with pytest.raises(TypeError, match="the key of a property is a str, not 3"):
        mec.set_properties({3: 3})


def test_remote_needs_parentheses(mec: MultiEngineClient) -> None:
    with pytest.raises(TypeError, match=r"with parentheses: @mec.remote\(\)"):
        mec.remote(abs)  # type: ignore[arg-type]


def test_what_holds_a_function_says_which(mec: MultiEngineClient) -> None:
    assert repr(mec.mapper("r")) == "<Mapper dist='r' targets='all'>"
    assert repr(mec.parallel()(abs)) == "<ParallelFunction abs>"
    assert repr(mec[0].remote()(abs)) == "<RemoteFunction abs>"
    assert repr(mec[0].executor()) == "<EngineExecutor targets=0: 0 outstanding>"


# -- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b", "", "1x", "class", "None", "a-b", "engine_id"])
def test_names_that_cannot_be_set(mec: MultiEngineClient, name: str) -> None:
    calls = [
        lambda: mec.push({name: 1}),
        lambda: mec.push_function({name: len}),
        lambda: mec.scatter(name, [1, 2, 3]),
        lambda: mec.__setitem__(name, 1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=name or "''"):
            call()
    assert mec.keys() == [[]] * 3
    assert mec["engine_id"] == [0, 1, 2]


def test_clients_and_pending_results_stay_in_their_process(mec: MultiEngineClient) -> None:
    pending = mec.execute("1", block=False)
    advice = {mec: "MultiEngineClient()", mec[0]: "MultiEngineClient()", pending: r"\.get_result\(\)"}
    for thing, advised in advice.items():
        with pytest.raises(SerializationError, match=f"a {type(thing).__name__} cannot be sent"):
            pickle.dumps(thing)
        with pytest.raises(SerializationError, match=f"the value of 'x'.*{advised}") as caught:
            mec["x"] = {"here": [thing]}
        assert str(caught.value).count("cannot be sent") == 1
