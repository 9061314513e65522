"""HDF5 files that many ranks make of pieces of the input: who makes which, and how often ids occur in all.

Memory is constant but for counts of ids: while counting each rank keeps the different ids that it has met,
then its share of them, and while writing the frequent ones of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.outputs import FileReport, Outputs, numbered
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.team import Team, share_of, shares, together

from .splitting import mix


def names(num_pieces: int, test_shards: int) -> list[str]:
    """File of each piece: the last `test_shards` are the test."""
    return numbered("train", num_pieces - test_shards, 5) + numbered("test", test_shards, 5)


def check_pieces(num_pieces: int, test_shards: int) -> None:
    """UserError unless a piece is left to train on."""
    if not num_pieces:
        raise UserError("the input has no rows, expected at least one")
    if num_pieces <= test_shards:
        raise UserError(
            f"--test-shards {test_shards}: the input makes {num_pieces} shards, and at least one "
            "must be left to train on; lower --test-shards, or --shard-bytes (compressed files are not cut)"
        )


def write_pieces(
    team: Team,
    outputs: Outputs,
    sizes: Sequence[int],
    missing: Collection[int],
    write: Callable[[int, Progress], Sequence[FileReport]],
    title: str,
    unit: str = " bytes",
) -> list[FileReport] | None:
    """`write(i, progress)` for each missing piece by one of the ranks; then no older file is left.

    `sizes`: work of each piece, in `unit`; each has as many of the outputs' names, in their order. Returns
    what was written, by name, the same for all; None for nothing. Collective; raises what `together` does,
    UserError if there are no rows at all.
    """
    wanted = share_of(team, sizes, missing)
    with Progress(title, sum(sizes[i] for i in wanted), unit=unit, shown=team.shows) as progress:
        written = together(team, lambda: [report for i in wanted for report in write(i, progress)])
    together(team, lambda: _clean(team, outputs, sizes))
    return sorted((r for part in team.gather(written) for r in part), key=lambda report: report.path) or None


def _clean(team: Team, outputs: Outputs, sizes: Sequence[int]) -> None:
    if not team.connected:
        mine = set(shares(sizes, team.size)[team.rank])
        each = len(outputs.names) // len(sizes)
        outputs.remove_stale(keep={name for k, name in enumerate(outputs.names) if k // each not in mine})
    elif team.rank == 0:
        outputs.remove_stale()
        if not outputs.any_rows():
            raise UserError(f"{outputs.directory}: got no rows in all of the input, expected at least one")


def merged_counts(found: pl.DataFrame, min_count: int, team: Team, *, values: bool = False) -> pl.DataFrame:
    """The ids that all ranks together have met at least `min_count` times, for all: column `id`, sorted.

    `found`: the rank's own, columns `id` (each once) and `count`. `values`: also `value`, `count` and
    `first`, as `IdCounts` has them, by first use. Collective.
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
