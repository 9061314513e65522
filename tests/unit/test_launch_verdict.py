"""The last words about a job: how to leave a bad node out under Slurm, and what a launcher has said."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from persia_hpc.launch.deaths import Death
from persia_hpc.launch.registry import RankRecord
from persia_hpc.launch.verdict import Ending, verdict

MPICH = b"""\
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 4711 RUNNING AT n17
=   EXIT CODE: 9
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
OPENMPI = b"""\
--------------------------------------------------------------------------
mpirun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

  Process name: [[12345,1],0]
  Exit code:    1
--------------------------------------------------------------------------
"""
SPAWN = b"[mpiexec@n17] HYDU_create_process (lib/utils/launch.c:73): execvp error on file srun (No file)\n"
RANK = RankRecord(3, 4711, "n17", "pid:[1]", 1, role="trainer", role_rank=0)


def last_words(run_dir: Path) -> tuple[int, str]:
    return verdict(ending(run_dir, launcher_code=137, first_death=Death(RANK, 0.0, signal.SIGBUS)))


def ending(run_dir: Path, launcher_text: bytes = b"", **changes: Any) -> Ending:
    relay: Any = SimpleNamespace(
        errors=[],
        aborted=lambda _: None,
        lost_proxy=lambda: False,
        exit_signal=lambda *_: None,
        launcher_text=launcher_text,
    )
    return replace(
        Ending(
            run_dir=run_dir,
            launcher="srun",
            launcher_code=1,
            launcher_death=None,
            launcher_pid=1,
            ranks={3: RANK},
            first_death=None,
            signals=(),
            asked=False,
            in_vain=False,
            grace_seconds=1.0,
            out=relay,
            err=relay,
        ),
        **changes,
    )


def test_under_slurm_a_bad_node_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died = "rank 3 (trainer 0, pid 4711) was killed by signal 7 (SIGBUS); the job was ended"
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert last_words(tmp_path) == (135, died)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    hint = "; if node n17 does it again: persia-hpc submit ... --extra=--exclude=n17"
    assert last_words(tmp_path) == (135, died + hint)


def test_a_launcher_that_starts_no_rank_has_the_last_word(tmp_path: Path) -> None:
    """Srun's complaints are held back, since they are many when ranks have begun and one of them dies."""
    text = b"srun: error: MPI: no plugin\nsrun: error: Invalid MPI type 'pmix'\n"
    code, said = verdict(ending(tmp_path, text, ranks={}))
    assert (code, said.partition("; see ")[0]) == (
        1,
        "srun ended with exit code 1: srun: error: Invalid MPI type 'pmix'",
    )
    assert "Invalid" not in verdict(ending(tmp_path, text))[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ""),
        (OPENMPI, ""),
        (MPICH, ""),
        (SPAWN + MPICH, f": {SPAWN.decode().strip()}"),
        (b"slurmstepd: error: no room\n" + OPENMPI, ": slurmstepd: error: no room"),
    ],
)
def test_rules_and_advice_of_a_launcher_are_no_last_word(tmp_path: Path, text: bytes, words: str) -> None:
    _, said = verdict(ending(tmp_path, text, ranks={}, launcher="mpirun"))
    assert said == f"mpirun ended with exit code 1{words}; see {tmp_path}/logs/launcher.log"
