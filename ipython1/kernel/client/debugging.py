"""`debug`: a debugger on an engine, used from here."""

from __future__ import annotations

from ipython1.kernel.client import asking, streaming
from ipython1.kernel.client.calls import Calls, wait_for
from ipython1.kernel.error import IPython1Error


class DebugCalls(Calls):
    """The call that debugs what failed."""

    def debug(self, engine: int | None = None) -> None:
        """Look with pdb at what failed last on an engine; ``q`` or Ctrl-C ends that.

        The frames of the failure are still there: show their variables, go up
        and down, run code in them. The engine does nothing else meanwhile.

        Parameters
        ----------
        engine : int, optional
            Its id. Nothing: the only target.

        Raises
        ------
        CompositeError
            Nothing has failed there.
        IPython1Error
            Nobody can type here.
        """
        chosen = self._chosen(engine)
        if len(chosen) != 1:
            raise ValueError(f"A debugger runs on one engine. Say which, as in debug({chosen[0]}).")
        if not asking.user_here() and self._owner().input_handler is None:
            raise IPython1Error(
                "Nobody can type here. Call debug() in the main thread of a terminal or notebook, "
                "or set input_handler."
            )
        pending = self._command("debug", "debug", {}, targets=chosen, block=False, attended=True)
        try:
            wait_for(self._core, pending, lambda: streaming.stream(pending, labels=False))
        except KeyboardInterrupt:
            print()  # that ended it
