"""Converts any table to a dataset: reads it once to learn from the training rows if needed, once to write.

Shapes: N rows of one frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines, option_named
from persia_hpc.preprocess.frames import Frame, Place
from persia_hpc.preprocess.lines import Piece, expand_files
from persia_hpc.preprocess.outputs import FileReport, Outputs, input_identity
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.rules import MissingWords, equal
from persia_hpc.preprocess.splitting import OrderSplit, RandomSplit, boundaries
from persia_hpc.preprocess.team import ONE_MEMBER
from persia_hpc.samples.encoding import read_encoding
from persia_hpc.samples.ids import MISSING_ID, RARE_ID

from .bad_lines import Fit, find_bad_lines, first_fit
from .convert import Converter, Learned
from .encoding import check_lists, encoding_of, learned_of, with_types
from .input import count_rows, read_frames
from .learn import Learning
from .schema import TableSchema, load_schema, settings_of


@dataclass(frozen=True)
class TableOptions:
    """Holds the options of `persia-hpc preprocess table`.

    schema: the TOML file; its file names are relative to its directory
    shard_bytes: makes a file for about this many bytes of input and each split instead (parallel.py)
    test_shards: number of pieces of the input, the last ones, that are the test as a whole
    max_bad_lines: the most lines of text files that the schema doesn't fit and that are left out
    encoding: what other data have been prepared with: encoding.json or the folder that holds it
    no_labels: leaves the schema's labels out
    """

    out: Path
    schema: Path
    overwrite: bool = False
    shard_bytes: int | None = None
    test_shards: int = 0
    max_bad_lines: int = 0
    encoding: Path | None = None
    no_labels: bool = False


class Table:
    """Reads the input files as frames, with the split of each row.

    files: each file with its split, which is "" where the rows decide
    left_out: line numbers to skip in every pass over a file
    """

    def __init__(self, schema: TableSchema, base: Path) -> None:
        self.schema = schema
        split = schema.split
        by_split = split.files if split.by == "files" else {"": schema.files}
        self.files = [(name, path) for name, globs in by_split.items() for path in expand_files(globs, base)]
        self.left_out: dict[Path, set[int]] = {}
        self._order: OrderSplit | RandomSplit | None = None
        if split.by == "random":
            self._order = RandomSplit(tuple(split.fractions.values()), split.seed)

    @property
    def paths(self) -> list[Path]:
        """Lists the paths of the input files, in order."""
        return [path for _, path in self.files]

    @property
    def source(self) -> str:
        """Returns the names of the first input files, as stored in the output's attribute `source`."""
        more = ", ..." if len(self.files) > 3 else ""
        return ", ".join(path.name for path in self.paths[:3]) + more

    @property
    def splits_by_number(self) -> bool:
        """Tells whether the split of a row depends on how many rows come before it."""
        return self.schema.split.by in ("order", "random")

    def count(self) -> None:
        """Counts the rows if the table is split by order, which needs their number.

        Raises UserError as `count_rows` does.
        """
        if self.schema.split.by == "order":
            total = 0
            with self.progress("counting rows") as progress:
                for path in self.paths:
                    left_out = self.left_out.get(path, ())
                    total += count_rows(path, self.schema, left_out, on_read=progress.add)
            self.set_rows(total)

    def set_rows(self, total: int) -> None:
        """Sets the number of rows of all files; needed only for a table that is split by order."""
        if self.schema.split.by == "order":
            self._order = OrderSplit(boundaries(total, self.schema.split.fractions))

    def fit(self, max_bad_lines: int) -> Fit:
        """Returns a fit made from the first block of rows, without its bad lines if any are allowed.

        Raises UserError as `first_fit` does.
        """
        check = self._by_column if self.schema.split.by == "column" else None
        return first_fit(self.paths, self.schema, check, max_bad_lines)

    def progress(self, title: str, only: str | None = None) -> Progress:
        """Returns a progress bar over the bytes of all files, or of those with rows of the split `only`."""
        total = sum(path.stat().st_size for _, path in self._files_of(only))
        return Progress(f"table: {title}", total, unit=" bytes")

    def _files_of(self, only: str | None) -> list[tuple[str, Path]]:
        return [(name, path) for name, path in self.files if only is None or name in ("", only)]

    def frames(
        self, progress: Progress, only: str | None = None
    ) -> Iterator[tuple[Frame, npt.NDArray[np.int64]]]:
        """Yields each frame with the split of its rows [N], as positions in `split.names`.

        only: reads just the files that may have rows of this split
        Raises UserError as `read_frames` and `parts` do.
        """
        first_row = 0
        for name, path in self._files_of(only):
            left_out = self.left_out.get(path, ())
            for source in read_frames(path, self.schema, left_out, on_read=progress.add):
                yield source, self.parts(name, source, first_row)
                first_row += source.frame.height

    def parts(self, name: str, source: Frame, first_row: int) -> npt.NDArray[np.int64]:
        """Returns the split of each row of the frame, as positions in `split.names`.

        name: the split of the frame's file
        first_row: how many rows of the table come before the frame
        Shapes: [N] int64.
        Raises UserError if the column that names the split has another value.
        """
        if self.schema.split.by == "column":
            return self._by_column(source)
        if self._order is None:
            return np.full(source.frame.height, self.schema.split.names.index(name), np.int64)
        return self._order.parts(first_row, source.frame.height)

    def _by_column(self, source: Frame) -> npt.NDArray[np.int64]:
        split = self.schema.split
        assert split.column is not None
        words = [word for values in split.values.values() for word in values]
        place = Place(source, split.column)
        column = MissingWords(self.schema.missing).cleaned(source.frame[split.column], place)
        places = np.full(source.frame.height, -1, np.int64)
        for name, values in split.values.items():
            for word in values:
                places[equal(column, word).to_numpy()] = split.names.index(name)
        place.refuse(places < 0, f"one of {', '.join(words)} (split.values)")
        return places


