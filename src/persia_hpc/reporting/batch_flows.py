"""Follows batches through a trace: arrows from pull to push, and how many were under way or behind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from persia_hpc.topology.roles import Role

SERVER, WORKER, TRAINER = Role.PARAMETER_SERVER.value, Role.EMBEDDING_WORKER.value, Role.TRAINER.value
ONE_PROCESS = "one process"
# A batch's way: phases of roles, in their order. In one process it is the pull and the push.
WAY = (
    (WORKER, "pull"),
    (SERVER, "pull"),
    (WORKER, "feed"),
    (SERVER, "patch"),
    (WORKER, "patch"),
    (TRAINER, "pool"),
    (TRAINER, "push"),
    (WORKER, "push"),
    (SERVER, "push"),
)
LATEST = (
    (WORKER, "feed"),
    (WORKER, "patch"),
    (TRAINER, "push"),
)  # of which the last slice counts: then all is there
# Microseconds between two times of a trace: a whole number of nanoseconds, and exact in binary. Perfetto cuts
# what it reads down to nanoseconds, and drops a slice that begins even one before the slice before it ends.
TICK = 0.125


def in_ticks(seconds: float) -> float:
    """Returns the microseconds of the nearest time that a trace may have."""
    return round(1e6 * seconds / TICK) * TICK


class Slice(NamedTuple):
    """Is an event of a trace that belongs to a batch; its times are in microseconds."""

    role: str
    pid: int
    phase: str
    begin: float
    end: float
    step: int
    trainer: int


def flows(slices: Sequence[Slice]) -> Iterator[dict[str, Any]]:
    """Yields the arrows of each batch whose pull and push are both there: start, steps, finish.

    Each lies inside of its slice, before its end, where the next slice may begin, and none before the one
    that it comes from. Clocks of nodes differ a little: a slice that seems to end before its cause began is
    left out.
    """
    batches: dict[tuple[int, int], list[Slice]] = defaultdict(list)
    for each in slices:
        batches[each.step, each.trainer].append(each)
    for number, ((step, trainer), own) in enumerate(sorted(batches.items())):
        way = list(_way(own))
        if len(way) < 2 or way[0][1].phase != "pull" or way[-1][1].phase != "push":
            continue
        base = {"cat": "batch", "name": "batch", "id": f"{number + 1:#x}"}
        args = {"step": step, "trainer": trainer}
        for i, (ts, each) in enumerate(way):
            kind: dict[str, Any] = {"ph": "t"}
            if i == 0:
                kind = {"ph": "s", "args": args}
            elif i == len(way) - 1:
                kind = {"ph": "f", "bp": "e"}
            yield {**base, **kind, "pid": each.pid, "tid": each.pid, "ts": ts}


def _way(slices: Sequence[Slice]) -> Iterator[tuple[float, Slice]]:
    now = -1.0
    for each in _ordered(slices):
        ts = max(each.begin, now + TICK)
        if ts < each.end:
            now = ts
            yield ts, each


def _ordered(slices: Sequence[Slice]) -> Iterator[Slice]:
    one_process = slices[0].role == ONE_PROCESS
    way = ((ONE_PROCESS, "pull"), (ONE_PROCESS, "push")) if one_process else WAY
    for role, phase in way:
        found = sorted((s for s in slices if (s.role, s.phase) == (role, phase)), key=lambda s: s.begin)
        if role == SERVER:
            yield from found
        elif found:
            yield found[-1 if (role, phase) in LATEST else 0]


def counters(slices: Sequence[Slice]) -> Iterator[dict[str, Any]]:
    """Yields counters: the batches under way of each worker, and the staleness of each server's answers."""
    yield from _under_way(slices)
    yield from _staleness(slices)


def _under_way(slices: Sequence[Slice]) -> Iterator[dict[str, Any]]:
    """Yields how many batches of a worker have been asked for and have not come back as gradients."""
    by_worker: dict[int, list[tuple[float, int]]] = defaultdict(list)
    pulls = {(s.step, s.trainer): s.pid for s in slices if (s.role, s.phase) == (WORKER, "pull")}
    for each in slices:
        if each.role == WORKER and pulls.get((each.step, each.trainer)) == each.pid:
            if each.phase == "pull":
                by_worker[each.pid].append((each.begin, 1))
            elif each.phase == "push":
                by_worker[each.pid].append((each.end, -1))
    for pid, changes in by_worker.items():
        count = 0
        for ts, change in sorted(changes):
            count += change
            yield _counter(pid, "batches under way", ts, {"batches": max(0, count)})


def _staleness(slices: Sequence[Slice]) -> Iterator[dict[str, Any]]:
    """Yields how many steps' updates the rows of an answer missed, by what the server had applied by then."""
    trainers = len({s.trainer for s in slices})
    of_servers: dict[int, list[Slice]] = defaultdict(list)
    for each in slices:
        if each.role == SERVER:
            of_servers[each.pid].append(each)
    for pid, own in of_servers.items():
        pushed: Counter[int] = Counter()
        applied = min((s.step for s in own if s.phase == "push"), default=0) - 1
        for each in sorted(own, key=lambda s: s.end):
            if each.phase == "push":
                pushed[each.step] += 1
                while pushed[applied + 1] == trainers:
                    applied += 1
            elif each.phase in ("pull", "patch") and applied > 0:
                missed = max(0, each.step - 1 - applied)
                yield _counter(pid, "staleness", each.begin, {"steps": missed})


def _counter(pid: int, name: str, ts: float, values: Mapping[str, float]) -> dict[str, Any]:
    return {"ph": "C", "pid": pid, "tid": pid, "name": name, "ts": ts, "args": dict(values)}
