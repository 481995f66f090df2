"""The magics, questions, debugger and tracebacks in a terminal IPython and in a Jupyter kernel."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pexpect
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from ipython1.kernel import client
from ipython1.kernel.client import MultiEngineClient
from ipython1.kernel.files import ClusterFiles

from .conftest import ReactorThread

#: Seconds that anything may take on a busy machine.
PATIENCE = 40.0
PROMPT = r"(?<!\] )In \[\d+\]: ?"


@pytest.fixture(scope="module")
def cluster() -> client.Cluster:
    return client.Cluster(n=4, cluster="magic", options=["--client-grace", "1", "--no-dashboard"])


@pytest.fixture(scope="module")
def mec(reactor_thread: ReactorThread, cluster: client.Cluster) -> Iterator[MultiEngineClient]:
    with cluster as mec:
        yield mec


@pytest.fixture(autouse=True)
def _all_well_afterwards(mec: MultiEngineClient) -> Iterator[None]:
    mec.reset()
    yield
    assert mec.execute("1 + 1", timeout=10)[3]["result"]["text/plain"] == "2"


def connect() -> str:
    """A line of code that makes `mec` and activates the magics."""
    path = os.fspath(ClusterFiles("magic").furl("multiengine"))
    return f"from ipython1.kernel import client; mec = client.MultiEngineClient({path!r}); mec.activate()"


# -- a terminal ------------------------------------------------------------------------------


class Terminal:
    """An IPython in a terminal, with `mec`."""

    def __init__(self, folder: Path, *options: str, **env: str) -> None:
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "IPython", "--no-banner", "--no-confirm-exit", *options],
            encoding="utf-8",
            timeout=PATIENCE,
            dimensions=(60, 150),
            env={**os.environ, "IPYTHONDIR": os.fspath(folder), "TERM": "xterm", "PAGER": "cat", **env},
        )
        self.expect = self.process.expect
        self.send = self.process.sendline
        self.expect(PROMPT)
        self.cell(connect())

    def is_well(self) -> bool:
        """Whether it waits for the next cell, as it was in the beginning."""
        if not self.process.isalive():
            return False
        self.send("mec.input_handler = None; 7 * 11111")
        return bool(self.process.expect([r"77777\r\n", pexpect.TIMEOUT, pexpect.EOF], timeout=5) == 0)

    def cell(self, text: str) -> str:
        """Type a line; returns what is printed until the next prompt."""
        self.send(text)
        self.expect(PROMPT)
        printed: str = self.process.before.replace("\r\n", "\n")
        return printed.partition("\n")[2]

    def end(self) -> None:
        """End it; pexpect's own `close` gives a busy machine a tenth of a second."""
        if self.process.isalive():
            self.process.kill(signal.SIGKILL)
            self.process.wait()
        self.process.close()


@pytest.fixture(scope="module")
def terminals() -> Iterator[list[Terminal]]:
    """The terminal that the next test goes on with, if there is one."""
    terminals: list[Terminal] = []
    yield terminals
    for terminal in terminals:
        terminal.end()


@pytest.fixture
def terminal(
    mec: MultiEngineClient, terminals: list[Terminal], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Terminal]:
    if not terminals:
        terminals.append(Terminal(tmp_path_factory.mktemp("ipython"), "--simple-prompt", "--colors=NoColor"))
    terminal = terminals[0]
    yield terminal
    if terminal.is_well():
        terminal.expect(PROMPT)
    else:
        terminals.pop().end()


def test_output_streams_line_by_line(terminal: Terminal) -> None:
    terminal.send("%px import time; print('one'); time.sleep(1.5); print('two')")
    terminal.expect(r"\r\n\[stdout:\d\] one\r\n")
    began = time.monotonic()
    terminal.expect(r"\[stdout:\d\] two\r\n")
    assert time.monotonic() - began > 0.5
    terminal.expect(PROMPT)


def test_autopx_and_result(terminal: Terminal, mec: MultiEngineClient) -> None:
    assert terminal.cell("%autopx").strip() == "%autopx enabled"
    terminal.cell("a = engine_id ** 2")
    assert "division by zero" in terminal.cell("1 / 0")
    assert terminal.cell("%autopx").strip() == "%autopx disabled"
    assert mec["a"] == [0, 1, 4, 9]
    assert "[2] In [1]: a = engine_id ** 2" in terminal.cell("%result 1")


