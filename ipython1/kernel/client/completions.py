"""Completion of names that live on engines: ``mec['<TAB>``, and what ``%px`` runs there.

The first target is asked. Nobody waits long for it: where it is busy, what it
said last time is shown, or nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ipython1.kernel.error import IPython1Error

if TYPE_CHECKING:
    from ipython1.kernel.client.pending import PendingResult
    from ipython1.kernel.client.views import TargetView

#: Seconds that an engine has for its answer.
PATIENCE = 0.25
#: Seconds in which the same question is not asked again, and in which an engine that was busy is left alone.
FRESH, QUIET = 1.0, 2.0
#: Answers remembered.
KEPT = 50


class QuickAnswers:
    """What engines said to small questions, as far as they say it quickly; any thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._known: dict[Any, tuple[float, Any]] = {}
        self._busy: dict[int, float] = {}

    def get(self, question: Any, target: int, send: Callable[[], PendingResult], default: Any) -> Any:
        """The answer of engine `target`, or the last one, or `default`; `send` asks."""
        now = self._now()
        at, known = self._known.get((target, question), (now - FRESH, default))
        if now - at < FRESH or now < self._busy.get(target, now):
            return known
        pending = send()
        try:
            pending.exception(PATIENCE)
        except TimeoutError:
            pending.abort()
            self._busy[target] = self._now() + QUIET
            return known
        answer = pending.value_of(target, default)
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[target, question] = self._now(), answer
        return answer


def names(view: TargetView) -> list[str]:
    """The user's names on the first target of `view`."""
    try:
        target = view._chosen(None)[0]
        found: list[str] = view._owner().quick_answers.get(
            "keys", target, lambda: view.keys(target, block=False), []
        )
    except IPython1Error:  # no engines, a closed client, the reactor thread: there is nothing to show
        return []
    return found


def continuations(view: TargetView, targets: Any, code: str) -> tuple[str, list[str]]:
    """What `code` can go on with on the first target: the end of it that the others replace, and they."""
    nothing = len(code), len(code), ()
    try:
        target = view._chosen(targets)[0]

        def send() -> PendingResult:
            parts = [code.encode("utf-8", "surrogatepass")]
            pending: PendingResult = view._command(
                "complete",
                "complete",
                {"cursor": len(code)},
                parts,
                targets=target,
                block=False,
                timeout=QUIET,  # it may come to code of the user's
            )
            return pending

        start, _, texts = view._owner().quick_answers.get(code, target, send, nothing)
    except IPython1Error:
        return "", []
    return code[start:], list(texts)


def remote_code(text: str, suffix: str, everything: bool) -> str | None:
    """The part of `text`, which ends at the cursor, that will run on engines; None: nothing of it.

    Parameters
    ----------
    text : str
    suffix : str
        Of the magics.
    everything : bool
        ``%autopx`` is on.
    """
    cell = re.match(rf"\s*%%px{suffix}\b[^\n]*\n", text)
    if cell is not None:
        return text[cell.end() :]
    line = re.match(rf"\s*%px{suffix}\s+", text.rpartition("\n")[2])
    if line is not None:
        return text.rpartition("\n")[2][line.end() :]
    return text if everything and not text.lstrip().startswith(("%", "!")) else None


def make_matcher(
    suffix: str, everything: Callable[[], bool], ask: Callable[[str], tuple[str, list[str]]]
) -> Any:
    """A matcher for the ``custom_matchers`` of IPython's completer; `ask` as `continuations` of a view."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher(identifier=f"ipython1.px{suffix}")  # type: ignore[untyped-decorator]
    def matcher(context: Any) -> dict[str, Any]:
        lines = context.full_text.split("\n")[: context.cursor_line]
        code = remote_code("\n".join([*lines, context.text_until_cursor]), suffix, everything())
        fragment, texts = ("", []) if code is None else ask(code)
        return {
            "completions": [SimpleCompletion(text) for text in texts],
            "matched_fragment": fragment,
            "suppress": bool(texts),
        }

    return matcher
