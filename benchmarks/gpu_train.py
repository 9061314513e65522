"""End to end with one GPU trainer, beside the same trainer whose embeddings are already there.

    python benchmarks/gpu_train.py [--cases dlrm tower] [--device cuda] [--json FILE]

Synthetic Criteo: 26 one-hot features, Zipf over 1 M ids each, 13 dense. `dlrm`: MLPerf-like, bottom
512-256-128, top 1024-1024-512-256. `tower`: the Persia paper's 4096-2048-1024-512-256, in bf16. Servers and
workers share the cores that the trainer leaves. Prints samples/s, the share of the dense-only limit (measured
before and after in the same run), the share of time the trainer waited for batches, and how busy the GPU was
by nvidia-smi.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

from persia_hpc.bench.measure import machine
from persia_hpc.bench.train_jobs import prepare_data, run_job, run_program

BOTTOM = [512, 256]  # then the embeddings' dim
MODELS: dict[str, dict[str, Any]] = {
    "dlrm": {"class": "dlrm", "bottom": BOTTOM, "hidden": [1024, 1024, 512, 256]},
    "tower": {"class": "tower", "hidden": [4096, 2048, 1024, 512, 256]},
}


def settings(
    options: argparse.Namespace, path: Path, case: str, dim: int, batch: int, reuse: int
) -> dict[str, Any]:
    """The configuration of a case; steps for about `options.samples` samples."""
    return {
        "mode": "hybrid",
        "staleness_bound": 4 + reuse,
        "server_threads": options.server_threads,
        "ranks": {
            "parameter_servers": options.servers,
            "embedding_workers": options.workers,
            "trainers": 1,
        },
        "wire": {"rows": "fp16", "gradients": "scaled_fp16", "reuse_steps": reuse},
        "data": {"train": str(path), "batch_size": batch},
        "tables": {
            "default": {
                "dim": dim,
                "optimizer": {"name": "rowwise_adagrad", "lr": 0.05},
                "capacity": f"{options.table_mib} MiB",
            }
        },
        "model": MODELS[case],
        "transport": {"ring_bytes": f"{options.ring_mib} MiB"},
        "train": {
            "optimizer": {"name": "Adam", "lr": 1e-3},
            "epochs": 1_000_000,
            "max_steps": max(20, options.samples // batch),
            "evaluate_at_end": False,
            "save": False,
            "device": options.device,
            "amp": "bf16" if case == "tower" or options.amp else "off",
            "cuda_graphs": options.cuda_graphs,
        },
    }


class Utilization:
    """Samples what nvidia-smi says of the GPU while a `with` block runs."""

    def __enter__(self) -> Utilization:
        self._values: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while not self._end.wait(0.5):
            try:
                done = subprocess.run(query, capture_output=True, text=True, check=True)
                self._values.append(float(done.stdout))
            except (OSError, subprocess.CalledProcessError, ValueError):
                return

    @property
    def busy(self) -> float | None:
        """Median share of the samples' second half; None without nvidia-smi."""
        half = sorted(self._values[len(self._values) // 2 :])
        return half[len(half) // 2] / 100 if half else None


def dense_only(options: argparse.Namespace, config: dict[str, Any], folder: Path) -> float:
    """Samples per second of the trainer when it never waits."""
    path = folder / "settings.json"
    path.write_text(json.dumps(config))
    batch = config["data"]["batch_size"]
    command = [sys.executable, "-m", "persia_hpc.bench.train_dense", "session", "--data", str(folder)]
    command += ["--batch", str(batch), "--samples", str(config["train"]["max_steps"] * batch)]
    done = run_program([*command, "--threads", str(options.trainer_threads), "--settings", str(path)])
    return float(done["samples_per_second"])


def main() -> None:
    """Runs the cases and prints a line for each."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--cases", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--reuse-steps", type=int, nargs="+", default=[0], help="added to a bound of 4")
    parser.add_argument("--exponent", type=float, default=1.2, help="of the ids' Zipf distribution")
    parser.add_argument("--samples", type=int, default=20_000_000, help="that each case trains on")
    parser.add_argument("--rows", type=int, default=4_000_000, help="of the data set")
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--server-threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--trainer-threads", type=int, default=1)
    parser.add_argument("--table-mib", type=int, default=512, help="capacity of each feature's table")
    parser.add_argument("--ring-mib", type=int, default=64)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--amp", action="store_true", help="bf16 for dlrm too")
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-train"))
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = prepare_data(folder, options.rows, options.exponent)
    results = []
    print(
        "| case | dim | batch | reuse | samples/s | dense only | share | waits for batches | GPU busy |\n|"
        + "---|" * 9
    )
    for case, dim, batch in product(options.cases, options.dims, options.batches):
        for reuse in options.reuse_steps:
            config = settings(options, path, case, dim, batch, reuse)
            before = dense_only(options, config, folder)
            begin = time.time()
            with Utilization() as gpu:
                summary = run_job(folder, config, {})
            limit = (before + dense_only(options, config, folder)) / 2
            rate = summary["steady"]["samples_per_second"]
            waits = summary["phase_seconds"]["trainer"]["wait"]["mean"] / summary["train_seconds"]
            reused = summary["embedding"]["reused_rows"] / summary["embedding"]["pulled_rows"]
            busy = "-" if gpu.busy is None else f"{gpu.busy:.0%}"
            print(
                f"| {case} | {dim} | {batch:,} | {reuse} steps: {reused:.0%} of rows | {rate:,.0f} | "
                f"{limit:,.0f} | {rate / limit:.0%} | {waits:.0%} | {busy} |",
                flush=True,
            )
            results.append(
                {"case": case, "dim": dim, "batch": batch, "reuse_steps": reuse, "samples_per_second": rate}
                | {"dense_only": limit, "waits": waits, "gpu_busy": gpu.busy, "reused_rows": reused}
                | {"seconds": time.time() - begin, "phase_seconds": summary["phase_seconds"]}
            )
    if options.json is not None:
        report = {"schema_version": 1, "machine": machine(), "cores": os.cpu_count(), "results": results}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
