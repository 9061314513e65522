"""The two ends of a ring over plain memory: any interleaving of their calls keeps every record, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from persia_hpc._native import RingConsumer, RingProducer, Watch
from persia_hpc.errors import PersiaError, UserError
from persia_hpc.transport.records import Record, aligned_empty
from persia_hpc.transport.ring import REMOTE_IDLE_POLLS, RingReceiver, RingSender

RING_BYTES = 4096
DTYPES = ["bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]


class FakeLink:
    """What links do between nodes: copy from the producer's memory, then store the words.

    It is ready each other time that it's asked.
    """

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.asked = 0

    @property
    def ready(self) -> bool:
        self.asked += 1
        return self.asked % 2 == 0

    def publish(self, first: int, last: int, ranges: Sequence[tuple[int, int]]) -> None:
        for begin, end in ranges:
            self.ring.data[begin:end] = self.ring.mirror[begin:end]
        for number in range(first, last + 1):
            self.ring.words[number % len(self.ring.words)] = number


class FakeTailLink:
    rate = 1e6

    def __init__(self, ring: Ring) -> None:
        self.ring = ring

    def publish(self, tail: int) -> None:
        self.ring.tail[0] = tail


class Ring:
    """Both ends in one thread: by plain stores, or as between nodes."""

    def __init__(self, *, remote: bool = False) -> None:
        self.data = aligned_empty(RING_BYTES)
        self.data[:] = 0xAB
        self.mirror = aligned_empty(RING_BYTES)
        self.words = np.zeros(RING_BYTES // 64, np.uint64)
        self.tail, self.bell, self.producer_bell = (np.zeros(1, np.uint64) for _ in range(3))
        self.connect(remote=remote)

    def connect(self, *, remote: bool = False) -> None:
        self.dirty: set[RingSender] = set()
        if remote:
            producer = RingProducer(self.mirror, self.tail, None, None)
            consumer = RingConsumer(self.data, self.words, None, None)
            self.sender = RingSender("test", producer, FakeLink(self), self.dirty)
            self.receiver = RingReceiver("test", consumer, FakeTailLink(self))
        else:
            producer = RingProducer(self.data, self.tail, self.words, self.bell)
            consumer = RingConsumer(self.data, self.words, self.tail, self.producer_bell)
            self.sender = RingSender("test", producer, None, self.dirty)
            self.receiver = RingReceiver("test", consumer, None)


def payload(index: int, size: int) -> np.ndarray:
    return ((np.arange(size) + 31 * index) % 251).astype(np.uint8)


SIZES = st.one_of(st.integers(0, 100), st.integers(1350, 1500), st.integers(0, 3 * RING_BYTES))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("post"), SIZES),
        st.tuples(st.just("reserve"), st.integers(0, 1700)),
        st.tuples(st.sampled_from(["progress", "poll", "poll", "release"]), st.integers(0, 5)),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS, st.booleans())
def test_every_interleaving_keeps_all_records_in_order(
    operations: list[tuple[str, int]], remote: bool
) -> None:
    ring = Ring(remote=remote)
    sent: list[int] = []
    num_got = 0
    held: list[tuple[int, Record]] = []

    def poll() -> bool:
        nonlocal num_got
        record = ring.receiver.poll()
        if record is not None:
            assert record.step == num_got
            held.append((num_got, record))
            num_got += 1
        return record is not None

    def release(which: int) -> None:
        index, record = held.pop(which % len(held))
        assert np.array_equal(record.arrays[0], payload(index, sent[index]))
        record.release()

    for name, number in operations:
        if name == "post":
            ring.sender.post(1, step=len(sent), arrays=[payload(len(sent), number)])
            sent.append(number)
        elif name == "reserve":
            views = ring.sender.try_reserve(1, len(sent), 0, 0, [(np.uint8, (number,))])
            if views is not None:
                views[0][:] = payload(len(sent), number)
                ring.sender.commit()
                sent.append(number)
        elif name == "progress":
            ring.sender.progress()
        elif name == "poll":
            poll()
        elif held:
            release(number)
    assert ring.sender.pending == 0 or ring.sender in ring.dirty, "nobody would move it on"
    passes = 0
    while num_got < len(sent) or held:
        ring.sender.progress()
        poll()
        if held:
            release(0)
        passes += 1
        assert passes < 1000, "stuck"
    assert ring.sender.pending == 0
    for _ in range(REMOTE_IDLE_POLLS):
        assert ring.receiver.poll() is None
    assert ring.sender.counters.records == ring.receiver.counters.records == len(sent)
    assert ring.sender.counters.bytes == ring.receiver.counters.bytes
    assert ring.tail[0] == ring.sender.ring.head, "an idle receiver gives back all the room"


def test_words_of_earlier_laps_are_never_taken_for_new_ones() -> None:
    ring = Ring()
    for step in range(5 * RING_BYTES // 64):
        # The payload imitates each sequence number that could be expected: in the data it must not matter.
        ring.sender.post(1, step=step, arrays=[np.arange(step, step + 40, dtype=np.uint64)])
        record = ring.receiver.poll()
        assert record is not None
        assert record.step == step
        record.release()
        assert ring.receiver.poll() is None


def test_full_ring_queues_in_order_and_counts() -> None:
    ring = Ring()
    for step in range(10):  # header, directory and 832 bytes: 960 each
        ring.sender.post(1, step=step, arrays=[payload(step, 800)])
    assert ring.sender.pending == ring.sender.counters.full_waits == 6
    assert ring.sender.pending_bytes == 6 * (960 - 64)
    assert ring.sender.try_reserve(1, 99, 0, 0, []) is None, "a reservation must not overtake the queue"
    ring.sender.close()
    with pytest.raises(UserError, match="test: posting after close"):
        ring.sender.post(1)
    steps = []
    while not ring.receiver.closed:
        ring.sender.progress()
        record = ring.receiver.poll()
        if record is not None:
            steps.append(record.step)
            record.release()
    assert steps == list(range(10))
    assert ring.receiver.poll() is None


def test_room_comes_back_in_order_but_release_may_come_in_any() -> None:
    ring = Ring()
    for step in range(5):
        ring.sender.post(1, step=step, arrays=[payload(step, 800)])
    records = [ring.receiver.poll() for _ in range(4)]
    for number in (3, 1, 2):
        records[number].release()  # type: ignore[union-attr]
        ring.receiver.poll()
        assert not ring.sender.progress()
    records[0].release()  # type: ignore[union-attr]
    ring.receiver.poll()
    assert ring.sender.progress()
    record = ring.receiver.poll()
    assert record is not None
    assert record.step == 4


@pytest.mark.parametrize("remote", [False, True])
def test_what_is_tried_goes_whole_and_at_once_or_not_at_all(remote: bool) -> None:
    ring = Ring(remote=remote)
    fits, too_large = np.arange(1400, dtype=np.uint8), np.zeros(1600, np.uint8)
    assert not ring.sender.try_post(1, arrays=[too_large])
    assert ring.sender.counters.bytes == 0
    sent = 0
    while ring.sender.try_post(1, step=sent, arrays=[fits]):
        sent += 1
    assert sent == 2
    ring.sender.post(2)
    ring.sender.post(1, arrays=[too_large])  # queued: what is tried may not overtake it
    assert not ring.sender.try_post(3)
    ring.sender.progress()
    for step in range(sent):
        record = ring.receiver.poll()
        assert record is not None
        assert (record.kind, record.step) == (1, step)
        assert record.arrays[0].tolist() == fits.tolist()
        record.release()
    ring.sender.progress()
    record = ring.receiver.poll()
    assert record is not None
    assert record.kind == 2
    ring.sender.close()
    with pytest.raises(UserError, match="posting after close"):
        ring.sender.try_post(1)


def test_reservation_rules() -> None:
    ring = Ring()
    with pytest.raises(UserError, match="without a reservation"):
        ring.sender.commit()
    assert ring.sender.try_reserve(1, 0, 0, 0, [("f4", (400,))]) is None, "would travel in chunks"
    views = ring.sender.try_reserve(7, 1, 2, 3, [("f4", (5, 2)), ("u8", (0,))])
    assert views is not None
    views[0][:] = 1.5
    with pytest.raises(UserError, match="reservation is open"):
        ring.sender.post(1)
    assert ring.receiver.poll() is None, "nothing may show before commit()"
    ring.sender.commit()
    record = ring.receiver.poll()
    assert record is not None
    assert (record.kind, record.step, record.trainer, record.tag) == (7, 1, 2, 3)
    assert record.arrays[0].tolist() == [[1.5, 1.5]] * 5
    assert record.arrays[1].shape == (0,)
    assert ring.sender.try_reserve(1, 0, 0, 0, []) is not None
    ring.sender.cancel()
    ring.sender.post(1, step=5)
    record = ring.receiver.poll()
    assert record is not None
    assert record.step == 5


CHUNK_BEGIN, CHUNK_BYTES = 48, 56  # positions in a header


@pytest.mark.parametrize(
    ("position", "words"),
    [(1536 + CHUNK_BEGIN, "a chunk was lost"), (CHUNK_BYTES + 1, "expected it within a ring of 4096")],
)
def test_lost_chunk_and_wrong_length_are_named(position: int, words: str) -> None:
    ring = Ring()
    ring.sender.post(1, arrays=[payload(0, 2500)])
    ring.data[position] ^= 0x40
    with pytest.raises(PersiaError, match=f"ring test: entry . .*{words}"):
        ring.receiver.poll()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), npst.array_shapes(min_dims=1, max_dims=2, min_side=0)), max_size=9
    ),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
)
def test_arrays_of_any_dtype_and_shape_come_back(
    specs: list[tuple[str, tuple[int, ...]]], remote: bool, reserve: bool, num_parts: int
) -> None:
    ring = Ring(remote=remote)
    arrays = [
        np.frombuffer(
            np.random.default_rng(i).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype
        ).reshape(shape)
        for i, (dtype, shape) in enumerate(specs)
    ]
    views = ring.sender.try_reserve(3, 2**64 - 1, 2**32 - 1, 2**64 - 2, specs) if reserve else None
    if views is not None:
        for view, array in zip(views, arrays, strict=True):
            view[...] = array
        ring.sender.commit()
    else:
        parts = [np.array_split(array, num_parts) if num_parts > 1 else array for array in arrays]
        ring.sender.post(3, step=2**64 - 1, trainer=2**32 - 1, tag=2**64 - 2, arrays=parts)
    record = None
    for _ in range(100):
        ring.sender.progress()
        record = record or ring.receiver.poll()
    assert record is not None
    assert (record.kind, record.step, record.trainer, record.tag) == (3, 2**64 - 1, 2**32 - 1, 2**64 - 2)
    assert [(a.dtype, a.shape) for a in record.arrays] == [(np.dtype(d), s) for d, s in specs]
    assert [a.tobytes() for a in record.arrays] == [a.tobytes() for a in arrays]
    assert all(a.ctypes.data % 64 == 0 and a.flags.writeable for a in record.arrays if a.size)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (np.zeros((4, 4), np.float32)[:, ::2], "float32 [4, 2] that is not C-contiguous"),
        ([1, 2], "got int"),
        ("text", "got str"),
        ([], "empty list"),
        ([np.zeros(2), np.zeros(2, np.float32)], "float64 [2] and float32 [2]"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "float64 [2, 3] and float64 [2, 4]"),
        ([np.zeros(3), np.zeros((3, 1))], "float64 [3] and float64 [3, 1]"),
        (np.zeros(3, np.complex64), "got complex64"),
        (np.zeros(3, ">f4"), "got >f4"),
        (np.float32(1), "got float32"),
        (np.zeros((), np.float32), "shape []"),
        (np.zeros((2, 3, 4), np.float32), "shape [2, 3, 4]"),
    ],
)
def test_what_records_do_not_carry_is_refused_by_name(entry: Any, words: str) -> None:
    ring = Ring()
    with pytest.raises(UserError) as refused:
        ring.sender.post(1, arrays=[entry])
    assert words in str(refused.value)
    assert ring.sender.counters.records == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ((np.complex64, (3,)), "got complex64"),
        (("f4", (2, 3, 4)), "shape [2, 3, 4]"),
        (("f4", (-1,)), "negative"),
    ],
)
def test_what_records_do_not_carry_is_not_reserved(spec: Any, words: str) -> None:
    with pytest.raises(UserError) as refused:
        Ring().sender.try_reserve(1, 0, 0, 0, [spec])
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "fields", [(-1, 0, 0, 0), (1 << 16, 0, 0, 0), (1, 1 << 64, 0, 0), (1, 0, 1 << 32, 0), (1, 0, 0, -1)]
)
def test_fields_out_of_range_are_refused(fields: tuple[int, int, int, int]) -> None:
    kind, step, trainer, tag = fields
    with pytest.raises(UserError, match="without sign"):
        Ring().sender.post(kind, step=step, trainer=trainer, tag=tag)


@given(st.integers(0, 23), st.integers(1, 255))
def test_a_damaged_directory_never_reads_beyond_the_body(position: int, flip: int) -> None:
    ring = Ring()
    ring.sender.post(1, arrays=[np.zeros((5, 4), np.float32)])
    ring.data[64 + position] ^= flip
    try:
        record = ring.receiver.poll()
    except PersiaError:
        return
    assert record is not None
    begin, end = ring.data.ctypes.data + 64, ring.data.ctypes.data + 64 + 128 + 64
    assert all(begin <= a.ctypes.data and a.ctypes.data + a.nbytes <= end for a in record.arrays)


def test_memory_that_was_let_go_is_not_touched() -> None:
    ring = Ring()
    ring.sender.post(1, arrays=[payload(0, 10)])
    ring.sender.invalidate()
    ring.receiver.invalidate()
    with pytest.raises(UserError, match="after close"):
        ring.sender.post(1)
    with pytest.raises(PersiaError, match=r"ring test: .*freed"):
        ring.receiver.poll()
    assert not Watch([ring.sender.ring], [ring.receiver.ring], []).wait(0.0, 0.0)
