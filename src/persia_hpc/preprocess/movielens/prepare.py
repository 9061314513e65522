"""Prepares MovieLens as a click-through task: did this user like this movie, or which movie is next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.histories import Timeline
from persia_hpc.preprocess.lines import Piece
from persia_hpc.preprocess.outputs import ITEMS, FileReport, Outputs, input_identity
from persia_hpc.preprocess.parts import Part, check_given, cut, file_names, is_done, write_parts
from persia_hpc.preprocess.splitting import SPLITS, boundaries, check_fractions
from persia_hpc.preprocess.team import ONE_MEMBER, Team, together
from persia_hpc.samples.batch import Rows, SampleBatch
from persia_hpc.samples.ids import MISSING_ID, Ids

from . import csv_files, dat_files
from .sequences import GAP, HISTORY, RATING, Ratings, Sequences, catalogue

TASKS = ("ctr", "all", "next_item")
SPLITS_BY = ("random", "time", "user")
SOURCE = "MovieLens (GroupLens), research use only"


@dataclass(frozen=True)
class MovieLensOptions:
    """Holds the options of `persia-hpc preprocess movielens`.

    input: directory with ratings.dat (or ratings_no_timestamp.dat), users.dat and movies.dat of 1M, or with
    ratings.csv and movies.csv of 20M or 25M
    history: the most earlier ratings that a sample has; None: none, or all with the task `next_item`
    hold_out: with `next_item`, how many of each user's last ratings are no training targets: the test (1),
    and for validation the one before (2)
    shards: number of training files
    max_bad_lines: the most lines that aren't of the layout and are left out
    encoding: that of other data, which this one must equal
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
    shards: int = 1
    max_bad_lines: int = 0
    encoding: Path | None = None

    @property
    def next_item(self) -> bool:
        """Tells whether a sample is a movie that is to be found, not one that is liked or not."""
        return self.task == "next_item"

    @property
    def sequences(self) -> bool:
        """Tells whether samples have histories."""
        return self.next_item or self.history is not None


@dataclass(frozen=True)
class _Input:
    """Holds the files, what is known of their lines, and the release that they are of: "dat" or "csv"."""

    paths: list[Path]
    bad_lines: BadLines
    release: str

    @property
    def encoding(self) -> dict[str, Any]:
        """Is what gives the ids their meaning."""
        return {"dataset": "movielens", "release": self.release, "missing_id": MISSING_ID}


def prepare(options: MovieLensOptions, team: Team = ONE_MEMBER) -> list[FileReport | str] | None:
    """Writes files for each split; returns what to print, None when they were up to date.

    Collective over `team`.
    Raises UserError for bad options or input, or if other files are in the way.
    """
    found, outputs = together(team, lambda: _look(options))
    if is_done(team, outputs, found.bad_lines):
        return None
    parts, dtypes = together(team, lambda: _files(options, found))
    title, lines = "movielens: writing", found.bad_lines
    return write_parts(team, outputs, parts, found.encoding, title, lines, dtypes, source=SOURCE)


def _look(options: MovieLensOptions) -> tuple[_Input, Outputs]:
    """Finds the files; returns also the outputs."""
    names = _names(options)
    if any((options.input / f"ratings.csv{suffix}").is_file() for suffix in dat_files.COMPRESSIONS):
        release = "csv"
        paths = [dat_files.find_file(options.input, name) for name in ("ratings.csv", "movies.csv")]
    else:
        release, paths = "dat", dat_files.find_files(options.input)
    found = _Input(paths, BadLines([Piece(path) for path in paths], options.max_bad_lines), release)
    check_given(options.encoding, found.encoding)
    chosen: dict[str, Any] = {"task": options.task}
    if not options.next_item:
        chosen.update(split=options.split, seed=options.seed, fractions=_fractions(options))
    if options.sequences:
        chosen.update(history=options.history)
    if options.next_item:
        chosen.update(hold_out=options.hold_out)
    if options.shards > 1:
        chosen.update(shards=options.shards)
    settings: dict[str, Any] = {
        "dataset": "movielens",
        "inputs": input_identity(found.paths),
        "options": chosen,
        "missing_id": MISSING_ID,
    }
    if options.next_item:
        settings["positives_only"] = True
    return found, Outputs(options.out, names, settings, overwrite=options.overwrite)


def _fractions(options: MovieLensOptions) -> dict[str, float]:
    return check_fractions(dict(zip(SPLITS, options.fractions, strict=True)), "--fractions")


def _splits(options: MovieLensOptions) -> Sequence[str]:
    if not options.next_item:
        return list(_fractions(options))
    return SPLITS if options.hold_out == 2 else ("train", "test")


def _names(options: MovieLensOptions) -> list[str]:
    """Returns the names of the files to make.

    Raises UserError for options that contradict each other.
    """
    if options.history is not None and options.history < 1:
        raise UserError(f"--history {options.history}: expected 1 or more")
    if not options.next_item:
        return file_names(_splits(options), options.shards)
    if options.hold_out not in (1, 2):
        raise UserError(f"--hold-out {options.hold_out}: expected 1 (test) or 2 (validation and test)")
    if options.split != "random":
        raise UserError(
            f"--split {options.split}: got it with --task next_item, where the last rating of each user is "
            "the test; leave it out (see --hold-out)"
        )
    return [*file_names(_splits(options), options.shards), ITEMS]


def _files(options: MovieLensOptions, found: _Input) -> tuple[list[Part], Mapping[str, str]]:
    """Reads the ratings; returns the files to write, and the types of their ids."""
    ratings: dat_files.DatRatings | csv_files.CsvRatings
    dtypes: Mapping[str, str]
    whole, lines = options.sequences, found.bad_lines
    if found.release == "csv":
        of_ratings, of_movies = found.paths
        ratings = csv_files.read_ratings(of_ratings, of_movies, options.task, lines, whole=whole)
        dtypes = csv_files.ID_DTYPES
    else:
        of_ratings, of_users, of_movies = found.paths
        ratings = dat_files.read_samples(of_ratings, of_users, of_movies, options.task, lines, whole=whole)
        dtypes = dat_files.ID_DTYPES
    if not options.sequences:
        some = _parts(options, _fractions(options), ratings.users, ratings.time)
        return _cut(options, ratings, some), dtypes
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
        items = cut([ITEMS], *catalogue(ratings, ratings.movie_ids, seen))
        return [*_cut(options, sequences, timeline.held_out(options.hold_out)), *items], dtypes
    rows = np.flatnonzero(ratings.stars != 6) if options.task == "ctr" else np.arange(len(places))
    some = _parts(options, _fractions(options), ratings.users[rows], time[rows])
    return _cut(options, sequences, [places[rows[part]] for part in some]), dtypes


def _cut(options: MovieLensOptions, samples: Ratings, parts: Sequence[Rows]) -> list[Part]:
    """Returns the files of the rows of each split."""
    found = []
    for split, rows in zip(_splits(options), parts, strict=True):

        def take(begin: int, end: int, rows: Rows = rows) -> SampleBatch:
            return samples.take(rows[begin:end])

        found += cut(file_names([split], options.shards), samples.schema, len(rows), take)
    return found


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
