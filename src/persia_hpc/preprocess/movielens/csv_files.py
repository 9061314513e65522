"""Reads MovieLens-20M and -25M: ratings.csv and movies.csv, with header lines, half stars, no user features.

Ids of users and movies are the files' numbers, those of genres (multi-hot) are hashes.
Shapes: N ratings, R of them taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.columns import split_lists, to_ids
from persia_hpc.preprocess.frames import Frame, Place, parse
from persia_hpc.preprocess.ids import string_ids
from persia_hpc.preprocess.lines import TextBlock, read_blocks
from persia_hpc.preprocess.table.input import header
from persia_hpc.samples.batch import IdColumn, Rows, SampleBatch
from persia_hpc.samples.ids import Ids
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

FEATURES = (FeatureSchema("user"), FeatureSchema("movie"), FeatureSchema("genres", multi=True))
ID_DTYPES = {"user": "uint32", "movie": "uint32"}
Kinds = dict[str, type[pl.DataType]]
Result = TypeVar("Result")
RATINGS: Kinds = {"userId": pl.Int64, "movieId": pl.Int64, "rating": pl.Float64}
TIMESTAMP: Kinds = {"timestamp": pl.Int64}
MOVIES: Kinds = {"movieId": pl.String, "title": pl.String, "genres": pl.String}
NO_GENRES = "(no genres listed)"


@dataclass(frozen=True)
class Movies:
    """Holds all movies in ascending order of id: `ids` [M] and the `genres` of each."""

    ids: Ids
    genres: IdColumn


@dataclass(frozen=True)
class CsvRatings:
    """Holds ratings in file order; `movies` [N] are positions in `catalogue`, `stars` [N] are doubled."""

    users: Ids
    movies: npt.NDArray[np.int64]
    labels: npt.NDArray[np.float32]
    stars: npt.NDArray[np.uint8]
    time: npt.NDArray[np.int64] | None
    catalogue: Movies

    @property
    def schema(self) -> DatasetSchema:
        """Is the schema of the samples that `take` returns."""
        return DatasetSchema(FEATURES, (), ("liked",), has_time=self.time is not None)

    @property
    def movie_ids(self) -> Ids:
        """Is the movie of each rating [N], by its id."""
        return self.catalogue.ids[self.movies]

    def take(self, rows: Rows) -> SampleBatch:
        """Returns the samples of `rows` [R], in this order."""
        movies = self.movies[rows]
        ids = {
            "user": IdColumn(self.users[rows]),
            "movie": IdColumn(self.catalogue.ids[movies]),
            "genres": self.catalogue.genres.take(movies),
        }
        dense, labels = np.empty((len(rows), 0), np.float32), self.labels[rows][:, None]
        return SampleBatch(ids, dense, labels, time=None if self.time is None else self.time[rows])


def _rows(
    path: Path,
    bad_lines: BadLines,
    expected: Sequence[Kinds],
    use: Callable[[Frame], Result],
    *,
    quoted: bool,
) -> Iterator[Result]:
    """Yields what `use` makes of the file's good rows, in which no value may be missing.

    Raises UserError if its header line isn't one of `expected`, and for too many bad lines.
    """
    kinds: Kinds | None = None

    def read(block: TextBlock) -> Result:
        assert kinds is not None
        source = parse(block, kinds, ",", quoted=quoted)
        for name in kinds:
            source.refuse(source.frame[name].is_null().to_numpy(), name, "a value")
        return use(source)

    for block in read_blocks(path, quoted=quoted):
        rows = block
        if kinds is None:
            names, rows = header(block, ",", quoted)
            kinds = next((kinds for kinds in expected if tuple(kinds) == names), None)
            if kinds is None:
                wanted = " or ".join(",".join(kinds) for kinds in expected)
                raise UserError(f"{path}: got the header {','.join(names)!r}, expected {wanted}")
        if rows.num_rows and (made := bad_lines.good(path, rows, read)) is not None:
            yield made


def _read_movies(path: Path, bad_lines: BadLines) -> Movies:
    ids, lists = [], []
    seen = pl.Series(dtype=pl.UInt64)

    def read(source: Frame) -> tuple[Ids, IdColumn]:
        found = to_ids(source.frame["movieId"], "integer", Place(source, "movieId"))
        numbers = pl.Series(found)
        again = ~numbers.is_first_distinct() | numbers.is_in(seen.implode())
        source.refuse(again.to_numpy(), "movieId", "each movie on one line")
        genres, lengths = split_lists(source.frame["genres"].replace(NO_GENRES, ""), "|")
        return found, IdColumn.from_lengths(string_ids(genres), lengths)

    for some, genres in _rows(path, bad_lines, [MOVIES], read, quoted=True):
        ids.append(some)
        lists.append(genres)
        seen = pl.concat([seen, pl.Series(some)])
    if not ids:
        raise UserError(f"{path}: got no movies, expected at least one")
    joined = np.concatenate(ids)
    order = np.argsort(joined, kind="stable")
    values = np.concatenate([column.values for column in lists])
    counts = np.concatenate([np.diff(column.offsets) for column in lists if column.offsets is not None])
    return Movies(joined[order], IdColumn.from_lengths(values, counts).take(order))


def read_ratings(
    ratings: Path, movies: Path, task: str, bad_lines: BadLines, *, whole: bool = False
) -> CsvRatings:
    """Returns the samples of a task.

    The task `ctr` leaves out ratings of 3, unless `whole`, and labels those above as liked; all others keep
    every rating and label those from 4 on as liked. All ratings are held in memory, at most about 100 bytes
    each.
    Raises UserError for files without rows, and for too many lines of another layout, with their numbers.
    """
    catalogue = _read_movies(movies, bad_lines)

    def read(source: Frame) -> CsvRatings:
        rating = source.frame["rating"].to_numpy()
        stars = (rating >= 0.5) & (rating <= 5) & (rating * 2 == np.floor(rating * 2))
        source.refuse(~stars, "rating", "0.5, 1, 1.5 ... 5")
        users = source.frame["userId"].to_numpy()
        source.refuse(users < 0, "userId", "a number from 0 on")
        movie = source.frame["movieId"].to_numpy().view(np.uint64)
        place = np.minimum(np.searchsorted(catalogue.ids, movie), len(catalogue.ids) - 1)
        source.refuse(catalogue.ids[place] != movie, "movieId", f"a movie that {movies.name} has")
        keep = rating != 3 if task == "ctr" and not whole else np.ones(len(rating), bool)
        liked = rating[keep] > 3 if task == "ctr" else rating[keep] >= 4
        timed = "timestamp" in source.frame.columns
        return CsvRatings(
            users[keep].astype(np.uint64),
            place[keep],
            liked.astype(np.float32),
            (2 * rating[keep]).astype(np.uint8),
            source.frame["timestamp"].to_numpy()[keep] if timed else None,
            catalogue,
        )

    expected = [{**RATINGS, **TIMESTAMP}, RATINGS]
    found = list(_rows(ratings, bad_lines, expected, read, quoted=False))
    if not found:
        raise UserError(f"{ratings}: got no ratings, expected at least one")
    times = [some.time for some in found if some.time is not None]
    return CsvRatings(
        np.concatenate([some.users for some in found]),
        np.concatenate([some.movies for some in found]),
        np.concatenate([some.labels for some in found]),
        np.concatenate([some.stars for some in found]),
        np.concatenate(times) if times else None,
        catalogue,
    )
