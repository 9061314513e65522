"""Any table to a dataset: read once to learn what the training rows hold where needed, then once to write.

Shapes: N rows of one frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.frames import Frame
from persia_hpc.preprocess.ids import MISSING_ID, RARE_ID, IdCounts, IdFilter
from persia_hpc.preprocess.lines import Piece, expand_files
from persia_hpc.preprocess.outputs import FileReport, Outputs, input_identity
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.splits import OrderSplit, RandomSplit, boundaries
from persia_hpc.preprocess.table_bad_lines import find_bad_lines
from persia_hpc.preprocess.table_convert import Converter, Learned, Moments
from persia_hpc.preprocess.table_input import count_rows, read_frames
from persia_hpc.preprocess.table_schema import TableSchema, load_schema

UNKNOWN_NUMBER = 0


@dataclass(frozen=True)
class TableOptions:
    """`schema`: the TOML file; its file names are relative to it.

    At most `max_bad_lines` lines of text files that the schema doesn't fit are left out.
    """

    out: Path
    schema: Path
    overwrite: bool = False
    max_bad_lines: int = 0


class Table:
    """The input files as frames with the split of each row."""

    def __init__(self, schema: TableSchema, base: Path) -> None:
        self._schema = schema
        split = schema.split
        by_split = split.files if split.by == "files" else {"": schema.files}
        self._files = [(name, path) for name, globs in by_split.items() for path in expand_files(globs, base)]
        self._left_out: dict[Path, set[int]] = {}
        self._order: OrderSplit | RandomSplit | None = None
        if split.by == "random":
            self._order = RandomSplit(tuple(split.fractions.values()), split.seed)

    @property
    def paths(self) -> list[Path]:
        """The input files."""
        return [path for _, path in self._files]

    def leave_out_bad_lines(self, bad_lines: BadLines) -> None:
        """One pass over everything: all others pass over the lines that it finds."""
        split = self._schema.split
        self._left_out = find_bad_lines(
            bad_lines, self._schema, self._by_column if split.by == "column" else None
        )

    def count(self) -> None:
        """Count the rows where the split needs it (by order)."""
        if self._schema.split.by == "order":
            total = 0
            with Progress("table: counting rows") as progress:
                for path in self.paths:
                    rows = count_rows(path, self._schema, self._left_out.get(path, ()))
                    total += rows
                    progress.add(rows)
            self._order = OrderSplit(boundaries(total, self._schema.split.fractions))

    def frames(self, only: str | None = None) -> Iterator[tuple[Frame, npt.NDArray[np.int64]]]:
        """Each frame with the split of its rows [N], by place in `split.names`. `only`: its files."""
        first_row = 0
        names = self._schema.split.names
        for name, path in self._files:
            if only is not None and name not in ("", only):
                continue
            for source in read_frames(path, self._schema, self._left_out.get(path, ())):
                rows = source.frame.height
                if self._schema.split.by == "column":
                    parts = self._by_column(source)
                elif self._order is None:
                    parts = np.full(rows, names.index(name), np.int64)
                else:
                    parts = self._order.parts(first_row, rows)
                first_row += rows
                yield source, parts

    def _by_column(self, source: Frame) -> npt.NDArray[np.int64]:
        split = self._schema.split
        assert split.column is not None
        known = {value: split.names.index(name) for name, values in split.values.items() for value in values}
        column = source.frame[split.column].cast(pl.String)
        parts = column.replace_strict(list(known), list(known.values()), default=-1, return_dtype=pl.Int64)
        places = parts.fill_null(-1).to_numpy()
        source.refuse(places < 0, split.column, f"one of {', '.join(known)} (split.values)")
        return places


def learn(converter: Converter, table: Table) -> Learned:
    """One pass over the training rows, if any column asks for it."""
    schema = converter.schema
    train = schema.split.names.index("train") if "train" in schema.split.names else -1
    moments = {name: Moments() for name, entry in schema.dense.items() if "standardize" in entry.transform}
    counted = {
        name: IdCounts() for name, entry in schema.ids.items() if entry.min_count > 1 or entry.vocabulary
    }
    learned = Learned(moments)
    if not moments and not counted:
        return learned
    if train < 0:
        raise UserError(
            "standardize, min_count and vocabulary learn from training rows: expected a split with `train`"
        )
    with Progress("table: learning from the training rows") as progress:
        for source, parts in table.frames(only="train"):
            rows = parts == train
            for name, moment in moments.items():
                moment.add(converter.dense(source, schema.dense[name], None)[rows])
            for name, counts in counted.items():
                column, values = converter.ids(source, name)
                keep = rows if column.offsets is None else np.repeat(rows, np.diff(column.offsets))
                keep &= column.values != MISSING_ID
                text = values.filter(pl.Series(keep)).cast(pl.String)
                counts.add(column.values[keep], text if schema.ids[name].vocabulary else None)
            progress.add(int(rows.sum()))
    for name, counts in counted.items():
        entry = schema.ids[name]
        frame = counts.frame(entry.min_count)
        other = UNKNOWN_NUMBER if entry.vocabulary else RARE_ID
        learned.filters[name] = IdFilter(
            frame["id"].to_numpy(), other=other, never_other=[MISSING_ID], renumber=entry.vocabulary
        )
        if entry.vocabulary:
            numbers = pl.Series("id", np.arange(1, frame.height + 1, dtype=np.uint64))
            learned.vocabularies[name] = frame.select(numbers, "value", "count")
    return learned


def prepare(options: TableOptions) -> list[FileReport | str] | None:
    """Write the files; what to print at the end, None when they were up to date."""
    schema = load_schema(options.schema)
    table = Table(schema, options.schema.parent)
    names = schema.split.names
    settings: dict[str, Any] = {
        "dataset": "table",
        "inputs": input_identity(table.paths),
        "options": asdict(schema),
    }
    outputs = Outputs(options.out, [f"{name}.h5" for name in names], settings, overwrite=options.overwrite)
    bad_lines = BadLines([Piece(path) for path in dict.fromkeys(table.paths)], options.max_bad_lines)
    everything = range(len(bad_lines.pieces))
    if outputs.up_to_date():
        bad_lines.restore(everything, outputs.stored(f"{names[0]}.h5").get("lines"))
        bad_lines.check()
        return None
    if options.max_bad_lines:
        table.leave_out_bad_lines(bad_lines)
        outputs.settings["lines"] = bad_lines.setting(everything)
    table.count()
    first = next(table.frames(), None)
    if first is None:
        raise UserError(f"{', '.join(str(path) for path in table.paths)}: got no rows, expected at least one")
    converter = Converter(schema, first[0])
    learned = learn(converter, table)
    outputs.settings.update(
        id_types=converter.id_types,
        standardize={
            name: [m.mean, float(np.sqrt(m.squares / max(m.count, 1)))] for name, m in learned.moments.items()
        },
        missing_id=MISSING_ID,
        rare_id=RARE_ID,
    )
    binary = all(entry.binary for entry in schema.labels.values())
    source = ", ".join(path.name for path in table.paths[:3]) + (", ..." if len(table.paths) > 3 else "")
    with (
        outputs.write(converter.dataset, source=source, check_binary_labels=binary) as writer,
        Progress("table: writing") as progress,
    ):
        for frame, parts in table.frames():
            batch = converter.batch(frame, learned)
            for part, name in enumerate(names):
                rows = np.flatnonzero(parts == part)
                writer.write(f"{name}.h5", batch if len(rows) == len(parts) else batch.take(rows))
            progress.add(len(parts))
    for name, vocabulary in learned.vocabularies.items():
        vocabulary.write_csv(options.out / f"vocabulary-{name}.csv")
    return [*writer.report, *bad_lines.report()]
