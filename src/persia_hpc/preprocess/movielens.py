"""MovieLens-1M as a click-through task: did this user like this movie.

Ids: user, movie, age, occupation and year as the files' numbers; gender, zip and genres (multi-hot) hashed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.columns import split_lists
from persia_hpc.preprocess.frames import Frame, parse
from persia_hpc.preprocess.ids import MISSING_ID, string_ids
from persia_hpc.preprocess.lines import num_newlines, read_blocks
from persia_hpc.preprocess.outputs import FileReport, Outputs, input_identity
from persia_hpc.preprocess.splits import SPLITS, boundaries, check_fractions
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

TASKS = ("ctr", "all")
SOURCE = "MovieLens-1M (GroupLens), research use only"
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
    """`input` holds ratings.dat (or ratings_no_timestamp.dat), users.dat and movies.dat."""

    out: Path
    input: Path
    task: str = "ctr"
    seed: int = 1
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    overwrite: bool = False


def _find_file(directory: Path, *names: str) -> Path:
    for name in names:
        for suffix in ("", ".xz", ".gz", ".zst", ".bz2"):
            path = directory / (name + suffix)
            if path.is_file():
                return path
    raise UserError(
        f"{directory}: got no {names[0]}, expected it there, plain or compressed (.xz, .gz, .zst)"
    )


def _read(path: Path, columns: Kinds) -> Frame:
    """A `::`-separated Latin-1 file; no value may be missing."""
    frames = []
    lines: list[int] = []
    for block in read_blocks(path):
        if b"\t" in block.data:
            row = num_newlines(block.data[: block.data.index(b"\t")])
            raise UserError(f"{path}:{block.line(row)}: got a tab, expected values separated by '::'")
        text = block.data.decode("latin-1").replace("::", "\t").encode()
        source = parse(replace(block, data=text), columns, "\t")
        for name in columns:
            source.refuse(source.frame[name].is_null().to_numpy(), name, "a value")
        frames.append(source.frame)
        lines += [block.line(row) for row in range(source.frame.height)]
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


def read_samples(directory: Path, task: str) -> tuple[DatasetSchema, SampleBatch, list[Path]]:
    """All samples of the task, in the order of the ratings, and the files they came from."""
    paths = [
        _find_file(directory, "ratings.dat", "ratings_no_timestamp.dat"),
        _find_file(directory, "users.dat"),
        _find_file(directory, "movies.dat"),
    ]
    ratings, users, movies = _read_ratings(paths[0]), _read(paths[1], USERS), _read(paths[2], MOVIES)
    for key, other in (("user", users), ("movie", movies)):
        unknown = ~ratings.frame[key].is_in(other.frame[key].implode()).to_numpy()
        ratings.refuse(unknown, key, f"a {key} that {other.path.name} has")
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64).alias("year")
    movies.refuse(
        movies.frame.select(year)["year"].is_null().to_numpy(), "title", "a title that ends in '(year)'"
    )
    frame = ratings.frame.join(users.frame, on="user", how="left", maintain_order="left").join(
        movies.frame.select("movie", year, "genres"), on="movie", how="left", maintain_order="left"
    )
    if task == "ctr":
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
    labels = (frame["rating"] > 3).to_numpy().astype(np.float32)[:, None]
    time = np.ascontiguousarray(frame["time"].to_numpy()) if has_time else None
    dense = np.empty((frame.height, 0), np.float32)
    return schema, SampleBatch(ids, dense, labels, time=time), paths


def prepare(options: MovieLensOptions) -> list[FileReport] | None:
    """Write the files; None when they were up to date."""
    fractions = check_fractions(dict(zip(SPLITS, options.fractions, strict=True)), "--fractions")
    schema, samples, paths = read_samples(options.input, options.task)
    settings: dict[str, Any] = {
        "dataset": "movielens",
        "inputs": input_identity(paths),
        "options": {"task": options.task, "seed": options.seed, "fractions": fractions},
        "missing_id": MISSING_ID,
    }
    outputs = Outputs(
        options.out, [f"{name}.h5" for name in fractions], settings, overwrite=options.overwrite
    )
    if outputs.up_to_date():
        return None
    # The rows stay in random order: the ratings come sorted by user, and training on that takes longer.
    order = np.random.default_rng(options.seed).permutation(samples.num_samples)
    parts = np.split(order, boundaries(samples.num_samples, fractions))
    with outputs.write(schema, id_dtypes=ID_DTYPES, source=SOURCE) as writer:
        for name, rows in zip(outputs.names, parts, strict=True):
            writer.write(name, samples.take(rows))
    return writer.report