def test_grouped_output(terminal: Terminal) -> None:
    printed = terminal.cell(
        "get_ipython().run_cell_magic('px', '--group-outputs=type', "
        "'import sys\\nprint(1)\\nprint(2, file=sys.stderr)\\nprint(3)')"
    )
    lines = re.findall(r"^\[(std...):(\d)\] (\d)$", printed, re.MULTILINE)
    assert [kind for kind, _, _ in lines] == ["stdout"] * 8 + ["stderr"] * 4
    assert [(engine, text) for kind, engine, text in lines if kind == "stdout"] == [
        (str(engine), text) for engine in range(4) for text in "13"
    ]


def test_help(terminal: Terminal) -> None:
    assert "--group-outputs" in terminal.cell("?%%px")
    assert "%px a = 5" in terminal.cell("%px?")
    assert "engines" in terminal.cell("%autopx?")


def test_tracebacks_are_folded(terminal: Terminal) -> None:
    terminal.cell("%px f = lambda x: 1 / x")
    printed = terminal.cell("%px f(engine_id - engine_id % 3)")
    assert printed.count("Traceback") == 1
    assert "[0-2:execute]:" in printed
    assert "f = lambda x: 1 / x" in printed
    assert printed.strip().endswith("[2:execute]: ZeroDivisionError: division by zero")
    assert "\x1b[31m" not in printed


@pytest.mark.parametrize("no_color", ["", "1"])
def test_tracebacks_have_colours(mec: MultiEngineClient, tmp_path: Path, no_color: str) -> None:
    terminal = Terminal(tmp_path, "--simple-prompt", "--colors=linux", NO_COLOR=no_color)
    printed = terminal.cell("%px 1 / 0")
    terminal.end()
    assert ("\x1b[31m\x1b[1mZeroDivisionError\x1b[0m: division" in printed) is not bool(no_color)


def test_input_and_getpass(terminal: Terminal, mec: MultiEngineClient) -> None:
    terminal.send("%px print('hello'); name = input('name? ')")
    for _ in range(4):
        terminal.expect(r"\[(\d)\] name\? ")
        terminal.send(f"user{terminal.process.match[1]}")
    terminal.expect(PROMPT)
    assert mec["name"] == ["user0", "user1", "user2", "user3"]
    terminal.send("mec.apply(lambda: __import__('getpass').getpass(), targets=1)")
    terminal.expect("Password: ")
    terminal.send("hidden")
    terminal.expect(PROMPT)
    echoed, result = terminal.process.before.split("Out[")
    assert "hidden" not in echoed
    assert "['hidden']" in result
    terminal.send("mec.execute('input()', targets=1)")
    time.sleep(0.5)  # it has no prompt that could be waited for
    terminal.process.sendeof()
    terminal.expect("EOFError")
    terminal.expect(PROMPT)


def test_input_that_nobody_answers(terminal: Terminal) -> None:
    terminal.cell("pr = mec.execute('input()', targets=0, block=False)")
    terminal.cell("import time; time.sleep(1)")
    assert "set mec.input_handler" in terminal.cell("pr.r")
    terminal.cell("mec.input_handler = lambda engine, prompt, password: f'{prompt}{engine}'")
    assert "['?3']" in terminal.cell("mec.apply(lambda: input('?'), targets=3, block=False).r")


def test_a_debugger(terminal: Terminal, mec: MultiEngineClient) -> None:
    assert "there is nothing to debug" in terminal.cell("mec.debug(2)")
    assert "Say which, as in debug(0)" in terminal.cell("mec.debug()")
    terminal.cell("%px f = lambda x: 1 / (x - 2)")
    terminal.cell("%px f(engine_id)")
    terminal.send("mec.debug(2)")
    terminal.expect(r"-> f = lambda x: 1 / \(x - 2\)\r\n\(Pdb\) ")
    for typed, shown in [("p x + 40", "42"), ("up", "<module>"), ("found = 7", "")]:
        terminal.send(typed)
        terminal.expect(rf"{re.escape(shown)}.*\(Pdb\) ")
    terminal.send("q")
    terminal.expect(PROMPT)
    assert mec[2]["found"] == [7]
    for leave in (terminal.process.sendintr, terminal.process.sendeof):
        terminal.send("mec.debug(2)")
        terminal.expect(r"\(Pdb\) ")
        leave()
        terminal.expect(PROMPT)
        assert "Error" not in terminal.process.before.rpartition("(Pdb)")[2]
        assert "'text/plain': '2'" in terminal.cell("mec[2].execute('1+1')[0]")


