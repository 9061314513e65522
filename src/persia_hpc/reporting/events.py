"""Writes a run's events while it trains: metrics.jsonl, and loggers of the user's."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any, Protocol, TextIO

from persia_hpc.durable import own_file
from persia_hpc.errors import PersiaError
from persia_hpc.printable import lose_reader

from .run_files import read_event

_TAIL_BYTES = 1 << 16


def without_nan(value: Any) -> Any:
    """Returns a copy with None for every float that JSON can't carry (NaN, infinities)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return value


def _end_last_line(path: Path) -> None:
    """Cuts off a last line that a kill has left half-written: the next event would be glued to it."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        tail = b""
        end = file.seek(0, os.SEEK_END)
        while end > 0 and b"\n" not in tail:
            begin = max(0, end - _TAIL_BYTES)
            file.seek(begin)
            tail, end = file.read(end - begin) + tail, begin
        line = tail.rpartition(b"\n")[2]
        if line and read_event(line) is not None:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        elif line:
            file.seek(-len(line), os.SEEK_END)
            file.truncate()


class MetricLogger(Protocol):
    """Sends a run's events somewhere: TensorBoard, a database, … It is called on trainer 0 only."""

    def log(self, event: dict[str, Any]) -> None:
        """Takes one event: its name under "event" (train, evaluate, end, ...), plain numbers and strings."""


class JsonStream:
    """Prints each event as one line of JSON, for a program that follows the run. See `MetricLogger`.

    The run goes on without that program.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def log(self, event: dict[str, Any]) -> None:
        try:
            print(json.dumps(without_nan(event)), file=self._stream, flush=True)
        except OSError as error:
            lose_reader(self._stream, error)


class JsonLines:
    """Appends each event as one line of JSON; flushed at once, so that others can follow the file."""

    def __init__(self, path: Path):
        """Opens nothing yet: a run that is refused must leave no file."""
        self._path = path
        self._file: TextIO | None = None

    def open(self) -> None:
        """Opens the file; from now on it can be written even if its folder no longer takes files.

        Raises PersiaError if it can't be opened.
        """
        try:
            own_file(self._path)
            _end_last_line(self._path)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise PersiaError(f"can't write {self._path}: {error.strerror}") from error

    def log(self, event: dict[str, Any]) -> None:
        """Writes the event.

        Raises PersiaError if it can't be written.
        """
        try:
            if self._file is None:
                self.open()
            assert self._file is not None
            self._file.write(json.dumps(without_nan(event)) + "\n")
            self._file.flush()
        except OSError as error:
            raise PersiaError(f"can't write {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # `log` has said so
                self._file.close()
