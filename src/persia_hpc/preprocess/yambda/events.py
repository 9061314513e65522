"""Reads Yambda's events from Parquet, flat or with a row for each user, in pieces that hold users as a whole.

Shapes: E events of the users of a piece, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.samples.parquet_footer import read_footer

TYPES = ("listen", "like", "dislike", "unlike", "undislike")
LISTEN_PLUS, LIKE, SKIP = 1, 2, 4  # bits of an action; the other events have none
MIN_PLAYED = 50  # percent of a track that make a listen count
LOOK_ROWS = 65_536  # that are read at a time behind a piece, for the rest of its last user
MAX_ITEM = 1 << 27  # mappings have a place for each number below the largest; there are 9.4 million items
MAX_ROWS = 1 << 32  # that polars counts, unless it was built for more
MOST_ID = 2**32 - 1
MOST = {"uid": MOST_ID, "item_id": MOST_ID, "timestamp": 2**40, "is_organic": 1, "played_ratio_pct": 2**40}
_COLUMNS = ("item_id", "timestamp", "is_organic", "event_type", "played_ratio_pct")
_ALSO = {"item_id": "item_ids", "timestamp": "timestamps"}  # as the card names lists
ORDER = "got events that aren't in order of uid and timestamp; sort the file"
_READ_ERRORS = (OSError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException)


@dataclass(frozen=True)
class Events:
    """Holds the events of some users, in order of user and time.

    first: number of the first event of the event's user
    action: one of the bits above, or 0
    """

    uid: npt.NDArray[np.uint64]
    item: npt.NDArray[np.uint64]
    time: npt.NDArray[np.int64]
    organic: npt.NDArray[np.uint64]
    listen: npt.NDArray[np.bool_]
    action: npt.NDArray[np.uint8]
    first: npt.NDArray[np.int64]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{path}: can't be read as Parquet ({why}); is it whole?") from error


class EventFile:
    """Knows a file of events: its rows, and how its columns are called."""

    def __init__(self, path: Path) -> None:
        """Looks at the file.

        Raises UserError for a file that isn't one of Yambda's.
        """
        self.path = path
        with _reading(path):
            self.rows = sum(read_footer(str(path)).row_groups)
            schema = self._scan().collect_schema()
        if self.rows >= MAX_ROWS and pl.get_index_type() == pl.UInt32:
            raise UserError(
                f"{path}: got {self.rows:,} rows, expected fewer than {MAX_ROWS:,} with this polars; install "
                "the one with 64-bit indices (pip install polars[rt64])"
            )
        names = {name: _ALSO.get(name, name) for name in _COLUMNS}
        self.columns = {n: n if n in schema else other for n, other in names.items()}
        missing = [n for n, other in {"uid": "uid", **self.columns}.items() if other not in schema]
        if missing == ["event_type"]:  # a file of listens only
            del self.columns["event_type"]
        elif missing:
            got, more = ", ".join(schema), ", ".join(missing)
            raise UserError(f"{path}: got columns {got}, expected also {more}, as multi_event has them")
        lists = {name: isinstance(schema[other], pl.List) for name, other in self.columns.items()}
        if len(set(lists.values())) > 1:
            raise UserError(f"{path}: got lists and single values side by side, expected one of them")
        self.sequential = lists["item_id"]
        for name in ("uid", *(n for n in self.columns if n != "event_type")):
            kind = schema[self.columns.get(name, name)]
            inner = kind.inner if isinstance(kind, pl.List) else kind
            if not inner.is_integer() and inner != pl.Boolean:
                raise UserError(f"{path}: {name}: got {kind}, expected integers")

    def _scan(self) -> pl.LazyFrame:
        return pl.scan_parquet(self.path, glob=False, hive_partitioning=False)

    def cut(self, piece_rows: int) -> list[tuple[int, int]]:
        """Returns ranges of about `piece_rows` rows; with a row for each user it is a thousandth of that."""
        rows = max(piece_rows // 1000, 1) if self.sequential else piece_rows
        count = max(-(-self.rows // rows), 1)
        bounds = [self.rows * k // count for k in range(count + 1)]
        return list(pairwise(bounds))

    def _uids(self, begin: int, end: int) -> npt.NDArray[np.int64]:
        uids = self._scan().slice(begin, end - begin).select("uid").collect()["uid"]
        return uids.cast(pl.Int64, strict=False).to_numpy()  # what isn't a number is refused later

    def _own_rows(self, begin: int, end: int) -> tuple[int, int]:
        """Returns the rows of the users whose first row is in the range."""
        uids = self._uids(max(begin - 1, 0), end)
        if begin > 0:
            others = np.flatnonzero(uids != uids[0])
            if not len(others):
                return end, end
            begin += int(others[0]) - 1
        last = uids[-1]
        while end < self.rows:
            more = self._uids(end, min(end + LOOK_ROWS, self.rows))
            others = np.flatnonzero(more != last)
            if len(others):
                return begin, end + int(others[0])
            end += len(more)
        return begin, end

    def read(self, begin: int, end: int, until: int | None) -> Events:
        """Returns the events of the users whose first row is in the range, those before the time `until`.

        Raises UserError for events that aren't in order of user and time, and for values that aren't allowed.
        """
        with _reading(self.path):
            if not self.sequential:
                begin, end = self._own_rows(begin, end)
            wanted = [pl.col("uid"), *(pl.col(other).alias(n) for n, other in self.columns.items())]
            frame = self._scan().slice(begin, end - begin).select(wanted).collect()
            if self.sequential:
                lists = [name for name in frame.columns if name != "uid"]
                lengths = frame.select(pl.col(name).list.len().fill_null(0) for name in lists)
                if any((lengths[name] != lengths[lists[0]]).any() for name in lists):
                    raise UserError(
                        f"{self.path}: got lists of different lengths in a row, expected equal ones"
                    )
                frame = frame.filter(lengths[lists[0]] > 0).explode(lists)
        return self._checked(frame, begin, until)

    def _checked(self, frame: pl.DataFrame, begin: int, until: int | None) -> Events:
        if "event_type" not in frame.columns:
            frame = frame.with_columns(pl.lit(TYPES[0]).alias("event_type"))
        for name in ("uid", "item_id", "timestamp", "is_organic", "event_type"):
            self._refuse(frame, frame[name].is_null(), begin, f"{name}: got no value, expected one")
        for name, most in MOST.items():
            values = frame[name].fill_null(0).cast(pl.Int64, strict=False)
            problem = f"{name}: got a number out of range, expected 0 to {most}"
            self._refuse(frame, ~values.is_between(0, most).fill_null(value=False), begin, problem)
        kinds = frame["event_type"]
        if kinds.dtype.is_integer():
            known = kinds.is_between(0, len(TYPES) - 1)
            kind = kinds.cast(pl.Int64).to_numpy()
        else:
            texts = kinds.cast(pl.String)
            known = texts.is_in(list(TYPES))
            numbers = dict(zip(TYPES, range(len(TYPES)), strict=True))
            kind = texts.replace_strict(numbers, default=-1, return_dtype=pl.Int64).to_numpy()
        self._refuse(frame, ~known, begin, f"event_type: got another one, expected {', '.join(TYPES)}")
        uid = frame["uid"].cast(pl.UInt64).to_numpy()
        time = frame["timestamp"].cast(pl.Int64).to_numpy()
        same = uid[1:] == uid[:-1]
        bad = np.concatenate([[False], (uid[1:] < uid[:-1]) | (same & (time[1:] < time[:-1]))])
        self._refuse(frame, pl.Series(bad), begin, ORDER)
        listen = kind == 0
        played = frame["played_ratio_pct"].fill_null(0).cast(pl.Int64).to_numpy() >= MIN_PLAYED
        action = np.zeros(len(uid), np.uint8)
        action[listen & played], action[listen & ~played], action[kind == 1] = LISTEN_PLUS, SKIP, LIKE
        keep = np.ones(len(uid), bool) if until is None else time < until
        uid = uid[keep]
        starts = np.concatenate([[True], uid[1:] != uid[:-1]])[: len(uid)]
        first = np.maximum.accumulate(np.where(starts, np.arange(len(uid)), 0))
        item = frame["item_id"].cast(pl.UInt64).to_numpy()[keep]
        organic = frame["is_organic"].cast(pl.UInt64).to_numpy()[keep]
        return Events(uid, item, time[keep], organic, listen[keep], action[keep], first)

    def _refuse(self, frame: pl.DataFrame, bad: pl.Series, begin: int, problem: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad.to_numpy())[0])
            at = f"uid {frame['uid'][row]}" if self.sequential else f"row {begin + row + 1}"
            raise UserError(f"{self.path}, {at}: {problem}")


def read_mapping(folder: Path, kind: str) -> npt.NDArray[np.uint64]:
    """Returns the artist or album of each item, by the item's number; 0 for one that has none.

    An item with several has the one of the last row, as the reference takes it.
    Raises UserError for a file that isn't such a mapping.
    """
    path = folder / f"{kind}_item_mapping.parquet"
    if not path.is_file():
        raise UserError(
            f"{path} is missing; --mappings names the folder of the mappings of artists and albums"
        )
    with _reading(path):
        frame = pl.read_parquet(path, glob=False)
    wanted = ("item_id", f"{kind}_id")
    if any(name not in frame.columns or not frame.schema[name].is_integer() for name in wanted):
        raise UserError(
            f"{path}: got columns {', '.join(frame.columns)}, expected integers {' and '.join(wanted)}"
        )
    if any(frame[name].null_count() for name in wanted):
        raise UserError(f"{path}: got rows without a value, expected integers in all")
    items, values = (frame[name].cast(pl.Int64).to_numpy().view(np.uint64) for name in wanted)
    if len(items) and items.max() >= MAX_ITEM:
        raise UserError(f"{path}: got item {items.max()}, expected numbers below {MAX_ITEM:,}")
    found = np.zeros(int(items.max()) + 1 if len(items) else 1, np.uint64)
    last = pl.Series(items).is_last_distinct().to_numpy()
    found[items[last]] = values[last]
    return found
