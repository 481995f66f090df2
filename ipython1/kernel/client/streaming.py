"""Output of engines printed as it comes, and progress bars."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ipython1.kernel.client import asking
from ipython1.kernel.client.progress import REDRAW, PendingBar
from ipython1.kernel.client.results import Result
from ipython1.kernel.tracebacks import running_shell

if TYPE_CHECKING:
    from ipython1.kernel.client.arrivals import Output
    from ipython1.kernel.client.completion import Completion
    from ipython1.kernel.client.pending import PendingResult

#: How `stream` can group outputs.
GROUPINGS = ("engine", "order", "type")
#: Kinds of output, in the order in which grouping by type shows them.
_KINDS = ("stdout", "stderr", "display", "end")
#: Seconds that the beginning of a line is held back where nothing comes, and where others write.
HELD, HELD_LONG = 0.5, 2.0


class OutputPrinter:
    """Prints output of several engines, labelled ``[stdout:2]``, without mixing their lines.

    A line that has not ended is held back for a moment, where others write as
    well. Where it has not ended then and another one writes, it is ended here
    and the label written again.

    Parameters
    ----------
    labels : bool
        False where there is only one engine and its output stands for itself.
    hold : bool
        Several engines write.
    now : callable
        The time in seconds.
    """

    def __init__(
        self, labels: bool = True, hold: bool = False, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._labels = labels
        self._hold = hold
        self._now = now
        self._open: tuple[int, str] | None = None
        #: Beginnings of lines, and when they came.
        self._held: dict[tuple[int, str], tuple[float, str]] = {}

    def text(self, engine: int, kind: str, text: str) -> None:
        """Print to stdout or stderr, by `kind`, what an engine wrote there."""
        key = engine, kind
        since, begun = self._held.pop(key, (self._now(), ""))
        text = begun + text
        if self._hold and (self._open != key or "\n" in text):
            end = text.rfind("\n") + 1
            text, rest = text[:end], text[end:]
            if end:
                since = self._now()
            if rest:
                self._held[key] = since, rest
        if text:
            self._write(key, text)

    def show_held(self, engine: int | None = None, older: float = 0.0) -> None:
        """Print what was held back, of one engine or of all, where it came `older` seconds ago or more."""
        for key, (since, text) in list(self._held.items()):
            if engine in (None, key[0]) and self._now() - since >= older:
                del self._held[key]
                self._write(key, text)

    def _write(self, key: tuple[int, str], text: str) -> None:
        engine, kind = key
        file = sys.stderr if kind == "stderr" else sys.stdout
        label = f"[{kind}:{engine}] " if self._labels else ""
        if self._open != key:
            self.end_line()
            file.write(label)
        ended = text.endswith("\n")
        file.write((text[:-1] if ended else text).replace("\n", "\n" + label))
        self._open = key
        if ended:
            self.end_line()
        file.flush()

    def display(self, label: str, output: Mapping[str, Any]) -> None:
        """Show a display of an engine: as IPython does, or as text where this is not IPython."""
        self.end_line()
        data, metadata = dict(output["data"]), dict(output["metadata"])
        shell = running_shell()
        if shell is None or set(data) <= {"text/plain"}:
            text = data.get("text/plain", "")
            print(label, text, sep="\n" if "\n" in text else " ", flush=True)  # columns stay below each other
            return
        update, name = bool(output.get("update")), output.get("display_id")
        if not update:
            print(label, flush=True)
        # The same name on another engine is another display.
        transient = {"display_id": f"{label} {name}"} if name else {}
        shell.display_pub.publish(data=data, metadata=metadata, transient=transient, update=update)

    def end_line(self) -> None:
        """End a line that an engine has left open."""
        if self._open is not None:
            file = sys.stderr if self._open[1] == "stderr" else sys.stdout
            self._open = None
            file.write("\n")
            file.flush()


def stream(
    pending: PendingResult,
    progress_after: float | None = None,
    group: str | None = None,
    labels: bool = True,
) -> None:
    """Print what engines give out, until the result of `pending` is there.

    Parameters
    ----------
    pending : PendingResult
    progress_after : float, optional
        Seconds after which a progress bar shows. Without it, none does.
    group : {'engine', 'type', 'order'}, optional
        Keep all back until then, and print it grouped.
    labels : bool
        Write the engine before each line.
    """
    several = len(pending.targets) > 1
    printer = OutputPrinter(labels, several)
    kept: list[Output] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(asking.attended(pending))
        stack.callback(_print_grouped, printer, pending, kept, group)
        bar: PendingBar | None = None
        for output in pending.watch(REDRAW if several or progress_after is not None else None):
            if output is not None and output.kind == "input":
                printer.show_held()
                printer.end_line()
                if bar is not None:
                    bar.clear()
                asking.answer_all(pending, show=False)
            elif output is not None and group is not None:
                kept.append(output)
            elif output is not None:
                if bar is not None:
                    bar.clear()
                _print(printer, pending, output)
            printer.show_held(older=HELD if output is None else HELD_LONG)
            if progress_after is not None and pending.elapsed >= progress_after:
                bar = bar or stack.enter_context(PendingBar(pending))
                if bar.due:
                    printer.end_line()
                    bar.update()


def show_new(pending: Completion) -> None:
    """Print what a command has given out since the last call, for who is to answer a question of it."""
    with pending._guard:
        fresh = pending._arrivals.log(pending.shown)
        pending.shown += len(fresh)
    printer = OutputPrinter(labels=len(pending._arrivals.slots) > 1)
    for output in fresh:
        if output.kind in ("stdout", "stderr"):
            printer.text(output.engine, output.kind, output.text)
    printer.end_line()


def _print(printer: OutputPrinter, pending: PendingResult, output: Output) -> None:
    if output.kind in ("display", "end"):
        printer.show_held(output.engine)
    if output.kind == "display":
        printer.display(f"[output:{output.engine}]", output.display)
    elif output.kind == "end":
        _print_value(printer, pending, output)
    else:
        printer.text(output.engine, output.kind, output.text)


def _print_grouped(
    printer: OutputPrinter, pending: PendingResult, kept: list[Output], group: str | None
) -> None:
    for output in grouped(kept, pending.targets, group or "engine"):
        _print(printer, pending, output)
    printer.show_held()
    printer.end_line()


def grouped(outputs: Iterable[Output], targets: Sequence[int], group: str) -> list[Output]:
    """Outputs of engines in another order.

    Parameters
    ----------
    outputs : iterable of Output
        As they came.
    targets : sequence of int
        The order of the engines, or tasks.
    group : {'engine', 'type', 'order'}
        All of one engine together; all of one type together; or the first
        output of each engine, then the second, with text that belongs
        together as one output.
    """
    whole: dict[int, list[Output]] = {target: [] for target in targets}
    for output in outputs:
        own = whole[output.slot]
        if own and own[-1].kind == output.kind and output.kind in ("stdout", "stderr"):
            own[-1] = own[-1]._replace(text=own[-1].text + output.text)
        else:
            own.append(output)
    placed = [(place, output) for own in whole.values() for place, output in enumerate(own)]
    if group == "type":
        placed.sort(key=lambda item: _KINDS.index(item[1].kind))
    elif group == "order":
        placed.sort(key=lambda item: item[0])
    return [output for _, output in placed]


def _print_value(printer: OutputPrinter, pending: PendingResult, output: Output) -> None:
    """Show the value of the last expression of a command that has finished."""
    value = pending.value_of(output.slot)
    if isinstance(value, Result) and "result" in value:
        printer.display(
            f"[{output.engine}] Out[{value['number']}]:", {"data": value["result"], "metadata": {}}
        )


def wait_interactive(pending: PendingResult) -> None:
    """Show a progress bar until the result of `pending` is there."""
    with asking.attended(pending), PendingBar(pending, leave=True) as bar:
        for _ in pending.watch(REDRAW):
            if pending.questions:
                bar.clear()
                asking.answer_all(pending)
            bar.update()
