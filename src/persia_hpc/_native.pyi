"""The native extension: tables, codecs, dedup, pooling, pairwise interaction, record rings.

Shape letters: U unique keys of a call, D dim, S state width, N any. Arrays are NumPy arrays, C-contiguous,
and used in place: one of another dtype, shape or layout raises an error that names the argument, what was
expected and got (ValueError). No call is collective.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_U64 = npt.NDArray[np.uint64]
_U32 = npt.NDArray[np.uint32]
_F32 = npt.NDArray[np.float32]
_Rows = npt.NDArray[Any]  # [U, D or D + 2] in one of the wire formats

def keep_freed_memory() -> None:
    """Makes this process keep large blocks that it frees, for the next step; irrevocable, glibc only."""

def mix(ids: _U64) -> _U64:
    """Keys [N] of ids [N]: a bijection."""

def unmix(keys: _U64) -> _U64:
    """Ids [N] of keys [N]: the inverse of `mix`."""

class RecentRows:
    """Which rows of a batch its trainer still holds from batches before; native/include/persia/recent_rows.h.

    T tables, G groups, U unique rows. groups: [T], as for `Deduplicator`. reuse_steps: 1 to 31.
    """

    def __init__(self, *, groups: list[int], reuse_steps: int) -> None: ...
    def find(
        self, keys: _U64, table_offsets: _U32, *, step: int
    ) -> tuple[npt.NDArray[np.uint8], _U32, npt.NDArray[np.int64], int]:
        """Wanted [U]: 1 for rows that must travel. places [U]: where each row is in its group's ring of rows.

        Then [G, 2]: where in the ring the rows go that travel, one behind the other, and its size; when that
        changes, the ring begins anew. Last a mask: bit a is set if a row of a steps ago is used. Steps must
        grow.
        """

def hash_ids(ids: _U64, *, rounds: int, size: int) -> _U64:
    """Indices [N * rounds] that ids [N] hash to; those of an id lie together, round r's from r * size on.

    Raises ValueError for no round, size 0, and more than 2^64 indices in all.
    """

def encode_rows(rows: _F32, wire: str) -> _Rows:
    """Rows [U, D] in a format of `protocol.wire.WIRES`: "fp32", "fp16", "bf16" or "scaled_fp16"."""

def decode_rows(rows: _Rows, dim: int) -> _F32:
    """[U, D] of rows in any wire format, which follows from their dtype and width."""

def parse_criteo_lines(
    text: npt.NDArray[np.uint8],
    *,
    labels: _F32,
    dense: _F32,
    ids: _U64,
    begin: int,
    bad: npt.NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """Lines of Criteo's layout from `text` [n], which ends in a newline, to rows `begin` and on of arrays.

    `labels` [N], `dense` [N, 13] (max(x, 0), missing 0), `ids` [26, N or more] (a feature's lie together;
    missing is 2^32). Stops when they are full. Returns how many bytes were used, rows made, lines read (blank
    ones too), and lines left out, because they aren't of the layout. `bad` [M, 3]: the first M of these as
    line (from 0), place of its first byte, and first column that is wrong (-1: the number of columns).
    """

class IdCounter:
    """How often each of many different ids was met. For one thread at a time; the GIL is released."""

    def __init__(self) -> None: ...
    def __len__(self) -> int:
        """Different ids."""

    def add(self, ids: _U64, counts: _U64 | None = None) -> None:
        """Each of `ids` [N] was met once more, or `counts` [N] times (ValueError for 0)."""

    def items(self) -> tuple[_U64, _U64]:
        """All ids and their counts, in no order that means anything."""

    def replace_unknown(self, ids: _U64, *, other: int) -> _U64:
        """The ids [N], with `other` for those that were never met."""

class MemoryLimits:
    """Rows, states and index entries on huge pages, and the least that any table must do with them."""

    def __init__(self, *, num_rows: int, row_bytes: int, state_bytes: int) -> None: ...
    def gather(self, places: _U64, out: npt.NDArray[np.uint8]) -> None:
        """Copies the rows at `places` [n] to `out` [n, row_bytes]."""

    def gather_with_entries(self, places: _U64, entries: _U64, out: npt.NDArray[np.uint8]) -> int:
        """The same, and reads an index entry at another place for each row."""

    def update(self, places: _U64, gradients: npt.NDArray[np.uint8]) -> None:
        """Reads, changes and writes the rows and their states."""

@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Holds what a table is made with: buckets [first_bucket, end_bucket) of `num_buckets` (a power of two).

    optimizer: "sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "adamw" or "ftrl".
    options: `lr` must be there; `eps` (1e-10 for adagrad, else 1e-8), `initial_accumulator_value` (0; 0.1 for
      ftrl), `beta1`, `beta2` (0.9, 0.999), `momentum` (0.9), `l1`, `l2` (0, ftrl), `weight_decay` (0; all but
      ftrl; with adamw 0.01 and decoupled).
    init: "uniform" in [init_a, init_b) or "normal" of mean init_a and standard deviation init_b; the first
      values of a row are a function of (seed, key) alone.
    bucket_capacity: rows per bucket, see `Table.evict`.
    value_bound: weights are clipped to it after each update (0: not).
    storage, state_storage: "fp32", "fp16" or "bf16"; 16 bits are rounded stochastically by (seed, key, step).
    eviction: "lru" or "lfu".
    ttl: steps after which an unused row is gone (0: never; lru only).
    admit_after: how many steps must see a key before it gets a row, by a counting sketch.
    admit_probability: the share of keys, by their hash, that may get a row.
    threads: each works on a part of the buckets; results don't depend on their number.

    Raises ValueError for an unknown or missing name and for a value of another type. `Table` raises it for
    values out of range and for those that contradict each other.
    """

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
    storage: str = "fp32"
    state_storage: str = "fp32"
    eviction: str = "lru"
    ttl: int = 0
    admit_after: int = 1
    admit_probability: float = 1.0
    threads: int = 1

