"""Does the number of possible parameters cost anything? Criteo-Syn1 to 5, up to the paper's 100 trillion.

Virtual parameters: ids are drawn from so many that ids × dim is the stated number, but only the rows that a
table has room for are ever in memory; the same in every case, full and evicting. What is shown is that the
size of the id space costs nothing, not that so many rows would fit (they need some 200 TB and more). Real
jobs of one server, worker and trainer; cases take turns. "new rows": of the pulled rows, those that had to be
made. The paper, on 64 A100: 1.79, 1.85, 1.89, 1.83, 1.91 M samples/s from 6.25 to 100 T.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.paper.report import Report, markdown
from persia_hpc.bench.measure import Timing, summarize
from persia_hpc.bench.train_jobs import run_job
from persia_hpc.preprocess.criteo.synthetic import DIM, PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=500_000, help="samples of a run, each seen once")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--capacity", default="64 MiB", help="of each of the 26 tables")
    parser.add_argument("--repeats", type=int, default=3)


def run(options: argparse.Namespace, scratch: Path) -> Report:
    data = {name: _prepare(name, options.rows, scratch) for name in PRESETS}
    summaries: dict[str, list[dict[str, Any]]] = {name: [] for name in PRESETS}
    for _ in range(options.repeats):
        for name in PRESETS:
            summaries[name].append(run_job(scratch, _settings(options, data[name])))
            rate = summaries[name][-1]["steady"]["samples_per_second"]
            print(f"{name}: {rate:,.0f} samples/s", file=sys.stderr)
    figures = {name: _figures(each) for name, each in summaries.items()}
    return Report(_table(figures), figures)


def _prepare(name: str, rows: int, scratch: Path) -> Path:
    out = scratch / name
    command = ["preprocess", "synthetic", "--preset", name, "--rows", str(rows), "--test-rows", "0"]
    subprocess.run(
        [sys.executable, "-m", "persia_hpc.cli", *command, "--out", str(out)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return out / "train-000.h5"


def _settings(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    optimizer = {"name": "rowwise_adagrad", "lr": 0.05}
    return {
        "data": {"train": str(path), "batch_size": options.batch},
        "tables": {"default": {"dim": DIM, "optimizer": optimizer, "capacity": options.capacity}},
        "model": {"class": "dlrm", "bottom": [64], "hidden": [64]},
        "train": {"optimizer": {"name": "Adam", "lr": 1e-3}, "evaluate_at_end": False, "save": False},
    }


def _figures(each: list[dict[str, Any]]) -> dict[str, Any]:
    last = each[-1]["embedding"]
    return {
        "samples_per_second": [s["steady"]["samples_per_second"] for s in each],
        "resident_rows": last["rows"],
        "table_bytes": last["bytes"],
        "new_row_share": (last["rows"] + last["evicted_rows"]) / last["pulled_rows"],
    }


def _table(figures: dict[str, dict[str, Any]]) -> str:
    def rate(name: str) -> Timing:
        return summarize(figures[name]["samples_per_second"])

    base = rate(next(iter(figures)))
    rows = [
        [
            name,
            f"{PRESETS[name].parameters / 1e12:g} T",
            f"{rate(name).median:,.0f} ± {rate(name).spread:,.0f}",
            f"{rate(name).median / base.median:.2f}",
            f"{found['resident_rows']:,}",
            f"{found['table_bytes'] / 2**30:.2f}",
            f"{found['new_row_share']:.1%}",
        ]
        for name, found in figures.items()
    ]
    head = ["", "virtual parameters", "samples/s", "×", "resident rows", "tables, GiB", "new rows"]
    return markdown(head, rows)
