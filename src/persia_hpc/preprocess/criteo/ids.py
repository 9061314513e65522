"""Replaces rare ids of Criteo's layout, after counting ids over the training rows of all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from persia_hpc import _native
from persia_hpc.errors import UserError
from persia_hpc.preprocess.ids import merged_counts
from persia_hpc.preprocess.team import Team
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.encoding import read_encoding
from persia_hpc.samples.ids import pack_ids, unpack_ids

from .lines import IDS

MISSING_ID = 1 << 32
RARE_ID = MISSING_ID + 1
DENSE_RULE = "log(1 + max(x, 0)), missing 0"

Counters = dict[str, _native.IdCounter]  # by feature


def count_ids(batches: Iterable[SampleBatch]) -> Counters:
    """Returns how often each id of each feature occurs in the batches."""
    counters = {name: _native.IdCounter() for name in IDS}
    for batch in batches:
        for name, column in batch.ids.items():
            counters[name].add(column.values)
    return counters


def frequent_ids(counters: Counters, min_count: int, team: Team) -> Counters:
    """Returns for each feature the ids counted at least `min_count` times over all ranks, and `MISSING_ID`.

    The result is the same on all ranks. `counters` are emptied, to free their memory.
    Collective over `team`.
    """
    frequent: Counters = {}
    for name in IDS:
        ids, counts = counters.pop(name).items()
        kept = merged_counts(pl.DataFrame({"id": ids, "count": counts}), min_count, team)["id"].to_numpy()
        frequent[name] = _native.IdCounter()
        frequent[name].add(np.append(kept, np.uint64(MISSING_ID)))
    return frequent


def encoding_of(min_count: int, frequent: Counters) -> dict[str, Any]:
    """Returns all that gives the files' ids and numbers their meaning.

    frequent: empty if no ids are replaced
    """
    return {
        "dataset": "criteo",
        "dense": DENSE_RULE,
        "missing_id": MISSING_ID,
        "rare_id": RARE_ID,
        "min_count": min_count,
        "known": {name: pack_ids(np.sort(counter.items()[0])) for name, counter in frequent.items()},
    }


def given_ids(path: Path, min_count: int) -> tuple[dict[str, Any], Counters]:
    """Returns the encoding that other files were made with, and its frequent ids.

    min_count: the option; 1 leaves it to the encoding
    Raises UserError for an encoding of other data, or with another count.
    """
    given = read_encoding(path)
    if given.get("dataset") != "criteo":
        raise UserError(
            f"--encoding: got one that `preprocess {given.get('dataset')}` made, expected one of `preprocess "
            "criteo`"
        )
    if min_count not in (1, given["min_count"]):
        raise UserError(
            f"--min-count {min_count}: the encoding says {given['min_count']}; leave the option out"
        )
    frequent: Counters = {}
    for name, packed in given["known"].items():
        frequent[name] = _native.IdCounter()
        frequent[name].add(unpack_ids(packed))
    return given, frequent


def without_rare_ids(batch: SampleBatch, frequent: Counters) -> SampleBatch:
    """Returns the batch with all ids that aren't frequent replaced; unchanged if `frequent` is empty."""
    if not frequent:
        return batch
    ids = {
        name: IdColumn(frequent[name].replace_unknown(column.values, other=RARE_ID))
        for name, column in batch.ids.items()
    }
    return SampleBatch(ids, batch.dense, batch.labels)
