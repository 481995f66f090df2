"""Text for people, as every table, picture and message has it: quantities in words, and what others wrote."""

from __future__ import annotations


def size_text(count: float) -> str:
    """Bytes in words: ``'43.0 MB'``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration_text(seconds: float) -> str:
    """Seconds in words: ``'3.2 s'``, ``'2 min 05 s'``, ``'1 h 07 min'``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def sendable(text: str) -> str:
    """That as UTF-8 takes it: code may have half of a character."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    """Text of others for a terminal: on one line, and without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)
