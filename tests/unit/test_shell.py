"""The engine's shell: what IPython users expect, what errors do, what leaks nowhere."""

from __future__ import annotations

import base64
import builtins
import contextlib
import linecache
import os
import pickle
import subprocess
import sys
import threading

import msgpack
import psutil
import pytest
from IPython.core.interactiveshell import InteractiveShell

from ipython1.kernel.engine import shell as module
from ipython1.kernel.engine.failures import format_traceback
from ipython1.kernel.engine.interactive import bundle
from ipython1.kernel.engine.mainloop import Job, MainLoop
from ipython1.kernel.engine.output import OutputBuffer, OutputStream
from ipython1.kernel.engine.shell import EngineShell
from ipython1.kernel.wire.codec import decode_failure


class Engine:
    def __init__(self):
        self.shell = EngineShell(own_main=False)
        self.shell.engine_id = 3
        self.output = OutputBuffer(lambda: None, wait=False)
        self.shell.set_output(self.output)
        self.taken = []

    def __call__(self, code, silent=False, filename=""):
        self.output.begin("c-1")
        try:
            return self.shell.run_code(code, silent, filename)
        finally:
            self.output.end()
            self.taken = self.output.take()

    def text(self, kind="stdout"):
        return "".join(text for _, k, text, _ in self.taken if k == kind)

    def displays(self):
        return [msgpack.unpackb(bytes(parts[0])) for _, k, _, parts in self.taken if k == "display"]

    def error(self, code, **options):
        try:
            self(code, **options)
        except BaseException as error:  # noqa: BLE001
            return type(error).__name__, format_traceback(error)
        raise AssertionError("no error")


@pytest.fixture(scope="module")
def shared():
    return Engine()


@pytest.fixture
def engine(shared):
    shared.shell.reset()
    return shared


def value(engine, code):
    return engine(code)["result"]["text/plain"]


# -- results -----------------------------------------------------------------------


def test_a_command_says_what_it_was_and_its_number(engine):
    expected = {"input": {"translated": "d=10; print(d)", "raw": "d=10; print(d)"}, "number": 1}
    result = engine("d=10; print(d)\n")
    assert result == expected
    assert list(result) == ["input", "number"]
    assert engine.text() == "10\n"
    assert engine("d")["number"] == 2


def test_only_the_last_expression_is_the_result(engine):
    assert engine("1\n2")["result"] == {"text/plain": "2"}
    assert "result" not in engine("1;")
    assert "result" not in engine("None")
    assert "result" not in engine("if True:\n    5")
    assert "result" not in engine("x = 5")
    assert "result" not in engine("")
    assert engine("'a;'")["result"] == {"text/plain": "'a;'"}
    assert engine.taken == []


def test_silent_commands_have_no_number_and_no_result(engine):
    assert engine("print(1)\n2", silent=True) == {
        "input": {"translated": "print(1)\n2", "raw": "print(1)\n2"},
        "number": None,
    }
    assert engine.text() == "1\n"
    assert engine("1")["number"] == 1
    assert engine.shell.recall()["number"] == 1


def test_underscore_is_the_last_result_unless_the_user_has_one(engine):
    engine("41")
    assert value(engine, "_ + 1") == "42"
    assert value(engine, "__") == "41"
    engine("_ = 'mine'")
    engine("5")
    assert value(engine, "_") == "'mine'"


def test_rich_results_and_displays(engine):
    engine(
        """
        class Rich:
            def _repr_html_(self): return '<b>hi</b>'
            def _repr_png_(self): return b'\\x89PNG'
            def __repr__(self): return 'rich'
        """.replace("\n        ", "\n")
    )
    rich = {"text/plain": "rich", "text/html": "<b>hi</b>", "image/png": b"\x89PNG"}
    assert engine("Rich()")["result"] == rich
    engine("display(Rich(), metadata={'a': 1}); print('x'); h = display(1, display_id='d'); h.update(2)")
    first, second, third = engine.displays()
    assert first == {"data": rich, "metadata": {"a": 1}}
    assert second == {"data": {"text/plain": "1"}, "metadata": {}, "display_id": "d", "update": False}
    assert third == {"data": {"text/plain": "2"}, "metadata": {}, "display_id": "d", "update": True}
    assert [kind for _, kind, _, _ in engine.taken] == ["display", "stdout", "display", "display"]


