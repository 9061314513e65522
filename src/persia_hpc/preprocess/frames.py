"""Parses text blocks to polars frames; errors in the text are reported with file and line number."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.lines import MAX_LINE_BYTES, TextBlock

SHOWN_CHARACTERS = 80  # an unbalanced quote makes a value of much that follows it
BARE_RETURN = "got a carriage return within a line, expected newlines: see tr '\\r' '\\n'"
NAMES = {"\t": "tab", ",": "comma", " ": "space"}


class BadRowsError(UserError):
    """Reports rows of a text file that can't be used; the message describes the first."""

    def __init__(self, path: Path, problems: Sequence[tuple[range, str]]) -> None:
        """Takes the bad rows of the file in order, each as the lines that it occupies and the problem."""
        super().__init__(f"{path}:{problems[0][0].start}: {problems[0][1]}")
        self.problems = problems


@dataclass(frozen=True)
class Frame:
    """Holds rows of one file and knows where in the file each of them is.

    block: gives the line of each row
    lines: all lines that each row occupies, where quoted values may span lines
    first_row: number of the first row, from 0, for files without lines
    """

    frame: pl.DataFrame
    path: Path
    block: TextBlock | None = None
    lines: Sequence[range] | None = None
    first_row: int = 0

    def where(self, row: int) -> str:
        """Returns `file:line` of a row, or `file, row n` where the file has no lines; both count from 1."""
        if self.lines is not None:
            return f"{self.path}:{self.lines[row].start}"
        if self.block is not None:
            return f"{self.path}:{self.block.line(row)}"
        return f"{self.path}, row {self.first_row + row + 1}"

    def refuse(self, bad: npt.NDArray[np.bool_], column: str, expected: str, got: Sequence[str] = ()) -> None:
        """Refuses the frame if any of `bad` [N] is True, quoting the value of `column` in the first such row.

        got: what to say of each bad row instead of quoting its value
        Raises UserError; for a text file it is a BadRowsError that lists all such rows.
        """
        if not bad.any():
            return
        rows = np.flatnonzero(bad).tolist()
        got = got or quoted(self.frame[column].gather(rows))
        kind = "" if self.block is not None or self.lines is not None else f" ({self.type_of(column)})"
        problems = [f"{column}: got {value}{kind}, expected {expected}" for value in got]
        if self.block is None:
            raise UserError(f"{self.where(rows[0])}: {problems[0]}")
        raise BadRowsError(self.path, list(zip(map(self._lines_of, rows), problems, strict=True)))

    def type_of(self, column: str) -> str:
        """Returns the name of a column's type."""
        return short(str(self.frame.schema[column]))

    def _lines_of(self, row: int) -> range:
        """Returns the lines of the file that a row occupies."""
        assert self.block is not None
        if self.lines is not None:
            return self.lines[row]
        line = self.block.line(row)
        return range(line, line + 1)


@dataclass(frozen=True)
class Place:
    """Says where the values of a column come from, for error messages.

    values, owner: the values [M] and the row of each; None if each row of the frame has one value
    """

    source: Frame
    column: str
    values: pl.Series | None = None
    owner: npt.NDArray[np.int64] | None = None

    def refuse(self, bad: npt.NDArray[np.bool_], expected: str) -> None:
        """Refuses the column if any of `bad` [M] is True, naming the row of the first such value.

        Raises UserError as `Frame.refuse` does.
        """
        if self.owner is None or self.values is None:
            self.source.refuse(bad, self.column, expected)
        elif bad.any():
            owners, first = np.unique(self.owner[bad], return_index=True)  # the first bad value of each row
            rows = np.zeros(self.source.frame.height, bool)
            rows[owners] = True
            got = quoted(self.values.gather(np.flatnonzero(bad)[first]))
            self.source.refuse(rows, self.column, expected, [f"{value} in a list" for value in got])


def quoted(values: pl.Series) -> list[str]:
    """Returns each value as a message shows it: on one line, and not too long."""
    if values.dtype.is_temporal() or values.dtype.is_decimal():
        return [value or "no value" for value in values.cast(pl.String)]
    return [_quoted(value) for value in values.to_list()]


def _quoted(value: object) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "no value"
    return short(repr(value))


