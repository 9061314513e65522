import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.samples import reader
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.reader import BatchReader, EpochOrder, PrefetchReader
from persia_hpc.samples.schema import DatasetSchema
from tests.support.samples import SCHEMA, assert_equal, random_batch


class MemorySource:
    """A source over one batch, that notes what is read and can fail at a row."""

    def __init__(self, batch: SampleBatch, fail_at: int | None = None) -> None:
        self.batch = batch
        self.reads: list[tuple[int, int]] = []
        self.fail_at = fail_at
        self.gate = threading.Event()
        self.gate.set()

    @property
    def schema(self) -> DatasetSchema:
        return SCHEMA

    @property
    def num_samples(self) -> int:
        return self.batch.num_samples

    def read(self, begin: int, end: int) -> SampleBatch:
        self.gate.wait(10)
        if self.fail_at is not None and begin <= self.fail_at < end:
            raise OSError(f"row {self.fail_at} is gone")
        if begin < end:
            self.reads.append((begin, end))
        return self.batch.slice(begin, end)


sizes = st.tuples(st.integers(1, 60), st.integers(1, 12), st.integers(1, 6))
no_deadline = settings(max_examples=40, deadline=None)


@no_deadline
@given(sizes, st.integers(0, 2**63), st.integers(0, 5), st.booleans())
def test_every_row_is_at_one_position_of_an_epoch(
    size: tuple[int, int, int], seed: int, epoch: int, shuffle: bool
) -> None:
    n = size[0]
    rows = EpochOrder(*size, seed, epoch, shuffle).rows(0, n)
    assert rows.dtype == np.int64
    assert sorted(rows.tolist()) == list(range(n))
    if not shuffle:
        assert rows.tolist() == list(range(n))


@no_deadline
@given(sizes, st.data())
def test_order_does_not_depend_on_where_batches_begin(
    size: tuple[int, int, int], data: st.DataObject
) -> None:
    n = size[0]
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=6)))
    whole = EpochOrder(*size, 3, 1, True).rows(0, n)
    order = EpochOrder(*size, 3, 1, True)
    parts = [order.rows(a, b) for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 40_000])
