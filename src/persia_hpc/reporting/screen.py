"""Shows what a person sees of a run: the plan, a progress bar, a short summary."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from .figures import figure, metrics_text, undefined_text

ABSURD_LOGLOSS = 50.0  # nats: probabilities of e^-50 for what happened
LINE_SECONDS = 15.0  # without a terminal: a line this often instead of a bar


class Screen:
    """Draws a progress bar on a terminal, and prints a line now and then elsewhere. See `MetricLogger`."""

    def __init__(self, stream: TextIO | None = None):
        """stream: standard error by default. Under the supervisor it is a pipe that ends on its terminal."""
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty() or "PERSIA_HPC_SCREEN" in os.environ
        self._bar: Any = None
        self._evaluated = ""
        self._undefined: dict[str, str] = {}  # of each split, what was said last
        self._last_line = time.monotonic()

    def log(self, event: dict[str, Any]) -> None:
        if event["event"] == "evaluate":
            self._evaluate(event)
        elif event["event"] == "wait":
            self._print_line(f"step {event['step']}: waits for new files")
        elif event["event"] == "data":
            self._print_line(
                f"step {event['step']}: {event['samples']:,} samples in {event['files']} new files"
            )
        elif event["event"] == "restore":
            text = f"goes back to the best evaluation, of step {event['restored_step']}"
            self._print_line(f"step {event['step']}: {text}")
        elif event["event"] == "train":
            self._train(event)
        elif event["event"] == "end" and self._bar is not None:
            self._bar.close()

    def _evaluate(self, event: Mapping[str, Any]) -> None:
        split, why = event["split"], undefined_text(event)
        self._evaluated = f", {split} {metrics_text(event, short=True)}"
        if event.get("uncounted"):
            why += f"; not counted by {' and '.join(event['uncounted'])}"
        if why != self._undefined.get(split, ""):
            self._undefined[split] = why
            if why:
                self._say(f"step {event['step']}: undefined on {split}: {why}")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _train(self, event: dict[str, Any]) -> None:
        figures = (
            f"loss {event['loss']:.4f}, auc {figure(event['auc'])}{self._evaluated}, "
            f"{event['samples_per_second']:,.0f} samples/s, staleness {event['staleness']:.1f}"
        )
        if self._terminal:
            if self._bar is None:
                from tqdm import tqdm  # by the rank that shows it only

                self._bar = tqdm(
                    total=event["num_steps"],
                    unit="step",
                    file=self._stream,
                    dynamic_ncols=True,
                    bar_format="{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} "
                    "[{elapsed}<{remaining}]{postfix}",  # tqdm puts ", " before a postfix
                )
            self._bar.total = event["num_steps"]  # data.follow: more may have come
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(event["step"] - self._bar.n)
            self._bar.refresh()
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            left = event["seconds"] / event["step"] * (event["num_steps"] - event["step"])
            print(
                f"step {event['step']}/{event['num_steps']}: {figures}, about {left:.0f} s left",
                file=self._stream,
                flush=True,
            )

    def _print_line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif not self._terminal:
            print(text, file=self._stream, flush=True)


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
