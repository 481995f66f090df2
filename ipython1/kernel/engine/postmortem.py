"""The newest failure of an engine, and a debugger on it that talks to the user of the client."""

from __future__ import annotations

import pdb
import sys
from types import TracebackType

from ipython1.kernel.engine.failures import inside
from ipython1.kernel.engine.mainloop import user_code
from ipython1.kernel.error import IPython1Error, TaskRejected


class LastFailure:
    """What a debugger needs of the newest error that came from user code; it keeps the frames alive.

    Parameters
    ----------
    own_main : bool
        Also set ``sys.last_exc`` and its like, for ``%debug`` and ``pdb.pm()``.
    """

    def __init__(self, own_main: bool) -> None:
        self._own_main = own_main
        self._error: BaseException | None = None
        self._frames: TracebackType | None = None

    def keep(self, error: BaseException) -> None:
        """An error comes out of a command or a task."""
        frames = error.__traceback__
        while frames is not None and inside(frames.tb_frame.f_code.co_filename):
            frames = frames.tb_next
        if frames is None or frames.tb_frame.f_code is pdb.Pdb.interaction.__code__:
            return  # nothing of the user's was running
        if isinstance(error, TaskRejected):
            return
        self._error, self._frames = error, frames
        if self._own_main:
            sys.last_type, sys.last_value, sys.last_traceback = type(error), error, frames
            vars(sys)["last_exc"] = error  # since Python 3.12

    def clear(self) -> None:
        """Let go of the frames."""
        self._error = self._frames = None
        if self._own_main:
            for name in ("last_type", "last_value", "last_traceback", "last_exc"):
                vars(sys).pop(name, None)

    def debug(self) -> None:
        """Let the user look around in the frames, with ``input()``; returns when the user quits."""
        if self._frames is None:
            raise IPython1Error("Nothing has failed on this engine yet, so there is nothing to debug.")
        print(f"{type(self._error).__name__}: {self._error}")
        debugger = _Debugger(completekey="", nosigint=True, readrc=False)
        debugger.reset()
        user_code(debugger.interaction, None, self._frames)


class _Debugger(pdb.Pdb):
    """Ends when it is interrupted, which stdlib's takes for a slip."""

    def _cmdloop(self) -> None:
        self.cmdloop()
