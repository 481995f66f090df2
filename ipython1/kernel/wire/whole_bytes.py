"""Large bytes and bytearrays outside of the pickle.

The pickler copies them into its stream, and the receiver twice out of it.
Nothing but a copy of what holds them can tell it otherwise, so only those are
taken out that are the object itself, or stand in a plain container in which
nothing could refer back to it.
"""

from __future__ import annotations

import operator
import pickle
from typing import Any

#: Items of a container that is looked into, at most.
ITEMS = 64
#: Types whose objects hold no others.
_LEAVES = frozenset({bytes, bytearray, str, int, float, complex, bool, type(None)})
_LOOKED_INTO = frozenset({bytes, bytearray, dict, list, tuple})


class _Outside:
    """Pickles as the bytes it holds, beside the pickle."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(self.value), (pickle.PickleBuffer(self.value),)


def outside(obj: Any, least: int, own: int = 0) -> Any:
    """What pickles to an equal of `obj`, with its bytes of at least `least` outside of the pickle.

    Parameters
    ----------
    obj : object
    least : int
    own : int
        Levels of containers in `obj` that are the caller's own: nothing refers back to them.

    Returns
    -------
    object
        `obj` itself where there are none.
    """
    return _replaced(obj, least, own, {})


def _replaced(obj: Any, least: int, own: int, found: dict[int, _Outside]) -> Any:
    kind = type(obj)
    if kind is bytes or kind is bytearray:
        # What occurs twice arrives as one object.
        return obj if len(obj) < least else found.setdefault(id(obj), _Outside(obj))
    if (kind is not dict and kind is not list and kind is not tuple) or not 0 < len(obj) <= ITEMS:
        return obj
    items = list(obj.values()) if kind is dict else obj
    kinds = set(map(type, items))
    if _LOOKED_INTO.isdisjoint(kinds) or (own < 1 and not kinds <= _LEAVES):
        return obj
    new = [_replaced(item, least, own - 1, found) for item in items]
    if all(map(operator.is_, new, items)):
        return obj
    return dict(zip(obj, new, strict=True)) if kind is dict else kind(new)
