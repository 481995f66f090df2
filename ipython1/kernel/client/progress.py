"""Progress bars, on a terminal and in a notebook; nothing is shown anywhere else.

A terminal has the bars of tqdm. A notebook has one of HTML that is updated in place, for tqdm's own
needs widgets there; below it stands a smaller one for each engine that tells how far it is.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import html
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from ipython1.kernel.client import asking
from ipython1.kernel.client.ids import ranges
from ipython1.kernel.texts import duration_text, size_text

if TYPE_CHECKING:
    from ipython1.kernel.client.pending import PendingResult

#: Seconds after which a call that waits shows a bar, at least between two states of it, and between two looks
#: for something to show.
BAR_AFTER, REDRAW, LOOK = 2.0, 0.2, 0.1
#: Reports of engines that a notebook, and the one line of a terminal, has room for.
NOTEBOOK_REPORTS, TERMINAL_REPORTS = 8, 3
#: Bytes on their way from which on they are counted, not the engines that have them.
BULK = 1 << 20

B = TypeVar("B", bound="Bar")


class Report(NamedTuple):
    """What engines, or tasks, told of themselves: the same from all of `who`."""

    who: str
    #: 0 to 1; None where they did not tell how much there is.
    share: float | None
    text: str


class State(NamedTuple):
    """What a bar shows; without a `total` it tells only `words`."""

    title: str
    done: float
    total: float | None
    words: str
    reports: Sequence[Report] = ()


class View(Protocol):
    """Where a bar is drawn."""

    def draw(self, state: State) -> None: ...

    def clear(self) -> None: ...

    def close(self, leave: bool) -> None: ...


class Bar:
    """A progress bar, on a terminal or in a notebook; where there is neither, nothing.

    Parameters
    ----------
    title : str
    total : number or None
        None where it is not known.
    leave : bool
        Whether it stays on a terminal when it is closed. In a notebook it does.
    elapsed : float
        Seconds that have passed before.
    after : float
        Seconds until it is due for the first time.
    """

    def __init__(
        self,
        title: str,
        total: float | None,
        *,
        leave: bool = False,
        elapsed: float = 0.0,
        after: float = 0.0,
    ) -> None:
        self._title = title
        self._total = total
        self._leave = leave
        self._started = time.monotonic() - elapsed
        self._next = time.monotonic() + after
        self._make_view = _VIEWS.get(place())
        self._view: View | None = None

    def __enter__(self: B) -> B:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def due(self) -> bool:
        """Whether it is time to draw it again."""
        return self._make_view is not None and time.monotonic() >= self._next

    def show(
        self, done: float, words: str, reports: Sequence[Report] = (), total: float | None = None
    ) -> None:
        """Draw it, whether it is due or not.

        Parameters
        ----------
        done : number
        words : str
            How much that is, in words.
        reports : sequence of Report
        total : number, optional
            In the place of the one before.
        """
        if self._make_view is None:
            return
        if self._view is None:
            self._view = self._make_view()
        self._total = self._total if total is None else total
        self._next = time.monotonic() + REDRAW
        elapsed = time.monotonic() - self._started
        words += f", {duration_text(elapsed)}"
        if self._total is not None and 0 < done < self._total:
            words += f", about {duration_text(elapsed * (self._total - done) / done)} left"
        self._view.draw(State(self._title, done, self._total, words, reports))

    def clear(self) -> None:
        """Take it away until it is shown again, to print something."""
        if self._view is not None:
            self._next = min(self._next, time.monotonic() + REDRAW)
            self._view.clear()

    def close(self) -> None:
        """End it; once."""
        view, self._view, self._make_view = self._view, None, None
        if view is not None:
            view.close(self._leave)


class PendingBar(Bar):
    """How far a `PendingResult` is: bytes on their way first, then engines, or tasks, that have finished.

    One that tells how far it is counts in part.
    """

    def __init__(self, pending: PendingResult, *, leave: bool = False, after: float = 0.0) -> None:
        super().__init__(
            pending.method, len(pending.targets), leave=leave, elapsed=pending.elapsed, after=after
        )
        self._pending = pending

    def __exit__(self, *exc_info: object) -> None:
        if self._leave or self._view is not None:
            self._look()
        super().__exit__(*exc_info)

    def update(self) -> None:
        """Draw it as things stand, unless that was just now."""
        if self.due:
            self._look()

    def _look(self) -> None:
        pending, arrivals = self._pending, self._pending._arrivals
        sent, size = pending._core.sent(pending.command_id)
        if sent < size and size >= BULK:
            self.show(sent, f"{size_text(sent)} of {size_text(size)} sent", total=size)
            return
        finished, total = pending.progress
        told = _told(pending)
        unit = "" if isinstance(pending.targets, range) else " engine" + "s" * (total != 1)
        words = f"{finished} of {total}{unit}"
        for count, what in ((arrivals.failed, "failed"), (arrivals.publications, "published")):
            words += f", {count} {what}" if count else ""
        self.show(finished + sum(map(_share, told.values())), words, grouped_reports(told), total)


class ItemBar(Bar):
    """How many `items` have come of a map whose end is not known; shows while the next one is waited for."""

    def __init__(self, title: str, core: Any) -> None:
        super().__init__(title, None)
        self._core = core
        self.items = 0
        self._quiet = self._make_view is None or not _in_main_thread()

    def wait(self, future: concurrent.futures.Future[Any]) -> None:
        """Wait for what is next."""
        after = None if self._quiet else BAR_AFTER
        while not future.done():
            try:
                self._core.wait(future, after)
            except TimeoutError:
                self.show(self.items, f"{self.items} so far")
                after = REDRAW
        self.clear()


def wait(pending: PendingResult, ask: bool = True) -> None:
    """Wait for a result; a bar shows after a while, where one can and this is the main thread.

    `ask`: somebody at the terminal or notebook answers the questions of the code that runs.
    """
    if not (place() and _in_main_thread()):
        asking.wait(pending)
        return
    attended = asking.attended(pending) if ask else contextlib.nullcontext()
    with attended, PendingBar(pending, after=BAR_AFTER) as bar:
        while not pending.done():
            if pending.questions:
                bar.clear()
                asking.answer_all(pending)
            bar.update()
            try:
                pending._core.wait(pending, LOOK)
            except TimeoutError:
                pass


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def place() -> str:
    """Where bars can be shown now: 'notebook', 'terminal' or '', nowhere.

    ``TQDM_DISABLE`` in the environment switches them off.
    """
    if os.environ.get("TQDM_DISABLE"):
        return ""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)  # never imports IPython
    if get_ipython is not None and getattr(get_ipython(), "kernel", None) is not None:
        return "notebook"
    try:
        return "terminal" if sys.stderr.isatty() else ""
    except (AttributeError, ValueError):  # there is none, or it is closed
        return ""


# -- what engines tell --------------------------------------------------------------


def _told(pending: PendingResult) -> dict[int, dict[str, Any]]:
    """What those told that have not finished."""
    return pending._arrivals.progress(unfinished=True)


def _share(report: dict[str, Any]) -> float:
    total = report.get("total")
    return min(1.0, max(0.0, report["done"] / total)) if total else 0.0


def grouped_reports(told: dict[int, dict[str, Any]]) -> list[Report]:
    """The reports in the order of those who made them, the same ones together."""
    groups: dict[tuple[float | None, str], list[int]] = {}
    for slot, report in sorted(told.items()):
        share = round(_share(report), 2) if report.get("total") else None
        amount = f"{report['done']:g}" if share is None else f"{share:.0%}"
        groups.setdefault((share, f"{amount} {report.get('label') or ''}".strip()), []).append(slot)
    return [Report(f"[{ranges(slots)}]", share, text) for (share, text), slots in groups.items()]


def _fitting(reports: Sequence[Report], room: int) -> tuple[Sequence[Report], int]:
    """Those to show, and how many are not."""
    return (reports, 0) if len(reports) <= room else (reports[:room], len(reports) - room)


# -- where they are drawn -----------------------------------------------------------


class _Terminal:
    """A bar of tqdm."""

    def __init__(self) -> None:
        from tqdm.std import tqdm  # takes long, and few programs need it

        # The delay keeps it from drawing itself at once.
        self._bar = tqdm(total=1, dynamic_ncols=True, delay=1e-9)

    def draw(self, state: State) -> None:
        shown, rest = _fitting(state.reports, TERMINAL_REPORTS)
        texts = [state.words, *(f"{report.who} {report.text}" for report in shown)]
        if rest:
            texts.append(f"… {rest} more")
        words = "; ".join(texts).replace("{", "{{").replace("}", "}}")
        line = "{desc} {percentage:3.0f}%|{bar:20}| " if state.total else "{desc} "
        self._bar.bar_format = line + words
        self._bar.total = state.total
        self._bar.n = state.done
        self._bar.set_description_str(state.title, refresh=False)
        self._bar.refresh()

    def clear(self) -> None:
        self._bar.clear()

    def close(self, leave: bool) -> None:
        self._bar.leave = leave
        self._bar.close()


class _Notebook:
    """HTML that is updated in place."""

    def __init__(self) -> None:
        from IPython.display import publish_display_data

        self._publish: Callable[..., None] = publish_display_data
        self._name = {"display_id": f"ipython1-progress-{uuid.uuid4().hex}"}
        self._drawn = False

    def draw(self, state: State) -> None:
        bundle = {"text/plain": f"{state.title}: {state.words}", "text/html": _markup(state)}
        self._publish(bundle, transient=self._name, update=self._drawn)
        self._drawn = True

    def clear(self) -> None:
        """It has a place of its own."""

    def close(self, leave: bool) -> None:
        """It stays: an empty place would take no less room."""


_VIEWS: dict[str, Callable[[], View]] = {"terminal": _Terminal, "notebook": _Notebook}


def as_html(pending: PendingResult, state: str) -> str:
    """How `pending`, in this `state` in words, stands now."""
    done, total = pending.progress
    words = f"{state}, {duration_text(pending.elapsed)}"
    told = _told(pending)
    shares = sum(map(_share, told.values()))
    markup = _markup(State(pending.method, done + shares, total, words, grouped_reports(told)))
    return f"{markup}\n<div><small><code>{html.escape(pending.id)}</code></small></div>"


def _markup(state: State) -> str:
    shown, rest = _fitting(state.reports, NOTEBOOK_REPORTS)
    lines = [_line(f"<b>{html.escape(state.title)}</b>", state.done, state.total, state.words, "16em")]
    lines += [
        _line(f"<code>{html.escape(report.who)}</code>", report.share, 1.0, report.text, "8em")
        for report in shown
    ]
    if rest:
        lines.append(f"<div>… {rest} more</div>")
    return "\n".join(lines)


def _line(head: str, done: float | None, total: float | None, words: str, width: str) -> str:
    bar = ""
    if done is not None:
        value = "" if total is None else f' value="{done:.4g}" max="{total:.4g}"'
        bar = f'<progress{value} style="width: {width}; vertical-align: middle"></progress> '
    return f"<div>{head} {bar}{html.escape(words)}</div>"
