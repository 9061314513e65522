"""Placement of rings in windows: nothing overlaps, everything fits its rank's memory."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.transport.placement import Channel, channel_problem, place

NUM_RANKS = 5
CHANNELS = st.lists(
    st.builds(
        Channel,
        producer=st.integers(0, NUM_RANKS - 1),
        consumer=st.integers(0, NUM_RANKS - 1),
        name=st.sampled_from("ab"),
        ring_bytes=st.integers(16, 40).map(lambda n: 256 * n),
    ),
    max_size=30,
    unique_by=lambda channel: (channel.producer, channel.consumer, channel.name),
).map(lambda channels: [channel for channel in channels if channel.producer != channel.consumer])


@given(CHANNELS, st.lists(st.integers(0, 2), min_size=NUM_RANKS, max_size=NUM_RANKS), st.booleans())
def test_no_two_parts_share_a_line_and_all_fit(
    channels: list[Channel], nodes: list[int], force_remote: bool
) -> None:
    assert channel_problem(NUM_RANKS, channels) is None
    placements, sizes = place(channels, nodes, force_remote)
    parts: dict[tuple[str, int], list[tuple[int, int]]] = {}

    def add(kind: str, rank: int, begin: int, size: int) -> None:
        parts.setdefault((kind, rank), []).append((begin, begin + size))

    for channel, at in zip(channels, placements, strict=True):
        assert at.shared == (not force_remote and nodes[channel.producer] == nodes[channel.consumer])
        kind = "shared" if at.shared else "private"
        add(kind, channel.consumer, at.words, 8 * channel.num_words)
        add(kind, channel.consumer, at.data, channel.ring_bytes)
        if at.shared:
            add("shared", channel.producer, at.tail, 8)
        else:
            add("fetched", channel.producer, at.source, channel.ring_bytes)
    for (kind, rank), intervals in parts.items():
        if kind == "shared":
            intervals.append((0, 8))  # the bell
        intervals.sort()
        assert all(begin % 64 == 0 for begin, _ in intervals)
        for (_, end), (begin, _) in pairwise(intervals):
            assert end <= begin
            assert (end - 1) // 64 < begin // 64
        assert intervals[-1][1] <= getattr(sizes, kind)[rank]
