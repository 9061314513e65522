"""Samples in the shuffled order of an epoch: the pure order, a reader of any positions, a read-ahead thread.

A *block* is a run of `block_rows` consecutive rows, or a row group of a Parquet file. Blocks are shuffled
over the whole dataset; `buffer_blocks` of them are a *window*, inside which all rows are shuffled. A
*position* counts samples in that order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from persia_hpc.config import Config
from persia_hpc.samples.batch import Rows, SampleBatch
from persia_hpc.samples.source import FileSource, Source
from persia_hpc.samples.window import PIECE_ROWS, Buffer, Window, shuffled

Token = TypeVar("Token")
Complete = Callable[[SampleBatch, int, int], SampleBatch]
CLOSE_SECONDS = 10  # a read that a file system holds up longer than this is left to the end of the process


def _permutation(size: int, seed: int, *stream: int) -> Rows:
    """A permutation that is a function of the arguments alone.

    Sorts raw random words, because numpy promises those, but not `Generator.permutation`, to stay the same in
    all its versions: a run resumed after an update must not repeat or lose samples.
    """
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)).random_raw(size)
    index_bits = max(size - 1, 0).bit_length()
    low = np.uint64((1 << index_bits) - 1)
    # A sort is several times faster than a stable argsort: the index replaces the words' lowest bits.
    keys = np.sort((words & ~low) | np.arange(size, dtype=np.uint64))
    high = keys >> np.uint64(index_bits)
    if (high[1:] == high[:-1]).any():  # the lowest bits decide; about once in a thousand windows
        return np.argsort(words, kind="stable").astype(np.int64, copy=False)
    return (keys & low).astype(np.int64)


class EpochOrder:
    """Tells which row is at which position of an epoch; a pure function of its arguments, with each row once.

    num_samples: rows of the dataset, N.
    block_rows: rows of a block; the last block may be shorter.
    buffer_blocks: blocks of a window.
    seed: seed of the run, 0 or more.
    epoch: counts from 0; every epoch has its own order.
    shuffle: False gives the order of the dataset.
    bounds: int64 [blocks + 1], rising, or None: where blocks begin and end that the data have by themselves.
        As many of them are a window as, at their usual size, come nearest to `buffer_blocks` * `block_rows`.
    """

    def __init__(
        self,
        num_samples: int,
        block_rows: int,
        buffer_blocks: int,
        seed: int,
        epoch: int,
        shuffle: bool,
        bounds: Rows | None = None,
    ) -> None:
        for name, value, least in (
            ("num_samples", num_samples, 0),
            ("block_rows", block_rows, 1),
            ("buffer_blocks", buffer_blocks, 1),
            ("seed", seed, 0),
            ("epoch", epoch, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: got {value}, expected {least} or more")
        self.num_samples = num_samples
        self._seed = seed
        self._epoch = epoch
        self._shuffle = shuffle
        if bounds is None:
            num_blocks = -(-num_samples // block_rows)
            bounds = np.minimum(np.arange(num_blocks + 1) * block_rows, num_samples)
        else:
            num_blocks = len(bounds) - 1
            usual = int(np.sort(np.diff(bounds))[num_blocks // 2])  # the last one of a file may be shorter
            buffer_blocks = max(1, round(block_rows * buffer_blocks / usual))
        self._bounds = bounds
        self._buffer_blocks = buffer_blocks
        self._blocks = _permutation(num_blocks, seed, epoch, 0) if shuffle else np.arange(num_blocks)
        self.num_windows = -(-num_blocks // buffer_blocks)
        first = np.minimum(np.arange(self.num_windows + 1) * buffer_blocks, num_blocks)
        self._starts: Rows = np.concatenate([[0], np.cumsum(np.diff(bounds)[self._blocks])])[first]

    @property
    def single_blocks(self) -> bool:
        """Returns whether each window is one block."""
        return self.num_windows == len(self._blocks)

    def window_of(self, position: int) -> int:
        """Returns the window that holds this position, 0 <= position < num_samples."""
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def window_range(self, window: int) -> tuple[int, int]:
        """Returns the positions [begin, end) of a window."""
        return int(self._starts[window]), int(self._starts[window + 1])

    def window_runs(self, window: int) -> list[tuple[int, int]]:
        """Returns the rows of a window in ascending order, as the fewest ranges [begin, end)."""
        blocks = np.sort(self._blocks[window * self._buffer_blocks : (window + 1) * self._buffer_blocks])
        breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
        return [
            (int(self._bounds[run[0]]), int(self._bounds[run[-1] + 1])) for run in np.split(blocks, breaks)
        ]

    def window_permutation(self, window: int) -> Rows:
        """Returns, for each position of the window, an index into the rows that `window_runs` lists.

        Shapes: int64 [window size].
        """
        begin, end = self.window_range(window)
        if not self._shuffle:
            return np.arange(end - begin)
        return _permutation(end - begin, self._seed, self._epoch, window + 1)

    def rows(self, begin: int, end: int) -> Rows:
        """Returns the rows at positions [begin, end).

        Shapes: int64 [end - begin].
        """
        _check_range(begin, end, self.num_samples)
        parts = [np.empty(0, np.int64)]
        while begin < end:
            window = self.window_of(begin)
            start, stop = self.window_range(window)
            stop = min(stop, end)
            ascending = np.concatenate([np.arange(a, b) for a, b in self.window_runs(window)])
            parts.append(ascending[self.window_permutation(window)[begin - start : stop - start]])
            begin = stop
        return np.concatenate(parts)


def _check_range(begin: int, end: int, size: int) -> None:
    if not 0 <= begin <= end <= size:
        raise ValueError(f"got positions [{begin}, {end}), expected a range within [0, {size})")


class BatchReader:
    """Reads any positions of any epoch; reading in ascending order decodes each row once. Not thread-safe.

    Holds about two windows: the one being read, permuted, and the next one, decoded in step with the position
    so that no single read pays for all of it. After an epoch's last window that is the first of the next
    epoch. A dataset of a single window is decoded once for all epochs.

    source: the samples.
    block_rows, buffer_blocks, seed, shuffle: see `EpochOrder`. Random blocks are read fastest when they are
    whole chunks of the file; those of Parquet files are their row groups.
    epochs: how many follow one another; beyond them nothing is decoded ahead.
    complete: gets each batch that is read, its epoch and first position, and returns it with more columns.
    """

    def __init__(
        self,
        source: Source,
        *,
        block_rows: int,
        buffer_blocks: int,
        seed: int,
        shuffle: bool,
        epochs: int = 1,
        complete: Complete | None = None,
    ) -> None:
        self._source = source
        self._complete = complete
        self._block_rows = block_rows
        self._buffer_blocks = buffer_blocks
        self._seed = seed
        self._shuffle = shuffle
        self._epochs = epochs
        self._bounds = source.block_bounds(block_rows) if isinstance(source, FileSource) else None
        self._order = self._make_order(0)
        self._epoch = 0
        self._window = -1
        self._samples: SampleBatch | None = None  # of the window, in the order of positions
        self._following: EpochOrder | None = None  # of the epoch after this one
        self._next_window = 0, -1  # epoch, and window in it
        self._next: Window | None = None
        self._buffer = Buffer()

    @property
    def num_samples(self) -> int:
        """Returns the number of samples of one epoch."""
        return self._source.num_samples

    def read(self, epoch: int, begin: int, end: int) -> SampleBatch:
        """Returns the samples at positions [begin, end) of an epoch (counted from 0), in that order.

        The arrays are read-only: they may be views that later reads share.

        Raises DataError if the source can't be read, and ValueError if the range isn't within the epoch.
        """
        samples = self._read(epoch, begin, end)
        return samples if self._complete is None else self._complete(samples, epoch, begin)

    def _read(self, epoch: int, begin: int, end: int) -> SampleBatch:
        _check_range(begin, end, self._source.num_samples)
        if begin == end:
            return self._source.read(0, 0)
        if epoch != self._epoch:
            following = self._following if epoch == self._epoch + 1 else None
            self._order = following or self._make_order(epoch)
            self._epoch, self._following = epoch, None
            self._window, self._samples = -1, None
        parts = []
        while begin < end:
            window = self._order.window_of(begin)
            start, stop = self._order.window_range(window)
            until = min(stop, end)
            parts.append(self._window_samples(window).slice(begin - start, until - start))
            begin = until
        self._decode_ahead(end)
        return SampleBatch.concatenate(parts)

    def _make_order(self, epoch: int) -> EpochOrder:
        return EpochOrder(
            self._source.num_samples,
            self._block_rows,
            self._buffer_blocks,
            self._seed,
            epoch,
            self._shuffle,
            self._bounds,
        )

    def _window_samples(self, window: int) -> SampleBatch:
        if self._samples is None or self._window != window:
            self._samples = None  # makes room first
            # All at once: batches are then plain slices. Gathering rows for each batch would give up the
            # interpreter's lock dozens of times a batch, and wait for a busy main thread each time.
            samples = self._decoding(self._order, self._epoch, window).batch()
            if self._single and self._shuffle:
                samples = shuffled(samples, self._order.window_permutation(window))
            self._samples = _read_only(samples)
            self._window = window
            if not self._single:
                self._next = None
        return self._samples

    @property
    def _single(self) -> bool:
        """One window holds all: it is kept as it is in the files, for the permutations of all epochs."""
        return self._order.num_windows == 1

    def _decoding(self, order: EpochOrder, epoch: int, window: int) -> Window:
        if self._next is None or (self._next_window != (epoch, window) and not self._single):
            shuffle = self._shuffle and not self._single
            permutation = order.window_permutation(window) if shuffle else None
            # A row group is decoded as a whole: in one piece it is used where it was decoded, not copied.
            whole = self._bounds is not None and order.single_blocks
            most = self._source.num_samples if whole else PIECE_ROWS
            self._next = Window(self._source, order.window_runs(window), permutation, self._buffer, most)
            self._next_window = epoch, window
        return self._next

    def _decode_ahead(self, position: int) -> None:
        order, epoch, following = self._order, self._epoch, self._window + 1
        if following == order.num_windows:
            if self._single or epoch + 1 >= self._epochs:
                return
            if self._following is None:
                self._following = self._make_order(epoch + 1)
            order, epoch, following = self._following, epoch + 1, 0
        start, stop = self._order.window_range(self._window)
        begin, end = order.window_range(following)
        ahead = (position - start) * (end - begin) // (stop - start)
        self._decoding(order, epoch, following).decode_ahead(ahead)


def _read_only(batch: SampleBatch) -> SampleBatch:
    arrays: list[npt.NDArray[Any] | None] = [batch.dense, batch.labels, batch.weight, batch.group, batch.time]
    for column in batch.ids.values():
        arrays += [column.values, column.offsets, column.weights]
    for array in arrays:
        if array is not None:
            array.flags.writeable = False
    return batch


def split_reader(config: Config, split: str, source: Source, complete: Complete | None = None) -> BatchReader:
    """Returns the reader of a split as the configuration asks; only the training data is shuffled."""
    data = config.data
    return BatchReader(
        source,
        block_rows=data.block_rows,
        buffer_blocks=data.buffer_blocks,
        seed=config.seed,
        shuffle=data.shuffle and split == "train",
        epochs=config.train.epochs if split == "train" and not data.follow else 1,
        complete=complete,
    )


class PrefetchReader(Generic[Token]):
    """Reads ahead in a thread; iterating over it gives (token, SampleBatch) in the order of the requests.

    reader: used by the thread alone from now on.
    requests: (token, epoch, begin, end); the thread takes one at a time, and they may be endless.
    depth: how many batches may wait to be taken, 1 or more.
    on_ready: called by the thread when `poll()` has something new to return: a batch, an error or the end.

    `next()` blocks until the batch is there. An exception of the reader or of `requests` is raised by the
    `next()` of that batch, after all batches before it; then the iteration ends. Call `close()`, or use it in
    a `with` block.
    """

    def __init__(
        self,
        reader: BatchReader,
        requests: Iterable[tuple[Token, int, int, int]],
        depth: int,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth: got {depth}, expected 1 or more")
        self._reader = reader
        self._requests = requests
        self._depth = depth
        self._on_ready = on_ready
        self._ready: deque[tuple[Token, SampleBatch]] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._finished = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="persia-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[Token, SampleBatch]]:
        return self

    def __next__(self) -> tuple[Token, SampleBatch]:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._finished or self._closed)
            if self._ready and not self._closed:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def poll(self) -> tuple[Token, SampleBatch] | None:
        """Returns the next item if it is ready, else None, also at the end; raises what `next()` would."""
        with self._changed:
            if self._ready and not self._closed:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = (self._error, None) if not self._ready else (None, self._error)
        if error is not None:
            raise error
        return None

    def __enter__(self) -> PrefetchReader[Token]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops reading ahead and drops the waiting batches; returns when the read under way has ended.

        If that takes longer than CLOSE_SECONDS, the thread is left to end with the process.
        """
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._error = None
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for token, epoch, begin, end in self._requests:
                batch = self._reader.read(epoch, begin, end)
                with self._changed:
                    self._changed.wait_for(lambda: len(self._ready) < self._depth or self._closed)
                    if self._closed:
                        return
                    self._ready.append((token, batch))
                    self._changed.notify_all()
                self._on_ready()
        except BaseException as caught:
            error = caught
        finally:
            with self._changed:
                self._error = None if self._closed else error
                self._finished = True
                self._changed.notify_all()
            self._on_ready()
