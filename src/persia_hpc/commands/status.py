"""persia-hpc status: how far a run is, from its metrics.jsonl, and what Slurm says about its job."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persia_hpc.checkpoint.names import BEST_NOTE
from persia_hpc.errors import EXIT_OK, DataError, UserError
from persia_hpc.printable import printable
from persia_hpc.reporting.figures import duration, figure, metrics_text, undefined_text
from persia_hpc.reporting.run_files import (
    EVENTS,
    is_train_event,
    number,
    read_bytes,
    read_event,
    read_object,
)

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

    Raises UserError if there is no such run, DataError if any of its files is damaged, behind the rest.
    """
    directory = Path(options.run)
    if options.run.isdigit() and not os.path.isdir(directory):
        directory = Path("runs") / f"job-{options.run}"
    if not any(os.path.exists(directory / name) for name in ("config.toml", "slurm_job")):
        raise UserError(
            f"{directory} is not a run directory: it has no config.toml; expected what --run-dir named, or "
            "runs/job-ID"
        )
    lines, problems = status_lines(directory, slurm_state(directory), time.time())
    print("\n".join(map(printable, lines)), flush=True)
    if problems:
        raise DataError("; ".join(problems))
    return EXIT_OK


def status_lines(directory: Path, slurm: str | None, now: float) -> tuple[list[str], list[str]]:
    """Returns the lines that are printed, and which files are damaged.

    slurm: a line on the state of the run's Slurm job, if it has one.
    now: the time in seconds since the epoch.
    """
    last, resumes, skipped, problem = _last_events(directory / EVENTS)
    summary, bad_summary = read_object(directory / "summary.json")
    failure, bad_failure = read_object(directory / "failure.json")
    problems = [each for each in (problem, bad_summary, bad_failure) if each is not None]
    if failure:
        state = f"failed: {failure.get('message')}"
    elif bad_failure:
        state = "failed"
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
        if name.startswith("evaluate "):
            lines.append(f"{event.get('split')} {metrics_text(event)} at step {event.get('step')}")
            if why := undefined_text(event):
                lines.append(f"  undefined: {why}")
    checkpoint = directory / "latest"
    if os.path.exists(checkpoint):
        lines.append(f"last checkpoint: {os.path.basename(os.path.realpath(checkpoint))}")
    best, bad_best = read_object(directory / BEST_NOTE)
    problems += [] if bad_best is None else [bad_best]
    if best:
        value = f"{best.get('metric')} {figure(best.get('value'))}"
        lines.append(f"best checkpoint: {best.get('checkpoint')}, valid {value}")
    if last and going_on:
        age = now - (directory / EVENTS).stat().st_mtime
        lines.append(f"last news {duration(max(age, 0.0))} ago")
    if skipped:
        lines.append(f"{skipped} damaged line{'s' * (skipped > 1)} of {EVENTS} left out")
    return lines, problems


def _train_lines(event: Mapping[str, Any], *, going_on: bool) -> list[str]:
    step, steps, speed, samples = (
        number(event, name) for name in ("step", "num_steps", "samples_per_second", "samples")
    )
    line = "step ?"
    if step is not None and steps is not None:
        line = f"step {step:.0f} of {steps:.0f} ({100 * step / max(steps, 1):.0f} %)"
    line += f", epoch {event.get('epoch')}"
    if going_on and speed and step and steps is not None and samples is not None:
        left = number(event, "left_seconds")
        if left is None:  # a run of an older version
            left = (steps - step) * samples / step / speed
        line += f", {speed:,.0f} samples/s, about {duration(left)} left"
    figures = [(name, number(event, name)) for name in ("loss", "auc")]
    told = ", ".join(f"{name} {value:.4f}" for name, value in figures if value is not None)
    return [line, *([told] if told else [])]


def _last_events(path: Path) -> tuple[dict[str, dict[str, Any]], int, int, str | None]:
    """The last event of each kind, evaluations by split; how often the run was resumed; damaged lines.

    An "end" or "wait" counts only if it is the last line: a run has gone on behind it.
    """
    data, problem = read_bytes(path)
    lines = (data or b"").split(b"\n")
    lines.pop()  # nothing, or half a line that is written at this moment
    found: dict[str, dict[str, Any]] = {}
    resumes = skipped = 0
    for place, line in enumerate(reversed(lines)):
        if "train" in found and is_train_event(line):
            continue  # nearly all lines
        event = read_event(line)
        if event is None:
            skipped += 1
            continue
        name = event["event"]
        resumes += name == "resume"
        if name == "evaluate":
            name = f"evaluate {event.get('split')}"
        if name not in ("end", "wait") or place == 0:
            found.setdefault(name, event)
    return found, resumes, skipped, problem


def slurm_state(directory: Path) -> str | None:
    """Returns a line on the run's Slurm job; None without a job, or without Slurm's programs."""
    job_id = (read_bytes(directory / "slurm_job")[0] or b"").decode("ascii", "replace").strip()
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
