"""Makes ranking samples of Yambda's events as MLPerf's dlrm_v4 has them: a listen, and what was before it.

Shapes: E events, A anchors (listens that become samples), H events of their histories together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from persia_hpc.preprocess.histories import gap_ids, ranges
from persia_hpc.preprocess.splitting import mix
from persia_hpc.samples.batch import IdColumn, Rows, SampleBatch
from persia_hpc.samples.ids import Ids
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

from .events import LIKE, LISTEN_PLUS, SKIP, Events

POOLS = (LISTEN_PLUS, LIKE, SKIP)
SELECTIONS = ("pools", "last")
HOUR, DAY, WEEK = 3_600, 86_400, 604_800
DENSE = ("hour_cos", "hour_sin", "weekday_cos", "weekday_sin")
OF_ITEMS = ("item", "artist", "album")
CROSSES = {
    "user_hour": ("user", "hour"),
    "item_hour": ("item", "hour"),
    "user_organic": ("user", "organic"),
}
CROSSES_OF_MAPPINGS = {
    "user_artist": ("user", "artist"),
    "user_album": ("user", "album"),
    "artist_hour": ("artist", "hour"),
    "user_artist_hour": ("user", "artist", "hour"),
}


@dataclass(frozen=True)
class Rules:
    """Says which listens become samples, and which events their histories have.

    min_history: events of any type that a user must have before a listen
    history: most events of a history, of `pools` a third of each
    scan: how many events before a listen are looked at
    stride: every how many of a user's anchors becomes a sample
    """

    min_history: int
    history: int
    selection: str
    scan: int
    stride: int


def cross(*keys: Ids) -> Ids:
    """Returns an id for each combination of the keys [N]: a hash of 64 bits, the same everywhere."""
    found = np.zeros(len(keys[0]), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            found = mix(found * np.uint64(0x9E3779B97F4A7C15) + key + np.uint64(1))
    return found & np.uint64((1 << 63) - 1)  # those above are reserved


def find_anchors(events: Events, rules: Rules) -> Rows:
    """Returns the numbers of the events that become samples [A]."""
    place = np.arange(len(events.uid)) - events.first
    anchors: Rows = np.flatnonzero(events.listen & (place >= rules.min_history))
    if rules.stride == 1:
        return anchors
    first = events.first[anchors]
    starts = np.concatenate([[True], first[1:] != first[:-1]])[: len(first)]
    begin = np.maximum.accumulate(np.where(starts, np.arange(len(first)), 0))
    chosen: Rows = anchors[(np.arange(len(first)) - begin) % rules.stride == 0]
    return chosen


class Histories:
    """Finds the histories of anchors among the events of their users."""

    def __init__(self, events: Events, rules: Rules) -> None:
        self._first = events.first
        self._scan = rules.scan
        if rules.selection == "last":
            self._most = rules.history
            self._pools = [np.flatnonzero(events.action > 0)]
        else:
            self._most = rules.history // len(POOLS)
            self._pools = [np.flatnonzero(events.action == action) for action in POOLS]

    def _bounds(self, anchors: Rows) -> list[tuple[Rows, Rows]]:
        oldest = np.maximum(self._first[anchors], anchors - self._scan)
        found = []
        for pool in self._pools:
            end = np.searchsorted(pool, anchors)
            found.append((np.maximum(np.searchsorted(pool, oldest), end - self._most), end))
        return found

    def lengths(self, anchors: Rows) -> Rows:
        """Returns how many events the history of each anchor has [A]."""
        total = np.zeros(len(anchors), np.int64)
        for begin, end in self._bounds(anchors):
            total += end - begin
        return total

    def __call__(self, anchors: Rows) -> tuple[Rows, Rows]:
        """Returns the events of all histories in order [H], and how many each has [A]."""
        parts, owners = [], []
        for pool, (begin, end) in zip(self._pools, self._bounds(anchors), strict=True):
            numbers, lengths = ranges(begin, end)
            parts.append(pool[numbers])
            owners.append(np.repeat(np.arange(len(anchors)), lengths))
        events, owner = np.concatenate(parts), np.concatenate(owners)
        if len(parts) > 1:
            order = np.lexsort((events, owner))
            events, owner = events[order], owner[order]
        return events, np.bincount(owner, minlength=len(anchors))


@dataclass(frozen=True)
class Samples:
    """Makes samples of anchors; `mappings` are the artist and the album of each item, if they are known."""

    events: Events
    histories: Histories
    mappings: dict[str, Ids]

    def _of_items(self, items: Ids) -> dict[str, Ids]:
        found = {"item": items}
        for name, mapping in self.mappings.items():
            known = items < len(mapping)
            found[name] = np.where(known, mapping[np.where(known, items, 0)], np.uint64(0))
        return found

    def take(self, anchors: Rows) -> SampleBatch:
        """Returns the samples of these anchors [A]."""
        e = self.events
        past, lengths = self.histories(anchors)
        keys = {"user": e.uid[anchors], **self._of_items(e.item[anchors])}
        keys["hour"] = (e.time[anchors] // HOUR % 24).astype(np.uint64)
        keys["organic"] = e.organic[anchors]
        one = {name: keys[name] for name in ("user", *OF_ITEMS) if name in keys}
        one.update({name: cross(*(keys[k] for k in parts)) for name, parts in crosses(self.mappings).items()})
        ids = {name: IdColumn(values) for name, values in one.items()}
        ends = np.cumsum(lengths)
        newest = past[np.maximum(ends - 1, 0)] if len(past) else anchors
        # The candidate is asked for at the time of the newest event before it; without any, at its own.
        query = np.where(lengths > 0, e.time[newest], e.time[anchors])
        known = self._of_items(e.item[past])
        many = {"history": known.pop("item"), **{f"history_{name}": v for name, v in known.items()}}
        many["history_action"] = e.action[past].astype(np.uint64)
        ids.update({name: IdColumn.from_lengths(values, lengths) for name, values in many.items()})
        gaps = np.diff(e.time[past], prepend=0)
        gaps[(ends - lengths)[lengths > 0]] = 0
        ids["history_gap"] = IdColumn.from_lengths(gap_ids(gaps), lengths, gaps.astype(np.float32))
        angles = [2 * math.pi * (query % period) / period for period in (DAY, WEEK)]
        dense = np.stack([f(angle) for angle in angles for f in (np.cos, np.sin)], axis=1)
        labels = (e.action[anchors] == LISTEN_PLUS).astype(np.float32)[:, None]
        group = e.uid[anchors].view(np.int64)
        return SampleBatch(ids, dense.astype(np.float32), labels, group=group, time=e.time[anchors])


def crosses(mappings: dict[str, Ids]) -> dict[str, tuple[str, ...]]:
    """Returns the features that combine others, and which."""
    return {**CROSSES, **(CROSSES_OF_MAPPINGS if mappings else {})}


def schema_of(mappings: dict[str, Ids]) -> DatasetSchema:
    """Returns the schema of the samples."""
    names = ["item", *mappings]
    one = [FeatureSchema(name) for name in ("user", *names, *crosses(mappings))]
    many = ["history", *(f"history_{name}" for name in mappings), "history_action"]
    multi = [FeatureSchema(name, multi=True) for name in many]
    gap = FeatureSchema("history_gap", multi=True, weighted=True)
    return DatasetSchema((*one, *multi, gap), DENSE, ("listened",), has_group=True, has_time=True)
