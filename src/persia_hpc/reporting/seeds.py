"""Summarises the runs of several seeds: mean and standard deviation of what they reached."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persia_hpc.config.watching import RESERVED

from .run_files import number, read_object

ENDED = ("completed", "stopped")
_PARTS = ("valid", "test", "evaluation", "progressive")  # whose metrics are compared
EVALUATION = "evaluation.json"  # what `submit --evaluate` leaves


def seed_directory(seed: int | str) -> str:
    """Returns the name of the folder of one seed's run in that of all."""
    return f"seed-{seed}"


def seed_runs(directory: Path) -> dict[int, Path]:
    """Returns the runs of seeds that a directory has, by seed; none for a directory that is no such one."""
    found = {}
    for path in directory.glob(seed_directory("*")):
        seed = path.name.removeprefix(seed_directory(""))
        if seed.isascii() and seed.isdecimal() and path.is_dir():
            found[int(seed)] = path
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Spread:
    """Holds how a metric differs among seeds; `std` is that of a sample, None for one value."""

    metric: str
    values: Mapping[int, float]  # by seed

    @property
    def mean(self) -> float:
        """Returns the mean over the seeds."""
        return _finite(statistics.fmean, self.values.values())

    @property
    def std(self) -> float | None:
        """Returns the standard deviation of the sample, None for one seed."""
        return _finite(statistics.stdev, self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True)
class SeedSummary:
    """Holds what the runs of several seeds reached.

    states: how each run stands. problems: which files are damaged.
    """

    states: Mapping[int, str]
    spreads: Sequence[Spread]
    problems: Sequence[str]

    def lines(self) -> list[str]:
        """Returns it as lines for people."""
        ended = [seed for seed, state in self.states.items() if state in ENDED]
        lines = [f"{len(self.states)} seeds, {len(ended)} of them ended: {_numbers(ended)}"]
        lines += [
            f"seed {seed} is left out: {state}" for seed, state in self.states.items() if state not in ENDED
        ]
        if not self.spreads:
            return lines
        width = max(6, *(len(each.metric) for each in self.spreads))
        lines.append(f"{'metric':<{width}}  {'mean':>10}    {'sd':<10}{'min':>10}{'max':>10}{'seeds':>7}")
        for each in self.spreads:
            values = each.values.values()
            sd = "" if each.std is None else f"{each.std:.2g}"
            mean, least, most = (f"{value:.6g}" for value in (each.mean, min(values), max(values)))
            lines.append(
                f"{each.metric:<{width}}  {mean:>10} {'±' if sd else ' '}  {sd:<10}{least:>10}{most:>10}"
                f"{len(values):>7}"
            )
        return lines


def summarise(runs: Mapping[int, Path]) -> SeedSummary:
    """Returns the summary of runs, by seed; only those that have ended count."""
    states: dict[int, str] = {}
    problems: list[str] = []
    values: dict[str, dict[int, float]] = {}
    for seed, run in runs.items():
        summary, bad = read_object(run / "summary.json")
        failure, _ = read_object(run / "failure.json")
        evaluation, also_bad = read_object(run / EVALUATION)
        problems += [each for each in (bad, also_bad) if each is not None]
        state = "damaged summary.json" if bad else "not ended"
        states[seed] = f"failed: {failure.get('message')}" if failure else str(summary.get("status", state))
        if states[seed] in ENDED:
            for name, value in _metrics({**summary, "evaluation": evaluation}).items():
                values.setdefault(name, {})[seed] = value
    return SeedSummary(states, [Spread(name, found) for name, found in values.items()], problems)


def _metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite metrics of a run's last evaluations, and its speed, by name."""
    found = {}
    for part in _PARTS:
        metrics = summary.get(part)
        for name in metrics if isinstance(metrics, Mapping) else ():
            value = number(metrics, name)
            if name not in RESERVED and value is not None:
                found[f"{part}.{name}"] = value
    for name in ("steps", "samples_per_second"):
        value = number(summary, name)
        if value is not None and math.isfinite(value):
            found[name] = value
    return found


def _finite(statistic: Callable[[Iterable[float]], float], values: Iterable[float]) -> float:
    """Returns a statistic of values; infinity where it, or a sum on the way, has no double."""
    try:
        return statistic(values)
    except OverflowError:
        return math.inf


def _numbers(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"
