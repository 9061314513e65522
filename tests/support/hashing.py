"""Hash compression by its definition, in Python's integers."""

from __future__ import annotations

U64 = (1 << 64) - 1


def hashed(i: int, rounds: int, size: int) -> list[int]:
    """The rows that id `i` is the sum of: splitmix64 of i, scaled to `size`, one a round."""
    found = []
    for r in range(rounds):
        x = (i + (r + 1) * 0x9E3779B97F4A7C15) & U64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & U64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & U64
        x ^= x >> 31
        found.append(r * size + (x * size >> 64))
    return found
