"""Ids of results, valid in every session of a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ipython1.kernel.tracebacks import ranges

__all__ = ["format_id", "parse_id", "ranges"]

#: What stands between the command and its engines, or a batch and its tasks.
ENGINES, TASKS = "@", "#"
_ID = re.compile(r"([^@#\s]+)([@#])(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)?")


def format_id(command_id: str, targets: Iterable[int], kind: str = ENGINES) -> str:
    """The id of a result, with its targets in ranges: ``'5f3a-7@0-3,7'``, of tasks ``'5f3a-7#0-3,7'``."""
    if isinstance(targets, range) and targets.step == 1 and len(targets) > 1:
        return f"{command_id}{kind}{targets[0]}-{targets[-1]}"
    return f"{command_id}{kind}{ranges(targets)}"


def parse_id(id: str) -> tuple[str, tuple[int, ...]]:
    """The command id and the targets, in their order, of the id of a result.

    Raises
    ------
    ValueError
        `id` is not one that `format_id` made.
    """
    match = _ID.fullmatch(id) if isinstance(id, str) else None
    if match is None:
        raise ValueError(f"{id!r} is not the id of a result; give what PendingResult.id says")
    targets: list[int] = []
    for run in filter(None, (match[3] or "").split(",")):
        first, _, last = run.partition("-")
        targets += range(int(first), int(last or first) + 1)
    if format_id(match[1], targets, match[2]) != id or len(set(targets)) < len(targets):
        raise ValueError(f"{id!r} is not the id of a result; give what PendingResult.id says")
    return match[1], tuple(targets)
