"""The matrix of MPI libraries: when environments are made anew, how a stuck job ends, and the exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mpi import REPOSITORY

sys.path.append(str(REPOSITORY / "tools"))
import mpi_matrix
from mpi_matrix import MPIS, Place

TRAINED = f"0.500000 after {mpi_matrix.STEPS} steps"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    wheel = tmp_path / "persia_hpc-0.1.0.whl"
    wheel.write_bytes(b"first")
    return wheel


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was run. Environments have a folder for packages, and nothing in it."""
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> str:
        ran.append(command)
        if "venv" in command:
            Path(command[-1], "lib/python3/site-packages").mkdir(parents=True, exist_ok=True)
        return "library"

    monkeypatch.setattr(mpi_matrix, "run", run)
    return ran


def installed(place: Path, wheel: Path, commands: list[list[str]], torch: str = "torch") -> int:
    """Returns how often the wheel was installed, with its dependencies and into the MPI's environment."""
    commands.clear()
    assert Place(place, wheel, torch).install("mpich-wheel", MPIS["mpich-wheel"]) is not None
    assert all("--force-reinstall" in each for each in commands if "--no-deps" in each)
    return sum(str(wheel) in command for command in commands)


def test_environments_are_made_anew_for_another_wheel(
    tmp_path: Path, wheel: Path, commands: list[list[str]]
) -> None:
    assert [installed(tmp_path, wheel, commands) for _ in range(2)] == [3, 0]
    wheel.write_bytes(b"second")  # of the same name, as a rebuilt one is
    assert [installed(tmp_path, wheel, commands) for _ in range(2)] == [3, 0]
    assert installed(tmp_path, wheel, commands, "torch==2.6.*") == 3


def test_an_interrupted_installation_is_done_again(
    tmp_path: Path, wheel: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mpi_matrix.run

    def interrupted(command: list[str]) -> str:
        if "--python" in command:
            raise KeyboardInterrupt
        return whole(command)

    monkeypatch.setattr(mpi_matrix, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        installed(tmp_path, wheel, commands)
    monkeypatch.setattr(mpi_matrix, "run", whole)
    assert [installed(tmp_path, wheel, commands) for _ in range(2)] == [1, 0]


def test_a_horovod_that_was_not_built_is_built_again(
    tmp_path: Path, wheel: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, mpi = Place(tmp_path, wheel, "torch"), MPIS["mpich-wheel"]
    place.install("mpich-wheel", mpi)
    codes = [1, 0]

    def build(command: list[str], **_: object) -> None:
        if code := codes.pop(0):
            raise subprocess.CalledProcessError(code, command)

    monkeypatch.setattr(subprocess, "run", build)
    said = [place.add_horovod("mpich-wheel", mpi, {}) for _ in range(2)]
    assert said == [f"not built ({tmp_path}/mpich-wheel-horovod.log)", ""]
    assert Place(tmp_path, wheel, "torch").add_horovod("mpich-wheel", mpi, {}) == ""
    assert codes == []


def test_a_job_that_does_not_end_is_killed(
    tmp_path: Path, wheel: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "persia-hpc"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntrap '' TERM\necho $$ >{tmp_path}/pid\nwhile :; do sleep 0.1; done\n")
    program.chmod(0o755)
    monkeypatch.setattr(mpi_matrix, "CELL_SECONDS", 0.5)
    monkeypatch.setattr(mpi_matrix, "GRACE_SECONDS", 0.2)
    (tmp_path / "runs").mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    said, _ = Place(tmp_path, wheel, "torch").train(
        "mpich-wheel", MPIS["mpich-wheel"], dict(os.environ), "mpiexec", "mpi"
    )
    assert said == "no end in 0.5 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        ([TRAINED, TRAINED], 0),
        ([TRAINED, TRAINED.replace("5", "6")], 1),
        (["no end in 150 s"] * 2, 1),
        (["exit code 1: no"] * 2, 1),
        (["0.500000 after 3 steps"] * 2, 1),
        ([], 1),
    ],
)
def test_the_exit_code_says_whether_all_have_trained_alike(
    tmp_path: Path,
    wheel: Path,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cells: list[str],
    code: int,
) -> None:
    names = ["mpich-debian", "openmpi-debian"]
    monkeypatch.setattr(Place, "install", lambda *_: {} if cells else None)
    monkeypatch.setattr(Place, "train", lambda *_: (cells.pop(0), 1.0))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    only = [word for name in names for word in ("--only", name)]
    monkeypatch.setattr(sys, "argv", ["mpi_matrix.py", *only, "--place", str(tmp_path / "at"), str(wheel)])
    lacking = not cells
    assert mpi_matrix.main() == code
    said = capsys.readouterr().out
    assert [f"apt-get install {name} |" in said for name in ("mpich", "openmpi-bin")] == [lacking] * 2
