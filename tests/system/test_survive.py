"""Jobs on full and read-only disks, without their data, and with stopped ranks: a named error or wait, never
a hang, and what was saved before stays whole.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from persia_hpc.checkpoint.files import whole_checkpoints
from tests.support.chaos import check_checkpoints
from tests.support.disks import read_only, small_disk
from tests.support.jobs import Job, wait_for
from tests.support.tiny import tiny_config, write_tiny

END_SECONDS = 60
FULL = "No space left on device"
READ_ONLY = "Read-only file system"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("data") / "train.h5", 330, vocabulary=300)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs = []

    def call(data: str, servers: int = 1, **changes: Any) -> Job:
        ranks = {"parameter_servers": servers, "embedding_workers": 1, "trainers": 1}
        settings = {
            "ranks": ranks,
            "train.epochs": 500,
            "model": {"class": "tests.support.models:Slow"},
            "checkpoint": {"every": 20, "keep": 2},
            "tables.default": {"dim": 32, "capacity": "1 MiB"},
            **changes,
        }
        jobs.append(Job(tmp_path, tiny_config(data, **settings)))
        return jobs[-1]

    yield call
    for job in jobs:
        for rank in job.living():
            os.kill(rank.pid, signal.SIGKILL)
        job.clean_up()


def wait_until_saved(job: Job, count: int = 1) -> None:
    """Returns when `count` checkpoints are whole, and no other has been begun yet."""

    def saved() -> bool:
        assert job.process.poll() is None, f"ended early\n{job.end()}"
        return len(whole_checkpoints(job.run_dir)) >= count and not list(job.run_dir.glob("*.partial"))

    wait_for(saved, 120)


def check_failed(job: Job, message: str) -> None:
    """It ends soon, with one clear last line and without tracebacks; what is saved is whole."""
    code, _, err = job.end(END_SECONDS)
    assert code == 1, err
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert "Logging error" not in err
    assert re.fullmatch(f"persia-hpc: {message}", err.splitlines()[-1]), err
    assert len(err.splitlines()) < 8, "one clear line"
    assert not job.living()
    assert whole_checkpoints(job.run_dir), "the older checkpoints must stay"
    check_checkpoints(job.run_dir)


def check_goes_on(start: Callable[..., Job], data: str, job: Job, servers: int = 1, **changes: Any) -> None:
    """With --resume it goes on from the newest whole checkpoint to its end."""
    newest = whole_checkpoints(job.run_dir)[0]
    last = int(newest.name[5:]) + 15
    settings = {"train.max_steps": last, "checkpoint": {"every": 10, "keep": 2, "resume": True}}
    again = start(data, servers, **{**changes, **settings})
    code, _, err = again.end()
    assert code == 0, err
    assert f"goes on from {newest}" in err
    assert whole_checkpoints(job.run_dir)[0].name == f"step-{last:08d}"
    check_checkpoints(job.run_dir)
    assert not list(job.run_dir.glob("*.partial")), "what was half-written must go"


@pytest.mark.parametrize(
    ("victim", "changes", "leave"),
    [
        ("server", {}, 24 << 10),
        ("dense", {"model": {"class": "tests.support.models:Slow", "hidden": 4000}}, 600 << 10),
    ],
)
def test_a_disk_that_gets_full(
    victim: str, changes: dict[str, Any], leave: int, data: str, tmp_path: Path, start: Callable[..., Job]
) -> None:
    """Either the rows of (both) servers don't fit, or the dense part doesn't.

    Servers and trainer 0 write side by side: one may fill the disk and another be the first to find it full.
    """
    with small_disk(tmp_path / "run", "24m") as fill:
        job = start(data, 2, **changes)
        wait_until_saved(job)
        fill(leave)
        check_failed(
            job,
            # Who failed can't be recorded if not even that fits.
            r"(rank \d+ \((parameter_server \d|trainer 0), pid \d+\) failed|error): can't write "
            rf"the checkpoint {job.run_dir}/step-\d+\.partial(/server-000\d\.h5)?: {FULL}.*; those before "
            r"are as they were\. Make room .*--resume; the job was ended",
        )
        if victim == "server":
            fill(-1)
            check_goes_on(start, data, job, 2)


def test_a_disk_without_room_for_a_line(data: str, tmp_path: Path, start: Callable[..., Job]) -> None:
    """Neither metrics nor logs nor why it failed can be written: it must be said all the same."""
    with small_disk(tmp_path / "run", "16m") as fill:
        every = {"data.valid": [data], "train.evaluate_every": 5}
        job = start(data, **every)
        wait_until_saved(job)
        fill(0)
        # Whichever comes first.
        what = rf"(can't write {job.run_dir}/metrics\.jsonl|can't write the checkpoint {job.run_dir}/\S+)"
        check_failed(job, rf"error: {what}: {FULL}.*; the job was ended")


def test_a_full_disk_is_refused(data: str, tmp_path: Path, start: Callable[..., Job]) -> None:
    with small_disk(tmp_path / "run", "1m") as fill:
        fill(0)
        check_refused(start(data), FULL)


def check_refused(job: Job, why: str) -> None:
    code, out, err = job.end(END_SECONDS)
    assert (code, out) == (2, ""), err
    assert re.fullmatch(
        rf"persia-hpc: error: can't write into the run directory {job.run_dir}: {why}.*\n", err
    )


def test_a_read_only_run_directory(data: str, tmp_path: Path, start: Callable[..., Job]) -> None:
    """Refused before anything starts; and named when it becomes so while training."""
    (tmp_path / "run").mkdir()
    with read_only(tmp_path / "run"):
        check_refused(start(data), READ_ONLY)
    job = start(data)
    wait_until_saved(job)
    with read_only(tmp_path / "run"):
        what = rf"can't write the checkpoint {job.run_dir}/step-\d+\.partial"
        check_failed(job, rf"error: {what}: {READ_ONLY}; .*; the job was ended")


def test_data_that_is_gone_when_the_run_goes_on(tmp_path: Path, start: Callable[..., Job]) -> None:
    """A file that is removed while it is read is still there for its readers, but not for the next start."""
    names = ("part-0.h5", "part-1.h5")
    for seed, name in enumerate(names):
        write_tiny(tmp_path / name, 200, seed=seed)
    paths = [str(tmp_path / name) for name in names]
    job = start(paths[0], **{"data.train": paths, "checkpoint.every": 10})
    wait_until_saved(job)
    aside = tmp_path / "aside.h5"
    os.rename(paths[1], aside)
    job.process.send_signal(signal.SIGTERM)
    assert job.end()[0] == 75
    resumed = {"data.train": paths, "checkpoint": {"resume": True}}
    code, _, err = start(paths[0], **resumed).end()
    assert code == 2
    assert re.fullmatch(rf"persia-hpc: error: {paths[1]}: no file .*\n", err)
    content = aside.read_bytes()
    Path(paths[1]).write_bytes(content[: len(content) // 2])
    code, _, err = start(paths[0], **resumed).end()
    assert code == 2
    assert re.fullmatch(rf"persia-hpc: error: {paths[1]}: .*(truncated|incomplete).*\n", err)
    check_checkpoints(job.run_dir)
    os.rename(aside, paths[1])
    check_goes_on(start, paths[0], job, **{"data.train": paths})


def test_stopped_ranks_are_waited_for_by_name(data: str, start: Callable[..., Job]) -> None:
    """While training and while a checkpoint is being written; then the run goes on."""
    job = start(data, 2, **{"transport.stall_seconds": 0.5, "checkpoint": {"every": 5}})
    job.wait_until_training()
    for victim, name in (0, "parameter server 0"), (2, "embedding worker 0"), (3, "trainer 0"):
        for saving in (False, True):
            if saving:
                wait_for(lambda: any(job.run_dir.glob("*.partial")), END_SECONDS)
            stop_for_a_while(job, victim, rf"persia-hpc: .* \d has waited \d+ s for .*{name}\b")
    job.process.send_signal(signal.SIGTERM)
    code, _, err = job.end()
    assert code == 75, err
    assert err.count(" has waited ") >= 6
    check_checkpoints(job.run_dir)


def stop_for_a_while(job: Job, victim: int, expected: str) -> None:
    """Stops a rank until others have said what is expected, and lets it go on."""
    pid, said = job.ranks()[victim].pid, len(waits(job))
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: any(re.match(expected, line) for line in waits(job)[said:]), END_SECONDS)
    events = len(job.events())
    os.kill(pid, signal.SIGCONT)
    job.wait_until_more_events(events)


def waits(job: Job) -> list[str]:
    """What ranks have said they wait for, by their logs."""
    lines = []
    for path in (job.run_dir / "logs").glob("rank-*.log"):
        found = re.findall(r"^(\S+ \S+) WARNING (.* has waited .*)$", path.read_text(), re.MULTILINE)
        lines += [(moment, f"persia-hpc: {text}") for moment, text in found]
    return [text for _, text in sorted(lines)]


def test_a_stopped_rank_and_a_job_that_is_asked_to_stop(data: str, start: Callable[..., Job]) -> None:
    """It can't be saved; after the grace it is ended, and goes on from the last checkpoint."""
    job = start(data, checkpoint={"every": 10, "grace_seconds": 2.0})
    wait_until_saved(job, 2)
    os.kill(job.ranks()[1].pid, signal.SIGSTOP)
    begin = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    code, _, err = job.end(END_SECONDS)
    assert 2 < time.monotonic() - begin < 15
    assert code == 128 + signal.SIGTERM
    assert re.fullmatch(
        r"persia-hpc: ended by SIGTERM; not saved within checkpoint\.grace_seconds \(2 s\): .*--resume.*",
        err.splitlines()[-1],
    )
    assert not job.living()
    check_checkpoints(job.run_dir)
    check_goes_on(start, data, job)


def test_a_job_that_waits_too_long_is_given_up(data: str, start: Callable[..., Job]) -> None:
    job = start(data, transport={"stall_seconds": 0.5, "give_up_seconds": 2.0})
    wait_until_saved(job)
    os.kill(job.ranks()[1].pid, signal.SIGSTOP)
    begin = time.monotonic()
    check_failed(
        job,
        r"rank \d+ \(\w+ 0, pid \d+\) failed: .* 0 has waited \d s for .*; gave up "
        r"\(transport\.give_up_seconds\); go on with --resume; the job was ended",
    )
    assert time.monotonic() - begin < 20
