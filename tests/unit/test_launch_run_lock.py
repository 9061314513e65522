"""One job at a time in a run directory: who comes second is told who was first, and nothing is changed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from persia_hpc.errors import UserError
from persia_hpc.launch import run_lock
from persia_hpc.launch.run_dir import claimed_run_dir, run_directory
from persia_hpc.launch.run_lock import LOCK, holder, locked
from tests.support.jobs import user_environment

# Tries to train in argv[1] at the time argv[2]; says what came of it, and holds it until a line comes.
STARTER = """
import sys, time
from pathlib import Path
from persia_hpc.errors import UserError
from persia_hpc.launch.run_dir import run_directory
while time.time() < float(sys.argv[2]):
    pass
try:
    with run_directory(Path(sys.argv[1]), resume=True):
        print("trains", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error, flush=True)
"""


@contextmanager
def starters(folder: Path, count: int = 1, delay: float = 0.0) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that all try to have the directory at one moment."""
    command = [sys.executable, "-c", STARTER, str(folder), str(time.time() + delay)]
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=user_environment()
        )
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("again", range(3))
def test_of_starts_at_once_exactly_one_trains_and_the_others_name_it(again: int, tmp_path: Path) -> None:
    with starters(tmp_path / "run", 4, delay=1.0) as processes:
        answers = [said(process) for process in processes]
        (first,) = [p for p, answer in zip(processes, answers, strict=True) if answer == "trains"]
        for answer in answers:
            if answer != "trains":
                assert f"{tmp_path / 'run'} is in use by pid {first.pid} on {socket.gethostname()}" in answer
                assert "(user " in answer
                assert time.strftime("since %Y-") in answer


def test_a_holder_killed_by_sigkill_is_gone_at_once_and_one_that_ends_leaves_no_name(tmp_path: Path) -> None:
    with starters(tmp_path) as (first,):
        assert said(first) == "trains"
        assert (holder(tmp_path) or {})["pid"] == first.pid
        with pytest.raises(UserError, match=f"in use by pid {first.pid}"), locked(tmp_path):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with locked(tmp_path):
            assert (holder(tmp_path) or {})["pid"] == os.getpid()
            with pytest.raises(UserError, match=f"in use by pid {os.getpid()}"), locked(tmp_path):
                pass
    assert holder(tmp_path) is None


def test_what_is_refused_is_not_touched(tmp_path: Path) -> None:
    """What the job at work wrote stays, even if the other one may begin anew or go on."""
    (tmp_path / "ranks").mkdir()
    for name in ("ranks/0.json", "failure.json", "config.toml"):
        (tmp_path / name).write_text("{}")
    with locked(tmp_path):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match="is in use by"), run_directory(tmp_path, resume=True):
            pass
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_programs_that_a_holder_starts_do_not_keep_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        with locked(tmp_path):
            pass
    finally:
        child.communicate()


def test_another_host_is_named_and_waited_for_inside_a_slurm_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that has just died may hold the lock until its lease ends; a requeued job outlasts that."""
    monkeypatch.setattr(run_lock, "LEASE_SECONDS", 2.5)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    values: dict[str, Any] = {
        "host": "no\x1bde7",
        "pid": 12,
        "user": "ann",
        "job": "77",
        "since": "2026-01-02",
    }
    path = tmp_path / LOCK
    path.write_text(json.dumps(values))
    file = os.open(path, os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    expected = (
        r"by pid 12 on no\\x1bde7 \(user ann, Slurm job 77\), since 2026-01-02; .*dead for good, remove"
    )
    begin = time.monotonic()
    with pytest.raises(UserError, match=expected), locked(tmp_path):
        pass
    assert time.monotonic() - begin < 1
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    with pytest.raises(UserError, match=expected), locked(tmp_path):
        pass
    assert time.monotonic() - begin >= 2.5
    assert capsys.readouterr().err.count("waits 2 s, in case that host is dead") == 1
    os.close(file)
    with locked(tmp_path):
        assert (holder(tmp_path) or {})["job"] == "78"


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        assert "has no locks (No locks available): start no other job there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("rw,flock,lazystatfs", None),
        ("rw,localflock,lazystatfs", "localflock"),
        ("rw,vers=4.2,local_lock=none,addr=10.0.0.1", None),
        ("rw,vers=3,local_lock=flock,addr=10.0.0.1", "local_lock=flock"),
        ("rw,vers=3,nolock,local_lock=all", "nolock"),
    ],
)
def test_a_mount_that_keeps_locks_to_one_host_is_said(
    options: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path.stat().st_dev
    line = f"99 20 {os.major(device)}:{os.minor(device)} / /x rw - lustre a@tcp:/b {options}\n"
    monkeypatch.setattr(Path, "read_text", lambda _: "1 1 0:999 / / rw - ext4 /dev/x rw,nolock\n" + line)
    assert run_lock.host_only(tmp_path) == told


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_something_else_under_the_name_of_the_lock(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    if kind == "link":
        (run / LOCK).symlink_to(target)
    elif kind == "folder":
        (run / LOCK).mkdir()
    else:
        os.mkfifo(run / LOCK)
    with pytest.raises(UserError, match=rf"{LOCK} is .*; remove it"), locked(run):
        pass
    assert target.read_text() == "mine"


def test_links_in_a_run_directory_are_not_followed(tmp_path: Path) -> None:
    """Whatever a run is going to remove, truncate or append to: what a link points to stays as it was."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    for folder in (run, outside, run / "ranks", run / "logs"):
        folder.mkdir()
    for name in ("a.json", "b.log", "c", "0.json", "config.toml", "slurm_job"):
        (outside / name).write_text("mine\n")
    (run / "ranks/7.json").symlink_to(outside / "a.json")
    (run / "logs/rank-0000.log").symlink_to(outside / "b.log")
    os.link(outside / "c", run / "logs/rank-0001.log")
    (run / "config.toml").symlink_to(outside / "config.toml")
    (run / "slurm_job").symlink_to(outside / "slurm_job")
    before = {path: path.read_text() for path in outside.rglob("*")}
    with run_directory(run, resume=True):
        assert not (run / "ranks/7.json").exists()
        for number in (0, 1):
            log = run / f"logs/rank-000{number}.log"
            with log.open("a") as file:
                file.write("more\n")
            assert log.read_text() == "mine\nmore\n"
    for name in ("ranks", "logs"):
        for entry in (run / name).iterdir():
            entry.unlink()
        (run / name).rmdir()
        (run / name).symlink_to(outside)
    with run_directory(run, resume=True):
        assert not (run / "ranks").exists()
    assert {path: path.read_text() for path in outside.rglob("*")} == before


