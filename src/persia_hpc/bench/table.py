"""Measures pulls and pushes of one server's rows, beside bare prefetched memory access.

one touch: copying the rows from known places. two touches: also reading an index entry of each key at a known
place. update: reading, changing and writing the rows and their optimizer state. first touch: writing as many
bytes as rows, state and index entries have for the first time. All on huge pages.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from persia_hpc._native import MemoryLimits, Table, TableConfig, mix
from persia_hpc.arrays import Array
from persia_hpc.errors import UserError

from .measure import Result, Timing, in_turns
from .table_peer import Fbgemm, check_peer, torch_threads

SUMMARY = "pulls and pushes of rows, inserts, memory per row"
EXAMPLES = """\
examples:
  persia-hpc bench table --rows 16000000 --core 1
  persia-hpc bench table --dims 16 --optimizers rowwise_adagrad --json table.json
  persia-hpc bench table --dims 16 --optimizers rowwise_adagrad --call-keys 65536 --peer fbgemm"""

BATCH = 4096  # keys a call: about what a batch of 4096 samples needs of one feature
KEYS = 512 * BATCH  # a repetition: so many that caches do not hold their rows
BUCKETS = 1024
LEAST_ROWS = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--rows", type=int, default=10_000_000, help="resident rows (default: 10 M)")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64, 128], help="(default: 16 64 128)")
    parser.add_argument(
        "--optimizers", nargs="+", default=["adagrad", "rowwise_adagrad"], help="(default: both adagrads)"
    )
    parser.add_argument("--storage", default="fp32", help="fp32, fp16 or bf16 (default: fp32)")
    parser.add_argument("--threads", type=int, default=1, help="of the table (default: 1)")
    parser.add_argument("--call-keys", type=int, default=BATCH, help=f"of a pull or push (default: {BATCH})")
    parser.add_argument(
        "--peer", choices=["fbgemm"], help="measure its table for CPUs in turns with pulls and pushes"
    )


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Measures inserts, pulls and pushes for each dim and optimizer, then what a full table holds.

    Pulls are measured with uniform and Zipf keys and in both wire formats.

    Raises UserError for too few rows or keys a call, and for a peer that isn't there.
    """
    if options.rows < LEAST_ROWS:
        raise UserError(f"--rows {options.rows}: expected at least {LEAST_ROWS}")
    if not 1 <= options.call_keys <= LEAST_ROWS:
        raise UserError(f"--call-keys {options.call_keys}: expected 1 to {LEAST_ROWS}")
    if options.peer:
        check_peer(options.optimizers)
    for dim in options.dims:
        for optimizer in options.optimizers:
            table = _table(dim, optimizer, options, int(options.rows * 1.05) + 64 * BUCKETS)
            inserts = _insert(table, options.rows)
            begin = time.perf_counter()
            limits = MemoryLimits(
                num_rows=options.rows,
                row_bytes=_weight_bytes(dim, options),
                state_bytes=table.row_bytes - _weight_bytes(dim, options),
            )
            first_touch = Timing((time.perf_counter() - begin) / options.rows * 1e9, 0.0)
            case = {"op": "insert", "dim": dim, "optimizer": optimizer, "rows": options.rows}
            yield Result(case, "ns/key", inserts.mean, {"first touch": first_touch}, notes=inserts.notes)
            for skew in ("uniform", "zipf 1.05"):
                num_calls = max(1, KEYS // options.call_keys)
                batches = [_keys(skew, options, call) for call in range(num_calls)]
                if optimizer == options.optimizers[0]:
                    for wire in (np.float32, np.float16):
                        yield _pull(table, limits, batches, dim, wire, skew, options)
                yield _push(table, limits, batches, dim, optimizer, skew, options)
                if options.peer:
                    yield from _beside_peer(table, batches, optimizer, skew, options)
            del table, limits
    yield _full(options)


def _weight_bytes(dim: int, options: argparse.Namespace) -> int:
    """Bytes of a row's weights as stored."""
    return dim * (4 if options.storage == "fp32" else 2)


def _table(dim: int, optimizer: str, options: argparse.Namespace, capacity: int) -> Table:
    config = TableConfig(
        dim=dim,
        optimizer=optimizer,
        options={"lr": 0.05},
        init="uniform",
        init_a=-0.01,
        init_b=0.01,
        seed=1,
        num_buckets=BUCKETS,
        first_bucket=0,
        end_bucket=BUCKETS,
        bucket_capacity=capacity // BUCKETS,
        storage=options.storage,
        threads=options.threads,
    )
    return Table(config)


def _keys(skew: str, options: argparse.Namespace, call: int) -> Array:
    """Sorted keys of the ids 0 .. rows - 1, each only once, so by bucket, as dedup gives them."""
    rows, size = options.rows, options.call_keys
    generator = np.random.default_rng(call)
    ids: Array
    if skew == "uniform":
        ids = np.unique(generator.integers(rows, size=size))
    else:
        exponent = float(skew.split()[1])
        # The continuous law of the same exponent, inverted; ids in an order that memory does not know.
        u = generator.random(16 * size)
        ranks = ((1 + u * (rows ** (1 - exponent) - 1)) ** (1 / (1 - exponent))).astype(np.int64) - 1
        ids = np.unique(ranks * 7_368_787 % rows)
        ids = generator.choice(ids, min(size, len(ids)), replace=False)
    return np.sort(mix(ids.astype(np.uint64)))


@dataclass(frozen=True)
class _Inserts:
    mean: Timing  # ns per key: the mean, since what growth takes falls on few calls
    notes: dict[str, float]


def _insert(table: Table, rows: int) -> _Inserts:
    out = np.empty((BATCH, table.dim), np.float32)
    slots = np.empty(BATCH, np.uint32)
    seconds, overheads = [], []
    for begin in range(0, rows, BATCH):
        keys = np.sort(mix(np.arange(begin, min(begin + BATCH, rows), dtype=np.uint64)))
        start = time.perf_counter()
        table.pull(keys, 1, out[: len(keys)], slots[: len(keys)])
        seconds.append(time.perf_counter() - start)
        if begin >= rows // 10:
            overheads.append(_overhead(table))
    notes = {
        f"longest pull of {BATCH} new rows, ms": max(seconds) * 1e3,
        "overhead bytes/row while growing, mean": sum(overheads) / len(overheads),
    }
    return _Inserts(Timing(sum(seconds) / rows * 1e9, 0.0), notes)


def _overhead(table: Table) -> float:
    """Bytes a row beside its weights and its optimizer's state."""
    return table.memory_bytes / table.num_rows - table.row_bytes


def _full(options: argparse.Namespace) -> Result:
    """Inserts into a full table, so that each new row evicts an old one."""
    rows, dim, optimizer = options.rows, options.dims[0], options.optimizers[0]
    table = _table(dim, optimizer, options, rows)
    out = np.empty((BATCH, dim), np.float32)
    slots = np.empty(BATCH, np.uint32)
    seconds = []
    for step in range(1, 2 * rows // BATCH):
        keys = np.sort(mix(np.arange(BATCH * step, BATCH * (step + 1), dtype=np.uint64)))
        start = time.perf_counter()
        table.pull(keys, step, out, slots)
        table.evict(step)
        if table.num_rows > 0.99 * (rows // BUCKETS * BUCKETS):
            seconds.append((time.perf_counter() - start) / BATCH * 1e9)
    case = {"op": "insert and evict", "dim": dim, "optimizer": optimizer, "rows": rows}
    mean = Timing(sum(seconds) / len(seconds), 0.0)
    return Result(case, "ns/key", mean, notes={"overhead bytes/row, full": _overhead(table)})


def _pull(
    table: Table,
    limits: MemoryLimits,
    batches: list[Array],
    dim: int,
    wire: Any,
    skew: str,
    options: argparse.Namespace,
) -> Result:
    out = np.empty((options.call_keys, dim), wire)
    slots = np.empty(options.call_keys, np.uint32)
    gathered = np.empty((options.call_keys, _weight_bytes(dim, options)), np.uint8)
    places, entries = _places(batches, options.rows)
    step = [1]

    def ours() -> None:
        step[0] += 1
        for keys in batches:
            table.pull(keys, step[0], out[: len(keys)], slots[: len(keys)])

    def one_touch() -> None:
        for at in places:
            limits.gather(at, gathered[: len(at)])

    def two_touches() -> None:
        for at, entry in zip(places, entries, strict=True):
            limits.gather_with_entries(at, entry, gathered[: len(at)])

    times = _per_key(
        {"ours": ours, "one touch": one_touch, "two touches": two_touches}, batches, options.repeats
    )
    case = {"op": "pull", "dim": dim, "wire": np.dtype(wire).name, "keys": skew}
    return Result(case, "ns/key", times.pop("ours"), times)


def _push(
    table: Table,
    limits: MemoryLimits,
    batches: list[Array],
    dim: int,
    optimizer: str,
    skew: str,
    options: argparse.Namespace,
) -> Result:
    out = np.empty((options.call_keys, dim), np.float32)
    slots = [np.empty(len(keys), np.uint32) for keys in batches]
    epochs = [table.pull(k, 1, out[: len(k)], s) for k, s in zip(batches, slots, strict=True)]
    gradients = _gradients(options.call_keys, dim)
    bytes_ = np.zeros((options.call_keys, _weight_bytes(dim, options)), np.uint8)
    places, _ = _places(batches, options.rows)

    def ours() -> None:
        for keys, slot, epoch in zip(batches, slots, epochs, strict=True):
            table.push(keys, slot, gradients[: len(keys)], 2, epoch)

    def update() -> None:
        for at in places:
            limits.update(at, bytes_[: len(at)])

    times = _per_key({"ours": ours, "update": update}, batches, options.repeats)
    case = {"op": "push", "dim": dim, "optimizer": optimizer, "keys": skew}
    return Result(case, "ns/key", times.pop("ours"), times)


def _beside_peer(
    table: Table, batches: list[Array], optimizer: str, skew: str, options: argparse.Namespace
) -> Iterator[Result]:
    """Measures pulls, and pulls with their pushes, in turns with FBGEMM's passes."""
    dim = table.dim
    out = np.empty((options.call_keys, dim), np.float32)
    slots = np.empty(options.call_keys, np.uint32)
    gradients = _gradients(options.call_keys, dim)
    step = [2]

    def pull() -> None:
        step[0] += 1
        for keys in batches:
            table.pull(keys, step[0], out[: len(keys)], slots[: len(keys)])

    def pull_and_push() -> None:
        step[0] += 1
        for keys in batches:
            epoch = table.pull(keys, step[0], out[: len(keys)], slots[: len(keys)])
            table.push(keys, slots[: len(keys)], gradients[: len(keys)], step[0], epoch)

    forward, whole = Fbgemm(options.rows, dim, optimizer).calls(_places(batches, options.rows)[0], gradients)
    functions = {"pull": pull, "forward": forward, "pull and push": pull_and_push, "whole": whole}
    with torch_threads(options.threads):
        times = _per_key(functions, batches, options.repeats)
    for op, theirs in (("pull", "forward"), ("pull and push", "whole")):
        case = {"op": op, "dim": dim, "optimizer": optimizer, "keys": skew}
        yield Result(case, "ns/key", times[op], {f"fbgemm {theirs}": times[theirs]})


def _gradients(count: int, dim: int) -> Array:
    gradients: Array = np.random.default_rng(1).normal(0, 1e-3, (count, dim)).astype(np.float32)
    return gradients


def _places(batches: list[Array], rows: int) -> tuple[list[Array], list[Array]]:
    """For each key a row and an index entry that depend on it alone, as in a table: popular ones are hot."""
    return (
        [keys % np.uint64(rows) for keys in batches],
        [mix(keys) % np.uint64(rows) for keys in batches],
    )


def _per_key(functions: Any, batches: list[Array], repeats: int) -> dict[str, Timing]:
    count = sum(len(keys) for keys in batches)
    return {name: t.scaled(1e9 / count) for name, t in in_turns(functions, repeats).items()}
