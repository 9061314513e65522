"""What a job costs besides its training: builds in turns, each with a job of one step on Adult.

    persia-hpc preprocess adult --out data/adult
    python benchmarks/start.py --pairs 5 .venv OTHER/.venv

Each argument is an environment with persia-hpc. Prints medians and spread of the wall time, of the CPU time
of all the job's processes, and of the wall time outside of the training that summary.json tells.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[1] / "datasets" / "adult" / "adult.toml"
ONE_STEP = ("train.max_steps=1", "train.evaluate_at_end=false", "train.save=false")


def measure(environment: str) -> tuple[float, float, float]:
    """Returns the seconds of one job: by the clock, of CPUs, and by the clock without its training."""
    changes = [part for change in ONE_STEP for part in ("--set", change)]
    program = str(Path(environment).resolve() / "bin" / "persia-hpc")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "train", str(CONFIG), *changes, "--quiet", "--run-dir", f"{folder}/run"]
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, timeout=240, env=env)
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, wall - summary["train_seconds"] - summary["evaluate_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environments", nargs="+", metavar="ENV")
    parser.add_argument("--pairs", type=int, default=5, help="jobs with each (default: 5)")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {each: [] for each in options.environments}
    for _ in range(options.pairs):
        for environment, taken in found.items():
            taken.append(measure(environment))
    print("environment: median (least to most) seconds: wall; CPU; wall without training")
    for environment, taken in found.items():
        figures = [
            f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in zip(*taken, strict=True)
        ]
        print(f"{environment}: {'; '.join(figures)}")


if __name__ == "__main__":
    main()
