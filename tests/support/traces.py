"""Reads a trace as Perfetto does."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any


def check_trace(events: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Checks what Perfetto needs of flows and slices; returns the flows by their id."""
    slices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    pids = {event["pid"] for event in events}
    tids = {(event["pid"], event["tid"]) for event in events}
    assert 0 not in pids
    assert len({tid for _, tid in tids}) == len(tids) == len(pids)
    for event in events:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for own in slices.values():  # they don't overlap
        own.sort()
        assert all(b[0] >= a[1] - 2e-3 for a, b in pairwise(own))
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            assert (event["cat"], event["name"]) == ("batch", "batch")
            found[event["id"]].append(event)
    for id_, flow in found.items():
        assert int(id_, 16) > 0
        assert [e["ph"] for e in flow] == ["s", *["t"] * (len(flow) - 2), "f"]
        assert flow[-1]["bp"] == "e"
        times = [event["ts"] for event in flow]
        assert all(a < b for a, b in pairwise(times))
        for event in flow:
            own = slices[event["pid"], event["tid"]]
            assert any(begin - 1e-3 <= event["ts"] <= end + 1e-3 for begin, end in own), event
    return found
