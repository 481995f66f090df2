"""Takes back what importing Twisted's service modules changes of pickle, for the whole process."""

from __future__ import annotations

import copyreg
import types
from typing import Any

_THEIRS = "twisted.persisted.styles"
_KINDS = (types.MethodType, types.FunctionType, types.ModuleType)


def restore_pickle() -> None:
    """Let functions, methods and modules be pickled as Python does it.

    Foolscap imports ``twisted.persisted.styles``, which registers its own ways for them. They are from
    the time of Python 2, and a class method that went that way cannot be loaded again.
    """
    table: dict[Any, Any] = copyreg.dispatch_table
    for kind in _KINDS:
        if getattr(table.get(kind), "__module__", "") == _THEIRS:
            del table[kind]
