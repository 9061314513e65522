"""A small dataset with every kind of feature, a configuration for it, and digests of what was trained."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from persia_hpc.checkpoint.records import columns_of
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.writer import DatasetWriter

SCHEMA = DatasetSchema(
    (
        FeatureSchema("item", False),
        FeatureSchema("user", False),
        FeatureSchema("tags", True),
        FeatureSchema("history", True),
    ),
    ("x0", "x1", "x2"),
)
VOCABULARY = 30
FIELDS = ("keys", "rows", "state", "stamps")  # of a row in a checkpoint
REDUCER = os.environ.get("PERSIA_HPC_TEST_REDUCER", "horovod")  # of several trainers; make test REDUCER=mpi


def tiny_batch(num_samples: int, *, seed: int = 0, vocabulary: int = VOCABULARY) -> SampleBatch:
    rng = np.random.default_rng(seed)

    def multi(most: int) -> IdColumn:
        lengths = rng.integers(0, most + 1, num_samples)
        return IdColumn.from_lengths(rng.integers(0, vocabulary, lengths.sum()).astype(np.uint64), lengths)

    return SampleBatch(
        {
            "item": IdColumn(rng.integers(0, vocabulary, num_samples).astype(np.uint64)),
            "user": IdColumn(rng.integers(0, vocabulary, num_samples).astype(np.uint64)),
            "tags": multi(3),
            "history": multi(5),
        },
        rng.normal(size=(num_samples, 3)).astype(np.float32),
        rng.integers(0, 2, (num_samples, 1)).astype(np.float32),
    )


def write_tiny(
    path: Path,
    num_samples: int,
    *,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    times: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    encoding: str | None = None,
    labels: bool = True,
) -> str:
    """times, groups: of the samples, if they are to have any."""
    batch = tiny_batch(num_samples, seed=seed, vocabulary=vocabulary)
    schema = SCHEMA
    if groups is not None:
        batch = dataclasses.replace(batch, group=np.asarray(groups, np.int64))
        schema = dataclasses.replace(schema, has_group=True)
    if times is not None:
        batch = dataclasses.replace(batch, time=np.asarray(times, np.int64))
        schema = dataclasses.replace(schema, has_time=True)
    if not labels:
        batch = dataclasses.replace(batch, labels=batch.labels[:, :0].copy())
        schema = dataclasses.replace(schema, label_names=())
    with DatasetWriter(path, dataclasses.replace(schema, encoding=encoding), chunk_rows=64) as writer:
        writer.write(batch)
    return str(path)


def tiny_config(data: str, **changes: Any) -> dict[str, Any]:
    """history shares item's table as a sequence; user has another dim; keys like "train.epochs" change it."""
    config: dict[str, Any] = {
        "mode": "sync",
        "seed": 7,
        "ranks": {"parameter_servers": 1, "embedding_workers": 1, "trainers": 1},
        "data": {"train": [data], "batch_size": 32, "block_rows": 16, "buffer_blocks": 4},
        "tables": {
            "default": {"dim": 4, "capacity": "1 MiB", "buckets": 16},
            "item": {"dim": 4, "optimizer": {"name": "adagrad", "lr": 0.1}, "capacity": "1 MiB"},
            "user": {"dim": 6, "optimizer": {"name": "rowwise_adagrad", "lr": 0.1}, "capacity": "1 MiB"},
        },
        "features": {
            "item": {"table": "item"},
            "user": {"table": "user"},
            "tags": {"pooling": "mean", "max_length": 2},
            "history": {"table": "item", "pooling": "sequence", "max_length": 3},
        },
        "model": {"class": "tests.support.models:Small"},
        "train": {"optimizer": {"name": "Adam", "lr": 0.01}, "threads": 1, "reducer": REDUCER},
    }
    for key, value in changes.items():
        at = config
        *path, last = key.split(".")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return config


def trained_rows(run_dir: Path) -> dict[str, tuple[np.ndarray, ...]]:
    """(keys, rows, optimizer state, recency) of each table from a run's latest checkpoint, ordered by key."""
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for shard in sorted((run_dir / "latest").glob("server-*.h5")):
        with h5py.File(shard) as file:
            for name, group in file.items():
                parts.setdefault(name, []).append(tuple(group[f][:] for f in FIELDS))
                for cold, mask in group.get("cold", {}).items():
                    live = np.unpackbits(mask[:], bitorder="little")
                    with h5py.File(shard.parent / cold) as other:
                        found = other[name]
                        if "records" in found:
                            found = columns_of(found["records"][:], FIELDS)
                        columns = (found[f][:] for f in FIELDS)
                        parts[name].append(tuple(c[live[: len(c)] != 0] for c in columns))
    result = {}
    for name, pieces in parts.items():
        columns = [np.concatenate(column) for column in zip(*pieces, strict=True)]
        order = np.argsort(columns[0])
        result[name] = tuple(column[order] for column in columns)
    return result


def digest(arrays: dict[str, Any]) -> str:
    """One hash of named arrays or tuples of arrays, bit for bit."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        value = arrays[name]
        total.update(name.encode())
        for array in value if isinstance(value, tuple) else (value,):
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def run_digest(run_dir: Path) -> str:
    """One hash of all rows, optimizer states and dense parameters of a run's latest checkpoint."""
    import torch

    dense = torch.load(run_dir / "latest" / "dense.pt", weights_only=True)["model"]
    return digest({**trained_rows(run_dir), **{f"dense.{k}": v.numpy() for k, v in dense.items()}})


SEQUENCES: dict[str, Any] = {  # for `tiny_config` with the data of `write_sequences`
    "features": {
        "item": {"table": "item"},
        "user": {"table": "user"},
        "tags": {"pooling": "mean", "max_length": 2},
        "history": {"table": "item"},
        "watched": {"pooling": "jagged"},
    },
    "sequences": {"events": {"features": ["history", "action"], "max_length": 3}},
}


def write_sequences(path: Path, num_samples: int, *, seed: int = 0) -> str:
    """The tiny data with an action for each item of the history, and weights of tags and what was watched."""
    batch, rng = tiny_batch(num_samples, seed=seed), np.random.default_rng(seed + 1)
    history, tags = batch.ids["history"], batch.ids["tags"]
    actions = rng.integers(0, VOCABULARY, len(history.values)).astype(np.uint64)
    weights = rng.uniform(0.5, 2, len(tags.values)).astype(np.float32)
    ids = {
        **batch.ids,
        "tags": dataclasses.replace(tags, weights=weights),
        "action": dataclasses.replace(history, values=actions),
        "watched": dataclasses.replace(tags, weights=-weights),
    }
    features = tuple(
        FeatureSchema(name, column.offsets is not None, weighted=column.weights is not None)
        for name, column in ids.items()
    )
    with DatasetWriter(path, dataclasses.replace(SCHEMA, features=features), chunk_rows=64) as writer:
        writer.write(dataclasses.replace(batch, ids=ids))
    return str(path)
