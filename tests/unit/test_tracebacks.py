from __future__ import annotations

import io
import pickle
import sys
import traceback
from types import SimpleNamespace
from typing import Any

import pytest

from ipython1.kernel import tracebacks
from ipython1.kernel.error import CompositeError, RemoteFailure
from ipython1.kernel.testing import MemoryCluster
from ipython1.kernel.tracebacks import coloured, folded, has_colours


def failure(engine: int, number: int = 1, line: str = "1/0", method: str = "execute") -> RemoteFailure:
    text = (
        "Traceback (most recent call last):\n"
        f'  File "<engine {engine}, In[{number}]>", line 1, in <module>\n    {line}\n    ~^~\n'
        "ZeroDivisionError: division by zero\n"
    )
    return RemoteFailure("ZeroDivisionError", "division by zero", text, b"", {}, engine, method)


def test_equal_tracebacks_are_one() -> None:
    failures = [failure(0), failure(1, 5), failure(2, line="2/0"), failure(4), failure(3, method="run")]
    groups = folded(failures)
    assert [group.head for group in groups] == ["[0-1,4:execute]:", "[2:execute]:", "[3:run]:"]
    assert groups[0].lines[1] == '  File "<engine 0-1,4, In[1]>", line 1, in <module>'
    assert groups[1].lines[1] == '  File "<engine 2, In[1]>", line 1, in <module>'
    assert folded([]) == []


def test_what_has_no_traceback_shows_its_text() -> None:
    assert folded([RemoteFailure("EngineDied", "it died", engine=3, method="push")])[0].text == (
        "[3:push]:\nEngineDied: it died"
    )


def test_a_long_traceback_is_cut() -> None:
    text = "\n".join([*map(str, range(1000)), "x" * 5000])
    [group] = folded([RemoteFailure("E", "", text, engine=0, method="m")])
    assert len(group.lines) == tracebacks.LINES + 1
    assert (group.lines[0], group.lines[tracebacks.LINES // 2]) == ("0", "… 941 lines")
    assert len(group.lines[-1]) == tracebacks.LENGTH + 2


def test_colours() -> None:
    [group] = folded([failure(0)])
    assert coloured(group) == [
        "\x1b[1m[0:execute]:\x1b[0m",
        "Traceback (most recent call last):",
        '  File \x1b[36m"<engine 0, In[1]>"\x1b[0m, line \x1b[32m1\x1b[0m, in \x1b[36m<module>\x1b[0m',
        "    1/0",
        "\x1b[31m    ~^~\x1b[0m",
        "\x1b[31m\x1b[1mZeroDivisionError\x1b[0m: division by zero",
    ]


def shell_with(colors: str, kernel: Any = None, mode: str = "Context") -> Any:
    return SimpleNamespace(colors=colors, kernel=kernel, InteractiveTB=SimpleNamespace(mode=mode))


@pytest.mark.parametrize(
    ("env", "tty", "shell", "expected"),
    [
        ({}, True, None, True),
        ({}, False, None, False),
        ({"NO_COLOR": "1"}, True, None, False),
        ({"TERM": "dumb"}, True, None, False),
        ({}, True, shell_with("NoColor"), False),
        ({}, True, shell_with("linux"), True),
        ({}, False, shell_with("linux"), False),
        ({}, False, shell_with("neutral", kernel=1), True),
        ({"NO_COLOR": "1"}, False, shell_with("neutral", kernel=1), False),
    ],
)
def test_where_colours_are(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], tty: bool, shell: Any, expected: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert has_colours(SimpleNamespace(isatty=lambda: tty), shell) is expected
    assert has_colours(None) is False


@pytest.fixture
def whole() -> CompositeError:
    return CompositeError("execute", [failure(i) for i in range(3)])


def test_in_ipython(whole: CompositeError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracebacks, "running_shell", lambda: shell_with("nocolor"))
    assert whole._render_traceback_() == [
        "[0-2:execute]:",
        "Traceback (most recent call last):",
        '  File "<engine 0-2, In[1]>", line 1, in <module>',
        "    1/0",
        "    ~^~",
        "ZeroDivisionError: division by zero",
        "",
        f"CompositeError: {whole}",
    ]
    monkeypatch.setattr(tracebacks, "running_shell", lambda: shell_with("linux", mode="Minimal"))
    assert whole._render_traceback_() == [f"CompositeError: {whole}"]
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(tracebacks, "running_shell", lambda: shell_with("linux", kernel=1))
    assert whole._render_traceback_()[0] == "\x1b[1m[0-2:execute]:\x1b[0m"
    assert whole._render_traceback_()[-1].startswith("\x1b[31m\x1b[1mCompositeError\x1b[0m: one or more")


def test_in_python(whole: CompositeError) -> None:
    assert whole.__notes__ == [f"\n{group.text}" for group in folded(whole.elist)]
    if sys.version_info >= (3, 11):
        whole.add_note("more")
        shown = "".join(traceback.format_exception_only(whole))
        assert shown.startswith("ipython1.kernel.error.CompositeError: one or more exceptions from call")
        assert shown.endswith("\n[0-2:execute]:\n" + "\n".join(folded(whole.elist)[0].lines) + "\nmore\n")
    assert pickle.loads(pickle.dumps(whole)).__notes__ == whole.__notes__


def test_what_says_no_more_than_the_message_is_not_shown_twice() -> None:
    short = RemoteFailure("KeyError", "5", "KeyError: 5", engine=0, method="pull")
    assert CompositeError("pull", [short]).__notes__ == []


def test_different_ones_are_at_most_four() -> None:
    whole = CompositeError("execute", [failure(i, line=f"{i}/0") for i in range(9)])
    assert [note.split()[0] for note in whole.__notes__] == [f"[{i}:execute]:" for i in range(4)]
    out = io.StringIO()
    whole.print_tracebacks(file=out)
    assert out.getvalue().count("Traceback") == 9


def test_the_lines_of_the_user() -> None:
    with MemoryCluster(3) as cluster:
        mec = cluster.client()
        mec.execute("x = 1", targets=1)
        with pytest.raises(CompositeError) as caught:
            mec.execute("y = 5\n1 / (y - 5)")
    [note] = caught.value.__notes__
    assert note.startswith("\n[0-2:execute]:\nTraceback")
    assert '  File "<engine 0-2, In[1]>", line 2, in <module>\n    1 / (y - 5)\n' in note