class RowBytes:
    """Holds the bytes of a row: weights, optimizer state, and what the table needs beside them."""

    @property
    def weights(self) -> int: ...
    @property
    def state(self) -> int:
        """The optimizer's state with the row's count of updates, without padding."""
    @property
    def beside(self) -> int:
        """The row's entry in a full index (key, slot, stamp) and its epoch; the same for all tables."""

def row_bytes(optimizer: str, dim: int, *, storage: str = "fp32", state_storage: str = "fp32") -> RowBytes:
    """Returns the bytes of a row of `dim` under an optimizer and two formats, all named as in `TableConfig`.

    Raises ValueError for another name.
    """

def table_bytes(config: TableConfig, rows: int, *, step_rows: int = 0) -> int:
    """Predicts the resident memory of a table that holds `rows` rows, without making it.

    Good to a few percent for rows hashed evenly to the buckets; 0 rows: an empty table. With `step_rows` rows
    in a step it includes working memory of `push_step` and, in a full table, room for new rows that come
    before others are evicted. Not included: what a snapshot keeps aside, and with adam and adamw 16 bytes for
    each update of the row that had most (at most 1 MiB for each thread).

    Raises ValueError as `Table` does.
    """

class Table:
    """One server's shard of an embedding table: the rows, with optimizer state, of a range of buckets.

    The keys of a call must be unique and ordered by bucket (ascending keys are). A key of another bucket
    range or out of order, an unknown optimizer or option, or a value out of range raises ValueError before
    anything changes. Threads may share a table: calls wait for each other, with the GIL released.

    A slot is where a row lies, an epoch tells at which point of the table's life: `push` wants both back from
    `pull` and so knows whether the row is still the one that was pulled.
    """

    def __init__(self, config: TableConfig) -> None:
        """Makes an empty table."""

    def pull(
        self, keys: _U64, step: int, out: _Rows, slots: _U32, wanted: npt.NDArray[np.uint8] | None = None
    ) -> int:
        """Writes the rows of `keys` [U] to `out` [U, D]; creates unseen ones; notes that `step` uses them.

        Returns the epoch and fills `slots` [U], which `push` wants back. Keys that are not admitted give
        zeros. Capacity may be exceeded until the next `evict`. wanted: uint8 [U]; only the rows of keys that
        have a 1 are written, one behind the other; nothing else changes.
        """

    def lookup(self, keys: _U64, out: _Rows) -> None:
        """Evaluation: writes the rows of `keys` [U] to `out` [U, D], zeros for unseen; changes nothing."""

    def push(self, keys: _U64, slots: _U32, grads: _Rows, step: int, epoch: int) -> tuple[int, int, int, int]:
        """One optimizer update per row, with gradients [U, D] for what `pull` gave at `step`.

        Returns rows (applied, evicted in flight, unadmitted, non-finite), which add up to U. A row that was
        evicted since the pull is left alone even if it was created again; a gradient with an infinite or NaN
        element is skipped.
        """

    def push_step(
        self, batches: Sequence[tuple[_U64, _U32, _Rows, int]], step: int
    ) -> tuple[int, int, int, int]:
        """One optimizer update per row with the gradients of all batches (keys, slots, gradients, epoch) of a
        step.

        Gradients of a row are summed in the order of the batches, in fp32. Returns counts as
        `push` does, of (batch, row): one batch's non-finite row is left out of the sum;
        where finite gradients sum to something non-finite the row is skipped and all count as such.
        """

    def evict(self, step: int) -> int:
        """After `step` is applied: rows over their time to live go, and of each bucket over its capacity
        those with the least (last step used, key), or (times used, key) with "lfu"; sightings are counted.

        Returns rows evicted. To be called between steps only, so that it doesn't depend on the order of pulls
        of one step.
        """

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the updates to come."""

    def export_bucket(self, bucket: int) -> dict[str, npt.NDArray[Any]]:
        """Copies all n rows of a bucket, sorted by key: all that a checkpoint needs.

        keys uint64 [n], rows float32 [n, D], state float32 [n, S], stamps uint32 [n] (last step that used the
        row) and, with "adam" only, steps uint32 [n] (updates of the row so far).
        """

    def import_rows(self, rows: dict[str, npt.NDArray[Any]]) -> None:
        """Adds rows of any of this shard's buckets, or replaces those already here; `evict` may then be due.

        Takes what `export_bucket` gives, rows in any order; without `state` and `steps` the optimizer's state
        is that of new rows. Raises ValueError for missing or unknown arrays,
        wrong widths and keys of other buckets, before anything changes.
        """

    def begin_snapshot(self, full: bool = True) -> None:
        """Marks this moment, at which every pull must have had its push: `snapshot_buckets` then copies it,
        bucket by bucket, while other calls go on in between.

        Before the first change to a row of a bucket that wasn't copied yet, its old copy is kept aside
        (`snapshot_bytes`). A full snapshot begins to note whose rows go, so that the next may be incremental:
        `full=False`, and, if `can_be_incremental`, buckets since the full one's step. RuntimeError if a
        snapshot is under way.
        """

    def snapshot_buckets(
        self, first: int, end: int, since: int = 0
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
        """Buckets [first, end) as they were at the mark, each once: their rows, one bucket after the other,
        as `export_bucket` gives them, but also those past their time to live and not swept away yet; and
        `counts` uint64 [b] of rows with what each bucket decides by, for `restore_bucket`: `ages` and
        `counted` uint32 [b], `sightings` uint8 [b, C].

        since: only rows with a greater stamp (0: all). Other calls go on in between.
        """

    def rows_since(self, since: int) -> int:
        """How many rows have a stamp greater than `since` now."""

    def end_snapshot(self) -> None:
        """Frees what is kept for a snapshot, finished or not."""

    def removed_keys(self) -> _U64:
        """Keys whose rows went between the last full snapshot and the mark; some may have come back."""

    def restore_bucket(self, bucket: int, age: int, counted: int, sightings: npt.NDArray[np.uint8]) -> None:
        """Takes what `snapshot_buckets` gave, after the rows; ValueError for counts of another capacity."""

    def set_next_step(self, step: int) -> None:
        """The step after the last `evict`: look-ups don't see rows whose time to live is over by then."""

    @property
    def sightings_per_bucket(self) -> int: ...
    @property
    def snapshot_bytes(self) -> int: ...
    @property
    def can_be_incremental(self) -> bool: ...
    @property
    def dim(self) -> int: ...
    @property
    def first_bucket(self) -> int: ...
    @property
    def end_bucket(self) -> int: ...
    @property
    def state_width(self) -> int:
        """S: floats of optimizer state per row, without Adam's count of updates."""
    @property
    def row_bytes(self) -> int:
        """Bytes of a row's embedding and optimizer state (with Adam's count of updates)."""
    @property
    def num_rows(self) -> int: ...
    @property
    def created_rows(self) -> int:
        """Rows created by pulls so far; num_rows = created_rows + imported_rows - evicted_rows."""
    @property
    def imported_rows(self) -> int:
        """Rows added by imports so far."""
    @property
    def evicted_rows(self) -> int: ...
    @property
    def memory_bytes(self) -> int:
        """All memory that the table holds: rows, indexes, free space, working memory."""

