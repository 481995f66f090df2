"""Batches that stay open, so that many calls of one function send it once."""

from __future__ import annotations

import hashlib
import operator
import pickle
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cloudpickle import cloudpickle as _cloudpickle

from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.blobs import Buffer
from ipython1.kernel.wire.loans import names_used

if TYPE_CHECKING:
    from ipython1.kernel.client.batches import Batches

P = TypeVar("P", bound=TaskPending)

#: Functions whose batches are kept open, and the bytes they may have together; one may have more.
OPEN_LIMIT, OPEN_BYTES = 16, 16 * 1024 * 1024
#: Tasks of one batch, at most.
BATCH_LIMIT = 10_000

#: Types whose objects hold no others, and pickle alike each time.
_LEAVES = frozenset({int, float, complex, bool, str, bytes, type(None)})
#: Of these, those that plain pickle treats as cloudpickle does; bytes may be large.
_SCALARS = _LEAVES - {bytes}
_NOTHING = object()


def dump_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Buffer]:
    """The arguments of one task, pickled; small plain ones ten times as fast as by `objects.dumps`."""
    if _SCALARS.issuperset(map(type, args)) and _SCALARS.issuperset(map(type, kwargs.values())):
        return [pickle.dumps((args, kwargs), protocol=5)]
    return list(objects.dumps((args, kwargs), "an argument of the task", own=2))


class _Held(NamedTuple):
    """`name` stands for `value` in `names`, or did not."""

    names: Mapping[str, Any]
    name: str
    value: Any


class Unchanged:
    """Whether a function still pickles as it did, where that can be told without pickling it again.

    It can of functions that travel by name, and of others as long as all they
    use are such functions, modules, importable classes and plain values.
    """

    def __init__(self, f: Any) -> None:
        self._held: list[_Held] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._attributes: list[tuple[types.FunctionType, tuple[Any, ...]]] = []
        self._seen: set[int] = set()
        self._certain = self._look_at(f)

    def __bool__(self) -> bool:
        return (
            self._certain
            and all([names.get(name, _NOTHING) is value for names, name, value in self._held])
            and all([_content(cell) is value for cell, value in self._cells])
            and all([_same(_attributes(f), attributes) for f, attributes in self._attributes])
        )

    def _look_at(self, value: Any) -> bool:
        """Note what `value` depends on; False where that cannot be told."""
        if type(value) in _LEAVES or id(value) in self._seen:
            return True
        if isinstance(value, types.ModuleType):
            return _by_name(value)
        if isinstance(value, types.BuiltinFunctionType):
            return isinstance(value.__self__, (types.ModuleType, type(None)))
        if isinstance(value, (types.FunctionType, type)):
            if _by_name(value):
                names, name = vars(sys.modules[value.__module__]), value.__qualname__.partition(".")[0]
                self._held.append(_Held(names, name, names.get(name, _NOTHING)))
                return True
            return isinstance(value, types.FunctionType) and self._look_into(value)
        return False

    def _look_into(self, f: types.FunctionType) -> bool:
        self._seen.add(id(f))
        if f.__dict__:
            return False
        self._attributes.append((f, _attributes(f)))
        used: list[Any] = [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
        own = f.__globals__
        for name in names_used(f.__code__):
            value = own.get(name, _NOTHING)
            self._held.append(_Held(own, name, value))
            if value is not _NOTHING:
                used.append(value)
        for cell in f.__closure__ or ():
            value = _content(cell)
            self._cells.append((cell, value))
            used.append(value)
        return all(map(self._look_at, used))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty, and must not be
        return _NOTHING


def _attributes(f: types.FunctionType) -> tuple[Any, ...]:
    kwdefaults = f.__kwdefaults__
    if not kwdefaults:
        return f.__code__, f.__defaults__
    return (f.__code__, f.__defaults__, *kwdefaults, *kwdefaults.values())


def _same(now: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _by_name(value: Any) -> bool:
    return bool(_cloudpickle._should_pickle_by_reference(value))


class _Open:
    """A batch that takes more tasks."""

    __slots__ = ("count", "digest", "f", "id", "size", "unchanged")

    def __init__(self, f: Any, parts: Sequence[Buffer], digest: bytes, id: str) -> None:
        self.f = f
        self.size = sum(map(len, parts))
        self.digest = digest
        self.id = id
        self.unchanged = Unchanged(f)
        self.count = 0


def _digest(parts: Sequence[Buffer]) -> bytes:
    """Tells whether a function pickles as it did; the pickle itself may be large."""
    found = hashlib.sha256(repr([len(part) for part in parts]).encode())
    for part in parts:
        found.update(part)
    return found.digest()


class OpenBatches:
    """The batches of functions that were submitted lately. Thread-safe.

    Parameters
    ----------
    tasks : Batches
        The reactor's side.

    Attributes
    ----------
    lock : Lock
        Held while a task is made and sent. Nobody who has it waits for the
        reactor thread, which takes it too.
    """

    def __init__(self, tasks: Batches) -> None:
        self._tasks = tasks
        self.lock = threading.Lock()
        self._open: OrderedDict[int, _Open] = OrderedDict()

    def send(
        self,
        f: Callable[..., Any],
        label: str,
        parts: list[Buffer],
        make: Callable[[str, range], P],
    ) -> P:
        """Send one call of `f` with the arguments in `parts`; `make` makes its result, under the lock.

        Where very much is outstanding it waits, unless it must not.

        Raises
        ------
        SerializationError
            The function cannot be sent.
        """
        key = id(f)
        self._tasks.room.wait()
        with self.lock:  # to the end: a batch must not be closed while a task is on its way to it
            known = self._open.get(key)
            if known is None or known.f is not f or known.count >= BATCH_LIMIT or not known.unchanged:
                known = self._renewed(key, known, f, label)
            elif len(self._open) > 1:
                self._open.move_to_end(key)
            known.count += 1
            slots = self._tasks.reserve(known.id)
            pending = make(known.id, slots)
            self._tasks.add(pending, slots, (parts,), wait=False)
            return pending

    def _renewed(self, key: int, known: _Open | None, f: Callable[..., Any], label: str) -> _Open:
        parts = objects.dumps_call(f)
        digest = _digest(parts)
        if known is not None:
            if known.f is f and known.count < BATCH_LIMIT and known.digest == digest:
                known.unchanged = Unchanged(f)
                return known
            del self._open[key]
            self._tasks.close(known.id)
        new = self._open[key] = _Open(f, parts, digest, self._tasks.open("call", parts, label=label))
        size = sum(batch.size for batch in self._open.values())
        while len(self._open) > OPEN_LIMIT or (size > OPEN_BYTES and len(self._open) > 1):
            _, oldest = self._open.popitem(last=False)
            size -= oldest.size
            self._tasks.close(oldest.id)
        return new

    def close(self) -> None:
        """Close them all; what is on its way goes on."""
        with self.lock:
            for batch in self._open.values():
                self._tasks.close(batch.id)
            self._open.clear()
