"""Python objects as parts: a pickle, and the large buffers beside it.

cloudpickle at protocol 5 does the work. Added here: arrays come out writable,
functions find their names on the engine, and their source text travels along
so that remote tracebacks can show it.
"""

from __future__ import annotations

import builtins
import functools
import io
import pickle
import re
import sys
import types
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union

import cloudpickle
from cloudpickle import cloudpickle as _cloudpickle

from ipython1.kernel.error import RemoteFailure, SerializationError
from ipython1.kernel.texts import sendable
from ipython1.kernel.wire.loans import Loans
from ipython1.kernel.wire.sources import remember_source, source_texts
from ipython1.kernel.wire.whole_bytes import outside

Buffer = Union[bytes, bytearray, memoryview]

#: Buffers of at least this many bytes leave the pickle.
OUT_OF_BAND = 16 * 1024
#: Longest message, traceback (characters) and pickle (bytes) in a failure.
EVALUE_LIMIT, TRACEBACK_LIMIT, PICKLE_LIMIT = 8 * 1024, 48 * 1024, 256 * 1024


def variable_name(name: str) -> str:
    """A name as Python has it in a namespace: in code, 'µ' stands for 'μ'."""
    return name if name.isascii() else unicodedata.normalize("NFKC", name)


class Reference:
    """Stands for an object of the engine in the arguments of a call.

    Parameters
    ----------
    name : str
        Its name in the engine's namespace.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{name!r} is not a name; give the name of a variable on the engine, as in 'x'.")
        self.name = variable_name(name)

    def __repr__(self) -> str:
        return f"Reference({self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reference, (self.name,)


def _reference(name: str) -> Reference:
    """What a pickled `Reference` calls; `loads_call` puts the lookup in its place."""
    return Reference(name)


# -- out ---------------------------------------------------------------------


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO, buffer_callback: Callable[[pickle.PickleBuffer], bool]) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        # An array can only be there where numpy has been imported already.
        self._ndarray = getattr(sys.modules.get("numpy"), "ndarray", None)
        self.codes: list[types.CodeType] = []

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is self._ndarray and not obj.flags.writeable:
            return _writable_alias(obj).__reduce_ex__(5)
        return super().reducer_override(obj)

    def _dynamic_function_reduce(self, func: types.FunctionType) -> Any:
        self.codes.append(func.__code__)
        return super()._dynamic_function_reduce(func)


class _Memory:
    """The memory of an array, offered to numpy as writable bytes."""

    def __init__(self, array: Any) -> None:
        self.array = array  # keeps the memory alive
        data = (array.__array_interface__["data"][0], False)
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (array.nbytes,), "data": data}


def _writable_alias(array: Any) -> Any:
    """The same array without its read-only mark, which would arrive with it; a copy where that can't be."""
    contiguous = array.flags.c_contiguous or array.flags.f_contiguous
    if not contiguous or not array.nbytes or array.dtype.hasobject or array.dtype.kind not in "biufcmMSUV":
        return array.copy()
    order = "C" if array.flags.c_contiguous else "F"
    flat = sys.modules["numpy"].asarray(_Memory(array))
    return flat.view(array.dtype).reshape(array.shape, order=order)


def dumps(obj: Any, what: str = "the object", own: int = 0) -> list[bytes | memoryview]:
    """Pickle `obj`.

    Parameters
    ----------
    obj : object
    what : str
        What to call it in an error.
    own : int
        Levels of containers in `obj` that only the caller knows.

    Returns
    -------
    list of bytes or memoryview
        The pickle, then its large buffers. These are views of the memory of
        `obj`: copy them before `obj` can change.

    Raises
    ------
    SerializationError
        Some part of `obj` cannot be pickled.
    """
    return _dump(obj, what, own)[0]


def dumps_values(values: Mapping[str, Any]) -> list[bytes | memoryview]:
    """Pickle a namespace; an error names the value that cannot be sent. See `dumps`."""
    try:
        return dumps(dict(values), "the namespace", own=1)
    except SerializationError:
        for name, value in values.items():
            dumps(value, f"the value of {name!r}")
        raise


