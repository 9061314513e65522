"""Reads text files as blocks of whole lines that know their line numbers; plain, gzip, xz, bzip2 or zstd."""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.patterns import literal_first

OnRead = Callable[[int], None]  # is told how many more bytes have been read

BLOCK_BYTES = 8 << 20
MAX_LINE_BYTES = 64 << 20

_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\x00", "xz"), (b"BZh", "bzip2"), (b"\x28\xb5\x2f\xfd", "zstd"))
_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    "gzip": gzip.open,
    "xz": lzma.open,
    "bzip2": bz2.open,
    "plain": nullcontext,
}
_ZSTD_LINES = 65_536
NEWLINE = ord("\n")


@dataclass(frozen=True)
class TextBlock:
    """Holds whole lines of one file, without blank ones; the last line ends in a newline too.

    Row i is line `line(i)` of the file (from 1), unless a quoted value spans lines.
    """

    path: Path
    data: bytes
    first_line: int
    num_rows: int  # lines in `data`
    kept: npt.NDArray[np.int64] | None = (
        None  # where blank lines were dropped: place of each row in the block
    )

    def line(self, row: int) -> int:
        """Returns the line number of a row, from 1."""
        return self.first_line + (row if self.kept is None else int(self.kept[row]))

    def without(self, lines: Collection[int]) -> TextBlock:
        """Returns the block without these lines of the file.

        Blank lines are dropped too once no quotes are left that could enclose them.
        """
        places = np.arange(self.num_rows) if self.kept is None else self.kept
        keep = ~np.isin(places + self.first_line, np.fromiter(lines, np.int64))
        if keep.all():
            return self
        texts = self.data.split(b"\n")
        rows = np.flatnonzero(keep).tolist()
        if not any(b'"' in texts[row] for row in rows):
            rows = [row for row in rows if texts[row].strip(b"\r")]
        data = b"".join(texts[row] + b"\n" for row in rows)
        return replace(self, data=data, num_rows=len(rows), kept=places[rows])


def expand_files(patterns: Sequence[str], base: Path = Path()) -> list[Path]:
    """Returns the files that match names and globs relative to `base`, in the order of the patterns.

    The files of a glob are sorted, with numbers in their names compared by value (day_9 before day_10).
    Raises UserError for a pattern that matches no file.
    """
    files: list[Path] = []
    for pattern in patterns:
        full = str(base / Path(pattern).expanduser())
        found = sorted(glob.glob(literal_first(full), recursive=True), key=_by_numbers)
        found = [name for name in found if Path(name).is_file()]
        if not found:
            raise UserError(
                f"no file matches {full}: expected the name of a file or a glob that matches files"
            )
        files += [Path(name) for name in found if Path(name) not in files]
    return files


def _by_numbers(name: str) -> tuple[list[str | int], str]:
    """Returns a key for sorting names in which every other part is a number."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], name


def compression_of(path: Path) -> str:
    """Returns `gzip`, `xz`, `bzip2`, `zstd` or `plain`, judged by the file's first bytes, not by its name.

    Raises UserError if the file can't be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "plain")


@dataclass(frozen=True)
class Piece:
    """Holds a range of whole lines of a file: bytes [begin, end) of a plain one, all of a compressed one.

    end: None for a compressed file
    """

    path: Path
    begin: int = 0
    end: int | None = None

    @property
    def num_bytes(self) -> int:
        """Is the piece's size in the file, in bytes; of a compressed file, the compressed size."""
        return self.path.stat().st_size if self.end is None else self.end - self.begin

    def first_line(self) -> int:
        """Returns the number of the piece's first line, from 1; this reads all of the file before it."""
        return 1 + sum(map(num_newlines, chunks(Piece(self.path, 0, self.begin))))


def cut_pieces(files: Sequence[Path], piece_bytes: int) -> list[Piece]:
    """Cuts the files into pieces of about `piece_bytes`, in order; compressed files stay whole.

    Empty files give no piece. The rest of a file is a piece of its own from `piece_bytes` / 8 on; a smaller
    rest is added to the piece before.
    Raises UserError if a file can't be read.
    """
    pieces: list[Piece] = []
    for path in files:
        size = path.stat().st_size
        if compression_of(path) != "plain":
            pieces.append(Piece(path))
            continue
        begin = 0
        with path.open("rb") as file:
            while begin < size:
                end = size
                if begin + piece_bytes < size:
                    file.seek(begin + piece_bytes - 1)
                    end = begin + piece_bytes - 1 + len(file.readline(MAX_LINE_BYTES))
                    if size - end < piece_bytes // 8:
                        end = size
                pieces.append(Piece(path, begin, end))
                begin = end
    return pieces


def too_long(path: Path, begin: int, why: str) -> UserError:
    """Returns the error for a line beyond the allowed length that begins at byte `begin`."""
    size = f"{MAX_LINE_BYTES >> 20} MiB"
    return UserError(f"{path}: got a line of more than {size} after {begin:,} bytes; {why}")