def test_breakpoint_in_code_that_runs(terminal: Terminal, mec: MultiEngineClient) -> None:
    terminal.send("mec[1].apply(lambda: (breakpoint(), setattr(__import__('sys'), 'seen', 5))[0])")
    terminal.expect(r"<lambda>.*\(Pdb\) ")
    terminal.send("c")
    terminal.expect(PROMPT)
    assert mec[1].apply(lambda: __import__("sys").seen) == [5]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGHUP])
def test_the_client_goes_while_it_debugs(terminal: Terminal, mec: MultiEngineClient, end: int) -> None:
    terminal.cell("%px 1 / 0")
    terminal.send("mec.debug(2)")
    terminal.expect(r"\(Pdb\) ")
    terminal.process.kill(end)
    assert mec[2].apply(int, 5) == [5], "the engine does not hang"


def test_ctrl_c(terminal: Terminal, mec: MultiEngineClient) -> None:
    terminal.send("%px import time; a = 3; print('runs'); time.sleep(60); a = 4")
    for _ in range(4):
        terminal.expect(r"\[stdout:\d\] runs")
    began = time.monotonic()
    terminal.process.sendintr()
    terminal.expect("KeyboardInterrupt")
    terminal.expect(PROMPT)
    assert time.monotonic() - began < 5.0
    assert mec["a"] == [3] * 4


def test_tab_completes_what_lives_on_engines(mec: MultiEngineClient, tmp_path: Path) -> None:
    mec.push({"zalpha_wide": 12.5})
    terminal = Terminal(tmp_path, "--colors=NoColor")
    for typed, rest in [
        ("mec['zalph", "a_wide"),
        ("%px zal", "pha_wide"),
        ("%px zalpha_wide.is_int", "eger"),
    ]:
        terminal.process.send(f"{typed}\t")
        terminal.expect(rest)
        terminal.process.send("\x15")  # erases the line
    terminal.end()


# -- a Jupyter kernel ---------------------------------------------------------------------------


class Kernel:
    """A kernel with `mec`."""

    def __init__(self, kc: BlockingKernelClient) -> None:
        self.kc = kc
        assert self.cell(connect()) == ""

    def cell(self, code: str, answer: Callable[[str, bool], str] | None = None, error: bool = False) -> str:
        """Run a cell; returns what is shown under it."""
        shown: list[str] = []

        def output(message: dict[str, Any]) -> None:
            content, kind = message["content"], message["msg_type"]
            if kind == "stream":
                shown.append(content["text"])
            elif kind in ("display_data", "execute_result"):
                shown.append(content["data"].get("text/plain", ""))
            elif kind == "error":
                shown.append("\n".join(content["traceback"]))

        def stdin(message: dict[str, Any]) -> None:
            assert answer is not None
            self.kc.input(answer(message["content"]["prompt"], message["content"]["password"]))

        reply = self.kc.execute_interactive(
            code,
            allow_stdin=answer is not None,
            stdin_hook=stdin,
            output_hook=output,
            timeout=PATIENCE,
        )
        printed = "".join(shown)
        assert (reply["content"]["status"] == "error") is error, printed
        return printed

    def complete(self, code: str) -> list[str]:
        """What the last line may become."""
        reply = self.kc.complete(code, len(code), reply=True, timeout=PATIENCE)["content"]
        start = code[: reply["cursor_start"]].rpartition("\n")[2]
        return [start + match for match in reply["matches"]]


