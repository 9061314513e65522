"""A small dataset for retrieval: users like the items of their own kind, some items more than others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.writer import DatasetWriter

USERS, ITEMS, KINDS = 40, 30, 5
SCHEMA = DatasetSchema(
    (
        FeatureSchema("user"),
        FeatureSchema("history", multi=True),
        FeatureSchema("item"),
        FeatureSchema("kind"),
    ),
    (),
    ("liked",),
)
CATALOGUE = DatasetSchema((FeatureSchema("item"), FeatureSchema("kind")), (), (), has_weight=True)


def ids_of(items: np.ndarray) -> np.ndarray:
    """The id of an item: none is small, or in order."""
    return (items.astype(np.uint64) * np.uint64(7919) + np.uint64(1000)) % np.uint64(100_003)


def samples(count: int, seed: int) -> SampleBatch:
    """Draws samples; an item's kind is its number modulo KINDS, and so is a user's."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, USERS, count)
    places = np.minimum(rng.geometric(0.5, count) - 1, ITEMS // KINDS - 1)
    items = places * KINDS + users % KINDS
    histories = [ids_of(rng.integers(0, ITEMS, rng.integers(0, 4))) for _ in range(count)]
    history = IdColumn.from_lengths(np.concatenate(histories), np.array([len(h) for h in histories]))
    ids = {
        "user": IdColumn(users.astype(np.uint64)),
        "history": history,
        "item": IdColumn(ids_of(items)),
        "kind": IdColumn((items % KINDS).astype(np.uint64)),
    }
    return SampleBatch(ids, np.empty((count, 0), np.float32), np.ones((count, 1), np.float32))


def write(path: Path, schema: DatasetSchema, batch: SampleBatch) -> str:
    """Writes one file of a dataset; returns its name."""
    with DatasetWriter(path, schema) as writer:
        writer.write(batch)
    return str(path)


def write_retrieval(folder: Path, count: int = 400) -> dict[str, Any]:
    """Writes train.h5, valid.h5 and items.h5; returns what a configuration says of them in [data]."""
    train = samples(count, 1)
    items = np.arange(ITEMS)
    weights = np.array([(train.ids["item"].values == i).sum() for i in ids_of(items)], np.float32)
    catalogue = SampleBatch(
        {"item": IdColumn(ids_of(items)), "kind": IdColumn((items % KINDS).astype(np.uint64))},
        np.empty((ITEMS, 0), np.float32),
        np.empty((ITEMS, 0), np.float32),
        weights,
    )
    return {
        "train": write(folder / "train.h5", SCHEMA, train),
        "valid": write(folder / "valid.h5", SCHEMA, samples(90, 2)),
        "items": write(folder / "items.h5", CATALOGUE, catalogue),
        "item_feature": "item",
        "exclude_feature": "history",
    }


def retrieval_config(data: Mapping[str, Any], run_dir: Path, **keys: Any) -> dict[str, Any]:
    """Returns a configuration of a small two-tower model; `keys` replaces sections."""
    return {
        "mode": "sync",
        "run_dir": str(run_dir),
        "data": {**data, "batch_size": 32, "evaluate_batch_size": 37, "block_rows": 50},
        "tables": {
            "default": {"dim": 8, "capacity": "1 MiB", "optimizer": {"name": "adagrad", "lr": 0.1}},
            "item": {},
        },
        "features": {
            "history": {"table": "item"},
            "item": {"table": "item"},
            "negatives": {"sampled": {"like": "item", "count": 6}},
            "negative_kind": {"sampled": {"like": "kind", "count": 6}},
        },
        "model": {
            "class": "two_tower",
            "items": ["item", "kind"],
            "queries": ["user", "history"],
            "hidden": [16],
            "width": 8,
        },
        "tasks": {
            "liked": {
                "loss": {
                    "name": "in_batch_softmax",
                    "temperature": 0.2,
                    "logq": "weights",
                    "negatives": "both",
                }
            }
        },
        "train": {
            "epochs": 2,
            "optimizer": {"name": "Adam", "lr": 0.01},
            "metrics": ["recall@5", "ndcg@5", "hr@3"],
        },
        **keys,
    }
