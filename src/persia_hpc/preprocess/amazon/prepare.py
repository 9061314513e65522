"""Prepares Amazon reviews as sequences: which product does a user review next.

Ids of users, products and categories are hashes of their names.
Shapes: N reviews in order of users and time, R samples taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.histories import Timeline
from persia_hpc.preprocess.ids import string_ids
from persia_hpc.preprocess.lines import Piece, expand_files
from persia_hpc.preprocess.outputs import ITEMS, FileReport, Outputs, input_identity
from persia_hpc.preprocess.parts import Part, check_given, cut, file_names, is_done, write_parts
from persia_hpc.preprocess.splitting import uniform
from persia_hpc.preprocess.team import ONE_MEMBER, Team, together
from persia_hpc.samples.batch import IdColumn, Rows, SampleBatch
from persia_hpc.samples.ids import MISSING_ID, Ids
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

from .reviews import codes, read_categories, read_reviews

TASKS = ("next_item", "ctr")
SOURCE = "Amazon reviews (McAuley et al., UCSD), research"
ENCODING = {"dataset": "amazon", "missing_id": MISSING_ID}


@dataclass(frozen=True)
class AmazonOptions:
    """Holds the options of `persia-hpc preprocess amazon`.

    input: files of reviews, or patterns
    meta: file of products, for their categories
    min_count: users and products with fewer reviews are left out, counted once
    history, hold_out: as of MovieLens; with the task `ctr` the history has 100 reviews by default
    shards: number of training files
    max_bad_lines: the most lines that aren't of the layout and are left out
    encoding: that of other data, which this one must equal
    """

    out: Path
    input: tuple[str, ...]
    meta: Path | None = None
    task: str = "next_item"
    min_count: int = 5
    history: int | None = None
    hold_out: int = 1
    seed: int = 1
    overwrite: bool = False
    shards: int = 1
    max_bad_lines: int = 0
    encoding: Path | None = None


@dataclass(frozen=True)
class Reviews:
    """Holds the reviews that are used; `items` [N] are positions in the product's columns.

    item_ids, categories: id of each product, and of its category if these are known
    negatives: for half of the samples of `ctr`, a product instead of the one that was reviewed [N]
    """

    timeline: Timeline
    users: Ids
    items: npt.NDArray[np.int64]
    stars: Ids
    time: npt.NDArray[np.int64]
    item_ids: Ids
    categories: Ids | None
    limit: int | None
    negatives: npt.NDArray[np.int64] | None = None

    @property
    def item_features(self) -> tuple[str, ...]:
        """Is what is known of a product."""
        return ("item",) if self.categories is None else ("item", "category")

    @property
    def schema(self) -> DatasetSchema:
        """Is the schema of the samples that `take` returns."""
        one = (FeatureSchema("user"), *map(FeatureSchema, self.item_features))
        names = ["history" if name == "item" else f"history_{name}" for name in self.item_features]
        many = [FeatureSchema(name, multi=True) for name in (*names, "history_rating")]
        gap = FeatureSchema("history_gap", multi=True, weighted=self.negatives is None)
        label = "reviewed" if self.negatives is None else "label"
        return DatasetSchema((*one, *many, gap), (), (label,), has_time=True, has_group=True)

    def item(self, items: npt.NDArray[np.int64]) -> dict[str, Ids]:
        """Returns what is known of these products [R]."""
        known = {"item": self.item_ids[items]}
        if self.categories is not None:
            known["category"] = self.categories[items]
        return known

    def take(self, places: Rows, positive: npt.NDArray[np.bool_] | None = None) -> SampleBatch:
        """Returns the samples in these places of the timeline, with the negative where not `positive` [R]."""
        rows = self.timeline.order[places]
        items = self.items[rows]
        labels = np.ones((len(rows), 1), np.float32)
        if positive is not None and self.negatives is not None:
            items = np.where(positive, items, self.negatives[rows])
            labels = positive.astype(np.float32)[:, None]
        past = self.timeline.before(places, self.limit)
        ids = {"user": IdColumn(self.users[rows])}
        ids.update({name: IdColumn(values) for name, values in self.item(items).items()})
        for name, values in self.item(self.items[past.events]).items():
            key = "history" if name == "item" else f"history_{name}"
            ids[key] = IdColumn.from_lengths(values, past.lengths)
        ids["history_rating"] = past.column(self.stars)
        ids["history_gap"] = past.gap_column(seconds=self.negatives is None)
        group = self.users[rows].view(np.int64)
        dense = np.empty((len(rows), 0), np.float32)
        return SampleBatch(ids, dense, labels, group=group, time=self.time[rows])


def prepare(options: AmazonOptions, team: Team = ONE_MEMBER) -> list[FileReport | str] | None:
    """Writes files for each split, and the products; returns what to print, None when all was up to date.

    Collective over `team`.
    Raises UserError for bad options or input, or if other files are in the way.
    """
    paths, meta, bad_lines, outputs = together(team, lambda: _look(options))
    if is_done(team, outputs, bad_lines):
        return None
    parts, counted = together(team, lambda: _read(options, paths, meta, bad_lines, shown=team.shows))
    made = write_parts(team, outputs, parts, ENCODING, "amazon: writing", bad_lines, source=SOURCE)
    return None if made is None else [counted, *made]


def _look(options: AmazonOptions) -> tuple[list[Path], list[Path], BadLines, Outputs]:
    """Returns the files of reviews and of products, what is known of their lines, and the outputs."""
    check_given(options.encoding, ENCODING)
    names = [*file_names(_splits(options), options.shards), ITEMS]
    paths = expand_files(options.input)
    meta = [] if options.meta is None else expand_files([str(options.meta)])
    chosen: dict[str, Any] = {
        "task": options.task,
        "min_count": options.min_count,
        "history": options.history,
        "hold_out": options.hold_out,
        **({"seed": options.seed} if options.task == "ctr" else {}),
        **({"shards": options.shards} if options.shards > 1 else {}),
    }
    settings: dict[str, Any] = {
        "dataset": "amazon",
        "inputs": input_identity([*paths, *meta]),
        "options": chosen,
        "missing_id": MISSING_ID,
        **({"positives_only": True} if options.task == "next_item" else {}),
    }
    bad_lines = BadLines([Piece(path) for path in (*paths, *meta)], options.max_bad_lines)
    return paths, meta, bad_lines, Outputs(options.out, names, settings, overwrite=options.overwrite)


def _read(
    options: AmazonOptions, paths: Sequence[Path], meta: Sequence[Path], bad_lines: BadLines, *, shown: bool
) -> tuple[list[Part], str]:
    """Reads all files; returns what to write, and how many reviews there are."""
    frame = read_reviews(paths, bad_lines, shown=shown)
    kept = frequent(frame, options.min_count)
    if not kept.height:
        raise UserError(
            f"--min-count {options.min_count}: got no user and product with so many reviews; lower it"
        )
    categories = read_categories(meta[0], bad_lines, shown=shown) if meta else None
    reviews = _reviews(kept, categories, options)
    places = reviews.timeline.places()
    seen = places < reviews.timeline.end[places] - options.hold_out
    counts = np.bincount(reviews.items[seen], minlength=len(reviews.item_ids)).astype(np.float32)
    item_schema = DatasetSchema(
        tuple(map(FeatureSchema, reviews.item_features)), label_names=(), has_weight=True
    )

    def take_items(begin: int, end: int) -> SampleBatch:
        ids = {name: IdColumn(values) for name, values in reviews.item(np.arange(begin, end)).items()}
        nothing = np.empty((end - begin, 0), np.float32)
        return SampleBatch(ids, nothing, nothing, weight=counts[begin:end])

    parts = []
    each = 1 if options.task == "next_item" else 2  # samples of a review
    for split, some in zip(_splits(options), _parts(reviews.timeline, options), strict=True):

        def take(begin: int, end: int, some: Rows = some) -> SampleBatch:
            if each == 1:
                return reviews.take(some[begin:end])
            samples = np.arange(begin, end)
            return reviews.take(some[samples // 2], samples % 2 == 0)

        parts += cut(file_names([split], options.shards), reviews.schema, each * len(some), take)
    parts += cut([ITEMS], item_schema, len(counts), take_items)
    return parts, f"{frame.height:,} reviews, {kept.height:,} of them used"


def _splits(options: AmazonOptions) -> list[str]:
    if options.history is not None and options.history < 1:
        raise UserError(f"--history {options.history}: expected 1 or more")
    if options.min_count < 1:
        raise UserError(f"--min-count {options.min_count}: expected 1 or more")
    if options.hold_out not in (1, 2):
        raise UserError(f"--hold-out {options.hold_out}: expected 1 (test) or 2 (validation and test)")
    return ["train", "test"] if options.hold_out == 1 else ["train", "valid", "test"]


def frequent(frame: pl.DataFrame, min_count: int) -> pl.DataFrame:
    """Returns the reviews of users and products that have at least `min_count`.

    As HSTU's published set-up of Books has it, both are counted once, in all reviews; then users with fewer
    reviews left are left out.
    """
    both = (pl.len().over("user") >= min_count) & (pl.len().over("item") >= min_count)
    return frame.filter(both).filter(pl.len().over("user") >= min_count)


def _reviews(frame: pl.DataFrame, categories: dict[str, str] | None, options: AmazonOptions) -> Reviews:
    products, items = codes(frame["item"])
    users = string_ids(frame["user"])
    time = np.ascontiguousarray(frame["time"].to_numpy())
    known = None
    if categories is not None:
        names = [categories.get(name, "") for name in products.to_list()]
        known = np.where([name != "" for name in names], string_ids(pl.Series(names)), np.uint64(MISSING_ID))
    limit = options.history
    negatives = None
    if options.task == "ctr":
        limit = limit or 100
        negatives = draw_negatives(frame, items, len(products), options.seed)
    stars = (2 * frame["rating"].to_numpy()).astype(np.uint64)
    line = Timeline(users, time)
    return Reviews(line, users, items, stars, time, string_ids(products), known, limit, negatives)


def draw_negatives(
    frame: pl.DataFrame, items: npt.NDArray[np.int64], num_items: int, seed: int
) -> npt.NDArray[np.int64]:
    """Returns for each review [N] a product that its user hasn't reviewed, drawn uniformly.

    Raises UserError for a user who has reviewed every product.
    """
    users = codes(frame["user"])[1]
    taken = np.unique(users * num_items + items)
    if np.bincount(taken // num_items).max() >= num_items:
        raise UserError(f"got a user who reviewed all {num_items} products, expected one left as negative")
    found = np.empty(len(items), np.int64)
    open_rows = np.arange(len(items))
    stream = 0
    while len(open_rows):
        draws = uniform(open_rows.astype(np.uint64), seed, stream)
        found[open_rows] = np.minimum((draws * num_items).astype(np.int64), num_items - 1)
        pairs = users[open_rows] * num_items + found[open_rows]
        place = np.minimum(np.searchsorted(taken, pairs), len(taken) - 1)
        open_rows = open_rows[taken[place] == pairs]
        stream += 1
    return found


def _parts(line: Timeline, options: AmazonOptions) -> list[Rows]:
    """Returns the places of the samples of each split."""
    if options.task == "next_item":
        return line.held_out(options.hold_out)
    places = np.arange(len(line.order))
    left = line.end - 1 - places  # how many reviews of the user come after this one
    later = places > line.begin
    train = places[later & (left >= options.hold_out)]
    return [train, *(places[later & (left == back)] for back in range(options.hold_out - 1, -1, -1))]
