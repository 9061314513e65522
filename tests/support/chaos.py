"""Kills jobs at random moments and starts them again until they are done: `make chaos`.

    python -m tests.support.chaos [--kills N] [--seed S] [--jobs J]

Each round is a run, killed with SIGKILL again and again: a rank, mpiexec, its proxy, the supervisor, or all
of them at once; while it starts (often right after another kill), trains, evaluates, writes a checkpoint,
renames it or moves `latest`. When it starts again it must go on from a whole checkpoint. In the end, `sync`
must be bit-identical to a run that was left alone; in `hybrid` every sample must have been trained on as
often, the ledger must close and the AUC must be as good; no process and no half-written file stays behind. If
anything is not so: exit code 1, and the round's folder is kept. A round depends only on the seed and its
number, as far as the machine's timing allows: `--first N --kills 1` plays round N again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from persia_hpc.checkpoint.files import whole_checkpoints
from persia_hpc.checkpoint.manifest import check_part, read_manifest
from persia_hpc.launch.registry import read_ranks
from tests.support.jobs import user_environment, write_config
from tests.support.tiny import run_digest, tiny_config, write_tiny

END_SECONDS = 180
AUC_NOISE = 0.03
MOMENTS = ("start", "train", "evaluate", "write", "rename", "latest", "any")
VICTIMS = ("rank", "rank", "rank", "rank", "launcher", "proxy", "supervisor", "all")
SHAPES = ((1, 1, 1), (2, 1, 2), (1, 1, 1))  # servers, workers, trainers; small ones start quickest
MODES = ("sync", "fresh", "hybrid", "sync")
MARK = "PERSIA_HPC_TEST_JOB"  # in the environment of all processes of a job
TWICE = 0.3  # share of the kills after which the next one comes while the job starts again


def settings(data: str, mode: str, shape: tuple[int, int, int] = (2, 1, 2)) -> dict[str, Any]:
    """A run of a few seconds that writes a checkpoint every few steps."""
    changes: dict[str, Any] = {
        "mode": mode,
        "ranks": dict(zip(("parameter_servers", "embedding_workers", "trainers"), shape, strict=True)),
        "data.valid": [data],
        "data.test": [data],
        "model.class": "tests.support.models:Noting",
        "train.epochs": 20,
        "train.evaluate_every": 40,
        "checkpoint": {"every": 15, "full_every": 3, "keep": 2, "resume": True},
        # So little room that rows come and go all the time, some of them to a disk.
        "tables.item": {"dim": 4, "optimizer": {"name": "adam"}, "capacity": "12 KiB", "buckets": 2},
        "tables.user": {
            "dim": 4,
            "optimizer": {"name": "adam"},
            "capacity": "6 KiB",
            "buckets": 2,
            "disk": {"path": str(Path(data).parent), "capacity": "8 MiB"},
        },
    }
    if mode == "hybrid":
        changes["staleness_bound"] = 3
    return tiny_config(data, **changes)


def write_data(path: Path) -> str:
    """Samples whose labels follow from their ids, so that an AUC says something."""
    data = write_tiny(path, 1500, vocabulary=200)
    with h5py.File(data, "r+") as file:
        ids = file["ids/item"][:]
        noise = np.random.default_rng(1).random(len(ids)) < 0.1
        file["label"][:] = ((ids % 3 == 0) ^ noise).astype(np.float32)[:, None]
    return data


class Job:
    """One start of the run; its current directory is the run directory's parent."""

    def __init__(self, config: Path, run_dir: Path) -> None:
        self.run_dir = run_dir
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        self.log = run_dir.with_suffix(".log").open("a")
        # A job whose proxy was killed prints nothing any more, but may train to its end and log it.
        logs = (Path(self.log.name), run_dir / "logs" / "rank-0000.log")
        self.log_starts = {path: path.stat().st_size if path.exists() else 0 for path in logs}
        self.mark = f"{MARK}={run_dir}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "persia_hpc.cli", "train", str(config), "--run-dir", str(run_dir)],
            env={**user_environment(), MARK: str(run_dir)},
            cwd=run_dir.parent,
            stdout=self.log,
            stderr=self.log,
        )
        self.started = time.monotonic()

    def wait_for(self, condition: Callable[[], bool], seconds: float = END_SECONDS) -> bool:
        """False if the job ended before."""
        limit = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < limit, "the job hangs"
            time.sleep(0.001)
        return True

    def wait_for_moment(self, moment: str, draw: random.Random, start_seconds: float) -> bool:
        """Waits for a moment of a kind; start_seconds: about how long a start takes here."""
        metrics = self.run_dir / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        if moment == "start":
            return self.sleep(draw.uniform(0, start_seconds))
        if not self.wait_for(lambda: metrics.exists() and metrics.stat().st_size > before):
            return False
        if moment == "evaluate":
            note = self.run_dir.parent / "evaluating"
            note.unlink(missing_ok=True)
            return self.wait_for(note.exists) and self.sleep(draw.uniform(0, 0.1))
        if moment == "write":
            return self.wait_for(self.half_written) and self.sleep(draw.uniform(0, 0.05))
        if moment == "rename":  # sometimes before it, sometimes after
            written = self.wait_for(lambda: any(self.run_dir.glob("step-*.partial/manifest.json")))
            return written and self.sleep(draw.uniform(0, 0.01))
        if moment == "latest":  # the new one is there, `latest` is moved next and old ones removed
            known = {path.name for path in whole_checkpoints(self.run_dir)}
            return self.wait_for(
                lambda: any(path.name not in known for path in whole_checkpoints(self.run_dir))
            )
        return self.sleep(draw.uniform(0, 1.5))

    def half_written(self) -> bool:
        return any(self.run_dir.glob("step-*.partial"))

    def sleep(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        return self.wait_for(lambda: time.monotonic() >= end)

    def pids(self) -> list[int]:
        return [rank.pid for rank in read_ranks(self.run_dir).values() if rank.is_alive()]

    def processes(self) -> list[int]:
        """All living processes of the job, whoever their parent is by now."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parts[2]))
            except OSError:  # ended meanwhile, or somebody else's
                continue
        return found

    def kill(self, victim: str, draw: random.Random) -> str:
        """Kills one process of a kind, or all of them; the supervisor if there is none yet."""
        launchers = children(self.process.pid)
        if victim == "supervisor":
            pids = []
        elif victim == "all":
            pids = self.processes()
            draw.shuffle(pids)
        elif victim == "launcher":
            pids = launchers
        elif victim == "proxy":
            pids = [pid for launcher in launchers for pid in children(launcher)]
        else:
            pids = self.pids()
        if not pids:
            self.process.kill()
            return "supervisor"
        for pid in pids if victim == "all" else [draw.choice(pids)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                victim = victim if victim == "all" else "nobody"
        return victim

    def end(self) -> int:
        """Waits until nothing of the job is alive."""
        code = self.process.wait(END_SECONDS)
        limit = time.monotonic() + 30
        while alive := self.processes():
            assert time.monotonic() < limit, f"processes outlive their job: {alive}"
            time.sleep(0.02)
        self.log.close()
        return code

    def said(self) -> str:
        """What this start has printed, and what its rank 0 has logged."""
        return "".join(
            path.read_bytes()[start:].decode(errors="replace")
            for path, start in self.log_starts.items()
            if path.exists()
        )


def children(pid: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in done.stdout.split()]


def check_checkpoints(run_dir: Path) -> None:
    """Whatever is named as a checkpoint is whole."""
    for path in whole_checkpoints(run_dir):
        manifest = read_manifest(path)
        for name in manifest["files"]:
            check_part(path, manifest, name, content=True)
        assert manifest["base"] is None or (path.parent / manifest["base"]).exists()


def check_end(run_dir: Path, reference: Path, mode: str) -> None:
    """The run's end against that of the run that was left alone."""
    got, expected = (json.loads((d / "summary.json").read_text()) for d in (run_dir, reference))
    ledger = got["embedding"]
    parts = ("applied", "evicted_in_flight", "unadmitted", "nonfinite", "dropped")
    assert ledger["pulled_rows"] == sum(ledger[f"{part}_rows"] for part in parts), ledger
    assert ledger["dropped_rows"] == 0
    assert ledger["pulled_rows"] == expected["embedding"]["pulled_rows"]
    assert expected["embedding"]["from_disk_rows"] > 100
    assert (got["steps"], got["samples"]) == (expected["steps"], expected["samples"])
    left = [p.name for p in run_dir.rglob("*") if ".partial" in p.name or p.name.endswith(".damaged")]
    assert not left, f"left behind: {left}"
    if mode in ("sync", "fresh"):
        assert run_digest(run_dir) == run_digest(reference), "not bit-identical"
        assert got["test"] == expected["test"]
    else:
        difference = abs(got["test"]["auc"] - expected["test"]["auc"])
        assert difference < AUC_NOISE, f"AUC {got['test']['auc']} against {expected['test']['auc']}"


class Chaos:
    """Plays rounds until there were enough kills."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.killed: Counter[tuple[str, str]] = Counter()
        self.data = write_data(folder / "train.h5")
        self.known: dict[tuple[str, Any], tuple[Path, Path]] = {}  # configuration, and a run left alone
        self.preparing = threading.Lock()
        self.lock = threading.Lock()
        self.number = options.first - 1
        self.start_seconds = 0.0
        self.broken = False

    def prepared(self, kind: tuple[str, tuple[int, int, int]]) -> tuple[Path, Path]:
        """The configuration of a kind of job, and the run directory of one that was left alone."""
        with self.preparing:
            if kind not in self.known:
                mode, shape = kind
                name = f"{mode}-{sum(shape)}"
                config = write_config(self.folder / f"{name}.toml", settings(self.data, mode, shape))
                reference = self.folder / f"{name}-left-alone" / "run"
                job = Job(config, reference)
                assert job.wait_for((reference / "metrics.jsonl").exists), job.said()
                self.start_seconds = max(self.start_seconds, time.monotonic() - job.started)
                assert job.end() == 0, job.said()
                self.known[kind] = config, reference
            return self.known[kind]

    @staticmethod
    def kind(number: int) -> tuple[str, tuple[int, int, int]]:
        return MODES[number % len(MODES)], SHAPES[number % len(SHAPES)]

    def enough(self) -> bool:
        return self.broken or self.killed.total() >= self.options.kills

    def work(self) -> None:
        """Plays one round after the other, beside other threads that do the same."""
        while True:
            with self.lock:
                if self.enough():
                    return
                self.number += 1
                number = self.number
            folder = self.folder / f"round-{number}"
            try:
                self.round(number, folder)
            except Exception:  # that of one round doesn't end the others' last starts
                self.broken = True
                print(f"round {number} of seed {self.options.seed} FAILED, kept in {folder}", flush=True)
                traceback.print_exc()
                return
            shutil.rmtree(folder, ignore_errors=True)

    def round(self, number: int, folder: Path) -> None:
        draw = random.Random(f"{self.options.seed}:{number}")
        kind = self.kind(number)
        config, reference = self.prepared(kind)
        run_dir = folder / "run"
        done: list[str] = []
        twice = False
        while True:
            before = whole_checkpoints(run_dir)
            job = Job(config, run_dir)
            killed_now = False
            enough = len(done) >= self.options.kills_a_round or self.enough()
            moment, victim = draw.choice(MOMENTS), draw.choice(VICTIMS)
            if twice:
                moment = "start"
            if not enough and job.wait_for_moment(moment, draw, self.start_seconds):
                victim = job.kill(victim, draw)
                moment = "start again" if twice else moment
                with self.lock:
                    self.killed[moment, victim] += 1
                done.append(f"{victim} ({moment})")
                killed_now = True
                twice = draw.random() < TWICE
            code = job.end()
            check_checkpoints(run_dir)
            assert code == 0 or killed_now, f"exit code {code}, nobody was killed: {job.said()}"
            if code == 0:
                start = job.said().rpartition("goes on from ")[2]
                nothing = "nothing to do" in job.said()  # the kill before came after the summary
                assert not before or nothing or start.startswith(str(before[0])), f"not from {before[0]}"
                break
        check_end(run_dir, reference, kind[0])
        mode, shape = kind
        print(
            f"round {number}, {mode}, {sum(shape)} ranks: as if nothing had happened after {', '.join(done)}",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> int:
    """Runs rounds until there were enough kills."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kills-a-round", type=int, default=10, help="then the run may come to its end")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--first", type=int, default=1, help="number of the first round")
    parser.add_argument("--jobs", type=int, default=2, help="rounds at a time (default: 2)")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="persia-chaos-"))
    chaos = Chaos(folder, options)
    with ThreadPoolExecutor(options.jobs) as pool:
        for worker in [pool.submit(chaos.work) for _ in range(options.jobs)]:
            worker.result()
    count = max(1, chaos.killed.total())
    print(f"{chaos.killed.total()} kills, {(time.monotonic() - begin) / count:.1f} s each: ", end="")
    print(", ".join(f"{n} {v} ({m})" for (m, v), n in sorted(chaos.killed.items())))
    if not chaos.broken:
        shutil.rmtree(folder)
    return int(chaos.broken)


if __name__ == "__main__":
    sys.exit(main())
