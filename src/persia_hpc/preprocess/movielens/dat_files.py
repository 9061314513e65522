"""Reads MovieLens-1M: ratings.dat, users.dat and movies.dat, with `::` between values, in Latin-1.

Ids of user, movie, age, occupation and year are the files' numbers; those of gender, zip and genres
(multi-hot) are hashes.
Shapes: N ratings, R of them taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.columns import split_lists
from persia_hpc.preprocess.frames import BadRowsError, Frame, parse, refuse_lines
from persia_hpc.preprocess.ids import string_ids
from persia_hpc.preprocess.lines import TextBlock, read_blocks
from persia_hpc.samples.batch import IdColumn, Rows, SampleBatch
from persia_hpc.samples.ids import Ids
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

COMPRESSIONS = ("", ".xz", ".gz", ".zst", ".bz2")
ID_DTYPES = {"user": "uint16", "movie": "uint16", "age": "uint8", "occupation": "uint8"}
FEATURES = (
    FeatureSchema("user"),
    FeatureSchema("movie"),
    FeatureSchema("gender"),
    FeatureSchema("age"),
    FeatureSchema("occupation"),
    FeatureSchema("zip"),
    FeatureSchema("genres", multi=True),
    FeatureSchema("year"),
)
Kinds = Mapping[str, type[pl.DataType]]
USERS: Kinds = {
    "user": pl.Int64,
    "gender": pl.String,
    "age": pl.Int64,
    "occupation": pl.Int64,
    "zip": pl.String,
}
MOVIES: Kinds = {"movie": pl.Int64, "title": pl.String, "genres": pl.String}
YEAR = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64).alias("year")
RATINGS: Kinds = {"user": pl.Int64, "movie": pl.Int64, "rating": pl.Int64}


@dataclass(frozen=True)
class DatRatings:
    """Holds the samples of 1M in the order of the ratings; `stars` [N] are doubled."""

    schema: DatasetSchema
    samples: SampleBatch
    stars: npt.NDArray[np.uint8]

    @property
    def users(self) -> Ids:
        """Is the user of each rating [N]."""
        return self.samples.ids["user"].values

    @property
    def movie_ids(self) -> Ids:
        """Is the movie of each rating [N], by its id."""
        return self.samples.ids["movie"].values

    @property
    def time(self) -> Rows | None:
        """Is the time of each rating [N], None if the files don't say it."""
        return self.samples.time

    def take(self, rows: Rows) -> SampleBatch:
        """Returns the samples of `rows` [R], in this order."""
        return self.samples.take(rows)


def find_file(directory: Path, *names: str) -> Path:
    """Returns the first of these files that is in the directory, plain or compressed.

    Raises UserError if none is.
    """
    for name in names:
        for suffix in COMPRESSIONS:
            path = directory / (name + suffix)
            if path.is_file():
                return path
    got = f"no {names[0]}" if directory.is_dir() else "no such folder"
    other = ", or ratings.csv and movies.csv of 20M or 25M" if names[0] == "ratings.dat" else ""
    if (directory / "u.data").is_file():
        other += "; these are files of 100K, which aren't read: download 1M"
    elif inside := sorted(directory.glob(f"*/{names[0]}*")) or sorted(directory.glob("*/ratings.csv*")):
        other += f"; did you mean {inside[0].parent}?"
    raise UserError(
        f"{directory}: got {got}, expected {names[0]} there, plain or compressed (.xz, .gz, .zst){other}"
    )


def find_files(directory: Path) -> list[Path]:
    """Returns the files of ratings, users and movies.

    Raises UserError if one is missing.
    """
    return [
        find_file(directory, "ratings.dat", "ratings_no_timestamp.dat"),
        find_file(directory, "users.dat"),
        find_file(directory, "movies.dat"),
    ]


def _read(path: Path, bad_lines: BadLines, columns: Kinds, check: Callable[[Frame], None]) -> pl.DataFrame:
    """Reads a `::`-separated Latin-1 file in which no value may be missing.

    check: refuses rows that are bad for other reasons
    """

    def read(block: TextBlock) -> pl.DataFrame:
        tabs = [b"\t" in line for line in block.data[:-1].split(b"\n")] if b"\t" in block.data else []
        wrong = "got a tab, expected values separated by '::'"
        refuse_lines(block, {row: wrong for row, tab in enumerate(tabs) if tab})
        text = block.data.decode("latin-1").replace("::", "\t").encode()
        try:
            source = parse(replace(block, data=text), columns, "\t")
        except BadRowsError:
            _refuse_separators(block, columns)
            raise
        for name, kind in columns.items():
            source.refuse(source.frame[name].is_null().to_numpy(), name, "a value")
            if kind.is_integer():
                source.refuse((source.frame[name] < 0).to_numpy(), name, "a number from 0 on")
        check(source)
        return source.frame

    found = [bad_lines.good(path, block, read) for block in read_blocks(path)]
    frames = [frame for frame in found if frame is not None]
    if not frames:
        raise UserError(f"{path}: got an empty file, expected lines of {'::'.join(columns)}")
    return pl.concat(frames, rechunk=True)


