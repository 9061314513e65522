"""Text blocks as polars frames; whatever is wrong in them is reported with its file and line number."""

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

NAMES = {"\t": "tab", ",": "comma", " ": "space"}


@dataclass(frozen=True)
class Frame:
    """Rows of one file. `block` or `lines` tell the line of a row; `first_row` is for files without lines."""

    frame: pl.DataFrame
    path: Path
    block: TextBlock | None = None
    lines: Sequence[int] | None = None
    first_row: int = 0

    def where(self, row: int) -> str:
        """`file:line` of a row, or `file, row n` (both from 1)."""
        if self.lines is not None:
            return f"{self.path}:{self.lines[row]}"
        if self.block is not None:
            return f"{self.path}:{self.block.line(row)}"
        return f"{self.path}, row {self.first_row + row + 1}"

    def refuse(self, bad: npt.NDArray[np.bool_], column: str, expected: str) -> None:
        """Raise `UserError` for the first True of `bad` [N], quoting the value that `column` has there."""
        if not bad.any():
            return
        row = int(bad.argmax())
        value = self.frame[column][row]
        got = "no value" if value is None or value == "" else f"{value!r}"
        raise UserError(f"{self.where(row)}: {column}: got {got}, expected {expected}")


def parse(
    block: TextBlock, schema: Mapping[str, type[pl.DataType]], separator: str, *, quoted: bool = False
) -> Frame:
    """The block as a frame with these column names and types; an empty value is null.

    Raises `UserError` with the line number for another number of columns, a value that isn't of its column's
    type, or text that isn't UTF-8. In `quoted` blocks all columns must be strings.
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
    lines: list[int] = []
    begin = 0
    for row in reader:
        if row:
            line = block.first_line + begin
            _check_columns(block.path, line, len(row), len(names), separator)
            rows.append(row)
            lines.append(line)
        begin = reader.line_num
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return Frame(frame.with_columns(pl.all().replace("", None)), block.path, block, lines)


def _refuse_columns(block: TextBlock, expected: int, separator: str) -> None:
    mark = separator.encode()
    for row, text in enumerate(block.data[:-1].split(b"\n")):
        _check_columns(block.path, block.line(row), text.count(mark) + 1, expected, separator)


def _check_columns(path: Path, line: int, got: int, expected: int, separator: str) -> None:
    if got != expected:
        by = NAMES.get(separator, repr(separator))
        raise UserError(
            f"{path}:{line}: got {got} column{'s'[: got != 1]}, expected {expected} separated by {by}"
        )


def _refuse_encoding(block: TextBlock) -> None:
    try:
        block.data.decode()
    except UnicodeDecodeError as error:
        line = block.line(block.data.count(b"\n", 0, error.start))
        raise UserError(f"{block.path}:{line}: got bytes that aren't UTF-8, expected UTF-8 text") from error


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
