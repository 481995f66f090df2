"""Questions of running code, on the engine's side and on the client's."""

from __future__ import annotations

import builtins
import getpass
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.error import StdinNotImplementedError

from ipython1.kernel.client import asking as client_asking
from ipython1.kernel.client.calls import wait_for
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.engine.asking import Asking, TypedInput, input_functions, nobody
from ipython1.kernel.engine.jobs import Command, Common, Task
from ipython1.kernel.engine.output import OutputBuffer
from ipython1.kernel.engine.shell import EngineShell
from ipython1.kernel.error import CompositeError
from ipython1.kernel.testing import MemoryCluster
from ipython1.kernel.wire.codec import encode_failure, pack
from ipython1.kernel.wire.objects import dump_failure, dumps
from ipython1.kernel.wire.records import Batch, Departed, Event, Input, Result, Submit

# -- the engine ----------------------------------------------------------------------------


def command(id: str = "c1-1") -> Command:
    return Command(Submit(id, (0,), "execute", "", -1, 0.0, b"\x80", ()))


class Engine:
    """An `Asking`, and a thread to ask in."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.output = OutputBuffer(self.told.set)
        self.job: Any = command()
        self.output.begin(self.job)
        self.asking = Asking(self.output, lambda: self.job)
        self.threads = ThreadPoolExecutor(2)

    def ask(self, *args: Any) -> Future[str]:
        return self.threads.submit(self.asking.ask, *args)

    def question(self) -> dict[str, Any]:
        assert self.told.wait(10)
        self.told.clear()
        [(job, kind, text, parts)] = self.output.take()
        assert (job, kind, parts) == (self.job, "input", [])
        facts: dict[str, Any] = json.loads(text)
        return facts


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.asking.ended(engine.job)
    engine.threads.shutdown()


def test_a_question_and_its_answer(engine: Engine) -> None:
    answer = engine.ask("name? ")
    question = engine.question()
    assert question == {"serial": question["serial"], "prompt": "name? ", "password": False}
    for other in (
        Input((0,), "c1-2", question["serial"], "line", "other"),
        Input((0,), "c1-1", 99, "line", "x"),
    ):
        engine.asking.answered(other)
    assert not answer.done()
    engine.asking.answered(Input((0,), "c1-1", question["serial"], "line", "anna"))
    assert answer.result(10) == "anna"
    engine.asking.answered(Input((0,), "c1-1", question["serial"], "line", "too late"))


@pytest.mark.parametrize(
    ("how", "error"),
    [("end", EOFError), ("refused", StdinNotImplementedError), ("?", StdinNotImplementedError)],
)
def test_no_answer(engine: Engine, how: str, error: type[Exception]) -> None:
    answer = engine.ask("", True)
    question = engine.question()
    assert question["password"] is True
    engine.asking.answered(Input((0,), "c1-1", question["serial"], how, "why"))
    with pytest.raises(error, match="why"):
        answer.result(10)


def test_the_client_goes(engine: Engine) -> None:
    answer = engine.ask()
    engine.question()
    engine.asking.departed(Departed("c2"))
    assert not answer.done()
    engine.asking.departed(Departed("c1"))
    with pytest.raises(EOFError, match="the client that sent this command is gone"):
        answer.result(10)
    with pytest.raises(EOFError, match="gone"):  # detached, it goes on without it
        engine.asking.ask()
    engine.job = command("c2-1")
    with pytest.raises(EOFError):
        engine.asking.ask()


def test_a_thread_that_the_command_left_behind(engine: Engine) -> None:
    answer = engine.ask()
    engine.question()
    engine.asking.ended(command())
    assert not answer.done()
    engine.asking.ended(engine.job)
    with pytest.raises(EOFError):
        answer.result(10)


def test_tasks_cannot_ask(engine: Engine) -> None:
    common = Common(Batch("c1-2", "call", "", 0.0, b"\x80", b"\x80", ()))
    for job in (None, Task(common, 0, 1, ())):
        engine.job = job
        with pytest.raises(StdinNotImplementedError, match="not in tasks"):
            engine.asking.ask()
    with pytest.raises(StdinNotImplementedError):
        nobody()


def test_a_prompt_may_be_anything(engine: Engine) -> None:
    for prompt in ("\ud800?", "x" * 10_000_000):
        answer = engine.ask(prompt)
        question = engine.question()
        assert len(pack(question["prompt"])) < 100_000
        engine.asking.answered(Input((0,), "c1-1", question["serial"], "line", ""))
        assert answer.result(10) == ""


def test_stdin_is_made_of_answers() -> None:
    lines = iter(["one", "", "three"])

    def ask(prompt: str = "") -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    stdin = TypedInput(ask)
    assert stdin.readline(2) == "on"
    assert stdin.read(1) == "e"
    assert stdin.readline() == "\n"
    assert stdin.read() == "\nthree\n"
    assert stdin.readline() == ""
    assert stdin.readable()
    assert not stdin.isatty()


def test_what_user_code_finds() -> None:
    shell = EngineShell(own_main=False)
    asked: list[tuple[str, bool]] = []

    def ask(prompt: str, password: bool) -> str:
        asked.append((prompt, password))
        return "typed"

    shell.set_asking(ask)
    before = builtins.input, getpass.getpass, sys.stdin
    shell.run_code("import getpass, sys\na = input(5), getpass.getpass(), sys.stdin.readline(), input()")
    assert shell.user_ns["a"] == ("typed", "typed", "typed\n", "typed")
    assert asked == [("5", False), ("Password: ", True), ("", False), ("", False)]
    assert (builtins.input, getpass.getpass, sys.stdin) == before
    assert input_functions(ask)[0].__name__ == "input"


def test_a_cluster_in_memory_cannot_ask() -> None:
    with MemoryCluster(1) as cluster:
        mec = cluster.client()
        with pytest.raises(CompositeError, match="StdinNotImplementedError"):
            mec.execute("input()")


# -- the client ------------------------------------------------------------------------------


class Core:
    """A client without a connection."""

    client_id = "c1"

    def __init__(self) -> None:
        self.answers: list[Input] = []
        self.when_waiting: Callable[[], None] = lambda: None

    def answer(self, record: Input) -> None:
        self.answers.append(record)

    def call_user(self, f: Callable[..., Any], *args: Any) -> None:
        f(*args)

    def abort(self, pending: PendingResult, interrupt: bool = False) -> None:
        ended(pending, KeyboardInterrupt())

    def sent(self, command_id: str) -> tuple[int, int]:
        return 0, 0

    def wait(self, future: Future[Any], timeout: float | None) -> None:
        self.when_waiting()
        assert future.done()


def ended(pending: PendingResult, error: BaseException | None = None) -> None:
    parts = dumps(None) if error is None else [encode_failure(dump_failure(error, ""))]
    for engine in [target for target in pending.targets if pending.awaits(target)]:
        result = Result(
            pending.command_id, engine, "apply", "ok" if error is None else "error", 1.0, 2.0, 0, ()
        )
        pending.deliver_result(result, parts)


def asks(
    pending: PendingResult, engine: int = 0, index: int = 0, prompt: str = "? ", password: bool = False
) -> None:
    facts = {"serial": 10 * engine + index, "prompt": prompt, "password": password}
    pending.deliver_event(Event(pending.command_id, engine, index, "input", json.dumps(facts), ()), [])


@pytest.fixture
def core() -> Core:
    return Core()


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user sees; types the prompt back."""
    prompts: list[str] = []

    def type_it(prompt: str = "") -> str:
        prompts.append(prompt)
        return f"to {prompt}"

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(builtins, "input", type_it)
    monkeypatch.setattr(getpass, "getpass", type_it)
    return prompts


