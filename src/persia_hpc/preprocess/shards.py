"""HDF5 files that many ranks make of pieces of the input: who makes which, and how often ids occur in all.

Memory is constant but for counts of ids: then each rank keeps the different ids that it has met and, of all
of them, those whose number modulo the number of ranks is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.outputs import FileReport, Outputs
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.team import Team, shares, together


def names(num_pieces: int, test_shards: int) -> list[str]:
    """File of each piece: the last `test_shards` are the test."""
    train = num_pieces - test_shards
    return [f"train-{i:05d}.h5" for i in range(train)] + [f"test-{i:05d}.h5" for i in range(test_shards)]


def check_pieces(num_pieces: int, test_shards: int) -> None:
    """UserError unless a piece is left to train on."""
    if num_pieces <= test_shards:
        raise UserError(
            f"--test-shards {test_shards}: the input makes {num_pieces} shards, and at least one "
            "must be left to train on; lower --shard-bytes"
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

    `sizes`: work of each piece, in `unit`. Returns what was written, by name, the same for all; None for
    nothing. Collective; raises what `together` does.
    """
    wanted = [i for i in shares(sizes, team.size)[team.rank] if i in missing]
    with Progress(title, sum(sizes[i] for i in wanted), unit=unit, shown=team.rank == 0) as progress:
        written = together(team, lambda: [report for i in wanted for report in write(i, progress)])
    if team.rank == 0:
        outputs.remove_stale()
    return sorted((r for part in team.gather(written) for r in part), key=lambda report: report.path) or None


def merged_counts(found: pl.DataFrame, min_count: int, team: Team, *, values: bool = False) -> pl.DataFrame:
    """The ids that all ranks together have met at least `min_count` times, for all: column `id`, sorted.

    `found`: the rank's own, columns `id` and `count`. `values`: also `value`, `count` and `first`, as
    `IdCounts` has them, by first use. Collective.
    """
    found = found.select(["id", "count", *(["first", "value"] if values else [])])
    sent = [found.filter(pl.col("id") % team.size == rank) for rank in range(team.size)]
    totals = [pl.col("count").sum()]
    if values:
        totals += [pl.col("first").min(), pl.col("value").sort_by("first").first()]
    kept = pl.concat(team.exchange(sent)).group_by("id").agg(totals).filter(pl.col("count") >= min_count)
    parts: list[pl.DataFrame] = team.gather(kept if values else kept.select("id"))
    return pl.concat(parts).sort("first" if values else "id")
