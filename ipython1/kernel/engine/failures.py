"""Errors of user code as data."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from typing import Any

from ipython1.kernel.error import RemoteFailure
from ipython1.kernel.texts import sendable
from ipython1.kernel.wire.codec import encode_failure
from ipython1.kernel.wire.objects import dump_failure


def encoded(error: BaseException) -> bytes:
    """The error as the one part of a result; never fails."""
    try:
        return encode_failure(dump_failure(error, format_traceback(error)))
    except BaseException as second:  # noqa: BLE001 -- the error's own methods may do anything
        name = sendable(type(error).__name__)
        return encode_failure(RemoteFailure(name, f"(its text cannot be had: {type(second).__name__})"))


def encoded_text(error: BaseException, ename: str) -> bytes:
    """Only the text of an error, as one of type `ename`; never fails, and is small."""
    try:
        text = dump_failure(error, "").evalue
    except BaseException as second:  # noqa: BLE001 -- see above
        text = f"(its text cannot be had: {type(second).__name__})"
    return encode_failure(RemoteFailure(ename, text))


def format_traceback(error: BaseException) -> str:
    """The traceback as text, without the frames of IPython and of this package."""
    summary = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    ours = _ours()
    _strip(summary, ours, (*ours, os.path.dirname(asyncio.__file__) + os.sep))
    return "".join(summary.format()).rstrip("\n")


def inside(filename: str) -> bool:
    """Whether that is a file of what runs user code."""
    return filename.startswith((*_ours(), os.path.dirname(asyncio.__file__) + os.sep))


def _ours() -> tuple[str, str]:
    return _folder("ipython1"), _folder("IPython")


def _folder(package: str) -> str:
    module = sys.modules.get(package)
    return os.path.dirname(module.__file__ or "") + os.sep if module is not None else "\0"


def _strip(summary: Any, inside: tuple[str, ...], leading: tuple[str, ...]) -> None:
    """Drop frames of files in `inside`, and those in `leading` before the user's first."""
    todo, seen = [summary], set()
    while todo:
        item = todo.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        frames = list(item.stack)
        while frames and frames[0].filename.startswith(leading):
            del frames[0]
        item.stack[:] = [frame for frame in frames if not frame.filename.startswith(inside)]
        todo += [item.__cause__, item.__context__, *(getattr(item, "exceptions", None) or ())]
