"""Compares `importance` with one evaluation of the same run, in turns: python benchmarks/importance.py DIR

DIR is of `persia-hpc preprocess synthetic --rows 300000 --test-rows 400000 --out DIR`; a run of DLRM is
trained there once. Loading it isn't counted, since both load it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import persia_hpc as ph


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Returns what `call` gives, and its seconds of wall-clock and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Prints the seconds of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--share", type=float, default=0.1, help="of the test samples, for importance")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ids", action="store_true", help="id features only")
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    run_dir = options.data / "run"
    if not (run_dir / "summary.json").exists():
        config = {
            "data": {"train": str(options.data / "train-*.h5"), "test": str(options.data / "test.h5")},
            "tables": {"default": {"dim": 16, "capacity": "1 GiB"}},
            "model": {"class": "dlrm"},
            "train": {"evaluate_at_end": False},
            "run_dir": str(run_dir),
        }
        ph.train(config, quiet=True)
    run = ph.load(run_dir)
    found: list[tuple[float, float]] = []
    for pair in range(options.pairs):
        whole, *evaluation = timed(run.evaluate)
        samples = round(whole["samples"] * options.share)
        ids = run.schema.feature_names if options.ids else ()
        options_of = {"samples": samples, "repeats": options.repeats, "only": ids}
        result, *importance = timed(partial(run.importance, **options_of))
        found.append((importance[0] / evaluation[0], importance[1] / evaluation[1]))
        units = len(result["features"])
        print(
            f"pair {pair}: evaluation of {whole['samples']:,} samples {evaluation[0]:.1f} s "
            f"({evaluation[1]:.1f} s CPU), importance of {units} features on {samples:,} samples "
            f"{importance[0]:.1f} s ({importance[1]:.1f} s CPU)"
        )
    wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"importance / evaluation: {wall:.2f} of wall-clock, {cpu:.2f} of CPU time")


if __name__ == "__main__":
    main()
