"""Reads CSV, TSV, Parquet and Arrow files as a stream of frames that hold the wanted columns."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.frames import BARE_RETURN, Frame, parse
from persia_hpc.preprocess.lines import (
    MAX_LINE_BYTES,
    OnRead,
    Piece,
    TextBlock,
    chunks,
    cut_pieces,
    read_blocks,
    too_long,
)

from .schema import FORMATS, TableSchema

TYPED_ROWS = 131_072
READ_ERRORS = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)
ENDINGS = {"feather": "arrow", "ipc": "arrow"}  # others are called like their format
SEPARATORS = {"csv": ",", "tsv": "\t"}
PACKED = (".gz", ".xz", ".bz2", ".zst")


def format_of(path: Path, schema: TableSchema) -> str:
    """Returns one of `FORMATS`, as the schema says or else the ending of the file's name.

    Raises UserError if neither tells.
    """
    if schema.format is not None:
        return schema.format
    suffixes = [suffix for suffix in path.suffixes if suffix not in PACKED]
    name = suffixes[-1][1:].lower() if suffixes else ""
    name = ENDINGS.get(name, name)
    if name not in FORMATS:
        raise UserError(
            f"{path}: got no ending that tells the format; set `format` to one of {', '.join(FORMATS)}"
        )
    return name


def is_text(path: Path, schema: TableSchema) -> bool:
    """Returns whether the file is CSV or TSV, not Parquet or Arrow, whose columns have types.

    Raises UserError as `format_of` does.
    """
    return format_of(path, schema) in SEPARATORS


@dataclass(frozen=True)
class RowPiece:
    """Holds rows [begin, end) of a Parquet or Arrow file, and about how many bytes of it they take."""

    path: Path
    begin: int
    end: int
    num_bytes: int


TablePiece = Piece | RowPiece


def cut_table(path: Path, schema: TableSchema, piece_bytes: int) -> list[TablePiece]:
    """Cuts the file into pieces of about `piece_bytes`: text at line ends, others between rows.

    Compressed text stays whole.
    Raises UserError if the file can't be read.
    """
    if is_text(path, schema):
        return list(cut_pieces([path], piece_bytes))
    total, num_bytes = _typed_rows(path, schema), path.stat().st_size
    count = min(-(-num_bytes // piece_bytes), total)
    bounds = [total * i // count for i in range(count + 1)] if count else []
    return [RowPiece(path, *rows, num_bytes // count) for rows in pairwise(bounds)]


def may_cut_values(piece: TablePiece, schema: TableSchema) -> bool:
    """Returns whether the piece may begin or end inside a quoted value that holds line ends."""
    if not isinstance(piece, Piece) or piece.end is None or not _quoted(piece.path, schema):
        return False
    return (piece.begin, piece.end) != (0, piece.path.stat().st_size)


def num_quotes(piece: TablePiece, schema: TableSchema) -> int:
    """Counts the quotes in the piece; 0 where no value can have been cut."""
    if not isinstance(piece, Piece) or not may_cut_values(piece, schema):
        return 0
    return sum(chunk.count(b'"') for chunk in chunks(piece))


def mend_cuts(pieces: Sequence[TablePiece], quotes: Sequence[int]) -> list[TablePiece]:
    """Returns the pieces with each cut inside a quoted value moved to the end of that value's row.

    A piece that lies within one value becomes empty.

    quotes: `num_quotes` of each piece
    Raises UserError if the end of a row is too far away.
    """
    mended = list(pieces)
    before = 0  # quotes in the file, before the cut
    for i in range(len(mended) - 1):
        piece, after = pieces[i], pieces[i + 1]
        before += quotes[i]
        if not isinstance(piece, Piece) or not isinstance(after, Piece) or after.begin == 0:
            before = 0  # the file's last piece
        elif before % 2:
            begin = _row_end(piece.path, after.begin)
            mended[i] = replace(mended[i], end=begin)
            mended[i + 1] = replace(after, begin=begin)
    return mended


def _row_end(path: Path, begin: int) -> int:
    """Returns the end of the row that has a quoted value open at byte `begin`, where a line begins.

    Raises UserError if the end is too far away.
    """
    with path.open("rb") as file:
        file.seek(begin)
        while line := file.readline(MAX_LINE_BYTES):
            if file.tell() - begin >= MAX_LINE_BYTES:
                raise too_long(path, begin, "an unbalanced quote?")
            if line.count(b'"') % 2:
                break
        return file.tell()


def read_frames(
    source: Path | TablePiece,
    schema: TableSchema,
    left_out: Collection[int] = (),
    first_line: int = 1,
    on_read: OnRead | None = None,
) -> Iterator[Frame]:
    """Yields the rows of a file or piece in order, with the columns of `schema.used_columns`.

    Text columns hold strings or null.

    left_out: lines of text to skip, from 1 in the piece
    first_line: number in the file of a text piece's first line, for messages
    on_read: is told how many more bytes of the file have been read
    Raises UserError for a file that can't be read, lacks a column or has rows of another layout.
    """
    path = source if isinstance(source, Path) else source.path
    if not isinstance(source, RowPiece) and not is_text(path, schema):
        source = RowPiece(path, 0, _typed_rows(path, schema), path.stat().st_size)
    if isinstance(source, RowPiece):
        yield from _typed_frames(source, schema, on_read or (lambda num_bytes: None))
        return
    for names, block in text_blocks(source, schema, left_out, first_line, on_read):
        yield read_block(block, names, schema)


def count_rows(
    source: Path | TablePiece,
    schema: TableSchema,
    left_out: Collection[int] = (),
    first_line: int = 1,
    on_read: OnRead | None = None,
) -> int:
    """Counts the rows of the file or piece; of Parquet and Arrow it reads the metadata only.

    The other arguments and the errors are those of `read_frames`.
    """
    if isinstance(source, RowPiece):
        return source.end - source.begin
    path = source.path if isinstance(source, Piece) else source
    if not is_text(path, schema):
        return _typed_rows(path, schema)
    total = 0
    for names, block in text_blocks(source, schema, left_out, first_line, on_read):
        spans = _quoted(path, schema) and b'"' in block.data  # newlines may be no ends of rows
        total += _parsed(block, names, schema).frame.height if spans else block.num_rows
    return total


def _scan(path: Path, schema: TableSchema) -> pl.LazyFrame:
    scan = pl.scan_parquet if format_of(path, schema) == "parquet" else pl.scan_ipc
    return scan(path, glob=False, hive_partitioning=False)  # the name is no pattern and holds no column


def _typed_rows(path: Path, schema: TableSchema) -> int:
    with _reading(path, f"can't be read as {format_of(path, schema).capitalize()}"):
        return int(_scan(path, schema).select(pl.len()).collect().item())


@contextmanager
def _reading(path: Path, problem: str) -> Iterator[None]:
    """Raises UserError in place of what polars raises in the block."""
    try:
        yield
    except READ_ERRORS as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{path}: {problem} ({why}); is it whole? Else write it with other types") from error


def _typed_frames(piece: RowPiece, schema: TableSchema, on_read: OnRead) -> Iterator[Frame]:
    check_names(piece.path, schema, typed_columns(piece.path, schema))
    for first in range(piece.begin, piece.end, TYPED_ROWS):
        last = min(first + TYPED_ROWS, piece.end)
        yield typed_frame(piece.path, schema, first, last)
        on_read(piece.num_bytes * (last - first) // (piece.end - piece.begin))


def typed_columns(path: Path, schema: TableSchema) -> dict[str, pl.DataType]:
    """Returns the types of all columns of a Parquet or Arrow file.

    Raises UserError if the file can't be read.
    """
    with _reading(path, "its columns can't be read"):
        return dict(_scan(path, schema).collect_schema())


def typed_frame(path: Path, schema: TableSchema, first: int, last: int) -> Frame:
    """Returns rows [first, last) of a Parquet or Arrow file with the columns of `schema.used_columns`.

    Raises UserError, which names the column at fault, if they can't be read.
    """
    rows, wanted = _scan(path, schema).slice(first, last - first), schema.used_columns
    try:
        frame = rows.select(wanted).collect()
    except READ_ERRORS:
        for name in wanted:  # one of them is at fault
            with _reading(path, f"{name}: rows {first + 1} to {last} can't be read"):
                rows.select(name).collect()
        raise
    return Frame(frame, path, first_row=first)


def _separator(path: Path, schema: TableSchema) -> str:
    return schema.separator or SEPARATORS[format_of(path, schema)]


def _quoted(path: Path, schema: TableSchema) -> bool:
    return format_of(path, schema) == "csv" if schema.quote is None else schema.quote


def text_blocks(
    source: Path | Piece,
    schema: TableSchema,
    left_out: Collection[int] = (),
    first_line: int = 1,
    on_read: OnRead | None = None,
) -> Iterator[tuple[tuple[str, ...], TextBlock]]:
    """Yields the column names and each block of rows, without the header and the lines left out.

    The other arguments are those of `read_frames`.
    Raises UserError if a column that the schema uses is missing.
    """
    path, begin = (source.path, source.begin) if isinstance(source, Piece) else (source, 0)
    separator, quoted, names = _separator(path, schema), _quoted(path, schema), schema.columns
    if names is None and begin > 0:
        names = header(next(read_blocks(path, quoted=quoted)), separator, quoted)[0]
    for number, whole in enumerate(read_blocks(source, quoted=quoted, on_read=on_read)):
        block = whole
        if names is None:
            names, block = header(whole, separator, quoted)
        if number == 0:
            check_names(path, schema, names)
        block = block.without(left_out)
        if block.num_rows:
            yield names, replace(block, first_line=block.first_line + first_line - 1)


def read_block(block: TextBlock, names: Sequence[str], schema: TableSchema) -> Frame:
    """Returns the rows of a block with the columns of `schema.used_columns`.

    Raises BadRowsError for rows of another layout.
    """
    source = _parsed(block, names, schema)
    return replace(source, frame=source.frame.select(schema.used_columns))


def _parsed(block: TextBlock, names: Sequence[str], schema: TableSchema) -> Frame:
    separator, quoted = _separator(block.path, schema), _quoted(block.path, schema)
    return parse(block, dict.fromkeys(names, pl.String), separator, quoted=quoted)


def header(block: TextBlock, separator: str, quoted: bool) -> tuple[tuple[str, ...], TextBlock]:
    """Returns the names on the first line, and the block without that line.

    Raises UserError for a repeated name, or text that isn't UTF-8.
    """
    line, data = block.data.split(b"\n", 1)
    try:
        text = line.decode().rstrip("\r")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{block.path}:{block.line(0)}: got bytes that aren't UTF-8, expected UTF-8 text"
        ) from error
    if "\r" in text:
        raise UserError(f"{block.path}:{block.line(0)}: {BARE_RETURN}")
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


def check_names(
    path: Path, schema: TableSchema, names: Collection[str], unlabelled: str = "add --no-labels"
) -> None:
    """Checks that the columns that the schema uses are there.

    unlabelled: what to do with files that have no labels
    Raises UserError for one that isn't.
    """
    for name in schema.used_columns:
        if name not in names:
            close = difflib.get_close_matches(name, list(names), 1, 0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            if any(label.column == name for label in schema.labels.values()):
                hint += f"; for files without labels, to be scored, {unlabelled}"
            raise UserError(f"{path}: got no column {name!r}, expected it among {', '.join(names)}{hint}")
