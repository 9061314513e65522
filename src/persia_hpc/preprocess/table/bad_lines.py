"""Finds lines of a table's text files that its schema doesn't fit, before anything is learned or written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines, good_rows
from persia_hpc.preprocess.frames import Frame
from persia_hpc.preprocess.lines import OnRead, Piece, TextBlock, chunks, num_newlines

from .convert import Converter, Learned
from .input import is_text, read_block, read_frames, text_blocks
from .schema import TableSchema

Check = Callable[[Frame], object]  # raises BadRowsError


@dataclass(frozen=True)
class Fit:
    """Holds what a row must pass to be good: the conversion, and `check` if given."""

    converter: Converter
    check: Check | None = None


def first_fit(paths: Sequence[Path], schema: TableSchema, check: Check | None, max_bad_lines: int) -> Fit:
    """Returns a fit made from the first block of rows, which settles what the schema leaves open.

    With `max_bad_lines`, bad lines are left out of that block.
    Raises UserError for a table without rows, or with too many bad lines before the first good row.
    """
    found = BadLines([Piece(path) for path in paths], max_bad_lines)
    for i, path in enumerate(paths):
        if max_bad_lines and is_text(path, schema):
            for _, converter in _search(found, i, schema, None, check):
                if converter is not None:
                    return Fit(converter, check)
        else:
            for source in read_frames(path, schema):
                return Fit(Converter(schema, source), check)
    raise UserError(f"{', '.join(map(str, paths))}: got no rows, expected at least one")


def find_bad_lines(bad_lines: BadLines, piece: int, fit: Fit, on_read: OnRead | None = None) -> set[int]:
    """Returns the bad lines of one of `bad_lines.pieces`, from 1 in the piece, and notes them in `bad_lines`.

    on_read: is told how many more bytes have been read
    Raises UserError as soon as there are too many.
    """
    found: set[int] = set()
    for left_out, _ in _search(bad_lines, piece, fit.converter.schema, fit.converter, fit.check, on_read):
        found |= left_out
    return found


def _search(
    bad_lines: BadLines,
    index: int,
    schema: TableSchema,
    converter: Converter | None,
    check: Check | None,
    on_read: OnRead | None = None,
) -> Iterator[tuple[set[int], Converter | None]]:
    """Yields for each block of a piece its bad lines, and a converter that fits the rest of the block.

    converter: the converter to use; None: one is made from the good rows
    """
    piece = bad_lines.pieces[index]
    lines = bad_lines.begin(index)
    if not is_text(piece.path, schema):
        return
    for names, whole in text_blocks(piece, schema, on_read=on_read):
        able, problems = good_rows(whole, partial(_fitting, names, schema, converter, check))
        yield bad_lines.note(index, whole, problems), able
    if piece.end is not None:  # later pieces of the file count on blank lines at the end too
        lines.count = sum(map(num_newlines, chunks(piece)))


def _fitting(
    names: Sequence[str],
    schema: TableSchema,
    converter: Converter | None,
    check: Check | None,
    block: TextBlock,
) -> Converter:
    """Returns a converter that fits the block.

    Raises BadRowsError for rows that don't fit.
    """
    source = read_block(block, names, schema)
    if check is not None:
        check(source)
    able = converter or Converter(schema, source)
    able.batch(source, Learned())
    return able
