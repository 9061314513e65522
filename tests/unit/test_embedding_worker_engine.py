"""A worker's records to its servers and the rows from them, against slices that NumPy cuts and joins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import Outgoing, RingConsumer, RingProducer
from persia_hpc.config import load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker, KeyBatch
from persia_hpc.errors import PersiaError, UserError
from persia_hpc.protocol.messages import Kind, Lookup, LookupRows, Pull, Push, Rows, send, send_each
from persia_hpc.protocol.wire import WIRES
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout
from persia_hpc.transport.records import aligned_empty
from persia_hpc.transport.ring import RingReceiver, RingReceivers, RingSender, RingSenders

FEATURES = ("a", "b", "c", "d", "e")
DIMS = {"a": 8, "b": 4, "c": 8, "d": 4, "e": 3}
SCHEMA = DatasetSchema(tuple(FeatureSchema(name, False) for name in FEATURES), ())
LAYOUT = make_layout(
    load_config(
        {
            "mode": "sync",
            "data": {"train": ["none"], "batch_size": 1},
            "model": {"class": "tower"},
            "features": {name: {"table": name} for name in FEATURES},
            "tables": {
                name: {"dim": dim, "optimizer": "sgd", "capacity": 1 << 20} for name, dim in DIMS.items()
            },
        }
    ),
    SCHEMA,
)


class Wires:
    """Rings to several servers over plain memory: what lies in each is what was sent."""

    def __init__(self, count: int, ring_bytes: int) -> None:
        self.dirty: set[RingSender] = set()
        self.memory = [aligned_empty(ring_bytes) for _ in range(count)]
        self.senders, self.receivers = [], []
        for i, data in enumerate(self.memory):
            data[:] = 0xAB
            words = np.zeros(ring_bytes // 64, np.uint64)
            tail, bell, other = (np.zeros(1, np.uint64) for _ in range(3))
            producer = RingProducer(data, tail=tail, words=words, bell=bell)
            consumer = RingConsumer(data, words, tail=tail, bell=other)
            self.senders.append(RingSender(f"to {i}", producer, None, self.dirty))
            self.receivers.append(RingReceiver(f"to {i}", consumer, None))
        self.all = RingSenders(self.senders)
        self.answers = RingReceivers(self.receivers)


SAMPLES = st.integers(0, 40).flatmap(
    lambda n: st.tuples(
        *(st.lists(st.integers(0, 25) | st.integers(0, 2**64 - 1), min_size=n, max_size=n) for _ in FEATURES)
    )
)


def worker_and_batch(
    ids: Sequence[Sequence[int]], servers: int, reuse: int, step: int = 1
) -> tuple[EmbeddingWorker, KeyBatch]:
    """A batch in which, with `reuse`, some rows needn't travel: those of the even ids of the step before."""
    worker = EmbeddingWorker(LAYOUT, num_servers=servers, reuse_steps=reuse)
    batch = None
    for number in (step, step + 1):
        chosen = [[i for i in column if number > step or i % 2 == 0] for column in ids]
        length = min(map(len, chosen))
        columns = {
            n: IdColumn(np.array(v[:length], np.uint64)) for n, v in zip(FEATURES, chosen, strict=True)
        }
        sample = SampleBatch(columns, np.empty((length, 0), np.float32), np.zeros((length, 1), np.float32))
        batch = worker.prepare(sample, step=number, trainer=3, num_global=length)
        worker.reuse(batch)
        if number == step:
            worker.assemble(batch)  # the next batch's staleness follows from this one's
    assert batch is not None
    return worker, batch


def cuts(batch: KeyBatch, server: int) -> list[tuple[int, int]]:
    """The server's rows of each table."""
    return [(int(row[server]), int(row[server + 1])) for row in batch.dedup.server_offsets]


