"""Output of engines printed as it comes, and progress bars."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ipython1.kernel.client.results import Result

if TYPE_CHECKING:
    from ipython1.kernel.client.arrivals import Output
    from ipython1.kernel.client.pending import PendingResult

#: Seconds between two looks at a progress bar.
REDRAW = 0.2
#: How `stream` can group outputs.
GROUPINGS = ("engine", "order", "type")
#: Kinds of output, in the order in which grouping by type shows them.
_KINDS = ("stdout", "stderr", "display", "end")


class OutputPrinter:
    """Prints output of several engines, labelled ``[stdout:2]``, without mixing their lines.

    Text appears at once. Where an engine has not ended its line and another
    one writes, the line is ended and the label written again.
    """

    def __init__(self) -> None:
        self._open: tuple[int, str] | None = None

    def text(self, engine: int, kind: str, text: str) -> None:
        """Print to stdout or stderr, by `kind`, what an engine wrote there."""
        if not text:
            return
        file = sys.stderr if kind == "stderr" else sys.stdout
        label = f"[{kind}:{engine}] "
        if self._open != (engine, kind):
            self.end_line()
            file.write(label)
        ended = text.endswith("\n")
        file.write((text[:-1] if ended else text).replace("\n", "\n" + label))
        self._open = (engine, kind)
        if ended:
            self.end_line()
        file.flush()

    def display(self, label: str, output: Mapping[str, Any]) -> None:
        """Show a display of an engine: as IPython does, or as text where this is not IPython."""
        self.end_line()
        data, metadata = dict(output["data"]), dict(output["metadata"])
        shell = _ipython()
        if shell is None or set(data) <= {"text/plain"}:
            print(f"{label} {data.get('text/plain', '')}", flush=True)
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


def stream(pending: PendingResult, progress_after: float | None = None, group: str | None = None) -> None:
    """Print what engines give out, until the result of `pending` is there.

    Parameters
    ----------
    pending : PendingResult
    progress_after : float, optional
        Seconds after which a progress bar shows. Without it, none does.
    group : {'engine', 'type', 'order'}, optional
        Keep all back until then, and print it grouped.
    """
    printer = OutputPrinter()
    kept: list[Output] = []
    with contextlib.ExitStack() as stack:
        stack.callback(_print_grouped, printer, pending, kept, group)
        bar: ProgressBar | None = None
        for output in pending.watch(None if progress_after is None else REDRAW):
            if output is not None and group is not None:
                kept.append(output)
            elif output is not None:
                if bar is not None:
                    bar.clear()
                _print(printer, pending, output)
            if progress_after is not None and pending.elapsed >= progress_after:
                printer.end_line()
                bar = bar or stack.enter_context(ProgressBar(pending))
                bar.update()


def _print(printer: OutputPrinter, pending: PendingResult, output: Output) -> None:
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
    with ProgressBar(pending) as bar:
        for _ in pending.watch(REDRAW):
            bar.update()
        bar.update()


class ProgressBar:
    """How many engines have finished; one that reports its progress counts in part."""

    def __init__(self, pending: PendingResult) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without widgets
            from tqdm.auto import tqdm

            self._bar = tqdm(total=len(pending.targets), desc=pending.method, unit="engine", leave=True)
        self._pending = pending

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()

    def clear(self) -> None:
        """Take the bar away, to print something."""
        self._bar.clear()

    def update(self) -> None:
        """Draw the bar as things stand."""
        pending = self._pending
        reports = {
            engine: report for engine, report in pending.engine_progress.items() if not pending.has(engine)
        }
        shares = (report["done"] / report["total"] for report in reports.values() if report.get("total"))
        self._bar.n = round(pending.progress[0] + sum(min(1.0, max(0.0, share)) for share in shares), 2)
        labels = {str(report["label"]) for report in reports.values() if report.get("label")}
        self._bar.set_postfix_str(", ".join(sorted(labels)), refresh=False)
        self._bar.refresh()


def _ipython() -> Any:
    """The IPython shell this process runs in, if any; never imports IPython."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython() if get_ipython is not None else None
