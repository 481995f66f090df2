"""Completion of names and attributes that live on an engine."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

from IPython.core.completer import provisionalcompleter, rectify_completions

#: Completions given at most.
LIMIT = 500


def complete(ip: Any, code: str, cursor: int) -> tuple[int, int, list[str]]:
    """What `code` can go on with.

    Parameters
    ----------
    ip : InteractiveShell
    code : str
    cursor : int
        Where in `code`, in characters.

    Returns
    -------
    tuple of int, int, list of str
        The piece of `code` that each of the texts may replace.
    """
    ip.Completer.use_jedi = False  # it can take seconds
    with provisionalcompleter(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(itertools.islice(ip.Completer.completions(code, cursor), LIMIT))
        found = list(rectify_completions(code, found))
    if not found:
        return cursor, cursor, []
    return found[0].start, found[0].end, [completion.text for completion in found]
