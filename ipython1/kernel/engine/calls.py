"""How a task is carried out."""

from __future__ import annotations

import pickle
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ipython1.kernel.engine.failures import encoded
from ipython1.kernel.engine.jobs import Common
from ipython1.kernel.engine.kept import Buffer
from ipython1.kernel.engine.mainloop import user_code
from ipython1.kernel.engine.operations import Operations
from ipython1.kernel.engine.this_engine import set_current
from ipython1.kernel.error import TaskRejected
from ipython1.kernel.wire.chunks import Row, join_rows, split_rows
from ipython1.kernel.wire.loans import Loans
from ipython1.kernel.wire.objects import loads_arguments, loads_functions, loads_lasting_call
from ipython1.kernel.wire.runners import Depending, nothing

#: Batches whose functions are kept.
FUNCTIONS_KEPT = 64


class _Function(NamedTuple):
    """What a batch calls: the function of the tasks, or what code depends on."""

    f: Callable[..., Any] | None
    loans: Loans


class TaskOperations:
    """Carries out tasks on the shell of `operations`. On the main thread.

    The function of a batch is made once, of the parts of its `Common`, and
    made again only where it was not used for a while.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._shell = operations.shell
        self._used: OrderedDict[Common, None] = OrderedDict()  # those that have functions, the last used last

    def answer(self, common: Common, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """What comes of a task, pickled: as of `Operations.answer`."""
        shell, args = self._shell, common.args
        before = set_current(self._operations.engine)
        try:
            with shell.active():
                if not args:
                    return self._answer(common, parts)
                if args.get("clear_before"):
                    shell.reset()
                try:
                    # Pickled before the end, for functions of the namespace lose their names with it.
                    return self._answer(common, parts)
                finally:
                    if args.get("clear_after"):
                        shell.reset()
        finally:
            if not shell.own_main:
                set_current(before)

    def _answer(self, common: Common, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        if common.op == "chunk":
            return self._chunk(common, parts)
        return self._operations.dumped(_TABLE[common.op](self, common, parts))

    def _chunk(self, common: Common, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """Several calls; what came of each. Nothing of those behind one that is not for this engine, or
        that was interrupted."""
        f, rows = self._function(common), list[Row]()
        for _, raw in split_rows(parts):
            started = time.time()
            try:
                args, kwargs = user_code(loads_arguments, raw, self._shell.user_ns)
                value = self._operations.dumped(self._operations.called(f, args, kwargs))
                own: Sequence[Buffer] = list(map(bytes, value))  # the next call may change what they show
                ok, interrupted = True, False
            except TaskRejected:
                if not rows:
                    raise
                break
            except BaseException as error:  # noqa: BLE001 -- user code; only its own item fails
                own, ok = [encoded(error)], False
                interrupted = isinstance(error, KeyboardInterrupt)
            rows.append(Row((ok, started, time.time()), own))
            if interrupted:
                break
        return join_rows(rows)

    def _call(self, common: Common, parts: Sequence[Buffer]) -> Any:
        f = self._function(common)
        args, kwargs = user_code(loads_arguments, parts, self._shell.user_ns)
        return self._operations.called(f, args, kwargs)

    def _code(self, common: Common, parts: Sequence[Buffer]) -> dict[str, Any]:
        depend = self._function(common)
        if depend is not None:
            self._operations.called(depend, (), {})
        source, keys = b"".join(common.parts or ()), common.args.get("pull", ())
        self._shell.user_ns.update(user_code(loads_functions, parts, self._shell.user_ns))
        self._shell.run_code(source.decode("utf-8", "surrogatepass"), silent=True)
        return dict(zip(keys, self._operations.values(keys), strict=True))

    def _function(self, common: Common) -> Any:
        function = common.loaded
        if function is None:
            function = common.loaded = user_code(_LOADERS[common.op], common, self._shell.user_ns)
            if common.dropped:  # meanwhile
                common.loaded = None
            self._used[common] = None
            if len(self._used) > FUNCTIONS_KEPT:
                self._used.popitem(last=False)[0].loaded = None
        else:
            function.loans.renew()
            self._used.move_to_end(common)
        return function.f


def _load_function(common: Common, user_ns: dict[str, Any]) -> _Function:
    f, _, _, loans = loads_lasting_call(common.parts or (), user_ns)
    return _Function(f, loans)


def _load_dependency(common: Common, user_ns: dict[str, Any]) -> _Function:
    raw = common.args.get("depend")
    if raw is None:
        return _Function(None, Loans(user_ns))
    check, args, kwargs, loans = loads_lasting_call((raw, _NO_SOURCES), user_ns)
    return _Function(Depending(nothing, check, args, kwargs), loans)


_NO_SOURCES = pickle.dumps([], protocol=5)

_TABLE: dict[str, Callable[[TaskOperations, Common, Sequence[Buffer]], Any]] = {
    "call": TaskOperations._call,
    "code": TaskOperations._code,
}
_LOADERS = {"call": _load_function, "chunk": _load_function, "code": _load_dependency}
