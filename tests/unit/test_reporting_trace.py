"""A trace as Perfetto reads it: processes in order, arrows of each batch from pull to push, counters."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.reporting.trace import chrome_trace
from persia_hpc.runtime.phases import Interval
from tests.support.traces import check_trace

Rank = tuple[str, list[Interval]]


class Job:
    """Ranks that pass batches on, each busy with one thing at a time."""

    def __init__(self, servers: int, workers: int, trainers: int, draw: Any) -> None:
        self.ranks: list[Rank] = [
            *((f"trainer {t}", []) for t in range(trainers)),
            *((f"parameter_server {p}", []) for p in range(servers)),
            *((f"embedding_worker {w}", []) for w in range(workers)),
        ]
        self.named = dict(self.ranks)
        self.free = dict.fromkeys(self.named, 0.0)
        self.draw = draw

    def does(self, name: str, phase: str, step: int, trainer: int, after: float) -> float:
        begin = max(self.free[name], after)
        end = begin + self.draw(st.integers(1, 100)) * 1e-5
        self.named[name].append(Interval(phase, begin, end, step, trainer))
        self.free[name] = end + 1e-6
        return end

    def trains(self, step: int, trainer: int, worker: int, servers: int) -> None:
        at = self.does(f"embedding_worker {worker}", "dedup", step, trainer, 0.0)
        at = self.does(f"embedding_worker {worker}", "pull", step, trainer, at)
        answers = [self.does(f"parameter_server {p}", "pull", step, trainer, at) for p in range(servers)]
        for answer in sorted(answers):
            at = self.does(f"embedding_worker {worker}", "feed", step, trainer, answer)
        for phase in ("pool", "forward", "backward", "pool", "push"):
            at = self.does(f"trainer {trainer}", phase, step, trainer, at)
        at = self.does(f"embedding_worker {worker}", "push", step, trainer, at)
        for p in range(servers):
            self.does(f"parameter_server {p}", "push", step, trainer, at)


def trace_of(server: list[Interval], worker: list[Interval], num_steps: int) -> list[dict[str, Any]]:
    ranks: list[Rank] = [("parameter_server 0", server), ("embedding_worker 0", worker)]
    return chrome_trace(ranks, [0.0, 0.0], num_steps)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 6))
def test_each_batch_has_arrows_from_its_pull_to_its_push(
    data: st.DataObject, servers: int, workers: int, trainers: int, steps: int
) -> None:
    job = Job(servers, workers, trainers, data.draw)
    for step in range(1, steps + 1):
        for trainer in range(trainers):
            job.trains(step, trainer, trainer % workers, servers)
    last = data.draw(st.integers(1, steps))
    offsets = [data.draw(st.floats(0, 1000)) for _ in job.ranks]
    ahead = [
        (name, [i._replace(begin=i.begin + offset, end=i.end + offset) for i in intervals])
        for (name, intervals), offset in zip(job.ranks, offsets, strict=True)
    ]
    events = chrome_trace(ahead, offsets, last)
    found = check_trace(events)
    assert len(found) == last * trainers
    assert {(f[0]["args"]["step"], f[0]["args"]["trainer"]) for f in found.values()} == {
        (step, trainer) for step in range(steps - last + 1, steps + 1) for trainer in range(trainers)
    }
    for flow in found.values():
        assert len(flow) == 2 * servers + 5  # all that a batch passes


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0, 1e5),
    st.lists(st.floats(1e-7, 1e-2), min_size=8, max_size=40),
    st.sampled_from(("one process", "trainer 0")),
)
def test_slices_that_touch_do_not_overlap(start: float, lengths: list[float], name: str) -> None:
    """One phase begins where the one before ends; Perfetto drops what begins a nanosecond sooner."""
    phases = ("pull", "pool", "forward", "push")
    intervals, now = [], start
    for i, length in enumerate(lengths):
        intervals.append(Interval(phases[i % 4], now, now + length, 1 + i // 4, 0))
        now += length
    events = chrome_trace([(name, intervals)], [0.0], len(lengths))
    check_trace(events)
    assert sum(event["ph"] == "X" for event in events) == len(lengths)


def test_roles_stand_in_their_order() -> None:
    ranks: list[Rank] = [(name, []) for name in ("trainer 1", "embedding_worker 0", "trainer 0")]
    ranks += [(f"parameter_server {p}", []) for p in (10, 2)]
    events = chrome_trace(ranks, [0.0] * 5, 3)
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    index = {e["pid"]: e["args"]["sort_index"] for e in events if e["name"] == "process_sort_index"}
    shown = [names[pid] for pid in sorted(names, key=lambda pid: index[pid])]
    assert shown == [
        "parameter_server 2",
        "parameter_server 10",
        "embedding_worker 0",
        "trainer 0",
        "trainer 1",
    ]


def test_one_process_has_arrows_too() -> None:
    phases = ("pull", "pool", "forward", "push")
    intervals = [
        Interval(phase, step + i / 10, step + i / 10 + 0.05, step, 0)
        for step in range(1, 4)
        for i, phase in enumerate(phases)
    ]
    found = check_trace(chrome_trace([("one process", intervals)], [0.0], 2))
    assert [len(flow) for flow in found.values()] == [2, 2]


def test_a_clock_that_is_wrong_breaks_no_arrow() -> None:
    worker = [Interval("pull", 1.0, 1.1, 1, 0), Interval("push", 2.0, 2.1, 1, 0)]
    server = [Interval("pull", 0.5, 0.6, 1, 0), Interval("push", 2.1, 2.2, 1, 0)]
    (flow,) = check_trace(
        chrome_trace([("parameter_server 0", server), ("embedding_worker 0", worker)], [0, 0], 1)
    ).values()
    assert [event["pid"] for event in flow] == [2, 2, 1]  # not the server's pull, which seems to be earlier


def test_a_batch_without_its_push_has_none() -> None:
    worker = [Interval("pull", 1.0, 1.1, 1, 0)]
    server = [Interval("pull", 1.5, 1.6, 1, 0)]
    assert (
        check_trace(chrome_trace([("parameter_server 0", server), ("embedding_worker 0", worker)], [0, 0], 1))
        == {}
    )


def test_counters_say_what_is_under_way_and_how_stale_it_is() -> None:
    worker = [Interval("pull", float(s), s + 0.1, s, 0) for s in (1, 2, 3)]
    worker += [Interval("push", s + 4.0, s + 4.1, s, 0) for s in (1, 2, 3)]
    server = [Interval("push", 0.0, 0.2, 1, 0), Interval("pull", 3.0, 3.1, 4, 0)]
    server += [Interval("push", 4.0, 4.1, 2, 0), Interval("pull", 5.0, 5.1, 5, 0)]
    events = trace_of(server, worker, 5)
    values = [(e["pid"], e["name"], *e["args"].values()) for e in events if e["ph"] == "C"]
    assert [v[2] for v in values if v[0] == 2] == [1, 2, 3, 2, 1, 0]
    assert [v[1:] for v in values if v[0] == 1] == [("staleness", 2), ("staleness", 2)]
