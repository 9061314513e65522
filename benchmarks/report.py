"""What a page about a long run takes: `persia-hpc report RUN --html`, in a process of its own.

    python -m benchmarks.report [--events 1000000] [--evaluations 1000] [--repeats 5]

The run directory is written without a run: an event of training for each step, as `metrics.jsonl` has them,
with evaluations between.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.recorded import evaluate_event, train_event, write_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000, help="of training, one a step")
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    every, events = max(1, options.events // options.evaluations), []
    for step in range(1, options.events + 1):
        events.append(train_event(step, options.events, step / 100))
        if step % every == 0:
            events.append(evaluate_event(step))
    with tempfile.TemporaryDirectory() as folder:
        run, page = write_record(Path(folder) / "run", events), Path(folder) / "report.html"
        command = [sys.executable, "-m", "persia_hpc.cli", "report", str(run), "--html", str(page)]
        seconds = []
        for _ in range(options.repeats):
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - begin)
        log_bytes, kilobytes = (run / "metrics.jsonl").stat().st_size, page.stat().st_size / 1e3
    print(f"{len(events):,} events, {log_bytes / 1e6:.0f} MB: {statistics.median(seconds):.2f} s", end=" ")
    print(f"({min(seconds):.2f} to {max(seconds):.2f}), page of {kilobytes:.0f} kB")


if __name__ == "__main__":
    main()
