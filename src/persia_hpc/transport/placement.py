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
    """Holds byte positions in the window memory of the consumer (words, data) and of the producer (tail)."""

    shared: bool
    words: int
    data: int
    tail: int


def place(
    channels: Sequence[Channel], nodes: Sequence[int], force_remote: bool
) -> tuple[list[Placement], dict[bool, list[int]]]:
    """Returns the placement of each channel, and the bytes of each rank in the shared and remote windows.

    nodes: for each rank a number that says which node it is on. The bytes are listed by rank, under True for
    the shared windows, where a rank's part begins with its bell, and under False for the remote ones.
    """
    sizes = {shared: [0] * len(nodes) for shared in (True, False)}
    placements = []
    for channel in channels:
        shared = not force_remote and nodes[channel.producer] == nodes[channel.consumer]
        size = sizes[shared]
        for end in (channel.consumer, channel.producer):
            size[end] = size[end] or (BELL_BYTES if shared else 0)
        words = size[channel.consumer]
        data = words + _whole_lines(channel.num_words * 8)
        size[channel.consumer] = data + _whole_lines(channel.ring_bytes)
        tail = size[channel.producer]
        size[channel.producer] += _LINES
        placements.append(Placement(shared, words, data, tail))
    return placements, sizes


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
