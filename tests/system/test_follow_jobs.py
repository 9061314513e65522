"""Training on files as they appear: real jobs while another process drops files."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.checkpoint.files import whole_checkpoints
from persia_hpc.launch.registry import read_ranks
from tests.support.follow import FIRST, SECOND, STEPS, THIRD, Folder, summary_of, train_left_alone
from tests.support.jobs import Job, wait_for, wait_for_wait
from tests.support.mpi import run_mpi
from tests.support.samples import random_batch, write
from tests.support.serving_chaos import IDS
from tests.support.tiny import run_digest, trained_rows


def wait_for_version(folder: Folder, step: int) -> None:
    """Returns when the newest version is of a step."""
    path = folder.path / "export" / "latest" / "manifest.json"
    wait_for(lambda: path.exists() and json.loads(path.read_text())["step"] == step, 60)


def ranks(servers: int, workers: int, trainers: int) -> dict[str, int]:
    return {"parameter_servers": servers, "embedding_workers": workers, "trainers": trainers}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def look_on(run_dir: Path, seconds: float = 0.8) -> tuple[float, int]:
    """While a job waits: the most CPU seconds a second that one of its ranks takes, and how many complain."""

    def complaints() -> int:
        return sum(p.read_text().count("has waited") for p in (run_dir / "logs").glob("rank-*.log"))

    pids, before = [rank.pid for rank in read_ranks(run_dir).values()], complaints()
    used = [cpu_seconds(pid) for pid in pids]
    time.sleep(seconds)
    used = [cpu_seconds(pid) - begin for pid, begin in zip(pids, used, strict=True)]
    return max(used) / seconds, complaints() - before


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_left_alone(tmp_path_factory.mktemp("one"))


def test_a_job_that_waits_equals_one_process_and_ends_by_quiet(tmp_path: Path, one_process: Path) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    changes = {"data.follow_seconds": 2.5, "transport.stall_seconds": 0.3}
    job = Job(tmp_path, folder.config(ranks=ranks(2, 2, 1), **changes))
    try:
        for count, names in enumerate((SECOND, THIRD), start=1):
            wait_for_wait(job, count)
            if count == 1:
                load, complaints = look_on(job.run_dir)
                assert load < 0.5, "one trainer: nobody polls"
                assert complaints == 0, "waiting is no stall"
            folder.drop(names)
        code, _, err = job.end()
    finally:
        job.clean_up()
    assert code == 0, err
    summary = summary_of(job.run_dir)
    assert (summary["status"], summary["stop_reason"]) == ("stopped", "no new file in 2.5 s")
    assert summary["follow"]["wait_seconds"] > 2
    assert summary["embedding"]["pulled_rows"] == summary["embedding"]["applied_rows"] > 0
    assert run_digest(job.run_dir) == run_digest(one_process)


def test_a_job_survives_a_bad_file_a_kill_and_a_stop_while_it_waits(
    tmp_path: Path, one_process: Path
) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    config = folder.config(
        ranks=ranks(1, 1, 2),
        checkpoint={"every": 5, "full_every": 2, "resume": True},
        **{"model.class": "tests.support.models:Slow"},
    )

    def run(disturb: Callable[[Job], object]) -> tuple[Job, int, str]:
        job = Job(tmp_path, config)
        try:
            disturb(job)
            code, _, err = job.end()
        finally:
            job.clean_up()
        return job, code, err

    def drop_a_bad_file(job: Job) -> None:
        wait_for_wait(job)
        os.rename(write(tmp_path / "bad", random_batch(40)), folder.incoming / "e.h5")

    job, code, err = run(drop_a_bad_file)
    assert code == 3, err
    assert "e.h5: got no feature 'item'" in err
    assert "the checkpoint of step 4 is kept" in err
    assert whole_checkpoints(job.run_dir)[0].name == "step-00000004"

    def kill_in_the_middle(job: Job) -> None:
        wait_for(lambda: int(whole_checkpoints(job.run_dir)[0].name[5:]) > 4, 60)
        os.kill(job.ranks()[1].pid, signal.SIGKILL)

    (folder.incoming / "e.h5").unlink()
    folder.drop(SECOND)
    _, code, err = run(kill_in_the_middle)
    assert code == 137, err
    assert 4 < int(whole_checkpoints(job.run_dir)[0].name[5:]) < 33

    def stop_while_it_waits(job: Job) -> None:
        wait_for_wait(job, 2)
        os.kill(job.ranks()[2].pid, signal.SIGTERM)

    for name in FIRST:  # used up, and not needed any more
        (folder.incoming / f"{name}.h5").unlink()
    folder.drop(THIRD)  # the portion that it goes on in the middle of doesn't get this
    job, code, err = run(stop_while_it_waits)
    assert (code, summary_of(job.run_dir)["steps"]) == (75, STEPS), err
    assert [e["samples"] for e in job.events() if e["event"] == "data"] == [115, 900, 60]
    ledger = summary_of(job.run_dir)["embedding"]
    assert ledger["pulled_rows"] == ledger["applied_rows"] > 0
    expected, got = trained_rows(one_process), trained_rows(job.run_dir)
    for table, columns in expected.items():  # two trainers sum in another order
        np.testing.assert_array_equal(got[table][0], columns[0])
        np.testing.assert_allclose(got[table][1], columns[1], rtol=2e-3, atol=2e-5)
        np.testing.assert_array_equal(got[table][3], columns[3])


def test_hybrid_and_async_trainers_follow_too(tmp_path: Path) -> None:
    """The ledger closes, the bound holds; files come while other ranks wait in each of the modes.

    Meanwhile a service gets what the steps before the wait have trained, once.
    """
    cases, folders = [], []
    seen: list[int] = []
    went_on: list[bool] = []
    for mode in ("hybrid", "async"):
        folder = Folder(tmp_path / mode)
        folder.drop(FIRST)
        changes = {
            "mode": mode,
            "staleness_bound": 2,
            "transport.stall_seconds": 0.3,
            "run_dir": str(tmp_path / mode / "run"),
            "export": {"every_seconds": 0.2, "dir": str(tmp_path / mode / "export")},
        }
        cases.append(folder.config(ranks=ranks(2, 2, 2), **changes))
        folders.append(folder)

    def wait_for_waits(path: Path, count: int) -> None:
        wait_for(lambda: path.exists() and path.read_text().count('"wait"') == count, 120)

    def drop_when_they_wait() -> None:
        for folder in folders:
            metrics = folder.path / "run" / "metrics.jsonl"
            wait_for_waits(metrics, 1)
            wait_for_version(folder, 4)
            newest = folder.path / "export" / "latest"
            before = newest.readlink()
            seen.append(look_on(folder.path / "run")[1])
            went_on.append(newest.readlink() != before)
            folder.drop(SECOND)
            wait_for_waits(metrics, 2)
            wait_for_version(folder, 33)
            folder.end()

    dropping = threading.Thread(target=drop_when_they_wait)
    dropping.start()
    run_mpi(6, Path(__file__).with_name("programs") / "train_cases.py", json.dumps(cases), timeout=240)
    dropping.join()
    assert seen == [0, 0], "waiting is no stall"
    assert went_on == [False, False], "nothing had been trained since the version before"
    for folder in folders:
        summary = summary_of(folder.path / "run")
        assert (summary["status"], summary["steps"], summary["samples"]) == ("completed", 33, 1015)
        assert summary["embedding"]["pulled_rows"] == summary["embedding"]["applied_rows"] > 0
        assert summary["staleness"]["max"] <= 2
        assert summary["follow"]["files"] == 3
        reader, run = ph.Reader(folder.path / "export", follow=False), ph.load(folder.path / "run")
        for table in run.tables:
            np.testing.assert_array_equal(reader.rows(table, IDS).values, run.rows(table, IDS))
