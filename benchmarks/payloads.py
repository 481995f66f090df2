"""What the benchmarks send and run; every worker imports it, so that functions travel by name.

NumPy is imported where it is used: the memory of a worker is measured before.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

#: The namespace of a worker whose system has none of its own.
NAMESPACE: dict[str, Any] = {}

#: Every so many-th item of an array is looked at when it is checked.
STRIDE = 4099


def add(x: int, y: int) -> int:
    """A small call."""
    return x + y


def square(x: int) -> int:
    """A small task."""
    return x * x


def block(n: int, seed: int) -> bytes:
    """`n` bytes, different for each seed."""
    return seed.to_bytes(8, "little") * (n // 8)


def array(n: int, seed: int) -> np.ndarray:
    """An array of `n` bytes (float64), different for each seed."""
    import numpy as np

    return np.arange(seed, seed + n // 8, dtype=np.float64)


def mapping(n: int, seed: int) -> dict[str, Any]:
    """A dict of `n` small items of several types, different for each seed."""
    return {f"key {i}": (i, i / 2, str(seed)) for i in range(n)}


def sleep_in(path: str, seconds: float) -> None:
    """Say which process runs this, then sleep."""
    note = Path(path)
    note.with_suffix(".part").write_text(str(os.getpid()))
    note.with_suffix(".part").rename(note)
    time.sleep(seconds)


def digest(value: Any) -> tuple[Any, ...]:
    """What tells whether two objects are equal: type, size and a checksum (of a spread of a large one)."""
    if isinstance(value, bytes):
        return "bytes", len(value), zlib.crc32(value)
    if isinstance(value, dict):
        return "dict", len(value), zlib.crc32(repr([*value.items()][::7]).encode())
    import numpy as np

    array = np.asarray(value)
    spread = array[::STRIDE].tobytes() + array[-64:].tobytes()
    return type(value).__name__, array.dtype.str, array.shape, zlib.crc32(spread)


def writable(value: Any) -> bool:
    """Whether an array can be changed where it arrived."""
    return bool(value.flags.writeable)


def own(value: np.ndarray) -> np.ndarray:
    """An array that can be changed: this one, or a copy of it."""
    return value if writable(value) else value.copy()


def increase(value: np.ndarray) -> None:
    """Add 1 to every item, in place."""
    value += 1


def run_code(code: str) -> None:
    """What ``execute`` is for systems that only call functions."""
    exec(code, NAMESPACE)


def keep(name: str, value: Any) -> None:
    """What ``push`` is for systems that only call functions."""
    NAMESPACE[name] = value


def keep_own(name: str, value: np.ndarray) -> None:
    """The same, of an array that can be changed there."""
    NAMESPACE[name] = own(value)


def fetch(name: str) -> Any:
    """What ``pull`` is for systems that only call functions."""
    return NAMESPACE[name]


def make(name: str, maker: Callable[..., Any], *args: Any) -> None:
    """Make an object where it is to be pulled from."""
    NAMESPACE[name] = maker(*args)


def use(name: str, f: Callable[[Any], Any]) -> Any:
    """Call `f` with a kept object."""
    return f(NAMESPACE[name])


def drop(name: str) -> None:
    """Forget a kept object."""
    NAMESPACE.pop(name, None)


def map_part(f: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """A chunk of tasks."""
    return [f(item) for item in items]
