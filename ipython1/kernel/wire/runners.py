"""Small functions that engines run for a client.

They stand where engines can import them, so that nothing has to be put into a
namespace for them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from typing import Any


def map_part(f: Callable[..., Any], *columns: Iterable[Any]) -> list[Any]:
    """`f` of each row of `columns`."""
    return list(map(f, *columns))


def map_rows(f: Callable[..., Any], rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """`f` of each row."""
    return [f(*row) for row in rows]


def nothing(*args: Any) -> None:
    """Take anything."""


def zeros(count: int) -> pickle.PickleBuffer:
    """So many bytes."""
    return pickle.PickleBuffer(bytearray(count))