def joined(array: np.ndarray, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.concatenate([array[:0], *(array[begin:end] for begin, end in ranges)])


def group_cuts(batch: KeyBatch, server: int, group: int) -> list[tuple[int, int]]:
    start = int(batch.dedup.group_offsets[group])
    each = cuts(batch, server)
    return [(each[t][0] - start, each[t][1] - start) for t in LAYOUT.tables_of_dim_group(group)]


def written_apart(
    arrays: Sequence[np.ndarray], header: tuple[int, int, int, int], ring_bytes: int
) -> np.ndarray:
    """The ring after one record of these arrays, sent alone."""
    data = aligned_empty(ring_bytes)
    data[:] = 0xAB
    words = np.zeros(ring_bytes // 64, np.uint64)
    producer = RingProducer(data, np.zeros(1, np.uint64), words, np.zeros(1, np.uint64))
    producer.write(Outgoing(*header, list(arrays)))
    return data


def expected_arrays(batch: KeyBatch, server: int) -> list[np.ndarray]:
    ranges = cuts(batch, server)
    arrays = [joined(batch.dedup.keys, ranges), np.array([e - b for b, e in ranges], np.uint32)]
    if batch.held is not None:
        arrays.append(joined(batch.held.wanted, ranges))
    return arrays


def gradients_of(batch: KeyBatch, wire: str) -> list[np.ndarray]:
    """Rows that all differ."""
    found, offsets = [], batch.dedup.group_offsets
    for g, dim in enumerate(LAYOUT.dim_groups):
        rows, columns = WIRES[wire].shape(int(offsets[g + 1]) - int(offsets[g]), dim)
        numbers = np.arange(rows * columns).reshape(rows, columns) % 2039 + 31 * g
        found.append(numbers.astype(WIRES[wire].dtype))
    return found


CASE = {"ids": SAMPLES, "servers": st.integers(1, 9), "reuse": st.sampled_from([0, 2])}


@settings(max_examples=60, deadline=None)
@given(**CASE, small=st.booleans(), wire=st.sampled_from(sorted(WIRES)))
def test_records_are_byte_for_byte_those_of_joined_slices(
    ids: Any, servers: int, reuse: int, small: bool, wire: str
) -> None:
    worker, batch = worker_and_batch(ids, servers, reuse)
    ring_bytes = 1024 if small else 1 << 16  # in the small one records come in pieces
    gradients = gradients_of(batch, wire)
    for message, header, arrays in (
        (Pull(5, 3, *worker.request(batch)), (1, 5, 3, 0), lambda p: expected_arrays(batch, p)),
        (
            Lookup(5, 3, 7, *worker.request(batch)[:2]),
            (4, 5, 3, 7),
            lambda p: expected_arrays(batch, p)[:2],
        ),
        (
            Push(5, 3, worker.split_gradients(batch, gradients)),
            (3, 5, 3, 0),
            lambda p: [joined(each, group_cuts(batch, p, g)) for g, each in enumerate(gradients)],
        ),
    ):
        wires = Wires(servers, ring_bytes)
        send_each(wires.all, message)
        for p in range(servers):
            assert wires.memory[p].tobytes() == written_apart(arrays(p), header, ring_bytes).tobytes()
        got: dict[int, Any] = {}
        while len(got) < servers:
            for p, record in wires.answers.poll():
                assert p not in got
                got[p] = record
            assert len(got) == servers or any(sender.progress() for sender in tuple(wires.dirty))
        assert not wires.dirty
        for p, record in got.items():
            assert (record.kind, record.step, record.trainer, record.tag) == header
            assert [a.dtype for a in record.arrays] == [a.dtype for a in arrays(p)]
            for array, expected in zip(record.arrays, arrays(p), strict=True):
                np.testing.assert_array_equal(array, expected)


@settings(max_examples=60, deadline=None)
@given(**CASE, wire=st.sampled_from(sorted(WIRES)), data=st.data())
def test_answers_fill_the_batch_in_any_order(
    ids: Any, servers: int, reuse: int, wire: str, data: st.DataObject
) -> None:
    worker, batch = worker_and_batch(ids, servers, reuse)
    travelling = np.ones(len(batch.dedup.keys), bool) if batch.held is None else batch.held.wanted == 1
    offsets = batch.dedup.group_offsets
    whole = gradients_of(batch, wire)
    there = [travelling[int(a) : int(b)] for a, b in pairwise(offsets)]
    order = data.draw(st.permutations(range(servers)))
    for number, p in enumerate(order):
        rows = [
            joined(each, group_cuts(batch, p, g))[joined(there[g], group_cuts(batch, p, g))]
            for g, each in enumerate(whole)
        ]
        assert worker.add_rows(batch, p, rows) == (number == servers - 1)
    for got, each, mask in zip(batch.rows, whole, there, strict=True):
        assert got.dtype == each.dtype
        np.testing.assert_array_equal(got, each[mask])
    if batch.held is None:  # else it needs the staleness of the steps before
        assert worker.assemble(batch).rows is batch.rows


@settings(max_examples=60, deadline=None)
@given(**CASE, wire=st.sampled_from(sorted(WIRES)), data=st.data())
def test_answers_that_lie_in_rings_fill_the_batch_at_once(
    ids: Any, servers: int, reuse: int, wire: str, data: st.DataObject
) -> None:
    _, batch = worker_and_batch(ids, servers, reuse)
    travelling = np.ones(len(batch.dedup.keys), bool) if batch.held is None else batch.held.wanted == 1
    whole = gradients_of(batch, wire)
    there = [travelling[int(a) : int(b)] for a, b in pairwise(batch.dedup.group_offsets)]
    batch.rows = [np.full_like(each[mask], 7) for each, mask in zip(whole, there, strict=True)]
    wires = Wires(servers, 1 << 12)
    # What is first in each ring: the answer, another record before it, an answer in chunks, or nothing yet.
    kinds = data.draw(
        st.lists(st.sampled_from(["answer", "other", "long", "none"]), min_size=servers, max_size=servers)
    )
    done = []
    for p, kind in enumerate(kinds):
        rows = [
            joined(each, group_cuts(batch, p, g))[joined(there[g], group_cuts(batch, p, g))]
            for g, each in enumerate(whole)
        ]
        sender = wires.senders[p]
        if kind == "other":
            send(sender, Rows(batch.step - 1, 3, 50, rows))
        if kind == "long":
            sender.post(Kind.ROWS, step=batch.step, trainer=3, tag=50, arrays=[np.zeros(3000, np.uint8)])
        if kind != "none":
            send(sender, Rows(batch.step, 3, 10 + p, rows))
        elif p % 2:
            send(sender, LookupRows(batch.step, 3, 1, rows))
        whole_bytes = Outgoing(Kind.ROWS, 1, 0, 0, rows).unwritten_bytes + 64
        if kind == "answer" and whole_bytes <= sender.ring.max_entry:  # else it comes in chunks
            done.append(p)
    fields = {"step": batch.step, "trainer": 3, "tag": data.draw(st.sampled_from([None, 10]))}
    wanted = [p for p in done if fields["tag"] is None or p == 0]
    places, tag = wires.answers.fill(
        Kind.ROWS, **fields, shares=batch.dedup.shares, rows=batch.rows, before=batch.before
    )
    assert (places, tag) == (wanted, max((10 + p for p in wanted), default=0))
    for g, (got, each) in enumerate(zip(batch.rows, whole, strict=True)):
        expected = np.full_like(each, 7)
        for p in wanted:
            for begin, end in group_cuts(batch, p, g):
                expected[begin:end] = each[begin:end]
        np.testing.assert_array_equal(got, expected[there[g]])
    left = {p: [] for p in range(servers)}
    for _ in range(40):
        for p, record in wires.answers.poll():
            left[p].append((record.kind, record.step, record.tag))
            record.release()
        for sender in tuple(wires.dirty):
            sender.progress()
    answer = {p: (Kind.ROWS, batch.step, 10 + p) for p in range(servers)}
    for p, kind in enumerate(kinds):
        assert (
            left[p]
            == {
                "answer": [] if p in wanted else [answer[p]],
                "other": [(Kind.ROWS, batch.step - 1, 50), answer[p]],
                "long": [(Kind.ROWS, batch.step, 50), answer[p]],
                "none": [(Kind.LOOKUP_ROWS, batch.step, 1)] if p % 2 else [],
            }[kind]
        )


def test_answers_of_other_sizes_are_refused() -> None:
    _, batch = worker_and_batch([[1, 2, 3]] * 5, 1, 0)
    rows = gradients_of(batch, "fp32")
    batch.rows = [np.empty_like(each) for each in rows]
    for wrong in (rows[:2], [each[1:] for each in rows], [each.astype(np.float16) for each in rows]):
        wires = Wires(1, 1 << 14)
        send(wires.senders[0], Rows(2, 3, 0, wrong))
        with pytest.raises(PersiaError, match=r"ring to 0 or one like it: server 0.*expected .* got"):
            wires.answers.fill(
                Kind.ROWS,
                step=2,
                trainer=3,
                tag=None,
                shares=batch.dedup.shares,
                rows=batch.rows,
                before=None,
            )


def test_a_ring_without_room_or_with_a_queue_gets_its_record_later() -> None:
    worker, batch = worker_and_batch([list(range(40))] * 5, 3, 0)
    wires = Wires(3, 2048)
    full = [np.zeros(600, np.uint8)]
    wires.senders[1].post(9, arrays=full)
    wires.senders[1].post(9, arrays=full)  # no room for it: queued
    wires.senders[1].post(9, arrays=full)
    assert wires.dirty == {wires.senders[1]}
    for step in (5, 6):
        send_each(wires.all, Pull(step, 3, *worker.request(batch)))
    steps: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for _ in range(60):
        for p, record in wires.answers.poll():
            if record.kind == 1:
                steps[p].append(record.step)
                np.testing.assert_array_equal(record.arrays[0], expected_arrays(batch, p)[0])
            record.release()
        for sender in tuple(wires.dirty):
            sender.progress()
    assert steps == {0: [5, 6], 1: [5, 6], 2: [5, 6]}


def test_mistakes_are_refused() -> None:
    worker, batch = worker_and_batch([[1, 2, 3]] * 5, 2, 2)
    shares, rows = batch.dedup.shares, gradients_of(batch, "fp32")
    with pytest.raises(UserError, match="ring to 0 and others: got an array for 2 servers and 3 rings"):
        send_each(Wires(3, 4096).all, Pull(1, 0, *worker.request(batch)))
    closed = Wires(2, 4096)
    closed.senders[1].close()
    with pytest.raises(UserError, match="ring to 1: posting after close"):
        send_each(closed.all, Pull(1, 0, *worker.request(batch)))
    with pytest.raises(ValueError, match=r"expected an array of 15 rows, got uint64 \[14\]"):
        shares.rows(batch.dedup.keys[1:])
    with pytest.raises(ValueError, match="expected an array for each of 3 groups, got 2"):
        shares.group_rows(rows[:2])
    with pytest.raises(ValueError, match="C-contiguous"):
        shares.group_rows([each[:, ::2] for each in rows])
    with pytest.raises(ValueError, match="less than 2"):
        shares.counts.part(2)
    with pytest.raises(ValueError, match=r"server 0, group 0: expected \d rows for"):
        shares.fill(0, rows, rows, None)
    many = worker_and_batch([list(range(20))] * 5, 2, 0)[1]
    rows, before = gradients_of(many, "fp32"), np.arange(101, dtype=np.uint32)
    before[many.dedup.server_offsets[0, 1]] = 90
    with pytest.raises(ValueError, match="numbers that don't fall"):
        many.dedup.shares.fill(0, rows, [np.empty_like(each) for each in rows], before)


def test_more_ids_of_a_table_than_can_be_deduplicated_are_one_error() -> None:
    """Of arrays without memory: none of it is read."""
    worker = EmbeddingWorker(LAYOUT)
    one = np.zeros(1, np.uint64)
    values = [np.broadcast_to(one, (count,)) for count in (1 << 30, 5, (1 << 30) + 1, 0, 0)]
    with pytest.raises(UserError, match=r"step 7: a batch has 1,073,741,825 ids of table 'c'.*lower") as said:
        worker._check_ids(values, 7)
    assert "\n" not in str(said.value)
    worker._check_ids([np.broadcast_to(one, (1 << 30,))] * 5, 7)


def test_a_late_batch_says_what_is_late_of_which_servers() -> None:
    batch = worker_and_batch([[1, 2, 3]] * 5, 3, 0)[1]
    batch.missing, batch.unpatched = {2, 0}, {0, 1, 2}
    assert batch.owed("step 4") == "rows of step 4 from parameter server 0, 2"
    batch.missing = set()
    batch.unpatched = {1}  # in `fresh`: the rows are there, not what has changed in them
    assert batch.owed("step 4") == "the patch of step 4 from parameter server 1"
    batch.unpatched = set()
    assert batch.owed("step 4") == ""
