"""Shows what a person sees of a run: the plan, a progress bar, a short summary."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 15.0  # without a terminal: a line this often instead of a bar


class Screen:
    """Draws a progress bar on a terminal, and prints a line now and then elsewhere. See `MetricLogger`."""

    def __init__(self, stream: TextIO | None = None):
        """stream: standard error by default. Under the supervisor it is a pipe that ends on its terminal."""
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty() or "PERSIA_HPC_SCREEN" in os.environ
        self._bar: Any = None
        self._evaluated = ""
        self._last_line = time.monotonic()

    def log(self, event: dict[str, Any]) -> None:
        if event["event"] == "evaluate":
            self._evaluated = f", {event['split']} auc {event['auc']:.4f}"
        elif event["event"] == "wait":
            self._print_line(f"step {event['step']}: waits for new files")
        elif event["event"] == "data":
            self._print_line(
                f"step {event['step']}: {event['samples']:,} samples in {event['files']} new files"
            )
        elif event["event"] == "train":
            self._train(event)
        elif self._bar is not None:
            self._bar.close()

    def _train(self, event: dict[str, Any]) -> None:
        figures = (
            f"loss {event['loss']:.4f}, auc {_number(event['auc'])}{self._evaluated}, "
            f"{event['samples_per_second']:,.0f} samples/s, staleness {event['staleness']:.1f}"
        )
        if self._terminal:
            if self._bar is None:
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


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


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
        + (f" ({summary['stop_reason']})" if summary["stop_reason"] else ""),
        f"roles: {roles}; {mode}, staleness at most {summary['staleness']['max']} "
        f"(bound {summary['staleness']['bound']})",
    ]
    for split in ("valid", "test"):
        if summary[split]:
            lines.append(f"{split} auc {summary[split]['auc']:.4f}, logloss {summary[split]['logloss']:.4f}")
    lines.append(f"run directory: {summary['run_dir']}")
    return "\n".join(lines)
