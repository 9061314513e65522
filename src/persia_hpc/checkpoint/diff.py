"""Compares two checkpoints, of any runs and numbers of servers: `persia-hpc checkpoint diff`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc._native import unmix
from persia_hpc.arrays import Array

from .listing import count_text
from .matching import flat
from .merged import CheckpointReader, MergedTable, bucket_ranges, key_ranges
from .parts import COLUMNS

DiffDense = Callable[[Path, Path], Iterator[str]]
# Where a run lies and how it was started says nothing of what was trained.
IGNORED = ("run_dir", "checkpoint.resume")
_BUCKETS_AT_ONCE = 1024
_NAMES = {"rows": "weights", "state": "optimizer state", "stamps": "recency", "steps": "counts of updates"}


def differences(
    a: CheckpointReader, b: CheckpointReader, diff_dense: DiffDense, limit: int = 10
) -> Iterator[str]:
    """Yields a text for each thing in which two checkpoints differ.

    Yields nothing if a run that continues from one does the same as a run that continues from the other.
    Which rows an incremental checkpoint has in its own files, and how many servers wrote it, makes no
    difference. diff_dense(A, B) yields the texts for the dense parts. limit: rows to name in each table.
    Raises DataError if one of them is damaged.
    """
    for key in ("step", "num_samples", "schema", "config"):
        yield from _values(key, a.manifest[key], b.manifest[key])
    for name in sorted(a.tables.keys() | b.tables.keys()):
        missing = "A" if name not in a.tables else "B" if name not in b.tables else ""
        if missing:
            yield f"table {name}: not in {missing}"
        else:
            yield from _table(a, b, name, limit)
    yield from diff_dense(a.directory, b.directory)


def _values(key: str, there: Any, here: Any) -> Iterator[str]:
    if not isinstance(there, Mapping):
        there, here = {"": there}, {"": here}
    if key == "schema":  # features by name, not by position
        there, here = ({**s, "features": {f["name"]: f for f in s["features"]}} for s in (there, here))
    old, new = dict(flat(there)), dict(flat(here))
    for name in [*old, *(n for n in new if n not in old)]:
        if old.get(name) != new.get(name) and not (key == "config" and name in IGNORED):
            texts = (repr(values[name]) if name in values else "not set" for values in (old, new))
            yield f"{key}{' ' * bool(name)}{name}: {' | '.join(texts)}"


@dataclass
class _Tally:
    """Holds counts of a table's rows that differ, and names the first of them."""

    only_a: int = 0
    only_b: int = 0
    changed: int = 0
    largest: dict[str, tuple[int, float]] = field(default_factory=dict)  # of a column: rows, difference
    named: list[str] = field(default_factory=list)


def _table(a: CheckpointReader, b: CheckpointReader, name: str, limit: int) -> Iterator[str]:
    first, second = a.tables[name], b.tables[name]
    alike = ("dim", "num_buckets", "optimizer", "eviction")
    for key in alike:
        if first.attributes[key] != second.attributes[key]:
            yield f"table {name}: {key} {first.attributes[key]} | {second.attributes[key]}"
    columns = _comparable(first, second)
    hashed = _is_hashed(a, name) or _is_hashed(b, name)
    tally = _Tally()
    of, ranges = key_ranges(first, second)
    for begin, end in ranges:
        _add_range(
            tally,
            first.read(begin, end, of=of, columns=columns),
            second.read(begin, end, of=of, columns=columns),
            limit,
            hashed,
        )
    parts = [
        f"{count_text(count, 'row')} {what}"
        for count, what in (
            (tally.only_a, "only in A"),
            (tally.only_b, "only in B"),
            (tally.changed, "changed"),
        )
        if count
    ]
    for column, (count, most) in tally.largest.items():
        parts.append(f"{_NAMES[column]} of {count:,} differ by at most {most:.6g}")
    if parts:
        unnamed = tally.only_a + tally.only_b + tally.changed - len(tally.named)
        more = [f"and {count_text(unnamed, 'more row')}"] if unnamed and tally.named else []
        yield "\n    ".join([f"table {name}: {', '.join(parts)}", *tally.named, *more])
    if first.num_buckets == second.num_buckets:
        yield from _decides(first, second, name)


