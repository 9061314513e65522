"""Launchers told apart, run directories, the registry of ranks, and the relay of output."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.errors import UserError
from persia_hpc.launch.deaths import DeathWatch
from persia_hpc.launch.environment import SUPERVISED, inside_mpi, let_threads_sleep, world_rank_of
from persia_hpc.launch.mpiexec import Launcher, find_launcher
from persia_hpc.launch.registry import finish_rank, read_failure, read_ranks, register_rank, write_failure
from persia_hpc.launch.relay import Relay
from persia_hpc.launch.run_dir import run_directory
from persia_hpc.launch.shared_memory import mapped_files, remove_leaked
from persia_hpc.launch.supervisor import _Job

HYDRA = b"""
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 29626 RUNNING AT vm
=   EXIT CODE: 11
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Segmentation fault (signal 11)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
OPENMPI = b"""--------------------------------------------------------------------------
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
--------------------------------------------------------------------------
--------------------------------------------------------------------------
mpirun noticed that process rank 1 with PID 4242 on node vm exited on signal 9 (Killed).
--------------------------------------------------------------------------
"""


@pytest.mark.parametrize(
    ("environment", "inside", "rank"),
    [
        ({}, False, None),
        ({"PMI_RANK": "3"}, True, 3),
        ({"OMPI_COMM_WORLD_RANK": "2", "PMIX_RANK": "2", "SLURM_PROCID": "0"}, True, 2),
        ({"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False, 0),  # batch script
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            False,
            0,
        ),  # srun --pty bash
        ({"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, True, 1),
    ],
)
def test_inside_mpi(environment: dict[str, str], inside: bool, rank: int | None) -> None:
    assert inside_mpi(environment) is inside
    assert world_rank_of(environment) == rank


@pytest.mark.parametrize(
    ("version", "flavour"),
    [
        ("HYDRA build details:\n    Version: 5.0.2", "hydra"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9", "hydra"),
        ("mpiexec (OpenRTE) 4.1.4\n\nReport bugs to", "openmpi4"),
        ("mpirun (Open MPI) 5.0.11\n", "openmpi5"),
        ("prterun (PRRTE) 3.0.13\n", "openmpi5"),
        ("something else 1.0", "unknown"),
    ],
)
def test_find_launcher_tells_launchers_apart(
    version: str, flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "mpiexec"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{version}\nEND\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert find_launcher() == Launcher(str(script), flavour)


def test_find_launcher_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("mpiexec", "srun"):
        with pytest.raises(UserError, match=f"no {name}"):
            find_launcher(name)


def test_launchers_keep_what_the_user_has_set() -> None:
    for flavour in ("hydra", "openmpi4", "openmpi5", "srun", "unknown"):
        launcher = Launcher("/x/mpiexec", flavour)
        assert launcher.command(3, ["prog", "a"])[-2:] == ["prog", "a"]
        assert launcher.command(3, ["prog"])[1:3] == ["-n", "3"]
        env = launcher.environment({"OMPI_MCA_mpi_yield_when_idle": "0", "HOME": "/h"})
        assert env["OMPI_MCA_mpi_yield_when_idle"] == "0"
        assert env["HOME"] == "/h"
    assert Launcher("m", "openmpi5").environment({})["PRTE_MCA_hwloc_default_binding_policy"] == "none"
    assert Launcher("m", "openmpi5").environment({})["OMPI_MCA_mpi_preconnect_mpi"] == "1"
    assert "--oversubscribe" in Launcher("m", "openmpi4").command(2, ["p"])


def made_run_dir(requested: Path | None) -> Path:
    with run_directory(requested) as path:
        return path


def test_run_directories_are_never_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "7").mkdir(parents=True)
    (tmp_path / "runs" / "notes").mkdir()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: made_run_dir(None), range(24)))
    assert sorted(int(p.name) for p in made) == list(range(8, 32))


@pytest.mark.parametrize("result", ["summary.json", "failure.json", "metrics.jsonl"])
def test_a_directory_with_results_is_refused(result: str, tmp_path: Path) -> None:
    assert made_run_dir(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert made_run_dir(tmp_path / "a" / "b").is_dir()
    (tmp_path / result).write_text("{}")
    with pytest.raises(UserError, match=result):
        made_run_dir(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [result], "something was written"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't make the run directory"):
        made_run_dir(tmp_path / "file" / "run")


def test_the_first_failure_wins(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: write_failure(tmp_path, i, "trainer", 2, f"message {i}"), range(16)))
    assert sum(won) == 1
    failure = read_failure(tmp_path)
    assert failure is not None
    assert failure["message"] == f"message {won.index(True)}"
    assert (failure["code"], failure["role"]) == (2, "trainer")
    assert [p.name for p in tmp_path.iterdir()] == ["failure.json"]


@pytest.mark.parametrize("what", ["write_text", "link"])
def test_a_full_disk_keeps_no_half_of_a_failure(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: object, *_: object) -> None:
        if what == "write_text":
            assert isinstance(path, Path)
            path.write_bytes(b'{"world')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path if what == "write_text" else os, what, fail)
    with pytest.raises(OSError, match="No space"):
        write_failure(tmp_path, 0, "trainer", 2, "message")
    assert list(tmp_path.iterdir()) == []


def test_a_colleague_can_read_why_a_run_failed(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_failure(tmp_path, 0, "trainer", 2, "message")
        register_rank(tmp_path, 0)
    finally:
        os.umask(before)
    for name in ("failure.json", "ranks/0.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_ranks_of_another_job_are_not_taken_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may register late, when their supervisor was killed and the run was started again."""
    for rank, job in enumerate(("a", "b")):
        monkeypatch.setenv(SUPERVISED, job)
        register_rank(tmp_path, rank)
    assert list(read_ranks(tmp_path, "b")) == [1]
    assert sorted(read_ranks(tmp_path)) == [0, 1]


def test_ranks_register_get_a_role_and_finish(tmp_path: Path) -> None:
    register_rank(tmp_path, 4)
    (rank,) = read_ranks(tmp_path).values()
    assert (rank.world_rank, rank.pid, rank.role, rank.finished) == (4, os.getpid(), None, False)
    assert rank.is_local
    assert rank.is_alive()
    assert str(rank) == f"rank 4 (pid {os.getpid()})"
    register_rank(tmp_path, 4, "trainer", 1)
    assert str(read_ranks(tmp_path)[4]) == f"rank 4 (trainer 1, pid {os.getpid()})"
    finish_rank(tmp_path, 4)
    assert read_ranks(tmp_path)[4].finished
    assert read_ranks(tmp_path)[4].role == "trainer"


def test_a_record_that_cannot_be_read_just_now_is_as_it_was(tmp_path: Path) -> None:
    register_rank(tmp_path, 0)
    register_rank(tmp_path, 1)
    job = _Job(Launcher("", ""), [], tmp_path, 2, io.BytesIO(), 1.0)
    job.watch = DeathWatch()
    job._read_ranks()
    (tmp_path / "ranks" / "1.json").unlink()
    job._read_ranks()
    job.watch.close()
    assert set(job.ranks) == {0, 1}


def relay() -> tuple[Relay, io.BytesIO, io.BytesIO]:
    screen, log = io.BytesIO(), io.BytesIO()
    return Relay(screen, log), screen, log


@pytest.mark.parametrize(
    "noise", [HYDRA, OPENMPI, b"Abort(3) on node 1 (rank 1 in comm 0): application called\n"]
)
@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 900), max_size=6))
def test_the_launchers_noise_is_held_back_however_it_is_cut(noise: bytes, cuts: list[int]) -> None:
    text = b"epoch 1\n\nstep 5\n" + noise + b"Traceback: boom\n"
    passing, screen, log = relay()
    edges = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    for begin, end in pairwise(edges):
        passing.feed(text[begin:end])
    passing.finish()
    assert screen.getvalue() == b"epoch 1\n\nstep 5\nTraceback: boom\n"
    assert noise.strip() in log.getvalue().strip()


@settings(deadline=None)
@given(st.lists(st.text("ab-=\n\r", max_size=50), max_size=8))
def test_other_text_passes_unchanged(pieces: list[str]) -> None:
    passing, screen, _ = relay()
    for piece in pieces:
        passing.feed(piece.encode())
        passing.idle()
    passing.finish(new_line=False)
    assert screen.getvalue() == "".join(pieces).encode()


def test_a_progress_bar_shows_at_once_and_leaves_the_cursor_on_a_new_line() -> None:
    passing, screen, _ = relay()
    passing.feed(b"\r10%")
    passing.idle()
    assert screen.getvalue() == b"\r10%"
    passing.feed(b"\r20%")
    passing.idle()
    passing.finish()
    assert screen.getvalue() == b"\r10%\r20%\n"


def test_lines_of_two_ranks_do_not_mix() -> None:
    passing, screen, _ = relay()
    passing.feed(b"first half ")
    passing.feed(b"second half\nnext")
    assert screen.getvalue() == b"first half second half\n"


def test_what_launchers_say_about_a_death() -> None:
    passing, _, _ = relay()
    passing.feed(OPENMPI)
    assert passing.exit_signal(1, 0) == 9
    assert passing.exit_signal(0, 0) is None
    passing, _, _ = relay()
    passing.feed(HYDRA)
    passing.finish()
    assert passing.exit_signal(0, 29626) == 11
    assert passing.exit_signal(0, 1) is None
    passing, screen, _ = relay()
    rule = b"-" * 74 + b"\n"
    text = b"MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\n  Errorcode: 2\n"
    passing.feed(b"persia-hpc: error: bad" + rule + text + rule)
    assert (passing.aborted(2), screen.getvalue()) == (1, b"")
    assert passing.errors == [b"persia-hpc: error: bad"]
    passing, _, _ = relay()
    passing.feed(b"Abort(3) on node 1 (rank 1 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 3)\n")
    assert passing.aborted(3) == 1
    assert passing.aborted(9) is None
    assert not passing.lost_proxy()
    passing.feed(b"[mpiexec@vm] control_cb (/mpich/pmiserv_cb.c:280): assert (!closed) failed\n")
    assert passing.lost_proxy()


def test_shared_memory_is_removed_only_when_nobody_maps_it(tmp_path: Path) -> None:
    name = f"/dev/shm/persia-test-{os.getpid()}"
    code = (
        f"import mmap,sys; f = open({name!r}, 'w+b'); f.truncate(4096); m = mmap.mmap(f.fileno(), 4096);"
        "print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert name in mapped_files(process.pid)
        assert remove_leaked([name]) == []
        process.kill()
    assert remove_leaked([name, "/dev/shm/persia-test-none"]) == [name]
    assert not Path(name).exists()


@pytest.mark.parametrize("chosen", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_are_told_to_sleep_unless_the_user_said_otherwise(chosen) -> None:
    environment = dict(chosen)
    let_threads_sleep(environment)
    if "OMP_WAIT_POLICY" in chosen:
        assert environment == chosen
    else:
        assert environment == {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0", **chosen}


def test_the_command_line_does_not_import_torch_before_its_threads_are_told_to_sleep() -> None:
    program = (
        "import sys, persia_hpc.cli, persia_hpc.job.rank_main, persia_hpc.api\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
