"""HDF5 files that many ranks make of pieces of the input: who makes which, and which ids are frequent in all.

Memory is constant but for counts of ids: then each rank keeps the different ids that it has met and, of all of
them, those whose number modulo the number of ranks is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.preprocess.ids import IdCounts, Ids
from persia_hpc.preprocess.outputs import FileReport, Outputs
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.team import Team, shares, together


def names(num_pieces: int, test_shards: int) -> list[str]:
    """File of each piece: the last `test_shards` are the test."""
    train = num_pieces - test_shards
    return [f"train-{i:05d}.h5" for i in range(train)] + [f"test-{i:05d}.h5" for i in range(test_shards)]


def write_pieces(
    team: Team,
    outputs: Outputs,
    sizes: Sequence[int],
    missing: Collection[int],
    write: Callable[[int, Progress], FileReport],
    title: str,
) -> list[FileReport]:
    """`write(i, progress)` for each missing piece by one of the ranks, then no other file of an earlier run is left.

    `sizes`: bytes of each piece. What was written, by name, with the same result for all. Collective; raises what
    `together` does.
    """
    wanted = [i for i in shares(sizes, team.size)[team.rank] if i in missing]
    with Progress(title, sum(sizes[i] for i in wanted), unit=" bytes", shown=team.rank == 0) as progress:
        written = together(team, lambda: [write(i, progress) for i in wanted])
    if team.rank == 0:
        outputs.remove_stale()
    return sorted((r for part in team.gather(written) for r in part), key=lambda report: report.path)


def frequent_ids(counts: IdCounts, min_count: int, team: Team) -> Ids:
    """The ids that all ranks together have met at least `min_count` times, sorted. Collective."""
    found = counts.frame(1).select("id", "count")
    parts = [_columns(found.filter(pl.col("id") % team.size == rank)) for rank in range(team.size)]
    received = team.exchange(parts)
    ids = np.concatenate([part[0] for part in received])
    sums = pl.DataFrame({"id": ids, "count": np.concatenate([part[1] for part in received])})
    kept = sums.group_by("id").agg(pl.col("count").sum()).filter(pl.col("count") >= min_count)["id"]
    return np.sort(np.concatenate(team.gather(kept.to_numpy())))


def _columns(frame: pl.DataFrame) -> tuple[Ids, npt.NDArray[np.int64]]:
    return frame["id"].to_numpy(), frame["count"].to_numpy()