def _comparable(first: MergedTable, second: MergedTable) -> list[str]:
    """Returns the columns that mean the same in both tables."""
    left, right = first.widths, second.widths
    columns = [name for name in COLUMNS if name in left and left[name] == right.get(name)]
    same = {key: first.attributes[key] == second.attributes[key] for key in ("optimizer", "eviction")}
    if not same["optimizer"]:
        columns = [name for name in columns if name not in ("state", "steps")]
    return columns if same["eviction"] else [name for name in columns if name != "stamps"]


def _add_range(
    tally: _Tally, left: Mapping[str, Array], right: Mapping[str, Array], limit: int, hashed: bool
) -> None:
    keys, at_left, at_right = np.intersect1d(
        left["keys"], right["keys"], assume_unique=True, return_indices=True
    )
    events: list[tuple[Array, Iterable[str]]] = []
    only_a, only_b = (np.delete(s["keys"], at) for s, at in ((left, at_left), (right, at_right)))
    tally.only_a += len(only_a)
    tally.only_b += len(only_b)
    events += [(only_a, itertools.repeat("only in A")), (only_b, itertools.repeat("only in B"))]
    changed = np.zeros(len(keys), bool)
    weights = np.zeros(len(keys))
    for column in (name for name in left if name != "keys"):
        distance = _distance(left[column][at_left], right[column][at_right])
        differs = distance != 0
        changed |= differs
        if column == "rows":
            weights = distance
        if differs.any():
            count, most = tally.largest.get(column, (0, 0.0))
            tally.largest[column] = (count + int(differs.sum()), max(most, float(distance.max())))
    tally.changed += int(changed.sum())
    texts = [f"weights differ by at most {most:.6g}" for most in weights[changed][:limit].tolist()]
    events.append((keys[changed], texts))
    for found, what in events:
        some = np.ascontiguousarray(found[: max(0, limit - len(tally.named))])
        labels = (some if hashed else unmix(some)).tolist()
        tally.named += [
            f"{'key' if hashed else 'id'} {label}: {text}" for label, text in zip(labels, what, strict=False)
        ]


def _distance(left: Array, right: Array) -> Array:
    """Returns the largest difference in each row; infinite between NaN and a number.

    Shapes: left, right [n, ...]; returns float64 [n].
    """
    x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (left, right))
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        distance = np.where(same, 0.0, np.abs(x - y))
    largest: Array = np.where(np.isnan(distance), np.inf, distance).max(axis=1, initial=0.0)
    return largest


def _decides(first: MergedTable, second: MergedTable, name: str) -> Iterator[str]:
    """Yields a text for each difference in the data by which eviction and admission decide."""
    counts: dict[str, int] = {}
    for begin, end in bucket_ranges(np.ones(first.num_buckets, np.int64), _BUCKETS_AT_ONCE):
        left, right = first.decides(begin, end), second.decides(begin, end)
        for kind in left.keys() | right.keys():
            x, y = left.get(kind), right.get(kind)
            if x is None or y is None or x.shape != y.shape:
                counts[kind] = counts.get(kind, 0) + end - begin
            else:
                differs = (x != y).reshape(len(x), -1).any(axis=1)
                counts[kind] = counts.get(kind, 0) + int(differs.sum())
    for kind, count in sorted(counts.items()):
        if count:
            what = "ages" if kind == "ages" else f"admission's {kind}"
            yield f"table {name}: {what} of {count_text(count, 'bucket')} differ"


def _is_hashed(checkpoint: CheckpointReader, table: str) -> bool:
    tables = checkpoint.manifest["config"]["tables"]
    return bool((tables.get(table) or tables.get("default") or {}).get("hash"))
