"""Training on files as they appear: real jobs while another process drops files, against one process."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.checkpoint.files import whole
from tests.support.jobs import Job, wait_for
from tests.support.samples import random_batch, write
from tests.support.tiny import run_digest, tiny_config, trained_rows, write_tiny

ROWS = {"a": 70, "b": 45, "c": 900, "d": 60}
FIRST, SECOND, THIRD = ("a", "b"), ("c",), ("d",)  # portions
STEPS = 4 + 29 + 2  # batches of 32


class Folder:
    """Data that arrives."""

    def __init__(self, path: Path):
        self.path = path
        self.incoming = path / "in"
        self.incoming.mkdir(parents=True)
        for seed, (name, rows) in enumerate(ROWS.items()):
            write_tiny(path / f"{name}.h5", rows, seed=seed)

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            (self.path / f"{name}.h5").rename(self.incoming / f"{name}.h5")

    def end(self) -> None:
        (self.incoming / "_END").touch()

    def config(self, **changes: Any) -> dict[str, Any]:
        return tiny_config(str(self.incoming / "*.h5"), **{"data.follow": True, **changes})


class Drops(ph.Callback):
    """A logger that drops the next files when the run waits."""

    def __init__(self, folder: Folder, *portions: Sequence[str], then_end: bool = True):
        self.folder, self.portions, self.then_end = folder, list(portions), then_end
        self.events: list[dict[str, Any]] = []

    def log(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "wait":
            if self.portions:
                self.folder.drop(self.portions.pop(0))
            elif self.then_end:
                self.folder.end()


def waits(job: Job) -> int:
    return sum(event["event"] == "wait" for event in job.events())


def wait_for_wait(job: Job, count: int = 1) -> None:
    """Returns when the job waits for files, for the `count`-th time."""

    def waiting() -> bool:
        assert job.process.poll() is None, f"ended early\n{job.end()}"
        return waits(job) >= count

    wait_for(waiting, 120)


def ranks(servers: int, workers: int, trainers: int) -> dict[str, int]:
    return {"parameter_servers": servers, "embedding_workers": workers, "trainers": trainers}


def summary_of(run_dir: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return result


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all three portions, left alone."""
    path = tmp_path_factory.mktemp("one")
    folder = Folder(path)
    folder.drop(FIRST)
    drops = Drops(folder, SECOND, THIRD)
    summary = ph.train(folder.config(run_dir=str(path / "run")), loggers=[drops], quiet=True)
    assert (summary["status"], summary["steps"], summary["samples"]) == ("completed", STEPS, 1075)
    assert summary["follow"]["portions"] == 3
    assert summary["follow"]["files"] == 4
    assert [e["files"] for e in drops.events if e["event"] == "data"] == [2, 1, 1]
    return path / "run"


def test_a_job_that_waits_equals_one_process_and_ends_by_quiet(tmp_path: Path, one_process: Path) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    changes = {"data.follow_seconds": 1.5, "transport.stall_seconds": 0.4}
    job = Job(tmp_path, folder.config(ranks=ranks(2, 2, 1), **changes))
    try:
        for count, names in enumerate((SECOND, THIRD), start=1):
            wait_for_wait(job, count)
            if count == 1:  # nobody may complain, or burn a core
                logs = [p.read_text() for p in (job.run_dir / "logs").glob("rank-*.log")]
                before = {r.pid: cpu_seconds(r.pid) for r in job.ranks().values()}
                time.sleep(1.0)
                used = {pid: cpu_seconds(pid) - seconds for pid, seconds in before.items()}
                assert max(used.values()) < 0.5, used
                later = [p.read_text() for p in (job.run_dir / "logs").glob("rank-*.log")]
                assert sum(text.count("has waited") for text in later) == sum(
                    text.count("has waited") for text in logs
                )
            folder.drop(names)
        code, _, err = job.end()
    finally:
        job.clean_up()
    assert code == 0, err
    summary = summary_of(job.run_dir)
    assert (summary["status"], summary["stop_reason"]) == ("stopped", "no new file in 1.5 s")
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
    assert whole(job.run_dir)[0].name == "step-00000004"

    def kill_in_the_middle(job: Job) -> None:
        wait_for(lambda: int(whole(job.run_dir)[0].name[5:]) > 4, 60)
        os.kill(job.ranks()[1].pid, signal.SIGKILL)

    (folder.incoming / "e.h5").unlink()
    folder.drop(SECOND)
    _, code, err = run(kill_in_the_middle)
    assert code == 137, err
    assert 4 < int(whole(job.run_dir)[0].name[5:]) < 33

    def stop_while_it_waits(job: Job) -> None:
        wait_for_wait(job, 2)
        os.kill(job.ranks()[2].pid, signal.SIGTERM)

    for name in FIRST:  # used up, and not needed any more
        (folder.incoming / f"{name}.h5").unlink()
    folder.drop(THIRD)  # the portion that it goes on in the middle of doesn't get this
    job, code, err = run(stop_while_it_waits)
    assert (code, summary_of(job.run_dir)["steps"]) == (75, STEPS), err
    assert [e["samples"] for e in job.events() if e["event"] == "data"] == [115, 900, 60]
    folder.end()
    job, code, err = run(lambda _: None)
    summary = summary_of(job.run_dir)
    assert (code, summary["status"], summary["steps"], summary["samples"]) == (0, "completed", STEPS, 1075)
    assert summary["embedding"]["pulled_rows"] == summary["embedding"]["applied_rows"] > 0
    expected, got = trained_rows(one_process), trained_rows(job.run_dir)
    for table, columns in expected.items():  # two trainers sum in another order
        np.testing.assert_array_equal(got[table][0], columns[0])
        np.testing.assert_allclose(got[table][1], columns[1], rtol=2e-3, atol=2e-5)
        np.testing.assert_array_equal(got[table][3], columns[3])
