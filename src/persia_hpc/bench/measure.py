"""Times functions beside a limit in the same run: they take turns, so that noise hits all of them."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Holds the median of a function's repetitions and half their interquartile range, in one unit."""

    median: float
    spread: float

    def scaled(self, factor: float) -> Timing:
        """Returns the same in another unit."""
        return Timing(self.median * factor, self.spread * factor)


@dataclass(frozen=True)
class Result:
    """Holds one case of a benchmark: what was reached, and limits or peers measured in turns with it."""

    case: Mapping[str, Any]  # parameters, in the order in which the table shows them
    unit: str
    ours: Timing
    limits: Mapping[str, Timing] = field(default_factory=dict)  # in the same unit
    higher_is_better: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)  # further figures, by name with unit

    def ratio(self, limit: str) -> float:
        """Returns what share of a limit is reached: 1 at the limit."""
        ours, best = self.ours.median, self.limits[limit].median
        return ours / best if self.higher_is_better else best / ours

    def as_dict(self) -> dict[str, Any]:
        """Returns the result with its ratios, for JSON."""
        return {**asdict(self), "ratios": {name: self.ratio(name) for name in self.limits}}


def in_turns(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times functions in turns and returns their seconds per call; the first call of each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            begin = clock()
            function()
            end = clock()
            if turn:
                seconds[name].append(end - begin)
    return {name: summarize(values) for name, values in seconds.items()}


def summarize(values: list[float]) -> Timing:
    """Returns the median and half the interquartile range."""
    if len(values) < 2:
        return Timing(values[0], 0.0)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(statistics.median(values), (high - low) / 2)


def available_cores() -> list[int]:
    """Returns the cores that this process may use, in ascending order."""
    return sorted(os.sched_getaffinity(0))


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Pins this thread to one core inside the `with` block (None: it may run where it could before)."""
    before = os.sched_getaffinity(0)
    try:
        if core is not None:
            os.sched_setaffinity(0, {core})
        yield
    finally:
        os.sched_setaffinity(0, before)


def machine() -> dict[str, Any]:
    """Returns the facts about this machine that are needed to judge a figure."""
    model = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    huge = next(iter(_lines("/sys/kernel/mm/transparent_hugepage/enabled")), "unknown")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int(memory) * 1024,
        "transparent_huge_pages": huge,
        "python": platform.python_version(),
    }


def table_lines(results: Iterable[Result]) -> Iterator[str]:
    """Yields a line per result: the case, what was reached, and each limit with the share reached of it."""
    for result in results:
        case = "  ".join(f"{name}={value}" for name, value in result.case.items())
        parts = [f"{_figure(result.ours)} {result.unit}"]
        parts += [
            f"{name} {_figure(timing)} ({result.ratio(name):.0%})" for name, timing in result.limits.items()
        ]
        parts += [f"{name} {_number(value)}" for name, value in result.notes.items()]
        yield f"{case:<58}  " + "  ".join(parts)


def _figure(timing: Timing) -> str:
    return f"{_number(timing.median)} ±{_number(timing.spread)}"


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
