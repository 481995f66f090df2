"""The engines of a host go before the time of their job is over, in order."""

from __future__ import annotations

from ipython1.kernel.engine.nanny import Nanny
from ipython1.kernel.engine.zygote import IZygote
from ipython1.kernel.processes import TIME_OVER

#: Seconds between looks at whether anything still runs.
INTERVAL = 0.25
#: Looks, one after the other, at which nothing ran: what was called back has gone by then.
QUIET = 8


class Leaving:
    """Has a nanny quit in time: when nothing runs any more, or else when there is no more time.

    First the controller is told, which gives the engines no more tasks, and calls back those that wait.

    Parameters
    ----------
    zygote : IZygote
        Tells the time.
    nanny : Nanny
    after : float
        Seconds from now to when that begins.
    within : float
        Seconds that what runs then may go on.
    """

    def __init__(self, zygote: IZygote, nanny: Nanny, after: float, within: float) -> None:
        self._zygote = zygote
        self._nanny = nanny
        self._after = after
        self._within = within
        self._deadline = 0.0
        self._quiet = 0

    def start(self) -> None:
        """Begin to wait."""
        self._zygote.callLater(max(0.0, self._after), self._begin)

    def _begin(self) -> None:
        self._deadline = self._zygote.seconds() + self._within
        self._nanny.leave(self._within)
        self._look()

    def _look(self) -> None:
        runs = any(engine.board.read() for engine in self._nanny.engines.values())
        self._quiet = 0 if runs else self._quiet + 1
        if self._quiet >= QUIET or self._zygote.seconds() >= self._deadline:
            self._nanny.quit(why=TIME_OVER)
        else:
            self._zygote.callLater(INTERVAL, self._look)
