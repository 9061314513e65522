"""What serving costs: training beside `[export]`, how soon a changed row is visible, and requests a second.

    python -m benchmarks.serving prepare FOLDER [--rows 10000000]
    python -m benchmarks.serving train FOLDER [--turns 2] [--steps 1500] [--every 0.75] [--ranks 1 1 1]
        [--kinds plain export served] [--export FOLDER/export]
    python -m benchmarks.serving windows FOLDER [--steps 6000] [--every 0.75] [--ranks 1 1 1] [--window 3]
    python -m benchmarks.serving accuracy FOLDER --data DIR/criteo_137k [--seeds 1 2 3]
    python -m benchmarks.serving ask FOLDER [--redis-python PYTHON] [--redis-rows 1000000]
    python -m benchmarks.serving beside FOLDER [--steps 1500] [--every 0.75] [--ranks 1 1 1] [--cores]

`prepare` makes W0's samples and a checkpoint with so many rows. `train` trains W0 from there, in one
process or with so many parameter servers, embedding workers and trainers under mpiexec, in turns: `plain`,
without export; `export`, with it, and nobody reads; `served`, with a reader in another process on the same
cores, which takes in all changes twice (see serving/follower.py) and answers 200 requests a second. What
export costs training is `export` beside `plain`; `served` beside `plain` is what it costs where the service
has no machine of its own. A step's change is visible when the reader has the first version of this step or
a later one. Rates are of the second half of the steps, when the first base has been written. `windows`
compares within one run, as runs alone differ by a tenth: it exports in every second window of so many
seconds, of which the first third doesn't count, nor do windows before the first base is whole. Rows are
noted in all of them. `ask` measures one reader of what `train` has left, or, if that has not run, of what
150 steps with export leave: single requests of 26 ids, with and without the dense part, and batches of 512;
and MGET of as many rows of as many bytes, in batches as large, from a redis-server of its own on a Unix
socket (hiredis parses). `beside` asks the same single requests, a millisecond apart, while W0 trains and
exports in another process; with `--cores` training has core 0 and the reader core 1, else they share both.
`accuracy` trains datasets/criteo in one process and compares the test AUC of a reader of rows in `--format`
with that of the run's own rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import persia_hpc as ph
from benchmarks.checkpoints import write_start
from persia_hpc.bench.train_jobs import prepare_data, w0_settings
from persia_hpc.cli import main as main_of_command
from persia_hpc.launch.mpiexec import find_launcher
from persia_hpc.samples.source import open_source
from persia_hpc.serving.parts import map_part

FEATURES, DIM = 26, 16
VOCABULARY = 10_000_000 // FEATURES
KINDS = ("plain", "export", "served")
MODULE = "benchmarks.serving"


class Times(ph.Callback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step(self, run: Any) -> None:
        self.ends.append(time.time())

    def window(self, seconds: float) -> int:
        """Returns the number of the window of so many seconds that is now."""
        return int((time.time() - self.ends[0]) / seconds) if self.ends else 0


def train(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    if options.one is not None:
        train_once(folder, options)
        return
    rates: dict[str, list[float]] = {kind: [] for kind in options.kinds}
    delays: list[float] = []
    exported: dict[str, Any] = {}
    for turn in range(options.turns):
        for kind in options.kinds[:: 1 if turn % 2 == 0 else -1]:
            follower = None
            if kind == "served":
                empty(options.export)
                follow = [
                    sys.executable,
                    "-m",
                    MODULE,
                    "follow",
                    str(folder),
                    "--export",
                    str(options.export),
                ]
                follower = subprocess.Popen(follow, stdout=subprocess.PIPE, text=True)
            if start_training(options, kind).wait():
                raise SystemExit(1)
            ends = json.loads((folder / "ends.json").read_text())
            rates[kind].append(rate_of(ends))
            print(f"turn {turn + 1}, {kind}: {rates[kind][-1]:.1f} steps/s", flush=True)
            exported = json.loads((folder / "run" / "summary.json").read_text()).get("export") or exported
            if follower is not None:
                time.sleep(1)
                follower.terminate()
                seen = [json.loads(line) for line in follower.communicate()[0].splitlines()]
                delays += delays_of(ends, seen)
    for kind, each in rates.items():
        ratios = [b / a for a, b in zip(rates[options.kinds[0]], each, strict=True)]
        of_turns = ", ".join(f"{rate:.1f} ({ratio:.1%})" for rate, ratio in zip(each, ratios, strict=True))
        middle = statistics.median(ratios)
        print(f"{kind}: steps/s, and of those of `{options.kinds[0]}` {of_turns}; median {middle:.1%}")
    if delays:
        quantiles = {q: float(np.quantile(delays, q)) for q in (0.5, 0.9, 0.99, 1.0)}
        print("a step's rows are visible after", {q: round(v, 3) for q, v in quantiles.items()}, "s")
    print("the last run's export:", exported)


def rate_of(ends: list[float]) -> float:
    half = len(ends) // 2
    return (len(ends) - 1 - half) / (ends[-1] - ends[half])


def empty(directory: Path) -> None:
    """Removes what is in a directory, which may be a mount point."""
    for path in directory.glob("*") if directory.is_dir() else ():
        path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)


def start_training(
    options: argparse.Namespace, kind: str, cores: set[int] | None = None
) -> subprocess.Popen[bytes]:
    for left in (options.folder / "run", options.export):
        empty(left)
    (options.folder / "ends.json").unlink(missing_ok=True)
    program = ["-m", MODULE, "train", str(options.folder), "--one", kind, "--export", str(options.export)]
    for name in ("steps", "every", "window", "format"):
        program += [f"--{name}", str(getattr(options, name))]
    program += ["--ranks", *map(str, options.ranks)] if options.ranks else []
    return start_job(program, options.ranks, cores)


def start_job(program: list[str], ranks: list[int], cores: set[int] | None = None) -> subprocess.Popen[bytes]:
    command, environment = [sys.executable, *program], dict(os.environ)
    if ranks:
        launcher = find_launcher()
        command = launcher.command(sum(ranks), [sys.executable, "-m", "mpi4py", *program])
        environment = launcher.environment(environment)
    bind = None if cores is None else lambda: os.sched_setaffinity(0, cores)
    return subprocess.Popen(command, env=environment, preexec_fn=bind)


def train_once(folder: Path, options: argparse.Namespace) -> None:
    settings = w0_settings(folder / "train-000.h5", 2048, 2048 * options.steps)
    settings["run_dir"] = str(folder / "run")
    settings["train"]["threads"] = 1
    settings["checkpoint"] = {"init_from": str(folder / "start"), "init_parts": "embeddings"}
    roles = ("parameter_servers", "embedding_workers", "trainers")
    settings["ranks"] = dict(zip(roles, options.ranks or (1, 1, 1), strict=True))
    if options.one != "plain":
        every = {"every_seconds": options.every, "base_every": options.base_every}
        settings["export"] = {**every, "dir": str(options.export), "rows": options.format}
    times = Times()
    if options.one == "windows":
        from persia_hpc.trainer.exporting import Exporter

        due = Exporter.overdue
        Exporter.overdue = lambda self: due(self) and times.window(options.window) % 2 == 1  # type: ignore
    ph.train(settings, callbacks=[times], quiet=True)
    if times.ends:  # on the trainers; with several it doesn't matter whose they are
        (folder / "ends.json").write_text(json.dumps(times.ends))


def follow(options: argparse.Namespace) -> None:
    """Prints when each version was there, and its step."""
    directory = options.export
    while not (directory / "latest").exists():
        time.sleep(0.02)
    reader, seen = ph.Reader(directory), 0
    while True:
        answer = reader.rows(reader.tables[0], [1])
        if answer.version != seen:
            seen = answer.version
            print(json.dumps([answer.step, time.time()]), flush=True)
        time.sleep(0.005)


def delays_of(ends: list[float], seen: list[list[float]]) -> list[float]:
    """Seconds from each step's end, in the second half, to the first version that has it."""
    found = []
    for step in range(len(ends) // 2, len(ends) + 1):
        when = [time for of, time in seen if of >= step]
        if when:
            found.append(max(0.0, when[0] - ends[step - 1]))
    return found


def windows(options: argparse.Namespace) -> None:
    training, first = start_training(options, "windows"), None
    while training.poll() is None:
        time.sleep(0.02)
        if first is None and (options.export / "latest").exists():
            first = time.time()
    if training.returncode or first is None:
        raise SystemExit("training has failed, or had no version in time")
    ends = np.array(json.loads((options.folder / "ends.json").read_text()))
    begin, rates = ends[0], []
    for window in range(int((ends[-1] - begin) / options.window)):
        since, until = (begin + options.window * (window + part) for part in (1 / 3, 1))
        of = ends[(ends >= since) & (ends <= until)]
        if since - options.window > first and len(of) > 1:
            rates.append((window % 2 == 1, (len(of) - 1) / (of[-1] - of[0])))
    print("steps/s of windows:", ", ".join(f"{rate:.1f}{' with' if on else ''}" for on, rate in rates))
    ratios = []  # of a window with export to the mean of its neighbours without
    for (_, before), (on, rate), (_, after) in zip(rates, rates[1:], rates[2:], strict=False):
        if on:
            ratios.append(2 * rate / (before + after))
    if len(ratios) < 2:
        raise SystemExit("expected two windows with export and neighbours without: more --steps")
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    print(f"with export, of without: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    print(f"mean {statistics.mean(ratios):.3f} +- {error:.3f}, median {statistics.median(ratios):.3f}")


def ask(options: argparse.Namespace) -> None:
    if not (options.export / "latest").exists():
        options.steps, options.one = 150, "export"
        train_once(options.folder, options)
    reader = ph.Reader(options.export, follow=False)
    parts = list(options.export.glob("base-*/*.rows"))
    rows, size = sum(map(rows_of, parts)), sum(part.stat().st_size for part in parts)
    print(f"version {reader.version.version} of step {reader.version.step}, rows of all bases: {rows:,}")
    print(f"bytes of a row in a base, with its key and index: {size / rows:.2f}")
    for name, calls in single_requests(reader).items():
        report(name, [seconds(call) for call in calls])
    rng, names = np.random.default_rng(1), reader.tables
    many = [{name: rng.integers(0, VOCABULARY, 512) for name in names} for _ in range(60)]
    each = [lambda m=m: [reader.rows(name, m[name]) for name in names] for m in many]
    ours = {
        "rows of 26 tables, 512 ids each": statistics.median(seconds(call) for call in each),
        "pooled, 512 requests": statistics.median(seconds(lambda m=m: reader.pooled(m)) for m in many),
    }
    for name, took in ours.items():
        print(f"{name}: {took * 1e3:.2f} ms, {512 * FEATURES / took / 1e6:.2f} M rows/s")
    if options.redis_python:
        program = [options.redis_python, str(Path(__file__).with_name("serving_redis.py"))]
        found = subprocess.run(
            [*program, str(options.redis_rows), str(4 * DIM)], stdout=subprocess.PIPE, check=True
        )
        redis = json.loads(found.stdout)
        print(f"{redis['versions']}, {options.redis_rows:,} rows: MGET of {512 * FEATURES:,} rows", end=" ")
        print(f"{redis['seconds'] * 1e3:.2f} ms, {512 * FEATURES / redis['seconds'] / 1e6:.3f} M rows/s")
        for name, took in ours.items():
            print(f"{name}: {redis['seconds'] / took:.1f} times Redis")


def single_requests(reader: ph.Reader) -> dict[str, list[Any]]:
    """Returns calls of each kind, which have been made once."""
    rng, names = np.random.default_rng(0), reader.tables
    features = [{name: int(rng.integers(0, VOCABULARY)) for name in names} for _ in range(3000)]
    ids = [rng.integers(0, VOCABULARY, FEATURES) for _ in range(3000)]
    dense = rng.normal(size=13).tolist()
    kinds: dict[str, list[Any]] = {
        "rows of one table, 26 ids": [lambda i=i: reader.rows(names[0], i) for i in ids],
        "pooled, 26 features": [lambda f=f: reader.pooled(f) for f in features],
        "predict, 26 features and 13 dense": [lambda f=f: reader.predict(f, dense) for f in features],
    }
    for calls in kinds.values():
        calls[0]()
    return kinds


def beside(options: argparse.Namespace) -> None:
    if options.cores:
        os.sched_setaffinity(0, {1})
    training = start_training(options, "export", {0} if options.cores else None)
    while not (options.export / "latest").exists():
        time.sleep(0.02)
        if training.poll() is not None:
            raise SystemExit("training has ended without a version")
    versions = set()
    with ph.Reader(options.export) as reader:
        kinds = single_requests(reader)
        times: dict[str, list[float]] = {name: [] for name in kinds}
        while training.poll() is None:
            for name, calls in kinds.items():
                times[name].append(seconds(calls[len(times[name]) % len(calls)]))
                time.sleep(0.001)
            versions.add(reader.version.version)
    if training.returncode:
        raise SystemExit("training has failed")
    for name, each in times.items():
        report(f"{len(each)} times {name}", each)
    rate = rate_of(json.loads((options.folder / "ends.json").read_text()))
    print(f"of {len(versions)} versions, while training did {rate:.1f} steps/s")


def rows_of(part: Path) -> int:
    note = {"bytes": part.stat().st_size}
    return sum(len(table.keys) for table in map_part(part, note, check=False).values())


def seconds(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def report(name: str, times: list[float]) -> None:
    p50, p99 = (float(np.quantile(times, q)) * 1e6 for q in (0.5, 0.99))
    print(f"{name}: p50 {p50:.0f} us, p99 {p99:.0f} us")


def accuracy(options: argparse.Namespace) -> None:
    root, folder = Path(__file__).resolve().parents[1], options.folder
    out = folder / "criteo"
    given = ["--input", str(options.data / "criteo_137k.tsv.xz"), "--out", str(out)]
    assert main_of_command(["preprocess", "criteo", *given]) == 0
    differences = []
    for seed in options.seeds:
        run_dir, export = folder / f"seed-{seed}", folder / f"export-{seed}"
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.rmtree(export, ignore_errors=True)
        change = {"seed": seed, "mode": "sync", "staleness_bound": 0, "run_dir": str(run_dir)}
        change |= {"data.train": str(out / "train-*.h5"), "data.valid": [], "data.test": str(out / "test.h5")}
        change |= {"train.early_stop": None, "train.keep_best": None, "train.threads": 1}
        change |= {"export.every_seconds": 1.0, "export.dir": str(export), "export.rows": options.format}
        summary = ph.train(root / "datasets/criteo/criteo.toml", set=change, quiet=True)
        source = open_source([str(out / "test.h5")])
        batch = source.read(0, source.num_samples)
        features = {name: column.values for name, column in batch.ids.items()}
        scores = ph.Reader(export, follow=False).predict(features, batch.dense).values[:, 0]
        own = ph.load(run_dir / "latest").score(features, batch.dense)[:, 0]
        aucs = [auc(values, batch.labels[:, 0]) for values in (own, scores)]
        assert abs(aucs[0] - summary["test"]["auc"]) < 1e-6
        differences.append(aucs[1] - aucs[0])
        print(
            f"seed {seed}: AUC {aucs[0]:.5f}, of {options.format} rows {aucs[1]:.5f}: {differences[-1]:+.6f}"
        )
    print(f"mean {statistics.mean(differences):+.6f}")


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def prepare(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    prepare_data(options.folder, 1_000_000)
    write_start(options.folder, options.rows)


PARTS = {
    "prepare": prepare,
    "train": train,
    "follow": follow,
    "windows": windows,
    "ask": ask,
    "beside": beside,
    "accuracy": accuracy,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(PARTS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--every", type=float, default=0.75)
    parser.add_argument("--ranks", type=int, nargs=3, default=[])
    parser.add_argument("--base-every", type=int, default=240)
    parser.add_argument("--format", default="int8")
    parser.add_argument("--one", choices=(*KINDS, "windows"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--window", type=float, default=3.0)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--redis-python")
    parser.add_argument("--redis-rows", type=int, default=1_000_000)
    parser.add_argument("--cores", action="store_true")
    options = parser.parse_args()
    options.export = options.export or options.folder / "export"
    PARTS[options.what](options)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
