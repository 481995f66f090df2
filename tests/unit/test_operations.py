"""The operations, called as the engine's service calls them."""

from __future__ import annotations

import builtins
import functools
import sys
import threading

import pytest

import ipython1
from ipython1.kernel.engine.operations import OPERATIONS, Operations
from ipython1.kernel.engine.output import OutputBuffer
from ipython1.kernel.engine.shell import EngineShell
from ipython1.kernel.engine.this_engine import ThisEngine
from ipython1.kernel.error import IPython1Error, SerializationError, UnknownResult
from ipython1.kernel.wire.objects import Reference, dumps, dumps_call, loads


class Engine:
    def __init__(self):
        self.output = OutputBuffer(lambda: None, wait=False)
        self.shell = EngineShell(own_main=False)
        self.shell.set_output(self.output)
        self.operations = Operations(self.shell, ThisEngine(self.output))

    def do(self, op, parts=(), **args):
        self.output.begin("c-1")
        try:
            return loads(self.operations.answer(op, args, [bytes(part) for part in parts]))
        finally:
            self.output.end()

    def execute(self, code, **args):
        return self.do("execute", [code.encode("utf-8", "surrogatepass")], **args)

    def push(self, **ns):
        return self.do("push", dumps(ns))

    def pull(self, *keys):
        return self.do("pull", keys=keys)

    def apply(self, f, *args, **kwargs):
        return self.do("apply", dumps_call(f, args, kwargs))


@pytest.fixture(scope="module")
def shared():
    return Engine()


@pytest.fixture
def engine(shared):
    shared.do("reset")
    shared.do("clear_properties")
    shared.output.take()
    return shared


def test_all_operations_are_there():
    expected = (
        "execute run push push_function pull pull_function give delete has keys reset apply get_result "
        "set_properties get_properties has_properties del_properties clear_properties complete debug"
    )
    assert set(expected.split()) == OPERATIONS


def test_figures_of_a_function_belong_to_its_command(engine, inline):
    def plot(fail):
        import matplotlib.pyplot as plt

        plt.plot([1, 2])
        if fail:
            raise ValueError("after the figure")

    engine.execute("%matplotlib inline")
    engine.output.take()
    engine.apply(plot, False)
    assert [kind for _, kind, _, _ in engine.output.take()] == ["display"]
    with pytest.raises(ValueError, match="after the figure"):
        engine.apply(plot, True)
    assert [kind for _, kind, _, _ in engine.output.take()] == ["display"]
    engine.execute("1")
    assert engine.output.take() == []


def test_execute_and_run(engine):
    assert engine.execute("a = 5") == {"input": {"translated": "a = 5", "raw": "a = 5"}, "number": 1}
    assert engine.execute("a")["result"] == {"text/plain": "5"}
    assert engine.execute("a", silent=True)["number"] is None
    assert engine.do("run", [b"b = a\nprint(__file__)"], filename="/x/script.py")["number"] == 3
    assert engine.output.take()[-1][2] == "/x/script.py\n"
    assert engine.do("has", keys=["b", "__file__"]) == [True, False]
    with pytest.raises(UnicodeEncodeError):
        engine.execute("'\ud800'")


def test_push_pull_delete_has_keys(engine):
    assert engine.push(a=1, b=[2]) is None
    assert engine.pull("b", "a", "a") == [[2], 1, 1]
    assert engine.pull() == []
    assert engine.do("has", keys=["a", "c"]) == [True, False]
    assert engine.do("keys") == ["a", "b"]
    with pytest.raises(NameError, match=r"^name 'c' is not defined$"):
        engine.pull("a", "c")
    with pytest.raises(NameError, match=r"^name 'c' is not defined$"):
        engine.do("delete", keys=["a", "c"])
    assert engine.do("delete", keys=["a", "a"]) is None
    assert engine.do("keys") == ["b"]


