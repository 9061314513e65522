"""Real training that ends badly: the whole job ends within seconds and says why, and nothing stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.support.jobs import Job
from tests.support.tiny import tiny_batch, tiny_config, write_tiny

END_SECONDS = 10
CHUNK_ROWS = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("data") / "train.h5", 330)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs = []

    def call(data: str, trainers: int = 1, **changes: Any) -> Job:
        ranks = {"parameter_servers": 1, "embedding_workers": 1, "trainers": trainers}
        settings = {"mode": "hybrid", "staleness_bound": 2, "ranks": ranks, "train.epochs": 500, **changes}
        jobs.append(Job(tmp_path, tiny_config(data, **settings)))
        return jobs[-1]

    yield call
    for job in jobs:
        job.clean_up()


@pytest.mark.parametrize(
    ("victim", "role", "trainers"),
    [(0, "parameter_server 0", 1), (1, "embedding_worker 0", 1), (3, "trainer 1", 2)],
)
def test_a_killed_rank_ends_the_job(
    victim: int, role: str, trainers: int, data: str, start: Callable[..., Job]
) -> None:
    job = start(data, trainers)
    job.wait_until_training()
    ranks, shared = job.ranks(), job.shared_memory()
    assert sorted(ranks) == list(range(2 + trainers))
    assert all(rank.is_alive() for rank in ranks.values())
    pid = ranks[victim].pid
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    code, _, err = job.end(60)
    assert time.monotonic() - begin < END_SECONDS
    assert not job.living()
    assert code == 128 + signal.SIGKILL, err
    assert err.splitlines()[-1] == (
        f"persia-hpc: rank {victim} ({role}, pid {pid}) was killed by signal 9 (SIGKILL); the job was ended"
    )
    assert not [file for file in shared if os.path.exists(file)]
    assert not (job.run_dir / "summary.json").exists()


@pytest.mark.parametrize(
    ("changes", "who", "what"),
    [
        (
            {"model.class": "tests.support.models:FailsAtStep5"},
            r"rank 2 \(trainer 0, pid \d+\)",
            "the model can't do step 5",
        ),
        (
            {"data.transform": "tests.support.transforms:fail_at_step_5"},
            r"rank 1 \(embedding_worker 0, pid \d+\)",
            "the transform can't do step 5",
        ),
    ],
)
def test_an_exception_in_the_users_code_ends_the_job(
    changes: dict[str, str], who: str, what: str, data: str, start: Callable[..., Job]
) -> None:
    job = start(data, **changes)
    code, _, err = job.end()
    assert time.time() - failure(job)["time"] < END_SECONDS
    assert code == 1, err
    last = err.splitlines()[-1]
    assert re.fullmatch(f"persia-hpc: {who} failed: ArithmeticError: {what}; the job was ended", last), err
    assert err.count("Traceback") == 1, "the user must see where, once"
    assert f'raise ArithmeticError("{what}")' in err
    assert failure(job)["details"] in err
    assert not job.living()


def failure(job: Job) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((job.run_dir / "failure.json").read_text())
    return result


def check_ends_with_data_error(job: Job, message: str) -> None:
    code, _, err = job.end()
    assert time.time() - failure(job)["time"] < END_SECONDS
    assert code == 3, err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    pattern = rf"persia-hpc: rank 1 \(embedding_worker 0, pid \d+\) failed: {message}; the job was ended"
    assert re.fullmatch(pattern, last), err
    found = failure(job)
    assert found["code"] == 3
    assert found["world_rank"] == 1
    assert re.fullmatch(message, found["message"])
    assert not job.living()
    steps = [event["step"] for event in job.events() if event["event"] == "train"]
    assert steps, "it ended before it trained"
    assert not (job.run_dir / "summary.json").exists()


# In the order of the file: what is late in the file is read late. Slow: the events come once a second.
# Unless a checkpoint is to be written: that begins by reading the samples which it is to know again.
IN_ORDER = {
    "data.shuffle": False,
    "train.save": False,
    "train.epochs": 1,
    "model.class": "tests.support.models:Slow",
}


def test_a_flipped_byte_met_while_training(tmp_path: Path, start: Callable[..., Job]) -> None:
    path = Path(write_tiny(tmp_path / "flipped.h5", 4000))
    begin = 38 * CHUNK_ROWS
    with h5py.File(path) as file:
        chunk = file["dense"].id.get_chunk_info(begin // CHUNK_ROWS)
        assert chunk.chunk_offset == (begin, 0)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset + chunk.size // 2)
        byte = raw.read(1)[0]
        raw.seek(-1, os.SEEK_CUR)
        raw.write(bytes([byte ^ 4]))
    rows = rf"rows {begin} to {begin + CHUNK_ROWS}"
    check_ends_with_data_error(
        start(str(path), **IN_ORDER), f"{path}: /dense, {rows}: .*damaged or incomplete.*"
    )


def test_a_file_truncated_while_training(tmp_path: Path, start: Callable[..., Job]) -> None:
    path = Path(write_tiny(tmp_path / "truncated.h5", 10_000))
    job = start(str(path), **IN_ORDER)
    job.wait_until_training()
    with path.open("r+b") as raw:
        raw.truncate(path.stat().st_size // 2)
    check_ends_with_data_error(job, rf"{path}: /[a-z/]+, rows \d+ to \d+: .*damaged or incomplete.*")


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("label", 0, 2.0, "got 2.0 in label 'label', expected 0 or 1, or NaN where it is missing; .*"),
        ("dense", 1, np.nan, "got nan in dense column 'dense_1', expected a finite number; .*"),
    ],
)
def test_bad_values_of_a_file_made_elsewhere(
    name: str, column: int, value: float, message: str, tmp_path: Path, start: Callable[..., Job]
) -> None:
    path, row = tmp_path / "elsewhere.h5", 2500
    batch = tiny_batch(4000)
    with h5py.File(path, "w") as file:
        file.attrs["schema_version"] = 1
        for feature, ids in batch.ids.items():
            if ids.offsets is None:
                file[f"ids/{feature}"] = ids.values
            else:
                file[f"ids/{feature}/values"], file[f"ids/{feature}/offsets"] = ids.values, ids.offsets
        file["dense"], file["label"] = batch.dense, batch.labels
        file[name][row, column] = value
    check_ends_with_data_error(start(str(path), **IN_ORDER), f"{path}: row {row}: {message}")
