"""IPython without a terminal, a history file or a person in front of it."""

from __future__ import annotations

import atexit
import base64
import codecs
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import psutil
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.profiledir import ProfileDir
from traitlets.config import Config

from ipython1.kernel.engine.failures import format_traceback
from ipython1.kernel.texts import sendable

#: MIME types whose text form is base64.
_BINARY = ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf")

#: Names that a reset leaves alone.
_KEPT = frozenset({"engine_id"})


class _Publisher(DisplayPublisher):
    """Takes what ``display`` makes."""

    def publish(
        self,
        data: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        source: Any = None,
        *,
        transient: Mapping[str, Any] | None = None,
        update: bool = False,
        **kwargs: Any,
    ) -> None:
        display_id = (transient or {}).get("display_id", "")
        self.shell.show(bundle(data), plain(metadata or {}), str(display_id), update)


class QuietShell(InteractiveShell):
    """IPython's shell with everything off that reaches for a terminal or for the home directory.

    Parameters
    ----------
    show : callable
        Takes rich displays, as `EngineShell.show`.
    own_main : bool
        Its namespace becomes ``__main__``.
    """

    def __init__(self, show: Callable[..., None], own_main: bool) -> None:
        self.show = show
        self._own_main = own_main
        self._store: dict[str, Any] = {}
        config = Config()
        config.HistoryManager.enabled = False
        config.HistoryManager.hist_file = ":memory:"
        # IPython 8 makes files in its profile folder and fails without one.
        with tempfile.TemporaryDirectory(prefix="ipython1-") as self._scratch:
            super().__init__(config=config, colors="nocolor", cache_size=0)
        self.profile_dir = None
        atexit.unregister(self.atexit_operations)  # it would keep every shell alive
        self.set_hook("show_in_pager", _print_page)

    display_pub_class = _Publisher

    @property
    def db(self) -> dict[str, Any]:
        return self._store

    @db.setter
    def db(self, ignored: Any) -> None: ...

    def init_ipython_dir(self, ipython_dir: Any) -> None: ...

    def init_profile_dir(self, profile_dir: Any) -> None:
        self.profile_dir = ProfileDir(location=self._scratch)

    def init_virtualenv(self) -> None: ...

    def init_sys_modules(self) -> None:
        if self._own_main:
            super().init_sys_modules()

    def init_prompts(self) -> None:
        if self._own_main:
            super().init_prompts()

    def enable_gui(self, gui: Any = None) -> None: ...

    def reset(self, new_session: bool = True, aggressive: bool = False) -> None:
        """See `InteractiveShell`; what the engine itself has put into the namespace stays."""
        hidden = {name: value for name, value in self.user_ns_hidden.items() if name in _KEPT}
        super().reset(new_session, aggressive)
        self.user_ns.update(hidden)
        self.user_ns_hidden.update(hidden)

    def ask_exit(self) -> None:
        raise SystemExit

    def _showtraceback(self, etype: Any, evalue: Any, stb: Any) -> None:
        # Only what magics run in cells of their own comes here.
        print(format_traceback(evalue), file=sys.stderr)

    def system(self, cmd: str) -> None:
        self.user_ns["_exit_code"] = _run_command(self.var_expand(cmd, depth=1))


def _print_page(shell: Any, data: Any, start: int = 0, screen_lines: int = 0, pager_cmd: Any = None) -> None:
    text = data.get("text/plain", "") if isinstance(data, dict) else data
    print("\n".join(text.splitlines()[start:]))


def _run_command(command: str) -> int:
    """Run a shell command, its output on ours; an interrupt ends it and what it started."""
    child = subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    )
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    assert child.stdout is not None
    try:
        while raw := child.stdout.read(32 * 1024):
            sys.stdout.write(decoder.decode(raw))
        return child.wait()
    except BaseException:
        _end(child.pid)
        raise
    finally:
        child.stdout.close()
        child.wait()


def _end(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(family, timeout=1)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def flush_figures() -> None:
    """Show the figures that user code has left open, as at the end of a cell."""
    inline = sys.modules.get("matplotlib_inline.backend_inline")
    if inline is not None:
        inline.flush_figures()


def bundle(data: Mapping[str, Any]) -> dict[str, str | bytes]:
    """A MIME bundle of text, JSON text and, for images, bytes."""
    return {str(mime): _content(mime, value) for mime, value in data.items() if value is not None}


def _content(mime: str, value: Any) -> str | bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if not isinstance(value, str):
        return json.dumps(value, default=str)
    if mime in _BINARY:
        with contextlib.suppress(ValueError):
            return base64.b64decode(value, validate=False)
    return sendable(value)


def plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`metadata` as JSON would have it."""
    known: dict[str, Any] = json.loads(json.dumps(metadata, default=str, skipkeys=True))
    return known