# T tables, G groups, F features, P servers, N ids, U unique rows.

class Dedup:
    """What `Deduplicator.run` found. The arrays are fresh, on 64-byte boundaries."""

    @property
    def keys(self) -> _U64:
        """[U] ordered by (table, bucket, first use); features in list order, ids in array order."""
    @property
    def table_offsets(self) -> _U32:
        """[T+1] rows of table t are [o[t], o[t+1])."""
    @property
    def server_offsets(self) -> _U32:
        """[T, P+1] absolute rows: server p's part of table t is [so[t, p], so[t, p+1])."""
    @property
    def group_offsets(self) -> _U32:
        """[G+1] rows of each group."""
    @property
    def indices(self) -> npt.NDArray[np.uint16] | _U32:
        """[N] row of each id relative to its group's first; uint16 if every group has at most 65536 rows."""
    @property
    def feature_offsets(self) -> _U32:
        """[F+1] ids of feature f are [fo[f], fo[f+1])."""
    @property
    def row_offsets(self) -> _U32:
        """[U+1] row u is used at positions[ro[u]:ro[u+1]]."""
    @property
    def positions(self) -> _U32:
        """[N] ids that use each row, ascending within a row."""

class Deduplicator:
    """Unique keys of a batch's ids in the order of the servers that own them.

    `tables` [F] gives the table of each feature, `groups` [T] the group of each table (0, then equal or one
    more),
    `num_buckets` [T] powers of two, `bounds` [T][P+1] the servers' bucket bounds. Raises ValueError if they
    contradict each other.
    """

    def __init__(
        self,
        *,
        tables: Sequence[int],
        groups: Sequence[int],
        num_buckets: Sequence[int],
        bounds: Sequence[Sequence[int]],
    ) -> None: ...
    def run(self, values: Sequence[_U64]) -> Dedup:
        """Deduplicates one array of ids per feature (any may be empty). Fewer than 2^32 - 1 ids in all.

        The order of keys does not depend on the number of servers. Calls from several threads take turns.
        """

