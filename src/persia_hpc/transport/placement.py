"""Places each channel's ring in the windows: all ranks compute the same and exchange nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from persia_hpc.transport.records import ALIGNMENT

MIN_RING_BYTES = 4096
RING_GRANULE = 256  # so that a quarter of the ring is a whole number of lines
_LINES = 128  # a pair of cache lines: what one side stores shares none with what the other side stores

BELL_BYTES = _LINES


@dataclass(frozen=True)
class Channel:
    """Describes a ring from rank `producer` to rank `consumer` of a plane, with `ring_bytes` for records."""

    producer: int
    consumer: int
    name: str
    ring_bytes: int

    @property
    def label(self) -> str:
        """Returns the channel's name in messages."""
        return f"{self.name!r} (rank {self.producer} to {self.consumer})"

    @property
    def num_words(self) -> int:
        """Returns the number of sequence words: one for each entry that the ring can hold at most."""
        return self.ring_bytes // ALIGNMENT


@dataclass(frozen=True)
class Placement:
    """Holds byte positions: within a node all lie in shared windows, between nodes in three kinds of memory.

    words, data: in the consumer's shared window, or in its private memory. tail: in the producer's shared
    window (same node only). source: in the window from which the consumer fetches (other nodes only).
    """

    shared: bool
    words: int
    data: int
    tail: int
    source: int


@dataclass(frozen=True)
class Sizes:
    """Holds the bytes of each rank: its shared window, the window that others fetch from, private memory."""

    shared: list[int]
    fetched: list[int]
    private: list[int]


def place(
    channels: Sequence[Channel], nodes: Sequence[int], force_remote: bool
) -> tuple[list[Placement], Sizes]:
    """Returns the placement of each channel, and the bytes of each rank.

    nodes: for each rank a number that says which node it is on. A rank's shared window begins with its bell.
    """
    shared, fetched, private = ([0] * len(nodes) for _ in range(3))
    placements = []
    for channel in channels:
        producer, consumer = channel.producer, channel.consumer
        same_node = not force_remote and nodes[producer] == nodes[consumer]
        size = shared if same_node else private
        tail = source = 0
        if same_node:
            for end in (consumer, producer):
                shared[end] = shared[end] or BELL_BYTES
        words = size[consumer]
        data = words + _whole_lines(channel.num_words * 8)
        size[consumer] = data + _whole_lines(channel.ring_bytes)
        if same_node:
            tail = shared[producer]
            shared[producer] += _LINES
        else:
            source = fetched[producer]
            fetched[producer] += _whole_lines(channel.ring_bytes)
        placements.append(Placement(same_node, words, data, tail, source))
    return placements, Sizes(shared, fetched, private)


def channel_problem(num_ranks: int, channels: Sequence[Channel]) -> str | None:
    """Returns what is wrong with a channel list, or None."""
    seen = set()
    for channel in channels:
        key = (channel.producer, channel.consumer, channel.name)
        if channel.producer == channel.consumer:
            return f"channel {channel.label}: producer and consumer are one rank; leave it out"
        if not (0 <= channel.producer < num_ranks and 0 <= channel.consumer < num_ranks):
            return f"channel {channel.label}: expected ranks 0..{num_ranks - 1} of the plane"
        if key in seen:
            return f"channel {channel.label} is listed twice; give each channel of a pair its own name"
        if channel.ring_bytes < MIN_RING_BYTES or channel.ring_bytes % RING_GRANULE:
            return (
                f"channel {channel.label}: ring_bytes is {channel.ring_bytes}, expected a multiple of "
                f"{RING_GRANULE}, at least {MIN_RING_BYTES}; set transport.ring_bytes"
            )
        seen.add(key)
    return None


def _whole_lines(num_bytes: int) -> int:
    return (num_bytes + _LINES - 1) & -_LINES
