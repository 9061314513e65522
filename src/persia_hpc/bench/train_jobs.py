"""Runs what `bench train` measures: its data, and programs and jobs in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.config import load_config, to_toml
from persia_hpc.errors import PersiaError
from persia_hpc.launch.mpiexec import MPI_PYTHON
from persia_hpc.launch.registry import RankRecord, read_ranks, read_summary
from persia_hpc.samples.source import open_source

DIM, VOCABULARY, FEATURES, DENSE = 16, 1_000_000, 26, 13
START_SECONDS = 60
CASE_SECONDS = 240
STOP_SECONDS = 30


def prepare_data(folder: Path, samples: int, exponent: float = 1.2) -> Path:
    """Makes W0's HDF5 file of `samples` rows in `folder` and returns its path; reuses it if it is there.

    Its columns are also written as .npy files, for the peers.
    """
    path = synthetic(folder, samples, exponent=exponent)
    labels = folder / "labels.npy"  # the last that is written
    if not labels.exists() or labels.stat().st_mtime < path.stat().st_mtime:
        source = open_source([str(path)])
        batch = source.read(0, source.num_samples)
        ids = np.stack([batch.ids[f.name].values for f in source.schema.features], axis=1)
        np.save(folder / "ids.npy", ids.astype(np.uint32))
        np.save(folder / "dense.npy", batch.dense)
        np.save(labels, batch.labels)
    return path


def synthetic(
    folder: Path, samples: int, features: int = FEATURES, multi: int = 0, exponent: float = 1.2
) -> Path:
    """Makes an HDF5 file in `folder` like W0's, with `features` features, `multi` of them multi-hot."""
    rows = ["--rows", str(samples), "--test-rows", "0", "--vocabulary", str(VOCABULARY)]
    shape = ["--features", str(features), "--multi-features", str(multi), "--dense", str(DENSE)]
    shape += ["--exponent", str(exponent)]
    _run([*cli(), "preprocess", "synthetic", "--out", str(folder), *rows, *shape])
    return folder / "train-000.h5"


def w0_settings(path: Path, batch: int, samples: int, trainers: int = 1) -> dict[str, Any]:
    """Returns the configuration of W0: `samples` are trained on, in global batches of `batch`."""
    return {
        "ranks": {"trainers": trainers},
        "data": {"train": str(path), "batch_size": batch},
        "tables": {
            "default": {
                "dim": DIM,
                "optimizer": {"name": "rowwise_adagrad", "lr": 0.05},
                "capacity": "256 MiB",
            }
        },
        "model": {"class": "dlrm", "bottom": [64], "hidden": [64]},
        "train": {
            "optimizer": {"name": "Adam", "lr": 1e-3},
            "epochs": 1_000_000,
            "max_steps": samples // batch,
            "evaluate_at_end": False,
            "save": False,
        },
    }


def run_job(
    folder: Path, settings: Mapping[str, Any], pins: Mapping[str, int], seconds: float = CASE_SECONDS
) -> dict[str, Any]:
    """Runs `persia-hpc train` under mpiexec and returns its summary.

    The run directory is `folder`/run, which is replaced.

    pins: role -> core. Ranks are pinned as soon as they have said what they are.
    seconds: a job that takes longer is stopped; its summary, `interrupted`, is of the steps until then.

    Raises PersiaError, with the job's output, if it fails.
    """
    run_dir = folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    config = folder / "job.toml"
    config.write_text(to_toml(load_config(settings).resolved()))
    command = [*cli(), "train", str(config), "--run-dir", str(run_dir), "--quiet"]
    stopped = False
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        try:
            if pins:
                _pin_ranks(job, run_dir, pins, sum(load_config(settings).ranks.counts().values()))
            try:
                output, _ = job.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                stopped = True
                job.terminate()
                output, _ = job.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            job.kill()
            raise PersiaError(
                f"{' '.join(command)} took longer than {seconds:g} s and didn't stop within {STOP_SECONDS} s "
                "of SIGTERM: it was killed"
            ) from None
        finally:
            job.terminate()
    summary = read_summary(run_dir)
    if stopped and summary is not None and summary["status"] == "interrupted" and summary["steady"]["steps"]:
        return summary
    if job.returncode or summary is None:
        raise PersiaError(f"{' '.join(command)} failed:\n{output}")
    return summary


def _pin_ranks(job: subprocess.Popen[str], run_dir: Path, pins: Mapping[str, int], num_ranks: int) -> None:
    limit = time.monotonic() + START_SECONDS
    ranks: list[RankRecord] = []
    while len(ranks) < num_ranks:
        if job.poll() is not None:
            return  # the caller says what went wrong
        if time.monotonic() > limit:
            raise PersiaError(f"only {len(ranks)} of {num_ranks} ranks had started after {START_SECONDS} s")
        time.sleep(0.05)
        ranks = [r for r in read_ranks(run_dir).values() if r.role is not None]
    for rank in ranks:
        assert rank.role is not None
        for thread in os.listdir(f"/proc/{rank.pid}/task"):
            os.sched_setaffinity(int(thread), {pins[rank.role]})


def run_local(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the summary of the same training in one process, without MPI."""
    run_dir = folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    program = "import json, sys, persia_hpc as ph; ph.train(json.loads(sys.argv[1]), quiet=True)"
    _run([*MPI_PYTHON, "-c", program, json.dumps({**settings, "run_dir": str(run_dir)})])
    summary = read_summary(run_dir)
    assert summary is not None
    return summary


def run_program(
    command: Sequence[str],
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = CASE_SECONDS,
) -> dict[str, Any]:
    """Returns the JSON object on the last line that a program prints; `core`: the only one it may use."""
    pin = None if core is None else (lambda: os.sched_setaffinity(0, {core}))
    done: dict[str, Any] = json.loads(_run(command, pin, environment, seconds).splitlines()[-1])
    return done


def _run(
    command: Sequence[str],
    before: Any = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = CASE_SECONDS,
) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        preexec_fn=before,
        env=environment,
    )
    if done.returncode:
        raise PersiaError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def cli() -> list[str]:
    """Returns the command that calls `persia-hpc` of this very installation."""
    return [*MPI_PYTHON, "-m", "persia_hpc.cli"]
