"""Prepares MovieLens as a click-through task: did this user like this movie. 20M and 25M: csv_files.py.

Ids of user, movie, age, occupation and year are the files' numbers; those of gender, zip and genres
(multi-hot) are hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.columns import split_lists
from persia_hpc.preprocess.frames import Frame, parse
from persia_hpc.preprocess.histories import Timeline
from persia_hpc.preprocess.ids import MISSING_ID, Ids, string_ids
from persia_hpc.preprocess.lines import num_newlines, read_blocks
from persia_hpc.preprocess.outputs import ITEMS, FileReport, Outputs, input_identity
from persia_hpc.preprocess.splitting import SPLITS, boundaries, check_fractions
from persia_hpc.samples.batch import IdColumn, Rows, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

from . import csv_files as movielens_csv
from .sequences import GAP, HISTORY, RATING, Ratings, Sequences, catalogue

TASKS = ("ctr", "all", "next_item")
SPLITS_BY = ("random", "time", "user")
SOURCE = "MovieLens (GroupLens), research use only"
BLOCK_ROWS = 65_536
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
RATINGS: Kinds = {"user": pl.Int64, "movie": pl.Int64, "rating": pl.Int64}


@dataclass(frozen=True)
class MovieLensOptions:
    """Holds the options of `persia-hpc preprocess movielens`.

    input: directory with ratings.dat (or ratings_no_timestamp.dat), users.dat and movies.dat of 1M, or with
    ratings.csv and movies.csv of 20M or 25M
    history: the most earlier ratings that a sample has; None: none, or all with the task `next_item`
    hold_out: with `next_item`, how many of each user's last ratings are no training targets: the test (1),
    and for validation the one before (2)
    """

    out: Path
    input: Path
    task: str = "ctr"
    split: str = "random"
    seed: int = 1
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    overwrite: bool = False
    history: int | None = None
    hold_out: int = 1

    @property
    def next_item(self) -> bool:
        """Tells whether a sample is a movie that is to be found, not one that is liked or not."""
        return self.task == "next_item"

    @property
    def sequences(self) -> bool:
        """Tells whether samples have histories."""
        return self.next_item or self.history is not None


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


def _find_file(directory: Path, *names: str) -> Path:
    for name in names:
        for suffix in COMPRESSIONS:
            path = directory / (name + suffix)
            if path.is_file():
                return path
    other = ", or ratings.csv and movies.csv of 20M" if names[0] == "ratings.dat" else ""
    raise UserError(
        f"{directory}: got no {names[0]}, expected it there, plain or compressed (.xz, .gz, .zst){other}"
    )


def _read(path: Path, columns: Kinds) -> Frame:
    """Reads a `::`-separated Latin-1 file in which no value may be missing."""
    frames = []
    lines: list[range] = []
    for block in read_blocks(path):
        if b"\t" in block.data:
            row = num_newlines(block.data[: block.data.index(b"\t")])
            raise UserError(f"{path}:{block.line(row)}: got a tab, expected values separated by '::'")
        text = block.data.decode("latin-1").replace("::", "\t").encode()
        source = parse(replace(block, data=text), columns, "\t")
        for name, kind in columns.items():
            source.refuse(source.frame[name].is_null().to_numpy(), name, "a value")
            if kind.is_integer():
                source.refuse((source.frame[name] < 0).to_numpy(), name, "a number from 0 on")
        frames.append(source.frame)
        lines += [range(line, line + 1) for line in map(block.line, range(source.frame.height))]
    if not frames:
        raise UserError(f"{path}: got an empty file, expected lines of {'::'.join(columns)}")
    return Frame(pl.concat(frames, rechunk=True), path, lines=lines)


def _read_ratings(path: Path) -> Frame:
    block = next(read_blocks(path), None)
    first = b"" if block is None else block.data.split(b"\n", 1)[0]
    columns: Kinds = {**RATINGS, "time": pl.Int64} if first.count(b"::") == 3 else RATINGS
    source = _read(path, columns)
    source.refuse(~source.frame["rating"].is_between(1, 5).to_numpy(), "rating", "1, 2, 3, 4 or 5")
    return source


def read_samples(directory: Path, task: str, *, whole: bool = False) -> tuple[DatRatings, list[Path]]:
    """Returns all samples of the task in the order of the ratings, with `whole` all ratings, and the files.

    Raises UserError for missing files, and for a line of another layout, with its number.
    """
    paths = [
        _find_file(directory, "ratings.dat", "ratings_no_timestamp.dat"),
        _find_file(directory, "users.dat"),
        _find_file(directory, "movies.dat"),
    ]
    ratings, users, movies = _read_ratings(paths[0]), _read(paths[1], USERS), _read(paths[2], MOVIES)
    for key, other in (("user", users), ("movie", movies)):
        again = ~other.frame[key].is_first_distinct().to_numpy()
        other.refuse(again, key, f"each {key} on one line")  # its ratings would become several samples
        unknown = ~ratings.frame[key].is_in(other.frame[key].implode()).to_numpy()
        ratings.refuse(unknown, key, f"a {key} that {other.path.name} has")
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64).alias("year")
    movies.refuse(
        movies.frame.select(year)["year"].is_null().to_numpy(), "title", "a title that ends in '(year)'"
    )
    frame = ratings.frame.join(users.frame, on="user", how="left", maintain_order="left").join(
        movies.frame.select("movie", year, "genres"), on="movie", how="left", maintain_order="left"
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
    return DatRatings(schema, batch, (2 * rating).astype(np.uint8)), paths


def prepare(options: MovieLensOptions) -> list[FileReport] | None:
    """Writes a file for each split; returns a report on each, None when they were up to date.

    Raises UserError for bad options or input, or if other files are in the way.
    """
    names = _names(options)
    whole = options.sequences
    ratings: DatRatings | movielens_csv.CsvRatings
    if any((options.input / f"ratings.csv{suffix}").is_file() for suffix in COMPRESSIONS):
        paths = [_find_file(options.input, name) for name in ("ratings.csv", "movies.csv")]
        ratings = movielens_csv.read_ratings(paths[0], paths[1], options.task, whole=whole)
        dtypes, release = movielens_csv.ID_DTYPES, "csv"
    else:
        ratings, paths = read_samples(options.input, options.task, whole=whole)
        dtypes, release = ID_DTYPES, "dat"
    chosen: dict[str, Any] = {"task": options.task}
    if not options.next_item:
        fractions = _fractions(options)
        chosen.update(split=options.split, seed=options.seed, fractions=fractions)
    if whole:
        chosen.update(history=options.history)
    if options.next_item:
        chosen.update(hold_out=options.hold_out)
    settings: dict[str, Any] = {
        "dataset": "movielens",
        "inputs": input_identity(paths),
        "options": chosen,
        "missing_id": MISSING_ID,
    }
    if options.next_item:
        settings["positives_only"] = True
    outputs = Outputs(options.out, names, settings, overwrite=options.overwrite)
    if outputs.up_to_date():
        return None
    outputs.encode({"dataset": "movielens", "release": release, "missing_id": MISSING_ID})
    if whole:
        return _write_sequences(options, ratings, outputs, dtypes)
    parts = _parts(options, fractions, ratings.users, ratings.time)
    return _write(outputs, ratings, parts, dtypes)


def _fractions(options: MovieLensOptions) -> dict[str, float]:
    return check_fractions(dict(zip(SPLITS, options.fractions, strict=True)), "--fractions")


def _names(options: MovieLensOptions) -> list[str]:
    """Returns the names of the files to make.

    Raises UserError for options that contradict each other.
    """
    if options.history is not None and options.history < 1:
        raise UserError(f"--history {options.history}: expected 1 or more")
    if not options.next_item:
        return [f"{name}.h5" for name in _fractions(options)]
    if options.hold_out not in (1, 2):
        raise UserError(f"--hold-out {options.hold_out}: expected 1 (test) or 2 (validation and test)")
    if options.split != "random":
        raise UserError(
            f"--split {options.split}: got it with --task next_item, where the last rating of each user is "
            "the test; leave it out (see --hold-out)"
        )
    splits = SPLITS if options.hold_out == 2 else ("train", "test")
    return [*(f"{name}.h5" for name in splits), ITEMS]


def _write(
    outputs: Outputs,
    samples: Ratings,
    parts: Sequence[Rows],
    dtypes: Mapping[str, str],
    items: tuple[DatasetSchema, Iterator[SampleBatch]] | None = None,
) -> list[FileReport]:
    """Writes the rows of each part to the file of its place, and items to the last one."""
    others = {} if items is None else {ITEMS: items[0]}
    with outputs.write(samples.schema, others, id_dtypes=dtypes, source=SOURCE) as writer:
        for name, rows in zip(outputs.names, parts, strict=items is None):
            for first in range(0, len(rows), BLOCK_ROWS):
                writer.write(name, samples.take(rows[first : first + BLOCK_ROWS]))
        for batch in () if items is None else items[1]:
            writer.write(ITEMS, batch)
    return writer.report


def _write_sequences(
    options: MovieLensOptions,
    ratings: DatRatings | movielens_csv.CsvRatings,
    outputs: Outputs,
    dtypes: Mapping[str, str],
) -> list[FileReport]:
    time = ratings.time
    if time is None:
        raise UserError(
            f"{options.input}: got ratings without timestamps, expected them for histories "
            "(--history, --task next_item)"
        )
    timeline = Timeline(ratings.users, time)
    stars = ratings.stars.astype(np.uint64)
    sequences = Sequences(ratings, timeline, ratings.movie_ids, stars, options.history, options.next_item)
    dtypes = {**dtypes, HISTORY: dtypes["movie"], RATING: "uint8", GAP: "uint8"}
    places = timeline.places()
    if options.next_item:
        seen = places < timeline.end[places] - options.hold_out
        items = catalogue(ratings, ratings.movie_ids, seen, BLOCK_ROWS)
        return _write(outputs, sequences, timeline.held_out(options.hold_out), dtypes, items)
    rows = np.flatnonzero(ratings.stars != 6) if options.task == "ctr" else np.arange(len(places))
    parts = _parts(options, _fractions(options), ratings.users[rows], time[rows])
    return _write(outputs, sequences, [places[rows[part]] for part in parts], dtypes)


def _parts(
    options: MovieLensOptions, fractions: Mapping[str, float], users: Ids, time: Rows | None
) -> list[Rows]:
    """Returns the rows of each split, in random order or in order of time.

    Shapes: `users` and `time` [N].
    """
    rng = np.random.default_rng(options.seed)
    if options.split == "time":
        if time is None:
            raise UserError(f"--split time: got ratings without timestamps in {options.input}, expected them")
        if not len(time):
            raise UserError(f"--split time: got no ratings to split in {options.input}, expected some")
        order = np.argsort(time, kind="stable")
        # The ratings of one second stay together.
        bounds = np.minimum(boundaries(len(order), fractions), len(order) - 1)
        return np.split(order, np.searchsorted(time[order], time[order[bounds]]))
    if options.split == "user":
        different, places = np.unique(users, return_inverse=True)
        part = np.empty(len(different), np.int64)
        for k, some in enumerate(np.split(rng.permutation(len(different)), boundaries(len(part), fractions))):
            part[some] = k
        order = rng.permutation(len(users))
        return [order[part[places[order]] == k] for k in range(len(fractions))]
    # Not as they come, sorted by user: training on that takes longer.
    order = rng.permutation(len(users))
    return np.split(order, boundaries(len(order), fractions))
