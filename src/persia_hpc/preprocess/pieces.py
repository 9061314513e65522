"""Shares pieces of the input among ranks, which make HDF5 files of them, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from persia_hpc.errors import UserError
from persia_hpc.preprocess.outputs import FileReport, Outputs, numbered
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.team import Team, share_of, shares, together


def names(num_pieces: int, test_shards: int) -> list[str]:
    """Returns the file name of each piece; the last `test_shards` pieces are the test."""
    return numbered("train", num_pieces - test_shards, 5) + numbered("test", test_shards, 5)


def check_pieces(num_pieces: int, test_shards: int) -> None:
    """Checks that at least one piece is left to train on.

    Raises UserError if none is.
    """
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
    """Writes each missing piece on one of the ranks with `write(i, progress)`, then removes stale files.

    It returns the reports of what was written, by name, the same on all ranks; None if nothing was.

    sizes: work of each piece, in `unit`; every piece has an equal share of the outputs' names, in their order
    Collective over `team`.
    Raises UserError if the input has no rows at all, otherwise what `together` raises.
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
