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


def read_frames(path: Path, schema: TableSchema) -> Iterator[Frame]:
    """The file's rows in order with the columns of `schema.used_columns`; text is a string or null."""
    if format_of(path, schema) == "parquet":
        yield from _parquet_frames(path, schema)
    else:
        yield from _text_frames(path, schema)


def count_rows(path: Path, schema: TableSchema) -> int:
    """Rows of the file."""
    if format_of(path, schema) == "parquet":
        return _parquet_rows(path)
    return sum(source.frame.height for source in _text_frames(path, schema, columns=[]))


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


def _text_frames(path: Path, schema: TableSchema, columns: Sequence[str] | None = None) -> Iterator[Frame]:
    kind = format_of(path, schema)
    separator = schema.separator or SEPARATORS[kind]
    quoted = (kind == "csv") if schema.quote is None else schema.quote
    wanted = schema.used_columns if columns is None else columns
    names = schema.columns
    for number, whole in enumerate(read_blocks(path, quoted=quoted)):
        block = whole
        if names is None:
            names, block = _header(whole, separator, quoted)
        if number == 0:
            _check_names(path, wanted, names)
        if block.num_rows == 0:
            continue
        source = parse(block, dict.fromkeys(names, pl.String), separator, quoted=quoted)
        if columns is None:
            source = replace(source, frame=_cleaned(source.frame.select(wanted), schema))
        yield source


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
