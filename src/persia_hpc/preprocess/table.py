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
from persia_hpc.preprocess.frames import Frame
from persia_hpc.preprocess.ids import MISSING_ID, RARE_ID
from persia_hpc.preprocess.lines import expand_files
from persia_hpc.preprocess.outputs import FileReport, Outputs, input_identity
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.splits import OrderSplit, RandomSplit, boundaries
from persia_hpc.preprocess.table_convert import Converter, Learned
from persia_hpc.preprocess.table_input import count_rows, read_frames
from persia_hpc.preprocess.table_learn import Learning
from persia_hpc.preprocess.table_schema import TableSchema, load_schema
from persia_hpc.preprocess.team import ALONE


@dataclass(frozen=True)
class TableOptions:
    """`schema`: the TOML file; its file names are relative to it.

    With `shard_bytes` (table_shards.py) a file for about so many bytes of input and each split, and with
    `test_shards` whole pieces of the input as the test, the last ones.
    """

    out: Path
    schema: Path
    overwrite: bool = False
    shard_bytes: int | None = None
    test_shards: int = 0


class Table:
    """The input files as frames with the split of each row. `files`: each with its split, "" where that is
    told by the rows.
    """

    def __init__(self, schema: TableSchema, base: Path) -> None:
        self.schema = schema
        split = schema.split
        by_split = split.files if split.by == "files" else {"": schema.files}
        self.files = [(name, path) for name, globs in by_split.items() for path in expand_files(globs, base)]
        self._order: OrderSplit | RandomSplit | None = None
        if split.by == "random":
            self._order = RandomSplit(tuple(split.fractions.values()), split.seed)

    @property
    def paths(self) -> list[Path]:
        """The input files."""
        return [path for _, path in self.files]

    @property
    def source(self) -> str:
        """The first input files, as the output's attribute `source` says it."""
        more = ", ..." if len(self.files) > 3 else ""
        return ", ".join(path.name for path in self.paths[:3]) + more

    def count(self) -> None:
        """Count the rows where the split needs it (by order)."""
        if self.schema.split.by == "order":
            total = 0
            with Progress("table: counting rows") as progress:
                for path in self.paths:
                    rows = count_rows(path, self.schema)
                    total += rows
                    progress.add(rows)
            self.set_rows(total)

    def set_rows(self, total: int) -> None:
        """Tell how many rows there are, where they are split by order."""
        if self.schema.split.by == "order":
            self._order = OrderSplit(boundaries(total, self.schema.split.fractions))

    def first(self) -> Frame:
        """The first frame, which decides what the schema leaves open. UserError if there are no rows."""
        for path in self.paths:
            for source in read_frames(path, self.schema):
                return source
        names = ", ".join(str(path) for path in self.paths)
        raise UserError(f"{names}: got no rows, expected at least one")

    def frames(self, only: str | None = None) -> Iterator[tuple[Frame, npt.NDArray[np.int64]]]:
        """Each frame with the split of its rows [N], by place in `split.names`. `only`: its files."""
        first_row = 0
        for name, path in self.files:
            if only is not None and name not in ("", only):
                continue
            for source in read_frames(path, self.schema):
                yield source, self.parts(name, source, first_row)
                first_row += source.frame.height

    def parts(self, name: str, source: Frame, first_row: int) -> npt.NDArray[np.int64]:
        """Split of each row of the frame [N], by place in `split.names`. `name`: the split of its file;
        `first_row`: how many rows of the table come before it.
        """
        if self.schema.split.by == "column":
            return self._by_column(source)
        if self._order is None:
            return np.full(source.frame.height, self.schema.split.names.index(name), np.int64)
        return self._order.parts(first_row, source.frame.height)

    def _by_column(self, source: Frame) -> npt.NDArray[np.int64]:
        split = self.schema.split
        assert split.column is not None
        known = {value: split.names.index(name) for name, values in split.values.items() for value in values}
        column = source.frame[split.column].cast(pl.String)
        parts = column.replace_strict(list(known), list(known.values()), default=-1, return_dtype=pl.Int64)
        places = parts.fill_null(-1).to_numpy()
        source.refuse(places < 0, split.column, f"one of {', '.join(known)} (split.values)")
        return places


def prepare(options: TableOptions) -> list[FileReport] | None:
    """Write the files; None when they were up to date."""
    schema = load_schema(options.schema)
    table = Table(schema, options.schema.parent)
    names = schema.split.names
    settings: dict[str, Any] = {
        "dataset": "table",
        "inputs": input_identity(table.paths),
        "options": asdict(schema),
    }
    outputs = Outputs(options.out, [f"{name}.h5" for name in names], settings, overwrite=options.overwrite)
    if outputs.up_to_date():
        return None
    table.count()
    converter = Converter(schema, table.first())
    learning = Learning(converter)
    if learning.needed:
        train = names.index("train")
        with Progress("table: learning from the training rows") as progress:
            for source, parts in table.frames(only="train"):
                learning.add(source, parts == train)
                progress.add(len(parts))
    learned = learning.finish(ALONE)
    outputs.settings.update(learned_settings(converter, learned))
    binary = all(entry.binary for entry in schema.labels.values())
    with (
        outputs.write(converter.dataset, source=table.source, check_binary_labels=binary) as writer,
        Progress("table: writing") as progress,
    ):
        for frame, parts in table.frames():
            batch = converter.batch(frame, learned)
            for part, name in enumerate(names):
                rows = np.flatnonzero(parts == part)
                writer.write(f"{name}.h5", batch if len(rows) == len(parts) else batch.take(rows))
            progress.add(len(parts))
    write_vocabularies(options.out, learned)
    return writer.report


def learned_settings(converter: Converter, learned: Learned) -> dict[str, Any]:
    """What the output's attribute `preprocessing` says besides the options."""
    return {
        "id_types": converter.id_types,
        "standardize": {
            name: [m.mean, float(np.sqrt(m.squares / max(m.count, 1)))] for name, m in learned.moments.items()
        },
        "missing_id": MISSING_ID,
        "rare_id": RARE_ID,
    }


def write_vocabularies(out: Path, learned: Learned) -> None:
    """A CSV file for each vocabulary."""
    for name, vocabulary in learned.vocabularies.items():
        vocabulary.write_csv(out / f"vocabulary-{name}.csv")
