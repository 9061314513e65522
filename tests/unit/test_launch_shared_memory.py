"""A /dev/shm that is too small for MPI is told before MPI dies of it."""

from __future__ import annotations

import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from persia_hpc.errors import UserError
from persia_hpc.launch import shared_memory
from persia_hpc.launch.shared_memory import MPI_BYTES, check_room, room_hint
from persia_hpc.runtime import node_memory
from tests.support.jobs import user_environment, write_config
from tests.support.tiny import tiny_config, write_tiny


def test_what_the_ranks_of_a_node_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "shared_memory_room", lambda: (0, 3 * MPI_BYTES))
    check_room({"MPI_LOCALNRANKS": "3"})
    check_room({})
    with pytest.raises(UserError, match=r"MPI itself needs 4400000 there for 4 of .*--shm-size"):
        check_room({"MPI_LOCALNRANKS": "4"})


def test_a_death_in_little_shared_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "shared_memory_room", lambda: (5, 16 << 20))
    assert "5 bytes free of 16777216" in room_hint(signal.SIGSEGV)
    assert room_hint(signal.SIGKILL) == ""
    monkeypatch.setattr(shared_memory, "shared_memory_room", lambda: (5, 1 << 40))
    assert "5 bytes free" in room_hint(signal.SIGBUS)
    assert room_hint(signal.SIGSEGV) == ""


def test_a_job_in_two_megabytes_is_refused_in_one_line(tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mounting file systems needs root and unshare")
    data = write_tiny(tmp_path / "train.h5", 100)
    path = write_config(tmp_path / "job.toml", tiny_config(data))
    train = [sys.executable, "-m", "persia_hpc.cli", "train", str(path), "--run-dir", str(tmp_path / "run")]
    small = 'mount -t tmpfs -o size=2m tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", small, "sh", *train],
        env=user_environment(),
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    expected = r"/dev/shm of \S+ has \d+ bytes free of 2097152; MPI itself needs 3300000 there.*--shm-size.*"
    assert re.fullmatch(f"persia-hpc: error: {expected}", line)


def test_a_requeued_job_removes_what_its_killed_start_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPICH would join it: its name is that of the job and its step, which stay."""
    name = f"mpich_shm_test{os.getpid()}"
    left, used = Path(f"/dev/shm/{name}_0"), Path(f"/dev/shm/{name}_1")
    with used.open("w+b") as file:
        left.write_bytes(bytes(10))
        file.write(bytes(4096))
        file.flush()
        try:
            with mmap.mmap(file.fileno(), 4096):
                found = [str(left), str(used)]
                monkeypatch.setattr(Path, "glob", lambda *_: iter(map(Path, found)))
                check_room({"SLURM_RESTART_COUNT": "1"})  # they are younger than this step
                assert left.exists()
                monkeypatch.setattr(shared_memory, "step_began", lambda: time.time() + 10)
                for environment in ({}, {"SLURM_RESTART_COUNT": "0"}):
                    check_room(environment)
                assert left.exists()
                check_room({"SLURM_RESTART_COUNT": "1"})
                assert not left.exists()
                assert used.exists()  # a living process has it
        finally:
            left.unlink(missing_ok=True)
            used.unlink(missing_ok=True)


@pytest.mark.parametrize("error", [PermissionError, ProcessLookupError])
def test_nothing_is_removed_while_a_process_of_this_user_hides_its_files(
    error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have the file; one that has ended has none."""
    left = Path(f"/dev/shm/mpich_shm_test{os.getpid()}_2")
    left.write_bytes(bytes(10))
    real = shared_memory._read_mapped

    def hidden(pid: int) -> set[str]:
        if pid == os.getpid():
            raise error
        return real(pid)

    try:
        monkeypatch.setattr(shared_memory, "_read_mapped", hidden)
        monkeypatch.setattr(shared_memory, "step_began", lambda: time.time() + 10)
        monkeypatch.setattr(Path, "glob", lambda *_: iter([left]))
        check_room({"SLURM_RESTART_COUNT": "1"})
        assert left.exists() == (error is PermissionError)
    finally:
        left.unlink(missing_ok=True)


def test_when_a_step_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", os.getpid)
    assert time.time() - 86400 * 365 < shared_memory.step_began() <= time.time() + 1
    for unknown in (0, 1):
        monkeypatch.setattr(os, "getppid", lambda unknown=unknown: unknown)
        assert shared_memory.step_began() == 0.0


def test_a_tmpfs_without_a_limit_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounted with size=0, it tells no blocks and none free."""
    real = os.statvfs("/")
    no_blocks = os.statvfs_result((real.f_bsize, real.f_frsize, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: no_blocks)
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    assert node_memory.shared_memory_room() == (node_memory.UNLIMITED, node_memory.UNLIMITED)
    check_room({"MPI_LOCALNRANKS": "4"})
    assert room_hint(signal.SIGBUS) == ""
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    assert node_memory.shared_memory_room() == (0, 0)
