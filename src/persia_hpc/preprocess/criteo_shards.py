"""Criteo's layout by the terabyte: many ranks, each turning pieces of the input into HDF5 files of their own.

Memory is constant but for `min_count`: then each rank keeps the different ids that it has met and, of all of
them, those whose number modulo the number of ranks is its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess import criteo
from persia_hpc.preprocess.ids import IdCounts, IdFilter
from persia_hpc.preprocess.lines import Piece, cut_pieces, expand_files, read_blocks
from persia_hpc.preprocess.outputs import PREPROCESS_VERSION, FileReport, check_output, input_identity
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.team import Team, each, shares
from persia_hpc.samples.writer import DatasetWriter


def _size(piece: Piece) -> int:
    return piece.path.stat().st_size if piece.end is None else piece.end - piece.begin


def names(num_pieces: int, test_shards: int) -> list[str]:
    """File of each piece: the last `test_shards` are the test."""
    train = num_pieces - test_shards
    return [f"train-{i:05d}.h5" for i in range(train)] + [f"test-{i:05d}.h5" for i in range(test_shards)]


def prepare(options: criteo.CriteoOptions, team: Team) -> list[FileReport] | None:
    """Writes the files that aren't there yet; None if all were. Collective, with the same result for all."""
    assert options.shard_bytes is not None
    if options.min_count < 1 or options.test_shards < 0:
        raise UserError(
            f"--min-count {options.min_count} --test-shards {options.test_shards}: expected at least 1 and 0"
        )
    files = expand_files(options.input)
    pieces = cut_pieces(files, options.shard_bytes)
    if len(pieces) <= options.test_shards:
        raise UserError(
            f"--test-shards {options.test_shards}: the input makes {len(pieces)} shards, and at least one "
            "must be left to train on; lower --shard-bytes"
        )
    targets = [options.out / name for name in names(len(pieces), options.test_shards)]
    common = _settings(options, files)
    settings = [{**common, "shard": number} for number in range(len(pieces))]
    current = [
        check_output(path, stored, overwrite=options.overwrite)
        for path, stored in zip(targets, settings, strict=True)
    ]
    # Before anybody writes; and so that all do the same, though one may have looked later than another.
    current = [all(rank[i] for rank in team.gather(current)) for i in range(len(pieces))]
    if all(current):
        return None
    options.out.mkdir(parents=True, exist_ok=True)
    mine = shares([_size(piece) for piece in pieces], team.size)[team.rank]
    filters: dict[str, IdFilter] = {}
    if options.min_count > 1:
        train = [i for i in mine if i < len(pieces) - options.test_shards]
        filters = _filters([pieces[i] for i in train], options.min_count, team)
    missing = [i for i in mine if not current[i]]
    written: list[FileReport] = []
    total = sum(_size(pieces[i]) for i in missing)
    with Progress("criteo: writing", total, unit=" bytes", shown=team.rank == 0) as progress:
        each(
            team,
            missing,
            lambda i: written.append(_write(pieces[i], targets[i], settings[i], filters, progress)),
        )
    return sorted((r for part in team.gather(written) for r in part), key=lambda report: report.path)


def _settings(options: criteo.CriteoOptions, files: list[Path]) -> dict[str, Any]:
    return {
        "version": PREPROCESS_VERSION,
        "dataset": "criteo",
        "inputs": input_identity(files),
        "options": {
            "shard_bytes": options.shard_bytes,
            "test_shards": options.test_shards,
            "min_count": options.min_count,
        },
        "dense": "log(1 + max(x, 0)), missing 0",
        "missing_id": criteo.MISSING_ID,
        "rare_id": criteo.RARE_ID,
    }


def _batches(piece: Piece, progress: Progress) -> Any:
    """The piece's samples; a bad line is named by its number in the file."""
    try:
        for block in read_blocks(piece):
            yield criteo.decode(block)[1]
            progress.add(len(block.data) if piece.end is not None else 0)
    except UserError:
        if piece.begin == 0:
            raise
        # Pieces don't know their line numbers: this one is read again, for the message.
        for block in read_blocks(piece, first_line=piece.first_line()):
            criteo.decode(block)
        raise
    if piece.end is None:
        progress.add(_size(piece))


def _write(
    piece: Piece, path: Path, settings: dict[str, Any], filters: dict[str, IdFilter], progress: Progress
) -> FileReport:
    clicks = 0.0
    with DatasetWriter(path, criteo.SCHEMA, source=criteo.SOURCE, preprocessing=settings) as writer:
        for batch in _batches(piece, progress):
            writer.write(criteo.filtered(batch, filters))
            clicks += float(batch.labels.sum(dtype=np.float64))
    return FileReport(path, writer.num_samples, clicks / writer.num_samples if writer.num_samples else None)


def _filters(pieces: list[Piece], min_count: int, team: Team) -> dict[str, IdFilter]:
    """What keeps the ids that are frequent in the training pieces of all ranks. Collective."""
    counts = {name: IdCounts() for name in criteo.IDS}
    total = sum(_size(piece) for piece in pieces)
    with Progress("criteo: counting ids", total, unit=" bytes", shown=team.rank == 0) as progress:

        def count(piece: Piece) -> None:
            for batch in _batches(piece, progress):
                for name, column in batch.ids.items():
                    counts[name].add(column.values)

        each(team, pieces, count)
    filters: dict[str, IdFilter] = {}
    for name in criteo.IDS:
        found = counts.pop(name).frame(1).select("id", "count")
        parts = [_columns(found.filter(pl.col("id") % team.size == rank)) for rank in range(team.size)]
        received = team.exchange(parts)
        ids = np.concatenate([part[0] for part in received])
        sums = pl.DataFrame({"id": ids, "count": np.concatenate([part[1] for part in received])})
        kept = sums.group_by("id").agg(pl.col("count").sum()).filter(pl.col("count") >= min_count)["id"]
        known = np.sort(np.concatenate(team.gather(kept.to_numpy())))
        filters[name] = IdFilter(known, other=criteo.RARE_ID, never_other=[criteo.MISSING_ID])
    return filters


def _columns(frame: pl.DataFrame) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    return frame["id"].to_numpy(), frame["count"].to_numpy()