def test_nobody_waits(core: Core, typed: list[str]) -> None:
    pending = PendingResult(core, "c1-1", "execute", (0,))
    asks(pending)
    assert core.answers == [Input((0,), "c1-1", 0, "refused", client_asking.NOBODY)]
    asks(pending)  # a replay
    assert len(core.answers) == 1
    other = PendingResult(core, "c2-1", "execute", (0,))
    asks(other)
    assert len(core.answers) == 1, "its own client decides"
    assert typed == []


@pytest.mark.parametrize(
    "text",
    ["", "5", "[]", "{", '{"serial": 1}', '{"serial": 9223372036854775808, "prompt": "", "password": false}'],
)
def test_a_malformed_question(core: Core, text: str) -> None:
    pending = PendingResult(core, "c1-1", "execute", (0,))
    pending.deliver_event(Event("c1-1", 0, 0, "input", text, ()), [])
    assert core.answers == []


def test_the_user_who_waits_is_asked(core: Core, typed: list[str]) -> None:
    pending = PendingResult(core, "c1-1", "execute", (0, 2))
    steps = iter([lambda: asks(pending, 2), lambda: asks(pending, 0, password=True), lambda: ended(pending)])
    core.when_waiting = lambda: next(steps)()
    assert wait_for(core, pending) == [None, None]  # type: ignore[arg-type]
    assert typed == ["[2] ? ", "[0] ? "]
    assert [(answer.targets, answer.how, answer.text) for answer in core.answers] == [
        ((2,), "line", "to [2] ? "),
        ((0,), "line", "to [0] ? "),
    ]


