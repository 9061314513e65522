"""Draws the last line of a terminal again and again: how far something is, as wide as the terminal is."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from typing import TextIO

from persia_hpc.printable import printable

LEAST_BAR, MOST_BAR = 6, 20  # characters inside of its brackets
BAR_FROM = 60  # columns of a terminal that always has a bar
USUAL_WIDTH = 80


def terminal_width(stream: TextIO) -> int:
    """Returns the columns of a stream's terminal; behind a pipe those that COLUMNS names."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL_WIDTH
    except (OSError, ValueError):  # what has no number raises an error of both kinds
        columns = os.environ.get("COLUMNS", "")
        return int(columns) if columns.isdecimal() and 0 < int(columns) < 10_000 else USUAL_WIDTH


def cells(text: str) -> int:
    """Returns how many columns a text takes."""
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def fitted(share: float | None, parts: Sequence[str], width: int) -> str:
    """Returns a line of at most `width` columns: a share as percent and bar, then the parts that fit.

    The first parts are the most important ones: one that doesn't fit leaves out all after it.
    share: from 0 to 1, None if it isn't known.
    """
    share = None if share is None else min(max(share, 0.0), 1.0)
    percent = "" if share is None else f"{int(100 * share):3d}%"
    free = width - len(percent) - bool(percent)
    if share is not None and width >= BAR_FROM:
        free -= LEAST_BAR + 3
    shown = ""
    for part in map(printable, parts):
        longer = f"{shown}, {part}" if shown else part
        if cells(longer) > free:
            break
        shown = longer
    room = min(MOST_BAR, width - len(percent) - cells(shown) - 4)
    bar = "" if share is None or room < LEAST_BAR else f"[{'#' * int(share * room):<{room}}]"
    text = " ".join(filter(None, (percent, bar, shown)))
    return text if cells(text) <= width else ""


class ProgressLine:
    """Keeps one line of a terminal up to date, and lets whole lines be printed above it."""

    def __init__(self, stream: TextIO) -> None:
        """Draws nothing yet."""
        self._stream = stream
        self._drawn = ""

    def draw(self, share: float | None, parts: Sequence[str]) -> None:
        """Replaces the line by another one; see `fitted`."""
        # A terminal that is full in its last column may begin a new line.
        self._replace(fitted(share, parts, terminal_width(self._stream) - 1))

    def print(self, text: str) -> None:
        """Prints a whole line above the one that is drawn."""
        drawn = self._drawn
        self._replace("")
        self._stream.write(f"{text}\n")
        self._replace(drawn)

    def clear(self) -> None:
        """Takes the line away."""
        self._replace("")

    def end(self) -> None:
        """Leaves the line as it is, and what follows begins on a new one."""
        if self._drawn:
            self._drawn = ""
            self._stream.write("\n")
            self._stream.flush()

    def _replace(self, text: str) -> None:
        if text or self._drawn:
            spaces = " " * (cells(self._drawn) - cells(text))
            self._stream.write(f"\r{text}{spaces}" + "\r" * (not text))
            self._stream.flush()
            self._drawn = text
