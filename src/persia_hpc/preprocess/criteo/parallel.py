"""Prepares terabytes of Criteo's layout: many ranks each make HDF5 files of pieces of the input."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.lines import cut_pieces, expand_files
from persia_hpc.preprocess.outputs import FileReport, Outputs, input_identity, make_directory
from persia_hpc.preprocess.pieces import check_pieces, names, write_pieces
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.team import Team, once, share_of, together
from persia_hpc.samples.encoding import read_encoding
from persia_hpc.samples.writer import DatasetWriter

from . import prepare as criteo
from .ids import (
    DENSE_RULE,
    MISSING_ID,
    RARE_ID,
    Counters,
    count_ids,
    encoding_of,
    frequent_ids,
    given_ids,
    without_rare_ids,
)
from .lines import read_rows


def prepare(options: criteo.CriteoOptions, team: Team) -> list[FileReport | str] | None:
    """Writes the missing files; returns what to print at the end, None if none was missing.

    Connected ranks get the same result.
    Collective over `team`.
    Raises UserError for bad options or input, PersiaError for other failures, on all ranks.
    """
    learns = options.min_count > 1 and options.encoding is None
    if learns:
        team.need_all("--min-count")
    if options.max_bad_lines:
        team.need_all("--max-bad-lines")
    outputs, bad_lines, missing = once(team, lambda: _plan(options))
    if missing is None:
        return None
    sizes = [piece.num_bytes for piece in bad_lines.pieces]
    given, frequent = None, Counters()
    if options.encoding is not None:
        path = options.encoding
        given, frequent = together(team, lambda: given_ids(path, options.min_count))
    if learns:
        num_train = len(sizes) - options.test_shards
        train = share_of(team, sizes, range(num_train))
        frequent = _frequent_ids(options, bad_lines, train, team)
    outputs.encode_together(team, lambda: given or encoding_of(options.min_count, frequent))

    def write(i: int, progress: Progress) -> list[FileReport]:
        return _write(outputs, i, bad_lines, frequent, progress)

    wanted = [i for i, name in enumerate(outputs.names) if name in missing]
    made = write_pieces(team, outputs, sizes, wanted, write, "criteo: writing")
    bad_lines.share(team)
    # Files that are whole stay, whatever comes out: a rerun with a higher limit goes on from here.
    together(team, bad_lines.check)
    return None if made is None else [*made, *bad_lines.report()]


def _plan(options: criteo.CriteoOptions) -> tuple[Outputs, BadLines, list[str] | None]:
    """Returns the output files, one for each piece, the known bad lines, and which files must be made.

    The last is None if nothing is left to do. It makes the directory otherwise.
    """
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
    missing = outputs.missing()
    bad_lines = BadLines(pieces, options.max_bad_lines)
    for i, name in enumerate(outputs.names):
        if name not in missing:
            bad_lines.restore([i], outputs.stored(name).get("lines"))
    bad_lines.check()
    if not missing and outputs.up_to_date():
        return outputs, bad_lines, None
    make_directory(options.out)
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
        "dense": DENSE_RULE,
        "missing_id": MISSING_ID,
        "rare_id": RARE_ID,
        **({} if options.encoding is None else {"encoding": read_encoding(options.encoding)["digest"]}),
    }


def _write(
    outputs: Outputs, piece: int, bad_lines: BadLines, frequent: Counters, progress: Progress
) -> list[FileReport]:
    """Writes the piece's file, if the piece has rows, and returns its report."""
    clicks = 0.0
    name = outputs.names[piece]
    path, schema = outputs.directory / name, outputs.named(criteo.SCHEMA)
    settings = dict(outputs.settings)
    writer: DatasetWriter | None = None
    with ExitStack() as stack:
        for batch in read_rows(bad_lines, piece, progress):
            if writer is None:
                writer = stack.enter_context(
                    DatasetWriter(path, schema, source=criteo.SOURCE, preprocessing=settings)
                )
            writer.write(without_rare_ids(batch, frequent))
            clicks += float(batch.labels.sum(dtype=np.float64))
        settings["lines"] = bad_lines.setting([piece])
    if writer is None:
        outputs.note_absent([name], {"lines": settings["lines"]})
        return []
    return [FileReport(path, writer.num_samples, clicks / writer.num_samples)]


def _frequent_ids(
    options: criteo.CriteoOptions, bad_lines: BadLines, pieces: list[int], team: Team
) -> Counters:
    """Returns the ids that are frequent in the training pieces of all ranks.

    pieces: the pieces that this rank counts
    Collective over `team`.
    """
    total = sum(bad_lines.pieces[i].num_bytes for i in pieces)
    with Progress("criteo: counting ids", total, unit=" bytes", shown=team.shows) as progress:
        batches = (batch for piece in pieces for batch in read_rows(bad_lines, piece, progress))
        counters = together(team, lambda: count_ids(batches))
    bad_lines.share(team)
    together(team, bad_lines.check)
    return frequent_ids(counters, options.min_count, team)
