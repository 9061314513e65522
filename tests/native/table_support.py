"""Small tables for tests, and short ways to call them."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from persia_hpc._native import Table, TableConfig

OPTIMIZERS = {
    "sgd": {"lr": 0.1},
    "adagrad": {"lr": 0.05, "initial_accumulator_value": 0.01},
    "rowwise_adagrad": {"lr": 0.05},
    "adam": {"lr": 0.01, "beta1": 0.8, "beta2": 0.99},
    "momentum": {"lr": 0.1, "momentum": 0.7},
    "adamw": {"lr": 0.01, "beta1": 0.8, "beta2": 0.99, "weight_decay": 0.1},
    "ftrl": {"lr": 0.1, "l1": 0.01, "l2": 0.1},
}
# The extremes, keys that share all low 32 bits (so only the full key tells them apart), and ordinary ones.
KEYS = [0, 1, 2**64 - 1, 2**63 - 1, 2**63]
KEYS += [(i << 58) | (j << 40) | 0xABCDEF01 for i in (0, 20, 40) for j in range(4)]
KEYS += [(i * 0x9E3779B97F4A7C15) % 2**64 for i in range(1, 9)]

DISK = {
    "disk_folder": tempfile.gettempdir(),
    "disk_bytes": 1 << 24,
}  # its file has no name, and goes by itself


def arguments(optimizer: str = "adagrad", **changes: Any) -> dict[str, Any]:
    return {
        "dim": 3,
        "optimizer": optimizer,
        "options": OPTIMIZERS[optimizer],
        "init": "uniform",
        "init_a": -0.5,
        "init_b": 0.5,
        "seed": 2**64 - 3,
        "num_buckets": 4,
        "first_bucket": 0,
        "end_bucket": changes.get("num_buckets", 4),
        "bucket_capacity": 2,
        **changes,
    }


def make_table(**config: Any) -> Table:
    return Table(TableConfig(**config))


def u64(keys: Any) -> np.ndarray:
    return np.array(keys, np.uint64)


def pull(table: Table, keys: Any, step: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Rows and slots; the epoch of a table that hasn't evicted or imported is 0."""
    rows, slots, _ = pull_at(table, keys, step, dtype)
    return rows, slots


def pull_at(
    table: Table, keys: Any, step: int, dtype: Any = np.float32
) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows, slots and epoch."""
    rows = np.full((len(keys), table.dim), np.nan, dtype)
    slots = np.full(len(keys), 2**32 - 1, np.uint32)
    epoch = table.pull(u64(keys), step, rows, slots)
    return rows, slots, epoch


def lookup(table: Table, keys: Any) -> np.ndarray:
    rows = np.full((len(keys), table.dim), np.nan, np.float32)
    table.lookup(u64(keys), rows)
    return rows


def export(table: Table, buckets: int) -> list[dict[str, np.ndarray]]:
    return [table.export_bucket(bucket) for bucket in range(buckets)]