# (first id, end id, "sum" | "mean" | "sqrtn" | "sequence", bag offsets [B+1] or None for one id per sample)
_PoolFeature = tuple[int, int, str, _U32 | None]

def gather_pool_forward(
    rows: _Rows,
    indices: npt.NDArray[np.uint16] | _U32,
    *,
    features: Sequence[_PoolFeature],
    num_samples: int,
    dim: int,
) -> tuple[_F32, list[tuple[_F32, npt.NDArray[np.bool_]]]]:
    """One group's rows, in a wire format -> (pooled [B, P, D], per sequence feature (values [B, L, D], mask
    [B, L])).

    `indices` [N] are the whole batch's. Features come in the order of their ids; P and the list keep that
    order. An empty bag gives zeros; sequences are left-aligned, zeros behind, L the longest and at least 1.
    Bags that don't fit raise ValueError, an index outside the rows IndexError.
    """

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
) -> _Rows:
    """Gradients of the outputs (None: zeros) -> gradients of the group's rows in a wire format, zeros for an
    unused one.

    A row's sum goes over the ids that use it in ascending order, in fp32. Raises ValueError for shapes that
    don't fit, IndexError for an index outside the rows.
    """

# V vectors, P = V (V - 1) / 2 pairs, C copied vectors, W = C D + P. Vector 0 of a sample is in `first`
# [B, D], the others in `rest` [B, V-1, D]; or, with `first` None, all in `rest` [B, V, D].

def interaction_forward(first: _F32 | None, rest: _F32, *, num_copied: int, out: _F32) -> None:
    """Writes to `out` [B, W] the first C vectors, then the products of (1, 0), (2, 0), (2, 1), (3, 0), ..."""

def interaction_backward(
    first: _F32 | None,
    rest: _F32,
    *,
    num_copied: int,
    gradient: _F32,
    first_gradient: _F32 | None,
    rest_gradient: _F32,
) -> None:
    """Writes the vectors' gradients, shaped like the vectors, from that of the forward's `out` [B, W]."""

