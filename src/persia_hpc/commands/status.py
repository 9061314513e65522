"""persia-hpc status: how far a run is, from its metrics.jsonl, and what Slurm says about its job."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persia_hpc.checkpoint.names import BEST_NOTE
from persia_hpc.errors import EXIT_OK, DataError, UserError
from persia_hpc.launch.slurm_account import slurm_account, slurm_job, slurm_state
from persia_hpc.printable import printable
from persia_hpc.reporting.events import without_nan
from persia_hpc.reporting.figures import duration, figure, metrics_text, undefined_text
from persia_hpc.reporting.run_files import (
    EVENTS,
    is_train_event,
    number,
    read_bytes,
    read_event,
    read_object,
)
from persia_hpc.reporting.seeds import seed_runs

SUMMARY = "how far a run is"
DESCRIPTION = """\
Prints how far a run is and how it does: step, speed, time left, loss, AUC, last evaluations. For a run that
`persia-hpc submit` or a script in slurm/ has started also what Slurm says about its job, and what the job has
used, where Slurm keeps accounts."""
EXAMPLES = """\
examples:
  persia-hpc status runs/1
  persia-hpc status runs/job-4711
  persia-hpc status 4711
  persia-hpc status runs/1 --json"""

UNDER_WAY = "under way"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run", metavar="RUN", help="run directory, or the id of a job in runs/job-ID")
    parser.add_argument("--json", action="store_true", help="prints JSON")


def run(options: argparse.Namespace) -> int:
    """Prints a few lines on the run's progress, or JSON.

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
    if not options.json and (runs := seed_runs(directory)):
        return _print_seeds(directory, [read_status(each, time.time()) for each in runs.values()])
    status = read_status(directory, time.time())
    slurm, account = slurm_state(directory), slurm_account(directory)
    if options.json:
        job = {"job": slurm_job(directory), "queue": slurm, "account": account and vars(account)}
        print(json.dumps({"schema_version": 1, **without_nan(status.as_dict()), "slurm": job}), flush=True)
    else:
        said = [*([] if slurm is None else [slurm]), *([] if account is None else [account.text()])]
        print("\n".join(map(printable, status.lines(said))), flush=True)
    if status.problems:
        raise DataError("; ".join(status.problems))
    return EXIT_OK


def _print_seeds(directory: Path, found: Sequence[Status]) -> int:
    """Prints a line for each seed's run, with its progress if it has begun."""
    for each in found:
        print(printable("; ".join(each.lines([])[:2])), flush=True)
    print(printable(f"mean and spread of what they reached: persia-hpc report {directory}"), flush=True)
    if problems := [problem for each in found for problem in each.problems]:
        raise DataError("; ".join(problems))
    return EXIT_OK


@dataclass(frozen=True)
class Status:
    """Holds what a run's files tell about it.

    last: the last event of each kind, evaluations by split. age_seconds: of the last event, if the run goes
    on. damaged_lines: of metrics.jsonl. problems: which files are damaged.
    """

    directory: Path
    state: str
    last: Mapping[str, Mapping[str, Any]]
    resumes: int
    checkpoint: str | None
    best: Mapping[str, Any]
    age_seconds: float | None
    damaged_lines: int
    problems: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """Returns it as values for JSON."""
        return {**vars(self), "directory": str(self.directory)}

    def lines(self, slurm: Sequence[str]) -> list[str]:
        """Returns it as lines for people. slurm: lines on the run's Slurm job, if it has one."""
        lines, last = [f"{self.directory}: {self.state}", *slurm], self.last
        if self.resumes:
            lines.append(f"resumed {self.resumes} time{'s' * (self.resumes > 1)}")
        if "train" in last:
            lines += _train_lines(last["train"], going_on=self.state == UNDER_WAY)
        if skip := last.get("skip"):
            steps = f"{skip.get('skipped_steps')} steps skipped"
            lines.append(f"{steps}, the last of them step {skip.get('step')}")
        for name, event in last.items():
            if name.startswith("evaluate "):
                lines.append(f"{event.get('split')} {metrics_text(event)} at step {event.get('step')}")
                if why := undefined_text(event):
                    lines.append(f"  undefined: {why}")
        if self.checkpoint is not None:
            lines.append(f"last checkpoint: {self.checkpoint}")
        if self.best:
            value = f"{self.best.get('metric')} {figure(self.best.get('value'))}"
            lines.append(f"best checkpoint: {self.best.get('checkpoint')}, valid {value}")
        if self.age_seconds is not None:
            lines.append(f"last news {duration(self.age_seconds)} ago")
        if count := self.damaged_lines:
            lines.append(f"{count} damaged line{'s' * (count > 1)} of {EVENTS} left out")
        return lines


def read_status(directory: Path, now: float) -> Status:
    """Returns what a run's files tell. now: the time in seconds since the epoch."""
    last, resumes, damaged, problem = _last_events(directory / EVENTS)
    summary, bad_summary = read_object(directory / "summary.json")
    failure, bad_failure = read_object(directory / "failure.json")
    best, bad_best = read_object(directory / BEST_NOTE)
    if failure:
        state = f"failed: {failure.get('message')}"
    elif bad_failure:
        state = "failed"
    elif summary and ("end" in last or not last):
        state = f"{summary.get('status')}: {summary.get('steps')} steps"
    else:
        state = UNDER_WAY if last else "no step trained yet"
    age = None
    if last and state == UNDER_WAY:
        age = max(0.0, now - (directory / EVENTS).stat().st_mtime)
        if "wait" in last:
            state = "waits for new files"
    checkpoint = directory / "latest"
    return Status(
        directory=directory,
        state=state,
        last=last,
        resumes=resumes,
        checkpoint=os.path.basename(os.path.realpath(checkpoint)) if os.path.exists(checkpoint) else None,
        best=best,
        age_seconds=age,
        damaged_lines=damaged,
        problems=[e for e in (problem, bad_summary, bad_failure, bad_best) if e is not None],
    )


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