def short(text: str) -> str:
    """Returns the text without what goes beyond `SHOWN_CHARACTERS`."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def parse(
    block: TextBlock, schema: Mapping[str, type[pl.DataType]], separator: str, *, quoted: bool = False
) -> Frame:
    """Returns the block as a frame with these column names and types; an empty value is null.

    In `quoted` blocks all columns must be strings.
    Raises UserError with the line number for a value that isn't of its column's type, and BadRowsError for a
    wrong number of columns or text that isn't UTF-8.
    """
    if quoted and b'"' in block.data:
        return _parse_quoted(block, list(schema), separator)
    # polars fills short lines with nulls, but refuses long ones: with the right total, no line is short.
    separators = np.count_nonzero(np.frombuffer(block.data, np.uint8) == ord(separator))
    if separators != block.num_rows * (len(schema) - 1):
        _refuse_columns(block, len(schema), separator)
    try:
        frame = pl.read_csv(
            io.BytesIO(block.data), has_header=False, separator=separator, schema=schema, quote_char=None
        )
    except pl.exceptions.PolarsError as error:
        _refuse_columns(block, len(schema), separator)
        _refuse_encoding(block)
        _refuse_types(block, schema, separator)
        raise UserError(f"{block.path}: near line {block.first_line}: {error}") from error
    return Frame(frame, block.path, block)


def _parse_quoted(block: TextBlock, names: Sequence[str], separator: str) -> Frame:
    _refuse_encoding(block)
    csv.field_size_limit(MAX_LINE_BYTES)  # of the process: 128 KiB without this
    reader = csv.reader(io.StringIO(block.data.decode(), newline="\n"), delimiter=separator)
    rows: list[list[str]] = []
    lines: list[range] = []
    begin = 0
    problems = []

    def taken() -> range:
        return range(block.line(begin), block.line(reader.line_num - 1) + 1)

    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(taken())
                if len(row) != len(names):
                    problems.append((lines[-1], _wrong_columns(len(row), len(names), separator)))
            begin = reader.line_num
    except csv.Error as error:
        problems.append((taken(), BARE_RETURN if "new-line" in str(error) else f"isn't valid CSV ({error})"))
    if problems:
        raise BadRowsError(block.path, problems)
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return Frame(frame.with_columns(pl.all().replace("", None)), block.path, block, lines)


def _refuse_columns(block: TextBlock, expected: int, separator: str) -> None:
    mark = separator.encode()
    counts = [text.count(mark) + 1 for text in block.data[:-1].split(b"\n")]
    refuse_lines(
        block,
        {row: _wrong_columns(got, expected, separator) for row, got in enumerate(counts) if got != expected},
    )


def _wrong_columns(got: int, expected: int, separator: str) -> str:
    by = NAMES.get(separator, repr(separator))
    return f"got {got} column{'s'[: got != 1]}, expected {expected} separated by {by}"


def refuse_lines(block: TextBlock, problems: Mapping[int, str]) -> None:
    """Refuses lines of the block, given by row with what is wrong with each.

    Raises BadRowsError if there are any.
    """
    if problems:
        lines = [(range(block.line(row), block.line(row) + 1), why) for row, why in problems.items()]
        raise BadRowsError(block.path, lines)


def _refuse_encoding(block: TextBlock) -> None:
    problems = {}
    for row, text in enumerate(block.data[:-1].split(b"\n")):
        try:
            text.decode()
        except UnicodeDecodeError:
            problems[row] = "got bytes that aren't UTF-8, expected UTF-8 text"
    refuse_lines(block, problems)


def _refuse_types(block: TextBlock, schema: Mapping[str, type[pl.DataType]], separator: str) -> None:
    text = pl.read_csv(
        io.BytesIO(block.data),
        has_header=False,
        separator=separator,
        schema=dict.fromkeys(schema, pl.String),
        quote_char=None,
    )
    bad = [
        pl.col(name).cast(kind, strict=False).is_null() & pl.col(name).is_not_null()
        for name, kind in schema.items()
        if kind != pl.String
    ]
    # Of each bad row the first bad column.
    wrong = text.select(bad).with_row_index("_row").filter(pl.any_horizontal(pl.exclude("_row")))
    problems = {}
    for row, *flags in wrong.iter_rows():
        name = wrong.columns[1 + flags.index(True)]
        whole = "an integer" if schema[name].is_integer() else "a number"
        problems[row] = f"{name}: got {text[name][row]!r}, expected {whole}"
    refuse_lines(block, problems)