def test_bundles_hold_text_and_bytes():
    assert bundle(
        {
            "image/png": base64.b64encode(b"\x89PNG").decode(),
            "application/json": {"a": [1]},
            "text/plain": "\ud800",
            "text/html": None,
        }
    ) == {"image/png": b"\x89PNG", "application/json": '{"a": [1]}', "text/plain": "\\ud800"}


def test_a_failing_repr_is_shown_and_harms_nothing(engine):
    engine("class Bad:\n    def __repr__(self): raise ValueError('no repr')")
    engine("Bad()")
    assert "no repr" in engine.text("stderr")
    assert value(engine, "1") == "1"


# -- IPython syntax ------------------------------------------------------------------


def test_shell_commands_are_captured(engine):
    result = engine("!echo out; echo err >&2; exit 3")
    assert engine.text() == "out\nerr\n"
    assert result["input"]["raw"].startswith("!echo")
    assert "get_ipython().system(" in result["input"]["translated"]
    assert value(engine, "_exit_code") == "3"
    engine("name = 'b c'\nx = !echo {name}")
    assert value(engine, "x") == "['b c']"
    engine("!cat")  # nobody types
    assert engine.text() == ""


def test_magics_help_and_await(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back
    engine("%timeit -n1 -r1 pass")
    assert "per loop" in engine.text()
    engine("len?")
    assert "Return the number of items" in engine.text()
    assert "\x1b" not in engine.text()
    assert value(engine, "import asyncio\nawait asyncio.sleep(0, 7)") == "7"
    engine("async def f():\n    return 8\nx = await f()\nprint(x)")
    assert engine.text() == "8\n"
    engine("%%capture out\nprint('inner')")
    assert engine.text() == ""
    assert value(engine, "out.stdout") == "'inner\\n'"
    engine("%cd -q /")
    assert value(engine, "import os; os.getcwd()") == "'/'"
    assert value(engine, "get_ipython() is not None") == "True"
    engine("from __future__ import annotations")
    assert value(engine, "def g(a: nonsense): pass\ng.__annotations__") == "{'a': 'nonsense'}"


def test_an_error_inside_a_magics_cell_is_shown(engine):
    engine("%%capture --no-stderr out\n1/0")
    assert "ZeroDivisionError" in engine.text("stderr")


def test_event_callbacks_run_as_extensions_expect(engine):
    engine(
        "seen = []\n"
        "events = get_ipython().events\n"
        "for name in ['pre_execute', 'post_execute']: events.register(name, lambda n=name: seen.append(n))\n"
        "events.register('pre_run_cell', lambda info: seen.append(info.raw_cell))\n"
        "events.register('post_run_cell', lambda result: seen.append(result.success))\n"
        "seen.clear()"
    )
    try:
        assert engine.error("1/0")[0] == "ZeroDivisionError"
        expected = ["post_execute", True, "pre_execute", "1/0", "post_execute", False]
        assert engine.shell.user_ns["seen"] == expected
    finally:
        for callbacks in engine.shell.ip.events.callbacks.values():
            callbacks[:] = [f for f in callbacks if f.__module__ != "__main__"]


def test_figures_appear_by_themselves(engine, inline):
    engine("%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    (figure,) = engine.displays()
    assert figure["data"]["image/png"].startswith(b"\x89PNG")


# -- errors --------------------------------------------------------------------------

ERRORS = {
    "1/0": "ZeroDivisionError",
    "a b": "SyntaxError",
    "if 1:\nx": "IndentationError",
    "exit()": "SystemExit",
    "quit": "SystemExit",
    "import sys; sys.exit(3)": "SystemExit",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "def f(): return f()\nf()": "RecursionError",
    "'\ud800'": "UnicodeEncodeError",
    "input('name? ')": "StdinNotImplementedError",
    "%nosuchmagic": "UsageError",
    "nosuchname": "NameError",
    "await nosuch": "NameError",
    "(" * 500 + ")" * 500: None,
    "x\0y": None,
}


@pytest.mark.parametrize("code", ERRORS, ids=lambda code: repr(code[:20]))
def test_every_error_ends_its_command_and_the_shell_goes_on(engine, code):
    name, text = engine.error(code)
    assert name == (ERRORS[code] or name)
    assert "kernel/engine/" not in text
    assert "IPython/core/interactiveshell" not in text
    assert "\x1b" not in text
    assert engine("1 + 1") == {
        "input": {"translated": "1 + 1", "raw": "1 + 1"},
        "number": 2,
        "result": {"text/plain": "2"},
    }
    assert not isinstance(sys.stdout, OutputStream)


def test_tracebacks_show_the_users_lines(engine):
    engine("def f(x):\n    y = x  # one\n    return y / 0  # two")
    _, text = engine.error("f(1)")
    assert 'File "<engine 3, In[2]>", line 1, in <module>' in text
    assert 'File "<engine 3, In[1]>", line 3, in f' in text
    assert "return y / 0  # two" in text
    _, text = engine.error("import asyncio\nawait asyncio.sleep(0)\n1/0")
    assert text.count("File ") == 1 + text.count("test_shell.py")
    assert "asyncio/" not in text


def test_run_shows_the_name_and_lines_of_the_file(engine):
    _, text = engine.error("a = 1\n\nb = a / 0\n", filename="/home/me/script.py")
    assert 'File "/home/me/script.py", line 3, in <module>' in text
    assert "b = a / 0" in text


def test_cells_are_forgotten_in_time(engine, monkeypatch):
    monkeypatch.setattr(module, "CELLS_KEPT", 5)
    engine.shell._cells.clear()
    for _ in range(50):
        engine("pass", silent=True)
    engine("def f(): return 1 / 0")
    assert sum(name in linecache.cache for name in engine.shell._cells) == module.CELLS_KEPT
    assert f"<engine 3, silent {engine.shell._silent_cells - 10}>" not in linecache.cache
    assert "return 1 / 0" in engine.error("f()")[1]


# -- streams -------------------------------------------------------------------------


def test_output_is_told_apart_and_survives_surrogates(engine):
    engine(
        "import sys; print('a'); print('b', file=sys.stderr)\n"
        "print(chr(0xd800)); sys.stdout.buffer.write(b'c')"
    )
    assert engine.text() == "a\n\\ud800\nc"
    assert engine.text("stderr") == "b\n"


def test_threads_print_to_the_running_command_or_to_the_process(engine, capfd):
    engine.shell.user_ns["go"] = go = threading.Event()
    engine(
        "import threading, sys\n"
        "out = sys.stdout\n"
        "def work():\n    print('early', file=out); started.set(); go.wait(); print('late', file=out)\n"
        "started = threading.Event(); thread = threading.Thread(target=work); thread.start(); started.wait()"
    )
    assert engine.text() == "early\n"
    go.set()
    engine.shell.user_ns["thread"].join()
    assert capfd.readouterr().out == "late\n"
    assert engine.output.take() == []


def test_a_stream_the_user_puts_in_stays(engine):
    engine("import sys, io; kept = sys.stdout; sys.stdout = io.StringIO(); print('x')")
    assert engine.text() == ""
    engine("text = sys.stdout.getvalue(); sys.stdout = kept; print(text)")
    assert engine.text() == "x\n\n"


def test_without_an_output_buffer_text_goes_to_the_process(capfd):
    shell = EngineShell(own_main=False)
    shell.run_code("print('plain'); display(1)")
    assert capfd.readouterr().out == "plain\n1\n"


# -- memory --------------------------------------------------------------------------


def test_a_numbered_command_can_be_recalled_whole(engine):
    engine("import sys; print('a'); print('b', file=sys.stderr); display(1); 2")
    whole = engine.shell.recall()
    times = whole.pop("started"), whole.pop("completed")
    assert times[0] <= times[1]
    assert list(whole) == ["input", "number", "stdout", "stderr", "result", "outputs"]
    assert whole["stdout"] == "a\n"
    assert whole["stderr"] == "b\n"
    assert whole["result"] == {"text/plain": "2"}
    assert whole["outputs"] == [{"data": {"text/plain": "1"}, "metadata": {}}]
    engine.error("1/0")
    assert engine.shell.recall(2)["traceback"].endswith("ZeroDivisionError: division by zero")
    assert engine.shell.recall(1)["stdout"] == "a\n"
    assert engine.shell.recall(9) is None


def test_what_is_recalled_is_bounded(engine, monkeypatch):
    monkeypatch.setattr(module, "RECORDS_KEPT", 5)
    for _ in range(10):
        engine("pass")
    assert [engine.shell.recall(n) is not None for n in range(1, 11)] == [False] * 5 + [True] * 5
    monkeypatch.setattr(module, "RECORDS_SIZE", 1000)
    engine("print('x' * 2000)")
    assert engine.shell.recall() is not None
    engine("pass")
    assert engine.shell.recall(11) is None


def test_reset_gives_a_fresh_namespace_and_numbering(engine):
    engine("a = 1\nimport os\n_ = 4")
    f_globals = engine.shell.user_ns
    engine.shell.reset()
    assert engine.shell.user_names() == []
    assert engine.shell.user_ns is f_globals
    assert engine.shell.recall() is None
    assert engine("engine_id") == {
        "input": {"translated": "engine_id", "raw": "engine_id"},
        "number": 1,
        "result": {"text/plain": "3"},
    }
    assert value(engine, "__name__") == "'__main__'"
    assert engine.error("a")[0] == "NameError"


def test_user_names_are_what_the_user_made(engine):
    engine("b = 1\na = 2\n_c = 3\nimport math\nOut = 4")
    assert engine.shell.user_names() == ["Out", "a", "b", "math"]
    assert value(engine, "id(1) == __builtins__.id(1)") == "True"


# -- several, and forked ----------------------------------------------------------------


def test_shells_in_one_process_share_nothing():
    before = sys.modules["__main__"], sys.stdout, InteractiveShell._instance, sys.displayhook
    names = set(vars(builtins))
    one, two = Engine(), Engine()
    one("a = 1; me = get_ipython()")
    two("me = get_ipython()")
    assert two.error("a")[0] == "NameError"
    assert one.shell.user_ns["me"] is one.shell.ip
    assert two.shell.user_ns["me"] is two.shell.ip
    assert before == (sys.modules["__main__"], sys.stdout, InteractiveShell._instance, sys.displayhook)
    assert set(vars(builtins)) - names <= {"display", "__IPYTHON__"}


FORKED = """
import os, pickle, sys
from ipython1.kernel.engine.shell import EngineShell
shell = EngineShell()
out, into = os.pipe()
if os.fork() == 0:
    shell.run_code("import dataclasses\\n@dataclasses.dataclass\\nclass P:\\n    x: 'int'\\np = P(1)")
    code = "import __main__, pickle\\n__main__.p, pickle.loads(pickle.dumps(p))"
    os.write(into, pickle.dumps(shell.run_code(code)))
    shell.run_code("import asyncio; await asyncio.sleep(0); print('child', flush=True)")
    os._exit(0)
os.wait()
print(pickle.loads(os.read(out, 100000))['result']['text/plain'])
print(sorted(n for n in os.listdir(os.environ['HOME'])))
"""


def test_a_shell_made_before_a_fork_works_after_it_and_touches_no_files(tmp_path):
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    out = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, env=env, cwd="/tmp")
    assert out.stdout == "child\n(P(x=1), P(x=1))\n[]\n", out.stderr


def test_an_interrupt_ends_a_shell_command_and_what_it_started(engine, tmp_path):
    pid = tmp_path / "pid"
    loop = MainLoop(
        lambda job: [pickle.dumps(engine(f"!sleep 60 & echo $! > {pid}.tmp; mv {pid}.tmp {pid}; wait"))],
        lambda job, status, parts: results.append((status, parts)),
    )
    results = []
    loop.put(Job("a", parts=[]))

    def interrupt():
        while not pid.exists():
            threading.Event().wait(0.01)
        loop.interrupt()
        loop.stop()

    thread = threading.Thread(target=interrupt)
    thread.start()
    loop.run_forever()
    thread.join()
    ((status, parts),) = results
    assert status == "error"
    assert decode_failure(parts[0], 0, "execute").ename == "KeyboardInterrupt"
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(pid.read_text())).status() == psutil.STATUS_ZOMBIE


def test_the_reset_magic_leaves_the_engine_id(engine):
    shell = engine.shell
    shell.engine_id = 3
    shell.run_code("a = 1")
    shell.run_code("%reset -f")
    assert shell.user_ns["engine_id"] == 3
    assert shell.user_names() == []
