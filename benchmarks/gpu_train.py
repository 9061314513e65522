"""End to end with one GPU trainer, beside the same trainer whose embeddings are already there.

    python benchmarks/gpu_train.py [--cases tower dlrm dlrm_bf16 dcn_v2] [--device cuda] [--json FILE]

`tower`, `dlrm`: 26 one-hot features, Zipf over 1 M ids each, 13 dense. tower: the Persia paper's
4096-2048-1024-512-256, in bf16. dlrm: MLPerf-like, bottom 512-256-dim, top 1024-1024-512-256, in fp32;
dlrm_bf16: the same in bf16. `dcn_v2`: the shape of MLPerf's DCNv2, in bf16: 26 features of its sizes, 214 ids
a sample, three crosses of rank 512 (without its small bottom network); four batches of data, again and again.

Servers and workers share the cores that the trainer leaves. Prints samples/s, the share of the dense-only
limit, what bounds it, how long each role is busy, how busy the GPU is by nvidia-smi; beside them what
`persia-hpc plan` says, given the dense-only rate, and what was expected of an H100 with 16 cores before
anything was measured: an estimate. A job that takes longer than --most-seconds is stopped; its rate counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.bench.measure import machine
from persia_hpc.bench.train_jobs import DENSE, run_job, run_program, synthetic
from persia_hpc.config import load_config
from persia_hpc.cost_model.cluster import Cluster
from persia_hpc.errors import PersiaError
from persia_hpc.job.planner import Given, make_report
from persia_hpc.preprocess.zipf import Zipf
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.writer import DatasetWriter

HIDDEN = [1024, 1024, 512, 256]
DLRM = {"class": "dlrm", "bottom": [512, 256], "hidden": HIDDEN}  # the bottom ends in the embeddings' dim
CASES: dict[str, tuple[dict[str, Any], str]] = {  # model, amp
    "tower": ({"class": "tower", "hidden": [4096, 2048, 1024, 512, 256]}, "bf16"),
    "dlrm": (DLRM, "off"),
    "dlrm_bf16": (DLRM, "bf16"),
    "dcn_v2": (
        {"class": "dcn_v2", "hidden": HIDDEN, "structure": "stacked", "cross_layers": 3, "low_rank": 512},
        "bf16",
    ),
}
# Ids of each feature in a sample, and how many different ones there are, in MLPerf's DLRM-DCNv2.
MULTI_HOT = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
VOCABULARY = (
    *(40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10),
    *(2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36),
)
REPEATED = 4  # batches of these data
# Millions of samples a second at Zipf 1.2 and batches of 65,536, by counts of operations and bytes, with six
# workers at 0.65 of the speed that they have on a machine of two cores. dcn_v2 (15 different rows a sample,
# where the others have 4): with nine workers, which bound it.
EXPECTED = {("tower", 128): 1.1, ("dlrm", 128): 1.75, ("dlrm_bf16", 128): 1.75, ("dcn_v2", 128): 0.5}
EXPECTED |= {("tower", 64): 1.6, ("dlrm", 64): 2.2, ("dlrm_bf16", 64): 2.4}
COLUMNS = (
    *("case", "dim", "batch", "reuse", "samples/s", "dense only", "share", "bound by", "servers", "workers"),
    *("waits for batches", "GPU busy", "plan", "expected"),
)


def one_hot(folder: Path, rows: int, exponent: float) -> Path:
    """The file of `rows` samples of 26 one-hot features; reused if it is there."""
    return synthetic(folder / f"one-hot-{exponent}", rows, exponent=exponent)


def multi_hot(folder: Path, rows: int, exponent: float) -> Path:
    """The file of `rows` samples of MLPerf's shape; reused if it is there."""
    path = folder / f"multi-hot-{exponent}-{rows}.h5"
    if path.exists():
        return path
    names = [f"f{i:02d}" for i in range(len(MULTI_HOT))]
    features = tuple(
        FeatureSchema(name, multi=count > 1) for name, count in zip(names, MULTI_HOT, strict=True)
    )
    schema = DatasetSchema(features, tuple(f"d{i}" for i in range(DENSE)), ("click",))
    generator = np.random.default_rng(1)
    draws = [Zipf(exponent, size) for size in VOCABULARY]
    block = min(rows, 16_384)
    types = dict.fromkeys(names, "uint32")
    with DatasetWriter(path, schema, id_dtypes=types, chunk_rows=block, compression="none") as writer:
        for begin in range(0, rows, block):
            ids = {}
            for index, (name, count, zipf) in enumerate(zip(names, MULTI_HOT, draws, strict=True)):
                here = np.arange(begin * count, min(rows, begin + block) * count, dtype=np.uint64)
                values = zipf.draw(here, 1, index << 20) - np.uint64(1)
                lengths = np.full(len(here) // count, count)
                ids[name] = IdColumn.from_lengths(values, lengths) if count > 1 else IdColumn(values)
            size = min(block, rows - begin)
            dense = generator.random((size, DENSE), np.float32)
            writer.write(SampleBatch(ids, dense, (dense[:, :1] > 0.7).astype(np.float32)))
    return path


def settings(
    options: argparse.Namespace, path: Path, case: str, dim: int, batch: int, reuse: int
) -> dict[str, Any]:
    """The configuration of a case; steps for about `options.samples` samples."""
    model, amp = CASES[case]
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
        "model": model,
        "train": {
            "optimizer": {"name": "Adam", "lr": 1e-3},
            "epochs": 1_000_000,
            "max_steps": max(16, options.samples // batch),
            "evaluate_at_end": False,
            "save": False,
            "device": options.device,
            "amp": amp,
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
                done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
                self._values.append(float(done.stdout))
            except (OSError, subprocess.SubprocessError, ValueError):
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
    data = folder / "dense-only"  # the program wants the file under this name
    data.mkdir(exist_ok=True)
    (data / "train-000.h5").unlink(missing_ok=True)
    (data / "train-000.h5").symlink_to(config["data"]["train"])
    command = [sys.executable, "-m", "persia_hpc.bench.train_dense", "session", "--data", str(data)]
    command += ["--batch", str(batch), "--samples", str(config["train"]["max_steps"] * batch)]
    command += ["--threads", str(options.trainer_threads), "--settings", str(path)]
    return float(run_program(command, seconds=options.most_seconds)["samples_per_second"])


def planned(config: dict[str, Any], limit: float) -> float | None:
    """What the cost model says of the job on this machine, if its trainer alone makes `limit` samples/s."""
    on_host = {
        **config,
        "train": {**config["train"], "device": "cpu"},
    }  # it counts and trains nothing on a GPU
    gpus = int(config["train"]["device"] != "cpu")
    cluster = Cluster(nodes=1, cores=len(os.sched_getaffinity(0)), gpus=gpus)
    try:
        report = make_report(load_config(on_host), cluster, Given(dense_rate=limit), suggest=False)
    except PersiaError as error:
        print(f"plan: {error}", file=sys.stderr)
        return None
    return report.prediction.samples_per_second


def busy_shares(summary: dict[str, Any]) -> dict[str, float]:
    """The share of its time that each role doesn't wait for another one."""
    idle = {"parameter_server": ("idle",), "embedding_worker": ("idle",), "trainer": ("wait",)}
    shares = {}
    for role, phases in idle.items():
        seconds = summary["phase_seconds"][role]
        waits = sum(seconds[phase]["mean"] for phase in phases)
        shares[role] = 1 - waits / max(1e-9, seconds["total"]["mean"])
    return shares


def bound(summary: dict[str, Any]) -> str:
    """The stage that limits the job: the busiest role, and what it mostly does."""
    shares = busy_shares(summary)
    role = max(shares, key=lambda name: shares[name])
    phases = summary["phase_seconds"][role]
    work = {n: s["mean"] for n, s in phases.items() if n not in ("total", "idle", "wait", "other")}
    return f"{role.replace('_', ' ')} ({max(work, key=lambda name: work[name])})"


def measure(
    options: argparse.Namespace, folder: Path, config: dict[str, Any], limit: float, name: str
) -> dict[str, Any]:
    """Runs the job of a configuration; its files are kept beside the JSON file."""
    batch = config["data"]["batch_size"]
    config["train"]["max_steps"] = max(16, int(limit * options.seconds / batch))
    begin = time.time()
    with Utilization() as gpu:
        try:
            summary = run_job(folder, config, seconds=options.most_seconds)
        finally:
            if options.json is not None and (folder / "run").exists():
                target = options.json.parent / f"{options.json.stem}-{name}"
                shutil.copytree(folder / "run", target, dirs_exist_ok=True)
    rate = summary["steady"]["samples_per_second"]
    embedding = summary["embedding"]
    return {
        "samples_per_second": rate,
        "dense_only": limit,
        "share": rate / limit,
        "bound_by": bound(summary),
        "busy": busy_shares(summary),
        "gpu_busy": gpu.busy,
        "reused_rows": embedding["reused_rows"] / max(1, embedding["pulled_rows"]),
        "planned": planned(config, limit),
        "status": summary["status"],
        "steps": config["train"]["max_steps"],
        "seconds": time.time() - begin,
        "phase_seconds": summary["phase_seconds"],
    }


def line(case: dict[str, Any], result: dict[str, Any]) -> str:
    """A row of the table."""
    busy, gpu, plan = result["busy"], result["gpu_busy"], result["planned"]
    expected = EXPECTED.get((case["case"], case["dim"])) if case["batch"] == 65_536 else None
    cells = [
        *(case["case"], case["dim"], f"{case['batch']:,}"),
        f"{case['reuse_steps']} steps: {result['reused_rows']:.0%} of rows",
        f"{result['samples_per_second']:,.0f}" + " (stopped)" * (result["status"] == "interrupted"),
        *(f"{result['dense_only']:,.0f}", f"{result['share']:.0%}", result["bound_by"]),
        *(f"{busy['parameter_server']:.0%}", f"{busy['embedding_worker']:.0%}", f"{1 - busy['trainer']:.0%}"),
        "-" if gpu is None else f"{gpu:.0%}",
        "-" if plan is None else f"{plan:,.0f}",
        "-" if expected is None else f"{expected:.2f} M (estimate)",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def make_parser() -> argparse.ArgumentParser:
    """The program's options."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--reuse-steps", type=int, nargs="+", default=[0], help="added to a bound of 4")
    parser.add_argument("--exponent", type=float, default=1.2, help="of the ids' Zipf distribution")
    parser.add_argument("--samples", type=int, default=4_000_000, help="of the dense-only runs")
    parser.add_argument("--seconds", type=float, default=20, help="of a job, if it is as fast as dense-only")
    parser.add_argument("--most-seconds", type=float, default=100, help="of a process, start included")
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the one-hot data set")
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--server-threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--trainer-threads", type=int, default=1)
    parser.add_argument("--table-mib", type=int, default=1024, help="capacity of each feature's table")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-train"))
    parser.add_argument("--json", type=Path, default=None, help="rewritten after each case")
    return parser


def main() -> int:
    """Runs the cases and prints a line for each; one that fails doesn't keep the next from running."""
    options = make_parser().parse_args()
    folder = options.folder.resolve()
    for made in (folder, (options.json or folder).resolve().parent):
        made.mkdir(parents=True, exist_ok=True)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    results, failed = [], 0
    for case, dim, batch in product(options.cases, options.dims, options.batches):
        limit = None
        for reuse in options.reuse_steps:
            about = {"case": case, "dim": dim, "batch": batch, "reuse_steps": reuse}
            try:
                if case == "dcn_v2":
                    path = multi_hot(folder, REPEATED * batch, options.exponent)
                else:
                    path = one_hot(folder, max(options.rows, batch), options.exponent)
                config = settings(options, path, case, dim, batch, reuse)
                if limit is None:
                    limit = dense_only(options, config, folder)
                result = measure(options, folder, config, limit, f"{case}-{dim}-{batch}-{reuse}")
                print(line(about, result), flush=True)
            except (PersiaError, subprocess.TimeoutExpired) as error:
                print(f"{case}, dim {dim}, batch {batch:,}: {error}", file=sys.stderr, flush=True)
                result = {"error": str(error)}
                failed += 1
            results.append(about | result)
            if options.json is not None:
                report = {"schema_version": 1, "machine": machine(), "results": results}
                options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
