"""How right the time left is that a run says after a tenth of its steps: Adult, with its start-up and end.

    persia-hpc preprocess adult --out data/adult
    python -m benchmarks.time_left [--epochs 60] [--repeats 1]

Jobs under mpiexec: as configured, with its valid split evaluated twice an epoch, and with checkpoints too.
True is the time from the moment when the line came until the command had ended.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[1] / "datasets" / "adult" / "adult.toml"
OFTEN = ["train.evaluate_every=50"]
CASES = {
    "as configured": [],
    "evaluated twice an epoch": OFTEN,
    "and a checkpoint each epoch": [*OFTEN, "checkpoint.every=100"],
}
SHARES = (0.1, 0.25, 0.5)


def measure(changes: list[str]) -> tuple[float, dict[float, tuple[float, float]]]:
    """Returns a run's seconds, and by share of its steps the seconds that were said to be left, and were."""
    said: dict[float, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = ["persia-hpc", "train", str(CONFIG), "--json", "--run-dir", f"{folder}/run"]
        command += [part for change in changes for part in ("--set", change)]
        begin = time.time()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
            assert job.stdout is not None
            for line in job.stdout:
                event, now = json.loads(line), time.time()
                if event["event"] != "train" or event["left_seconds"] is None:
                    continue
                for share in SHARES:
                    if event["step"] >= share * event["num_steps"]:
                        said.setdefault(share, (event["left_seconds"], now))
        end = time.time()
        assert job.returncode == 0
    return end - begin, {share: (left, end - now) for share, (left, now) in said.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    for name, changes in CASES.items():
        for _ in range(options.repeats):
            took, left = measure([f"train.epochs={options.epochs}", *changes])
            texts = [
                f"after {share:.0%} {said:.1f} s said, {true:.1f} true ({said / true - 1:+.0%})"
                for share, (said, true) in left.items()
            ]
            print(f"{name}: {took:.1f} s; {'; '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