def dumps_call(
    f: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> list[bytes | memoryview]:
    """Pickle a call, with the source text of the functions that travel by value.

    Returns
    -------
    list of bytes or memoryview
        As `dumps`, and at the end one more part for `loads_call`.
    """
    name = getattr(f, "__qualname__", None) or type(f).__qualname__
    parts, codes = _dump((f, tuple(args), dict(kwargs or {})), f"the call of {name}", own=2)
    parts.append(pickle.dumps(list(source_texts(codes)), protocol=5))
    return parts


def _dump(obj: Any, what: str, own: int) -> tuple[list[bytes | memoryview], list[types.CodeType]]:
    buffers: list[memoryview] = []

    def stays_inside(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < OUT_OF_BAND:
            return True
        buffers.append(raw)
        return False

    with io.BytesIO() as file:
        pickler = _Pickler(file, stays_inside)
        try:
            pickler.dump(outside(obj, OUT_OF_BAND, own))
        except Exception as error:
            raise SerializationError(what=what, reason=_reason(error)) from error
        return [file.getvalue(), *buffers], pickler.codes


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, SerializationError):  # one of our own objects, which says why
        return f"it holds {error.what}: {error.reason}"  # type: ignore[attr-defined]
    text = " ".join(_safe_text(error).split()).rstrip(".")
    found = re.search(r"cannot pickle '?([^']+?)'? objects?$", text)
    if found:
        return f"it holds a {found[1]!r} object, which cannot leave its process"
    if not isinstance(error, (pickle.PicklingError, TypeError)) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return _shorten(text, 400)


# -- in ----------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    def __init__(self, parts: Sequence[Buffer], replaced: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(io.BytesIO(parts[0]), buffers=_writable(parts[1:]))
        self._replaced = replaced

    def find_class(self, module: str, name: str) -> Any:
        found = self._replaced.get((module, name))
        return found if found is not None else super().find_class(module, name)


_MAKE = (_cloudpickle.__name__, _cloudpickle._make_function.__name__)
_SET_STATE = (_cloudpickle.__name__, _cloudpickle._function_setstate.__name__)
_REFERENCE = (__name__, _reference.__name__)
#: In pickles that need more than `pickle.loads`.
_REFERENCE_MARK, _FUNCTION_MARK = (name.encode() for _, name in (_REFERENCE, _SET_STATE))


def _writable(parts: Iterable[Buffer]) -> list[Buffer]:
    return [bytearray(part) if memoryview(part).readonly else part for part in parts]


def loads(parts: Sequence[Buffer]) -> Any:
    """The object in `parts`, as `dumps` made them.

    Writable buffers become the memory of its arrays; read-only ones are copied.
    """
    return pickle.loads(parts[0], buffers=_writable(parts[1:]))


def loads_call(
    parts: Sequence[Buffer], user_ns: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The call in `parts`, ready to be made on an engine.

    Functions keep the names they brought; what neither they nor the builtins
    have comes from `user_ns`, and so does each `Reference`.

    Raises
    ------
    NameError
        A `Reference` to a name that `user_ns` lacks.
    """
    return _load_call(parts, Loans(user_ns))


def loads_lasting_call(
    parts: Sequence[Buffer], user_ns: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Loans]:
    """The same for a call that is made more than once: `Loans.renew` brings it up to date."""
    loans = Loans(user_ns)
    return (*_load_call(parts, loans), loans)


def loads_arguments(
    parts: Sequence[Buffer], user_ns: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments ``(args, kwargs)`` in `parts`, as `dumps` made them; otherwise as `loads_call`."""
    raw = parts[0]
    if type(raw) is bytes and _REFERENCE_MARK not in raw and _FUNCTION_MARK not in raw:  # 1 us, not 4
        if len(parts) == 1:
            return pickle.loads(raw)  # type: ignore[no-any-return]
        return loads(parts)  # type: ignore[no-any-return]
    return _unpickler(parts, Loans(user_ns)).load()  # type: ignore[no-any-return]


def _load_call(
    parts: Sequence[Buffer], loans: Loans
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    *inner, sources = parts
    for filename, first, text in pickle.loads(sources):
        remember_source(filename, first, text)
    f, args, kwargs = _unpickler(inner, loans).load()
    return f, args, kwargs


def _unpickler(parts: Sequence[Buffer], loans: Loans) -> _Unpickler:
    def lookup(name: str) -> Any:
        if name not in loans.user_ns:
            raise NameError(f"name {name!r} is not defined", name=name)
        return loans.user_ns[name]

    def set_state(f: types.FunctionType, state: Any) -> None:
        _cloudpickle._function_setstate(f, state)
        loans.lend(f)

    return _Unpickler(parts, {_REFERENCE: lookup, _SET_STATE: set_state})


def loads_functions(parts: Sequence[Buffer], user_ns: dict[str, Any]) -> dict[str, Any]:
    """The dict in `parts`, with its functions at home in `user_ns`.

    The globals of a pushed function are `user_ns`, which gets those names the
    function uses and `user_ns` lacks. Functions that only came along from
    other modules, like the wrapper a decorator made, keep their own globals.
    The dict itself is not put into `user_ns`.
    """
    homes = {"__main__"}
    while True:
        added: list[str] = []
        strangers: set[str] = set()
        make, set_state = _adoption(user_ns, homes, added, strangers)
        missed: set[str] | None = None
        try:
            ns: dict[str, Any] = _Unpickler(parts, {_MAKE: make, _SET_STATE: set_state}).load()
            # Which modules the pushed functions themselves are from is only known now.
            missed = {_home(value) for value in ns.values()} & strangers
        finally:
            for name in added if missed != set() else ():
                user_ns.pop(name, None)
        if not missed:
            return ns
        homes |= missed


def _adoption(
    user_ns: dict[str, Any], homes: set[str], added: list[str], strangers: set[str]
) -> tuple[Callable[..., types.FunctionType], Callable[[types.FunctionType, Any], None]]:
    """Stand-ins for cloudpickle's two steps of rebuilding a function."""

    def make(code: types.CodeType, own: dict[str, Any], *rest: Any) -> types.FunctionType:
        module = own.get("__name__", "")
        if module in homes:
            return types.FunctionType(code, user_ns, *rest)
        strangers.add(module)
        made: types.FunctionType = _cloudpickle._make_function(code, own, *rest)
        return made

    def set_state(f: types.FunctionType, state: Any) -> None:
        if f.__globals__ is not user_ns:
            _cloudpickle._function_setstate(f, state)
            Loans(user_ns).lend(f)
            return
        attributes, slots = state
        for name, value in slots["__globals__"].items():
            if name not in user_ns:
                user_ns[name] = value
                added.append(name)
        before = user_ns.get("__builtins__", builtins)
        _cloudpickle._function_setstate(f, (attributes, {**slots, "__globals__": {}}))
        user_ns["__builtins__"] = before  # cloudpickle puts its own there

    return make, set_state


def _home(value: Any) -> str:
    """The module of a pushed callable, seen through partials, methods and decorators."""
    for _ in range(100):
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, types.MethodType):
            value = value.__func__
        elif isinstance(value, types.FunctionType) and "__wrapped__" in value.__dict__:
            value = value.__wrapped__  # type: ignore[attr-defined]
        else:
            break
    if not isinstance(value, (types.FunctionType, type)):
        value = type(value)
    return str(value.__module__)


# -- failures ------------------------------------------------------------------


def dump_failure(exc: BaseException, traceback_text: str) -> RemoteFailure:
    """The exception as data that always crosses the wire.

    It is pickled where the pickle gives back the same type and message; long
    texts are shortened in the middle.
    """
    evalue = _safe_text(exc)
    return RemoteFailure(
        ename=_sendable(type(exc).__name__, 200),
        evalue=_sendable(evalue, EVALUE_LIMIT),
        traceback=_sendable(traceback_text, TRACEBACK_LIMIT),
        pickled=_pickled(exc, evalue),
    )


def _pickled(exc: BaseException, evalue: str) -> bytes:
    try:
        raw: bytes = cloudpickle.dumps(exc, protocol=5)
        again = pickle.loads(raw) if len(raw) <= PICKLE_LIMIT else None
    except Exception:  # noqa: BLE001 -- any class may refuse
        return b""
    return raw if type(again) is type(exc) and _safe_text(again) == evalue else b""


def _safe_text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as error:  # noqa: BLE001 -- user code
        return f"<its text cannot be had: {type(error).__name__}>"


def _sendable(text: str, limit: int) -> str:
    return sendable(_shorten(text, limit))


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} … {text[-limit // 2 :]}"
