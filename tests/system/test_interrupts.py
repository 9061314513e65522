"""Whole jobs that are asked to stop, by any signal to any of their processes, and go on with other ranks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persia_hpc.checkpoint.files import whole_checkpoints
from tests.support.chaos import main as chaos
from tests.support.jobs import Job, user_environment, write_config
from tests.support.tiny import run_digest, tiny_config, trained_rows, write_tiny

EPOCHS = 110
SAMPLES = 600
STEPS = EPOCHS * 19  # batches of 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("data") / "train.h5", SAMPLES)


def ranks(servers: int, workers: int, trainers: int) -> dict[str, int]:
    return {"parameter_servers": servers, "embedding_workers": workers, "trainers": trainers}


def summary_of(job: Job) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((job.run_dir / "summary.json").read_text())
    return result


def rank(number: int) -> Callable[[Job], int]:
    return lambda job: job.ranks()[number].pid


def launcher(job: Job) -> int:
    found = subprocess.run(
        ["pgrep", "-P", str(job.process.pid)], capture_output=True, text=True, check=True
    ).stdout
    return int(found.split()[0])


def supervisor(job: Job) -> int:
    return job.process.pid


CHAIN = [  # ranks: server, server, worker, trainer, trainer
    (signal.SIGUSR1, rank(1)),
    (signal.SIGTERM, rank(2)),
    (signal.SIGINT, rank(4)),
    (signal.SIGUSR1, launcher),
    (signal.SIGINT, supervisor),
]


def test_a_chain_of_interruptions_changes_nothing(data: str, tmp_path: Path) -> None:
    """`sync`: each time another signal to another process; bit-identical in the end."""
    settings = {"ranks": ranks(2, 1, 2), "data.valid": [data], "train.epochs": EPOCHS}
    config = tiny_config(data, **settings, **{"checkpoint.resume": True})
    (tmp_path / "whole").mkdir()
    reference = Job(tmp_path / "whole", config)
    steps = 0
    for number, target in CHAIN:
        job = Job(tmp_path, config)
        before = len(job.events())
        try:
            job.wait_until_more_events(before)
            os.kill(target(job), number)
            code, _, err = job.end()
        finally:
            job.clean_up()
        assert code == 75, err
        summary = summary_of(job)
        assert summary["status"] == "interrupted"
        assert steps < summary["steps"] < STEPS
        steps = summary["steps"]
        assert re.fullmatch(
            rf"persia-hpc: stopped by SIG\w+ after step {steps}; go on with: persia-hpc train --resume "
            rf"--run-dir {job.run_dir}",
            err.splitlines()[-1],
        )
        assert not job.living()
    job = Job(tmp_path, config)
    code, _, err = job.end()
    assert (code, summary_of(job)["status"]) == (0, "completed"), err
    assert reference.end()[0] == 0
    expected = summary_of(reference)
    got = summary_of(job)
    assert run_digest(job.run_dir) == run_digest(reference.run_dir)
    for name in ("pulled_rows", "applied_rows", "dropped_rows"):
        assert got["embedding"][name] == expected["embedding"][name]
    assert got["valid"] == expected["valid"]


def go_on(folder: Path, data: str, counts: dict[str, int], max_steps: int, **changes: Any) -> Job:
    config = tiny_config(
        data,
        **{"ranks": counts, "train.max_steps": max_steps, "train.epochs": EPOCHS, "checkpoint.resume": True},
        **changes,
    )
    job = Job(folder, config)
    code, _, err = job.end()
    assert code == 0, err
    return job


def test_the_number_of_servers_and_workers_may_change(data: str, tmp_path: Path) -> None:
    """1 -> 3 -> 2: buckets move, rows don't change."""
    for counts, last in [(ranks(1, 1, 2), 15), (ranks(3, 2, 2), 40), (ranks(2, 1, 2), 60)]:
        job = go_on(tmp_path, data, counts, last)
    assert len(list((job.run_dir / "latest").glob("server-*.h5"))) == 2
    (tmp_path / "whole").mkdir()
    reference = go_on(tmp_path / "whole", data, ranks(1, 1, 2), 60)
    assert run_digest(job.run_dir) == run_digest(reference.run_dir)
    assert summary_of(job)["samples"] == summary_of(reference)["samples"]


