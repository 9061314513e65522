"""Shows on stderr how far work on rows is: in a terminal's last line, in a job's log once a minute."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from persia_hpc.reporting.charts import short
from persia_hpc.reporting.figures import duration
from persia_hpc.reporting.progress_line import ProgressLine

LOG_SECONDS = 60
DRAW_SECONDS = 0.1


class Progress:
    """Counts rows (or another unit) under a title, with the time left where the total is known.

    A terminal's line disappears at the end. Work that takes less than a minute leaves nothing in a log.
    """

    def __init__(
        self, title: str, total: int | None = None, *, unit: str = " rows", shown: bool = True
    ) -> None:
        self._title, self._total, self._unit, self._shown = title, total, unit, shown
        self._line = ProgressLine(sys.stderr) if shown and sys.stderr.isatty() else None
        self._done = 0
        self._began = self._last = time.monotonic()

    def add(self, rows: int) -> None:
        """Adds `rows` to what is done."""
        self._done += rows
        now = time.monotonic()
        if self._shown and now - self._last >= (LOG_SECONDS if self._line is None else DRAW_SECONDS):
            self._last = now
            self._show(now - self._began)

    def _show(self, seconds: float) -> None:
        of = "" if self._total is None else f" of {short(self._total)}"
        parts = [f"{self._title}: {short(self._done)}{of}{self._unit}"]
        if self._total and self._done:
            parts.append(f"{duration(seconds * max(0, self._total - self._done) / self._done)} left")
        parts.append(f"{short(self._done / max(seconds, 1e-9))}{self._unit}/s")
        if self._line is None:
            print(", ".join(parts), file=sys.stderr, flush=True)
        else:
            self._line.draw(self._done / self._total if self._total else None, parts)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.clear()
