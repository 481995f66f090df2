"""Errors: their messages, and what they survive."""

from __future__ import annotations

import inspect
import io
import pickle
from dataclasses import dataclass

import pytest

from ipython1.kernel import error
from ipython1.kernel.error import CompositeError, EngineDied, IPython1Error, RemoteError, RemoteFailure
from ipython1.kernel.wire.codec import decode_failure, encode_failure

CLASSES = [cls for _, cls in inspect.getmembers(error, inspect.isclass) if issubclass(cls, IPython1Error)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_has_a_message_of_its_own_and_pickles(cls: type[IPython1Error]) -> None:
    assert cls.__doc__
    one = CompositeError("execute", []) if cls is CompositeError else cls("what happened", some="fact")
    two = pickle.loads(pickle.dumps(one))
    assert (type(two), str(two), two.__dict__) == (cls, str(one), one.__dict__)


def test_the_docstring_is_the_message() -> None:
    problem = error.InvalidEngineID(target=9, ids="0 1")
    assert str(problem) == "There is no engine 9. The engines are: 0 1."
    assert problem.target == 9  # type: ignore[attr-defined]
    assert isinstance(problem, LookupError)


def failure(engine: int, exception: BaseException | None = None) -> RemoteFailure:
    pickled = pickle.dumps(exception) if exception is not None else b""
    return RemoteFailure(
        "ZeroDivisionError", "division by zero", "Traceback…\n  1/0", pickled, {}, engine, "execute"
    )


def test_composite_error_lists_four_and_counts_the_rest() -> None:
    whole = CompositeError("execute", [failure(i) for i in range(64)], {70: "good"})
    assert str(whole).splitlines() == [
        "one or more exceptions from call to method: execute",
        *(f"[{i}:execute]: ZeroDivisionError: division by zero" for i in range(4)),
        "… 60 more",
    ]
    assert whole.engines == list(range(64))
    assert whole.results == {70: "good"}
    assert whole._render_traceback_()[-1] == f"CompositeError: {whole}"


def test_tracebacks_can_be_printed_all_or_one() -> None:
    whole = CompositeError("execute", [failure(1), failure(3)])
    out = io.StringIO()
    whole.print_tracebacks(file=out)
    assert out.getvalue() == "[1,3:execute]:\nTraceback…\n  1/0\n"
    out = io.StringIO()
    whole.print_tracebacks(1, file=out)
    assert out.getvalue() == "[3:execute]:\nTraceback…\n  1/0\n"


def test_the_original_type_is_raised_where_it_can_be_rebuilt() -> None:
    whole = CompositeError("execute", [failure(0, ZeroDivisionError("division by zero")), failure(1)])
    with pytest.raises(ZeroDivisionError) as caught:
        whole.raise_exception()
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "Traceback…" in str(caught.value.__cause__)
    with pytest.raises(RemoteError, match="ZeroDivisionError: division by zero"):
        whole.raise_exception(1)


def test_our_own_errors_cross_the_wire_with_their_facts() -> None:
    sent = RemoteFailure(
        "EngineDied", "Engine 3 died: on request.", facts={"engine": 3, "cause": "on request"}
    )
    got = decode_failure(encode_failure(sent), 3, "execute").exception()
    assert isinstance(got, EngineDied)
    assert (str(got), got.engine) == ("Engine 3 died: on request.", 3)  # type: ignore[attr-defined]


def test_a_pickle_that_cannot_be_loaded_becomes_a_remote_error() -> None:
    broken = RemoteFailure("Odd", "text", "trace", b"not a pickle", {}, 2, "apply")
    rebuilt = broken.exception()
    assert isinstance(rebuilt, RemoteError)
    assert (str(rebuilt), rebuilt.ename, rebuilt.engine) == ("Odd: text", "Odd", 2)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Frozen(Exception):
    """Refuses attributes."""

    code: int


def test_an_exception_that_refuses_attributes_has_its_cause() -> None:
    rebuilt = RemoteFailure("Frozen", "3", "Traceback…", pickle.dumps(Frozen(3))).exception()
    assert rebuilt == Frozen(3)
    assert isinstance(rebuilt.__cause__, RemoteError)


def test_a_failure_is_one_line_of_a_composite_error() -> None:
    long = [
        RemoteFailure("ValueError", "one\ntwo", engine=0, method="apply"),
        RemoteFailure("ValueError", "x" * 100_000, engine=1, method="apply"),
        RemoteFailure("EngineDied", "Engine 2 died: exit status 3.\nlast words", engine=2, method="apply"),
    ]
    lines = str(CompositeError("apply", long)).splitlines()
    assert lines[1] == "[0:apply]: ValueError: one …"
    assert len(lines[2]) < 1100
    assert lines[3:] == ["[2:apply]: EngineDied: Engine 2 died: exit status 3.", "last words"]


def test_an_entry_that_is_not_there() -> None:
    error = CompositeError("execute", [RemoteFailure("ValueError", "no", engine=3)])
    for call in (error.raise_exception, error.print_tracebacks):
        with pytest.raises(IndexError, match="There is no entry 9 in elist: this error has only entry 0"):
            call(9)
    with pytest.raises(RemoteError, match="no"):
        error.raise_exception(-1)