def test_the_number_of_trainers_may_change(data: str, tmp_path: Path) -> None:
    """Sums come in another order then: equal but for rounding."""
    for counts, last in [(ranks(1, 1, 1), 15), (ranks(1, 1, 3), 30), (ranks(1, 1, 2), 45)]:
        job = go_on(tmp_path, data, counts, last)
    (tmp_path / "whole").mkdir()
    reference = go_on(tmp_path / "whole", data, ranks(1, 1, 1), 45)
    got, expected = trained_rows(job.run_dir), trained_rows(reference.run_dir)
    for table, columns in expected.items():
        np.testing.assert_array_equal(got[table][0], columns[0])
        np.testing.assert_allclose(got[table][1], columns[1], rtol=2e-3, atol=2e-5)
        np.testing.assert_array_equal(got[table][3], columns[3])
    ledger = summary_of(job)["embedding"]
    assert ledger["pulled_rows"] == ledger["applied_rows"] > 0


def test_checkpoints_by_the_clock_lose_nothing(data: str, tmp_path: Path) -> None:
    """Segments end early again and again, at a step that two workers, servers and trainers must agree on."""
    checkpoint = {"every_seconds": 0.05, "every": 100, "full_every": 3}
    settings = {"mode": "hybrid", "staleness_bound": 3, "ranks": ranks(2, 2, 2), "checkpoint": checkpoint}
    job = Job(tmp_path, tiny_config(data, **settings, **{"train.epochs": 20}))
    code, _, err = job.end()
    assert code == 0, err
    summary = summary_of(job)
    assert (summary["steps"], summary["samples"]) == (20 * 19, 20 * SAMPLES)
    assert summary["staleness"]["max"] <= 3
    assert summary["checkpoints"]["written"] > 8
    ledger = summary["embedding"]
    assert ledger["pulled_rows"] == ledger["applied_rows"]
    assert summary["staleness"]["histogram"]["0"] > 8, "each segment begins drained"


def test_a_second_interrupt_ends_the_job_at_once(data: str, tmp_path: Path) -> None:
    config = tiny_config(data, **{"train.epochs": 5000, "model.class": "tests.support.models:VerySlow"})
    job = Job(tmp_path, config)
    try:
        job.wait_until_training()
        job.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            job.process.wait(1.0)  # the step that is under way takes longer than that
        job.process.send_signal(signal.SIGINT)
        code, _, err = job.end(10)
    finally:
        job.clean_up()
    assert (code, err.splitlines()[-1]) == (130, "persia-hpc: ended by SIGINT")
    assert not job.living()


def test_bare_mpiexec_passes_a_signal_on(data: str, tmp_path: Path) -> None:
    """Without our supervisor: MPI's launcher is what gets the signal, and gives the exit code."""
    config = tiny_config(data, **{"train.epochs": 5000, "ranks": ranks(1, 1, 1)})
    path = write_config(tmp_path / "job.toml", config)
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        pytest.skip(f"no mpiexec beside {sys.executable}")
    run_dir = tmp_path / "run"
    command = [str(mpiexec), "-n", "3", sys.executable, "-m", "mpi4py", "-m", "persia_hpc.cli", "train"]
    process = subprocess.Popen(
        [*command, str(path), "--run-dir", str(run_dir)],
        env=user_environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    job = Job.__new__(Job)
    job.run_dir, job.process = run_dir, process
    try:
        job.wait_until_training()
        process.send_signal(signal.SIGUSR1)
        code, _, err = job.end()
    finally:
        job.clean_up()
    assert code == 75, err
    assert summary_of(job)["status"] == "interrupted"
    assert whole_checkpoints(run_dir)


def test_killed_at_random_moments(capfd: pytest.CaptureFixture[str]) -> None:
    """A small `make chaos`."""
    assert chaos(["--kills", "4", "--kills-a-round", "4", "--jobs", "1", "--seed", "5"]) == 0, (
        capfd.readouterr()
    )
