"""What the native module says to arguments that are no arrays: ValueError, with the argument's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from persia_hpc import _native

from .table_support import arguments, make_table

U8, U32, U64 = np.zeros(64, np.uint8), np.zeros(1, np.uint32), np.zeros(1, np.uint64)
F32, I64 = np.zeros((1, 3), np.float32), np.zeros(1, np.int64)
DEDUP = {"tables": [0], "groups": [0], "num_buckets": [1], "bounds": [[0, 1]]}
POOL = {"features": [(0, 1, "sum", None)], "num_samples": 1, "dim": 3}
WORDS = np.zeros(64, np.uint64)
RING = np.zeros(4096, np.uint8)
TEAM, ONE = _native.ThreadTeam(1), np.zeros((1, 1), np.float32)
SILU = {"vqk": np.zeros((1, 3, 1, 1), np.float32), "offsets": np.array([0, 1])}
SILU |= {"positions": ONE[0], "times": ONE[0], "edges": np.zeros(0), "until": np.zeros(1)}
SILU |= {"since": np.zeros(1)}


def table_set() -> _native.TableSet:
    return _native.TableSet([make_table(**arguments())], [0], [3])


def push_pulled(gradients: np.ndarray) -> None:
    tables, pull = table_set(), _native.PendingPull(1, 0, U64, U32 + 1)
    tables.pull(pull, [np.zeros_like(F32)])
    tables.push([(pull, [gradients])], 1)


# A call, and the arrays by name that it takes; each in turn is replaced by what is no array.
CALLS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (_native.mix, {"ids": U64}),
    (_native.unmix, {"keys": U64}),
    (lambda ids: _native.hash_ids(ids, rounds=2, size=5), {"ids": U64}),
    (lambda rows: _native.encode_rows(rows, "fp16"), {"rows": F32}),
    (lambda rows: _native.decode_rows(rows, 3), {"rows": F32}),
    (make_table(**arguments()).lookup, {"keys": U64, "out": F32}),
    (
        lambda keys, out, slots, wanted: make_table(**arguments()).pull(keys, 1, out, slots, wanted),
        {"keys": U64, "out": F32, "slots": U32.copy(), "wanted": U8[:1] + 1},
    ),
    (
        lambda keys, slots, grads: make_table(**arguments()).push(keys, slots, grads, 1, 0),
        {"keys": U64, "slots": U32 + (2**32 - 1), "grads": F32},
    ),
    (
        lambda keys, rows, stamps: make_table(**arguments()).import_rows(
            {"keys": keys, "rows": rows, "stamps": stamps}
        ),
        {"keys": U64, "rows": F32, "stamps": U32},
    ),
    (
        lambda keys, counts, out, wanted: table_set().pull(
            _native.PendingPull(1, 0, keys, counts, 0, wanted), [out]
        ),
        {"keys": U64, "counts": U32 + 1, "out": F32, "wanted": U8[:1] + 1},
    ),
    (
        lambda keys, counts, out: table_set().lookup(keys, counts, [out]),
        {"keys": U64, "counts": U32 + 1, "out": F32},
    ),
    (lambda gradients: push_pulled(gradients), {"gradients": F32}),
    (lambda rates: table_set().set_lr(rates), {"rates": np.zeros(1)}),
    (
        lambda sightings: make_table(**arguments()).restore_bucket(0, 0, 0, sightings),
        {"sightings": U8[:0]},
    ),
    (
        lambda keys, table_offsets: _native.RecentRows(groups=[0], reuse_steps=1).find(
            keys, table_offsets, step=1
        ),
        {"keys": U64, "table_offsets": np.array([0, 1], np.uint32)},
    ),
    (lambda **values: _native.Deduplicator(**DEDUP).run([values["values"]]), {"values": U64}),
    (lambda ids, counts: _native.IdCounter().add(ids, counts), {"ids": U64, "counts": U64 + 1}),
    (lambda ids: _native.IdCounter().replace_unknown(ids, other=0), {"ids": U64}),
    (
        lambda rows, indices: _native.gather_pool_forward(rows, indices, **POOL),
        {"rows": F32, "indices": U32},
    ),
    (
        lambda pooled_gradient, indices: _native.gather_pool_backward(
            pooled_gradient, [], indices, num_rows=1, **POOL
        ),
        {"pooled_gradient": F32[None], "indices": U32},
    ),
    (
        lambda dense, vectors, weight, bias: _native.dlrm_forward(
            dense, vectors, num_copied=1, bottom=[(weight, bias)], top=[(ONE, bias)], team=TEAM
        ),
        {"dense": F32, "vectors": ONE[:, None][:, :0], "weight": F32, "bias": ONE[0]},
    ),
    (
        lambda vectors, weight, kept, gradient: _native.dlrm_backward(
            None,
            vectors,
            num_copied=1,
            bottom=[],
            top=[(weight, ONE[0])],
            kept=kept,
            gradient=gradient,
            wants_dense=False,
            wants_vectors=True,
            team=TEAM,
        ),
        {"vectors": F32[None], "weight": F32, "kept": F32[0, :0], "gradient": ONE},
    ),
    (
        lambda vqk, offsets, **bias: _native.silu_attention_forward(
            vqk, offsets, list(bias.values()), scale=1.0, divisor=1.0, team=TEAM
        ),
        SILU,
    ),
    (
        lambda vqk, offsets, gradient: _native.silu_attention_backward(
            vqk, offsets, [None] * 5, gradient, scale=1.0, divisor=1.0, team=TEAM
        ),
        {"vqk": SILU["vqk"], "offsets": SILU["offsets"], "gradient": ONE[None]},
    ),
    (_native.gather, {"source": F32, "rows": I64, "out": F32.copy()}),
    (
        _native.MemoryLimits(num_rows=1, row_bytes=4, state_bytes=4).gather,
        {"places": U64, "out": np.zeros((1, 4), np.uint8)},
    ),
    (_native.RingProducer, {"data": RING, "tail": U64, "words": WORDS, "bell": U64.copy()}),
    (_native.RingConsumer, {"data": RING, "words": WORDS, "tail": U64, "bell": U64.copy()}),
    (lambda bells: _native.Watch([], [], [bells]), {"bells": U64}),
]


@pytest.mark.parametrize(("call", "arrays"), CALLS)
def test_what_is_no_array_is_a_value_error_that_names_the_argument(
    call: Callable[..., Any], arrays: dict[str, Any]
) -> None:
    call(**arrays)
    for name, array in arrays.items():
        for bad in (array.tolist(), "text", array.astype(np.complex64)):
            with pytest.raises(ValueError, match=f"{name.removesuffix('s')}|rows"):
                call(**{**arrays, name: bad})
