"""AUC and grouped AUC of 10 million samples in a million groups, beside pandas in the same run.

    python -m venv peer && peer/bin/pip install pandas scikit-learn
    python benchmarks/metrics.py --peer peer/bin/python

Ours is what an evaluation computes: AUC, log loss and grouped AUC, from logits in memory, on `--threads`.
The peers are two ways to do it with pandas, without the log loss: ranks by `groupby`, from which the AUC of
each group follows by sums, and scikit-learn's `roc_auc_score` for each group of `groupby`, on one group in
`--share`, as all take minutes. Cases run in turns, `--repeats` rounds. Printed are the median of wall and of
CPU seconds, in brackets the least and the most, and how far the values differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def make_samples(num_samples: int, num_groups: int, seed: int = 0) -> dict[str, Any]:
    """Samples of groups as large as a Zipf-like draw makes them, with float32 scores that tell something."""
    random = np.random.default_rng(seed)
    group = (num_groups * random.random(num_samples) ** 1.5).astype(np.int64)
    score = random.normal(size=num_samples).astype(np.float32)
    label = (random.random(num_samples) < 0.25 / (1 + np.exp(-score))).astype(np.float32)
    # Ids as they are in real data: in no order, and 64 bits wide.
    return {"group": random.integers(-(2**62), 2**62, num_groups)[group], "score": score, "label": label}


def timed(compute: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """What `compute` returns, with the seconds that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    values = compute()
    return {**values, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def ours(samples: dict[str, Any], threads: int) -> dict[str, float]:
    import torch

    from persia_hpc.trainer.metrics import Wanted, evaluate_metrics

    torch.set_num_threads(threads)
    wanted = Wanted(("label",), ("gauc",))
    logits, labels = samples["score"][:, None], samples["label"][:, None]
    found = evaluate_metrics(logits, labels, None, samples["group"], wanted)
    return {"auc": found["auc"], "gauc": found["gauc"]}


def pandas_ranks(samples: dict[str, Any]) -> dict[str, float]:
    """A group's AUC of P positives and N negatives: (sum of the positives' ranks - P (P + 1) / 2) / P N."""
    import pandas
    from sklearn.metrics import roc_auc_score

    frame = pandas.DataFrame(samples)
    frame["rank"] = frame.groupby("group", sort=False)["score"].rank()
    frame["of_positives"] = frame["rank"] * frame["label"]
    sums = frame.groupby("group", sort=False).agg(
        positives=("label", "sum"), size=("label", "size"), ranks=("of_positives", "sum")
    )
    positives = sums["positives"].astype(float)
    negatives = sums["size"] - positives
    both = (positives > 0) & (negatives > 0)
    auc = (sums["ranks"] - positives * (positives + 1) / 2)[both] / (positives * negatives)[both]
    gauc = float(np.average(auc, weights=sums["size"][both]))
    return {"auc": float(roc_auc_score(samples["label"], samples["score"])), "gauc": gauc}


def pandas_apply(samples: dict[str, Any], share: int) -> dict[str, float]:
    import pandas
    from sklearn.metrics import roc_auc_score

    kept = samples["group"] % share == 0
    total = weight = 0.0
    for _, group in pandas.DataFrame({k: v[kept] for k, v in samples.items()}).groupby("group", sort=False):
        if group["label"].nunique() == 2:
            total += len(group) * roc_auc_score(group["label"], group["score"])
            weight += len(group)
    return {"share_gauc": total / weight}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=int, default=200)
    parser.add_argument("--peer", help="interpreter with pandas and scikit-learn")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # this process is to run, and its samples
    parser.add_argument("--data", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {
        "ours": lambda samples: ours(samples, options.threads),
        "pandas, ranks": pandas_ranks,
        "pandas, each group": lambda samples: pandas_apply(samples, options.share),
    }
    if options.case:
        with np.load(options.data) as file:
            samples = dict(file)
        few = {k: v[:20_000] for k, v in samples.items()} | {"group": np.arange(20_000) % 100}
        cases[options.case](few)  # imports, first calls
        print(json.dumps(timed(lambda: cases[options.case](samples))))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "samples.npz"
        np.savez(data, **make_samples(options.samples, options.groups))
        for _ in range(options.repeats):
            for case in cases if options.peer else ["ours"]:
                python = sys.executable if case == "ours" else options.peer
                command = [python, __file__, "--case", case, "--data", str(data)]
                command += ["--threads", str(options.threads), "--share", str(options.share)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found.setdefault(case, []).append(json.loads(done.stdout))
    base = statistics.median(run["wall"] for run in found["ours"])
    for case, runs in found.items():
        scale = options.share if case == "pandas, each group" else 1
        text = []
        for clock in ("wall", "cpu"):
            seconds = [scale * run[clock] for run in runs]
            text.append(
                f"{clock} {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
            )
        ratio = scale * statistics.median(run["wall"] for run in runs) / base
        print(f"{case}: {', '.join(text)}, {ratio:.1f} x the time of ours", end="")
        if "gauc" in runs[0]:
            differences = [abs(runs[0][name] - found["ours"][0][name]) for name in ("auc", "gauc")]
            print(f"; AUC and grouped AUC differ by {differences[0]:.1e} and {differences[1]:.1e}", end="")
        print()


if __name__ == "__main__":
    main()
