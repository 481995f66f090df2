"""The operations of an engine, as the client's methods ask for them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CoroutineType
from typing import Any, Union

from ipython1.kernel.engine.completing import complete
from ipython1.kernel.engine.interactive import flush_figures
from ipython1.kernel.engine.mainloop import user_code
from ipython1.kernel.engine.postmortem import LastFailure
from ipython1.kernel.engine.shell import EngineShell
from ipython1.kernel.engine.this_engine import ThisEngine, set_current
from ipython1.kernel.error import UnknownResult
from ipython1.kernel.wire.objects import (
    OUT_OF_BAND,
    dumps,
    dumps_values,
    loads,
    loads_call,
    loads_functions,
)

Buffer = Union[bytes, bytearray, memoryview]
Parts = Sequence[Buffer]
Args = Mapping[str, Any]


class Operations:
    """Carries out operations on a shell.

    Parameters
    ----------
    shell : EngineShell
    engine : ThisEngine
        Holds the properties; code that runs finds it as ``ipython1.this_engine``.
    """

    def __init__(self, shell: EngineShell, engine: ThisEngine) -> None:
        self.shell = shell
        self.engine = engine
        self.last_failure = LastFailure(shell.own_main)
        if shell.own_main:
            set_current(engine)

    def perform(self, op: str, args: Args, parts: Parts) -> Any:
        """The value of operation `op`, or what it raises."""
        before = set_current(self.engine)
        try:
            return _TABLE[op](self, args, parts)
        finally:
            if not self.shell.own_main:
                set_current(before)

    def answer(self, op: str, args: Args, parts: Parts) -> list[bytes | memoryview]:
        """The same, pickled.

        Returns
        -------
        list of bytes or memoryview
            Large buffers are views of live objects: copy them before the next
            operation runs.
        """
        with self.shell.active():
            value = self.perform(op, args, parts)
            if op == "give":
                return user_code(dumps_values, value)
            return [pickle.dumps(value, protocol=5)] if op in _PLAIN else self.dumped(value)

    def dumped(self, value: Any) -> list[bytes | memoryview]:
        """A result, pickled; see `answer`."""
        kind = type(value)
        if kind in _SIMPLE or (kind is bytes and len(value) < OUT_OF_BAND):
            return [pickle.dumps(value, protocol=5)]  # as `dumps` would do it; 1 us, not 12
        return user_code(dumps, value, f"the result (a {kind.__name__})")

    # -- code ------------------------------------------------------------------------

    def _execute(self, args: Args, parts: Parts) -> dict[str, Any]:
        return self.shell.run_code(_text(parts), bool(args.get("silent", False)))

    def _run(self, args: Args, parts: Parts) -> dict[str, Any]:
        ns, filename = self.shell.user_ns, str(args["filename"])
        ns["__file__"] = filename
        try:
            return self.shell.run_code(_text(parts), filename=filename)
        finally:
            ns.pop("__file__", None)

    def _apply(self, args: Args, parts: Parts) -> Any:
        with self.shell.active():
            f, call_args, call_kwargs = user_code(loads_call, parts, self.shell.user_ns)
            return self.called(f, call_args, call_kwargs)

    def called(self, f: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the user's function `f` returns, or the coroutine it returns."""
        try:
            value = user_code(f, *args, **kwargs)
            return self.shell.run_coroutine(value) if isinstance(value, CoroutineType) else value
        finally:
            user_code(flush_figures)  # or they would be part of a later command

    def _get_result(self, args: Args, parts: Parts) -> dict[str, Any]:
        number = args.get("number")
        record = self.shell.recall(number)
        if record is None:
            id = "of any command" if number is None else f"of command {number}"
            last = self.shell.execution_count
            raise UnknownResult(
                f"No result {id} is known to this engine; its last one has number {last}.", id=id
            )
        return record

    def _complete(self, args: Args, parts: Parts) -> tuple[int, int, list[str]]:
        return user_code(complete, self.shell.ip, _text(parts), int(args["cursor"]))

    def _debug(self, args: Args, parts: Parts) -> None:
        self.last_failure.debug()

    # -- the namespace ---------------------------------------------------------------

    def _push(self, args: Args, parts: Parts) -> None:
        with self.shell.active():
            self.shell.user_ns.update(user_code(loads_functions, parts, self.shell.user_ns))

    def _pull(self, args: Args, parts: Parts) -> list[Any]:
        return self.values(args["keys"])

    def _give(self, args: Args, parts: Parts) -> dict[str, Any]:
        return dict(zip(args["names"], self.values(args["keys"]), strict=True))

    def _delete(self, args: Args, parts: Parts) -> None:
        self.values(args["keys"])
        with self.shell.active():  # a __del__ may print
            for key in dict.fromkeys(args["keys"]):
                del self.shell.user_ns[key]

    def values(self, keys: Iterable[str]) -> list[Any]:
        ns = self.shell.user_ns
        for key in keys:
            if key not in ns:
                raise NameError(f"name {key!r} is not defined", name=key)
        return [ns[key] for key in keys]

    def _has(self, args: Args, parts: Parts) -> list[bool]:
        return [key in self.shell.user_ns for key in args["keys"]]

    def _keys(self, args: Args, parts: Parts) -> list[str]:
        return self.shell.user_names()

    def _reset(self, args: Args, parts: Parts) -> None:
        self.shell.reset()
        self.last_failure.clear()

    # -- properties ------------------------------------------------------------------

    def _set_properties(self, args: Args, parts: Parts) -> None:
        with self.shell.active():
            self.engine.properties.update(user_code(loads, parts))

    def _get_properties(self, args: Args, parts: Parts) -> dict[str, Any]:
        keys = args.get("keys")
        return {
            key: self.engine.properties[key] for key in (self.engine.properties if keys is None else keys)
        }

    def _has_properties(self, args: Args, parts: Parts) -> list[bool]:
        return [key in self.engine.properties for key in args["keys"]]

    def _del_properties(self, args: Args, parts: Parts) -> None:
        keys = dict.fromkeys(args["keys"])
        for key in keys:
            self.engine.properties[key]  # all or nothing
        for key in keys:
            del self.engine.properties[key]

    def _clear_properties(self, args: Args, parts: Parts) -> None:
        self.engine.properties.clear()


def _text(parts: Parts) -> str:
    return bytes(parts[0]).decode("utf-8", "surrogatepass")


_TABLE: dict[str, Callable[[Operations, Args, Parts], Any]] = {
    "execute": Operations._execute,
    "run": Operations._run,
    "apply": Operations._apply,
    "get_result": Operations._get_result,
    "complete": Operations._complete,
    "debug": Operations._debug,
    "push": Operations._push,
    "push_function": Operations._push,
    "pull": Operations._pull,
    "pull_function": Operations._pull,
    "give": Operations._give,
    "delete": Operations._delete,
    "has": Operations._has,
    "keys": Operations._keys,
    "reset": Operations._reset,
    "set_properties": Operations._set_properties,
    "get_properties": Operations._get_properties,
    "has_properties": Operations._has_properties,
    "del_properties": Operations._del_properties,
    "clear_properties": Operations._clear_properties,
}

#: Types that cloudpickle pickles as pickle does, and in five times the time.
_SIMPLE = frozenset({type(None), bool, int, float, str})

#: Those whose values are dicts of plain data that the shell has made.
_PLAIN = frozenset({"execute", "run"})

#: The names of all operations.
OPERATIONS = frozenset(_TABLE)
