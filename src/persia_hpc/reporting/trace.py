"""Writes a job's last steps as a Chrome trace, for chrome://tracing and https://ui.perfetto.dev."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persia_hpc.config import Config
from persia_hpc.durable import replacing
from persia_hpc.runtime.phases import Interval
from persia_hpc.topology.roles import ROLE_ORDER

from .batch_flows import ONE_PROCESS, Slice, counters, flows, in_ticks

BARRIERS = 15


def clock_offsets(comm: Any, nodes: Sequence[int]) -> list[float] | None:
    """Returns how many seconds each rank's clock is ahead of rank 0's; None on ranks other than 0.

    `nodes`: node of each rank of `comm` (mpi4py). All leave a barrier at about the same time; ranks of a node
    share a clock, so the median over its ranks and over several barriers is the node's offset.

    Collective over comm.
    """
    times = []
    for _ in range(BARRIERS):
        comm.Barrier()
        times.append(time.perf_counter())
    everyone: list[list[float]] | None = comm.gather(times)
    if everyone is None:
        return None
    by_node: dict[int, list[float]] = {}
    for node, theirs in zip(nodes, everyone, strict=True):
        by_node.setdefault(node, []).extend(t - first for t, first in zip(theirs, everyone[0], strict=True))
    offsets = {node: statistics.median(values) for node, values in by_node.items()}
    offsets[nodes[0]] = 0.0
    return [offsets[node] for node in nodes]


def chrome_trace(
    ranks: Sequence[tuple[str, Sequence[Interval]]], offsets: Sequence[float], num_steps: int
) -> list[dict[str, Any]]:
    """Returns the events of the last `num_steps` steps of all ranks, on one clock from 0.

    ranks: (role and its number, intervals) of each; a rank is shown as a process with one thread.
    """
    shifted = [
        [i._replace(begin=i.begin - offset, end=i.end - offset) for i in intervals]
        for (_, intervals), offset in zip(ranks, offsets, strict=True)
    ]
    last = max((i.step for intervals in shifted for i in intervals), default=0)
    of_steps = [i for intervals in shifted for i in intervals if i.step > last - num_steps and i.step]
    begin, end = min((i.begin for i in of_steps), default=0.0), max((i.end for i in of_steps), default=0.0)
    events: list[dict[str, Any]] = []
    slices: list[Slice] = []
    order = sorted(range(len(ranks)), key=lambda rank: _place(ranks[rank][0]))
    for rank, ((name, _), intervals) in enumerate(zip(ranks, shifted, strict=True)):
        pid = rank + 1  # 0 is no process's, and thread numbers are of all processes together
        where = {"pid": pid, "tid": pid}
        for kind, value in (("process_name", name), ("thread_name", name.rpartition(" ")[0] or name)):
            events.append({"ph": "M", **where, "name": kind, "args": {"name": value}})
        index = {"sort_index": order.index(rank)}
        events.append({"ph": "M", **where, "name": "process_sort_index", "args": index})
        for i in intervals:
            stepless = i.step == 0 and i.begin < end and i.end > begin
            if stepless or i.step > last - num_steps:
                from_, until = (in_ticks(min(max(t, begin), end) - begin) for t in (i.begin, i.end))
                event = {"ph": "X", **where, "name": i.phase, "cat": "step", "ts": from_}
                event["dur"] = until - from_
                if i.step:
                    event["args"] = {"step": i.step, **({"trainer": i.trainer} if i.trainer >= 0 else {})}
                    role = name.rpartition(" ")[0] if name != ONE_PROCESS else name
                    slices.append(Slice(role, pid, i.phase, from_, until, i.step, i.trainer))
                events.append(event)
    return [*events, *flows(slices), *counters(slices)]


def _place(name: str) -> tuple[int, int]:
    """Returns where a rank is shown: as batches pass the roles, and by its number among its role's."""
    role, _, number = name.rpartition(" ")
    places = [each.value for each in ROLE_ORDER]
    return (places.index(role) if role in places else -1, int(number) if number.isdecimal() else 0)


def write_trace(
    run_dir: Path, ranks: Sequence[tuple[str, Sequence[Interval]]], offsets: Sequence[float], config: Config
) -> None:
    """Writes `trace.json`, with one event a line, if `train.trace` asks for it."""
    if config.train.trace is None:
        return
    events = ",\n".join(json.dumps(event) for event in chrome_trace(ranks, offsets, config.train.trace))
    with replacing(run_dir / "trace.json") as partial:
        partial.write_text(f'{{"displayTimeUnit": "ms", "traceEvents": [\n{events}\n]}}\n')
