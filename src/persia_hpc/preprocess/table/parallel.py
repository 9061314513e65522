"""Converts terabytes of a table: many ranks each make HDF5 files of pieces of the input, one for each split.

The samples and their splits are those of prepare.py, whichever rank makes them.
Shapes: N rows of one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines, option_named
from persia_hpc.preprocess.frames import Frame
from persia_hpc.preprocess.lines import Piece
from persia_hpc.preprocess.outputs import (
    FileReport,
    Outputs,
    input_identity,
    label_rate,
    make_directory,
    numbered,
    sum_and_counts,
)
from persia_hpc.preprocess.pieces import check_pieces, write_pieces
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.team import Team, once, share_of, together
from persia_hpc.samples.writer import DatasetWriter

from .bad_lines import Fit, find_bad_lines
from .convert import Converter, Learned
from .encoding import check_lists, encoding_of, learned_of
from .input import TablePiece, count_rows, cut_table, may_cut_values, mend_cuts, num_quotes, read_frames
from .learn import Learning
from .prepare import (
    Table,
    TableOptions,
    identity,
    learned_settings,
    read_schema,
    vocabulary_files,
    write_vocabularies,
)
from .schema import Split, settings_of

Result = TypeVar("Result")


@dataclass
class _Sharding:
    """Holds for each piece its split (as in `Table.files`), its files (one a split) and its first row."""

    table: Table
    pieces: list[TablePiece]
    splits: list[str]
    names: list[list[str]]
    outputs: Outputs
    bad_lines: BadLines
    first_rows: list[int]
    given: dict[str, Any] | None = None  # the encoding of other data that is to be used
    left_out: dict[int, set[int]] = field(default_factory=dict)  # of pieces: lines from 1 in the piece


def prepare(options: TableOptions, team: Team) -> list[FileReport | str] | None:
    """Writes the missing files; returns what to print at the end, None if none was missing.

    Connected ranks get the same result.
    Collective over `team`.
    Raises UserError for bad options or input, PersiaError for other failures, on all ranks.
    """
    if options.max_bad_lines:
        team.need_all("--max-bad-lines")
    sharding, missing = once(team, lambda: _cut(options))
    if missing is None:
        together(team, sharding.bad_lines.check)
        return None
    _mend_cuts(sharding, team)
    wanted = [i for i, names in enumerate(sharding.names) if not missing.isdisjoint(names)]
    fit = together(team, option_named()(lambda: sharding.table.fit(options.max_bad_lines)))
    converter, given = fit.converter, sharding.given
    learning = None if given is not None else together(team, lambda: Learning(converter))
    learns = learning is not None and learning.needed
    if options.max_bad_lines:
        again = learns or sharding.table.splits_by_number  # finished pieces are read, but not written
        _find_bad_lines(sharding, range(len(sharding.pieces)) if again else wanted, fit, team)
    together(team, sharding.bad_lines.check)
    if sharding.table.splits_by_number:
        _count_rows(sharding, team)
    sizes = [piece.num_bytes for piece in sharding.pieces]
    if learning is not None and learns:
        team.need_all("what the schema learns (min_count, vocabulary, standardize) without --encoding")
        mine = share_of(team, sizes, [i for i, split in enumerate(sharding.splits) if split in ("", "train")])
        together(team, lambda: _learn(sharding, mine, learning, shown=team.shows))
    if learning is not None:
        learned = learning.finish(team)
    else:
        assert given is not None
        together(team, lambda: check_lists(converter, given))
        learned = learned_of(given)
    outputs = sharding.outputs
    outputs.settings.update(learned_settings(converter, learned))
    outputs.encode_together(team, lambda: encoding_of(converter, learned) if given is None else given)
    once(team, lambda: write_vocabularies(outputs, learned))  # a rerun with all shards looks for them

    def write(i: int, progress: Progress) -> list[FileReport]:
        return _with_lines(sharding.pieces[i], partial(_write, sharding, i, converter, learned, progress))

    made = write_pieces(team, sharding.outputs, sizes, wanted, write, "table: writing")
    if made is None:
        return None
    if team.connected and len(wanted) == len(sharding.pieces):  # else some words may be in other pieces
        converter.missing.unmet.intersection_update(*team.gather(converter.missing.unmet))
        return [*made, *sharding.bad_lines.report(), *converter.missing.report()]
    return [*made, *sharding.bad_lines.report()]


def _cut(options: TableOptions) -> tuple[_Sharding, set[str] | None]:
    """Returns the pieces and which files must be made, None if nothing is left to do; makes the directory."""
    assert options.shard_bytes is not None
    if options.shard_bytes < 1 or options.test_shards < 0:
        raise UserError(
            f"--shard-bytes {options.shard_bytes} --test-shards {options.test_shards}: "
            "expected at least 1 and 0"
        )
    schema, given = read_schema(options)
    table = Table(schema, options.schema.parent)
    cut = [(name, cut_table(path, schema, options.shard_bytes)) for name, path in table.files]
    pieces = [piece for _, found in cut for piece in found]
    splits = [name for name, found in cut for _ in found]
    if not pieces:
        raise UserError(f"{', '.join(map(str, table.paths))}: got no rows, expected at least one")
    if options.test_shards:
        if schema.split.by != "order":
            raise UserError(
                f"--test-shards {options.test_shards}: got a schema that splits by {schema.split.by}, "
                "expected one that splits by order; leave the option out for a file of each piece and split"
            )
        check_pieces(len(pieces), options.test_shards)
        table.schema = replace(schema, split=Split("files", files={"train": (), "test": ()}))
        splits = ["train"] * (len(pieces) - options.test_shards) + ["test"] * options.test_shards
    settings = {
        "dataset": "table",
        "inputs": input_identity(table.paths),
        "options": {
            **settings_of(schema),
            "shard_bytes": options.shard_bytes,
            "test_shards": options.test_shards,
        },
        **identity(given),
    }
    by_split = [numbered(split, len(pieces), 5) for split in table.schema.split.names]
    names = [list(some) for some in zip(*by_split, strict=True)]
    outputs = Outputs(
        options.out,
        [name for some in names for name in some],
        settings,
        overwrite=options.overwrite,
        vocabularies=vocabulary_files(schema) if given is None else (),
    )
    missing = set(outputs.missing())
    bad_lines = BadLines(_text(pieces), options.max_bad_lines)
    for i, some in enumerate(names):
        if missing.isdisjoint(some):  # its files all say the same
            stored = [found for name in some if (found := outputs.stored(name))]
            bad_lines.restore([i], stored[0].get("lines"))
    sharding = _Sharding(table, pieces, splits, names, outputs, bad_lines, [0] * len(pieces), given)
    if not missing and outputs.up_to_date():
        return sharding, None
    make_directory(options.out)
    return sharding, missing


def _text(pieces: Sequence[TablePiece]) -> list[Piece]:
    """Returns the pieces in the form that `BadLines` takes; a piece of rows becomes its whole file."""
    return [piece if isinstance(piece, Piece) else Piece(piece.path) for piece in pieces]


def _with_lines(piece: TablePiece, work: Callable[[int], Result]) -> Result:
    """Returns `work(1)`; if that finds bad input, runs `work` again with the piece's true first line number.

    A piece of text doesn't know the number of its first line, which the message needs.
    """
    with option_named():
        try:
            return work(1)
        except UserError:
            if isinstance(piece, Piece) and piece.begin:
                work(piece.first_line())
            raise


def _of_each(
    sharding: _Sharding, pieces: Collection[int], team: Team, title: str, work: Callable[[int], Result]
) -> dict[int, Result]:
    """Returns the result of `work` for each of these pieces, shared by the ranks.

    Without a connection, each process does all of them.
    Collective over `team`.
    """
    sizes = [piece.num_bytes for piece in sharding.pieces]
    mine = share_of(team, sizes, pieces) if team.connected else sorted(pieces)

    def some() -> dict[int, Result]:
        found = {}
        total = sum(sizes[i] for i in mine)
        with Progress(title, total, unit=" bytes", shown=team.shows) as progress:
            for i in mine:
                found[i] = work(i)
                progress.add(sizes[i])
        return found

    return {i: value for part in team.gather(together(team, some)) for i, value in part.items()}


def _mend_cuts(sharding: _Sharding, team: Team) -> None:
    """Moves cuts that fell into a quoted value.

    Collective over `team`.
    """
    schema, pieces = sharding.table.schema, sharding.pieces
    if any(may_cut_values(piece, schema) for piece in pieces):
        everything = range(len(pieces))
        quotes = _of_each(
            sharding, everything, team, "table: looking for quotes", lambda i: num_quotes(pieces[i], schema)
        )
        sharding.pieces = once(team, lambda: mend_cuts(pieces, [quotes[i] for i in everything]))
        sharding.bad_lines.recut(_text(sharding.pieces))


def _find_bad_lines(sharding: _Sharding, pieces: Collection[int], fit: Fit, team: Team) -> None:
    """Finds the bad lines of these pieces, which all later passes over them skip.

    Collective over `team`.
    """
    sharding.left_out = _of_each(
        sharding,
        pieces,
        team,
        "table: looking for bad lines",
        lambda i: find_bad_lines(sharding.bad_lines, i, fit),
    )
    sharding.bad_lines.share(team)


def _count_rows(sharding: _Sharding, team: Team) -> None:
    """Counts the rows before each piece, and in all.

    Collective over `team`.
    """

    def count(i: int) -> int:
        work = partial(count_rows, sharding.pieces[i], sharding.table.schema, sharding.left_out.get(i, ()))
        return _with_lines(sharding.pieces[i], work)

    everything = range(len(sharding.pieces))
    rows = _of_each(sharding, everything, team, "table: counting rows", count)
    ends = np.cumsum([rows[i] for i in everything]).tolist()
    sharding.first_rows = [0, *ends[:-1]]
    sharding.table.set_rows(ends[-1])


def _frames(sharding: _Sharding, i: int, first_line: int) -> Iterator[tuple[Frame, npt.NDArray[np.int64]]]:
    """Yields the piece's frames with the split of their rows [N], as positions in `split.names`."""
    first_row = sharding.first_rows[i]
    for source in read_frames(
        sharding.pieces[i], sharding.table.schema, sharding.left_out.get(i, ()), first_line
    ):
        yield source, sharding.table.parts(sharding.splits[i], source, first_row)
        first_row += source.frame.height


