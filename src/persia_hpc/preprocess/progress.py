"""A bar on stderr while rows stream through; nothing when stderr is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts rows (or another unit) under a title; the bar, with the time left, disappears at the end."""

    def __init__(
        self, title: str, total: int | None = None, *, unit: str = " rows", shown: bool = True
    ) -> None:
        self._bar = tqdm(
            total=total,
            desc=title,
            unit=unit,
            unit_scale=True,
            leave=False,
            disable=not (shown and sys.stderr.isatty()),
        )

    def add(self, rows: int) -> None:
        """`rows` more are done."""
        self._bar.update(rows)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