def test_a_run_directory_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    with run_directory(tmp_path / "runs" / "1"), locked(tmp_path / "scratch"):
        assert (holder(tmp_path / "scratch" / "1") or {})["pid"] == os.getpid()


def test_files_of_others_in_ranks_stay(tmp_path: Path) -> None:
    """Also in a folder that was no run's: only names that ranks write are removed."""
    ours = ("0.json", "12.json", "0.alive", "3.json.host.77.partial")
    others = ("notes.json", "a.alive", "b.partial", "0.json.bak", "1.jsonl", "0.json.partial.txt")
    (tmp_path / "ranks").mkdir()
    for name in (*ours, *others):
        (tmp_path / "ranks" / name).write_text("mine")
    (tmp_path / "ranks" / "5.json").mkdir()
    with run_directory(tmp_path):
        assert {path.name for path in (tmp_path / "ranks").iterdir()} == {*others, "5.json"}


@pytest.mark.parametrize("name", ["summary.json", "failure.json"])
@pytest.mark.parametrize("locked_before", [False, True])
def test_a_folder_that_is_no_run_does_not_go_on(tmp_path: Path, name: str, locked_before: bool) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    if locked_before:
        (tmp_path / LOCK).touch()
    with (
        pytest.raises(UserError, match=f"has a {name}, but neither config.toml nor checkpoints"),
        run_directory(tmp_path, resume=True),
    ):
        pass
    assert (tmp_path / name).read_text() == '{"mine": 1}'
    assert (tmp_path / LOCK).exists() == locked_before
    (tmp_path / "config.toml").touch()
    with run_directory(tmp_path, resume=True):
        assert not (tmp_path / name).exists()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Such as one of a pool that a callback has made."""
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with locked(tmp_path):
            assert (holder(tmp_path) or {})["pid"] == os.getpid()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_child_that_leaves_does_not_give_the_lock_back(tmp_path: Path) -> None:
    taken = locked(tmp_path)
    taken.__enter__()
    child = os.fork()
    if child == 0:
        with suppress(ValueError):
            taken.__exit__(ValueError, ValueError("the child's"), None)
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(UserError, match="is in use by"), locked(tmp_path):
        pass
    taken.__exit__(None, None, None)


def test_a_pipe_in_place_of_a_log_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for name in ("launcher.log", "rank-0000.log"):
        os.mkfifo(tmp_path / "logs" / name)
    with run_directory(tmp_path):
        assert list((tmp_path / "logs").iterdir()) == []


class OneRank:
    """A communicator of one rank, which notes whether the run is held when it waits for the others."""

    rank = 0

    def __init__(self, run: Path):
        self.run, self.held = run, list[bool]()

    def bcast(self, value: Any) -> Any:
        return value

    def Barrier(self) -> None:  # noqa: N802
        with (self.run / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.held.append(True)
            else:
                self.held.append(False)


def test_a_run_is_held_until_all_ranks_have_left(tmp_path: Path) -> None:
    world: Any = OneRank(tmp_path)
    with claimed_run_dir(world, tmp_path, resume=False) as path:
        assert (path, world.held) == (tmp_path, [])
    assert world.held == [True]
    with pytest.raises(ValueError, match="ours"), claimed_run_dir(world, tmp_path, resume=True):
        raise ValueError("ours")  # the others may never come
    assert world.held == [True]
    with locked(tmp_path):
        pass
