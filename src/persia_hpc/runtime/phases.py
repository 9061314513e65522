"""Counts what each rank spends its time on and, on request, keeps the intervals (`reporting/trace.py`)."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# In the order in which summaries show them. A trainer in one process also has the phases of its batch stream.
TRAINER = ("wait", "pool", "forward", "backward", "push", "allreduce", "optimizer")
LOCAL_STREAM = ("read", "dedup", "pull")
WORKER = ("idle", "read", "dedup", "pull", "feed", "patch", "push")
SERVER = ("idle", "pull", "patch", "push")

EVENTS_PER_STEP = 512  # kept for a trace; more only shorten it
GAP_SECONDS = 200e-6  # intervals of one phase that are closer than this become one event


class Interval(NamedTuple):
    """Holds what a rank did when, in seconds of its own monotonic clock. Step 0 stands for no single step.

    trainer: whose batch of the step it was, -1 for none's.
    """

    phase: str
    begin: float
    end: float
    step: int
    trainer: int = -1


class Pace:
    """Measures samples per second without the warm-up: over at least the second half of the steps.

    Its memory is constant.
    """

    def __init__(self) -> None:
        self._marks = [(0, 0, 0.0)]  # (step, samples, training seconds) at the latest powers of two
        self._now = (0, 0, 0.0)

    def step(self, number: int, samples: int, seconds: float) -> None:
        """Records that step `number` is done: `samples` in all, in `seconds` of training."""
        self._now = (number, samples, seconds)
        if number & (number - 1) == 0:
            self._marks = [self._marks[-1], self._now]

    def steady(self) -> dict[str, float]:
        """Returns `steps`, `samples`, `seconds` and `samples_per_second` of the steps that count.

        They begin after the largest power of two that is at most half of all steps.
        """
        begin = max((m for m in self._marks if 2 * m[0] <= self._now[0]), default=self._now)
        steps, samples, seconds = (now - then for now, then in zip(self._now, begin, strict=True))
        rate = samples / seconds if seconds else 0.0
        return {"steps": steps, "samples": samples, "seconds": seconds, "samples_per_second": rate}


class Phases:
    """Sums seconds by phase, within the time between `start` and `stop`."""

    def __init__(self, names: Sequence[str], trace_steps: int | None = None, *, trainer: int = -1) -> None:
        """Starts with no time counted.

        trace_steps: also keep the intervals of about this number of last steps.
        trainer: whose batches all of them are.
        """
        self._trainer = trainer
        self.seconds = dict.fromkeys(names, 0.0)
        self.total = 0.0
        self._began: float | None = None
        self._intervals: deque[Interval] | None = (
            deque(maxlen=EVENTS_PER_STEP * trace_steps) if trace_steps else None
        )
        self._due, self._period = math.inf, 0.0
        self._tell: Callable[[], object] | None = None

    def every(self, seconds: float, tell: Callable[[], object]) -> None:
        """Calls `tell` from `add`, when so many seconds have passed since it was called."""
        self._due, self._period, self._tell = time.perf_counter() + seconds, seconds, tell

    def start(self) -> None:
        """Begins the time that is counted."""
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Ends the time that is counted, if it hasn't ended yet. It may be started again."""
        self.total, self._began = self.elapsed(), None

    def elapsed(self) -> float:
        """Returns the seconds between `start` and `stop` up to now."""
        return self.total if self._began is None else self.total + time.perf_counter() - self._began

    def add(
        self, phase: str, begin: float, step: int = 0, end: float | None = None, *, trainer: int | None = None
    ) -> float:
        """Adds the time from `begin` to `end` (perf_counter; by default now) to `phase`; returns `end`.

        step and trainer say which batch it was for.
        """
        if end is None:
            end = time.perf_counter()
        self.seconds[phase] += end - begin
        if self._intervals is not None:
            self._keep(Interval(phase, begin, end, step, self._trainer if trainer is None else trainer))
        if end >= self._due and self._tell is not None:
            self._due = end + self._period
            self._tell()
        return end

    def _keep(self, interval: Interval) -> None:
        assert self._intervals is not None
        if self._intervals:
            last = self._intervals[-1]
            near = interval.begin - last.end < GAP_SECONDS
            same = (last.phase, *last[3:]) == (interval.phase, *interval[3:])
            if near and same:
                self._intervals[-1] = last._replace(end=interval.end)
                return
        self._intervals.append(interval)

    def report(self) -> dict[str, float]:
        """Returns seconds by phase, what no phase covers as `other`, and the `total`."""
        return {
            **self.seconds,
            "other": max(0.0, self.total - sum(self.seconds.values())),
            "total": self.total,
        }

    def statistics(self) -> dict[str, Any]:
        """Returns what a rank reports: `phases` for summary.json, `intervals` for a trace, oldest first."""
        return {"phases": self.report(), "intervals": list(self._intervals or ())}
