"""Makes ids from values: a stable hash of strings, reserved ids, and counts of ids in the training rows.

While counting, each rank keeps the distinct ids that it has met, then its share of them; while writing, it
keeps the frequent ids of all ranks.

Shapes: N values, V distinct ids.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.preprocess.splitting import mix
from persia_hpc.preprocess.team import Team

Ids = npt.NDArray[np.uint64]

# The lowest signed 64-bit integer and its neighbour: no file has them as ids, where -1 or 2^64 - 1 do occur.
MISSING_ID = 1 << 63
RARE_ID = MISSING_ID + 1

# Counting keeps at most this many uncompacted entries beside the distinct ids.
COMPACT_ENTRIES = 1 << 22


def hash_strings(values: Sequence[str]) -> Ids:
    """Returns an id for each string: the 8-byte blake2b digest of its UTF-8 bytes, little-endian.

    Ids are the same on every machine and in every release, so that rows of a trained table can be looked up
    by their strings.
    Shapes: [N] uint64.
    """
    digests = b"".join(blake2b(value.encode(), digest_size=8).digest() for value in values)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def string_ids(values: pl.Series) -> Ids:
    """Returns the hash of every string of a series without nulls; each distinct value is hashed once.

    Shapes: [N] uint64.
    """
    distinct = values.unique()
    hashes = pl.Series(hash_strings(distinct.to_list()), dtype=pl.UInt64)
    return values.replace_strict(distinct, hashes, return_dtype=pl.UInt64).to_numpy()


def pack_ids(ids: Ids) -> str:
    """Returns ids as text: base64 of little-endian 64-bit integers."""
    return base64.b64encode(ids.astype("<u8").tobytes()).decode()


def unpack_ids(text: str) -> Ids:
    """Returns the ids [N] that `pack_ids` has packed."""
    return np.frombuffer(base64.b64decode(text), "<u8").astype(np.uint64)


class IdCounts:
    """Counts how often each id of one feature occurs, in the order of first use.

    Memory grows with the number of distinct ids only.
    """

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = []
        self._pending = 0

    def add(self, ids: Ids, values: pl.Series | None = None, first: int = 0) -> None:
        """Counts the ids [N] and remembers, if `values` are given, value and place of each id's first use.

        values: the strings [N] that the ids stand for
        first: the place of ids[0], which must rise from call to call
        """
        columns: dict[str, object] = {"id": ids, "count": np.ones(len(ids), np.int64)}
        if values is not None:
            columns["value"] = values
            columns["first"] = np.arange(first, first + len(ids), dtype=np.int64)
        part = _summed(pl.DataFrame(columns))
        self._parts.append(part)
        self._pending += part.height
        if self._pending > COMPACT_ENTRIES + 2 * self._parts[0].height:
            self._compact()

    def _compact(self) -> None:
        if len(self._parts) > 1:
            self._parts = [_summed(pl.concat(self._parts))]
        self._pending = 0

    def frame(self, min_count: int) -> pl.DataFrame:
        """Returns the ids used at least `min_count` times, in the order of first use.

        The columns are `id` and `count`, and `value` and `first` if values were given.
        """
        self._compact()
        if not self._parts:
            kinds = {"id": pl.UInt64, "count": pl.Int64, "value": pl.String, "first": pl.Int64}
            return pl.DataFrame(schema=kinds)
        return self._parts[0].filter(pl.col("count") >= min_count)


def _summed(frame: pl.DataFrame) -> pl.DataFrame:
    sums = [pl.col("count").sum()]
    if "value" in frame.columns:
        sums += [pl.col("value").first(), pl.col("first").first()]
    return frame.group_by("id", maintain_order=True).agg(sums)


def merged_counts(found: pl.DataFrame, min_count: int, team: Team, *, values: bool = False) -> pl.DataFrame:
    """Returns the ids that all ranks together have met at least `min_count` times, on every rank.

    The result has the column `id`, sorted.

    found: the rank's own counts, with columns `id` (each once) and `count`
    values: the result also has `value`, `count` and `first` as in `IdCounts`, and is in order of first use
    Collective over `team`.
    """
    found = found.select(["id", "count", *(["first", "value"] if values else [])])
    if team.size > 1:
        owners = mix(found["id"].to_numpy()) % np.uint64(team.size)  # ids may all be even
        sent = [found.filter(owners == rank) for rank in range(team.size)]
        totals = [pl.col("count").sum()]
        if values:
            totals += [pl.col("first").min(), pl.col("value").sort_by("first").first()]
        found = pl.concat(team.exchange(sent)).group_by("id").agg(totals)
    kept = found.filter(pl.col("count") >= min_count)
    parts: list[pl.DataFrame] = team.gather(kept if values else kept.select("id"))
    return pl.concat(parts).sort("first" if values else "id")


class IdFilter:
    """Maps known ids to themselves, or to 1..V by first use, and all others to one reserved id."""

    def __init__(
        self, known: Ids, *, other: int, never_other: Sequence[int] = (), renumber: bool = False
    ) -> None:
        """Prepares the mapping.

        known: the known ids [V], in the order in which `renumber` gives them the numbers 1..V
        other: the id that unknown ids are mapped to
        never_other: reserved ids that are always kept
        """
        self.known = known
        keep = np.asarray([i for i in never_other if not (known == i).any()], np.uint64)
        numbers = np.arange(1, len(known) + 1, dtype=np.uint64) if renumber else known
        ids = np.concatenate([known, keep])
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order]
        self._numbers = np.concatenate([numbers, keep])[order]
        self._other = np.uint64(other)

    def __call__(self, ids: Ids) -> Ids:
        """Returns the mapped ids [N]."""
        if len(self._ids) == 0:
            return np.full(len(ids), self._other, np.uint64)
        places = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        found: Ids = np.where(self._ids[places] == ids, self._numbers[places], self._other)
        return found
