"""Reading the log files of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

#: Seconds between two looks for something new.
INTERVAL = 0.25
#: Bytes of a file that are looked at first, from its end.
SHOWN = 1_000_000
#: Files of engines that are gone which stay, the newest ones.
KEPT = 200


def log_lines(folder: Path, lines: int, ends: dict[Path, int]) -> Iterator[str]:
    """The last `lines` lines of each log file, with the file's name before each line.

    Parameters
    ----------
    folder : Path
        Log folder of a cluster.
    lines : int
        How many of each file.
    ends : dict
        Takes up to which byte each file was read.
    """
    for path, found in _news(folder, ends):
        yield from _labelled(path, found[-lines:] if lines > 0 else [])


def follow(folder: Path, ends: dict[Path, int], sleep: Callable[[float], object]) -> Iterator[str]:
    """What is written to the log files from `ends` on, for ever."""
    while True:
        for path, found in _news(folder, ends):
            yield from _labelled(path, found)
        sleep(INTERVAL)


def prune(folder: Path) -> None:
    """Remove the oldest files of engines, of a cluster that does not run."""
    found: list[tuple[float, Path]] = []
    for path in folder.glob("engine-*"):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    for _, path in sorted(found, reverse=True)[KEPT:]:
        path.unlink(missing_ok=True)


def _news(folder: Path, ends: dict[Path, int]) -> Iterator[tuple[Path, list[str]]]:
    """The whole lines that came to each file, and note in `ends` that they were read."""
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".log", ".out")):
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                start = ends.get(path, max(0, size - SHOWN))
                if size < start:  # begun anew
                    start = 0
                file.seek(start)
                whole, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:  # removed just now
            continue
        ends[path] = start + len(whole) + len(end)
        if end:
            yield path, whole.decode("utf-8", "replace").split("\n")


def _labelled(path: Path, lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield f"[{path.stem}] {line}"
