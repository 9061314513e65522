"""Whole jobs started with `persia-hpc train` in a process of its own, as a user starts them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import persia_hpc
from persia_hpc.config import load_config, to_toml
from persia_hpc.launch.registry import RankRecord, read_ranks
from persia_hpc.launch.shared_memory import mapped_files
from tests.support.mpi import environment

START_SECONDS = 120  # until the first steps are trained, on a machine that does other things as well
PACKAGE = Path(persia_hpc.__file__).parents[1]
LAUNCHER_VARIABLES = re.compile("^(PMI|PMIX|OMPI|MV2|SLURM)_")


def user_environment() -> dict[str, str]:
    """Outside of any MPI job, with the package and the tests importable."""
    env = {k: v for k, v in os.environ.items() if not LAUNCHER_VARIABLES.match(k)}
    env["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), environment()["PYTHONPATH"]])
    env["OMP_NUM_THREADS"] = "1"
    return env


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """A TOML file of a configuration given as a mapping, which must be valid."""
    path.write_text(to_toml(load_config(config).resolved()))
    return path


class Job:
    """A supervised job, in a run directory below `folder`."""

    def __init__(self, folder: Path, config: dict[str, Any], env: Mapping[str, str] | None = None) -> None:
        """`env`: what the environment has besides."""
        self.run_dir = folder / "run"
        path = write_config(folder / "job.toml", config)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "persia_hpc.cli", "train", str(path), "--run-dir", str(self.run_dir)],
            env={**user_environment(), **(env or {})},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ranks(self) -> dict[int, RankRecord]:
        return read_ranks(self.run_dir)

    def events(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds by now."""
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_until_training(self) -> None:
        """Returns when some steps have been trained, by metrics.jsonl."""

        self.wait_until_more_events(0)

    def wait_until_more_events(self, before: int) -> None:
        """Returns when a job that goes on has trained some steps."""

        def trained() -> bool:
            assert self.process.poll() is None, f"ended early\n{self.end()}"
            return any(event["event"] == "train" for event in self.events()[before:])

        wait_for(trained, START_SECONDS)

    def shared_memory(self) -> set[str]:
        """Files in /dev/shm that the ranks map."""
        return set().union(*(mapped_files(rank.pid) for rank in self.ranks().values()))

    def end(self, seconds: float = START_SECONDS) -> tuple[int, str, str]:
        """Waits for the end: exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def logged(self, text: str) -> bool:
        """Whether some rank's log has it by now."""
        return any(text in path.read_text() for path in (self.run_dir / "logs").glob("rank-*.log"))

    def living(self) -> list[RankRecord]:
        return [rank for rank in self.ranks().values() if rank.is_alive()]

    def clean_up(self) -> None:
        """Whatever a failed test has left."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def wait_for_wait(job: Job, count: int = 1) -> None:
    """Returns when the job waits for files, for the `count`-th time."""

    def waiting() -> bool:
        assert job.process.poll() is None, f"ended early\n{job.end()}"
        return sum(event["event"] == "wait" for event in job.events()) >= count

    wait_for(waiting, START_SECONDS)
