"""Small functions that engines run for a client.

They stand where engines can import them, so that nothing has to be put into a
namespace for them.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ipython1.kernel.error import TaskRejected


def map_part(f: Callable[..., Any], *columns: Iterable[Any]) -> list[Any]:
    """`f` of each row of `columns`."""
    return list(map(f, *columns))


def map_rows(f: Callable[..., Any], rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """`f` of each row."""
    return [f(*row) for row in rows]


def call(f: Callable[[], Any]) -> Any:
    """What `f` returns. So many different callables are sent as arguments of one function."""
    return f()


def call_in(module: str, name: str, *args: Any) -> Any:
    """What a function returns of a module that is for engines only."""
    return getattr(importlib.import_module(module), name)(*args)


def nothing(*args: Any) -> None:
    """Take anything."""


def zeros(count: int) -> pickle.PickleBuffer:
    """So many bytes."""
    return pickle.PickleBuffer(bytearray(count))


class Depending:
    """Calls a function where another one allows it.

    Parameters
    ----------
    f : callable
    check : callable
        Called first, with `args` and `kwargs`. It forbids the call by raising
        `TaskRejected`, or by returning something false other than None.
    args, kwargs
    """

    def __init__(
        self,
        f: Callable[..., Any],
        check: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.f = f
        self.check = check
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        answer = self.check(*self.args, **self.kwargs)
        if answer is not None and not answer:
            raise TaskRejected(f"The task does not run on this engine: {_name(self.check)} says {answer!r}.")
        return self.f(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{_name(self.f)}, where {_name(self.check)} allows it>"


class Requiring:
    """Calls a function where modules can be imported; afterwards they are.

    Parameters
    ----------
    f : callable
    modules : sequence of str
    """

    def __init__(self, f: Callable[..., Any], modules: Sequence[str]) -> None:
        self.f = f
        self.modules = tuple(modules)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        for name in self.modules:
            if name not in sys.modules:
                try:
                    importlib.import_module(name)
                except Exception as error:
                    text = f"The task does not run on this engine: it requires {name} ({error})."
                    raise TaskRejected(text) from error
        return self.f(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{_name(self.f)}, which requires {', '.join(self.modules)}>"


def _name(f: Any) -> str:
    return getattr(f, "__name__", None) or repr(f)
