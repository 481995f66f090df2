"""Questions of code that runs on engines (``input()``, ``getpass()``, debuggers), and who answers them.

A question goes to the client's ``input_handler`` where there is one. Else the
user is asked, in the thread that waits for the command, if that is the main
one and somebody can type. Else it is refused at once.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ipython1.kernel.texts import sendable
from ipython1.kernel.tracebacks import running_shell
from ipython1.kernel.wire.records import Event, Input

if TYPE_CHECKING:
    from ipython1.kernel.client.completion import Completion

#: ``handler(engine, prompt, password)`` returns the line.
InputHandler = Callable[[int, str, bool], str]

#: Characters of an answer; a record must hold it.
ANSWER_LIMIT = 512 * 1024
NOBODY = (
    "Nobody can be asked: the client does not wait for this command in a terminal or notebook. "
    "Wait for it there, or set mec.input_handler."
)


class Question(NamedTuple):
    """What running code asks."""

    engine: int
    serial: int
    prompt: str
    password: bool


# -- reactor thread ------------------------------------------------------------------------


def asked(pending: Completion, event: Event, handler: InputHandler | None) -> None:
    """A command asks something: give the question to who can answer it."""
    question = _question(event)
    if question is None:
        return
    if handler is not None:
        pending._core.call_user(_ask_handler, pending, question, handler)
        return
    with pending._guard:
        if pending.attended:
            pending.questions += (question,)
            return
    # Of a command of another client that one decides.
    core: Any = pending._core
    if event.id.startswith(f"{core.client_id}-"):
        _answer(pending, question, "refused", NOBODY)


def _question(event: Event) -> Question | None:
    try:
        facts = json.loads(event.text)
        question = Question(event.engine, facts["serial"], facts["prompt"], facts["password"])
    except (ValueError, TypeError, LookupError):
        return None
    good = (int, int, str, bool) == tuple(map(type, question)) and 0 <= question.serial < 1 << 63
    return question if good else None


def _answer(pending: Completion, question: Question, how: str, text: str = "") -> None:
    core: Any = pending._core
    told = sendable(text[:ANSWER_LIMIT])
    core.answer(Input((question.engine,), pending.command_id, question.serial, how, told))


# -- the thread that answers ------------------------------------------------------------------


def _ask_handler(pending: Completion, question: Question, handler: InputHandler) -> None:
    _ask(pending, question, lambda: handler(question.engine, question.prompt, question.password))


def _ask_user(pending: Completion, question: Question) -> None:
    prompt = question.prompt
    if len(pending._arrivals.slots) > 1:
        prompt = f"[{question.engine}] {prompt}"
    _ask(pending, question, lambda: getpass.getpass(prompt) if question.password else input(prompt))


def _ask(pending: Completion, question: Question, ask: Callable[[], Any]) -> None:
    try:
        line = ask()
    except EOFError:
        _answer(pending, question, "end")
    except Exception as error:  # noqa: BLE001 -- a handler of the user, or a notebook that cannot ask
        _answer(pending, question, "refused", f"Nobody can be asked: {error!r}")
    else:
        if isinstance(line, str):
            _answer(pending, question, "line", line)
        else:
            _answer(pending, question, "refused", f"input_handler returned {type(line).__name__}, not str.")


def user_here() -> bool:
    """Whether there is somebody whom this thread can ask."""
    if threading.current_thread() is not threading.main_thread():
        return False
    kernel = getattr(running_shell(), "kernel", None)
    if kernel is not None:
        return bool(getattr(kernel, "_allow_stdin", False))
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):  # None, or closed
        return False


def answer_all(pending: Completion, show: bool = True) -> None:
    """Ask the user what waits to be asked; `show` before that what the command has printed."""
    from ipython1.kernel.client import streaming  # which also asks

    while pending.questions:
        if show:
            streaming.show_new(pending)
        with pending._guard:
            question, *rest = pending.questions
            pending.questions = tuple(rest)
        try:
            _ask_user(pending, question)
        except BaseException:  # Ctrl-C: who catches it may go on waiting
            with pending._guard:
                pending.questions = (question, *pending.questions)
            raise


@contextlib.contextmanager
def attended(pending: Completion) -> Iterator[None]:
    """While this lasts, the thread that entered it answers questions, if there is somebody to ask."""
    before = pending.attended
    pending.attended = before or user_here()
    try:
        yield
    finally:
        if not before:
            leave(pending)


def leave(pending: Completion) -> None:
    """Nobody answers any more: what is still open is refused."""
    with pending._guard:
        pending.attended = False
        left, pending.questions = pending.questions, ()
    for question in left:
        _answer(pending, question, "refused", NOBODY)


def wait(pending: Completion, timeout: float | None = None) -> None:
    """Wait until `pending` is done; without `timeout`, answer its questions meanwhile."""
    if timeout is not None or not (pending.attended or user_here()):
        pending._core.wait(pending, timeout)
        return
    with attended(pending):
        while not pending.done():
            pending._wait_until(lambda: bool(pending.questions))
            answer_all(pending)
