from __future__ import annotations

import pytest

from ipython1.kernel.client import streaming
from ipython1.kernel.client.arrivals import Output
from ipython1.kernel.client.streaming import OutputPrinter, grouped


class FakeShell:
    def __init__(self) -> None:
        self.published: list[dict] = []
        self.display_pub = self

    def publish(self, **what) -> None:
        self.published.append(what)


@pytest.fixture
def shell(monkeypatch):
    fake = FakeShell()
    monkeypatch.setattr(streaming, "running_shell", lambda: fake)
    return fake


def test_lines_of_engines_do_not_mix(capsys):
    printer = OutputPrinter()
    printer.text(0, "stdout", "a")
    printer.text(0, "stdout", "b")
    printer.text(1, "stdout", "c\n\nd")
    printer.text(0, "stdout", "")
    printer.text(1, "stdout", "e\n")
    printer.text(0, "stdout", "f")
    printer.end_line()
    printer.end_line()
    assert (
        capsys.readouterr().out == "[stdout:0] ab\n[stdout:1] c\n[stdout:1] \n[stdout:1] de\n[stdout:0] f\n"
    )


def test_text_shows_at_once(capsys):
    printer = OutputPrinter()
    printer.text(3, "stderr", "10 %")
    assert capsys.readouterr().err == "[stderr:3] 10 %"


def test_figures_go_to_ipython_under_their_label(capsys, shell):
    printer = OutputPrinter()
    printer.text(2, "stdout", "plot")
    figure = {"data": {"image/png": b"PNG", "text/plain": "<fig>"}, "metadata": {"width": 3}}
    printer.display("[output:2]", figure)
    printer.display("[output:2]", {**figure, "display_id": "x", "update": True})
    assert capsys.readouterr().out == "[stdout:2] plot\n[output:2]\n"
    first, second = shell.published
    assert first == {**figure, "transient": {}, "update": False}
    assert second == {**figure, "transient": {"display_id": "[output:2] x"}, "update": True}


def test_plain_text_is_printed_even_in_ipython(capsys, shell):
    OutputPrinter().display("[0] Out[1]:", {"data": {"text/plain": "15"}, "metadata": {}})
    assert capsys.readouterr().out == "[0] Out[1]: 15\n"
    assert shell.published == []


@pytest.mark.parametrize(
    ("group", "texts"),
    [
        ("engine", ["1a1b", "1e", "1c", "0a", "0e"]),
        ("type", ["1a1b", "1c", "0a", "1e", "0e"]),
        ("order", ["1a1b", "0a", "1e", "0e", "1c"]),
    ],
)
def test_outputs_are_grouped(group, texts):
    came = [
        Output(0, "stdout", "0a"),
        Output(1, "stdout", "1a"),
        Output(1, "stdout", "1b"),
        Output(1, "stderr", "1e"),
        Output(0, "stderr", "0e"),
        Output(1, "stdout", "1c"),
    ]
    assert [output.text for output in grouped(came, (1, 0), group)] == texts


def test_a_line_that_comes_in_pieces_is_not_torn(capsys):
    now = 0.0
    printer = OutputPrinter(hold=True, now=lambda: now)
    printer.text(0, "stdout", "a")
    printer.text(1, "stdout", "x\ny")
    printer.text(0, "stdout", "b\n")
    printer.text(1, "stdout", "z\n")
    assert capsys.readouterr().out == "[stdout:1] x\n[stdout:0] ab\n[stdout:1] yz\n"
    printer.text(0, "stdout", "10 %")
    now = 0.1
    printer.text(1, "stdout", "one")
    printer.show_held(older=0.2)
    assert capsys.readouterr().out == ""
    now = 0.25
    printer.show_held(older=0.2)
    printer.text(0, "stdout", " 20 %")
    assert capsys.readouterr().out == "[stdout:0] 10 % 20 %", "its line is open, it goes on"
    printer.show_held(0)
    assert capsys.readouterr().out == ""
    printer.show_held(1)
    printer.end_line()
    assert capsys.readouterr().out == "\n[stdout:1] one\n"
