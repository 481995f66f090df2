"""Shared memory for bulk bytes, the sender's side: an arena of segments that are used again.

Memory used for the first time costs five times as much as copying into it, so
a segment that nobody can see any more takes the next bytes. Nobody can see it
when its name has been taken away (`Arena.release`) and the kernel says that no
process has it mapped; see `segments`. Every use has a new random name, so a
name stands for one content for ever. In doubt a segment is unlinked: whoever
has it mapped keeps it, and it is never written again.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

from ipython1.kernel.wire.blocks import Block, Piece, best
from ipython1.kernel.wire.drafts import Draft, Ranges, Segment
from ipython1.kernel.wire.mappings import PAGE, room
from ipython1.kernel.wire.segments import (
    is_unseen,
    kernel_tells,
    make_owned_folder,
    memory,
    space,
    sweep,
    user_folder,
)

#: Seconds after which memory nobody uses goes back to the host.
IDLE = 5.0
#: Seconds that released memory may stay mapped elsewhere before it is left to those who have it.
KEPT_ELSEWHERE = 30.0
#: Segments asked about in one `put` and in one `trim`, at most.
ASKED_IN_PUT = 16
ASKED_IN_TRIM = 256  # also in a put that finds no room

log = logging.getLogger(__name__)


class Arena:
    """The shared memory one process sends from. Thread-safe; a forked child can't use its parent's.

    Nothing is made before the first `put`.

    Parameters
    ----------
    folder : Path, optional
        Another `user_folder`.
    limit : int, optional
        Bytes it may hold. Half of what is free in ``/dev/shm`` at first use,
        and a quarter of the memory, where it is not given.
    note : callable, optional
        Takes the one sentence that says why there is no shared memory.
    """

    def __init__(
        self,
        folder: Path | None = None,
        limit: int | None = None,
        note: Callable[[str], None] = log.warning,
    ) -> None:
        self._place = folder
        self._limit = limit
        self._note: Callable[[str], None] | None = note
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._home: Path | None = None
        self._owner = -1
        self._usable = True
        self._bytes = 0
        self._published: dict[str, Block] = {}
        self._released: dict[str, Block] = {}  # somebody may have them mapped; longest not asked about first
        self._free: dict[str, Block] = {}  # nobody has
        _arenas.add(self)

    # -- use --------------------------------------------------------------------

    def put(self, data: Iterable[Any]) -> Segment | None:
        """Copy `data` into one segment, ready to be attached by name until `release`.

        Parameters
        ----------
        data : iterable of buffers
            Contiguous ones, like bytes, memoryviews or arrays.

        Returns
        -------
        Segment or None
            None where there is no room or no shared memory: send it another way.
        """
        views = [PickleBuffer(item).raw() for item in data]
        ranges, size, start = [], 0, 0
        for view in views:
            ranges.append((start, view.nbytes))
            size = start + view.nbytes
            start = -(-size // PAGE) * PAGE
        if not size or not self._ours():
            return None
        pieces = list(zip(ranges, views, strict=True))
        return self._put(pieces, size) or self._put(pieces, size, last=True)

    def _put(self, pieces: list[Piece], size: int, last: bool = False) -> Segment | None:
        with self._lock:
            home = self._open_home()
            try:
                block = None if home is None else self._take(home, size)
            except OSError:  # the folder is gone
                block = None
                self._leave()
        if home is None or block is None:
            return None
        try:
            block.write(home, pieces, size)
        except BaseException as error:  # Ctrl-C as well
            with self._lock:
                self._failed(home, block)
            if not isinstance(error, OSError):
                raise
            if last:
                self._tell(f"shared memory can't be written ({error.strerror})")
            return None
        return self._publish(home, block, size, tuple(place for place, _ in pieces))

    def _publish(self, home: Path, block: Block, size: int, ranges: Ranges) -> Segment | None:
        with self._lock:
            if self._home != home:
                return None  # closed, or the folder was lost, while we wrote
            self._published[block.file] = block
        return Segment(f"{home.name}/{block.file}", size, ranges)

    def draft(self, size: int) -> Draft | None:
        """A segment of one buffer, to be filled bit by bit; None where there is no room."""
        if not size or not self._ours():
            return None
        with self._lock:
            home = self._open_home()
            try:
                block = None if home is None else self._take(home, size)
            except OSError:
                return None
        return (
            None if home is None or block is None else Draft(home, block, size, self._publish, self._discard)
        )

    def release(self, name: str) -> None:
        """Nobody may attach `name` any more; those who have go on undisturbed. Again does no harm.

        Not to be called from a finalizer: it takes the arena's lock.
        """
        folder, _, file = name.partition("/")
        if not self._ours():
            return
        with self._lock:
            if self._home is None or folder != self._home.name:
                return
            block = self._published.pop(file, None)
            if block is not None and self._rename(self._home, block):
                block.since = None
                self._released[block.file] = block

    def trim(self, now: float) -> None:
        """Give back what is not used; call it every second or so.

        Parameters
        ----------
        now : float
            Seconds on any steady clock.
        """
        if not self._ours():
            return
        with self._lock:
            if self._home is None:
                return
            self._ask_released(self._home)
            for blocks, patience in ((self._free, IDLE), (self._released, KEPT_ELSEWHERE)):
                for block in list(blocks.values()):
                    if block.since is None:
                        block.since = now
                    elif now - block.since >= patience:
                        del blocks[block.file]
                        self._unlink(self._home, block)

    def close(self) -> None:
        """Remove everything. What others have mapped they keep; `put` gives None from now on."""
        if not self._ours():
            return
        with self._lock:
            self._usable = False
            self._leave()

    @property
    def held(self) -> int:
        """Bytes of shared memory in segments: published, still mapped somewhere, and idle."""
        return self._bytes

    @property
    def idle(self) -> int:
        """Those of the `held` bytes that the next `put` can use."""
        return sum(block.capacity for block in list(self._free.values()))

    # -- segments, with the lock held ---------------------------------------------

    def _take(self, home: Path, size: int) -> Block | None:
        """A file for `size` bytes that nobody else knows."""
        block = best(self._free.values(), size)
        if block is None:
            for other in [b for b in self._released.values() if b.fits(size)][:ASKED_IN_PUT]:
                if self._ask(home, other):
                    block = other
                    break
        fresh = room(size) - (0 if block is None else block.capacity)
        if fresh > 0 and not self._has_room(home, fresh):
            self._ask_released(home)
            self._drop_free(home, block)
            if not self._has_room(home, fresh):
                self._tell("shared memory is full")
                return None
        if block is None:
            block = Block(secrets.token_hex(16))
        else:
            del self._free[block.file]
        if fresh > 0:
            block.capacity += fresh
            self._bytes += fresh
        return block

    def _has_room(self, home: Path, fresh: int) -> bool:
        if self._limit is None or self._bytes + fresh > self._limit:
            return False
        whole, free = space(home)
        return free - fresh >= whole // 8  # some is left for others

    def _drop_free(self, home: Path, but: Block | None = None) -> None:
        for block in [block for block in self._free.values() if block is not but]:
            del self._free[block.file]
            self._unlink(home, block)

    def _ask_released(self, home: Path) -> None:
        for block in list(self._released.values())[:ASKED_IN_TRIM]:
            self._ask(home, block)

    def _ask(self, home: Path, block: Block) -> bool:
        """Whether nobody has a released segment any more, from the kernel."""
        del self._released[block.file]
        try:
            unseen = is_unseen(home / block.file)
        except OSError:  # it was removed behind our back
            self._unlink(home, block)
            return False
        if unseen:
            block.since = None
        (self._free if unseen else self._released)[block.file] = block
        return unseen

    def _rename(self, home: Path, block: Block) -> bool:
        file = secrets.token_hex(16)
        try:
            os.rename(home / block.file, home / file)
        except OSError:
            self._unlink(home, block)
            return False
        block.file = file
        return True

    def _unlink(self, home: Path, block: Block) -> None:
        """Forget a segment that stands in none of the books."""
        self._bytes -= block.capacity
        block.mapping = None
        try:
            os.unlink(home / block.file)
        except OSError:
            pass  # gone already, or the next sweep takes it

    def _discard(self, home: Path, block: Block) -> None:
        with self._lock:
            if self._home == home:
                self._unlink(home, block)

    def _failed(self, home: Path, block: Block) -> None:
        """A segment could not be written: make room, or begin anew where the folder is gone."""
        if self._home != home:
            return
        self._unlink(home, block)
        if home.is_dir():
            self._drop_free(home)
        else:
            self._leave()

    # -- the folder, with the lock held ---------------------------------------------

    def _ours(self) -> bool:
        return self._pid == os.getpid()

    def _tell(self, sentence: str) -> None:
        note, self._note = self._note, None
        if note is not None:
            note(f"{sentence}; large objects take the slower way while that is so")

    def _open_home(self) -> Path | None:
        """The folder of our segments, made at the first use."""
        if self._home is not None or not self._usable:
            return self._home
        place = user_folder(self._place)
        if place is None:
            self._usable = False
            self._tell("there is no shared memory here")
            return None
        try:
            sweep(place)
            home, self._owner = make_owned_folder(place)
        except OSError as error:
            self._usable = False
            self._tell(f"there is no shared memory ({error.strerror})")
            return None
        self._home = home
        if not kernel_tells(home):
            self._usable = False
            self._leave()
            self._tell("this system does not say who uses shared memory")
        elif self._limit is None:
            self._limit = min(space(place)[1] // 2, memory() // 4)
        return self._home

    def _leave(self) -> None:
        """Remove the folder, and forget what was in it."""
        home, self._home = self._home, None
        if home is None:
            return
        for blocks in (self._published, self._released, self._free):
            blocks.clear()
        self._bytes = 0
        shutil.rmtree(home, ignore_errors=True)
        os.close(self._owner)

    def _forked(self) -> None:
        """In a child: let go of what would keep the parent's folder and memory after the parent."""
        home, self._home = self._home, None
        if home is not None:
            os.close(self._owner)
            for blocks in (self._published, self._released, self._free):
                blocks.clear()


def _after_fork() -> None:
    for arena in list(_arenas):
        arena._forked()


_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
