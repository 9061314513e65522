"""Gives ratings the ratings of the same user before them: for models of sequences and of the next item.

Shapes: N ratings, R samples taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from persia_hpc.preprocess.histories import Timeline
from persia_hpc.samples.batch import IdColumn, Rows, SampleBatch
from persia_hpc.samples.ids import Ids
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

HISTORY = "history"
RATING = "history_rating"
GAP = "history_gap"
# What is known of a movie, for a catalogue of all movies.
OF_MOVIES = ("movie", "genres", "year")


class Ratings(Protocol):
    """Holds ratings of a file, all of them, which `take` makes samples of."""

    @property
    def schema(self) -> DatasetSchema:
        """Is the schema of the samples."""

    def take(self, rows: Rows) -> SampleBatch:
        """Returns the samples of `rows` [R]."""


@dataclass(frozen=True)
class Sequences:
    """Makes samples with histories of all ratings in a file.

    movies, stars: movie of each rating [N] and twice its stars [N], for histories
    limit: most ratings in a history, the last ones; None: all
    next_item: whether the samples are movies to be found, which have one label, 1, instead of `liked`
    """

    ratings: Ratings
    timeline: Timeline
    movies: Ids
    stars: Ids
    limit: int | None
    next_item: bool

    @property
    def schema(self) -> DatasetSchema:
        """Is the schema of the samples that `take` returns."""
        schema = self.ratings.schema
        history = (
            FeatureSchema(HISTORY, multi=True),
            FeatureSchema(RATING, multi=True),
            FeatureSchema(GAP, multi=True, weighted=self.next_item),
        )
        labels = ("rated",) if self.next_item else schema.label_names
        return replace(schema, features=(*schema.features, *history), label_names=labels)

    def take(self, places: Rows) -> SampleBatch:
        """Returns the samples of the ratings in these places [R] of the timeline."""
        rows = self.timeline.order[places]
        batch = self.ratings.take(rows)
        past = self.timeline.before(places, self.limit)
        ids = {
            **batch.ids,
            HISTORY: past.column(self.movies),
            RATING: past.column(self.stars),
            GAP: past.gap_column(seconds=self.next_item),
        }
        labels = np.ones_like(batch.labels) if self.next_item else batch.labels
        return replace(batch, ids=ids, labels=labels)


def catalogue(
    ratings: Ratings, movies: Ids, seen: npt.NDArray[np.bool_]
) -> tuple[DatasetSchema, int, Callable[[int, int], SampleBatch]]:
    """Returns the schema, the number, and what makes samples of movies that were rated, by their ids.

    Each is there once. A movie's weight is how often it was rated in training.

    movies: movie of each rating [N]
    seen: which ratings count [N]
    """
    ids, first, places = np.unique(movies, return_index=True, return_inverse=True)
    counts = np.bincount(places[seen], minlength=len(ids)).astype(np.float32)
    features = tuple(f for f in ratings.schema.features if f.name in OF_MOVIES)

    def take(begin: int, end: int) -> SampleBatch:
        known = ratings.take(first[begin:end])
        columns: dict[str, IdColumn] = {f.name: known.ids[f.name] for f in features}
        nothing: npt.NDArray[Any] = np.empty((end - begin, 0), np.float32)
        return SampleBatch(columns, nothing, nothing, weight=counts[begin:end])

    return DatasetSchema(features, (), (), has_weight=True), len(ids), take