def read_schema(options: TableOptions) -> tuple[TableSchema, dict[str, Any] | None]:
    """Returns the schema, with the types of the encoding that the options name, and that encoding.

    Raises UserError for a schema or an encoding that can't be used, or that contradict each other.
    """
    schema = load_schema(options.schema)
    if options.no_labels:
        schema = replace(schema, labels={})
    if options.encoding is None:
        return schema, None
    given = read_encoding(options.encoding)
    try:
        return with_types(schema, given), given
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{options.encoding}: isn't an encoding of a table ({type(error).__name__})"
        ) from error


def identity(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what the settings of outputs say of a given encoding."""
    return {} if given is None else {"encoding": given["digest"]}


@option_named()
def prepare(options: TableOptions) -> list[FileReport | str] | None:
    """Writes the files on one process; returns what to print at the end, None when they were up to date.

    Raises UserError for bad options or input, or if other files are in the way.
    """
    schema, given = read_schema(options)
    table = Table(schema, options.schema.parent)
    names = schema.split.names
    settings: dict[str, Any] = {
        "dataset": "table",
        "inputs": input_identity(table.paths),
        "options": settings_of(schema),
        **identity(given),
    }
    outputs = Outputs(
        options.out,
        [f"{name}.h5" for name in names],
        settings,
        overwrite=options.overwrite,
        vocabularies=vocabulary_files(schema) if given is None else (),
    )
    bad_lines = BadLines([Piece(path) for path in dict.fromkeys(table.paths)], options.max_bad_lines)
    everything = range(len(bad_lines.pieces))
    if outputs.up_to_date():
        bad_lines.restore(everything, outputs.stored(f"{names[0]}.h5").get("lines"))
        bad_lines.check()
        return None
    fit = table.fit(options.max_bad_lines)
    if options.max_bad_lines:
        with table.progress("looking for bad lines") as progress:
            for i, piece in enumerate(bad_lines.pieces):
                table.left_out[piece.path] = find_bad_lines(bad_lines, i, fit, progress.add)
        outputs.settings["lines"] = bad_lines.setting(everything)
    table.count()
    converter = fit.converter
    if given is None:
        learned = _learn(table, converter)
        outputs.encode(encoding_of(converter, learned))
    else:
        check_lists(converter, given)
        learned = learned_of(given)
        outputs.encode(given)
    outputs.settings.update(learned_settings(converter, learned))
    binary = all(entry.binary for entry in schema.labels.values())
    with (
        outputs.write(converter.dataset, source=table.source, check_binary_labels=binary) as writer,
        table.progress("writing") as progress,
    ):
        for frame, parts in table.frames(progress):
            batch = converter.batch(frame, learned)
            for part, name in enumerate(names):
                rows = np.flatnonzero(parts == part)
                writer.write(f"{name}.h5", batch if len(rows) == len(parts) else batch.take(rows))
        write_vocabularies(outputs, learned)
    return [*writer.report, *bad_lines.report(), *converter.missing.report()]


def _learn(table: Table, converter: Converter) -> Learned:
    learning = Learning(converter)
    if learning.needed:
        train = table.schema.split.names.index("train")
        with table.progress("learning from the training rows", only="train") as progress:
            for source, parts in table.frames(progress, only="train"):
                learning.add(source, parts == train)
    return learning.finish(ONE_MEMBER)


def learned_settings(converter: Converter, learned: Learned) -> dict[str, Any]:
    """Returns what the output's attribute `preprocessing` holds besides the options."""
    return {
        "id_types": converter.id_types,
        "standardize": {name: [m.mean, m.deviation] for name, m in learned.moments.items()},
        "missing_id": MISSING_ID,
        "rare_id": RARE_ID,
    }


def vocabulary_files(schema: TableSchema) -> list[str]:
    """Returns the names of the CSV files that list vocabularies."""
    return [_vocabulary_file(name) for name, entry in schema.ids.items() if entry.vocabulary]


def write_vocabularies(outputs: Outputs, learned: Learned) -> None:
    """Writes a CSV file for each vocabulary."""
    for name, vocabulary in learned.vocabularies.items():
        outputs.write_vocabulary(_vocabulary_file(name), vocabulary)


def _vocabulary_file(name: str) -> str:
    return f"vocabulary-{name}.csv"
