"""How a ring's words reach the other side: plain stores (here) or one-sided MPI (remote_links)."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

# A memoryview of format "Q": an item is loaded and stored as one aligned 8-byte word.
Words: TypeAlias = "memoryview[int]"
Fence: TypeAlias = Callable[[], None]

# These keep the order of stores and of loads; elsewhere MPI_Win_sync is the barrier, as the standard has it.
ORDERED_MACHINES = frozenset({"x86_64", "AMD64", "i686"})


def needed_fence(window_sync: Fence) -> Fence | None:
    """What must stand between payload and word on this machine; None where the hardware keeps the order."""
    return None if platform.machine() in ORDERED_MACHINES else window_sync


class DataLink(Protocol):
    """The producer's way to announce entries."""

    holds_back: bool  # announcing is dear: do it for several entries at once

    def publish(self, first: int, last: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Shows the consumer entries first..last, written to these ranges (begin, end) of the ring."""


class TailLink(Protocol):
    """The consumer's way to tell how many bytes it has released."""

    is_remote: bool

    def publish(self, tail: int) -> None:
        """Stores the number of released bytes in the producer's memory."""

    def acquire(self) -> None:
        """Called between seeing a sequence word and reading the entry."""


class SharedDataLink:
    """Same node: the payload was stored in place; the word is one more store."""

    holds_back = False

    def __init__(self, words: Words, fence: Fence | None) -> None:
        self._words = words
        self._num_words = len(words)
        self._fence = fence

    def publish(self, first: int, last: int, ranges: Sequence[tuple[int, int]]) -> None:
        """See DataLink."""
        if self._fence is not None:
            self._fence()
        for sequence in range(first, last + 1):
            self._words[sequence % self._num_words] = sequence


class SharedTailLink:
    """Same node: the tail is one store into the producer's memory."""

    is_remote = False

    def __init__(self, word: Words, fence: Fence | None) -> None:
        self._word = word
        self._fence = fence

    def publish(self, tail: int) -> None:
        """See TailLink."""
        if self._fence is not None:
            self._fence()
        self._word[0] = tail

    def acquire(self) -> None:
        """See TailLink."""
        if self._fence is not None:
            self._fence()
