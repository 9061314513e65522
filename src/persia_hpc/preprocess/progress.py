"""Shows a progress bar on stderr while rows are processed; in a job's log, a line of text once a minute."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm

LOG_SECONDS = 60


class Progress:
    """Counts rows (or another unit) under a title, with the time left where the total is known.

    A terminal's bar disappears at the end. Work that takes less than a minute leaves nothing in a log.
    """

    def __init__(
        self, title: str, total: int | None = None, *, unit: str = " rows", shown: bool = True
    ) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            desc=title,
            unit=unit,
            unit_scale=True,
            leave=False,
            mininterval=0.1 if terminal else LOG_SECONDS,
            maxinterval=10 if terminal else LOG_SECONDS,
            delay=0 if terminal else LOG_SECONDS,
            ncols=None if terminal else 100,
            ascii=not terminal,
            disable=not shown,
        )

    def add(self, rows: int) -> None:
        """Adds `rows` to what is done."""
        self._bar.update(rows)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