def test_a_pushed_function_lives_here(engine):
    def f(x):
        return x + a  # noqa: F821

    assert engine.do("push_function", dumps({"f": f, "p": functools.partial(f, 5)})) is None
    engine.push(a=10)
    assert engine.execute("f(1), p()")["result"]["text/plain"] == "(11, 15)"
    engine.execute("a = 20")
    assert engine.apply(lambda: f(1)) == 21  # the client's f, the engine's a
    (back,) = engine.do("pull_function", keys=["f"])
    assert back(2) == 22
    with pytest.raises(NameError, match="name 'g' is not defined"):
        engine.do("pull_function", keys=["g"])


def test_apply(engine):
    engine.push(x=[1, 2], y=3)
    assert engine.apply(sum, Reference("x")) == 3
    assert engine.apply(lambda n, *, k: (n, k, y), 1, k=Reference("x")) == (1, [1, 2], 3)  # noqa: F821
    assert engine.apply(print, "hello") is None
    assert engine.output.take()[-1][1:3] == ("stdout", "hello\n")
    with pytest.raises(NameError, match="name 'z' is not defined"):
        engine.apply(len, Reference("z"))
    with pytest.raises(ZeroDivisionError):
        engine.apply(lambda: 1 / 0)

    async def later():
        return 7

    assert engine.apply(later) == 7


@pytest.mark.parametrize(
    ("make", "name"),
    [(threading.Lock, "lock"), (lambda: (i for i in ()), "generator"), (sys._getframe, "frame")],
)
def test_a_result_that_cannot_be_pickled_names_its_type(engine, make, name):
    with pytest.raises(SerializationError, match=rf"^the result \(a {name}\) cannot be sent: it holds a"):
        engine.apply(make)
    assert engine.apply(abs, -1) == 1


def test_get_result(engine):
    with pytest.raises(UnknownResult, match="No result of any command"):
        engine.do("get_result", number=None)
    engine.execute("print(1); 2")
    engine.execute("silent = 1", silent=True)
    result = engine.do("get_result", number=None)
    assert result["number"] == 1
    assert result["stdout"] == "1\n"
    assert result["result"] == {"text/plain": "2"}
    assert result["started"] <= result["completed"]
    with pytest.raises(UnknownResult, match="No result of command 7"):
        engine.do("get_result", number=7)


def test_properties(engine):
    assert engine.do("set_properties", dumps({"gpu": True, "n": 2})) is None
    assert engine.do("get_properties", keys=None) == {"gpu": True, "n": 2}
    assert engine.do("get_properties", keys=["n"]) == {"n": 2}
    assert engine.do("has_properties", keys=["n", "m"]) == [True, False]
    with pytest.raises(KeyError, match="m"):
        engine.do("get_properties", keys=["m"])
    with pytest.raises(KeyError, match="m"):
        engine.do("del_properties", keys=["n", "m"])
    assert engine.do("del_properties", keys=["n", "n"]) is None
    assert engine.do("get_properties", keys=None) == {"gpu": True}
    assert engine.do("clear_properties") is None
    assert engine.do("get_properties", keys=None) == {}


def test_code_finds_its_engine(engine):
    engine.operations.engine.id = 4
    engine.do("set_properties", dumps({"gpu": True}))
    code = "from ipython1 import this_engine as e\ne.progress(1, 2)\ne.properties['gpu'], e.id"
    assert engine.execute(code)["result"]["text/plain"] == "(True, 4)"
    assert engine.output.take()[0][1] == "progress"
    assert engine.apply(lambda: ipython1.this_engine.id) == 4
    with pytest.raises(IPython1Error, match="only there in code that runs on an engine"):
        print(ipython1.this_engine)


def test_reset(engine):
    engine.execute("a = 1")
    assert engine.do("reset") is None
    assert engine.do("keys") == []
    assert engine.execute("1")["number"] == 1


def test_a_reset_brings_back_the_streams_that_user_code_replaced(engine):
    engine.execute("import sys\nsys.stdout = None")
    engine.do("reset")
    engine.execute("print(1)")
    assert [item[2] for item in engine.output.take()] == ["1\n"]


def test_the_streams_of_the_process_are_back_after_an_error(engine):
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError):
        engine.execute("1 / 0")
    assert (sys.stdout, sys.stderr) == before
    assert not hasattr(builtins, "get_ipython")