@pytest.fixture(scope="module")
def kernel(mec: MultiEngineClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    env = {**os.environ, "IPYTHONDIR": os.fspath(tmp_path_factory.mktemp("ipython"))}
    manager, kc = start_new_kernel(env=env)
    try:
        yield Kernel(kc)
    finally:
        kc.stop_channels()
        manager.shutdown_kernel(now=True)


def test_output_stands_in_its_cell(kernel: Kernel) -> None:
    printed = kernel.cell("%%px\nfor i in range(3): print(i)\nengine_id")
    for engine in range(4):
        lines = [line for line in printed.splitlines() if re.match(rf"\[(stdout:)?{engine}\]", line)]
        assert lines[:3] == [f"[stdout:{engine}] {i}" for i in range(3)]
        assert re.fullmatch(rf"\[{engine}\] Out\[\d+\]: {engine}", lines[3])


def test_output_of_a_cell_in_the_background(kernel: Kernel) -> None:
    kernel.cell("%%px --noblock --out pr\nimport time; time.sleep(.5); print('x')")
    assert kernel.cell("import time\ntime.sleep(1.5)") == "", "nothing in the wrong cell"
    assert kernel.cell("pr.stdout") == "['x\\n', 'x\\n', 'x\\n', 'x\\n']"
    assert sorted(kernel.cell("pr.stream()").splitlines()) == [f"[stdout:{i}] x" for i in range(4)]


def test_questions_in_a_notebook(kernel: Kernel) -> None:
    asked: list[tuple[str, bool]] = []

    def answer(prompt: str, password: bool) -> str:
        asked.append((prompt, password))
        return f"{prompt}!"

    assert kernel.cell("mec[1].apply(lambda: input('who? '))", answer) == "['who? !']"
    assert kernel.cell("mec[1].apply(lambda: __import__('getpass').getpass('pin '))", answer) == "['pin !']"
    assert asked == [("who? ", False), ("pin ", True)]
    kernel.cell("%px name = input('name? ')", answer)
    assert kernel.cell("mec['name']") == str([f"[{i}] name? !" for i in range(4)])
    printed = kernel.cell("%px input('name? ')", error=True)
    assert "Nobody can be asked" in printed


def test_a_debugger_in_a_notebook(kernel: Kernel) -> None:
    kernel.cell("%px x = 5 ; 1 / 0", error=True)
    commands = iter(["p x + 37", "q"])
    printed = kernel.cell("mec.debug(0)", lambda prompt, password: next(commands))
    assert "ZeroDivisionError: division by zero" in printed
    assert "\n42\n" in printed
    assert "Nobody can type here" in kernel.cell("mec.debug(0)", error=True)


def test_completion_in_a_notebook(kernel: Kernel, mec: MultiEngineClient) -> None:
    mec.push({"zalpha": 12.5, "zbeta": "text"})
    assert kernel.complete("mec['z") == ["mec['zalpha", "mec['zbeta"]
    assert kernel.complete("%%px --targets 0\nfor a in zbeta.splitl") == ["for a in zbeta.splitlines"]
    assert kernel.complete("%px zal") == ["%px zalpha"]
    assert "zalpha" not in kernel.complete("za")
    assert kernel.complete("%px nothing_like_it.x") == []
    busy = mec.execute("import time; time.sleep(3)", targets=0, block=False)
    began = time.monotonic()
    assert kernel.complete("mec['zal") == ["mec['zalpha"], "what it had last time"
    assert kernel.complete("%px another_one") == []
    assert time.monotonic() - began < 1.5
    busy.get_result()


def test_a_traceback_in_a_notebook(kernel: Kernel) -> None:
    printed = re.sub(r"\x1b\[[\d;]*m", "", kernel.cell("%px '<b>' + 1", error=True))
    assert printed.count("Traceback") == 1
    assert re.search(
        r"\[0-3:execute\]:\nTraceback.*\n  File \"<engine 0-3, In\[\d+\]>\", line 1, in <module>\n"
        r"    '<b>' \+ 1\n",
        printed,
    )


def test_a_notebook_without_anybody(mec: MultiEngineClient, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code) for code in (connect(), "%px print(engine_id)", "%px input()")]
    )
    executor = NotebookClient(
        notebook, timeout=PATIENCE, resources={"metadata": {"path": os.fspath(tmp_path)}}
    )
    began = time.monotonic()
    with pytest.raises(CellExecutionError, match="Nobody can be asked"):
        executor.execute()
    assert time.monotonic() - began < PATIENCE
    assert sorted("".join(output["text"] for output in notebook.cells[1].outputs).splitlines()) == [
        f"[stdout:{i}] {i}" for i in range(4)
    ]


# -- much ---------------------------------------------------------------------------------------


def test_a_hundred_thousand_lines(mec: MultiEngineClient, capsys: pytest.CaptureFixture[str]) -> None:
    """They arrive complete and in order, and the client answers meanwhile."""
    slowest = 0.0
    over = threading.Event()

    def look() -> None:
        nonlocal slowest
        while not over.wait(0.02):
            began = time.monotonic()
            mec.queue_status(targets=0)
            slowest = max(slowest, time.monotonic() - began)

    looking = threading.Thread(target=look)
    looking.start()
    with contextlib.ExitStack() as stack:
        stack.callback(looking.join)
        stack.callback(over.set)
        pending = mec.execute("for i in range(25_000): print(engine_id, i)", block=False)
        pending.stream()
    lines = capsys.readouterr().out.splitlines()
    for engine in range(4):
        expected = [f"[stdout:{engine}] {engine} {i}" for i in range(25_000)]
        assert [line for line in lines if line.startswith(f"[stdout:{engine}]")] == expected
    assert len(lines) == 100_000
    assert pending.stdout == ["".join(f"{engine} {i}\n" for i in range(25_000)) for engine in range(4)]
    assert slowest < 2.0
