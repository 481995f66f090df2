"""The first hexadecimal digits of pi, each block computed by itself, by scatter and gather.

    ipcluster run -n 4 docs/examples/pi.py [DIGITS]

The formula of Bailey, Borwein and Plouffe (Mathematics of Computation 66,
1997) gives hexadecimal digits of pi from any place on without those before,
so the blocks can be computed anywhere. What the engines find must equal a
serial run of the same formula, and the digits that Machin's formula of 1706
gives in one long integer.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

from ipython1.kernel import client

#: Digits computed at one place.
WIDTH = 8
#: Fixed-point bits: 4 a digit, and enough for the rounding of thousands of terms.
BITS = 96


def digits_at(place: int) -> str:
    """`WIDTH` hexadecimal digits of pi after the point, from `place` (0: the first) on."""

    def series(j: int) -> int:
        total = 0
        for k in range(place + 1):
            total += (pow(16, place - k, 8 * k + j) << BITS) // (8 * k + j)
        k, power = place + 1, BITS - 4
        while power > 0:
            total += (1 << power) // (8 * k + j)
            k, power = k + 1, power - 4
        return total

    value = 4 * series(1) - 2 * series(4) - series(5) - series(6)
    return f"{(value % (1 << BITS)) >> (BITS - 4 * WIDTH):0{WIDTH}x}"


def machin(digits: int) -> str:
    """The first `digits` hexadecimal digits of pi after the point: 16 atan(1/5) - 4 atan(1/239)."""
    one = 1 << (4 * digits + 64)

    def atan_inverse(x: int) -> int:
        power = one // x
        total, n = power, 1
        while power:
            power //= -x * x
            n += 2
            total += power // n
        return total

    fraction = (16 * atan_inverse(5) - 4 * atan_inverse(239)) % one
    return f"{fraction >> 64:0{digits}x}"


def main(digits: int) -> int:
    """Compute, compare, print; the exit status."""
    places = range(0, digits, WIDTH)

    started = time.perf_counter()
    serial = "".join(digits_at(place) for place in places)
    serial_time = time.perf_counter() - started

    with client.MultiEngineClient() as mec:
        engines = len(mec)
        started = time.perf_counter()
        mec.push_function({"digits_at": digits_at})
        mec.scatter("places", places, dist="r")  # later places take longer: deal them out like cards
        mec.execute("blocks = [digits_at(place) for place in places]")
        parallel = "".join(mec.gather("blocks", dist="r"))
        parallel_time = time.perf_counter() - started
        mec.execute("del places, blocks, digits_at")

    serial, parallel = serial[:digits], parallel[:digits]
    print(f"pi = 3.{parallel[:64]}… (hexadecimal)")
    print(f"how often each of the 16 digits stands among the first {digits:,}:")
    counts = Counter(parallel)
    for row in ("01234567", "89abcdef"):
        print("  " + "".join(f"{digit}:{counts[digit]:>5}  " for digit in row).rstrip())
    expected = digits / 16
    chi2 = sum((counts[digit] - expected) ** 2 / expected for digit in "0123456789abcdef")
    print(f"chi-square {chi2:.1f} with 15 degrees of freedom")
    print(f"serial {serial_time:.3f} s, {engines} engines {parallel_time:.3f} s")
    if parallel != serial:
        print("serial and parallel digits DIFFER", file=sys.stderr)
        return 1
    if parallel != machin(digits):
        print("the digits are WRONG: Machin's formula gives others", file=sys.stderr)
        return 1
    print("serial and parallel digits are equal, and Machin's formula gives the same")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000))
