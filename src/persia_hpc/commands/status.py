"""persia-hpc status: how far a run is, from its metrics.jsonl, and what Slurm says about its job."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persia_hpc.errors import EXIT_OK, UserError

SUMMARY = "how far a run is"
DESCRIPTION = """\
Prints how far a run is and how it does: step, speed, time left, loss, AUC, last evaluations. For a run that
`persia-hpc submit` or a script in slurm/ has started also what Slurm says about its job."""
EXAMPLES = """\
examples:
  persia-hpc status runs/1
  persia-hpc status runs/job-4711
  persia-hpc status 4711"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run", metavar="RUN", help="run directory, or the id of a job in runs/job-ID")


def run(options: argparse.Namespace) -> int:
    """Prints a few lines on the run's progress.

    Raises UserError if there is no such run.
    """
    directory = Path(options.run)
    if options.run.isdigit() and not directory.is_dir():
        directory = Path("runs") / f"job-{options.run}"
    if not any((directory / name).exists() for name in ("config.toml", "slurm_job")):
        raise UserError(
            f"{directory} is not a run directory: it has no config.toml; expected what --run-dir named, or "
            "runs/job-ID"
        )
    print("\n".join(status_lines(directory, slurm_state(directory), time.time())))
    return EXIT_OK


def status_lines(directory: Path, slurm: str | None, now: float) -> list[str]:
    """Returns the lines that are printed.

    slurm: a line on the state of the run's Slurm job, if it has one.
    now: the time in seconds since the epoch.
    """
    last, resumes = _last_events(directory / "metrics.jsonl")
    summary, failure = _read(directory / "summary.json"), _read(directory / "failure.json")
    if failure:
        state = f"failed: {failure.get('message')}"
    elif summary and ("end" in last or not last):
        state = f"{summary.get('status')}: {summary.get('steps')} steps"
    else:
        state = "under way" if last else "no step trained yet"
    going_on = state == "under way"
    if going_on and "wait" in last:
        state = "waits for new files"
    lines = [f"{directory}: {state}"]
    if slurm is not None:
        lines.append(slurm)
    if resumes:
        lines.append(f"resumed {resumes} time{'s' * (resumes > 1)}")
    if "train" in last:
        lines += _train_lines(last["train"], going_on=state == "under way")
    if skip := last.get("skip"):
        lines.append(f"{skip['skipped_steps']} steps skipped, the last of them step {skip['step']}")
    for name, event in last.items():
        if name.startswith("evaluate ") and event.get("auc") is not None:
            lines.append(f"{event['split']} auc {event['auc']:.4f} at step {event['step']}")
    checkpoint = directory / "latest"
    if checkpoint.exists():
        lines.append(f"last checkpoint: {checkpoint.resolve().name}")
    if last and going_on:
        age = now - (directory / "metrics.jsonl").stat().st_mtime
        lines.append(f"last news {_duration(max(age, 0.0))} ago")
    return lines


def _train_lines(event: Mapping[str, Any], *, going_on: bool) -> list[str]:
    step, steps, speed = event["step"], event["num_steps"], event["samples_per_second"]
    line = f"step {step} of {steps} ({100 * step / max(steps, 1):.0f} %), epoch {event['epoch']}"
    if going_on and speed and event["step"]:
        per_step = event["samples"] / step
        left = (steps - step) * per_step / speed
        line += f", {speed:,.0f} samples/s, about {_duration(left)} left"
    figures = [f"{name} {event[name]:.4f}" for name in ("loss", "auc") if event.get(name) is not None]
    return [line, *([", ".join(figures)] if figures else [])]


def _last_events(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The last event of each kind, evaluations by split, and how often the run was resumed.

    An "end" or "wait" counts only if it is the last line: a run has gone on behind it.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}, 0
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    found: dict[str, dict[str, Any]] = {}
    resumes = 0
    for number, line in enumerate(reversed(lines)):
        is_train = line.startswith('{"event": "train"')
        if is_train and "train" in found:
            continue  # nearly all lines
        try:
            event = json.loads(line)
            name = event["event"]
        except (ValueError, KeyError, TypeError):
            continue  # half a line, written at this moment
        resumes += name == "resume"
        if name == "evaluate":
            name = f"evaluate {event.get('split')}"
        if name not in ("end", "wait") or number == 0:
            found.setdefault(name, event)
    return found, resumes


def slurm_state(directory: Path) -> str | None:
    """Returns a line on the run's Slurm job; None without a job, or without Slurm's programs."""
    try:
        job_id = (directory / "slurm_job").read_text().strip()
    except OSError:
        return None
    program = shutil.which("squeue")
    if program is None or not job_id.isdigit():
        return None
    command = [program, "--noheader", "--jobs", job_id, "--format=%T|%M|%l|%R"]
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return f"Slurm job {job_id}: squeue doesn't answer"
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == 3]
    if not rows:
        return f"Slurm job {job_id}: not in the queue"
    state, used, limit, where = rows[0]
    return f"Slurm job {job_id}: {state}, {used} of {limit}, {where}"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