@pytest.mark.parametrize("bits", [64, 50, 10, 0])
def test_a_permutation_is_the_stable_argsort_of_its_words(
    size: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where many words agree in the bits that are compared first, or altogether."""
    words = np.random.Philox(np.random.SeedSequence(7, spawn_key=(3, 1))).random_raw(size)
    if bits < 64:
        words = np.random.default_rng(1).integers(0, 2**bits, size, dtype=np.uint64)

        class Fixed:
            def __init__(self, seed: object) -> None: ...

            def random_raw(self, _: int) -> np.ndarray:
                return words

        monkeypatch.setattr(np.random, "Philox", Fixed)
    assert np.array_equal(reader._permutation(size, 7, 3, 1), np.argsort(words, kind="stable"))


@no_deadline
@given(sizes)
def test_windows_cover_the_positions_and_hold_whole_blocks(size: tuple[int, int, int]) -> None:
    n, block_rows, buffer_blocks = size
    order = EpochOrder(*size, 7, 0, True)
    at = 0
    for window in range(order.num_windows):
        begin, end = order.window_range(window)
        assert begin == at < end
        assert order.window_of(begin) == order.window_of(end - 1) == window
        runs = order.window_runs(window)
        assert sum(b - a for a, b in runs) == end - begin
        assert all(a % block_rows == 0 and (b % block_rows == 0 or b == n) for a, b in runs)
        assert sum(-(-(b - a) // block_rows) for a, b in runs) <= buffer_blocks
        at = end
    assert at == n


@no_deadline
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(0, 2**40),
)
def test_blocks_that_the_data_have_stay_whole_and_fill_windows_as_large(
    blocks: list[int], block_rows: int, buffer_blocks: int, seed: int
) -> None:
    n, bounds = sum(blocks), np.cumsum([0, *blocks])
    order = EpochOrder(n, block_rows, buffer_blocks, seed, 0, True, bounds)
    assert sorted(order.rows(0, n).tolist()) == list(range(n))
    runs = [order.window_runs(window) for window in range(order.num_windows)]
    held = [int(np.diff(np.searchsorted(bounds, each), axis=1).sum()) for each in runs]
    assert sum(held) == len(blocks)
    assert len(set(held[:-1])) <= 1, "as many blocks in each"
    wanted = block_rows * buffer_blocks / sorted(blocks)[len(blocks) // 2]
    assert abs(held[0] - min(max(1, wanted), len(blocks))) <= 0.5
    for window in range(order.num_windows):
        begin, end = order.window_range(window)
        rows = np.concatenate([np.arange(a, b) for a, b in runs[window]])
        assert sorted(order.rows(begin, end).tolist()) == rows.tolist()
        assert {a for run in runs[window] for a in run} <= set(bounds.tolist())


@no_deadline
@given(sizes, st.integers(0, 2**63), st.integers(0, 5))
def test_equal_blocks_that_the_data_have_give_the_order_of_those_that_are_cut(
    size: tuple[int, int, int], seed: int, epoch: int
) -> None:
    """So row groups of block_rows rows are read in the order of the same rows in HDF5."""
    n, block_rows, buffer_blocks = size
    bounds = np.minimum(np.arange(-(-n // block_rows) + 1) * block_rows, n)
    there = EpochOrder(n, block_rows, buffer_blocks, seed, epoch, True, bounds).rows(0, n)
    cut = EpochOrder(n, block_rows, buffer_blocks, seed, epoch, True).rows(0, n)
    np.testing.assert_array_equal(there, cut)


def test_epochs_and_seeds_have_different_orders_that_mix_the_whole_dataset() -> None:
    def rows(seed: int, epoch: int) -> list[int]:
        return EpochOrder(4096, 32, 16, seed, epoch, True).rows(0, 4096).tolist()

    assert len({tuple(rows(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    first = np.array(rows(1, 0)[:512])
    assert first.max() - first.min() > 2048  # blocks from all over
    assert (np.abs(np.diff(first)) == 1).mean() < 0.05  # rows shuffled within


def test_order_stays_the_same_in_all_versions() -> None:
    # A run that resumes must continue the order it started with; change this only with a new major version.
    assert EpochOrder(12, 2, 3, 42, 1, True).rows(0, 12).tolist() == [9, 0, 1, 6, 7, 8, 11, 3, 4, 5, 2, 10]


@no_deadline
@given(sizes, st.booleans(), st.integers(3, 30))
def test_reader_gives_the_rows_of_the_order(size: tuple[int, int, int], shuffle: bool, batch: int) -> None:
    n, block_rows, buffer_blocks = size
    source = MemorySource(random_batch(n, seed=1, optional=True))
    reader = BatchReader(source, block_rows=block_rows, buffer_blocks=buffer_blocks, seed=5, shuffle=shuffle)
    for epoch in (0, 1):
        expected = source.batch.take(EpochOrder(*size, 5, epoch, shuffle).rows(0, n))
        for begin in range(0, n, batch):
            end = min(begin + batch, n)
            assert_equal(reader.read(epoch, begin, end), expected.slice(begin, end))


@no_deadline
@given(
    sizes,
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(0, 60)), max_size=8),
)
def test_reader_reads_any_positions_in_any_sequence(
    size: tuple[int, int, int], epochs: int, requests: list[tuple[int, int, int]]
) -> None:
    n, block_rows, buffer_blocks = size
    source = MemorySource(random_batch(n))
    reader = BatchReader(
        source, block_rows=block_rows, buffer_blocks=buffer_blocks, seed=5, shuffle=True, epochs=epochs
    )
    for epoch, a, b in requests:
        begin, end = sorted((min(a, n), min(b, n)))
        expected = source.batch.take(EpochOrder(*size, 5, epoch, True).rows(begin, end))
        assert_equal(reader.read(epoch, begin, end), expected)


@no_deadline
@given(sizes, st.integers(1, 50))
def test_sequential_reading_decodes_each_row_once(size: tuple[int, int, int], batch: int) -> None:
    n, block_rows, buffer_blocks = size
    source = MemorySource(random_batch(n))
    reader = BatchReader(source, block_rows=block_rows, buffer_blocks=buffer_blocks, seed=5, shuffle=True)
    for begin in range(0, n, batch):
        reader.read(0, begin, min(begin + batch, n))
    rows = [row for a, b in source.reads for row in range(a, b)]
    assert sorted(rows) == list(range(n))


@no_deadline
@given(sizes, st.integers(1, 50))
def test_reading_several_epochs_decodes_each_row_once_in_each(size: tuple[int, int, int], batch: int) -> None:
    n, block_rows, buffer_blocks = size
    source = MemorySource(random_batch(n))
    reader = BatchReader(
        source, block_rows=block_rows, buffer_blocks=buffer_blocks, seed=5, shuffle=True, epochs=3
    )
    for epoch in range(3):
        expected = source.batch.take(EpochOrder(*size, 5, epoch, True).rows(0, n))
        for begin in range(0, n, batch):
            end = min(begin + batch, n)
            assert_equal(reader.read(epoch, begin, end), expected.slice(begin, end))
    rows = [row for a, b in source.reads for row in range(a, b)]
    once = 1 if EpochOrder(*size, 5, 0, True).num_windows == 1 else 3  # nothing beyond the last epoch
    assert sorted(rows) == sorted([*range(n)] * once)


def test_a_dataset_of_one_window_is_decoded_once_for_all_epochs() -> None:
    source = MemorySource(random_batch(50))
    reader = BatchReader(source, block_rows=10, buffer_blocks=8, seed=5, shuffle=True)
    first, second = (reader.read(epoch, 0, 50) for epoch in (0, 1))
    assert sum(b - a for a, b in source.reads) == 50
    assert first.ids["user"].values.tolist() != second.ids["user"].values.tolist()


def test_reading_ahead_is_spread_over_the_batches() -> None:
    source = MemorySource(random_batch(2000))
    reader = BatchReader(source, block_rows=10, buffer_blocks=20, seed=5, shuffle=True, epochs=2)
    counts = []
    for epoch in (0, 1):
        for begin in range(0, 2000, 20):
            before = len(source.reads)
            reader.read(epoch, begin, begin + 20)
            counts.append(sum(b - a for a, b in source.reads[before:]))
    assert counts[0] >= 200  # nothing was read ahead for the first window
    assert max(counts[1:]) <= 20 + 60  # a run of neighbouring blocks is read at once


def test_changing_a_batch_cannot_change_later_reads() -> None:
    reader = BatchReader(MemorySource(random_batch(8)), block_rows=8, buffer_blocks=1, seed=0, shuffle=False)
    with pytest.raises(ValueError, match="read-only"):
        reader.read(0, 0, 4).dense[:] = 0


@pytest.mark.parametrize(("begin", "end"), [(-1, 2), (3, 2), (0, 9)])
def test_reader_refuses_positions_outside_of_the_epoch(begin: int, end: int) -> None:
    reader = BatchReader(MemorySource(random_batch(8)), block_rows=2, buffer_blocks=2, seed=0, shuffle=True)
    with pytest.raises(ValueError, match="expected a range"):
        reader.read(0, begin, end)


def make_reader(source: MemorySource) -> BatchReader:
    return BatchReader(source, block_rows=5, buffer_blocks=4, seed=5, shuffle=True)


@pytest.mark.parametrize("depth", [1, 3])
def test_prefetch_gives_all_batches_in_order(depth: int) -> None:
    source = MemorySource(random_batch(100))
    requests = [(f"step {i}", 0, i * 10, i * 10 + 10) for i in range(10)]
    direct = make_reader(MemorySource(source.batch))
    with PrefetchReader(make_reader(source), requests, depth) as reader:
        for (token, batch), request in zip(reader, requests, strict=True):
            assert token == request[0]
            assert_equal(batch, direct.read(*request[1:]))
        with pytest.raises(StopIteration):
            next(reader)


def test_prefetch_reads_at_most_depth_batches_ahead() -> None:
    taken: list[int] = []

    def requests() -> Iterator[tuple[int, int, int, int]]:
        i = 0
        while True:
            taken.append(i)
            yield i, 0, i % 10, i % 10 + 1
            i += 1

    with PrefetchReader(make_reader(MemorySource(random_batch(10))), requests(), 3) as reader:
        for _ in range(5):
            next(reader)
        deadline = time.monotonic() + 5
        while len(taken) < 9 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(taken) == 9  # 5 taken, 3 waiting, 1 in the thread's hand


def test_prefetch_raises_after_the_batches_before_the_error() -> None:
    source = MemorySource(random_batch(100), fail_at=60)
    reader = BatchReader(source, block_rows=10, buffer_blocks=1, seed=0, shuffle=False)
    requests = [(i, 0, i * 10, i * 10 + 10) for i in range(10)]
    good = []
    with PrefetchReader(reader, requests, 2) as prefetch:
        with pytest.raises(OSError, match="row 60 is gone"):
            good.extend(token for token, _ in prefetch)
        with pytest.raises(StopIteration):
            next(prefetch)
    assert good == [0, 1, 2, 3, 4, 5]


def test_prefetch_raises_the_error_of_the_requests() -> None:
    def requests() -> Iterator[tuple[int, int, int, int]]:
        yield 0, 0, 0, 5
        raise KeyError("schedule")

    with PrefetchReader(make_reader(MemorySource(random_batch(10))), requests(), 2) as reader:
        next(reader)
        with pytest.raises(KeyError, match="schedule"):
            next(reader)


def test_poll_gives_what_next_gives_without_waiting() -> None:
    source = MemorySource(random_batch(100), fail_at=30)
    source.gate.clear()
    reader = BatchReader(source, block_rows=10, buffer_blocks=1, seed=0, shuffle=False)
    polled: list[int] = []

    def poll_all() -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            item = prefetch.poll()
            if item is not None:
                polled.append(item[0])

    with PrefetchReader(reader, [(i, 0, i * 10, i * 10 + 10) for i in range(10)], 2) as prefetch:
        assert prefetch.poll() is None
        source.gate.set()
        with pytest.raises(OSError, match="row 30 is gone"):
            poll_all()
        assert polled == [0, 1, 2]
        assert prefetch.poll() is None


def test_close_ends_the_thread_while_the_queue_is_full() -> None:
    before = threading.active_count()
    requests = ((i, 0, i % 10, i % 10 + 1) for i in range(10**9))
    reader = PrefetchReader(make_reader(MemorySource(random_batch(10))), requests, 1)
    next(reader)
    reader.close()
    reader.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(reader)


def test_close_wakes_a_waiting_next() -> None:
    source = MemorySource(random_batch(10))
    source.gate.clear()
    reader = PrefetchReader(make_reader(source), [(0, 0, 0, 5)], 1)
    ended = threading.Event()

    def wait() -> None:
        assert list(reader) == []
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    closer = threading.Thread(target=reader.close, daemon=True)
    closer.start()
    assert ended.wait(5)
    source.gate.set()
    closer.join(5)
    assert not closer.is_alive()
