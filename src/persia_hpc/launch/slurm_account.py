"""Asks Slurm about a run's job: its place in the queue, and what it has used, where Slurm keeps accounts."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from persia_hpc.config import mib
from persia_hpc.reporting.figures import duration
from persia_hpc.reporting.run_files import read_bytes

ANSWER_SECONDS = 20
_FIELDS = ("JobID", "JobIDRaw", "State", "ElapsedRaw", "TotalCPU", "CPUTimeRAW", "MaxRSS")
_LIVE_FIELDS = ("JobID", "AveCPU", "NTasks", "MaxRSS")  # of sstat, by step
_JOB = re.compile(r"[0-9]+(_[0-9]+)?")  # the second number: of a task of an array
_CPU_TIME = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+(?:\.\d+)?)")  # [[days-]hours:]minutes:seconds
_BYTES = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Account:
    """Holds what Slurm has counted of a job; None for what it doesn't know, or not yet.

    cpu_efficiency: CPU time used, as a share of that of all cores that the job has. peak_memory_bytes: of the
    task with most.
    """

    state: str
    elapsed_seconds: float | None
    cpu_efficiency: float | None
    peak_memory_bytes: int | None

    def text(self) -> str:
        """Returns the account as a line."""
        parts = [self.state]
        if self.elapsed_seconds is not None:
            parts.append(f"{duration(self.elapsed_seconds)} elapsed")
        if self.cpu_efficiency is not None:
            parts.append(f"CPU efficiency {self.cpu_efficiency:.0%}")
        if self.peak_memory_bytes is not None:
            parts.append(f"peak memory of a task {mib(self.peak_memory_bytes)}")
        return f"Slurm's account: {', '.join(parts)}"


def slurm_job(directory: Path) -> str | None:
    """Returns the id of a run's Slurm job, of a task of an array ARRAY_TASK; None without one."""
    job = (read_bytes(directory / "slurm_job")[0] or b"").decode("ascii", "replace").strip()
    return job if _JOB.fullmatch(job) else None


def slurm_state(directory: Path) -> str | None:
    """Returns a line on the run's Slurm job; None without a job, or without Slurm's programs."""
    job = slurm_job(directory)
    if job is None or shutil.which("squeue") is None:
        return None
    answer = _ask("squeue", "--noheader", "--jobs", job, "--format=%T|%M|%l|%R")
    if answer is None:
        return f"Slurm job {job}: squeue doesn't answer"
    rows = [line.split("|") for line in answer.splitlines() if line.count("|") == 3]
    if not rows:
        return f"Slurm job {job}: not in the queue"
    state, used, limit, where = rows[0]
    return f"Slurm job {job}: {state}, {used} of {limit}, {where}"


def slurm_account(directory: Path) -> Account | None:
    """Returns Slurm's own account of the run's job; None without a job, or where Slurm keeps no accounts."""
    job = slurm_job(directory)
    if job is None:
        return None
    rows = _table("sacct", job, _FIELDS)
    whole = next((row for row in rows if job in row[:2]), None)
    if whole is None:
        return None
    _, number, state, elapsed, used, had, _ = whole
    memory, seconds = [row[6] for row in rows], _cpu_seconds(used) or 0.0
    if state == "RUNNING":  # sacct knows of a step's CPU time and memory when it has ended
        for _, each, tasks, most in _table("sstat", number, _LIVE_FIELDS, "--allsteps"):
            seconds += (_cpu_seconds(each) or 0.0) * (int(tasks) if tasks.isdecimal() else 0)
            memory.append(most)
    known = [found for found in map(_bytes, memory) if found is not None]
    return Account(
        state=state,
        elapsed_seconds=float(elapsed) if elapsed.isdecimal() else None,
        cpu_efficiency=seconds / float(had) if had.isdecimal() and float(had) > 0 < seconds else None,
        peak_memory_bytes=max(known, default=None),
    )


def _table(program: str, job: str, fields: Sequence[str], *more: str) -> list[list[str]]:
    """Returns the rows that a program of Slurm's has of a job, none without the program or its accounts."""
    wanted = ("--noheader", "--parsable2", *more, "--jobs", job, f"--format={','.join(fields)}")
    answer = _ask(program, *wanted) or ""
    return [line.split("|") for line in answer.splitlines() if line.count("|") == len(fields) - 1]


def _ask(*command: str) -> str | None:
    """Returns what a program of Slurm's prints, None if it doesn't answer."""
    program: Sequence[str] = (shutil.which(command[0]) or command[0], *command[1:])
    try:
        done = subprocess.run(program, text=True, capture_output=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired):  # ValueError: no text
        return None
    return done.stdout


def _cpu_seconds(text: str) -> float | None:
    if (found := _CPU_TIME.fullmatch(text)) is None:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds


def _bytes(text: str) -> int | None:
    found = _BYTES.fullmatch(text)
    return None if found is None or float(found[1]) == 0 else int(float(found[1]) * _UNITS[found[2]])
