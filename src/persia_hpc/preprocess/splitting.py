"""Assigns rows to output files: consecutive parts of the input, or by a hash of the row's number.

Shapes: N rows of one block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError

SPLITS = ("train", "valid", "test")
Parts = npt.NDArray[np.int64]


def check_fractions(fractions: Mapping[str, float], what: str) -> dict[str, float]:
    """Returns the fractions of the splits in use, in the order of `SPLITS`.

    what: names the setting in the error message
    Raises UserError unless the fractions are positive and sum to 1.
    """
    odd = [name for name in fractions if name not in SPLITS]
    if odd:
        raise UserError(f"{what}: got {odd[0]!r}, expected some of {', '.join(SPLITS)}")
    used = {name: float(fractions[name]) for name in SPLITS if fractions.get(name, 0) != 0}
    if not used or min(used.values()) <= 0 or abs(sum(used.values()) - 1) > 1e-9:
        got = ", ".join(f"{name} = {fraction:g}" for name, fraction in fractions.items())
        raise UserError(f"{what}: got {got or 'nothing'}, expected positive fractions that sum to 1")
    return used


def boundaries(num_rows: int, fractions: Mapping[str, float]) -> npt.NDArray[np.int64]:
    """Returns the first row of each split after the first: the cumulated fractions in whole rows.

    Shapes: [splits - 1] int64.
    """
    cumulated = np.cumsum(list(fractions.values()))[:-1]
    first: npt.NDArray[np.int64] = np.rint(cumulated * num_rows).astype(np.int64)
    return first


@dataclass(frozen=True)
class OrderSplit:
    """Splits rows into consecutive parts; `bounds` [parts - 1] holds the first row of each but the first."""

    bounds: npt.NDArray[np.int64]

    def parts(self, first_row: int, num_rows: int) -> Parts:
        """Returns the part of each of the rows [first_row, first_row + num_rows)."""
        rows = np.arange(first_row, first_row + num_rows)
        return np.searchsorted(self.bounds, rows, side="right")


@dataclass(frozen=True)
class RandomSplit:
    """Assigns each row independently by a hash of (seed, row number), in the given fractions up to chance."""

    fractions: tuple[float, ...]
    seed: int

    def parts(self, first_row: int, num_rows: int) -> Parts:
        """Returns the part of each of the rows [first_row, first_row + num_rows)."""
        rows = np.arange(first_row, first_row + num_rows, dtype=np.uint64)
        draws = uniform(rows, self.seed, stream=0)
        return np.searchsorted(np.cumsum(self.fractions)[:-1], draws, side="right")


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Applies the splitmix64 finaliser, a bijection of 64-bit numbers that scatters neighbours."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def random_bits(counters: npt.NDArray[np.uint64], seed: int, stream: int) -> npt.NDArray[np.uint64]:
    """Returns 64 random bits for each counter [N], which depend on (counter, seed, stream) only.

    They don't change with the block size or the release of numpy.
    """
    # The golden-ratio step keeps neighbouring counters, streams and seeds from meeting in the mix.
    salt = mix(np.asarray([(seed * 0x9E3779B97F4A7C15 + stream + 1) % 2**64], np.uint64))
    salt = mix(salt + np.uint64(stream))
    with np.errstate(over="ignore"):
        return mix(counters * np.uint64(0x9E3779B97F4A7C15) + salt)


def uniform(counters: npt.NDArray[np.uint64], seed: int, stream: int) -> npt.NDArray[np.float64]:
    """Returns a random number in (0, 1) for each counter [N]."""
    # 52 bits: with 53, the largest value plus a half would round up to 1.
    bits = random_bits(counters, seed, stream) >> np.uint64(12)
    draws: npt.NDArray[np.float64] = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return draws
