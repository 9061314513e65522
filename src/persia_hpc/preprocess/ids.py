"""Makes ids from columns of text, and counts ids in the training rows.

While counting, each rank keeps the distinct ids that it has met, then its share of them; while writing, it
keeps the frequent ids of all ranks.

Shapes: N values, V distinct ids.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from persia_hpc.preprocess.splitting import mix
from persia_hpc.preprocess.team import Team
from persia_hpc.samples.ids import Ids, hash_strings

# Counting keeps at most this many uncompacted entries beside the distinct ids.
COMPACT_ENTRIES = 1 << 22


def string_ids(values: pl.Series) -> Ids:
    """Returns the hash of every string of a series without nulls; each distinct value is hashed once.

    Shapes: [N] uint64.
    """
    distinct = values.unique()
    hashes = pl.Series(hash_strings(distinct.to_list()), dtype=pl.UInt64)
    return values.replace_strict(distinct, hashes, return_dtype=pl.UInt64).to_numpy()


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