_Bytes = npt.NDArray[np.uint8]

class Outgoing:
    """A record that a ring is to carry. Holds its arrays: they must not change until it is written."""

    def __init__(
        self,
        kind: int,
        step: int,
        trainer: int,
        tag: int,
        arrays: Sequence[npt.NDArray[Any] | list[npt.NDArray[Any]]],
    ) -> None:
        """Arrays and fields as in `RingSender.post`, which raises the same UserErrors."""
    @property
    def unwritten_bytes(self) -> int:
        """Body bytes that are not in the ring yet."""

class RingProducer:
    """Where the next entry of a ring goes, and what its consumer was told. One thread uses it."""

    def __init__(self, data: _Bytes, tail: _U64, words: _U64 | None, bell: _U64 | None) -> None:
        """Data [ring bytes]: the consumer's, or a mirror of it; tail [1]: own memory, the consumer writes it.

        words [ring bytes / 64] and bell [1]: the consumer's. None: out of reach, the caller announces what
        `take_held` says.
        """
    def write(self, record: Outgoing) -> bool:
        """Writes what has room (without `words`: one entry); True once the record is complete."""
    def reserve(
        self,
        kind: int,
        step: int,
        trainer: int,
        tag: int,
        specs: Sequence[tuple[npt.DTypeLike, Sequence[int]]],
    ) -> list[npt.NDArray[Any]] | None:
        """See `RingSender.try_reserve`."""
    def commit(self) -> None: ...
    def cancel(self) -> None: ...
    def take_held(self) -> tuple[int, int, list[tuple[int, int]]]:
        """(first, last) entry not announced yet, and their bytes in the ring; announced from now on."""
    def close(self) -> None:
        """Lets go of all memory; nothing may be written any more."""
    @property
    def data(self) -> _Bytes: ...
    @property
    def reserved(self) -> bool: ...
    @property
    def held_entries(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def max_entry(self) -> int:
        """Bytes of the largest entry, with its header."""
    @property
    def head(self) -> int:
        """Bytes written in all, with padding."""
    @property
    def records(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class RingConsumer:
    """What of a ring was read and released. One thread uses it."""

    def __init__(self, data: _Bytes, words: _U64, tail: _U64 | None, bell: _U64 | None) -> None:
        """Data [ring bytes], words [ring bytes / 64]: own memory, the producer writes it.

        tail [1] and bell [1]: the producer's. None: out of reach, the caller sends `released`.
        """
    def poll(self) -> tuple[int, int, int, int, list[npt.NDArray[Any]], Any] | None:
        """The next whole record: kind, step, trainer, tag, arrays and the token for `release`.

        None: nothing came, or part of a record, or CLOSE. RuntimeError: what the producer can't have sent.
        """
    def release(self, token: Any) -> None:
        """A record's memory may be used again; in any order, each token once."""
    def close(self) -> None:
        """Lets go of all memory."""
    @property
    def data(self) -> _Bytes: ...
    @property
    def words(self) -> _U64: ...
    @property
    def closed(self) -> bool:
        """CLOSE was received, or `close` called."""
    @property
    def unread(self) -> bool:
        """A record other than CLOSE waits, or was received in part."""
    @property
    def released(self) -> int:
        """Bytes from the start of time that were released."""
    @property
    def records(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class Watch:
    """Waits until there are news for one loop: entries, or room for a record that found none, or `wake`."""

    def __init__(
        self, producers: Sequence[RingProducer], consumers: Sequence[RingConsumer], bells: Sequence[_U64]
    ) -> None:
        """Bells [1] each: words in this rank's memory by which its peers can end its sleep."""
    def wait(self, spin_seconds: float, sleep_seconds: float) -> bool:
        """Spins, then sleeps once; whether there are news. May return early; the GIL is released."""
    def wake(self) -> None:
        """From another thread: ends the wait that is going on or the next one."""

def gather(source: npt.NDArray[Any], rows: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
    """Does out[i] = source[rows[i]] for source [M, ...], rows [N] and out [N, ...] of one dtype.

    ValueError for arrays that don't fit, IndexError for a row outside of [0, M) (what came before it is
    written).
    """

# The code of the CUDA kernels (_cuda.pyi), on the host.

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
    long_rows: int,
    flags: int,
    most_threads: int,
    stream: int,
) -> None: ...
