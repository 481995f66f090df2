"""The queue of one engine: commands wait, are handed over, are done.

==========  ======================  ==========================================
state       input                   next state, and what happens
==========  ======================  ==========================================
(new)       put                     waiting; handed over while the hand has room
waiting     room in the hand        handed; its record goes to the engine
waiting     cancel                  gone; given back to the caller; but one sent
                                    again stays: the engine may have run it, and
                                    decides when it has it
handed      put (the same id)       handed; goes to the engine again, which
                                    knows it and answers from what it kept
handed      done                    gone; the next waiting one is handed over
any         drain (engine dead)     gone; given back to the caller
==========  ======================  ==========================================

The engine runs what it was handed in order, so the oldest handed command is
the running one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

#: Commands handed to an engine and not done, at most.
HAND = 64


@dataclass(slots=True)
class Command:
    """What the controller knows of a command for one engine."""

    id: str
    op: str
    label: str
    raw: bytes  # the Submit as it came; empty once the engine has it
    again: bool = False  # the engine may have had it from an earlier controller
    since: float = 0.0  # when it came to the head of the hand, controller's clock
    after: bytes = b""  # what goes to the engine behind it
    queued: float = 0.0  # when it came, controller's clock

    @property
    def client(self) -> str:
        """Id of the client that sent it."""
        return self.id.partition("-")[0]


class EngineQueue:
    """First in, first out, with a few commands handed ahead.

    Parameters
    ----------
    now : callable
        Wall-clock time in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._send: Callable[[bytes], None] | None = None
        self._waiting: OrderedDict[str, Command] = OrderedDict()  # a dict is slow to take the first out of
        self._handed: dict[str, Command] = {}
        #: When the last command was done, and no other was there.
        self.empty_since = 0.0

    def __contains__(self, id: object) -> bool:
        return id in self._waiting or id in self._handed

    def __len__(self) -> int:
        return len(self._waiting) + len(self._handed)

    @property
    def running(self) -> Command | None:
        """The oldest handed command."""
        return next(iter(self._handed.values()), None)

    @property
    def commands(self) -> list[Command]:
        """All of them, in order."""
        return [*self._handed.values(), *self._waiting.values()]

    def open(self, send: Callable[[bytes], None]) -> None:
        """The engine takes commands, through `send`."""
        self._send = send
        self._hand_over()

    def adopt(self, command: Command) -> None:
        """A command that the engine says it has: this controller did not hand it over."""
        command.queued = self._now()
        self._handed.setdefault(command.id, command)
        self._note_head()

    def put(self, command: Command) -> None:
        """Append a command; one that the engine already has goes to it once more."""
        if command.id in self._handed:
            if self._send is not None:
                self._send(command.raw)
        elif command.id not in self._waiting:
            command.queued = self._now()
            self._waiting[command.id] = command
            self._hand_over()

    def waits(self, id: str) -> bool:
        """Whether command `id` is here and the engine does not have it yet."""
        return id in self._waiting

    def change(self, id: str, change: Callable[[bytes], bytes]) -> bool:
        """Change the record of command `id`, where it waits; False where it does not."""
        command = self._waiting.get(id)
        if command is not None:
            command.raw = change(command.raw)
        return command is not None

    def with_engine(self, id: str) -> Command | None:
        """Command `id`, where the engine has it."""
        return self._handed.get(id)

    def done(self, id: str) -> bool:
        """The engine is through with command `id`; False where it had none such."""
        if self._handed.pop(id, None) is None:
            return False
        self._hand_over()
        if not self._handed:
            self.empty_since = self._now()
        return True

    def cancel(self, match: Callable[[Command], bool]) -> list[Command]:
        """Take out and return the waiting commands that match."""
        gone = [command for command in self._waiting.values() if match(command)]
        for command in gone:
            del self._waiting[command.id]
        return gone

    def take(self, ids: Collection[str], after: Callable[[str], bytes]) -> list[Command]:
        """Take out and return the waiting ones of `ids`; all that wait, where that is empty.

        Those sent again stay; ``after(id)`` goes to the engine behind them.
        """
        gone = []
        for id in ids or list(self._waiting):
            command = self._waiting.get(id)
            if command is None:
                continue
            if command.again:
                command.after = after(id)
            else:
                gone.append(self._waiting.pop(id))
        return gone

    def handed(self, ids: Collection[str]) -> list[str]:
        """Those of `ids` that are with the engine; all that are, where that is empty."""
        return [id for id in ids or self._handed if id in self._handed]

    def drain(self) -> list[Command]:
        """Take out and return everything, oldest first."""
        gone = [*self._handed.values(), *self._waiting.values()]
        self._handed.clear()
        self._waiting.clear()
        self._send = None
        return gone

    def _hand_over(self) -> None:
        while self._waiting and len(self._handed) < HAND and self._send is not None:
            id, command = self._waiting.popitem(last=False)
            self._handed[id] = command
            self._send(command.raw)
            if command.after:
                self._send(command.after)
            command.raw = command.after = b""
        self._note_head()

    def _note_head(self) -> None:
        head = self.running
        if head is not None and not head.since:
            head.since = self._now()
