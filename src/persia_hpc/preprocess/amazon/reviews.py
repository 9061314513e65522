"""Reads Amazon reviews of 2014, 2018 and 2023: JSON lines, or CSV of ratings only, plain or compressed.

Shapes: N reviews.
"""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.frames import Frame, parse, refuse_lines, short
from persia_hpc.preprocess.lines import TextBlock, read_blocks
from persia_hpc.preprocess.progress import Progress

COLUMNS = ("user", "item", "rating", "time")
# Of JSON lines: names of 2014 and 2018, and of 2023, where variants of a product have one parent.
OLD = {"reviewerID": pl.String, "asin": pl.String, "overall": pl.Float64, "unixReviewTime": pl.Int64}
NEW = {"user_id": pl.String, "parent_asin": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
HEADER = b"user_id,parent_asin,rating,timestamp"  # of 2023's CSV, with more columns or without
ASIN_CHARACTERS = 10
Kinds = Mapping[str, type[pl.DataType]]
Read = Callable[[TextBlock], pl.DataFrame]
EXPECTED = (
    f"expected JSON lines, the header {HEADER.decode()}, or values user,item,rating,timestamp (2014) or "
    f"item,user,rating,timestamp (2018) with items of {ASIN_CHARACTERS} characters"
)


def read_reviews(paths: Sequence[Path], bad_lines: BadLines, *, shown: bool = True) -> pl.DataFrame:
    """Returns all reviews in the order of the files: user and item as text, rating, and time in seconds.

    Raises UserError for too many lines of another layout, with their numbers, and for files without any.
    """
    frames = []
    total = sum(path.stat().st_size for path in paths)
    with Progress("amazon: reading reviews", total, unit=" bytes", shown=shown) as progress:
        for path in paths:
            reader = _Reader()
            for block in read_blocks(path, on_read=progress.add):
                frame = bad_lines.good(path, block, reader.read)
                frames += [] if frame is None else [frame]
    if not frames or not any(frame.height for frame in frames):
        raise UserError(f"{', '.join(map(str, paths))}: got no reviews, expected at least one")
    return pl.concat(frames)


def read_categories(path: Path, bad_lines: BadLines, *, shown: bool = True) -> dict[str, str]:
    """Returns the last category of each product in a file of metadata, as DIN's published data have it.

    Raises UserError for too many lines that aren't products, with the first's number.
    """
    found: dict[str, str] = {}
    total = path.stat().st_size
    with Progress("amazon: reading products", total, unit=" bytes", shown=shown) as progress:
        for block in read_blocks(path, on_read=progress.add):
            found |= bad_lines.good(path, block, _products) or {}
    return found


def _products(block: TextBlock) -> dict[str, str]:
    found = {}
    problems = {}
    for row, line in enumerate(block.data[:-1].split(b"\n")):
        product = _object(line)
        name = None if product is None else product.get("parent_asin", product.get("asin"))
        if product is None or not isinstance(name, str):
            problems[row] = "got no product, expected JSON with an asin"
        else:
            found[name] = _last_category(product)
    refuse_lines(block, problems)
    return found


def _object(line: bytes) -> dict[str, Any] | None:
    """Returns the object in a line; metadata of 2014 are Python's literals instead of JSON."""
    for read in (json.loads, lambda text: ast.literal_eval(text.decode())):
        try:
            found = read(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError, UnicodeDecodeError):
            continue
        return found if isinstance(found, dict) else None
    return None


def _last_category(product: Mapping[str, Any]) -> str:
    found: Any = product.get("categories") or product.get("category") or ""
    while isinstance(found, list):
        found = found[-1] if found else ""
    return str(found)


class _Reader:
    """Reads the blocks of a file, whose layout its first good line tells; times of 2023 are milliseconds."""

    def __init__(self) -> None:
        self._read: Read | None = None

    def read(self, block: TextBlock) -> pl.DataFrame:
        """Returns the reviews of a block.

        Raises BadRowsError for lines of another layout.
        """
        read = self._read or _reader(block)
        frame = read(block)
        self._read = read
        return frame


def _reader(first: TextBlock) -> Read:
    """Returns what reads the file's blocks, judged by the first line that some layout accepts.

    Raises BadRowsError where there is none, and for items that aren't like those of that line.
    """
    lines = [line.strip() for line in first.data[:-1].split(b"\n")]
    for row, line in enumerate(lines):
        if line.startswith(HEADER):
            return _csv_reader(line.decode(errors="replace").split(","), first.line(row))
        if line.startswith(b"{"):
            keys = _keys(line)
            if keys >= NEW.keys() or keys >= OLD.keys():
                return _read_new if keys >= NEW.keys() else _read_old
        elif order := _order(line):
            source = _csv(first, order)
            other = source.frame["item"].str.len_chars() != ASIN_CHARACTERS
            source.refuse(other.fill_null(value=True).to_numpy(), "item", f"{ASIN_CHARACTERS} characters")
            return _csv_reader(order)
    if lines[0].startswith(b"{"):
        return _read_new if b'"parent_asin"' in lines[0] else _read_old
    _checked(_csv(first, COLUMNS))
    got = [short(repr(line.decode(errors="replace"))) for line in lines]
    refuse_lines(first, {row: f"got {line}, {EXPECTED}" for row, line in enumerate(got)})
    raise AssertionError("blocks have lines")


def _csv_reader(names: Sequence[str], header: int | None = None) -> Read:
    """Returns what reads CSV of these columns; header: the line, by its number, of files of 2023."""
    if header is None:
        return lambda block: _checked(_csv(block, names))
    return lambda block: _checked(_csv(block.without([header]), names), 1000)


def _read_new(block: TextBlock) -> pl.DataFrame:
    return _checked(_json(block, NEW), 1000)


def _read_old(block: TextBlock) -> pl.DataFrame:
    return _checked(_json(block, OLD))


def _keys(line: bytes) -> set[str]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return set()
    return set(found) if isinstance(found, dict) else set()


def _order(line: bytes) -> Sequence[str]:
    """Returns the columns of a line without a header, in which either user or item is an ASIN; else ()."""
    one, other, *numbers = [value.decode(errors="replace") for value in line.split(b",")] + [""]
    asin = [len(value) == ASIN_CHARACTERS for value in (one, other)]
    try:
        rating, time, _ = numbers
        float(rating), int(time)
    except ValueError:
        return ()
    if asin[0] == asin[1]:
        return ()
    return ("item", "user", "rating", "time") if asin[0] else COLUMNS


def _csv(block: TextBlock, names: Sequence[str]) -> Frame:
    if not block.num_rows:
        empty = pl.DataFrame(schema=dict(zip(COLUMNS, OLD.values(), strict=True)))
        return Frame(empty, block.path, block)
    renamed = dict(zip(NEW, COLUMNS, strict=True))
    kinds: dict[str, type[pl.DataType]] = {renamed.get(name, name): pl.String for name in names}
    kinds.update(rating=pl.Float64, time=pl.Int64)
    source = parse(block, kinds, ",")
    return Frame(source.frame.select(COLUMNS), block.path, block)


def _json(block: TextBlock, kinds: Kinds) -> Frame:
    try:
        frame = pl.read_ndjson(io.BytesIO(block.data), schema=dict(kinds))
    except pl.exceptions.PolarsError:
        frame = None
    if frame is None or frame.height != block.num_rows:
        frame = _json_by_line(block, kinds)
    return Frame(frame.rename(dict(zip(kinds, COLUMNS, strict=True))), block.path, block)


def _json_by_line(block: TextBlock, kinds: Kinds) -> pl.DataFrame:
    """Reads a block in which not all is as expected.

    Raises BadRowsError that lists the lines that hold no review.
    """
    rows, problems = [], {}
    for row, line in enumerate(block.data[:-1].split(b"\n")):
        try:
            found = json.loads(line)
            rows.append([_whole(found[name]) for name in kinds])
        except (ValueError, TypeError, KeyError, RecursionError):
            problems[row] = f"got no review, expected JSON with {', '.join(kinds)}"
    refuse_lines(block, problems)
    try:
        return pl.DataFrame(rows, schema=dict(kinds), orient="row")
    except (pl.exceptions.PolarsError, TypeError) as error:
        wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
        other = f"got values of another type, expected {wanted}"
        refuse_lines(block, {row: other for row, values in enumerate(rows) if not _fits(values, kinds)})
        raise UserError(f"{block.path}: {other} in the lines from {block.first_line} on") from error


def _fits(values: Sequence[Any], kinds: Kinds) -> bool:
    try:
        pl.DataFrame([values], schema=dict(kinds), orient="row")
    except (pl.exceptions.PolarsError, TypeError):
        return False
    return True


def _whole(value: Any) -> Any:
    """Returns a value of JSON; in a text what is half a character becomes U+FFFD, as polars reads it."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _checked(source: Frame, per_second: int = 1) -> pl.DataFrame:
    frame = source.frame
    for name in COLUMNS:
        source.refuse(frame[name].is_null().to_numpy(), name, "a value")
    rating: npt.NDArray[np.float64] = frame["rating"].to_numpy()
    source.refuse(~((rating >= 0) & (rating <= 5)), "rating", "a number from 0 to 5")
    source.refuse((frame["time"] < 0).to_numpy(), "time", "seconds since 1970")
    return frame.with_columns(pl.col("time") // per_second)


def codes(values: pl.Series) -> tuple[pl.Series, npt.NDArray[np.int64]]:
    """Returns the different values in order, and the place of each value [N] among them."""
    different = values.unique().sort()
    numbers = pl.int_range(len(different), dtype=pl.Int64, eager=True)
    return different, values.replace_strict(different, numbers, return_dtype=pl.Int64).to_numpy()
