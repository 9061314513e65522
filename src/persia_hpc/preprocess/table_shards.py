"""A table by the terabyte: many ranks, each making HDF5 files of pieces of the input, one for each split.

The samples and their splits are those of table.py, whoever makes them. Shapes: N rows of one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError
from persia_hpc.preprocess.frames import Frame
from persia_hpc.preprocess.outputs import FileReport, Outputs, input_identity, make_directory
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.shards import check_pieces, with_lines, write_pieces
from persia_hpc.preprocess.table import Table, TableOptions, learned_settings, write_vocabularies
from persia_hpc.preprocess.table_convert import Converter, Learned
from persia_hpc.preprocess.table_input import (
    TablePiece,
    count_rows,
    cut_table,
    may_cut_values,
    mend_cuts,
    num_quotes,
    read_frames,
)
from persia_hpc.preprocess.table_learn import Learning
from persia_hpc.preprocess.table_schema import Split, load_schema
from persia_hpc.preprocess.team import Team, shares, together
from persia_hpc.samples.writer import DatasetWriter


@dataclass
class _Plan:
    """Of each piece: its split, as `Table.files` has it, its files, one for each split, and its first row."""

    table: Table
    pieces: list[TablePiece]
    splits: list[str]
    names: list[list[str]]
    outputs: Outputs
    first_rows: list[int]


def prepare(options: TableOptions, team: Team) -> list[FileReport] | None:
    """Writes the files that aren't there yet; None if all were. Collective, with the same result for all."""
    plan, missing = together(team, lambda: _plan(options))
    if not missing and plan.outputs.up_to_date():
        return None
    together(team, lambda: make_directory(options.out))
    _survey(plan, team)
    sizes = [piece.size() for piece in plan.pieces]
    converter = together(team, lambda: Converter(plan.table.schema, plan.table.first()))
    learning = together(team, lambda: Learning(converter))
    if learning.needed:
        team.need_all("what the schema learns from training rows (min_count, vocabulary, standardize)")
        mine = shares(sizes, team.size)[team.rank]
        together(team, lambda: _learn(plan, mine, learning, shown=team.rank == 0))
    learned = learning.finish(team)
    plan.outputs.settings.update(learned_settings(converter, learned))

    def write(i: int, progress: Progress) -> list[FileReport]:
        return with_lines(plan.pieces[i], partial(_write, plan, i, converter, learned, progress))

    wanted = [i for i in range(len(sizes)) if not missing.isdisjoint(plan.names[i])]
    made = write_pieces(team, plan.outputs, sizes, wanted, write, "table: writing")
    if team.rank == 0:
        write_vocabularies(options.out, learned)
    return made


def _plan(options: TableOptions) -> tuple[_Plan, set[str]]:
    """The pieces, and which files must be made."""
    assert options.shard_bytes is not None
    if options.shard_bytes < 1 or options.test_shards < 0:
        raise UserError(
            f"--shard-bytes {options.shard_bytes} --test-shards {options.test_shards}: "
            "expected at least 1 and 0"
        )
    schema = load_schema(options.schema)
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
            **asdict(schema),
            "shard_bytes": options.shard_bytes,
            "test_shards": options.test_shards,
        },
    }
    names = [[f"{split}-{i:05d}.h5" for split in table.schema.split.names] for i in range(len(pieces))]
    outputs = Outputs(
        options.out, [name for some in names for name in some], settings, overwrite=options.overwrite
    )
    plan = _Plan(table, pieces, splits, names, outputs, [0] * len(pieces))
    return plan, set(outputs.missing())  # nobody writes before all have looked


def _of_all(plan: _Plan, team: Team, title: str, work: Callable[[TablePiece], int]) -> list[int]:
    """`work` of every piece, shared by the ranks; a part alone does all. Collective."""
    sizes = [piece.size() for piece in plan.pieces]
    mine = shares(sizes, team.size)[team.rank] if team.connected else range(len(sizes))

    def some() -> dict[int, int]:
        found = {}
        total = sum(sizes[i] for i in mine)
        with Progress(title, total, unit=" bytes", shown=team.rank == 0) as progress:
            for i in mine:
                found[i] = work(plan.pieces[i])
                progress.add(sizes[i])
        return found

    found = {i: value for part in team.gather(together(team, some)) for i, value in part.items()}
    return [found[i] for i in range(len(sizes))]


def _survey(plan: _Plan, team: Team) -> None:
    """Finds out what the pieces need to know of those before them: quotes, and rows. Collective."""
    schema = plan.table.schema
    if any(may_cut_values(piece, schema) for piece in plan.pieces):
        quotes = _of_all(plan, team, "table: looking for quotes", lambda piece: num_quotes(piece, schema))
        plan.pieces = mend_cuts(plan.pieces, quotes)
    if schema.split.by in ("order", "random"):
        rows = _of_all(
            plan,
            team,
            "table: counting rows",
            lambda piece: with_lines(piece, partial(count_rows, piece, schema)),
        )
        ends = np.cumsum(rows).tolist()
        plan.first_rows = [0, *ends[:-1]]
        plan.table.set_rows(ends[-1])


def _frames(plan: _Plan, i: int, first_line: int) -> Iterator[tuple[Frame, npt.NDArray[np.int64]]]:
    """The piece's frames with the split of their rows [N], by place in `split.names`."""
    first_row = plan.first_rows[i]
    for source in read_frames(plan.pieces[i], plan.table.schema, first_line):
        yield source, plan.table.parts(plan.splits[i], source, first_row)
        first_row += source.frame.height


def _learn(plan: _Plan, mine: Iterable[int], learning: Learning, *, shown: bool) -> None:
    """Takes in this rank's pieces."""
    names = plan.table.schema.split.names
    train = names.index("train")

    def learn(i: int, first_line: int) -> None:
        for source, parts in _frames(plan, i, first_line):
            learning.add(source, parts == train, i)

    pieces = [i for i in mine if plan.splits[i] in ("", "train")]
    sizes = sum(plan.pieces[i].size() for i in pieces)
    with Progress("table: learning from the training rows", sizes, unit=" bytes", shown=shown) as progress:
        for i in pieces:
            with_lines(plan.pieces[i], partial(learn, i))
            progress.add(plan.pieces[i].size())


def _write(
    plan: _Plan, i: int, converter: Converter, learned: Learned, progress: Progress, first_line: int
) -> list[FileReport]:
    """The piece's files, of the splits that it has rows of."""
    schema, outputs = plan.table.schema, plan.outputs
    names = plan.names[i]
    binary = all(entry.binary for entry in schema.labels.values())
    writers: dict[str, DatasetWriter] = {}
    labels = dict.fromkeys(names, 0.0)
    with ExitStack() as stack:
        for source, parts in _frames(plan, i, first_line):
            batch = converter.batch(source, learned)
            for part, name in enumerate(names):
                rows = np.flatnonzero(parts == part)
                if not len(rows):
                    continue
                if name not in writers:
                    writers[name] = stack.enter_context(
                        DatasetWriter(
                            outputs.directory / name,
                            converter.dataset,
                            source=plan.table.source,
                            preprocessing=outputs.settings,
                            check_binary_labels=binary,
                        )
                    )
                taken = batch if len(rows) == len(parts) else batch.take(rows)
                writers[name].write(taken)
                labels[name] += float(taken.labels[:, 0].sum(dtype=np.float64))
        for writer in writers.values():
            writer.preprocessing["absent"] = [name for name in names if name not in writers]
    progress.add(plan.pieces[i].size())
    return [
        FileReport(outputs.directory / name, writer.num_samples, labels[name] / writer.num_samples)
        for name, writer in writers.items()
    ]
