"""Which engines a call goes to."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, Union

from ipython1.kernel.error import InvalidEngineID, NoEnginesRegistered

#: What may be given as `targets`.
TargetSpec = Union[SupportsIndex, slice, Iterable[SupportsIndex], str]


def resolve_targets(targets: TargetSpec, ids: Sequence[int]) -> tuple[int, ...]:
    """The engine ids that `targets` means, in its order.

    Parameters
    ----------
    targets : int, sequence of int, slice or 'all'
        A negative number counts from the end of `ids`, a slice is one of `ids`.
    ids : sequence of int
        The engines that exist, sorted.

    Raises
    ------
    NoEnginesRegistered
        There are no engines at all.
    InvalidEngineID
        One of the targets is no engine, stands twice, or nothing is selected.
    """
    targets = checked_targets(targets)
    if not ids:
        raise NoEnginesRegistered
    if isinstance(targets, str):
        return tuple(ids)
    if isinstance(targets, int):
        return (_engine(targets, ids),)
    if isinstance(targets, slice):
        chosen = tuple(ids[targets])
    else:
        known = frozenset(ids)
        chosen = tuple(target if target in known else _engine(target, ids) for target in targets)
    if not chosen:
        raise InvalidEngineID(
            f"These targets select no engine: {targets!r}. The engines are: {_listed(ids)}.",
            target=targets,
            ids=list(ids),
        )
    if len(set(chosen)) < len(chosen):
        twice = next(id for id in chosen if chosen.count(id) > 1)
        raise InvalidEngineID(f"Engine {twice} stands twice in the targets.", target=twice, ids=list(ids))
    return chosen


def checked_targets(targets: Any) -> int | slice | list[int] | str:
    """`targets` in plain form, whether or not such engines exist.

    Raises
    ------
    InvalidEngineID
        It is nothing that could name engines.
    """
    if isinstance(targets, str):
        if targets != "all":
            raise _unusable(targets)
        return targets
    if isinstance(targets, slice):
        return targets
    number = _index(targets)
    if number is not None:
        return number
    if isinstance(targets, (bytes, bytearray, Mapping)) or not isinstance(targets, Iterable):
        raise _unusable(targets)
    numbers = []
    for target in targets:
        number = _index(target)
        if number is None:
            raise _unusable(target)
        numbers.append(number)
    return numbers


def _index(value: Any) -> int | None:
    if isinstance(value, bool):  # an int to Python, surely a mistake here
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _engine(target: int, ids: Sequence[int]) -> int:
    if target < 0 and -target <= len(ids):
        return ids[target]
    if target not in ids:
        raise InvalidEngineID(
            f"There is no engine {target}. The engines are: {_listed(ids)}.", target=target, ids=list(ids)
        )
    return target


def _listed(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _unusable(target: Any) -> InvalidEngineID:
    shown = repr(target)
    shown = shown if len(shown) <= 80 else shown[:79] + "…"
    return InvalidEngineID(f"{shown} names no engine. Give an engine id, several, or 'all'.", target=target)
