"""Whether `persia-hpc plan` is right: predicted against measured samples/s of real jobs on this machine.

    python benchmarks/plan_check.py [CASE ...] [--repeats 3] [--constants FILE] [--json FILE]

Measures the constants first, unless they are given; then predicts and runs each case in turn, of which none
was part of the measuring. Measured: samples/s of the second half of the steps, in which all rows are there,
median of the repetitions; each is predicted anew, since the dense model is timed then. What other work on the
machine has disturbed is done again, at most --tries times; the last column is what it took at worst, in
cores. Exit code 1 if an error is larger than 15 %. About four minutes a repetition on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from persia_hpc.bench.constants import measure_constants
from persia_hpc.bench.measure import available_cores, machine
from persia_hpc.bench.train_jobs import run_job, synthetic, w0_settings
from persia_hpc.config import load_config
from persia_hpc.cost_model.cluster import Cluster
from persia_hpc.cost_model.constants import constants_text
from persia_hpc.cost_model.predict import Prediction
from persia_hpc.job.planner import Given, Planner

DATA_SAMPLES = 1 << 19  # between two epochs the pipeline drains, which isn't predicted: at least 32 steps
JOB_SECONDS = 6
WANTED = 0.15
QUIET_CORES = 0.05  # what other work may take

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """W0 with other numbers; ranks: servers, workers, trainers."""

    batch: int
    ranks: tuple[int, int, int] = (1, 1, 1)
    dim: int = 16
    features: int = 26
    multi: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    def settings(self, path: Path) -> dict[str, Any]:
        settings = w0_settings(path, self.batch, DATA_SAMPLES) | self.more
        settings["tables"]["default"]["dim"] = self.dim
        roles = ("parameter_servers", "embedding_workers", "trainers")
        return settings | {"ranks": dict(zip(roles, self.ranks, strict=True))}


CASES = {
    "batch-512": Case(512),
    "batch-2048": Case(2048),
    "batch-16384": Case(16384),
    "dim-64": Case(2048, dim=64),
    "dim-64-large": Case(8192, dim=64),
    "two-trainers": Case(2048, ranks=(1, 1, 2)),
    "two-trainers-large": Case(16384, ranks=(1, 1, 2)),
    "two-servers": Case(2048, ranks=(2, 1, 1)),
    "8-features": Case(4096, features=8),
    "multi-hot": Case(2048, features=6, multi=3),
    "sync": Case(2048, more={"mode": "sync"}),
    "fp16": Case(4096, more={"wire": {"rows": "fp16", "gradients": "scaled_fp16"}}),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--constants", type=Path, help="a file of `persia-hpc plan --measure`")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown or min(options.repeats, options.tries) < 1:
        parser.error(f"unknown case {unknown.pop()}" if unknown else "--repeats, --tries: at least 1")
    with tempfile.TemporaryDirectory() as name:
        folder, constants = Path(name), options.constants
        if constants is None:
            constants = folder / "constants.toml"
            values, other = undisturbed(measure_constants, options.tries)
            constants.write_text(constants_text(values))
            print(f"constants, while other work took {other:.2f} cores:")
        print(constants.read_text(), flush=True)
        results = [
            check(case, options.repeats, options.tries, constants, folder) for case in options.cases or CASES
        ]
    worst = max(abs(result["error"]) for result in results)
    print(f"largest error {worst:.0%}, wanted at most {WANTED:.0%}")
    if options.json is not None:
        report = {"schema_version": 1, "machine": machine(), "results": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(worst > WANTED)


def undisturbed(function: Callable[[], T], tries: int) -> tuple[T, float]:
    """What it returned when other work took the least, and how many cores that was."""
    found: list[tuple[float, T]] = []
    while len(found) < tries and (not found or found[-1][0] > QUIET_CORES):
        begin = (time.perf_counter(), *busy_seconds())
        value = function()
        seconds, everyone, ours = (
            b - a for a, b in zip(begin, (time.perf_counter(), *busy_seconds()), strict=True)
        )
        found.append((max(0.0, everyone - ours) / seconds, value))
    other, value = min(found, key=lambda each: each[0])
    return value, other


def busy_seconds() -> tuple[float, float]:
    """CPU seconds of the whole machine so far, and of this process and those it has started and awaited."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    idle = sum(int(fields[i]) for i in (3, 4))  # idle, and waiting for a disk
    everyone = (sum(map(int, fields[:8])) - idle) / os.sysconf("SC_CLK_TCK")
    ours = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        ours += usage.ru_utime + usage.ru_stime
    return everyone, ours


def check(name: str, repeats: int, tries: int, constants: Path, folder: Path) -> dict[str, Any]:
    case = CASES[name]
    path = synthetic(folder / f"{case.features}-{case.multi}", DATA_SAMPLES, case.features, case.multi)
    settings = case.settings(path)
    cluster = Cluster(cores=len(available_cores()))
    predicted, measured, disturbed, where = [], [], [], ""

    def plan() -> Prediction:
        planner = Planner(load_config(settings), cluster, Given(constants))
        return planner.predict(planner.ranks)

    for _ in range(repeats):
        prediction, other = undisturbed(plan, tries)
        predicted.append(prediction.samples_per_second)
        where = prediction.bottleneck.name
        # At least so many that each half sees all data.
        samples = max(JOB_SECONDS * predicted[-1], 2.2 * DATA_SAMPLES)
        job = {**settings, "train": {**settings["train"], "max_steps": int(samples) // case.batch}}
        summary, more = undisturbed(partial(run_job, folder, job), tries)
        measured.append(summary["steady"]["samples_per_second"])
        disturbed += [other, more]
    said, real = statistics.median(predicted), statistics.median(measured)
    error = said / real - 1
    print(
        f"{name:<20} {'+'.join(map(str, case.ranks))}  predicted {said:>9,.0f}  measured {real:>9,.0f}  "
        f"error {error:+5.0%}  bottleneck: {where:<20} other work {max(disturbed):.2f}",
        flush=True,
    )
    return {
        "case": name,
        "predicted": predicted,
        "measured": measured,
        "error": error,
        "bottleneck": where,
        "other_cores": max(disturbed),
    }


if __name__ == "__main__":
    sys.exit(main())
