"""Shows what a person sees of a run: how far it is, and a short summary."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from persia_hpc.printable import without_reader

from .events import JsonStream
from .figures import duration, figure, metrics_text, undefined_text
from .progress_line import ProgressLine

ABSURD_LOGLOSS = 50.0  # nats: probabilities of e^-50 for what happened
MUCH_WAITING = 0.3  # of a trainer's time, from which on it is said
WAITS_FOR = {"batch": "batches", "allreduce": "other trainers"}
LINE_SECONDS = 15.0  # without a terminal: a line this often instead of a bar


class Screen:
    """Draws a line with a bar on a terminal, and prints a line now and then elsewhere. See `MetricLogger`."""

    def __init__(self, stream: TextIO | None = None):
        """stream: standard error by default. Under the supervisor it is a pipe that ends on its terminal."""
        self._stream = stream or sys.stderr
        terminal = self._stream.isatty() or "PERSIA_HPC_SCREEN" in os.environ
        self._line = ProgressLine(self._stream) if terminal else None
        self._share: float | None = None
        self._parts: list[str] = []  # of the last event of training
        self._evaluated: list[str] = []
        self._undefined: dict[str, str] = {}  # of each split, what was said last
        self._last_line = time.monotonic()

    def log(self, event: dict[str, Any]) -> None:
        """Takes an event. The run goes on without somebody who sees it."""
        with without_reader(self._stream):
            self._log(event)

    def _log(self, event: dict[str, Any]) -> None:
        if event["event"] == "evaluate":
            self._evaluate(event)
        elif event["event"] == "wait":
            self.busy("waits for new files", event["step"])
        elif event["event"] == "data":
            text = f"{event['samples']:,} samples in {event['files']} new files"
            self.busy(text, event["step"])
        elif event["event"] == "restore":
            self.busy(f"goes back to the best evaluation, of step {event['restored_step']}", event["step"])
        elif event["event"] == "train":
            self._train(event)
        elif event["event"] == "end" and self._line is not None:
            self._line.end()

    def busy(self, text: str, step: int | None = None) -> None:
        """Shows what the run does instead of training, until it trains again.

        step: with it a log gets a line, too.
        """
        with without_reader(self._stream):
            if self._line is not None:
                self._line.draw(self._share, [*self._parts[:1], text])
            elif step is not None:
                print(f"step {step}: {text}", file=self._stream, flush=True)

    def _evaluate(self, event: Mapping[str, Any]) -> None:
        split, why = event["split"], undefined_text(event)
        self._evaluated = [f"{split} {metrics_text(event, short=True)}"]
        if event.get("uncounted"):
            why += f"; not counted by {' and '.join(event['uncounted'])}"
        if why != self._undefined.get(split, ""):
            self._undefined[split] = why
            if why:
                self._say(f"step {event['step']}: undefined on {split}: {why}")

    def _say(self, text: str) -> None:
        if self._line is not None:
            self._line.print(text)
        else:
            print(text, file=self._stream, flush=True)

    def _train(self, event: dict[str, Any]) -> None:
        now, left = time.monotonic(), event.get("left_seconds")
        self._share = event["step"] / max(1, event["num_steps"])
        self._parts = [
            f"step {event['step']} of {event['num_steps']}",
            *([] if left is None else [f"{duration(left)} left"]),
            f"loss {event['loss']:.4f}",
            *_waits(event.get("waited", {})),
            f"auc {figure(event['auc'])}",
            *self._evaluated,
            f"{event['samples_per_second']:,.0f} samples/s",
            f"staleness {event['staleness']:.1f}",
        ]
        if self._line is not None:
            self._line.draw(self._share, self._parts)
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            print(", ".join(self._parts), file=self._stream, flush=True)


def _waits(waited: Mapping[str, float]) -> list[str]:
    """Returns what a trainer waits for, if that takes much of its time."""
    cause = max(waited, key=lambda each: waited[each], default="")
    if not cause or waited[cause] < MUCH_WAITING:
        return []
    return [f"waits {waited[cause]:.0%} for {WAITS_FOR.get(cause, cause)}"]


def show_summary(summary: Mapping[str, Any], *, quiet: bool, lines: bool) -> None:
    """Says how a run ended: on stderr unless `quiet`, and as a line of JSON on stdout if `lines`."""
    if not quiet:
        with without_reader(sys.stderr):
            print(summary_text(summary), file=sys.stderr, flush=True)
    if lines:
        JsonStream(sys.stdout).log({"event": "summary", **summary})


def summary_text(summary: Mapping[str, Any]) -> str:
    """Returns a few lines on how a run ended."""
    roles = ", ".join(
        f"{count} {name.replace('_', ' ').removesuffix('s' if count == 1 else '')}"
        for name, count in summary["roles"].items()
    )
    one_process = summary["versions"]["mpi"].startswith("none")
    mode = "sync, in one process" if one_process else summary["mode"]
    lines = [
        f"{summary['status']}: {summary['steps']} steps, {summary['samples']:,} samples in "
        f"{summary['train_seconds']:.1f} s = {summary['samples_per_second']:,.0f} samples/s"
        + (f" ({summary['stop_reason']})" if summary["stop_reason"] else "")
        + (f"; {summary['skipped_steps']} steps were skipped" if summary["skipped_steps"] else ""),
        f"roles: {roles}; {mode}, staleness at most {summary['staleness']['max']} "
        f"(bound {summary['staleness']['bound']})",
    ]
    for split in ("valid", "test"):
        if summary[split]:
            lines.append(f"{split} {metrics_text(summary[split])}")
            missing = summary[split].get("missing_labels", {})
            lines += [f"  label {name} is missing in {count:,} samples" for name, count in missing.items()]
            if skipped := summary[split].get("skipped_groups"):
                each = ", ".join(f"{count:,} by {name}" for name, count in skipped.items())
                lines.append(f"  groups left out: {each}")
            if why := undefined_text(summary[split]):
                lines.append(f"  undefined: {why}")
            if (summary[split]["logloss"] or 0.0) > ABSURD_LOGLOSS:
                lines.append(
                    "  a log loss of this size comes from huge inputs or weights; persia-hpc inspect shows "
                    "the ranges of dense columns"
                )
    if best := summary["best"]:
        kept = f", kept as {best['checkpoint']}" if best["checkpoint"] else ""
        if kept and best["step"] != summary["steps"]:
            of = "the last step" if summary.get("restored_step") is None else "it"
            kept += f", which evaluate and predict use; the metrics above are of {of}"
        lines.append(f"best valid {best['metric']} {figure(best['value'])} after step {best['step']}{kept}")
    lines.append(f"run directory: {summary['run_dir']}")
    return "\n".join(lines)
