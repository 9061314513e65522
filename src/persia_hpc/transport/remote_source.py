"""Fetches entries from other nodes: from each producer piece by piece, so that short ones pass long ones.

All that crosses between two ranks takes its turn on one connection. So what is asked for at a time is what
the link carries in some tens of milliseconds: then a small request is never far behind a large one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from persia_hpc.arrays import Bytes, Words

Ranges = Sequence[tuple[int, int]]

PIECE_SECONDS = 0.02  # a piece is what the link carries meanwhile, and two are under way at most
LEAST_PIECE_BYTES = 16 << 10  # less would cost more in round trips than others gain
FIRST_PIECE_BYTES = 64 << 10  # as long as nothing is known of the link
SLOWING_PART = 0.25  # of the difference to the last piece's rate, where that was lower
MOST_GROWTH = 1.25  # times as much as before, where it was higher after a rest


@dataclass(eq=False)
class Entries:
    """Holds the entries up to `last`, of one notice: what is still to ask for, and bytes still to come."""

    last: int
    ranges: deque[tuple[int, int]]
    missing: int

    def come(self, num_bytes: int) -> None:
        """Takes note of bytes that have come."""
        self.missing -= num_bytes


@dataclass
class Piece:
    """Holds a part of a channel's entries that is under way."""

    source: RemoteSource
    entries: Entries
    num_bytes: int
    request: MPI.Request
    begin: float
    come: int  # bytes that had come by then, in all
    rested: bool  # whether none of them had come since the link had rested


class RemoteSource:
    """Is one channel's place in its producer's window: what to fetch from there, and where to.

    Entries are shown to the consumer in order, by their sequence words, once they are there.
    """

    def __init__(self, source: int, data: Bytes, words: Words) -> None:
        self._source = source
        self._data = data
        self._words = words
        self._shown = 0  # the last entry that the consumer can see
        self._hidden: deque[Entries] = deque()  # those after it
        self._to_ask: deque[Entries] = deque()  # of these

    @property
    def waiting(self) -> bool:
        """Returns whether anything was announced that hasn't been asked for."""
        return bool(self._to_ask)

    def announce(self, last: int, ranges: Ranges) -> None:
        """Notes the entries up to `last`, which lie in these ranges (begin, end) of the ring."""
        entries = Entries(last, deque(ranges), sum(end - begin for begin, end in ranges))
        self._hidden.append(entries)
        self._to_ask.append(entries)

    def start(self, win: MPI.Win, producer: int, most: int) -> tuple[MPI.Request, int, Entries]:
        """Starts to fetch the next `most` bytes, or less where a range of the ring ends.

        Returns the request, its bytes, and which entries it is of.
        """
        entries = self._to_ask[0]
        begin, end = entries.ranges.popleft()
        size = min(end - begin, most)
        if begin + size < end:
            entries.ranges.appendleft((begin + size, end))
        here = [self._data[begin : begin + size], size, MPI.BYTE]
        request = win.Rget(here, producer, [self._source + begin, size, MPI.BYTE])
        if not entries.ranges:
            self._to_ask.popleft()
        return request, size, entries

    def store(self, last: int, ranges: Ranges, carried: Bytes) -> None:
        """Takes the entries up to `last`, which came with their notice; shows them as `show` does."""
        begin = 0
        for first, end in ranges:
            self._data[first:end] = carried[begin : begin + end - first]
            begin += end - first
        self._hidden.append(Entries(last, deque(), 0))
        self.show()

    def show(self) -> None:
        """Stores the sequence words of entries that have come, and have nothing missing before them."""
        while self._hidden and self._hidden[0].missing == 0:
            last = self._hidden.popleft().last
            numbers = np.arange(self._shown + 1, last + 1, dtype=np.uint64)
            self._words[numbers % np.uint64(len(self._words))] = numbers
            self._shown = last


class Lane:
    """Fetches from one producer for all channels from there, a piece of each in turn."""

    def __init__(self, win: MPI.Win, producer: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._win = win
        self._producer = producer
        self._clock = clock
        self._waiting: deque[RemoteSource] = deque()  # in turn, and each once
        self._under_way: deque[Piece] = deque()
        self._bytes = 0  # of these
        self._come = 0  # bytes, in all
        self._come_at_rest = 0  # of these, before the link rested for the last time
        self._looked = 0.0  # when the last look was over
        self._rate = FIRST_PIECE_BYTES / PIECE_SECONDS  # bytes/s

    @property
    def busy(self) -> bool:
        """Returns whether anything is under way or waits."""
        return bool(self._under_way)

    @property
    def rate(self) -> float:
        """Returns the bytes that the link carries in a second, as far as is known."""
        return self._rate

    @property
    def piece_bytes(self) -> int:
        """Returns the most bytes of a piece: a whole entry where the link is fast."""
        return max(int(self._rate * PIECE_SECONDS), LEAST_PIECE_BYTES)

    def fetch(self, source: RemoteSource, last: int, ranges: Ranges) -> None:
        """Fetches a channel's entries up to `last`, now or when it is their turn."""
        if not source.waiting:
            self._waiting.append(source)
        source.announce(last, ranges)
        self._start()

    def take(self, source: RemoteSource, last: int, ranges: Ranges, carried: Bytes) -> None:
        """Takes a channel's entries up to `last`, which came with their notice."""
        self._come += sum(end - begin for begin, end in ranges)  # others had less of the link meanwhile
        source.store(last, ranges, carried)

    def finish(self) -> bool:
        """Shows what has come, and starts what is next; returns whether anything has come.

        A producer answers in order, so only the oldest request is asked about.
        """
        moved, most = False, self.piece_bytes
        while self._under_way and self._under_way[0].request.Test():
            piece = self._under_way.popleft()
            self._bytes -= piece.num_bytes
            self._come += piece.num_bytes
            self._measure(piece, most)
            piece.entries.come(piece.num_bytes)
            piece.source.show()
            moved = True
        if moved:
            self._start()
        self._looked = self._clock()
        return moved

    def _start(self) -> None:
        most = self.piece_bytes
        if not self._under_way and self._clock() - self._looked > PIECE_SECONDS:
            self._come_at_rest = self._come
        while self._waiting and self._bytes <= most:
            source = self._waiting.popleft()
            request, size, entries = source.start(self._win, self._producer, most)
            rested = self._come == self._come_at_rest
            self._under_way.append(Piece(source, entries, size, request, self._clock(), self._come, rested))
            self._bytes += size
            if source.waiting:
                self._waiting.append(source)

    def _measure(self, piece: Piece, most: int) -> None:
        """Learns the link's rate: what has come since a piece was asked for, in the time since then.

        That time is longer than the way if this rank was away, so no rate is too high that is possible by
        when it looked before. Slower pieces count less, because a producer that is away makes one slow as
        well; and so do the first ones after a rest where they are faster, because a link that has rested may
        carry some bytes sooner than it can go on. Short ones tell little: of the way there and back, or of
        long ones before them that were here already.
        """
        if piece.num_bytes < max(most // 2, LEAST_PIECE_BYTES):
            return
        come = self._come - piece.come
        least = come / max(self._clock() - piece.begin, 1e-9)
        highest = come / max(self._looked - piece.begin, 1e-9)
        rate = max(least, self._rate + SLOWING_PART * min(highest - self._rate, 0.0))
        self._rate = min(rate, MOST_GROWTH * self._rate) if piece.rested else rate
