"""Criteo's layout by the terabyte: many ranks, each making HDF5 files of pieces of the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.errors import UserError
from persia_hpc.preprocess import criteo
from persia_hpc.preprocess.ids import IdCounts, IdFilter
from persia_hpc.preprocess.lines import Piece, cut_pieces, expand_files, read_blocks
from persia_hpc.preprocess.outputs import FileReport, Outputs, input_identity, make_directory
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.shards import check_pieces, merged_counts, names, write_pieces
from persia_hpc.preprocess.team import Team, shares, together
from persia_hpc.samples.writer import DatasetWriter


def prepare(options: criteo.CriteoOptions, team: Team) -> list[FileReport] | None:
    """Writes the files that aren't there yet; None if all were. Collective, with the same result for all."""
    if options.min_count > 1:
        team.need_all("--min-count")
    pieces, outputs, missing = together(team, lambda: _plan(options))
    if not missing and outputs.up_to_date():
        return None
    together(team, lambda: make_directory(options.out))
    sizes = [piece.size() for piece in pieces]
    filters: dict[str, IdFilter] = {}
    if options.min_count > 1:
        mine = shares(sizes, team.size)[team.rank]
        train = [pieces[i] for i in mine if i < len(pieces) - options.test_shards]
        filters = _filters(train, options.min_count, team)

    def write(i: int, progress: Progress) -> list[FileReport]:
        return [_write(pieces[i], options.out / outputs.names[i], outputs.settings, filters, progress)]

    wanted = [i for i, name in enumerate(outputs.names) if name in missing]
    return write_pieces(team, outputs, sizes, wanted, write, "criteo: writing")


def _plan(options: criteo.CriteoOptions) -> tuple[list[Piece], Outputs, list[str]]:
    """The input's pieces, the file of each, and which files must be made."""
    assert options.shard_bytes is not None
    if options.shard_bytes < 1 or options.min_count < 1 or options.test_shards < 0:
        raise UserError(
            f"--shard-bytes {options.shard_bytes} --min-count {options.min_count} --test-shards "
            f"{options.test_shards}: expected at least 1, 1 and 0"
        )
    files = expand_files(options.input)
    pieces = cut_pieces(files, options.shard_bytes)
    check_pieces(len(pieces), options.test_shards)
    outputs = Outputs(
        options.out,
        names(len(pieces), options.test_shards),
        _settings(options, files),
        overwrite=options.overwrite,
    )
    return pieces, outputs, outputs.missing()  # nobody writes before all have looked


def _settings(options: criteo.CriteoOptions, files: list[Path]) -> dict[str, Any]:
    return {
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
        progress.add(piece.size())


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
    total = sum(piece.size() for piece in pieces)
    with Progress("criteo: counting ids", total, unit=" bytes", shown=team.rank == 0) as progress:

        def count() -> None:
            for piece in pieces:
                for batch in _batches(piece, progress):
                    for name, column in batch.ids.items():
                        counts[name].add(column.values)

        together(team, count)
    filters: dict[str, IdFilter] = {}
    for name in criteo.IDS:
        known = merged_counts(counts.pop(name), min_count, team)["id"].to_numpy()
        filters[name] = IdFilter(known, other=criteo.RARE_ID, never_other=[criteo.MISSING_ID])
    return filters
