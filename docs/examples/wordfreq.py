"""The most frequent words of some text, counted serially and on the engines.

    ipcluster run -n 4 docs/examples/wordfreq.py [FILE ...]

Without files it counts the words of Python's own language reference. With a
cluster already running, ``python docs/examples/wordfreq.py`` does the same.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from pathlib import Path

from ipython1.kernel import client

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
SHOWN = 12


def count_words(lines: list[str]) -> Counter[str]:
    """How often each word stands in `lines`, upper and lower case alike."""
    return Counter(word.lower() for line in lines for word in WORD.findall(line))


def default_text() -> str:
    """The help texts of Python's language reference, which every Python brings along."""
    from pydoc_data import topics

    tables = [value for name, value in vars(topics).items() if isinstance(value, dict) and name[0] != "_"]
    return "\n".join(text for table in tables for text in table.values() if isinstance(text, str))


def main(files: list[str]) -> int:
    """Count, compare, print; the exit status."""
    texts = [Path(name).read_text(encoding="utf-8", errors="replace") for name in files]
    lines = "\n".join(texts or [default_text()]).splitlines()

    started = time.perf_counter()
    serial = count_words(lines)
    serial_time = time.perf_counter() - started

    with client.MultiEngineClient() as mec:
        engines = len(mec)
        started = time.perf_counter()
        mec.scatter("lines", lines)
        counts = mec.apply(count_words, client.Reference("lines"))
        parallel = sum(counts, Counter())
        parallel_time = time.perf_counter() - started
        del mec["lines"]

    print(f"{parallel.total():,} words, {len(parallel):,} different, in {len(lines):,} lines")
    for word, count in sorted(parallel.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]:
        print(f"  {word:<12}{count:>8,}")
    print(f"serial {serial_time:.3f} s, {engines} engines {parallel_time:.3f} s")
    if parallel != serial:
        print("serial and parallel counts DIFFER", file=sys.stderr)
        return 1
    print("serial and parallel counts are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
