"""A table in plain Python: what `_native.Table` must do, bit for bit, without a word on how.

It knows no slots: a gradient reaches a row if the row is there and came no later than its pull.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .table_support import make_table

F = np.float32


def bucket_of(key: int, num_buckets: int) -> int:
    return key * num_buckets >> 64


def sum_of_squares(g: np.ndarray) -> np.float32:
    """In 8 lanes, added as a tree: the order that the table promises to keep."""
    lanes = np.zeros(8, F)
    for begin in range(0, len(g), 8):
        part = g[begin : begin + 8]
        lanes[: len(part)] += part * part
    p = lanes[:4] + lanes[4:]
    return F((p[0] + p[2]) + (p[1] + p[3]))


@dataclass
class ModelRow:
    values: np.ndarray
    state: np.ndarray
    stamp: int
    epoch: int
    steps: int = 0


class ModelTable:
    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.options = {
            "beta1": 0.9,
            "beta2": 0.999,
            "initial_accumulator_value": 0.0,
            **arguments["options"],
        }
        self.eps = F(self.options.get("eps", 1e-10 if arguments["optimizer"] == "adagrad" else 1e-8))
        self.dim: int = arguments["dim"]
        self.state_width = {"sgd": 0, "adagrad": self.dim, "rowwise_adagrad": 1, "adam": 2 * self.dim}[
            arguments["optimizer"]
        ]
        self.rows: dict[int, ModelRow] = {}
        self.created = self.evicted = self.epoch = 0
        self._fresh = make_table(**{**arguments, "bucket_capacity": 1 << 20})

    def first_values(self, key: int) -> np.ndarray:
        """From a table that never evicts and is never updated: a row's start depends on (seed, key) alone."""
        out = np.empty((1, self.dim), F)
        self._fresh.pull(np.array([key], np.uint64), 1, out, np.empty(1, np.uint32))
        return out[0]

    def pull(self, keys: Sequence[int], step: int) -> np.ndarray:
        for key in keys:
            if key not in self.rows:
                start = F(self.options["initial_accumulator_value"])
                state = np.full(self.state_width, 0 if self.arguments["optimizer"] == "adam" else start, F)
                self.rows[key] = ModelRow(self.first_values(key), state, step, self.epoch)
                self.created += 1
            row = self.rows[key]
            row.stamp = max(row.stamp, step)
        return np.array([self.rows[key].values for key in keys], F).reshape(len(keys), self.dim)

    def lookup(self, keys: Sequence[int]) -> np.ndarray:
        zeros = np.zeros(self.dim, F)
        found = [self.rows[key].values if key in self.rows else zeros for key in keys]
        return np.array(found, F).reshape(len(keys), self.dim)

    def push_step(
        self, batches: Sequence[tuple[Sequence[int], np.ndarray, int]]
    ) -> tuple[int, int, int, int]:
        evicted = nonfinite = applied = 0
        sums: dict[int, np.ndarray] = {}
        parts: dict[int, int] = {}
        for keys, gradients, epoch in batches:
            for key, gradient in zip(keys, gradients.astype(F), strict=True):
                if key not in self.rows or self.rows[key].epoch > epoch:
                    evicted += 1
                elif not np.isfinite(gradient).all():
                    nonfinite += 1
                else:
                    with np.errstate(over="ignore"):
                        sums[key] = sums[key] + gradient if key in sums else gradient
                    parts[key] = parts.get(key, 0) + 1
        for key, total in sums.items():
            if np.isfinite(total).all():
                self._update(self.rows[key], total)
                applied += parts[key]
            else:
                nonfinite += parts[key]
        return applied, evicted, 0, nonfinite

    def push(self, keys: Sequence[int], gradients: np.ndarray, epoch: int) -> tuple[int, int, int, int]:
        return self.push_step([(keys, gradients, epoch)])

    @np.errstate(over="ignore", invalid="ignore")
    def _update(self, row: ModelRow, g: np.ndarray) -> None:
        lr, name = F(self.options["lr"]), self.arguments["optimizer"]
        if name == "sgd":
            row.values = row.values - lr * g
        elif name == "adagrad":
            row.state = row.state + g * g
            row.values = row.values - lr * g / (np.sqrt(row.state) + self.eps)
        elif name == "rowwise_adagrad":
            row.state = row.state + sum_of_squares(g) / F(self.dim)
            row.values = row.values - lr / (np.sqrt(row.state) + self.eps) * g
        else:
            b1, b2 = self.options["beta1"], self.options["beta2"]
            row.steps += 1
            m, v = row.state[: self.dim], row.state[self.dim :]
            weight = F(1 - b1)
            m = m + weight * (g - m) if weight < 0.5 else g - (g - m) * (F(1) - weight)
            v = v * F(b2) + F(1 - b2) * g * g
            scale = F(-(self.options["lr"] / (1 - b1**row.steps)))
            denominator = np.sqrt(v) / F(math.sqrt(1 - b2**row.steps)) + self.eps
            row.values = row.values + scale * m / denominator
            row.state = np.concatenate([m, v])

    def evict(self) -> int:
        count = 0
        for bucket in range(self.arguments["num_buckets"]):
            inside = self.keys_of(bucket)
            inside.sort(key=lambda key: (self.rows[key].stamp, key))
            for key in inside[: max(0, len(inside) - self.arguments["bucket_capacity"])]:
                del self.rows[key]
                count += 1
        self.evicted += count
        self.epoch += 1
        return count

    def keys_of(self, bucket: int) -> list[int]:
        return [key for key in self.rows if bucket_of(key, self.arguments["num_buckets"]) == bucket]

    def export_bucket(self, bucket: int) -> dict[str, np.ndarray]:
        keys = sorted(self.keys_of(bucket))
        rows = [self.rows[key] for key in keys]
        exported = {
            "keys": np.array(keys, np.uint64),
            "rows": np.array([row.values for row in rows], F).reshape(len(rows), self.dim),
            "state": np.array([row.state for row in rows], F).reshape(len(rows), self.state_width),
            "stamps": np.array([row.stamp for row in rows], np.uint32),
        }
        if self.arguments["optimizer"] == "adam":
            exported["steps"] = np.array([row.steps for row in rows], np.uint32)
        return exported


def assert_same_rows(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Bit for bit (a NaN equals itself here)."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), (name, a[name], b[name])
