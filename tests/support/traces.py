"""Reads a trace as Perfetto does."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import Any, NamedTuple

Event = dict[str, Any]
_NAMES = ("process_name", "thread_name")


class _Open(NamedTuple):
    begin: int
    end: int
    args: dict[str, Any]


def check_trace(events: list[Event]) -> dict[str, list[Event]]:
    """Checks what Perfetto needs of slices, flows and counters; returns the flows by their id.

    The Trace Event Format says what an event has. The rest is how Perfetto reads one: it cuts times to whole
    nanoseconds, takes events in the order of their times (those of one time in the file's), drops a slice
    that overlaps another of its thread without lying inside of it, and lets a flow begin, pass or end at the
    innermost slice that is open then.
    """
    pids = {event["pid"] for event in events}
    tids = {(event["pid"], event["tid"]) for event in events}
    assert 0 not in pids
    assert len({tid for _, tid in tids}) == len(tids) == len(pids)
    for event in events:
        _check_event(event)
    bound = _bind(events)
    found: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            found[event["id"]].append(event)
    for id_, flow in found.items():
        assert int(id_, 16) > 0
        assert [e["ph"] for e in flow] == ["s", *["t"] * (len(flow) - 2), "f"]
        assert flow[-1]["bp"] == "e"
        times = [event["ts"] for event in flow]
        assert all(a < b for a, b in pairwise(times))
        batch = flow[0]["args"]
        for event in flow:
            args = bound[id(event)]
            assert (args["step"], args.get("trainer", -1)) == (batch["step"], batch["trainer"]), event
    return found


def nanoseconds(microseconds: float) -> int:
    return int(microseconds * 1000.0)


def _check_event(event: Event) -> None:
    kind = event["ph"]
    assert kind in "MXCstf"
    assert event["name"]
    assert all(isinstance(event[key], int) for key in ("pid", "tid"))
    if kind == "M":
        assert isinstance(event["args"]["name"], str) if event["name"] in _NAMES else True
        assert isinstance(event["args"]["sort_index"], int) if event["name"] not in _NAMES else True
        return
    assert math.isfinite(event["ts"])
    assert event["ts"] >= 0
    if kind == "X":
        assert math.isfinite(event["dur"])
        assert event["dur"] >= 0
    elif kind == "C":
        assert event["args"]
        assert all(isinstance(value, int | float) for value in event["args"].values())
    else:
        assert (event["cat"], event["name"]) == ("batch", "batch")


def _bind(events: list[Event]) -> dict[int, dict[str, Any]]:
    """What the slice has to which a flow event belongs, by the event's identity."""
    bound: dict[int, dict[str, Any]] = {}
    stacks: dict[tuple[int, int], list[_Open]] = defaultdict(list)
    timed = [event for event in events if event["ph"] != "M"]
    for event in sorted(timed, key=lambda event: nanoseconds(event["ts"])):
        stack = stacks[event["pid"], event["tid"]]
        if event["ph"] == "X":
            begin = nanoseconds(event["ts"])
            new = _Open(begin, begin + nanoseconds(event["dur"]), event.get("args", {}))
            while stack and stack[-1].end <= new.begin:
                stack.pop()
            assert not stack or new.end <= stack[-1].end, f"Perfetto drops {event}"
            stack.append(new)
        elif event["ph"] in "stf":
            assert stack, f"no slice has begun at {event}"
            bound[id(event)] = stack[-1].args
            assert stack[-1].begin <= nanoseconds(event["ts"]) < stack[-1].end, event
    return bound
