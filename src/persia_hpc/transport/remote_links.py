"""Carries a ring's words to another node with one-sided MPI.

Put and flush the payload, then Accumulate(REPLACE) and flush the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from mpi4py import MPI

from persia_hpc.arrays import Bytes


class DataLink(Protocol):
    """Lets a producer announce entries."""

    def publish(self, first: int, last: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Shows the consumer the entries first..last, written to these ranges (begin, end) of the ring."""


class TailLink(Protocol):
    """Lets a consumer tell how many bytes it has released."""

    def publish(self, tail: int) -> None:
        """Stores the number of released bytes in the producer's memory."""


class RemoteDataLink:
    """Writes entries to a consumer on another node from `mirror`, an image of its ring. See `DataLink`."""

    def __init__(
        self, win: MPI.Win, consumer: int, mirror: Bytes, data_offset: int, words_offset: int, num_words: int
    ) -> None:
        self._win = win
        self._consumer = consumer
        self._mirror = mirror
        self._data_offset = data_offset
        self._words_offset = words_offset
        self._num_words = num_words

    def publish(self, first: int, last: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Puts the entries, then their words; returns when the consumer's MPI has answered."""
        win, consumer = self._win, self._consumer
        for begin, end in ranges:
            size = end - begin
            target = [self._data_offset + begin, size, MPI.BYTE]
            win.Put([self._mirror[begin:end], size, MPI.BYTE], consumer, target)
        # Put and Accumulate are not ordered with each other: without this a word could overtake its payload.
        win.Flush(consumer)
        while first <= last:
            slot = first % self._num_words
            count = min(last - first + 1, self._num_words - slot)
            words = np.arange(first, first + count, dtype=np.uint64)
            target = [self._words_offset + 8 * slot, count, MPI.UINT64_T]
            win.Accumulate([words, count, MPI.UINT64_T], consumer, target, MPI.REPLACE)
            win.Flush(consumer)
            first += count


class RemoteTailLink:
    """Writes the released bytes to a producer on another node. See `TailLink`."""

    def __init__(self, win: MPI.Win, producer: int, tail_offset: int) -> None:
        self._win = win
        self._producer = producer
        self._tail_offset = tail_offset

    def publish(self, tail: int) -> None:
        """Writes the number; returns when the producer's MPI has answered."""
        self._win.Sync()  # the views of what is released were read before this
        target = [self._tail_offset, 1, MPI.UINT64_T]
        source = [np.array([tail], np.uint64), 1, MPI.UINT64_T]
        self._win.Accumulate(source, self._producer, target, MPI.REPLACE)
        self._win.Flush(self._producer)
