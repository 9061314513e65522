"""Writes down, every few seconds, what a rank counts: a line of JSON each, in a file of the rank's own."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from persia_hpc.printable import say

from .phases import Phases

if TYPE_CHECKING:
    from persia_hpc.transport.plane import Plane

FOLDER = "telemetry"  # in a run directory
EVENT = "telemetry"  # what each line is


@dataclass
class Counts:
    """Holds what a rank has counted up to now.

    gauges: values of this moment. counters: sums that only grow; lines also have what each grew by a second.
    """

    step: int
    gauges: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)

    def __or__(self, other: Counts) -> Counts:
        """Returns both as one, with the step of the first."""
        return Counts(self.step, {**other.gauges, **self.gauges}, {**other.counters, **self.counters})

    def of_rings(self, *planes: Plane) -> Counts:
        """Returns these counts with those of the rings that the rank writes to."""
        ends = [counters for plane in planes for counters in plane.counters().values()]
        gauges = {
            "ring_fill": max((plane.fill for plane in planes), default=0.0),
            "queued_records": sum(plane.pending for plane in planes),
        }
        counters = {
            "full_rings": sum(end.full_waits for end in ends),
            "ring_bytes": sum(e.bytes for e in ends),
        }
        return Counts(self.step, {**self.gauges, **gauges}, {**self.counters, **counters})


class Telemetry:
    """Is a rank's file of counts. What fails while it is written ends it, and never the run."""

    def __init__(self, run_dir: Path, role: str, role_rank: int, seconds: float):
        """Writes nothing yet. seconds: between two lines; 0 for none at all."""
        self.path = run_dir / FOLDER / f"{role}-{role_rank}.jsonl"
        self._head = {"event": EVENT, "role": role, "rank": role_rank}
        self._seconds = seconds
        self._said = False
        self._begun = False

    def begin(self, phases: Phases, count: Callable[[], Counts]) -> None:
        """Lets the rank's own thread write a line whenever one is due, from `phases.add`."""
        if not self._seconds:
            return
        before, then = count(), time.perf_counter()  # a resumed run has counted already
        shares = dict.fromkeys(phases.seconds, 0.0)

        def write() -> None:
            nonlocal before, then
            now, passed = count(), time.perf_counter() - then
            then += passed
            line: dict[str, Any] = {**self._head, "time": time.time(), "step": now.step}
            line |= {"rss_bytes": resident_bytes(), **now.gauges, **now.counters}
            for name, value in now.counters.items():
                line[f"{name}_per_second"] = (value - before.counters.get(name, 0)) / passed
            for phase, seconds in phases.seconds.items():
                line[f"{phase}_share"] = (seconds - shares[phase]) / passed
            shares.update(phases.seconds)
            before = now
            self._append(line)

        phases.every(self._seconds, write)

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._said:
            return
        try:
            self.path.parent.mkdir(exist_ok=True)
            # One write: a line is there as a whole, or cut off by a kill or a full disk as the last one.
            with self.path.open("a+b", buffering=0) as file:
                data = json.dumps(line).encode() + b"\n"
                if not self._begun and not _ends_a_line(file):
                    data = b"\n" + data  # not glued to what an earlier start has left
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._begun = True
        except OSError as error:
            self._said = True
            text = f"no more telemetry: can't write {self.path}: {error.strerror}"
            say(text)


def _ends_a_line(file: IO[bytes]) -> bool:
    if not file.seek(0, os.SEEK_END):
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def resident_bytes() -> int:
    """Returns the memory of this process that is in RAM, 0 where the system doesn't say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
