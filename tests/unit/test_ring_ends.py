"""The two ends of a ring over plain memory: any interleaving of their calls keeps every record, in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.errors import PersiaError, UserError
from persia_hpc.transport.links import Fence, SharedDataLink, SharedTailLink
from persia_hpc.transport.receiver import RingReceiver
from persia_hpc.transport.records import Record, aligned_empty
from persia_hpc.transport.sender import RingSender

RING_BYTES = 4096


class Ring:
    """Both ends in one thread."""

    def __init__(self, fence: Fence | None = None) -> None:
        self.data = aligned_empty(RING_BYTES)
        self.data[:] = 0xAB
        self.words = memoryview(np.zeros(RING_BYTES // 64, np.uint64))  # type: ignore[arg-type]
        self.tail = memoryview(np.zeros(1, np.uint64))  # type: ignore[arg-type]
        self.dirty: set[RingSender] = set()
        data_link, tail_link = SharedDataLink(self.words, fence), SharedTailLink(self.tail, fence)
        self.sender = RingSender("test", self.data, data_link, self.tail, self.dirty)
        self.receiver = RingReceiver("test", self.data, self.words, tail_link)


def payload(index: int, size: int) -> np.ndarray:
    return ((np.arange(size) + 31 * index) % 251).astype(np.uint8)


SIZES = st.one_of(st.integers(0, 100), st.integers(850, 1000), st.integers(0, 3 * RING_BYTES))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("post"), SIZES),
        st.tuples(st.just("reserve"), st.integers(0, 1200)),
        st.tuples(st.sampled_from(["progress", "poll", "poll", "release"]), st.integers(0, 5)),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_every_interleaving_keeps_all_records_in_order(operations: list[tuple[str, int]]) -> None:
    ring = Ring()
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
    assert (ring.sender.pending > 0) == (ring.sender in ring.dirty)
    passes = 0
    while num_got < len(sent) or held:
        ring.sender.progress()
        poll()
        if held:
            release(0)
        passes += 1
        assert passes < 1000, "stuck"
    assert ring.sender.pending == 0
    assert ring.receiver.poll() is None
    assert ring.sender.counters.records == ring.receiver.counters.records == len(sent)
    assert ring.sender.counters.bytes == ring.receiver.counters.bytes
    assert ring.tail[0] == ring.sender._head, "an idle receiver gives back all the room"


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


def test_reservation_rules() -> None:
    ring = Ring()
    with pytest.raises(UserError, match="without a reservation"):
        ring.sender.commit()
    assert ring.sender.try_reserve(1, 0, 0, 0, [("f4", (300,))]) is None, "would travel in chunks"
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
    [(1024 + CHUNK_BEGIN, "a chunk was lost"), (CHUNK_BYTES + 1, "expected it within a ring of 4096")],
)
def test_lost_chunk_and_wrong_length_are_named(position: int, words: str) -> None:
    ring = Ring()
    ring.sender.post(1, arrays=[payload(0, 2500)])
    ring.data[position] ^= 0x40
    with pytest.raises(PersiaError, match=f"ring test: entry . .*{words}"):
        ring.receiver.poll()


def test_a_fence_stands_between_payload_and_word_where_one_is_needed() -> None:
    seen: list[int] = []
    ring = Ring(fence=lambda: seen.append(int(ring.words[1])))
    ring.sender.post(1, arrays=[payload(0, 10)])
    assert seen == [0], "before the word is stored"
    record = ring.receiver.poll()
    assert seen == [0, 1], "between seeing the word and reading the entry"
    assert record is not None
    record.release()
    ring.receiver.poll()
    assert len(seen) == 3, "before the room is given back"
