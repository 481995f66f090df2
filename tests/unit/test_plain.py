"""The short cuts give what IPython gives, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.autocall import IPyAutocall
from IPython.core.macro import Macro

from ipython1.kernel.engine.plain import ShortCuts
from ipython1.kernel.engine.shell import EngineShell


@pytest.fixture(scope="module")
def shell() -> EngineShell:
    return EngineShell(own_main=False)


@pytest.fixture
def cuts(shell: EngineShell) -> Iterator[ShortCuts]:
    yield ShortCuts(shell.ip)
    shell.reset()


SNIPPETS = [
    "a = 5",
    "a=5\n",
    "1 + 1",
    "'text'",
    "f(x)[1:2].y",
    "for i in range(3):\n    print(i)\n",
    "if True:\n    a = 1\nelse:\n    b = 2",
    "def f(x):\n    return x % 2 != 0\n",
    "x = a % b",
    "a != b",
    "x = '''\n%ls\n'''",
    "# a comment",
    "a = 1  # what?",
    "await f()",
    "@decorator\nclass A: pass",
    "(a,\n b)",
    "lambda: 0",
    "x: int = 3",
    "é = 1",
    # what IPython does understand differently
    "%ls",
    "!ls",
    "  a = 1",
    "\n\na = 1",
    "a?",
    "??a",
    "x = !ls",
    "x = %ls",
    "ls",
    "ls -l",
    "pwd",
    "cd ..",
    "exit",
    "quit",
    "%%time\na = 1",
    ">>> a = 1",
    "... a",
    "In [1]: a = 1",
    "In[1]: a",
    "/f 1",
    ",f a b",
    ";f a b",
    "print(1);",
    "%timeit 1",
    "timeit 1",
    "time",
    "who",
    "a = 1\n%time a",
    "a = 1\n!ls",
    "a\nb?",
    "if x:\n    %time y",
    "if x:\n    !ls",
    "a  # PYTHON-MODE",
    "[nav] In [1]: a",
    "",
    "\n",
    "a = (",
    "1 +",
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_translation_is_ipythons(shell: EngineShell, cuts: ShortCuts, code: str) -> None:
    translated = cuts.translate(code)
    assert translated in (None, shell.ip.transform_cell(code))


@pytest.mark.parametrize("code", SNIPPETS[:6])
def test_plain_python_takes_the_short_cut(cuts: ShortCuts, code: str) -> None:
    assert cuts.translate(code) == code.rstrip("\n") + "\n"


LINES = st.lists(
    st.sampled_from(
        [
            "a",
            "ls",
            "%ls",
            "!x",
            "?",
            " ",
            "  ",
            "=",
            "exit",
            "In [1]: ",
            ">>> ",
            "b = 2",
            "#",
            "'",
            '"""',
            "(",
            ")",
            ";",
        ]
    ),
    max_size=4,
).map("".join)


@settings(max_examples=300)
@given(st.lists(LINES, min_size=1, max_size=3).map("\n".join))
def test_whatever_is_typed(code: str) -> None:
    shell = _shared()
    try:
        expected = shell.ip.transform_cell(code)
    except SyntaxError:
        expected = None
    assert ShortCuts(shell.ip).translate(code) in (None, expected)


def _shared(cache: list[EngineShell] = []) -> EngineShell:  # noqa: B006 -- one shell for all examples
    if not cache:
        cache.append(EngineShell(own_main=False))
    return cache[0]


def test_names_of_the_user_come_before_magics(shell: EngineShell, cuts: ShortCuts) -> None:
    assert cuts.translate("ls") is None
    shell.user_ns["ls"] = 1
    assert cuts.translate("ls") == "ls\n" == shell.ip.transform_cell("ls")
    shell.user_ns["m"] = Macro("a = 1\n")
    assert cuts.translate("m") is None

    class Auto(IPyAutocall):
        def __call__(self) -> None: ...

    shell.user_ns["auto"] = Auto()
    assert cuts.translate("auto") is None


def test_what_the_user_changes_turns_it_off(shell: EngineShell, cuts: ShortCuts) -> None:
    assert cuts.translate("a = 1") is not None
    shell.ip.input_transformers_post.append(lambda lines: lines)
    assert cuts.translate("a = 1") is None
    shell.ip.input_transformers_post.clear()
    shell.ip.autocall = 1
    assert cuts.translate("a = 1") is None
    shell.ip.autocall = 0
    assert cuts.translate("a = 1") is not None


class Number(int):
    """Not one of the plain types."""


@pytest.mark.parametrize(
    "value", [0, -7, 10**50, True, 0.1, 1e300, float("nan"), "", "two\nlines", "é\ud800", b"x\xff"]
)
def test_plain_values_look_as_ipython_shows_them(shell: EngineShell, cuts: ShortCuts, value: Any) -> None:
    assert cuts.format(value) == shell.ip.display_formatter.format(value)[0]


@pytest.mark.parametrize(
    "value", [None, Number(3), [1], {}, 1j, 10**5000, object()], ids=lambda value: type(value).__name__
)
def test_others_are_left_to_ipython(cuts: ShortCuts, value: Any) -> None:
    assert cuts.format(value) is None


def test_changed_formatters_are_asked(shell: EngineShell, cuts: ShortCuts) -> None:
    formatters = shell.ip.display_formatter.formatters
    formatters["text/html"].for_type(int, lambda value: f"<b>{value}</b>")
    assert cuts.format(3) is None
    formatters["text/html"].pop(int)
    assert cuts.format(3) == {"text/plain": "3"}
    shell.ip.run_line_magic("precision", "3")
    assert cuts.format(0.123456) is None
    shell.ip.run_line_magic("precision", "")
    assert cuts.format(0.5) == {"text/plain": "0.5"}
    before = formatters["text/plain"].for_type(str, lambda value, p, cycle: p.text("!"))
    assert cuts.format("x") is None
    formatters["text/plain"].for_type(str, before)
    assert cuts.format("x") == {"text/plain": "'x'"}


def test_formatters_that_are_replaced_are_seen(shell: EngineShell, cuts: ShortCuts) -> None:
    display = shell.ip.display_formatter
    before = display.active_types
    display.active_types = ["text/plain"]
    assert cuts.format(3) is None
    display.active_types = before
    assert cuts.format(3) == {"text/plain": "3"}
    html = display.formatters["text/html"]
    printers = html.type_printers
    html.type_printers = {**printers, int: repr}
    assert cuts.format(3) is None
    html.type_printers = printers
    assert cuts.format(3) == {"text/plain": "3"}
    display.formatters["text/x"] = type(html)(parent=display)
    assert cuts.format(3) is None
    del display.formatters["text/x"]
    assert cuts.format(3) == {"text/plain": "3"}
