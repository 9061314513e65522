"""CSV, TSV and Parquet files as a stream of frames that hold the wanted columns."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.columns import cleaned
from persia_hpc.preprocess.frames import Frame, parse
from persia_hpc.preprocess.lines import TextBlock, read_blocks
from persia_hpc.preprocess.table_schema import FORMATS, TableSchema

PARQUET_ROWS = 131_072
SEPARATORS = {"csv": ",", "tsv": "\t"}
PACKED = (".gz", ".xz", ".bz2", ".zst")


def format_of(path: Path, schema: TableSchema) -> str:
    """`csv`, `tsv` or `parquet`: from the schema, else from the file's name."""
    if schema.format is not None:
        return schema.format
    suffixes = [suffix for suffix in path.suffixes if suffix not in PACKED]
    name = suffixes[-1][1:].lower() if suffixes else ""
    if name not in FORMATS:
        raise UserError(
            f"{path}: got no ending that tells the format; set `format` to one of {', '.join(FORMATS)}"
        )
    return name


def read_frames(path: Path, schema: TableSchema, left_out: Collection[int] = ()) -> Iterator[Frame]:
    """The file's rows in order with the columns of `schema.used_columns`; text is a string or null.

    `left_out`: numbers of lines that are passed over.
    """
    if format_of(path, schema) == "parquet":
        yield from _parquet_frames(path, schema)
        return
    for names, block in text_blocks(path, schema, schema.used_columns, left_out):
        yield read_block(block, names, schema)


def count_rows(path: Path, schema: TableSchema, left_out: Collection[int] = ()) -> int:
    """Rows of the file; `left_out` as in `read_frames`."""
    if format_of(path, schema) == "parquet":
        return _parquet_rows(path)
    blocks = text_blocks(path, schema, [], left_out)
    return sum(_parse(block, names, schema).frame.height for names, block in blocks)


def _parquet_rows(path: Path) -> int:
    try:
        return int(pl.scan_parquet(path).select(pl.len()).collect().item())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: can't be read as Parquet ({error})") from error


def _parquet_frames(path: Path, schema: TableSchema) -> Iterator[Frame]:
    total = _parquet_rows(path)
    wanted = schema.used_columns
    _check_names(path, wanted, pl.read_parquet_schema(path))
    for first in range(0, total, PARQUET_ROWS):
        try:
            frame = pl.scan_parquet(path).select(wanted).slice(first, PARQUET_ROWS).collect()
        except pl.exceptions.PolarsError as error:
            last = min(first + PARQUET_ROWS, total)
            raise UserError(f"{path}: rows {first + 1} to {last} can't be read ({error})") from error
        yield Frame(_cleaned(frame, schema), path, first_row=first)


def _dialect(path: Path, schema: TableSchema) -> tuple[str, bool]:
    """What separates the columns of a text file, and whether values may be quoted."""
    kind = format_of(path, schema)
    return schema.separator or SEPARATORS[kind], (kind == "csv") if schema.quote is None else schema.quote


def text_blocks(
    path: Path, schema: TableSchema, wanted: Sequence[str], left_out: Collection[int] = ()
) -> Iterator[tuple[tuple[str, ...], TextBlock]]:
    """The names of the columns, `wanted` among them, with each block of lines below the header.

    `left_out`: numbers of lines that are passed over; blocks without any line too.
    """
    separator, quoted = _dialect(path, schema)
    names = schema.columns
    for number, whole in enumerate(read_blocks(path, quoted=quoted)):
        block = whole
        if names is None:
            names, block = _header(whole, separator, quoted)
        if number == 0:
            _check_names(path, wanted, names)
        block = block.without(left_out)
        if block.num_rows:
            yield names, block


def read_block(block: TextBlock, names: Sequence[str], schema: TableSchema) -> Frame:
    """The rows of a block with the columns of `schema.used_columns`; BadRowsError for another layout."""
    source = _parse(block, names, schema)
    return replace(source, frame=_cleaned(source.frame.select(schema.used_columns), schema))


def _parse(block: TextBlock, names: Sequence[str], schema: TableSchema) -> Frame:
    separator, quoted = _dialect(block.path, schema)
    return parse(block, dict.fromkeys(names, pl.String), separator, quoted=quoted)


def _header(block: TextBlock, separator: str, quoted: bool) -> tuple[tuple[str, ...], TextBlock]:
    """The names on the first line, and the block without it."""
    line, data = block.data.split(b"\n", 1)
    try:
        text = line.decode().rstrip("\r")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{block.path}:{block.line(0)}: got bytes that aren't UTF-8, expected UTF-8 text"
        ) from error
    names = next(csv.reader([text], delimiter=separator)) if quoted else text.split(separator)
    names = [name.strip() for name in names]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(
            f"{block.path}:{block.line(0)}: got column {repeated[0]!r} twice, expected each name once"
        )
    if block.kept is None:
        return tuple(names), replace(
            block, data=data, first_line=block.first_line + 1, num_rows=block.num_rows - 1
        )
    return tuple(names), replace(block, data=data, num_rows=block.num_rows - 1, kept=block.kept[1:])


def _check_names(path: Path, wanted: Sequence[str], names: Collection[str]) -> None:
    for name in wanted:
        if name not in names:
            close = difflib.get_close_matches(name, list(names), 1, 0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{path}: got no column {name!r}, expected it among {', '.join(names)}{hint}")


def _cleaned(frame: pl.DataFrame, schema: TableSchema) -> pl.DataFrame:
    return pl.DataFrame([cleaned(frame[name], schema.missing) for name in frame.columns])