def test_what_was_printed_is_shown_before_the_question(
    core: Core, typed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the output is not streamed: without it a question may mean nothing."""
    monkeypatch.setattr(builtins, "input", lambda prompt: print(prompt) or "x")
    pending = PendingResult(core, "c1-1", "execute", (0,))

    def prints(index: int, text: str) -> None:
        pending.deliver_event(Event("c1-1", 0, index, "stdout", text, ()), [])
        asks(pending, index=index + 1)

    steps = iter([lambda: prints(0, "one\n"), lambda: prints(2, "two"), lambda: ended(pending)])
    core.when_waiting = lambda: next(steps)()
    wait_for(core, pending)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "one\n? \ntwo\n? \n"


def test_output_before_a_question_comes_before_it(
    core: Core, typed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = PendingResult(core, "c1-1", "execute", (0,))
    monkeypatch.setattr(builtins, "input", lambda prompt: print(prompt) or "x")
    pending.attended = True
    pending.deliver_event(Event("c1-1", 0, 0, "stdout", "first", ()), [])
    asks(pending, index=1)
    pending.deliver_event(Event("c1-1", 0, 2, "stdout", "then\n", ()), [])
    ended(pending)
    pending.stream()
    assert capsys.readouterr().out == "[stdout:0] first\n? \n[stdout:0] then\n"
    assert [answer.text for answer in core.answers] == ["x"]


def test_a_bar_gives_way_to_a_question(core: Core, typed: list[str]) -> None:
    pending = PendingResult(core, "c1-1", "execute", (0,))
    steps = iter([lambda: asks(pending), lambda: ended(pending)])
    core.when_waiting = lambda: next(steps)()
    pending.wait_interactive()
    assert typed == ["? "]


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (EOFError(), ("end", "")),
        (StdinNotImplementedError("no frontend"), ("refused", "no frontend")),
    ],
)
def test_the_user_cannot_answer(
    core: Core, typed: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception, answer: tuple[str, str]
) -> None:
    def refuse(prompt: str) -> str:
        raise error

    monkeypatch.setattr(builtins, "input", refuse)
    pending = PendingResult(core, "c1-1", "execute", (0,))
    steps = iter([lambda: asks(pending), lambda: ended(pending)])
    core.when_waiting = lambda: next(steps)()
    pending.result()
    assert core.answers[0].how == answer[0]
    assert answer[1] in core.answers[0].text


def test_ctrl_c_at_a_question(core: Core, typed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def strike(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "input", strike)
    pending = PendingResult(core, "c1-1", "execute", (0,))
    core.when_waiting = lambda: asks(pending)
    with pytest.raises(KeyboardInterrupt):
        wait_for(core, pending)  # type: ignore[arg-type]
    assert [answer.how for answer in core.answers] == ["refused"]
    assert pending.done()
    assert not pending.attended


def test_who_waits_for_a_while_is_not_asked(core: Core, typed: list[str]) -> None:
    pending = PendingResult(core, "c1-1", "execute", (0,))
    core.when_waiting = lambda: (asks(pending), ended(pending))  # type: ignore[func-returns-value]
    pending.result(timeout=5)
    assert typed == []
    assert core.answers[0].how == "refused"


def test_a_handler(core: Core, typed: list[str]) -> None:
    seen = []

    def handler(engine: int, prompt: str, password: bool) -> Any:
        seen.append((engine, prompt, password))
        if password:
            raise ValueError("not that")
        return "\ud800" if prompt == "? " else 5

    owner: Any = SimpleNamespace(input_handler=handler)
    pending = PendingResult(core, "c1-1", "execute", (0,), owner=owner)
    asks(pending)
    asks(pending, index=1, prompt="5")
    asks(pending, index=2, password=True)
    assert seen == [(0, "? ", False), (0, "5", False), (0, "? ", True)]
    assert [(answer.how, answer.text) for answer in core.answers] == [
        ("line", "\\ud800"),
        ("refused", "input_handler returned int, not str."),
        ("refused", "Nobody can be asked: ValueError('not that')"),
    ]
    assert typed == []


@pytest.mark.parametrize("stdin", [None, SimpleNamespace(isatty=lambda: False)])
def test_where_nobody_can_type(monkeypatch: pytest.MonkeyPatch, stdin: Any) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert not client_asking.user_here()


@pytest.mark.usefixtures("typed")
def test_only_the_main_thread_asks() -> None:
    assert client_asking.user_here()
    with ThreadPoolExecutor(1) as threads:
        assert not threads.submit(client_asking.user_here).result()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_notebook_says_whether_it_can_ask(monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=allowed))
    monkeypatch.setattr(client_asking, "running_shell", lambda: shell)
    assert client_asking.user_here() is allowed
