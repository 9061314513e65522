"""Jobs in `mode = "fresh"` that are interrupted, wait for files or keep rows on disk: bit for bit `sync`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

import persia_hpc as ph
from tests.support.follow import FIRST, SECOND, STEPS, THIRD, Folder, summary_of, train_left_alone
from tests.support.jobs import Job, wait_for, wait_for_wait
from tests.support.tiny import SEQUENCES, run_digest, tiny_config, write_sequences, write_tiny

FRESH = {"mode": "fresh", "lookahead": 3}


def ranks(servers: int, workers: int, trainers: int) -> dict[str, int]:
    return {"parameter_servers": servers, "embedding_workers": workers, "trainers": trainers}


def run(folder: Path, config: dict[str, Any], signal_number: int = 0) -> dict[str, Any]:
    """The summary of a job, which gets the signal as soon as it has a checkpoint."""
    job = Job(folder, config)
    try:
        if signal_number:
            wait_for(lambda: job.process.poll() is not None or (job.run_dir / "latest").exists(), 60)
            job.process.send_signal(signal_number)
        code, _, err = job.end()
    finally:
        job.clean_up()
    assert code == (75 if signal_number else 0), err
    return summary_of(job.run_dir)


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_interrupted_job_goes_on_as_sync_would(tmp_path: Path, on_disk: bool) -> None:
    """Resumed by other ranks; with shared and jagged sequences, or with rows beyond memory."""
    path = tmp_path / "train.h5"
    data = write_tiny(path, 660, vocabulary=3000) if on_disk else write_sequences(path, 660)
    features = {} if on_disk else SEQUENCES

    def settings(run_dir: Path, **changes: Any) -> dict[str, Any]:
        config = tiny_config(
            data, **{**features, "train.epochs": 8, "data.valid": [data], "run_dir": str(run_dir), **changes}
        )
        config["model"]["class"] = "tests.support.models:Early"  # a part of it needn't wait for patches
        for name in ("default", "item", "user"):
            config["tables"][name] |= {"buckets": 2, "capacity": "1 MiB"}
        return config

    (tmp_path / "job").mkdir()
    expected = ph.train(settings(tmp_path / "sync"), quiet=True)
    jobs = [settings(tmp_path / "job", ranks=r, **FRESH) for r in (ranks(2, 2, 1), ranks(1, 3, 1))]
    for config in jobs:
        config["checkpoint"] = {"every": 20, "resume": True}
        if on_disk:
            for name in ("default", "item", "user"):
                config["tables"][name] |= {
                    "capacity": "9 KiB",
                    "disk": {"path": str(tmp_path), "capacity": "4 MiB"},
                }
    first, second = run(tmp_path / "job", jobs[0], signal.SIGTERM), run(tmp_path / "job", jobs[1])
    assert first["steps"] < second["steps"] == expected["steps"]
    assert set(second["staleness"]["histogram"]) == {"0"}
    assert second["embedding"]["patched_rows"] > 0
    assert second["valid"] == expected["valid"]
    assert (second["embedding"]["from_disk_rows"] > 1000) == on_disk
    assert run_digest(tmp_path / "job" / "run") == run_digest(tmp_path / "sync")


def test_a_job_that_waits_for_files_is_sync(tmp_path: Path) -> None:
    train_left_alone(tmp_path / "sync")
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    job = Job(tmp_path, folder.config(ranks=ranks(2, 2, 1), **FRESH))
    try:
        for count, names in enumerate((SECOND, THIRD, ()), start=1):
            wait_for_wait(job, count)
            folder.drop(names)
        folder.end()
        code, _, err = job.end()
    finally:
        job.clean_up()
    assert code == 0, err
    summary = summary_of(job.run_dir)
    assert summary["steps"] == STEPS
    assert summary["embedding"]["patched_rows"] > 0
    assert run_digest(job.run_dir) == run_digest(tmp_path / "sync" / "run")
