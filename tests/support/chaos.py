"""Kills jobs at random moments and starts them again until they are done: `make chaos`.

    python -m tests.support.chaos [--kills N] [--seed S]

Each round is a run, killed with SIGKILL again and again: any rank, the launcher or the supervisor; while it
starts, trains, evaluates, writes a checkpoint or renames it. When it starts again it must go on from a whole
checkpoint. In the end, `sync` must be bit-identical to a run that was left alone; in `hybrid` every sample
must have been trained on as often, the ledger must close and the AUC must be as good. If anything is not so:
exit code 1, and the folder is kept.
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
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from persia_hpc.checkpoint.files import whole_checkpoints
from persia_hpc.checkpoint.manifest import check_part, read_manifest
from persia_hpc.launch.registry import read_ranks
from tests.support.jobs import user_environment, write_config
from tests.support.tiny import run_digest, tiny_config, write_tiny

END_SECONDS = 120
AUC_NOISE = 0.03
MOMENTS = ("start", "train", "evaluate", "write", "rename", "any")
VICTIMS = ("rank", "rank", "rank", "rank", "launcher", "supervisor")


def settings(data: str, mode: str) -> dict[str, Any]:
    """A run of a few seconds that writes a checkpoint every few steps."""
    changes: dict[str, Any] = {
        "mode": mode,
        "ranks": {"parameter_servers": 2, "embedding_workers": 1, "trainers": 2},
        "data.valid": [data],
        "data.test": [data],
        "train.epochs": 20,
        "train.evaluate_every": 40,
        "checkpoint": {"every": 15, "full_every": 3, "keep": 2, "resume": True},
        # So little room that rows come and go all the time.
        "tables.item": {"dim": 4, "optimizer": {"name": "adam"}, "capacity": "12 KiB", "buckets": 2},
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
    """One start of the run."""

    def __init__(self, config: Path, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.log = run_dir.with_suffix(".log").open("a")
        command = [sys.executable, "-m", "persia_hpc.cli", "train", str(config), "--run-dir", str(run_dir)]
        self.process = subprocess.Popen(
            command, env=user_environment(), cwd=config.parent, stdout=self.log, stderr=self.log
        )

    def wait_for(self, condition: Callable[[], bool], seconds: float = END_SECONDS) -> bool:
        """False if the job ended before."""
        limit = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < limit, "the job hangs"
            time.sleep(0.001)
        return True

    def wait_for_moment(self, moment: str, draw: random.Random) -> bool:
        metrics = self.run_dir / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        if moment == "start":
            return self.sleep(draw.uniform(0, 3))
        if not self.wait_for(lambda: metrics.exists() and metrics.stat().st_size > before):
            return False
        if moment == "evaluate":
            evaluated = metrics.read_text().count('"evaluate"')
            if not self.wait_for(lambda: metrics.read_text().count('"evaluate"') > evaluated):
                return False
            return self.sleep(draw.uniform(0, 0.05))
        if moment == "write":
            return self.wait_for(lambda: any(self.run_dir.glob("*.partial"))) and self.sleep(
                draw.uniform(0, 0.05)
            )
        if moment == "rename":
            return self.wait_for(lambda: any(self.run_dir.glob("*.partial/manifest.json")))
        return self.sleep(draw.uniform(0, 1.5))

    def sleep(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        return self.wait_for(lambda: time.monotonic() >= end)

    def pids(self) -> list[int]:
        return [rank.pid for rank in read_ranks(self.run_dir).values() if rank.is_alive()]

    def kill(self, victim: str, draw: random.Random) -> str:
        if victim == "supervisor":
            self.process.kill()
            return victim
        if victim == "launcher":
            found = subprocess.run(
                ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
            ).stdout.split()
            pids = [int(pid) for pid in found]
        else:
            pids = self.pids()
        if not pids:
            self.process.kill()
            return "supervisor"
        try:
            os.kill(draw.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return "nobody"
        return victim

    def end(self) -> int:
        """Waits until nothing of the job is alive."""
        code = self.process.wait(END_SECONDS)
        limit = time.monotonic() + 20
        while self.pids():
            assert time.monotonic() < limit, f"ranks outlive their job: {self.pids()}"
            time.sleep(0.02)
        self.log.close()
        return code


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
    assert (got["steps"], got["samples"]) == (expected["steps"], expected["samples"])
    if mode == "sync":
        assert run_digest(run_dir) == run_digest(reference), "not bit-identical"
        assert got["test"] == expected["test"]
    else:
        difference = abs(got["test"]["auc"] - expected["test"]["auc"])
        assert difference < AUC_NOISE, f"AUC {got['test']['auc']} against {expected['test']['auc']}"


def main(arguments: list[str] | None = None) -> int:
    """Runs rounds until there were enough kills."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kills-a-round", type=int, default=10, help="then the run may come to its end")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    draw = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="persia-chaos-"))
    data = write_data(folder / "train.h5")
    references, configs = {}, {}
    for mode in ("sync", "hybrid"):
        configs[mode] = write_config(folder / f"{mode}.toml", settings(data, mode))
        references[mode] = folder / f"{mode}-left-alone"
        assert Job(configs[mode], references[mode]).end() == 0
    killed: Counter[tuple[str, str]] = Counter()
    number = 0
    while killed.total() < options.kills:
        number += 1
        mode = ("sync", "sync", "hybrid")[number % 3]
        run_dir = folder / f"run-{number}"
        in_round = 0
        while True:
            before = whole_checkpoints(run_dir)
            job = Job(configs[mode], run_dir)
            killed_now = False
            enough = in_round >= options.kills_a_round or killed.total() >= options.kills
            moment, victim = draw.choice(MOMENTS), draw.choice(VICTIMS)
            if not enough and job.wait_for_moment(moment, draw):
                victim = job.kill(victim, draw)
                killed[moment, victim] += 1
                in_round, killed_now = in_round + 1, True
            code = job.end()
            check_checkpoints(run_dir)
            assert code == 0 or killed_now, f"exit code {code}, nobody was killed; see {job.log.name}"
            if code == 0:
                said = Path(job.log.name).read_text().rpartition("goes on from ")[2]
                assert not before or said.startswith(str(before[0])), f"not from {before[0]}"
                break
        check_end(run_dir, references[mode], mode)
        print(f"round {number}, {mode}: killed {in_round} times, as if nothing had happened", flush=True)
        shutil.rmtree(run_dir)
    print(f"{killed.total()} kills: ", end="")
    print(", ".join(f"{n} {v} ({m})" for (m, v), n in sorted(killed.items())))
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
