"""Types of the native extension; its documentation is in the module: `help(persia_hpc._native.Table)`.

Docstrings come from native/bindings; attributes can only be read, but for those of a dataclass.
tests/native/test_native_stub.py compares the names with the module's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import PersiaError

_I64 = npt.NDArray[np.int64]
_U64 = npt.NDArray[np.uint64]
_U32 = npt.NDArray[np.uint32]
_U8 = npt.NDArray[np.uint8]
_F32 = npt.NDArray[np.float32]
_F64 = npt.NDArray[np.float64]
_Biases = Sequence[_F32 | _F64 | None]
_Rows = npt.NDArray[Any]  # [U, D or D + 2] in one of the wire formats

def keep_freed_memory() -> None: ...
def mix(ids: _U64) -> _U64: ...
def unmix(keys: _U64) -> _U64: ...

class RecentRows:
    def __init__(self, *, groups: list[int], reuse_steps: int) -> None: ...
    def find(self, keys: _U64, table_offsets: _U32, *, step: int) -> tuple[_U8, _U32, _I64, int]: ...

def hash_ids(ids: _U64, *, rounds: int, size: int) -> _U64: ...
def encode_rows(rows: _F32, wire: str) -> _Rows: ...
def decode_rows(rows: _Rows, dim: int) -> _F32: ...
def parse_criteo_lines(
    text: _U8, *, labels: _F32, dense: _F32, ids: _U64, begin: int, bad: _I64
) -> tuple[int, int, int, int]: ...

class IdCounter:
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def add(self, ids: _U64, counts: _U64 | None = None) -> None: ...
    def items(self) -> tuple[_U64, _U64]: ...
    def replace_unknown(self, ids: _U64, *, other: int) -> _U64: ...

class MemoryLimits:
    def __init__(self, *, num_rows: int, row_bytes: int, state_bytes: int) -> None: ...
    def gather(self, places: _U64, out: _U8) -> None: ...
    def gather_with_entries(self, places: _U64, entries: _U64, out: _U8) -> int: ...
    def update(self, places: _U64, gradients: _U8) -> None: ...

@dataclass(frozen=True, kw_only=True)
class TableConfig:
    dim: int
    optimizer: str
    options: dict[str, float]
    init: str
    init_a: float
    init_b: float
    seed: int
    num_buckets: int
    first_bucket: int
    end_bucket: int
    bucket_capacity: int
    value_bound: float = 0.0
    clip_norm: float = 0.0
    storage: str = "fp32"
    state_storage: str = "fp32"
    eviction: str = "lru"
    ttl: int = 0
    admit_after: int = 1
    admit_probability: float = 1.0
    disk_folder: str = ""
    disk_bytes: int = 0
    full_disk_evicts: bool = False
    threads: int = 1

class RowBytes:
    weights: int
    state: int
    beside: int

def row_bytes(
    optimizer: str, dim: int, *, storage: str = "fp32", state_storage: str = "fp32"
) -> RowBytes: ...
def table_bytes(config: TableConfig, rows: int, *, step_rows: int = 0) -> int: ...

class DiskError(PersiaError): ...

class Table:
    def __init__(self, config: TableConfig) -> None: ...
    def pull(self, keys: _U64, step: int, out: _Rows, slots: _U32, wanted: _U8 | None = None) -> int: ...
    def lookup(self, keys: _U64, out: _Rows) -> None: ...
    def push(
        self, keys: _U64, slots: _U32, grads: _Rows, step: int, epoch: int
    ) -> tuple[int, int, int, int]: ...
    def push_step(
        self, batches: Sequence[tuple[_U64, _U32, _Rows, int]], step: int
    ) -> tuple[int, int, int, int]: ...
    def evict(self, step: int) -> int: ...
    def set_lr(self, lr: float) -> None: ...
    def export_bucket(self, bucket: int) -> dict[str, npt.NDArray[Any]]: ...
    def import_rows(self, rows: dict[str, npt.NDArray[Any]]) -> None: ...
    def adopt_rows(
        self,
        path: str,
        number: int,
        chunks: _U64,
        chunk_rows: int,
        first_bucket: int,
        offsets: _U64,
        live: _U8,
    ) -> bool: ...
    def begin_snapshot(self, full: bool = True) -> None: ...
    def snapshot_buckets(
        self, first: int, end: int, since: int = 0
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]: ...
    def copy_buckets(
        self, first: int, end: int, into: int
    ) -> tuple[
        dict[str, npt.NDArray[Any]],
        dict[str, npt.NDArray[Any]],
        dict[str, npt.NDArray[Any]],
        dict[str, npt.NDArray[Any]],
    ]: ...
    def keep_copies(self, files: list[int]) -> None: ...
    def copied_rows(self) -> dict[int, int]: ...
    def rows_since(self, since: int) -> int: ...
    def end_snapshot(self) -> None: ...
    def removed_keys(self) -> _U64: ...
    def begin_changes(self) -> None: ...
    def mark_changes(self, rows: str) -> None: ...
    def take_changes(self, enough: int = ...) -> tuple[_U64, _U8, _U64]: ...
    def return_changes(self, keys: _U64, removed: _U64) -> None: ...
    def restore_bucket(self, bucket: int, age: int, counted: int, sightings: _U8) -> None: ...
    def set_next_step(self, step: int) -> None: ...
    sightings_per_bucket: int
    record_bytes: int
    has_steps: bool
    snapshot_bytes: int
    can_be_incremental: bool
    dim: int
    first_bucket: int
    end_bucket: int
    state_width: int
    row_bytes: int
    num_rows: int
    created_rows: int
    imported_rows: int
    evicted_rows: int
    has_disk: bool
    cold_rows: int
    to_disk_rows: int
    from_disk_rows: int
    disk_full_rows: int
    disk_problem: str
    disk_bytes: int
    memory_bytes: int

class ServedTable:
    def __init__(self, rows: str, dim: int) -> None: ...
    def add_part(self, keys: _U64, cells: _U32, shift: int, rows: _U8) -> None: ...
    def add_changes(self, keys: _U64, rows: _U8, removed: _U64) -> None: ...
    def lookup(self, keys: _U64, out: _F32) -> None: ...
    def copy(self, keys: _U64, out: _U8) -> None: ...
    def keys(self) -> _U64: ...
    row_bytes: int
    held_bytes: int

def make_cells(keys: _U64) -> tuple[_U32, int]: ...
def encode_served(rows: _F32, format: str) -> _U8: ...
def lookup_served(
    tables: Sequence[ServedTable], keys: _U64, counts: _U32, groups: Sequence[int], out: Sequence[_F32]
) -> None: ...

class PendingPull:
    def __init__(
        self, step: int, trainer: int, keys: _U64, counts: _U32, worker: int = 0, wanted: _U8 | None = None
    ) -> None: ...
    def __len__(self) -> int: ...
    worker: int
    step: int
    trainer: int
    keys: _U64
    counts: _U32
    wanted: _U8 | None
    slots: _U32
    epochs: _U32
    def part(self, chosen: _U8) -> PendingPull: ...

class TableSet:
    def __init__(
        self,
        tables: Sequence[Table | None],
        groups: Sequence[int],
        dims: Sequence[int],
        *,
        threads: int = 1,
        ahead: bool = False,
    ) -> None: ...
    def row_counts(self, counts: _U32, wanted: _U8 | None = None) -> list[int]: ...
    def pull(self, pull: PendingPull, out: Sequence[_Rows]) -> None: ...
    def take_pull(self, ring: RingConsumer, kind: int) -> PendingPull | None: ...
    def answer(self, pull: PendingPull, ring: RingProducer, kind: int, tag: int, wire: str) -> int | None: ...
    def look_ahead(self, pull: PendingPull, out: Sequence[_Rows], since: int) -> None: ...
    def mark_differing(self, pull: PendingPull, *, alone: bool = False) -> bool: ...
    def marked(self, pull: PendingPull) -> _U8: ...
    def pull_again(self, pull: PendingPull) -> None: ...
    def differing(
        self, pull: PendingPull, wire: str, chosen: _U8 | None = None
    ) -> list[tuple[_U32, _Rows]]: ...
    def send_differing(
        self,
        pull: PendingPull,
        ring: RingProducer,
        kind: int,
        wire: str,
        tag: int = 0,
        chosen: _U8 | None = None,
    ) -> int | None: ...
    def calm(self) -> bool: ...
    def lookup(self, keys: _U64, counts: _U32, out: Sequence[_Rows]) -> None: ...
    def push(
        self,
        records: Sequence[tuple[PendingPull, Sequence[_Rows]]],
        step: int,
        marked: bool | None = None,
    ) -> tuple[int, int, int, int]: ...
    def push_next(self, ring: RingConsumer, pull: PendingPull) -> tuple[int, int, int, int]: ...
    def evict(self, step: int) -> int: ...
    def ask_disk(self, pull: PendingPull) -> None: ...
    def set_lr(self, rates: npt.NDArray[np.float64]) -> None: ...

class Parts:
    def part(self, server: int) -> npt.NDArray[Any]: ...

class Shares:
    counts: Parts
    def rows(self, array: npt.NDArray[Any]) -> Parts: ...
    def group_rows(self, arrays: Sequence[npt.NDArray[Any]]) -> list[Parts]: ...
    def fill(
        self,
        server: int,
        rows: Sequence[npt.NDArray[Any]],
        into: Sequence[npt.NDArray[Any]],
        before: _U32 | None,
    ) -> None: ...

class Dedup:
    keys: _U64
    table_offsets: _U32
    server_offsets: _U32
    group_offsets: _U32
    indices: npt.NDArray[np.uint16] | _U32
    feature_offsets: _U32
    row_offsets: _U32
    positions: _U32
    shares: Shares

class Deduplicator:
    def __init__(
        self,
        *,
        tables: Sequence[int],
        groups: Sequence[int],
        num_buckets: Sequence[int],
        bounds: Sequence[Sequence[int]],
    ) -> None: ...
    def run(self, values: Sequence[_U64]) -> Dedup: ...

# (first id, end id, how, bag offsets [B+1] or None)
_PoolFeature = tuple[int, int, str, _U32 | None]

def gather_pool_forward(
    rows: _Rows,
    indices: npt.NDArray[np.uint16] | _U32,
    *,
    features: Sequence[_PoolFeature],
    num_samples: int,
    dim: int,
    weights: Sequence[_F32 | None] = ...,
) -> tuple[_F32, list[tuple[_F32, npt.NDArray[np.bool_] | None]]]: ...
def gather_pool_backward(
    pooled_gradient: _F32 | None,
    sequence_gradients: Sequence[_F32 | None],
    indices: npt.NDArray[np.uint16] | _U32,
    *,
    features: Sequence[_PoolFeature],
    num_samples: int,
    num_rows: int,
    dim: int,
    wire: str = "fp32",
    weights: Sequence[_F32 | None] = ...,
) -> tuple[_Rows, bool]: ...

class ThreadTeam:
    def __init__(self, size: int) -> None: ...

_Layers = Sequence[tuple[_F32, _F32]]

def has_bf16() -> bool: ...
def dlrm_forward(
    dense: _F32 | None,
    vectors: _F32,
    *,
    num_copied: int,
    bottom: _Layers,
    top: _Layers,
    team: ThreadTeam,
    bf16: bool = False,
) -> tuple[_F32, _F32]: ...
def dlrm_backward(
    dense: _F32 | None,
    vectors: _F32,
    *,
    num_copied: int,
    bottom: _Layers,
    top: _Layers,
    kept: _F32,
    gradient: _F32,
    wants_dense: bool,
    wants_vectors: bool,
    team: ThreadTeam,
    bf16: bool = False,
) -> tuple[_F32 | None, _F32 | None, list[_F32]]: ...
def silu_attention_forward(
    vqk: _F32, offsets: _I64, bias: _Biases, *, scale: float, divisor: float, team: ThreadTeam
) -> _F32: ...
def silu_attention_backward(
    vqk: _F32, offsets: _I64, bias: _Biases, gradient: _F32, *, scale: float, divisor: float, team: ThreadTeam
) -> tuple[_F32, _F32 | None, _F32 | None]: ...
def number_groups(groups: _I64) -> _U32: ...
def rank_metrics(
    scores: _F32, labels: _F32, weight: _F64 | None, groups: _U32 | None, *, ks: Sequence[int], threads: int
) -> dict[str, Any]: ...

class Outgoing:
    def __init__(
        self,
        kind: int,
        step: int,
        trainer: int,
        tag: int,
        arrays: Sequence[npt.NDArray[Any] | list[npt.NDArray[Any]]],
    ) -> None: ...
    unwritten_bytes: int

class RingProducer:
    def __init__(self, data: _U8, tail: _U64, words: _U64 | None, bell: _U64 | None) -> None: ...
    def write(self, record: Outgoing) -> bool: ...
    def reserve(
        self,
        kind: int,
        step: int,
        trainer: int,
        tag: int,
        specs: Sequence[tuple[npt.DTypeLike, Sequence[int]]],
    ) -> list[npt.NDArray[Any]] | None: ...
    def commit(self) -> None: ...
    def cancel(self) -> None: ...
    def take_held(self) -> tuple[int, int, list[tuple[int, int]]]: ...
    def close(self) -> None: ...
    data: _U8
    reserved: bool
    held_entries: int
    held_bytes: int
    max_entry: int
    head: int
    used: int
    records: int
    bytes: int

def post_each(
    producers: Sequence[RingProducer | None],
    kind: int,
    step: int,
    trainer: int,
    tag: int,
    arrays: Sequence[Parts],
) -> list[tuple[int, Outgoing]]: ...

class RingConsumer:
    def __init__(self, data: _U8, words: _U64, tail: _U64 | None, bell: _U64 | None) -> None: ...
    def poll(self) -> tuple[int, int, int, int, list[npt.NDArray[Any]], Any] | None: ...
    def peek(self, kind: int) -> tuple[int, int] | None: ...
    def release(self, token: Any) -> None: ...
    def close(self) -> None: ...
    data: _U8
    words: _U64
    closed: bool
    unread: bool
    released: int
    records: int
    bytes: int

class RingConsumers:
    def __init__(self, consumers: Sequence[RingConsumer]) -> None: ...
    def next(self, begin: int) -> int: ...
    def fill(
        self,
        kind: int,
        step: int,
        trainer: int,
        tag: int | None,
        shares: Shares,
        into: Sequence[npt.NDArray[Any]],
        before: _U32 | None,
    ) -> tuple[list[int], int]: ...

class NodeSum:
    def __init__(self, members: Sequence[_U8], rank: int, lengths: Sequence[int], wire: str) -> None: ...
    @staticmethod
    def bytes(lengths: Sequence[int], wire: str, first: bool) -> int: ...
    slots: _U8
    sums: npt.NDArray[np.float32]
    def post(self) -> None: ...
    def help(self) -> None: ...
    def summed(self, number: int) -> bool: ...
    def wait_summed(self, number: int, spin_seconds: float, sleep_seconds: float) -> bool: ...
    def publish(self) -> None: ...
    def wait_published(self, number: int, spin_seconds: float, sleep_seconds: float) -> bool: ...

class Watch:
    def __init__(
        self, producers: Sequence[RingProducer], consumers: Sequence[RingConsumer], bells: Sequence[_U64]
    ) -> None: ...
    def wait(self, spin_seconds: float, sleep_seconds: float) -> bool: ...
    def wake(self) -> None: ...

def gather(source: npt.NDArray[Any], rows: _I64, out: npt.NDArray[Any]) -> None: ...
def pool_batch_forward(
    *,
    features: int,
    num_features: int,
    num_samples: int,
    indices: int,
    narrow: bool,
    samples: int,
    flags: int,
    most_threads: int,
    stream: int,
) -> None: ...
def pool_batch_backward(
    *,
    features: int,
    groups: int,
    num_groups: int,
    samples: int,
    row_offsets: int,
    positions: int,
    factor: int,
    long_pieces: int,
    flags: int,
    most_threads: int,
    stream: int,
) -> None: ...