def _refuse_separators(block: TextBlock, columns: Kinds) -> None:
    """Refuses lines with another number of values in the file's own words: `parse` knows tabs.

    Raises BadRowsError if there are any.
    """
    problems = {}
    for row, line in enumerate(block.data[:-1].split(b"\n")):
        if line.count(b"::") != len(columns) - 1:
            fix = ""
            if b"::" not in line and b"," in line:
                name = block.path.name.partition(".")[0]
                fix = f"; files of 20M or 25M, with commas, must keep their names, as {name}.csv"
            problems[row] = (
                f"got {line[:60].decode('latin-1')!r}, expected {len(columns)} values, "
                f"{'::'.join(columns)}{fix}"
            )
    refuse_lines(block, problems)


class _Once:
    """Refuses rows whose key another row has had."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._seen = pl.Series(dtype=pl.Int64)

    def check(self, source: Frame) -> None:
        keys = source.frame[self._key]
        again = ~keys.is_first_distinct() | keys.is_in(self._seen.implode())
        # Its ratings would become several samples.
        source.refuse(again.to_numpy(), self._key, f"each {self._key} on one line")
        self._seen = pl.concat([self._seen, keys])


def _read_movies(path: Path, bad_lines: BadLines) -> pl.DataFrame:
    once = _Once("movie")

    def check(source: Frame) -> None:
        untitled = source.frame.select(YEAR)["year"].is_null().to_numpy()
        source.refuse(untitled, "title", "a title that ends in '(year)'")
        once.check(source)

    return _read(path, bad_lines, MOVIES, check).select("movie", YEAR, "genres")


def _read_ratings(
    path: Path, bad_lines: BadLines, known: Mapping[str, tuple[pl.Series, Path]]
) -> pl.DataFrame:
    """Reads the ratings; `known` has all users and movies, and the file of each."""
    block = next(read_blocks(path), None)
    marks = (line.count(b"::") for line in (b"" if block is None else block.data).split(b"\n"))
    first = next((count for count in marks if count in (2, 3)), 2)  # bad lines may come before
    columns: Kinds = {**RATINGS, "time": pl.Int64} if first == 3 else RATINGS

    def check(source: Frame) -> None:
        source.refuse(~source.frame["rating"].is_between(1, 5).to_numpy(), "rating", "1, 2, 3, 4 or 5")
        for key, (values, other) in known.items():
            unknown = ~source.frame[key].is_in(values.implode()).to_numpy()
            source.refuse(unknown, key, f"a {key} that {other.name} has")

    return _read(path, bad_lines, columns, check)


def read_samples(
    ratings: Path, users: Path, movies: Path, task: str, bad_lines: BadLines, *, whole: bool = False
) -> DatRatings:
    """Returns all samples of the task in the order of the ratings, with `whole` all ratings.

    Raises UserError for too many lines of another layout, with the first's number.
    """
    user_rows = _read(users, bad_lines, USERS, _Once("user").check)
    movie_rows = _read_movies(movies, bad_lines)
    known = {"user": (user_rows["user"], users), "movie": (movie_rows["movie"], movies)}
    frame = (
        _read_ratings(ratings, bad_lines, known)
        .join(user_rows, on="user", how="left", maintain_order="left")
        .join(movie_rows, on="movie", how="left", maintain_order="left")
    )
    if task == "ctr" and not whole:
        # As AutoInt and RecBole do: a 3 says neither yes nor no.
        frame = frame.filter(pl.col("rating") != 3)
    has_time = "time" in frame.columns
    schema = DatasetSchema(FEATURES, (), ("liked",), has_time=has_time)
    ids = {}
    for feature in FEATURES:
        column = frame[feature.name]
        if feature.multi:
            parts, lengths = split_lists(column, "|")
            ids[feature.name] = IdColumn.from_lengths(string_ids(parts), lengths)
        elif column.dtype == pl.String:
            ids[feature.name] = IdColumn(np.ascontiguousarray(string_ids(column)))
        else:
            ids[feature.name] = IdColumn(np.ascontiguousarray(column.cast(pl.UInt64).to_numpy()))
    rating = frame["rating"].to_numpy()
    labels = (rating > 3).astype(np.float32)[:, None]
    time = np.ascontiguousarray(frame["time"].to_numpy()) if has_time else None
    dense = np.empty((frame.height, 0), np.float32)
    batch = SampleBatch(ids, dense, labels, time=time)
    return DatRatings(schema, batch, (2 * rating).astype(np.uint8))
