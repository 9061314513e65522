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
from persia_hpc.preprocess.lines import TextBlock

SHOWN_CHARACTERS = 80  # an unbalanced quote makes a value of much that follows it
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

    def refuse(self, bad: npt.NDArray[np.bool_], column: str, expected: str) -> None:
        """Refuses the frame if any of `bad` [N] is True, quoting the value of `column` in the first such row.

        Raises UserError; for a text file it is a BadRowsError that lists all such rows.
        """
        if not bad.any():
            return
        rows = np.flatnonzero(bad).tolist()
        got = [_quoted(value) for value in self.frame[column].gather(rows)]
        problems = [f"{column}: got {value}, expected {expected}" for value in got]
        if self.block is None:
            raise UserError(f"{self.where(rows[0])}: {problems[0]}")
        raise BadRowsError(self.path, list(zip(map(self._lines_of, rows), problems, strict=True)))

    def _lines_of(self, row: int) -> range:
        """Returns the lines of the file that a row occupies."""
        assert self.block is not None
        if self.lines is not None:
            return self.lines[row]
        line = self.block.line(row)
        return range(line, line + 1)


def _quoted(value: object) -> str:
    if value is None or value == "":
        return "no value"
    text = repr(value)
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
    reader = csv.reader(io.StringIO(block.data.decode(), newline=""), delimiter=separator)
    rows: list[list[str]] = []
    lines: list[range] = []
    begin = 0
    problems = []
    for row in reader:
        if row:
            rows.append(row)
            lines.append(range(block.line(begin), block.line(reader.line_num - 1) + 1))
            if len(row) != len(names):
                problems.append((lines[-1], _wrong_columns(len(row), len(names), separator)))
        begin = reader.line_num
    if problems:
        raise BadRowsError(block.path, problems)
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return Frame(frame.with_columns(pl.all().replace("", None)), block.path, block, lines)


def _refuse_columns(block: TextBlock, expected: int, separator: str) -> None:
    mark = separator.encode()
    counts = [text.count(mark) + 1 for text in block.data[:-1].split(b"\n")]
    _refuse_lines(
        block,
        {row: _wrong_columns(got, expected, separator) for row, got in enumerate(counts) if got != expected},
    )


def _wrong_columns(got: int, expected: int, separator: str) -> str:
    by = NAMES.get(separator, repr(separator))
    return f"got {got} column{'s'[: got != 1]}, expected {expected} separated by {by}"


def _refuse_lines(block: TextBlock, problems: Mapping[int, str]) -> None:
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
    _refuse_lines(block, problems)


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
    # The first bad row, then its first bad column.
    wrong = text.select(bad).with_row_index("_row").filter(pl.any_horizontal(pl.exclude("_row")))
    if wrong.is_empty():
        return
    row = int(wrong["_row"][0])
    for name, kind in schema.items():
        if kind != pl.String and wrong[name][0]:
            whole = "an integer" if kind.is_integer() else "a number"
            raise UserError(
                f"{block.path}:{block.line(row)}: {name}: got {text[name][row]!r}, expected {whole}"
            )