def _learn(sharding: _Sharding, mine: Collection[int], learning: Learning, *, shown: bool) -> None:
    """Learns from this rank's pieces."""
    names = sharding.table.schema.split.names
    train = names.index("train")

    def learn(i: int, first_line: int) -> None:
        for source, parts in _frames(sharding, i, first_line):
            learning.add(source, parts == train, i)

    sizes = sum(sharding.pieces[i].num_bytes for i in mine)
    with Progress("table: learning from the training rows", sizes, unit=" bytes", shown=shown) as progress:
        for i in mine:
            _with_lines(sharding.pieces[i], partial(learn, i))
            progress.add(sharding.pieces[i].num_bytes)


def _write(
    sharding: _Sharding, i: int, converter: Converter, learned: Learned, progress: Progress, first_line: int
) -> list[FileReport]:
    """Writes the piece's files, one for each split that it has rows of, and returns their reports."""
    schema, outputs = sharding.table.schema, sharding.outputs
    names = sharding.names[i]
    binary = all(entry.binary for entry in schema.labels.values())
    settings = dict(outputs.settings)
    writers: dict[str, DatasetWriter] = {}
    labels = {name: np.zeros(3) for name in names}
    with ExitStack() as stack:
        for source, parts in _frames(sharding, i, first_line):
            batch = converter.batch(source, learned)
            for part, name in enumerate(names):
                rows = np.flatnonzero(parts == part)
                if not len(rows):
                    continue
                if name not in writers:
                    writers[name] = stack.enter_context(
                        DatasetWriter(
                            outputs.directory / name,
                            outputs.named(converter.dataset),
                            source=sharding.table.source,
                            preprocessing=settings,
                            check_binary_labels=binary,
                        )
                    )
                taken = batch if len(rows) == len(parts) else batch.take(rows)
                writers[name].write(taken)
                labels[name] += sum_and_counts(taken.labels)
        settings["absent"] = [name for name in names if name not in writers]
        settings["lines"] = sharding.bad_lines.setting([i])
    if not writers:
        outputs.note_absent(names, {"lines": settings["lines"]})
    progress.add(sharding.pieces[i].num_bytes)
    return [
        FileReport(outputs.directory / name, writer.num_samples, label_rate(labels[name]))
        for name, writer in writers.items()
    ]
