"""The arithmetic: medians, spreads, ratios, and numbers as people read them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Prefixes for numbers that are large or small.
_PREFIXES = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G"}


@dataclass(frozen=True)
class Summary:
    """Several values of the same thing.

    Attributes
    ----------
    median, least, most : float
    count : int
    """

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """The summary of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))


def advantage(ours: float, theirs: float, less_is_better: bool) -> float:
    """How many times better ours is; below 1 it is worse.

    Values of 0 or less (memory that was given back) count as the smallest that can be told from 0.
    """
    ours, theirs = max(ours, 1e-12), max(theirs, 1e-12)
    return theirs / ours if less_is_better else ours / theirs


def best_of(medians: Mapping[str, float], less_is_better: bool) -> str | None:
    """The name with the best value; None where there is none."""
    if not medians:
        return None
    choose = min if less_is_better else max
    return choose(medians, key=lambda name: medians[name])


def rounded(value: float, digits: int = 3) -> str:
    """A number to so many digits that count, without an exponent."""
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    text = f"{round(value, decimals):.{max(0, decimals)}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"{int(text):,}" if "." not in text and abs(value) >= 10_000 else text


def scale(value: float, unit: str) -> tuple[float, str]:
    """The divisor and the unit in which a value reads best: 0.0012 of s is (0.001, 'ms')."""
    if value == 0:
        return 1.0, unit
    exponent = 3 * math.floor(math.log10(float(f"{abs(value):.2e}")) / 3)
    largest = 0 if unit in ("s", "/s") else max(_PREFIXES)
    exponent = min(max(exponent, min(_PREFIXES) if unit == "s" else 0), largest)
    return 10.0**exponent, f"{_PREFIXES[exponent]}{unit}"


def shown(summary: Summary, unit: str) -> str:
    """A median and the spread in one unit, e.g. ``1.2 ms (1.1–1.5)``."""
    divisor, name = scale(summary.median, unit)
    if summary.count == 1:
        return f"{rounded(summary.median / divisor)} {name}".strip()
    least, most = (rounded(value / divisor) for value in (summary.least, summary.most))
    return f"{rounded(summary.median / divisor)} {name} ({least}–{most})"


def shown_ratio(ratio: float) -> str:
    """A ratio, e.g. ``2.3×``."""
    if ratio >= 1000:
        return "> 1000×"
    return f"{rounded(ratio, 2)}×"