def whole_lines(
    source: Path | Piece,
    *,
    quoted: bool = False,
    block_bytes: int = BLOCK_BYTES,
    on_read: OnRead | None = None,
) -> Iterator[bytes]:
    """Yields the lines of a file or piece in order, about `block_bytes` at a time.

    The last line ends in a newline too.

    quoted: newlines between double quotes don't end a line
    on_read: is told how many more bytes of the file have been read, counted as they lie on disk
    Raises UserError for a line that is too long or a file that can't be read.
    """
    piece = source if isinstance(source, Piece) else Piece(source)
    pending = b""
    mark = b"\xef\xbb\xbf" if piece.begin == 0 else b""  # a byte order mark is no part of the first value
    done = 0
    for chunk in chunks(piece, block_bytes, on_read):
        if quoted:  # whether a newline ends a line depends on all quotes before it
            pending, chunk = b"", pending + chunk
        cut = _cut(chunk, quoted)
        if cut == 0:
            pending += chunk
            if len(pending) > MAX_LINE_BYTES:
                why = "an unbalanced quote?" if quoted else "is it a text file?"
                raise too_long(piece.path, piece.begin + done, why)
            continue
        text = b"".join((pending, memoryview(chunk)[:cut]))
        pending = chunk[cut:]
        done += len(text)
        yield text.removeprefix(mark)
        mark = b""
    if pending:
        yield pending.removeprefix(mark).removesuffix(b"\n") + b"\n"


def read_blocks(
    source: Path | Piece,
    *,
    quoted: bool = False,
    block_bytes: int = BLOCK_BYTES,
    on_read: OnRead | None = None,
) -> Iterator[TextBlock]:
    """Yields the lines of a file or piece in order as blocks of about `block_bytes`, numbered from 1.

    quoted: newlines between double quotes don't end a line; blocks that hold quotes keep blank lines
    on_read: as for `whole_lines`
    Raises UserError as `whole_lines` does.
    """
    line = 1
    path = source.path if isinstance(source, Piece) else source
    for text in whole_lines(source, quoted=quoted, block_bytes=block_bytes, on_read=on_read):
        yield from _block(path, text, line, quoted)
        line += num_newlines(text)


def chunks(piece: Piece, chunk_bytes: int = BLOCK_BYTES, on_read: OnRead | None = None) -> Iterator[bytes]:
    """Yields the bytes of a piece, uncompressed; `on_read` as for `whole_lines`.

    Raises UserError if the file can't be read or decompressed.
    """
    path = piece.path
    on_read = on_read or (lambda num_bytes: None)
    kind = compression_of(path)
    try:
        if kind == "zstd":
            yield from _zstd_chunks(path)
            on_read(path.stat().st_size)
            return
        left = piece.end - piece.begin if piece.end is not None else None
        with path.open("rb") as raw:
            raw.seek(piece.begin)
            known = piece.begin
            with _OPENERS[kind](raw) as file:
                while chunk := file.read(chunk_bytes if left is None else min(left, chunk_bytes)):
                    if left is not None:
                        left -= len(chunk)
                    yield chunk
                    on_read(raw.tell() - known)
                    known = raw.tell()
    except (EOFError, lzma.LZMAError, zlib.error, OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: {kind} data can't be read ({error}); is the file complete?") from error


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    if not hasattr(pl, "scan_lines"):
        raise UserError(
            f"{path}: zstd needs a newer polars; update it, or recompress the file with gzip or xz"
        )
    for batch in pl.scan_lines(path, glob=False).collect_batches(chunk_size=_ZSTD_LINES):
        yield ("\n".join(batch.to_series().to_list()) + "\n").encode()


def num_newlines(data: bytes) -> int:
    """Counts the newlines; several times faster than `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == NEWLINE))


def _cut(data: bytes, quoted: bool) -> int:
    """Returns the number of bytes up to the last newline that ends a line, including it; 0 without any."""
    cut = data.rfind(b"\n") + 1
    if not quoted:
        return cut
    quotes = data.count(b'"', 0, cut)
    while cut and quotes % 2:
        shorter = data.rfind(b"\n", 0, cut - 1) + 1
        quotes -= data.count(b'"', shorter, cut)
        cut = shorter
    return cut


def _block(path: Path, data: bytes, line: int, quoted: bool) -> Iterator[TextBlock]:
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE)
    # Short lines may be blank ("\n" or "\r\n"); looking at these only saves two passes over the bytes.
    short = np.flatnonzero(np.diff(ends, prepend=-1) <= 2)
    blank = [i for i in short.tolist() if not data[ends[i - 1] + 1 if i else 0 : ends[i]].strip(b"\r")]
    if not blank or (quoted and b'"' in data):
        yield TextBlock(path, data, line, len(ends))
        return
    kept = np.setdiff1d(np.arange(len(ends)), blank)
    lines = data.split(b"\n")
    if len(kept):
        yield TextBlock(path, b"\n".join([lines[i] for i in kept]) + b"\n", line, len(kept), kept)
