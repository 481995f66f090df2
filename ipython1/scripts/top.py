"""``ipcluster top``: what the engines do, live in a terminal. Imports no Foolscap."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import click

from ipython1.kernel.error import IPython1Error
from ipython1.kernel.files import ClusterFiles
from ipython1.launch.signals import Signals
from ipython1.launch.state import NotRunning
from ipython1.scripts.options import cluster_option
from ipython1.scripts.status import completeness
from ipython1.web.watching import NoDashboard, Silent, follow, look

if TYPE_CHECKING:
    from rich.console import Console

#: Seconds between two pictures, before there is anything to show, and until a lost controller is tried again.
INTERVAL, FIRST, RETRY = 1.0, 0.05, 1.0
#: Columns where it does not go to a terminal.
PAPER = 120
#: What ends it: q, and Ctrl-D.
QUITS = frozenset(b"qQ\x04")


@click.command(epilog="\b\nExample:  ipcluster top --cluster mine")
@cluster_option()
@click.option("--once", is_flag=True, help="Print it once, and end; so it does where stdout is no terminal.")
def top(files: ClusterFiles, once: bool) -> None:
    """Show a running cluster live, until q or Ctrl-C."""
    from rich.console import Console  # takes 60 ms, which other commands need not

    terminal = isinstance(sys.stdout, TextIOWrapper) and sys.stdout.isatty()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where it has no "…"
    console = Console(highlight=False, width=None if terminal else get_terminal_size((PAPER, 0)).columns)
    if once or not terminal or console.is_dumb_terminal:
        sys.exit(print_once(files, console))
    feed = Feed(files)
    feed.start()
    while (status := watch(feed, console)) is None:
        os.kill(os.getpid(), signal.SIGTSTP)  # Ctrl-Z; it goes on here with fg
    sys.exit(status)


def print_once(files: ClusterFiles, console: Console) -> int:
    """Print all engines; the exit status."""
    from ipython1.scripts.screen import view

    state = look(files)
    with console.capture() as capture:
        console.print(view(state, state["time"], console.width))
    for line in capture.get().splitlines():
        click.echo(line.rstrip())
    return completeness(files, state["engines"])


class Feed(threading.Thread):
    """The newest state of a cluster, in the background; ends only with the process, or what `end` says.

    Parameters
    ----------
    files : ClusterFiles
    """

    def __init__(self, files: ClusterFiles) -> None:
        super().__init__(daemon=True)
        self._files = files
        #: The state, and when it came on the monotonic clock.
        self.newest: tuple[dict[str, Any], float] | None = None
        self.trouble = ""
        self.end: IPython1Error | None = None

    def run(self) -> None:
        """Ask until there is nobody to ask any more."""
        while True:
            try:
                for state in follow(self._files):
                    self.newest, self.trouble = (state, time.monotonic()), ""
                raise Silent(self._files.cluster, "it ended")
            except (NotRunning, NoDashboard) as error:
                self.end = error
                return
            except Silent as error:
                self.trouble = str(error)
            time.sleep(RETRY)


def watch(feed: Feed, console: Console) -> int | None:
    """Show it until it is to end: the exit status, or None where it is to be suspended."""
    from rich.live import Live

    keys = [0] if os.isatty(0) else []
    with (
        Signals(signal.SIGTSTP, signal.SIGWINCH) as signals,
        unbuffered(keys),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while feed.end is None:
            live.update(picture(feed, console), refresh=True)
            came = signals.wait(keys, INTERVAL if feed.newest or feed.trouble else FIRST)
            if signal.SIGTSTP in came:
                return None
            for number in came:
                if number != signal.SIGWINCH:
                    return 0 if number == signal.SIGINT else 128 + number
            if keys and quits():
                return 0
    raise feed.end


def picture(feed: Feed, console: Console) -> Any:
    """What is to be seen now."""
    from ipython1.scripts.screen import view, waiting

    newest, trouble = feed.newest, feed.trouble
    if newest is None:
        return waiting(trouble)
    state, came = newest
    now = state["time"] + time.monotonic() - came
    return view(state, now, *console.size, trouble)


def quits() -> bool:
    """Whether a key that ends it was pressed, or the terminal is gone."""
    if not select.select([0], [], [], 0)[0]:
        return False
    try:
        pressed = os.read(0, 1024)
    except OSError:
        return True
    return not pressed or bool(QUITS & set(pressed))


@contextmanager
def unbuffered(terminals: list[int]) -> Iterator[None]:
    """Keys come at once and are not shown; afterwards the terminals are as they were."""
    before = [(fd, termios.tcgetattr(fd)) for fd in terminals]
    try:
        for fd in terminals:
            tty.setcbreak(fd)
        yield
    finally:
        for fd, attributes in before:
            termios.tcsetattr(fd, termios.TCSAFLUSH, attributes)


#: What ``ipcluster`` takes in.
COMMANDS = (top,)
