"""Criteo's layout by the terabyte: many ranks, each turning pieces of the input into HDF5 files of their own.

Memory is constant but for `min_count`: then each rank keeps the different ids that it has met and, of all of
them, those whose number modulo the number of ranks is its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.errors import UserError
from persia_hpc.preprocess import criteo
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.criteo_ids import (
    MISSING_ID,
    RARE_ID,
    Counters,
    count_ids,
    frequent_ids,
    without_rare_ids,
)
from persia_hpc.preprocess.criteo_lines import read_rows
from persia_hpc.preprocess.lines import cut_pieces, expand_files
from persia_hpc.preprocess.outputs import FileReport, Outputs, input_identity, make_directory
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.team import Team, shares, together
from persia_hpc.samples.writer import DatasetWriter


def names(num_pieces: int, test_shards: int) -> list[str]:
    """File of each piece: the last `test_shards` are the test."""
    train = num_pieces - test_shards
    return [f"train-{i:05d}.h5" for i in range(train)] + [f"test-{i:05d}.h5" for i in range(test_shards)]


def prepare(options: criteo.CriteoOptions, team: Team) -> list[FileReport | str] | None:
    """Writes the files that aren't there yet; what to print at the end, None if all were there.

    Collective, with the same result for all.
    """
    outputs, bad_lines, missing = together(team, lambda: _plan(options))
    pieces = bad_lines.pieces
    mine = shares([piece.num_bytes for piece in pieces], team.size)[team.rank]
    if not missing and outputs.up_to_date():
        return None
    together(team, lambda: make_directory(options.out))
    frequent: Counters = {}
    if options.min_count > 1:
        train = [i for i in mine if i < len(pieces) - options.test_shards]
        frequent = _frequent_ids(options, bad_lines, train, team)
    wanted = [i for i in mine if outputs.names[i] in missing]
    with _progress("criteo: writing", bad_lines, wanted, team) as progress:
        written = together(team, lambda: [_write(outputs, i, bad_lines, frequent, progress) for i in wanted])
    if team.rank == 0:
        outputs.remove_stale()
    bad_lines.share(team)
    # Files that are whole stay, whatever comes out: a rerun with a higher limit goes on from here.
    together(team, bad_lines.check)
    reports = sorted((r for part in team.gather(written) for r in part), key=lambda report: report.path)
    return [*reports, *bad_lines.report()]


def _progress(title: str, bad_lines: BadLines, pieces: list[int], team: Team) -> Progress:
    total = sum(bad_lines.pieces[i].num_bytes for i in pieces)
    return Progress(title, total, unit=" bytes", shown=team.rank == 0)


def _plan(options: criteo.CriteoOptions) -> tuple[Outputs, BadLines, list[str]]:
    """The file of each piece of input, the bad lines of finished ones, and which files must be made."""
    assert options.shard_bytes is not None
    if options.shard_bytes < 1 or options.min_count < 1 or options.test_shards < 0:
        raise UserError(
            f"--shard-bytes {options.shard_bytes} --min-count {options.min_count} --test-shards "
            f"{options.test_shards}: expected at least 1, 1 and 0"
        )
    files = expand_files(options.input)
    pieces = cut_pieces(files, options.shard_bytes)
    if len(pieces) <= options.test_shards:
        raise UserError(
            f"--test-shards {options.test_shards}: the input makes {len(pieces)} shards, and at least one "
            "must be left to train on; lower --shard-bytes"
        )
    outputs = Outputs(
        options.out,
        names(len(pieces), options.test_shards),
        _settings(options, files),
        overwrite=options.overwrite,
    )
    missing = outputs.missing()  # nobody writes before all have looked
    bad_lines = BadLines(pieces, options.max_bad_lines)
    for i, name in enumerate(outputs.names):
        if name not in missing:
            bad_lines.restore([i], outputs.stored(name).get("lines"))
    bad_lines.check()
    return outputs, bad_lines, missing


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
        "missing_id": MISSING_ID,
        "rare_id": RARE_ID,
    }


def _write(
    outputs: Outputs, piece: int, bad_lines: BadLines, frequent: Counters, progress: Progress
) -> FileReport:
    clicks = 0.0
    path = outputs.directory / outputs.names[piece]
    settings = dict(outputs.settings)
    with DatasetWriter(path, criteo.SCHEMA, source=criteo.SOURCE, preprocessing=settings) as writer:
        for batch in read_rows(bad_lines, piece, progress):
            writer.write(without_rare_ids(batch, frequent))
            clicks += float(batch.labels.sum(dtype=np.float64))
        settings["lines"] = bad_lines.setting([piece])
    return FileReport(path, writer.num_samples, clicks / writer.num_samples if writer.num_samples else None)


def _frequent_ids(
    options: criteo.CriteoOptions, bad_lines: BadLines, pieces: list[int], team: Team
) -> Counters:
    """The ids that are frequent in the training pieces of all ranks; `pieces` are this one's. Collective."""
    with _progress("criteo: counting ids", bad_lines, pieces, team) as progress:
        batches = (batch for piece in pieces for batch in read_rows(bad_lines, piece, progress))
        counters = together(team, lambda: count_ids(batches))
    bad_lines.share(team)
    together(team, bad_lines.check)
    return frequent_ids(counters, options.min_count, team)
