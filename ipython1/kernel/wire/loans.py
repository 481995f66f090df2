"""Names that functions from elsewhere find in a namespace of the engine."""

from __future__ import annotations

import builtins
import types
from collections.abc import Iterator
from typing import Any

_NOTHING = object()


class Loans:
    """The names that functions have from a namespace, because they use them and brought none.

    They are put among the functions' own, so that calls are fast, and brought
    up to date where a function lives longer than one call.

    Parameters
    ----------
    user_ns : dict
        The namespace.
    """

    def __init__(self, user_ns: dict[str, Any]) -> None:
        self.user_ns = user_ns
        self._lacked: dict[tuple[int, str], dict[str, Any]] = {}  # by name: the globals of functions
        self._lent: dict[tuple[int, str], Any] = {}

    def lend(self, f: types.FunctionType) -> None:
        """Give `f` the names it lacks."""
        own = f.__globals__
        for name in names_used(f.__code__):
            if name not in own and not hasattr(builtins, name):
                self._lacked[id(own), name] = own
                self._renew((id(own), name), own)

    def renew(self) -> None:
        """Lend again what has changed in the namespace."""
        for key, own in self._lacked.items():
            self._renew(key, own)

    def _renew(self, key: tuple[int, str], own: dict[str, Any]) -> None:
        name = key[1]
        lent = self._lent.get(key, _NOTHING)
        if own.get(name, _NOTHING) is not lent:
            return  # the function itself has set it, or removed it
        if name in self.user_ns:
            own[name] = self._lent[key] = self.user_ns[name]
        elif lent is not _NOTHING:
            del own[name], self._lent[key]


def names_used(code: types.CodeType) -> Iterator[str]:
    """Names of globals and attributes in the code of a function, and of those within it."""
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from names_used(const)
