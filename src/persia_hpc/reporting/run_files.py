"""Reads a run's JSON files for people to look at: whatever is in them, what can be told is told."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

EVENTS = "metrics.jsonl"
_BEGIN = b'{"event": "'  # how a line of metrics.jsonl begins


def read_object(path: Path) -> tuple[dict[str, Any], str | None]:
    """Returns the object that a JSON file holds, {} without a file; and what is wrong with the file."""
    data, problem = read_bytes(path)
    if data is None:
        return {}, problem
    try:
        values = json.loads(data)
    except RecursionError:
        return {}, f"{path} is damaged (nested too deeply)"
    except ValueError as error:
        return {}, f"{path} is damaged ({error})"
    if not isinstance(values, dict):
        return {}, f"{path} is damaged (got {type(values).__name__}, expected an object)"
    return values, None


def read_bytes(path: Path) -> tuple[bytes | None, str | None]:
    """Returns a file's content, None without one; and why it can't be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not make us wait
        with open(file, "rb") as opened:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None, f"{path} is not a file"
            return opened.read(), None
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{path} can't be read ({error.strerror})"


def read_event(line: bytes) -> dict[str, Any] | None:
    """Returns the event of a line of metrics.jsonl, None if the line is damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def is_train_event(line: bytes) -> bool:
    """Says whether a line is a whole event of training, which most are, without reading all of it."""
    return line.startswith(_BEGIN + b"train") and line.endswith(b"}") and line.count(_BEGIN) == 1


def number(values: Any, name: str) -> float | None:
    """Returns a field if it is a finite number; None without it, or if it is anything else."""
    value = values.get(name) if isinstance(values, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON has integers of any size
        return None
